import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from core.errors import InputError
from core.simulation import rollout
from simulators.sepsis.gumbel import ACTIONS, HORIZON, OBSERVED, STATES, GumbelSepsis, GumbelState

WORLD = GumbelSepsis()
BASES = (2, 3, 3, 2, 5, 2, 2, 2)
UNIFORM = torch.full((OBSERVED, ACTIONS), 1 / ACTIONS)


def follow_the_rules(index, action, n, rng, bug):
    """``n`` next states, by the rules one after the other, on columns of numbers."""
    start = np.unravel_index(index, BASES)
    diabetes = start[0]
    hr, bp, ox, glu = (np.full(n, x) for x in start[1:5])
    was_antibiotic, was_vaso, was_vent = start[5:]
    antibiotic, vent, vaso = action // 4, action // 2 % 2, action % 2

    def chance(p):
        return rng.random(n) < p

    if antibiotic:
        hr = np.where((hr == 2) & chance(0.5), 1, hr)
        bp = np.where((bp == 2) & chance(0.5), 1, bp)
    elif was_antibiotic:
        hr = np.where((hr == 1) & chance(0.1), 2, hr)
        bp = np.where((bp == 1) & chance(0.1), 2, bp)
    if vent:
        ox = np.where((ox == 0) & chance(0.7), 1, ox)
    elif was_vent:
        ox = np.where((ox == 1) & chance(0.1), 0, ox)
    if vaso and not diabetes:
        bp = np.where((bp < 2) & chance(0.7), bp + 1, bp)
    elif vaso:
        u = rng.random(n)
        raised = np.where(u < 0.5, 1, np.where(u < 0.9, 2, 0))
        bp = np.where(bp == 0, raised, np.where((bp == 1) & (u < 0.9), 2, bp))
        glu = np.where(chance(0.5), np.minimum(glu + 1, 4), glu)
    elif was_vaso:
        bp = np.where(chance(0.05 if diabetes else 0.1), np.maximum(bp - 1, 0), bp)

    def drift(x, p, top, cap=None):
        u = rng.random(n)
        return np.where(u < p, np.maximum(x - 1, 0), np.where(u < 2 * p, np.minimum(x + 1, cap or top), x))

    if not (antibiotic or was_antibiotic):
        hr = drift(hr, 0.1, 2)
        if not (vaso or was_vaso):
            bp = drift(bp, 0.1, 2)
    if not (vent or was_vent):
        ox = drift(ox, 0.1, 1)
    if not vaso:
        glu = drift(glu, 0.3, 4) if diabetes else drift(glu, 0.1, 4, 1 if bug else None)
    return np.ravel_multi_index(
        (np.full(n, diabetes), hr, bp, ox, glu, *(np.full(n, x) for x in (antibiotic, vaso, vent))), BASES
    )


def chi_square_agrees(samples, probabilities):
    expected = len(samples) * probabilities
    counts = np.bincount(samples, minlength=STATES)
    assert not counts[expected == 0].any()
    likely = expected > 5
    freedom = likely.sum() - 1
    statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * max(freedom, 1))


@pytest.mark.parametrize("bug", [False, True])
def test_the_matrix_is_stochastic(bug):
    P = GumbelSepsis(glucose_cap_bug=bug).transition
    assert P.shape == (ACTIONS, STATES, STATES)
    assert (P >= 0).all()
    torch.testing.assert_close(P.sum(2), torch.ones(ACTIONS, STATES, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("bug", [False, True])
def test_the_matrix_follows_the_rules(bug):
    """Every context of diabetes, treatments before and action, from random vital signs, against sampled rules."""
    P = GumbelSepsis(glucose_cap_bug=bug).transition.numpy()
    rng = np.random.default_rng(0)
    for diabetes, before, action in itertools.product(range(2), range(8), range(ACTIONS)):
        index = diabetes * OBSERVED + int(rng.integers(90)) * 8 + before
        chi_square_agrees(follow_the_rules(index, action, 2000, rng, bug), P[action, index])


def test_a_hundred_thousand_steps_agree_with_the_matrix():
    generator = torch.Generator().manual_seed(1)
    n = 100_000
    for index, action in ((0 * OBSERVED + 444, 0), (1 * OBSERVED + 355, 1)):
        step = WORLD.step(GumbelState(torch.full((n,), index)), torch.full((n,), action), WORLD.noise(n, generator))
        chi_square_agrees(step.state.index.numpy(), WORLD.transition[action, index].numpy())
        assert torch.equal(step.reward, WORLD.rewards[step.state.index].float())
        assert torch.equal(step.terminated, step.reward != 0)


def test_first_states_are_untreated_and_open():
    drawn = WORLD.reset(100_000, torch.Generator().manual_seed(0)).index
    chi_square_agrees(drawn.numpy(), WORLD.start.numpy())
    assert not (drawn % 8).any()
    assert not WORLD.rewards[drawn].any()
    assert float(WORLD.start[OBSERVED:].sum()) == pytest.approx(0.2, abs=0.05)  # more of the diabetics are drawn anew


def test_values_solve_their_own_equation_and_bound_every_policy():
    q, value = WORLD.value_iteration(0.99)
    ends = WORLD.rewards != 0
    expected = (WORLD.transition @ (WORLD.rewards + 0.99 * value)).T.masked_fill(ends.unsqueeze(1), 0.0)
    torch.testing.assert_close(q, expected, atol=1e-8, rtol=0)
    q, value = WORLD.value_iteration(1.0, horizon=HORIZON)
    best = float(WORLD.start @ value)
    greedy = WORLD.policy_value(one_hot(q.argmax(1), ACTIONS))
    assert WORLD.policy_value(UNIFORM) < greedy <= best + 1e-12
    blind = torch.zeros(OBSERVED, ACTIONS, dtype=torch.float64)
    blind[torch.arange(OBSERVED), q[:OBSERVED].argmax(1)] = 1  # treats everybody as if without diabetes
    assert WORLD.policy_value(blind) < best


def test_the_exact_value_of_a_policy_is_the_mean_of_its_roll_outs():
    generator = torch.Generator().manual_seed(0)

    def random(observation, state=None):
        return torch.randint(ACTIONS, observation.shape, generator=generator)

    returns = rollout(WORLD, random, HORIZON, batch=5000, seed=0)["reward"].sum("time").values
    assert abs(returns.mean() - WORLD.policy_value(UNIFORM)) < 4 * returns.std() / np.sqrt(returns.size)


def test_twins_differ_by_their_treatment_alone():
    generator = torch.Generator().manual_seed(2)
    state, noise = WORLD.reset(500, generator), WORLD.noise(500, generator)
    one, other = (WORLD.step(state, torch.full((500,), a), noise).state.index for a in (0, 2))
    signs = [np.array(np.unravel_index(x.numpy(), BASES)) for x in (one, other)]
    same = signs[0] == signs[1]
    assert same[[0, 1, 2, 4, 5, 6]].all()  # ventilation acts on oxygen alone
    assert not same[3].all()


def test_impossible_input_is_refused():
    state = GumbelState(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match=r"0\.\.7"):
        WORLD.step(state, torch.tensor([0, 8]), WORLD.noise(2, torch.Generator()))
    with pytest.raises(InputError, match="diabetes = 2"):
        GumbelSepsis(diabetes=2)
    with pytest.raises(InputError, match="gamma = 2"):
        WORLD.value_iteration(2)
    with pytest.raises(InputError, match="720, 8"):
        WORLD.policy_value(UNIFORM * 2)

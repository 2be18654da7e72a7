import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from core import bandits
from core.errors import InputError

DTYPES = [torch.float32, torch.float64]
RULES = {
    "uniform": lambda f, m: bandits.uniform(m, f.dtype),
    "greedy": bandits.greedy,
    "epsilon": lambda f, m: bandits.epsilon_greedy(f, m, 0.1),
    "igw": lambda f, m: bandits.inverse_gap_weighting(f, m, 300.0),
    "softmax": lambda f, m: bandits.softmax(f, m, 0.05),
    "votes": lambda f, m: bandits.bootstrap_votes(torch.stack([f, 1 - f, (f - 0.5) ** 2]), m),
    "igw_elim": lambda f, m: bandits.inverse_gap_weighting(f, bandits.surviving_actions(f, m, 1e-2, 1000), 300.0),
    "floor": lambda f, m: bandits.with_floor(bandits.greedy(f, m), m, 0.2),
    "minimum": lambda f, m: bandits.with_minimum(bandits.softmax(f, m, 0.05), m, 0.2),
}


def rows(n=200, actions=12, dtype=torch.float64, seed=0, share=0.5):
    """Scores, and a mask in which each action is available with the given share and at least one always is."""
    rng = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, actions, generator=rng, dtype=torch.float64).to(dtype)
    mask = torch.rand(n, actions, generator=rng) < share
    mask[torch.arange(n), torch.randint(actions, (n,), generator=rng)] = True
    return scores, mask


def by_hand(scores, mask, gamma):
    """Inverse-gap weighting of one row from its definition."""
    available = np.flatnonzero(mask)
    best = available[np.argmax(scores[available])]
    p = np.zeros(len(scores))
    for a in available:
        p[a] = 1 / (len(available) + gamma * (scores[best] - scores[a]))
    p[best] = 1 - (p.sum() - p[best])
    return p


def test_inverse_gap_weighting_of_the_published_vector():
    p = bandits.inverse_gap_weighting(
        torch.tensor([[0.9, 0.8, 0.5]], dtype=torch.float64), torch.ones(1, 3).bool(), 100
    )
    assert p[0].tolist() == pytest.approx([0.8998211091, 0.0769230769, 0.0232558140], abs=1e-10)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 300.0, 1e6])
def test_inverse_gap_weighting_is_its_definition(gamma):
    scores, mask = rows()
    p = bandits.inverse_gap_weighting(scores, mask, gamma)
    expected = [by_hand(f, m, gamma) for f, m in zip(scores.numpy(), mask.numpy(), strict=True)]
    np.testing.assert_allclose(p.numpy(), expected, rtol=0, atol=1e-14)
    single = bandits.inverse_gap_weighting(scores.float(), mask, gamma)
    assert single.dtype == torch.float32
    # A gap of float32 is wrong by 6e-8, which gamma / n_A multiplies.
    torch.testing.assert_close(single.double(), p, rtol=0, atol=1e-6 + 6e-8 * gamma)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_probabilities_sum_to_one_over_the_available_actions(name, dtype):
    scores, mask = rows(dtype=dtype)
    p = RULES[name](scores, mask)
    assert p.dtype == dtype
    assert (p >= 0).all()
    assert (p[~mask] == 0).all()
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert (p.double().sum(1) - 1).abs().max() < tolerance


@pytest.mark.parametrize("dtype", DTYPES)
def test_gamma_leads_from_uniform_to_greedy(dtype):
    scores, mask = rows(dtype=dtype)
    best = bandits.best_action(scores, mask)[:, None]
    at_best, even = [], bandits.uniform(mask, dtype)
    for gamma in (0.0, 1e-3, 1.0, 1e3, 1e12):
        p = bandits.inverse_gap_weighting(scores, mask, gamma)
        at_best.append(p.gather(1, best))
        assert (at_best[-1] >= even.gather(1, best) - 1e-6).all()
        if gamma == 0:
            torch.testing.assert_close(p, even)
    assert all((later >= sooner - 1e-6).all() for sooner, later in pairwise(at_best))
    torch.testing.assert_close(p, bandits.greedy(scores, mask), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_a_masked_action_is_as_if_it_did_not_exist(name):
    scores, mask = rows(n=50)
    together = RULES[name](scores, mask)
    for row, available in enumerate(mask):
        alone = RULES[name](scores[row : row + 1, available], torch.ones(1, int(available.sum())).bool())
        torch.testing.assert_close(together[row, available], alone[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
def test_what_a_masked_action_scores_does_not_matter(junk):
    scores, mask = rows()
    expected = bandits.inverse_gap_weighting(scores, mask, 100.0)
    poisoned = torch.where(mask, scores, junk)
    assert torch.equal(bandits.inverse_gap_weighting(poisoned, mask, 100.0), expected)
    assert torch.equal(bandits.best_action(poisoned, mask), bandits.best_action(scores, mask))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_best_action_is_the_first_of_the_highest(dtype, scale):
    rng = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 4, (500, 40), generator=rng).to(dtype) * scale  # many ties
    mask = torch.rand(500, 40, generator=rng) < 0.3
    mask[:, 7] = True
    assert torch.equal(bandits.best_action(scores, mask), torch.where(mask, scores, -math.inf).argmax(1))
    # The smallest difference that a number near 1 can show is no tie.
    close = torch.ones(1, 3, dtype=dtype)
    close[0, 2] = torch.nextafter(close[0, 2], torch.tensor(2.0, dtype=dtype))
    assert bandits.best_action(close, torch.ones(1, 3).bool()).tolist() == [2]


def test_a_parameter_may_differ_between_rows():
    scores, mask = rows(n=3)
    values = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    for rule in (
        bandits.inverse_gap_weighting,
        bandits.epsilon_greedy,
        lambda f, m, v: bandits.softmax(f, m, v + 0.1),
        lambda f, m, v: bandits.with_minimum(bandits.greedy(f, m), m, v),
    ):
        together = rule(scores, mask, values)
        for row, value in enumerate(values.tolist()):
            alone = rule(scores[row : row + 1], mask[row : row + 1], value)
            torch.testing.assert_close(together[row : row + 1], alone)


def test_epsilon_greedy_is_its_formula():
    scores, mask = rows()
    expected = 0.2 / mask.sum(1, keepdim=True) * mask
    expected[torch.arange(len(mask)), bandits.best_action(scores, mask)] += 0.8
    torch.testing.assert_close(bandits.epsilon_greedy(scores, mask, 0.2), expected.double())


def test_softmax_ratios_are_exponentials_of_the_gaps():
    scores, mask = rows(share=1.0)
    p = bandits.softmax(scores, mask, 0.3)
    torch.testing.assert_close(p[:, 3] / p[:, 5], ((scores[:, 3] - scores[:, 5]) / 0.3).exp())
    # Rewards of any size: no overflow.
    assert bandits.softmax(scores * 1e6, mask, 1e-3).isfinite().all()


def test_bootstrap_votes_are_shares_smoothed_by_one():
    scores = torch.tensor([[[1.0, 2.0, 3.0]], [[3.0, 2.0, 9.0]], [[0.0, 1.0, 9.0]]])
    p = bandits.bootstrap_votes(scores, torch.tensor([[True, True, False]]))
    assert p[0].tolist() == pytest.approx([2 / 5, 3 / 5, 0.0])


def test_elimination_drops_what_cannot_be_best():
    scores = torch.tensor([[0.9, 0.85, 0.5, 0.1]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    # Radius sqrt(1e-3 log(3 * 1000) * leverage): 0.0283 at 0.1, so the ends are .8717 and, for the second, .8783.
    assert bandits.surviving_actions(scores, mask, 0.1, 1000).tolist() == [[True, True, False, False]]
    assert bandits.surviving_actions(scores, mask, 0.05, 1000).tolist() == [[True, False, False, False]]
    nothing_known_of_the_third = torch.tensor([0.05, 0.05, math.inf, math.inf])
    kept = bandits.surviving_actions(scores, mask, nothing_known_of_the_third, 1000)
    assert kept.tolist() == [[True, False, True, False]]
    assert torch.equal(bandits.surviving_actions(scores, mask, 0.0, 0), mask)


def test_elimination_narrows_with_the_rows_of_a_mean_and_keeps_the_best():
    scores, mask = rows()
    best = bandits.best_action(scores, mask)[:, None]
    kept = mask
    for count in (1, 10, 100, 10_000, 10**9):
        narrower = bandits.surviving_actions(scores, mask, 1 / count, 5000)
        assert narrower.gather(1, best).all()
        assert (kept | ~narrower).all()
        kept = narrower
    assert (kept.sum(1) == 1).all()
    # Scores outside the range of rewards are clipped to it and still leave an action.
    assert bandits.surviving_actions(5 * scores, mask, 0.0, 5000).any(1).all()


def test_elimination_is_by_the_extremes_over_oracles_of_like_loss():
    # Least squares: of all theta whose squared loss is at most delta above the least, the extremes of x' theta.
    rng = np.random.default_rng(3)
    seen, actions = rng.normal(size=(60, 4)), rng.normal(size=(6, 4))
    reward = seen @ [0.7, -0.3, 0.2, 0.0] + rng.normal(size=60)
    gram = seen.T @ seen
    theta = np.linalg.solve(gram, seen.T @ reward)
    delta = 1e-3 * np.log(6 * 60) * 24.0**2
    # Points of the ellipsoid (theta' - theta)' H (theta' - theta) = delta.
    sphere = rng.normal(size=(200_000, 4))
    shift = np.linalg.solve(np.linalg.cholesky(gram).T, sphere.T / np.linalg.norm(sphere, axis=1)) * np.sqrt(delta)
    reached = actions @ (theta[:, None] + shift)
    expected = reached.max(1) >= reached.min(1).max()
    leverage = torch.from_numpy(np.einsum("ai,ij,aj->a", actions, np.linalg.inv(gram), actions))
    scores = torch.from_numpy(actions @ theta)[None]
    kept = bandits.surviving_actions(scores, torch.ones(1, 6).bool(), leverage, 60, low=-12.0, high=12.0)
    assert kept[0].tolist() == expected.tolist()
    assert 1 < kept.sum() < 6


def test_floor_mixes_with_uniform():
    scores, mask = rows()
    p = bandits.softmax(scores, mask, 0.02)
    floored = bandits.with_floor(p, mask, 0.1)
    torch.testing.assert_close(floored, 0.9 * p + 0.1 * bandits.uniform(mask))
    assert (floored[mask] >= (0.1 * bandits.uniform(mask))[mask]).all()


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.02, 0.2, 5.0])
def test_minimum_lowers_the_others_alike(epsilon, temperature):
    scores, mask = rows()
    p = bandits.softmax(scores, mask, temperature)
    least = epsilon * bandits.uniform(mask)
    result = bandits.with_minimum(p, mask, epsilon)
    assert (result >= least - 1e-15).all()
    for row, given, minimum in zip(result, p, least, strict=True):
        low, high = 0.0, 1.0  # what is taken from each, by bisection: the sum falls with it
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if torch.maximum(given - middle, minimum).sum() > 1 else (low, middle)
        torch.testing.assert_close(row, torch.maximum(given - high, minimum), rtol=0, atol=1e-12)


def test_empty_batches_pass():
    scores, mask = rows(n=0)
    for rule in RULES.values():
        assert rule(scores, mask).shape == (0, 12)


@pytest.mark.parametrize("name", RULES)
def test_a_row_without_an_available_action_is_refused_by_number(name):
    scores, mask = rows()
    mask[[57, 90]] = False
    with pytest.raises(InputError, match="available actions: row 57 is 0, allowed is at least 1"):
        RULES[name](scores, mask)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", sorted(set(RULES) - {"uniform"}))
def test_an_available_score_that_is_not_finite_is_refused_by_number(name, value):
    scores, mask = rows()
    action = int(mask[41].nonzero()[0])
    scores[41, action] = value
    scores[40, ~mask[40]] = math.nan
    with pytest.raises(InputError, match=r"scores: row 41 is (nan|inf)"):
        RULES[name](scores, mask)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, m: bandits.inverse_gap_weighting(f, m, -1.0), "gamma: row 0 is -1.0, allowed is at least 0 and fin"),
        (lambda f, m: bandits.inverse_gap_weighting(f, m, math.inf), "gamma: row 0 is inf"),
        (lambda f, m: bandits.inverse_gap_weighting(f, m, math.nan), "gamma: row 0 is nan"),
        (lambda f, m: bandits.inverse_gap_weighting(f, m, torch.arange(200) - 1.0), "gamma: row 0 is -1.0"),
        (lambda f, m: bandits.inverse_gap_weighting(f, m, torch.ones(7)), "gamma of 7 values"),
        (lambda f, m: bandits.inverse_gap_weighting(f[:5], m, 1.0), r"scores of shape \(5, 12\)"),
        (lambda f, m: bandits.inverse_gap_weighting(f.half(), m, 1.0), "float16"),
        (lambda f, m: bandits.greedy(f, m.long()), "must be .rows, actions. of torch.bool"),
        (lambda f, m: bandits.uniform(m[0]), r"mask of shape \(12,\)"),
        (lambda f, m: bandits.epsilon_greedy(f, m, 1.5), "eta: row 0 is 1.5, allowed is at least 0 and at most 1"),
        (lambda f, m: bandits.with_minimum(f, m, -0.1), "epsilon: row 0"),
        (lambda f, m: bandits.with_floor(f[:, :3], m, 0.1), "probabilities of shape"),
        (lambda f, m: bandits.softmax(f, m, 0.0), "temperature: row 0 is 0.0"),
        (lambda f, m: bandits.bootstrap_votes(f, m), "must be .oracles, rows, actions."),
        (lambda f, m: bandits.surviving_actions(f, m, -1.0, 5), "leverage"),
        (lambda f, m: bandits.surviving_actions(f, m, 1.0, 5, low=1.0), "low = 1.0, high = 1.0"),
        (lambda f, m: bandits.surviving_actions(f, m, 1.0, 5, mellowness=-1.0), "mellowness = -1.0"),
    ],
)
def test_refusals_name_what_is_wrong_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as refusal:
        call(*rows())
    assert "\n" not in str(refusal.value)


def vw_rounds(options, gamma, epsilon=0.0):
    """Probabilities of Vowpal Wabbit's squarecb over 300 rounds of changing action sets, and ours from its costs."""
    vw = pytest.importorskip("vowpalwabbit", reason="vowpalwabbit is not installed: pip install 'szilard[vw]'")
    common = "--quiet --cb_type mtr -q sa"
    squarecb = vw.Workspace(f"{common} --cb_explore_adf --squarecb {options}")
    costs = vw.Workspace(f"{common} --cb_adf")  # the same regression, its predictions not made into probabilities

    def lines(x, available, chosen=None, cost=0.0):
        shared = "shared |s " + " ".join(f"x{j}:{v:.4f}" for j, v in enumerate(x))
        # Probability 1: squarecb learns its costs without weights.
        return [shared, *(f"0:{cost}:1.0 |a a{a}" if a == chosen else f"|a a{a}" for a in available)]

    rng, actions, theirs, scores, mask = np.random.default_rng(0), 8, [], [], []
    for _ in range(300):
        available = np.sort(rng.choice(actions, rng.integers(1, actions), replace=False))
        row, open_ = np.zeros((2, actions)), np.isin(np.arange(actions), available)
        asked = lines(rng.random(3), available)
        row[0, available], row[1, available] = squarecb.predict(asked), costs.predict(asked)
        theirs.append(row[0])
        scores.append(-row[1])
        mask.append(open_)
        chosen = rng.choice(available)
        learned = lines(rng.random(3), available, chosen, -float(rng.random() < 0.3 + 0.08 * chosen))
        squarecb.learn(learned)
        costs.learn(learned)
    squarecb.finish()
    costs.finish()
    scores, mask = torch.from_numpy(np.array(scores)), torch.from_numpy(np.array(mask))
    rate = torch.cat([gamma(m.sum(1), t) for t, m in enumerate(mask.split(1))])
    ours = bandits.inverse_gap_weighting(scores, mask, rate)
    return np.array(theirs), bandits.with_minimum(ours, mask, epsilon).numpy()


@pytest.mark.parametrize(
    ("options", "gamma", "epsilon"),
    [
        ("", bandits.PowerGamma(), 0.0),
        ("--gamma_scale 300 --gamma_exponent 0.25", bandits.PowerGamma(300.0, 0.25), 0.0),
        ("--epsilon 0.2", bandits.PowerGamma(), 0.2),
    ],
)
def test_probabilities_are_those_of_vowpal_wabbits_squarecb(options, gamma, epsilon):
    theirs, ours = vw_rounds(options, gamma, epsilon)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)  # Vowpal Wabbit works in float32
    assert theirs.max(1).min() < 0.5 < theirs[-50:].max(1).mean()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_agrees_with_cpu(name, dtype):
    scores, mask = rows(n=20_000, actions=32, dtype=dtype)
    mask[0] = scores[0] >= scores[0].amax()
    scores[1, ~mask[1]] = math.nan
    ours = RULES[name](scores.cuda(), mask.cuda()).cpu()
    torch.testing.assert_close(ours, RULES[name](scores, mask), rtol=0, atol=1e-5)
    assert (ours[~mask] == 0).all()
    assert torch.equal(bandits.best_action(scores.cuda(), mask.cuda()).cpu(), bandits.best_action(scores, mask))
    mask[77] = False
    with pytest.raises(InputError, match="row 77"):
        RULES[name](scores.cuda(), mask.cuda())

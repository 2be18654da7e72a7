import pytest
import torch
from torch.nn.functional import one_hot

from core.errors import InputError
from core.simulation import rollout
from simulators.sepsis.features import ACTIONS
from simulators.sepsis.icusepsis import (
    BINARY,
    DEATH,
    LIVING,
    SURVIVAL,
    HiddenPolicy,
    ICUSepsis44,
    simulate_cohort,
    survival,
)

WORLD = ICUSepsis44()
UNIFORM = torch.full((716, ACTIONS), 1 / ACTIONS)


def best():
    return one_hot(WORLD.value_iteration()[0].argmax(1), ACTIONS).double()


@pytest.mark.parametrize(
    ("policy", "returned", "length"),
    [(UNIFORM, 0.7801, 9.46), (WORLD.dynamics.clinician, 0.7818, 9.24), (best(), 0.8751, 10.99)],
    ids=["uniform", "clinician", "optimal"],
)
def test_exact_values_are_those_of_the_benchmark(policy, returned, length):
    value, steps = WORLD.policy_value(policy)
    assert value == pytest.approx(returned, abs=1e-4)
    assert steps == pytest.approx(length, abs=5e-3)


def test_the_best_values_solve_their_own_equation():
    q, value = WORLD.value_iteration()
    reward = WORLD.dynamics.transition[:LIVING, :, SURVIVAL]
    torch.testing.assert_close(q[:LIVING], reward + WORLD.dynamics.transition[:LIVING] @ value, atol=1e-9, rtol=0)
    assert float(WORLD.dynamics.start @ value) == pytest.approx(WORLD.policy_value(best())[0], abs=1e-8)


def test_steps_are_drawn_from_the_transition_matrix():
    generator = torch.Generator().manual_seed(0)
    start = WORLD.reset(1, generator)
    n, action = 100_000, 7
    state = type(start)(start.z.expand(n), start.patient.expand(n, -1), start.observation.expand(n, -1))
    after = WORLD.step(state, torch.full((n,), action), WORLD.noise(n, generator))
    expected = n * WORLD.dynamics.transition[start.z[0], action]
    counts = torch.bincount(after.state.z, minlength=716).double()
    assert not counts[expected == 0].any()
    likely = expected > 5
    statistic = ((counts - expected) ** 2 / expected)[likely].sum()
    freedom = float(likely.sum()) - 1
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5
    assert torch.equal(after.reward, (after.state.z == SURVIVAL).float())
    assert torch.equal(after.info["died"], after.state.z == DEATH)
    assert torch.equal(after.terminated, after.state.z >= LIVING)


@pytest.mark.parametrize(
    ("policy", "exact"), [(WORLD.dynamics.clinician, 0.7818), (best(), 0.8751)], ids=["clinician", "optimal"]
)
def test_estimated_survival_is_unbiased_and_steadier_than_outcomes(policy, exact):
    estimates = survival(WORLD, HiddenPolicy(policy), 2000, seed=3)
    assert abs(estimates.mean() - exact) <= 4 * estimates.std() / len(estimates) ** 0.5 + 1e-4
    assert estimates.std() < 0.5 * (exact * (1 - exact)) ** 0.5


@pytest.mark.parametrize(("kappa", "share"), [(0.25, 0.999), (0.5, 0.99), (1.0, 0.8)])
def test_the_nearest_centroid_tells_the_hidden_state_as_far_as_the_scatter_allows(kappa, share):
    cohort = simulate_cohort(ICUSepsis44(kappa), 300, seed=1)
    seen, hidden = cohort.state[cohort.mask], cohort.truth["latent"][cohort.mask][:, 0].long()
    nearest = torch.cdist(seen, WORLD.dynamics.centroid[:LIVING]).argmin(1)
    found = float((nearest == hidden).float().mean())
    assert found > share
    assert kappa < 1 or found < 0.85


def test_a_cohort_is_what_the_clinicians_did():
    cohort = simulate_cohort(WORLD, 1500, seed=2)
    n = len(cohort.outcome)
    assert abs((cohort.outcome > 0).float().mean() - 0.7818) < 4 * (0.78 * 0.22 / n) ** 0.5
    assert abs(cohort.mask.sum(1).float().mean() - 9.24) < 4 * cohort.mask.sum(1).float().std() / n**0.5
    valid = cohort.mask
    taken = cohort.behaviour.gather(2, cohort.action.unsqueeze(2)).squeeze(2)
    assert (taken[valid] > 0).all()
    torch.testing.assert_close(cohort.behaviour.sum(2), valid.float(), atol=1e-5, rtol=0)
    assert not cohort.state[~valid].any()
    numbers = cohort.state[valid][:, ~BINARY]
    assert ((numbers.std(0) > 0.9) & (numbers.std(0) < 1.1)).all()
    assert set(cohort.state[valid][:, BINARY].unique().tolist()) == {-0.5, 0.5}
    again = simulate_cohort(WORLD, 1500, seed=2)
    assert torch.equal(again.state, cohort.state)
    assert torch.equal(again.split, cohort.split)


def test_a_roll_out_stays_in_the_observation_space():
    records = rollout(WORLD, HiddenPolicy(UNIFORM), 20, batch=50, seed=0)
    seen = records["observation"].values[records["alive"].values]
    assert (abs(seen) <= WORLD.observation_space.high).all()


def test_impossible_input_is_refused():
    state = WORLD.reset(2, torch.Generator().manual_seed(0))
    noise = WORLD.noise(2, torch.Generator())
    with pytest.raises(InputError, match=r"0\.\.24"):
        WORLD.step(state, torch.tensor([0, 25]), noise)
    with pytest.raises(InputError, match="kappa = -1"):
        ICUSepsis44(-1)
    with pytest.raises(InputError, match="716, 25"):
        WORLD.policy_value(UNIFORM * 2)

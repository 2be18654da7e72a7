import numpy as np
import pytest
import scipy.linalg
import torch

from core.errors import InputError
from core.simulation import rollout
from simulators.testbeds import ScalarLQR

HORIZON = 32


class Linear:
    """u_t = -gains[t] x_t."""

    def __init__(self, gains):
        self.gains = gains

    def reset(self, batch):
        self.t = 0

    def __call__(self, observation, state=None):
        self.t += 1
        return -float(self.gains[self.t - 1]) * state.x.unsqueeze(-1)


def cost(world, gains, batch=20_000):
    """Mean cost of an episode and its standard error."""
    records = rollout(world, Linear(gains), HORIZON, batch=batch, seed=0)
    costs = -records["reward"].sum("time").to_numpy()
    return costs.mean(), costs.std() / np.sqrt(costs.size)


@pytest.mark.parametrize("world", [ScalarLQR(), ScalarLQR(control=0.2, noise_std=0.1, action_cost=0.5)])
def test_the_riccati_policy_costs_what_the_recursion_says(world):
    gains, _ = world.riccati(HORIZON)
    mean, error = cost(world, gains)
    assert abs(mean - world.optimal_cost(HORIZON)) < 4 * error


def test_no_other_gain_is_cheaper():
    world = ScalarLQR(dtype=torch.float64)
    gains, _ = world.riccati(HORIZON)
    best, _ = cost(world, gains)
    for factor in (0.8, 0.95, 1.05, 1.2):
        assert cost(world, factor * gains)[0] > best  # on the same noise


def test_long_horizons_reach_the_algebraic_equation():
    world = ScalarLQR()
    gains, weights = world.riccati(500)
    one = np.ones((1, 1))
    solution = scipy.linalg.solve_discrete_are(one, world.control * one, one, world.action_cost * one)[0, 0]
    np.testing.assert_allclose([weights[0], gains[0]], [solution, 2.0], rtol=1e-6)
    assert gains[-1] == 0  # the last action moves nothing that is paid for


def test_agents_are_systems_of_their_own():
    single, several = ScalarLQR(), ScalarLQR(agents=3)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    states = [world.reset(batch, g) for world, batch, g in zip((single, several), (12, 4), generators, strict=True)]
    noises = [world.noise(batch, g) for world, batch, g in zip((single, several), (12, 4), generators, strict=True)]
    action = torch.linspace(-3, 3, 12)
    one = single.step(states[0], action.unsqueeze(-1), noises[0])
    many = several.step(states[1], action.view(4, 3, 1), noises[1])
    assert torch.equal(one.state.x, many.state.x.flatten())
    assert torch.equal(one.reward, many.reward.flatten())
    assert many.terminated.tolist() == [False] * 4
    assert several.observe(many.state).shape == (4, 3, 1)


@pytest.mark.parametrize(
    ("field", "value"), [("action_cost", 0), ("noise_std", -1), ("control", float("nan")), ("agents", 0)]
)
def test_impossible_numbers_are_refused(field, value):
    with pytest.raises(InputError, match=f"{field}: {value}; allowed"):
        ScalarLQR(**{field: value})

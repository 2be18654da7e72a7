"""Roll-outs: equal luck, equal batches, faults that stay alone, and what is written down."""

import numpy as np
import pytest
import torch

from core.errors import InputError
from core.simulation import draw, episode_totals, rollout, tree
from simulators.fishery import model
from tests.core.worlds import Corridor, Drift, Duo

WORLDS = [model(1, dtype=torch.float64), model(3, dtype=torch.float64), model(4, dtype=torch.float64)]


def careless(observation, state=None):
    """A policy that loses some episodes early and keeps others."""
    one = observation.shape[1] == 1
    return torch.full_like(observation[:, :1], 0.02 if one else 0.33).expand(-1, 1 if one else 2)


@pytest.mark.parametrize("world", WORLDS, ids=["model1", "model3", "model4"])
def test_a_batch_equals_its_copies_however_it_is_split(world):
    draws = draw(world, 150, 40, seed=3)
    whole = rollout(world, careless, draws=draws)
    assert len(np.unique(whole["length"])) > 3  # some end early, so that resting copies are compared too
    for parts in (
        [slice(i, i + 1) for i in range(40)],
        [slice(0, 7), slice(7, 40)],
        [slice(0, 40, 2), slice(1, 40, 2)],
    ):
        for part in parts:
            alone = rollout(world, careless, draws=draws.take(part))
            for name in ("population", "harvest", "reward", "length", "terminated"):
                difference = abs(alone[name].values.astype(float) - whole[name].values[part].astype(float))
                assert difference.max() <= 1e-12, name


def test_two_policies_meet_the_same_luck():
    world = model(3, dtype=torch.float64)
    none = rollout(world, lambda o, s: torch.zeros_like(o[:, :2]), 50, 8, seed=5)
    some = rollout(world, lambda o, s: torch.full_like(o[:, :2], 1e-9), 50, 8, seed=5)
    other = rollout(world, lambda o, s: torch.zeros_like(o[:, :2]), 50, 8, seed=6)
    np.testing.assert_allclose(none["population"], some["population"], atol=1e-6)
    assert abs(none["population"] - other["population"]).max() > 0.05


def test_a_copied_state_replays():
    world = model(3, dtype=torch.float64)
    draws = draw(world, 60, 5, seed=1)
    whole = rollout(world, careless, draws=draws)
    state = draws.start
    for noise in draws.noise[:20]:
        state = world.step(state, careless(world.observe(state)), noise).state
    rest = type(draws)(tree.map_tensors(torch.clone, state), draws.noise[20:])
    again = rollout(world, careless, draws=rest)
    np.testing.assert_array_equal(again["population"], whole["population"][:, 20:])


def test_a_copy_that_blows_up_ends_alone():
    calm, bursting = Drift(dtype=torch.float64), Drift(explode=1.0, dtype=torch.float64)

    def right(observation, state=None):
        push = torch.zeros_like(observation)
        push[2, 0] = 0.3
        return push

    draws = draw(calm, 12, 4, seed=0)
    whole, faulty = (episode_totals(world, right, draws) for world in (calm, bursting))
    assert faulty.nonfinite.tolist() == [False, False, True, False]
    others = [0, 1, 3]
    assert torch.equal(faulty.reward[others], whole.reward[others])
    assert torch.isfinite(faulty.reward).all()
    assert faulty.length[2] < 12
    assert not faulty.terminated[2]


def test_after_its_end_a_copy_rests():
    world = model(3, dtype=torch.float64)
    data = rollout(world, lambda o, s: torch.full_like(o[:, :2], 0.6), 200, 30, seed=2)
    assert bool(data["terminated"].all())
    assert not np.isnan(data["population"]).any()
    for rep in range(30):
        end = int(data["length"][rep])
        assert data["alive"][rep].values.tolist() == [True] * end + [False] * (200 - end)
        for name in ("reward", "harvest", "mortality"):
            assert not data[name][rep, end:].any()
        last = data["population"][rep, end]
        assert float(last.min()) <= 0.05
        assert (data["population"][rep, end:] == last).all()


def test_totals_are_the_sums_of_the_roll_out():
    world = model(3, dtype=torch.float64)
    draws = draw(world, 150, 50, seed=4)
    data, totals = rollout(world, careless, draws=draws), episode_totals(world, careless, draws)
    np.testing.assert_allclose(totals.reward, data["reward"].sum("time"), rtol=1e-12)
    np.testing.assert_array_equal(totals.length, data["length"])
    np.testing.assert_array_equal(totals.terminated, data["terminated"])
    last = data["reward"].isel(time=data["length"] - 1)
    np.testing.assert_allclose(totals.last_reward, last)


def test_what_is_recorded_has_names_units_and_coordinates():
    data = rollout(model(3), careless, 10, 4)
    assert data["population"].dims == ("rep", "time", "species")
    assert data["harvest"].dims == ("rep", "time", "harvested")
    assert data["species"].values.tolist() == ["X", "Y", "Z"]
    assert data["harvested"].values.tolist() == ["X", "Y"]
    assert all(data[n].attrs["units"] and data[n].attrs["long_name"] for n in ("population", "mortality", "reward"))


def test_rewards_of_agents_are_recorded_agent_by_agent():
    data = rollout(Duo(), lambda o, s: torch.zeros_like(o[..., :1]), 5, 3)
    assert data["reward"].dims == ("rep", "time", "agent")


def test_discrete_actions_roll_out():
    """Two steps to the right end of the corridor, whose last one pays."""
    data = rollout(Corridor(), lambda cell, state: torch.ones_like(cell), 5, 3)
    assert data["length"].values.tolist() == [2, 2, 2]
    assert data["reward"].values.tolist() == [[0, 1, 0, 0, 0]] * 3


def test_a_policy_with_memory_is_told_to_forget():
    class Counting:
        def reset(self, batch):
            self.year, self.batch = 0, batch

        def __call__(self, observation, state=None):
            self.year += 1
            return torch.zeros_like(observation[:, :2])

    policy = Counting()
    for _ in range(2):
        rollout(model(3), policy, 7, 3)
        assert (policy.year, policy.batch) == (7, 3)


def test_bad_calls_are_refused():
    with pytest.raises(InputError, match="horizon = None, batch = None"):
        rollout(model(3), careless)
    with pytest.raises(InputError, match="horizon = 0, batch = 5"):
        rollout(model(3), careless, 0, 5)
    with pytest.raises(InputError, match=r"step 0.*not finite"):
        rollout(model(3), lambda o, s: torch.full_like(o[:, :2], float("nan")), 5, 5)


def test_trees_round_trip():
    state = model(3).reset(6, torch.Generator().manual_seed(0))
    named = dict(tree.named_tensors({"a": state, "b": [1]}))
    assert set(named) == {"a.population", "a.year"}
    doubled = tree.with_tensors({"a": state}, {k: 2 * v for k, v in named.items()})
    assert torch.equal(doubled["a"].population, 2 * state.population)
    assert torch.equal(tree.take(tree.repeat(state, 3), slice(6, 12)).population, state.population)
    bad = tree.map_tensors(torch.clone, state)
    bad.population[4, 1] = float("inf")
    assert tree.finite(bad).tolist() == [True] * 4 + [False, True]

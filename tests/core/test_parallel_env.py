import subprocess
import sys
import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

from core.errors import InputError
from core.simulation import Step
from tests.core.worlds import Cell, Drift, Duo

pettingzoo_test = pytest.importorskip("pettingzoo.test", reason="pettingzoo is not installed")

from core.simulation import ParallelEnv  # noqa: E402
from core.simulation.gym_env import to_numpy  # noqa: E402


@dataclass(frozen=True)
class Ring:
    """Three agents, each in one of four cells; action 0 stays and 1 goes on, which is not allowed in cell 2.

    Agent i begins in cell i. The world ends when all are in cell 0, and is no longer a number when all are in cell 3.
    """

    agents: int = 3
    variables: dict = field(default_factory=dict)
    action_space: Discrete = field(default_factory=lambda: Discrete(2))
    observation_space: Dict = field(
        default_factory=lambda: Dict({"own": Discrete(4), "cells": Box(0.0, 3.0, (3,), np.float64)})
    )

    def reset(self, batch, generator):
        return Cell(torch.arange(3, device=generator.device).repeat(batch, 1).double())

    def noise(self, batch, generator):
        return Cell(torch.empty(batch, 0, device=generator.device))

    def step(self, state, action, noise):
        cell = (state.cell + action) % 4
        reward = torch.where((cell == 3).all(1), torch.nan, (cell == 0).double().mean(1))
        return Step(Cell(cell), reward, (cell == 0).all(1), {"cell": cell, "moved": action.sum(1)})

    def observe(self, state, noise):
        return {"own": state.cell.long(), "cells": state.cell.unsqueeze(1).expand(-1, 3, 3)}

    def action_mask(self, state):
        mask = torch.ones(*state.cell.shape, 2, dtype=torch.bool, device=state.cell.device)
        mask[..., 1] = state.cell != 2
        return mask


@pytest.mark.parametrize("world", [Duo(), Duo(shared=True), Ring()])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_library_checks_pass_without_warnings(world, scaled):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pettingzoo_test.parallel_api_test(ParallelEnv(world, horizon=30, scaled=scaled), num_cycles=100)
        pettingzoo_test.parallel_seed_test(lambda: ParallelEnv(world, horizon=30, scaled=scaled), num_cycles=20)


@pytest.mark.parametrize("shared", [False, True])
def test_agents_are_the_rows_of_the_world(shared):
    world = Duo(shared=shared)
    env = ParallelEnv(world, horizon=2, scaled=False)
    generator = torch.Generator().manual_seed(3)
    state, noise = world.reset(1, generator), world.noise(1, generator)
    observations, _ = env.reset(seed=3)
    seen = world.observe(state, noise)[0].clamp(-2, 2)
    assert np.array_equal(np.stack([observations["agent_0"], observations["agent_1"]]), seen.numpy())
    assert np.array_equal(env.state(), seen.numpy())
    assert env.state_space.contains(env.state())
    expected = world.step(state, torch.tensor([[[0.5], [-0.25]]]), noise)
    actions = {"agent_1": np.array([-0.25], np.float32), "agent_0": np.array([0.5], np.float32)}
    observations, rewards, terminations, truncations, _ = env.step(actions)
    assert observations["agent_1"][0] == expected.state.x[0, 1]
    own = expected.reward.expand(2) if shared else expected.reward[0]
    assert [rewards["agent_0"], rewards["agent_1"]] == own.tolist()
    assert terminations == truncations == {"agent_0": False, "agent_1": False}
    assert env.agents == ["agent_0", "agent_1"]
    *_, truncations, _ = env.step(actions)
    assert truncations == {"agent_0": True, "agent_1": True}
    assert env.agents == []
    env.reset()
    assert env.num_agents == env.max_num_agents == 2


def act(*actions):
    return {f"agent_{i}": action for i, action in enumerate(actions)}


def test_masks_infos_and_dictionaries_are_each_agents_own():
    env = ParallelEnv(Ring(), scaled=False)
    observations, infos = env.reset(seed=0)
    assert [observations[agent]["own"] for agent in env.agents] == [0, 1, 2]
    assert [infos[agent]["action_mask"].tolist() for agent in env.agents] == [[1, 1], [1, 1], [1, 0]]
    assert set(env.state()) == {"own", "cells"}
    for _ in range(5):
        drawn = [env.action_space(agent).sample(infos[agent]["action_mask"]) for agent in env.agents]
        assert drawn[2] == 0
    observations, rewards, _, _, infos = env.step(act(1, 1, 0))
    assert infos["agent_2"]["moved"] == 2
    assert infos["agent_0"]["cell"].tolist() == [1, 2, 2]
    infos["agent_0"]["cell"][:] = 9  # agents share no memory, nor do they with the world
    assert infos["agent_1"]["cell"].tolist() == observations["agent_1"]["cells"].tolist() == [1, 2, 2]
    assert to_numpy(env.episodes._state.cell).tolist() == [[1, 2, 2]]
    assert set(rewards.values()) == {0.0}


def test_the_end_of_the_world_and_faults():
    env = ParallelEnv(Ring(), horizon=20)
    env.reset()
    for actions in (act(0, 1, 1), act(0, 1, 1)):
        env.step(actions)
    *_, terminations, truncations, infos = env.step(act(0, 1, 0))
    assert all(terminations.values())
    assert not any(truncations.values())
    assert "nonfinite" not in infos["agent_0"]
    env.reset()
    env.step(act(1, 1, 1))
    env.step(act(1, 1, 0))
    before = env.state()
    observations, rewards, terminations, truncations, infos = env.step(act(1, 0, 0))
    assert not any(terminations.values())
    assert all(truncations.values())
    assert all(info["nonfinite"] for info in infos.values())
    assert set(rewards.values()) == {0.0}
    assert observations["agent_0"]["own"] == before["own"][0]


def test_refusals():
    with pytest.raises(InputError, match="ParallelEnv: the world has 1 agent"):
        ParallelEnv(Drift())
    env = ParallelEnv(Ring())
    with pytest.raises(InputError, match="no episode is going on"):
        env.step(act(0, 0, 0))
    env.reset()
    for actions, message in (
        (act(0, 0), "agent_2 absent or unknown"),
        (act(0, 0, 0, 0), "agent_3 absent or unknown"),
        (act(0, 2, 0), r"action of agent_1: 2; allowed: Discrete\(2\)"),
    ):
        with pytest.raises(InputError, match=message):
            env.step(actions)
    env = ParallelEnv(Duo())
    env.reset()
    for action, message in ((np.zeros(2), "action of agent_0"), (np.array([np.nan]), "not finite")):
        with pytest.raises(InputError, match=message):
            env.step(act(action, np.zeros(1)))


def test_only_this_view_needs_pettingzoo():
    code = (
        "import sys; sys.modules['pettingzoo'] = None\n"
        "import core.simulation\n"
        "from core.errors import MissingExtra\n"
        "core.simulation.GymEnv\n"
        "try:\n    core.simulation.ParallelEnv\n"
        "except MissingExtra as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'pettingzoo is not installed: pip install "szilard[turbulence]"'

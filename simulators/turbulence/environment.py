"""The agents' world of the shipped snapshots as an environment of PettingZoo, which has room for several agents."""

from __future__ import annotations

from typing import Any, Literal

import torch

from core.simulation import ParallelEnv
from simulators.turbulence.agents import ClosureAgents
from simulators.turbulence.cases import case as named_case
from simulators.turbulence.diagnostics import reference_spectrum
from simulators.turbulence.snapshots import POINTS, initial_fields
from simulators.turbulence.solver import Solver

REFERENCE = range(1, 11)
"""Snapshots whose mean spectrum is to be reached."""
STARTS = range(11, 16)
"""Snapshots with which episodes begin."""


def parallel_env(
    case: str = "kolmogorov4",
    n: int = 32,
    dt: float = 5e-3,
    horizon: int | None = 100,
    *,
    scaled: bool = True,
    **options: Any,
) -> ParallelEnv:
    """One large-eddy simulation whose agents set the closure around them, each seeing the flow at its place.

    >>> env = parallel_env(n=16, agents_per_side=2, horizon=3)
    >>> observations, infos = env.reset(seed=0)
    >>> len(observations), observations["agent_0"].shape
    (4, (13,))
    >>> while env.agents:
    ...     actions = {agent: env.action_space(agent).sample() for agent in env.agents}
    ...     observations, rewards, terminations, truncations, infos = env.step(actions)
    >>> all(truncations.values()), rewards["agent_0"] == rewards["agent_3"] > 0
    (True, True)

    Args:
        case: the flow. The snapshots, hence the spectrum to reach, are those of ``kolmogorov4`` whatever it is.
        n: points on each side, up to 128.
        dt: time step.
        horizon: actions after which an episode is truncated; None for never.
        scaled: observations and actions in [-1, 1] (a learner's view) instead of standard deviations and coefficients.
        **options: of ``ClosureAgents``.

    Raises:
        InputError: an impossible value.
    """
    kind: Literal["energy", "enstrophy"] = "energy" if options.get("reward", "").startswith("k") else "enstrophy"
    resolved = torch.from_numpy(initial_fields(REFERENCE, POINTS))
    world = ClosureAgents(
        Solver(named_case(case), n, dt),
        reference_spectrum(resolved, n, kind=kind),
        torch.from_numpy(initial_fields(STARTS, n)),
        horizon=horizon,
        **options,
    )
    return ParallelEnv(world, horizon=horizon, scaled=scaled)

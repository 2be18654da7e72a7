"""One definition of a world, and everything derived from it: roll-outs and the environments of other libraries."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from core.simulation.rollout import Draws, EpisodeTotals, draw, episode_totals, rollout
from core.simulation.simulator import Policy, Simulator, Step, Variable

if TYPE_CHECKING:
    from core.simulation.episodes import VecStep
    from core.simulation.gym_env import GymEnv
    from core.simulation.gym_vector_env import GymVectorEnv
    from core.simulation.parallel_env import ParallelEnv
    from core.simulation.sb3_vec_env import SB3VecEnv

__all__ = [
    "Draws",
    "EpisodeTotals",
    "GymEnv",
    "GymVectorEnv",
    "ParallelEnv",
    "Policy",
    "SB3VecEnv",
    "Simulator",
    "Step",
    "Variable",
    "VecStep",
    "draw",
    "episode_totals",
    "rollout",
]

_VIEWS = {
    "GymEnv": "gym_env",
    "GymVectorEnv": "gym_vector_env",
    "ParallelEnv": "parallel_env",
    "SB3VecEnv": "sb3_vec_env",
    "VecStep": "episodes",
}


def __getattr__(name: str) -> Any:
    """Load a view when it is asked for: a simulator alone does not wait for Stable-Baselines3."""
    if name not in _VIEWS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"core.simulation.{_VIEWS[name]}"), name)

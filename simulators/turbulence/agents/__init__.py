"""Scientific multi-agent reinforcement learning of a closure: the world, its states, rewards and interpolation."""

from simulators.turbulence.agents.interpolation import interpolation_matrix
from simulators.turbulence.agents.policy_closure import PolicyClosure
from simulators.turbulence.agents.rewards import spectral_reward
from simulators.turbulence.agents.states import observed
from simulators.turbulence.agents.world import BOUND, AgentsState, ClosureAgents

__all__ = [
    "BOUND",
    "AgentsState",
    "ClosureAgents",
    "PolicyClosure",
    "interpolation_matrix",
    "observed",
    "spectral_reward",
]

"""A policy of the agents as a closure of the solver."""

from __future__ import annotations

import torch
from torch import Tensor

from core.errors import InputError
from core.simulation import Policy
from simulators.turbulence.agents.world import AgentsState, ClosureAgents
from simulators.turbulence.closures import Stress, Term, eddy_viscosity_stress, eddy_viscosity_term
from simulators.turbulence.flow import Flow
from simulators.turbulence.solver import FlowState


class PolicyClosure:
    """The closure that a policy of ``ClosureAgents`` makes.

    Called as a closure it decides anew at every evaluation; ``advance`` holds each decision for as many steps as in
    training.

    Args:
        world: the world that the policy belongs to.
        policy: from observations ``(B, agents, S)`` to coefficients ``(B, agents, 1)``.
    """

    def __init__(self, world: ClosureAgents, policy: Policy) -> None:
        self.world = world
        self.policy = policy

    def coefficient_field(self, state: FlowState) -> Tensor:
        """c(x, y), ``(B, N, N)``."""
        clock = state.vorticity_hat.real.new_zeros(len(state.vorticity_hat))
        seen = AgentsState(state, clock, clock)
        with torch.no_grad():
            # A flow that blew up stays so whatever its agents do; the policy need not know.
            observation = torch.nan_to_num(self.world.observe(seen), nan=0.0)
            return self.world.coefficient_field(self.policy(observation, seen))

    def viscosity(self, flow: Flow) -> Tensor:
        """nu_e(x, y), ``(B, N, N)``."""
        state = FlowState(flow.vorticity_hat, flow.vorticity_hat)
        return self.world.eddy_viscosity(flow, self.coefficient_field(state))

    def stress(self, flow: Flow) -> Stress:
        """-2 nu_e S_ij."""
        return eddy_viscosity_stress(flow, self.viscosity(flow))

    def __call__(self, flow: Flow) -> Term:
        """The sub-grid term of B flows."""
        return eddy_viscosity_term(flow, self.viscosity(flow))

    def advance(self, state: FlowState, steps: int) -> FlowState:
        """So many steps, a decision every ``steps_per_action``.

        Raises:
            InputError: steps that are no multiple of those of an action.
        """
        held = self.world.steps_per_action
        if steps % held:
            raise InputError(f"steps = {steps}: must be a multiple of the {held} steps that an action is held")
        for _ in range(steps // held):
            state = self.world.advance(state, self.coefficient_field(state), held)
        return state

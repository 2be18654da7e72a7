"""The world of scientific multi-agent learning: agents on the grid set a local eddy viscosity (Mojgani et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from core.errors import InputError
from core.simulation import Step, Variable, tree
from simulators.turbulence.agents import states
from simulators.turbulence.agents.interpolation import Interpolation, interpolation_matrix
from simulators.turbulence.agents.rewards import OFFSET, REWARD_KINDS, RewardKind, spectral_reward
from simulators.turbulence.agents.states import STATE_KINDS, StateKind
from simulators.turbulence.closures import NoClosure, eddy_viscosity_term
from simulators.turbulence.diagnostics.spectra import energy_spectrum, enstrophy_spectrum
from simulators.turbulence.flow import Flow
from simulators.turbulence.grid import Grid, resample
from simulators.turbulence.solver import FlowState, Solver

ActionKind = Literal["leith", "smagorinsky"]
Positivity = Literal["none", "clip", "softplus"]
BOUND = 0.125
"""Largest |c| of an agent: 0.5^3."""
SEEN = 10.0
"""Standard deviations at which an observation is cut."""
FAILURE_REWARD = -1e4
"""Of an episode that blows up, in the code of Mojgani et al. (2023)."""


@dataclass(frozen=True)
class AgentsState:
    """The flows of B copies, and their clocks.

    Attributes:
        flow: of the solver.
        clock: ``(B,)`` actions taken.
        earned: ``(B,)`` sum of rewards so far (``compat`` pays their mean on the last step).
    """

    flow: FlowState
    clock: Tensor
    earned: Tensor


@dataclass(frozen=True)
class NoNoise:
    """The world is deterministic; one empty number a copy."""

    nothing: Tensor


@dataclass(frozen=True, eq=False)
class ClosureAgents:
    """n_a x n_a agents with one shared policy, each setting the coefficient of the closure around it.

    An action c becomes a field by interpolation between the agents, and the eddy viscosity
    nu_e(x, y) = c D^3 <|grad omega|> (``leith``) or c D^2 sqrt(<|S|^2>) (``smagorinsky``), D = 2 pi/N; negative c are
    local backscatter. A flow that is no longer finite, or of more than ``failure`` times the starts' mean enstrophy,
    has failed: it terminates with no reward (no step pays less, so no path is worse than failing).

    Attributes:
        solver: of the large-eddy simulation, without a closure of its own.
        reference: ``(N/2,)`` spectrum to reach, or ``(2, N/2)`` along x and y; of energy for rewards ``k1, kc, ke``.
        starts: ``(F, N, N)`` vorticities, one of which, randomly shifted, begins an episode.
        agents_per_side: n_a.
        action: what c multiplies.
        state: see ``states.observed``.
        reward: see ``rewards.spectral_reward``; negative kinds are paid with ``OFFSET`` added and cut at 0.
        steps_per_action: solver steps between two actions.
        renew_every: solver steps between two evaluations of what c multiplies, a mean over the box that hardly changes.
        spin_up: solver steps without closure before an episode begins.
        interpolation: see ``interpolation_matrix``.
        padded: de-alias the products of the stress.
        positivity: leave c as it is, cut it at 0, or make it positive smoothly.
        stacked_state: see the spectra along x and y one after the other.
        shift: begin at a random place of the flow, in whole periods of the forcing.
        failure: see above; above 0.
        compat: as in the code of Mojgani et al.: the state keeps a slot of zeros, no offset, a failure pays -1e4, and
            the last of ``horizon`` rewards is the mean of the episode's.
        horizon: actions of an episode; ``compat`` needs it.
        mean: ``(S,)`` what is taken off an observation; by default of the starts.
        std: ``(S,)`` what it is then divided by; given together with the mean, or not.

    Raises:
        InputError: a value out of its range, an unknown kind, tensors of another shape or not finite, or a solver that
            has a closure.
    """

    solver: Solver
    reference: Tensor
    starts: Tensor
    agents_per_side: int = 4
    action: ActionKind = "leith"
    state: StateKind = "invariant"
    reward: RewardKind = "zlog"
    steps_per_action: int = 10
    renew_every: int = 5
    spin_up: int = 0
    interpolation: Interpolation = "biquadratic"
    positivity: Positivity = "none"
    padded: bool = False
    stacked_state: bool = False
    shift: bool = True
    failure: float = 20.0
    compat: bool = False
    horizon: int | None = None
    mean: Tensor | None = field(default=None, repr=False)
    std: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        n = self.solver.grid.n
        for name, kinds in (("action", get_args(ActionKind)), ("state", STATE_KINDS), ("reward", REWARD_KINDS)):
            if getattr(self, name) not in kinds:
                raise InputError(f"{name} = {getattr(self, name)!r}: must be one of {', '.join(kinds)}")
        if self.positivity not in get_args(Positivity):
            raise InputError(f"positivity = {self.positivity!r}: must be one of {', '.join(get_args(Positivity))}")
        if self.reference.shape not in ((n // 2,), (2, n // 2)):
            raise InputError(f"reference of shape {tuple(self.reference.shape)}: must be ({n // 2},) or (2, {n // 2})")
        if not bool((torch.isfinite(self.reference) & (self.reference > 0)).all()):
            raise InputError("reference: must be finite and above 0 at every wavenumber")
        if self.starts.dim() != 3 or self.starts.shape[1:] != (n, n) or len(self.starts) < 1:
            raise InputError(f"starts of shape {tuple(self.starts.shape)}: must be (F, {n}, {n})")
        if not isinstance(self.solver.closure, NoClosure):
            raise InputError("solver: has a closure, which the agents are to be; give one without")
        interpolation_matrix(n, self.agents_per_side, self.interpolation)
        self._check_numbers()
        if not 0 < float(self._enstrophy_limit) < math.inf:
            raise InputError("starts: must be finite and not all at rest")
        self._check_stability()

    def _check_numbers(self) -> None:
        if self.renew_every < 1:
            raise InputError(f"renew_every = {self.renew_every}: must be at least 1")
        if self.steps_per_action < 1 or self.spin_up < 0:
            raise InputError(
                f"steps_per_action = {self.steps_per_action}, spin_up = {self.spin_up}: must be at least 1 and 0"
            )
        if not 0 < self.failure < math.inf:
            raise InputError(f"failure = {self.failure}: must be above 0 and finite")
        if self.horizon is not None and self.horizon < 1:
            raise InputError(f"horizon = {self.horizon}: must be at least 1, or None")
        if self.compat and self.horizon is None:
            raise InputError("compat: the mean paid at the end needs a horizon")
        shapes = [None if x is None else tuple(x.shape) for x in (self.mean, self.std)]
        if shapes not in ([None] * 2, [(len(self.state_names),)] * 2):
            raise InputError(f"mean, std of shapes {shapes}: must both be ({len(self.state_names)},), or both None")
        if self.std is not None and not bool((self.std > 0).all()):
            raise InputError("std: must be above 0 everywhere")

    def _check_stability(self) -> None:
        """Forward Euler needs nu_e k_max^2 dt < 2: say so before a simulation blows up for that reason."""
        flow = Flow(self.solver.grid, self._starts_hat)
        # Between the agents a spline may overshoot.
        overshoot = float(self._matrix.abs().sum(1).max()) ** 2
        largest = overshoot * float(BOUND * self._scale(flow).max())
        number = largest * float(self.solver.grid.k2[self.solver.grid.resolved].max()) * self.solver.dt
        if number >= 2:
            raise InputError(f"dt = {self.solver.dt}: nu_e k^2 dt reaches {number:.2f} at the largest action; below 2")

    @property
    def agents(self) -> int:
        """n_a^2."""
        return self.agents_per_side**2

    @cached_property
    def state_names(self) -> list[str]:
        """What each number of an observation is."""
        return states.names(
            self.state, self.solver.grid.n, stacked=self.stacked_state, compat=self.compat, agents=self.agents_per_side
        )

    @cached_property
    def observation_space(self) -> Box:
        """Standardised states, cut at ten standard deviations."""
        return Box(-SEEN, SEEN, (len(self.state_names),), np.float32)

    @cached_property
    def action_space(self) -> Box:
        """C = Cl^3 or Cs^2."""
        return Box(-BOUND, BOUND, (1,), np.float32)

    @cached_property
    def variables(self) -> Mapping[str, Variable]:
        """What a roll-out records."""
        n = self.solver.grid.n
        coefficient = "Cl^3" if self.action == "leith" else "Cs^2"
        return {
            "action": Variable(("agent", "coefficient"), "1", f"coefficient {coefficient} of each agent"),
            "spectrum": Variable(
                ("axis", "k") if self.reference.dim() == 2 else ("k",),
                "1",
                "spectrum that the reward compares",
                {"k": range(n // 2), "axis": ("x", "y")} if self.reference.dim() == 2 else {"k": range(n // 2)},
            ),
            "reward": Variable((), "1", f"reward {self.reward}"),
            "score": Variable((), "1", f"{self.reward} without offset"),
            "enstrophy": Variable((), "1", "enstrophy"),
            "energy": Variable((), "1", "energy"),
        }

    @cached_property
    def _matrix(self) -> Tensor:
        grid = self.solver.grid
        matrix = interpolation_matrix(grid.n, self.agents_per_side, self.interpolation)
        return matrix.to(grid.device, grid.dtype)

    @cached_property
    def _reference(self) -> Tensor:
        return self.reference.to(self.solver.grid.device, self.solver.grid.dtype)

    @cached_property
    def _starts_hat(self) -> Tensor:
        grid = self.solver.grid
        return grid.to_spectral(self.starts.to(grid.device, grid.dtype)) * self.solver.modes

    @cached_property
    def _standard(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the raw states; a slot that never varies has standard deviation 1."""
        grid = self.solver.grid
        if self.mean is not None and self.std is not None:
            return self.mean.to(grid.device, grid.dtype), self.std.to(grid.device, grid.dtype)
        # Every point of the starts is a place where an agent might stand.
        seen = self._observed(Flow(grid, self._starts_hat), agents=self._samples).flatten(0, 1)
        mean, std = seen.mean(0), seen.std(0, correction=0)
        # A spectrum of few snapshots hardly varies: an unmodelled flow leaves it by more than a decade.
        floor = torch.tensor([0.5 if name.startswith("log") else 1e-12 for name in self.state_names]).to(std)
        return mean, torch.where(std > 1e-12, torch.maximum(std, floor), 1.0)

    @property
    def _samples(self) -> int:
        """Agents a side that the standardisation looks at; blocks have the size of the real ones."""
        return self.agents_per_side if self.state == "psiomegablock" else self.solver.grid.n

    def _observed(self, flow: Flow, agents: int) -> Tensor:
        return states.observed(flow, self.state, agents, stacked=self.stacked_state, compat=self.compat)

    @cached_property
    def _enstrophy_limit(self) -> Tensor:
        return self.failure * Flow(self.solver.grid, self._starts_hat).enstrophy.mean()

    def reset(self, batch: int, generator: torch.Generator) -> AgentsState:
        """Random snapshots at random places, spun up without closure for ``spin_up`` steps."""
        device = generator.device
        grid = self.solver.grid
        chosen = torch.randint(len(self.starts), (batch,), generator=generator, device=device)
        shifts = [
            torch.randint(n, (batch, 1, 1), generator=generator, device=device) * (grid.n // n)
            for n in (_places(grid.n, self.solver.case.fkx), _places(grid.n, self.solver.case.fky))
        ]
        omega = self._starts_hat[chosen.to(grid.device)]
        if self.shift:
            phase = (grid.kx * shifts[0].to(grid.device) + grid.ky * shifts[1].to(grid.device)) * grid.spacing
            omega = omega * torch.polar(torch.ones_like(phase), -phase)
        return self.begin(omega)

    def reset_to(self, vorticity: Tensor) -> AgentsState:
        """Begin with given vorticities ``(B, N, N)``, spun up likewise."""
        return self.begin(self.solver.start(vorticity).vorticity_hat)

    def begin(self, vorticity_hat: Tensor) -> AgentsState:
        """Begin with given spectra ``(B, N, N/2+1)``."""
        flow = self.solver.advance(self.solver.start_spectral(vorticity_hat), self.spin_up)
        zero = torch.zeros(len(vorticity_hat), dtype=self.solver.grid.dtype, device=self.solver.grid.device)
        return AgentsState(flow, zero, zero)

    def noise(self, batch: int, generator: torch.Generator) -> NoNoise:
        """Nothing is random in a step."""
        return NoNoise(torch.zeros(batch, device=generator.device))

    def step(self, state: AgentsState, action: Tensor, noise: NoNoise | None = None) -> Step:
        """Hold the coefficients for ``steps_per_action`` steps of the solver.

        Args:
            state: of B copies.
            action: ``(B, agents, 1)`` coefficients, cut to their bounds.
            noise: not used.

        Returns:
            Step with info ``spectrum``, ``score`` (the reward before any offset; of a failed flow the least that is
            paid for), ``energy`` and ``enstrophy``.

        Raises:
            InputError: an action of another shape.
        """
        if action.shape != (len(state.clock), self.agents, 1):
            raise InputError(f"action of shape {tuple(action.shape)}: must be ({len(state.clock)}, {self.agents}, 1)")
        field = self.coefficient_field(action)
        following = self.advance(state.flow, field, self.steps_per_action)
        flow = self.solver.flow(following)
        spectrum = self.spectrum(flow.vorticity_hat)
        score = spectral_reward(spectrum, self._reference, self.reward)
        failed = ~(flow.enstrophy < self._enstrophy_limit) | ~torch.isfinite(score)
        score = score.masked_fill(failed, -self._offset)
        clock = state.clock + 1
        reward = self._paid(score, failed, state.earned, clock)
        kept = AgentsState(following, clock, state.earned + reward)
        before = AgentsState(state.flow, clock, state.earned)
        info = {
            "spectrum": spectrum.masked_fill(tree.expand_mask(failed, spectrum), 0),
            "score": score,
            "energy": flow.energy.masked_fill(failed, 0),
            "enstrophy": flow.enstrophy.masked_fill(failed, 0),
        }
        # A flow that failed keeps its last finite fields: nothing that is not finite leaves the world.
        return Step(tree.where(failed, before, kept), reward, failed, info)

    def _paid(self, score: Tensor, failed: Tensor, earned: Tensor, clock: Tensor) -> Tensor:
        if self.horizon is not None and self.compat:
            paid = torch.where(clock == self.horizon, (earned + score) / clock, score)
            return paid.masked_fill(failed, FAILURE_REWARD)
        return (score + self._offset).clamp(min=0)

    @property
    def _offset(self) -> float:
        return OFFSET.get(self.reward, 0.0)

    def coefficient_field(self, action: Tensor) -> Tensor:
        """The field c(x, y) ``(B, N, N)`` of the agents' coefficients ``(B, agents, 1)``."""
        bounded = action.to(self.solver.grid.dtype).clamp(-BOUND, BOUND)
        if self.positivity == "clip":
            bounded = bounded.clamp(min=0)
        elif self.positivity == "softplus":
            bounded = torch.nn.functional.softplus(bounded * SEEN / BOUND) * BOUND / SEEN
        grid = bounded.reshape(-1, self.agents_per_side, self.agents_per_side)
        return self._matrix @ grid @ self._matrix.T

    def eddy_viscosity(self, flow: Flow, field: Tensor) -> Tensor:
        """nu_e(x, y), ``(B, N, N)``, of a field of coefficients."""
        return field * self._scale(flow)

    def _scale(self, flow: Flow) -> Tensor:
        width = self.solver.grid.spacing
        if self.action == "leith":
            return width**3 * flow.gradient_norm.mean((-2, -1), keepdim=True)
        # <|S|^2> = <omega^2> in a periodic box, which needs no transform.
        return width**2 * (2 * flow.enstrophy).sqrt()[:, None, None]

    def advance(self, flow_state: FlowState, field: Tensor, steps: int) -> FlowState:
        """So many steps of the solver with a field of coefficients held fixed."""
        for i in range(steps):
            flow = self.solver.flow(flow_state)
            if i % self.renew_every == 0:
                viscosity = self.eddy_viscosity(flow, field)
            flow_state = self.solver.step(flow_state, eddy_viscosity_term(flow, viscosity, self.padded))
        return flow_state

    def spectrum(self, vorticity_hat: Tensor) -> Tensor:
        """What the reward compares: ``(B, N/2)``, or ``(B, 2, N/2)``."""
        kind = energy_spectrum if self.reward.startswith("k") else enstrophy_spectrum
        return kind(vorticity_hat, axis="stacked" if self.reference.dim() == 2 else "both")

    def observe(self, state: AgentsState, noise: NoNoise | None = None) -> Tensor:
        """Standardised states ``(B, agents, S)``."""
        mean, std = self._standard
        raw = self._observed(self.solver.flow(state.flow), self.agents_per_side)
        return ((raw - mean) / std).clamp(-SEEN, SEEN)

    def action_mask(self, state: AgentsState) -> None:
        """Every coefficient is allowed."""
        return None

    def moved(self, solver: Solver) -> ClosureAgents:
        """The same agents, states standardised as here, in another flow or on another grid.

        On another grid they must not see the spectrum or a block of points, whose length is the grid's.

        Raises:
            InputError: they do see it.
        """
        n, mine = solver.grid.n, self.solver.grid.n
        if n != mine and (self.state in states.SPECTRAL or self.state == "psiomegablock"):
            raise InputError(f"state = {self.state!r}: sees what depends on the grid of {mine}; it cannot move to {n}")
        mean, std = self._standard
        reference, starts = self.reference, self.starts
        if n != mine:
            # Only what observations and actions need is kept: rewards are not asked for on the other grid.
            reference = torch.ones(n // 2, dtype=solver.grid.dtype)
            starts = Grid(n).to_physical(resample(torch.fft.rfft2(starts.double()), n)).to(starts)
        return replace(self, solver=solver, reference=reference, starts=starts, mean=mean, std=std)


def _places(n: int, forced: int) -> int:
    """How many shifts by whole points keep the phase of the flow with its forcing."""
    return math.gcd(n, forced) if forced else n

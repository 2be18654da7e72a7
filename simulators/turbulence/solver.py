"""The pseudo-spectral solver of forced two-dimensional turbulence, for a batch of flows at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from core.errors import InputError
from simulators.turbulence.advection import Dealias, advection
from simulators.turbulence.cases import Case
from simulators.turbulence.closures.closure import Closure, NoClosure, Term
from simulators.turbulence.flow import Flow
from simulators.turbulence.grid import Grid

Integrator = Literal["ab2cn", "rk3cn", "rk4cn"]
ImplicitScheme = Literal["crank_nicolson", "implicit_euler"]
BetaScheme = Literal["crank_nicolson", "euler"]
FLOAT32_LIMIT = 512
"""Points a side beyond which single precision is warned of."""
CFL_WARNED: dict[str, float] = {"ab2cn": 0.5, "rk3cn": 1.2, "rk4cn": 2.0}
"""CFL number from which a scheme is warned of: ab2cn amplifies an advected wave by CFL^4/4 a step."""
CFL_REFUSED: dict[str, float] = {"ab2cn": 2.0, "rk3cn": 2.0, "rk4cn": 3.3}
"""CFL number that a scheme cannot have: the sources' direct simulations have 1.07, the limit of rk4cn is 3.3."""

_LOW_STORAGE: dict[str, tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]] = {
    "rk3cn": ((0.0, 1 / 3, 3 / 4, 1.0), (0.0, -5 / 9, -153 / 128), (1 / 3, 15 / 16, 8 / 15)),
    "rk4cn": (
        (0.0, 0.1496590219993, 0.3704009573644, 0.6222557631345, 0.9582821306748, 1.0),
        (0.0, -0.4178904745, -1.192151694643, -1.697784692471, -1.514183444257),
        (0.1496590219993, 0.3792103129999, 0.8229550293869, 0.6994504559488, 0.1530572479681),
    ),
}
"""Times, memories and weights of the stages of Williamson's (1980) and Carpenter and Kennedy's (1994) schemes."""


@dataclass(frozen=True)
class FlowState:
    """The flows of B copies between two steps.

    Attributes:
        vorticity_hat: ``(B, N, N/2+1)`` spectrum of omega.
        advection: ``(B, N, N/2+1)`` spectrum of u.grad omega one step before (the memory of ab2cn).
    """

    vorticity_hat: Tensor
    advection: Tensor


class Solver:
    """Steps d omega/dt + u.grad omega + beta v = nu lap omega - alpha omega - f - Pi in time.

    ``ab2cn`` is Adams-Bashforth for the advection (Euler in the first step), Crank-Nicolson for viscosity, drag and
    beta, and forward Euler for forcing and closure; ``rk3cn`` and ``rk4cn`` are low-storage Runge-Kutta schemes with
    Crank-Nicolson stages. A closure is evaluated once in ``closure_every`` steps and held between; a viscosity that is
    constant in space joins the implicit part.

    Forward Euler for beta amplifies each Rossby wave at the rate beta^2 kx^2 dt/(2 k^4): ``beta_scheme="euler"`` is for
    comparison with codes that do so.

    Args:
        case: the flow.
        n: points on each side.
        dt: time step.
        closure: the sub-grid term; none by default.
        integrator: ``ab2cn``, ``rk3cn`` or ``rk4cn``.
        dealias: ``padded``, ``two_thirds``, ``skew_none`` or a mask; see ``advection``.
        drag: ``crank_nicolson``, or ``implicit_euler`` (first order).
        beta_scheme: ``crank_nicolson`` or ``euler``.
        closure_every: steps between two evaluations of the closure in ``advance``.
        dtype: float32 or float64.
        device: where to compute.

    Raises:
        InputError: an impossible number, or a forcing that the grid cannot represent.
    """

    def __init__(
        self,
        case: Case,
        n: int,
        dt: float,
        *,
        closure: Closure | None = None,
        integrator: Integrator = "ab2cn",
        dealias: Dealias | Tensor = "padded",
        drag: ImplicitScheme = "crank_nicolson",
        beta_scheme: BetaScheme = "crank_nicolson",
        closure_every: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if not (math.isfinite(dt) and dt > 0):
            raise InputError(f"dt = {dt}: must be above 0")
        if closure_every < 1:
            raise InputError(f"closure_every = {closure_every}: must be at least 1")
        for name, value, allowed in (
            ("integrator", integrator, Integrator),
            ("drag", drag, ImplicitScheme),
            ("beta_scheme", beta_scheme, BetaScheme),
        ):
            if value not in get_args(allowed):
                raise InputError(f"{name} = {value!r}: must be one of {', '.join(get_args(allowed))}")
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"device = {device}: there is no CUDA device; allowed here: cpu")
        if dtype == torch.float32 and n > FLOAT32_LIMIT:
            warnings.warn(f"n = {n} in float32: round-off may show beyond {FLOAT32_LIMIT} points", stacklevel=2)
        self.case = case
        self.dt = dt
        self.closure: Closure = closure if closure is not None else NoClosure()
        self.closure_every = closure_every
        self.integrator = integrator
        self.grid = Grid(n, dtype, device)
        self.advection, self.modes = advection(self.grid, dealias)
        self._check_forcing()
        self._implicit_drag = 0.5 if drag == "crank_nicolson" else 1.0
        self._explicit_drag = 1 - self._implicit_drag
        self._implicit_beta = beta_scheme == "crank_nicolson"

    def _check_forcing(self) -> None:
        """Refuse a forced wavenumber that is not among the modes kept."""
        for name, k, kept in (
            ("fkx", self.case.fkx, self.modes[:, 0]),
            ("fky", self.case.fky, self.modes[0]),
        ):
            if k >= self.grid.n // 2 or not bool(kept[k]):
                largest = int(kept[: self.grid.n // 2].nonzero().max())
                raise InputError(f"{name} = {k}: a grid of {self.grid.n} points represents forcing up to {largest}")

    @cached_property
    def forcing_hat(self) -> Tensor:
        """Spectrum of f, ``(N, N/2+1)``."""
        x, c = self.grid.x, self.case
        return self.grid.to_spectral(
            (c.fkx * torch.cos(c.fkx * x)).unsqueeze(1) + (c.fky * torch.cos(c.fky * x)).unsqueeze(0)
        )

    @cached_property
    def _rossby(self) -> Tensor:
        """What multiplies the spectrum of omega to give that of beta v."""
        return -self.case.beta * self.grid.dx * self.grid.inverse_k2

    def start(self, vorticity: Tensor) -> FlowState:
        """The state that begins with ``vorticity`` ``(B, N, N)``, truncated to the modes kept.

        Raises:
            InputError: another shape, or a value that is not finite.
        """
        n, vorticity = self.grid.n, torch.as_tensor(vorticity)
        if vorticity.dim() != 3 or vorticity.shape[1:] != (n, n):
            raise InputError(f"vorticity of shape {tuple(vorticity.shape)}: must be (B, {n}, {n})")
        if not bool(torch.isfinite(vorticity).all()):
            raise InputError("vorticity: holds values that are not finite")
        return self.start_spectral(self.grid.to_spectral(vorticity.to(self.grid.device, self.grid.dtype)))

    def start_spectral(self, vorticity_hat: Tensor) -> FlowState:
        """``start`` from a spectrum ``(B, N, N/2+1)``, unchecked."""
        kept = vorticity_hat * self.modes
        return FlowState(kept, self.advection(kept))

    def flow(self, state: FlowState) -> Flow:
        """The fields of a state."""
        return Flow(self.grid, state.vorticity_hat)

    def cfl(self, state: FlowState) -> Tensor:
        """max(|u| + |v|) dt N/2 of each copy, ``(B,)``."""
        u, v = self.flow(state).velocity
        return (u.abs() + v.abs()).amax((-2, -1)) * (self.dt * self.grid.n / 2)

    def check_cfl(self, state: FlowState, *, warn: bool = True) -> float:
        """The largest CFL number among the finite copies; above ``CFL_WARNED`` it is warned of, if ``warn``.

        Raises:
            InputError: it is above ``CFL_REFUSED``.
        """
        numbers = self.cfl(state)
        largest = float(torch.where(torch.isfinite(numbers), numbers, 0.0).max())
        refused, warned = CFL_REFUSED[self.integrator], CFL_WARNED[self.integrator]
        if largest > refused:
            raise InputError(f"dt = {self.dt:g}: CFL number {largest:.2f}; must be at most {refused:g}")
        if warn and largest > warned:
            advice = "; a resolved flow blows up: take rk4cn" if self.integrator == "ab2cn" else ""
            text = f"dt = {self.dt:g}: CFL number {largest:.2f} is above {warned:g}, high for {self.integrator}{advice}"
            warnings.warn(text, stacklevel=2)
        return largest

    def step(self, state: FlowState, term: Term | None = None) -> FlowState:
        """One step of dt; the closure is evaluated unless its ``term`` is given."""
        if term is None:
            term = self.closure(self.flow(state))
        return self._step(state, term)

    def advance(self, state: FlowState, steps: int) -> FlowState:
        """``steps`` steps; the closure is evaluated at the first and in every ``closure_every``-th step."""
        term = Term()
        for i in range(steps):
            if i % self.closure_every == 0:
                term = self.closure(self.flow(state))
            state = self._step(state, term)
        return state

    @cached_property
    def _step(self) -> Callable[[FlowState, Term], FlowState]:
        return self._adams_bashforth if self.integrator == "ab2cn" else self._runge_kutta

    def _linear(self, viscosity: Tensor | float) -> tuple[Tensor, Tensor]:
        """Rates of the implicit terms at the new and at the old time, ``d omega/dt = -rate omega``."""
        half = 0.5 * (self.case.viscosity + viscosity) * self.grid.k2
        new, old = half + self._implicit_drag * self.case.drag, half + self._explicit_drag * self.case.drag
        if self.case.beta == 0:
            return new, old
        if self._implicit_beta:
            return new + 0.5 * self._rossby, old + 0.5 * self._rossby
        return new + 0 * self._rossby, old + self._rossby

    def _factors(self, viscosity: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """The step as kept*omega + explicit*(3/2 A - 1/2 A_before + Pi) + source."""
        new, old = self._linear(viscosity)
        gain = self.modes / (1 + self.dt * new)
        explicit = (-self.dt * gain).to(self.grid.complex_dtype)
        return (gain * (1 - self.dt * old)).to(self.grid.complex_dtype), explicit, explicit * self.forcing_hat

    @cached_property
    def _constant_factors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._factors(0.0)

    def _adams_bashforth(self, state: FlowState, term: Term) -> FlowState:
        kept, explicit, source = self._constant_factors if term.viscosity is None else self._factors(term.viscosity)
        new = self.advection(state.vorticity_hat)
        # 3/2 A - 1/2 A_before; lerp of complex numbers is several times slower.
        tendency = torch.add(new, new - state.advection, alpha=0.5)
        if term.pi_hat is not None:
            tendency = tendency + term.pi_hat
        following = torch.addcmul(torch.addcmul(source, kept, state.vorticity_hat), explicit, tendency)
        return FlowState(following, new)

    def _runge_kutta(self, state: FlowState, term: Term) -> FlowState:
        times, memories, weights = _LOW_STORAGE[self.integrator]
        new, old = self._linear(0.0 if term.viscosity is None else term.viscosity)
        steady = self.forcing_hat if term.pi_hat is None else self.forcing_hat + term.pi_hat
        omega, tendency = state.vorticity_hat, torch.zeros_like(state.vorticity_hat)
        first = None
        for stage, (memory, weight) in enumerate(zip(memories, weights, strict=True)):
            advected = self.advection(omega)
            first = advected if first is None else first
            tendency = memory * tendency - advected - steady
            share = self.dt * (times[stage + 1] - times[stage])
            omega = self.modes * ((1 - share * old) * omega + weight * self.dt * tendency) / (1 + share * new)
        assert first is not None
        return FlowState(omega, first)

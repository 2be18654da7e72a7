"""What an agent sees: invariants of the flow at its place, and the spectrum of the whole flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from core.errors import InputError
from simulators.turbulence.agents.rewards import SMALLEST
from simulators.turbulence.diagnostics.spectra import energy_spectrum, enstrophy_spectrum
from simulators.turbulence.flow import Flow

StateKind = Literal[
    "invariant",
    "invariants",
    "invariantlocalandglobalgradgrad",
    "invariantlocal",
    "enstrophy",
    "energy",
    "psiomega",
    "psiomegablock",
]
"""Kinds of states; all but the first two are those of the code of Mojgani et al. (2023), by its names."""
STATE_KINDS: tuple[StateKind, ...] = get_args(StateKind)
INVARIANTS = ("root tr S^2", "root tr W^2", "|grad omega|", "root tr H^2", "root det H")
LOCAL: dict[StateKind, tuple[str, ...]] = {
    "invariant": INVARIANTS,
    "invariants": INVARIANTS,
    "invariantlocalandglobalgradgrad": ("tr S^2", "tr W^2", "tr H_y", "tr H_y^2", "tr H_n^2"),
    "invariantlocal": ("tr S^2", "tr W^2", "tr H_y", "tr H_y^2", "tr H_n^2"),
    "enstrophy": (),
    "energy": (),
    "psiomega": ("psi", "omega"),
    "psiomegablock": (),
}
SPECTRAL: dict[StateKind, Callable[..., Tensor]] = {
    "invariant": enstrophy_spectrum,
    "invariantlocalandglobalgradgrad": enstrophy_spectrum,
    "enstrophy": enstrophy_spectrum,
    "energy": energy_spectrum,
}


def observed(flow: Flow, kind: StateKind, agents: int, *, stacked: bool = False, compat: bool = False) -> Tensor:
    """What agents x agents agents see, in the domain's units.

    ``invariant`` has the invariants of the velocity gradient (S symmetric, W antisymmetric part), |grad omega|^2, and
    those of the Hessian H of omega, each by its signed square root (the squares have tails that no scaling tames): it
    does not change when the flow is shifted or turned. ``invariants`` leaves out the spectrum, and is the same on every
    grid. The invariants of second derivatives of the other kinds are those of the matrix [[u_xx, v_xx], [u_yy, v_yy]]
    (``...gradgrad``) or [[u_xx, u_xy], [v_xy, v_yy]], which are no tensors: a quarter turn changes them.

    Args:
        flow: of B copies.
        kind: see ``StateKind``.
        agents: on each side.
        stacked: the spectra along x and along y one after the other, instead of their mean.
        compat: keep the trace of S, which is 0, as the code of Mojgani et al. does.

    Returns:
        ``(B, agents^2, S)``, agent (i, j) in row i agents + j; the last numbers are log Z(k), k = 0..N/2-1.

    Raises:
        InputError: an unknown kind, or agents that do not divide the grid.
    """
    n = flow.grid.n
    if kind not in STATE_KINDS:
        raise InputError(f"state = {kind!r}: must be one of {', '.join(STATE_KINDS)}")
    if agents < 1 or n % agents:
        raise InputError(f"agents_per_side = {agents}: must divide the {n} points of a side")
    stride = n // agents
    parts = []
    if kind == "psiomegablock":
        parts.append(_blocks(torch.stack((flow.psi, flow.vorticity), dim=-1), stride))
    elif LOCAL[kind]:
        local = _local(flow, kind, stride).flatten(1, 2)
        if compat and kind.startswith("invariantlocal"):
            local = torch.cat((torch.zeros_like(local[..., :1]), local), dim=-1)
        parts.append(local)
    if kind in SPECTRAL:
        spectrum = SPECTRAL[kind](flow.vorticity_hat, axis="stacked" if stacked else "both")
        seen = torch.log(spectrum.flatten(1).clamp(min=SMALLEST))
        parts.append(seen.unsqueeze(1).expand(-1, agents**2, -1))
    return torch.cat(parts, dim=-1)


def names(kind: StateKind, n: int, *, stacked: bool = False, compat: bool = False, agents: int = 4) -> list[str]:
    """What each of the S numbers of a state is."""
    found = list(LOCAL[kind])
    if compat and kind.startswith("invariantlocal"):
        found = ["tr S", *found]
    if kind == "psiomegablock":
        found = [
            f"{name}({i},{j})" for i in range(n // agents) for j in range(n // agents) for name in ("psi", "omega")
        ]
    if kind in SPECTRAL:
        letter = "E" if kind == "energy" else "Z"
        axes = ("x", "y") if stacked else ("",)
        found += [f"log {letter}{axis}({k})" for axis in axes for k in range(n // 2)]
    return found


def _local(flow: Flow, kind: StateKind, stride: int) -> Tensor:
    """``(B, agents, agents, F)``."""
    grid = flow.grid
    if kind in ("invariant", "invariants"):
        seen = grid.fields(grid.to_invariants, flow.vorticity_hat, stride).unbind(0)
        omega, s11, s12, w_x, w_y, w_xx, w_xy, w_yy = seen
        hessian = w_xx**2 + 2 * w_xy**2 + w_yy**2, w_xx * w_yy - w_xy**2
        squares = torch.stack((*_gradients(omega, s11, s12), w_x**2 + w_y**2, *hessian), dim=-1)
        return squares.sign() * squares.abs().sqrt()
    fields = (flow.psi, flow.vorticity) if kind == "psiomega" else _mixed(flow, gradgrad="gradgrad" in kind)
    return torch.stack(fields, dim=-1)[:, ::stride, ::stride]


def _gradients(omega: Tensor, s11: Tensor, s12: Tensor) -> tuple[Tensor, Tensor]:
    """Tr S^2 = 2 (S11^2 + S12^2); W = +-omega/2 off the diagonal, hence tr W^2 = -omega^2/2."""
    return 2 * (s11**2 + s12**2), -0.5 * omega**2


def _mixed(flow: Flow, *, gradgrad: bool) -> tuple[Tensor, ...]:
    """Invariants of the velocity gradient and of the matrices of second derivatives that are no tensors."""
    u, v = flow.velocity_hat
    xx, xy, yy = flow.grid.dx**2, flow.grid.dx * flow.grid.dy, flow.grid.dy**2
    corners = (xx * u, xx * v, yy * u, yy * v) if gradgrad else (xx * u, xy * u, xy * v, yy * v)
    a, b, c, d = flow.grid.to_physical(torch.stack(corners)).unbind(0)
    shear = 0.5 * (b + c)
    gradients = _gradients(flow.vorticity, *flow.strain)
    return *gradients, a + d, a**2 + d**2 + 2 * shear**2, -0.5 * (b - c) ** 2


def _blocks(fields: Tensor, stride: int) -> Tensor:
    """``(B, N, N, F)`` as ``(B, agents^2, stride^2 F)``, each agent's block beginning at its place."""
    tiles = fields.unflatten(2, (-1, stride)).unflatten(1, (-1, stride)).movedim(2, 3)
    return tiles.flatten(3).flatten(1, 2)

"""The same flows by jax-cfd: an independent reference for the solver, and another way to a direct simulation.

jax-cfd (Dresdner et al. 2022, arXiv 2207.00556) solves the vorticity equation with the signs of this package:
psi_hat = omega_hat/k^2, u = d psi/dy, v = -d psi/dx. Its forcing acts on the velocity: (sin(fky y), -sin(fkx x)) has
the curl -f, f = fkx cos(fkx x) + fky cos(fky y). Viscosity and drag are Crank-Nicolson; advection, forcing and beta are
explicit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError, require
from simulators.turbulence.cases import Case
from simulators.turbulence.grid import Grid

Stepper = Literal["crank_nicolson_rk2", "crank_nicolson_rk3", "crank_nicolson_rk4", "imex_rk_sil3"]
Mask = Tensor | Literal["two_thirds"] | None


def advance(
    vorticity_hat: Tensor,
    case: Case,
    dt: float,
    steps: int,
    *,
    stepper: Stepper = "crank_nicolson_rk4",
    mask: Mask = "two_thirds",
) -> Tensor:
    """``steps`` steps of dt of every copy, in the precision and on the kind of device of the spectrum.

    The first call for a flow, a grid, a step and a number of steps compiles; later ones reuse it. jax computes in the
    precision of the spectrum, whatever its own switch ``jax_enable_x64`` says, and the switch is left as it was.

    Args:
        vorticity_hat: ``(B, N, N/2+1)`` spectrum of omega, complex64 or complex128; not changed.
        case: the flow.
        dt: time step.
        steps: at least 0.
        stepper: a scheme of ``jax_cfd.spectral.time_stepping``.
        mask: modes that the advection may change: those of ``two_thirds_mask``, or a mask ``(N, N/2+1)``; None for all
            but the Nyquist modes, whose products are then not de-aliased. The start is truncated to them.

    Returns:
        ``(B, N, N/2+1)``, which shares no memory with anything.

    Raises:
        MissingExtra: jax or jax-cfd is not installed.
        InputError: an impossible number or shape, a forcing that the grid cannot represent, an unknown scheme, or a
            device that the installed jax has not.
    """
    n, kept = _checked(vorticity_hat, case, dt, steps, stepper, mask)
    jax = require("jax", "turbulence")
    platform = {"cuda": "gpu"}.get(vorticity_hat.device.type, vorticity_hat.device.type)
    try:
        jax.devices(platform)
    except RuntimeError as error:
        raise InputError(
            f"device = {vorticity_hat.device}: the installed jax has only {jax.default_backend()}"
        ) from error
    double = vorticity_hat.dtype == torch.complex128
    modes = torch.from_numpy(kept).to(vorticity_hat.device)
    with jax.enable_x64(double):
        run = _compiled(case, n, float(dt), stepper, kept.tobytes(), double)
        start = jax.dlpack.from_dlpack((vorticity_hat.detach() * modes).contiguous())
        end = jax.block_until_ready(run(start, steps))
        # A copy: writing into the tensor would change jax's array, which must stay as it is.
        return torch.from_dlpack(end).clone()


def two_thirds_mask(n: int) -> Tensor:
    """The modes ``(N, N/2+1)``, bool, that jax-cfd's 2/3 rule keeps; it drops positive kx whose negative it keeps.

    Raises:
        MissingExtra: jax-cfd is not installed.
        InputError: an odd or too small number of points.
    """
    Grid(n)
    utils = require("jax_cfd.spectral.utils", "turbulence")
    return torch.from_numpy(np.array(utils.brick_wall_filter_2d(_grid(n))) > 0)


def _checked(
    vorticity_hat: Tensor, case: Case, dt: float, steps: int, stepper: Stepper, mask: Mask
) -> tuple[int, np.ndarray]:
    """Points a side and the mask ``(N, N/2+1)``."""
    shape = tuple(vorticity_hat.shape)
    if len(shape) != 3 or shape[2] != shape[1] // 2 + 1 or not vorticity_hat.is_complex():
        raise InputError(f"vorticity_hat: {vorticity_hat.dtype} of shape {shape}, must be complex (B, N, N/2+1)")
    n = shape[1]
    if not (math.isfinite(dt) and dt > 0):
        raise InputError(f"dt = {dt}: must be above 0")
    if steps < 0:
        raise InputError(f"steps = {steps}: must be at least 0")
    if stepper not in get_args(Stepper):
        raise InputError(f"stepper = {stepper!r}: must be one of {', '.join(get_args(Stepper))}")
    resolved = Grid(n).resolved
    if case.forcing >= n // 2:
        raise InputError(f"forcing at k = {case.forcing}: a grid of {n} points represents it up to {n // 2 - 1}")
    if isinstance(mask, Tensor):
        if mask.shape != resolved.shape:
            raise InputError(f"mask of shape {tuple(mask.shape)}: must be {tuple(resolved.shape)}")
        kept = resolved & mask.cpu().bool()
    elif mask is None:
        kept = resolved
    elif mask == "two_thirds":
        kept = resolved & two_thirds_mask(n)
    else:
        raise InputError(f"mask = {mask!r}: must be two_thirds, a mask or None")
    return n, kept.numpy()


def _grid(n: int) -> Any:
    side = (0.0, 2 * math.pi)
    return require("jax_cfd.base.grids", "turbulence").Grid((n, n), domain=(side, side))


@lru_cache(maxsize=16)
def _compiled(case: Case, n: int, dt: float, stepper: Stepper, mask: bytes, double: bool) -> Callable[[Any, int], Any]:
    """The function from a batch of spectra and a number of steps to spectra; ``double`` keeps the precisions apart."""
    jax = require("jax", "turbulence")
    funcutils = require("jax_cfd.base.funcutils", "turbulence")
    time_stepping = require("jax_cfd.spectral.time_stepping", "turbulence")
    equation = _equation(case, n)
    equation.filter_ = jax.numpy.asarray(np.frombuffer(mask, dtype=bool).reshape(n, n // 2 + 1), dtype=float)
    step = getattr(time_stepping, stepper)(equation, dt)

    def run(vorticity_hat: Any, steps: int) -> Any:
        return jax.vmap(funcutils.repeated(step, steps))(vorticity_hat)

    compiled: Callable[[Any, int], Any] = jax.jit(run, static_argnums=1)
    return compiled


def _equation(case: Case, n: int) -> Any:
    """jax-cfd's equation of the flow, with beta added to what it has."""
    jax = require("jax", "turbulence")
    equations = require("jax_cfd.spectral.equations", "turbulence")
    utils = require("jax_cfd.spectral.utils", "turbulence")
    grids = require("jax_cfd.base.grids", "turbulence")
    grid = _grid(n)
    to_velocity = utils.vorticity_to_velocity(grid)

    class BetaPlane(equations.NavierStokes2D):  # type: ignore[name-defined]
        def explicit_terms(self, vorticity_hat: Any) -> Any:
            terms = super().explicit_terms(vorticity_hat)
            return terms - case.beta * to_velocity(vorticity_hat)[1] if case.beta else terms

    def forcing(grid: Any) -> Callable[[Any], tuple[Any, Any]]:
        offset = (0.0, 0.0)
        x, y = grid.mesh(offset)
        force = (jax.numpy.sin(case.fky * y), -jax.numpy.sin(case.fkx * x))
        along_x, along_y = (grids.GridArray(part, offset, grid) for part in force)
        return lambda velocity: (along_x, along_y)

    # The filter is applied unless ``smooth`` is None.
    return BetaPlane(case.viscosity, grid, drag=case.drag, smooth=True, forcing_fn=forcing)

"""From a resolved flow to a coarse grid: filters, coarse-graining, and the inverse of the Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from core.errors import InputError
from simulators.turbulence.flow import Flow
from simulators.turbulence.grid import Grid, resample

FilterKind = Literal["gaussian", "box", "sharp"]


@dataclass(frozen=True)
class Filter:
    """A low-pass filter of width D.

    ``gaussian`` is exp(-k^2 D^2/24); ``box`` the mean over a square of side D, sinc(kx D/2) sinc(ky D/2) with
    sinc(z) = sin(z)/z; ``sharp`` keeps |kx|, |ky| < 2 pi/D.

    Attributes:
        kind: one of them.
        width: D, in units of the box of side 2 pi.

    Raises:
        InputError: another kind, or a width that is not above 0.
    """

    kind: FilterKind
    width: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(FilterKind):
            raise InputError(f"filter = {self.kind!r}: must be one of {', '.join(get_args(FilterKind))}")
        if not 0 < self.width < math.inf:
            raise InputError(f"width = {self.width}: must be above 0 and finite")

    @classmethod
    def of_grid(cls, n: int, kind: FilterKind = "gaussian") -> Filter:
        """The filter of a coarse grid of n points: D = 2 (2 pi/n), twice its spacing."""
        return cls(kind, 4 * math.pi / n)

    def transfer(self, grid: Grid) -> Tensor:
        """``(N, N/2+1)`` real, what the filter multiplies each mode by."""
        if self.kind == "gaussian":
            return torch.exp(-grid.k2 * (self.width**2 / 24))
        if self.kind == "box":
            cycles = self.width / (2 * math.pi)  # torch's sinc(z) is sin(pi z)/(pi z)
            return torch.sinc(grid.kx * cycles) * torch.sinc(grid.ky * cycles)
        below = 2 * math.pi / self.width * (1 - 1e-9)  # a mode at the cut itself is not kept, whatever the rounding
        return ((grid.kx.abs() < below) & (grid.ky < below)).to(grid.dtype)


@dataclass(frozen=True)
class Filtered:
    """A flow on a coarse grid, and the filter that made it.

    Attributes:
        flow: on the coarse grid.
        filter: its kind and its width D.
    """

    flow: Flow
    filter: Filter


def coarse_grain(
    grid: Grid, vorticity_hat: Tensor, n_les: int, kind: FilterKind = "gaussian", width: float | None = None
) -> Filtered:
    """Filter a resolved flow and cut it to the modes of a coarse grid.

    Args:
        grid: of the resolved flow.
        vorticity_hat: ``(..., N, N/2+1)``.
        n_les: points of the coarse grid.
        kind: of filter.
        width: D; 2 (2 pi/n_les) if not given.

    Raises:
        InputError: a coarse grid finer than the flow's, or an impossible filter.
    """
    if n_les > grid.n:
        raise InputError(f"n_les = {n_les}: must be at most the {grid.n} points of the resolved flow")
    chosen = Filter.of_grid(n_les, kind) if width is None else Filter(kind, width)
    coarse = Grid(n_les, grid.dtype, grid.device)
    return Filtered(Flow(coarse, resample(vorticity_hat, n_les) * chosen.transfer(coarse)), chosen)


def defilter(spectrum: Tensor, width: float) -> Tensor:
    """Undo the Gaussian filter of width D: the modes with |kx|, |ky| < N/2 divided by exp(-k^2 D^2/24), others 0.

    Args:
        spectrum: ``(..., N, N/2+1)``, unnormalised.
        width: D of the filter.
    """
    grid = Grid(spectrum.shape[-2], spectrum.real.dtype, spectrum.device)
    return torch.where(grid.resolved, spectrum / Filter("gaussian", width).transfer(grid), 0)


def refined(flow: Flow) -> Flow:
    """The same flow on 3N/2 points (one more where that is odd), where products of two fields are free of aliases."""
    grid = flow.grid
    fine = _fine_grid(grid.n, grid.dtype, grid.device)
    return Flow(fine, resample(flow.vorticity_hat, fine.n))


@lru_cache(maxsize=8)
def _fine_grid(n: int, dtype: torch.dtype, device: torch.device) -> Grid:
    with torch.inference_mode(False):  # a cached tensor must also serve a later backward pass
        return Grid(2 * math.ceil(3 * n / 4), dtype, device)

"""The doubly periodic grid and its Fourier transforms."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from core.errors import InputError

SMALLEST = 8


class Grid:
    """N x N points of the box [0, 2 pi)^2, with x on axis -2 and y on axis -1.

    Spectra are unnormalised ``rfft2``, ``(..., N, N/2+1)``. The modes of the Nyquist wavenumber N/2, whose odd
    derivatives are not defined, are never carried: ``resolved`` leaves them out.

    Attributes:
        n: points on each side.
        spacing: 2 pi / N, the width D of the closures.
        x: ``(N,)`` coordinates along either side.
        kx: ``(N, 1)`` wavenumbers.
        ky: ``(1, N/2+1)`` wavenumbers.
        k2: ``(N, N/2+1)`` kx^2 + ky^2.
        inverse_k2: its inverse, 0 for the mean.
        dx: ``(N, 1)`` i kx, 0 at the Nyquist wavenumber.
        dy: ``(1, N/2+1)`` i ky, likewise.
        resolved: ``(N, N/2+1)`` bool, |kx| < N/2 and |ky| < N/2.

    Args:
        n: points on each side; even, at least 8.
        dtype: of physical fields, float32 or float64.
        device: where the tensors live.

    Raises:
        InputError: an odd or too small number of points.
    """

    def __init__(self, n: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> None:
        if n < SMALLEST or n % 2:
            raise InputError(f"n = {n}: must be an even number of points of at least {SMALLEST}")
        self.n = n
        self.dtype = dtype
        self.complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
        self.device = torch.device(device)
        self.spacing = 2 * math.pi / n
        self.x = torch.arange(n, dtype=dtype, device=device) * self.spacing
        self.kx = (torch.fft.fftfreq(n, dtype=dtype, device=device) * n).unsqueeze(1)
        self.ky = (torch.fft.rfftfreq(n, dtype=dtype, device=device) * n).unsqueeze(0)
        self.k2 = self.kx**2 + self.ky**2
        self.inverse_k2 = torch.where(self.k2 > 0, 1 / self.k2.clamp(min=1), 0.0)
        inside_x, inside_y = self.kx.abs() < n / 2, self.ky < n / 2
        self.resolved = inside_x & inside_y
        self.dx = 1j * self.kx * inside_x
        self.dy = 1j * self.ky * inside_y

    # The operators below are made once: at small N building them costs as much as the transforms that they serve.

    @cached_property
    def to_velocity(self) -> Tensor:
        """From omega to u and v, for ``fields``."""
        return self._to_fields(self.dy * self.inverse_k2, -self.dx * self.inverse_k2)

    @cached_property
    def to_velocity_gradient(self) -> Tensor:
        """From omega to u_x, u_y and v_x, for ``fields``."""
        return self._to_fields(*(k * self.inverse_k2 for k in (self.dx * self.dy, self.dy**2, -(self.dx**2))))

    @cached_property
    def to_gradient(self) -> Tensor:
        """From anything to its derivatives along x and y, for ``fields``."""
        return self._to_fields(self.dx, self.dy)

    @cached_property
    def to_strain(self) -> Tensor:
        """From omega to S11 = u_x and S12 = (u_y + v_x)/2, for ``fields``."""
        return self._to_fields(self.dx * self.dy * self.inverse_k2, 0.5 * (self.dy**2 - self.dx**2) * self.inverse_k2)

    @cached_property
    def to_invariants(self) -> Tensor:
        """From omega to itself, S11, S12, w_x, w_y, w_xx, w_xy and w_yy, for ``fields``."""
        dx, dy, one = self.dx, self.dy, self.resolved
        with torch.inference_mode(False):
            second = self._to_fields(one, dx**2, dx * dy, dy**2)
            return torch.cat((second[:1], self.to_strain, self.to_gradient, second[1:]))

    @cached_property
    def to_curl(self) -> Tensor:
        """``(2, N, N/2+1)``: the spectra of (tau11 - tau22)/2 and tau12 times these add up to that of curl(div tau)."""
        return self._stacked(-2 * self.dx * self.dy, self.dx**2 - self.dy**2)

    @cached_property
    def to_viscous_curl(self) -> Tensor:
        """``to_curl`` of tau = -2 nu S from the spectra of nu S11 and nu S12."""
        with torch.inference_mode(False):
            return -2 * self.to_curl

    @cached_property
    def to_mean_square(self) -> tuple[Tensor, Tensor]:
        """``(1, N+2)``, ``(N, N+2)``: squared parts of omega times these add up to enstrophy and energy."""
        with torch.inference_mode(False):
            twice = torch.where((self.ky > 0) & (self.ky < self.n / 2), 2.0, 1.0).to(self.dtype)
            halves = (0.5 / self.n**4 * twice).repeat_interleave(2, -1)
            return halves, halves * self.inverse_k2.repeat_interleave(2, -1)

    def _stacked(self, *operators: Tensor) -> Tensor:
        with torch.inference_mode(False):  # a cached tensor must also serve a later backward pass
            return torch.stack([operator.to(self.complex_dtype).expand_as(self.k2) for operator in operators])

    def _to_fields(self, *operators: Tensor) -> Tensor:
        """``(K, N/2, N)``: with kx along memory, as the first transform wants it, and the scale of the transforms."""
        with torch.inference_mode(False):
            return (self._stacked(*operators)[..., : self.n // 2].mT / self.n**2).contiguous()

    def to_spectral(self, field: Tensor) -> Tensor:
        """``(..., N, N)`` to ``(..., N, N/2+1)``."""
        return torch.fft.rfft2(field)

    def to_physical(self, spectrum: Tensor) -> Tensor:
        """``(..., N, N/2+1)`` to ``(..., N, N)``."""
        return torch.fft.irfft2(spectrum, s=(self.n, self.n))

    def fields(self, operators: Tensor, spectrum: Tensor, stride: int = 1) -> Tensor:
        """What K operators of the grid make of a spectrum ``(..., N, N/2+1)``, without its Nyquist modes.

        Returns:
            ``(K, ..., N, N)``, or every ``stride``-th point along either side; rows between are not transformed.
        """
        operators = operators.unflatten(0, (-1, *(1,) * (spectrum.dim() - 2)))
        along_x = torch.fft.ifft(operators * spectrum[..., : self.n // 2].mT, norm="forward")
        return torch.fft.irfft(along_x[..., ::stride].mT, n=self.n, norm="forward")[..., ::stride]


def resample(spectrum: Tensor, n: int) -> Tensor:
    """The same field on a grid of n points: modes with |kx|, |ky| < min(N, n)/2 are kept, others are dropped or 0.

    Args:
        spectrum: ``(..., N, N/2+1)``.
        n: points of the new grid.

    Returns:
        ``(..., n, n/2+1)``, scaled so that the field keeps its amplitude.
    """
    have = spectrum.shape[-2]
    kept = min(have, n) // 2
    scaled = spectrum[..., :kept] * (n / have) ** 2
    gap = scaled.new_zeros(*scaled.shape[:-2], n - 2 * kept + 1, kept)
    rows = torch.cat((scaled[..., :kept, :], gap, scaled[..., have - kept + 1 :, :]), dim=-2)
    missing = n // 2 + 1 - kept
    return torch.nn.functional.pad(rows, (0, missing))

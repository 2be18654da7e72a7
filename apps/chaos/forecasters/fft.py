"""The largest Fourier components of the training series, continued."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from apps.chaos.forecasters.forecaster import Fitting, Forecaster, Trivial


class FFT(Forecaster):
    """Each channel continued by its largest Fourier components, without detrending: of the length of the series in
    period.

    As in darts' ``FFT``, components count in the two-sided spectrum, where all but the mean and the Nyquist frequency
    come in conjugate pairs; a pair is kept whole here.
    """

    kind: Literal["fft"] = "fft"
    frequencies: int = Field(default=10, ge=1)
    """Components that are kept of the two-sided spectrum."""

    def fit(self, train: Tensor, fitting: Fitting) -> Trivial:
        """Filter each channel."""
        samples = train.shape[1]
        spectrum = torch.fft.rfft(train, dim=1)
        paired = torch.full((spectrum.shape[1],), 2, device=train.device)
        paired[0] = 1
        if samples % 2 == 0:
            paired[-1] = 1
        order = spectrum.abs().argsort(dim=1, descending=True, stable=True)
        before = paired[order].cumsum(1) - paired[order]
        kept = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, before < self.frequencies)
        filtered = torch.fft.irfft(torch.where(kept, spectrum, 0), n=samples, dim=1)
        return Trivial(lambda horizon: filtered[:, torch.arange(horizon, device=train.device) % samples])

"""Power spectra of series: the dominant period, distances between spectra, and entropy at several scales."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.errors import InputError
from simulators.chaos.series_checks import Series, as_points, check_spacing

SIGNIFICANCE = 0.99
"""Share of white-noise series of the same length in which no peak is so high (Fisher's test)."""
SEGMENTS = 4
"""Of a series, half overlapping, over which a power spectrum is averaged."""
_AT_ONCE = 1 << 22


def dominant_period(series: Series, dt: float) -> float:
    """Period at which frequency times power is highest, in time units; of several channels their median.

    The product is the power of an octave: a broad spectrum whose density falls with frequency, as that of an orbit that
    changes between lobes, still shows the time of a turn. A channel counts where white noise of that length would have
    a peak so high in one case of a hundred (Fisher 1929, Proceedings of the Royal Society A 125, 54).

    Args:
        series: ``(T,)`` or ``(T, D)``, at least two periods long.
        dt: time between two samples.

    Raises:
        InputError: fewer than 20 samples, not finite or constant ones, an impossible spacing, or no channel with a
            significant peak.
    """
    points = as_points(series, 20)
    check_spacing(dt)
    periods, significant = peak_periods(points[None], dt)
    if not bool(significant.any()):
        raise InputError(f"series: no peak of its spectrum is significant at {SIGNIFICANCE}, it has no period")
    return float(periods[0][significant[0]].quantile(0.5))


def peak_periods(points: Tensor, dt: float) -> tuple[Tensor, Tensor]:
    """Periods ``(S, D)`` in time units of series ``(S, T, D)``, and whether each has a significant peak.

    Args:
        points: of S series.
        dt: time between two samples.
    """
    length = points.shape[1]
    centred = points - points.mean(1, keepdim=True)
    # Zeros appended bring the frequencies closer than 1 / (T dt), and Hann's window keeps a peak from leaking.
    window = torch.hann_window(length, periodic=False, dtype=points.dtype, device=points.device)[:, None]
    fine = 4
    power = torch.fft.rfft(centred * window, n=fine * length, dim=1).abs().square()
    power[:, : 2 * fine] = 0.0  # fewer than two periods in the series
    octaves = power * torch.arange(power.shape[1], dtype=power.dtype, device=power.device)[:, None]
    at = octaves.argmax(1, keepdim=True)
    # The factor chose the peak and draws its top towards high frequencies: the power alone says where that is.
    near = at + torch.arange(-fine, fine + 1, device=points.device)[:, None]
    near = near.clamp(1, power.shape[1] - 2)
    at = near.gather(1, power.gather(1, near).argmax(1, keepdim=True))
    left, top, right = (power.gather(1, at + k).clamp(min=1e-300).log() for k in (-1, 0, 1))
    shift = (0.5 * (left - right) / (left - 2 * top + right)).nan_to_num(0.0).clamp(-0.5, 0.5)
    periods = (fine * length * dt / (at + shift))[:, 0]
    plain = torch.fft.rfft(centred, dim=1).abs().square()[:, 1:]
    bins = plain.shape[1]
    share = plain.amax(1) / plain.sum(1)
    # First term of Fisher's distribution of the largest share.
    limit = 1 - ((1 - SIGNIFICANCE) / bins) ** (1 / (bins - 1))
    return periods, share > limit


def power_spectrum(points: Tensor, segments: int = SEGMENTS) -> Tensor:
    """One-sided power ``(..., F, D)`` of series ``(..., T, D)`` by Welch's method: Hann windows, half overlapping.

    Frequency f is f / (2 (F - 1)) a sample. Series with a value that is not finite have no spectrum.

    Raises:
        InputError: segments of fewer than eight samples.
    """
    length = points.shape[-2]
    each = 2 * (length // (segments + 1))
    if segments < 1 or each < 8:
        raise InputError(f"segments: {segments} of a series of {length} samples are shorter than 8 samples")
    parts = points.unfold(-2, each, each // 2)
    window = torch.hann_window(each, dtype=points.dtype, device=points.device)
    centred = parts - parts.mean(-1, keepdim=True)
    return torch.fft.rfft(centred * window, dim=-1).abs().square().mean(-3).mT


def spectrum_distance(truth: Tensor, forecast: Tensor, segments: int = SEGMENTS) -> Tensor:
    """Root mean square difference ``(...)`` of two power spectra, each channel's highest power scaled to 1.

    Args:
        truth: ``(..., T, D)``.
        forecast: of the same shape and spacing.
        segments: of a series.
    """
    powers = (power_spectrum(points, segments) for points in (truth, forecast))
    one, other = (power / power.amax(-2, keepdim=True) for power in powers)
    return (one - other).square().mean((-2, -1)).sqrt()


def hellinger_distance(truth: Tensor, forecast: Tensor, segments: int = SEGMENTS) -> Tensor:
    """Hellinger distance ``(...)`` of two power spectra as distributions over frequency, mean over channels; in [0, 1].

    Args:
        truth: ``(..., T, D)``.
        forecast: of the same shape and spacing.
        segments: of a series.
    """
    powers = (power_spectrum(points, segments) for points in (truth, forecast))
    one, other = (power / power.sum(-2, keepdim=True) for power in powers)
    overlap = (one * other).sqrt().sum(-2)
    return (1 - overlap).clamp(min=0).sqrt().mean(-1)


def multiscale_entropy(series: Series, *, scales: int = 5, tolerance: float = 0.2) -> Tensor:
    """Sample entropies ``(scales,)`` in nats of a scalar series averaged over 1 ... ``scales`` samples.

    Costa, Goldberger and Peng (2002), Physical Review Letters 89, 068102: -log of the share of pairs of two samples
    within the tolerance that are still so one sample later. NaN where no pair is.

    Args:
        series: ``(T,)``.
        scales: how many.
        tolerance: in standard deviations of the series.

    Raises:
        InputError: fewer than 50 samples at the coarsest scale, not finite or constant ones.
    """
    values = as_points(series, 50 * scales)[:, 0]
    radius = tolerance * values.std()
    found = []
    for scale in range(1, scales + 1):
        coarse = values[: len(values) // scale * scale].unflatten(0, (-1, scale)).mean(1)
        found.append(_sample_entropy(coarse, radius))
    return torch.stack(found)


def _sample_entropy(values: Tensor, radius: Tensor) -> Tensor:
    count = len(values) - 2
    pairs = values.new_zeros(2)
    block = max(1, _AT_ONCE // count)
    index = torch.arange(count, device=values.device)
    for begin in range(0, count, block):
        rows = index[begin : begin + block]
        near = [(values[rows + k, None] - values[k : k + count]).abs() <= radius for k in range(3)]
        earlier = near[0] & near[1] & (rows[:, None] < index)
        pairs += torch.stack([earlier.sum(), (earlier & near[2]).sum()]).to(pairs)
    return -(pairs[1] / pairs[0]).log() if bool(pairs.min() > 0) else values.new_tensor(math.nan)

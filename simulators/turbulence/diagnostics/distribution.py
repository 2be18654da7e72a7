"""The distribution of the vorticity: histogram, tails, moments, divergences, extreme quantile and kernel density."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import xarray as xr
from scipy.stats import gaussian_kde
from torch import Tensor

from core.errors import InputError
from core.stats import Interval
from core.stats.interval import check_level
from simulators.turbulence.diagnostics.records import Numbers, Record, as_numbers, described, runs

TAILS = (2, 3, 4)
"""Multiples q of sigma_ref beyond which |omega| is counted."""
BLOCK = 5.0
"""Length of a block of the bootstrap, time units: several turnovers of the largest eddies."""


@dataclass(frozen=True)
class VorticityHistogram:
    """Counts of the vorticity of B copies in bins of sigma_ref that all of them share; grows field by field.

    The outermost bins are open: they also hold what lies beyond ``limit``. Tails are counted from the values, not from
    the bins. A field whose fourth power does not sum to a finite number is left out and counted in ``skipped``.

    Attributes:
        sigma: sigma_ref, the unit, in that of the vorticity.
        limit: the bins cover [-limit, limit] sigma_ref.
        counts: ``(B, bins)`` int64.
        exceeded: ``(B, 3)`` int64, values with |omega| > q sigma_ref for q in ``TAILS``.
        power_sums: ``(B, 4)`` float64, sums of (omega/sigma_ref)^m, m = 1..4.
        points: ``(B,)`` int64, values counted.
        skipped: ``(B,)`` int64, fields left out.
    """

    sigma: float
    limit: float
    counts: Tensor
    exceeded: Tensor
    power_sums: Tensor
    points: Tensor
    skipped: Tensor

    @classmethod
    def empty(
        cls, batch: int, sigma: float, *, bins: int = 200, limit: float = 10.0, device: torch.device | str = "cpu"
    ) -> VorticityHistogram:
        """Nothing counted yet.

        Args:
            batch: B, number of copies.
            sigma: sigma_ref.
            bins: number of bins.
            limit: half the range, in sigma_ref.
            device: where to count.

        Raises:
            InputError: a number that is not above 0.
        """
        for name, value in (("batch", batch), ("sigma", sigma), ("bins", bins), ("limit", limit)):
            if not 0 < value < math.inf:
                raise InputError(f"{name} = {value}: must be above 0 and finite")
        count, number = torch.int64, torch.float64
        return cls(
            float(sigma),
            float(limit),
            torch.zeros(batch, bins, dtype=count, device=device),
            torch.zeros(batch, len(TAILS), dtype=count, device=device),
            torch.zeros(batch, 4, dtype=number, device=device),
            torch.zeros(batch, dtype=count, device=device),
            torch.zeros(batch, dtype=count, device=device),
        )

    @classmethod
    def of(cls, fields: Tensor, sigma: float, *, bins: int = 200, limit: float = 10.0) -> VorticityHistogram:
        """All snapshots ``(S, N, N)`` as one copy.

        Raises:
            InputError: as ``empty``, or no snapshot.
        """
        if fields.ndim != 3 or not fields.numel():
            raise InputError(f"fields: have shape {tuple(fields.shape)}, must be snapshots (S, N, N)")
        empty = cls.empty(len(fields), sigma, bins=bins, limit=limit, device=fields.device)
        return empty.add(fields).pooled()

    def add(self, vorticity: Tensor) -> VorticityHistogram:
        """With one more field of each copy ``(B, N, N)`` counted; nothing leaves the device."""
        scaled = vorticity.flatten(1) / self.sigma
        square = scaled.square()
        sums = torch.stack([power.sum(1) for power in (scaled, square, square * scaled, square.square())], 1)
        finite = torch.isfinite(sums).all(1, keepdim=True)
        scaled = torch.where(finite, scaled, 0.0)
        bins, counted = self.counts.shape[1], finite.long()
        index = ((scaled + self.limit) * (bins / (2 * self.limit))).floor().clamp(0, bins - 1).long()
        magnitude = scaled.abs()
        exceeded = torch.stack([torch.count_nonzero(magnitude > q, 1) for q in TAILS], 1)
        return replace(
            self,
            counts=self.counts.scatter_add(1, index, counted.expand_as(index)),
            exceeded=self.exceeded + exceeded,
            power_sums=self.power_sums + torch.where(finite, sums, 0.0),
            points=self.points + counted[:, 0] * scaled.shape[1],
            skipped=self.skipped + 1 - counted[:, 0],
        )

    def pooled(self) -> VorticityHistogram:
        """All copies as one."""
        summed = {
            name: getattr(self, name).sum(0, keepdim=True)
            for name in ("counts", "exceeded", "power_sums", "points", "skipped")
        }
        return replace(self, **summed)

    @property
    def centres(self) -> Tensor:
        """Middles of the bins ``(bins,)``, in sigma_ref."""
        bins = self.counts.shape[1]
        width = 2 * self.limit / bins
        return (torch.arange(bins, dtype=torch.float64, device=self.counts.device) + 0.5) * width - self.limit

    @property
    def density(self) -> Tensor:
        """Probability density of omega/sigma_ref, ``(B, bins)``; NaN for a copy of which nothing was counted."""
        width = 2 * self.limit / self.counts.shape[1]
        return self.counts / (self.points.double().unsqueeze(1) * width)

    @property
    def tail_probability(self) -> Tensor:
        """P(|omega| > q sigma_ref) for q in ``TAILS``, ``(B, 3)``."""
        return self.exceeded / self.points.double().unsqueeze(1)

    @property
    def _moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means of (omega/sigma_ref)^m, m = 1..4, each ``(B,)``."""
        m1, m2, m3, m4 = (self.power_sums / self.points.unsqueeze(1)).unbind(1)
        return m1, m2, m3, m4

    @property
    def standard_deviation(self) -> Tensor:
        """Of omega, ``(B,)``, in its unit."""
        m1, m2, _, _ = self._moments
        return self.sigma * (m2 - m1**2).sqrt()

    @property
    def kurtosis(self) -> Tensor:
        """Fourth central moment over the squared variance, ``(B,)``; 3 for a Gaussian."""
        m1, m2, m3, m4 = self._moments
        return (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / (m2 - m1**2) ** 2


def kl(p: Tensor, q: Tensor, *, pseudo_count: float = 0.5) -> Tensor:
    """Kullback-Leibler divergence KL(p || q) of counts on shared bins, nats; at least 0, and 0 for equal counts.

    Every bin of both starts at ``pseudo_count``, so that a bin which q never reached gives a finite penalty, which
    grows with the number of values that q had.

    Args:
        p: ``(..., bins)`` counts; of the reference, by convention.
        q: likewise; of the model.
        pseudo_count: above 0.

    Returns:
        ``(...)``.
    """
    first, second = _shares(p + pseudo_count), _shares(q + pseudo_count)
    return (first * (first / second).log()).sum(-1).clamp(min=0)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of counts ``(..., bins)`` on shared bins, nats: between 0 and log 2."""
    first, second = _shares(p), _shares(q)
    middle = (first + second) / 2
    half = [torch.special.xlogy(share, share) - torch.special.xlogy(share, middle) for share in (first, second)]
    return (half[0] + half[1]).sum(-1).clamp(min=0) / 2


def _shares(counts: Tensor) -> Tensor:
    return counts / counts.sum(-1, keepdim=True, dtype=torch.float64)


def tail_log_ratio(model: VorticityHistogram, reference: VorticityHistogram) -> Tensor:
    """log10 of P(|omega| > q sigma_ref) over the reference's, ``(B, 3)`` decades; -inf where the model never goes.

    Raises:
        InputError: the two have different sigma_ref.
    """
    _check_shared(model, reference)
    return (model.tail_probability / reference.tail_probability).log10()


def distribution_summary(model: VorticityHistogram, reference: VorticityHistogram) -> xr.Dataset:
    """Densities, tails and divergences of B runs against a reference of one copy.

    Returns:
        Dims ``start`` (run), ``omega`` (bin, in sigma_ref) and ``q`` (multiple of sigma_ref).

    Raises:
        InputError: bins that are not shared, a reference of several copies, or a histogram of nothing.
    """
    _check_shared(model, reference)
    if len(reference.counts) != 1:
        raise InputError(f"reference: has {len(reference.counts)} copies, must be one (pooled)")
    for name, histogram in (("model", model), ("reference", reference)):
        if not histogram.points.any():
            raise InputError(f"{name}: holds no finite field, there is nothing to describe")

    def of_runs(
        values: Tensor, long_name: str, units: str = "1", *dims: str
    ) -> tuple[tuple[str, ...], Numbers, object]:
        return ("start", *dims), as_numbers(values), described(long_name, units)

    ratio = tail_log_ratio(model, reference)
    return xr.Dataset(
        {
            "density": of_runs(model.density, "probability density of omega/sigma_ref", "1", "omega"),
            "density_reference": ("omega", as_numbers(reference.density[0]), described("density of the reference")),
            "tail": of_runs(model.tail_probability, "P(|omega| > q sigma_ref)", "1", "q"),
            "tail_reference": ("q", as_numbers(reference.tail_probability[0]), described("tail of the reference")),
            "tail_log_ratio": of_runs(ratio, "log10 of the tail over the reference's", "decades", "q"),
            "kl": of_runs(kl(reference.counts, model.counts), "KL(reference || run)", "nat"),
            "jensen_shannon": of_runs(
                jensen_shannon(reference.counts, model.counts), "Jensen-Shannon divergence", "nat"
            ),
            "kurtosis": of_runs(model.kurtosis, "kurtosis of the vorticity"),
            "kurtosis_reference": ((), float(reference.kurtosis[0]), described("kurtosis of the reference")),
            "standard_deviation": of_runs(model.standard_deviation, "standard deviation of the vorticity"),
            "skipped": of_runs(model.skipped, "fields left out, not finite"),
        },
        coords={
            "start": runs(len(model.counts)),
            "omega": ("omega", as_numbers(model.centres), described("vorticity", "sigma_ref")),
            "q": ("q", list(TAILS), described("threshold", "sigma_ref")),
        },
        attrs={"sigma_ref": reference.sigma},
    )


def _check_shared(a: VorticityHistogram, b: VorticityHistogram) -> None:
    first, second = ((h.sigma, h.limit, h.counts.shape[1]) for h in (a, b))
    if first != second:
        raise InputError(f"histograms: have (sigma, limit, bins) = {first} and {second}, they must be shared")


def extreme_quantile(
    vorticity: Record,
    time: Record,
    sigma: float,
    *,
    q: float = 0.999,
    block: float = BLOCK,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Quantile of |omega|/sigma_ref over runs, times and points, with a block-bootstrap interval.

    What is resampled are stretches of ``block`` time units of one run, with all their points: flows forget
    within a few turnovers (Kuensch 1989, Annals of Statistics 17, 1217-1241). Resampled quantiles are interpolated in a
    histogram of 4096 bins, the estimate itself is exact.

    Args:
        vorticity: ``(start, time, N, N)``.
        time: ``(time,)``, increasing.
        sigma: sigma_ref.
        q: probability.
        block: time units.
        resamples: of the bootstrap.
        level: of the interval.
        seed: of the bootstrap.

    Returns:
        ``n`` is the number of blocks.

    Raises:
        InputError: an impossible number, values that are not finite, or fewer than two blocks.
    """
    check_level(level)
    for name, value, top in (("q", q, 1.0), ("block", block, math.inf), ("sigma", sigma, math.inf)):
        if not 0 < value < top:
            raise InputError(f"{name} = {value}: must be above 0 and below {top:g}")
    if resamples < 1:
        raise InputError(f"resamples = {resamples}: must be at least 1")
    values, times = np.abs(as_numbers(vorticity)) / sigma, as_numbers(time)
    if values.ndim != 4 or values.shape[1] != len(times) or not values.size:
        raise InputError(f"vorticity: has shape {values.shape}, must be (start, time, N, N) with {len(times)} times")
    if not np.isfinite(values).all():
        raise InputError("vorticity: has values that are not finite, leave out the runs that blew up")
    of_time = np.unique(np.floor((times - times[0]) / block), return_inverse=True)[1]
    blocks = of_time + (of_time.max() + 1) * np.arange(len(values))[:, None]
    count = int(blocks.max()) + 1
    if count < 2:
        raise InputError(f"block = {block:g}: leaves {count} block of {len(values)} run(s), at least 2 are needed")
    bins = 4096
    edges = np.linspace(0.0, values.max() or 1.0, bins + 1)
    bin_of = np.minimum((values / edges[1]).astype(np.int64), bins - 1)
    flat = (bin_of + bins * blocks[..., None, None]).ravel()
    histograms = np.bincount(flat, minlength=bins * count).reshape(count, bins).astype(np.float64)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    cumulative = np.cumsum(drawn @ histograms, axis=1)
    quantiles = [np.interp(q * c[-1], np.concatenate(([0], c)), edges) for c in cumulative]
    low, high = np.quantile(quantiles, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.quantile(values, q)), float(low), float(high), count, level)


def kernel_density(
    vorticity: Record,
    sigma: float,
    *,
    bandwidth: Literal["scott", "columns"] | float = "scott",
    limit: float = 10.0,
    points: int = 201,
) -> xr.Dataset:
    """Gaussian kernel density of omega/sigma_ref (scipy's ``gaussian_kde``).

    Args:
        vorticity: ``(S, N, N)``.
        sigma: sigma_ref.
        bandwidth: ``scott``; a width of the kernel in the unit of omega; or ``columns``, the width 10 n^(-1/5) with
            n = S N columns of Mojgani et al. (2023), which smooths too much.
        limit: the density is given on [-limit, limit] sigma_ref.
        points: at so many points.

    Returns:
        ``density`` along ``omega``; attributes ``bandwidth`` (in the unit of omega) and ``sigma_ref``.

    Raises:
        InputError: an impossible number, no field, values that are not finite or all the same.
    """
    values = as_numbers(vorticity)
    if values.ndim != 3 or not values.size:
        raise InputError(f"vorticity: has shape {values.shape}, must be (S, N, N)")
    spread = float(values.std(ddof=1))
    if not 0 < spread < math.inf:
        raise InputError(f"vorticity: has standard deviation {spread:g}, must be above 0 and finite")
    if bandwidth == "columns":
        bandwidth = 10 * (values.shape[0] * values.shape[1]) ** -0.2
    if bandwidth != "scott" and not (isinstance(bandwidth, int | float) and 0 < bandwidth < math.inf):
        raise InputError(f"bandwidth = {bandwidth!r}: must be scott, columns or a width above 0")
    # scipy's scalar is a multiple of the standard deviation.
    density = gaussian_kde(values.ravel(), "scott" if isinstance(bandwidth, str) else bandwidth / spread)
    omega = np.linspace(-limit, limit, points)
    return xr.Dataset(
        {"density": ("omega", sigma * density(omega * sigma), described("probability density of omega/sigma_ref"))},
        coords={"omega": ("omega", omega, described("vorticity", "sigma_ref"))},
        attrs={"bandwidth": float(density.factor * spread), "sigma_ref": sigma},
    )

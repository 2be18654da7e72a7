"""Histogram, tails, divergences, quantile and kernel density against known distributions and one another."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy, kurtosis, norm

from core.errors import InputError
from simulators.turbulence.diagnostics import (
    VorticityHistogram,
    distribution_summary,
    extreme_quantile,
    jensen_shannon,
    kernel_density,
    kl,
    tail_log_ratio,
)


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def accumulated(fields, sigma=1.0, **options):
    """Fields (B, T, N, N) one time after the other."""
    histogram = VorticityHistogram.empty(len(fields), sigma, **options)
    for t in range(fields.shape[1]):
        histogram = histogram.add(fields[:, t])
    return histogram


def test_a_gaussian_field_has_its_kurtosis_tails_and_density():
    sigma = 4.0
    histogram = VorticityHistogram.of(sigma * gaussian(40, 64, 64), sigma)
    n = int(histogram.points)
    assert n == 40 * 64 * 64
    assert float(histogram.kurtosis) == pytest.approx(3, abs=4 * math.sqrt(24 / n))
    assert float(histogram.standard_deviation) == pytest.approx(sigma, rel=4 / math.sqrt(2 * n))
    for q, tail in zip((2, 3, 4), histogram.tail_probability[0].tolist(), strict=True):
        p = 2 * norm.sf(q)
        assert tail == pytest.approx(p, abs=4 * math.sqrt(p / n))
    np.testing.assert_allclose(histogram.density[0], norm.pdf(histogram.centres), atol=0.016)
    assert float(histogram.density.sum() * 0.1) == pytest.approx(1, rel=1e-12)


def test_moments_do_not_mind_a_mean():
    values = 3 + gaussian(1, 50, 50) ** 3
    histogram = VorticityHistogram.of(values, 2.0)
    assert float(histogram.kurtosis) == pytest.approx(kurtosis(values.numpy(), None, fisher=False), rel=1e-9)


def test_accumulating_equals_counting_at_once_with_numpy():
    fields = 3 * gaussian(2, 7, 16, 16)
    histogram = accumulated(fields, 3.0, bins=41, limit=2.0)
    edges = np.linspace(-2, 2, 42)
    edges[0], edges[-1] = -np.inf, np.inf
    for b in range(2):
        counts, _ = np.histogram(fields[b].numpy() / 3, edges)
        np.testing.assert_array_equal(histogram.counts[b], counts)
    whole = VorticityHistogram.of(fields.flatten(0, 1), 3.0, bins=41, limit=2.0)
    for name in ("counts", "exceeded", "points"):
        assert torch.equal(getattr(histogram.pooled(), name), getattr(whole, name))
    torch.testing.assert_close(histogram.pooled().power_sums, whole.power_sums, rtol=1e-13, atol=1e-10)


def test_a_copy_that_is_not_finite_is_left_out_and_touches_no_other():
    fields = gaussian(3, 5, 8, 8)
    alone = accumulated(fields[:1])
    fields[1, 2, 0, 0] = math.nan
    fields[2] = math.inf
    histogram = accumulated(fields)
    assert histogram.skipped.tolist() == [0, 1, 5]
    assert histogram.points.tolist() == [5 * 64, 4 * 64, 0]
    assert torch.equal(histogram.counts[:1], alone.counts)
    assert histogram.counts.sum(1).tolist() == histogram.points.tolist()
    assert torch.isfinite(histogram.kurtosis[:2]).all()


def test_divergences_are_zero_for_equals_and_positive_for_others():
    counts = accumulated(gaussian(6, 4, 16, 16)).counts
    p, q = counts[:3], counts[3:]
    for divergence in (kl, jensen_shannon):
        assert divergence(p, p).tolist() == [0, 0, 0]
        assert (divergence(p, q) > 0).all()
    torch.testing.assert_close(jensen_shannon(p, 3 * p), torch.zeros(3, dtype=torch.float64), atol=1e-15, rtol=0)
    assert float(jensen_shannon(torch.tensor([5, 0]), torch.tensor([0, 9]))) == pytest.approx(math.log(2))
    expected = entropy(p.numpy() + 0.5, q.numpy() + 0.5, axis=1)
    np.testing.assert_allclose(kl(p, q), expected, rtol=1e-12)


def test_kl_of_two_gaussians_is_theirs():
    """KL(N(0, 1) || N(0, s^2)) = log s + 1/(2 s^2) - 1/2."""
    model = VorticityHistogram.of(1.5 * gaussian(60, 64, 64, seed=1), 1.0)
    reference = VorticityHistogram.of(gaussian(60, 64, 64, seed=2), 1.0)
    expected = math.log(1.5) + 1 / 4.5 - 0.5
    assert float(kl(reference.counts, model.counts)) == pytest.approx(expected, rel=0.03)


def test_summary_compares_each_run_with_the_reference():
    reference = VorticityHistogram.of(gaussian(20, 32, 32, seed=1), 1.0)
    model = accumulated(torch.stack((gaussian(20, 32, 32, seed=2), 1.3 * gaussian(20, 32, 32, seed=3))))
    summary = distribution_summary(model, reference)
    assert dict(summary.sizes) == {"start": 2, "omega": 200, "q": 3}
    assert float(summary["kl"][1]) > 10 * float(summary["kl"][0])
    expected = math.log10(norm.sf(3 / 1.3) / norm.sf(3))
    assert float(summary["tail_log_ratio"].sel(start=1, q=3)) == pytest.approx(expected, abs=0.15)
    assert all({"units", "long_name"} <= set(v.attrs) for v in summary.variables.values())
    never = VorticityHistogram.of(torch.zeros(1, 8, 8), 1.0)
    assert tail_log_ratio(never, reference)[0, 0] == -math.inf


def test_quantile_is_numpys_and_its_interval_covers_the_truth():
    covered, truth = 0, norm.ppf(0.9995)
    for seed in range(20):
        fields = 2 * gaussian(2, 20, 16, 16, seed=seed)
        found = extreme_quantile(fields, np.arange(20.0), 2.0, block=2.0, resamples=200, seed=seed)
        assert found.mean == pytest.approx(np.quantile((fields / 2).abs().numpy(), 0.999), rel=1e-12)
        assert found.n == 20
        covered += found.low <= truth <= found.high
    assert covered >= 15


def test_blocks_widen_the_interval_of_a_flow_that_remembers():
    held = gaussian(4, 10, 8, 8).repeat_interleave(10, 1)
    time = np.arange(100) * 0.5
    naive = extreme_quantile(held, time, 1.0, q=0.9, block=0.5)
    blocked = extreme_quantile(held, time, 1.0, q=0.9)
    assert blocked.high - blocked.low > 2 * (naive.high - naive.low)


def test_kernel_density_integrates_to_one_and_the_wide_kernel_smooths():
    fields = 4 * gaussian(2, 32, 32)
    fine, wide = (kernel_density(fields, 4.0, bandwidth=b) for b in ("scott", "columns"))
    for density in (fine, wide):
        assert float(density["density"].integrate("omega")) == pytest.approx(1, abs=1e-3)
    assert wide.attrs["bandwidth"] == pytest.approx(10 * 64**-0.2)
    expected = norm.pdf(0, scale=math.hypot(1, wide.attrs["bandwidth"] / 4))
    assert float(wide["density"].sel(omega=0)) == pytest.approx(expected, rel=0.03)
    assert float(fine["density"].sel(omega=0)) == pytest.approx(norm.pdf(0), rel=0.1)
    assert kernel_density(fields, 4.0, bandwidth=0.5).attrs["bandwidth"] == pytest.approx(0.5)


def test_refusals():
    fields = gaussian(2, 4, 8, 8)
    time = np.arange(4.0)
    histogram = accumulated(fields)
    for call, match in (
        (lambda: VorticityHistogram.empty(2, 0.0), "sigma = 0.0"),
        (lambda: VorticityHistogram.empty(2, 1.0, bins=0), "bins = 0"),
        (lambda: VorticityHistogram.of(fields[0][:0], 1.0), "fields: have shape"),
        (lambda: tail_log_ratio(histogram, accumulated(fields, 2.0)), "must be shared"),
        (lambda: distribution_summary(histogram, histogram), "must be one"),
        (lambda: distribution_summary(VorticityHistogram.empty(1, 1.0), histogram.pooled()), "nothing to describe"),
        (lambda: extreme_quantile(fields, time, 1.0, q=1.0), "q = 1.0"),
        (lambda: extreme_quantile(fields[:1], time, 1.0, block=9.0), "at least 2 are needed"),
        (lambda: extreme_quantile(fields[:, :0], time[:0], 1.0), "vorticity: has shape"),
        (lambda: extreme_quantile(fields * math.nan, time, 1.0), "not finite"),
        (lambda: kernel_density(fields[0], 1.0, bandwidth=-1.0), "bandwidth = -1.0"),
        (lambda: kernel_density(torch.ones(1, 8, 8), 1.0), "standard deviation 0"),
    ):
        with pytest.raises(InputError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)

"""The spectra against their definition, Parseval's identity and symmetries; errors of spectra; refusals."""

import math

import numpy as np
import pytest
import torch

from core.errors import InputError
from simulators.turbulence.diagnostics import (
    VorticityHistogram,
    angle_average,
    angle_averaged,
    check_reference,
    energy_spectrum,
    enstrophy_spectrum,
    log_spectrum_error,
    reference_spectrum,
    snapshot_spectra,
    spectrum_summary,
    tail_ratio,
    within,
    z1,
)
from simulators.turbulence.flow import Flow
from simulators.turbulence.grid import Grid, resample
from simulators.turbulence.snapshots import initial_fields

EXACT = torch.float64


def noise(*shape, seed=0, dtype=EXACT):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=EXACT).to(dtype)


def resolved(batch, n, seed=0):
    """Random vorticity without mean and without Nyquist modes, with a spectrum that falls."""
    grid = Grid(n)
    spectrum = grid.to_spectral(noise(batch, n, n, seed=seed)) * grid.resolved * (grid.k2 > 0) / (1 + grid.k2)
    return grid, spectrum


def by_full_transform(field, kind):
    """Both one-dimensional spectra of one field, from the whole transform; x first."""
    n = field.shape[-1]
    power = np.abs(np.fft.fft2(field)) ** 2
    if kind == "enstrophy":
        power = power / 2
        scale = n**3
    else:
        k = np.fft.fftfreq(n, 1 / n)
        k2 = k[:, None] ** 2 + k[None] ** 2
        power = np.divide(power, n**2 * k2, out=np.zeros_like(power), where=k2 > 0)
        scale = n
    return power.mean(axis=1)[: n // 2] / scale, power.mean(axis=0)[: n // 2] / scale


@pytest.mark.parametrize("n", [8, 32])
@pytest.mark.parametrize(("kind", "spectrum"), [("enstrophy", enstrophy_spectrum), ("energy", energy_spectrum)])
def test_one_dimensional_spectra_are_those_of_the_full_transform(n, kind, spectrum):
    """White noise fills every mode, the mean and the Nyquist wavenumbers included."""
    fields = noise(3, n, n)
    spectra = torch.fft.rfft2(fields)
    for b, field in enumerate(fields.numpy()):
        x, y = by_full_transform(field, kind)
        np.testing.assert_allclose(spectrum(spectra, "x")[b], x, rtol=1e-12)
        np.testing.assert_allclose(spectrum(spectra, "y")[b], y, rtol=1e-12)
        np.testing.assert_allclose(spectrum(spectra)[b], (x + y) / 2, rtol=1e-12)
        np.testing.assert_allclose(spectrum(spectra, "stacked")[b], np.stack((x, y)), rtol=1e-12)


@pytest.mark.parametrize("axis", ["both", "x", "y"])
def test_one_dimensional_spectra_add_up_to_enstrophy_and_twice_the_energy(axis):
    grid, spectrum = resolved(4, 32)
    flow = Flow(grid, spectrum)
    for total, expected in (
        (enstrophy_spectrum(spectrum, axis), flow.enstrophy),
        (energy_spectrum(spectrum, axis), 2 * flow.energy),
    ):
        torch.testing.assert_close(2 * total.sum(-1) - total[:, 0], expected, rtol=1e-12, atol=0)


def test_angle_averaged_spectra_add_up_to_enstrophy_and_energy():
    grid, spectrum = resolved(4, 32)
    spectrum = spectrum * (grid.k2.sqrt() <= 15.5)
    flow = Flow(grid, spectrum)
    torch.testing.assert_close(angle_averaged(spectrum).sum(-1), flow.enstrophy, rtol=1e-12, atol=0)
    torch.testing.assert_close(angle_averaged(spectrum, "energy").sum(-1), flow.energy, rtol=1e-12, atol=0)


def test_angle_average_of_ones_counts_the_modes_of_each_shell():
    grid = Grid(32)
    k = np.arange(-16, 16)
    radius = np.hypot(k[:, None], k[None])
    expected = [((radius > s - 0.5) & (radius <= s + 0.5)).sum() for s in range(16)]
    np.testing.assert_array_equal(angle_average(grid, torch.ones(32, 17)), expected)


def test_one_wave_sits_at_its_wavenumbers():
    """omega = cos(3x) cos(4y) has enstrophy 1/8, at kx = 3, ky = 4, |k| = 5."""
    grid = Grid(16)
    x = grid.x
    spectrum = grid.to_spectral(torch.cos(3 * x)[:, None] * torch.cos(4 * x))
    for axis, k in (("x", 3), ("y", 4)):
        expected = torch.zeros(8, dtype=EXACT)
        expected[k] = 1 / 16
        torch.testing.assert_close(enstrophy_spectrum(spectrum, axis), expected, atol=1e-15, rtol=0)
    assert float(angle_averaged(spectrum)[5]) == pytest.approx(1 / 8, rel=1e-14)
    assert float(angle_averaged(spectrum, "energy")[5]) == pytest.approx(1 / 200, rel=1e-14)


@pytest.mark.parametrize("spectrum", [enstrophy_spectrum, energy_spectrum])
def test_a_quarter_turn_swaps_x_and_y_and_a_shift_changes_nothing(spectrum):
    grid, vorticity_hat = resolved(2, 16)
    field = grid.to_physical(vorticity_hat)
    turned = torch.fft.rfft2(field.rot90(1, (-2, -1)).roll(1, -2))
    shifted = torch.fft.rfft2(field.roll((3, 5), (-2, -1)))
    same = {"rtol": 1e-10, "atol": 1e-30}
    torch.testing.assert_close(spectrum(turned, "stacked"), spectrum(vorticity_hat, "stacked").flip(-2), **same)
    torch.testing.assert_close(spectrum(shifted, "stacked"), spectrum(vorticity_hat, "stacked"), **same)
    torch.testing.assert_close(angle_averaged(turned), angle_averaged(vorticity_hat), **same)


def test_single_precision_agrees_at_the_size_of_a_direct_simulation():
    _, spectrum = resolved(1, 256)
    for function in (enstrophy_spectrum, energy_spectrum, angle_averaged):
        single = function(spectrum.to(torch.complex64))
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), function(spectrum), rtol=1e-5, atol=0)


def test_gradients_pass_also_after_a_first_call_in_inference_mode():
    with torch.inference_mode():
        enstrophy_spectrum(torch.fft.rfft2(noise(1, 10, 10)))
    field = noise(1, 10, 10).requires_grad_()
    enstrophy_spectrum(torch.fft.rfft2(field))[0, 3].backward()
    assert float(field.grad.abs().sum()) > 0


def test_reference_of_the_les_band_is_the_spectrum_of_the_truncated_snapshots():
    grid, spectrum = resolved(3, 64)
    fields = grid.to_physical(spectrum)
    coarse = resample(spectrum, 16)
    for axis, of in (("both", enstrophy_spectrum), ("angle", angle_averaged)):
        torch.testing.assert_close(reference_spectrum(fields, 16, "les", axis), of(coarse).mean(0))
        torch.testing.assert_close(reference_spectrum(fields, 16, "full", axis), of(spectrum).mean(0)[:8])
    assert (reference_spectrum(fields, 16, "les") < reference_spectrum(fields, 16)).all()
    assert snapshot_spectra(fields, 16, axis="stacked", kind="energy").shape == (3, 2, 8)


def test_errors_of_a_spectrum_of_known_ratio():
    reference = torch.logspace(0, -4, 16, dtype=EXACT)
    ratio = torch.full((16,), 2.0, dtype=EXACT)
    # The mean and the last wavenumber do not count.
    ratio[0], ratio[-1], ratio[-2] = 100.0, 100.0, 4.0
    errors = np.log10([2.0] * 13 + [4.0])
    assert float(log_spectrum_error(ratio * reference, reference)) == pytest.approx(np.sqrt((errors**2).mean()))
    assert float(tail_ratio(ratio * reference, reference)) == pytest.approx(4.0)
    assert float(z1(reference, reference)) == pytest.approx(1e12)
    other = reference.clone()
    other[3] += 0.5
    assert float(z1(other, reference)) == pytest.approx(1 / 2.25)


def test_summary_holds_time_means_of_the_window_and_leaves_a_blown_up_run_out_of_the_band():
    spectra = 1 + noise(4, 30, 8).abs()
    spectra[3, 20] = math.nan
    time = np.arange(30) * 0.5
    summary = spectrum_summary(spectra, torch.ones(8, dtype=EXACT), time, start=5.0)
    np.testing.assert_allclose(summary["Z"][:3], spectra[:3, 10:].mean(1), rtol=1e-14)
    assert np.isnan(summary["Z"][3]).all()
    assert np.isnan(summary["log_error"][3])
    assert ((summary["Z_low"] <= summary["Z_mean"]) & (summary["Z_mean"] <= summary["Z_high"])).all()
    assert all({"units", "long_name"} <= set(v.attrs) for v in summary.variables.values())
    alone = spectrum_summary(spectra[:1], torch.ones(8), time)
    assert np.isnan(alone["Z_low"]).all()
    assert np.isfinite(alone["Z_mean"]).all()


def test_refusals():
    fields, one = noise(2, 16, 16), torch.ones(8)
    hat = torch.fft.rfft2(fields)
    for call, match in (
        (lambda: enstrophy_spectrum(hat, "z"), "axis = 'z'"),
        (lambda: angle_averaged(hat, "mass"), "kind = 'mass'"),
        (lambda: snapshot_spectra(fields, 8, "half"), "band = 'half'"),
        (lambda: snapshot_spectra(fields, 32), "n_les = 32"),
        (lambda: snapshot_spectra(fields, 9), "n_les = 9"),
        (lambda: snapshot_spectra(fields[:0], 8), "fields: have shape"),
        (lambda: spectrum_summary(torch.ones(2, 5, 8), one, np.arange(5), start=7.0), "time window"),
        (lambda: spectrum_summary(torch.ones(2, 5, 8), one, np.arange(4)), "shapes"),
        (lambda: within([], 0.0), "record is empty"),
        (lambda: check_reference(one, 32), "has 8 wavenumbers, the grid needs n_les/2 = 16"),
        (lambda: check_reference(-one, 16), "is -1 at k = 0"),
        (lambda: check_reference(one * math.nan, 16), "finite"),
        (lambda: check_reference(one, 16, enstrophy=100.0), "factor 2"),
    ):
        with pytest.raises(InputError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_reference_of_the_right_normalisation_passes():
    grid, spectrum = resolved(1, 32)
    enstrophy = float(Flow(grid, spectrum).enstrophy)
    checked = check_reference(enstrophy_spectrum(spectrum)[0], 16, enstrophy)
    assert checked.shape == (8,)
    assert check_reference(angle_averaged(spectrum)[0], 16).shape == (8,)


@pytest.fixture(scope="module")
def shipped():
    """The 20 snapshots that come with the package, their Gaussian filter removed."""
    return torch.from_numpy(initial_fields(range(1, 21), 128))


def test_what_the_band_of_a_coarse_grid_holds_of_the_shipped_snapshots(shipped):
    full, les = (reference_spectrum(shipped, 32, band) for band in ("full", "les"))
    ratio = les / full
    np.testing.assert_allclose(ratio[[1, 4, 8, 12, 15]], [0.98, 0.98, 0.87, 0.79, 0.69], atol=0.01)
    assert float(log_spectrum_error(les, full)) == pytest.approx(0.076, abs=1e-3)


def test_distribution_of_the_shipped_snapshots(shipped):
    coarse = Grid(32).to_physical(resample(Grid(128).to_spectral(shipped), 32))
    sigma = float(coarse[:10].std(correction=0))
    assert sigma == pytest.approx(4.64, abs=0.01)
    first = VorticityHistogram.of(coarse[:10], sigma)
    assert float(first.tail_probability[0, 1]) == pytest.approx(0.0112, abs=1e-4)
    assert float(VorticityHistogram.of(coarse, sigma).kurtosis) == pytest.approx(4.65, abs=0.01)

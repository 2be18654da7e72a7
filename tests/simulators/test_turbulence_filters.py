import math
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from core.errors import InputError
from simulators.turbulence.filters import Filter, coarse_grain, defilter, refined
from simulators.turbulence.flow import Flow, stress_curl
from simulators.turbulence.grid import Grid, resample
from simulators.turbulence.subgrid import subgrid

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


def wave(grid, kx, ky):
    return torch.cos(kx * grid.x[:, None] + ky * grid.x[None, :]).unsqueeze(0)


def random_spectrum(n, seed=0):
    grid = Grid(n)
    noise = torch.randn(2, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return grid, grid.to_spectral(noise) * grid.resolved / (1 + grid.k2)


@pytest.mark.parametrize(("kx", "ky"), [(3, 0), (0, 5), (4, -3)])
def test_filters_multiply_a_wave_by_their_transfer_function(kx, ky):
    grid, width = Grid(64), 0.9
    field = wave(grid, kx, ky)

    def sinc(z):
        return math.sin(z) / z if z else 1.0

    for kind, gain in (
        ("gaussian", math.exp(-(kx**2 + ky**2) * width**2 / 24)),
        ("box", sinc(kx * width / 2) * sinc(ky * width / 2)),
        ("sharp", 1.0),  # 2 pi/0.9 = 6.98
    ):
        got = grid.to_physical(grid.to_spectral(field) * Filter(kind, width).transfer(grid))
        close(got, gain * field)


def test_the_box_filter_is_a_mean_over_a_square():
    grid, points = Grid(64), 8
    spectrum = grid.to_spectral(wave(grid, 4, -3) + 0.5 * wave(grid, 1, 2))
    shifts = ((torch.arange(400, dtype=torch.float64) + 0.5) / 400 - 0.5) * points * grid.spacing
    along_x = torch.exp(1j * grid.kx.squeeze() * shifts[:, None]).mean(0)
    along_y = torch.exp(1j * grid.ky.squeeze() * shifts[:, None]).mean(0)
    mean = spectrum * along_x[:, None] * along_y
    torch.testing.assert_close(mean, spectrum * Filter("box", points * grid.spacing).transfer(grid), rtol=0, atol=0.05)


@pytest.mark.parametrize("n", [16, 24, 36, 44])
def test_the_sharp_filter_of_a_grid_keeps_its_resolved_modes(n):
    fine, coarse = Grid(96), Grid(n)
    kept = Filter.of_grid(n, "sharp").transfer(fine)
    assert torch.equal(kept.bool(), (fine.kx.abs() < n / 2) & (fine.ky < n / 2))
    assert torch.equal(Filter.of_grid(n, "sharp").transfer(coarse).bool(), coarse.resolved)


def test_coarse_graining_keeps_amplitudes_and_says_its_width():
    grid = Grid(64)
    spectrum = grid.to_spectral(wave(grid, 3, 2) + wave(grid, 9, 0))
    for kind in ("gaussian", "box", "sharp"):
        coarse = coarse_grain(grid, spectrum, 16, kind)
        assert coarse.filter == Filter(kind, 2 * (2 * math.pi / 16))
        gain = float(coarse.filter.transfer(grid)[3, 2])
        close(coarse.flow.vorticity, gain * wave(coarse.flow.grid, 3, 2))  # 9 is beyond the grid
    assert coarse_grain(grid, spectrum, 16, width=0.5).filter.width == 0.5


def test_filtering_is_undone():
    grid, spectrum = random_spectrum(48)
    width = 4 * math.pi / 48
    filtered = coarse_grain(grid, spectrum, 48, width=width).flow.vorticity_hat
    close(defilter(filtered, width), spectrum)
    close(defilter(filtered + ~grid.resolved, width), spectrum)  # Nyquist modes are dropped


def test_the_shared_files_are_one_flow_filtered_for_each_grid():
    root = Path(os.environ.get("SZILARD_DATA", Path(__file__).parents[2].parent / "shared/data")) / "turbulence" / "ICs"
    if not root.is_dir():
        pytest.skip(f"no {root}: set SZILARD_DATA")
    from scipy.io import loadmat

    fields = {n: torch.from_numpy(loadmat(root / f"NX{n}" / "1.mat")["Omega"]) for n in (32, 256)}
    grid = Grid(256)
    resolved = defilter(grid.to_spectral(fields[256]), 4 * math.pi / 256)
    got = coarse_grain(grid, resolved, 32).flow.vorticity
    kept = Grid(32).to_physical(Grid(32).to_spectral(fields[32]) * Grid(32).resolved)
    assert (got - kept).std() < 0.01 * kept.std()


def test_a_refined_flow_is_the_same_and_its_products_have_no_aliases():
    for n in (16, 18):
        grid, spectrum = random_spectrum(n)
        fine = refined(Flow(grid, spectrum))
        assert fine.grid.n >= 1.5 * n
        close(resample(fine.vorticity_hat, n), spectrum)
        finest = Flow(Grid(4 * n), resample(spectrum, 4 * n))
        squares = (f.grid.to_spectral(f.vorticity**2) for f in (fine, finest))
        close(*(resample(square, n) for square in squares))


def test_filters_refuse():
    grid, spectrum = random_spectrum(16)
    with pytest.raises(InputError, match="filter = 'top': must be one of gaussian, box, sharp"):
        Filter("top", 1.0)
    with pytest.raises(InputError, match="width = 0: must be above 0"):
        Filter("box", 0)
    with pytest.raises(InputError, match="width = nan"):
        defilter(spectrum, math.nan)
    with pytest.raises(InputError, match="n_les = 32: must be at most the 16 points"):
        coarse_grain(grid, spectrum, 32)
    with pytest.raises(InputError, match="n = 9: must be an even number"):
        coarse_grain(grid, spectrum, 9)


# What the coarse grid lacks


@pytest.mark.parametrize("kind", ["gaussian", "box", "sharp"])
@pytest.mark.parametrize("second", [(2, 5), (9, -4)])
def test_the_term_of_two_waves(kind, second):
    # u.grad omega of a cos(k.x) + b cos(l.x) is a b (ky lx - kx ly)(1/k^2 - 1/l^2) sin(k.x) sin(l.x).
    grid, n = Grid(64), 24
    (kx, ky), (lx, ly), a, b = (3, 1), second, 2.0, -1.5
    truth = subgrid(grid, grid.to_spectral(a * wave(grid, kx, ky) + b * wave(grid, lx, ly)), n, kind)
    les, gain = truth.flow.grid, truth.filter.transfer(grid)
    strength = a * b * (ky * lx - kx * ly) * (1 / (kx**2 + ky**2) - 1 / (lx**2 + ly**2)) / 2
    both = gain[kx, ky] * gain[lx, abs(ly)]
    expected = 0
    for sign in (1, -1):
        px, py = kx + sign * lx, ky + sign * ly
        if max(abs(px), abs(py)) < n / 2:
            expected = expected - sign * strength * (gain[px, abs(py)] - both) * wave(les, px, py)
    close(truth.pi, expected)
    assert kind == "sharp" or truth.pi.abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["gaussian", "sharp"])
def test_the_term_is_what_the_coarse_equation_lacks_and_the_curl_of_its_stress(kind):
    grid, spectrum = random_spectrum(64)
    truth = subgrid(grid, spectrum, 24, kind)
    coarse, gain = truth.flow, truth.filter.transfer(truth.flow.grid)

    def advection(vorticity_hat):
        fine = Flow(Grid(160), resample(vorticity_hat, 160))  # far from any alias
        return resample(fine.grid.to_spectral(fine.advection), 24)

    close(truth.pi_hat, gain * advection(spectrum) - advection(coarse.vorticity_hat))
    close(truth.pi_hat, stress_curl(coarse.grid, *truth.stress))
    cut_last = subgrid(grid, spectrum, 24, kind, cut_last=True)
    fine_gain = truth.filter.transfer(grid)
    close(cut_last.pi_hat, gain * advection(spectrum) - advection(fine_gain * spectrum))
    close(coarse.vorticity_hat, cut_last.flow.vorticity_hat)


def test_a_gaussian_stress_has_a_positive_trace():
    grid, spectrum = random_spectrum(64)
    tau11, tau12, tau22 = subgrid(grid, spectrum, 64, width=0.3).stress
    assert (tau11 + tau22).mean() > 0
    assert (tau11 * tau22 - tau12**2 > 0).double().mean() > 0.99  # a covariance, but for the modes not kept

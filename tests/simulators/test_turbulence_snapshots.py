"""The shipped snapshots against the source's files, and the filter that is taken off them."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

from core.errors import InputError
from simulators.turbulence.snapshots import FILTER_WIDTH, initial_fields, snapshots


def gaussian(n, width):
    k = np.fft.fftfreq(n, 1 / n)
    return np.exp(-(k[:, None] ** 2 + np.arange(n // 2 + 1) ** 2) * width**2 / 24)


def filtered(field, width):
    n = field.shape[-1]
    return np.fft.irfft2(np.fft.rfft2(field) * gaussian(n, width), s=(n, n))


def test_all_snapshots_are_there_in_order():
    fields = snapshots()
    assert (fields.shape, fields.dtype) == ((20, 128, 128), np.float32)
    assert np.isfinite(fields).all()
    assert np.array_equal(snapshots([20, 3]), fields[[19, 2]])
    assert abs(fields.mean((1, 2))).max() < 1e-6
    # The forcing -4 cos(4 x) holds up a mean flow along it.
    modes = np.fft.rfft2(fields).mean(0) / 128**2
    assert modes[4, 0].real == pytest.approx(-0.83, abs=0.01)
    assert abs(modes[0, 4]) < 0.1


def test_truncation_to_the_full_grid_only_takes_the_filter_off():
    fields = snapshots([1, 2]).astype(np.float64)
    np.testing.assert_allclose(filtered(initial_fields([1, 2], 128), FILTER_WIDTH), fields, atol=1e-5)


@pytest.mark.parametrize("n", [8, 32, 98])
def test_truncation_keeps_amplitudes_and_drops_the_nyquist_modes(n):
    fine, coarse = (np.fft.rfft2(initial_fields([4], size)[0]) / size**2 for size in (128, n))
    inside = range(-(n // 2) + 1, n // 2)
    np.testing.assert_allclose(coarse[inside, : n // 2], fine[inside, : n // 2], atol=1e-12)
    assert abs(coarse[n // 2]).max() < 1e-12
    assert abs(coarse[:, n // 2]).max() < 1e-12


def test_single_precision_is_the_rounded_double():
    double = initial_fields([5], 32)
    assert double.dtype == np.float64
    single = initial_fields([5], 32, np.float32)
    assert np.array_equal(single, double.astype(np.float32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: snapshots([0]), r"files = \[0\]: must be snapshots numbered from 1 to 20"),
        (lambda: snapshots([3, 21]), r"files = \[21\]"),
        (lambda: snapshots([]), r"files = \[\]"),
        (lambda: initial_fields([1], 130), "n = 130: must be an even number of points from 8 to 128"),
        (lambda: initial_fields([1], 6), "n = 6"),
        (lambda: initial_fields([1], 33), "n = 33"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.fixture(scope="module")
def source():
    """The source's folder of files at all resolutions."""
    folder = Path(os.environ.get("SZILARD_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
    root = folder / "turbulence" / "ICs"
    if not root.is_dir():
        pytest.skip(f"{root} is not there: set SZILARD_DATA")
    return lambda n, number: loadmat(root / f"NX{n}" / f"{number}.mat")["Omega"]


def test_the_snapshots_are_the_files_of_the_source(source):
    for number in range(1, 21):
        assert np.array_equal(snapshots([number])[0], source(128, number).astype(np.float32))


@pytest.mark.parametrize("n", [32, 64])
def test_filtering_again_gives_the_coarser_files_of_the_source(source, n):
    for number in (1, 7, 20):
        field = filtered(initial_fields([number], n)[0], 2 * (2 * np.pi / n))
        np.testing.assert_allclose(field, source(n, number), atol=1e-6)

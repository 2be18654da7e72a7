"""Scans from files: what may be asked for, what stays unseen, how numbers are scaled, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.mri.ads import ADS, Sampling
from apps.mri.problem import FAR_SCALE
from apps.mri.scan import CALIBRATION_LINES, open_scan
from core.errors import InputError
from simulators.mri.coils import coil_maps, estimate_maps
from simulators.mri.operators import KSpaceLines, MulticoilLines, Pixels, fft2c, ifft2c, to_channels, to_complex
from simulators.mri.quality import magnitude
from simulators.mri.readers import fit_kspace, read
from tests.apps.mri_cases import mixture, seeded

SIZE = 32
PRIOR = mixture((2, SIZE, SIZE))
REAL = mixture((1, 8, 8))
SUBJECT = PRIOR.draw(1, seeded(5))
"""(1, 2, 32, 32) one image that the prior knows."""
SOME = (3, 9, 14, 15, 16, 17, 20, 28)
SETTINGS = Sampling(steps=20, particles=4, window=(0.02, 0.6), hard_consistency=True)


def kspace_of(image=SUBJECT, size=None):
    """(H, W) complex, on a larger or smaller grid if a size is given."""
    k = fft2c(to_complex(image))[0]
    return (k if size is None else fit_kspace(k, size)).numpy()


def only(kspace, lines=SOME):
    kept = np.zeros_like(kspace)
    kept[..., list(lines)] = kspace[..., list(lines)]
    return kept


@pytest.fixture
def saved(tmp_path):
    """Write an array, or arrays by name, and say where."""

    def write(array=None, **arrays):
        path = tmp_path / f"data.{'npz' if arrays else 'npy'}"
        np.savez(path, **arrays) if arrays else np.save(path, array)
        return path

    return write


def acquired(scan, budget=8, settings=SETTINGS, prior=PRIOR):
    return ADS(prior, scan.operator, settings).run(scan.scanner, scan.initial, budget, [seeded()])


def everything(scan):
    """All samples (1, A, R) that the scanner has."""
    scan.scanner.acquire(scan.scanner.available[0].nonzero().T)
    return scan.scanner.measured()[0]


# ---- what is measured


def test_image_and_kspace_are_the_same_scan(saved):
    scans = [
        open_scan(saved(to_complex(SUBJECT).numpy()), PRIOR, kind="image"),
        open_scan(saved(kspace_of()), PRIOR, kind="kspace"),
    ]
    for scan in scans:
        assert scan.operator == KSpaceLines(PRIOR.shape)
        assert scan.initial[0].nonzero().flatten().tolist() == [SIZE // 2]
        assert scan.scale == pytest.approx(scans[0].scale, rel=1e-4)
        torch.testing.assert_close(scan.target, scan.scale * SUBJECT, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(everything(scan), scan.operator.forward(scan.scale * SUBJECT), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(24, 48), (33, 31), (64, 40)])
def test_kspace_goes_to_the_priors_grid_with_dc_at_its_centre(saved, size):
    k = kspace_of(size=size)
    scan = open_scan(saved(k), PRIOR, kind="kspace", scale=1.0)
    wanted = fit_kspace(torch.from_numpy(k), (SIZE, SIZE))
    found = scan.operator.samples(everything(scan))[0].T  # (H, W)
    torch.testing.assert_close(found[:, scan.scanner.available[0]], wanted[:, scan.scanner.available[0]])
    assert found[SIZE // 2, SIZE // 2].item() == complex(k[size[0] // 2, size[1] // 2])
    # Lines that the file lacks, because it is narrower, cannot be acquired.
    assert int(scan.scanner.available.sum()) == min(size[1], SIZE)


def test_real_images_of_a_real_prior_are_scanned_pixel_by_pixel_in_their_own_scale(saved):
    image = REAL.draw(1, seeded(3))
    scan = open_scan(saved(image[0].numpy()), REAL, kind="image")
    assert scan.operator == Pixels(REAL.shape)
    assert scan.scale == 1
    assert not scan.initial.any()
    torch.testing.assert_close(everything(scan)[0, :, 0], image.flatten())


def test_the_slice_that_is_asked_for_is_scanned(saved):
    slices = PRIOR.draw(3, seeded(8))
    stacked = fft2c(to_complex(slices))[:, None].numpy()
    scan = open_scan(saved(stacked), PRIOR, kind="kspace", number=2, scale=1.0)
    torch.testing.assert_close(scan.target, slices[2:], atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match=r"slice 3, must be between 0 and 2$"):
        open_scan(saved(stacked), PRIOR, kind="kspace", number=3)


@pytest.mark.parametrize(("initial", "lines"), [(None, [16]), (0, []), (1, [16]), (4, [14, 15, 16, 17])])
@pytest.mark.parametrize("kind", ["image", "kspace"])
def test_the_initial_lines_are_the_central_ones_and_may_be_none(saved, kind, initial, lines):
    array = to_complex(SUBJECT).numpy() if kind == "image" else kspace_of()
    scan = open_scan(saved(array), PRIOR, kind=kind, initial=initial)
    assert scan.initial[0].nonzero().flatten().tolist() == lines


# ---- scale


@pytest.mark.parametrize("factor", [1e-6, 1e4])
def test_the_unit_of_the_file_does_not_matter(saved, factor):
    runs = [acquired(open_scan(saved(f * kspace_of()), PRIOR, kind="kspace")) for f in (1, factor)]
    assert torch.equal(runs[0].order, runs[1].order)
    torch.testing.assert_close(runs[0].particles, runs[1].particles, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("factor", "warned"), [(1, False), (100, False), (1.1 * FAR_SCALE, True), (1e-4, True)])
def test_a_scale_far_from_the_priors_is_warned_of_with_both_norms(saved, factor, warned):
    right = PRIOR.training_norm / float(SUBJECT.norm())
    for kind, array in (("kspace", kspace_of()), ("image", to_complex(SUBJECT).numpy())):
        scan = open_scan(saved(array), PRIOR, kind=kind, scale=factor * right)
        assert bool(scan.warning) == warned
        if warned:
            assert f"norm {factor * PRIOR.training_norm:.3g}" in scan.warning
            assert f"training images {PRIOR.training_norm:.3g}" in scan.warning
    assert not open_scan(saved(kspace_of()), PRIOR, kind="kspace").warning


def test_nothing_is_said_about_a_prior_whose_norm_is_not_known(saved):
    prior = mixture((2, SIZE, SIZE))
    prior.training_norm = None
    assert not open_scan(saved(kspace_of()), prior, kind="kspace", scale=1e9).warning


def test_the_scale_follows_the_data_and_only_their_initial_lines(saved):
    k = kspace_of()
    changed = k.copy()
    changed[..., : SIZE // 2] *= 3
    scales = [open_scan(saved(x), PRIOR, kind="kspace").scale for x in (k, 1e-5 * k, changed)]
    assert scales[1] == pytest.approx(1e5 * scales[0], rel=1e-3)
    assert scales[2] == scales[0]
    line = PRIOR.draw(2000, torch.Generator().manual_seed(1))
    usual = KSpaceLines(PRIOR.shape).forward(line)[:, SIZE // 2].square().sum(1).mean().sqrt()
    mine = KSpaceLines(PRIOR.shape).forward(scales[0] * SUBJECT)[:, SIZE // 2].norm()
    assert float(mine) == pytest.approx(float(usual), rel=0.1)
    assert open_scan(saved(k), PRIOR, kind="kspace", initial=0).scale == 1


# ---- what was not acquired


@pytest.mark.parametrize("scale", [1.0, None])
def test_what_is_not_acquired_has_no_influence(saved, scale):
    def scan(kspace):
        return acquired(open_scan(saved(kspace), PRIOR, kind="kspace", scale=scale))

    first = scan(kspace_of())
    changed = kspace_of()
    changed[:, ~first.mask[0].numpy()] = 7j
    second = scan(changed)
    assert torch.equal(first.order, second.order)
    assert torch.equal(first.particles, second.particles)
    assert torch.equal(first.scores, second.scores)
    changed = kspace_of()
    changed[:, first.order[0, 0]] = 7j  # of those that were acquired, one is enough
    assert not torch.equal(first.particles, scan(changed).particles)


@pytest.mark.parametrize("how", ["zeros", "mask"])
def test_only_recorded_lines_of_an_undersampled_file_are_chosen_and_there_is_no_truth(saved, how):
    if how == "zeros":
        path = saved(only(kspace_of()))
    else:
        mask = np.isin(np.arange(SIZE), SOME)
        path = saved(kspace=only(kspace_of()), mask=mask)
    scan = open_scan(path, PRIOR, kind="kspace")
    assert scan.target is None
    assert scan.scanner.available[0].nonzero().flatten().tolist() == list(SOME)
    found = acquired(scan, budget=len(SOME))
    assert found.mask[0].nonzero().flatten().tolist() == list(SOME)
    with pytest.raises(InputError, match=f"budget: {len(SOME) + 1}"):
        acquired(open_scan(path, PRIOR, kind="kspace"), budget=len(SOME) + 1)


def test_the_final_image_has_the_acquired_samples(saved):
    scan = open_scan(saved(kspace_of()), PRIOR, kind="kspace")
    found = acquired(scan)
    mean = fft2c(to_complex(found.particles[0])).mean(0)
    wanted = scan.scale * torch.from_numpy(kspace_of())
    taken = found.mask[0]
    torch.testing.assert_close(mean[:, taken], wanted[:, taken], atol=1e-4, rtol=1e-5)
    assert (mean - wanted)[:, ~taken].abs().max() > 0.01


# ---- several coils


def coils_of(image=SUBJECT, coils=4, size=SIZE):
    return fft2c(coil_maps(coils, size, size) * to_complex(image)).numpy()


@pytest.mark.parametrize("scale", [1.0, None])
def test_coil_maps_come_from_the_calibration_lines_which_count(saved, scale):
    scan = open_scan(saved(coils_of()), PRIOR, kind="kspace", scale=scale)
    assert isinstance(scan.operator, MulticoilLines)
    assert scan.operator.coils == 4
    assert scan.initial[0].nonzero().flatten().tolist() == list(range(8, 24))
    truth = scan.scale * magnitude(SUBJECT)[0]
    torch.testing.assert_close(scan.target[0, 0], truth, atol=1e-4, rtol=1e-4)  # the coils' maps have unit sum
    first = acquired(scan, 20)
    assert int(first.mask.sum()) == 20
    assert bool(first.mask[0, 8:24].all())
    changed = coils_of()
    changed[..., ~first.mask[0].numpy()] = 0.1j
    again = open_scan(saved(changed), PRIOR, kind="kspace", scale=scale)
    assert torch.equal(scan.operator.maps, again.operator.maps)
    assert again.scale == scan.scale
    second = acquired(again, 20)
    assert torch.equal(first.order, second.order)
    assert torch.equal(first.particles, second.particles)


def test_the_final_image_of_several_coils_explains_the_acquired_samples_as_well_as_the_maps_can(saved):
    """What is missed is orthogonal to all images: the normal equations of least squares."""
    scan = open_scan(saved(coils_of()), PRIOR, kind="kspace")

    def gradient(consistent):
        found = acquired(scan, 24, SETTINGS.model_copy(update={"hard_consistency": consistent}))
        predicted = scan.operator.forward(found.particles.mean(1))
        missed = torch.where(found.mask[..., None], found.samples - predicted, 0)
        return float(scan.operator.adjoint(missed).norm())

    assert gradient(True) < 1e-2 * gradient(False)


def test_fewer_calibration_lines_than_maps_need_are_refused(saved):
    path = saved(coils_of())
    assert int(open_scan(path, PRIOR, kind="kspace", initial=20).initial.sum()) == 20
    with pytest.raises(InputError, match=f"initial: 4, must be between {CALIBRATION_LINES} and {SIZE}"):
        open_scan(path, PRIOR, kind="kspace", initial=4)
    with pytest.raises(InputError, match=r"of the 16 central lines 10 were not recorded$"):
        open_scan(saved(only(coils_of())), PRIOR, kind="kspace")


# ---- refusals


def broken(value):
    array = kspace_of()
    array[3, 4] = value
    return array


def points():
    return kspace_of() * (np.random.default_rng(0).random((SIZE, SIZE)) < 0.5)


def blank(array):
    return np.concatenate((np.zeros_like(array), array))


REFUSALS = {
    "no such slice": ({"array": kspace_of(), "number": 1}, "slice 1, must be between 0 and 0"),
    "NaN": ({"array": broken(np.nan)}, "kspace: NaN or infinite samples in slice 0"),
    "infinite": ({"array": broken(np.inf)}, "kspace: NaN or infinite samples in slice 0"),
    "zeros": ({"array": np.zeros((SIZE, SIZE), np.complex64)}, "all samples are zero"),
    "blank slice": ({"array": blank(kspace_of()[None, None])}, "slice 0 holds nothing but zeros"),
    "blank image": ({"array": blank(to_complex(SUBJECT).numpy()), "kind": "image"}, "slice 0 holds nothing but zeros"),
    "blank real image": (
        {"array": blank(np.ones((1, 8, 8))), "kind": "image", "prior": REAL},
        "slice 0 holds nothing but zeros",
    ),
    "real k-space": ({"array": np.ones((SIZE, SIZE))}, "float64, must be complex"),
    "points": ({"array": points()}, "points, not lines, were left out"),
    "real prior": ({"array": kspace_of(), "prior": REAL}, "k-space is complex, but the prior is of real images"),
    "complex image": (
        {"array": to_complex(SUBJECT).numpy(), "kind": "image", "prior": REAL},
        "complex images, but the prior is of real ones",
    ),
    "other shape": (
        {"array": np.ones((9, 8)), "kind": "image", "prior": REAL},
        "images of shape (1, 9, 8), but the prior is of real ones of shape (1, 8, 8), which are scanned pixel by pixel",
    ),
    "no kind": ({"array": kspace_of(), "kind": None}, "kind must be image or kspace"),
    "scale 0": ({"array": kspace_of(), "scale": 0.0}, "scale: 0.0, must be greater than 0 and finite"),
    "scale NaN": ({"array": kspace_of(), "scale": float("nan")}, "scale: nan, must be greater than 0"),
    "negative scale": ({"array": kspace_of(), "scale": -1.0}, "scale: -1.0, must be greater than 0"),
    "too many initial": ({"array": kspace_of(), "initial": 33}, "initial: 33, must be between 0 and 32"),
    "initial pixels": (
        {"array": np.ones((8, 8)), "kind": "image", "prior": REAL, "initial": 1},
        "initial: 1, must be between 0 and 0: pixels have no centre",
    ),
    "centre absent": ({"array": only(kspace_of(), (3, 9, 20))}, "of the 1 central lines 1 were not recorded"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_file_or_the_option_in_one_line(saved, name):
    arguments, message = REFUSALS[name]
    arguments = {"kind": "kspace", "prior": PRIOR} | arguments
    path = saved(arguments.pop("array"))
    with pytest.raises(InputError) as caught:
        open_scan(path, arguments.pop("prior"), **arguments)
    told = str(caught.value)
    assert message in told
    assert "\n" not in told
    assert told.startswith((str(path), "scale", "initial"))


def test_a_line_may_lack_few_of_its_samples(saved):
    """An exact zero in the noise, or an asymmetric echo that is empty in all lines."""
    array = kspace_of()
    array[:3] = 0
    array[20, 5] = 0
    scan = open_scan(saved(array), PRIOR, kind="kspace")
    assert bool(scan.scanner.available.all())
    assert scan.target is not None


# ---- a real slice


@pytest.fixture
def brain():
    """One real slice of eight coils, undersampled point by point around a full calibration block."""
    folder = Path(os.environ.get("SZILARD_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
    path = folder / "mri" / "brain_8ch_poisson_ksp.npy"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    return path


def test_a_real_slice_of_sampled_points_has_no_lines_to_acquire(brain):
    with pytest.raises(InputError, match=r"points, not lines, were left out, and a line cannot be acquired from it$"):
        open_scan(brain, PRIOR, kind="kspace")


def test_maps_of_a_real_slice_are_smooth_and_normalised_inside_the_head(brain):
    found = read(brain, "kspace")
    block = fit_kspace(found.kspace, (24, 24))
    assert bool((block != 0).any(1).all())  # the calibration block has no holes
    height, width = found.size
    full = fit_kspace(block, (height, width))
    lines = ((torch.arange(width) - width // 2) >= -12) & ((torch.arange(width) - width // 2) < 12)
    maps = estimate_maps(full, lines)[0]
    total = maps.abs().square().sum(0)
    image = ifft2c(full)[0].abs().square().sum(0).sqrt()
    head = image > 0.2 * image.max()
    assert head.float().mean() > 0.5
    torch.testing.assert_close(total[head], torch.ones_like(total[head]), atol=1e-5, rtol=0)
    assert bool(((total - 1).abs().lt(1e-5) | (total == 0)).all())
    # The block resolves the image in 24 cells: a map changes little from one pixel of 180 to the next.
    inside = head[:, 1:] & head[:, :-1]
    steps = (maps[..., 1:] - maps[..., :-1]).abs().square().sum(0).sqrt()[inside]
    assert steps.median() < 0.05
    assert steps.max() < 0.2
    # They explain the coils that they were taken from.
    low = ifft2c(full)[0]
    combined = (maps.conj() * low).sum(0)
    missed = (maps * combined - low)[:, head]
    assert missed.norm() / low[:, head].norm() < 0.1


def test_channels_and_complex_images_are_the_same(saved):
    """Two real channels in a file are the real and the imaginary part."""
    scans = [open_scan(saved(array), PRIOR, kind="image") for array in (SUBJECT.numpy(), to_complex(SUBJECT).numpy())]
    torch.testing.assert_close(scans[0].target, scans[1].target)
    torch.testing.assert_close(to_channels(to_complex(scans[0].target)), scans[0].target)

"""Image worlds: a subject is the same in every batch, ranges, and what each world is for."""

import os
import sys
from pathlib import Path

import pytest
import torch

from core.errors import InputError
from simulators.mri.adaptivity import Adaptivity
from simulators.mri.digits import Digits
from simulators.mri.knee import Knee
from simulators.mri.operators import KSpaceLines, fft2c, ifft2c, to_complex
from simulators.mri.phantom2d import Phantom2D
from simulators.mri.phase import with_phase


def worlds():
    pytest.importorskip("nibabel")
    pytest.importorskip("nilearn")
    from simulators.mri.atlas import Atlas

    return [Atlas(24), Phantom2D(33), Knee(32), Adaptivity()]


@pytest.fixture(scope="module", params=range(4), ids=["Atlas", "Phantom2D", "Knee", "Adaptivity"])
def world(request):
    return worlds()[request.param]


def line_energy(images):
    return KSpaceLines(tuple(images.shape[1:])).forward(images).square().sum(-1)


def test_a_subject_is_the_same_in_every_batch(world):
    whole = world.sample(70, seed=4)
    assert whole.shape == (70, *world.shape)
    assert whole.dtype == torch.float32
    for first, count in ((0, 1), (3, 5), (60, 10), (69, 1)):
        assert torch.equal(world.sample(count, seed=4, first=first), whole[first : first + count])
    assert not torch.equal(world.sample(1, seed=5), whole[:1])
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 70


def test_images_lie_in_their_range(world):
    images = world.sample(40, seed=0)
    assert torch.isfinite(images).all()
    magnitude = images.norm(dim=1).amax((1, 2))
    assert magnitude.max() <= (1.1 if isinstance(world, Adaptivity) else 1 + 1e-6)
    assert magnitude.min() > 0.2


def test_bad_calls_are_refused(world):
    with pytest.raises(InputError, match="count = 0"):
        world.sample(0, seed=1)
    with pytest.raises(InputError, match="seed = -1"):
        world.sample(1, seed=-1)


def test_impossible_worlds_are_refused(tmp_path):
    from simulators.mri.atlas import Atlas

    for make in (lambda: Atlas(4), lambda: Phantom2D(2), lambda: Phantom2D(32, 0), lambda: Knee(8)):
        with pytest.raises(InputError, match=r"size = \d+"):
            make()
    with pytest.raises(InputError, match="under 16 cycles"):
        Adaptivity(classes=14)
    pytest.importorskip("nibabel")
    with pytest.raises(InputError, match=r"mni_icbm152_t1.*no such file"):
        Atlas(folder=tmp_path).sample(1, seed=0)


def test_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    train, test = Digits().train(), Digits().test()
    assert (len(train), len(test)) == (1500, 297)
    assert tuple(train.shape[1:]) == tuple(test.shape[1:]) == Digits.shape
    ours = torch.cat((train, test)).flatten(1)
    assert (ours.min(), ours.max()) == (-1, 1)
    theirs = torch.as_tensor(datasets.load_digits().data).float() / 8 - 1
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))
    train.zero_()
    assert Digits().train().abs().max() > 0


def test_atlas_slices_are_peaked_at_one_and_phase_is_smooth():
    images = worlds()[0].sample(200, seed=2)
    assert torch.allclose(images.norm(dim=1).amax((1, 2)), torch.ones(200))
    z = to_complex(images)
    inside = z.abs() > 0.01  # a negative magnitude would jump by pi where it begins
    for axis in (1, 2):
        size = z.shape[axis] - 1
        a, b = z.narrow(axis, 0, size), z.narrow(axis, 1, size)
        step = (a.conj() * b).angle().abs()[inside.narrow(axis, 0, size) & inside.narrow(axis, 1, size)]
        assert 0 < step.max() < 0.4  # radians from pixel to pixel: the field is quadratic in [-1, 1]
    assert z.imag.abs().amax((1, 2)).min() > 1e-3


def test_atlas_reads_the_shared_files_without_importing_nilearn():
    from simulators.mri.atlas import Atlas

    data = Path(os.environ.get("SZILARD_DATA", Path(__file__).parents[2].parent / "shared/data")) / "mri"
    if not data.is_dir():
        pytest.skip(f"{data}: the ICBM templates are not here")
    pytest.importorskip("nilearn", exc_type=ImportError)
    before = set(sys.modules)
    assert torch.equal(Atlas(24, folder=data).sample(2, seed=3), Atlas(24).sample(2, seed=3))
    assert not {name for name in set(sys.modules) - before if name.startswith("nilearn")}


def test_phase_changes_no_magnitude_and_follows_its_polynomial():
    magnitude = torch.rand(2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    images = with_phase(magnitude, torch.tensor([[0.3, 0.2, -0.1, 0.25, 0.15], [0.0] * 5], dtype=torch.float64))
    torch.testing.assert_close(images.norm(dim=1).double(), magnitude)
    angle = to_complex(images)[0].angle()
    # Centre p0; right edge p0 + p1 + p4; bottom edge p0 + p2 - p4; bottom right corner p0 + p1 + p2 + p3.
    found = [angle[4, 4], angle[4, 8], angle[8, 4], angle[8, 8]]
    torch.testing.assert_close(torch.stack(found), torch.tensor([0.3, 0.65, 0.05, 0.65]))
    assert torch.equal(images[1, 1], torch.zeros(9, 9))


@pytest.mark.parametrize("size", [24, 25])
def test_analytic_kspace_is_that_of_a_fine_raster(size):
    """A raster of pixel p multiplies the spectrum by sinc(k p) and folds its tail: both vanish as pixels shrink."""
    exact = Phantom2D(size).kspace(3, seed=1)
    low = slice(size // 2 - 6, size // 2 + 7)
    errors = []
    for finer in (1, 3, 9):
        fine = fft2c(to_complex(Phantom2D(size * finer).sample(3, seed=1))) / finer
        middle = size * finer // 2
        block = fine[:, middle - 6 : middle + 7, middle - 6 : middle + 7]
        errors.append(float((block - exact[:, low, low]).norm() / block.norm()))
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert errors[2] < 2e-3


def test_analytic_kspace_is_no_inverse_crime():
    world = Phantom2D(64)
    image = ifft2c(world.kspace(2, seed=0))
    difference = (image - to_complex(world.sample(2, seed=0))).norm() / image.norm()
    assert 0.02 < difference < 0.2  # Gibbs ringing, and nothing worse
    # DC is the sum of the areas.
    ellipses = world.ellipses(2, seed=0)
    area = (torch.pi * ellipses[..., 0] * ellipses[..., 1] * ellipses[..., 2]).sum(1)
    torch.testing.assert_close(world.kspace(2, seed=0)[:, 32, 32].real.double(), area * 16, rtol=1e-5, atol=0)


def test_the_class_of_an_adaptivity_image_is_its_strongest_high_line():
    world = Adaptivity()
    images, label = world.sample_labelled(300, seed=6)
    assert torch.equal(images, world.sample(300, seed=6))
    assert label.unique().tolist() == list(range(12))
    assert torch.equal(images[:, 1], torch.zeros_like(images[:, 1]))
    energy = line_energy(images)
    right = energy[:, 16 + 3 :].argmax(1) == label
    assert right.double().mean() > 0.99
    assert (energy.argmax(1) == 16).all()  # the disk itself is at DC


def test_adaptivity_radius_grows_with_the_class():
    images, label = Adaptivity().sample_labelled(400, seed=0)
    centre = images[:, 0, :, 16 - 8 : 16 + 8].mean(2)  # averages over most of the texture
    half = 0.3
    radius = (centre > half).sum(1).float() / 2
    means = torch.stack([radius[label == c].mean() for c in range(12)])
    torch.testing.assert_close(means[-1] - means[0], torch.tensor(0.45 * 11), rtol=0.15, atol=0)


def test_the_best_lines_of_knees_differ_between_subjects():
    energy = line_energy(Knee(64).sample(60, seed=0))
    energy[:, 32 - 5 : 32 + 6] = 0
    shares = energy.argmax(1).bincount() / 60
    assert (shares > 0).sum() > 12
    assert shares.max() < 0.4

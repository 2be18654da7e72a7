"""Coils and noise: normalised maps, estimated ones, whitening, strengths, motion and decay."""

import math

import pytest
import torch

from core.errors import InputError
from simulators.mri.acquisition_noise import Imperfections, noise_std, shifted, t2_decay
from simulators.mri.adaptivity import Adaptivity
from simulators.mri.coils import coil_maps, combine, estimate_maps, noise_factor, whiten
from simulators.mri.operators import MulticoilLines, fft2c, ifft2c, to_channels, to_complex
from simulators.mri.phantom2d import Phantom2D
from simulators.mri.phase import with_phase


def objects(count=6, size=48):
    """Smooth disks under a smooth phase."""
    magnitude = Adaptivity(classes=1, size=size, radius=11.0, edge=1.0).sample(count, seed=0)[:, 0].double() + 0.02
    return to_complex(with_phase(magnitude, torch.full((count, 5), 0.3, dtype=torch.float64)))


def block(width, lines):
    mask = torch.zeros(width, dtype=torch.bool)
    mask[width // 2 - lines // 2 : width // 2 - lines // 2 + lines] = True
    return mask


def covariance(coils=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(coils, coils, dtype=torch.complex128, generator=generator)
    return a @ a.mH / coils + 0.3 * torch.eye(coils)


@pytest.mark.parametrize(("coils", "height", "width"), [(1, 8, 8), (8, 33, 20)])
def test_maps_are_normalised_smooth_and_different(coils, height, width):
    maps = coil_maps(coils, height, width, seed=3)
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(height, width))
    assert (maps[:, 1:] - maps[:, :-1]).abs().max() < 0.5
    assert torch.equal(maps, coil_maps(coils, height, width, seed=3))
    if coils > 1:
        assert not torch.equal(maps, coil_maps(coils, height, width, seed=4))
        # Coil 0 lies to the right of the image, coil 4 to its left.
        assert maps[0, height // 2, -1].abs() > 3 * maps[0, height // 2, 0].abs()
        assert maps[4, height // 2, 0].abs() > 3 * maps[4, height // 2, -1].abs()


def test_estimated_maps_are_close_to_the_truth_where_the_object_is():
    x, maps = objects(), coil_maps(6, 48, 48)
    kspace = fft2c(x[:, None] * maps)
    truth = maps * torch.polar(torch.ones_like(x.abs()), x.angle())[:, None]
    inside = x.abs() > 0.3
    errors = []
    for lines in (16, 24):
        estimate = estimate_maps(kspace, block(48, lines))
        norm = estimate.abs().square().sum(1)
        assert (((norm - 1).abs() < 1e-5) | (norm == 0)).all()
        errors.append(float((estimate - truth).abs().square().sum(1).sqrt()[inside].mean()))
    assert errors[1] < errors[0] < 0.06
    # Combined with them, the image has hardly any phase left.
    image = combine(kspace, estimate)[inside]
    assert image.angle().abs().mean() < 0.05


def test_estimated_maps_keep_out_noise_of_the_whole_readout():
    x, maps, lines = objects(), coil_maps(6, 48, 48), block(48, 16)
    kspace = fft2c(x[:, None] * maps)
    noise = 0.1 * torch.randn(kspace.shape, dtype=kspace.dtype, generator=torch.Generator().manual_seed(0))
    clean, noisy = estimate_maps(kspace, lines), estimate_maps(kspace + noise, lines)
    inside = x.abs() > 0.3
    error = float((noisy - clean).abs().square().sum(1).sqrt()[inside].mean())
    # A Hann window that is 18 of 48 samples wide passes 3/8 of their noise power in each axis.
    expected = 0.1 * math.sqrt(6) * 3 / 8 * 18 / 48 * float((1 / x.abs()[inside]).mean())
    assert error == pytest.approx(expected, rel=0.25)


def test_estimated_maps_read_calibration_lines_only_and_vanish_outside():
    x, maps, lines = objects(), coil_maps(4, 48, 48), block(48, 17)
    kspace = fft2c(x[:, None] * maps)
    spoilt = torch.where(lines, kspace, torch.nan)
    per_subject = torch.stack([block(48, n) for n in (17, 17, 20, 20, 24, 48)])
    assert torch.equal(estimate_maps(spoilt, lines), estimate_maps(kspace, lines))
    both = estimate_maps(kspace, per_subject)
    torch.testing.assert_close(both[:2], estimate_maps(kspace[:2], lines))
    torch.testing.assert_close(both[2:4], estimate_maps(kspace[2:4], per_subject[2]))
    head = fft2c(to_complex(Phantom2D(48).sample(2, seed=0))[:, None] * maps)
    corner = estimate_maps(head, lines)[..., :3, :3]
    assert torch.equal(corner, torch.zeros_like(corner))


def test_impossible_calibrations_are_refused():
    kspace = torch.zeros(2, 3, 32, 32, dtype=torch.complex64)
    with pytest.raises(InputError, match="15 calibration lines"):
        estimate_maps(kspace, block(32, 15))
    with pytest.raises(InputError, match="one block"):
        estimate_maps(kspace, block(32, 18) & (torch.arange(32) != 20))
    with pytest.raises(InputError, match="one block around line 24"):
        estimate_maps(torch.zeros(2, 3, 32, 48, dtype=torch.complex64), torch.arange(48) > 24)
    with pytest.raises(InputError, match="bool"):
        estimate_maps(kspace, torch.ones(32))
    with pytest.raises(InputError, match="complex"):
        estimate_maps(kspace.real, block(32, 16))


def test_whitening_gives_identity_covariance():
    psi = covariance()
    white = torch.randn(4, 200_000, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    noise = noise_factor(psi) @ white
    torch.testing.assert_close(torch.cov(noise), psi, rtol=0.05, atol=0.02)
    whitened = whiten(noise, psi, coil_axis=0)
    torch.testing.assert_close(whitened, white)
    for kspace, axis in ((noise.reshape(4, 400, 500), -3), (noise.reshape(4, 20, 10_000).movedim(0, 1), -2)):
        again = whiten(kspace, psi, coil_axis=axis).movedim(axis, 0).flatten(1)
        torch.testing.assert_close(torch.cov(again), torch.eye(4, dtype=torch.complex128), rtol=0, atol=0.02)


def test_a_whitened_acquisition_is_that_of_whitened_coils():
    psi, maps = covariance(), coil_maps(4, 16, 16).to(torch.complex128)
    x = to_channels(objects(2, 16))
    kspace = fft2c(to_complex(x)[:, None] * maps)
    torch.testing.assert_close(whiten(kspace, psi), fft2c(to_complex(x)[:, None] * whiten(maps, psi)))


def test_impossible_covariances_are_refused():
    for psi in (-torch.eye(3), torch.tensor([[1.0, 0.9], [0.1, 1.0]]), torch.ones(2, 3)):
        with pytest.raises(InputError, match="coil covariance"):
            noise_factor(psi)
        with pytest.raises(InputError, match="coil covariance"):
            Imperfections(coil_covariance=psi)
    with pytest.raises(InputError, match="covariance of 4 coils: the data have 3"):
        whiten(torch.zeros(3, 8, 8, dtype=torch.complex64), covariance())


def test_combination_gives_back_the_image():
    x, maps = objects(), coil_maps(5, 48, 48)
    kspace = fft2c(x[:, None] * maps)
    torch.testing.assert_close(combine(kspace, maps), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(combine(kspace), x.abs(), atol=1e-5, rtol=0)
    operator = MulticoilLines((2, 48, 48), maps=maps)
    torch.testing.assert_close(to_channels(combine(kspace, maps)), operator.adjoint(operator.forward(to_channels(x))))
    with pytest.raises(InputError, match="maps of shape"):
        combine(kspace, maps[:4])


def test_noise_has_the_strength_that_was_asked_for():
    images = torch.cat((Adaptivity().sample(2, seed=0), 5 * Adaptivity().sample(1, seed=2)))
    sigma = noise_std(images, snr_db=20.0)
    noise = torch.randn(200, *images.shape, generator=torch.Generator().manual_seed(0)) * sigma[:, None, None, None]
    power = images.square().sum((1, 2, 3)) / noise.square().sum((2, 3, 4)).mean(0)
    torch.testing.assert_close(10 * power.log10(), torch.full((3,), 20.0), atol=0.05, rtol=0)


def test_a_shift_of_whole_pixels_rolls_the_image():
    x = objects(1, 24)[0].to(torch.complex128)
    maps = coil_maps(2, 24, 24).to(x.dtype)
    for kspace in (fft2c(x), fft2c(x * maps)):
        lines = kspace.movedim(-1, 0)
        shift = torch.tensor([3.0, -5.0]).expand(24, 2).to(torch.float64)
        moved = ifft2c(shifted(lines, torch.arange(24), shift, 24).movedim(0, -1))
        torch.testing.assert_close(moved, torch.roll(ifft2c(kspace), (3, -5), dims=(-2, -1)), atol=1e-6, rtol=0)


def test_decay_is_exponential_from_the_centre():
    line = torch.arange(32, dtype=torch.float64)
    factor = t2_decay(line, 16, echo_spacing=5.0, t2=80.0)
    assert factor[16] == 1
    assert factor[0] == pytest.approx(math.exp(-1.0))
    torch.testing.assert_close(factor[17:], factor[1:16].flip(0))
    assert torch.equal(t2_decay(line, 16, 5.0, math.inf), torch.ones(32, dtype=torch.float64))


def test_impossible_imperfections_are_refused():
    for name, value in (("shift_std", -1.0), ("shift_std", math.nan), ("echo_spacing", math.inf), ("t2", 0.0)):
        with pytest.raises(InputError, match=f"{name} = "):
            Imperfections(**{name: value})

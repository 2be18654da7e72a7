"""Reconstructions: exact where all is measured, optimal where it is not, and in agreement with libraries."""

import math

import numpy as np
import pytest
import torch

from apps.mri.classical import CompressedSensing, TotalVariation, Wavelet, ZeroFilled, tune
from apps.mri.learned import unet as unet_reconstruction
from apps.mri.learned.unet import UNetReconstruction, UNetSettings
from core.errors import InputError
from core.rl import TrainingDiverged
from simulators.mri.adaptivity import Adaptivity
from simulators.mri.operators import Columns, KSpaceLines, KSpacePoints, MulticoilLines
from simulators.mri.quality import magnitude, nmse

pywt = pytest.importorskip("pywt")
restoration = pytest.importorskip("skimage.restoration")

SHAPE = (2, 16, 16)
PENALTIES = [TotalVariation(), Wavelet("haar", 2), Wavelet()]
SMALL = UNetSettings(channels=8, levels=2, epochs=12, batch=16, loss="l1", learning_rate=5e-3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw_images(count=6, shape=SHAPE, seed=0):
    return torch.randn(count, *shape, generator=seeded(seed), dtype=torch.float64)


def draw_masks(count, actions, budget, seed=1):
    order = torch.rand(count, actions, generator=seeded(seed)).argsort(1)
    return order < budget


def line_masks(count, generator):
    """Three lines about DC and three others of 16."""
    chance = torch.rand(count, 16, generator=generator)
    chance[:, 7:10] = 2
    return torch.zeros(count, 16, dtype=torch.bool).scatter_(1, chance.topk(6).indices, True)


def multicoil(scale=1.0):
    maps = torch.randn(3, 16, 16, generator=seeded(5), dtype=torch.complex128)
    return MulticoilLines(SHAPE, scale * maps / maps.abs().square().sum(0).sqrt())


def blocks():
    """A real and an imaginary part that are constant but for a few edges."""
    image = torch.zeros(1, 2, 32, 32, dtype=torch.float64)
    image[0, 0, 6:26, 8:24] = 1
    image[0, 0, 10:16, 12:20] = 0.5
    image[0, 1, 18:22, 10:14] = 0.3
    return image


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(
    "operator", [KSpaceLines(SHAPE), KSpacePoints(SHAPE), Columns(SHAPE), multicoil(), multicoil(3.0)]
)
def test_everything_measured_and_no_penalty_give_the_image(operator, penalty):
    images = draw_images()
    samples, mask = operator.forward(images), torch.ones(len(images), operator.actions, dtype=torch.bool)
    found = CompressedSensing(operator, penalty, weight=0, iterations=3)(samples, mask)
    torch.testing.assert_close(found, images, rtol=0, atol=1e-10)


def test_zero_filled_is_the_adjoint_of_what_was_measured():
    operator, images = KSpaceLines(SHAPE), draw_images()
    samples, mask = operator.forward(images), draw_masks(6, 16, 5)
    found = ZeroFilled(operator)(samples, mask)
    again = operator.forward(found)
    torch.testing.assert_close(again, torch.where(mask[..., None], samples, 0.0))
    torch.testing.assert_close(ZeroFilled(operator)(samples + 7 * ~mask[..., None], mask), found)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_objective_never_rises(penalty):
    operator, images = KSpaceLines(SHAPE), draw_images(2)
    samples, mask = operator.forward(images), draw_masks(2, 16, 6)
    # With so large a weight FISTA without its guard rises after 8 steps (total variation) or about 40 (wavelets).
    counts = [*range(1, 16), *range(36, 46)]
    values = torch.stack(
        [
            method.objective(method(samples, mask), samples, mask)
            for method in (CompressedSensing(operator, penalty, 0.2, n) for n in counts)
        ]
    )
    assert bool((values.diff(dim=0) <= 1e-12).all())
    assert bool((values[-1] < 0.99 * values[0]).all())


@pytest.mark.parametrize("penalty", [TotalVariation(iterations=40), Wavelet("db2", 2)])
@pytest.mark.parametrize("operator", [KSpaceLines(SHAPE), multicoil(2.0)])
def test_the_result_is_a_minimum(operator, penalty):
    images = draw_images(3)
    samples, mask = operator.forward(images), draw_masks(3, 16, 6)
    method = CompressedSensing(operator, penalty, weight=0.05, iterations=150)
    found = method(samples, mask)
    least = method.objective(found, samples, mask)
    moves = torch.cat([draw_images(3, seed=seed) for seed in range(2, 12)] + [images - found, -found])
    for size in (1e-3, 1e-2, 0.1):
        tried = found.repeat(12, 1, 1, 1) + size * moves
        value = method.objective(tried, samples.repeat(12, 1, 1), mask.repeat(12, 1)).reshape(12, 3)
        assert bool((value >= least - 1e-6 * least).all())


def test_total_variation_denoises_as_scikit_image():
    image = np.random.default_rng(0).normal(size=(24, 20)) + np.linspace(0, 3, 20)
    penalty, noisy = TotalVariation(iterations=1000), torch.tensor(image)[None, None]
    ours = penalty.prox(noisy, torch.tensor([0.4]).double())
    theirs = restoration.denoise_tv_chambolle(image, weight=0.4, eps=1e-10, max_num_iter=10000)
    np.testing.assert_allclose(ours[0, 0].numpy(), theirs, atol=5e-3)
    least, other = (
        (x - noisy).square().sum() / 2 + 0.4 * penalty.value(x) for x in (ours, torch.tensor(theirs)[None, None])
    )
    assert least <= other * (1 + 1e-6)


@pytest.mark.parametrize(("name", "levels"), [("haar", 1), ("db2", 2), ("db4", 1), ("sym4", 1)])
def test_the_wavelet_transform_is_that_of_pywavelets(name, levels):
    images, wavelet = draw_images(shape=(2, 32, 16)), Wavelet(name, levels)
    ours = wavelet.transform(images)
    parts = pywt.wavedec2(images.numpy(), name, mode="periodization", level=levels, axes=(-2, -1))
    theirs, _ = pywt.coeffs_to_array(parts, axes=(-2, -1))
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-10)
    torch.testing.assert_close(wavelet.inverse(ours), images)
    torch.testing.assert_close(ours.square().sum(), images.square().sum())


def test_wavelets_with_everything_measured_are_pywavelets_soft_threshold():
    operator, image = Columns((1, 16, 16)), draw_images(1, (1, 16, 16))
    samples, mask = operator.forward(image), torch.ones(1, 16, dtype=torch.bool)
    found = CompressedSensing(operator, Wavelet("db2", 2), weight=0.2, iterations=5)(samples, mask)
    parts = pywt.wavedec2(image[0, 0].numpy(), "db2", mode="periodization", level=2)
    array, places = pywt.coeffs_to_array(parts)
    shrunk = pywt.threshold(array, 0.2 * image.abs().max().item(), "soft")
    theirs = pywt.waverec2(pywt.array_to_coeffs(shrunk, places, "wavedec2"), "db2", mode="periodization")
    np.testing.assert_allclose(found[0, 0].numpy(), theirs, atol=1e-10)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_real_and_imaginary_part_are_one_number(penalty):
    images, weight = draw_images(), torch.linspace(0.1, 1, 6).double()

    def turned(x, angle=0.7):
        real, imaginary = x.unbind(1)
        cos, sin = math.cos(angle), math.sin(angle)
        return torch.stack((cos * real - sin * imaginary, sin * real + cos * imaginary), 1)

    torch.testing.assert_close(penalty.prox(turned(images), weight), turned(penalty.prox(images, weight)))
    torch.testing.assert_close(penalty.value(turned(images)), penalty.value(images))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_batch_equals_its_images_and_the_result_scales_with_the_data(penalty):
    method, images = CompressedSensing(KSpaceLines(SHAPE), penalty, 0.02, 20), draw_images(3)
    samples, mask = method.operator.forward(images), draw_masks(3, 16, 6)
    whole = method(samples, mask)
    for i in range(3):
        torch.testing.assert_close(method(samples[i : i + 1], mask[i : i + 1]), whole[i : i + 1])
    torch.testing.assert_close(method(1e-4 * samples, mask), 1e-4 * whole, rtol=1e-6, atol=1e-9)


def test_total_variation_recovers_blocks_from_two_fifths_of_the_points():
    image, operator = blocks(), KSpacePoints((2, 32, 32))
    samples, mask = operator.forward(image), torch.rand(1, 1024, generator=seeded()) < 0.4
    mask[:, operator.center] = True
    found = CompressedSensing(operator, TotalVariation(), weight=0.003, iterations=200)(samples, mask)
    assert nmse(magnitude(image), magnitude(found)) < 1e-3
    assert nmse(magnitude(image), magnitude(ZeroFilled(operator)(samples, mask))) > 0.05


def test_tuning_takes_the_best_weight_and_noise_asks_for_a_larger_one():
    image, operator = blocks().repeat(2, 1, 1, 1), KSpacePoints((2, 32, 32))
    mask = torch.rand(2, 1024, generator=seeded()) < 0.6
    mask[:, operator.center] = True
    weights = [0.0, 0.003, 0.01, 0.03, 0.1, 0.3]
    start = CompressedSensing(operator, TotalVariation(), iterations=40)
    clean, errors = tune(start, weights, image, mask)
    assert errors[clean.weight] == min(errors.values()) < errors[0.0]
    samples = operator.forward(image)
    noise = 0.2 * torch.randn(samples.shape, generator=seeded(), dtype=samples.dtype)
    noisy, _ = tune(start, weights, image, mask, samples + noise)
    assert clean.weight < noisy.weight < weights[-1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Wavelet("bior2.2"), "wavelet 'bior2.2'"),
        (lambda: Wavelet("nonsense"), "wavelet 'nonsense'"),
        (lambda: Wavelet(levels=0), "levels 0"),
        (lambda: Wavelet("haar", 3).transform(torch.zeros(1, 12, 16)), "multiples of 8"),
        (lambda: CompressedSensing(KSpaceLines(SHAPE), Wavelet(), weight=-1.0), "weight -1.0"),
        (lambda: CompressedSensing(KSpaceLines(SHAPE), Wavelet(), weight=math.nan), "weight nan"),
        (lambda: CompressedSensing(KSpaceLines(SHAPE), Wavelet(), iterations=0), "iterations 0"),
        (lambda: tune(CompressedSensing(KSpaceLines(SHAPE), Wavelet()), [], *[torch.zeros(0)] * 2), "at least one"),
        (lambda: UNetReconstruction(KSpaceLines(SHAPE), UNetSettings(levels=4)), "levels 4: an image of 16 x 16"),
    ],
)
def test_refusals_are_one_line(make, message):
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def trained():
    images = Adaptivity(classes=4, size=16).sample(96, seed=0)
    return unet_reconstruction.train(KSpaceLines(SHAPE), images, line_masks, SMALL, seed=2)


def test_a_trained_unet_beats_zero_filling_on_new_images(trained):
    images = Adaptivity(classes=4, size=16).sample(64, seed=1)
    samples, mask = trained.operator.forward(images), line_masks(64, seeded())
    error, plain = (
        nmse(magnitude(images), magnitude(method(samples, mask))).mean()
        for method in (trained, ZeroFilled(trained.operator))
    )
    assert error < 0.8 * plain


def test_a_unet_reads_nothing_outside_the_mask_and_scales_with_the_data(trained):
    samples = trained.operator.forward(draw_images().float())
    mask = line_masks(6, seeded())
    found = trained(samples, mask)
    torch.testing.assert_close(trained(samples + 5 * ~mask[..., None], mask), found)
    torch.testing.assert_close(trained(1e-3 * samples, mask), 1e-3 * found, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", ["l1", "ssim"])
def test_training_is_a_function_of_its_seed_and_lowers_the_loss(loss):
    images = Adaptivity(classes=4, size=16).sample(24, seed=0)
    settings = SMALL.model_copy(update={"loss": loss, "epochs": 3, "noise": 0.01})
    before = torch.get_rng_state()
    said = []
    runs = [
        unet_reconstruction.train(
            KSpaceLines(SHAPE),
            images,
            line_masks,
            settings,
            seed=seed,
            progress=lambda *said_now: said.append(said_now),
        )
        for seed in (3, 3, 4)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    weights = [torch.cat([p.flatten() for p in run.parameters()]) for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    losses = [float(message.removeprefix("loss ")) for _, message in said]
    assert losses[:3] == losses[3:6]
    assert losses[2] < losses[0]
    assert [share for share, _ in said[:3]] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_a_diverged_training_says_so():
    images = torch.full((4, 2, 16, 16), math.nan)
    with pytest.raises(TrainingDiverged, match="epoch 1"):
        unet_reconstruction.train(KSpaceLines(SHAPE), images, line_masks, SMALL)


def test_a_saved_unet_comes_back_and_another_is_refused(trained, tmp_path):
    trained.save(tmp_path / "networks" / "unet")
    again = UNetReconstruction.load(tmp_path / "networks" / "unet", trained.operator)
    samples, mask = trained.operator.forward(draw_images().float()), line_masks(6, seeded())
    assert torch.equal(again(samples, mask), trained(samples, mask))
    assert again.settings == trained.settings
    with pytest.raises(InputError, match=r"unet.json: shape is \[2, 16, 16\]; needed here: \[2, 8, 16\]"):
        UNetReconstruction.load(tmp_path / "networks" / "unet", KSpaceLines((2, 8, 16)))
    record = tmp_path / "networks" / "unet.json"
    record.write_text(record.read_text().replace('"channels": 8', '"channels": 0'))
    with pytest.raises(InputError, match=r"settings\.channels"):
        UNetReconstruction.load(tmp_path / "networks" / "unet", trained.operator)
    record.write_text(record.read_text().replace('"channels": 0', '"channels": 4'))
    with pytest.raises(InputError, match=r"unet\.safetensors"):
        UNetReconstruction.load(tmp_path / "networks" / "unet", trained.operator)
    with pytest.raises(InputError, match="no such file"):
        UNetReconstruction.load(tmp_path / "absent", trained.operator)

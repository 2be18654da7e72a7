"""What all methods share: images, operator, budget and prior of a problem, and what is recorded of an outcome."""

import numpy as np
import pytest
import torch
import xarray as xr

from apps.mri.ads import ADS, Sampling
from apps.mri.comparison import compare_masks
from apps.mri.images import Images
from apps.mri.learned.products import subject_seeds
from apps.mri.ledger import RETRIES, Ledger
from apps.mri.methods import NAMES, Method, Sequential, deterministic, display, generators, point_estimate
from apps.mri.problem import FittedPrior, MixtureSettings, NetworkSettings, Problem, fit_prior, sample_variance
from apps.mri.recording import concatenate, dataset, read_part, write_part
from apps.mri.study import Comparison
from core.diffusion.loading import load_prior
from core.diffusion.training import Training
from core.errors import InputError
from core.study import Context
from simulators.mri.operators import Columns, KSpacePoints, Pixels
from simulators.mri.quality import mae, nmse, psnr, ssim
from tests.apps.mri_cases import LINES, OPERATOR, SHAPE, center, luck, mixture, scanner, seeded, subjects

PHANTOM = Images(kind="adaptivity", size=32, train=20)


def problem(**more):
    return Problem(**{"name": "lines", "images": PHANTOM, "budget": 8, "initial": 2, **more})


# ---- the problem


@pytest.mark.parametrize("operator", [Pixels(SHAPE), Columns(SHAPE), OPERATOR, KSpacePoints(SHAPE)])
def test_the_variance_of_the_samples_is_that_of_all_images(operator):
    images = subjects(600)
    y = operator.forward(images).double()
    expected = y.var(0, correction=0).sum(-1)
    torch.testing.assert_close(sample_variance(operator, images), expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["kspace_lines", "kspace_points"])
def test_every_method_holds_the_central_actions_from_the_start(kind):
    own = problem(operator=kind)
    operator = own.measurement((2, 32, 32))
    held = own.mask_problem(operator, None, "cpu").initial
    assert int(held.sum()) == 2
    assert bool(held[operator.center])
    assert held.nonzero().flatten().tolist() == ([15, 16] if kind == "kspace_lines" else [15 * 32 + 16, 16 * 33])
    assert int(problem(initial=0).mask_problem(operator, None, "cpu").initial.sum()) == 0


def test_problems_that_cannot_be_are_refused():
    for wrong, said in (
        ({"budget": 1}, "budget 1 is below the 2 initial actions"),
        ({"operator": "pixels"}, "pixels have no centre"),
        ({"coils": 4}, "coils: 4 need kspace_lines and at least 16 initial lines"),
    ):
        with pytest.raises(ValueError, match=said):
            problem(**wrong)
    with pytest.raises(InputError, match="budget 40, must be at most the 32 actions"):
        problem(budget=40).measurement((2, 32, 32))
    with pytest.raises(InputError, match="k-space needs two channels"):
        problem().measurement((1, 8, 8))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"operator": "pixels", "initial": 0, "methods": ("ads", "lowpass", "vds")}, "lowpass, vds need k-space"),
        ({"operator": "pixels", "initial": 0, "methods": ("tv",)}, "fastmri need k-space: pixels have no centre"),
        ({"methods": ("subpo",), "subpo": {}}, "subpo needs kspace_lines, initial 1"),
        ({"coils": 4, "methods": ("ads",), "subjects": {}}, "subjects.at_once: must be 1"),
        ({"coils": 4, "methods": ("ads", "ads_exact", "tv")}, "ads_exact, tv: for one coil, coils is 4"),
        ({"coils": 4, "methods": ("ads",), "sampling": {"sampler": "exact"}}, "exact is for one coil"),
    ],
)
def test_methods_that_the_measurement_has_no_place_for_are_refused(wrong, said):
    coils = {"initial": 16, "budget": 20, "subjects": {"count": 2, "at_once": 1}} if "coils" in wrong else {}
    with pytest.raises(ValueError, match=said):
        Comparison(**{"name": "lines", "images": PHANTOM, "budget": 8, "initial": 2, **coils, **wrong})


def test_a_comparison_that_cannot_be_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"digits_B8: lowpass need k-space: pixels have no centre$"):
        compare_masks(Images(kind="digits", size=8), [8], ["ads", "lowpass"])


def test_a_network_is_trained_for_a_study_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    images = Images(kind="digits", size=8, train=8)
    training = Training(steps=4, batch=4, checkpoint_every=2)
    settings = NetworkSettings(kind="unet", widths=(4, 8), block_depth=1, training=training)

    context = Context(tmp_path, tmp_path / "c", torch.device("cpu"), tmp_path, tmp_path / "log.jsonl")
    product = FittedPrior(images=images, prior=settings)

    class Killed(Exception):
        pass

    def kill(*_):
        raise Killed

    # After the checkpoint of the second step, the first report falls to the last step: killed there.
    with monkeypatch.context() as patch:
        patch.setattr(Context, "progress", kill)
        with pytest.raises(Killed):
            context.product(product)
    assert len(list(tmp_path.glob("products/*/checkpoint/*.safetensors"))) == 1
    resumed = load_prior(context.product(product)).state_dict()
    whole = fit_prior(settings, images.training()).state_dict()
    for name, value in resumed.items():
        assert torch.equal(value, whole[name])


def test_a_mixture_is_fitted_to_the_images():
    prior = fit_prior(MixtureSettings(components=2, rank=3), PHANTOM.training())
    assert prior.shape == (2, 32, 32)
    again = fit_prior(MixtureSettings(components=2, rank=3), PHANTOM.training())
    assert torch.equal(prior.means, again.means)
    with pytest.raises(InputError, match="components: 21, must be between 1 and the number of images, 20"):
        fit_prior(MixtureSettings(components=21, rank=3), PHANTOM.training())


# ---- images


def test_test_images_are_the_same_in_whatever_shard_and_never_training_images():
    for images in (PHANTOM, Images(kind="digits", size=8, train=100)):
        whole = images.test(3, 6)
        assert torch.equal(torch.cat([images.test(3, 2), images.test(5, 4)]), whole)
        known = {x.numpy().tobytes() for x in images.training()}
        assert not known & {x.numpy().tobytes() for x in whole}


def test_every_so_many_test_images_are_used():
    every, third = Images(kind="digits", size=8), Images(kind="digits", size=8, stride=3)
    assert torch.equal(third.test(1, 2), every.test(0, 7)[[3, 6]])
    with pytest.raises(InputError, match="subjects: 98 to 99, but there are 99 test images"):
        third.test(98, 2)
    assert len(every.training()) == 1500
    assert len(Images(kind="digits", size=8, train=7).training()) == 7
    assert every.test(0, 1).shape == (1, 1, 8, 8)
    assert Images(kind="digits", size=16).test(0, 1).shape == (1, 1, 16, 16)


def test_absent_images_say_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("SZILARD_DATA", raising=False)
    assert PHANTOM.missing == ""
    assert Images(kind="mnist").missing == "mnist: no folder given: set images.data or $SZILARD_DATA"
    with pytest.raises(InputError, match="no folder given"):
        Images(kind="mnist").training()
    monkeypatch.setenv("SZILARD_DATA", str(tmp_path))
    assert Images(kind="mnist").missing == f"mnist: {tmp_path / 'mnist'} does not exist"
    (tmp_path / "mnist").mkdir()
    assert Images(kind="mnist").missing == ""
    with pytest.raises(InputError, match="has neither train-images"):
        Images(kind="mnist").training()
    absent = Images(kind="files", train_path=tmp_path / "a.npy", test_path=tmp_path / "b.npy")
    assert absent.missing == f"files: {tmp_path / 'a.npy'} does not exist"
    for kind, shape in (("mnist", (1, 32, 32)), ("fastmri", (2, 128, 128))):
        stand_in = Images(kind=kind, size=128).smoke()
        assert stand_in.generated
        assert tuple(stand_in.test(0, 1).shape[1:]) == shape


# ---- methods


def test_every_method_has_a_name():
    assert set(NAMES) == {name for part in Method.__args__ for name in getattr(part, "__args__", (part,))}


def test_what_is_looked_at_is_the_magnitude_or_a_scale_from_zero_to_one():
    z = torch.randn(3, 5, 2, 4, 4, generator=seeded())
    torch.testing.assert_close(point_estimate(z), torch.complex(z[:, :, 0], z[:, :, 1]).abs().mean(1))
    real = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1)
    assert display(real).flatten().tolist() == [0.0, 0.5, 1.0]


def test_a_mask_is_asked_for_as_a_whole():
    mask = center(3)
    mask[0, 1] = mask[1, 2] = mask[2, 3] = True
    machine = scanner(3)
    torch.testing.assert_close(Ledger(machine, mask).samples, OPERATOR.forward(subjects(3)) * mask[..., None])
    assert machine.requests == [[1, 8], [2, 8], [3, 8]]


@pytest.mark.parametrize("start", [[], [8], [7, 8]])
def test_a_policy_sees_what_was_measured_and_nothing_else(start):
    machine, held = scanner(), torch.zeros(LINES, dtype=torch.bool)
    held[start] = True
    seen = []

    def choose(samples, mask):
        seen.append(mask.sum(1).tolist())
        torch.testing.assert_close(samples, OPERATOR.forward(subjects()) * mask[..., None])
        return torch.where(mask, -1, torch.arange(LINES)).argmax(1)

    ledger, order = Sequential(choose, held, 5).acquire(machine)
    mask, samples = ledger.mask, ledger.samples
    assert seen == [[k, k] for k in range(len(start), 5)]
    assert order.tolist() == [list(range(15, 10 + len(start), -1))] * 2
    assert mask.sum(1).tolist() == [5, 5]
    torch.testing.assert_close(samples, OPERATOR.forward(subjects()) * mask[..., None])
    assert machine.requests == [start + list(range(15, 10 + len(start), -1))] * 2


def test_what_a_policy_or_a_fixed_mask_is_not_given_is_asked_for_again_and_then_replaced():
    machine = scanner(3, drops={(0, 8): 1, (1, 8): 99, (2, 3): 99})
    mask = center(3)
    mask[:, 3] = True
    ledger = Ledger(machine, mask)
    assert [row.nonzero().squeeze(1).tolist() for row in ledger.mask] == [[3, 8], [3, 7], [2, 8]]  # the nearest
    assert ledger.dropped.tolist() == [1, 1 + RETRIES, 1 + RETRIES]
    torch.testing.assert_close(ledger.samples, OPERATOR.forward(subjects(3)) * ledger.mask[..., None])
    assert bool(ledger.lost[1, 8])
    assert not ledger.free[1, 8]

    def choose(samples, mask):
        return torch.where(mask, -1, torch.arange(LINES)).argmax(1)

    machine = scanner(3, drops={(1, 14): 99})
    ledger, order = Sequential(choose, center(3)[0], 4).acquire(machine)
    assert order.tolist() == [[15, 14, 13], [15, 13, 12], [15, 14, 13]]
    assert machine.requests[1].count(14) == 1 + RETRIES  # and never again
    assert ledger.mask.sum(1).tolist() == [4] * 3


def test_calibration_lines_are_not_asked_for_twice():
    mask, machine = center(2), scanner()
    machine.acquire(torch.full((2, 1), 8))
    mask[0, 1] = mask[1, 2] = mask[0, 3] = mask[1, 4] = True
    found = ADS(mixture(), OPERATOR, Sampling(steps=4, particles=2)).run(machine, mask, 3, luck(2))
    assert machine.requests == [[8, 1, 3], [8, 2, 4]]
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.samples, OPERATOR.forward(subjects()) * mask[..., None])


def test_what_is_taken_in_place_of_a_lost_line_is_asked_for_again_too():
    def run(drops):
        machine = scanner(1, drops=drops)
        return ADS(mixture(), OPERATOR, Sampling(steps=10, particles=4)).run(machine, center(1), 4, luck(1))

    lost = int(run(None).order[0, 0])
    # Every line but DC needs two requests, and one never comes.
    found = run(lambda subject, line, attempt: line != OPERATOR.center and (line == lost or attempt == 0))
    assert int(found.mask.sum()) == 4
    assert lost not in found.order
    assert found.dropped.tolist() == [1 + RETRIES + 3]


def test_a_subjects_luck_depends_on_itself_only():
    together = subject_seeds(3, "particles", 10, 6)
    assert list(together) == [subject_seeds(3, "particles", i, 1)[0] for i in range(10, 16)]
    assert len({*together, *subject_seeds(3, "mask", 10, 6), *subject_seeds(4, "particles", 10, 6)}) == 18
    a, b = (generators(together, torch.device("cpu"))[0] for _ in range(2))
    assert torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))


# ---- what is recorded


def outcome(count=5, seed=0):
    ads = ADS(mixture(), OPERATOR, Sampling(steps=6, particles=3))
    return ads.run(scanner(count), center(count), 4, luck(count, seed))


def test_what_is_recorded_are_the_figures_of_merit_and_the_images():
    found, targets = outcome(), subjects(5)
    data = dataset(targets, found, first=7, seconds=0.25, recorded=2, particles=True)
    truth, image = display(targets), point_estimate(found.particles)
    for name, measure in (("psnr", psnr), ("ssim", ssim), ("mae", mae), ("nmse", nmse)):
        np.testing.assert_allclose(data[name], measure(truth, image), rtol=1e-6)
    assert data.subject.values.tolist() == [7, 8, 9, 10, 11]
    assert data.recorded.values.tolist() == [7, 8]
    np.testing.assert_array_equal(data.mask.values > 0, found.mask)
    np.testing.assert_array_equal(data.acq_order, found.order)
    np.testing.assert_array_equal(data.particles, found.particles[:2])
    np.testing.assert_allclose(data["std"], display(found.particles[:2]).std(1), rtol=1e-6)
    np.testing.assert_array_equal(data.target, targets[:2])
    assert data.actions.values.tolist() == [4] * 5
    assert data.residual.sizes == {"subject": 5, "step": 6}
    assert all(v.attrs["long_name"] and v.attrs["units"] for v in data.data_vars.values())


def test_without_the_truth_there_are_no_figures_of_merit():
    data = dataset(None, outcome(), first=0, seconds=0.1, recorded=5)
    assert not {"psnr", "ssim", "target", "target_image"} & set(data)
    assert data.sizes["recorded"] == 5
    magnitudes = dataset(display(subjects(5))[:, None], outcome(), first=0, seconds=0.1, recorded=5)
    np.testing.assert_allclose(magnitudes.psnr, dataset(subjects(5), outcome(), first=0, seconds=0.1, recorded=5).psnr)
    assert "target" not in magnitudes


def test_batches_are_written_whole_and_put_one_after_another(tmp_path):
    targets = subjects(5)
    one = deterministic(targets, Ledger(scanner(5), center(5)), torch.zeros(5, 0, dtype=torch.long))
    for found in (outcome(), one):
        data = dataset(targets, found, first=0, seconds=0.25, recorded=5)
        parts = [data.isel(subject=slice(*part), recorded=slice(*part)) for part in ((0, 2), (2, 3), (3, 5))]
        parts.append(parts[-1].isel(subject=slice(0, 0), recorded=slice(0, 0)))
        for i, part in enumerate(parts):
            write_part(tmp_path / f"{i}.nc", part)
        again = concatenate([read_part(tmp_path / f"{i}.nc") for i in range(4)])
        xr.testing.assert_identical(again.transpose(*data.dims), data.transpose(*data.dims))
        assert sorted(p.name for p in tmp_path.iterdir()) == [f"{i}.nc" for i in range(4)]
    assert "std" not in data
    assert np.isfinite(data.psnr).sum() + np.isinf(data.psnr).sum() == 5

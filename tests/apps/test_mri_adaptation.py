"""Adapting a prior: the same kind of prior comes back, changed, and closer to the new images."""

import pytest
import torch

from apps.mri.adaptation import Adaptation, adapt, judge
from core.diffusion.training import Training, diffuse, draw
from core.diffusion.unet import NetworkPrior, ResidualUNet
from core.errors import InputError
from core.rl import TrainingDiverged
from tests.apps.mri_cases import mixture, seeded

SHAPE = (2, 8, 8)
SETTINGS = Training(steps=3, batch=4, learning_rate=1e-2, seed=1)
WINNERS = mixture(SHAPE, seed=4).draw(16, seeded(2))


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NetworkPrior(ResidualUNet(2, (4, 8), 1), SHAPE, training_norm=1.0).eval()


def loss_of(prior, images):
    """Mean squared error of the predicted noise, the same noise for every prior."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        many = images.repeat(8, 1, 1, 1)
        tau, eps = draw(prior, many)
        return float((prior.noise(diffuse(prior, many, tau, eps), tau) - eps).square().mean())


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("how", list(Adaptation))
def test_a_prior_of_the_same_shape_comes_back_changed_and_the_old_one_stays(how):
    prior, before = network(), network()
    found = adapt(prior, WINNERS, how, SETTINGS)[how.value]
    assert isinstance(found, NetworkPrior)
    assert found.shape == prior.shape
    assert found.network.architecture == prior.network.architecture
    assert not found.training
    assert all(bool(value.isfinite().all()) for value in found.state_dict().values())
    assert not same(found, prior)
    assert same(prior, before)


@pytest.mark.parametrize("how", list(Adaptation))
def test_the_adapted_prior_is_a_function_of_the_seed(how):
    seeds = (SETTINGS.model_copy(update={"seed": seed}) for seed in (3, 3, 4))
    runs = [adapt(network(), WINNERS, how, settings)[how.value] for settings in seeds]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_the_two_ways_differ():
    found = adapt(network(), WINNERS, Adaptation.seppo, SETTINGS)
    assert not same(found["finetune"], found["seppo"])
    assert same(found["finetune"], adapt(network(), WINNERS, Adaptation.finetune, SETTINGS)["finetune"])


def test_a_fine_tuned_prior_denoises_the_new_images_better():
    settings = SETTINGS.model_copy(update={"steps": 40, "batch": 16})
    tuned = adapt(network(), WINNERS, Adaptation.finetune, settings)["finetune"]
    before, after = (loss_of(prior, WINNERS) for prior in (network(), tuned))
    assert after < 0.95 * before


def test_fine_tuning_knows_the_norm_of_the_new_images():
    found = adapt(network(), 3 * WINNERS, Adaptation.finetune, SETTINGS)["finetune"]
    assert found.training_norm == pytest.approx(float((3 * WINNERS).flatten(1).norm(dim=1).mean()), rel=1e-5)


@pytest.mark.parametrize("how", list(Adaptation))
def test_it_reports_how_far_it_is_and_a_finished_checkpoint_is_only_read(how, tmp_path):
    said = []

    def run():
        return adapt(
            network(),
            WINNERS,
            how,
            SETTINGS,
            checkpoint=tmp_path / "state",
            progress=lambda share, words: said.append((share, words)),
        )[how.value]

    first = run()
    assert said[-1][0] == 1
    assert "3 of 3" in said[-1][1]
    said.clear()
    assert same(run(), first)
    assert said == []


def test_an_adapted_prior_comes_back_from_its_files(tmp_path):
    found = adapt(network(), WINNERS, Adaptation.seppo, SETTINGS)["seppo"]
    found.save(tmp_path)
    assert same(NetworkPrior.load(tmp_path), found)


@pytest.mark.parametrize("how", list(Adaptation))
def test_a_mixture_and_images_of_another_shape_are_refused(how):
    with pytest.raises(InputError, match="a mixture is not adapted; fit one to the new images"):
        adapt(mixture(SHAPE), WINNERS, how, SETTINGS)
    with pytest.raises(InputError, match=r"\(2, 8, 8\)$"):
        adapt(network(), torch.zeros(3, 2, 16, 16), how, SETTINGS)
    with pytest.raises(InputError):
        adapt(network(), WINNERS[:0], how, SETTINGS)


@pytest.mark.parametrize("how", list(Adaptation))
def test_images_that_are_not_numbers_end_the_training(how):
    with pytest.raises(TrainingDiverged):
        adapt(network(), torch.full((4, *SHAPE), torch.nan), how, SETTINGS)


def test_what_an_adaptation_gained_and_forgot_is_paired_and_has_intervals():
    settings = SETTINGS.model_copy(update={"steps": 60, "batch": 16})
    prior = network()
    adapted = adapt(prior, WINNERS, Adaptation.finetune, settings)
    images = mixture(SHAPE, seed=4).draw(6, seeded(9))
    rows = judge({"before": prior, "same": network(), **adapted}, images)
    found = {(row.method, row.metric): row for row in rows}
    for metric in ("gain in SSIM", "drift"):
        unchanged = found["same", metric]
        assert (unchanged.mean, unchanged.low, unchanged.high, unchanged.n) == (0, 0, 0, 6)
        changed = found["finetune", metric]
        assert changed.low < changed.mean < changed.high
    ssim = "SSIM, new images"
    gain = found["finetune", ssim].mean - found["before", ssim].mean
    assert found["finetune", "gain in SSIM"].mean == pytest.approx(gain)
    with pytest.raises(InputError, match="at least 2 are needed"):
        judge({"before": prior}, images[:1])
    real = NetworkPrior(ResidualUNet(1, (4, 8), 1), (1, 8, 8), training_norm=1.0).eval()
    assert len(judge({"before": real}, images[:, :1])) == 2

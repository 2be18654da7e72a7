"""The closed-form posterior against dense linear algebra: weights, means, samples, and what each may depend on."""

import math

import pytest
import torch

from core.diffusion import ExactPosterior, GaussianMixturePrior, PosteriorNoise
from core.diffusion.exact_posterior import NOISELESS
from core.errors import InputError
from tests.core.analytic import SHAPE, D, Rotation, conditioned, covariances, mixed, mixture, pixels, rotation, seeded

MEASUREMENTS = {"rotation": rotation(), "single rows": rotation(actions=D), "pixels": pixels()}


def scan(prior, measurement, sigma, subjects=5, seed=1):
    """Noisy samples (S, A, R) of images of the prior, and masks (S, A) from nothing to everything."""
    x = prior.draw(subjects, seeded(seed)).double()
    y = measurement.forward(x)
    y = y + sigma * torch.randn(y.shape, generator=seeded(seed + 1), dtype=y.dtype)
    order = torch.rand(subjects, measurement.actions, generator=seeded(seed + 2)).argsort(1)
    counts = torch.linspace(0, measurement.actions, subjects).round().long()
    return y, order < counts[:, None], x


def dense(prior, measurement, y, mask, sigma):
    rows = measurement.rows(mask)
    return conditioned(prior, rows, y[mask].flatten(), sigma)


def quiet(posterior, batch, particles):
    """Noise of a draw that is all zero, whose component is the first."""
    drawn = posterior.noise(batch, particles, seeded())
    return {name: torch.zeros_like(getattr(drawn, name)) for name in ("uniform", "latent", "image", "samples")}


# ---- weights and means


@pytest.mark.parametrize("sigma", [0.01, 0.3])
@pytest.mark.parametrize("measurement", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_weights_and_means_are_those_of_dense_linear_algebra(measurement, sigma):
    prior = mixture(components=4, spread=0.1)
    posterior = ExactPosterior(prior, measurement, sigma)
    y, mask, _ = scan(prior, measurement, sigma)
    mask[1] = False
    mask[1, 0] = True
    log_weights, means = posterior.log_weights(y, mask), posterior.mean(y, mask)
    undecided = 0
    for s in range(len(y)):
        log, ends, covariance = dense(prior, measurement, y[s], mask[s], sigma)
        torch.testing.assert_close(log_weights[s], log, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(means[s].flatten(), mixed(log, ends, covariance)[0], rtol=0, atol=1e-10)
        undecided += log.exp().max() < 0.99
    assert undecided >= 2  # otherwise every mean is that of one component
    torch.testing.assert_close(posterior.mean_samples(y, mask), measurement.forward(means), rtol=0, atol=1e-12)


def test_without_samples_the_posterior_is_the_prior():
    prior, measurement = mixture(), rotation()
    posterior = ExactPosterior(prior, measurement, 0.1)
    y, none = torch.randn(2, 6, 4, generator=seeded()), torch.zeros(2, 6, dtype=torch.bool)
    torch.testing.assert_close(posterior.log_weights(y, none), prior.weights.log().expand(2, 3))
    torch.testing.assert_close(posterior.mean(y, none).flatten(1), prior.moments()[0].expand(2, D))
    noise = posterior.noise(2, 4000, seeded(3))
    x = posterior.sample(y, none, noise).flatten(2)
    mean, factor, residual = prior.moments()
    error = ((factor.square().sum(1) + residual) / 4000).sqrt()
    assert ((x.mean(1) - mean) / error).abs().max() < 4


def test_the_evidence_finds_the_component_that_was_measured():
    prior, measurement = mixture(components=5), rotation()
    posterior = ExactPosterior(prior, measurement, 0.05)
    y = measurement.forward(prior.means.view(-1, *SHAPE))
    for taken in (3, 6):
        mask = (torch.arange(6) < taken).expand(5, 6)
        evidence = posterior.log_weights(y, mask) - prior.weights.log()
        assert evidence.argmax(1).tolist() == [0, 1, 2, 3, 4]


def test_clusters_with_fewer_directions_than_the_rank():
    full = mixture()
    basis, eigenvalues = full.basis.clone(), full.eigenvalues.clone()
    basis[0, :, 1:], eigenvalues[0, 1:] = 0, full.residual[0]
    basis[1], eigenvalues[1] = 0, full.residual[1]
    prior = GaussianMixturePrior(SHAPE, full.weights, full.means, basis, eigenvalues, full.residual)
    measurement = rotation()
    y, mask, _ = scan(prior, measurement, 0.1)
    found = ExactPosterior(prior, measurement, 0.1)
    for s in range(len(y)):
        log, ends, covariance = dense(prior, measurement, y[s], mask[s], 0.1)
        torch.testing.assert_close(found.log_weights(y, mask)[s], log)
        torch.testing.assert_close(found.mean(y, mask)[s].flatten(), mixed(log, ends, covariance)[0])


def test_no_noise_stands_for_a_little():
    prior, measurement = mixture(), rotation()
    y, mask, _ = scan(prior, measurement, 0.0)
    none, little = (ExactPosterior(prior, measurement, sigma) for sigma in (0.0, NOISELESS))
    assert torch.equal(none.mean(y, mask), little.mean(y, mask))


def test_the_mean_is_the_best_guess():
    """Its squared error is the trace of the posterior covariance, on average over what the prior draws."""
    prior, measurement = mixture(spread=0.2), rotation()
    y, _, x = scan(prior, measurement, 0.1, subjects=400)
    mask = (torch.arange(6) < 3).expand(400, 6)
    error = (ExactPosterior(prior, measurement, 0.1).mean(y, mask) - x).flatten(1).square().sum(1)
    expected = torch.stack([mixed(*dense(prior, measurement, y[s], mask[s], 0.1))[1].trace() for s in range(len(y))])
    away = error - expected
    assert abs(away.mean()) < 3 * away.std() / 20
    assert error.mean() < 0.8 * covariances(prior)[0].trace()


# ---- samples


@pytest.mark.parametrize("measurement", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_samples_of_a_component_are_an_affine_map_of_their_noise_with_the_dense_covariance(measurement):
    prior, sigma = mixture(components=1), 0.2
    posterior = ExactPosterior(prior, measurement, sigma)
    y, mask, _ = scan(prior, measurement, sigma)
    latent, count = prior.basis.shape[-1], prior.basis.shape[-1] + 2 * D + 1
    zeros = quiet(posterior, len(y), count)
    unit = torch.eye(count - 1, dtype=torch.float64)
    for name, first, size in (("latent", 0, latent), ("image", latent, D), ("samples", latent + D, D)):
        zeros[name][:, 1:] = unit[:, first : first + size].view(-1, *zeros[name].shape[2:])
    x = posterior.sample(y, mask, PosteriorNoise(**zeros)).flatten(2)
    for s in range(len(y)):
        _, means, covariance = dense(prior, measurement, y[s], mask[s], sigma)
        torch.testing.assert_close(x[s, 0], means[0], rtol=0, atol=1e-10)
        columns = x[s, 1:] - x[s, 0]
        torch.testing.assert_close(columns.T @ columns, covariance[0], rtol=0, atol=1e-10)


def test_the_component_of_a_sample_is_chosen_by_the_posterior_weights():
    prior, measurement = mixture(components=4, spread=0.2), rotation()
    posterior = ExactPosterior(prior, measurement, 0.3)
    y, mask, _ = scan(prior, measurement, 0.3)
    zeros = quiet(posterior, len(y), 2000)
    zeros["uniform"] = ((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000).repeat(len(y), 1)
    x = posterior.sample(y, mask, PosteriorNoise(**zeros)).flatten(2)
    for s in range(len(y)):
        log, means, _ = dense(prior, measurement, y[s], mask[s], 0.3)
        distance = torch.cdist(x[s], means, compute_mode="donot_use_mm_for_euclid_dist")
        assert distance.amin(1).max() < 1e-9
        shares = torch.bincount(distance.argmin(1), minlength=4) / 2000
        torch.testing.assert_close(shares.double(), log.exp(), rtol=0, atol=1 / 2000)


def test_samples_have_the_moments_of_the_mixture_posterior():
    prior, measurement, count = mixture(components=4, spread=0.2), rotation(), 20_000
    posterior = ExactPosterior(prior, measurement, 0.3)
    y, mask, _ = scan(prior, measurement, 0.3)
    y, mask = y[1:4], mask[1:4]
    x = posterior.sample(y, mask, posterior.noise(3, count, seeded(5))).flatten(2)
    for s in range(3):
        mean, covariance = mixed(*dense(prior, measurement, y[s], mask[s], 0.3))
        assert ((x[s].mean(0) - mean) / (covariance.diagonal() / count).sqrt()).abs().max() < 4
        away = x[s] - mean
        products = away[:, :, None] * away[:, None, :]
        assert ((products.mean(0) - covariance) / (products.std(0) / count**0.5)).abs().max() < 4.5


@pytest.mark.parametrize("sigma", [1e-2, 1e-4, 1e-6])
def test_samples_agree_with_the_measurement_as_its_noise_vanishes(sigma):
    prior, measurement = mixture(), rotation()
    posterior = ExactPosterior(prior, measurement, sigma)
    y, mask, x = scan(prior, measurement, 0.0)
    drawn = posterior.sample(y, mask, posterior.noise(5, 50, seeded(6)))
    missed = torch.where(mask[:, None, :, None], measurement.forward(drawn) - y[:, None], 0.0)
    assert missed.abs().max() < 5 * sigma
    assert missed[mask.any(1)].abs().max() > sigma / 5
    torch.testing.assert_close(drawn[-1], x[-1].expand(50, *SHAPE), rtol=0, atol=5 * sigma)  # all was measured
    assert drawn[1].std(0).mean() > 0.05  # little was


def test_samples_are_deterministic_given_their_noise():
    prior, measurement = mixture(), rotation()
    posterior = ExactPosterior(prior, measurement, 0.1)
    y, mask, _ = scan(prior, measurement, 0.1)
    one, same, other = (posterior.sample(y, mask, posterior.noise(5, 8, seeded(seed))) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.isclose(one, other).any(-1).all()


# ---- batches, what is read, precision


@pytest.mark.parametrize("measurement", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_a_batch_of_subjects_with_different_masks_equals_single_ones(measurement):
    prior = mixture()
    posterior = ExactPosterior(prior, measurement, 0.1)
    y, mask, _ = scan(prior, measurement, 0.1)
    noise = posterior.noise(5, 7, seeded(4))
    names = ("uniform", "latent", "image", "samples")
    for s in range(5):
        one = slice(s, s + 1)
        alone = PosteriorNoise(*(getattr(noise, name)[one] for name in names))
        for together, single in (
            (posterior.log_weights(y, mask), posterior.log_weights(y[one], mask[one])),
            (posterior.mean(y, mask), posterior.mean(y[one], mask[one])),
            (posterior.sample(y, mask, noise), posterior.sample(y[one], mask[one], alone)),
        ):
            torch.testing.assert_close(together[one], single, rtol=0, atol=1e-10)


def test_what_was_not_measured_is_not_read():
    prior, measurement = mixture(), rotation()
    posterior = ExactPosterior(prior, measurement, 0.1)
    y, mask, _ = scan(prior, measurement, 0.1)
    noise = posterior.noise(5, 4, seeded(4))
    for filler in (1e3, math.nan):
        other = torch.where(mask[..., None], y, filler)
        assert torch.equal(posterior.log_weights(other, mask), posterior.log_weights(y, mask))
        assert torch.equal(posterior.mean(other, mask), posterior.mean(y, mask))
        assert torch.equal(posterior.sample(other, mask, noise), posterior.sample(y, mask, noise))


def test_a_single_precision_prior_gives_single_precision_images_of_double_precision_algebra():
    single = mixture(dtype=torch.float32)
    double = mixture(dtype=torch.float32).double()
    y, mask, _ = scan(double, rotation(), 0.1)
    found, exact = (ExactPosterior(prior, rotation(), 0.1) for prior in (single, double))
    noise = exact.noise(5, 4, seeded(4))
    for mine, true in (
        (found.mean(y, mask), exact.mean(y, mask)),
        (found.sample(y, mask, noise), exact.sample(y, mask, noise)),
    ):
        assert (mine.dtype, true.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(mine.double(), true, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.log_weights(y, mask), exact.log_weights(y, mask))


@pytest.mark.parametrize(
    ("measurement", "sigma", "match"),
    [
        (Rotation(rotation().matrix, 6, unitary=False), 0.1, "a measurement with orthonormal rows, not several coils"),
        (
            Rotation(rotation().matrix, 6, (1, 4, 6)),
            0.1,
            r"prior of shape \(2, 3, 4\), but images of shape \(1, 4, 6\)",
        ),
        (rotation(), -0.1, r"sigma: -0\.1, must be at least 0"),
        (rotation(), math.nan, "sigma: nan, must be at least 0"),
    ],
    ids=["several coils", "shape", "negative", "nan"],
)
def test_what_has_no_closed_form_is_refused(measurement, sigma, match):
    with pytest.raises(InputError, match=match) as error:
        ExactPosterior(mixture(), measurement, sigma)
    assert "\n" not in str(error.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_posterior_of_the_cpu():
    y, mask, _ = scan(mixture(), rotation(), 0.1)
    cpu, gpu = ExactPosterior(mixture(), rotation(), 0.1), ExactPosterior(mixture().cuda(), rotation(), 0.1)
    noise = cpu.noise(5, 4, seeded(4))
    there = PosteriorNoise(*(getattr(noise, name).cuda() for name in ("uniform", "latent", "image", "samples")))
    for on_gpu, on_cpu in (
        (gpu.log_weights(y.cuda(), mask.cuda()), cpu.log_weights(y, mask)),
        (gpu.mean(y.cuda(), mask.cuda()), cpu.mean(y, mask)),
        (gpu.sample(y.cuda(), mask.cuda(), there), cpu.sample(y, mask, noise)),
    ):
        assert on_gpu.device.type == "cuda"
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=1e-9)
    assert gpu.noise(1, 2, torch.Generator("cuda").manual_seed(0)).image.device.type == "cuda"

"""The mixture prior: Tweedie's estimate against dense densities, its own moments and draws, fits, and files."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from core.diffusion import CosineAngle, GaussianMixturePrior
from core.errors import InputError
from tests.core.analytic import SHAPE, D, covariances, log_normal, mixed, mixture, seeded

pytest.importorskip("sklearn", reason="the extra mri is not installed")

TIMES = [0.0, 0.2, 0.5, 0.9, 1.0]


def noisy(prior, tau, count=20):
    """Images of the prior at diffusion time ``tau``."""
    x = prior.draw(count, seeded(1))
    signal, noise = prior.schedule.rates(torch.as_tensor(tau, dtype=x.dtype))
    return signal * x + noise * torch.randn(x.shape, generator=seeded(2), dtype=x.dtype)


def noisy_normals(prior, tau):
    """Means (K, D) and covariances (K, D, D) of the components of the noisy images, s and q."""
    s, q = (rate.item() for rate in prior.schedule.rates(torch.tensor(tau, dtype=torch.float64)))
    c = s**2 * covariances(prior) + q**2 * torch.eye(D, dtype=torch.float64)
    return s * prior.means.double(), c, s, q


def parts(prior, **changes):
    names = ("weights", "means", "basis", "eigenvalues", "residual")
    return {name: getattr(prior, name) for name in names} | changes


# ---- the denoiser


@pytest.mark.parametrize("tau", TIMES)
def test_tweedie_is_the_score_of_the_noisy_density(tau):
    prior = mixture()
    x = noisy(prior, tau).flatten(1).requires_grad_()
    means, c, s, q = noisy_normals(prior, tau)
    log_density = (prior.weights.log() + log_normal(x, means, c)).logsumexp(-1)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    x0, eps = prior.denoise(x.detach().view(-1, *SHAPE), torch.tensor(tau, dtype=torch.float64))
    torch.testing.assert_close(eps.flatten(1), -q * score, rtol=0, atol=1e-11)
    torch.testing.assert_close(x0.flatten(1), (x.detach() + q**2 * score) / s, rtol=0, atol=1e-9)


@pytest.mark.parametrize("tau", TIMES)
def test_the_estimate_and_its_gradient_are_the_moments_of_the_dense_posterior(tau):
    """x0_hat = E[x_0 | x_tau], and its Jacobian times q^2 / s is Cov[x_0 | x_tau]."""
    prior = mixture()
    x = noisy(prior, tau, 3)
    means, c, s, q = noisy_normals(prior, tau)
    own = covariances(prior)
    gain = s * torch.linalg.solve(c, own).mT
    time = torch.tensor(tau, dtype=torch.float64)
    for one in x:
        log = torch.log_softmax(prior.weights.log() + log_normal(one.flatten(), means, c), 0)
        ends = prior.means + (gain @ (one.flatten() - means)[..., None])[..., 0]
        mean, covariance = mixed(log, ends, own - s * gain @ own)
        torch.testing.assert_close(prior.denoise(one[None], time)[0].flatten(), mean, rtol=0, atol=1e-10)
        jacobian = torch.autograd.functional.jacobian(lambda x: prior.denoise(x[None], time)[0].flatten(), one)
        torch.testing.assert_close(q**2 / s * jacobian.view(D, D), covariance, rtol=0, atol=1e-10)


def test_single_precision_is_safe():
    shape = (2, 16, 16)
    images = torch.cat([m + 0.3 * torch.randn(100, *shape, generator=seeded(3)) for m in (-0.5, 0.0, 0.5)])
    double = GaussianMixturePrior.fit(images, components=12, rank=10, dtype=torch.float64)
    single = GaussianMixturePrior.fit(images, components=12, rank=10)
    assert single.means.dtype == torch.float32
    for tau in TIMES:
        x = noisy(single, tau, 100)
        time = torch.tensor(tau)
        found, exact = single.denoise(x, time), double.denoise(x.double(), time.double())
        for mine, true in zip(found, exact, strict=True):
            torch.testing.assert_close(mine.double(), true, rtol=0, atol=2e-5)


def test_a_time_for_each_image_equals_each_image_alone():
    prior, x = mixture(), noisy(mixture(), 0.5, 5)
    tau = torch.linspace(0, 1, 5, dtype=torch.float64)
    alone = [torch.cat(parts) for parts in zip(*(prior.denoise(x[i : i + 1], tau[i]) for i in range(5)), strict=True)]
    for together, single in zip(prior.denoise(x, tau), alone, strict=True):
        torch.testing.assert_close(together, single, rtol=0, atol=1e-12)
    same = prior.denoise(x, torch.full((5,), 0.3, dtype=torch.float64))[0]
    torch.testing.assert_close(same, prior.denoise(x, torch.tensor(0.3, dtype=torch.float64))[0], rtol=0, atol=1e-12)


# ---- moments and samples


def test_moments_are_those_of_the_dense_mixture():
    prior = mixture()
    mean, factor, residual = prior.moments()
    assert factor.shape == (D, 3 * 4 + 3)
    expected = mixed(prior.weights.log(), prior.means, covariances(prior))
    torch.testing.assert_close(mean, expected[0])
    torch.testing.assert_close(factor @ factor.T + residual * torch.eye(D, dtype=torch.float64), expected[1])
    assert prior.training_norm**2 == pytest.approx((expected[0].square().sum() + expected[1].trace()).item())


def test_draws_have_the_moments_and_the_shares_of_the_mixture():
    prior = mixture(spread=2.0)  # no cluster reaches into another
    x = prior.draw(20_000, seeded(4)).flatten(1)
    mean, factor, residual = prior.moments()
    variance = factor.square().sum(1) + residual
    assert ((x.mean(0) - mean) / (variance / len(x)).sqrt()).abs().max() < 4
    expected = factor @ factor.T + residual * torch.eye(D, dtype=torch.float64)
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert ((products.mean(0) - expected) / (products.std(0) / len(x) ** 0.5)).abs().max() < 4.5  # of 576
    counts = torch.bincount(log_normal(x, prior.means, covariances(prior)).argmax(1))
    assert stats.chisquare(counts.numpy(), (len(x) * prior.weights).numpy()).pvalue > 0.01
    assert torch.equal(prior.draw(5, seeded(9)), prior.draw(5, seeded(9)))
    assert not torch.equal(prior.draw(5, seeded(9)), prior.draw(5, seeded(8)))


def test_draws_of_a_component_are_normal_in_every_direction():
    prior = GaussianMixturePrior(SHAPE, **parts(mixture(components=1), residual=torch.full((1,), 0.15).double()))
    x = prior.draw(2000, seeded(5)).flatten(1) - prior.means
    along = (x @ prior.basis[0] / prior.eigenvalues.sqrt()).square().sum(1)
    assert stats.kstest(along.numpy(), stats.chi2(4).cdf).pvalue > 0.01
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariances(prior)[0]), x.T, upper=False)
    assert stats.kstest(white.flatten().numpy(), "norm").pvalue > 0.01
    assert stats.kstest(white.square().sum(0).numpy(), stats.chi2(D).cdf).pvalue > 0.01


def flow(schedule, steps, prior):
    """Mean (D,) and covariance (D, D) of what DDIM makes of white noise: an affine map, read off its samples."""
    single = {name: part.float() for name, part in parts(prior).items()}
    moved = GaussianMixturePrior(SHAPE, **single, schedule=schedule)
    out = moved.sample(4 * D, steps=steps, generator=seeded(6)).flatten(1).double()
    z = torch.randn((4 * D, *SHAPE), generator=seeded(6)).flatten(1).double()
    one = torch.ones(len(z), 1, dtype=torch.float64)
    solution, residue, *_ = torch.linalg.lstsq(torch.cat((one, z), 1), out, driver="gelsd")
    assert residue.sum() < 1e-4  # affine indeed
    return solution[0], solution[1:].T @ solution[1:]


@pytest.mark.parametrize("schedule", [CosineAngle(), CosineAngle(0.9999, 0.001)], ids=str)
def test_ddim_draws_its_normal_distribution_as_steps_grow(schedule):
    """The exact flow carries N(0, I) at tau = 1 along straight quantiles; Tweedie's estimate ends it at tau = 0."""
    prior = mixture(components=1)
    (s0, s1), (q0, q1) = (rate.tolist() for rate in schedule.rates(torch.tensor([0.0, 1.0], dtype=torch.float64)))
    variances, axes = torch.linalg.eigh(covariances(prior)[0])
    gain = s0 * variances / ((s0**2 * variances + q0**2) * (s1**2 * variances + q1**2)).sqrt()
    gain = (axes * gain) @ axes.T
    mean, covariance = prior.means[0] - s1 * gain @ prior.means[0], gain @ gain.T
    errors = []
    for steps in (10, 40, 160):
        found = flow(schedule, steps, prior)
        errors.append(max((a - b).abs().max().item() for a, b in zip(found, (mean, covariance), strict=True)))
    assert errors[1] < 0.4 * errors[0]
    assert errors[2] < 0.4 * errors[1]
    assert errors[2] < 0.02
    if schedule.max_signal_rate > 0.999:  # nearly all the way from noise to data: the data's own moments
        torch.testing.assert_close(found[0], prior.means[0], rtol=0, atol=0.02)
        torch.testing.assert_close(found[1], covariances(prior)[0], rtol=0, atol=0.02)


# ---- fits


def clusters(count=6000, shape=SHAPE):
    truth = mixture(spread=2.0)
    x = truth.draw(count, seeded(11))
    return truth, x if shape == SHAPE else torch.nn.functional.pad(x, (0, shape[2] - 4, 0, shape[1] - 3))


@pytest.mark.parametrize("shape", [SHAPE, (2, 16, 16)], ids=["pixels", "principal scores"])
def test_a_fit_recovers_the_mixture_it_was_drawn_from(shape):
    truth, x = clusters(shape=shape)
    found = GaussianMixturePrior.fit(x, components=3, rank=4, dtype=torch.float64)
    assert found.shape == shape
    small = found.means.view(-1, *shape)[..., :3, :4].flatten(1)
    order = torch.cdist(truth.means, small).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(found.weights[order], truth.weights, rtol=0, atol=0.025)
    torch.testing.assert_close(small[order], truth.means, rtol=0, atol=0.15)
    torch.testing.assert_close(found.eigenvalues[order], truth.eigenvalues.sort(1, True)[0], rtol=0.15, atol=0)
    basis = found.basis.unflatten(1, shape)[..., :3, :4, :].flatten(1, 3)[order]
    assert torch.linalg.svdvals(basis.mT @ truth.basis).min() > 0.98  # cosines between the subspaces
    if shape == SHAPE:
        torch.testing.assert_close(found.residual[order], truth.residual, rtol=0.05, atol=0)
    again = GaussianMixturePrior.fit(x, components=3, rank=4, dtype=torch.float64)
    assert torch.equal(found.means, again.means)


def test_one_cluster_of_full_rank_is_the_normal_of_its_images():
    x = mixture().draw(300, seeded(12))
    expected = torch.cov(x.flatten(1).T, correction=0)
    full = GaussianMixturePrior.fit(x, components=1, rank=D - 1, dtype=torch.float64)
    torch.testing.assert_close(full.means[0], x.flatten(1).mean(0))
    torch.testing.assert_close(covariances(full)[0], expected, rtol=0, atol=1e-12)
    less = GaussianMixturePrior.fit(x, components=1, rank=3, dtype=torch.float64)
    assert covariances(less)[0].trace().item() == pytest.approx(expected.trace().item())
    torch.testing.assert_close(less.eigenvalues[0], torch.linalg.eigvalsh(expected).flip(0)[:3])


def test_clusters_of_few_images_keep_a_least_variance():
    x = torch.cat((mixture().draw(40, seeded(13)), torch.full((1, *SHAPE), 9.0), torch.full((2, *SHAPE), -9.0)))
    x[-1, 0, 0, 0] += 1
    prior = GaussianMixturePrior.fit(x, components=3, rank=4, dtype=torch.float64)
    one, two = (prior.weights * 43 - n for n in (1, 2))
    single, pair = int(one.abs().argmin()), int(two.abs().argmin())
    torch.testing.assert_close(prior.weights[[single, pair]] * 43, torch.tensor([1.0, 2.0]).double())
    assert covariances(prior)[single].equal(1e-4 * torch.eye(D, dtype=torch.float64))
    assert prior.eigenvalues[pair, 0].item() == pytest.approx(0.25)
    assert prior.residual[pair].item() == 1e-4
    assert torch.equal(prior.eigenvalues[pair, 1:], torch.full((3,), 1e-4, dtype=torch.float64))
    drawn = prior.draw(500, seeded(14)).flatten(1)
    near = drawn[(drawn - 9).abs().amax(1) < 1]
    assert near.sub(9).square().mean().item() == pytest.approx(1e-4, rel=0.3)
    for tau in (0.0, 1.0):
        means, c, _, q = noisy_normals(prior, tau)
        y = noisy(prior, tau).flatten(1).requires_grad_()
        density = (prior.weights.log() + log_normal(y, means, c)).logsumexp(-1).sum()
        (score,) = torch.autograd.grad(density, y)
        eps = prior.noise(y.detach().view(-1, *SHAPE), torch.tensor(tau).double())
        torch.testing.assert_close(eps.flatten(1), -q * score, rtol=0, atol=1e-8)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"components": 0}, "components: 0, must be between 1 and the number of images, 12"),
        ({"components": 13}, "components: 13, must be between 1 and the number of images, 12"),
        ({"rank": 0}, "rank: 0, must be between 1 and 23"),
        ({"rank": D}, "rank: 24, must be between 1 and 23"),
        ({"images": torch.full((12, *SHAPE), math.nan)}, "images: every number must be finite"),
        ({"images": torch.ones(12, *SHAPE)}, "components: 3, but the images form only 1"),
    ],
    ids=["none", "too many", "rank 0", "full rank", "nan", "all alike"],
)
def test_impossible_fits_are_refused(change, match):
    settings = {"images": mixture().draw(12, seeded()), "components": 3, "rank": 4} | change
    with pytest.raises(InputError, match=match) as error:
        GaussianMixturePrior.fit(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"means": torch.zeros(3, 5)}, r"means: has shape \(3, 5\), expected \(3, 24\)"),
        ({"basis": torch.zeros(2, D, 4)}, r"basis: has shape \(2, 24, 4\), expected \(3, 24, 4\)"),
        ({"eigenvalues": torch.ones(3, 5)}, r"eigenvalues: has shape \(3, 5\), expected \(3, 4\)"),
        ({"residual": torch.ones(1)}, r"residual: has shape \(1,\), expected \(3,\)"),
        ({"residual": torch.zeros(3)}, "need 0 < residual <= eigenvalues"),
        ({"residual": torch.full((3,), 9.0)}, "need 0 < residual <= eigenvalues"),
        ({"eigenvalues": torch.full((3, 4), math.nan)}, "need 0 < residual <= eigenvalues"),
    ],
)
def test_parts_that_do_not_make_a_mixture_are_refused(change, match):
    with pytest.raises(InputError, match=match):
        GaussianMixturePrior(SHAPE, **parts(mixture(), **change))


# ---- files


def test_files_hold_all_that_rebuilds_the_prior(tmp_path):
    for dtype in (torch.float32, torch.float64):
        folder = tmp_path / str(dtype) / "deep"
        prior = mixture(dtype=dtype, schedule=CosineAngle(0.9, 0.05))
        prior.save(folder)
        prior.save(folder)  # over itself
        again = GaussianMixturePrior.load(folder)
        assert (again.shape, again.schedule) == (prior.shape, prior.schedule)
        for name, tensor in prior.state_dict().items():
            assert torch.equal(getattr(again, name), tensor), name
        x = noisy(prior, 0.4)
        tau = torch.tensor(0.4, dtype=dtype)
        assert torch.equal(again.noise(x, tau), prior.noise(x, tau))
        assert sorted(path.name for path in folder.iterdir()) == ["prior.json", "weights.safetensors"]


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path):
    def refused(match):
        with pytest.raises(InputError, match=match) as error:
            GaussianMixturePrior.load(tmp_path)
        assert "\n" not in str(error.value)
        assert str(tmp_path) in str(error.value)

    refused(r"prior\.json: no such file")
    mixture().save(tmp_path)
    said, weights = tmp_path / "prior.json", tmp_path / "weights.safetensors"
    record, whole, tensors = json.loads(said.read_text()), weights.read_bytes(), load_file(weights)
    for change, match in (
        ({"kind": "unet"}, "kind is 'unet', expected 'gmm'"),
        ({"shape": [2, 3, 5]}, r"means: has shape \(3, 24\), expected \(3, 30\)"),
        ({"shape": [2, 12]}, "shape"),
        ({"shape": "big"}, "shape"),
        ({"signal_rates": [0.95]}, "signal_rates"),
        ({"signal_rates": [0.02, 0.95]}, "signal rates 0.95 and 0.02: must be 0 < min < max < 1"),
        ({"signal_rates": None}, "signal_rates"),
    ):
        said.write_text(json.dumps(record | change))
        refused(match)
    said.write_text("{")
    refused(r"prior\.json: not JSON")
    said.write_text(json.dumps({"kind": "gmm"}))
    refused("with the keys kind, shape, signal_rates")
    said.write_text(json.dumps(record))
    weights.write_bytes(whole[:-40])
    refused(r"weights\.safetensors: not a readable safetensors file")
    save_file({name: tensor for name, tensor in tensors.items() if name not in ("means", "basis")}, weights)
    refused(r"weights\.safetensors: lacks means, basis")
    save_file(tensors | {"residual": torch.zeros(3)}, weights)
    refused("need 0 < residual <= eigenvalues")
    weights.unlink()
    refused(r"weights\.safetensors: not a readable")


# ---- devices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_denoises_and_samples_as_the_cpu(tmp_path):
    cpu = mixture(dtype=torch.float32)
    cpu.save(tmp_path)
    gpu = GaussianMixturePrior.load(tmp_path, "cuda")
    x, tau = noisy(cpu, 0.5, 64), torch.linspace(0, 1, 64)
    torch.testing.assert_close(gpu.noise(x.cuda(), tau.cuda()).cpu(), cpu.noise(x, tau), rtol=0, atol=1e-4)
    generator = torch.Generator("cuda").manual_seed(0)
    drawn, sampled = gpu.draw(4000, generator), gpu.sample(4000, steps=20, generator=generator)
    assert drawn.device.type == sampled.device.type == "cuda"
    mean, factor, residual = cpu.moments()
    spread = (factor.square().sum(1) + residual).sqrt()
    assert ((drawn.cpu().flatten(1).mean(0) - mean) / spread * 4000**0.5).abs().max() < 4
    there = cpu.sample(4000, steps=20, generator=seeded()).flatten(1)
    assert ((sampled.cpu().flatten(1).mean(0) - there.mean(0)) / spread * 2000**0.5).abs().max() < 4

"""Guided sampling: one step written out, what pulls and what does not, blow-ups, and the posterior that comes out."""

import math
from dataclasses import replace

import pytest
import torch

from core.diffusion import ExactPosterior, Guidance, GuidedSampler, Prior, consistent, sample_posterior
from core.diffusion.guided import Particles
from core.errors import InputError
from tests.core.analytic import SHAPE, D, Rotation, covariances, mixture, rotation, seeded

NORMS = ["joint", "per_particle"]
STEPS = 20


def scene(subjects=3, particles=4, dtype=torch.float64):
    """Particles on their way, samples of other images, and masks that differ."""
    prior, measurement = mixture(dtype=dtype), rotation()
    x = torch.randn(subjects, particles, *SHAPE, generator=seeded(1), dtype=dtype)
    y = measurement.forward(prior.draw(subjects, seeded(2)))
    mask = torch.rand(subjects, 6, generator=seeded(3)).argsort(1) < torch.arange(2, subjects + 2)[:, None]
    omega = torch.full((subjects, particles), 0.7, dtype=dtype)
    return prior, measurement, Particles(x, omega, torch.zeros(subjects, particles, dtype=torch.long)), y, mask


def generators(*seeds):
    return [seeded(seed) for seed in seeds]


def measured(mask, y):
    return torch.where(mask[..., None], y, 0.0)


# ---- one step


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("k", [0, 7, STEPS - 1])
def test_a_step_is_that_of_the_reference_on_a_normal_prior(k, norm):
    """x <- s' x0_hat + q' eps_hat - omega grad ||y - M T x0_hat||, all of it linear algebra; x0_hat is unguided."""
    prior = mixture(components=1)
    _, measurement, particles, y, mask = scene()
    sampler = GuidedSampler(prior, measurement, STEPS, Guidance(0.7, norm))
    moved, estimate = sampler.step(k, particles, y, mask, generators(1, 2, 3))
    taus = torch.tensor([1 - k / STEPS, 1 - (k + 1) / STEPS], dtype=torch.float64)
    (s, then_s), (q, then_q) = prior.schedule.rates(taus)
    c, mu = covariances(prior)[0], prior.means[0]
    whiten = torch.linalg.inv(s**2 * c + q**2 * torch.eye(D, dtype=torch.float64))
    x = particles.x.flatten(2)
    eps = q * (x - s * mu) @ whiten
    x0 = mu + s * (x - s * mu) @ whiten @ c
    pulls = []
    for subject in range(3):
        rows = measurement.rows(mask[subject])
        missed = y[subject][mask[subject]].flatten() - x0[subject] @ rows.T
        length = missed.norm() if norm == "joint" else missed.norm(dim=1, keepdim=True)
        pulls.append(-missed / length @ rows @ (s * whiten @ c).mT)
        expected = missed.norm(dim=1)
        torch.testing.assert_close(estimate.residual[subject], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(estimate.x0.flatten(2), x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(estimate.samples, measurement.forward(estimate.x0), rtol=0, atol=1e-12)
    expected = then_s * x0 + then_q * eps - 0.7 * torch.stack(pulls)
    torch.testing.assert_close(moved.x.flatten(2), expected, rtol=0, atol=1e-8)
    assert torch.equal(moved.omega, particles.omega)
    assert not moved.restarts.any()


def pull(norm, particles, prior, measurement, y, mask):
    """What guidance alone changed."""
    ends = []
    for omega in (0.0, 0.7):
        sampler = GuidedSampler(prior, measurement, STEPS, Guidance(omega, norm))
        of = replace(particles, omega=torch.full_like(particles.omega, omega))
        ends.append(sampler.step(5, of, y, mask, generators(1, 2, 3)))
    return ends[0][0].x - ends[1][0].x, ends[0][1].residual


def test_the_joint_norm_shares_one_pull_among_the_particles_of_a_subject():
    prior, measurement, particles, y, mask = scene()
    (joint, residual), (own, _) = (pull(norm, particles, prior, measurement, y, mask) for norm in NORMS)
    share = residual / residual.norm(dim=1, keepdim=True)
    assert share.std() > 0.01
    torch.testing.assert_close(joint, share[..., None, None, None] * own, rtol=1e-8, atol=1e-12)
    assert joint.abs().amax((2, 3, 4)).min() > 1e-3
    alike = replace(particles, x=particles.x[:, :1].expand_as(particles.x))  # omega / sqrt(P) each
    (joint, _), (own, _) = (pull(norm, alike, prior, measurement, y, mask) for norm in NORMS)
    torch.testing.assert_close(joint, own / math.sqrt(4), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_small_step_against_the_pull_shortens_the_residual(norm):
    prior, measurement, particles, y, mask = scene()
    away, residual = pull(norm, particles, prior, measurement, y, mask)
    sampler = GuidedSampler(prior, measurement, STEPS)
    nearer = replace(particles, x=particles.x - 1e-3 * away)
    after = sampler.step(5, nearer, y, mask, generators(1, 2, 3))[1].residual
    assert bool((after < residual).all())


@pytest.mark.parametrize("norm", NORMS)
def test_without_samples_nothing_pulls_and_ddim_goes_its_way(norm):
    prior, measurement = mixture(dtype=torch.float32), rotation()
    sampler = GuidedSampler(prior, measurement, STEPS, Guidance(5.0, norm))
    y, none = torch.zeros(2, 6, 4), torch.zeros(2, 6, dtype=torch.bool)
    x = sample_posterior(sampler, y, none, 3, generators(4, 5))
    for subject in range(2):
        plain = prior.sample(3, steps=STEPS, generator=seeded(4 + subject))
        torch.testing.assert_close(x[subject], plain, rtol=0, atol=1e-5)
    _, estimate = sampler.step(3, sampler.start(3, generators(4, 5)), y, none, generators(4, 5))
    assert torch.equal(estimate.residual, torch.zeros(2, 3))


@pytest.mark.parametrize("norm", NORMS)
def test_particles_that_agree_with_the_samples_are_not_pulled(norm):
    prior, measurement, particles, _, mask = scene(particles=1)
    sampler = GuidedSampler(prior, measurement, STEPS, Guidance(0.7, norm))
    y = sampler.step(5, particles, torch.zeros(3, 6, 4), mask, generators(1, 2, 3))[1].samples[:, 0]
    moved, residual = pull(norm, particles, prior, measurement, y, mask)
    assert residual.max() < 1e-12
    assert moved.abs().max() < 1e-5


def test_what_was_not_measured_is_not_read():
    prior, measurement, particles, y, mask = scene()
    sampler = GuidedSampler(prior, measurement, STEPS, Guidance(0.7))
    other = torch.where(mask[..., None], y, math.nan)
    ends = [sampler.step(4, particles, samples, mask, generators(1, 2, 3)) for samples in (y, other)]
    assert torch.equal(ends[0][0].x, ends[1][0].x)
    assert torch.equal(ends[0][1].residual, ends[1][1].residual)


@pytest.mark.parametrize("norm", NORMS)
def test_a_batch_of_subjects_equals_its_single_ones(norm):
    prior, measurement, _, y, mask = scene(dtype=torch.float32)
    sampler = GuidedSampler(prior, measurement, STEPS, Guidance(0.7, norm))
    together = sample_posterior(sampler, y, mask, 4, generators(7, 8, 9))
    for s in range(3):
        alone = sample_posterior(sampler, y[s : s + 1], mask[s : s + 1], 4, generators(7 + s))
        torch.testing.assert_close(together[s : s + 1], alone, rtol=0, atol=2e-4)
    again = sample_posterior(sampler, y, mask, 4, generators(7, 8, 9))
    assert torch.equal(again, together)


class Kinked(Prior):
    """Another prior, whose gradient is nonsense in one channel of the first row although its answers are sound."""

    def __init__(self, prior):
        super().__init__()
        self.prior, self.shape, self.schedule = prior, prior.shape, prior.schedule

    def noise(self, x, tau):
        eps = self.prior.noise(x, tau).clone()
        eps[0, 0] += (x[0, 0] - x[0, 0].detach()).abs().sqrt()
        return eps


def test_entries_of_the_gradient_that_are_not_finite_do_not_pull():
    prior, measurement, particles, y, mask = scene()
    ends = []
    for kind, omega in ((prior, 0.7), (Kinked(prior), 0.7), (prior, 0.0)):
        of = replace(particles, omega=torch.full_like(particles.omega, omega))
        moved, _ = GuidedSampler(kind, measurement, STEPS).step(5, of, y, mask, generators(1, 2, 3))
        ends.append(moved.x.flatten(0, 1))
    whole, kinked, free = ends
    assert torch.equal(kinked[0, 0], free[0, 0])
    assert torch.equal(kinked[0, 1], whole[0, 1])
    assert torch.equal(kinked[1:], whole[1:])


# ---- blow-ups


class Bursting(Prior):
    """Another prior that answers nonsense for some rows of its next batches."""

    def __init__(self, prior, rows=(), nonsense=math.inf, times=1):
        super().__init__()
        self.prior, self.shape, self.schedule = prior, prior.shape, prior.schedule
        self.rows, self.nonsense, self.times = list(rows), nonsense, times

    def noise(self, x, tau):
        eps = self.prior.noise(x, tau)
        if self.times > 0:
            self.times -= 1
            factor = torch.ones(len(x), 1, 1, 1, dtype=x.dtype)
            factor[self.rows] = self.nonsense
            eps = eps * factor
        return eps


@pytest.mark.parametrize("nonsense", [math.inf, math.nan, 1e308])
def test_a_particle_that_blows_up_restarts_from_the_others_with_half_its_guidance(nonsense):
    prior, measurement, particles, y, mask = scene()
    k, bad = 6, [1, 2]  # of subject 0
    calm = GuidedSampler(prior, measurement, STEPS)
    burst = GuidedSampler(Bursting(prior, bad, nonsense), measurement, STEPS)
    whole, healthy = calm.step(k, particles, y, mask, generators(1, 2, 3))
    hands = generators(1, 2, 3)
    moved, estimate = burst.step(k, particles, y, mask, hands)
    wrong = torch.zeros(3, 4, dtype=torch.bool)
    wrong[0, bad] = True
    assert torch.equal(moved.restarts, wrong.long())
    assert torch.equal(moved.omega, torch.where(wrong, particles.omega / 2, particles.omega))
    assert torch.equal(moved.x[~wrong], whole.x[~wrong])
    signal, noise = prior.schedule.rates(torch.tensor(1 - (k + 1) / STEPS, dtype=torch.float64))
    mean = healthy.x0[0, [0, 3]].mean(0)
    fresh = torch.randn(4, *SHAPE, generator=seeded(1)).double()
    torch.testing.assert_close(moved.x[0, bad], (signal * mean + noise * fresh[bad]), rtol=0, atol=1e-12)
    # What is seen of this step is finite too: it may choose the next action, or be the last.
    torch.testing.assert_close(estimate.x0[0, bad], mean.expand(2, *SHAPE), rtol=0, atol=1e-12)
    torch.testing.assert_close(estimate.samples, measurement.forward(estimate.x0))
    missed = measured(mask[:, None], y[:, None] - estimate.samples)
    torch.testing.assert_close(estimate.residual, missed.flatten(2).norm(dim=2), rtol=0, atol=1e-12)
    # The others' luck is untouched, so that a batch still equals its single subjects.
    assert [hand.get_state().equal(seeded(i + 1).get_state()) for i, hand in enumerate(hands)] == [False, True, True]


def test_subjects_with_blow_ups_equal_their_single_ones():
    prior, measurement, _, y, mask = scene(dtype=torch.float32)

    def run(subjects, rows):
        sampler = GuidedSampler(Bursting(prior, rows, times=3), measurement, STEPS, Guidance(0.7))
        return sample_posterior(sampler, y[subjects], mask[subjects], 4, [seeded(7 + s) for s in subjects])

    together = run([0, 1, 2], [1, 6, 7])
    for s, rows in ((0, [1]), (1, [2, 3]), (2, [])):
        torch.testing.assert_close(together[s : s + 1], run([s], rows), rtol=0, atol=2e-4)


def test_a_subject_that_loses_all_its_particles_starts_again():
    prior, measurement, particles, y, mask = scene()
    sampler = GuidedSampler(Bursting(prior, range(4)), measurement, STEPS)
    moved, estimate = sampler.step(2, particles, y, mask, generators(1, 2, 3))
    assert bool(moved.x.isfinite().all())
    assert bool(estimate.x0.isfinite().all())
    assert moved.restarts.sum(1).tolist() == [4, 0, 0]


def test_a_sum_that_overflows_restarts_nobody():
    prior, measurement, particles, *_ = scene(dtype=torch.float32)
    sampler = GuidedSampler(prior, measurement, STEPS)
    whole = replace(particles, omega=torch.zeros_like(particles.omega))
    signal, noise = torch.full((), 1e38), torch.zeros(())
    kept, x0 = sampler._restart(
        whole, particles.x, torch.zeros_like(whole.omega), signal, noise, hands := generators(1, 2, 3)
    )
    assert not bool(kept.restarts.any())
    assert torch.equal(kept.x, whole.x)
    assert torch.equal(x0, particles.x)
    assert all(hand.get_state().equal(seeded(i + 1).get_state()) for i, hand in enumerate(hands))


def test_a_particle_too_large_for_its_residual_restarts():
    prior, measurement, particles, y, mask = scene(dtype=torch.float32)
    sampler = GuidedSampler(Bursting(prior, [1], 1e25), measurement, STEPS)
    moved, estimate = sampler.step(6, particles, y, mask, generators(1, 2, 3))
    assert moved.restarts[0].tolist() == [0, 1, 0, 0]
    assert bool(estimate.residual.isfinite().all())
    assert float(estimate.x0.abs().max()) < 1e3


def test_guidance_far_too_strong_ends_in_finite_images():
    prior, measurement, _, y, mask = scene(dtype=torch.float32)
    sampler = GuidedSampler(prior, measurement, 60, Guidance(1e30))
    particles = sampler.start(4, hands := generators(1, 2, 3))
    for k in range(60):
        particles, estimate = sampler.step(k, particles, y, mask, hands)
        assert bool(estimate.samples.isfinite().all())
    assert particles.restarts.min() > 0
    torch.testing.assert_close(particles.omega, 1e30 / 2.0**particles.restarts)


# ---- what comes out


def test_hard_consistency_keeps_what_was_measured_and_nothing_else():
    _, measurement, particles, y, mask = scene(dtype=torch.float32)
    fixed = consistent(measurement, particles.x, y, mask)
    samples, before = measurement.forward(fixed), measurement.forward(particles.x)
    expected = torch.where(mask[:, None, :, None], y[:, None], before)
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(consistent(measurement, fixed, y, mask), fixed, rtol=0, atol=1e-5)


def test_without_orthonormal_rows_conjugate_gradients_find_the_nearest_consistent_image():
    _, measurement, particles, _, mask = scene(dtype=torch.float64)
    scaled = Rotation(measurement.matrix * torch.linspace(1, 2, len(measurement.matrix))[:, None], 6, unitary=False)
    y = scaled.forward(particles.x[:, 0].flip(0))
    fixed = consistent(scaled, particles.x, y, mask, iterations=200)
    taken = mask[:, None, :, None].expand_as(scaled.forward(fixed))
    expected = y[:, None].expand_as(taken.double())[taken]
    torch.testing.assert_close(scaled.forward(fixed)[taken], expected, rtol=0, atol=1e-6)
    # What moved lies in the span of the measured rows: the unmeasured, orthogonal ones saw nothing of it.
    moved = scaled.forward(fixed - particles.x)
    assert moved[~taken].abs().max() < 1e-8 < moved[taken].abs().max()


def psnr(x, truth):
    return 10 * math.log10(truth.max() ** 2 / (x - truth).square().mean())


def test_all_measured_and_hard_consistency_give_the_image():
    prior, measurement = mixture(dtype=torch.float32), rotation()
    truth = prior.draw(2, seeded(5))
    y, everything = measurement.forward(truth), torch.ones(2, 6, dtype=torch.bool)
    sampler = GuidedSampler(prior, measurement, 50, Guidance(0.5))
    x = sample_posterior(sampler, y, everything, 4, generators(1, 2))
    fixed = consistent(measurement, x, y, everything)
    for s in range(2):
        assert psnr(fixed[s].mean(0), truth[s]) > 60
        assert psnr(x[s].mean(0), truth[s]) < 60


def test_the_mean_of_the_particles_nears_the_exact_posterior_mean():
    prior, measurement = mixture(components=1, dtype=torch.float32), rotation()
    y = measurement.forward(prior.draw(6, seeded(5)))
    mask = (torch.arange(6) < 3).expand(6, 6)
    exact = ExactPosterior(prior, measurement, 0.01).mean(y, mask)
    sampler = GuidedSampler(prior, measurement, 200, Guidance(0.5))
    x = sample_posterior(sampler, y, mask, 64, generators(*range(6)))
    away, far = ((mean - exact).flatten(1).norm(dim=1).mean() for mean in (x.mean(1), prior.means.view(1, *SHAPE)))
    assert away < 0.2 * far


# ---- refusals, devices


def test_impossible_settings_are_refused():
    prior, measurement = mixture(), rotation()
    for omega in (-1.0, math.nan):
        with pytest.raises(InputError, match=rf"omega: {omega}, must be at least 0"):
            Guidance(omega)
    with pytest.raises(InputError, match="norm: 'both', must be joint or per_particle"):
        Guidance(norm="both")
    with pytest.raises(InputError, match="steps: 0, must be at least 1"):
        GuidedSampler(prior, measurement, 0)
    with pytest.raises(InputError, match=r"prior of shape \(2, 3, 4\), but data of shape \(1, 4, 6\)"):
        GuidedSampler(prior, Rotation(measurement.matrix, 6, (1, 4, 6)), 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_steps_as_the_cpu():
    prior, measurement, particles, y, mask = scene()
    sampler = GuidedSampler(prior, measurement, STEPS, Guidance(0.7, "joint"))
    here = sampler.step(5, particles, y, mask, generators(1, 2, 3))
    on = Particles(particles.x.cuda(), particles.omega.cuda(), particles.restarts.cuda())
    hands = [torch.Generator("cuda").manual_seed(s) for s in range(3)]
    gpu = GuidedSampler(prior.cuda(), measurement, STEPS, Guidance(0.7, "joint"))
    there = gpu.step(5, on, y.cuda(), mask.cuda(), hands)
    torch.testing.assert_close(there[0].x.cpu(), here[0].x, rtol=0, atol=1e-8)
    torch.testing.assert_close(there[1].residual.cpu(), here[1].residual, rtol=0, atol=1e-9)
    single = GuidedSampler(prior.float(), measurement, STEPS, Guidance(0.7))
    x = sample_posterior(single, y.float().cuda(), mask.cuda(), 4, hands)
    assert x.device.type == "cuda"
    assert bool(x.isfinite().all())

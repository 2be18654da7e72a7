"""The scan as a decision process: what may be seen, what is paid, and the measures of quality."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from stable_baselines3.common.env_util import make_vec_env

import simulators  # noqa: F401 (registers the environments)
from core.diffusion.exact_posterior import ExactPosterior
from core.diffusion.guided import Guidance, GuidedSampler
from core.diffusion.mixture import GaussianMixturePrior
from core.diffusion.prior import Prior
from core.errors import InputError
from core.rl import SubPO
from core.rl.submodular import greedy
from core.simulation import SB3VecEnv, draw, rollout, tree
from core.torchvision_guard import shield
from simulators.mri import quality
from simulators.mri.adaptivity import Adaptivity
from simulators.mri.environment import AcquisitionEnv
from simulators.mri.guided_posterior import GuidedPosterior
from simulators.mri.operators import KSpaceLines
from simulators.mri.world import MRILineWorld

SHAPE = (2, 8, 12)
LINES = 12


def mixture(seed=0, components=4, rank=5):
    generator = torch.Generator().manual_seed(seed)
    dimension = math.prod(SHAPE)
    smooth = torch.exp(-0.15 * ((torch.arange(8)[:, None] - 4) ** 2 + (torch.arange(12) - 6) ** 2)).repeat(2, 1, 1)
    means = smooth.flatten() + 0.3 * torch.randn(components, dimension, generator=generator)
    # Central lines vary more than outer ones, as in every image.
    operator, decay = KSpaceLines(SHAPE), torch.exp(-0.4 * (torch.arange(LINES) - LINES // 2).abs())
    rough = operator.forward(torch.randn(components, rank, *SHAPE, generator=generator))
    smooth_fields = operator.adjoint(rough * decay[:, None]).flatten(2).transpose(1, 2)
    basis = torch.linalg.qr(smooth_fields)[0]
    eigenvalues = 0.1 + torch.rand(components, rank, generator=generator)
    weights, residual = torch.full((components,), 1 / components), torch.full((components,), 1e-3)
    return GaussianMixturePrior(SHAPE, weights, means, basis, eigenvalues, residual)


def world(sigma=0.01, **options):
    posterior = ExactPosterior(mixture(), KSpaceLines(SHAPE), sigma)
    return MRILineWorld(posterior, **({"budget": 4, "particles": 3, "belief": 0.3} | options))


def begin(world, batch=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return world.reset(batch, generator), generator


# ---- what the agent may see


@pytest.mark.parametrize("view", ["lines", "images"])
def test_what_was_not_acquired_is_never_shown(view):
    scan = world(observation=view)
    state, generator = begin(scan)
    noise, action = scan.noise(5, generator), torch.tensor([0, 1, 2, 3, 4])
    mask = state.mask.scatter(1, action[:, None], True)
    operator = scan.posterior.measurement
    hidden = torch.where(mask[..., None], 0.0, torch.randn(5, LINES, 16))
    other = type(state)(
        state.target + operator.adjoint(hidden), state.samples + hidden, state.mask, state.particles, state.information
    )
    assert not torch.allclose(other.target, state.target)
    one, two = (scan.step(s, action, noise) for s in (state, other))
    for (_, a), (_, b) in zip(
        *(tree.named_tensors({"obs": scan.observe(step.state)}) for step in (one, two)), strict=True
    ):
        assert torch.equal(a, b)
    unseen = torch.tensor([(i + 6) % LINES for i in range(5)])  # acquired, the difference shows
    noise = scan.noise(5, generator)
    particles = [scan.step(step.state, unseen.clamp(7), noise).state.particles for step in (one, two)]
    assert not torch.allclose(*particles, atol=1e-3)


def test_particles_agree_with_what_was_acquired():
    scan = world(sigma=0.02, budget=8, particles=50)
    state, generator = begin(scan, 8)
    for line in (0, 3, 9):
        state = scan.step(state, torch.full((8,), line), scan.noise(8, generator)).state
    predicted = scan.posterior.measurement.forward(state.particles)
    missed = (predicted - state.samples[:, None])[:, :, state.mask[0]]
    assert 0.3 * 0.02 < missed.square().mean().sqrt() < 1.5 * 0.02
    unknown = (predicted - state.samples[:, None])[:, :, ~state.mask[0]]
    assert unknown.square().mean().sqrt() > 0.05


def test_the_whole_image_is_known_in_the_end():
    scan = world(budget=LINES)
    state, generator = begin(scan)
    before = scan._quality(state.target, state.particles)
    for line in [i for i in range(LINES) if i != scan.center]:
        step = scan.step(state, torch.full((5,), line), scan.noise(5, generator))
        state = step.state
    assert step.terminated.all()
    assert (step.info["psnr"] > 35).all()  # the noise is 0.01 of an image of about 1
    assert (step.info["psnr"] > before["psnr"] + 5).all()
    assert (step.info["ssim"] > 0.98).all()


def test_views_say_what_they_claim():
    scan, images = world(), world(observation="images")
    state, _ = begin(scan)
    lines, seen = scan.observe(state), images.observe(state)
    particles = state.particles.numpy()
    np.testing.assert_allclose(seen["recon"], particles.mean(1), atol=1e-6)
    np.testing.assert_allclose(seen["std"], np.sqrt(particles.var(1).sum(1)), atol=1e-6)
    k = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(particles[:, :, 0] + 1j * particles[:, :, 1], (-2, -1))), (-2, -1))
    variance = np.square(np.abs(k - k.mean(1, keepdims=True))).mean(1).sum(1) / (8 * 12)
    np.testing.assert_allclose(lines[:, LINES:-1], np.log1p(variance / 0.3**2), rtol=1e-4, atol=1e-5)
    assert torch.equal(lines[:, :LINES].bool(), state.mask)
    assert torch.equal(seen["mask"], state.mask)
    assert (lines[:, -1] == 1 / 4).all()
    assert state.mask.nonzero()[:, 1].tolist() == [LINES // 2] * 5


# ---- what is paid


def direct_information(scan, chosen):
    """F by its definition, with the covariance written out in k-space."""
    _, factor, residual = scan.prior.moments()
    factor = factor.double()
    covariance = factor @ factor.T + residual.double() * torch.eye(len(factor), dtype=torch.float64)
    rows = scan.posterior.measurement.forward(torch.eye(len(factor), dtype=torch.float64).view(-1, *SHAPE))
    rows = rows[:, sorted(chosen)].flatten(1).T
    inner = torch.eye(len(rows), dtype=torch.float64) + rows @ covariance @ rows.T / scan.belief**2
    return 0.5 * float(torch.logdet(inner))


def test_information_gains_telescope_to_the_log_determinant():
    scan = world(budget=6)
    state, generator = begin(scan, 3)
    start, total = direct_information(scan, [scan.center]), torch.zeros(3)
    lines = torch.tensor([[0, 3, 11], [1, 4, 0], [2, 7, 1], [8, 0, 10]])
    for line in lines:
        step = scan.step(state, line, scan.noise(3, generator))
        state, total = step.state, total + step.reward
    for row in range(3):
        expected = direct_information(scan, [scan.center, *lines[:, row].tolist()]) - start
        assert float(total[row]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("budget", [1, 2, 3, 4])
def test_greedy_lines_are_within_a_factor_of_the_best(budget):
    scan = world()
    choice = greedy(scan.information, budget)
    best = max(direct_information(scan, chosen) for chosen in itertools.combinations(range(LINES), budget))
    found = direct_information(scan, choice.items[0].tolist())
    assert float(choice.gains.sum()) == pytest.approx(found, rel=1e-4)
    assert (1 - 1 / math.e) * best <= found <= best + 1e-9
    assert (choice.gains.diff() <= 1e-5).all()


def test_the_gain_of_a_line_never_rises():
    scan = world()
    for seed in range(5):
        state = scan.information.start(1)
        last = scan.information.gains(state)
        for line in torch.randperm(LINES, generator=torch.Generator().manual_seed(seed)):
            _, state = scan.information.gain(state, line[None])
            now = scan.information.gains(state)
            assert (now <= last + 1e-4).all()
            assert (now >= 0).all()
            last = now


@pytest.mark.parametrize("metric", ["ssim", "psnr"])
def test_quality_gains_telescope(metric):
    scan = world(reward=f"{metric}_gain")
    state, generator = begin(scan)
    total = scan._quality(state.target, state.particles)[metric]
    for line in (5, 7, 4):
        step = scan.step(state, torch.full((5,), line), scan.noise(5, generator))
        state, total = step.state, total + step.reward
    torch.testing.assert_close(total, step.info[metric], atol=1e-4, rtol=0)
    assert step.terminated.all()


def test_a_taken_line_changes_nothing_and_costs_one():
    scan = world()
    state, generator = begin(scan)
    state = scan.step(state, torch.tensor([0, 1, 2, 3, 4]), scan.noise(5, generator)).state
    step = scan.step(state, torch.tensor([0, 6, 2, 9, 6]), scan.noise(5, generator))
    repeated = torch.tensor([True, True, True, False, True])
    assert torch.equal(step.info["repeated"], repeated)
    assert (step.reward[repeated] == -1).all()
    assert step.reward[3] > 0
    for name, after in tree.named_tensors(tree.take(step.state, repeated)):
        assert torch.equal(after, dict(tree.named_tensors(tree.take(state, repeated)))[name]), name


def test_the_scan_ends_at_the_budget():
    scan = world(budget=5)

    def next_line(observation, state):
        return scan.action_mask(state).float().argmax(1)

    data = rollout(scan, next_line, 10, 4)
    assert (data["length"] == 4).all()
    assert data["terminated"].all()
    assert data["mask"].isel(time=-1).sum("line").values.tolist() == [5] * 4
    assert set(data.data_vars) >= {"mask", "action", "psnr", "ssim", "reward"}


@pytest.mark.parametrize("reward", ["info_gain", "ssim_gain", "psnr_gain"])
def test_a_batch_equals_its_copies(reward):
    scan = world(reward=reward, observation="images")
    draws = draw(scan, 3, 6, seed=1)
    lines = torch.tensor([[0, 1, 2, 3, 4, 5], [7, 7, 2, 8, 9, 10], [11, 0, 1, 2, 3, 4]])

    def play(index):
        part, trace = draws.take(index), []
        state = part.start
        for line, noise in zip(lines, part.noise, strict=True):
            step = scan.step(state, line[index], noise)
            state = step.state
            trace += [step.reward, step.terminated, *step.info.values(), *scan.observe(state).values()]
        return trace

    whole = play(slice(None))
    for row in range(6):
        for a, b in zip(play(slice(row, row + 1)), whole, strict=True):
            torch.testing.assert_close(a, b[row : row + 1], atol=2e-4, rtol=1e-4)


# ---- learning, and the environments of other libraries


def test_subpo_finds_lines_as_good_as_greedys():
    scan = world(particles=2, budget=4)
    features = scan.information
    centre = torch.tensor([scan.center])
    _, state = features.gain(features.start(1), centre)
    best = 0.0
    for _ in range(3):
        gains = features.gains(state)
        gain, state = features.gain(state, gains.argmax(1))
        best += float(gain)
    env = SB3VecEnv(scan, 64, seed=0)
    learner = SubPO("MlpPolicy", env, n_steps=3, learning_rate=1e-2, seed=0, device="cpu")
    learner.learn(3 * 64)
    start = np.mean([episode["r"] for episode in learner.ep_info_buffer])
    learner.learn(3 * 64 * 30)
    end = np.mean([episode["r"] for episode in learner.ep_info_buffer])
    assert start < 0.93 * best  # random lines
    assert end > 0.97 * best
    assert {episode["l"] for episode in learner.ep_info_buffer} == {3}  # no line twice


@pytest.fixture(scope="module")
def phantom():
    pytest.importorskip("sklearn", reason="the default prior is fitted with scikit-learn")
    return gymnasium.make("MRIAcquisition-v0")


@pytest.mark.parametrize("options", [{}, {"scaled": False}, {"observation": "lines", "reward": "psnr_gain"}])
@pytest.mark.filterwarnings("ignore::UserWarning:stable_baselines3.common.env_checker")  # its advice for CnnPolicy
def test_other_libraries_accept_the_environment(phantom, options):
    env = gymnasium.make("MRIAcquisition-v0", **options).unwrapped
    check_env(env, skip_render_check=True)
    check_env_sb3(env)
    if not options:
        shapes = {key: (space.shape, space.dtype) for key, space in env.observation_space.items()}
        assert shapes == {
            "recon": ((2, 32, 32), np.float32),
            "mask": ((32,), np.int8),
            "std": ((32, 32), np.float32),
        }


def test_the_registered_environment_takes_what_the_world_takes(phantom):
    default = phantom.unwrapped.simulator
    assert type(default.posterior) is ExactPosterior
    assert gymnasium.make("MRIAcquisition-v0", posterior="exact").unwrapped.simulator.posterior is default.posterior
    images = Adaptivity().sample(3, seed=7)
    options = {"budget": 3, "reward": "ssim_gain", "particles": 2, "belief": 0.5, "bound": 1.5, "images": images}
    scan = gymnasium.make("MRIAcquisition-v0", **options).unwrapped.simulator
    assert {name: getattr(scan, name) for name in options} == options
    own = GuidedPosterior(GuidedSampler(default.prior, KSpaceLines((2, 32, 32)), 3))
    scan = gymnasium.make("MRIAcquisition-v0", posterior=own).unwrapped.simulator
    assert scan.posterior is own


@pytest.mark.parametrize("options", [{}, {"observation": "lines", "reward": "psnr_gain"}])
def test_the_registered_environment_redraws_by_guided_diffusion(phantom, options):
    settings = {"posterior": "dps", "dps_steps": 5, "budget": 3} | options
    env = gymnasium.make("MRIAcquisition-v0", **settings)
    posterior = env.unwrapped.simulator.posterior
    assert type(posterior) is GuidedPosterior
    assert (posterior.sampler.steps, posterior.sigma) == (5, phantom.unwrapped.simulator.posterior.sigma)
    assert posterior.prior is phantom.unwrapped.simulator.prior
    start, _ = env.reset(seed=0)
    again, _ = env.reset(seed=0)
    assert env.observation_space.contains(start)
    for a, b in zip(tree_of(start), tree_of(again), strict=True):
        np.testing.assert_array_equal(a, b)
    *_, terminated, _, _ = env.step(3)
    assert not terminated
    _, reward, terminated, _, info = env.step(12)
    assert terminated
    assert math.isfinite(reward)
    assert math.isfinite(info["psnr"])


def tree_of(observation):
    return list(observation.values()) if isinstance(observation, dict) else [observation]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior": "mcmc"}, "posterior: 'mcmc'; allowed: exact, dps, or a posterior of your own"),
        ({"posterior": None}, "posterior: None; allowed: exact, dps"),
        ({"dps_steps": 5}, "dps_steps: 5; allowed: only with posterior 'dps'"),
        ({"posterior": "dps", "dps_steps": 0}, "steps: 0, must be at least 1"),
        ({"budget": 33}, "budget: 33; allowed: 2 to 32"),
        ({"reward": "gain"}, "reward: 'gain'; allowed: info_gain, ssim_gain, psnr_gain"),
        ({"budgets": 3, "sigma": 1.0}, "^budgets, sigma: unknown; allowed: belief, bound, budget, dps_steps, images, "),
        ({"agents": 2}, "^agents: unknown; allowed: "),
    ],
)
def test_the_registered_environment_refuses_in_one_line(phantom, options, message):
    with pytest.raises(InputError, match=message) as error:
        gymnasium.make("MRIAcquisition-v0", **options)
    assert "\n" not in str(error.value)


def test_sb3_makes_the_registered_environment(phantom):
    """Its ``make_vec_env`` asks for rendering first and goes on without after a TypeError."""
    env = make_vec_env("MRIAcquisition-v0", 2, env_kwargs={"budget": 3})
    assert env.reset()["mask"].sum() == 2


def test_sb3s_ppo_runs(phantom):
    learner = SB3PPO("MultiInputPolicy", phantom, n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(32)
    assert learner.num_timesteps == 32


def test_repeating_a_line_runs_into_the_time_limit(phantom):
    _, info = phantom.reset(seed=0)
    assert info["action_mask"].sum() == 31
    steps = 0
    done = truncated = False
    while not (done or truncated):
        _, reward, done, truncated, info = phantom.step(16)
        steps += 1
        assert reward == -1
    assert (steps, done, truncated) == (16, False, True)


def test_a_taken_line_can_be_refused():
    env = AcquisitionEnv(world(), on_taken="raise")
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(InputError, match=r"action: 0; allowed: the lines not yet taken, 1, 2, 3, 4, 5, 7"):
        env.step(0)
    with pytest.raises(InputError, match="on_taken: 'ignore'; allowed: penalty, raise"):
        AcquisitionEnv(world(), on_taken="ignore")


def test_the_world_imports_without_its_extra():
    code = (
        "import sys\n"
        "for name in ('sklearn', 'skimage', 'fastmri', 'diffusers', 'ismrmrd', 'nibabel', 'nilearn', 'pywt'):\n"
        "    sys.modules[name] = None\n"
        "import simulators.mri.world, simulators.mri.environment\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


class OnlyADenoiser(Prior):
    """The mixture seen as a neural prior is: its denoiser and nothing else."""

    def __init__(self):
        super().__init__()
        self.mixture = mixture()
        self.shape, self.schedule = self.mixture.shape, self.mixture.schedule

    def noise(self, x, tau):
        return self.mixture.noise(x, tau)


def guided(omega=1.0, **options):
    sampler = GuidedSampler(OnlyADenoiser(), KSpaceLines(SHAPE), 40, Guidance(omega))
    images = mixture().draw(7, torch.Generator().manual_seed(3))
    options = {"budget": 4, "observation": "images", "reward": "psnr_gain", "images": images} | options
    return MRILineWorld(GuidedPosterior(sampler), **options)


def test_a_guided_sampler_can_redraw_the_particles():
    scan = guided()
    state, generator = begin(scan)
    assert all(any(torch.equal(target, image) for image in scan.images) for target in state.target)
    noise, lines = scan.noise(5, generator), torch.arange(5)
    step, again = (scan.step(state, lines, noise) for _ in range(2))
    assert torch.equal(step.state.particles, again.state.particles)
    alone = scan.step(tree.take(state, slice(2, 3)), lines[2:3], tree.take(noise, slice(2, 3)))
    torch.testing.assert_close(alone.state.particles, step.state.particles[2:3], atol=1e-4, rtol=1e-4)
    free = guided(omega=0.0).step(state, lines, noise)
    missed, unguided = (
        (scan.posterior.measurement.forward(s.state.particles) - state.samples[:, None])
        .square()
        .mean((1, 3))[step.state.mask]
        .mean()
        for s in (step, free)
    )
    assert missed < 0.05 * unguided


@pytest.mark.parametrize("options", [{"reward": "info_gain"}, {"observation": "lines"}, {"images": None}])
def test_what_needs_the_mixtures_moments_is_refused_without_them(options):
    with pytest.raises(InputError, match="prior: OnlyADenoiser; allowed: GaussianMixturePrior"):
        guided(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1}, "budget: 1; allowed: 2 to 12"),
        ({"budget": 13}, "budget: 13; allowed: 2 to 12"),
        ({"particles": 1}, "particles: 1; allowed: at least 2"),
        ({"belief": 0.0}, "belief: 0.0; allowed: greater than 0"),
        ({"bound": math.inf}, "bound: inf; allowed: greater than 0 and finite"),
        ({"reward": "gain"}, "reward: 'gain'; allowed: info_gain, ssim_gain, psnr_gain"),
        ({"observation": "mask"}, "observation: 'mask'; allowed: lines, images"),
        ({"images": torch.zeros(3, 2, 8, 8)}, "allowed: \\(N, 2, 8, 12\\)"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        world(**options)


# ---- quality


def pictures(seed=0, batch=3, size=(20, 24)):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(batch, *size, generator=generator) + torch.linspace(0, 2, size[1])
    return target, target + 0.2 * torch.randn(target.shape, generator=generator)


def test_ssim_agrees_with_skimage():
    metrics = pytest.importorskip("skimage.metrics")
    target, estimate = pictures()
    for g, p, found in zip(target.double(), estimate.double(), quality.ssim(target, estimate), strict=True):
        span = float(g.max())
        _, full = metrics.structural_similarity(g.numpy(), p.numpy(), win_size=7, data_range=span, full=True)
        assert float(found) == pytest.approx(full[3:-3, 3:-3].mean(), abs=1e-5)


def test_ssim_agrees_with_fastmri():
    shield()
    losses = pytest.importorskip("fastmri.losses")
    target, estimate = pictures()
    theirs = losses.SSIMLoss()
    for g, p, found in zip(target, estimate, quality.ssim(target, estimate), strict=True):
        loss = theirs(g[None, None], p[None, None], g.max()[None])
        assert float(found) == pytest.approx(1 - float(loss), abs=1e-4)


def test_equal_images_have_the_psnr_of_rounding():
    target = torch.rand(3, 8, 8)
    assert quality.psnr(target, target).tolist() == pytest.approx([-20 * math.log10(2**-23)] * 3, rel=1e-5)
    assert quality.psnr(target.double(), target.double()).min() > 300


def test_psnr_nmse_and_mae_agree_with_skimage_and_numpy():
    metrics = pytest.importorskip("skimage.metrics")
    target, estimate = pictures()
    for i, (g, p) in enumerate(zip(target.double().numpy(), estimate.double().numpy(), strict=True)):
        expected = metrics.peak_signal_noise_ratio(g, p, data_range=g.max())
        assert float(quality.psnr(target, estimate)[i]) == pytest.approx(expected, rel=1e-4)
        expected = np.linalg.norm(g - p) ** 2 / np.linalg.norm(g) ** 2
        assert float(quality.nmse(target, estimate)[i]) == pytest.approx(expected, rel=1e-4)
        assert float(quality.mae(target, estimate)[i]) == pytest.approx(np.abs(g - p).mean(), rel=1e-4)


def test_equal_images_and_extra_axes():
    target, estimate = pictures()
    assert torch.allclose(quality.ssim(target, target), torch.ones(3))
    assert (quality.nmse(target, target) == 0).all()
    stacked = torch.stack([estimate, target], 1)
    for metric in (quality.ssim, quality.psnr, quality.nmse, quality.mae):
        values = metric(target[:, None], stacked)
        assert values.shape == (3, 2)
        torch.testing.assert_close(values[:, 0], metric(target, estimate))
    with pytest.raises(InputError, match="SSIM needs at least 7 x 7"):
        quality.ssim(target[..., :6], estimate[..., :6])


def test_magnitude():
    x = torch.tensor([[[[3.0]], [[-4.0]]]])
    assert quality.magnitude(x).tolist() == [[[5.0]]]
    assert quality.magnitude(-x[:, :1]).tolist() == [[[-3.0]]]
    with pytest.raises(InputError, match="1 or 2 channels"):
        quality.magnitude(torch.zeros(1, 3, 2, 2))

"""Noise schedules: rates that preserve variance, their ends, and what cannot be one."""

import itertools
import math

import pytest
import torch

from core.diffusion import CosineAngle, DiscreteSchedule
from core.diffusion.prior import broadcast, times
from core.errors import InputError

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)  # Ho et al. 2020, section 4
ALPHAS = (1 - BETAS).cumprod(0)


@pytest.mark.parametrize(
    "schedule",
    [CosineAngle(), CosineAngle(0.999, 0.001), DiscreteSchedule(ALPHAS)],
    ids=lambda schedule: type(schedule).__name__,
)
def test_variance_is_preserved_and_the_signal_falls(schedule):
    tau = torch.linspace(0, 1, 1001, dtype=torch.float64)
    signal, noise = schedule.rates(tau)
    torch.testing.assert_close(signal**2 + noise**2, torch.ones_like(tau), rtol=0, atol=1e-15)
    assert bool((signal.diff() < 0).all())
    assert bool((noise.diff() > 0).all())
    assert bool((signal > 0).all())


def test_the_angle_grows_evenly_between_the_paper_s_rates():
    tau = torch.linspace(0, 1, 11, dtype=torch.float64)
    signal, noise = CosineAngle().rates(tau)
    assert signal[0].item() == pytest.approx(0.95, abs=1e-15)
    assert signal[-1].item() == pytest.approx(0.02, abs=1e-15)
    angle = torch.atan2(noise, signal)
    torch.testing.assert_close(angle.diff(), (math.acos(0.02) - math.acos(0.95)) / 10 * torch.ones_like(tau[1:]))


@pytest.mark.parametrize("rates", [(0.02, 0.95), (0.5, 0.5), (1.0, 0.02), (0.95, 0.0), (0.95, -0.1), (math.nan, 0.02)])
def test_impossible_signal_rates_are_refused(rates):
    with pytest.raises(InputError, match=r"signal rates .*: must be 0 < min < max < 1") as error:
        CosineAngle(*rates)
    assert "\n" not in str(error.value)


def test_the_steps_of_a_ddpm_stand_at_their_times():
    schedule, t = DiscreteSchedule(ALPHAS), torch.arange(1000)
    for dtype in (torch.float64, torch.float32):
        tau = ((t + 1) / 1000).to(dtype)
        assert torch.equal(schedule.step(tau), t)
        signal, noise = schedule.rates(tau)
        assert signal.dtype == noise.dtype == dtype
        torch.testing.assert_close(signal.double(), ALPHAS.sqrt(), rtol=1e-6, atol=0)
        torch.testing.assert_close(noise.double(), (1 - ALPHAS).sqrt(), rtol=1e-6, atol=0)


def test_between_two_steps_the_nearer_one_counts_and_below_the_first_there_is_no_noise():
    schedule = DiscreteSchedule([0.9, 0.5, 0.1])
    tau = torch.tensor([0.0, 0.1, 0.2, 0.45, 0.55, 0.8, 0.9, 1.0])
    assert schedule.step(tau).tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    expected = torch.tensor([1.0, 1.0, 0.9, 0.9, 0.5, 0.5, 0.1, 0.1])
    torch.testing.assert_close(schedule.rates(tau)[0] ** 2, expected)
    assert schedule.rates(torch.tensor(0.0)) == (1, 0)


@pytest.mark.parametrize("alphas", [[], [0.5], [1.0, 0.5], [0.5, 0.0], [0.5, -0.1], [0.9, math.nan]])
def test_impossible_squared_rates_are_refused(alphas):
    with pytest.raises(InputError, match=r"alphas_cumprod: must be at least two numbers in \(0, 1\)"):
        DiscreteSchedule(alphas)


@pytest.mark.parametrize("schedule", [CosineAngle(), DiscreteSchedule(ALPHAS)], ids=["cosine", "discrete"])
def test_a_batch_of_times_equals_its_single_ones(schedule):
    tau = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    signal, noise = schedule.rates(tau)
    assert signal.shape == noise.shape == tau.shape
    assert (signal[1, 2], noise[1, 2]) == schedule.rates(tau[1, 2])


def test_the_steps_of_a_diffusion_run_from_one_to_zero_without_gaps():
    like = torch.zeros(1, dtype=torch.float64)
    pairs = [tuple(times(k, 7, like)) for k in range(7)]
    assert (pairs[0][0], pairs[-1][1]) == (1, 0)
    assert all(earlier[1] == later[0] for earlier, later in itertools.pairwise(pairs))
    torch.testing.assert_close(torch.stack([now - then for now, then in pairs]), torch.full((7,), 1 / 7).double())
    assert pairs[0][0].dtype == like.dtype


def test_a_rate_multiplies_the_images_it_belongs_to():
    x = torch.ones(3, 2, 4, 5)
    assert torch.equal((broadcast(torch.tensor([1.0, 2, 3]), x) * x).mean((1, 2, 3)), torch.tensor([1.0, 2, 3]))
    assert broadcast(torch.tensor(2.0), x).shape == ()

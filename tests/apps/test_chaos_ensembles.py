import math

import numpy as np
import pytest
import torch
from scipy.integrate import odeint

from apps.chaos.forecasters.bred import Bred
from apps.chaos.forecasters.diffusion import Diffusion, DiffusionFitted
from apps.chaos.forecasters.forecaster import Fitting
from core import stats
from core.checkpoint import Checkpoint
from core.errors import InputError
from simulators.chaos.flow import Flow

PHI, SERIES, LEAD = 0.9, 6, 6
SMALL = Diffusion(context=2, patch=2, width=32, blocks=1, iterations=600, batch=128, levels=100)
TINY = SMALL.model_copy(update={"iterations": 12, "batch": 8})


def autoregressions(samples=1500):
    """x_{t+1} = phi x_t + noise, with variance 1."""
    noise = np.random.default_rng(1).normal(0, math.sqrt(1 - PHI**2), (SERIES, samples))
    series = np.zeros((SERIES, samples))
    for t in range(1, samples):
        series[:, t] = PHI * series[:, t - 1] + noise[:, t]
    return torch.tensor(series)[..., None]


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers", reason="diffusers is not installed")


@pytest.fixture(scope="module")
def train(diffusers):
    return autoregressions()


@pytest.fixture(scope="module")
def members(train):
    fitted = SMALL.fit(train, Fitting(seeds=tuple(range(SERIES))))
    return fitted.sample(LEAD, 200, torch.Generator().manual_seed(0))[..., 0]


def lead_times():
    return PHI ** torch.arange(1, LEAD + 1, dtype=torch.float64)


def test_an_ensemble_has_the_conditional_mean_and_spread_of_an_autoregression(train, members):
    expected = train[:, -1] * lead_times()
    assert members.shape == (SERIES, 200, LEAD)
    assert float((members.mean(1) - expected).square().mean().sqrt()) < 0.3
    ratio = members.std(1).mean(0) / (1 - lead_times() ** 2).sqrt()
    assert bool(((ratio > 0.75) & (ratio < 1.35)).all()), ratio


def test_its_crps_is_better_than_that_of_the_climate_and_near_that_of_the_true_law(train, members):
    generator = torch.Generator().manual_seed(2)
    spread = (1 - lead_times() ** 2).sqrt()

    def law(count):
        noise = torch.randn(SERIES, count, LEAD, generator=generator, dtype=torch.float64)
        return (train[:, -1:] * lead_times())[:, None, 0] + spread * noise

    truths, perfect = law(100), law(200)
    climate = train[:, ::7, 0][:, :200, None].expand(-1, -1, LEAD)
    scores = [
        stats.crps(x.movedim(1, -1)[:, None].expand(-1, 100, -1, -1), truths).mean((1, 2)).mean()
        for x in (members, perfect, climate)
    ]
    assert math.isfinite(scores[0])
    assert scores[0] < 0.9 * scores[2]
    assert scores[0] < 1.25 * scores[1]


def test_ddim_of_diffusers_takes_the_step_of_the_paper(diffusers):
    scheduler = TINY.scheduler()
    generator = torch.Generator().manual_seed(3)
    alphas, steps = scheduler.alphas_cumprod.double(), scheduler.timesteps.tolist()
    assert len(steps) == TINY.denoising_steps
    assert steps[0] == TINY.levels - 1
    following = [float(alphas[t]) for t in steps[1:]] + [1.0]
    for step, then in zip(steps, following, strict=True):
        x, v = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
        s, q = alphas[step].sqrt(), (1 - alphas[step]).sqrt()
        by_hand = math.sqrt(then) * (s * x - q * v) + math.sqrt(1 - then) * (s * v + q * x)
        torch.testing.assert_close(scheduler.step(v, step, x).prev_sample, by_hand, rtol=1e-5, atol=1e-5)


def test_the_exact_denoiser_of_a_gaussian_gives_samples_of_it(diffusers):
    mean, deviation = 0.7, 0.5
    settings = Diffusion(context=2, patch=4, denoising_steps=50, dtype="float64")
    alphas = settings.scheduler().alphas_cumprod.double()

    def exact(x, tau, condition):
        alpha = alphas[(tau * settings.levels).round().long() - 1]
        s, q = alpha.sqrt(), (1 - alpha).sqrt()
        clean = mean + s * deviation**2 / (s**2 * deviation**2 + q**2) * (x - s * mean)
        return s * (x - s * clean) / q - q * clean

    fitted = DiffusionFitted(settings, exact, torch.zeros(1, 2, 1, dtype=torch.float64), (0,))
    found = fitted.sample(4, 4000, torch.Generator().manual_seed(4))
    assert float(found.mean()) == pytest.approx(mean, abs=0.02)
    assert float(found.std()) == pytest.approx(deviation, rel=0.05)


def test_training_repeats_and_resumes_bit_for_bit(tmp_path, monkeypatch, train):
    def forecast(**more):
        return TINY.fit(train, Fitting(seeds=tuple(range(SERIES)), **more)).forecast(5)

    whole = forecast()
    assert torch.equal(whole, forecast())
    monkeypatch.setattr(Checkpoint, "due", property(lambda self: self.path is not None))

    def stop(share, text):
        if share >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forecast(checkpoint=tmp_path, progress=stop)
    assert torch.equal(whole, forecast(checkpoint=tmp_path))


def test_a_series_is_fitted_alike_in_every_group(train):
    settings = TINY.model_copy(update={"dtype": "float64"})
    fitted = settings.fit(train, Fitting(seeds=tuple(range(SERIES))))
    alone = settings.fit(train[2:3], Fitting(seeds=(2,)))
    torch.testing.assert_close(fitted.forecast(5)[2:3], alone.forecast(5), rtol=1e-7, atol=1e-7)
    assert torch.equal(fitted.forecast(5), fitted.forecast(5))
    spoiled = train.clone()
    spoiled[0, 30] = torch.nan
    torch.testing.assert_close(
        settings.fit(spoiled, Fitting(seeds=tuple(range(SERIES)))).forecast(5)[1:],
        fitted.forecast(5)[1:],
        rtol=1e-7,
        atol=1e-7,
    )


@pytest.mark.gpu
def test_a_gpu_gives_the_forecasts_of_the_cpu(train):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    settings = TINY.model_copy(update={"dtype": "float64"})
    fit = Fitting(seeds=tuple(range(SERIES)))
    found = [settings.fit(train.to(device), fit).forecast(5).cpu() for device in ("cpu", "cuda")]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_a_forecast_is_the_mean_or_the_median_of_its_members(train):
    fitted = TINY.model_copy(update={"members": 5}).fit(train, Fitting(seeds=tuple(range(SERIES))))
    drawn = []
    rolled = fitted._rolled
    fitted._rolled = lambda *arguments: drawn.append(rolled(*arguments)) or drawn[-1]
    torch.testing.assert_close(fitted.forecast(3), drawn[-1].mean(1))
    fitted.settings = fitted.settings.model_copy(update={"point": "median"})
    torch.testing.assert_close(fitted.forecast(3), drawn[-1].median(1).values)


def test_a_series_shorter_than_ten_windows_is_refused(train):
    with pytest.raises(InputError, match="diffusion: 13 training samples: needs at least 14"):
        TINY.fit(train[:, :13], Fitting(seeds=tuple(range(SERIES))))
    with pytest.raises(ValueError, match="less than or equal to 1000"):
        Diffusion(levels=2000)


def lorenz(y, t):
    return [10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]]


LORENZ = Flow(
    "mine",
    3,
    lambda t, y: torch.stack(lorenz(y.unbind(-1), t), -1),
    torch.tensor([1.0, 1.0, 20.0], dtype=torch.float64),
    period=1.5,
    serial=lambda row: lorenz,
)


@pytest.fixture(scope="module")
def attractor():
    starts = np.random.default_rng(0).normal([0, 0, 25], 5, (8, 3))
    raw = np.array([odeint(lorenz, y, 0.015 * np.arange(1300), rtol=1e-10, atol=1e-10)[1000:] for y in starts])
    return torch.tensor(raw) / 10


def known(count):
    scale = torch.full((count, 3), 10.0, dtype=torch.float64)
    return Fitting(seeds=tuple(range(count)), dt=(0.015,) * count, flows=(LORENZ,) * count, scale=scale)


def test_the_spread_of_bred_members_grows_at_the_lyapunov_exponent(attractor):
    fitted = Bred(amplitude=1e-6, cycles=8).fit(attractor, known(8))
    members = fitted.sample(350, 6, torch.Generator().manual_seed(5))
    spread = members.var(1).mean(-1).sqrt().log().mean(0)
    rate = np.polyfit(0.015 * np.arange(350), spread.numpy(), 1)[0]
    assert rate == pytest.approx(0.9056, rel=0.3)


def test_bred_perturbations_have_the_amplitude_and_the_direction_that_grows(attractor):
    settings = Bred(amplitude=1e-5, cycles=8)
    members = settings.fit(attractor, known(8)).sample(1, 400, torch.Generator().manual_seed(6))[:, :, 0]
    # One sample later they are about as large as they were made, and nearly on a line (random ones have .9 below).
    size = (members - members.mean(1, keepdim=True)).square().mean((1, 2)).sqrt()
    assert float(size.log().mean().exp()) == pytest.approx(1e-5, rel=0.3)
    singular = torch.linalg.svdvals(members - members.mean(1, keepdim=True))
    assert float((singular[:, 1] / singular[:, 0]).median()) < 0.2


def test_the_mean_of_a_small_bred_ensemble_is_the_truth_for_a_while(attractor):
    found = Bred(amplitude=1e-6, cycles=2).fit(attractor[:, :200], known(8)).forecast(100)
    torch.testing.assert_close(found, attractor[:, 200:], rtol=0, atol=1e-3)


def test_bred_takes_fewer_cycles_from_a_short_series_and_refuses_one_without_any(attractor):
    assert Bred(cycle=25).fit(attractor[:, :60], known(8)).analyses.shape == (8, 3, 3)
    with pytest.raises(InputError, match="bred: 25 training samples: needs at least 26"):
        Bred(cycle=25).fit(attractor[:, :25], known(8))
    with pytest.raises(InputError, match="bred: needs the equations"):
        Bred().fit(attractor, Fitting(seeds=tuple(range(8))))

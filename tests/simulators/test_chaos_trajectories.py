"""Spacing, initial states, determinism, mapped and delayed channels, ensembles, noise, data sets, refusals."""

import math
from dataclasses import replace

import pytest
import torch

from core.errors import InputError
from simulators.chaos import trajectories
from simulators.chaos.flow import DelayFlow, Flow
from simulators.chaos.integrate import integrate
from simulators.chaos.trajectories import Sampling, sample, with_noise

EXACT = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def circle(**changes):
    own = {"name": "circle", "dimension": 2, "period": 2 * math.pi, "initial": torch.tensor([1.0, 0.0], dtype=EXACT)}
    return Flow(right_hand_side=lambda t, y: torch.stack([y[:, 1], -y[:, 0]], 1), **(own | changes))


@pytest.fixture(scope="module")
def catalogue():
    pytest.importorskip("dysts.flows", reason="the catalogue needs dysts")
    from simulators.chaos import catalogue

    return catalogue


def test_samples_of_a_circle_lie_exactly_a_hundredth_of_a_period_apart():
    found = sample(circle(), 3, generator(), Sampling(samples=150, burn_in=20))
    assert found.states.shape == (3, 150, 2)
    assert found.dt == 2 * math.pi / 100
    torch.testing.assert_close(found.states[:, 100:], found.states[:, :50], rtol=0, atol=1e-6)
    angle = torch.atan2(-found.states[..., 1], found.states[..., 0])
    turn = (angle.diff(dim=1) + 4 * math.pi) % (2 * math.pi)
    torch.testing.assert_close(turn, torch.full_like(turn, found.dt), rtol=0, atol=1e-7)


def test_lyapunov_spacing_is_the_inverse_exponent_over_the_points():
    flow = circle(stored_lyapunov=0.5)
    assert Sampling(points=30, timescale="lyapunov").spacing(flow) == 1 / (0.5 * 30)
    assert Sampling(points=30).spacing(flow) == 2 * math.pi / 30


def test_the_same_generator_gives_the_same_bits_and_another_one_others():
    settings = Sampling(samples=50, burn_in=10)
    first, again, other = (sample(circle(), 4, generator(seed), settings).states for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_initial_states_are_different_points_of_the_orbit_far_apart(catalogue):
    flow = catalogue.load("Rossler")
    found = sample(flow, 20, generator(), Sampling(samples=2, burn_in=0)).states[:, 0]
    times = flow.period / 10 * torch.arange(1000, dtype=EXACT)
    orbit = integrate(flow, flow.initial[None], times, engine="odeint").states[0]
    places = torch.cdist(found, orbit).argmin(1)
    assert torch.equal(orbit[places], found)
    assert places.sort().values.diff().unique().tolist() == [50]
    assert not torch.equal(places, places.sort().values)


def test_burn_in_drops_the_first_samples():
    whole = sample(circle(), 3, generator(), Sampling(samples=80, burn_in=0)).states
    later = sample(circle(), 3, generator(), Sampling(samples=60, burn_in=20)).states
    torch.testing.assert_close(later, whole[:, 20:], rtol=0, atol=1e-7)


def test_samples_of_lorenz_have_the_mean_and_spread_of_its_attractor(catalogue):
    found = sample(catalogue.load("Lorenz"), 8, generator(), Sampling(samples=3000))
    assert not found.failed.any()
    assert found.engine == "odeint"
    assert found.channels == ("x", "y", "z")
    states = found.states.flatten(0, 1)
    assert states[:, 2].mean() == pytest.approx(23.55, abs=0.3)
    assert states.std(0).tolist() == pytest.approx([7.92, 9.01, 8.6], rel=0.05)


def test_phases_are_mapped_to_bounded_channels(catalogue):
    found = sample(catalogue.load("Duffing"), 2, generator(), Sampling(samples=300, burn_in=0))
    assert found.channels == ("x", "y", "z")
    assert float(found.states[..., 2].abs().max()) <= 1
    # dz/dt = omega = 1.4 of the phase, of which the cosine is observed.
    phase = torch.acos(found.states[..., 2].clamp(-1, 1))
    steps = phase.diff(dim=1).abs()
    assert float(steps.median()) == pytest.approx(1.4 * found.dt, rel=1e-6)


def test_a_delay_system_is_observed_by_its_embedding(catalogue):
    flow = catalogue.load("MackeyGlass")
    assert isinstance(flow, DelayFlow)
    found = sample(flow, 2, generator(), Sampling(samples=600, burn_in=0))
    assert found.states.shape == (2, 600, 10)
    assert found.engine == "rk4, 270 steps in a delay"
    # Channel 9 is channel 0 one delay ago.
    behind = 16 / found.dt
    early = int(behind)
    between = found.states[0, : 600 - early - 1, 0].lerp(found.states[0, 1 : 600 - early, 0], 1 - (behind - early))
    torch.testing.assert_close(found.states[0, early + 1 :, 9], between, rtol=0, atol=1e-3)
    assert float((found.states[0] - found.states[1]).abs().max()) > 0.1


def test_an_ensemble_of_parameters_samples_every_row_on_its_own_attractor(catalogue):
    rho = torch.tensor([10.0, 28.0], dtype=EXACT)
    found = sample(catalogue.load("Lorenz", {"rho": rho}), 2, generator(), Sampling(samples=500))
    # Below rho = 24.06 of the classical values a state may settle in a fixed point, z = rho - 1.
    torch.testing.assert_close(found.states[0, :, 2], torch.full((500,), 9.0, dtype=EXACT), rtol=0, atol=1e-6)
    assert float(found.states[1, :, 2].std()) > 5


def test_a_large_batch_takes_the_batched_engine(catalogue):
    found = sample(catalogue.load("SprottB"), 70, generator(), Sampling(samples=50, burn_in=10))
    assert found.engine == "torch dop853"
    assert bool(found.states.isfinite().all())


def test_a_data_set_says_how_it_was_made():
    found = sample(circle(channels=("up", "down")), 2, generator(), Sampling(samples=30, burn_in=0)).dataset()
    assert dict(found.sizes) == {"trajectory": 2, "time": 30, "channel": 2}
    assert found.attrs["system"] == "circle"
    assert found.attrs["integrator"] == "odeint"
    assert (found.attrs["rtol"], found.attrs["atol"]) == (1e-10, 1e-10)
    assert "torch" in found.attrs["versions"]
    assert found["channel"].values.tolist() == ["up", "down"]
    assert float(found["time"][-1]) == pytest.approx(29 * 2 * math.pi / 100)
    assert found["states"].attrs["units"]


def test_noise_has_the_level_of_every_channel():
    states = torch.stack([torch.linspace(0, 1, 20_000), 100 * torch.linspace(0, 1, 20_000)], -1).double()
    noisy = with_noise(states, 0.1, generator())
    ratio = (noisy - states).std(0) / states.std(0)
    torch.testing.assert_close(ratio, torch.full((2,), 0.1, dtype=EXACT), rtol=0.03, atol=0)
    assert torch.equal(with_noise(states, 0.0, generator()), states)
    assert torch.equal(noisy, with_noise(states, 0.1, generator()))


def test_an_orbit_that_escapes_is_refused():
    flow = Flow("explosion", 1, lambda t, y: y**2, torch.ones(1, dtype=EXACT), 0.05)
    with pytest.raises(InputError, match="explosion: the orbit from its initial state escapes"):
        sample(flow, 3, generator())


def test_what_comes_to_rest_at_the_origin_is_warned_about():
    def inwards(t, y):
        return torch.stack([y[:, 1] - 0.1 * y[:, 0], -y[:, 0] - 0.1 * y[:, 1]], 1)

    spiral = replace(circle(), right_hand_side=inwards)
    with pytest.warns(UserWarning, match="2 of 2 trajectories come to rest"):
        sample(spiral, 2, generator(), Sampling(samples=1500, burn_in=0, atol=1e-60))


def test_the_orbit_of_a_large_batch_does_not_grow_without_bound(monkeypatch):
    monkeypatch.setattr(trajectories, "LONGEST_ORBIT", 2000)
    asked = []

    def seen(flow, initial, times, **options):
        asked.append(len(times))
        return integrate(flow, initial, times, **options)

    monkeypatch.setattr(trajectories, "integrate", seen)
    found = sample(circle(), 80, generator(), Sampling(samples=400, burn_in=0, rtol=1e-4, atol=1e-4))
    assert asked[0] <= 2000
    assert len(found.states[:, 0].unique(dim=0)) == 80


def test_trajectories_that_come_to_rest_are_warned_about():
    damped = Flow("damped", 1, lambda t, y: 1 - y, torch.zeros(1, dtype=EXACT), 1.0)
    with pytest.warns(UserWarning, match="damped: 2 of 2 trajectories come to rest; not chaotic"):
        sample(damped, 2, generator(), Sampling(samples=200, burn_in=2000))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "samples = 0"),
        ({"burn_in": -1}, "burn_in = -1"),
        ({"points": 0}, "points = 0"),
        ({"points": math.inf}, "points = inf"),
        ({"timescale": "day"}, "timescale = 'day'"),
    ],
)
def test_a_sampling_out_of_range_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Sampling(**settings)


def test_lyapunov_units_need_a_positive_exponent():
    for exponent in (None, 0.0, -0.1):
        with pytest.raises(InputError, match="circle has the Lyapunov exponent"):
            sample(circle(stored_lyapunov=exponent), 2, generator(), Sampling(timescale="lyapunov"))


def test_a_batch_that_does_not_fit_is_refused(catalogue):
    with pytest.raises(InputError, match="batch = 0"):
        sample(circle(), 0, generator())
    with pytest.raises(InputError, match="parameters of 2 rows; batch = 3"):
        sample(catalogue.load("Lorenz", {"rho": torch.tensor([20.0, 28.0])}), 3, generator())
    with pytest.raises(InputError, match="MackeyGlass is a delay system"):
        integrate(catalogue.load("MackeyGlass"), torch.ones(1, 1), torch.arange(3))
    with pytest.raises(InputError, match="level = -1"):
        with_noise(torch.ones(3, 1), -1, generator())

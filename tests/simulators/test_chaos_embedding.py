import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from core.errors import InputError
from simulators.chaos.embedding import (
    delay_embedding,
    embedding_delay,
    embedding_dimension,
    false_neighbours,
    mutual_information,
)
from simulators.chaos.flow import Flow
from simulators.chaos.integrate import integrate
from simulators.chaos.neighbours import divergence_curves, largest_exponent_of_series, nearest, straightest
from simulators.chaos.spectrum import (
    dominant_period,
    hellinger_distance,
    multiscale_entropy,
    power_spectrum,
    spectrum_distance,
)


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sine(length, period):
    return torch.sin(2 * torch.pi * torch.arange(length, dtype=torch.float64) / period)


def logistic(length):
    x = [0.3]
    while len(x) < length:
        x.append(4 * x[-1] * (1 - x[-1]))
    return torch.tensor(x, dtype=torch.float64)


@pytest.fixture(scope="module")
def lorenz():
    def f(t, y):
        return [10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]]

    times = 0.02 * np.arange(4000) + 20
    return torch.as_tensor(solve_ivp(f, (0, times[-1]), [1.0, 1.0, 20.0], t_eval=times, rtol=1e-8, atol=1e-8).y.T)


def test_an_embedding_holds_the_delayed_samples():
    series = torch.arange(10.0)
    assert delay_embedding(series, 3, 3).tolist() == [[i, i + 3, i + 6] for i in range(4)]
    both = delay_embedding(torch.stack([series, -series], 1)[None], 2, 2)
    assert both.shape == (1, 8, 4)
    assert both[0, 0].tolist() == [0, 0, 2, -2]
    assert torch.equal(delay_embedding(series, 5, 1)[:, 0], series)


def test_mutual_information_of_noise_is_none_and_at_lag_zero_the_entropy():
    information = mutual_information(noise(5000), 20)
    assert float(information[0]) == pytest.approx(math.log(31), abs=0.01)
    assert float(information[1:].max()) < 0.15


def test_the_delay_of_a_sinusoid_is_a_quarter_of_its_period():
    series = sine(4000, 40.3) + 0.05 * noise(4000)
    assert embedding_delay(series) == pytest.approx(10, abs=1)


def test_the_delay_of_noise_is_short():
    assert embedding_delay(noise(3000)) <= 5


def test_lorenz_is_unfolded_in_three_dimensions(lorenz):
    delay = embedding_delay(lorenz[:, 0])
    assert 5 <= delay <= 12
    assert embedding_dimension(lorenz[:, 0], delay, theiler=40) == 3
    assert false_neighbours(lorenz[:, 0], delay, 1, theiler=40) > 0.9


def test_a_sinusoid_is_unfolded_in_two_dimensions():
    assert embedding_dimension(sine(1500, 40.3), 10, theiler=40) == 2


def test_noise_is_never_unfolded():
    assert embedding_dimension(noise(1500), 1) == 10


def test_neighbours_are_the_nearest_outside_the_window():
    points = noise(2, 80, 2)
    found = nearest(points, torch.tensor([0, 10]))
    for series, window in ((0, 0), (1, 10)):
        distance = torch.cdist(points[series], points[series])
        index = torch.arange(80)
        distance[(index[:, None] - index).abs() <= window] = torch.inf
        assert torch.equal(found[series], distance.argmin(1))
    some = torch.tensor([3, 50])
    assert torch.equal(nearest(points, torch.tensor([0, 10]), some), found[:, some])


def test_repeated_points_are_no_neighbours():
    points = torch.tensor([0.0, 1.0, 0.0, 1.5]).double()[None, :, None]
    assert nearest(points, torch.tensor([0])).tolist() == [[1, 3, 1, 1]]


def test_the_logistic_map_doubles_distances():
    found = largest_exponent_of_series(logistic(2000), 1.0, theiler=1)
    assert found.exponent.mean == pytest.approx(math.log(2), abs=0.02)
    assert found.exponent.low - 0.01 < math.log(2) < found.exponent.high + 0.01
    assert found.r_squared > 0.99


def test_the_spacing_sets_the_unit_of_the_exponent():
    series = logistic(800)
    one, tenth = (largest_exponent_of_series(series, dt, theiler=1) for dt in (1.0, 0.1))
    assert tenth.exponent.mean == pytest.approx(10 * one.exponent.mean)
    assert tenth.window == pytest.approx([0.1 * t for t in one.window])


def test_lorenz_drifts_apart_at_about_its_exponent(lorenz):
    found = largest_exponent_of_series(lorenz, 0.02, theiler=40)
    assert found.exponent.mean == pytest.approx(0.906, rel=0.25)
    assert found.exponent.low > 0.5


def test_a_torus_does_not_drift_apart():
    angles = torch.arange(3000, dtype=torch.float64)[:, None] * torch.tensor([0.156, 0.0731]).double()
    torus = torch.cat([angles.cos(), angles.sin()], 1)
    assert abs(largest_exponent_of_series(torus, 1.0, theiler=57).exponent.mean) < 1e-6


def test_a_straight_line_is_found_whole_and_exactly():
    k = torch.arange(101, dtype=torch.float64)
    curve = torch.minimum(0.25 * k - 3, torch.tensor(7.0).double())
    begin, end, slope, r_squared = (float(x) for x in straightest(curve[None]))
    assert (begin, end) == (0, 24)
    assert slope == pytest.approx(0.25)
    assert r_squared == pytest.approx(1.0)


def test_blocks_make_up_the_whole_curve():
    points = noise(1, 210, 2)
    window = torch.tensor([0])
    means, weights = divergence_curves(points, window, 10, blocks=5)
    whole, _ = divergence_curves(points, window, 10)
    assert torch.allclose((means * weights).sum(1) / weights.sum(1), whole[:, 0])


def test_the_interval_of_an_exponent_is_as_wide_as_stretches_of_an_orbit_differ():
    def lorenz(t, y):
        u, v, w = y.unbind(1)
        return torch.stack([10 * (v - u), u * (28 - w) - v, u * v - 8 / 3 * w], 1)

    flow = Flow("lorenz", 3, lorenz, torch.tensor([-9.8, -15.0, 20.5]).double(), 0.75)
    start = flow.initial + torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = integrate(flow, start, 0.015 * torch.arange(3000.0).double(), method="rk4", steps=2).states[:, 500:]
    found = [largest_exponent_of_series(x, 0.015, theiler=50, resamples=200).exponent for x in states]
    spread = torch.tensor([x.mean for x in found]).std()
    half = torch.tensor([(x.high - x.low) / 2 for x in found]).mean()
    assert 1.5 * spread < half < 4 * spread
    assert sum(x.low <= 0.9056 <= x.high for x in found) >= 10


@pytest.mark.parametrize("dt", [1.0, 0.05])
def test_the_dominant_period_of_a_sinusoid(dt):
    series = sine(1000, 37.3) + 0.3 * noise(1000)
    assert dominant_period(series, dt) == pytest.approx(37.3 * dt, rel=0.01)
    both = torch.stack([series, 100 + 5 * series], 1)
    assert dominant_period(both, dt) == pytest.approx(37.3 * dt, rel=0.01)


@pytest.mark.parametrize(("samples", "period"), [(200, 40), (120, 30), (200, 66), (48, 12)])
def test_the_period_of_few_turns_is_not_too_short(samples, period):
    for phase in range(6):
        wave = torch.sin(2 * math.pi * torch.arange(samples, dtype=torch.float64) / period + phase)
        assert dominant_period(wave, 1.0) == pytest.approx(period, rel=2e-3)


def test_noise_has_no_period():
    refused = 0
    for seed in range(10):
        try:
            dominant_period(noise(500, seed=seed), 1.0)
        except InputError:
            refused += 1
    assert refused >= 9


def test_the_spectrum_of_a_sinusoid_has_one_peak_and_keeps_white_noise_flat():
    power = power_spectrum(sine(1000, 20.0)[:, None])
    assert int(power[:, 0].argmax()) == round(400 / 20)
    flat = power_spectrum(noise(64, 1000, 1)).mean(0)[1:-1]
    assert float(flat.std() / flat.mean()) < 0.2


def test_distances_of_spectra_vanish_for_equal_and_are_largest_for_disjoint_ones():
    first, second = sine(2000, 20.0)[:, None], sine(2000, 7.0)[:, None]
    assert float(spectrum_distance(first, first)) == 0
    assert float(hellinger_distance(first, first)) < 1e-6
    assert float(hellinger_distance(first, second)) > 0.95
    assert float(hellinger_distance(first, 3 * first + 1)) < 1e-6
    batch = hellinger_distance(torch.stack([first, second]), torch.stack([first, first]))
    assert torch.allclose(batch, torch.stack([hellinger_distance(first, first), hellinger_distance(second, first)]))


def test_sample_entropy_of_noise_is_that_of_a_gaussian_and_falls_with_the_scale():
    # Two independent Gaussians within 0.2 of their standard deviation: probability erf(0.1).
    found = multiscale_entropy(noise(4000))
    assert float(found[0]) == pytest.approx(-math.log(math.erf(0.1)), abs=0.1)
    assert bool((found.diff() < 0).all())
    assert float(multiscale_entropy(sine(4000, 200.0))[0]) < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: delay_embedding(torch.zeros(5), 3, 3), "5 samples are too few"),
        (lambda: delay_embedding(torch.zeros(5), 0, 3), "at least 1"),
        (lambda: embedding_delay(torch.ones(500)), "constant"),
        (lambda: embedding_delay(noise(20)), "20 samples"),
        (lambda: mutual_information(noise(100), 80), "longest: 80"),
        (lambda: embedding_dimension(noise(150), 10), "150 samples"),
        (lambda: false_neighbours(noise(500), 1, 11), "11"),
        (lambda: largest_exponent_of_series(noise(30), 1.0, theiler=1), "30 samples"),
        (lambda: largest_exponent_of_series(noise(300), -1.0, theiler=1), "dt: -1"),
        (lambda: largest_exponent_of_series(noise(300), 1.0, theiler=100), "theiler: 100"),
        (lambda: largest_exponent_of_series(noise(300), 1.0, theiler=1, horizon=2), "horizon: 2"),
        (lambda: largest_exponent_of_series(noise(300) / 0, 1.0, theiler=1), "must be finite"),
        (lambda: dominant_period(torch.full((100,), torch.nan), 1.0), "sample 0"),
        (lambda: dominant_period(noise(100), 0.0), "dt: 0"),
        (lambda: multiscale_entropy(noise(100)), "100 samples"),
    ],
)
def test_bad_series_and_settings_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_the_delay_of_maps_is_one():
    henon, x, y = [], 0.1, 0.1
    for _ in range(3000):
        x, y = 1 - 1.4 * x * x + y, 0.3 * x
        henon.append(x)
    logistic, z = [], 0.3
    for _ in range(3000):
        z = 3.99 * z * (1 - z)
        logistic.append(z)
    assert embedding_delay(torch.tensor(henon[100:], dtype=torch.float64)) == 1
    assert embedding_delay(torch.tensor(logistic[100:], dtype=torch.float64)) == 1

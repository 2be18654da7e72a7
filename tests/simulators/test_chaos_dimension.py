import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from core.errors import InputError
from simulators.chaos.dimension import correlation_dimension, correlation_dimensions, pair_counts


def uniform(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def circles(angles):
    """A torus: one circle an angle."""
    return torch.cat([angles.cos(), angles.sin()], 1)


def henon(length):
    points = np.empty((length + 100, 2))
    points[0] = 0.1, 0.1
    for i in range(1, len(points)):
        x, y = points[i - 1]
        points[i] = 1 - 1.4 * x * x + y, 0.3 * x
    return points[100:]


def lorenz(length, dt):
    def f(t, y):
        return [10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]]

    times = dt * np.arange(length) + 20
    return solve_ivp(f, (0, times[-1]), [1.0, 1.0, 20.0], t_eval=times, rtol=1e-8, atol=1e-8).y.T


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_a_torus_has_as_many_dimensions_as_angles(dimension):
    found = correlation_dimension(circles(2 * torch.pi * uniform(3000, dimension)), theiler=0)
    assert found.dimension.mean == pytest.approx(dimension, abs=0.06 * dimension)


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_white_noise_fills_its_space(dimension):
    noise = torch.randn(3000, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = correlation_dimension(noise, theiler=0).dimension
    assert found.mean == pytest.approx(dimension, abs=0.06 * dimension)


def test_the_henon_map_has_the_dimension_of_the_literature():
    # Grassberger and Procaccia (1983), table 1: 1.21.
    found = correlation_dimension(henon(5000), theiler=5).dimension
    assert found.low - 0.02 < 1.21 < found.high + 0.02
    assert found.high - found.low < 0.15


def test_the_lorenz_attractor_has_the_dimension_of_the_literature():
    # Grassberger and Procaccia (1983), table 1: 2.05.
    found = correlation_dimension(lorenz(4000, 0.06), theiler=15)
    assert found.dimension.low < 2.05 < found.dimension.high
    assert found.dimension.mean == pytest.approx(2.05, abs=0.12)
    plateau = found.slopes[2:8]
    assert float(plateau.max() - plateau.min()) < 0.2


def test_the_bootstrap_interval_covers_as_often_as_it_says():
    covered = sum(
        found.low < 2 < found.high
        for found in (
            correlation_dimension(
                circles(2 * torch.pi * uniform(600, 2, seed=s)), theiler=0, window=(3e-3, 3e-2)
            ).dimension
            for s in range(20)
        )
    )
    assert covered >= 16


def test_the_theiler_window_takes_out_what_is_near_in_time_alone():
    # A slow random walk in five dimensions: neighbours in time make it look like a curve.
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(1500, 5, dtype=torch.float64, generator=generator)
    walk = torch.stack([steps[max(0, i - 30) : i + 1].mean(0) for i in range(1500)])
    near, apart = (correlation_dimension(walk, theiler=w).dimension.mean for w in (0, 60))
    assert apart > near + 1


def test_scale_and_rotation_leave_the_dimension():
    points = torch.as_tensor(henon(1500))
    turn = torch.linalg.qr(uniform(2, 2)).Q
    first, second = (correlation_dimension(p, theiler=1) for p in (points, 1000 * points @ turn + 7))
    assert first.dimension.mean == pytest.approx(second.dimension.mean, abs=1e-6)
    assert torch.allclose(second.radii, 1000 * first.radii)


def test_pairs_are_counted_once_and_all_of_them():
    points = uniform(2, 57, 3)
    for theiler in (0, 4):
        counts = pair_counts(points, torch.tensor([theiler, theiler]), 7)
        pairs = (57 - theiler) * (57 - theiler - 1) // 2
        assert counts.sum((1, 2, 3)).tolist() == [pairs, pairs]
        # Block of the earlier point first.
        assert float(counts.sum(-1).tril(-1).abs().max()) == 0


def test_a_batch_equals_its_series_and_a_broken_one_is_alone():
    series = uniform(3, 400, 2)
    series[1, 100:] = torch.nan
    windows = torch.tensor([0, 0, 5])
    found = correlation_dimensions(series, windows)
    assert bool(found[1].isnan())
    for i in (0, 2):
        alone = correlation_dimension(series[i], theiler=int(windows[i])).dimension.mean
        assert float(found[i]) == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize(
    ("points", "settings", "message"),
    [
        (torch.zeros(500, 2), {}, "channel 0 is constant"),
        (uniform(100, 2), {}, "has 100 samples, at least 200"),
        (uniform(500, 2).index_fill(0, torch.tensor([7]), torch.nan), {}, "sample 7 of channel 0 is nan"),
        (uniform(2, 500, 2), {}, "shape"),
        (uniform(500, 2), {"theiler": 300}, "theiler: 300 samples is outside"),
        (uniform(500, 2), {"window": (0.1, 0.01)}, "window"),
        ((uniform(500, 1) * 2).floor(), {}, "too few different distances"),
    ],
)
def test_what_has_no_dimension_is_refused(points, settings, message):
    with pytest.raises(InputError, match=message):
        correlation_dimension(points, **{"theiler": 0, **settings})

import dataclasses
import math

import numpy as np
import pytest
import xarray as xr
from scipy import optimize

from apps.fishery.production_likelihood import LOWER, UPPER, ProductionLikelihood
from apps.fishery.simplex_search import simplex_search
from apps.fishery.surplus_production import fit_surplus_production
from apps.fishery.surplus_production_figure import plot_fit
from core.errors import InputError
from simulators.fishery.stocks import Stock, read_stock

# A contrast that informs r and K: the stock is fished down, then released.
CATCH = np.array([5, 15, 25, 35, 45, 50, 50, 45, 40, 35, 30, 25, 20, 15, 10, 10, 10, 10, 15, 20, 20, 20, 20, 20.0])


def biomass_path(r, K, catch, p=1.0, depletion=1.0):
    """The model once more, in the plainest words."""
    path = [depletion * K]
    for caught in catch:
        b = path[-1]
        path.append(max(b + r / p * b * (1 - (b / K) ** p) - caught, 1e-3 * K))
    return np.array(path)


def simulated(r=0.4, K=300.0, p=1.0, depletion=1.0, sigma=0.0, seed=0, q=0.02):
    b = biomass_path(r, K, CATCH, p, depletion)[:-1]
    index = q * b * np.exp(sigma * np.random.default_rng(seed).normal(size=len(b)))
    return Stock("simulated", np.arange(2000, 2000 + len(b)), CATCH, index, "kt", "kg/hook", "simulation")


def negative_log_likelihood(stock, r, K, p=1.0, depletion=1.0):
    b = biomass_path(r, K, stock.catch, p, depletion)[:-1]
    error = np.log(stock.index / b)
    error = error[np.isfinite(error)]
    penalty = 1e3 * np.sum(stock.catch > 0.98 * b)
    return 0.5 * len(error) * (math.log(2 * math.pi * error.var()) + 1) + penalty


@pytest.mark.parametrize(
    ("name", "r", "K", "msy", "sigma"),
    [
        ("south_atlantic_albacore", 0.320, 243, 19.4, 0.110),
        ("namibian_hake", 0.370, 2823, 261, 0.125),
        ("nz_rock_lobster", 0.049, 142400, 1758, 0.207),
    ],
)
def test_fits_of_the_published_stocks_agree_with_an_independent_implementation(name, r, K, msy, sigma):
    fit = fit_surplus_production(read_stock(name), intervals="none")
    assert fit.r == pytest.approx(r, abs=6e-4)
    assert pytest.approx(K, rel=3e-3) == fit.K
    assert fit.msy == pytest.approx(msy, rel=3e-3)
    assert fit.sigma == pytest.approx(sigma, abs=6e-4)
    assert fit.identified
    assert fit.initial_depletion == 1.0
    if name == "south_atlantic_albacore":
        assert fit.biomass[-1] / fit.K == pytest.approx(0.31, abs=5e-3)


@pytest.mark.parametrize(
    ("name", "r", "K", "depletion"),
    [("south_atlantic_albacore", 0.308, 252, 1.15), ("namibian_hake", 0.364, 2907, 1.72)],
)
def test_fits_with_a_free_first_biomass_agree_with_an_independent_implementation(name, r, K, depletion):
    fit = fit_surplus_production(read_stock(name), initial="free", intervals="none")
    assert fit.r == pytest.approx(r, abs=6e-4)
    assert pytest.approx(K, rel=3e-3) == fit.K
    assert fit.initial_depletion == pytest.approx(depletion, abs=6e-3)
    assert fit.identified


def test_lobster_with_a_free_first_biomass_is_not_identified_and_not_written_as_a_result():
    fit = fit_surplus_production(read_stock("nz_rock_lobster"), initial="free")
    assert not fit.identified
    assert fit.at_bound == ("r",)
    assert fit.r == pytest.approx(1e-3, rel=1e-3)
    assert fit.intervals["r"].low_open
    assert fit.intervals["msy"].low_open
    data = fit.to_dataset()
    assert data.attrs["identified"] == 0
    assert data.attrs["at_bound"] == "r"
    for name in ("r", "K", "q", "msy", "initial_depletion", "biomass_next"):
        assert np.isnan(data[name])
    assert np.isfinite(data["predicted_index"]).all()


@pytest.mark.parametrize("name", ["south_atlantic_albacore", "namibian_hake", "nz_rock_lobster"])
def test_no_better_point_is_found_by_a_global_search(name):
    stock = read_stock(name)
    fit = fit_surplus_production(stock, intervals="none")
    largest = stock.catch.max()
    found = optimize.differential_evolution(
        lambda x: negative_log_likelihood(stock, *np.exp(x)),
        [(math.log(1e-3), math.log(3)), (math.log(largest), math.log(1000 * largest))],
        rng=1,
        maxiter=60,
        tol=1e-10,
    )
    assert -fit.log_likelihood <= found.fun + 1e-6


@pytest.mark.parametrize(
    ("p", "depletion", "initial"), [(1.0, 1.0, "virgin"), (2.0, 1.0, "virgin"), (0.5, 0.7, "free")]
)
def test_known_parameters_are_recovered_from_data_without_noise(p, depletion, initial):
    stock = simulated(0.4, 300.0, p, depletion)
    fit = fit_surplus_production(stock, exponent=p, initial=initial, intervals="none")
    assert fit.r == pytest.approx(0.4, rel=1e-3)
    assert pytest.approx(300.0, rel=1e-3) == fit.K
    assert fit.q == pytest.approx(0.02, rel=1e-3)
    assert fit.initial_depletion == pytest.approx(depletion, rel=1e-3)
    assert fit.sigma < 1e-4


@pytest.mark.parametrize("p", [0.2, 1.0, 3.0])
def test_msy_is_the_largest_surplus_and_stands_at_its_biomass(p):
    fit = fit_surplus_production(simulated(p=p), exponent=p, intervals="none")
    best = optimize.minimize_scalar(
        lambda b: -fit.r / p * b * (1 - (b / fit.K) ** p), bounds=(0, fit.K), method="bounded", options={"xatol": 1e-8}
    )
    assert fit.msy == pytest.approx(-best.fun, rel=1e-8)
    assert fit.biomass_at_msy == pytest.approx(best.x, rel=1e-4)
    if p == 1.0:
        assert fit.msy == pytest.approx(fit.r * fit.K / 4)


def test_the_fit_obeys_its_own_equations():
    stock = read_stock("namibian_hake")
    fit = fit_surplus_production(stock, initial="free", exponent=1.5, intervals="none")
    path = biomass_path(fit.r, fit.K, stock.catch, 1.5, fit.initial_depletion)
    np.testing.assert_allclose(np.append(fit.biomass, fit.biomass_next), path, rtol=1e-10)
    np.testing.assert_allclose(fit.predicted_index * np.exp(fit.residuals), stock.index)
    assert fit.residuals.mean() == pytest.approx(0.0, abs=1e-12)
    assert fit.residuals.std() == pytest.approx(fit.sigma)
    own = negative_log_likelihood(stock, fit.r, fit.K, 1.5, fit.initial_depletion)
    assert fit.log_likelihood == pytest.approx(-own)


def test_a_gap_in_the_index_is_a_year_less_in_the_likelihood():
    stock = simulated(sigma=0.1)
    index = stock.index.copy()
    index[[3, 10, 11]] = np.nan
    gappy = dataclasses.replace(stock, index=index)
    fit = fit_surplus_production(gappy, intervals="bootstrap", resamples=100)
    assert fit.log_likelihood == pytest.approx(-negative_log_likelihood(gappy, fit.r, fit.K))
    assert np.isnan(fit.residuals).nonzero()[0].tolist() == [3, 10, 11]
    assert np.isfinite(fit.predicted_index).all()
    assert fit.r == pytest.approx(fit_surplus_production(stock, intervals="none").r, rel=0.3)


def test_the_unit_of_catch_scales_biomass_and_nothing_else():
    stock = read_stock("south_atlantic_albacore")
    fit = fit_surplus_production(stock)
    tonnes = fit_surplus_production(dataclasses.replace(stock, catch=1000 * stock.catch))
    assert tonnes.r == pytest.approx(fit.r, rel=1e-5)
    assert pytest.approx(1000 * fit.K, rel=1e-5) == tonnes.K
    assert tonnes.q == pytest.approx(fit.q / 1000, rel=1e-5)
    assert tonnes.intervals["r"][:2] == pytest.approx(fit.intervals["r"][:2], rel=1e-4)
    assert tonnes.intervals["msy"].high == pytest.approx(1000 * fit.intervals["msy"].high, rel=1e-4)


def profile_drop(stock, fit, name, value):
    """Fall of the log-likelihood when r, K or MSY is held at ``value``, by scipy on the plain model."""
    depletion = [math.log(fit.initial_depletion)] if fit.initial == "free" else []

    def of(x):
        other, d = math.exp(x[0]), math.exp(x[1]) if depletion else 1.0
        r, K = {"r": (value, other), "K": (other, value), "msy": (4 * value / other, other)}[name]
        return negative_log_likelihood(stock, r, K, depletion=d)

    shift = math.log(value / getattr(fit, name))
    first = fit.r if name == "K" else fit.K
    starts = [[math.log(first) + share * shift, *depletion] for share in (-1, -0.5, 0, 0.5, 1)]
    options = {"xatol": 1e-9, "fatol": 1e-9, "maxiter": 2000}
    best = min(optimize.minimize(of, x, method="Nelder-Mead", options=options).fun for x in starts)
    return best + fit.log_likelihood


@pytest.mark.parametrize(("stock", "initial"), [("namibian_hake", "virgin"), ("south_atlantic_albacore", "free")])
def test_profile_ends_lie_where_the_log_likelihood_has_fallen_by_1_92(stock, initial):
    stock = read_stock(stock)
    fit = fit_surplus_production(stock, initial=initial)
    for name, ends in fit.intervals.items():
        assert ends.low < getattr(fit, name) < ends.high
        assert not ends.low_open
        assert not ends.high_open
        for end in (ends.low, ends.high):
            assert profile_drop(stock, fit, name, end) == pytest.approx(1.92, abs=2e-3)


@pytest.mark.parametrize(
    ("r", "K", "depletion", "sigma"), [(0.3, 400, 0.6, 0.35), (0.15, 700, 0.9, 0.15), (1.2, 150, 1, 0.4)]
)
def test_profile_ends_of_poor_data_agree_with_an_exhaustive_grid(r, K, depletion, sigma):
    stock = simulated(r, K, depletion=depletion, sigma=sigma, seed=4)
    fit = fit_surplus_production(stock)
    likelihood, step = ProductionLikelihood(stock, 1.0), 0.016
    log_r, log_k = (np.arange(low, high, step) for low, high in zip(LOWER[:2], UPPER[:2], strict=True))
    drop = np.stack([likelihood.objective(np.stack([np.full_like(log_k, x), log_k, 0 * log_k], axis=1)) for x in log_r])
    drop = drop + fit.log_likelihood
    i, j = np.nonzero(drop <= 1.92)
    largest = stock.catch.max()
    regions = {
        "r": np.exp(log_r[i]),
        "K": np.exp(log_k[j]) * largest,
        "msy": np.exp(log_r[i] + log_k[j]) * largest / 4,
    }
    for name, region in regions.items():
        ends = fit.intervals[name]
        assert math.log(region.min() / ends.low) == pytest.approx(0, abs=3 * step)
        assert math.log(region.max() / ends.high) == pytest.approx(0, abs=3 * step)


def test_an_end_that_meets_a_bound_is_open():
    fit = fit_surplus_production(read_stock("nz_rock_lobster"))
    assert fit.identified
    assert fit.intervals["r"].low_open
    assert fit.intervals["r"].low == pytest.approx(1e-3)
    # With the largest K goes the smallest r: that end too is the bound's and not the data's.
    assert fit.intervals["K"].high_open
    assert fit.intervals["msy"].low_open
    assert not fit.intervals["r"].high_open
    assert not fit.intervals["K"].low_open


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    truth = {"r": 0.4, "K": 300.0, "msy": 30.0}
    covered = dict.fromkeys(truth, 0)
    for seed in range(40):
        fit = fit_surplus_production(simulated(sigma=0.1, seed=seed))
        for name, value in truth.items():
            covered[name] += fit.intervals[name].low <= value <= fit.intervals[name].high
    # The likelihood ratio of 24 values with sigma profiled out is a little narrow: 0.91 in 200 simulations, 36 of 40.
    assert all(31 <= count < 40 for count in covered.values()), covered


def test_bootstrap_agrees_with_the_profile_and_follows_its_seed():
    stock = read_stock("namibian_hake")
    profile = fit_surplus_production(stock)
    bootstrap, again, other = (
        fit_surplus_production(stock, intervals="bootstrap", resamples=500, seed=seed).intervals for seed in (0, 0, 1)
    )
    assert bootstrap == again != other
    for name, ends in profile.intervals.items():
        width = ends.high - ends.low
        assert bootstrap[name].low == pytest.approx(ends.low, abs=0.15 * width)
        assert bootstrap[name].high == pytest.approx(ends.high, abs=0.15 * width)


def test_the_likelihood_of_many_points_is_that_of_each():
    likelihood = ProductionLikelihood(read_stock("namibian_hake"), 1.0)
    theta = np.random.default_rng(0).normal([-1, 2, 0], 0.5, (50, 3))
    each = np.array([likelihood.objective(t[None])[0] for t in theta])
    np.testing.assert_allclose(likelihood.objective(theta), each, rtol=1e-12)
    plain = [
        negative_log_likelihood(likelihood.stock, r, k * likelihood.stock.catch.max(), depletion=d)
        for r, k, d in np.exp(theta)
    ]
    np.testing.assert_allclose(each, plain, rtol=1e-9)


def test_a_simplex_search_takes_the_steps_of_scipys_nelder_mead():
    def rough(x):
        return np.sum(x**2, axis=-1) + np.cos(9 * x[..., 0]) * np.sin(7 * x[..., 1])

    starts = np.random.default_rng(0).normal(0, 1.5, (30, 2))
    for iterations in (3, 10, 25):
        points, values = simplex_search(
            lambda x, _: rough(x),
            starts,
            np.broadcast_to(np.eye(2), (30, 2, 2)),
            steps=(0.7,),
            tolerance=0.0,
            iterations=iterations,
        )
        for start, point, value in zip(starts, points, values, strict=True):
            simplex = np.vstack([start, start + 0.7 * np.eye(2)])
            options = {"initial_simplex": simplex, "maxiter": iterations + 1, "xatol": 0, "fatol": 0}
            theirs = optimize.minimize(rough, start, method="Nelder-Mead", options=options)
            np.testing.assert_allclose(point, theirs.x, rtol=1e-9, atol=1e-9)
            assert value == pytest.approx(theirs.fun)


def test_simplex_searches_find_their_own_minima_within_their_subspaces():
    targets = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])

    def quartic(x, rows):
        e = x - targets[rows]
        return e[:, 0] ** 2 + 10 * (e[:, 1] - 0.3 * e[:, 0]) ** 2 + e[:, 2] ** 4

    points, values = simplex_search(quartic, np.zeros((2, 3)), np.broadcast_to(np.eye(3), (2, 3, 3)))
    np.testing.assert_allclose(points[:, :2], targets[:, :2], atol=1e-3)
    assert (values < 1e-6).all()
    # Along (1, -1, 0) from the origin the sum of the first two coordinates stays zero.
    points, _ = simplex_search(quartic, np.zeros((2, 3)), np.broadcast_to([[1.0, -1.0, 0.0]], (2, 1, 3)))
    np.testing.assert_allclose(points[:, 0] + points[:, 1], 0, atol=1e-12)
    line = [optimize.minimize_scalar(lambda t, i=i: quartic(np.array([[t, -t, 0.0]]), [i])[0]).x for i in range(2)]
    np.testing.assert_allclose(points[:, 0], line, atol=1e-4)


def test_a_constant_index_without_information_is_not_identified():
    stock = dataclasses.replace(simulated(), index=np.ones(len(CATCH)))
    fit = fit_surplus_production(stock)
    assert not fit.identified
    assert any(ends.low_open or ends.high_open for ends in fit.intervals.values())


def test_dataset_survives_netcdf_with_units_and_intervals(tmp_path):
    fit = fit_surplus_production(read_stock("namibian_hake"))
    fit.to_dataset().to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "fit.nc", engine="h5netcdf") as data:
        assert float(data["K"]) == fit.K
        assert data["K"].attrs["units"] == "thousand tonnes"
        assert data["msy"].attrs["units"] == "thousand tonnes/year"
        assert data["biomass"].dims == ("year",)
        assert data["r_interval"].sel(end="high") == fit.intervals["r"].high
        assert not data["r_open"].any()
        assert "unconfirmed" in data.attrs["source"]
        assert data.attrs["identified"] == 1


@pytest.mark.parametrize("initial", ["virgin", "free"])
def test_figure_names_units_and_says_what_is_not_identified(initial):
    stock = read_stock("nz_rock_lobster")
    figure = plot_fit(stock, fit_surplus_production(stock, initial=initial))
    labels = [panel.get_ylabel() for panel in figure.axes]
    assert "kg per pot lift" in labels
    assert "tonnes / year" in labels
    legends = [t.get_text() for panel in figure.axes if panel.get_legend() for t in panel.get_legend().get_texts()]
    assert any("MSY" in text for text in legends) == (initial == "virgin")
    assert any("(open)" in text for text in legends) == (initial == "virgin")
    assert ("not identified" in figure.get_suptitle()) == (initial == "free")
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exponent": 0.0}, r"exponent: 0.0 is outside \[0.01, 10\]"),
        ({"exponent": float("nan")}, "exponent"),
        ({"initial": "fished"}, "initial: 'fished' is not one of virgin, free"),
        ({"intervals": "bayes"}, "intervals: 'bayes' is not one of profile, bootstrap, none"),
        ({"intervals": "bootstrap", "resamples": 10}, "resamples: 10 is below 100"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        fit_surplus_production(read_stock("namibian_hake"), **options)

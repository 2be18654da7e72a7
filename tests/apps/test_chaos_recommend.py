"""Recommendations: on maps whose law is known, the forecaster that contains the law comes first."""

import numpy as np
import pytest

from apps.chaos import recommendation as module
from apps.chaos.forecasters.linear import Linear
from apps.chaos.recommendation import Candidate, candidates, ranked, recommend
from apps.chaos.series import Series
from core.errors import InputError, MissingExtra

CHEAP = ("naive_mean", "naive_seasonal", "linear", "nvar", "ngrc", "hopfield")


def series_of(values):
    values = np.asarray(values, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    names = tuple(f"x{i}" for i in range(values.shape[1]))
    return Series(values, np.arange(float(len(values))), 1.0, names, ("",) * len(names), "made.csv")


def henon(n):
    x = np.empty((n, 2))
    x[0] = 0.1, 0.1
    for t in range(1, n):
        x[t] = 1 - 1.4 * x[t - 1, 0] ** 2 + x[t - 1, 1], 0.3 * x[t - 1, 0]
    return x


def logistic(n):
    x = np.empty(n)
    x[0] = 0.3
    for t in range(1, n):
        x[t] = 3.9 * x[t - 1] * (1 - x[t - 1])
    return x


def test_linear_regression_is_first_on_a_linear_map():
    rng = np.random.default_rng(0)
    turn = 0.97 * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    x = np.zeros((300, 2))
    for t in range(1, 300):
        x[t] = turn @ x[t - 1] + rng.normal(size=2)
    found = recommend(series_of(x), 10, methods=CHEAP)
    assert found.best.kind in ("linear", "nvar")  # both are linear
    errors = found.table["nrmse"].mean("origin").to_series()
    assert errors["linear"] < errors["naive_mean"]
    assert errors["linear"] < 1.05 * errors.min()


@pytest.mark.parametrize("values", [henon(400), henon(400)[:, 0], logistic(300)], ids=["henon", "observed", "logistic"])
def test_the_polynomial_is_first_on_polynomial_maps(values):
    found = recommend(series_of(values), 15, methods=CHEAP)
    assert found.best.kind == "ngrc"
    means = found.table["valid_samples"].mean("origin").to_series()
    assert means["ngrc"] > 2 * means["linear"]
    assert means["ngrc"] > 8
    assert not found.skipped


def test_the_table_has_every_method_with_intervals_and_settings():
    found = recommend(series_of(logistic(150)), 10, methods=("naive_mean", "ngrc"), origins=8)
    assert found.table["method"].values.tolist() == ["ngrc", "naive_mean"]
    assert found.table["settings"].values[0].startswith("order=")
    assert found.table.sizes == {"method": 2, "origin": 8}
    rows = found.rows()
    assert {row.metric for row in rows} == {"valid time", "nrmse", "sMAPE", "fit"}
    valid = next(row for row in rows if row.metric == "valid time")
    assert valid.low <= valid.mean <= valid.high
    assert valid.n == 8


def test_settings_are_chosen_before_the_part_that_ranks(monkeypatch):
    seen = []
    alone = module.rolled

    def spy(forecaster, values, origins, **options):
        seen.append((len(values), origins))
        return alone(forecaster, values, origins, **options)

    monkeypatch.setattr(module, "rolled", spy)
    recommend(series_of(logistic(300)), 20, methods=("linear",))
    *tuning, (whole, ranking) = seen
    assert whole == 300
    assert all(length == ranking.at[0] for length, _ in tuning)
    assert len(tuning) == 6


def test_methods_that_cannot_take_part_are_named_with_the_reason(monkeypatch):
    def absent(period, channels):
        class Absent(Linear):
            def check(self, samples):
                raise MissingExtra('darts is not installed: pip install "szilard[forecasting]"')

        long = Candidate("long", Linear(lags=500), {})
        partly = Candidate("partly", Linear(), {"lags": (3, 500)})
        return (*candidates(period, channels), Candidate("absent", Absent(), {}), long, partly)

    monkeypatch.setattr(module, "candidates", absent)
    found = recommend(series_of(logistic(90)), 10, methods=("naive_mean", "absent", "long", "partly"))
    assert set(found.table["method"].values) == {"naive_mean", "partly"}
    assert "szilard[forecasting]" in found.skipped["absent"]
    assert "needs at least 511" in found.skipped["long"]
    assert "absent: darts" in found.table.attrs["skipped"]
    with pytest.raises(InputError, match=r"made.csv: no method can forecast it: .*needs at least 511"):
        recommend(series_of(logistic(90)), 10, methods=("long",))


def test_equal_methods_are_ranked_by_error_and_others_by_valid_time():
    valid = np.array([[9.0] * 10, [10, 8] * 5, [3.0] * 10, [4.0] * 10])
    error = np.array([[0.5] * 10, [0.4] * 10, [0.1] * 10, [np.nan] * 10])
    assert ranked(valid, error) == [1, 0, 3, 2]


def test_a_ranking_that_was_stopped_goes_on(tmp_path, monkeypatch):
    series = series_of(logistic(150))
    first = recommend(series, 10, methods=("linear", "ngrc"), checkpoint=tmp_path)
    monkeypatch.setattr("apps.chaos.rolling.fit_scaled", None)
    again = recommend(series, 10, methods=("linear", "ngrc"), checkpoint=tmp_path)
    assert again.table.equals(first.table)
    assert again.forecasters == first.forecasters


@pytest.mark.parametrize(
    ("series", "options", "message"),
    [
        (logistic(100), {"methods": ("magic",)}, "method magic: must be among naive_mean, naive_seasonal"),
        (logistic(100), {"horizon": 0}, "horizon = 0: must be at least 1"),
        (logistic(100), {"origins": 1}, "origins = 1: must be at least 2"),
        (logistic(35), {}, "made.csv: 35 samples: ranking forecasters needs at least 36"),
    ],
)
def test_what_cannot_be_ranked_is_refused(series, options, message):
    given = {"horizon": 10} | options
    with pytest.raises(InputError) as refusal:
        recommend(series_of(series), given.pop("horizon"), **given)
    assert message in str(refusal.value)


def test_the_shortest_series_is_ranked_by_every_method_that_fits():
    found = recommend(series_of(logistic(36)), 5)
    assert {"naive_mean", "linear", "ngrc"} <= set(found.table["method"].values)


def test_sunspots_are_better_forecast_by_their_past_than_by_their_mean():
    datasets = pytest.importorskip("statsmodels.datasets", reason="the sunspots come with statsmodels")
    data = datasets.sunspots.load_pandas().data
    series = Series(
        data[["SUNACTIVITY"]].to_numpy(), data["YEAR"].to_numpy(), 1.0, ("sunspots",), ("",), "sunspots.csv", "years"
    )
    found = recommend(series, 11, methods=(*CHEAP, "theta"))
    errors = found.table["nrmse"].mean("origin").to_series()
    assert errors[found.table["method"].values[0]] < 0.8 * errors["naive_mean"]
    assert found.best.kind != "naive_mean"
    seasonal = next(f for f in found.forecasters if f.kind == "naive_seasonal")
    assert seasonal.season in (1, 11)

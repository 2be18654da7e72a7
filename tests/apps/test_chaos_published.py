import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

from apps.chaos import published_tables as tables
from apps.chaos.published import (
    SPACING,
    checked_systems,
    compare_with_published,
    compare_with_summary,
    method_ranks,
    published_scores,
    published_smape_check,
    published_systems,
    published_truth_check,
)
from core.errors import InputError
from core.stats import proportion_interval
from simulators.chaos import names

FILES = (
    "published_smape_by_train_length.csv.gz",
    "published_lorenz_500step.npz",
    "published_timing_cpu.csv",
    "published_lookback.json",
    "published_univariate_2021.csv.gz",
)


@pytest.fixture(scope="module")
def folder():
    root = Path(os.environ.get("SZILARD_DATA") or Path(__file__).parents[2].parent / "shared" / "data") / "chaos"
    if not all((root / name).is_file() for name in FILES):
        pytest.skip(f"{root} is not there or not whole: set SZILARD_DATA")
    return root


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.delenv("SZILARD_DATA", raising=False)


def test_published_smape_is_met_in_every_row():
    found = published_smape_check()
    assert found.sizes["row"] == 397
    assert pd.Series(found["method"].values).value_counts().to_dict() == {"esn": 133, "nvar": 133, "node": 131}
    deviation = found["deviation"].values
    assert deviation.max() <= 1e-4
    # Six digits are printed: the deviations are those of rounding, half a unit of the last digit.
    digit = 10.0 ** (np.floor(np.log10(found["published"].values)) - 5)
    assert (np.abs(found["ours"] - found["published"]).values <= 0.51 * digit).mean() > 0.6


def test_the_check_can_fail(monkeypatch):
    table = tables.smape_200()
    table.loc[5, "smape"] *= 1.001
    monkeypatch.setattr(tables, "smape_200", lambda: table)
    deviation = published_smape_check()["deviation"].values
    assert deviation[5] == pytest.approx(1e-3, rel=0.1)
    assert np.delete(deviation, 5).max() <= 1e-4


def test_every_published_system_is_in_the_catalogue_and_has_a_truth():
    pytest.importorskip("dysts")
    systems = published_systems()
    assert len(systems) == 133
    assert set(systems) == set(tables.forecasts_200()) <= set(names())


def test_109_published_systems_can_be_integrated_from_a_sample():
    pytest.importorskip("dysts")
    assert len(checked_systems()) == 109


def test_published_series_are_met_from_their_first_sample():
    pytest.importorskip("dysts")
    told = []
    systems = ("Lorenz", "Rossler", "Aizawa", "SprottB", "Thomas", "HyperRossler", "Lorenz96", "Torus")
    found = published_truth_check(systems, progress=lambda share, text: told.append((share, text)))
    assert found["system"].values.tolist() == list(systems)
    # Torus was integrated with other parameters.
    assert found["met"].values.tolist() == [True] * 7 + [False]
    assert (found["error"].values[:7] < 3e-3).all()
    assert told == [(i / 8, name) for i, name in enumerate(systems)]
    assert found.attrs["engine"]


def test_a_wrong_spacing_is_seen(monkeypatch):
    pytest.importorskip("dysts")
    right = published_truth_check(["Lorenz", "SprottB"])["error"].values
    monkeypatch.setattr("apps.chaos.published.SPACING", 1 / 100)
    wrong = published_truth_check(["Lorenz", "SprottB"])["error"].values
    assert pytest.approx(12 / 1199) == SPACING
    assert (wrong > 3 * right).all()


def test_at_least_100_of_the_109_published_series_are_met():
    pytest.importorskip("dysts")
    found = published_truth_check()
    missed = set(found["system"].values[~found["met"].values])
    assert found.sizes["system"] == 109
    assert int(found["met"].sum()) >= 100
    known = {"BelousovZhabotinsky", "Bouali2", "ExcitableCell", "KawczynskiStrizhak", "Torus"}
    assert missed <= known
    assert proportion_interval(109 - len(missed), 109).low > 0.85


def test_shipped_scores_need_no_folder(alone):
    found = published_scores("esn")
    assert found["smape"].sizes == {"system": 133}
    assert float(found["smape"].mean()) == pytest.approx(88.7, abs=0.05)
    assert "smape_by_train_length" not in found
    assert float(published_scores("node")["smape"].mean()) == pytest.approx(75.6, abs=0.05)
    with pytest.raises(InputError, match=r"method 'nbeats': must be among esn, node, nvar; .*SZILARD_DATA"):
        published_scores("nbeats")


@pytest.mark.parametrize(
    ("method", "means"),
    [
        ("nbeats", {1000: 53.0, 776: 61.7, 588: 65.2, 401: 73.7, 214: 95.0, 101: 110.4}),
        ("nhits", {1000: 64.9, 776: 66.1, 588: 73.0, 401: 77.7, 214: 97.3, 101: 114.0}),
        ("node", {1000: 73.1, 776: 76.3, 588: 73.5, 401: 79.2, 214: 89.7, 101: 114.1}),
        ("esn", {1000: 70.4, 776: 84.0, 588: 91.3, 401: 95.9, 214: 102.5, 101: 106.2}),
        ("xgboost", {1000: 86.9, 776: 87.4, 588: 93.9, 401: 98.0, 214: 101.4, 101: 105.0}),
    ],
)
def test_mean_scores_by_train_length_are_the_known_ones(folder, method, means):
    by_length = published_scores(method, folder)["smape_by_train_length"]
    assert by_length.sizes["train_length"] == 25
    for length, mean in means.items():
        assert float(by_length.sel(train_length=length).mean()) == pytest.approx(mean, abs=0.16)


def test_nbeats_leads_the_published_methods_significantly(folder):
    scores = {m: published_scores(m, folder)["smape_by_train_length"].sel(train_length=1000) for m in ("nbeats", "esn")}
    both = xr.Dataset(scores).dropna("system")
    assert stats.wilcoxon(both["nbeats"], both["esn"]).pvalue == pytest.approx(2e-4, rel=0.5)


def test_the_data_folder_is_the_argument_or_that_of_the_environment(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("SZILARD_DATA", str(folder.parent))
    assert len(tables.timing()) == 1995
    with pytest.raises(InputError, match="no such file"):
        tables.timing(tmp_path)
    monkeypatch.delenv("SZILARD_DATA")
    with pytest.raises(InputError, match="set \\$SZILARD_DATA"):
        tables.timing()


def test_other_tables_are_read(folder):
    assert len(tables.smape_by_train_length(folder)) == 49_700
    assert set(tables.lorenz_500(folder)) == {"true", "nbeats", "lstm", "transformer"}
    backs = tables.look_backs(folder)
    assert len(backs) == 133
    assert backs["Aizawa"]["nbeats"] == 50
    old = tables.univariate_2021(folder)
    assert (len(old), old["model"].nunique(), old["system"].nunique()) == (8384, 16, 131)


def test_computed_medians_of_the_summary_are_those_of_the_timing_table(folder):
    medians = tables.timing(folder).groupby("method")[["train_s", "inference_s"]].median()
    summary = tables.summary()
    computed = summary[summary["certainty"] == "computed"]
    assert len(computed) == 30
    for row in computed.itertuples():
        column = {"train_seconds": "train_s", "inference_seconds": "inference_s"}[row.quantity]
        assert row.value == pytest.approx(medians.loc[row.method, column], rel=0.006)


def test_summary_says_how_certain_each_number_is():
    summary = tables.summary()
    assert set(summary["certainty"]) == {"printed", "computed", "figure-read"}
    assert summary.groupby("quantity").size().to_dict() == {
        "inference_seconds": 15,
        "long_rank": 23,
        "short_smape_mean": 15,
        "smape_at_one_lyapunov_time": 23,
        "train_seconds": 23,
    }
    ranks = summary[summary["quantity"] == "long_rank"]["value"]
    assert ranks.sum() == 23 * 24 / 2


def test_printed_means_of_the_summary_are_those_of_the_shipped_table():
    means = tables.smape_200().groupby("method")["smape"].mean()
    summary = tables.summary().set_index(["quantity", "method"])["value"]["short_smape_mean"]
    assert summary[means.index].to_numpy() == pytest.approx(means.to_numpy(), abs=0.05)


def scores(methods, systems=None, noise=0.0):
    found = {m: published_scores(m)["smape"] for m in methods}
    data = xr.Dataset(found).to_array("method").transpose("system", "method")
    data = data if systems is None else data.isel(system=slice(systems))
    return data + noise * np.random.default_rng(0).normal(size=data.shape)


def test_the_published_scores_agree_with_themselves(alone):
    found = compare_with_published(scores(["esn", "nvar"]))
    assert found["correlation"].values.tolist() == [1.0, 1.0]
    assert found["rank_ours"].values.tolist() == found["rank_published"].values.tolist()
    assert (found["ours"] == found["published"]).all()
    # Two methods have an order, but no correlation.
    assert np.isnan(found.attrs["method_correlation"])


def test_comparison_counts_what_both_have_and_names_the_rest(alone):
    ours = scores(["esn", "node"], noise=20.0)
    ours = ours.isel(system=slice(40)).assign_coords(method=["esn", "node"])
    ours[3, 1] = np.nan
    ours = xr.concat([ours, ours.isel(method=[0]).assign_coords(method=["poly"])], "method")
    found = compare_with_published(ours)
    assert found["method"].values.tolist() == ["esn", "node"]
    assert found.attrs["not_published"] == "poly"
    pairs = found.isel(method=1).dropna("system")
    assert found["correlation_n"].values.tolist() == [40, len(pairs["system"])]
    expected = stats.spearmanr(pairs["ours"], pairs["published"]).statistic
    assert float(found["correlation"][1]) == pytest.approx(expected)
    assert float(found["correlation_low"][1]) < expected < float(found["correlation_high"][1])


def test_methods_are_compared_by_their_mean_ranks(folder):
    methods = ["nbeats", "nhits", "lstm", "linear", "rnn", "kalman"]
    ours = xr.Dataset({m: published_scores(m, folder)["smape"] for m in methods}).to_array("method")
    found = compare_with_published(ours.isel(system=slice(60)), folder=folder)
    assert found.attrs["method_correlation"] == pytest.approx(1.0)
    order = found["method"].values[np.argsort(found["rank_published"].values)].tolist()
    assert order[0] == "nbeats"
    assert order[-1] == "kalman"
    shorter = compare_with_published(ours, train_length=101, folder=folder)
    assert float(shorter["published"].sel({"method": "linear"}).mean()) == pytest.approx(145.1, abs=0.1)


def test_mean_ranks_of_scores_come_with_the_critical_difference():
    found = method_ranks(scores(["esn", "nvar", "node"]).dropna("system"))
    assert found["rank"].sum() == pytest.approx(6.0)
    assert found.attrs["systems"] == 131
    assert found.attrs["critical_difference"] == pytest.approx(2.343 * np.sqrt(12 / (6 * 131)), rel=1e-3)


def test_order_of_methods_is_compared_with_the_summary():
    assert compare_with_summary({"nbeats": 1.0, "nhits": 2.0, "lstm": 3.0, "linear": 9.0, "poly": 0.0}).mean == 1.0
    assert compare_with_summary({"nbeats": 9.0, "nhits": 3.0, "lstm": 2.0, "linear": 1.0}).mean == -1.0
    assert np.isnan(compare_with_summary({"nbeats": 9.0, "poly": 1.0}).mean)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("system,method,train_s\nA,b,1\n", "no column inference_s"),
        ("system,method,train_s,inference_s\nA,b,1,-2\n", r"row 2: inference_s is -2, allowed is \[0, inf\]"),
        ("system,method,train_s,inference_s\nA,b,1,2\nA,c,x,2\n", "row 3: train_s is x"),
        ("system,method,train_s,inference_s\nA,b,1,\n", "row 2: inference_s is nan"),
        ("system,method,train_s,inference_s\nA,b,1,2\nA,b,1,2\n", "row 3: A, b is there twice"),
        ("", "not a readable csv file"),
    ],
)
def test_a_damaged_table_is_refused_with_its_row(tmp_path, text, message):
    (tmp_path / "published_timing_cpu.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        tables.timing(tmp_path)


def test_damaged_arrays_are_refused(tmp_path):
    path = tmp_path / "published_lorenz_500step.npz"
    path.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(InputError, match="not a readable npz"):
        tables.lorenz_500(tmp_path)
    np.savez(path, true=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="not a readable npz"):
        tables.lorenz_500(tmp_path)
    np.savez(path, true=np.zeros((500, 3)), nbeats=np.zeros((499, 3)))
    with pytest.raises(InputError, match=r"Lorenz/nbeats: has shape \(499, 3\)"):
        tables.lorenz_500(tmp_path)
    np.savez(path, nbeats=np.zeros((500, 3)))
    with pytest.raises(InputError, match="Lorenz/true"):
        tables.lorenz_500(tmp_path)
    (tmp_path / "published_lookback.json").write_text('{"Lorenz": {"nbeats": 2.5}}')
    with pytest.raises(InputError, match=r"Lorenz nbeats: 2\.5"):
        tables.look_backs(tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: published_truth_check(["Lorenz", "Lorentz"]), "'Lorentz'"),
        (lambda: published_truth_check(["DoublePendulum"]), "'DoublePendulum'"),
        (lambda: published_truth_check(["Lorenz"], samples=201), "samples: 201"),
        (lambda: compare_with_published(xr.DataArray(np.ones((2, 2)), dims=("a", "b"))), "dims a, b"),
        (lambda: compare_with_published(scores(["esn"]).assign_coords(method=["poly"])), "none of poly is published"),
        (lambda: compare_with_published(scores(["esn"], 4).assign_coords(system=list("abcd"))), "no system"),
        (lambda: compare_with_published(scores(["esn"]), train_length=101), "only 1000 is shipped"),
        (lambda: compare_with_summary({"nbeats": 1.0}, "speed"), "quantity 'speed'"),
    ],
)
def test_impossible_input_is_refused(call, message, alone):
    if message.startswith("'"):
        pytest.importorskip("dysts")
    with pytest.raises(InputError, match=message):
        call()


def test_only_published_train_lengths_are_compared(folder):
    with pytest.raises(InputError, match="train_length 102: must be among 101, 139"):
        compare_with_published(scores(["esn"]), train_length=102, folder=folder)

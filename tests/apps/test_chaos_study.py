"""The study from its YAML to its report: resumed, repeated, divided, out of memory, and with forecasters that fail."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

pytest.importorskip("dysts")

from apps.chaos import batches, figures
from apps.chaos.forecasters import Trivial
from apps.chaos.forecasters.esn import ESN
from apps.chaos.forecasters.linear import Linear
from apps.chaos.forecasters.naive import NaiveMean
from apps.chaos.metrics import METRICS
from apps.chaos.runs import Forecasts, SystemSeries, Tune
from apps.chaos.study import ChaosStudy
from apps.chaos.valid_time import valid_time
from core import files
from core.configs import configs
from core.errors import InputError, MissingExtra
from core.stats import signed_rank_test
from core.study import StudyError
from core.study.results import Results
from core.study.run import expand
from tests.apps.chaos_cases import TINY

TIMED = ("fit_seconds", "forecast_seconds")


def load(folder, *overrides):
    path = folder / "study.yaml"
    path.write_text(TINY)
    return ChaosStudy.load(path, overrides)


def run(study, out):
    return study.run(out, workers=0, device="cpu", quiet=True)


def results(out, group):
    return xr.load_dataset(out / "results.nc", group=group, engine="h5netcdf")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """What is drawn has tests of its own."""
    monkeypatch.setattr(figures, "of_study", lambda *_: [])


@pytest.fixture(autouse=True)
def integrated_once(monkeypatch):
    """Series are a function of their settings: tests/apps/test_chaos_protocol.py."""
    monkeypatch.setattr(SystemSeries, "execute", execute_once)
    monkeypatch.setattr(files, "sync", lambda path: None)


SERIES = {}
execute = SystemSeries.execute


def execute_once(self, inputs, context):
    if self.hash not in SERIES:
        SERIES[self.hash] = execute(self, inputs, context)
    return SERIES[self.hash].copy(deep=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_study", lambda *_: [])
        study = load(folder)
        return study, folder / "out", run(study, folder / "out")


def same_numbers(one: Path, two: Path, methods=("linear", "esn", "naive_mean")):
    for method in methods:
        a, b = (results(out, f"whole/{method}").drop_vars(TIMED) for out in (one, two))
        assert a.identical(b), method


# ---- what it leaves


def test_every_run_is_there_once_and_what_two_scenarios_share_is_tuned_once(whole):
    study, _, _ = whole
    kinds = [type(made) for made in expand(study.runs()).values()]
    assert [kinds.count(kind) for kind in (SystemSeries, Tune, Forecasts)] == [3, 1, 5]


def test_results_hold_every_forecast_with_units_and_where_they_come_from(whole):
    _, out, _ = whole
    found = results(out, "whole/linear")
    assert {
        "system": 3,
        "replicate": 2,
        "sample": 60,
        "channel": 4,
        "definition": 3,
        "metric": len(METRICS),
    }.items() <= (dict(found.sizes).items())
    assert found["system"].values.tolist() == ["Lorenz", "Rossler", "HenonHeiles"]
    for name in ("forecast", "valid_samples", "smape", "nrmse", "short", "fit_seconds", "diverged"):
        assert found[name].dims[:2] == ("system", "replicate")
        assert found[name].attrs["units"], name
    assert set(found["tuned_lags"].values) <= {3, 5}
    assert results(out, "half/linear").sizes["system"] == 3
    systems = results(out, "systems")
    assert (systems["tolerance"] == 1e-6).all()
    assert all(systems["integrator"].values)
    assert "dysts 0.9" in systems.attrs["versions"]
    assert systems["lyapunov_source"].values.tolist() == ["stored"] * 3
    root = xr.load_dataset(out / "results.nc", engine="h5netcdf")
    assert {"config", "config_hash", "torch", "numpy", "xarray", "commit"} <= set(root.attrs)


def test_forecasts_and_scores_belong_to_the_stored_series(whole):
    study, out, _ = whole
    stored = Results(out, study.runs())
    found = results(out, "whole/linear")
    for place, series in enumerate(study.series()):
        data = stored[series]
        channels = data.sizes["channel"]
        truth = data["test"].values[:, 120:]
        forecast = found["forecast"].values[place, ..., :channels]
        valid = valid_time(truth, forecast, truth.std(1))
        assert found["valid_samples"].sel(definition="V1").values[place] == pytest.approx(valid.samples, abs=1)
        error = 200 * np.abs(truth - forecast) / (np.abs(truth) + np.abs(forecast))
        ours = found["smape"].values[place]
        lead = found["lead"].values
        assert ours == pytest.approx(np.stack([error[:, :n].mean((1, 2)) for n in lead], 1), rel=1e-4)


def test_the_table_is_what_the_results_say(whole):
    _, out, summary = whole
    found, esn, systems = results(out, "whole/linear"), results(out, "whole/esn"), results(out, "systems")
    rate = systems["lyapunov"] * systems["dt"]
    valid, other = ((d["valid_samples"].mean("replicate") * rate).sel(definition="V1").values for d in (found, esn))
    rows = {r.metric: r for r in summary.table if (r.scenario, r.method) == ("whole", "linear")}
    median = signed_rank_test(valid, np.zeros(3))
    row = rows["valid time V1, median"]
    assert (row.mean, row.low, row.high, row.n) == pytest.approx((median.mean, median.low, median.high, 3))
    assert rows["valid time V1, mean"].mean == pytest.approx(valid.mean())
    short = found["short"].sel(metric="smape").mean("replicate")
    assert rows["sMAPE of the short forecast, mean"].mean == pytest.approx(float(short.mean()))
    assert rows["seconds of training, median"].mean == pytest.approx(
        float(found["fit_seconds"].mean("replicate").median())
    )
    diverging = rows["forecasts that diverge"]
    assert (diverging.mean, diverging.n) == (0.0, 3)
    at_one = [
        np.interp(1 / r, found["lead"], s, right=np.nan)
        for r, s in zip(rate.values, found["smape"].mean("replicate").values, strict=True)
    ]
    assert rows["sMAPE at one Lyapunov time, median"].n == np.isfinite(at_one).sum()
    rows = {(r.method, r.metric): r for r in summary.table if r.scenario == "whole"}
    less = rows["esn", "valid time less that of linear, median"]
    assert less.mean == pytest.approx(np.median(other - valid))
    ranks = [rows[m, "rank by valid time, mean"].mean for m in ("linear", "esn", "naive_mean")]
    assert sum(ranks) == pytest.approx(6)
    assert ("linear", "valid time less that of linear, median") not in rows


def test_summary_and_report_are_written(whole):
    study, out, summary = whole
    said = json.loads((out / "summary.json").read_text())
    assert set(said) == {"study", "config_hash", "version", "seconds", "claims", "table"}
    assert said["config_hash"] == study.hash
    assert [(c["id"], c["holds"]) for c in said["claims"]] == [
        ("nbeats_beats_linear", None),
        ("published_smape_reproduced", True),
    ]
    assert len(said["table"]) == len(summary.table)
    page = summary.report.read_text()
    assert "Kaplan-Meier" in page
    assert "scenario whole has no method nbeats" in page
    assert "for every system: linear 2; others are not tuned" in page
    assert "Tuned with 120 samples, more than are fitted: half." in page
    before = (out / "summary.json").read_text()
    again = study.report(out)
    assert [again.claims, again.table] == [summary.claims, summary.table]
    assert json.loads(before)["table"] == json.loads((out / "summary.json").read_text())["table"]
    assert set(study.headline) <= {r.metric for r in summary.table}


# ---- the same numbers


def test_a_study_gives_the_same_numbers_twice(whole, tmp_path):
    _, out, _ = whole
    run(load(tmp_path, "scenarios=[{name: whole}]", "claims=[]"), tmp_path / "again")
    same_numbers(out, tmp_path / "again")


def test_interrupted_and_resumed_equals_uninterrupted_and_no_batch_is_fitted_twice(tmp_path, monkeypatch):
    study = load(tmp_path, "methods.0.at_once=2", "scenarios=[{name: whole, methods: [linear]}]", "claims=[]")
    run(study, tmp_path / "whole")
    fitted, scored = [], []
    fit, scoring = Linear.fit, batches.Batches._scored

    def counted(self, train, fitting):
        fitted.append((self.lags, fitting.seeds))
        return fit(self, train, fitting)

    def interrupted(self, forecaster, part, *rest):
        found = scoring(self, forecaster, part, *rest)
        if "forecast" in found:
            scored.append(part.members)
            if len(scored) == 2:
                raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Linear, "fit", counted)
    monkeypatch.setattr(batches.Batches, "_scored", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path / "out")
    before = len(fitted)
    assert list((tmp_path / "out").glob("runs/*/checkpoint/group-*.nc"))
    run(study, tmp_path / "out")
    same_numbers(tmp_path / "whole", tmp_path / "out", ["linear"])
    # Only the batch that was under way is fitted again; the tuning, and the batch before it, are not.
    assert fitted[before] == fitted[before - 1]
    assert len(set(fitted)) == len(fitted) - 1
    assert not list((tmp_path / "out").glob("runs/*/checkpoint"))


def test_runs_of_few_systems_give_the_numbers_of_one_run_of_all(tmp_path):
    plain = [
        "methods.0.grid={}",
        "methods.0.forecaster.lags=3",
        "scenarios=[{name: whole, methods: [linear, naive_mean]}]",
    ]
    divided, together = load(tmp_path, "systems_per_run=1", *plain), load(tmp_path, *plain)
    run(divided, tmp_path / "divided")
    run(together, tmp_path / "together")
    for method in ("linear", "naive_mean"):
        a, b = (results(tmp_path / o, f"whole/{method}") for o in ("divided", "together"))
        assert a["system"].equals(b["system"])
        # Other sums, other last bits.
        assert a["forecast"].values[..., :10, :] == pytest.approx(
            b["forecast"].values[..., :10, :], rel=1e-4, nan_ok=True
        )
        assert a["smape"].values[..., 0] == pytest.approx(b["smape"].values[..., 0], rel=1e-4)


def test_who_else_takes_part_changes_no_run(whole, tmp_path):
    study, _, _ = whole
    hashes = {r.hash for r in study.runs() if isinstance(r, Forecasts)}
    more = load(tmp_path, "scenarios.1.methods=[linear, esn, naive_mean]")
    assert {r.hash for r in more.runs() if isinstance(r, Forecasts)} > hashes


# ---- what goes wrong


def test_out_of_memory_halves_the_batch_and_every_row_is_there(whole, tmp_path, monkeypatch):
    _, out, _ = whole
    fit, sizes = NaiveMean.fit, []

    def hungry(self, train, fitting):
        sizes.append(len(train))
        if len(train) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fit(self, train, fitting)

    monkeypatch.setattr(NaiveMean, "fit", hungry)
    small = load(
        tmp_path,
        "methods=[{name: naive_mean, forecaster: {kind: naive_mean}}]",
        "scenarios=[{name: whole}]",
        "claims=[]",
    )
    run(small, tmp_path / "out")
    assert sizes == [4, 2, 2, 2]  # four series of three channels, two of four
    same_numbers(out, tmp_path / "out", ["naive_mean"])
    logs = [line for path in (tmp_path / "out").glob("runs/*/log.jsonl") for line in path.read_text().splitlines()]
    assert [json.loads(x)["series_at_once"] for x in logs if "out of memory" in x] == [2]


def test_a_single_series_out_of_memory_fails_its_run_and_no_other(tmp_path, monkeypatch):
    def hungry(self, train, fitting):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(NaiveMean, "fit", hungry)
    study = load(tmp_path, "scenarios=[{name: whole, methods: [naive_mean]}]", "claims=[]")
    with pytest.raises(StudyError, match="1 of 4 runs failed"):
        run(study, tmp_path / "out")
    missing = Results(tmp_path / "out", study.runs()).missing()
    assert [m.label for m in missing] == ["whole naive_mean"]


def test_a_forecast_that_diverges_or_is_no_number_is_a_result(tmp_path, monkeypatch):
    def fit(self, train, fitting):
        def make(horizon):
            growing = train[:, -1:] * 10.0 ** torch.arange(1, horizon + 1)[:, None]
            growing[0] = float("nan")
            return growing

        return Trivial(make)

    monkeypatch.setattr(ESN, "fit", fit)
    study = load(tmp_path, "scenarios=[{name: whole, methods: [esn, naive_mean]}]", "claims=[]")
    summary = run(study, tmp_path / "out")
    found = results(tmp_path / "out", "whole/esn")
    assert found["diverged"].astype(bool).all()
    assert np.isnan(found["forecast"].values[0, 0, :, :3]).all()
    assert (found["valid_samples"].values[0, 0] == 0).all()
    assert np.isnan(found["smape"].values[0, 0]).all()
    assert np.isfinite(found["smape"].values[0, 1]).all()
    rows = {r.metric: r for r in summary.table if r.method == "esn"}
    assert rows["forecasts that diverge"].mean == 100
    assert rows["valid time V1, median"].n == 3
    same = results(tmp_path / "out", "whole/naive_mean")
    assert not same["diverged"].astype(bool).any()


def test_a_system_that_could_not_be_integrated_is_left_out_everywhere(tmp_path, monkeypatch):
    def broken(self, inputs, context):
        data = execute_once(self, inputs, context)
        if self.system == "Rossler":
            data["test"][:] = np.nan
            data["train"][:] = np.nan
        return data

    monkeypatch.setattr(SystemSeries, "execute", broken)
    for name, size in (("together", 0), ("alone", 1)):
        few = ["methods.0.grid={lags: [3, 5]}", "scenarios.0.methods=[linear]", "scenarios.1.methods=[linear]"]
        study = load(tmp_path, f"systems_per_run={size}", "claims=[]", "scenarios.1.embedding=2", *few)
        summary = run(study, tmp_path / name)
        found = results(tmp_path / name, "whole/linear")
        assert found["system"].values.tolist() == ["Lorenz", "Rossler", "HenonHeiles"]
        assert np.isnan(found["valid_samples"].values.astype(float)).all((1, 2)).tolist() == [False, True, False]
        rows = {(r.method, r.metric): r for r in summary.table if r.scenario == "whole"}
        assert rows["linear", "valid time V1, median"].n == 2
        assert rows["linear", "forecasts that diverge"].n == 2


def test_equations_are_used_where_the_state_is_seen_and_refused_where_no_series_shows_it(tmp_path):
    # Of DoublePendulum the series show a map of the state, and MackeyGlass has a delay.
    few = ["methods=[{name: hybrid, forecaster: {kind: hybrid}, grid: {}}]", "scenarios=[{name: whole}]", "claims=[]"]
    study = load(tmp_path, "systems=[MackeyGlass, Lorenz, DoublePendulum]", *few)
    summary = run(study, tmp_path / "out")
    valid = results(tmp_path / "out", "whole/hybrid")["valid_samples"]
    assert np.isnan(valid).all(("replicate", "definition")).values.tolist() == [True, False, True]
    assert {r.metric: r for r in summary.table}["valid time V1, median"].n == 1
    none = load(tmp_path, "systems=[MackeyGlass, DoublePendulum]", *few)
    summary = run(none, tmp_path / "none")
    assert summary.table == []
    assert "hybrid could be fitted to no series" in summary.report.read_text()
    with pytest.raises(InputError, match="scenario part: hybrid uses the equations and must see every channel"):
        load(tmp_path, few[0], "scenarios=[{name: part, observe: 1}]")


def test_a_method_whose_package_is_absent_is_left_out_with_a_note_or_refused(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ESN, "packages", (("no_such_module", "chaos"),))
    study = load(tmp_path, "scenarios=[{name: whole, methods: [esn, naive_mean]}]", "claims=[]")
    summary = study.run(tmp_path / "out", workers=0)
    assert {r.method for r in summary.table} == {"naive_mean"}
    assert "esn is left out" in summary.report.read_text()
    assert capsys.readouterr().err.startswith("esn is left out")
    with pytest.raises(MissingExtra, match="no_such_module"):
        run(load(tmp_path, "strict=true"), tmp_path / "strict")
    with pytest.raises(MissingExtra, match="no_such_module"):
        load(tmp_path, "scenarios=[{name: only, methods: [esn]}]").runs()


def test_results_of_another_study_are_not_mixed_in(whole, tmp_path):
    _, out, _ = whole
    with pytest.raises(InputError, match="choose another --out"):
        run(load(tmp_path, "protocol.seed=1"), out)


@pytest.mark.parametrize("name", [name for name, _ in configs("chaos")])
def test_packaged_studies_load_and_name_known_systems(name):
    study = ChaosStudy.load(name)
    assert study.takes
    assert len(study.series()) in (20, 133)
    assert study.reference in {m.name for m in study.methods}
    assert ChaosStudy.model_validate(study.model_dump()).hash == study.hash

"""The verbs of ``szilard chaos`` for one system or series; mistakes are told in a line and leave nothing behind."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import typer
import xarray as xr

import apps.cli
from apps.chaos import series_cli
from apps.chaos.series import read_series

VERBS = ("simulate", "systems", "invariants", "forecast", "recommend")


@pytest.fixture
def szilard(monkeypatch, capsys):
    """Run a verb in this process; returns exit code, stdout and stderr."""
    app = typer.Typer()
    series_cli.add_series_commands(app)
    monkeypatch.setattr(apps.cli, "app", app)
    monkeypatch.setenv("COLUMNS", "150")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["szilard chaos", *map(str, arguments)])
        try:
            apps.cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(autouse=True)
def _without_pictures(request, monkeypatch):
    if "picture" not in request.node.name:
        monkeypatch.setattr("apps.chaos.forecast_files.draw", lambda *_: [])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Files: a Hénon map, an uneven series, a constant one, something else."""
    folder = tmp_path_factory.mktemp("made")
    x = np.empty((300, 2))
    x[0] = 0.1, 0.1
    for t in range(1, 300):
        x[t] = 1 - 1.4 * x[t - 1, 0] ** 2 + x[t - 1, 1], 0.3 * x[t - 1, 0]
    henon = pd.DataFrame({"time": 0.5 * np.arange(300), "x": x[:, 0], "y": x[:, 1]})
    henon.to_csv(folder / "henon.csv", index=False)
    henon.drop(index=[30]).to_csv(folder / "uneven.csv", index=False)
    henon.assign(y=2.0).to_csv(folder / "constant.csv", index=False)
    henon.head(20).to_csv(folder / "short.csv", index=False)
    (folder / "letter.txt").write_text("dear reader\n")
    (folder / "folder").mkdir()
    (folder / "folder" / "letter.txt").write_text("dear reader\n")
    return folder


# ---- forecast


def test_forecast_writes_numbers_and_pictures_and_prints_the_table(szilard, made, tmp_path):
    out = tmp_path / "out"
    given = ["forecast", made / "henon.csv", "--method", "ngrc", "--set", "delay=1", "--horizon", 8, "--out", out]
    code, text, err = szilard(*given, "--holdout", 8, "--lyapunov", 0.84)
    assert code == 0, err
    assert "292 samples of x, y; dt 0.5" in text
    assert "largest Lyapunov exponent 0.84 / time units (given)" in text
    assert "valid time (Lyapunov times)" in text
    assert text.splitlines()[-1] == str(out / "forecast.nc")
    whole = read_series(made / "henon.csv")
    table = pd.read_csv(out / "forecast.csv")
    assert list(table) == ["lead", "time", "x", "x_low", "x_high", "y", "y_low", "y_high"]
    np.testing.assert_allclose(table["time"], whole.time[-8:])
    np.testing.assert_allclose(table["x"], whole.values[-8:, 0], atol=0.02)
    with xr.open_dataset(out / "forecast.nc") as found:
        assert json.loads(found.attrs["settings"])["delay"] == 1
        np.testing.assert_allclose(found["forecast"].values[:, 0], table["x"])
    assert {p.name for p in out.iterdir()} == {"asked.json", *(f"forecast.{s}" for s in ("csv", "nc", "pdf", "png"))}


def test_forecast_again_is_taken_up_and_other_work_is_refused(szilard, made, tmp_path, monkeypatch):
    out = tmp_path / "out"
    given = ["forecast", made / "henon.csv", "--method", "linear", "--horizon", 5, "--out", out]
    first = szilard(*given)
    assert first[0] == 0, first[2]
    monkeypatch.setattr("apps.chaos.forecast.forecast_series", None)  # nothing is computed again
    assert szilard(*given)[:2] == first[:2]
    code, _, err = szilard(*given, "--set", "lags=4")
    assert code == 2
    assert f'--out {out}: holds work with method = {{"kind": "linear", "lags": 25}}' in err
    code, _, err = szilard(*given, "--seed", 1)
    assert "seed = 0, now 1: choose another --out, or --fresh to begin anew" in err
    monkeypatch.undo()


def test_fresh_begins_anew(szilard, made, tmp_path):
    given = ["forecast", made / "henon.csv", "--method", "linear", "--out", tmp_path / "out", "--horizon"]
    assert szilard(*given, 5)[0] == 0
    assert szilard(*given, 6, "--fresh")[0] == 0
    assert len(pd.read_csv(tmp_path / "out" / "forecast.csv")) == 6


def test_forecast_chooses_the_method_itself(szilard, made, tmp_path, monkeypatch):
    few = [c for c in series_candidates() if c.name in ("naive_mean", "linear", "ngrc")]
    monkeypatch.setattr("apps.chaos.recommendation.candidates", lambda *_: few)
    code, text, err = szilard("forecast", made / "henon.csv", "--horizon", 10, "--out", tmp_path / "out")
    assert code == 0, err
    assert "1. ngrc" in text
    with xr.open_dataset(tmp_path / "out" / "forecast.nc") as found:
        assert found.attrs["method"] == "ngrc"


def series_candidates():
    from apps.chaos.recommendation import candidates

    return candidates(np.nan, 2)


def test_what_the_user_should_know_is_told_on_stderr(szilard, made, tmp_path):
    given = ["forecast", made / "henon.csv", "--method", "naive_mean", "--horizon", 150, "--out", tmp_path / "out"]
    code, text, err = szilard(*given)
    assert code == 0
    assert "warning: intervals end at lead time" in err
    assert "warning" not in text


def test_an_uneven_series_is_resampled_on_request(szilard, made, tmp_path):
    given = ["forecast", made / "uneven.csv", "--method", "linear", "--horizon", 5, "--out", tmp_path / "out"]
    assert "a step of 1, the usual one is 0.5" in szilard(*given)[2]
    code, text, err = szilard(*given, "--resample", "cubic", "--channel", "y")
    assert code == 0, err
    assert "300 samples of y" in text
    code, text, err = szilard(*given[:-1], tmp_path / "other", "--drop-gaps")
    assert code == 0, err
    assert "269 samples of x, y" in text


# ---- recommend and invariants


def test_recommend_prints_the_ranking_and_writes_the_scores(szilard, made, tmp_path):
    methods = ["--method", "naive_mean", "--method", "linear", "--method", "ngrc"]
    out = tmp_path / "new" / "scores.nc"
    code, text, err = szilard("recommend", made / "henon.csv", "--horizon", 10, *methods, "--out", out)
    assert code == 0, err
    places = [text.index(f"{i}. {name}") for i, name in ((1, "ngrc"), (2, "linear"), (3, "naive_mean"))]
    assert places == sorted(places)
    assert "by nrmse; then by valid time" in text
    with xr.open_dataset(out) as scores:
        assert scores["nrmse"].dims == ("method", "origin")


def test_invariants_of_a_file_with_the_picture(szilard, made, tmp_path):
    code, text, err = szilard("invariants", made / "henon.csv", "--out", tmp_path / "out")
    assert code == 0, err
    for told in ("largest Lyapunov exponent", "embedding delay"):
        assert told in text
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"invariants.{s}" for s in ("nc", "pdf", "png")}
    with xr.open_dataset(tmp_path / "out" / "invariants.nc") as found:
        assert 0.2 < found.attrs["lyapunov"] < 2


def test_regular_motion_and_noise_are_doubted(szilard, tmp_path):
    time = 0.05 * np.arange(3000)
    series = {
        "torus": np.sin(time) + np.sin(np.sqrt(2) * time),
        "cycle": np.sin(time) + 0.3 * np.sin(2 * time),
        "noise": np.random.default_rng(0).standard_normal(3000),
    }
    for name, values in series.items():
        pd.DataFrame({"time": time, "x": values}).to_csv(tmp_path / f"{name}.csv", index=False)
        code, _, err = szilard("invariants", tmp_path / f"{name}.csv")
        assert code == 0, err
        said = " ".join(err.split())
        assert "exponent is doubtful" in said or "not chaotic" in said, name
        assert ("the most that" if name == "noise" else "no plateau") in said, name


# ---- the catalogue


def test_simulate_writes_what_the_other_verbs_read(szilard, tmp_path):
    pytest.importorskip("dysts")
    given = ["simulate", "Lorenz", "--samples", 300, "--points", 50, "--trajectories", 2]
    for suffix in (".nc", ".csv"):
        path = tmp_path / f"lorenz{suffix}"
        code, text, err = szilard(*given, "--set", "parameters.rho=30", "--noise", 0.01, "--out", path)
        assert code == 0, err
        assert "2 x 300 samples of x, y, z; dt " in text
        assert "with relative and absolute tolerance 1e-10" in text
        assert text.splitlines()[-1] == str(path)
        with pytest.raises(Exception, match="--select trajectory=0"):
            read_series(path)
    one, other = (read_series(tmp_path / f"lorenz{s}", select={"trajectory": "1"}) for s in (".nc", ".csv"))
    np.testing.assert_array_equal(one.values, other.values)
    assert one.channels == ("x", "y", "z")
    assert one.dt == pytest.approx(1.5008 / 50, rel=1e-3)
    with xr.open_dataset(tmp_path / "lorenz.nc") as data:
        assert json.loads(data.attrs["settings"])["parameters"] == {"rho": 30.0}


def test_simulate_is_repeated_by_its_seed_and_keeps_the_channels_that_are_asked_for(szilard, tmp_path):
    pytest.importorskip("dysts")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / f"{name}.csv"
        assert szilard("simulate", "Rossler", "--samples", 50, "--seed", seed, "--channel", "z", "--out", path)[0] == 0
    a, b, c = (read_series(tmp_path / f"{name}.csv") for name in "abc")
    assert a.channels == ("z",)
    np.testing.assert_array_equal(a.values, b.values)
    assert not np.array_equal(a.values, c.values)


def test_simulate_says_how_it_integrated_and_warns_in_a_line(szilard, tmp_path):
    pytest.importorskip("dysts")
    out = ["--samples", 60, "--points", 30, "--out", tmp_path / "a.csv"]
    code, text, err = szilard("simulate", "MackeyGlass", *out)
    assert code == 0, err
    # Fixed steps have no tolerance.
    assert "integrated by rk4" in text
    assert "tolerance" not in text
    code, text, err = szilard("simulate", "Lorenz", "--set", "parameters.rho=14", *out)
    assert code == 0, err
    assert err == "warning: Lorenz: 1 of 1 trajectories come to rest; not chaotic\n"


def test_systems_are_listed_with_both_exponents(szilard):
    pytest.importorskip("dysts")
    code, text, err = szilard("systems", "--search", "LORENZ")
    assert code == 0, err
    assert "Lorenz96" in text
    assert "0.8917" in text  # as stored
    assert "Rossler" not in text
    assert "delay" in szilard("systems", "--search", "MackeyGlass")[1]


def test_invariants_of_a_system_stand_beside_what_is_stored(szilard):
    pytest.importorskip("dysts")
    few = ["--trajectories", 8, "--periods", 5]
    code, text, err = szilard("invariants", "Rossler", *few)
    assert code == 0, err
    assert "exponent 3" in text
    assert "Kaplan-Yorke dimension" in text
    code, changed, err = szilard("invariants", "Lorenz", *few, "--set", "parameters.rho=10")
    assert code == 0, err
    # A fixed point attracts: every exponent is negative.
    assert "Lorenz, changed" in changed
    largest = next(line for line in changed.splitlines() if line.startswith("exponent 1"))
    assert float(largest.split()[2]) < -0.1


def test_every_verb_has_help_with_an_example(szilard):
    for verb in VERBS:
        code, text, _ = szilard(verb, "--help")
        assert code == 0
        assert f"Example: szilard chaos {verb}" in " ".join(text.split())


# ---- mistakes

FORECAST = ["forecast", "MADE/henon.csv", "--out", "OUT"]
REFUSALS = [
    (["forecast", "OUT/none.csv"], "OUT/none.csv: no such file"),
    (["forecast", "MADE/letter.txt", "--out", "OUT"], "MADE/letter.txt: has a header but no row of numbers"),
    (["forecast", "MADE/folder", "--out", "OUT"], "MADE/folder: ends in no suffix: must end in one of .csv"),
    (["forecast", "MADE/short.csv", "--out", "OUT"], "20 samples: ranking forecasters needs at least 36"),
    (["forecast", "MADE/constant.csv", "--out", "OUT"], "column y: constant, 2: must vary"),
    ([*FORECAST, "--method", "magic"], "--method magic: must be among auto, nbeats"),
    ([*FORECAST, "--method", "linear", "--set", "lag=3"], "--set lag=3: lag: unknown key; known here: kind, lags"),
    ([*FORECAST, "--method", "linear", "--set", "lags=0"], "--set lags=0: lags = 0: must be greater than or equal to"),
    ([*FORECAST, "--method", "linear", "--set", "lags=400"], "linear: 300 training samples: needs at least 411"),
    ([*FORECAST, "--method", "esn", "--set", "leak=1.1"], "leak = 1.1"),
    ([*FORECAST, "--method", "ngrc", "--set", "order=5", "--set", "delay=30"], "monomials"),
    ([*FORECAST, "--set", "lags=3"], "--set lags=3: --method auto chooses the settings itself: name a method"),
    ([*FORECAST, "--channel", "w"], "channel w: no such channel; there are: x, y"),
    ([*FORECAST, "--time", "when"], "time when: no such column; there are: time, x, y, or none"),
    ([*FORECAST, "--select", "first"], "--select first: must read NAME=VALUE, such as trajectory=0"),
    ([*FORECAST, "--select", "run=1"], "select run: no such column; there are: time, x, y"),
    ([*FORECAST, "--dt", "0.1"], "has its own times, time"),
    ([*FORECAST, "--resample", "magic"], "'magic' is not one of 'cubic', 'linear'"),
    ([*FORECAST, "--horizon", "0"], "--horizon"),
    ([*FORECAST, "--holdout", "295"], "--holdout 295: of 300 samples at most 288 can be left out"),
    ([*FORECAST, "--level", "1"], "level = 1: must be above 0 and below 1"),
    ([*FORECAST, "--origins", "1"], "--origins"),
    ([*FORECAST, "--lyapunov", "0"], "lyapunov = 0: must be a positive number"),
    ([*FORECAST, "--normalize", "magic"], "'magic' is not one of 'train_zscore', 'none'"),
    ([*FORECAST, "--device", "cuda"], "--device cuda: there is no CUDA device"),
    (["forecast", "MADE/henon.csv", "--out", "MADE/henon.csv"], "MADE/henon.csv: is a file, not a folder"),
    (["forecast", "MADE/henon.csv", "--out", "MADE/folder"], "MADE/folder: holds files that no forecast wrote"),
    (["recommend", "MADE/short.csv"], "20 samples: ranking forecasters needs at least 36"),
    (["recommend", "MADE/henon.csv", "--method", "magic"], "method magic: must be among naive_mean"),
    (["recommend", "MADE/henon.csv", "--out", "OUT.csv"], "OUT.csv: must be a file that ends in .nc"),
    (["invariants", "MADE/henon.csv", "--out", "MADE/letter.txt"], "MADE/letter.txt: is a file, not a folder"),
    (["invariants", "OUT.csv"], "OUT.csv: no such file"),
]
OF_THE_CATALOGUE = [
    (["simulate", "Lorens", "--out", "OUT.nc"], "'Lorens'"),
    (
        ["simulate", "Lorenz", "--out", "OUT.doc"],
        "OUT.doc: ends in .doc: must end in one of .csv, .nc, .zarr, .parquet",
    ),
    (["simulate", "Lorenz", "--out", "MADE/folder"], "MADE/folder: ends in no suffix"),
    (["simulate", "Lorenz"], "--out"),
    (["simulate", "Lorenz", "--out", "OUT.nc", "--set", "parameters.rh=3"], "'rh'"),
    (["simulate", "Lorenz", "--out", "OUT.nc", "--set", "parameters.rho=much"], 'parameters.rho = "much": must be'),
    (["simulate", "Lorenz", "--out", "OUT.nc", "--set", "colour=red"], "colour: unknown key; known here: parameters"),
    (["simulate", "Lorenz", "--out", "OUT.nc", "--set", "engine=magic"], "engine = magic: must be auto, torch or"),
    (["simulate", "Lorenz", "--out", "OUT.nc", "--points", "0"], "points = 0.0: must be greater than 0"),
    (["simulate", "Lorenz", "--out", "OUT.nc", "--samples", "0"], "--samples"),
    (["simulate", "Lorenz", "--out", "OUT.nc", "--channel", "w"], "--channel w: Lorenz has x, y, z"),
    (["simulate", "Lorenz", "--out", "OUT.nc", "--device", "cuda"], "--device cuda: there is no CUDA device"),
    (["systems", "--search", "magic"], "--search magic: no such system among the 135"),
    (["invariants", "Lorens"], "'Lorens'"),
    (["invariants", "MackeyGlass"], "is a delay system"),
    (["invariants", "Lorenz", "--set", "parameters.rh=3"], "'rh'"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), REFUSALS + OF_THE_CATALOGUE, ids=[" ".join(a) for a, _ in REFUSALS + OF_THE_CATALOGUE]
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(szilard, made, tmp_path, arguments, message, monkeypatch):
    if (arguments, message) in OF_THE_CATALOGUE:
        pytest.importorskip("dysts")
    if "cuda" in arguments:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "out"

    def placed(text):
        return text.replace("OUT", str(out)).replace("MADE", str(made))

    code, text, err = szilard(*map(placed, arguments))
    assert code == 2, err
    assert placed(message) in err
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("szilard: error: ")
    assert "Traceback" not in err + text
    assert list(tmp_path.iterdir()) == []

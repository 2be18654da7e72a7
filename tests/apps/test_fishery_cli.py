"""The verbs of ``szilard fishery`` as a user types them, and one clear line for every mistake."""

import json
import sys

import numpy as np
import pytest
import xarray as xr

from apps.cli import main

CSV = "year,catch,index\n" + "".join(f"{1990 + i},{10 + i},{5 - 0.2 * i}\n" for i in range(12))


@pytest.fixture
def szilard(monkeypatch, capsys):
    """Run the command in this process; returns exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["szilard", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_simulate_writes_every_year(szilard, tmp_path):
    out = tmp_path / "sim.nc"
    code, text, _ = szilard(
        *("fishery", "simulate", "--model", 3, "--rule", "constant_mortality", "--values", "0.2,0.1"),
        *("--replicates", 5, "--years", 30, "--out", out),
    )
    assert code == 0
    assert "return" in text
    data = xr.load_dataset(out, engine="h5netcdf")
    assert data["population"].sizes == {"rep": 5, "time": 30, "species": 3}
    assert data.attrs["command"].startswith("fishery simulate --model 3")
    assert {"version", "commit", "seed"} <= data.attrs.keys()
    np.testing.assert_allclose(data["mortality"].sel(harvested="Y").values[data["alive"].values], 0.1)
    lines = (tmp_path / "sim.csv").read_text().splitlines()
    assert len(lines) == 1 + 5 * 30 * 3  # a line a replicate, year and species
    assert lines[0] == "rep,time,species,population,reward,alive,mortality,harvest"
    assert [line.split(",")[6] for line in lines[1:4]] == ["0.2", "0.1", "0.0"]


def test_tune_then_evaluate(szilard, tmp_path):
    code, text, _ = szilard(
        *("fishery", "tune", "constant_escapement", "--model", 1, "--points", 11, "--replicates", 20, "--fresh", 50),
        *("--out", tmp_path / "tuned.nc"),
    )
    assert code == 0
    assert "escapement_X = 0.5" in text
    assert float(xr.load_dataset(tmp_path / "tuned.nc", engine="h5netcdf")["escapement_X"]) == 0.5
    code, text, _ = szilard(
        "fishery", "evaluate", "--model", 1, "--rule", "constant_escapement", "--values", 0.5, "--replicates", 50
    )
    assert code == 0
    assert "n = 50 episodes" in text


def test_train_then_evaluate_the_policy(szilard, tmp_path):
    small = [f"--set={s}" for s in ("timesteps=1024", "n_envs=16", "n_steps=16", "batch_size=128", "n_epochs=1")]
    folder = tmp_path / "policy"
    assert szilard("fishery", "train", "--model", 3, "--out", folder, *small)[0] == 0
    curve = (folder / "curve.jsonl").read_text()
    assert len(curve.splitlines()) == 4
    assert szilard("fishery", "train", "--model", 3, "--out", folder, *small)[0] == 0
    assert (folder / "curve.jsonl").read_text() == curve  # nothing was left to do
    code, text, _ = szilard("fishery", "evaluate", "--model", 3, "--policy", folder, "--replicates", 20)
    assert code == 0
    assert "no extinction" in text
    code, _, err = szilard("fishery", "evaluate", "--model", 4, "--policy", folder, "--replicates", 20)
    assert code == 0
    assert "trained in another world" in err
    code, _, err = szilard("fishery", "evaluate", "--model", 2, "--policy", folder, "--replicates", 20)
    assert code == 2
    assert "trained for 3 observed and 2 harvested species; this world has 3 and 1" in err
    code, _, err = szilard("fishery", "train", "--model", 4, "--out", folder, *small)
    assert code == 2
    assert "holds a training with another world, seed or settings" in err


def test_solve_and_fixed_points(szilard, tmp_path):
    code, text, _ = szilard("fishery", "solve", "--model", 1, "--replicates", 50, "--out", tmp_path / "dp.nc")
    assert code == 0
    assert "expected return from N = 0.7 K: 2.07" in text
    assert xr.load_dataset(tmp_path / "dp.nc", engine="h5netcdf")["value"].dims == ("year", "population")
    code, text, _ = szilard("fishery", "fixed-points", "--out", tmp_path / "fold.png")
    assert code == 0
    assert "tipping points at beta_H = 0.17" in text
    assert (tmp_path / "fold.png").read_bytes().startswith(b"\x89PNG")


def test_fit_prints_intervals_in_the_datas_units(szilard, tmp_path):
    code, text, _ = szilard("fishery", "fit", "namibian_hake", "--out", tmp_path / "hake")
    assert code == 0
    assert "261" in text
    assert "thousand tonnes/year" in text
    assert (tmp_path / "hake" / "fit.png").exists()
    text = szilard("fishery", "fit", "nz_rock_lobster")[1]
    assert "[open, 0.15" in text  # the profile of r meets its lower bound
    code, text, _ = szilard("fishery", "fit", "nz_rock_lobster", "--initial", "free")
    assert code == 0
    assert "not identified: r" in text
    assert "MSY" not in text


def test_a_study_of_a_users_own_stock(szilard, tmp_path):
    (tmp_path / "mine.csv").write_text("year,catch,index\n" + "".join(_decline()))
    tiny = ["evaluation.replicates=20", "evaluation.record=3", "seeds=1", "scenarios.0.tuning.points=4"]
    tiny += ["scenarios.0.ppo={timesteps: 512, n_envs: 16, n_steps: 16, batch_size: 128, n_epochs: 1}"]
    tiny += ["scenarios.0.horizon=20", "scenarios.0.smoothing={long: 5}", f"scenarios.0.stock={tmp_path / 'mine.csv'}"]
    sets = [part for value in tiny for part in ("--set", value)]
    out = tmp_path / "run"
    code, text, err = szilard("fishery", "run", "stock", "--out", out, "--workers", 0, *sets)
    assert code == 0, err
    assert "annual_catch" in text
    summary = json.loads((out / "summary.json").read_text())
    catch = [
        row for row in summary["table"] if row["metric"] == "annual_catch" and row["method"] == "constant_mortality"
    ]
    assert catch[0]["unit"] == "catch unit/year"
    assert 1 < catch[0]["mean"] < 100  # the data's tens of units, not shares of K
    assert xr.open_datatree(out / "results.nc", engine="h5netcdf")["stock"]["return"].dims == ("policy", "rep")
    assert (out / "report.html").stat().st_size > 100_000
    code, _, err = szilard("fishery", "run", "stock", "--out", out, "--set", "seeds=2")
    assert code == 2
    assert "choose another --out, or --fresh" in err


def _decline():
    """Catches of a Schaefer stock with r = 0.4, K = 300, and its index without error."""
    biomass = 300.0
    for i in range(25):
        catch = 20 + 25 * np.sin(i / 4) ** 2
        yield f"{1980 + i},{catch:.4f},{0.01 * biomass:.6f}\n"
        biomass += 0.4 * biomass * (1 - biomass / 300) - catch


WORLD = ["fishery", "simulate", "--replicates", "5"]
QUICK = ["fishery", "run", "quick", "--workers", "0", "--out", "OUT"]
REFUSALS = [
    ([*WORLD], "give either --model (1 to 4) or --stock"),
    ([*WORLD, "--model", "7"], "model = 7: must be 1, 2, 3 or 4"),
    ([*WORLD, "--model", "1", "--parameter", "K=0"], "parameters.K = 0.0: must be greater than 0"),
    ([*WORLD, "--model", "1", "--parameter", "r=-1"], "parameters.r = -1.0: must be greater than 0"),
    ([*WORLD, "--model", "1", "--parameter", "r"], "--parameter r: must read NAME=NUMBER"),
    ([*WORLD, "--model", "3", "--sigma", "-0.1"], "sigma = -0.1: must be at least 0"),
    ([*WORLD, "--model", "3", "--variant", "warming"], "variant = 'warming': must be one of"),
    ([*WORLD, "--model", "3", "--rule", "constant_mortality", "--values", "1.5,0.1"], "each in [0, 1]"),
    ([*WORLD, "--model", "3", "--rule", "constant_mortality", "--values", "0.1"], "takes 2 numbers in this world"),
    (
        [*WORLD, "--model", "3", "--rule", "constant_mortality", "--values", "a,b"],
        "must be numbers separated by commas",
    ),
    ([*WORLD, "--stock", "absent.csv"], "absent.csv"),
    ([*WORLD, "--model", "1", "--out", "OUT/missing/a.nc"], "does not exist"),
    ([*WORLD, "--model", "1", "--out", "OUT.csv"], "must end in .nc"),
    ([*WORLD, "--model", "1", "--parameter", "r=inf"], "parameters.r = inf: must be greater than 0 and finite"),
    ([*WORLD, "--model", "1", "--sigma", "nan"], "sigma = nan: must be at least 0 and finite"),
    (["fishery", "train", "--model", "3", "--out", "OUT", "--set", "net=[-4]"], "net.0 = -4: must be"),
    (["fishery", "tune", "magic", "--model", "1"], "rule = 'magic': must be one of"),
    (["fishery", "solve", "--model", "3"], "takes one-species models"),
    (["fishery", "evaluate", "--model", "3", "--policy", "OUT"], "holds no trained policy"),
    (["fishery", "evaluate", "--model", "3"], "give either --rule or --policy"),
    (["fishery", "train", "--model", "3", "--out", "OUT", "--set", "learning_rate=-1"], "learning_rate = -1: must be"),
    (["fishery", "train", "--model", "3", "--out", "OUT", "--set", "rate=1"], "rate: unknown key; known here:"),
    ([*QUICK, "--set", "scenarios.0.threshold=1.5"], "threshold = 1.5: must be at least 0 and below"),
    ([*QUICK, "--set", "scenarios.0.sigma=-1"], "scenarios.0.sigma = -1"),
    ([*QUICK, "--set", "scenarios.0.model=9"], "scenarios.0.model = 9: must be 1, 2, 3 or 4"),
    ([*QUICK, "--set", "scenarios.0.methods=[magic]"], "must be 'unharvested'"),
    ([*QUICK, "--set", "scenarios.0.methods=[dynamic_programming]"], "takes one-species worlds"),
    ([*QUICK, "--set", "scenarios.0.tuning.points=1"], "must be greater than or equal to 2"),
    ([*QUICK, "--set", "scenarios.0.parameters={r_x: 0}"], "parameters.r_x = 0.0: must be greater than 0"),
    ([*QUICK, "--set", "scenarios.0.tuning.points=100000000000"], "must be less than or equal to 1001"),
    ([*QUICK, "--set", "evaluation.replicates=100000000000"], "must be less than or equal to 1000000"),
    ([*QUICK, "--set", "seeds=0"], "seeds = 0: must be greater than or equal to 1"),
    ([*QUICK, "--set", "seedz=1"], "seedz: unknown key; known here:"),
    ([*QUICK, "--set", "scenarios.2.stock=absent.csv"], "absent.csv"),
    ([*QUICK, "--set", "scenarios.2.exponent=20"], "scenarios.2.exponent = 20: must be less than or equal to 10"),
    ([*QUICK, "--set", "scenarios.2.stock=nz_rock_lobster", "--set", "scenarios.2.initial=free"], "not identified"),
    ([*QUICK, "--set", "scenarios.0.observe_time=true"], "ppo_gp knows populations alone"),
    (["fishery", "run", "absent.yaml"], "absent.yaml: no such file; packaged studies of fishery: paper, quick, stock"),
    (["fishery", "report", "OUT"], "holds no study"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS, ids=[" ".join(a[1:]) for a, _ in REFUSALS])
def test_a_mistake_is_one_line_and_leaves_nothing_behind(szilard, tmp_path, arguments, message):
    out = tmp_path / "out"
    code, text, err = szilard(*(a.replace("OUT", str(out)) for a in arguments))
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err + text
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fishery", "fit", "namibian_hake", "--out", "FILE"], "is a file, not a folder"),
        (["fishery", "train", "--model", "3", "--out", "FILE"], "is a file, not a folder"),
        (["fishery", "run", "quick", "--out", "FILE"], "not a folder"),
        (["fishery", "simulate", "--model", "3", "--out", "FOLDER.nc"], "is a folder"),
        (["fishery", "evaluate", "--model", "3", "--policy", "POLICY"], "training.json: not JSON"),
    ],
)
def test_what_is_there_is_not_touched(szilard, tmp_path, arguments, message):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.nc").mkdir()
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "policy.safetensors").touch()
    (tmp_path / "policy" / "training.json").write_text("{")
    names = {"FILE": "file", "FOLDER.nc": "folder.nc", "POLICY": "policy"}
    before = sorted(tmp_path.rglob("*"))
    code, _, err = szilard(*(str(tmp_path / names[a]) if a in names else a for a in arguments))
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


BAD_CSV = {
    "year,catch\n1990,1\n": "year,catch,index",
    CSV.replace("1995,15", "1994,15"): "1994",
    CSV.replace("1995,15,4.0\n", ""): "1996",
    CSV.replace("1995,15", "1995,-15"): "-15",
    CSV.replace("1995,15", "1995,"): "catch",
    CSV.replace("1995,15", "1995,many"): "many",
    CSV.replace("1995,15,4.0", "1995,15"): "line 7",
    CSV.replace("1995,15,4.0", "1995,15,0"): "index",
    "year,catch,index\n" + "".join(f"{1990 + i},{10 + i},\n" for i in range(12)): "index",
    "": "empty",
}


@pytest.mark.parametrize(("content", "message"), BAD_CSV.items(), ids=BAD_CSV.values())
def test_a_bad_table_is_refused_with_file_and_place(szilard, tmp_path, content, message):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    code, _, err = szilard("fishery", "fit", path, "--out", tmp_path / "out")
    assert code == 2
    assert "bad.csv" in err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()

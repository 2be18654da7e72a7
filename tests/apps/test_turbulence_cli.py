"""The verbs of ``szilard turbulence``: from a direct simulation to an exported closure; mistakes are told in a line."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
import xarray as xr

from apps.cli import main
from apps.turbulence import figures
from apps.turbulence.snapshots import read_snapshots
from apps.turbulence.study import TurbulenceStudy
from core.configs import ROOT
from core.rl.training import read_curve

VERBS = ("run", "report", "dns", "les", "calibrate", "train", "evaluate", "transfer", "export")
DNS = ["--n", 16, "--dt", 0.02, "--spin-up", 0.5, "--spacing", 0.2, "--count", 7, "--set", "flow.reynolds=500"]
ROLES = ["reference=[1, 2]", "training=[3, 4]", "evaluation=[5, 6, 7]", "flow.reynolds=500", "grid={n: 16, dt: 0.01}"]
SCENARIO = [word for text in ROLES for word in ("--set", text)]
SHORT = ["--duration", 1.5, "--discard", 0.5]
AGENTS = ["agents={state: invariants, horizon: 5}", "learner={kind: ppo, iterations: 2, n_envs: 2, n_steps: 5}"]
TRAINING = [word for text in (*(f"scenario.{r}" for r in ROLES), *AGENTS) for word in ("--set", text)]
STUDY = """
study: tiny
seeds: 1
long: 0
sampling: {duration: 1, discard: 0.2, every: 0.2}
claims: [smarl_beats_none]
scenarios:
  - &s
    name: one
    grid: {n: 16, dt: 0.02}
    reference: [1, 2]
    training: [3, 4]
    evaluation: [5, 6]
    closures: [{name: none, closure: none}]
    arms:
      - name: smarl
        agents: {state: invariants, horizon: 5}
        learner: {kind: ppo, iterations: 1, n_envs: 2, n_steps: 5, batch_size: 160, net: [8]}
  - {<<: *s, name: two, flow: {reynolds: 500}, arms: []}
"""


@pytest.fixture
def szilard(monkeypatch, capsys):
    """Run the command in this process, without pictures; returns exit code, stdout and stderr."""
    alone = TurbulenceStudy.run
    monkeypatch.setattr(TurbulenceStudy, "run", lambda study, *a, **k: alone(study, *a, **(k | {"workers": 0})))
    monkeypatch.setattr(figures, "of_scenario", lambda *_: [])
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["szilard", "turbulence", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Snapshots of a small flow, and a policy trained on them."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        for arguments in (
            ["dns", *DNS, "--out", folder / "dns"],
            ["train", "--snapshots", folder / "dns" / "snapshots.nc", *TRAINING, "--out", folder / "policy"],
        ):
            patch.setattr(sys, "argv", ["szilard", "turbulence", *map(str, arguments)])
            with pytest.raises(SystemExit) as end:
                main()
            assert not end.value.code
    (folder / "file").write_text("text")
    (folder / "study.yaml").write_text(STUDY)
    (folder / "empty").mkdir()
    return folder


# ---- what each verb does


def test_dns_writes_snapshots_and_says_how_many_are_needed(szilard, made, tmp_path):
    omega = read_snapshots(made / "dns" / "snapshots.nc")
    assert omega.shape == (7, 16, 16)
    with xr.open_dataset(made / "dns" / "snapshots.nc") as data:
        np.testing.assert_allclose(data["time"], 0.5 + 0.2 * np.arange(7))
    assert not (made / "dns" / "state.safetensors").exists()
    code, text, err = szilard("dns", *DNS, "--out", tmp_path / "again")
    assert code == 0, err
    np.testing.assert_array_equal(read_snapshots(tmp_path / "again" / "snapshots.nc"), omega)
    sigma = omega.std()
    assert f"7 snapshots; sigma of the vorticity {sigma:.3f}" in text
    assert "for a reference spectrum known to 0.03 decades: " in text
    assert text.splitlines()[-1] == str(tmp_path / "again" / "snapshots.nc")
    code, _, err = szilard("dns", *DNS, "--seed", 1, "--set", "source.keep=8", "--out", tmp_path / "other")
    assert code == 0, err
    assert read_snapshots(tmp_path / "other" / "snapshots.nc").shape == (7, 8, 8)


def test_dns_of_two_snapshots_is_enough(szilard, tmp_path):
    few = ["--n", 16, "--dt", 0.02, "--spin-up", 0, "--spacing", 0.1, "--count", 2]
    code, text, err = szilard("dns", *few, "--out", tmp_path)
    assert code == 0, err
    assert text.startswith("2 snapshots")


def test_les_compares_closures_and_goes_on_or_begins_anew(szilard, made, tmp_path):
    closures = ["--closure", "none", "--closure", "leith:0.19", "--closure", "dleith:mean_then_clip"]
    given = ["les", *closures, "--snapshots", made / "dns", *SCENARIO, *SHORT, "--out", tmp_path]
    code, text, err = szilard(*given)
    assert code == 0, err
    table = json.loads((tmp_path / "summary.json").read_text())["table"]
    assert {row["method"] for row in table} == {"none", "leith_0.19 (0.19)", "dleith_mean_then_clip"}
    assert "spectrum error" in text
    code, text, err = szilard(*given)
    assert code == 0
    assert "4 of 4 runs were finished before" in err + text
    code, _, err = szilard(*given, "--set", "band=les")
    assert code == 2
    assert "choose another --out, or --fresh" in err
    code, _, err = szilard(*given, "--set", "band=les", "--fresh")
    assert code == 0, err


def test_les_needs_nothing_but_a_place(szilard, tmp_path):
    short = ["--duration", 0.5, "--discard", 0.1, "--set", "grid={n: 16, dt: 0.02}", "--set", "evaluation=[16, 17]"]
    code, _, err = szilard("les", *short, "--out", tmp_path)
    assert code == 0, err
    table = json.loads((tmp_path / "summary.json").read_text())["table"]
    assert {row["method"] for row in table} == {"none", "leith_0.17 (0.17)"}


@pytest.mark.parametrize("method", ["grid", "eki"])
def test_calibrate_chooses_a_constant_and_writes_it(szilard, made, tmp_path, method):
    few = {
        "grid": "calibration.method.values=[0.1, 0.3]",
        "eki": "calibration.method={kind: eki, members: 4, rounds: 1}",
    }
    out = tmp_path / "made" / "leith.nc"
    code, text, err = szilard(
        *("calibrate", "--closure", "leith", "--method", method, "--snapshots", made / "dns" / "snapshots.nc"),
        *(*SCENARIO, *SHORT, "--set", few[method], "--out", out),
    )
    assert code == 0, err
    with xr.open_dataset(out) as found:
        chosen = float(found["chosen"].values.ravel()[0])
    if method == "grid":
        assert chosen in (0.1, 0.3)
    assert 0.03 <= chosen <= 0.6
    assert text.splitlines()[-1] == str(out)


def test_train_keeps_policy_curve_and_record_and_does_not_train_twice(szilard, made):
    folder = made / "policy"
    record = json.loads((folder / "training.json").read_text())
    assert record["scenario"]["reference"] == [1, 2]
    assert record["learner"]["iterations"] == 2
    assert [p["timesteps"] for p in read_curve(folder / "curve.jsonl")] == [160, 320]
    weights = (folder / "policy.safetensors").read_bytes()
    code, text, err = szilard("train", "--snapshots", made / "dns" / "snapshots.nc", *TRAINING, "--out", folder)
    assert code == 0, err
    assert text.splitlines()[-1] == str(folder / "policy.safetensors")
    assert (folder / "policy.safetensors").read_bytes() == weights
    assert len(read_curve(folder / "curve.jsonl")) == 2


def test_a_mistake_in_what_to_train_leaves_the_place_free(szilard, made, tmp_path):
    given = ["train", "--snapshots", made / "dns" / "snapshots.nc", *TRAINING, "--out", tmp_path / "new"]
    code, _, err = szilard(*given, "--set", "agents.agents_per_side=3")
    assert code == 2
    assert "3" in err
    assert not (tmp_path / "new").exists()
    assert szilard(*given, "--set", "learner.iterations=1")[0] == 0


def test_evaluate_simulates_policies_beside_closures(szilard, made, tmp_path):
    given = ["evaluate", "--policy", made / "policy", "--closure", "none", *SHORT, "--out", tmp_path / "out"]
    code, _, err = szilard(*given)
    assert code == 2
    assert "every = 0.25 is 25 steps of dt = 0.01: must be a multiple of the 10 that policy holds" in err
    code, text, err = szilard(*given, "--every", 0.3, "--set", "evaluation=[6, 7]")
    assert code == 0, err
    evaluated = xr.load_dataset(tmp_path / "out" / "results.nc", group="evaluate/policy", engine="h5netcdf")
    np.testing.assert_allclose(evaluated["time"], [0.3, 0.6, 0.9, 1.2, 1.5])
    assert evaluated["start"].values.tolist() == [6, 7]
    assert "policy" in text
    table = json.loads((tmp_path / "out" / "summary.json").read_text())["table"]
    assert {row["method"] for row in table} == {"none", "policy"}


def test_export_writes_one_numpy_function(szilard, made, tmp_path):
    code, text, err = szilard("export", "--policy", made / "policy", "--out", tmp_path, "--explain")
    assert code == 0, err
    module, weights = (line for line in text.splitlines()[:2])
    assert module.endswith(".py")
    assert weights.endswith(".npz")
    spec = importlib.util.spec_from_file_location("exported_by_the_command", module)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    for told in ("share of points with c < 0", "importance of", "formula (cross-validated R^2"):
        assert told in text
    assert (tmp_path / "interpretation.nc").exists()


def test_run_report_and_transfer(szilard, made, tmp_path):
    code, text, err = szilard("run", made / "study.yaml", "--out", tmp_path / "run", "--workers", 0)
    assert code == 0, err
    assert "smarl_beats_none" in text
    before = json.loads((tmp_path / "run" / "summary.json").read_text())["table"]
    code, _, err = szilard("report", tmp_path / "run")
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["table"] == before
    assert not any("from" in row["method"] for row in before)
    code, _, err = szilard("transfer", made / "study.yaml", "--train-on", "one", "--out", tmp_path / "transfer")
    assert code == 0, err
    table = json.loads((tmp_path / "transfer" / "summary.json").read_text())["table"]
    assert {row["method"] for row in table if row["scenario"] == "two"} == {"none", "smarl from one"}
    # What does not move is what it was.
    assert [row for row in table if row["method"] != "smarl from one"] == before


def test_every_verb_has_help_with_an_example(szilard):
    listed = szilard("--help")[1]
    for verb in VERBS:
        assert verb in listed
        code, text, _ = szilard(verb, "--help")
        assert code == 0
        assert f"Example: szilard turbulence {verb}" in " ".join(text.split())


def test_the_examples_of_the_help_name_files_that_are_there():
    assert (ROOT / "configs" / "turbulence" / "transfer.yaml").exists()
    study = TurbulenceStudy.load("transfer")
    assert {s.name for s in study.scenarios} >= set(study.transfer)


# ---- mistakes

LES = ["les", "--out", "OUT"]
TRAIN = ["train", "--out", "OUT"]
EVALUATE = ["evaluate", "--policy", "MADE/policy", "--out", "OUT"]
CALIBRATE = ["calibrate", "--out", "OUT.nc"]
REFUSALS = [
    ([*LES, "--closure", "magic"], "--closure magic: closure = \"magic\": must be 'none', 'smag'"),
    ([*LES, "--closure", "dleith:0.2"], "--closure dleith:0.2: closure dleith: has no option 'constant'"),
    ([*LES, "--closure", "dleith:magic"], "clip = \"magic\": must be 'positive_product'"),
    ([*LES, "--closure", "leith:much"], "--closure leith:much: 'much' must be a number"),
    ([*LES, "--closure", "leith:-1"], "constant = -1: must be at least 0"),
    ([*LES, "--closure", "leith:nan"], "must be a finite number"),
    ([*LES, "--closure", "none:1"], "closure none: has no option 'constant'"),
    ([*LES, "--closure", "none", "--closure", "none"], "each with a name of its own"),
    ([*LES, "--duration", "5", "--discard", "5"], "discard must be below duration"),
    ([*LES, "--duration", "0"], "--duration"),
    ([*LES, "--every", "0"], "every = 0.0: must be greater than 0"),
    ([*LES, "--set", "flow.case=case1"], "the shipped ones are of case kolmogorov4, not of case1"),
    ([*LES, "--set", "grid.n=15"], "--set grid.n=15: grid.n = 15: must be a multiple of 2"),
    ([*LES, "--set", "flow.fkx=16"], "fkx = 16: a grid of 32 points represents forcing up to 15"),
    ([*LES, "--set", "evaluation=[1, 2]"], "evaluation: shares snapshots with reference or training"),
    ([*LES, "--set", "evaluation=[20, 21]"], "snapshot 21: there are 20, numbered from 1"),
    ([*LES, "--set", "colour=red"], "colour: unknown key; known here: flow, grid"),
    ([*LES, "--device", "cuda"], "--device cuda: there is no CUDA device"),
    (["les", "--out", "MADE/file"], "MADE/file: not a folder"),
    (["les", "--out", "MADE/dns"], "holds simulation.json, which no study wrote"),
    (["dns", "--out", "OUT", "--case", "case3"], "'case3' is not one of 'case1'"),
    (["dns", "--out", "OUT", "--case", "case4", "--n", "32"], "fkx = 25: a grid of 32 points represents"),
    (["dns", "--out", "OUT", "--n", "17"], "source.grid.n = 17: must be a multiple of 2"),
    (["dns", "--out", "OUT", "--n", "6"], "--n"),
    (["dns", "--out", "OUT", "--dt", "-1"], "source.grid.dt = -1.0: must be greater than 0"),
    (["dns", "--out", "OUT", "--spacing", "0"], "source.spacing = 0.0: must be greater than 0"),
    (["dns", "--out", "OUT", "--count", "1"], "--count"),
    (["dns", "--out", "OUT", "--set", "source.keep=512"], "keep = 512: must be at most grid.n = 256"),
    (["dns", "--out", "OUT", "--set", "source.colour=red"], "source.colour: unknown key; known here: kind, grid"),
    (["dns", "--out", "OUT", "--device", "cuda"], "--device cuda: there is no CUDA device"),
    (["dns", "--out", "MADE/file"], "--out MADE/file: is a file, not a folder"),
    (
        ["dns", "--out", "MADE/dns", "--n", "32"],
        "MADE/dns: holds work with other settings: flow.reynolds = 500.0, now null: choose another --out",
    ),
    (["dns"], "--out"),
    ([*CALIBRATE, "--closure", "dleith"], 'calibrate: closure = "dleith": must be'),
    ([*CALIBRATE, "--method", "magic"], "'magic' is not one of 'grid', 'cmaes', 'eki'"),
    ([*CALIBRATE, "--set", "calibration.method.colour=red"], "method.colour: unknown key; known here: kind, values"),
    ([*CALIBRATE, "--snapshots", "OUT/none.nc"], "OUT/none.nc: no such file"),
    ([*CALIBRATE, "--duration", "5", "--discard", "5"], "discard"),
    ([*CALIBRATE, "--device", "cuda"], "--device cuda: there is no CUDA device"),
    (["calibrate", "--out", "OUT.txt"], "OUT.txt: must be a file that ends in .nc"),
    ([*CALIBRATE, "--set", "snapshots={kind: dns}"], "szilard turbulence dns makes them first"),
    ([*TRAIN, "--snapshots", "OUT/none.nc"], "OUT/none.nc: no such file"),
    ([*TRAIN, "--snapshots", "MADE/file"], "neither a NetCDF file nor a Zarr store"),
    ([*TRAIN, "--snapshots", "MADE/dns/snapshots.nc"], "is of another flow: reynolds = 500"),
    (
        [*TRAIN, "--snapshots", "MADE/dns/snapshots.nc", "--set", "scenario.flow.reynolds=500"],
        "snapshot 15: there are 7, numbered from 1",
    ),
    ([*TRAIN, "--set", "learner.kind=magic"], "learner.kind = \"magic\": must be one of 'ppo', 'vracer'"),
    ([*TRAIN, "--set", "learner={kind: vracer, episodes: 1}"], "replay_start = 10000: 1 episodes of 100 actions"),
    ([*TRAIN, "--set", "agents.agents_per_side=5"], "5"),
    ([*TRAIN, "--set", "agents.state=magic"], 'agents.state = "magic": must be'),
    ([*TRAIN, "--set", "scenario.snapshots={kind: dns}"], "szilard turbulence dns makes them first"),
    ([*TRAIN, "--seed", "-1"], "--seed"),
    ([*TRAIN, "--device", "cuda"], "--device cuda: there is no CUDA device"),
    (
        ["train", "--out", "MADE/policy"],
        "MADE/policy: holds work with other settings: scenario.",
    ),
    (["train", "--out", "MADE/file"], "--out MADE/file: is a file, not a folder"),
    (["evaluate", "--policy", "MADE/empty", "--out", "OUT"], "--policy MADE/empty: holds no trained policy"),
    (["evaluate", "--policy", "OUT/none", "--out", "OUT"], "--policy OUT/none: holds no trained policy"),
    (["evaluate", "--out", "OUT"], "--policy"),
    ([*EVALUATE, "--closure", "magic"], '--closure magic: closure = "magic"'),
    ([*EVALUATE, "--every", "0.2", "--set", "grid.n=18"], "agents_per_side = 4: must divide grid.n = 18"),
    ([*EVALUATE, "--set", "evaluation=[1, 2]"], "evaluation: shares snapshots with reference or training"),
    (["export", "--policy", "MADE/empty", "--out", "OUT"], "--policy MADE/empty: holds no trained policy"),
    (["transfer", "absent.yaml"], "absent.yaml: no such file; packaged studies of turbulence:"),
    (
        ["transfer", "MADE/study.yaml", "--train-on", "nowhere", "--out", "OUT"],
        "transfer = nowhere: must be one of the",
    ),
    (["run", "absent"], "absent: no such file; packaged studies of turbulence:"),
    (["run", "MADE/study.yaml", "--out", "OUT", "--set", "seeds=0"], "seeds = 0: must be greater than or equal to 1"),
    (["run", "MADE/file"], "MADE/file: "),
    (["report", "MADE/dns"], "MADE/dns: holds no study"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS, ids=[" ".join(a) for a, _ in REFUSALS])
def test_a_mistake_is_one_line_and_leaves_nothing_behind(szilard, made, tmp_path, arguments, message, monkeypatch):
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


def test_snapshots_that_are_missing_are_told_before_anything_is_simulated(szilard, made, tmp_path):
    numbers = ["--set", "evaluation=[6, 8]", "--set", "flow.reynolds=500", *SHORT, "--out", tmp_path / "out"]
    roles = ["--set", "reference=[1, 2]", "--set", "training=[3, 4]", "--set", "grid={n: 16, dt: 0.02}"]
    code, _, err = szilard("les", "--snapshots", made / "dns", *numbers, *roles)
    assert code == 2
    assert "snapshot 8: there are 7, numbered from 1" in err
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_is_told_in_a_line_with_its_place(szilard, made, tmp_path):
    missing = f"scenarios.0.snapshots={{kind: files, data: {tmp_path / 'none.nc'}}}"
    code, _, err = szilard("run", made / "study.yaml", "--set", missing, "--out", tmp_path / "out", "--workers", 0)
    assert code == 1
    assert f"{tmp_path / 'none.nc'}: no such file" in err
    assert "Traceback" not in err
    # What did not need the file is done and kept.
    assert len(list((tmp_path / "out" / "runs").glob("*/result.nc"))) == 2

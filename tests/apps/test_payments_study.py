"""The payments study from its YAML to its claims: what is tuned where, drawn, resumed after a kill, and refused."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from apps.payments import figures
from apps.payments.generations import play
from apps.payments.runs import Play, Tune, online_value
from apps.payments.study import PaymentsStudy
from core.configs import configs
from core.errors import InputError, MissingExtra
from core.stats import paired_t_test
from core.study.results import Results
from core.study.run import expand

PACKAGED = [name for name, _ in configs("payments")]
TINY = """
study: tiny
worlds: {first: 0, count: 2}
tuning: {first: 100, count: 2}
permutations: 199
scenarios:
  - name: base
    sizes: {issuers: 12, merchants: 6, countries: 4}
    generations: 5
    payments: 300
    evaluation: 150
    baseline: slice
    arms:
      - {name: uniform, exploration: {rule: uniform}}
      - {name: slice, exploration: {rule: epsilon_slice}, tune: {parameter: epsilon, grid: [0.2, 0.5]}}
      - {name: epsilon, exploration: {rule: epsilon}, tune: {parameter: epsilon, grid: [0.1, 0.3]}}
      - {name: igw, exploration: {rule: igw}, tune: {parameter: gamma, grid: [100, 1000]}}
      - {name: igw_300, exploration: {rule: igw, gamma: 300}}
      - {name: igw_300_memory3, exploration: {rule: igw, gamma: 300}, window: 3}
"""
DRIFTING = """
study: drifting
worlds: {first: 0, count: 2}
permutations: 199
scenarios:
  - name: drifting
    sizes: {issuers: 12, merchants: 6, countries: 4}
    generations: 4
    payments: 300
    evaluation: 150
    drift: {kind: abrupt, generation: 2, share: 0.5}
    delay: {median_hours: 20}
    outage: {rate: 0.2}
    arms:
      - {name: uniform, exploration: {rule: uniform}}
      - {name: igw_300, exploration: {rule: igw, gamma: 300}}
      - {name: igw_300_memory3, exploration: {rule: igw, gamma: 300}, window: 3}
"""
KILLED = """
import os, signal, sys
import apps.payments.generations as generations
from apps.payments.study import PaymentsStudy

generations.CHECKPOINT_SECONDS = -1.0
save, saved = generations.GenerationLoop.save, []

def save_and_die(self, folder):
    save(self, folder)
    saved.append(folder)
    if len(saved) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

generations.GenerationLoop.save = save_and_die
PaymentsStudy.load(sys.argv[1]).run(sys.argv[2], workers=0, device="cpu", quiet=True)
"""


def load(folder, *overrides, text=TINY):
    path = folder / "study.yaml"
    path.write_text(text)
    return PaymentsStudy.load(path, overrides)


@pytest.fixture
def no_pictures(monkeypatch):
    """What is drawn is tested once."""
    monkeypatch.setattr(figures, "of_scenario", lambda *_: [])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tiny study, run once in this process: study, folder and summary."""
    folder = tmp_path_factory.mktemp("whole")
    study = load(folder)
    return study, folder / "out", study.run(folder / "out", workers=0, device="cpu", quiet=True)


def results(out, group="base"):
    return xr.load_dataset(out / "results.nc", group=group, engine="h5netcdf")


def arm_of(study, name):
    comparison = study.scenarios[0]
    return comparison, next(arm for arm in comparison.arms if arm.name == name)


# ---- the packaged studies


@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_study_loads(name):
    study = PaymentsStudy.load(name)
    assert study.description
    assert study.takes
    assert study.runs()
    assert PaymentsStudy.model_validate(study.model_dump()) == study


def test_quick_is_the_study_that_was_asked_for():
    study = PaymentsStudy.load("quick")
    assert list(study.worlds.seeds) == list(range(8))
    assert list(study.tuning.seeds) == [100, 101, 102]
    (base,) = study.scenarios
    assert (base.generations, base.payments, base.evaluation, base.sizes.actions) == (12, 15_000, 3_000, 32)
    assert (base.drift, base.delay, base.outage) == (None, None, None)
    arms = {(a.exploration.rule, a.window, a.tune and a.tune.parameter): a for a in base.arms}
    assert len(arms) == len(base.arms) == 8
    epsilons, gammas = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2), {500, 1000, 2000, 3000, 5000}
    for key in (("epsilon_slice", 1), ("epsilon", 1), ("epsilon", 3)):
        assert arms[(*key, "epsilon")].tune.grid == epsilons
    for window in (1, 3):
        assert gammas <= set(arms["igw", window, "gamma"].tune.grid)
        assert arms["igw", window, None].exploration.gamma == 3000
    assert ("uniform", 1, None) in arms
    assert study.claims == (
        "igw_beats_uniform_exploration",
        "igw_beats_tuned_epsilon",
        "second_generation_degrades",
        "oscillation_under_short_memory",
        "longer_memory_removes_oscillation",
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tuning.first=1"], "tuning: shares worlds with those that are scored"),
        (["worlds.count=200"], "tuning: shares worlds with those that are scored"),
        (["worlds.count=1"], "worlds.count = 1: must be greater than or equal to 2"),
        (["scenarios=[&s {name: a, arms: [{name: u, exploration: {rule: uniform}}]}, *s]"], "two have the same name"),
        (["scenarios.0.arms.0.name=igw"], "scenario base: two arms have the same name"),
        (["scenarios.0.baseline=magic"], "scenario base: baseline magic is none of uniform, slice,"),
        (["scenarios.0.arms.0.exploration.rule=magic"], "must be 'uniform'"),
        (["scenarios.0.arms.1.window=3"], "window must be 1"),
        (["scenarios.0.arms.0.colour=red"], "colour: unknown key; known here: name, exploration, window"),
        (["scenarios.0.generations=3"], "scenario base: generations = 3: a study needs at least 4"),
        (["claims=[magic]"], "must be 'igw_beats_uniform_exploration'"),
        (["permutations=5"], "permutations = 5: must be"),
        (["scenarios=[]"], "scenarios"),
    ],
)
def test_a_study_that_cannot_be_is_refused_in_one_line(tmp_path, overrides, message):
    with pytest.raises(InputError) as refused:
        load(tmp_path, *overrides)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_oracle_s_package_is_asked_for_before_anything_is_played(tmp_path, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("core.errors.importlib.import_module", absent)
    for kind, extra in (("kind: gbdt", "payments"), ("kind: gbdt, backend: lightgbm", "gbdt"), ("kind: vw", "vw")):
        study = load(tmp_path, f"scenarios.0.arms.0.oracle={{{kind}}}")
        with pytest.raises(MissingExtra, match=rf'pip install "szilard\[{extra}\]"'):
            study.run(tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


# ---- a whole study


def test_a_study_ends_in_a_summary_a_page_and_results_with_named_dims(whole):
    study, out, summary = whole
    said = json.loads((out / "summary.json").read_text())
    assert [c["id"] for c in said["claims"]] == list(study.claims)
    for claim in said["claims"]:
        assert claim["holds"] in (True, False)
        assert claim["n"] == 2
        assert claim["low"] <= claim["difference"] <= claim["high"]
    base = results(out)
    names = [arm.name for arm in study.scenarios[0].arms]
    for name in ("value", "mse_uniform", "entropy", "regret", "c2", "model_error", "auc"):
        assert base[name].dims == ("arm", "world", "generation")
        assert np.isfinite(base[name]).all()
        assert base[name].attrs["long_name"]
    assert base["arm"].values.tolist() == names
    assert base["world"].values.tolist() == [0, 1]
    assert base["generation"].values.tolist() == [0, 1, 2, 3, 4]
    assert base["segment_value"].dims == ("arm", "world", "generation", "segment")
    page = (out / "report.html").read_text()
    for text in ("Claims are about this simulator", study.claims[0], "igw_300_memory3", "Tuned numbers were chosen on"):
        assert text in page
    assert summary.out == out


def test_every_picture_is_drawn(whole):
    _, out, _ = whole
    names = ("online_value", "model", "phase", "reliability", "propensities", "weights", "segments", "tuning")
    expected = {f"base_{name}" for name in names}
    for kind, begins in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        drawn = {path.stem: path for path in (out / "figures").glob(f"*.{kind}")}
        assert drawn.keys() == expected
        assert all(path.read_bytes().startswith(begins) for path in drawn.values())


def test_what_is_in_the_results_is_what_the_loop_gives(whole):
    study, out, _ = whole
    base = results(out)
    comparison, arm = arm_of(study, "igw_300_memory3")
    for world in study.worlds.seeds:
        alone = play(comparison.scenario, arm, world)
        kept = base.sel(arm=arm.name, world=world)
        for name in alone.data_vars:
            np.testing.assert_array_equal(kept[name].values, alone[name].values)


def test_numbers_are_tuned_on_the_tuning_worlds_alone(whole):
    study, out, _ = whole
    kept = Results(out, study.runs())
    base = results(out)
    for name in ("slice", "epsilon", "igw"):
        comparison, arm = arm_of(study, name)
        run = study.tune(comparison, arm)
        assert {p.world for p in run.plays} == set(study.tuning.seeds)
        assert not any(p.measure or p.tuned for p in run.plays)
        tuned = kept[run]
        assert tuned["value"].dims == ("setting", "world")
        assert tuned["setting"].values.tolist() == list(arm.tune.grid)
        assert tuned["world"].values.tolist() == [100, 101]
        for setting in arm.tune.grid:
            for world in study.tuning.seeds:
                alone = float(online_value(play(comparison.scenario, arm.at(setting), world, measure=False)))
                assert float(tuned["value"].sel(setting=setting, world=world)) == pytest.approx(alone, abs=1e-15)
        best = tuned["setting"].values[int(tuned["value"].mean("world").values.argmax())]
        assert float(tuned["chosen"]) == best
        # The arm was played with it, in every scored world.
        np.testing.assert_array_equal(base["tuned"].sel(arm=name), best)
        scored = play(comparison.scenario, arm.at(best), 1)
        np.testing.assert_array_equal(base["value"].sel(arm=name, world=1), scored["value"])
    assert base["tuned"].sel(arm="igw_300").isnull().all()


def test_the_worlds_that_are_scored_change_nothing_in_the_tuning(tmp_path):
    one, two = load(tmp_path), load(tmp_path, "worlds.first=50", "worlds.count=7")
    other = load(tmp_path, "tuning.first=200")
    hashes = [study.tune(*arm_of(study, "igw")).hash for study in (one, two, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_runs_that_play_the_same_are_one(tmp_path):
    study = load(tmp_path)
    runs = expand(study.runs()).values()
    plays = [run for run in runs if isinstance(run, Play)]
    # Scored: 6 arms in 2 worlds; tuning: 2 numbers of 3 arms in 2 worlds.
    assert len(plays) == 6 * 2 + 6 * 2
    assert sum(isinstance(run, Tune) for run in runs) == 3
    again = load(tmp_path, "scenarios.0.arms.4.tune={parameter: gamma, grid: [1000, 3000]}")
    more = [run for run in expand(again.runs()).values() if isinstance(run, Play)]
    assert len(more) == 6 * 2 + 7 * 2  # of the second grid only one number is new


def test_the_table_has_every_arm_s_numbers_with_intervals_over_worlds(whole):
    study, out, summary = whole
    base = results(out)
    rows = {(r.method, r.metric): r for r in summary.table if r.scenario == "base"}
    value = online_value(base)
    for arm in study.scenarios[0].arms:
        row = rows[arm.name, "online value"]
        assert row.mean == pytest.approx(float(value.sel(arm=arm.name).mean()))
        assert row.low < row.mean < row.high
        assert row.n == 2
        for metric in ("model error", "oscillation of the model error", "degradation", "entropy", "AUC", "regret"):
            assert np.isfinite(rows[arm.name, metric].mean)
        assert rows[arm.name, "reversals of the online value"].n == 2 * 2
        assert ((arm.name, "uplift") in rows) == (arm.name != "slice")
        assert ((arm.name, f"tuned {arm.tune.parameter}") in rows) if arm.tune else True
    expected = paired_t_test(value.sel(arm="igw").values, value.sel(arm="slice").values)
    found = rows["igw", "uplift"]
    assert [found.mean, found.low, found.high] == pytest.approx(
        [1e4 * expected.mean, 1e4 * expected.low, 1e4 * expected.high]
    )
    swept = [r for r in summary.table if r.metric == "online value in tuning"]
    assert [r.method for r in swept if r.method.startswith("igw")] == ["igw at 100", "igw at 1000"]
    assert rows["igw", "C_2 of the next policy"].mean > 1
    assert all(np.isfinite(r.mean) for r in summary.table)


def test_a_study_without_any_model_says_so_and_decides_what_it_can(no_pictures, tmp_path):
    never = load(tmp_path, "scenarios.0.delay.never=1.0", text=DRIFTING)
    summary = never.run(tmp_path / "out", workers=0, device="cpu", quiet=True)
    verdicts = {claim.id: claim.holds for claim in summary.claims}
    assert verdicts.pop("second_generation_degrades") is False
    assert set(verdicts.values()) == {None}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "drifting, igw_300, world 0: generation 0: no rows to learn from; the model before was kept" in page
    assert all(np.isfinite(row.mean) for row in summary.table)


def test_killed_and_resumed_equals_uninterrupted(no_pictures, tmp_path):
    (tmp_path / "drifting.yaml").write_text(DRIFTING)
    killed, whole = (tmp_path / name for name in ("killed", "whole"))
    # The first run keeps its state after each of four generations; the sixth time is in the second.
    command = [sys.executable, "-c", KILLED, str(tmp_path / "drifting.yaml"), str(killed), "6"]
    process = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(list(killed.glob("runs/*/result.nc"))) == 1
    (state,) = killed.glob("runs/*/checkpoint/loop/state.json")
    assert json.loads(state.read_text())["generation"] == 2
    study = PaymentsStudy.load(tmp_path / "drifting.yaml")
    for out in (killed, whole):
        study.run(out, workers=0, device="cpu", quiet=True)
    for run in study.runs():
        one, two = (xr.load_dataset(out / "runs" / run.hash / "result.nc") for out in (killed, whole))
        assert one.equals(two)
    one, two = (results(out, "drifting") for out in (killed, whole))
    assert one.identical(two)
    one, two = (json.loads((out / "summary.json").read_text()) for out in (killed, whole))
    assert (one["claims"], one["table"]) == (two["claims"], two["table"])

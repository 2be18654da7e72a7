"""The turbulence study from its YAML to its claims: what is tuned where, trained, resumed, moved and refused."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr

from apps.turbulence import ensemble, figures
from apps.turbulence.claims import CLAIMS
from apps.turbulence.learning import Agents, PPOSettings, StoredPolicy, Training, VRACERSettings, load_policy, train
from apps.turbulence.metrics import chosen, spectrum_errors
from apps.turbulence.runs import ClosureEnsemble, ClosureSettings, PolicyEnsemble, SamplingSettings
from apps.turbulence.scenario import Discretisation, FlowSettings, Scenario, Shipped
from apps.turbulence.snapshots import given, numbered, truncated
from apps.turbulence.study import Arm, TurbulenceStudy, evaluation_of
from apps.turbulence.table import COLUMNS
from core import files
from core.checkpoint import Checkpoint
from core.configs import configs
from core.errors import InputError
from core.rl import training as training_loop
from core.rl.training import read_curve
from core.stats import t_interval
from core.study.results import Results
from core.study.run import expand
from simulators.turbulence.diagnostics import enstrophy_spectrum

PACKAGED = [name for name, _ in configs("turbulence")]
TINY = """
study: tiny
seeds: 2
long: 4
sampling: {duration: 3, discard: 1, every: 0.2, realisations: 2}
scenarios:
  - name: here
    grid: {n: 16, dt: 0.02}
    reference: [1, 2, 3]
    training: [4, 5]
    evaluation: [6, 7]
    closures:
      - {name: none, closure: none}
      - {name: leith, closure: leith, constants: [0.1, 0.3]}
      - {name: dleith, closure: dleith, clip: mean_then_clip}
      - {name: dsmag, closure: dsmag, every: 5}
    arms:
      - name: smarl
        agents: {state: invariants, horizon: 5}
        learner: {kind: ppo, iterations: 2, n_envs: 2, n_steps: 5, batch_size: 160, net: [8]}
"""
MOVED = """
study: moved
seeds: 1
long: 0
sampling: {duration: 1.2, discard: 0.4, every: 0.2}
transfer: [coarse]
claims: [smarl_beats_none, smarl_stable_long_run]
scenarios:
  - name: coarse
    grid: {n: 16, dt: 0.02}
    reference: [1, 2, 3]
    training: [4, 5]
    evaluation: [6, 7]
    closures: [{name: leith, closure: leith, constants: [0.1, 0.3]}]
    arms:
      - name: smarl
        agents: {state: invariants, horizon: 5}
        learner: {kind: ppo, iterations: 1, n_envs: 2, n_steps: 5, batch_size: 160, net: [8]}
  - name: fine
    flow: {reynolds: 500, beta: 5}
    grid: {n: 32, dt: 0.01}
    resolved: {n: 32, dt: 0.01}
    snapshots: {kind: dns, grid: {n: 32, dt: 0.01}, keep: 32, spin_up: 0.5, spacing: 0.2, count: 7}
    reference: [1, 2, 3]
    training: [4, 5]
    evaluation: [6, 7]
    closures: [{name: leith, closure: leith, constants: [0.1, 0.3]}]
"""
KILLED = """
import os, signal, sys
from apps.turbulence.study import TurbulenceStudy
from core.rl import training

saved = []

def save_and_die(self):
    self.model.save_state(self.path)
    saved.append(self.path)
    if len(saved) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

training.ResumeCallback._on_rollout_start = save_and_die
TurbulenceStudy.load(sys.argv[1]).run(sys.argv[2], workers=0, device="cpu", quiet=True)
"""


def load(folder, *overrides, text=TINY):
    path = folder / "study.yaml"
    path.write_text(text)
    return TurbulenceStudy.load(path, overrides)


def run(study, out):
    return study.run(out, workers=0, device="cpu", quiet=True)


def results(out, group):
    return xr.load_dataset(out / "results.nc", group=group, engine="h5netcdf")


@pytest.fixture
def no_pictures(monkeypatch):
    """What is drawn is tested once."""
    monkeypatch.setattr(figures, "of_scenario", lambda *_: [])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tiny study, run once in this process: study, folder and summary."""
    folder = tmp_path_factory.mktemp("whole")
    study = load(folder)
    return study, folder / "out", run(study, folder / "out")


# ---- the packaged studies


@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_study_loads(name):
    study = TurbulenceStudy.load(name)
    assert study.description
    assert study.takes
    assert study.runs()
    assert TurbulenceStudy.model_validate(study.model_dump()) == study


def test_quick_is_the_study_that_was_asked_for():
    study = TurbulenceStudy.load("quick")
    (s,) = study.scenarios
    assert (s.flow.case, s.grid.n, s.grid.dt, s.band) == ("kolmogorov4", 32, 5e-3, "full")
    assert (s.reference, s.training, s.evaluation) == (
        tuple(range(1, 11)),
        tuple(range(11, 16)),
        tuple(range(16, 21)),
    )
    assert (study.seeds, study.long, study.sampling.duration, study.sampling.discard) == (3, 200, 70, 10)
    found = {(c.closure, c.clip, len(c.constants)) for c in s.closures}
    assert {("none", None, 0), ("leith", None, 1), ("leith", None, 7), ("smag", None, 5)} <= found
    assert {(kind, clip, 0) for kind in ("dleith", "dsmag") for clip in ("mean_then_clip", "positive_product")} <= found
    (arm,) = s.arms
    assert (arm.agents.reward, arm.agents.horizon, arm.agents.agents_per_side) == ("zlog", 100, 4)
    assert (arm.learner.kind, arm.learner.n_envs) == ("ppo", 8)
    assert study.claims == CLAIMS


# ---- refusals

OTHER = "scenarios.0.arms=[{name: a, agents: {horizon: 5, steps_per_action: 10}}]"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scenarios.0.closures.1.name=none"], "scenario here: needs closures or arms, each with a name of its own"),
        (["scenarios.0.arms.0.name=none"], "each with a name of its own"),
        (["scenarios.0.closures=[]", "scenarios.0.arms=[]"], "scenario here: needs closures or arms"),
        (["scenarios=[&s {name: a, closures: [{name: n, closure: none}]}, *s]"], "scenarios: two have the same name"),
        (["scenarios=[]"], "scenarios: "),
        (["scenarios.0.evaluation=[5, 6]"], "evaluation: shares snapshots with reference or training"),
        (["scenarios.0.evaluation=[6, 21]"], "snapshot 21: there are 20, numbered from 1"),
        (["scenarios.0.flow.case=case1"], "the shipped ones are of case kolmogorov4, not of case1"),
        (
            ["scenarios.0.flow.case=case4", "scenarios.0.snapshots.kind=dns", "scenarios.0.grid.n=32"],
            "fkx = 25: a grid of 32 points represents forcing up to 15",
        ),
        (["scenarios.0.arms.0.agents.agents_per_side=3"], "agents_per_side = 3: must divide grid.n = 16"),
        (
            ["scenarios.0.grid.dt=0.016"],
            "scenario here: every = 0.2 is 12 steps of dt = 0.016: must be a multiple of the 10 that smarl holds",
        ),
        (["scenarios.0.closures.1.closure=magic"], "must be 'none', 'smag', "),
        (["scenarios.0.closures.2.constants=[0.1]"], "closure dleith: has no option 'constant'"),
        (["scenarios.0.closures.1.clip=local"], "closure leith: has no option 'clip'"),
        (["scenarios.0.closures.1.constants=[-0.1]"], "constant = -0.1: must be at least 0 and finite"),
        (["scenarios.0.closures.2.clip=magic"], "clip = \"magic\": must be 'positive_product'"),
        (["scenarios.0.arms.0.learner.kind=magic"], "learner.kind = \"magic\": must be one of 'ppo', 'vracer'"),
        (
            ["scenarios.0.arms.0.learner={kind: vracer, episodes: 9}"],
            "arms.0: replay_start = 10000: 9 episodes of 5 actions are only 45 experiences",
        ),
        (
            ["scenarios.0.arms.0.learner={kind: gradient, solver_steps: 9}"],
            "solver_steps = 9: one window costs 1600; must be at least that",
        ),
        (["scenarios.0.arms.0.learner.colour=red"], "colour: unknown key; known here: kind, implementation"),
        (["scenarios.0.arms.0.agents.reward=magic"], 'agents.reward = "magic": must be'),
        (["scenarios.0.snapshots.kind=magic"], "snapshots.kind = \"magic\": must be one of 'shipped', 'dns', 'files'"),
        (["transfer=[nowhere]"], "transfer = nowhere: must be one of the scenarios here"),
        (["sampling.discard=3"], "discard must be below duration"),
        (["sampling.realisations=0"], "realisations = 0: must be greater than or equal to 1"),
        (["seeds=0"], "seeds = 0: must be greater than or equal to 1"),
        (["claims=[magic]"], "must be 'smarl_beats_none'"),
    ],
)
def test_a_study_that_cannot_be_is_refused_in_one_line(tmp_path, overrides, message):
    with pytest.raises(InputError) as refused:
        load(tmp_path, *overrides)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "agents.state=invariant",
            "scenario fine: smarl sees state = invariant, which depends on the grid: trained on",
        ),
        ("agents.state=psiomegablock", "trained on 16 points it cannot move to 32"),
        ("agents.steps_per_action=5", None),
        ("agents.state=invariantlocal", None),
    ],
)
def test_agents_that_cannot_move_are_refused_before_anything_is_trained(tmp_path, override, message):
    given = (tmp_path, f"scenarios.0.arms.0.{override}")
    if message is None:
        assert load(*given, text=MOVED).movers(load(*given, text=MOVED).scenarios[1])
        return
    with pytest.raises(InputError, match=message):
        load(*given, text=MOVED)
    assert load(*given, "transfer=[]", text=MOVED).movers(load(*given, "transfer=[]", text=MOVED).scenarios[1]) == []


# ---- a whole study


def test_a_study_ends_in_a_summary_a_page_and_results_with_named_dims(whole):
    study, out, summary = whole
    said = json.loads((out / "summary.json").read_text())
    assert [c["id"] for c in said["claims"]] == list(study.claims) == list(CLAIMS)
    assert all(c["holds"] in (True, False) for c in said["claims"])
    none = results(out, "here/none")
    assert dict(none["Z"].sizes) == {"realisation": 2, "constant": 1, "start": 2, "time": 15, "axis": 2, "k": 8}
    assert none["start"].values.tolist() == [6, 7]
    agents = results(out, "here/smarl")
    # The agents go on to T = 4; the window of the statistics stays.
    assert dict(agents["Z"].sizes) == {"seed": 2, "start": 2, "time": 20, "axis": 2, "k": 8}
    assert agents["points"].values.tolist() == [[10 * 256] * 2] * 2
    assert agents.attrs["until"] == none.attrs["until"] == 3.0
    assert {"coefficient", "gradient", "score", "steps"} <= set(agents.data_vars)
    assert agents["steps"].values.tolist() == [[100.0, 200.0]] * 2  # 2 flows, 5 actions, 10 steps an iteration
    page = (out / "report.html").read_text()
    for text in (study.claims[0], "smarl", "tuned on the training starts"):
        assert text in page
    assert summary.out == out


def test_every_picture_is_drawn(whole):
    _, out, _ = whole
    names = ("fields", "spectra", "tuning", "distribution", "transfers", "learning", "long_run", "smarl_coefficient")
    drawn = {path.stem: path for path in (out / "figures").glob("*.png")}
    assert {f"here_{name}" for name in names} <= drawn.keys()
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn.values())


def test_the_reference_is_that_of_its_snapshots_alone(whole):
    study, out, _ = whole
    reference = results(out, "here/reference")
    omega = numbered(given(FlowSettings(), Shipped()), study.scenarios[0].reference)
    coarse = truncated(omega, 16, torch.float64)
    assert float(reference["sigma"]) == pytest.approx(float(coarse.std(correction=0)))
    assert float(reference["points"]) == 3 * 256
    full = enstrophy_spectrum(torch.fft.rfft2(torch.from_numpy(omega).double()), "stacked")[..., :8]
    np.testing.assert_allclose(reference["Z_full"], full, rtol=1e-6)
    les = enstrophy_spectrum(torch.fft.rfft2(coarse), "stacked")
    np.testing.assert_allclose(reference["Z_les"], les, rtol=1e-6)
    assert reference["snapshot"].values.tolist() == [1, 2, 3]


def test_constants_are_chosen_on_the_training_starts_and_each_is_a_run_of_its_own(whole):
    study, out, summary = whole
    kept = Results(out, study.runs())
    (s,) = study.scenarios
    leith = s.closures[1]
    training = kept[study.tuning_run(s, leith)]
    assert training["start"].values.tolist() == [4, 5]
    assert training["constant"].values.tolist() == [0.1, 0.3]
    place = chosen(training, results(out, "here/reference"), s.band)
    method = f"leith ({leith.constants[place]:g})"
    rows = {(r.method, r.metric): r for r in summary.table}
    errors = [
        spectrum_errors(kept[run].isel(constant=place), results(out, "here/reference"), s.band)
        for run in study.closure_runs(s, leith)
    ]
    expected = t_interval(np.mean(errors, 0))
    row = rows[method, "spectrum error"]
    assert [row.mean, row.low, row.high, row.n] == pytest.approx([expected.mean, expected.low, expected.high, 2])
    # A batch of constants is as many simulations, each what it is alone.
    alone = ClosureSettings(name="leith", closure="leith", constants=(0.3,))
    single = ClosureEnsemble(**dict(study.closure_runs(s, leith)[0]) | {"closure": alone})
    study_alone = load(out.parent, "scenarios.0.closures=[{name: leith, closure: leith, constants: [0.3]}]")
    assert single.hash == study_alone.closure_runs(study_alone.scenarios[0], alone)[0].hash


def test_realisations_of_a_closure_differ_and_are_those_of_their_numbers(whole):
    study, out, _ = whole
    none = results(out, "here/none")
    assert not np.allclose(none["final"].isel(realisation=0), none["final"].isel(realisation=1))
    fewer = load(out.parent, "sampling.realisations=1")
    (s,) = study.scenarios
    assert fewer.closure_runs(s, s.closures[0])[0].hash == study.closure_runs(s, s.closures[0])[0].hash
    load(out.parent)


def test_the_table_has_every_method_s_numbers(whole):
    study, _, summary = whole
    rows = {(r.method, r.metric): r for r in summary.table}
    methods = {r.method for r in summary.table}
    assert {"none", "dleith", "dsmag", "smarl"} < methods
    for method in methods:
        for metric, unit in COLUMNS:
            row = rows[method, metric]
            assert (row.unit, row.scenario) == (unit, "here")
            assert row.mean is None or row.low <= row.mean <= row.high
        stay = rows[method, "simulations that stay finite"]
        assert (stay.mean, stay.n) == (100.0, 4)  # two starts, as many seeds or realisations
    assert rows["none", "enstrophy taken by the closure"].mean == 0
    assert rows["none", "backscatter"].mean == 0
    for metric in study.headline:
        assert ("smarl", metric) in rows


def test_equal_runs_are_done_once_and_what_is_not_asked_of_a_run_changes_none(tmp_path):
    study = load(tmp_path)
    hashes = set(expand(study.runs()))
    renamed = load(tmp_path, "study=other", "claims=[]", "scenarios.0.name=elsewhere", "scenarios.0.arms.0.name=a")
    assert set(expand(renamed.runs())) == hashes
    more = load(tmp_path, "seeds=3")
    assert len(set(expand(more.runs())) - hashes) == 1
    assert set(expand(more.runs())) > hashes
    policies = [r for r in load(tmp_path).runs() if isinstance(r, PolicyEnsemble)]
    assert [r.policy.training.seed for r in policies] == [0, 1]
    assert len({r.policy.hash for r in policies}) == 2


def same_results(study, one, two):
    for made in expand(study.runs()).values():
        a, b = (xr.load_dataset(out / "runs" / made.hash / "result.nc", engine="h5netcdf") for out in (one, two))
        assert a.equals(b), made.label
    a, b = (json.loads((out / "summary.json").read_text()) for out in (one, two))
    assert (a["claims"], a["table"]) == (b["claims"], b["table"])


def test_killed_in_a_training_and_resumed_equals_uninterrupted(no_pictures, whole, tmp_path):
    study, out, _ = whole
    (tmp_path / "study.yaml").write_text(TINY)
    # The second time that a state is kept one of two updates is done.
    command = [sys.executable, "-c", KILLED, str(tmp_path / "study.yaml"), str(tmp_path / "out"), "2"]
    process = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert process.returncode == -signal.SIGKILL
    (product,) = (tmp_path / "out" / "products").glob("*.making")
    assert (product / "checkpoint" / "state.safetensors").exists()
    run(study, tmp_path / "out")
    same_results(study, out, tmp_path / "out")


def test_interrupted_in_a_simulation_and_resumed_equals_uninterrupted(no_pictures, whole, tmp_path, monkeypatch):
    study, out, _ = whole
    samples = []

    class Interrupting(Checkpoint):
        def __init__(self, path):
            super().__init__(path, every_seconds=0)

        def save(self, tensors):
            super().save(tensors)
            samples.append(int(tensors["sample"]))
            if len(samples) == 26:
                raise KeyboardInterrupt

    monkeypatch.setattr(ensemble, "Checkpoint", Interrupting)
    monkeypatch.setattr(files, "sync", lambda path: None)
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path / "out")
    assert samples[-1] == 6  # of the second run
    run(study, tmp_path / "out")
    assert samples[26] == 7
    same_results(study, out, tmp_path / "out")


# ---- what moves


def test_what_was_trained_in_one_flow_is_simulated_in_another(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "of_scenario", lambda *given: drawn.append(given) or [])
    study = load(tmp_path, text=MOVED)
    summary = run(study, tmp_path / "out")
    methods = {
        s: [r.method for r in summary.table if (r.scenario, r.metric) == (s, "spectrum error")]
        for s in ("coarse", "fine")
    }
    coarse, fine = methods["coarse"], methods["fine"]
    assert coarse[1:] == ["smarl"]
    assert coarse[0] in ("leith (0.1)", "leith (0.3)")
    assert fine[1:] == ["smarl from coarse", "leith from coarse"]
    # The constant that moves is the one that was tuned there.
    constant = coarse[0].removeprefix("leith (").removesuffix(")")
    rows = {r.method: r for r in summary.table if (r.scenario, r.metric) == ("fine", "spectrum error")}
    at = results(tmp_path / "out", "fine/leith").sel(constant=float(constant)).isel(realisation=0)
    expected = spectrum_errors(at, results(tmp_path / "out", "fine/reference"), "full").mean()
    assert rows["leith from coarse"].mean == pytest.approx(float(expected))
    assert [path.stem for path in (tmp_path / "out" / "figures").glob("*.png")] == ["transfer"]
    # One training serves both flows, and the resolved flow was simulated where it was asked for.
    assert len(list((tmp_path / "out" / "products").glob("*/policy.safetensors"))) == 1
    assert [truth is None for *_, truth in drawn] == [True, False]
    assert drawn[1][3].sizes["k"] == 16
    assert {c.id: c.holds for c in summary.claims} == {"smarl_beats_none": None, "smarl_stable_long_run": None}


# ---- trained policies that are there already


def saved_policy(folder, iterations=1, **agents):
    scenario = Scenario(grid=Discretisation(n=16, dt=0.02), reference=(1, 2, 3), training=(4, 5), evaluation=(6, 7))
    training = Training(
        scenario=scenario,
        agents=Agents(**({"state": "invariants", "horizon": 5} | agents)),
        learner=PPOSettings(iterations=iterations, n_envs=2, n_steps=5, batch_size=160, net=(8,)),
    )
    world = training.agents.world(scenario, given(FlowSettings(), Shipped()))
    folder.mkdir()
    train(world, training.learner, curve=folder / "curve.jsonl").save(folder / "policy")
    files.write_json(folder / "training.json", training.model_dump(mode="json"))
    return StoredPolicy.of(folder)


def test_stored_policies_are_simulated_and_nothing_is_trained(no_pictures, tmp_path):
    stored = tuple(saved_policy(tmp_path / name, iterations) for name, iterations in (("a", 1), ("b", 3)))
    arm = Arm(agents=stored[0].training.agents, learner=stored[0].training.learner, stored=stored)
    sampling = SamplingSettings(duration=0.8, discard=0.2, every=0.2)
    study = evaluation_of([], [arm], stored[0].training.scenario, sampling=sampling)
    summary = run(study, tmp_path / "out")
    assert {r.method for r in summary.table} == {"smarl"}
    assert summary.claims == []
    assert list((tmp_path / "out" / "products").glob("*/policy.safetensors")) == []
    agents = results(tmp_path / "out", "evaluation/smarl")
    assert agents.sizes["seed"] == 2
    # Curves of different lengths stand side by side.
    assert np.isfinite(agents["score"]).sum("update").values.tolist() == [1, 3]
    assert StoredPolicy.of(tmp_path / "a") == stored[0]
    (tmp_path / "a" / "policy.safetensors").write_bytes((tmp_path / "b" / "policy.safetensors").read_bytes())
    assert StoredPolicy.of(tmp_path / "a").sha256 == stored[1].sha256 != stored[0].sha256


def test_a_policy_on_another_grid_than_its_own_must_not_have_seen_its_spectrum(tmp_path):
    stored = saved_policy(tmp_path / "seeing", state="invariant")
    arm = Arm(agents=stored.training.agents, learner=stored.training.learner, stored=(stored,))
    finer = Scenario(grid=Discretisation(n=32, dt=0.01))
    with pytest.raises(InputError, match="trained on 16 points it cannot move to 32"):
        evaluation_of([], [arm], finer, sampling=SamplingSettings(every=0.2))


def test_a_folder_without_a_policy_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no trained policy; szilard turbulence train writes one"):
        StoredPolicy.of(tmp_path)
    saved_policy(tmp_path / "a")
    (tmp_path / "a" / "training.json").write_text("{")
    with pytest.raises(InputError, match=r"training\.json: not JSON"):
        StoredPolicy.of(tmp_path / "a")
    (tmp_path / "a" / "training.json").write_text('{"colour": "red"}')
    with pytest.raises(InputError, match=r"training\.json: colour: unknown key"):
        StoredPolicy.of(tmp_path / "a")


# ---- training

SMALL = {"n_envs": 4, "n_steps": 25, "batch_size": 1600, "n_epochs": 8, "learning_rate": 3e-3, "net": (16, 16)}
TRAINED = Training(
    scenario=Scenario(grid=Discretisation(n=16, dt=0.02)),
    agents=Agents(horizon=25),
    learner=PPOSettings(iterations=12, log_std_init=-2.0, **SMALL),
)
VRACER = VRACERSettings(episodes=6, n_envs=2, batch_size=32, replay_start=60, replay_size=120, learning_rate=1e-3)


def world(training=TRAINED):
    return training.agents.world(training.scenario, given(FlowSettings(), Shipped()))


def weights(model):
    return {name: x.clone() for name, x in model.policy.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_ppo_improves_the_score(tmp_path):
    agents = world()
    model = train(agents, TRAINED.learner, curve=tmp_path / "curve.jsonl")
    curve = TRAINED.curve_of(tmp_path / "curve.jsonl")
    score, steps = curve["score"][1], curve["steps"][1]
    # A mean score is -log10 of the summed squares of the spectrum's error: a decade and a half better.
    assert score[-3:].mean() > score[:3].mean() + 1.0
    # 4 flows, 25 actions of 10 solver steps an update.
    assert steps.tolist() == [1000.0 * (i + 1) for i in range(12)]
    model.save(tmp_path / "policy")
    policy = load_policy(tmp_path / "policy", agents, "ppo")
    state = agents.solver.start(agents.starts)
    field = policy.coefficient_field(state)
    assert field.shape == (5, 16, 16)
    # It has learned to dissipate.
    assert float(field.mean()) > 0


def test_the_same_seed_trains_the_same_policy_and_another_seed_another():
    agents, learner = world(), PPOSettings(iterations=1, **SMALL)
    first, again, other = (weights(train(agents, learner, seed=seed)) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_stable_baselines_own_ppo_gives_a_policy_of_the_same_shape(tmp_path):
    agents, learner = world(), PPOSettings(iterations=2, implementation="sb3", **SMALL)
    (tmp_path / "curve.jsonl").write_text('{"timesteps": 1, "return": 0.0}\n')  # of a training that was stopped
    model = train(agents, learner, curve=tmp_path / "curve.jsonl")
    ours = train(agents, PPOSettings(iterations=2, **SMALL))
    assert {n: x.shape for n, x in weights(model).items()} == {n: x.shape for n, x in weights(ours).items()}
    assert [x["timesteps"] for x in read_curve(tmp_path / "curve.jsonl")] == [1600, 3200]
    model.save(tmp_path / "policy")
    policy = load_policy(tmp_path / "policy", agents, "ppo")
    state = agents.solver.start(agents.starts)
    assert torch.equal(policy.coefficient_field(state), policy.coefficient_field(state))
    assert torch.isfinite(policy.coefficient_field(state)).all()


def test_vracer_learns_from_its_memory(tmp_path):
    agents = world()
    model = train(agents, VRACER, curve=tmp_path / "curve.jsonl")
    assert model.num_timesteps == 6 * 25 * 16
    untouched = train(agents, VRACER.model_copy(update={"replay_start": 10_000, "replay_size": 20_000}))
    assert not same(weights(model), weights(untouched))
    assert all(torch.isfinite(x).all() for x in weights(model).values())
    model.save(tmp_path / "policy")
    policy = load_policy(tmp_path / "policy", agents, "vracer")
    assert torch.isfinite(policy.coefficient_field(agents.solver.start(agents.starts))).all()


def test_a_training_without_a_single_update_is_refused():
    few = {"kind": "vracer", "episodes": 5, "replay_start": 126}
    with pytest.raises(ValueError, match=r"replay_start = 126: 5 episodes of 25 actions are only 125 experiences"):
        Training(agents=Agents(horizon=25), learner=few)
    assert Training(agents=Agents(horizon=25), learner=few | {"replay_start": 125}).learner.kind == "vracer"


def test_a_policy_with_other_states_is_refused(tmp_path):
    train(world(), PPOSettings(iterations=1, **SMALL)).save(tmp_path / "policy")
    blind = world(TRAINED.model_copy(update={"agents": Agents(state="invariants")}))
    with pytest.raises(InputError, match="trained with 13 states; this world has 5"):
        load_policy(tmp_path / "policy", blind, "ppo")


class Killed(Exception):
    pass


@pytest.mark.parametrize("learner", [PPOSettings(iterations=4, **SMALL), VRACER], ids=["ppo", "vracer"])
def test_a_training_that_was_killed_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, learner):

    def save(callback):
        callback.model.save_state(callback.path)

    monkeypatch.setattr(training_loop.ResumeCallback, "_on_rollout_start", save)
    monkeypatch.setattr(files, "sync", lambda path: None)
    paths = {"checkpoint": tmp_path / "state.safetensors", "curve": tmp_path / "curve.jsonl"}
    whole = train(world(), learner, seed=5, curve=tmp_path / "whole.jsonl")
    shares = []

    def kill(share, message):
        shares.append(share)
        if share > 0.6:
            raise Killed

    with pytest.raises(Killed):
        train(world(), learner, seed=5, progress=kill, **paths)
    told = []
    resumed = train(world(), learner, seed=5, progress=lambda share, _: told.append(share), **paths)
    assert told[0] == shares[-1] > 0.5  # the update that was under way is done again
    assert same(weights(whole), weights(resumed))
    assert (tmp_path / "curve.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    # A finished training is not begun again.
    again = train(world(), learner, seed=5, progress=lambda share, _: pytest.fail("trained again"), **paths)
    assert same(weights(again), weights(whole))

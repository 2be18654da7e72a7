"""The sepsis study from its YAML to its claims: simulated or recorded patients, resumed, drawn and refused."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from apps.sepsis import evidence as comparisons
from apps.sepsis import figures, products
from apps.sepsis.claims import CLAIMS
from apps.sepsis.settings import Arm, RecordedPatients
from apps.sepsis.study import SepsisStudy
from core.configs import configs
from core.errors import InputError
from core.stats import nested_ratio
from core.study import StudyError
from core.study.run import expand
from simulators.sepsis import Sepsis44, simulate_cohort
from simulators.sepsis.cohort import Cohort
from simulators.sepsis.icusepsis import ICUSepsis44
from tests.apps.sepsis_evidence import ARMS, evidence

PACKAGED = [name for name, _ in configs("sepsis")]
TINY = """
study: tiny
patients: {kind: sepsis44, patients: 80, fractions: [0.75, 0.0, 0.25]}
seeds: 2
judges:
  few: {items: 6, hidden: 16, epochs: 1, batch: 64}
  full: {items: 44, hidden: 16, epochs: 1, batch: 64}
clinician: {epochs: 1, batch: 64, hidden: [8]}
debates: {debaters: first_order, pairs: 120}
policy:
  nets: 2
  updates: 30
  learning_rate: 3e-3
  tau: 5e-3
  hidden: [8]
  heads: 4
  batch_norm: false
  prioritized: false
  q_bound: null
  shaping: none
learners: [{name: plain}, {name: conservative, alpha: 1}]
arms:
  - {learner: plain, lam: 0}
  - {learner: plain, lam: 0.25}
  - {learner: plain, lam: 0.5}
  - {learner: plain, lam: 1}
  - {learner: plain, lam: 0.5, reward: state}
  - {learner: conservative, lam: 0}
  - {learner: conservative, lam: 0.5}
subjects: 50
estimates: {estimators: [WIS, WPDIS], resamples: 100}
"""
SMALLER = (
    "seeds=1",
    "patients.patients=60",
    "policy.nets=1",
    "learners=[{name: plain}]",
    "arms=[{lam: 0}, {lam: 0.5}]",
    "debates.pairs=60",
    "estimates=null",
)
KILLED = """
import os, signal, sys
from apps.sepsis import products
from apps.sepsis.study import SepsisStudy
from core.checkpoint import Checkpoint
from core.offline import dqn

products.LOOKS, products.WATCHED = 2, 20
dqn._CHUNK = 10
Checkpoint.due = property(lambda kept: kept.path is not None)
save, saved = Checkpoint.save, []

def save_and_die(self, tensors):
    save(self, tensors)
    saved.append(self.path and self.path.name)
    if saved.count("net1_part1.safetensors") == 1:
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoint.save = save_and_die
SepsisStudy.load(sys.argv[1]).run(sys.argv[2], workers=0, device="cpu", quiet=True)
"""


def load(folder, *overrides):
    path = folder / "study.yaml"
    path.write_text(TINY)
    return SepsisStudy.load(path, overrides)


def run(study, out):
    return study.run(out, workers=0, device="cpu", quiet=True)


def said(out):
    return json.loads((out / "summary.json").read_text())


@pytest.fixture
def no_pictures(monkeypatch):
    """What is drawn is tested once."""
    monkeypatch.setattr(figures, "of_study", lambda *_: [])


@pytest.fixture(autouse=True, scope="module")
def _smaller():
    """What the intervals are is tested with the claims."""

    def quick(*given, **options):
        return nested_ratio(*given, **options | {"resamples": 200})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "LOOKS", 2)
        patch.setattr(products, "WATCHED", 20)
        patch.setattr(comparisons, "nested_ratio", quick)
        for place in ("apps.sepsis.table", "apps.sepsis.figures.policies"):
            patch.setattr(f"{place}.nested_ratio", quick)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tiny study, run once in this process: study, folder and summary."""
    folder = tmp_path_factory.mktemp("whole")
    study = load(folder)
    return study, folder / "out", run(study, folder / "out")


# ---- the packaged studies


@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_study_loads(name):
    study = SepsisStudy.load(name)
    assert study.description
    assert study.takes
    assert study.runs()
    assert study.claims == CLAIMS
    assert SepsisStudy.model_validate(study.model_dump()) == study


def test_quick_is_the_study_that_was_asked_for():
    study = SepsisStudy.load("quick")
    assert (study.patients.kind, study.patients.temperature, study.patients.bias) == ("sepsis44", 0.8, 0.8)
    assert (study.seeds, study.subjects, study.debates.pairs) == (3, 3000, 3000)
    assert (study.judges.few.items, study.judges.few.hidden, study.judges.few.epochs) == (6, 128, 15)
    policy = study.policy
    assert (policy.nets, policy.updates, policy.learning_rate, policy.tau) == (3, 1500, 3e-4, 5e-3)
    assert (policy.n_steps, policy.prioritized, policy.shaping) == (6, False, "none")
    arms = {(arm.learner, arm.name) for arm in study.arms}
    plain = {("plain", name) for name in ("lambda 0", "debate 0.25", "debate 0.5", "debate 1", "state 0.5")}
    assert arms == plain | {("conservative", "lambda 0"), ("conservative", "debate 0.5")}
    assert study.debates.learned_seeds == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["arms=[{lam: 0.5}]"], "arms: learner plain has no arm with lam 0 to hold others against"),
        (["arms.5.lam=0.25"], "arms: learner conservative has no arm with lam 0"),
        (["arms.1.learner=magic"], "arms: learner magic: must be among plain, conservative"),
        (["arms.2.lam=0.25"], "arms: one stands there twice"),
        (["arms=[{lam: 0}, {lam: 0, reward: state}]"], "arms: one stands there twice"),
        (["arms.1.lam=1.5"], "arms.1.lam = 1.5: must be less than or equal to 1"),
        (["arms.1.lam=-0.1"], "arms.1.lam = -0.1: must be greater than or equal to 0"),
        (["arms=[]"], "arms"),
        (["arms.1.reward=magic"], 'arms.1.reward = "magic": must be'),
        (["learners=[{name: plain}, {name: plain, alpha: 1}]"], "learners: two have the same name"),
        (["judges.few.items=5"], "judges.few.items: 5; must be even and 2 to 42"),
        (["judges.few.items=44"], "judges.few.items: 44; must be even and 2 to 42"),
        (["judges.full.items=6"], "judges.full.items: 6; must be 44"),
        (["patients.fractions=[0.75, 0.0, 0.2]"], "must add up to 1"),
        (["patients.fractions=[1.0, 0.0, 0.0]"], "patients"),
        (["patients={kind: recorded}"], "path"),
        (["patients={kind: magic}"], "must be one of 'sepsis44', 'icusepsis44', 'recorded'"),
        (["patients.colour=red"], "colour: unknown key"),
        (["debates.learned=[magic]"], "must be 'isolated'"),
        (["estimates.estimators=[MAGIC]"], "must be 'IS'"),
        (["claims=[magic]"], "must be 'debate_policy_preferred'"),
        (["seeds=0"], "seeds = 0: must be greater than or equal to 1"),
        (["policy.tau=2"], "policy.tau = 2: must be less than or equal to 1"),
    ],
)
def test_a_study_that_cannot_be_is_refused_in_one_line(tmp_path, overrides, message):
    with pytest.raises(InputError) as refused:
        load(tmp_path, *overrides)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_records_that_are_not_there_are_refused_before_anything_runs(tmp_path):
    study = load(tmp_path, f"patients={{kind: recorded, path: {tmp_path / 'cohort.nc'}}}")
    with pytest.raises(InputError, match=r"cohort\.nc: no such file") as refused:
        run(study, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_records_without_units_and_shaping_in_units_are_refused_before_anything_runs(tmp_path):
    path = tmp_path / "cohort.nc"
    replace(simulate_cohort(Sepsis44(), 20, 0), raw=None, normalisation=None).save(path)
    study = load(tmp_path, f"patients={{kind: recorded, path: {path}}}", "policy.shaping=raw")
    with pytest.raises(InputError, match=r"policy\.shaping: raw, but .*cohort\.nc holds normalised values only"):
        run(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- a whole study


def test_a_study_ends_in_decided_claims_a_page_and_results(whole):
    study, out, summary = whole
    claims = said(out)["claims"]
    assert [c["id"] for c in claims] == list(study.claims) == list(CLAIMS)
    for claim in claims:
        assert claim["holds"] in (True, False)
        assert claim["low"] <= claim["difference"] <= claim["high"]
        assert claim["test"].startswith("95 % bootstrap interval over seeds, then patients")
    page = (out / "report.html").read_text()
    for text in (CLAIMS[0], "debate 0.25", "Limits.", "not identifiable"):
        assert text in page
    assert summary.out == out


def test_results_hold_each_run_with_named_dims(whole):
    _, out, _ = whole
    found = xr.open_datatree(out / "results.nc", engine="h5netcdf")
    assert found["plain/debate_0.5/seed1"]["survival"].dims == ("subject",)
    assert found["plain/debate_0.5/seed1"]["by_debate"].dims == ("step",)
    assert found["debates/seed0"]["correct"].dims == ("strategy", "setting", "pair")
    assert found["prepared/seed0"]["physician_survival"].sizes == {"subject": 50}
    assert found["conservative/clinician/seed0"]["who"].values.tolist() == ["clinician", "logged"]
    # Every policy meets the same steps; a wrong order would make nonsense of the comparison.
    steps = [found[f"plain/{arm}/seed0"]["patient"].values for arm in ("lambda_0", "debate_0.5", "state_0.5")]
    assert (steps[0] == steps[1]).all()
    assert (steps[0] == steps[2]).all()
    differs = found["plain/debate_1/seed0"]["action"].values != found["plain/lambda_0/seed0"]["action"].values
    assert (found["plain/debate_1/seed0"]["by_debate"].values[~differs] == 0).all()
    found.close()


def test_the_table_has_every_arm_with_intervals(whole):
    study, _, summary = whole
    rows = {(r.scenario, r.method, r.metric): r for r in summary.table}
    assert len(rows) == len(summary.table)
    for arm in study.arms:
        row = rows[arm.learner, arm.name, "survival"]
        assert row.low <= row.mean <= row.high
        assert row.n == 2 * 50
        compared = "preferred to lambda 0 after a debate"
        assert ((arm.learner, arm.name, compared) in rows) == (arm.lam > 0)
    for metric in study.headline:
        assert any(r.metric.startswith(metric) for r in summary.table)
    assert rows["debate", "precommitted, first order", "accuracy, refuted"].n == 2 * 20
    assert all(np.isfinite(r.mean) for r in summary.table)


def test_every_picture_is_drawn(whole):
    _, out, _ = whole
    expected = {"survival", "preference", "verdicts", "debate_accuracy", "shown_features", "calibration"}
    expected |= {"actions", "dose_excess", "training"}
    for kind, begins in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        drawn = {path.stem: path for path in (out / "figures").glob(f"*.{kind}")}
        assert drawn.keys() == expected
        assert all(path.read_bytes().startswith(begins) for path in drawn.values())


def test_report_says_the_same_again(no_pictures, whole):
    study, out, _ = whole
    before = said(out)
    study.report(out)
    after = said(out)
    assert (after["claims"], after["table"]) == (before["claims"], before["table"])


def test_a_baseline_is_trained_once_and_seeds_share_nothing(tmp_path):
    study = load(tmp_path)
    runs = expand(study.runs()).values()
    assert len(runs) == 2 * (1 + 7 + 1 + 2)
    for arm in study.arms:
        one, two = (study.train(seed, arm) for seed in study.every_seed)
        assert one.policy.hash != two.policy.hash
        assert one.policy.cohort.hash != two.policy.cohort.hash
        if arm.lam > 0:
            assert one.baseline == study.train(
                0, next(a for a in study.arms if a.learner == arm.learner and a.lam == 0)
            )
            assert one.policy.paid.judge.settings.items == (6 if arm.reward == "debate" else 44)


# ---- records


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What a hospital might have: neither the clinician's probabilities nor any truth."""
    path = tmp_path_factory.mktemp("records") / "cohort.nc"
    cohort = simulate_cohort(Sepsis44(), 80, 5, fractions=(0.7, 0.1, 0.2))
    origin = {"source": "mimic_sepsis", "synthetic": False}
    replace(cohort, behaviour=None, truth={}, origin=origin).save(path)
    return path


def test_records_leave_survival_open_and_decide_the_rest(no_pictures, tmp_path, records):
    arms = "arms=[{lam: 0}, {lam: 0.5}, {lam: 0.5, reward: state}]"
    smaller = [x for x in SMALLER if not x.startswith(("patients", "arms", "estimates"))]
    study = load(tmp_path, f"patients={{kind: recorded, path: {records}}}", *smaller, arms)
    assert len(study.cautions()) == 1
    summary = run(study, tmp_path / "out")
    verdicts = {claim.id: claim for claim in summary.claims}
    for name, claim in verdicts.items():
        about_survival = name in ("debate_policy_survives_no_worse", "state_judge_no_better")
        assert (claim.holds is None) == about_survival
        if about_survival:
            assert claim.reason == "not decided here: the survival of other treatments is known in a simulator alone"
    assert not any("survival" in row.metric for row in summary.table)
    assert any(row.metric.startswith("WIS") for row in summary.table)
    assert "survival under another policy is not known" in (tmp_path / "out" / "report.html").read_text()
    assert not summary.all_hold


@pytest.mark.parametrize(("number", "name"), [(0, "train"), (2, "test")])
def test_records_without_patients_to_learn_from_or_to_test_on_are_refused(tmp_path, records, number, name):
    cohort = Cohort.load(records)
    replace(cohort, split=torch.where(cohort.split == number, 1, cohort.split)).save(tmp_path / "cohort.nc")
    study = load(tmp_path, f"patients={{kind: recorded, path: {tmp_path / 'cohort.nc'}}}", SMALLER[0], *SMALLER[2:])
    with pytest.raises(StudyError, match=f"cohort.nc: 0 {name} patients; at least 2"):
        run(study, tmp_path / "out")


# ---- trained debaters, and the other simulator


def test_trained_debaters_and_their_confusers_take_part(no_pictures, tmp_path):
    tiny = "hidden: 8, debates: 16, iterations: 2, minibatch: 16, repeats: 1"
    generations = "generations: 1, generation_iterations: 1, argument_iterations: 1"
    study = load(
        tmp_path,
        *SMALLER,
        "patients={kind: icusepsis44, patients: 60}",
        "debates.debaters=maxmin",
        "debates.learned=[precommit, maxmin]",
        f"debates.training={{{tiny}, {generations}}}",
        f"debates.confuser={{{tiny}}}",
    )
    summary = run(study, tmp_path / "out")
    rows = {(r.method, r.metric): r for r in summary.table if r.scenario == "debate"}
    for method in ("PPO precommitted", "PPO maxmin"):
        for setting in ("alone", "refuted", "confused"):
            assert 0 <= rows[method, f"accuracy, {setting}"].mean <= 100
    assert ("PPO precommitted", "accuracy, itself") not in rows
    assert ("one-step search", "accuracy, confused") not in rows
    lived = [r for r in summary.table if r.metric == "survival"]
    assert {r.method for r in lived} == {"cloned clinician", "lambda 0", "debate 0.5"}


# ---- resumed


def test_killed_and_resumed_equals_uninterrupted(no_pictures, tmp_path):
    overrides = [x if x != "policy.nets=1" else "policy.nets=2" for x in SMALLER]
    study = load(tmp_path, *overrides)
    (tmp_path / "small.yaml").write_text(study.to_yaml())
    killed, whole = (tmp_path / name for name in ("killed", "whole"))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "small.yaml"), str(killed)]
    process = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert process.returncode == -signal.SIGKILL
    # The judges are done; the second network of a policy is under way.
    assert 0 < len(list(killed.glob("runs/*/result.nc"))) < len(expand(study.runs()))
    assert list(killed.rglob("net1_part1.safetensors"))
    for out in (killed, whole):
        run(study, out)
    for each in expand(study.runs()).values():
        one, two = (xr.load_dataset(out / "runs" / each.hash / "result.nc") for out in (killed, whole))
        assert one.equals(two)
    assert said(killed)["claims"] == said(whole)["claims"]
    assert said(killed)["table"] == said(whole)["table"]


# ---- figures


def drawn(given, learners):
    """Every figure, drawn with its axes labelled; by name."""
    pictures = {}
    for figure in figures.of_study(given, learners):
        drawing = figure.draw()
        drawing.savefig(io.BytesIO(), dpi=25)
        for axes in drawing.axes:
            if axes.get_label() == "<colorbar>":
                assert axes.get_ylabel(), figure.name
            elif axes.axison:
                assert _words(axes, "x"), figure.name
                assert any(_words(other, "y") for other in axes.get_shared_y_axes().get_siblings(axes)), figure.name
        assert figure.caption.endswith(".")
        pictures[figure.name] = drawing
    return pictures


def _words(axes, which):
    """A label, or names at the ticks."""
    ticks = [t.get_text() for t in getattr(axes, f"get_{which}ticklabels")()]
    return getattr(axes, f"get_{which}label")() or any(t[:1].isalpha() for t in ticks)


EVERYTHING = {"survival", "preference", "verdicts", "debate_accuracy", "shown_features", "calibration"}
EVERYTHING |= {"actions", "dose_excess", "training"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("options", "learners", "missing"),
    [
        ({"learned": ("ppo_precommit", "ppo_maxmin")}, ("plain", "conservative"), set()),
        ({"seeds": 1, "arms": ARMS[:1]}, ("plain",), {"preference", "verdicts"}),
        ({"simulated": False}, ("plain", "conservative"), {"survival", "training"}),
        ({"seeds": 2, "arms": (Arm(lam=0), Arm(lam=1), Arm(lam=0.75))}, ("plain",), set()),
    ],
)
def test_figures_are_drawn_from_whatever_a_study_has(options, learners, missing):
    assert drawn(evidence(**options), learners).keys() == EVERYTHING - missing


def test_policies_that_agree_everywhere_have_no_preference_drawn():
    pictures = drawn(evidence(effects={("plain", "debate 0.5"): {"differs": 0.0}}), ("plain",))
    assert pictures.keys() == EVERYTHING


def test_a_policy_has_one_colour_whatever_the_learner():
    axes = drawn(evidence(), ("plain", "conservative"))["survival"].axes
    colours = [
        {
            label.get_text(): box.lines[0].get_color()
            for label, box in zip(a.get_xticklabels(), a.containers, strict=True)
        }
        for a in axes[:2]
    ]
    for name in colours[1]:
        assert colours[0][name] == colours[1][name]


def test_the_best_policy_of_the_chain_is_worked_out_once_a_device():
    chain = ICUSepsis44()
    assert chain.on("cpu").value_iteration()[0] is ICUSepsis44().value_iteration()[0]


def test_results_of_records_are_those_of_the_files_content(tmp_path):
    path = tmp_path / "cohort.nc"
    hashes = []
    for content in (b"one", b"two", b"two"):
        path.write_bytes(content)
        hashes.append(RecordedPatients(path=path).hash)
    assert hashes[0] != hashes[1] == hashes[2]
    path.unlink()
    assert RecordedPatients(path=path).content is None

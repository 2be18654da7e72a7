"""The verbs of ``szilard sepsis`` as a user types them, and one clear line for every mistake."""

import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from rich.progress import Progress

from apps.cli import main
from apps.sepsis.arguments import load_debaters
from apps.sepsis.clinician import load_clinician
from apps.sepsis.judge import Judge, JudgeEnsemble, load_judge
from apps.sepsis.outcomes import true_survival
from apps.sepsis.policies import LearnedPolicy
from apps.sepsis.preferences import read_preferences
from core.checkpoint import Checkpoint
from core.offline import from_minari
from core.stats import mean_interval
from core.study.numbers import estimate
from simulators.sepsis import Cohort, Sepsis44, simulate_cohort
from tests.apps.test_sepsis_ingestion import exported

JUDGE = ("--set", "epochs=2", "--set", "hidden=16", "--set", "batch=128")
POLICY = [
    f"--set={text}"
    for text in ("updates=30", "hidden=[8]", "heads=4", "batch_norm=false", "prioritized=false", "learning_rate=3e-3")
]
NETS = ("hidden=8", "debates=16", "minibatch=24", "iterations=1")
TRAINED = [f"--set={start}{text}" for start in ("", "confuser.") for text in NETS]
FEW = ("--subjects", 50)


def call(*arguments):
    """The command in this process; its exit code."""
    sys.argv = ["szilard", "sepsis", *map(str, arguments)]
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.fixture
def szilard(monkeypatch, capsys):
    """Run the command; returns exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments):
        capsys.readouterr()
        code = call(*arguments)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cohort, judges, a clinician and two policies, as the verbs write them."""
    folder, kept = tmp_path_factory.mktemp("made"), sys.argv
    cohort = folder / "cohort"
    for arguments in (
        ("simulate", "--out", cohort, "--patients", 60),
        ("judge", cohort, "--out", folder / "judge", *JUDGE),
        ("judge", cohort, "--out", folder / "full", "--items", 44, *JUDGE),
        ("clinician", cohort, "--out", folder / "clinician", "--set", "epochs=1"),
        ("policy", cohort, "--out", folder / "lam0", "--lam", 0, *FEW, *POLICY),
        (
            *("policy", cohort, "--out", folder / "lam05", "--judge", folder / "judge"),
            *("--baseline", folder / "lam0", *FEW, *POLICY),
        ),
    ):
        assert call(*arguments) == 0
    # Records: the same, but nobody knows how they were made.
    loaded = Cohort.load(cohort / "cohort.nc")
    real = replace(loaded, behaviour=None, truth={}, origin={"source": "mimic_sepsis", "synthetic": False})
    (folder / "real").mkdir()
    real.save(folder / "real" / "cohort.nc")
    sys.argv = kept
    return folder


def rows(folder):
    """The table that a verb wrote, by method and metric."""
    return {(r["method"], r["metric"]): r for r in json.loads((folder / "summary.json").read_text())["table"]}


# ---- cohorts


@pytest.mark.parametrize("world", ["sepsis44", "icusepsis44"])
def test_a_simulated_cohort_is_that_of_its_seed(szilard, tmp_path, world):
    for name in ("a", "b"):
        code, text, err = szilard("simulate", "--out", tmp_path / name, "--patients", 30, "--seed", 4, "--world", world)
        assert (code, err) == (0, "")
    a, b = (Cohort.load(tmp_path / name / "cohort.nc") for name in ("a", "b"))
    assert torch.equal(a.state, b.state)
    assert a.origin["source"] == world
    assert text.splitlines()[-1] == str(tmp_path / "b" / "cohort.nc")
    assert f"survived: {100 * float((a.outcome > 0).float().mean()):.0f}" in text
    assert json.loads((tmp_path / "a" / "report.json").read_text())["synthetic"] is True
    assert "Research only" in (tmp_path / "a" / "report.html").read_text()


def test_the_minari_dataset_holds_the_cohort(szilard, tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.chdir(tmp_path)
    assert szilard("simulate", "--out", "c", "--patients", 20, "--minari", "sepsis/physician-v0")[0] == 0
    cohort, dataset = Cohort.load("c/cohort.nc"), from_minari("c/minari/sepsis/physician-v0")
    assert dataset.episodes == cohort.patients
    assert torch.equal(dataset.observations, cohort.steps().state)
    assert torch.equal(dataset.behaviour_probability, cohort.flat(cohort.behaviour))
    code, _, err = szilard("simulate", "--out", "c", "--patients", 20, "--minari", "sepsis/physician-v0")
    assert code == 2
    assert "exists" in err


def test_records_are_read_without_a_row_on_the_screen(szilard, tmp_path):
    path = exported(simulate_cohort(Sepsis44(), 40, seed=3), tmp_path / "table.csv")
    code, text, err = szilard("ingest", path, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert text.splitlines()[-1] == str(tmp_path / "out" / "cohort.nc")
    assert Cohort.load(tmp_path / "out" / "cohort.nc").origin["synthetic"] is False
    assert not re.search(r"7770\d\d", text)


# ---- models


def test_the_clinician_is_scored_beside_the_frequencies_of_actions(made, szilard, tmp_path):
    cohort = Cohort.load(made / "cohort" / "cohort.nc")
    found = load_clinician(made / "clinician", cohort).probabilities(cohort.steps("test").state)
    right = (found.argmax(1) == cohort.steps("test").action).double().mean()
    assert rows(made / "clinician")["clinician", "accuracy"]["mean"] == pytest.approx(100 * float(right))
    pytest.importorskip("sklearn")
    out = tmp_path / "near"
    assert (
        szilard("clinician", made / "cohort", "--out", out, "--set", "kind=neighbours", "--set", "neighbours=5")[0] == 0
    )
    near = load_clinician(out, cohort).probabilities(cohort.steps("test").state)
    assert torch.allclose(near.sum(1), torch.ones(len(near)))
    assert not list(out.glob("*.safetensors"))  # neighbours are patients: they are not copied


def test_the_accuracy_that_is_printed_has_an_interval_over_patients(made):
    found = rows(made / "judge")["6 random features", "accuracy on logged choices"]
    test = Cohort.load(made / "cohort" / "cohort.nc").subset("test")
    assert found["n"] == test.patients
    assert found["low"] < found["mean"] < found["high"]
    assert Judge.load(made / "judge").items == 6
    assert not (made / "judge" / "checkpoint").exists()


def test_judges_ask_clinicians_and_learn_from_the_answers(made, szilard, tmp_path):
    ensemble, taught = tmp_path / "several", tmp_path / "taught"
    code, text, _ = szilard(
        "judge", made / "cohort", "--out", ensemble, "--truth", "--members", 2, "--query", 12, *JUDGE
    )
    assert code == 0
    assert isinstance(load_judge(ensemble), JudgeEnsemble)
    assert "accuracy on true preferences" in text
    questions = (ensemble / "questions.csv").read_text().splitlines()
    assert len(questions) == 13
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join([questions[0], *(line.replace(",,", ",1,", 1) for line in questions[1:])]) + "\n")
    assert len(read_preferences(labels, Cohort.load(made / "cohort" / "cohort.nc"))) == 12
    arguments = ("judge", made / "cohort", "--out", taught, "--labels", labels, "--add-logged", *JUDGE)
    assert szilard(*arguments)[0] == 0
    assert szilard("debate", made / "cohort", ensemble, "--out", tmp_path / "d", "--pairs", 40)[0] == 0


def test_a_training_that_was_stopped_goes_on_to_the_same_judge(made, szilard, tmp_path, monkeypatch):
    arguments = ("judge", made / "cohort", "--out", tmp_path, *JUDGE)
    update, calls = Progress.update, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return update(self, *args, **kwargs)

    monkeypatch.setattr(Checkpoint, "due", True)
    monkeypatch.setattr(Progress, "update", interrupted)
    assert szilard(*arguments)[0] == 130
    assert (tmp_path / "checkpoint" / "judge.safetensors").exists()
    code, _, err = szilard(*arguments, "--seed", 1)
    assert code == 2
    assert "holds work with seed = 0, now 1" in err
    assert szilard(*arguments)[0] == 0
    assert len(calls) == 2  # of two epochs, one was left
    assert not (tmp_path / "checkpoint").exists()
    assert (tmp_path / "judge.safetensors").read_bytes() == (made / "judge" / "judge.safetensors").read_bytes()


# ---- debates


def test_debaters_are_trained_attacked_and_written_down(made, szilard, tmp_path):
    out = tmp_path / "debate"
    code, text, _ = szilard(
        *("debate", made / "cohort", made / "judge", "--out", out, "--train", "precommit", "--confuser"),
        *("--pairs", 60, "--transcripts", 3, *TRAINED),
    )
    assert code == 0
    assert text.splitlines()[-1] == str(out)
    found = rows(out)
    assert {metric for _, metric in found} == {
        "accuracy",
        *(f"accuracy, {x}" for x in ("alone", "refuted", "confused")),
    }
    correct = xr.load_dataset(out / "results.nc", engine="h5netcdf")["correct"]
    for setting in ("alone", "refuted", "confused"):
        share = float(correct.sel(setting=setting).mean())
        assert found["PPO precommit", f"accuracy, {setting}"]["mean"] == pytest.approx(100 * share)
    assert load_debaters(out, 6)[0] == "precommit"
    assert len(json.loads((out / "transcripts.json").read_text())["debates"]) == 3
    used = tmp_path / "used"
    assert szilard("debate", made / "cohort", made / "judge", "--out", used, "--debaters", out, "--pairs", 60)[0] == 0
    again = rows(used)["PPO precommit", "accuracy, alone"]["mean"]
    assert again == pytest.approx(found["PPO precommit", "accuracy, alone"]["mean"])


@pytest.mark.parametrize(
    ("cohort", "option", "redacted", "warned"),
    [
        ("cohort", (), False, False),
        ("cohort", ("--redact",), True, False),
        ("real", (), True, False),
        ("real", ("--show",), False, True),
    ],
)
def test_values_of_real_patients_are_withheld_unless_asked_for(
    made, szilard, tmp_path, cohort, option, redacted, warned
):
    code, _, err = szilard(
        "debate", made / cohort, made / "judge", "--out", tmp_path, "--pairs", 20, "--transcripts", 2, *option
    )
    assert code == 0
    assert ("values of real patients" in err) == warned
    debates = json.loads((tmp_path / "transcripts.json").read_text())["debates"]
    assert all((turn["value"] is None) == redacted for debate in debates for turn in debate["turns"])


# ---- policies


def test_the_survival_that_is_printed_is_that_of_the_policy(made):
    cohort, policy = Cohort.load(made / "cohort" / "cohort.nc"), LearnedPolicy.load(made / "lam05")
    true = mean_interval(true_survival(cohort, policy.greedy, 50))
    found = rows(made / "lam05")
    assert found["policy", "true survival"]["mean"] == pytest.approx(100 * true.mean)
    assert found["policy", "less the baseline"]["mean"] == pytest.approx(
        found["policy", "true survival"]["mean"] - found["baseline", "true survival"]["mean"]
    )
    card = (made / "lam05" / "model_card.md").read_text()
    assert "Research only" in card
    assert estimate(100 * true.mean, None, None)[:3] in card
    assert 0 <= found["policy", "clipped targets"]["mean"] <= 100


def test_a_policy_may_be_paid_by_a_judge_who_sees_everything(made, szilard, tmp_path):
    state = ("--reward", "state", "--judge", made / "full", "--baseline", made / "lam0", "--alpha", 0.5)
    assert szilard("policy", made / "cohort", "--out", tmp_path, *state, *FEW, *POLICY)[0] == 0
    states = Cohort.load(made / "cohort" / "cohort.nc").steps("test").state
    assert LearnedPolicy.load(tmp_path).greedy(states).shape == (len(states),)


def test_estimates_stand_beside_the_truth_and_rank_nothing_that_is_not_identified(made, szilard, tmp_path):
    few = ("--set", "estimators=[WIS, WPDIS, FQE]", "--set", "model_updates=20", "--set", "resamples=100")
    code, text, _ = szilard(
        "ope", made / "cohort", made / "lam0", f"mine={made / 'lam05'}", "--out", tmp_path, *few, *FEW
    )
    assert code == 0
    assert text.splitlines()[-1] == str(tmp_path / "estimates.html")
    told = json.loads((tmp_path / "estimates.json").read_text())
    assert [p["name"] for p in told["policies"]] == ["lam0", "mine"]
    assert all(p["truth"]["low"] < p["truth"]["mean"] < p["truth"]["high"] for p in told["policies"])
    # Nine test patients are fewer than the thirty that an estimate needs.
    assert not any(p["identifiable"] for p in told["policies"])
    assert text.count("not identifiable") == 2
    assert 'class="flags"' in (tmp_path / "estimates.html").read_text()
    records = tmp_path / "records"
    code, text, _ = szilard(
        *("ope", made / "real", made / "lam0", made / "lam05", "--out", records, "--clinician", made / "clinician"),
        *few,
    )
    assert code == 0
    assert "not ranked" in text
    assert all(p["truth"] is None for p in json.loads((records / "estimates.json").read_text())["policies"])


def test_a_policy_is_explained_where_it_departs_from_its_baseline(made, szilard, tmp_path):
    packages = [f"--{name}" for name in ("lime",) if _installed(name)]
    code, _, err = szilard(
        *("explain", made / "cohort", made / "judge", made / "lam05", "--baseline", made / "lam0", "--out", tmp_path),
        *("--cases", 3, "--sample", 4, "--counterfactual", *packages),
    )
    assert code == 0, err
    cohort = Cohort.load(made / "cohort" / "cohort.nc")
    states = cohort.steps("test").state
    one, two = (LearnedPolicy.load(made / name).greedy(states) for name in ("lam05", "lam0"))
    found, results = rows(tmp_path), xr.load_dataset(tmp_path / "results.nc", engine="h5netcdf")
    assert results.sizes["debate"] == int((one != two).sum())
    assert int(results["cited"].sum()) == 6 * results.sizes["debate"]
    shares = [
        found["policy", m]["mean"] for m in ("baseline preferred", "equal actions or undecided", "policy preferred")
    ]
    assert sum(shares) == pytest.approx(100)
    preferred = found["policy", "preferred to the baseline where they differ"]["mean"]
    assert preferred == pytest.approx(100 * float(np.mean(results["utility"].values > 0)))
    assert ("any feature", "bears on survival") in found
    assert not packages or ("top 6 of LIME", "alignment") in found
    assert (tmp_path / "transcripts.html").exists()


def _installed(name):
    import importlib.util

    return importlib.util.find_spec(name) is not None


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("clinician", "{made}/none.nc"), r"none\.nc: no such file"),
        (("clinician", "{made}/judge"), r"judge: holds no cohort\.nc"),
        (
            ("clinician", "{made}/cohort", "--set", "epoch=1"),
            r"--set epoch=1: epoch: unknown key; known here: .*epochs",
        ),
        (("simulate", "--kappa", "2"), r"kappa: unknown key"),
        (("simulate", "--temperature", "0"), r"temperature = 0\.0: must be greater than 0"),
        (("simulate", "--minari", "../x-v0"), r"--minari \.\./x-v0: must read"),
        (("ingest", "{made}/none.csv"), r"none\.csv: no such file"),
        (("judge", "{made}/cohort", "--items", "45"), r"items = 45: must be less than or equal to 44"),
        (("judge", "{made}/cohort", "--query", "3"), r"--query: needs --members"),
        (("judge", "{made}/cohort", "--labels", "{made}/none.csv"), r"none\.csv: no such file"),
        (("judge", "{made}/real", "--truth"), r"has no true scores"),
        (("debate", "{made}/cohort", "{made}/none"), r"none: no such folder"),
        (("debate", "{made}/cohort", "{made}/lam0"), r"lam0: holds no judge"),
        (("debate", "{made}/cohort", "{made}/full"), r"full: sees 44 features; debate needs an even number, 2 to 42"),
        (("debate", "{made}/cohort", "{made}/judge", "--debaters", "ppo"), r"debaters: ppo; must be first_order"),
        (("debate", "{made}/cohort", "{made}/judge", "--set", "hidden=8"), r"--set hidden=8: nothing is trained"),
        (
            ("debate", "{made}/cohort", "{made}/judge", "--train", "maxmin", "--debaters", "random"),
            r"--train, --debaters: either",
        ),
        (("debate", "{made}/other", "{made}/judge"), r"judge: made from a cohort of another normalisation"),
        (("policy", "{made}/cohort", "--lam", "2"), r"policy: lam = 2\.0: must be less than or equal to 1"),
        (("policy", "{made}/cohort", "--lam", "0.5"), r"--lam 0\.5: needs --judge"),
        (("policy", "{made}/cohort", "--lam", "0", "--judge", "{made}/judge"), r"--judge: has no part"),
        (
            ("policy", "{made}/cohort", "--judge", "{made}/full", "--baseline", "{made}/lam0"),
            r"full: sees 44 features; policy needs an even number",
        ),
        (
            ("policy", "{made}/cohort", "--reward", "state", "--judge", "{made}/judge", "--baseline", "{made}/lam0"),
            r"judge: sees 6 features; policy needs one that sees all 44",
        ),
        (
            ("policy", "{made}/cohort", "--judge", "{made}/judge", "--baseline", "{made}/lam05"),
            r"--baseline .*lam05: of --lam 0\.5; must be of --lam 0",
        ),
        (("policy", "{made}/cohort", "--lam", "0", "--set", "nets=0"), r"--set nets=0: nets = 0: must be greater"),
        (("ope", "{made}/cohort", "{made}/judge"), r"policy\.json: no such file"),
        (("ope", "{made}/cohort", "{made}/stranger"), r"policy\.json: made for another list of features"),
        (("ope", "{made}/cohort", "{made}/lam0", "{made}/lam0"), r"two policies are named lam0"),
        (("ope", "{made}/real", "{made}/lam0"), r"--clinician: needed"),
        (
            ("explain", "{made}/cohort", "{made}/judge", "{made}/lam0", "--baseline", "{made}/lam0"),
            r"policies: they agree at every test step",
        ),
        (
            ("explain", "{made}/real", "{made}/judge", "{made}/lam05", "--baseline", "{made}/lam0", "--counterfactual"),
            r"--counterfactual: twins exist in sepsis44 alone",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line_and_leaves_nothing(made, szilard, tmp_path, arguments, message):
    if "{made}/other" in arguments and not (made / "other").exists():
        szilard("simulate", "--out", made / "other", "--patients", 30, "--seed", 9)
    if "{made}/stranger" in arguments:
        shutil.copytree(made / "lam0", made / "stranger", dirs_exist_ok=True)
        record = json.loads((made / "lam0" / "policy.json").read_text())
        (made / "stranger" / "policy.json").write_text(json.dumps(record | {"features": "0" * 16}))
    out = tmp_path / "out"
    code, text, err = szilard(*(part.format(made=made) for part in arguments), "--out", out)
    assert code == 2
    assert text == ""
    assert err.startswith("szilard: error: ")
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err
    assert not out.exists()


def test_a_file_in_the_place_of_the_folder_is_refused(made, szilard, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = szilard("clinician", made / "cohort", "--out", tmp_path / "file")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "is a file, not a folder" in err


@pytest.mark.parametrize("verb", ["simulate", "ingest", "clinician", "judge", "debate", "policy", "ope", "explain"])
def test_the_help_of_every_verb_has_an_example(szilard, verb):
    code, text, _ = szilard(verb, "--help")
    assert code == 0
    assert f"Example: szilard sepsis {verb}" in " ".join(text.split())

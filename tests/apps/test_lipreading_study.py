"""The lip-reading study from its YAML to its claims: run, resumed, reported again, left out and refused."""

import io
import json
import zipfile

import numpy as np
import pytest
import xarray as xr

from apps.lipreading import figures
from apps.lipreading.claims import CLAIMS
from apps.lipreading.figures import of_study
from apps.lipreading.runs import Fork
from apps.lipreading.study import LipReadingStudy
from apps.lipreading.table import START
from core.errors import InputError
from core.study import StudyError
from core.study.results import Results
from core.study.run import expand
from simulators.lips.sheets import encode_sheet

TINY = """
study: tiny
seeds: 2
experiments:
  - name: mini
    reader: &reader
      source: {kind: simulated, clips: 40, validation_clips: 16, test_clips: 24, speakers: 3, test_speakers: 2}
      model: {name: fast, inputs: 12, encoder: 8, embedding: 4, decoder: 16}
      training: {updates: 12, batch: 8, learning_rate: {kind: constant, rate: 1.0e-2}}
      looks: 2
    fork: &fork {updates: 12, batch: 4, learning_rate: {kind: constant, rate: 3.0e-3}}
    looks: 2
    methods:
      - {name: cross-entropy}
      - {name: REINFORCE, loss: {name: reinforce}, estimator: {name: whole}}
      - {name: PCPG, loss: {name: pcpg}, reward: dense, weights: [1, 16]}
      - {name: "PCPG, group", loss: {name: pcpg, baseline: group}, reward: dense, group: 2, weights: [4]}
    gradients:
      clips: 8
      samples: 2
      repeats: 6
      methods:
        - {name: REINFORCE, loss: {name: reinforce}, estimator: {name: whole}}
        - {name: PCPG k5 s2, loss: {name: pcpg}, reward: dense}
        - {name: RLOO, loss: {name: reinforce}, estimator: {name: leave_one_out}, group: 2}
  - name: GRID s1
    reader:
      source: {kind: pack, data: nowhere}
      model: {name: fast, front_end: frames}
"""
ALONE = ("experiments.0.gradients=null", "experiments.0.methods=[{name: cross-entropy}]")
"""The reader and one objective."""
PICTURES = {"updates", "differences", "weights", "windows", "entropy", "gradients", "attention", "credit"}
PICTURES |= {"visemes", "reliability", "frames"}


def load(folder, *overrides):
    path = folder / "study.yaml"
    path.write_text(TINY)
    return LipReadingStudy.load(path, overrides)


def run(study, out, **options):
    return study.run(out, workers=0, device="cpu", quiet=True, **options)


def names(study, out):
    """Of the pictures that the results allow."""
    return {figure.name for figure in of_study(study.evidence(Results(out, study.runs())))}


def said(out):
    return json.loads((out / "summary.json").read_text())


@pytest.fixture(autouse=True, scope="module")
def _few_pictures():
    """One picture is enough for the report; all are drawn once, and small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_study", lambda evidence: [f for f in of_study(evidence) if f.name == "updates"])
        patch.setattr(figures, "FEWEST_KERNELS", 1)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tiny study, run once in this process: study, folder and summary."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study = load(folder)
        return study, folder / "out", run(study, folder / "out")


# ---- a whole study


def test_claims_are_decided_or_told_why_not(whole):
    study, out, _ = whole
    claims = {claim["id"]: claim for claim in said(out)["claims"]}
    assert list(claims) == list(study.claims) == list(CLAIMS)
    for name, claim in claims.items():
        assert claim["statement"]
        assert claim["reason"]
        if claim["holds"] is not None:
            assert claim["low"] <= claim["difference"] <= claim["high"], name
            assert claim["test"]
    assert claims["grid_s1_cer_below_quarter"]["holds"] is None
    assert "nowhere: holds no index.csv" in claims["grid_s1_cer_below_quarter"]["reason"]
    for name in ("pcpg_beats_reinforce_sampled", "pcpg_group_beats_cross_entropy_sampled"):
        assert claims[name]["holds"] in (True, False)
        assert claims[name]["n"] == 2


def test_the_summary_is_plain_json_with_one_row_a_number(whole):
    study, out, summary = whole
    content = said(out)
    assert (content["study"], content["config_hash"]) == ("tiny", study.hash)
    assert content == json.loads(json.dumps(summary.content()))
    keys = [(row["scenario"], row["method"], row["metric"]) for row in content["table"]]
    assert len(set(keys)) == len(keys)
    for row in content["table"]:
        if row["low"] is not None:
            assert row["low"] <= row["mean"] <= row["high"], row


def test_every_objective_has_every_rate_with_its_interval(whole):
    study, _, summary = whole
    rows = {(row.method, row.metric): row for row in summary.table if row.scenario == "mini"}
    for method in study.experiments[0].methods:
        for metric in (*study.headline, "WER sampled"):
            row = rows[method.name, metric]
            assert row.n == 2
            assert row.low <= row.mean <= row.high
    for metric in study.headline:
        assert rows[START, metric].mean >= 0
    assert rows["PCPG", "weight"].mean in (1, 16)
    noted = {row.method for row in summary.table if row.scenario == "mini, gradients"}
    assert noted == {"REINFORCE", "PCPG k5 s2", "RLOO"}


def test_the_weight_is_the_one_of_the_smallest_validation_error(whole):
    study, out, _ = whole
    results = Results(out, study.runs())
    experiment = study.experiments[0]
    forks = [study.fork(experiment, experiment.methods[2], seed) for seed in (0, 1)]
    assert forks[0].trials == forks[1].trials
    rates = {}
    for trial in forks[0].trials:
        assert (trial.seed, trial.split) == (study.trial_seed, "validation")
        data = results[trial]
        assert data.sizes["utterance"] == 16
        rates[trial.weight] = int(data["sampled_edits"].sum()) / int(data["characters"].sum())
    assert list(rates) == [1, 16]
    for fork in forks:
        assert results[fork].attrs["weight"] == min(rates, key=lambda weight: (rates[weight], weight))


def test_all_objectives_start_at_one_reader_and_a_method_has_its_own_seeds(whole):
    study, out, _ = whole
    results = Results(out, study.runs())
    forks = [r for r in expand(study.runs()).values() if isinstance(r, Fork) and r.weight is not None and not r.trials]
    assert len({fork.product.hash for fork in forks}) == 1
    assert len(list((out / "products").glob("[0-9a-f]*/product.json"))) == 1
    first = {float(results[f]["look_greedy"][0]) for f in forks if f.looks}
    assert len(first) == 1
    assert list(results[study.reading(study.experiments[0])]["look_update"].values) == [6, 12]
    one, other = (study.fork(study.experiments[0], study.experiments[0].methods[0], seed) for seed in (0, 1))
    assert not results[one]["loss"].equals(results[other]["loss"])


def test_results_hold_each_run_with_named_dims(whole):
    _, out, _ = whole
    with xr.open_datatree(out / "results.nc", engine="h5netcdf") as found:
        data = found["mini/PCPG__group/seed1"]
        assert data["greedy"].dims == ("utterance", "symbol")
        assert data["entropy"].dims == ("update",)
        assert (data.sizes["utterance"], data.sizes["update"]) == (24, 12)
        assert found["mini/gradients"]["own"].dims == ("method", "repeat", "other")
        reader = found["mini/reader"]
        assert np.allclose(reader["attention"].sum("step").where(reader["written"] > 0, 1.0), 1.0, atol=1e-5)
        confident = reader["confidence"].where(reader["greedy"] > 0)
        assert float(confident.min()) > 0
        assert float(reader["confidence"].max()) <= 1
        assert (reader["reference"] == found["mini/PCPG/seed0"]["reference"]).all()


def test_the_report_has_pictures_claims_and_notes(whole):
    _, out, _ = whole
    for kind, begins in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        (drawn,) = (out / "figures").glob(f"*.{kind}")
        assert drawn.stem == "updates"
        assert drawn.read_bytes().startswith(begins)
    page = (out / "report.html").read_text()
    for text in (CLAIMS[0], "GRID s1 was left out", "PCPG, group", "one draw a clip at temperature 1"):
        assert text in page


def test_the_second_run_does_nothing_and_report_says_the_same(monkeypatch, whole):
    study, out, _ = whole
    monkeypatch.chdir(out.parent)
    before, results = said(out), {p: p.stat().st_mtime_ns for p in out.glob("runs/*/result.nc")}

    def refuse(*arguments):
        raise AssertionError("it ran")

    monkeypatch.setattr("apps.lipreading.runs.Fork.execute", refuse)
    monkeypatch.setattr("apps.lipreading.reader.train", refuse)
    for again in (lambda: run(study, out), lambda: study.report(out)):
        again()
        after = said(out)
        assert (after["claims"], after["table"]) == (before["claims"], before["table"])
    assert {p: p.stat().st_mtime_ns for p in out.glob("runs/*/result.nc")} == results


# ---- what is not there


def test_an_absent_corpus_is_told_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    study = load(tmp_path)
    assert study.cautions() == ["GRID s1 is left out: nowhere: holds no index.csv"]
    monkeypatch.delenv("SZILARD_DATA", raising=False)
    unset = load(tmp_path, "experiments.1.reader.source.data=null")
    assert unset.cautions() == ["GRID s1 is left out: source.data: no folder given: set it or $SZILARD_DATA"]
    monkeypatch.setenv("SZILARD_DATA", str(tmp_path))
    assert unset.cautions() == [f"GRID s1 is left out: {tmp_path}/lipreading: holds no index.csv"]
    assert all("GRID" not in each.label for each in study.runs())


def test_a_corpus_judged_on_what_was_looked_at_is_told(tmp_path):
    assert load(tmp_path).shared_splits() == []
    (tmp_path / "index.csv").touch()
    here = f"experiments.1.reader.source.data={tmp_path}"
    (note,) = load(tmp_path, here).shared_splits()
    assert "GRID s1: the split val is also" in note
    assert load(tmp_path, here, "experiments.1.reader.source.test=other").shared_splits() == []


def test_a_study_whose_corpora_are_all_absent_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = load(tmp_path, "experiments.0.reader.source={kind: pack, data: elsewhere}")
    with pytest.raises(InputError) as refused:
        run(study, tmp_path / "out")
    assert str(refused.value) == (
        "tiny: mini is left out: elsewhere: holds no index.csv; GRID s1 is left out: nowhere: holds no index.csv"
    )
    assert not (tmp_path / "out").exists()


def test_one_seed_gives_numbers_without_intervals(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    methods = "experiments.0.methods=[{name: cross-entropy}, {name: PCPG, loss: {name: pcpg}, reward: dense}]"
    study = load(tmp_path, "seeds=1", "experiments.0.gradients=null", methods)
    summary = run(study, tmp_path / "out")
    assert all(claim.holds is None for claim in summary.claims)
    rows = {(row.method, row.metric): row for row in summary.table}
    assert (rows["PCPG", "CER"].low, rows["PCPG", "CER"].n) == (None, 1)
    drawn = names(study, tmp_path / "out")
    assert "differences" not in drawn
    assert "updates" in drawn


def test_without_looks_no_curve_of_them_is_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = load(tmp_path, *ALONE, "experiments.0.looks=0", "experiments.0.reader.looks=0", "seeds=[3]")
    run(study, tmp_path / "out")
    drawn = names(study, tmp_path / "out")
    assert "updates" not in drawn
    assert "reliability" in drawn


def test_seeds_that_a_guard_has_ended_at_different_updates_are_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loss = "loss: {name: grpo}, estimator: {name: group_relative}, group: 2"
    chance = f"{{name: chance, reward: random, supervised: 0, guard: 1.0e-6, {loss}}}"
    # An untrained reader writes no sentence, which would earn nothing whatever it writes.
    monkeypatch.setattr("apps.lipreading.training.UNLABELLED", ())
    fork = "experiments.0.fork={updates: 50, batch: 4, learning_rate: {kind: constant, rate: 1.0e-3}}"
    study = load(tmp_path, "experiments.0.gradients=null", f"experiments.0.methods=[{chance}]", fork, "seeds=3")
    study = study.model_copy(update={"experiments": (study.experiments[0].model_copy(update={"looks": 5}),)})
    run(study, tmp_path / "out")
    results, experiment = Results(tmp_path / "out", study.runs()), study.experiments[0]
    ended = [results[study.fork(experiment, experiment.methods[0], seed)] for seed in range(3)]
    assert len({data.sizes["look"] for data in ended}) > 1, "or the test says nothing"
    for data in ended:
        made = int(data["look_update"][-1])
        assert np.isfinite(data["entropy"].values).tolist() == [update < made for update in range(50)]
    assert (tmp_path / "out" / "figures" / "updates.png").exists()


def test_words_that_are_no_sentences_of_a_grammar_have_no_slots(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    monkeypatch.chdir(tmp_path)
    write_pack(tmp_path / "words", ["about", "benefits", "change", "during", "energy", "family"] * 2)
    words = f"experiments.0.reader.source={{kind: pack, data: {tmp_path / 'words'}}}"
    frames = "experiments.0.reader.model={name: fast, front_end: frames, encoder: 8, embedding: 4, decoder: 16}"
    study = load(tmp_path, *ALONE, words, frames, "seeds=[0]", "experiments.0.reader.training.updates=2")
    summary = run(study, tmp_path / "out")
    rows = {row.metric: row for row in summary.table if row.method == START}
    assert rows["CER"].n == 6
    assert not any("right" in metric or "grammar" in metric for metric in rows)
    assert "attention" in names(study, tmp_path / "out")


def write_pack(folder, sentences):
    """A prepared corpus of noise in place of mouths, one half to learn from."""
    folder.mkdir()
    table = ["utt,speaker,split,sentence"]
    with zipfile.ZipFile(folder / "a_mouth.zip", "w") as archive:
        for i, sentence in enumerate(sentences):
            table.append(f"u{i},a,{'train' if i % 2 else 'val'},{sentence}")
            frames = np.random.default_rng(i).integers(0, 255, (6, 24, 32), dtype=np.uint8)
            archive.writestr(f"u{i}.jpg", encode_sheet(frames, 3))
    (folder / "index.csv").write_text("\n".join(table) + "\n")
    (folder / "pack.json").write_text('{"frames": 6, "columns": 3}')


def test_clips_that_the_model_cannot_take_fail_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = load(tmp_path, *ALONE, "experiments.0.reader.model.inputs=13", "seeds=[0]")
    with pytest.raises(StudyError, match=r"model\.inputs: 13; the source gives 12 features"):
        run(study, tmp_path / "out")


# ---- what is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seeds=0"], "seeds = 0: must be greater than or equal to 1"),
        (["seeds=[1, 2, 1]"], "seeds: 1 stands there twice"),
        (["trial_seed=1"], "trial_seed: 1 is one of the seeds"),
        (["seeds=[4, 100]"], "trial_seed: 100 is one of the seeds"),
        (["first_seed=99"], "trial_seed: 100 is one of the seeds"),
        (["experiments=[]"], "experiments"),
        (["colour=red"], "colour: unknown key"),
        (["experiments.0.colour=red"], "experiments.0.colour: unknown key"),
        (["experiments.0.reader.training.speed=1"], "experiments.0.reader.training.speed: unknown key"),
        (["experiments.0.reader.source.colour=red"], "experiments.0.reader.source.colour: unknown key"),
        (
            ["experiments.0.methods.2.loss.width=3"],
            "experiments.0.methods.2.loss.width = 3: Unexpected keyword argument",
        ),
        (["experiments.1.name=mini"], "experiments: mini stands there twice"),
        (["experiments.0.methods.1.name=PCPG"], "methods of mini: PCPG stands there twice"),
        (["experiments.0.methods.3.group=1"], "experiments.0.methods.3: group: 1"),
        (["experiments.0.methods.2.loss.kernel=0"], "experiments.0.methods.2.loss: Windowed.kernel"),
        (["experiments.0.methods.2.loss.stride=0"], "experiments.0.methods.2.loss: Windowed.stride"),
        (["experiments.0.methods.2.loss.stride=6"], "experiments.0.methods.2.loss: Windowed.stride"),
        (["experiments.0.methods.2.loss.weights=[1, 2]"], "experiments.0.methods.2.loss: Windowed.weights"),
        (["experiments.0.methods.2.loss.name=magic"], "experiments.0.methods.2.loss.name"),
        (["experiments.0.methods.2.reward=magic"], "experiments.0.methods.2.reward"),
        (["experiments.0.methods.2.weights=[]"], "experiments.0.methods.2.weights"),
        (["experiments.0.methods.1.estimator=null"], "experiments.0.methods.1: estimator: is required by reinforce"),
        (["experiments.0.methods.0.loss={name: dpo}"], "experiments.0.methods.0: loss: dpo learns from recorded pairs"),
        (["experiments.0.fork=null"], "experiments.0: fork: is required where there are methods"),
        (["experiments.0.fork.updates=0"], "experiments.0.fork.updates = 0: must be"),
        (["experiments.0.fork.learning_rate.kind=magic"], "experiments.0.fork.learning_rate.kind"),
        (["experiments.0.reader.source.kind=magic"], "experiments.0.reader.source.kind"),
        (["experiments.0.reader.source.noise=.nan"], "experiments.0.reader.source.noise"),
        (["experiments.0.reader.model.name=magic"], "experiments.0.reader.model.name"),
        (["experiments.0.reader.best=true", "experiments.0.reader.looks=0"], "experiments.0.reader: best"),
        (["experiments.0.reader.model={name: paper}"], "experiments.0: gradients: are taken of the model fast"),
        (["experiments.0.gradients.repeats=3"], "experiments.0.gradients.repeats = 3"),
        (["experiments.0.gradients.methods=[{name: a}]"], "experiments.0.gradients.methods"),
        (["experiments.0.gradients.methods.0={name: a}"], "experiments.0.gradients: methods: a has no loss"),
        (["experiments.0.gradients.methods.0.name=RLOO"], "experiments.0.gradients: methods: RLOO stands there twice"),
        (["claims=[magic]"], "claims.0"),
        (["roles.colour=red"], "roles.colour: unknown key"),
    ],
)
def test_a_study_that_cannot_be_is_refused_in_one_line(tmp_path, overrides, message):
    with pytest.raises(InputError) as refused:
        load(tmp_path, *overrides)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_strides_that_skip_symbols_are_allowed_on_demand(tmp_path):
    allowed = ("experiments.0.methods.2.loss.stride=6", "experiments.0.methods.2.loss.allow_gaps=true")
    assert load(tmp_path, *allowed).experiments[0].methods[2].loss.stride == 6


# ---- pictures


def test_every_picture_is_drawn_with_labels_and_a_caption(whole, monkeypatch):
    study, out, _ = whole
    monkeypatch.chdir(out.parent)
    drawn = of_study(study.evidence(Results(out, study.runs())))
    assert {figure.name for figure in drawn} == PICTURES
    for figure in drawn:
        assert figure.caption.endswith(".")
        drawing = figure.draw()
        drawing.savefig(io.BytesIO(), dpi=20)
        for axes in drawing.axes:
            shared = axes.get_shared_y_axes().get_siblings(axes)
            assert not axes.axison or any(_words(other) for other in shared), figure.name


def _words(axes):
    """A label, or ticks that are no numbers."""
    ticks = "".join(t.get_text() for t in axes.get_yticklabels())
    return axes.get_ylabel() or not set(ticks) <= set("0123456789.−")

"""The verbs simulate, train, evaluate and transcribe."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import xarray as xr
from typer.testing import CliRunner

from apps.lipreading.clips import Clips
from apps.lipreading.evaluate_cli import SLACK, evaluate, transcribe
from apps.lipreading.evaluation import Reading, rates, read, slot_rates
from apps.lipreading.evaluation_data import open_data
from apps.lipreading.evaluation_folder import open_abstention
from apps.lipreading.metrics import character_errors, texts
from apps.lipreading.reader import open_reader
from apps.lipreading.simulation import examples, open_clips
from apps.lipreading.sources import Examples, PackSource
from apps.lipreading.train_cli import simulate, train
from apps.lipreading.transcripts import transcripts
from core.errors import InputError
from core.seeds import stream
from simulators.lips import alphabet
from simulators.lips.grammar import MINI

DATA = Path(__file__).parents[3] / "shared" / "data" / "lipreading"
CONFIG = """
source: {{kind: simulated, clips: 64, validation_clips: 40, test_clips: 40, mode: {mode}, noise: {noise}}}
model: {model}
training: {{updates: {updates}, batch: 16}}
"""
FEATURES = "{name: fast, inputs: 12, encoder: 8, embedding: 4, decoder: 16}"
FRAMES = "{name: fast, inputs: 1, front_end: frames, encoder: 8, embedding: 4, decoder: 16}"

app = typer.Typer()
for verb in (simulate, train, evaluate, transcribe):
    app.command()(verb)


def call(*words):
    """What a verb prints; errors pass through."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def last(printed):
    return Path(printed.strip().splitlines()[-1])


def config(folder, model=FEATURES, mode="features", noise=0.25, updates=6):
    path = folder / "reader.yaml"
    path.write_text(CONFIG.format(model=model, mode=mode, noise=noise, updates=updates))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    call("train", config(folder), "--out", folder / "reader", "--device", "cpu")
    return folder / "reader"


@pytest.fixture(scope="module")
def sighted(tmp_path_factory):
    """A model that reads frames."""
    folder = tmp_path_factory.mktemp("sighted")
    call("train", config(folder, FRAMES, "frames", 0.03, 2), "--out", folder / "reader", "--device", "cpu")
    return folder / "reader"


# ---- simulate


@pytest.mark.parametrize(("mode", "shape"), [("features", (12,)), ("landmarks", (40,)), ("frames", (32, 48))])
def test_simulated_clips_come_back_from_their_file(tmp_path, mode, shape):
    call("simulate", "--out", tmp_path, "--clips", 6, "--mode", mode, "--speakers", 2)
    data = open_clips(tmp_path / "clips.nc")
    assert data["observation"].shape == (6, 75, *shape)
    assert (tmp_path / "contact_sheet.png").exists() is (mode == "frames")
    assert (data["word_start"] < data["word_end"]).all()
    assert [" ".join(words) for words in data["word"].values.tolist()] == data["transcript"].values.tolist()
    call("simulate", "--out", tmp_path / "again", "--clips", 6, "--mode", mode, "--speakers", 2)
    assert open_clips(tmp_path / "again" / "clips.nc").equals(data)
    (part,) = examples(data, _pictures if mode == "frames" else pytest.fail)
    assert part.clips.frames.shape == (6, 75, *shape)
    assert texts(part.reference) == data["transcript"].values.tolist()


def _pictures(frames, length):
    assert frames.dtype == torch.uint8
    return Clips(frames.float() / 255, length)


def test_what_cannot_be_simulated_is_refused(tmp_path):
    with pytest.raises(InputError, match="mode: 'sound'"):
        call("simulate", "--out", tmp_path / "a", "--mode", "sound")
    with pytest.raises(InputError, match="--grammar sounds"):
        call("simulate", "--out", tmp_path / "a", "--grammar", "sounds")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        call("simulate", "--out", tmp_path / "file", "--clips", 1)
    call("simulate", "--out", tmp_path / "clips", "--clips", 1)
    with pytest.raises(InputError, match=r"--out .*: holds a clips\.nc already"):
        call("simulate", "--out", tmp_path / "clips", "--clips", 1, "--seed", 1)


def test_a_file_with_a_number_that_is_not_finite_is_refused(tmp_path):
    call("simulate", "--out", tmp_path, "--clips", 3)
    data = open_clips(tmp_path / "clips.nc")
    data["observation"][1, 7, 2] = np.nan
    data.to_netcdf(tmp_path / "bad.nc", engine="h5netcdf")
    with pytest.raises(InputError, match="clip 1: frame 7 holds a number that is not finite"):
        open_clips(tmp_path / "bad.nc")
    (tmp_path / "text.nc").write_text("no")
    with pytest.raises(InputError, match="not a NetCDF file"):
        open_clips(tmp_path / "text.nc")


# ---- train


def test_a_finished_training_is_kept_and_another_refused(model, tmp_path):
    weights = (model / "model.safetensors").read_bytes()
    assert last(call("train", config(tmp_path), "--out", model, "--device", "cpu")) == model
    assert (model / "model.safetensors").read_bytes() == weights
    with pytest.raises(InputError, match="another config"):
        call("train", config(tmp_path), "--out", model, "--set", "training.updates=7")
    assert not (model / "checkpoint").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"holds notes\.txt"):
        call("train", config(tmp_path), "--out", tmp_path / "mine")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("source.mode=frames", "model.front_end: features; the source gives frames of 32 x 48 pixels; must be frames"),
        ("model.inputs=13", "model.inputs: 13; the source gives 12 features a frame; must be 12"),
        ("model={name: paper}", "model: paper reads frames; the source gives 12 features a frame"),
    ],
)
def test_a_refused_training_says_why_and_blocks_no_other(tmp_path, change, said):
    with pytest.raises(InputError, match=re.escape(said)):
        call("train", config(tmp_path), "--out", tmp_path / "x", "--set", change, "--device", "cpu")
    call("train", config(tmp_path, updates=1), "--out", tmp_path / "x", "--device", "cpu")


def test_a_fresh_training_forgets_the_other(model, tmp_path):
    out = tmp_path / "reader"
    call("train", config(tmp_path), "--out", out, "--set", "training.updates=2", "--device", "cpu")
    evaluated = last(call("evaluate", out, "--device", "cpu"))
    assert evaluated.is_relative_to(out)
    call("train", config(tmp_path), "--out", out, "--fresh", "--device", "cpu")
    assert not evaluated.exists()
    assert (out / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_folder_from_which_nothing_can_be_removed_is_refused(tmp_path):
    out = tmp_path / "reader"
    (out / "model.safetensors").mkdir(parents=True)
    (out / "config.json").touch()
    with pytest.raises(InputError, match=r"--out .*: is a directory"):
        call("train", config(tmp_path), "--out", out, "--fresh", "--device", "cpu")


def test_unknown_keys_are_refused(tmp_path):
    with pytest.raises(InputError, match="unknown key"):
        call("train", config(tmp_path), "--out", tmp_path / "x", "--set", "training.speed=1")


# ---- evaluate


@pytest.mark.parametrize("decode", ["greedy", "beam", "mbr"])
def test_an_evaluation_says_the_same_in_all_its_files(model, tmp_path, decode):
    printed = call("evaluate", model, "--decode", decode, "--samples", 4, "--out", tmp_path / "ev", "--device", "cpu")
    assert last(printed) == tmp_path / "ev"
    for column in ("CER", "CER sampled", "WER", "exact"):
        assert column in printed
    with xr.open_dataset(tmp_path / "ev" / "results.nc") as data:
        assert data.sizes["utterance"] == 40
        assert data.sizes["slot"] == 3
        table = {(r["metric"]): r for r in json.loads((tmp_path / "ev" / "summary.json").read_text())["table"]}
        total = float(data["character_edits"].sum() / data["characters"].sum())
        assert table["CER"]["mean"] == pytest.approx(total)
        assert table["CER, mean of clips"]["mean"] == pytest.approx(float(data["cer"].mean()))
        assert table["CER"]["low"] <= total <= table["CER"]["high"]
        assert int(data["viseme_confusion"][:-1].sum()) > 0
        with (tmp_path / "ev" / "hypotheses.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["reference"] for row in rows] == data["reference"].values.tolist()
        edits = character_errors([r["hypothesis"] for r in rows], [r["reference"] for r in rows]).edits
        assert edits.tolist() == data["character_edits"].values.tolist()
    assert (tmp_path / "ev" / "figures" / "confusion.png").stat().st_size > 1000


def test_beams_of_one_read_as_the_most_probable_symbols(model):
    reader = open_reader(model)
    with torch.no_grad():
        one, other = (
            read(reader.model, open_data(reader, None, "val").parts, 20, decode=d, width=1) for d in ("greedy", "beam")
        )
    assert one.hypotheses == other.hypotheses
    assert all(np.array_equal(a, b) for a, b in zip(one.confidence, other.confidence, strict=True))
    assert all(((x >= 0) & (x <= 1)).all() for x in one.confidence)
    assert [len(x) for x in one.confidence] == [len(text) for text in one.hypotheses]


def test_how_many_clips_are_read_at_a_time_does_not_matter(model):
    reader = open_reader(model)
    corpus = open_data(reader, None, "val")
    parts = [part for whole in corpus.parts for part in _split(whole, 7)]
    whole = read(reader.model, open_data(reader, None, "val").parts, 20, grammar=MINI)
    found = read(reader.model, iter(parts), 20, grammar=MINI)
    assert found.hypotheses == whole.hypotheses
    assert [len(found), *rates(found)[:2]] == [len(whole), *rates(whole)[:2]]


def _split(part, size):
    for begin in range(0, len(part), size):
        rows = slice(begin, begin + size)
        clips = Clips(part.clips.frames[rows], part.clips.length[rows])
        yield Examples(clips, part.reference[rows], part.speaker[rows], part.words[rows])


def test_intervals_over_speakers(model, tmp_path):
    printed = call("evaluate", model, "--by-speaker", "--out", tmp_path / "ev", "--device", "cpu")
    assert "5 speakers" in printed
    table = json.loads((tmp_path / "ev" / "summary.json").read_text())["table"]
    assert next(row for row in table if row["metric"] == "CER")["n"] == 5
    assert {row["n"] for row in table} == {5}, "the slots too"
    # The interval of the calibration error is over clips, so none is given.
    (error,) = (row for row in table if row["metric"].startswith("calibration error"))
    assert error["mean"] > 0
    assert (error["low"], error["high"]) == (None, None)


def test_slots_over_speakers_differ_from_slots_over_clips():
    said, wrong = ["b two now"] * 8, ["b six now"] * 4 + ["b two now"] * 4
    found = Reading(speakers=["1"] * 4 + ["2"] * 4, references=said, hypotheses=wrong)
    row = slot_rates(found, MINI, by_speaker=True)[1]
    assert (row.mean, row.low, row.high, row.n) == (0.5, 0.0, 1.0, 2)
    assert slot_rates(found, MINI)[1].n == 8
    found.speakers = ["1"] * 8
    row = slot_rates(found, MINI, by_speaker=True)[1]
    assert (row.mean, row.low, row.high, row.n) == (0.5, None, None, 1)


def test_an_evaluation_lies_in_a_folder_named_after_its_clips(model, tmp_path):
    for name in ("a", "b"):
        call("simulate", "--out", tmp_path / name, "--clips", 2, "--grammar", "mini")
    words = ("evaluate", model, "--device", "cpu")
    places = {
        last(call(*words, *rest)).name
        for rest in (
            ("--data", tmp_path / "a"),
            ("--data", tmp_path / "b" / "clips.nc"),
            ("--split", "test"),
            (),
        )
    }
    assert places == {"a-greedy", "b-greedy", "own-test-greedy", "own-val-greedy"}
    asked = json.loads((model / "evaluation" / "a-greedy" / "summary.json").read_text())["asked"]
    assert asked["split"] is None


def test_clips_without_splits_take_no_split(model, sighted, tmp_path):
    call("simulate", "--out", tmp_path, "--clips", 2, "--grammar", "mini")
    for data in (tmp_path, tmp_path / "clips.nc"):
        with pytest.raises(InputError, match=r"--split val: .*clips\.nc has no splits; leave it out"):
            call("evaluate", model, "--data", data, "--split", "val")
    reader = open_reader(sighted)
    pack = replace(reader, config=reader.config.model_copy(update={"source": PackSource()}))
    with pytest.raises(InputError, match="--split x: --data simulated has no splits"):
        open_data(pack, "simulated", "x")
    assert open_data(reader, "simulated", "test").split == "test", "its own clips are simulated"


@pytest.mark.skipif(not (DATA / "index.csv").exists(), reason=f"{DATA} is not here")
def test_the_usual_split_of_a_pack_is_val(sighted):
    given = open_data(open_reader(sighted), str(DATA), None)
    assert (given.split, given.name) == ("val", f"{DATA}, val")


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_read(model, tmp_path, monkeypatch):
    monkeypatch.setattr("apps.lipreading.evaluation.read", lambda *_, **__: pytest.fail("clips were read"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--out .*file"):
        call("evaluate", model, "--out", tmp_path / "file", "--device", "cpu")


def test_clips_of_a_file_are_read_as_they_are(model, tmp_path):
    call("simulate", "--out", tmp_path, "--clips", 5, "--grammar", "mini", "--frames", 48, "--first-frame", 8)
    call("evaluate", model, "--data", tmp_path, "--out", tmp_path / "ev", "--device", "cpu")
    said = open_clips(tmp_path / "clips.nc")["transcript"].values.tolist()
    with xr.open_dataset(tmp_path / "ev" / "results.nc") as data:
        assert data["reference"].values.tolist() == said


def test_clips_of_another_kind_are_refused_by_name(model, sighted, tmp_path):
    call("simulate", "--out", tmp_path / "l", "--clips", 2, "--mode", "landmarks")
    call("simulate", "--out", tmp_path / "f", "--clips", 2, "--mode", "frames", "--height", 40)
    for words in (("evaluate", model, "--data"), ("transcribe", "--model", model)):
        place = f"{tmp_path}/l/clips.nc{'::0' if words[0] == 'transcribe' else ''}"
        with pytest.raises(InputError, match=r"clips\.nc: holds landmarks; the model has learnt from features"):
            call(*words, place)
    with pytest.raises(InputError, match="frames of 40 x 48 pixels; the model reads 32 x 48"):
        call("evaluate", sighted, "--data", tmp_path / "f")
    with pytest.raises(InputError, match="holds many clips; name one"):
        call("transcribe", tmp_path / "f" / "clips.nc", "--model", sighted)


def test_impossible_evaluations_are_refused(model, tmp_path):
    with pytest.raises(InputError, match="--split dev"):
        call("evaluate", model, "--split", "dev")
    with pytest.raises(InputError, match="--data"):
        call("evaluate", model, "--data", tmp_path)
    with pytest.raises(InputError, match="--calibrate"):
        call("evaluate", model, "--calibrate")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        call("evaluate", tmp_path)


# ---- transcribe


def test_a_clip_is_transcribed_with_its_confidence(model, tmp_path):
    call("simulate", "--out", tmp_path, "--clips", 3, "--grammar", "mini", "--frames", 48, "--first-frame", 8)
    words = ("transcribe", f"{tmp_path}/clips.nc::1", "--model", model, "--samples", 8, "--device", "cpu")
    printed = call(*words, "--json", tmp_path / "t.json", "--latency")
    record = json.loads((tmp_path / "t.json").read_text())
    assert printed.splitlines()[0] == record["text"]
    assert record["reference"] == open_clips(tmp_path / "clips.nc")["transcript"].values[1]
    assert all(0 <= word["confidence"] <= 1 for word in record["words"])
    assert len(record["lattice"]) == len(record["words"])
    assert record["in_grammar"] is bool(MINI.parses(alphabet.encode([record["text"] or "a"])[0]).item())
    assert record["latency"]["frames"] == 48
    assert record["latency"]["whole"] == record["text"], "the last reading is the one that is printed"
    assert call(*words).splitlines()[0] == record["text"], "the same seed, the same transcript"
    with pytest.raises(InputError, match="must be a number from 0 to 2"):
        call("transcribe", f"{tmp_path}/clips.nc::3", "--model", model)
    folder = ("transcribe", f"{tmp_path}::1", *words[2:])
    assert call(*folder).splitlines()[0] == record["text"], "the folder stands for its file, as for evaluate"
    with pytest.raises(InputError, match="holds many clips; name one"):
        call("transcribe", tmp_path, *words[2:])


def test_options_without_effect_are_refused(model, tmp_path):
    words = ("transcribe", f"{tmp_path}::1", "--model", model)
    with pytest.raises(InputError, match="--samples 8: with --error-rate"):
        call(*words, "--samples", 8, "--error-rate", 0.1)
    with pytest.raises(InputError, match=r"--crop whole: .*::1 is cut"):
        call(*words, "--crop", "whole")
    with pytest.raises(InputError, match=r"--resample: .*::1 is cut"):
        call(*words, "--resample")


def test_abstention_needs_a_calibration_of_these_weights(model, tmp_path):
    call("simulate", "--out", tmp_path, "--clips", 2, "--grammar", "mini", "--frames", 48, "--first-frame", 8)
    words = ("transcribe", f"{tmp_path}/clips.nc::0", "--model", model, "--device", "cpu", "--error-rate", 0.3)
    with pytest.raises(InputError, match=r"calibration\.json: no such file"):
        call(*words)
    made = ("evaluate", model, "--decode", "mbr", "--samples", 6, "--calibrate", "--out", tmp_path / "ev")
    call(*made, "--device", "cpu")
    try:
        found, samples = open_abstention(model, 0.3)
        assert (samples, found.clips) == (6, 40)
        assert found.guarantee in call(*words)
        record = json.loads((model / "calibration.json").read_text())
        (model / "calibration.json").write_text(json.dumps(record | {"weights": "other"}))
        with pytest.raises(InputError, match="is of other weights"):
            call(*words)
        for damage in (
            {"confidence": 5},
            {"confidence": [[0.5]]},
            {"confidence": [[2.0 for _ in clip] for clip in record["confidence"]]},
            {"right": [["no" for _ in clip] for clip in record["right"]]},
            {"most": None},
            {"samples": "many"},
            {"samples": 0},
        ):
            (model / "calibration.json").write_text(json.dumps(record | damage))
            with pytest.raises(InputError, match=r"calibration\.json: is damaged .*--calibrate again"):
                call(*words)
    finally:
        (model / "calibration.json").unlink()


def test_a_model_of_features_reads_no_video(model, tmp_path):
    with pytest.raises(InputError, match="has learnt from simulated features"):
        call("transcribe", tmp_path / "talk.mp4", "--model", model)


def test_black_and_short_clips_are_refused(sighted, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, grey, count in (("black", 0, 10), ("short", None, 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 255, (40, 60), dtype=np.uint8)
            frame = pixels if grey is None else np.full((40, 60), grey, dtype=np.uint8)
            image.fromarray(frame).save(tmp_path / name / f"{i + 1}.jpg")
        with pytest.raises(InputError, match=name):
            call("transcribe", tmp_path / name, "--model", sighted, "--crop", "whole")
    with pytest.raises(InputError, match="no such file"):
        call("transcribe", tmp_path / "absent.mp4", "--model", sighted, "--crop", "whole")
    with pytest.raises(InputError, match="crop 'nose'"):
        call("transcribe", tmp_path / "black", "--model", sighted, "--crop", "nose")


def test_pictures_pass_through_the_features_of_the_model(sighted, tmp_path):
    call("simulate", "--out", tmp_path, "--clips", 2, "--mode", "frames", "--grammar", "mini")
    words = ("transcribe", f"{tmp_path}/clips.nc::1", "--model", sighted, "--device", "cpu", "--samples", 4)
    call(*words, "--json", tmp_path / "t.json")
    reader = open_reader(sighted)
    clips = reader.features(torch.from_numpy(open_clips(tmp_path / "clips.nc")["observation"].values[1:2]))
    generator = torch.Generator().manual_seed(stream(0, "transcript"))
    drawn = reader.model.sample(clips, 4, reader.max_length + SLACK, generator=generator)
    assert json.loads((tmp_path / "t.json").read_text())["text"] == transcripts(drawn)[0].text


@pytest.mark.skipif(not (DATA / "index.csv").exists(), reason=f"{DATA} is not here")
def test_a_clip_of_a_pack_is_transcribed(sighted):
    pytest.importorskip("PIL")
    with (DATA / "index.csv").open() as file:
        name = next(csv.DictReader(file))["utt"]
    call("transcribe", f"{DATA}::{name}", "--model", sighted, "--device", "cpu", "--samples", 4)
    with pytest.raises(InputError, match="0 clips of that name"):
        call("transcribe", f"{DATA}::nobody", "--model", sighted, "--device", "cpu")


@pytest.mark.skipif(not (DATA / "raw").exists(), reason=f"{DATA} is not here")
def test_a_raw_video_is_transcribed(sighted, tmp_path):
    pytest.importorskip("av")
    clip = DATA / "raw" / "bbaf2n.mpg"
    words = ("transcribe", clip, "--model", sighted, "--crop", "190:254,132:228", "--device", "cpu", "--samples", 4)
    call(*words, "--json", tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text())["clip"] == str(clip)

"""Preparation: every clip is in the pack or in the notes, a stop costs nothing, and faults are one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from apps.lipreading import preparation
from apps.lipreading.preparation import Prepared, PrepareSettings, prepare, read_recordings
from apps.lipreading.prepare_cli import prepare as verb
from core.errors import InputError
from simulators.lips.pack import Pack
from simulators.lips.pack_writer import PARTS
from simulators.lips.readers import Corpus
from tests.simulators.lips_cases import SENTENCES, align_text, mouth, shared, write_grid, write_pictures, write_video

pytest.importorskip("av")
pytest.importorskip("PIL")

WHOLE = PrepareSettings(crop="whole")
ORIGIN = {"corpus": "grid", "split": "unseen", "seed": 0}


def made(
    root: Path, out: Path, settings: PrepareSettings = WHOLE, corpus: Corpus = "grid", **options: object
) -> Prepared:
    recordings, _ = read_recordings(root, corpus)
    return prepare(recordings, out, settings, origin=ORIGIN | {"corpus": corpus}, **options)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grid(tmp_path_factory.mktemp("corpus") / "grid")


def test_a_corpus_becomes_a_pack(grid: Path, tmp_path: Path) -> None:
    done = made(grid, tmp_path / "p")
    pack = Pack.open(tmp_path / "p")
    assert done.notes == []
    assert pack.utterances == done.utterances
    assert [(u.speaker, u.name) for u in pack.utterances] == [(s, n) for s in ("s1", "s3") for n in SENTENCES]
    assert pack.splits == {"test": 4, "train": 4}
    assert pack.sentences == 2 * list(SENTENCES.values())
    assert pack.alignment(5).text(75) == align_text(SENTENCES["lwbsza"]).replace("74500", "75000")  # type: ignore[union-attr]
    assert pack.length.tolist() == [75] * 8
    drawn = mouth(75, seed=11)[:, 8:40, 8:56].astype(float)
    stored = pack.frames([5])[0].numpy().astype(float)
    assert np.corrcoef(stored.mean(axis=0).ravel(), np.full(32 * 48, 1.0) + drawn.mean(axis=0).ravel())[0, 1] > 0.5
    # The opening of the mouth in time survives decoding, cutting and compression.
    assert np.corrcoef(stored.mean(axis=(1, 2)), mouth(75, seed=11).mean(axis=(1, 2)))[0, 1] > 0.99


def test_the_quality_is_stated_and_measured(grid: Path, tmp_path: Path) -> None:
    rms = []
    for quality in (60, 98):
        done = made(grid, tmp_path / str(quality), WHOLE.model_copy(update={"quality": quality}))
        record = json.loads((tmp_path / str(quality) / "pack.json").read_text())
        assert record["quality"] == quality
        assert record["rms"] == pytest.approx(done.rms)
        rms.append(done.rms)
    assert rms[0] > 2 * rms[1] > 0


def test_a_stopped_preparation_goes_on_and_gives_the_same_bytes(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "PART", 2)
    made(grid, tmp_path / "whole")
    shares: list[float] = []

    def stop(share: float, text: str) -> None:
        shares.append(share)
        if len(shares) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(grid, tmp_path / "p", report=stop)
    assert sorted(p.name for p in (tmp_path / "p" / PARTS).glob("*.zip")) == ["s1.00000.zip", "s1.00001.zip"]
    assert not (tmp_path / "p" / "pack.json").exists()
    tried: list[str] = []
    original = preparation.prepare_clip
    monkeypatch.setattr(preparation, "prepare_clip", lambda r, *rest: tried.append(r.speaker) or original(r, *rest))
    made(grid, tmp_path / "p", report=lambda share, text: shares.append(share))
    assert tried == ["s3"] * 4
    assert shares == [0.25, 0.5, 0.75, 1.0]
    assert contents(tmp_path / "p") == contents(tmp_path / "whole")
    made(grid, tmp_path / "p")
    assert tried == ["s3"] * 4, "a finished pack is left as it is"


def test_kill_9_loses_at_most_a_part(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(grid, tmp_path / "whole", WHOLE)
    code = (
        "import sys; from pathlib import Path; from apps.lipreading import preparation as p\n"
        "p.PART = 1\n"
        "r, _ = p.read_recordings(Path(sys.argv[1]), 'grid')\n"
        f"p.prepare(r, Path(sys.argv[2]), p.PrepareSettings(crop='whole'), origin={ORIGIN!r})\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(grid), str(tmp_path / "p")], cwd=Path(__file__).parents[2]
    )
    parts = tmp_path / "p" / PARTS
    limit = time.monotonic() + 60
    while not list(parts.glob("*.zip")) and child.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    for path in parts.glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
    monkeypatch.setattr(preparation, "PART", 1)
    made(grid, tmp_path / "p")
    assert contents(tmp_path / "p") == contents(tmp_path / "whole")


def test_processes_change_nothing(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "PART", 4)
    made(grid, tmp_path / "one")
    made(grid, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_other_settings_do_not_mix(grid: Path, tmp_path: Path) -> None:
    made(grid, tmp_path / "p")
    with pytest.raises(InputError, match=r"prepared otherwise \(height: 32, now 40\)"):
        made(grid, tmp_path / "p", PrepareSettings(crop="whole", height=40))
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"holds thesis.tex; must be empty or new"):
        made(grid, tmp_path / "q")
    with pytest.raises(InputError, match="is a file, not a folder"):
        made(grid, tmp_path / "q" / "thesis.tex")


def test_a_request_that_made_nothing_blocks_no_other(grid: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not within"):
        made(grid, tmp_path / "p", PrepareSettings(crop="0:900,0:900"))
    assert len(made(grid, tmp_path / "p").utterances) == 8


def test_clips_of_74_frames_are_padded_with_a_note(tmp_path: Path) -> None:
    write_grid(tmp_path / "g", ("bbaf2n",), ("s1",), frames=74)
    done = made(tmp_path / "g", tmp_path / "p")
    assert [note.left_out for note in done.notes] == [False]
    assert "74 frames; the last one is repeated to 75" in done.notes[0].text
    pack = Pack.open(tmp_path / "p")
    assert pack.length.tolist() == [74]
    frames = pack.frames([0])[0].float()
    assert (frames[74] - frames[73]).abs().mean() < 2


def test_a_pause_between_words_survives(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "g", ("bbaf2n",), ("s1",))
    path = root / "alignments" / "s1" / "bbaf2n.align"
    path.write_text(path.read_text().replace("20000 26000 blue", "20000 21000 sp\n21000 26000 blue"))
    made(root, tmp_path / "p")
    words = Pack.open(tmp_path / "p").alignment(0).words  # type: ignore[union-attr]
    assert (words[0].end, words[1].start) == (20, 21)


BAD = {
    "fps": (lambda p: write_video(p, mouth(75), fps=30), "30 frames per second; must be 25"),
    "black": (lambda p: write_video(p, mouth(75) * 0), "every frame is of one grey level"),
    "short": (lambda p: write_video(p, mouth(4)), "4 frames; must be at least 5"),
    "long": (lambda p: write_video(p, mouth(76)), r"76 frames; must be at most 75 \(--frames\)"),
    "small": (lambda p: write_video(p, mouth(75, 16, 32)), "32x16 pixels"),
    "garbage": (lambda p: p.write_bytes(b"x" * 1000), "no frame can be decoded"),
    "align": (
        lambda p: (p.parents[1] / "alignments" / "s3" / f"{p.stem}.align").write_text("0 9000 boat\n"),
        "line 1: unknown token 'boat'",
    ),
    "other": (
        lambda p: (p.parents[1] / "alignments" / "s3" / f"{p.stem}.align").write_text(
            align_text("set red in o zero now")
        ),
        "says 'set red in o zero now'; its name says 'lay white by s zero again'",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_clips_stop_the_work_or_are_left_out_with_a_note(tmp_path: Path, fault: str) -> None:
    root = write_grid(tmp_path / "g", ("bbaf2n", "lwbsza"))
    spoil, said = BAD[fault]
    spoil(root / "s3" / "lwbsza.mpg")
    with pytest.raises(InputError, match=said) as error:
        made(root, tmp_path / "p")
    assert "\n" not in str(error.value)
    assert "lwbsza" in str(error.value)
    assert "--skip-bad" in str(error.value)
    done = made(root, tmp_path / "p", PrepareSettings(crop="whole", skip_bad=True))
    assert [(u.speaker, u.name) for u in Pack.open(tmp_path / "p").utterances] == [
        ("s1", "bbaf2n"), ("s1", "lwbsza"), ("s3", "bbaf2n"),
    ]  # fmt: skip
    assert [(note.name, note.left_out) for note in done.notes] == [("lwbsza", True)]
    assert "lwbsza,s3,left out," in (tmp_path / "p" / "notes.csv").read_text()


def test_a_pack_of_nothing_is_refused(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "g", ("bbaf2n",), ("s3",), frames=4)
    with pytest.raises(InputError, match=r"every clip is left out; the first one: .*4 frames"):
        made(root, tmp_path / "p", PrepareSettings(crop="whole", skip_bad=True))


def test_another_rate_is_resampled_on_request(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "g", ("bbaf2n",), ("s3",))
    write_video(root / "s3" / "bbaf2n.mpg", mouth(90), fps=30)
    done = made(root, tmp_path / "p", PrepareSettings(crop="whole", resample=True))
    assert Pack.open(tmp_path / "p").length.tolist() == [75]
    assert "90 frames at 30 per second became 75 at 25" in done.notes[0].text


def test_missing_mouths_are_counted(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "g", ("bbaf2n",), ("s3",))
    (tmp_path / "marks").mkdir()
    head = "frame," + ",".join(f"x{i},y{i}" for i in range(20))
    point = ",".join(["15,24"] + ["32,24"] * 5 + ["49,24"] + ["32,24"] * 13)
    rows = [f"{t},{point}" for t in range(75) if t not in range(10, 14) and t not in range(40, 50)]
    (tmp_path / "marks" / "bbaf2n.csv").write_text("\n".join([head, *rows]))
    settings = PrepareSettings(crop="landmarks", landmarks=tmp_path / "marks")
    done = made(root, tmp_path / "p", settings)
    assert Pack.open(tmp_path / "p").utterances[0].missing == 10
    assert "no mouth in 10 of 75 frames" in done.notes[0].text


def test_steady_clips_lie_on_the_first_one_of_their_speaker(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "g", ("bbaf2n", "lwbsza"), ("s3",))
    big = mouth(75, 96, 128, seed=3)
    for name, x in (("bbaf2n", 0), ("lwbsza", 6)):
        write_video(root / "s3" / f"{name}.mpg", np.roll(big, x, axis=2))
    apart = {}
    for steady in (False, True):
        out = tmp_path / str(steady)
        made(root, out, PrepareSettings(crop="16:80,16:112", steady=steady))
        first, second = Pack.open(out).frames([0, 1]).float().mean(dim=1)
        apart[steady] = float((first - second)[4:-4, 4:-4].abs().mean())
    assert apart[True] < 0.4 * apart[False]


def test_lrw_and_lrw1000_become_packs(tmp_path: Path) -> None:
    place = tmp_path / "lrw" / "lipread_mp4" / "ABOUT"
    for split in ("train", "val", "test"):
        write_video(place / split / "ABOUT_00001.mp4", mouth(29, 256, 256, middle=(0.5, 0.64)), codec="mpeg4")
        (place / split / "ABOUT_00001.txt").write_text("Duration: 0.53 seconds\n")
    made(tmp_path / "lrw", tmp_path / "p", PrepareSettings(**preparation.USUAL["lrw"]), "lrw")
    pack = Pack.open(tmp_path / "p")
    assert (len(pack), pack.n_frames, pack.height, pack.width) == (3, 29, 96, 96)
    assert pack.alignment(0).onset == 7  # type: ignore[union-attr]
    for name, folder in (("trn", "d1"), ("val", "d2"), ("tst", "d3")):
        (tmp_path / "cas" / "info").mkdir(parents=True, exist_ok=True)
        (tmp_path / "cas" / "info" / f"{name}_1000.txt").write_text(f"{folder}, 0, ni hao, 0.08, 0.60\n")
        write_pictures(tmp_path / "cas" / "images" / folder, mouth(20, 64, 64))
    made(tmp_path / "cas", tmp_path / "q", PrepareSettings(**preparation.USUAL["lrw1000"]), "lrw1000")
    pack = Pack.open(tmp_path / "q")
    assert (pack.n_frames, pack.height, pack.width, pack.length.tolist()) == (30, 122, 122, [14, 14, 14])
    assert not (tmp_path / "q" / "notes.csv").exists(), "words have lengths of their own"
    assert pack.crop == "whole"
    assert pack.sentences == ["ni hao"] * 3


def test_a_short_word_of_lrw1000_is_prepared(tmp_path: Path) -> None:
    for name, text in (("trn", "d1, 0, shi, 0.60, 0.73\n"), ("val", ""), ("tst", "")):
        (tmp_path / "cas" / "info").mkdir(parents=True, exist_ok=True)
        (tmp_path / "cas" / "info" / f"{name}_1000.txt").write_text(text)
    write_pictures(tmp_path / "cas" / "images" / "d1", mouth(40, 64, 64))
    made(tmp_path / "cas", tmp_path / "p", PrepareSettings(**preparation.USUAL["lrw1000"]), "lrw1000")
    pack = Pack.open(tmp_path / "p")
    assert pack.length.tolist() == [5]
    words = pack.alignment(0)
    assert words is not None
    assert (words.sentence, words.onset, words.offset) == ("shi", 1, 5)


def run(*arguments: object) -> tuple[int, str, BaseException | None]:
    app = typer.Typer()
    app.command()(verb)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output, result.exception


def test_the_verb_prepares_and_says_what_it_did(grid: Path, tmp_path: Path) -> None:
    code, output, _ = run(grid, "--out", tmp_path / "p", "--crop", "whole", "--quality", 95)
    assert code == 0
    assert "clips: 8 of 2 speakers" in output
    assert "split: test 4, train 4" in output
    assert "JPEG quality 95: changes grey levels by" in output
    assert Pack.open(tmp_path / "p").record["licence"].startswith("GRID corpus, CC BY 4.0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--height", "10"), "height = 10: must be greater than or equal to 24"),
        (("--quality", "101"), "quality = 101: must be less than or equal to 100"),
        (("--crop", "face"), "crop 'face': must be haar"),
        (("--crop", "landmarks"), "needs the folder"),
        (("--split", "overlapped"), "must have more than 255"),
        (("--corpus", "lrw1000"), "images: no such folder"),
        (("--landmarks", "nosuch"), "--landmarks: only with --crop landmarks"),
        (("--words", "w.txt"), "--words w.txt: allowed with the layout lrw; the recordings are grid"),
        (("--corpus", "lrw", "--validation", "2"), "--validation 2: allowed with the layout grid"),
        (("--corpus", "folder", "--split-list", "s.csv"), "--split-list s.csv: allowed with the layout grid"),
    ],
)
def test_mistakes_of_the_verb_are_one_line(grid: Path, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    _, _, error = run(grid, "--out", tmp_path / "p", *arguments)
    assert isinstance(error, InputError)
    assert said in str(error)
    assert "\n" not in str(error)


def test_a_read_only_corpus_is_enough(grid: Path, tmp_path: Path) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in grid.rglob("*"))
    made(grid, tmp_path / "p")
    assert sorted((p, p.stat().st_mtime_ns) for p in grid.rglob("*")) == before


@pytest.mark.skipif(not shared().exists(), reason="the shared GRID clips are absent")
def test_original_clips_become_the_mouths_of_the_shared_pack(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    (tmp_path / "grid" / "s1").mkdir(parents=True)
    for name in ("bbaf2n", "bbaf3s"):
        os.symlink(shared() / "raw" / f"{name}.mpg", tmp_path / "grid" / "s1" / f"{name}.mpg")
    made(tmp_path / "grid", tmp_path / "p", PrepareSettings())
    theirs = Pack.open(shared())
    index = [u.name for u in theirs.utterances].index("bbaf2n")
    ours = Pack.open(tmp_path / "p").frames([0])[0].numpy().astype(float)
    assert np.corrcoef(ours.ravel(), theirs.frames([index]).numpy().astype(float).ravel())[0, 1] > 0.99

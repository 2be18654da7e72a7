"""The doctor finds each fault that is put into data, finds none in good data, and shows it on one page."""

from __future__ import annotations

import html.parser
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from apps.lipreading.doctor import Diagnosis, Finding, examine_pack, examine_recordings
from apps.lipreading.doctor_cli import doctor as verb
from apps.lipreading.doctor_page import doctor_page
from apps.lipreading.examination import measure, speech_motion
from apps.lipreading.preparation import PrepareSettings, prepare, read_recordings
from core.errors import InputError
from simulators.lips.align import Alignment, Word
from simulators.lips.crop import Crop, FixedBox, Landmarks, Whole
from simulators.lips.pack import Pack
from simulators.lips.readers import Recording, read_grid
from tests.simulators.lips_cases import align_text, mouth, shared, write_grid, write_video

pytest.importorskip("av")
pytest.importorskip("PIL")


def examined(root: Path, crop: Crop | None = None, **options: object) -> Diagnosis:
    recordings, _ = read_grid(root)
    return examine_recordings(recordings, str(root), "grid", crop=crop or Whole(), **options)  # type: ignore[arg-type]


def found(diagnosis: Diagnosis) -> dict[str, Finding]:
    return {finding.check: finding for finding in diagnosis.findings}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grid(tmp_path_factory.mktemp("corpus") / "grid")


@pytest.fixture
def grid(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "grid"))


CLIP = Path("s3") / "lwbsza.mpg"
ALIGN = Path("alignments") / "s3" / "lwbsza.align"


def test_good_data_has_nothing_to_mend(good: Path) -> None:
    diagnosis = examined(good)
    assert diagnosis.worst == "fine", diagnosis.findings
    assert diagnosis.total == len(diagnosis.clips) == 8
    assert diagnosis.splits == {"test": 4, "train": 4}


FAULTS = {
    "rate": ("fault", lambda g: write_video(g / CLIP, mouth(90), fps=30)),
    "readable": ("fault", lambda g: (g / CLIP).write_bytes(b"x" * 999)),
    "length": ("warning", lambda g: write_video(g / CLIP, mouth(74))),
    "size": ("warning", lambda g: write_video(g / CLIP, mouth(75, 64, 80))),
    "brightness": ("warning", lambda g: write_video(g / CLIP, mouth(75) // 6)),
    "contrast": ("warning", lambda g: write_video(g / CLIP, mouth(75) // 5 + 100)),
    "movement": ("warning", lambda g: write_video(g / CLIP, np.repeat(mouth(1), 75, axis=0))),
    "crop": ("warning", lambda g: write_video(g / CLIP, mouth(75, middle=(0.5, 0.95)))),
    "alignment": ("fault", lambda g: (g / ALIGN).write_text("0 9000 lay\n8000 9500 white\n")),
    "timing": ("warning", lambda g: (g / ALIGN).write_text(align_text("lay white by s zero again", 50, 4))),
    "duplicates": ("fault", lambda g: shutil.copy(g / "s1" / "lwbsza.mpg", g / CLIP)),
}


@pytest.mark.parametrize("check", FAULTS)
def test_each_fault_is_found_and_its_clip_named(grid: Path, check: str) -> None:
    level, spoil = FAULTS[check]
    spoil(grid)
    findings = found(examined(grid))
    assert findings[check].level == level, findings[check]
    assert findings[check].count == 1
    assert any("lwbsza" in name for name in findings[check].clips)


def test_a_mouth_that_is_cut_black_is_a_fault(grid: Path) -> None:
    # The picture is fine, the box is not.
    frames = np.concatenate([mouth(75), np.zeros((75, 48, 64), dtype=np.uint8)], axis=1)
    write_video(grid / CLIP, frames)
    recordings = [r for r in read_grid(grid)[0] if r.path == grid / CLIP]
    diagnosis = examine_recordings(recordings, "g", "grid", crop=FixedBox(56, 94, 4, 60))
    assert found(diagnosis)["black"].level == "fault"
    assert diagnosis.worst == "fault"


def test_clips_that_a_pack_cannot_hold_are_told(grid: Path) -> None:
    write_video(grid / CLIP, mouth(80))
    length = found(examined(grid))["length"]
    assert (length.level, length.count) == ("warning", 1)
    assert "more than 75 frames; prepare refuses them" in length.text


@pytest.mark.parametrize("bad", [False, True])
def test_landmarks_fit_the_frames_of_a_clip_of_another_rate(tmp_path: Path, bad: bool) -> None:
    times = [round(1000 * t / 30) for t in range(60)]
    if bad:
        times[-1] = 500_000
    path = write_video(tmp_path / "a.mp4", mouth(60, 96, 128), fps=30, codec="mpeg4", stamps=times)
    # Corners 40 pixels apart; the mouth goes right by half a pixel a frame.
    rows = [
        f"{t},"
        + ",".join([f"{44 + t / 2},48", *[f"{64 + t / 2},48"] * 5, f"{84 + t / 2},48", *[f"{64 + t / 2},48"] * 13])
        for t in range(60)
    ]
    (tmp_path / "a.csv").write_text("\n".join(["frame," + ",".join(f"x{i},y{i}" for i in range(20)), *rows]))
    recordings = [Recording("a", "", "train", "hello", path, "")]
    clip = examine_recordings(recordings, "own", "folder", crop=Landmarks(tmp_path)).clips[0]
    assert set(clip.faults) == {"rate"}
    assert clip.cut is not None
    assert clip.box is not None
    middle = 30
    # With a time stamp that lies minutes away, every frame is looked at once.
    assert len(clip.cut) == (60 if bad else 50)
    assert (clip.box[0] + clip.box[2]) / 2 == pytest.approx(64 + middle / 2, abs=0.3)


@pytest.mark.skipif(not shared().exists(), reason="the shared GRID clips are absent")
def test_a_face_that_is_taken_for_a_mouth_is_a_fault() -> None:
    pytest.importorskip("cv2")
    recordings = [Recording("bbaf2n", "", "", "", shared() / "raw" / "bbaf2n.mpg", "")]
    for crop, level in ((Whole(), "fault"), (FixedBox(190, 254, 132, 228), "fine")):
        assert found(examine_recordings(recordings, "raw", "folder", crop=crop))["crop"].level == level


def test_no_face_is_a_fault(grid: Path) -> None:
    pytest.importorskip("cv2")
    from simulators.lips.crop import Haar

    findings = found(examined(grid, Haar(), sample=2))
    assert findings["face"].level == "fault"
    assert findings["face"].count == 2
    assert "no face found" in findings["face"].text


def test_a_sample_is_drawn_by_the_seed(good: Path) -> None:
    names = [[clip.name for clip in examined(good, sample=3, seed=seed).clips] for seed in (0, 0, 1)]
    assert len(names[0]) == 3
    assert names[0] == names[1] != names[2]


def pack_of(root: Path, out: Path, split: str = "given") -> Path:
    recordings, _ = read_recordings(root, "grid")
    prepare(recordings, out, PrepareSettings(crop="whole"), origin={"corpus": "grid", "split": split})
    return out


def test_packs_are_examined_too(good: Path, tmp_path: Path) -> None:
    diagnosis = examine_pack(Pack.open(pack_of(good, tmp_path / "p")), sample=0)
    assert diagnosis.worst == "fine", diagnosis.findings
    assert len(diagnosis.clips) == 8
    assert found(diagnosis)["sentences"].text == "4 of 4 sentences outside the training are spoken in it too"


def test_leaking_speakers_and_recordings_are_found_in_packs(grid: Path, tmp_path: Path) -> None:
    shutil.copy(grid / "s1" / "lwbsza.mpg", grid / CLIP)
    folder = pack_of(grid, tmp_path / "p")
    index = folder / "index.csv"
    index.write_text(index.read_text().replace("bbaf2n,s1,test", "bbaf2n,s1,train"))
    findings = found(examine_pack(Pack.open(folder)))
    assert (findings["speakers"].level, findings["speakers"].clips) == ("warning", ("s1",))
    assert findings["duplicates"].level == "fault"
    assert "1 recordings stand twice, 1 of them in two splits" in findings["duplicates"].text


def test_movement_is_where_it_was_put() -> None:
    for middle in ((0.5, 0.5), (0.4, 0.6)):
        _, _, motion, centre = measure(mouth(75, middle=middle))
        assert motion > 1
        np.testing.assert_allclose(centre, middle, atol=0.06)
    assert measure(np.full((10, 24, 24), 7, dtype=np.uint8)) == (7, 0, 0, (0.5, 0.5))


def test_words_move_more_than_silence() -> None:
    frames = mouth(75)
    assert (speech_motion(frames, Alignment((Word("a", 14, 50),))) or 0) > 1.5
    assert (speech_motion(frames, Alignment((Word("a", 51, 75),))) or 9) < 1
    assert speech_motion(frames, Alignment((Word("a", 0, 75),))) is None


class Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_shows_faults_first(grid: Path) -> None:
    write_video(grid / CLIP, mouth(90), fps=30)
    page = doctor_page(examined(grid))
    reader = Links()
    reader.feed(page)
    assert reader.open == []
    assert len(reader.sources) == 16, "a frame and a strip of each clip"
    assert all(source.startswith("data:image/jpeg;base64,") for source in reader.sources)
    assert page.index("<h3>s3/lwbsza") < page.index("<h3>s1/bbaf2n")
    assert "<b>white</b>" in page


def test_names_cannot_write_into_the_page() -> None:
    evil = Diagnosis("<script>alert(1)</script>", "folder", 0, [Finding("a", "fine", "<b>x</b>")], [], {})
    page = doctor_page(evil)
    assert "<script>" not in page
    assert "&lt;b&gt;x" in page


def run(*arguments: object) -> tuple[int, str, BaseException | None]:
    app = typer.Typer()
    app.command()(verb)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output, result.exception


def test_the_verb_writes_page_and_json(grid: Path, tmp_path: Path) -> None:
    code, output, _ = run(grid, "--out", tmp_path / "d", "--crop", "whole", "--strict")
    assert code == 0
    assert str(tmp_path / "d" / "doctor.html") in output.replace("\n", "")
    record = json.loads((tmp_path / "d" / "doctor.json").read_text())
    assert (record["worst"], record["clips"], len(record["measures"])) == ("fine", 8, 8)
    assert record["measures"][0]["frames"] == 75
    (grid / CLIP).write_bytes(b"")
    assert run(grid, "--out", tmp_path / "d", "--crop", "whole")[0] == 0
    assert run(grid, "--out", tmp_path / "d", "--crop", "whole", "--strict")[0] == 1
    assert json.loads((tmp_path / "d" / "doctor.json").read_text())["worst"] == "fault"


def test_what_a_reader_refuses_is_a_finding(grid: Path, tmp_path: Path) -> None:
    (grid / ALIGN).unlink()
    code, _, _ = run(grid, "--out", tmp_path / "d", "--crop", "whole", "--sample", 0)
    record = json.loads((tmp_path / "d" / "doctor.json").read_text())
    assert code == 0
    assert record["findings"][0]["check"] == "layout"
    assert "must match" in record["findings"][0]["text"]
    assert record["clips"] == 8


def test_plain_videos_and_packs_are_looked_at(good: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "v" / "me.mp4", mouth(40), codec="mpeg4")
    assert run(tmp_path / "v", "--out", tmp_path / "d", "--crop", "whole")[0] == 0
    record = json.loads((tmp_path / "d" / "doctor.json").read_text())
    assert "index.csv: no such file" in record["findings"][0]["text"]
    pack_of(good, tmp_path / "p")
    assert run(tmp_path / "p", "--out", tmp_path / "d")[0] == 0
    assert json.loads((tmp_path / "d" / "doctor.json").read_text())["kind"] == "pack"


def test_mistakes_of_the_verb_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for source, said in ((tmp_path / "none", "no such folder"), (tmp_path / "v", "no such file")):
        _, _, error = run(source, "--out", tmp_path / "d")
        assert isinstance(error, InputError)
        assert said in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize(("option", "value"), [("--crop", "bogus"), ("--landmarks", "points")])
def test_a_pack_takes_no_crop(good: Path, tmp_path: Path, option: str, value: str) -> None:
    pack_of(good, tmp_path / "p")
    _, _, error = run(tmp_path / "p", "--out", tmp_path / "d", option, value)
    assert isinstance(error, InputError)
    assert str(error).startswith(f"{option} {value}: {tmp_path / 'p'} is a pack")


@pytest.mark.skipif(not shared().exists(), reason="the shared GRID clips are absent")
def test_the_shared_pack_is_in_good_health() -> None:
    diagnosis = examine_pack(Pack.open(shared()), sample=100)
    assert diagnosis.worst == "fine", diagnosis.findings

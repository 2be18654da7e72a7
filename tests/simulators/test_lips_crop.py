"""Crops: where the mouth is found, what becomes of gaps, and that a cut shows what was in the box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.errors import InputError
from simulators.lips.crop import FixedBox, Haar, Landmarks, Whole, cut, filled, parse_crop, shift_between
from simulators.lips.pack import Pack
from simulators.lips.video import read_clip
from tests.simulators.lips_cases import mouth, shared, write_video

pytest.importorskip("PIL")


def boxes_with_gap(start: int, end: int, count: int = 40) -> np.ndarray:
    boxes = np.arange(count, dtype=float)[:, None] + np.array([0.0, 10.0, 60.0, 50.0])
    boxes[start:end] = np.nan
    return boxes


def test_gaps_of_five_frames_are_interpolated() -> None:
    found, marked = filled(boxes_with_gap(10, 15))
    np.testing.assert_allclose(found, boxes_with_gap(0, 0))
    assert not marked.any()


def test_longer_gaps_hold_the_nearest_box_and_are_marked() -> None:
    found, marked = filled(boxes_with_gap(10, 16))
    assert np.flatnonzero(marked).tolist() == list(range(10, 16))
    assert found[10:16, 0].tolist() == [9, 9, 9, 16, 16, 16]
    assert np.isfinite(found).all()


def test_gaps_at_the_ends_hold_the_nearest_box() -> None:
    found, marked = filled(boxes_with_gap(0, 3))
    assert found[:4, 0].tolist() == [3, 3, 3, 3]
    assert not marked.any()


def test_a_cut_is_what_was_in_the_box() -> None:
    frames = mouth(6, 96, 120)
    boxes = FixedBox(20, 52, 30, 78).boxes(frames, "a", 1.5)
    np.testing.assert_array_equal(cut(frames, boxes, 32, 48, "a"), frames[:, 20:52, 30:78])
    whole = cut(frames, Whole().boxes(frames, "a", 1.5), 48, 60, "a").astype(float)
    pooled = frames.reshape(6, 48, 2, 60, 2).mean(axis=(2, 4))
    assert np.abs(whole - pooled).mean() < 3


def test_a_box_that_leaves_the_frame_is_moved_in() -> None:
    frames = mouth(6, 96, 120)
    boxes = np.tile(np.array([90.0, 80.0, 138.0, 112.0]), (6, 1))
    np.testing.assert_array_equal(cut(frames, boxes, 32, 48, "a"), frames[:, 64:, 72:])


@pytest.mark.parametrize(
    ("box", "said"),
    [((0, 0, 60, 23), r"the mouth has 60x23 pixels \(width x height\)"), ((0, 0, 130, 60), "is larger than the frame")],
)
def test_boxes_of_impossible_size_are_refused(box: tuple[int, ...], said: str) -> None:
    frames = mouth(6, 96, 120)
    with pytest.raises(InputError, match=said):
        cut(frames, np.tile(np.array(box, dtype=float), (6, 1)), 32, 48, "a")


def test_a_fixed_box_must_lie_within_the_frame() -> None:
    with pytest.raises(InputError, match="crop 115:211,79:175 is not within 96 rows and 120 columns"):
        FixedBox(115, 211, 79, 175).boxes(mouth(6, 96, 120), "a", 1.0)
    with pytest.raises(InputError, match="must rise"):
        FixedBox(10, 10, 0, 5)


def test_crops_are_named_on_the_command_line(tmp_path) -> None:
    assert parse_crop("haar") == Haar()
    assert parse_crop("whole") == Whole()
    assert parse_crop("115:211,79:175") == FixedBox(115, 211, 79, 175)
    assert parse_crop("landmarks", tmp_path) == Landmarks(tmp_path)
    for text in ("face", "1:2", "1:2,3:x"):
        with pytest.raises(InputError, match="must be haar, whole, landmarks, or TOP:BOTTOM,LEFT:RIGHT"):
            parse_crop(text)
    with pytest.raises(InputError, match="needs the folder"):
        parse_crop("landmarks")


def write_landmarks(path, count: int, points: int, *, absent: tuple[int, ...] = (), shift: float = 0.5) -> None:
    """Lips around (60 + shift t, 50) whose corners are 40 pixels apart."""
    angle = np.linspace(np.pi, 3 * np.pi, 13)[:-1]
    lips = np.concatenate([np.stack([20 * np.cos(angle), 8 * np.sin(angle)], 1), np.zeros((8, 2))])
    face = np.zeros((points, 2))
    face[points - 20 :] = lips
    rows = ["frame," + ",".join(f"x{i},y{i}" for i in range(points))]
    for t in range(count):
        moved = face + np.array([60 + shift * t, 50])
        rows += [f"{t}," + ",".join(f"{v:.4f}" for v in moved.ravel())] if t not in absent else []
    path.write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("points", [20, 68])
def test_landmarks_give_a_box_that_follows_the_lips(tmp_path, points: int) -> None:
    write_landmarks(tmp_path / "a.csv", 40, points, absent=(20, 21))
    boxes = Landmarks(tmp_path).boxes(mouth(40, 96, 160), "clips/a.mpg", 1.5)
    assert np.flatnonzero(np.isnan(boxes[:, 0])).tolist() == [20, 21]
    found, marked = filled(boxes)
    assert not marked.any()
    np.testing.assert_allclose(found[:, 2] - found[:, 0], 2 * 0.73 * 40, rtol=1e-3)
    np.testing.assert_allclose((found[:, 2] - found[:, 0]) / (found[:, 3] - found[:, 1]), 1.5)
    # Away from the ends, where the mean over eleven frames is not cut off.
    np.testing.assert_allclose((found[5:-5, 0] + found[5:-5, 2]) / 2, 60 + 0.5 * np.arange(5, 35), atol=0.1)


def test_landmarks_of_a_speaker_come_first(tmp_path) -> None:
    (tmp_path / "s1").mkdir()
    write_landmarks(tmp_path / "a.csv", 10, 20)
    write_landmarks(tmp_path / "s1" / "a.csv", 10, 20, shift=0)
    still = Landmarks(tmp_path).points(10, Path("grid/s1/a.mpg"))
    moved = Landmarks(tmp_path).points(10, Path("grid/s2/a.mpg"))
    assert still[9, 0, 0] == still[0, 0, 0] < moved[9, 0, 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("frame,x0,y0\n0,1,2\n", "3 columns; must be frame and x,y of 20 or 68 points"),
        ("HEAD\n12," + ",".join("1" * 40), "row 2: frame '12'; the clip has frames 0 to 9"),
        ("HEAD\n2," + ",".join("1" * 39), "row 2: 40 cells; must be 41"),
        ("HEAD\n2,x," + ",".join("1" * 39), "row 2: could not convert string to float: 'x'; must be pixels"),
        ("HEAD\n2,inf," + ",".join("1" * 39), "row 2: holds a number that is not finite"),
        ("HEAD\n2,," + ",".join("1" * 39), "no frame has a face"),
    ],
)
def test_faults_of_landmarks_are_named(tmp_path, text: str, said: str) -> None:
    head = "frame," + ",".join(f"x{i},y{i}" for i in range(20))
    (tmp_path / "a.csv").write_text(text.replace("HEAD", head) + "\n")
    with pytest.raises(InputError, match=r"a.csv: ") as error:
        Landmarks(tmp_path).boxes(mouth(10), "a.mpg", 1.5)
    assert said in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        Landmarks(tmp_path).boxes(mouth(10), "b.mpg", 1.5)


def test_landmarks_must_be_a_table_and_may_begin_with_a_mark(tmp_path) -> None:
    path = tmp_path / "a.csv"
    write_landmarks(path, 10, 20)
    text = path.read_text()
    path.write_text(text, encoding="utf-8-sig")
    assert Landmarks(tmp_path).points(10, Path("a.mpg")).shape == (10, 20, 2)
    path.write_bytes(text.encode() + b"\xff")
    with pytest.raises(InputError, match=r"a.csv: is not UTF-8 text"):
        Landmarks(tmp_path).points(10, Path("a.mpg"))
    path.write_text("frame," + "x" * 140_000)
    with pytest.raises(InputError, match=r"a.csv: not a table"):
        Landmarks(tmp_path).points(10, Path("a.mpg"))


@pytest.mark.parametrize(("fps", "count"), [(30, 60), (20, 40)])
def test_landmarks_count_the_frames_of_the_file_also_when_it_is_resampled(tmp_path, fps: int, count: int) -> None:
    pytest.importorskip("av")
    frames = np.full((count, 96, 160), 60, dtype=np.uint8)
    for t in range(count):
        # A bright mark in the middle of the lips, which move by a pixel a frame.
        frames[t, 46:54, 56 + t : 64 + t] = 220
    path = write_video(tmp_path / "a.mp4", frames, fps=fps, codec="mpeg4")
    write_landmarks(tmp_path / "a.csv", count, 20, absent=tuple(range(20, 30)), shift=1.0)
    # Twelve points lie around the middle and eight in it, as the crop counts them.
    clip = read_clip(path, crop=Landmarks(tmp_path), resample=True, height=40, width=60)
    assert len(clip.frames) == 50
    shown = [round(i * fps / 25 - 1e-9) for i in range(50)]
    assert clip.missing == sum(20 <= t < 30 for t in shown)
    bright = np.maximum(clip.frames.astype(float) - 120, 0).sum(axis=1)
    place = (bright @ (np.arange(60) + 0.5)) / bright.sum(axis=1)
    steady = [i for i, t in enumerate(shown) if 5 <= t < 14 or 36 <= t < count - 6]
    np.testing.assert_allclose(place[steady], 30, atol=0.6)


def test_the_mouth_is_below_the_median_face() -> None:
    faces = np.array([[100.0, 50, 100, 100], [104, 54, 100, 100], [np.nan] * 4, [102, 52, 100, 100]])
    np.testing.assert_allclose(Haar().mouth(faces, "a", 1.5), [128, 116, 176, 148])
    with pytest.raises(InputError, match="a: no face found in 1 frames"):
        Haar().mouth(faces[2:3], "a", 1.5)


def test_a_clip_without_a_face_is_refused() -> None:
    pytest.importorskip("cv2")
    with pytest.raises(InputError, match="no face found"):
        Haar().boxes(mouth(20, 144, 180), "a", 1.5)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, -2), (-4, 1)])
def test_whole_shifts_are_found(x: int, y: int) -> None:
    picture = np.random.default_rng(0).normal(size=(52, 68))
    smooth = sum(np.roll(picture, (a, b), (0, 1)) for a in range(4) for b in range(4))
    found = shift_between(smooth[10 - y : 42 - y, 10 - x : 58 - x], smooth[10:42, 10:58], "a")
    np.testing.assert_allclose(found, (x, y), atol=0.35)


def test_unlike_pictures_have_no_shift() -> None:
    a, b = (np.random.default_rng(seed).normal(size=(32, 48)) for seed in (1, 2))
    assert max(map(abs, shift_between(a, b, "a"))) <= 6
    with pytest.raises(InputError, match="the reference has"):
        shift_between(a, b[:30], "a")


@pytest.mark.skipif(not shared().exists(), reason="the shared GRID clips are absent")
def test_original_clips_are_cut_as_the_shared_pack_is() -> None:
    pytest.importorskip("cv2")
    pytest.importorskip("av")
    pack = Pack.open(shared())
    names = [utterance.name for utterance in pack.utterances]
    reference = pack.frames(range(100)).float().mean(dim=(0, 1)).numpy()
    for name, shifted in (("bbaf2n", False), ("bbaf3s", True)):
        path = shared() / "raw" / f"{name}.mpg"
        found = read_clip(path, crop=Haar(), reference=reference if shifted else None).frames
        stored = pack.frames([names.index(name)])[0].numpy()
        assert np.corrcoef(found.ravel().astype(float), stored.ravel().astype(float))[0, 1] > 0.99

"""Decoding: the frames that were written come back, at 25 a second, and what shows nothing is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.errors import InputError
from simulators.lips.crop import Whole
from simulators.lips.video import Video, check_frames, decode, load_clip, padded, read_clip, rows_at_rate
from tests.simulators.lips_cases import mouth, shared, write_pictures, write_video

pytest.importorskip("av")
pytest.importorskip("PIL")


@pytest.mark.parametrize(("suffix", "codec"), [("mpg", "mpeg1video"), ("mp4", "mpeg4"), ("avi", "mpeg4")])
def test_frames_survive_a_video_file(tmp_path, suffix: str, codec: str) -> None:
    frames = mouth(30)
    video = decode(write_video(tmp_path / f"a.{suffix}", frames, codec=codec))
    assert video.frames.shape == frames.shape
    assert video.fps == pytest.approx(25)
    assert np.corrcoef(video.frames.ravel().astype(float), frames.ravel().astype(float))[0, 1] > 0.99


def test_pictures_are_read_in_the_order_of_their_numbers(tmp_path) -> None:
    frames = np.stack([np.full((32, 48), 10 * i, dtype=np.uint8) for i in range(12)])
    folder = write_pictures(tmp_path / "a", frames)
    np.testing.assert_allclose(decode(folder).frames.mean(axis=(1, 2)), 10 * np.arange(12), atol=1)
    np.testing.assert_allclose(decode(folder, 3, 5).frames.mean(axis=(1, 2)), [20, 30, 40], atol=1)
    (folder / "7.jpg").unlink()
    with pytest.raises(InputError, match=r"7.jpg is absent between 1.jpg and 12.jpg"):
        decode(folder)


def test_resampling_goes_by_the_time_stamps() -> None:
    # Shown at 0, 40, 80, then nothing for 120 ms, then 200 and 240: by index the last two would come too early.
    times = np.array([0, 40, 80, 200, 240]) / 1000
    frames = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), dtype=np.uint8)
    found = frames[rows_at_rate(Video(frames, times), "a", resample=True)][:, 0, 0]
    assert found.tolist() == [0, 1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("fps", [12.5, 24, 30, 50, 59.94])
def test_resampling_keeps_time(fps: float) -> None:
    count = round(3 * fps)
    frames = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), dtype=np.uint8)
    found = frames[rows_at_rate(Video(frames, np.arange(count) / fps + 7.0), "a", resample=True)][:, 0, 0]
    assert abs(len(found) - 75) <= 1
    assert np.abs(found / fps - np.arange(len(found)) / 25).max() <= 0.5 / fps + 1e-6


def test_clips_at_25_are_left_as_they_are_by_resampling() -> None:
    frames = mouth(40)
    np.testing.assert_array_equal(rows_at_rate(Video(frames, np.arange(40) / 25), "a", resample=True), np.arange(40))


def test_another_rate_is_refused_unless_resampled(tmp_path) -> None:
    path = write_video(tmp_path / "a.mp4", mouth(60), fps=30, codec="mpeg4")
    with pytest.raises(InputError, match=r"a.mp4: 30 frames per second; must be 25, or resample it \(--resample\)"):
        load_clip(path, crop=Whole())
    clip = read_clip(path, crop=Whole(), resample=True)
    assert clip.frames.shape == (50, 32, 48)
    assert "60 frames at 30 per second became 50 at 25" in clip.notes[0]


def test_missing_frames_within_a_clip_are_told_and_many_are_refused(tmp_path) -> None:
    kept = [i for i in range(30) if i not in (10, 11)]
    path = write_video(tmp_path / "a.mp4", mouth(28), codec="mpeg4", stamps=[40 * i for i in kept])
    clip = read_clip(path, crop=Whole())
    assert "2 frames are absent between others" in clip.notes[0]
    assert len(clip.frames) == 28
    assert len(load_clip(path, crop=Whole(), resample=True)) == 30
    with pytest.raises(InputError, match="10 frames are absent between 20; must be an even 25 per second"):
        rows_at_rate(Video(mouth(20), np.r_[np.arange(10), np.arange(20, 30)] / 25), "a")


def test_a_time_stamp_that_is_wrong_takes_no_memory(tmp_path) -> None:
    times = np.r_[np.arange(74) / 25, 500.0]
    video = Video(mouth(75), times)
    with pytest.raises(InputError, match="a: 75 frames over 500 s by the time stamps; must be at most 120 s"):
        rows_at_rate(video, "a", resample=True)
    assert len(rows_at_rate(Video(mouth(75), np.r_[np.arange(74) / 25, 119.0]), "a", resample=True)) == 2976
    folder = write_pictures(tmp_path / "a", mouth(1))
    (folder / "1.jpg").rename(folder / "200000000.jpg")
    write_pictures(folder, mouth(1))
    with pytest.raises(InputError, match=r"more than 3000 frames, 1.jpg to 200000000.jpg; cut it into utterances"):
        decode(folder)


def test_a_clip_of_a_telephone_held_upright_is_turned(tmp_path) -> None:
    frames = np.zeros((10, 96, 160), dtype=np.uint8)
    frames[:, :32] = 200
    data = write_video(tmp_path / "a.mp4", frames, codec="mpeg4").read_bytes()
    # The writer has no word for it: the matrix of the track, in the 'tkhd' box, is put in place.
    one = 0x10000
    lying = np.array([one, 0, 0, 0, one, 0, 0, 0, 0x40000000], dtype=">i4").tobytes()
    place = data.find(lying, data.find(b"tkhd"))
    for matrix, shape, bright in (
        ([0, one, 0, -one, 0, 0], (10, 160, 96), np.s_[:, :, -24:]),
        ([0, -one, 0, one, 0, 0], (10, 160, 96), np.s_[:, :, :24]),
        ([-one, 0, 0, 0, -one, 0], (10, 96, 160), np.s_[:, -24:]),
    ):
        turned = np.array([*matrix, 0, 0, 0x40000000], dtype=">i4").tobytes()
        (tmp_path / "b.mp4").write_bytes(data[:place] + turned + data[place + 36 :])
        found = decode(tmp_path / "b.mp4").frames
        assert found.shape == shape
        assert found[bright].mean() > 190
        assert found.mean() < 80


def test_load_clip_gives_a_tensor(tmp_path) -> None:
    found = load_clip(write_video(tmp_path / "a.mpg", mouth(74)), crop=Whole(), height=24, width=40)
    assert found.dtype == torch.uint8
    assert found.shape == (74, 24, 40)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (mouth(4), "4 frames; must be at least 5"),
        (mouth(10, 22, 64), r"64x22 pixels \(width x height\); must be at least 24"),
        (np.zeros((10, 32, 48), dtype=np.uint8), "every frame is of one grey level"),
        (np.repeat(np.arange(10, dtype=np.uint8), 32 * 48).reshape(10, 32, 48), "every frame is of one grey level"),
        (torch.full((10, 32, 48), 0.5), r"one grey level \(about 128\)"),
        (np.zeros((10, 48), dtype=np.uint8), r"shape \(10, 48\); must be \(frames, height, width\)"),
    ],
)
def test_what_shows_nothing_is_refused(frames, said: str) -> None:
    with pytest.raises(InputError, match=f"^clip: .*{said}"):
        check_frames(frames, "clip")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(value: float) -> None:
    frames = mouth(10).astype(np.float32)
    check_frames(frames, "clip")
    frames[7, 3, 4] = value
    with pytest.raises(InputError, match="frame 7 holds a pixel that is NaN or infinite"):
        check_frames(frames, "clip")


def test_files_without_frames_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="no such file"):
        decode(tmp_path / "none.mpg")
    (tmp_path / "empty.mpg").touch()
    (tmp_path / "text.mp4").write_text("no video at all\n" * 100)
    for name in ("empty.mpg", "text.mp4"):
        with pytest.raises(InputError, match=f"{name}: no frame can be decoded"):
            decode(tmp_path / name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="no frame can be decoded; must hold pictures"):
        decode(tmp_path / "folder")
    write_pictures(tmp_path / "folder", mouth(5))
    (tmp_path / "folder" / "3.jpg").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"3.jpg: not a JPEG that can be decoded"):
        decode(tmp_path / "folder")
    huge = bytearray((tmp_path / "folder" / "2.jpg").read_bytes())
    place = huge.find(b"\xff\xc0")
    huge[place + 5 : place + 9] = b"\xff" * 4
    (tmp_path / "folder" / "3.jpg").write_bytes(huge)
    with pytest.raises(InputError, match=r"3.jpg: not a JPEG that can be decoded \(Image size"):
        decode(tmp_path / "folder")


def test_a_black_clip_is_refused_by_its_name(tmp_path) -> None:
    path = write_video(tmp_path / "black.mpg", np.zeros((20, 48, 64), dtype=np.uint8))
    with pytest.raises(InputError, match=r"black.mpg: every frame is of one grey level"):
        load_clip(path, crop=Whole())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x: np.concatenate([x[:40], np.zeros_like(x[40:])]), "35 of 75 frames are of one grey level"),
        (lambda x: np.repeat(x[:1], 75, axis=0), "the mouth stands still"),
    ],
)
def test_what_hardly_shows_speech_is_told(tmp_path, spoil, said: str) -> None:
    clip = read_clip(write_video(tmp_path / "a.mp4", spoil(mouth(75))), crop=Whole())
    assert len(clip.notes) == 1
    assert said in clip.notes[0]
    assert read_clip(write_video(tmp_path / "b.mp4", mouth(75)), crop=Whole()).notes == ()


def test_a_file_that_breaks_off_gives_the_frames_before(tmp_path) -> None:
    path = write_video(tmp_path / "a.mpg", mouth(75))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 5 < len(decode(path).frames) < 75


def test_padding_repeats_the_last_frame() -> None:
    frames = mouth(74)
    found = padded(frames, 75)
    np.testing.assert_array_equal(found[:74], frames)
    np.testing.assert_array_equal(found[74], frames[73])
    assert padded(frames, 70).shape == frames.shape


@pytest.mark.skipif(not shared().exists(), reason="the shared GRID clips are absent")
def test_original_clips_of_grid_decode_to_75_frames_at_25() -> None:
    for path in sorted((shared() / "raw").glob("*.mpg")):
        video = decode(path)
        assert video.frames.shape == (75, 288, 360)
        assert video.fps == pytest.approx(25)
        assert video.gaps == 0

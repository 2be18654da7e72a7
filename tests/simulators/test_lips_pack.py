"""Packs: what is written is read, table and archives must match, and a folder is only read."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import InputError
from simulators.lips.align import Alignment, Word
from simulators.lips.pack import Pack, Utterance, grid_s1_pack, leaking_speakers
from simulators.lips.pack_writer import PARTS, Entry, Note, assemble, read_part, write_part
from simulators.lips.sheets import decode_sheet, encode_sheet
from tests.simulators.lips_cases import mouth, shared

pytest.importorskip("PIL")

FRAMES, HEIGHT, WIDTH = 20, 32, 48
CLIPS = (("s1", "train"), ("s1", "val"), ("s2", "test"))
WORDS = Alignment((Word("bin", 2.0, 6.0), Word("now", 6.0, 14.0)))


def clip(seed: int) -> np.ndarray:
    return mouth(FRAMES, HEIGHT, WIDTH, seed)


def write_pack(
    folder: Path, split: str = "given", clips: tuple[tuple[str, str], ...] = CLIPS, **record: object
) -> Path:
    """A pack of small clips, ``u0`` and so on, the last without an alignment."""
    (folder / PARTS).mkdir(parents=True)
    parts = []
    for i, (speaker, part) in enumerate(clips):
        utterance = Utterance(f"u{i}", speaker, part, "bin now", speaker, FRAMES - i)
        entry = Entry(utterance, encode_sheet(clip(i), quality=95), WORDS.text(FRAMES) if i + 1 < len(clips) else None)
        parts.append(folder / PARTS / f"{speaker}.{i:05d}.zip")
        write_part(parts[-1], [entry], [], {})
    content = {"format": 1, "fps": 25.0, "frames": FRAMES, "height": HEIGHT, "width": WIDTH, "columns": 15}
    assemble(folder, parts, content | {"split": split} | record)
    return folder


@pytest.mark.parametrize("count", [5, 15, 16, 75])
@pytest.mark.parametrize("columns", [1, 7, 15])
def test_sheets_keep_the_order_of_frames(count: int, columns: int) -> None:
    frames = np.repeat(np.arange(count, dtype=np.uint8) * 3, 24 * 32).reshape(count, 24, 32)
    found = decode_sheet(encode_sheet(frames, columns), "a", count, columns)
    assert found.shape == frames.shape
    assert np.abs(found.astype(int) - frames).mean() < 3


def test_sheets_of_the_best_quality_change_little() -> None:
    frames = mouth(75, 32, 48)
    rms = [
        float(((decode_sheet(encode_sheet(frames, 15, q), "a", 75).astype(float) - frames) ** 2).mean() ** 0.5)
        for q in (50, 75, 90, 100)
    ]
    assert rms == sorted(rms, reverse=True)
    assert rms[-1] < 1


def test_what_was_written_is_read(tmp_path: Path) -> None:
    pack = Pack.open(write_pack(tmp_path / "p"))
    assert (len(pack), pack.n_frames, pack.height, pack.width, pack.fps) == (3, FRAMES, HEIGHT, WIDTH, 25)
    assert pack.splits == {"train": 1, "val": 1, "test": 1}
    assert pack.split("test").tolist() == [2]
    assert pack.length.tolist() == [20, 19, 18]
    assert pack.sentences == ["bin now"] * 3
    assert pack.alignment(0) == WORDS
    assert pack.alignment(2) is None
    frames = pack.frames(torch.tensor([2, 0, 2]))
    assert frames.dtype == torch.uint8
    assert frames.shape == (3, FRAMES, HEIGHT, WIDTH)
    torch.testing.assert_close(frames[0], frames[2])
    for found, seed in zip(frames, (2, 0, 2), strict=True):
        assert np.abs(found.numpy().astype(float) - clip(seed)).mean() < 3
    assert pack.frames([]).shape == (0, FRAMES, HEIGHT, WIDTH)
    assert not (tmp_path / "p" / PARTS).exists()


def test_a_pack_that_is_kept_equals_one_that_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Pack.open(write_pack(tmp_path / "p"))
    first = kept.frames([0, 1])
    torch.testing.assert_close(kept.frames([0, 1]), first)
    first[:] = 0
    assert kept.frames([0]).any(), "the caller's tensor is no view of what is kept"
    monkeypatch.setattr("simulators.lips.pack.CACHE", 0)
    torch.testing.assert_close(Pack.open(tmp_path / "p").frames([1, 2]), kept.frames([1, 2]))


def test_few_archives_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulators.lips.pack.OPEN_ARCHIVES", 2)
    monkeypatch.setattr("simulators.lips.pack.CACHE", 0)
    folder = write_pack(tmp_path / "p", clips=tuple((f"s{i}", "train") for i in range(6)))
    pack = Pack.open(folder)
    assert pack.frames(range(6)).shape[0] == 6
    assert pack.alignment(0) == WORDS
    assert len(pack._archives) == 2


def test_packs_go_to_other_processes(tmp_path: Path) -> None:
    pack = Pack.open(write_pack(tmp_path / "p"))
    torch.testing.assert_close(pickle.loads(pickle.dumps(pack)).frames([1]), pack.frames([1]))


def test_the_folder_is_only_read(tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "p")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    pack = Pack.open(folder)
    pack.frames([0, 1, 2])
    pack.alignment(0)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    folder.chmod(0o755)


def test_equal_clips_have_equal_checksums(tmp_path: Path) -> None:
    pack = Pack.open(write_pack(tmp_path / "p"))
    assert len({pack.checksum(i) for i in range(3)}) == 3


def edited(folder: Path, old: str, new: str) -> Path:
    path = folder / "index.csv"
    path.write_text(path.read_text().replace(old, new))
    return folder


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("u0,s1,train,bin now", "u0,s1,train,bin n0w", "row 2: sentence: holds '0'; allowed: a-z and space"),
        ("u0,s1,train,bin now", "u0,s1,train,BIN NOW", "row 2: sentence: holds 'B'"),
        ("u0,s1,train,bin now", "u0,s1,train, ", "row 2: sentence: is empty, its error rate is not defined"),
        ("u1,s1,val", "u0,s1,val", "row 3: u0 of s1 stands twice"),
        ("u1,s1,val,bin now,19,0,s1\n", "", r"has no sentence for u1; 2 clips and 1 sentences of s1 must match"),
        ("u1,s1,val,", "u9,s1,val,", "has no sentence for u1|holds no clip of u9"),
        ("u0,", "../u0,", "row 2: utt: '../u0'; must be a name of a file"),
        (",19,", ",21,", "row 3: frames: '21'; must be a whole number from 0 to 20"),
        (",19,", ",x,", "row 3: frames: 'x'"),
        ("utt,", "name,", "row 2: has no cell utt; must have utt, speaker, split, sentence"),
    ],
)
def test_faults_of_the_table_are_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    folder = edited(write_pack(tmp_path / "p"), old, new)
    with pytest.raises(InputError, match=said) as error:
        Pack.open(folder)
    assert str(folder) in str(error.value)


def test_a_row_without_its_clip_is_refused(tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "p")
    with (folder / "index.csv").open("a") as stream:
        stream.write("u7,s2,test,lay red,20,0,s2\n")
    with pytest.raises(
        InputError, match=r"s2_mouth.zip: holds no clip of u7; 1 clips and 2 sentences of s2 must match"
    ):
        Pack.open(folder)


def test_an_unseen_split_may_not_leak(tmp_path: Path) -> None:
    clips = (("s1", "train"), ("s1", "test"), ("s2", "test"))
    Pack.open(write_pack(tmp_path / "overlapped", "overlapped", clips))
    with pytest.raises(InputError, match=r"index.csv: speaker s1 is in the test split and in another one"):
        Pack.open(write_pack(tmp_path / "unseen", "unseen", clips))
    Pack.open(write_pack(tmp_path / "fair", "unseen"))


def test_speakers_that_nobody_knows_do_not_leak() -> None:
    rows = [Utterance("a", "", "train", "a", "x"), Utterance("b", "", "test", "b", "x")]
    assert leaking_speakers(rows) == []


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"frames": 60}, "frames have height 16 pixels; must be 32"),
        ({"frames": 100}, "720x64 pixels do not divide into 15 columns x 7 rows"),
        ({"frames": "20"}, "frames: '20'; must be a whole number"),
        ({"height": 30}, "height 32 pixels; must be 30"),
        ({"fps": 30.0}, "fps: 30.0; must be 25"),
        ({"columns": 0}, "columns: 0"),
        ({"fps": "abc"}, "pack.json: fps: 'abc'; must be 25"),
        ({"fps": None}, "pack.json: fps: None; must be 25"),
    ],
)
def test_faults_of_the_record_are_named(tmp_path: Path, record: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Pack.open(write_pack(tmp_path / "p", **record))


def test_a_record_of_another_shape_tells_no_crop(tmp_path: Path) -> None:
    for number, request in enumerate(([1], {"settings": [1]}, {"settings": {"crop": 3}})):
        assert Pack.open(write_pack(tmp_path / str(number), request=request)).crop is None
    assert Pack.open(write_pack(tmp_path / "p", request={"settings": {"crop": "haar"}})).crop == "haar"


def test_a_table_may_begin_with_a_mark_and_must_be_a_table(tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "p")
    path = folder / "index.csv"
    text = path.read_text()
    path.write_text(text, encoding="utf-8-sig")
    assert Pack.open(folder).sentences == ["bin now"] * 3
    path.write_text(text.replace("bin now", "x" * 140_000))
    with pytest.raises(InputError, match=r"index.csv: not a table \(field larger"):
        Pack.open(folder)
    path.write_bytes(text.encode() + b"\xff\n")
    with pytest.raises(InputError, match=r"index.csv: is not UTF-8 text"):
        Pack.open(folder)


def spoiled(data: bytes, places: dict[int, int]) -> bytes:
    """The bytes with some of them flipped, by their place."""
    changed = bytearray(data)
    for place, bits in places.items():
        changed[place] ^= bits
    return bytes(changed)


def test_entries_that_cannot_be_unpacked_are_refused(tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "p")
    archive = folder / "s2_mouth.zip"
    sheet = encode_sheet(clip(2))
    with zipfile.ZipFile(archive, "w", compression=zipfile.ZIP_DEFLATED) as target:
        target.writestr("u2.jpg", sheet)
    data = archive.read_bytes()
    table, start = data.find(b"PK\x01\x02"), 30 + len("u2.jpg")
    # The first block of the stream of an unknown kind; and the flag of a password, which the file has twice.
    for places, said in (
        ({start: data[start] ^ 0x07}, "invalid block type"),
        ({6: 1, table + 8: 1}, "encrypted"),
    ):
        archive.write_bytes(spoiled(data, places))
        with pytest.raises(InputError, match=rf"s2_mouth.zip: u2.jpg cannot be read \(.*{said}"):
            Pack.open(folder).frames([2])


def test_a_sheet_that_says_it_is_huge_is_refused() -> None:
    sheet = bytearray(encode_sheet(clip(0)))
    place = sheet.find(b"\xff\xc0")
    sheet[place + 5 : place + 9] = b"\xff" * 4
    with pytest.raises(InputError, match=r"a: not a JPEG that can be decoded \(Image size"):
        decode_sheet(bytes(sheet), "a", FRAMES)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "p")
    archive = folder / "s2_mouth.zip"
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"s2_mouth.zip: not a zip archive"):
        Pack.open(folder)
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("u2.jpg", b"not a picture")
    with pytest.raises(InputError, match=r"s2_mouth.zip: u2.jpg: not a JPEG"):
        Pack.open(folder).frames([2])
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("u2.jpg", encode_sheet(mouth(FRAMES, 40, 48)))
    with pytest.raises(InputError, match=r"u2.jpg: frames of 48x40 .*; must be 48x32"):
        Pack.open(folder).frames([2])
    archive.unlink()
    with pytest.raises(InputError, match=r"s2_mouth.zip: no such file"):
        Pack.open(folder)


def test_an_alignment_must_say_the_sentence(tmp_path: Path) -> None:
    folder = edited(write_pack(tmp_path / "p"), "u0,s1,train,bin now", "u0,s1,train,bin soon")
    with pytest.raises(InputError, match=r"u0.align: says 'bin now'; index.csv says 'bin soon'"):
        Pack.open(folder).alignment(0)


def test_an_absent_folder_or_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"index.csv: no such file"):
        Pack.open(tmp_path)
    with pytest.raises(InputError, match="no clip in split 'dev'; there are: train, val, test"):
        Pack.open(write_pack(tmp_path / "p")).split("dev")


def test_notes_are_kept_and_damaged_parts_named(tmp_path: Path) -> None:
    (tmp_path / PARTS).mkdir()
    part = tmp_path / PARTS / "s1.00000.zip"
    note = Note("u1", "s1", True, "u1.mpg: black")
    write_part(part, [Entry(Utterance("u0", "s1", "train", "a", "s1"), encode_sheet(clip(0)), None)], [note], {})
    rows, notes = assemble(tmp_path, [part], {"frames": FRAMES})
    assert notes == [note]
    assert [row.name for row in rows] == ["u0"]
    assert (tmp_path / "notes.csv").read_text() == "utt,speaker,clip,note\nu1,s1,left out,u1.mpg: black\n"
    broken = tmp_path / "s1.00001.zip"
    broken.write_bytes(b"PK")
    with pytest.raises(InputError, match="a damaged part"):
        read_part(broken)


@pytest.mark.skipif(not shared().exists(), reason="the shared GRID clips are absent")
def test_the_shared_pack_of_s1_is_read() -> None:
    pack = grid_s1_pack(shared().parent)
    assert (len(pack), pack.n_frames, pack.height, pack.width) == (843, 75, 32, 48)
    assert pack.splits == {"train": 751, "val": 92}
    assert json.dumps(pack.record) == "{}"
    frames = pack.frames(pack.split("val")[:8])
    assert 100 < frames.float().mean() < 180
    assert frames.float().std(dim=1).mean() > 2, "mouths move"

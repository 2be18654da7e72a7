"""Layouts of corpora: each is read, its splits are the published ones, and what does not fit is named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from core.errors import InputError
from simulators.lips.readers import read_folder, read_grid, read_lrw, read_lrw1000, recognise
from simulators.lips.readers.grid import UNSEEN, sentence_of
from simulators.lips.readers.lrw import word_frames
from tests.simulators.lips_cases import SENTENCES, align_text, mouth, write_pictures

pytest.importorskip("PIL")


def names(count: int) -> list[str]:
    found = [f"{a}{b}{c}{d}{e}{f}" for a in "bl" for b in "bg" for c in "ab" for d in "abcdefghij" for e in "z123456789" for f in "an"]  # fmt: skip # noqa: E501
    return found[:count]


def touch(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def grid(root: Path, speakers: tuple[str, ...], count: int = 4) -> Path:
    """Names of files only: readers decode nothing."""
    for speaker in speakers:
        for name in names(count):
            touch(root / speaker / f"{name}.mpg")
    return root


@pytest.mark.parametrize(("name", "sentence"), SENTENCES.items())
def test_files_of_grid_are_named_by_their_sentence(name: str, sentence: str) -> None:
    assert sentence_of(name, "a") == sentence


@pytest.mark.parametrize("name", ["bbaf2", "xbaf2n", "bbaw2n", "bbaf0n", "bbaf2nn"])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "s1" / f"{name}.mpg")
    with pytest.raises(InputError, match=f"{name}.mpg: name: '{name}'"):
        read_grid(tmp_path)


@pytest.mark.parametrize("place", ["align", "alignments/s1", "s1/align", "GRID_align_txt/s1/align"])
@pytest.mark.parametrize("pictures", [False, True])
def test_every_layout_of_grid_is_read(tmp_path: Path, place: str, pictures: bool) -> None:
    for name in ("lwbsza", "bbaf2n"):
        if pictures:
            write_pictures(tmp_path / "s1" / "video" / "mpg_6000" / name, mouth(5))
        else:
            touch(tmp_path / "s1" / f"{name}.mpg")
        touch(tmp_path / place / f"{name}.align", align_text(SENTENCES[name], blanks=" "))
    assert recognise(tmp_path) == "grid"
    found, notes = read_grid(tmp_path)
    assert notes == []
    assert [(r.name, r.speaker, r.sentence) for r in found] == [
        (name, "s1", SENTENCES[name]) for name in ("bbaf2n", "lwbsza")
    ]
    assert found[0].align is not None
    assert found[0].align(75, 75).sentence == "bin blue at f two now"
    assert found[0].path.is_dir() == pictures


def test_the_raw_videos_of_grid_are_read_and_hidden_files_are_not(tmp_path: Path) -> None:
    for place in ("s1/video/mpg_6000", "s2/video", "s3"):
        for name in ("bbaf2n", "._bbaf2n"):
            touch(tmp_path / place / f"{name}.mpg")
    (tmp_path / "s1" / "video" / "mpg_6000" / ".cache").mkdir()
    found, _ = read_grid(tmp_path)
    assert [(r.speaker, r.path.relative_to(tmp_path).as_posix()) for r in found] == [
        ("s1", "s1/video/mpg_6000/bbaf2n.mpg"), ("s2", "s2/video/bbaf2n.mpg"), ("s3", "s3/bbaf2n.mpg"),
    ]  # fmt: skip


def test_alignments_must_match_the_clips_and_their_names(tmp_path: Path) -> None:
    grid(tmp_path, ("s1",), 2)
    touch(tmp_path / "align" / f"{names(2)[0]}.align", align_text("lay blue at a zero again"))
    with pytest.raises(InputError, match="2 clips of s1 and the alignments of 1 of them must match"):
        read_grid(tmp_path)
    touch(tmp_path / "align" / f"{names(2)[1]}.align", align_text("bin blue at a zero now"))
    recordings, _ = read_grid(tmp_path)
    assert recordings[1].align is not None
    assert recordings[1].align(75, 75).offset == 50
    with pytest.raises(InputError, match="says 'lay blue at a zero again'; its name says 'bin blue at a zero again'"):
        recordings[0].align(75, 75)


def test_unseen_tests_four_speakers(tmp_path: Path) -> None:
    found, notes = read_grid(grid(tmp_path, ("s1", "s2", "s3", "s20", "s22", "s34")))
    assert {r.speaker for r in found if r.split == "test"} == set(UNSEEN)
    assert {r.speaker for r in found if r.split == "train"} == {"s3", "s34"}
    assert [r.speaker for r in found[::4]] == ["s1", "s2", "s3", "s20", "s22", "s34"]
    assert any("no alignments of s1" in note for note in notes)


def test_overlapped_tests_255_of_each_speaker_by_the_seed(tmp_path: Path) -> None:
    grid(tmp_path, ("s1", "s5"), 300)
    found, _ = read_grid(tmp_path, "overlapped", seed=3)
    assert Counter((r.speaker, r.split) for r in found) == {
        ("s1", "test"): 255, ("s1", "train"): 45, ("s5", "test"): 255, ("s5", "train"): 45,
    }  # fmt: skip

    def tested(seed: int, speaker: str) -> set[str]:
        return {
            r.name for r in read_grid(tmp_path, "overlapped", seed=seed)[0] if (r.speaker, r.split) == (speaker, "test")
        }

    assert tested(3, "s1") == {r.name for r in found if (r.speaker, r.split) == ("s1", "test")}
    assert tested(3, "s1") != tested(4, "s1")
    assert tested(3, "s1") != tested(3, "s5")


def test_overlapped_needs_more_than_255(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="s1 has 255 clips; must have more than 255"):
        read_grid(grid(tmp_path, ("s1",), 255), "overlapped")


def test_validation_comes_from_the_training(tmp_path: Path) -> None:
    found, _ = read_grid(grid(tmp_path, ("s1", "s3", "s4"), 6), validation=2)
    assert Counter((r.speaker, r.split) for r in found) == {
        ("s1", "test"): 6, ("s3", "train"): 4, ("s3", "val"): 2, ("s4", "train"): 4, ("s4", "val"): 2,
    }  # fmt: skip
    with pytest.raises(InputError, match="s3 has 6 clips to train on; must be fewer"):
        read_grid(tmp_path, validation=6)


def test_a_list_takes_the_place_of_the_rules_and_may_not_leak(tmp_path: Path) -> None:
    grid(tmp_path / "g", ("s3", "s4"), 2)
    a, b = names(2)
    listed = tmp_path / "split.csv"
    listed.write_text(f"speaker,utt,split\ns3,{a},train\ns4,{a},test\ns4,{b},test\n")
    found, _ = read_grid(tmp_path / "g", listed=listed)
    assert [(r.speaker, r.name, r.split) for r in found] == [("s3", a, "train"), ("s4", a, "test"), ("s4", b, "test")]
    listed.write_text(f"speaker,utt,split\ns4,{b},train\ns4,{a},test\n")
    read_grid(tmp_path / "g", "overlapped", listed=listed)
    with pytest.raises(InputError, match=r"split.csv: speaker s4 is in the test split and in another one"):
        read_grid(tmp_path / "g", listed=listed)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("s9,bbaaza,train", "row 2: speaker 's9', utt 'bbaaza': no such clip"),
        ("s3,bbaaza,dev", "row 2: split 'dev'; must be one of train, val, test"),
        ("s3,bbaaza,train\ns3,bbaaza,test", "row 3: bbaaza of s3 stands twice"),
        ("", "has no row"),
    ],
)
def test_faults_of_a_list_are_named(tmp_path: Path, row: str, said: str) -> None:
    listed = tmp_path / "split.csv"
    listed.write_text(f"speaker,utt,split\n{row}\n")
    with pytest.raises(InputError, match=said):
        read_grid(grid(tmp_path / "g", ("s3",)), listed=listed)


def test_what_grid_lacks_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder of a speaker"):
        read_grid(tmp_path)
    (tmp_path / "s21").mkdir()
    with pytest.raises(InputError, match="no clip below s21"):
        read_grid(tmp_path)
    _, notes = read_grid(grid(tmp_path, ("s1",)))
    assert any("s21 has no video" in note for note in notes)
    touch(tmp_path / "align" / "x")
    for name in names(4):
        touch(tmp_path / "align" / f"{name}.align")
    _, notes = read_grid(grid(tmp_path, ("s2",)))
    assert any("one folder for speakers who say the same" in note for note in notes)
    with pytest.raises(InputError, match="split: 'seen'; must be one of unseen, overlapped"):
        read_grid(tmp_path, "seen")


def lrw(root: Path, words: tuple[str, ...] = ("ABOUT", "WORLD"), duration: str = "Duration: 0.53 seconds") -> Path:
    for word in words:
        for split in ("train", "val", "test"):
            for number in range(1, 3):
                place = root / "lipread_mp4" / word / split
                touch(place / f"{word}_{number:05d}.mp4")
                touch(place / f"{word}_{number:05d}.txt", f"Subset: {split}\n{duration}\n")
    return root


def test_lrw_is_read_from_both_levels(tmp_path: Path) -> None:
    lrw(tmp_path)
    assert recognise(tmp_path) == recognise(tmp_path / "lipread_mp4") == "lrw"
    found, notes = read_lrw(tmp_path)
    assert notes == []
    assert [r.name for r in read_lrw(tmp_path / "lipread_mp4")[0]] == [r.name for r in found]
    assert Counter(r.split for r in found) == {"train": 4, "val": 4, "test": 4}
    assert {r.sentence for r in found} == {"about", "world"}
    assert len({(r.archive, r.name) for r in found}) == 12
    words = found[0].align(29, 29).words
    assert [(w.text, w.start, w.end) for w in words] == [("about", 7, 21)]


@pytest.mark.parametrize(("duration", "frames"), [(0.53, (7, 21)), (0.08, (13, 15)), (0.02, (14, 15)), (1.16, (0, 29))])
def test_words_of_lrw_are_in_the_middle(duration: float, frames: tuple[int, int]) -> None:
    assert word_frames(duration) == frames


def test_words_of_lrw_must_be_in_the_list(tmp_path: Path) -> None:
    lrw(tmp_path, ("ABOUT", "WORDL"))
    listing = tmp_path / "label_sorted.txt"
    listing.write_text("ABOUT\nWORLD\n")
    with pytest.raises(InputError, match=r"word WORDL is not in the list .*label_sorted\.txt of 2 words"):
        read_lrw(tmp_path)
    listing.write_text("ABOUT\nWORDL\nYOUNG\n")
    _, notes = read_lrw(tmp_path)
    assert "1 words of the list have no folder, such as YOUNG" in notes[0]
    with pytest.raises(InputError, match="no such file"):
        read_lrw(tmp_path, tmp_path / "none.txt")


def test_a_clip_of_lrw_that_ends_before_its_word_is_refused(tmp_path: Path) -> None:
    found, _ = read_lrw(lrw(tmp_path, ("ABOUT",), "Duration: 0.40 seconds"))
    assert [(w.start, w.end) for w in found[0].align(29, 12).words] == [(9, 12)]
    with pytest.raises(InputError, match=r"ABOUT_00001.txt: the word starts at frame 9 of 6; the clip must have 29"):
        found[0].align(29, 6)


def test_hidden_files_of_lrw_are_passed_over(tmp_path: Path) -> None:
    touch(lrw(tmp_path, ("ABOUT",)) / "lipread_mp4" / "ABOUT" / "val" / "._ABOUT_00001.mp4")
    assert len(read_lrw(tmp_path)[0]) == 6


def test_faults_of_lrw_are_named(tmp_path: Path) -> None:
    (lrw(tmp_path) / "lipread_mp4" / "ABOUT" / "val" / "ABOUT_00002.txt").unlink()
    with pytest.raises(InputError, match="ABOUT_00002 has no text; 2 videos and 1 texts must match"):
        read_lrw(tmp_path)
    with pytest.raises(InputError, match="no clip WORD"):
        read_lrw(tmp_path / "lipread_mp4" / "WORLD" / "val")
    place = tmp_path / "b" / "lipread_mp4" / "ABOUT" / "val"
    touch(place / "WORLD_00001.mp4")
    touch(place / "WORLD_00001.txt")
    with pytest.raises(InputError, match="must be named ABOUT_<number>"):
        read_lrw(tmp_path / "b")


@pytest.mark.parametrize("line", ["", "Duration: seconds", "Duration: 0 seconds", "Duration: 3.0 seconds", "0.5", "Duration: 1.2.3 seconds"])  # fmt: skip # noqa: E501
def test_a_word_without_its_duration_is_refused(tmp_path: Path, line: str) -> None:
    found, _ = read_lrw(lrw(tmp_path, ("ABOUT",), line))
    with pytest.raises(InputError, match=r"ABOUT_00001.txt: last line .* must be 'Duration: <s> seconds'"):
        found[0].align(29, 29)


def lrw1000(root: Path, **rows: str) -> Path:
    usual = {"trn": "d1, 0, zhong guo, 0.40, 1.00\nd1, 0, ren, 2.0, 2.2\n", "val": "d2, 0, ni hao, 0, 0.5\n", "tst": "d3,0,shi jie,1.0,1.5"}  # fmt: skip # noqa: E501
    for name, text in (usual | rows).items():
        touch(root / "info" / f"{name}_1000.txt", text)
    for name in ("d1", "d2", "d3"):
        write_pictures(root / "images" / name, mouth(5))
    return root


def test_lrw1000_is_read(tmp_path: Path) -> None:
    assert recognise(lrw1000(tmp_path)) == "lrw1000"
    found, notes = read_lrw1000(tmp_path)
    assert notes == []
    assert [(r.split, r.sentence, r.first, r.last) for r in found] == [
        ("train", "zhong guo", 11, 26), ("train", "ren", 51, 56), ("val", "ni hao", 1, 13), ("test", "shi jie", 26, 38),
    ]  # fmt: skip
    words = found[0].align(30, 16).words
    assert [(w.text, w.start, w.end) for w in words] == [("zhong", 0, 8), ("guo", 8, 16)]


@pytest.mark.parametrize(
    ("pictures", "times", "shown", "word"),
    [
        ((1, 40), "0.60,0.73", (15, 19), (1, 5)),
        ((1, 40), "0.60,0.60", (14, 18), (2, 3)),
        ((16, 40), "0.60,0.73", (16, 20), (0, 4)),
        ((1, 20), "0.76,0.77", (16, 20), (4, 5)),
        ((16, 19), "0.60,0.73", (16, 19), (0, 4)),
        ((1, 40), "0.60,0.77", (16, 20), (0, 5)),
    ],
)
def test_short_words_of_lrw1000_are_read_with_the_frames_around_them(
    tmp_path: Path, pictures: tuple[int, int], times: str, shown: tuple[int, int], word: tuple[int, int]
) -> None:
    place = lrw1000(tmp_path, trn=f"d4, 0, ni hao, {times}").joinpath("images", "d4")
    write_pictures(place, mouth(pictures[1] - pictures[0] + 1), first=pictures[0])
    found = read_lrw1000(tmp_path)[0][0]
    start, end = (int(25 * float(time)) + 1 for time in times.split(","))
    assert found.name == f"d4_{start}_{end}", "the name has the word's own frames"
    assert (found.first, found.last) == shown
    assert found.align is not None
    words = found.align(30, shown[1] - shown[0] + 1)
    assert (words.onset, words.words[0].end, words.offset) == (word[0], sum(word) / 2, word[1])


def test_short_words_of_lrw1000_that_share_their_window_are_two(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images" / "d4", mouth(5))
    found, _ = read_lrw1000(lrw1000(tmp_path, trn="d4, 0, ren, 0, 0.08\nd4, 0, hao, 0.12, 0.16"))
    assert [(r.name, r.first, r.last) for r in found[:2]] == [("d4_1_3", 1, 5), ("d4_4_5", 1, 5)]


def test_long_words_of_lrw1000_are_left_out_and_counted(tmp_path: Path) -> None:
    found, notes = read_lrw1000(lrw1000(tmp_path, trn="d1, 0, ren, 0, 1.16\nd1, 0, ren, 0.2, 1.5\n"))
    assert len(found) == 3
    assert "1 words of more than 30 frames are left out" in notes[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("d1, 0, ren, 0.1", "line 1: 4 cells; must be 5"),
        ("d1, 0, rén, 0.1, 0.2", "line 1: pinyin: holds 'é'; allowed: a-z and space"),
        ("d1, 0, , 0.1, 0.2", "line 1: pinyin: is empty"),
        ("d1, 0, ren, x, 0.2", "line 1: x, 0.2: times must be numbers"),
        ("d1, 0, ren, 0.3, 0.2", "from 0.3 s to 0.2 s: must be finite and rise"),
        ("d9, 0, ren, 0.1, 0.2", "line 1: 'd9': no such folder below"),
        ("../info, 0, ren, 0.1, 0.2", "line 1: '../info': no such folder below"),
        ("d1, 0, ren, 0.1, 0.2\nd1, 0, ren, 0.1, 0.2", "line 2: d1 with the same frames stands twice"),
    ],
)
def test_faults_of_lrw1000_are_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(InputError, match=r"trn_1000.txt: ") as error:
        read_lrw1000(lrw1000(tmp_path, trn=line))
    assert said in str(error.value)


def test_a_file_of_lrw1000_that_is_absent_is_named(tmp_path: Path) -> None:
    (lrw1000(tmp_path) / "info" / "val_1000.txt").unlink()
    with pytest.raises(InputError, match=r"val_1000.txt: no such file"):
        read_lrw1000(tmp_path)


def test_a_folder_of_ones_own_is_read(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "one.mp4")
    touch(tmp_path / "a" / "one.align", align_text("hello there"))
    touch(tmp_path / "two.mov")
    touch(tmp_path / "index.csv", "utt,speaker,split,sentence\none,anna,test,hello there\ntwo,,,good bye\n")
    assert recognise(tmp_path) == "folder"
    found, _ = read_folder(tmp_path)
    assert [(r.name, r.speaker, r.split, r.sentence, r.archive) for r in found] == [
        ("one", "anna", "test", "hello there", "anna"),
        ("two", "", "train", "good bye", "clips"),
    ]
    assert found[0].align is not None
    assert found[0].align(75, 75).sentence == "hello there"
    assert found[1].align is None


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("one,,,hello", "no row of two; 2 videos and 1 sentences must match"),
        ("one,,,hello\ntwo,,,bye\nsix,,,bye", "row 4: utt 'six': no video of that name; there are 2"),
        ("one,,,hello!\ntwo,,,bye", "row 2: sentence: holds '!'; allowed: a-z and space"),
        ("one,,,\ntwo,,,bye", "row 2: sentence: is empty"),
        ("one,,dev,hello\ntwo,,,bye", "row 2: split 'dev'; must be one of"),
        ("one,a/b,,hello\ntwo,,,bye", "row 2: speaker 'a/b'"),
        ("one,a\\b,,hello\ntwo,,,bye", r"row 2: speaker 'a\\b'; must be a name of a file without a folder"),
        (f'one,,,"{"x" * 140_000}"', "index.csv: not a table (field larger than field limit"),
        ("one,,,hello\none,,,bye", "row 3: one stands twice"),
    ],
)
def test_faults_of_a_folder_are_named(tmp_path: Path, rows: str, said: str) -> None:
    touch(tmp_path / "one.mp4")
    touch(tmp_path / "two.mp4")
    touch(tmp_path / "index.csv", f"utt,speaker,split,sentence\n{rows}\n")
    with pytest.raises(InputError) as error:
        read_folder(tmp_path)
    assert said in str(error.value)


def test_tables_may_begin_with_a_mark_and_have_blanks(tmp_path: Path) -> None:
    for name in ("one.mp4", "two.mp4", "._one.mp4"):
        touch(tmp_path / name)
    text = "utt,speaker,split ,sentence\n\none , anna,,hello,more\n   \ntwo,,test,bye  \n"
    (tmp_path / "index.csv").write_text(text, encoding="utf-8-sig")
    found, _ = read_folder(tmp_path)
    assert [(r.name, r.speaker, r.split, r.sentence) for r in found] == [
        ("one", "anna", "train", "hello"), ("two", "", "test", "bye"),
    ]  # fmt: skip


def test_a_list_that_is_no_table_is_refused(tmp_path: Path) -> None:
    listed = tmp_path / "split.csv"
    listed.write_text(f'speaker,utt,split\ns3,bbaaza,"{"x" * 140_000}"\n')
    with pytest.raises(InputError, match=r"split.csv: not a table"):
        read_grid(grid(tmp_path / "g", ("s3",)), listed=listed)
    listed.write_bytes(b"speaker,utt,split\ns3,bbaaza,\xff\n")
    with pytest.raises(InputError, match=r"split.csv: is not UTF-8 text"):
        read_grid(tmp_path / "g", listed=listed)


def test_a_folder_needs_its_table_and_different_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"index.csv: no such file"):
        read_folder(tmp_path)
    touch(tmp_path / "index.csv", "utt,sentence\none,hello\n")
    touch(tmp_path / "a" / "one.mp4")
    touch(tmp_path / "b" / "one.avi")
    with pytest.raises(InputError, match="has the same name; names must differ"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        recognise(tmp_path / "none")

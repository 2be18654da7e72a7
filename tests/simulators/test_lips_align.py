"""Word alignments: what is read, that it survives a round trip, and each fault that is refused."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import InputError
from simulators.lips import align
from simulators.lips.align import Alignment, Word, parse
from simulators.lips.grammar import GRID
from simulators.lips.pack import Pack
from tests.simulators.lips_cases import align_text, shared

GOOD = "0 23750 sil\n23750 29500 bin\n29500 34000 blue\n34000 34500 sp\n34500 53000 now\n53000 74500 sil\n"


def test_times_are_in_frames_and_silence_is_skipped() -> None:
    found = parse(GOOD, "a.align", frames=75)
    assert found.words == (Word("bin", 23.75, 29.5), Word("blue", 29.5, 34.0), Word("now", 34.5, 53.0))
    assert (found.sentence, found.onset, found.offset) == ("bin blue now", 23.75, 53.0)


@pytest.mark.parametrize("blanks", [" ", "\t ", "   \r"])
def test_trailing_blanks_change_nothing(blanks: str) -> None:
    assert parse(GOOD.replace("\n", f"{blanks}\n"), "a", frames=75) == parse(GOOD, "a", frames=75)


def test_text_and_parse_are_inverse() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        edges = np.sort(generator.choice(75_000, 8, replace=False)) / 1000
        words = tuple(Word(w, *edges[2 * i : 2 * i + 2].tolist()) for i, w in enumerate(("lay", "red", "a", "soon")))
        assert parse(Alignment(words).text(75), "a", frames=75).words == words


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10000 9000 bin", "line 1: bin ends at 9000 before its start 10000"),
        ("0 9000 bin\n8000 9500 blue", "line 2: blue starts at 8000, within the token before"),
        ("0 9000 boat", "line 1: unknown token 'boat'; must be one of 51 words, sil, sp"),
        ("0 9000 bin\n9000 75001 now", "line 2: now ends at 75001; the clip ends at 75000"),
        ("0 9000 bin\n9000 75001 sil", "line 2: sil ends at 75001; the clip ends at 75000"),
        ("0 9000", "line 1: has 2 columns"),
        ("0 9000 bin blue", "line 1: has 4 columns"),
        ("0 x bin", "line 1: 0 x: times must be numbers"),
        ("-1 5 bin", "finite and at least 0"),
        ("0 nan bin", "finite and at least 0"),
        ("0 74500 sil", "holds no word; a reference of length 0 has no error rate"),
        ("", "holds no word"),
    ],
)
def test_faults_are_named(text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"^a\.align: ") as error:
        parse(text, "a.align", frames=75, vocabulary=GRID.vocabulary)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_words_may_not_outlast_the_recorded_frames_but_silence_may() -> None:
    assert parse(GOOD, "a", frames=75, spoken=53).offset == 53
    with pytest.raises(InputError, match="now ends at 53000; the clip ends at 52000"):
        parse(GOOD, "a", frames=75, spoken=52)


def test_without_a_vocabulary_any_word_of_letters_is_known() -> None:
    assert parse("0 5 zebra", "a", frames=75).sentence == "zebra"
    with pytest.raises(InputError, match="unknown token 'Zebra'; must be a word of the letters a-z"):
        parse("0 5 Zebra", "a", frames=75)


def test_read_names_the_file(tmp_path) -> None:
    path = tmp_path / "x.align"
    with pytest.raises(InputError, match="no such file"):
        align.read(path, frames=75)
    path.write_bytes(b"\xff\xfe0 1")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        align.read(path, frames=75)
    path.write_text(align_text("bin blue at f two now", blanks=" "))
    assert align.read(path, frames=75).onset == 14
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert align.read(path, frames=75).onset == 14


@pytest.mark.skipif(not shared().exists(), reason="the shared GRID clips are absent")
def test_the_speech_of_s1_has_the_published_times() -> None:
    pack = Pack.open(shared())
    times = np.array([[a.onset, a.offset] for i in range(len(pack)) if (a := pack.alignment(i))])
    assert len(times) == 843
    np.testing.assert_allclose(times.mean(axis=0), [13.8, 50.7], atol=0.5)
    np.testing.assert_allclose(times.std(axis=0), [4.8, 5.0], atol=0.4)

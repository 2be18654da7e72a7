"""Visemes that are taken for each other."""

import numpy as np
import pytest
import torch

from apps.lipreading.confusion import NOTHING, UNKNOWN, confusion, least_error, viseme_errors, word_confusion
from core.errors import InputError
from simulators.lips.grammar import GRID
from simulators.lips.visemes import viseme_string


def spoken(n, seed):
    return GRID.texts(GRID.sample(n, torch.Generator().manual_seed(seed)))


def test_what_was_read_right_is_on_the_diagonal():
    said = spoken(50, 0)
    found = confusion(said, said)
    assert np.array_equal(found.counts, np.diag(np.diag(found.counts)))
    assert found.counts.sum() == sum(len(viseme_string(word)) for text in said for word in text.split())
    assert viseme_errors(said, said).edits.sum() == 0
    assert word_confusion(said, said).edits == 0


def test_edits_are_what_is_off_the_diagonal():
    read, said = spoken(200, 1), spoken(200, 2)
    found, errors = confusion(read, said), viseme_errors(read, said)
    assert errors.edits.sum() == found.counts.sum() - np.trace(found.counts)
    known = found.counts[:-1].sum()
    assert known == errors.length.sum(), "every viseme that was spoken is in a row"
    shares = found.shares
    spoken_rows = found.counts.sum(1) > 0
    np.testing.assert_allclose(shares[spoken_rows].sum(1), 1)
    assert np.isnan(shares[~spoken_rows]).all()


def test_homophemes_are_ambiguous_and_no_error_of_visemes():
    said, read = "bin blue at b two now", "bin blue at p two now"
    assert viseme_errors([read], [said]).edits.item() == 0
    found = word_confusion([read], [said])
    assert (found.ambiguous, found.avoidable, found.pairs) == (1, 0, (("b", "p", 1, True),))


def test_other_errors_are_avoidable():
    said = ["bin blue at b two now", "lay red by d one soon"]
    read = ["bin blue at b nine now", "lay red by d soon again please"]
    found = word_confusion(read, said)
    assert (found.words, found.ambiguous) == (12, 0)
    assert found.edits == found.avoidable + found.omitted + found.inserted == 4
    assert ("two", "nine", 1, False) in found.pairs


def test_words_that_do_not_exist_are_never_right():
    found = confusion(["bim"], ["bin"])
    assert found.visemes[-2:] == (UNKNOWN, NOTHING)
    assert found.counts[:, found.visemes.index(UNKNOWN)].sum() == 1
    assert viseme_errors(["bim"], ["bin"]).edits.item() == 3
    assert word_confusion(["bim"], ["bin"]).avoidable == 1


def test_hidden_visemes_make_more_words_alike():
    letters = GRID.words[GRID.slot("letter")]
    assert least_error(letters) == pytest.approx(2 / 25)  # b and p, d and t
    assert least_error(letters, weakest=0.5) == pytest.approx(5 / 25)
    read, said = ["bin blue at a two now"], ["bin blue at k two now"]
    assert word_confusion(read, said).avoidable == 1
    assert word_confusion(read, said, weakest=0.5).ambiguous == 1


@pytest.mark.parametrize("measure", [viseme_errors, confusion, word_confusion])
def test_a_reference_without_a_pronunciation_is_refused(measure):
    with pytest.raises(InputError, match=r"references\[1\]: the pronunciation of 'hello'"):
        measure(["bin", "bin"], ["bin", "hello"])
    with pytest.raises(InputError, match="1 for 2 hypotheses"):
        measure(["bin", "bin"], ["bin"])

import numpy as np
import pytest
import torch

from core.errors import InputError
from simulators.lips import alphabet
from simulators.lips.grammar import GRID, MINI, Grammar
from simulators.lips.phonemes import PRONUNCIATIONS, SEGMENTS, segments
from simulators.lips.visemes import DOMINANCE, TARGETS, VISEMES, ambiguous_words, viseme_string, viseme_strings

GRAMMARS = [GRID, MINI]
LETTERS = GRID.words[GRID.slot("letter")]


def sentences(grammar, n=200, seed=0):
    return grammar.sample(n, torch.Generator().manual_seed(seed))


def test_the_sizes_of_the_corpus():
    assert (GRID.sentences, len(GRID.vocabulary), GRID.longest) == (64000, 51, 31)
    assert (MINI.sentences, MINI.longest) == (1000, 14)


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_every_spelling_leads_back_to_the_sentence(grammar):
    slots = sentences(grammar)
    texts = grammar.texts(slots)
    tokens, length = grammar.tokens(slots)
    expected, expected_length = alphabet.encode(texts)
    assert tokens.shape[1] == grammar.longest + 1
    assert torch.equal(tokens[:, : expected.shape[1]], expected)
    assert not tokens[:, expected.shape[1] :].any()
    assert torch.equal(length, expected_length)
    assert alphabet.decode(tokens) == texts
    assert torch.equal(grammar.words_of(tokens), slots)
    assert grammar.parses(tokens).all()
    assert [grammar.parse(text) for text in texts] == [tuple(row) for row in slots.tolist()]
    assert [grammar.parse_name(grammar.name(row)) for row in slots.tolist()] == [tuple(row) for row in slots.tolist()]


def test_names_are_those_of_the_corpus():
    assert GRID.name(GRID.parse("bin blue at f two now")) == "bbaf2n"
    assert GRID.texts(torch.tensor([GRID.parse_name("lwbsza")])) == ["lay white by s zero again"]


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_words_are_drawn_uniformly(grammar):
    drawn = sentences(grammar, 26000).numpy()
    for s, words in enumerate(grammar.words):
        expected = len(drawn) / len(words)
        freedom = len(words) - 1
        statistic = ((np.bincount(drawn[:, s], minlength=len(words)) - expected) ** 2 / expected).sum()
        assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_transcripts_are_parsed_as_their_text_is():
    """Broken sentences: symbols exchanged, put in and left out, ends in the middle, padding and starts between."""
    rng = np.random.default_rng(1)
    rows = []
    for row in MINI.tokens(sentences(MINI, 600))[0].tolist():
        for _ in range(rng.integers(3)):
            at = int(rng.integers(len(row)))
            row[at : at + rng.integers(2)] = rng.integers(alphabet.SIZE, size=rng.integers(3)).tolist()
        rows.append((row + [0] * 30)[:30])
    rows.append([4 + i % 26 for i in range(30)])
    tokens = torch.tensor(rows)
    for text, words, whole in zip(
        alphabet.decode(tokens), MINI.words_of(tokens).tolist(), MINI.parses(tokens).tolist(), strict=True
    ):
        found = text.split(" ")[:3] + [""] * 3
        assert words == [w.index(x) if x in w else -1 for w, x in zip(MINI.words, found[:3], strict=True)]
        assert whole == (text in MINI.texts(torch.tensor([words])) if min(words) >= 0 else False)
    assert MINI.parses(tokens).float().mean() > 0.2
    assert MINI.words_of(tokens[:, :1]).shape == (len(rows), 3)
    assert not MINI.parses(tokens[:, :0]).any()


def test_a_word_too_long_for_its_number_is_none():
    """27^13 letters further, a number in base 27 would come round."""
    tokens, _ = alphabet.encode(["a" * 40 + " one now", "a one now"])
    assert MINI.words_of(tokens)[:, 0].tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: GRID.parse("bin blue at f two", "s1.align"), "s1.align: .* has 5 words"),
        (lambda: GRID.parse("bin blue at w two now"), "'w' is no letter"),
        (lambda: GRID.parse_name("bbaw2n"), "name: 'bbaw2n'"),
        (lambda: GRID.parse_name("bbaf2"), "name: 'bbaf2'"),
        (lambda: GRID.slot("verb"), "slot: 'verb'; allowed: command"),
        (lambda: GRID.tokens(torch.zeros(2, 5, dtype=torch.int64)), r"must be \(N, 6\)"),
        (lambda: MINI.texts(torch.tensor([[0, 10, 0]])), r"below \(25, 10, 4\)"),
        (lambda: Grammar(("a",), (("one", "one"),)), "none twice"),
        (lambda: Grammar(("a", "b"), (("one",),)), "2 names for 1 lists"),
        (lambda: Grammar(("a",), (("o ne",),)), "letters a-z"),
        (lambda: segments("hello"), "'hello' has no pronunciation"),
        (lambda: viseme_string("e", weakest=3.0), "weakest: 3.0"),
    ],
)
def test_refusals(fault, message):
    with pytest.raises(InputError, match=message):
        fault()


def test_every_word_is_made_of_known_parts():
    assert set(PRONUNCIATIONS) == set(GRID.vocabulary)
    assert {p for word in PRONUNCIATIONS.values() for p in word} <= set(SEGMENTS)
    assert {v for parts in SEGMENTS.values() for v, _ in parts} < set(VISEMES)
    assert all(frames > 1 for parts in SEGMENTS.values() for _, frames in parts)
    assert len(VISEMES) == len(TARGETS) == len(DOMINANCE) == 22
    assert {len(row) for row in TARGETS} == {6}
    assert VISEMES[0] == "SIL"


def test_words_that_look_the_same():
    assert ambiguous_words(LETTERS) == [("b", "p"), ("d", "t")]
    hidden = {frozenset(words) for words in ambiguous_words(LETTERS, weakest=0.5)}
    assert hidden == {frozenset("bp"), frozenset("dt"), frozenset("ak"), frozenset("uq"), frozenset("sx")}
    for slot in ("command", "colour", "preposition", "digit", "adverb"):
        assert ambiguous_words(GRID.words[GRID.slot(slot)]) == []
    assert viseme_string("a") == ("EH", "IY")


def test_sentences_look_the_same_only_word_by_word():
    same, other, unknown, fault = viseme_strings(["d two now", "t two now", "d twx now", "d twy now"])
    assert same == other
    assert unknown != fault != same
    assert viseme_strings([""]) == [()]

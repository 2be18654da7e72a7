"""Mouth shapes that sounds share, and which words therefore look the same."""

from __future__ import annotations

from collections.abc import Iterable

from core.errors import InputError
from simulators.lips.phonemes import segments

PARAMETERS = ("opening", "width", "protrusion", "upper teeth", "lip tuck", "tongue")
"""What a mouth shape is made of; 0 is the resting value, about 1 the largest."""

_TARGETS = """
SIL .03 0 0 0 0 0 .6;       PBM 0 -.05 .08 0 0 0 1.6;   FV .06 .05 0 .6 1 0 1.4;    TH .18 .1 0 .5 0 1 1.2;
TDN .16 .15 0 .5 0 .3 .7;   L .25 .1 0 .3 0 .7 .8;      SZ .08 .35 0 .9 0 0 1;      SH .15 -.35 .7 .6 0 0 1.3;
KG .25 .05 0 .2 0 .1 .35;   R .15 -.3 .5 .1 0 .1 .9;    W .06 -.7 .95 0 0 0 1.5;    Y .1 .4 0 .4 0 .2 .8;
IY .16 .6 0 .5 0 0 1;       IH .24 .35 0 .4 0 0 .9;     EH .42 .3 0 .3 0 .1 1;      EY1 .40 .3 0 .3 0 .1 1;
AE .6 .35 0 .3 0 .1 1;      AA .85 -.05 0 .1 0 .1 1.1;  AH .45 0 0 .2 0 .1 .9;      AO .55 -.45 .6 0 0 0 1.1;
UW .10 -.65 .9 0 0 0 1.2;   UH .2 -.5 .7 0 0 0 1
"""
_ROWS = {name: tuple(map(float, rest)) for name, *rest in (entry.split() for entry in _TARGETS.split(";"))}
VISEMES = tuple(_ROWS)
"""Names; silence, number 0, is the mouth at rest."""
TARGETS: tuple[tuple[float, ...], ...] = tuple(row[:-1] for row in _ROWS.values())
"""Of each viseme, the six ``PARAMETERS`` that the mouth heads for."""
DOMINANCE: tuple[float, ...] = tuple(row[-1] for row in _ROWS.values())
"""Of each viseme, how strongly it holds against its neighbours."""
LOOKS_LIKE = {"EY1": "EH"}
"""The two shapes that differ by less than any noise."""


def viseme_string(word: str, weakest: float = 0.0) -> tuple[str, ...]:
    """Distinguishable visemes of a word, without durations.

    Args:
        word: one with a pronunciation.
        weakest: visemes of a lower dominance are left out, since their neighbours hide them.

    Raises:
        InputError: the word's pronunciation is not known, or ``weakest`` hides all of it.
    """
    found = tuple(LOOKS_LIKE.get(name, name) for name, _ in segments(word) if DOMINANCE[VISEMES.index(name)] >= weakest)
    if not found:
        raise InputError(f"weakest: {weakest} leaves no viseme of {word!r}; allowed: 0 to {max(DOMINANCE)}")
    return found


def viseme_strings(texts: Iterable[str], weakest: float = 0.0) -> list[tuple[str, ...]]:
    """Visemes of whole sentences; a word without a pronunciation stands for itself.

    Transcripts that a model spells need not be of known words, and two that look the same should then be equal only if
    their unknown words are.
    """
    known: dict[str, tuple[str, ...]] = {}
    for word in {word for text in texts for word in text.split()}:
        try:
            known[word] = viseme_string(word, weakest)
        except InputError:
            known[word] = (f"<{word}>",)
    return [tuple(part for word in text.split() for part in known[word]) for text in texts]


def ambiguous_words(words: Iterable[str], weakest: float = 0.0) -> list[tuple[str, ...]]:
    """Sets of two or more of the words that look the same up to durations, in their order.

    No reader of lips tells them apart except by how long they last: the errors between them are the irreducible ones.

    Args:
        words: of one slot, e.g. ``GRID.words[GRID.slot("letter")]``.
        weakest: as of ``viseme_string``; 0.5 hides K and G, 0.75 also T, D and N.

    Raises:
        InputError: as ``viseme_string``.
    """
    sets: dict[tuple[str, ...], list[str]] = {}
    for word in words:
        sets.setdefault(viseme_string(word, weakest), []).append(word)
    return [tuple(found) for found in sets.values() if len(found) > 1]

"""Sentences with one word from each of a few slots, as in the GRID corpus.

Cooke, Barker, Cunningham and Shao, "An audio-visual corpus for speech perception and automatic speech recognition",
Journal of the Acoustical Society of America 120(5), 2006.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from core.errors import InputError
from simulators.lips import alphabet

_SPACE = 3
_CODED = 12
"""Letters of a word that fit a 64-bit number in base 27."""


@dataclass(frozen=True)
class Grammar:
    """All sentences with one word from each slot, in order.

    A sentence is a row of word numbers ``(S,)``, each the position of the word in its slot.

    Attributes:
        slots: names of the S slots.
        words: the words of each slot.

    Raises:
        InputError: a slot without words, a word twice in a slot, or one that is not of 1 to 12 letters.
    """

    slots: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.slots or len(self.slots) != len(self.words):
            raise InputError(
                f"slots: {len(self.slots)} names for {len(self.words)} lists; allowed: as many, at least 1"
            )
        for slot, words in zip(self.slots, self.words, strict=True):
            if not words or len(set(words)) < len(words):
                raise InputError(f"words of slot {slot!r}: {words!r}; allowed: at least one, none twice")
            for word in words:
                if not 0 < len(word) <= _CODED or not set(word) <= set(string.ascii_lowercase):
                    raise InputError(f"slot {slot!r}: word {word!r}; allowed: 1 to {_CODED} letters a-z")

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word once, in the order of the slots."""
        return tuple(dict.fromkeys(word for words in self.words for word in words))

    @cached_property
    def sentences(self) -> int:
        """How many there are."""
        return int(self._sizes.prod())

    @cached_property
    def longest(self) -> int:
        """Characters of the longest sentence, spaces included."""
        return sum(max(map(len, words)) for words in self.words) + len(self.slots) - 1

    def slot(self, name: str) -> int:
        """Position of the slot of that name.

        Raises:
            InputError: there is none.
        """
        if name not in self.slots:
            raise InputError(f"slot: {name!r}; allowed: {', '.join(self.slots)}")
        return self.slots.index(name)

    def sample(self, batch: int, generator: torch.Generator) -> Tensor:
        """``(batch, S)`` int64 sentences, every word of a slot equally probable."""
        uniform = torch.rand(batch, len(self.slots), generator=generator, device=generator.device, dtype=torch.float64)
        return (uniform * self._sizes.to(generator.device)).long()

    def texts(self, slots: Tensor) -> list[str]:
        """The sentences ``(N, S)`` in letters."""
        return [
            " ".join(words[i] for words, i in zip(self.words, row, strict=True))
            for row in self._checked(slots).tolist()
        ]

    def tokens(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Symbols ``(N, longest + 1)`` int64 of sentences ``(N, S)``, and lengths ``(N,)`` without the end symbol.

        The width does not depend on the sentences.

        Raises:
            InputError: a word number that its slot does not have.
        """
        slots = self._checked(slots)
        spelled = self._spelling.to(slots.device)[torch.arange(len(self.slots), device=slots.device), slots].flatten(1)
        there = spelled != alphabet.PAD
        place = torch.where(there, there.cumsum(1) - 1, self.longest + 1)
        symbols = spelled.new_full((len(slots), self.longest + 2), alphabet.PAD)
        return symbols.scatter_(1, place, spelled)[:, :-1], there.sum(1) - 1

    def words_of(self, tokens: Tensor) -> Tensor:
        """``(N, S)`` int64: which word of slot s the s-th word of a transcript ``(N, T)`` is, -1 where it is none.

        A transcript ends at its first end symbol; padding and start symbols are skipped, as in ``alphabet.decode``.
        """
        code, _ = self._word_codes(tokens)
        same = code[:, : len(self.slots), None] == self._codes.to(tokens.device)
        return torch.where(same.any(2), same.to(torch.int8).argmax(2), -1)

    def parses(self, tokens: Tensor) -> Tensor:
        """``(N,)`` bool: whether a transcript ``(N, T)`` is a sentence of the grammar, with single spaces."""
        _, count = self._word_codes(tokens)
        return (self.words_of(tokens) >= 0).all(1) & (count == len(self.slots))

    def parse(self, text: str, where: str = "text") -> tuple[int, ...]:
        """The word numbers of a sentence.

        Raises:
            InputError: it is none of this grammar; the message begins with ``where``.
        """
        found = text.split()
        if len(found) != len(self.slots):
            raise InputError(f"{where}: {text!r} has {len(found)} words; allowed: {len(self.slots)}")
        for slot, words, word in zip(self.slots, self.words, found, strict=True):
            if word not in words:
                raise InputError(f"{where}: {word!r} is no {slot}; allowed: {', '.join(words)}")
        return tuple(words.index(word) for words, word in zip(self.words, found, strict=True))

    def name(self, slots: Sequence[int]) -> str:
        """The file name of a sentence in the corpus: its initials, digits as figures: ``bbaf2n``."""
        return "".join(self._initials[s][i] for s, i in enumerate(slots))

    def parse_name(self, name: str) -> tuple[int, ...]:
        """The word numbers of the sentence that a file of the corpus is named after.

        Raises:
            InputError: the name is of no sentence of this grammar.
        """
        fits = len(name) == len(self.slots)
        if not fits or any(c not in initials for c, initials in zip(name, self._initials, strict=True)):
            allowed = " ".join(f"[{''.join(initials)}]" for initials in self._initials)
            raise InputError(f"name: {name!r}; allowed: one character each of {allowed}")
        return tuple(initials.index(c) for c, initials in zip(name, self._initials, strict=True))

    @cached_property
    def _sizes(self) -> Tensor:
        return torch.tensor([len(words) for words in self.words])

    @cached_property
    def _initials(self) -> list[list[str]]:
        return [[FIGURES.get(word, word[0]) for word in words] for words in self.words]

    @cached_property
    def _spelling(self) -> Tensor:
        """``(S, W, L)`` symbols of each word with the space or end symbol after it."""
        widest = max(map(len, self.vocabulary)) + 1
        table = torch.full((len(self.slots), int(self._sizes.max()), widest), alphabet.PAD)
        for s, words in enumerate(self.words):
            spelled, length = alphabet.encode(words)
            if s + 1 < len(self.slots):
                spelled.scatter_(1, length.unsqueeze(1), _SPACE)
            table[s, : len(words), : spelled.shape[1]] = spelled
        return table

    @cached_property
    def _codes(self) -> Tensor:
        """``(S, W)`` numbers of the words, -2 where a slot has fewer."""
        table = torch.full((len(self.slots), int(self._sizes.max())), -2)
        for s, words in enumerate(self.words):
            table[s, : len(words)] = self._word_codes(alphabet.encode(words)[0])[0][:, 0]
        return table

    def _word_codes(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers ``(N, >= S)`` of the words, in base 27, -1 of one that is too long; and ``(N,)`` how many words."""
        rows, width = tokens.shape
        written = (tokens >= _SPACE) & ((tokens == alphabet.EOS).cumsum(1) == 0)
        space, letter = written & (tokens == _SPACE), written & (tokens > _SPACE)
        word = space.cumsum(1)
        before = letter.cumsum(1)
        # Letters up to the last space: a running maximum, since it never falls.
        place = before - torch.where(space, before, 0).cummax(1).values - 1 if width else before
        digit = torch.where(letter, tokens - _SPACE, 0) * 27 ** place.clamp(0, _CODED)
        shape = (rows, max(width, len(self.slots)) + 1)
        code = tokens.new_zeros(shape).scatter_add_(1, word, digit)
        long = tokens.new_zeros(shape).scatter_add_(1, word, (letter & (place >= _CODED)).long())
        return torch.where(long > 0, -1, code), space.sum(1) + 1

    def _checked(self, slots: Tensor) -> Tensor:
        wrong = slots.dim() != 2 or slots.shape[1] != len(self.slots)
        if wrong or bool(((slots < 0) | (slots >= self._sizes.to(slots.device))).any()):
            raise InputError(
                f"sentences of shape {tuple(slots.shape)}: must be (N, {len(self.slots)}) word numbers below "
                f"{tuple(self._sizes.tolist())}"
            )
        return slots


FIGURES = {
    "zero": "z",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
}
"""How the names of files write a digit."""
_LETTERS = tuple(string.ascii_lowercase.replace("w", ""))
_ADVERBS = ("again", "now", "please", "soon")

GRID = Grammar(
    ("command", "colour", "preposition", "letter", "digit", "adverb"),
    (
        ("bin", "lay", "place", "set"),
        ("blue", "green", "red", "white"),
        ("at", "by", "in", "with"),
        _LETTERS,
        tuple(FIGURES),
        _ADVERBS,
    ),
)
"""The 64000 sentences of the corpus: ``bin blue at f two now``. No letter w, whose name has three syllables."""
MINI = Grammar(("letter", "digit", "adverb"), (_LETTERS, tuple(FIGURES), _ADVERBS))
"""The 1000 sentences of the last three slots."""

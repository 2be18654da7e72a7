"""Attributes in free text: by name, by a name that is nearly so, and whether they are wanted or not."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from simulators.crs.catalogue import Catalogue

LONGEST_TEXT = 500
"""Characters of a text that are read."""
LONGEST_NAME = 8
"""Words of a name that are compared."""
CUTOFF = 0.8
"""Least similarity (difflib's ratio) of a guess."""
GUESSES = 4
"""Most attributes that a guess is among."""
FUZZY = 12
"""Most words of a text for which similar names are sought, which bounds the time."""

_NEGATIONS = """
no not without never dont doesnt isnt cant wont nothing neither nor avoid except exclude excluding hate
"""
_FILLERS = """
a an the i im id we you it its is are be in of to for with and or at on from by some any something anything one would
could should have has do does that this these those very really also maybe looking look find me my show give take get
ideally preferably kind sort type made
"""
NEGATIONS = frozenset(_NEGATIONS.split())
LIMITS = frozenset([",", ";", ".", "but", "please", "only", "yes", "instead", "rather"])
"""What ends the reach of a negation."""
WISHES = frozenset(["want", "wants", "prefer", "like", "love", "need"])
"""What ends it if something was rejected before ("not red I want blue"), but not in "I do not want red"."""
EITHER = "or"
FILLERS = frozenset(_FILLERS.split())
"""Words that are never taken for a misspelt name."""


@dataclass(frozen=True)
class Guess:
    """Words that may mean one of several attributes.

    Attributes:
        words: of the text.
        attributes: ids, the likeliest first.
        negated: whether the text says that it is not wanted.
    """

    words: str
    attributes: tuple[int, ...]
    negated: bool


@dataclass(frozen=True)
class Matches:
    """What a text says.

    Attributes:
        accepted: groups of attributes that are wanted, any one of a group ("red or blue").
        rejected: attributes that are not.
        unsure: what has to be confirmed.
    """

    accepted: tuple[tuple[int, ...], ...] = ()
    rejected: tuple[int, ...] = ()
    unsure: tuple[Guess, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.accepted or self.rejected or self.unsure)


@dataclass
class _Reading:
    """A text that is being read: what was found, and whether a negation or an "or" reaches the next name."""

    accepted: list[list[int]] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    unsure: list[Guess] = field(default_factory=list)
    negated: bool = False
    either: bool = False
    since: int = 0

    def found(self, attribute: int) -> None:
        if self.negated:
            self.rejected.append(attribute)
        elif self.either and self.accepted:
            self.accepted[-1].append(attribute)
        else:
            self.accepted.append([attribute])
        self.either = False

    def word(self, token: str) -> None:
        if token in LIMITS or (token in WISHES and len(self.rejected) > self.since):
            self.negated = False
        if token in NEGATIONS:
            self.negated, self.since = True, len(self.rejected)
        if token == EITHER:
            self.either = True
        elif token not in FILLERS:
            self.either = False

    def result(self) -> Matches:
        refused = tuple(dict.fromkeys(self.rejected))
        groups = [tuple(dict.fromkeys(p for p in group if p not in refused)) for group in self.accepted]
        return Matches(tuple(dict.fromkeys(g for g in groups if g)), refused, tuple(self.unsure))


class Matcher:
    """Finds a catalogue's attributes in text.

    A name counts if it stands there, whatever its case, accents and punctuation; of several that fit, the longest. A
    name that several types have ("none") is a guess unless its type stands beside it, and so are names that are
    similar (difflib) and names of which only one word stands there. "not", "no", "without" and the like reject what
    follows up to the next comma, full stop or "but".

    Args:
        catalogue: whose attributes.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._by_name: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self._by_word: dict[str, list[int]] = defaultdict(list)
        kinds = [tuple(_words(name)) for name in catalogue.type_names]
        for p, (name, kind) in enumerate(
            zip(catalogue.attribute_names, catalogue.attribute_type.tolist(), strict=True)
        ):
            words = tuple(_words(name))[:LONGEST_NAME]
            self._by_name[words].append(p)
            for whole in {(*kinds[kind], *words), (*words, *kinds[kind])} - {words}:
                self._by_name[whole].append(p)
            for word in set(words) if len(words) > 1 else ():
                self._by_word[word].append(p)
        self._by_name.pop((), None)
        self._skipped = FILLERS | WISHES | NEGATIONS | LIMITS | {word for kind in kinds for word in kind}
        self._longest = max((len(name) for name in self._by_name), default=0)
        self._spelt = {" ".join(name): ids for name, ids in self._by_name.items()}
        self._by_length: dict[int, list[str]] = defaultdict(list)
        for spelt in self._spelt:
            self._by_length[len(spelt)].append(spelt)
        # Names of scripts that put no spaces between words are sought inside them.
        self._unspaced = sorted((s for s in self._spelt if any(_is_unspaced(c) for c in s)), key=len, reverse=True)

    def __call__(self, text: str) -> Matches:
        """What the text says."""
        tokens = list(_tokens(text[:LONGEST_TEXT]))
        reading, at, fuzzy = _Reading(), 0, 0
        while at < len(tokens):
            length, ids = self._named(tokens, at)
            if not length and fuzzy < FUZZY:
                length, ids = self._similar(tokens, at)
                fuzzy += tokens[at] not in self._skipped
                if length:
                    self._guess(reading, tokens[at : at + length], ids)
            elif length and len(ids) > 1:
                self._guess(reading, tokens[at : at + length], ids)
            elif length:
                reading.found(ids[0])
            if not length:
                reading.word(tokens[at])
            at += max(length, 1)
        return reading.result()

    @staticmethod
    def _guess(reading: _Reading, words: list[str], ids: list[int]) -> None:
        reading.unsure.append(Guess(" ".join(words), tuple(ids[:GUESSES]), reading.negated))

    def _named(self, tokens: list[str], at: int) -> tuple[int, list[int]]:
        """The longest name at this place: its number of words and whose it is."""
        for length in range(min(self._longest, len(tokens) - at), 0, -1):
            ids = self._by_name.get(tuple(tokens[at : at + length]))
            if ids:
                return length, ids
        return 0, []

    def _similar(self, tokens: list[str], at: int) -> tuple[int, list[int]]:
        """The most similar name at this place, of one to three words, or names with this word."""
        best: tuple[float, int, list[str]] = (0.0, 0, [])
        skipped = tokens[at] in self._skipped
        if tokens[at] in NEGATIONS | LIMITS:
            return 0, []
        for length in range(1 + skipped, min(3, len(tokens) - at) + 1):
            words = tokens[at : at + length]
            if length > 1 and (words[-1] in self._skipped or (words[-1],) in self._by_name):
                break
            close = self._close(" ".join(words))
            if close and close[0][0] > best[0]:
                best = (close[0][0], length, [name for _, name in close])
        if best[1]:
            return best[1], list(dict.fromkeys(p for name in best[2] for p in self._spelt[name]))
        holders = [] if skipped else self._by_word.get(tokens[at], [])
        if 0 < len(holders) <= GUESSES and len(tokens[at]) > 2:
            return 1, holders
        inside = [s for s in self._unspaced if s in tokens[at]] if any(map(_is_unspaced, tokens[at])) else []
        return (1, [p for s in inside for p in self._spelt[s]]) if inside else (0, [])

    def _close(self, words: str) -> list[tuple[float, str]]:
        """Similar names and how similar they are, best first."""
        if len(words) < 3:
            return []
        matcher = difflib.SequenceMatcher(autojunk=False)
        matcher.set_seq2(words)
        found = []
        # ratio = 2 matches / (a + b) is at most 2 min(a, b) / (a + b), which bounds the lengths.
        low, high = int(len(words) * CUTOFF / (2 - CUTOFF)), int(len(words) * (2 - CUTOFF) / CUTOFF) + 1
        for length in range(low, high + 1):
            for name in self._by_length.get(length, ()):
                matcher.set_seq1(name)
                if matcher.real_quick_ratio() >= CUTOFF and matcher.quick_ratio() >= CUTOFF:
                    ratio = matcher.ratio()
                    if ratio >= CUTOFF:
                        found.append((ratio, name))
        return sorted(found, key=lambda pair: (-pair[0], pair[1]))[:GUESSES]


def normalised(text: str) -> str:
    """Case folded, compatible forms unified, and Latin and Greek letters without accents."""
    kept = []
    base_is_plain = False
    for character in unicodedata.normalize("NFKD", text.casefold()):
        if unicodedata.combining(character):
            # Elsewhere a mark makes another letter, as in Cyrillic or kana.
            if not base_is_plain:
                kept.append(character)
            continue
        base_is_plain = unicodedata.name(character, "").startswith(("LATIN", "GREEK"))
        kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept)).casefold()


def _tokens(text: str) -> Iterator[str]:
    """Words, symbols, and the marks ``, ; .`` that end a clause."""
    plain = re.sub(r"['’`]", "", normalised(text)).replace("&", " and ")
    for found in re.finditer(r"\d+(?:[.,]\d+)+|[\w+#]+|[,;.]|[^\w\s]", plain):
        token = found.group()
        if token in LIMITS or re.match(r"[\w+#]", token) or unicodedata.category(token[0]).startswith("S"):
            yield token


def _words(name: str) -> list[str]:
    """The tokens of a name, without marks."""
    return [token for token in _tokens(name) if token not in (",", ";", ".")]


def _is_unspaced(character: str) -> bool:
    return unicodedata.category(character) == "Lo"

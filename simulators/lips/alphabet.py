"""Texts as symbols: the thirty characters that a transcript is spelled with."""

from __future__ import annotations

import string
from collections.abc import Sequence

import torch
from torch import Tensor

from core.errors import InputError

PAD, SOS, EOS = 0, 1, 2
CHARACTERS = " " + string.ascii_lowercase
"""Symbols 3 to 29: the space and the letters."""
SIZE = 3 + len(CHARACTERS)
"""V, with padding, start and end."""

_NUMBER = {c: 3 + i for i, c in enumerate(CHARACTERS)}


def check(text: str, where: str = "text") -> str:
    """The text if it can be spelled.

    Raises:
        InputError: it is empty (its error rate is then not defined) or holds another character; the message begins
            with ``where``.
    """
    if not text.strip():
        raise InputError(f"{where}: is empty, its error rate is not defined; allowed: a-z and space")
    for c in text:
        if c not in _NUMBER:
            raise InputError(f"{where}: holds {c!r}; allowed: a-z and space")
    return text


def encode(texts: Sequence[str], where: str = "text") -> tuple[Tensor, Tensor]:
    """Symbols ``(N, L + 1)`` int64 with ``EOS`` after each text, then padding; and lengths ``(N,)`` without it.

    Raises:
        InputError: as ``check``.
    """
    spelled = [[_NUMBER[c] for c in check(text, where)] + [EOS] for text in texts]
    length = torch.tensor([len(x) - 1 for x in spelled])
    symbols = torch.full((len(spelled), max(map(len, spelled), default=0)), PAD)
    for row, found in zip(symbols, spelled, strict=True):
        row[: len(found)] = torch.tensor(found)
    return symbols, length


def decode(tokens: Tensor) -> list[str]:
    """The texts of symbols ``(N, T)``, each up to its first end symbol, without padding and start symbols."""
    found = []
    for row in tokens.tolist():
        row = row[: row.index(EOS)] if EOS in row else row
        found.append("".join(CHARACTERS[s - 3] for s in row if s >= 3))
    return found

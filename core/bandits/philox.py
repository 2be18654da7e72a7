"""Philox4x32-10, a counter-based random number generator, vectorised over rows.

The number of a row is a pure function of its key and counter, so that a decision asked for twice, in any order, batch
or process and on any device, draws the same number. The words are held in int64, as torch has little arithmetic for
unsigned integers; its products wrap modulo 2^64, which leaves both halves of a product of two 32-bit words right.

Source: Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.errors import InputError

ROUNDS = 10
WORD = 0xFFFFFFFF
"""Largest 32-bit word."""

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Four random 32-bit words for each counter, ``(n, 4)`` int64 in [0, 2^32).

    Args:
        counter: ``(n, 4)`` int64 in [0, 2^32).
        key: ``(n, 2)``, or ``(2,)`` for all rows, int64 in [0, 2^32).

    Raises:
        InputError: another shape or dtype, or a word outside [0, 2^32).
    """
    if counter.ndim != 2 or counter.shape[1] != 4:
        raise InputError(f"counter of shape {tuple(counter.shape)}: must be (n, 4)")
    if key.shape not in ((2,), (len(counter), 2)):
        raise InputError(f"key of shape {tuple(key.shape)}: must be (2,) or ({len(counter)}, 2)")
    for name, words in (("counter", counter), ("key", key)):
        if words.dtype != torch.int64 or (words >> 32).any():
            raise InputError(f"{name} of {words.dtype}: must be torch.int64, every word in [0, {WORD}]")
    a, b, c, d = (word.contiguous() for word in counter.unbind(1))
    left, right = key[..., 0].contiguous(), key[..., 1].contiguous()
    for _ in range(ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = (second >> 32).bitwise_and_(WORD).bitwise_xor_(b).bitwise_xor_(left), second.bitwise_and_(WORD)
        c, d = (first >> 32).bitwise_and_(WORD).bitwise_xor_(d).bitwise_xor_(right), first.bitwise_and_(WORD)
        left, right = (left + _WEYL[0]).bitwise_and_(WORD), (right + _WEYL[1]).bitwise_and_(WORD)
    return torch.stack((a, b, c, d), dim=1)


def philox_uniform(key: Tensor, counter: Tensor) -> Tensor:
    """A uniform of 53 bits in [0, 1) for each row, from the first two words of ``philox4x32``; ``(n,)`` float64.

    Args:
        key: ``(n, 2)``, or ``(2,)`` for all rows, int64 in [0, 2^32).
        counter: ``(n, 4)`` int64 in [0, 2^32).

    Raises:
        InputError: as ``philox4x32``.
    """
    low, high, _, _ = philox4x32(counter, key).unbind(1)
    return (high << 21 | low >> 11).to(torch.float64).mul_(2.0**-53)

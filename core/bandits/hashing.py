"""64-bit hashes of row, transaction or cluster ids: the same on every device, in any order and in any partition."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from core.errors import InputError

Ids: TypeAlias = ArrayLike | Tensor

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))


def mix_(z: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014) in place; ``z`` is int64, taken as 64 bits."""
    shifted = torch.empty_like(z)
    for shift, factor in _ROUNDS:
        z.bitwise_xor_(_shift_right(z, shift, shifted)).mul_(factor)
    return z.bitwise_xor_(_shift_right(z, 31, shifted))


def hashed(ids: Ids, seed: int = 0) -> Tensor:
    """Hash (n,) int64 of whole numbers, texts or bytes (n,); different seeds give unrelated hashes.

    Raises:
        InputError: ids that are not one-dimensional, are of another kind, or are missing (the row is named).
    """
    keys = _whole_numbers(ids)
    salt = mix_(torch.tensor([seed], dtype=torch.int64) + GOLDEN)
    return mix_(keys ^ salt.to(keys.device))


def folds_of(ids: Ids, folds: int = 3, seed: int = 0) -> Tensor:
    """Fold (n,) int64 in [0, folds) of each row by the hash of its transaction id: stable as the log grows.

    Raises:
        InputError: ``folds`` below 2, or as ``hashed``.
    """
    if folds < 2:
        raise InputError(f"folds: {folds} is below 2")
    return (hashed(ids, seed) & ((1 << 62) - 1)) % folds


def cross_fitted(fold: Tensor, fit: Callable[[Tensor], Callable[[Tensor], Tensor]]) -> Tensor:
    """Predictions (n, ...) of every row by a model that was fitted without the row's fold.

    Cross-fitting takes the first-order bias of an overfitted reward model out of DR (Chernozhukov et al. 2018,
    Econometrics Journal 21).

    Args:
        fold: fold (n,) of each row, as ``folds_of`` gives it.
        fit: from the indices of the training rows to a function from indices (m,) to predictions (m, ...).

    Raises:
        InputError: fewer than two folds have rows.
    """
    present = torch.unique(fold)
    if len(present) < 2:
        raise InputError(f"fold: all {len(fold)} row(s) lie in {len(present)} fold(s), at least 2 are needed")
    held = [torch.nonzero(fold == k).squeeze(1) for k in present]
    parts = [fit(torch.nonzero(fold != k).squeeze(1))(rows) for k, rows in zip(present, held, strict=True)]
    return torch.cat(parts)[torch.argsort(torch.cat(held))]


def _shift_right(z: Tensor, shift: int, out: Tensor) -> Tensor:
    # torch shifts int64 arithmetically: the copies of the sign bit are cleared.
    return torch.bitwise_right_shift(z, shift, out=out).bitwise_and_((1 << (64 - shift)) - 1)


def _whole_numbers(ids: Ids) -> Tensor:
    if isinstance(ids, Tensor):
        kind, dimensions = "i" if not ids.is_floating_point() else "f", ids.ndim
    else:
        ids = np.asarray(ids)
        kind, dimensions = ids.dtype.kind, ids.ndim
    if dimensions != 1 or kind not in "iuOUST":
        raise InputError(f"ids: {dimensions} dimension(s) of kind {kind!r}, expected one of whole numbers or texts")
    if isinstance(ids, Tensor):
        return ids.to(torch.int64)
    if kind in "iu":
        return torch.from_numpy(ids.astype(np.uint64 if kind == "u" else np.int64).view(np.int64))
    missing = np.flatnonzero(pd.isna(ids))
    if missing.size:
        raise InputError(f"ids: row {missing[0]} is missing")
    return torch.from_numpy(pd.util.hash_array(ids.astype(object)).view(np.int64))

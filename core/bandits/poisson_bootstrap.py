"""The Poisson bootstrap as a pure function of row and replicate, so that its sums can be added over any partition."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.bandits.hashing import GOLDEN, Ids, hashed, mix_
from core.errors import InputError

_LEVELS = 1 << 16
_DRAWS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class PoissonBootstrap:
    """Each row, or each cluster of rows, counts Poisson(1) times in each replicate (Chamandy et al. 2012; Hanley 2006).

    The counts come from SplitMix64 with the hashed id as its state, 16 bits a draw; their mean and variance are exactly
    1 and their probabilities Poisson's to 3e-4.

    Attributes:
        replicates: B.
        seed: of the hash; sums of different seeds cannot be added.
    """

    replicates: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicates < 2:
            raise InputError(f"replicates: {self.replicates} is below 2")

    def counts(self, ids: Ids) -> Tensor:
        """Counts (n, B) float64 of the rows with these ids (n,).

        Raises:
            InputError: as ``hashed``.
        """
        return self._counts(hashed(ids, self.seed))

    def sums(self, ids: Ids, columns: Tensor) -> Tensor:
        """Count and column sums (B, 1 + C) of each replicate, for ids (n,) and ``columns`` (C, n) float64.

        Rows with equal ids count together.

        Raises:
            InputError: as ``hashed``.
        """
        states, cluster = torch.unique(hashed(ids, self.seed), return_inverse=True)
        rows = torch.cat([columns.new_ones(1, columns.shape[1]), columns]).T
        totals = rows.new_zeros(len(states), rows.shape[1]).index_add_(0, cluster.to(rows.device), rows)
        found = rows.new_zeros(self.replicates, rows.shape[1])
        step = max(1, _DRAWS_AT_ONCE // self.replicates)
        for state, total in zip(states.to(columns.device).split(step), totals.split(step), strict=True):
            found.addmm_(self._counts(state).T, total)
        return found

    def _counts(self, state: Tensor) -> Tensor:
        words = torch.arange(1, 1 + -(-self.replicates // 4), device=state.device) * GOLDEN
        draws = mix_(state[:, None] + words).view(torch.int16)[:, : self.replicates].to(torch.int32) + _LEVELS // 2
        table = torch.from_numpy(_TABLE).to(state.device)
        return table.index_select(0, draws.reshape(-1)).view(draws.shape)


def _table() -> NDArray[np.float64]:
    count = np.arange(9)
    share = np.round(_LEVELS * np.exp(-1) / [math.factorial(k) for k in count]).astype(int)
    lacking, first, second = _LEVELS - share.sum(), _LEVELS - share @ count, 2 * _LEVELS - share @ count**2
    twos = (second - first) // 2
    share[:3] += lacking - first + twos, first - 2 * twos, twos
    return np.repeat(count, share).astype(np.float64)


_TABLE = _table()

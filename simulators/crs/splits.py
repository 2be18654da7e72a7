"""Interactions in three splits: how they are drawn, and that none stands in two."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError
from simulators.crs.catalogue import SPLITS, Ids, Split, no_pairs

CERTAIN = 4
"""From so many interactions on, a user has some in every split."""


def split_ends(counts: Ids, generator: np.random.Generator) -> tuple[Ids, Ids]:
    """Where the training and the validation part of each user's interactions end: 70 and 85 %, rounded down.

    A user with fewer than ``CERTAIN`` cannot have them in all splits; there a lot decides which way to round, so that
    the shares are right on average over the users.

    Args:
        counts: ``(U,)`` interactions of each user.
        generator: of the lots.

    Returns:
        Two arrays ``(U,)``.
    """
    lot = generator.integers(0, 100, counts.shape)
    lot[counts >= CERTAIN] = 0
    return (70 * counts + lot) // 100, (85 * counts + lot) // 100


def split_by_user(pairs: Ids, seed: int) -> dict[Split, Ids]:
    """Interactions ``(n, 2)`` (user, item) shuffled and divided 70 : 15 : 15 within each user."""
    generator = np.random.default_rng(seed)
    shuffled = pairs[generator.permutation(len(pairs))]
    ordered = shuffled[shuffled[:, 0].argsort(kind="stable")]
    _, first, counts = np.unique(ordered[:, 0], return_index=True, return_counts=True)
    ends = split_ends(counts, generator)
    place = np.arange(len(ordered)) - np.repeat(first, counts)
    part = sum((place >= np.repeat(end, counts)).astype(np.int64) for end in ends)
    return {split: ordered[part == index] for index, split in enumerate(SPLITS)}


def overlaps(interactions: Mapping[Split, Ids]) -> list[tuple[Split, Split, Ids]]:
    """For two splits each, the pairs that stand in both, ``(n, 2)``; splits without any are left out."""
    tables = {split: interactions.get(split, no_pairs()) for split in SPLITS}
    width = 1 + max((int(rows[:, 1].max()) for rows in tables.values() if len(rows)), default=0)
    keys: dict[Split, NDArray[np.int64]] = {split: rows[:, 0] * width + rows[:, 1] for split, rows in tables.items()}
    found = [(a, b, np.intersect1d(keys[a], keys[b])) for a, b in combinations(SPLITS, 2)]
    return [(a, b, np.stack([both // width, both % width], axis=1)) for a, b, both in found if both.size]


def refuse_overlap(source: str, interactions: Mapping[Split, Ids]) -> None:
    """Refuse pairs that stand in two splits: what is tested would have been trained on.

    Raises:
        InputError: there are some; the splits, their number and the first are named.
    """
    for a, b, both in overlaps(interactions):
        user, item = both[0]
        raise InputError(
            f"{source}: {a} and {b} share {len(both)} pairs, the first is user {user} with item {item}; must be "
            "disjoint unless overlap is allowed (--allow-overlap)"
        )

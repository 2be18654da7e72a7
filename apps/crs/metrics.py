"""Measures of dialogues: how many succeed, how soon, and where in the list (Deng et al. 2021, section 5)."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]


def success_by(played: xr.Dataset, turn: int) -> Values:
    """``(dialogue,)`` 1 where the dialogue succeeded within so many turns; their mean is SR@t."""
    found: Values = ((played["rank"].values > 0) & (played["turns"].values <= turn)).astype(np.float64)
    return found


def success_curve(played: xr.Dataset) -> Values:
    """``(T,)`` SR@1 to SR@T."""
    return np.array([success_by(played, t).mean() for t in range(1, played.sizes["turn"] + 1)])


def hdcg(turn: ArrayLike, rank: ArrayLike) -> Values:
    """Gain of a success at this turn and rank, both from 1; 0 where the rank is 0 (hDCG is the mean over dialogues).

    r(t, k) [1/log2(t + 2) + (1/log2(t + 1) - 1/log2(t + 2)) / log2(k + 1)].
    """
    t, k = np.asarray(turn, dtype=np.float64), np.asarray(rank, dtype=np.float64)
    later = 1 / np.log2(t + 2)
    gain: Values = later + (1 / np.log2(t + 1) - later) / np.log2(np.maximum(k, 1) + 1)
    return np.where(k > 0, gain, 0.0)


def measures(played: xr.Dataset) -> dict[str, Values]:
    """Each measure of each dialogue ``(dialogue,)``; the mean is what is reported."""
    horizon = played.sizes["turn"]
    at = {f"SR@{t}": success_by(played, t) for t in sorted({min(t, horizon) for t in (5, 10, 15)})}
    return {
        **at,
        "AT": played["turns"].values.astype(np.float64),
        "hDCG": hdcg(played["turns"].values, played["rank"].values),
        "return": played["return"].values.astype(np.float64),
    }

"""Whether confidences are right as often as they say, and above which of them a word may be shown.

The threshold comes with a guarantee for a finite number of calibration clips and any distribution (Angelopoulos et al.
2021, Learn then Test, arXiv 2110.01052): with probability ``1 - risk`` over the calibration clips, among the words that
are shown of further clips *of the same kind* at most a share ``error_rate`` is wrong. Words of a clip depend on each
other, so clips are the units: the test of a threshold bets against its error rate clip by clip (Waudby-Smith and Ramdas
2024, JRSS B 86, 1-27). From each of a few starts thresholds are tried downwards until one is not proven, and each start
has its part of the risk; one start would not do, as the strictest threshold shows too little to prove anything. New
speakers, lights or cameras are another kind of clips, for which nothing is guaranteed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import InputError
from core.stats import Interval, proportion_interval
from core.stats.interval import as_sample, check_level

Array = NDArray[np.float64]

THRESHOLDS = tuple(round(1 - 0.05 * i, 2) for i in range(21))
"""That may be tried, fixed before any data are seen."""
STARTS = (1.0, 0.9, 0.75, 0.5)
"""Of the sequences in which they are."""
CALIBRATION = "calibration.json"
"""Beside the weights of a model: how sure it was of which words, and which were right."""


@dataclass(frozen=True)
class Reliability:
    """Confidences in B bins of equal width, those without any left out.

    Attributes:
        confidence: ``(B,)`` mean within the bin.
        accuracy: ``(B,)`` share that is right.
        low: ``(B,)`` lower end of Wilson's 95 % interval of it, for units that do not depend on each other.
        high: ``(B,)`` upper end.
        count: ``(B,)`` int64.
    """

    confidence: Array
    accuracy: Array
    low: Array
    high: Array
    count: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of confidence and accuracy, bins weighted by their counts."""
        return float(np.abs(self.confidence - self.accuracy) @ self.count / self.count.sum())


def reliability(confidence: ArrayLike, right: ArrayLike, bins: int = 15) -> Reliability:
    """Compare confidences ``(N,)`` in [0, 1] with whether each was right ``(N,)`` (Guo et al. 2017, arXiv 1706.04599).

    Raises:
        InputError: fewer than two, numbers that differ or are outside [0, 1], or ``bins`` below 1.
    """
    sure, hit = as_sample(confidence, "confidence"), as_sample(right, "right")
    if len(sure) != len(hit):
        raise InputError(f"confidence, right: {len(sure)} and {len(hit)}; must be as many")
    for name, values in (("confidence", sure), ("right", hit)):
        if outside := np.flatnonzero((values < 0) | (values > 1)).tolist():
            raise InputError(f"{name}[{outside[0]}] is {values[outside[0]]}; allowed: 0 to 1")
    if bins < 1:
        raise InputError(f"bins: {bins} is below 1")
    place = _bins(sure, bins)
    count = np.bincount(place, minlength=bins)
    kept = np.flatnonzero(count)
    hits = np.bincount(place, hit, bins)[kept]
    intervals = [proportion_interval(round(k), int(n)) for k, n in zip(hits, count[kept], strict=True)]
    return Reliability(
        np.bincount(place, sure, bins)[kept] / count[kept],
        hits / count[kept],
        np.array([found.low for found in intervals]),
        np.array([found.high for found in intervals]),
        count[kept].astype(np.int64),
    )


def calibration_error(
    confidence: Sequence[ArrayLike],
    right: Sequence[ArrayLike],
    bins: int = 15,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Expected calibration error of the words or symbols of n clips, with its bootstrap interval over clips.

    It is never negative, so that few clips make it too large, and its interval too.

    Args:
        confidence: by clip, see ``reliability``.
        right: by clip.
        bins: of equal width.
        level: of the interval.
        resamples: draws.
        seed: of the draws.

    Raises:
        InputError: fewer than two clips, or as ``reliability``.
    """
    check_level(level)
    if len(confidence) < 2 or [np.size(x) for x in confidence] != [np.size(x) for x in right]:
        raise InputError(f"confidence, right: {len(confidence)} clips; must be of the same units of at least 2 clips")
    sure, hit = (np.concatenate([np.asarray(x, dtype=np.float64) for x in given]) for given in (confidence, right))
    found = reliability(sure, hit, bins).error
    n = len(confidence)
    clip = np.repeat(np.arange(n), [np.size(x) for x in confidence])
    gap = np.zeros((n, bins))
    np.add.at(gap, (clip, _bins(sure, bins)), sure - hit)
    count = np.bincount(clip, minlength=n).astype(np.float64)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    weight = drawn @ count
    errors = np.abs(drawn @ gap).sum(1)[weight > 0] / weight[weight > 0]
    low, high = np.quantile(errors, [(1 - level) / 2, (1 + level) / 2])
    return Interval(found, float(low), float(high), n, level)


def _bins(confidence: Array, bins: int) -> NDArray[np.int64]:
    """The bin of each; a confidence on a boundary belongs to the bin below it, so that 1 is in the last."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


@dataclass(frozen=True)
class Abstention:
    """From which confidence a word is shown.

    Attributes:
        threshold: lowest confidence that is shown; None where no threshold is proven, and nothing is shown.
        error_rate: largest share of wrong words among those that are shown.
        risk: probability over calibration clips with which that may fail.
        shown: share of the calibration clips' words that are shown.
        wrong: share of these that is wrong, in the calibration clips.
        clips: number of them.
        most: words of a clip that is shown at all, as nothing is proven of longer ones; None where any number is.
    """

    threshold: float | None
    error_rate: float
    risk: float
    shown: float
    wrong: float
    clips: int
    most: int | None = None

    @property
    def guarantee(self) -> str:
        """What is promised, in a sentence."""
        if self.threshold is None:
            return (
                f"no word is shown: {self.clips} calibration clips prove no threshold for an error rate of "
                f"{self.error_rate:g}"
            )
        return (
            f"with probability {1 - self.risk:g} over the {self.clips} calibration clips, at most a share of "
            f"{self.error_rate:g} of the words shown is wrong, for clips like those of the calibration"
        )


def abstention(
    confidence: Sequence[Sequence[float]],
    right: Sequence[Sequence[bool]],
    error_rate: float,
    *,
    risk: float = 0.1,
    most: int | None = None,
    seed: int = 0,
) -> Abstention:
    """Find the lowest threshold whose error rate is proven.

    Args:
        confidence: by clip, of each word.
        right: by clip, whether it was right.
        error_rate: see ``Abstention``, within (0, 1).
        risk: likewise.
        most: words of a clip that are ever shown, known beforehand (the slots of the grammar); of a clip with more,
            none is shown. The most there are by default.
        seed: of the order in which clips are bet on.

    Raises:
        InputError: a rate or risk outside (0, 1), no clip, or numbers that differ.
    """
    for name, value in (("error_rate", error_rate), ("risk", risk)):
        if not 0 < value < 1:
            raise InputError(f"{name}: {value} is outside (0, 1)")
    if not confidence or [len(x) for x in confidence] != [len(x) for x in right]:
        raise InputError("confidence, right: must be of the same words of at least one clip")
    widest = max(1, max(map(len, confidence))) if most is None else most
    order = np.random.default_rng(seed).permutation(len(confidence))
    total = sum(map(len, confidence))
    best = Abstention(None, error_rate, risk, 0.0, 0.0, len(confidence), widest)
    for start in STARTS:
        for threshold in THRESHOLDS[THRESHOLDS.index(start) :]:
            shown, wrong = _shown(confidence, right, threshold, widest)
            # Its mean is at most the error rate exactly where mean(wrong) <= error_rate * mean(shown).
            loss = (wrong + error_rate * (widest - shown)) / widest
            if not proven(loss[order], error_rate, risk / len(STARTS)):
                break
            if best.threshold is None or threshold < best.threshold:
                share, mistaken = float(shown.sum() / total), float(wrong.sum() / shown.sum())
                best = Abstention(threshold, error_rate, risk, share, mistaken, len(shown), widest)
    return best


def _shown(
    confidence: Sequence[Sequence[float]], right: Sequence[Sequence[bool]], threshold: float, most: int
) -> tuple[Array, Array]:
    """By clip, how many words are shown and how many of these are wrong."""
    shown, wrong = np.zeros(len(confidence)), np.zeros(len(confidence))
    for clip, (sure, hit) in enumerate(zip(confidence, right, strict=True)):
        if len(sure) <= most:
            above = np.asarray(sure, dtype=float) >= threshold
            shown[clip] = above.sum()
            wrong[clip] = (above & ~np.asarray(hit, dtype=bool)).sum()
    return shown, wrong


def proven(loss: Array, bound: float, risk: float) -> bool:
    """Whether independent losses ``(n,)`` in [0, 1] show, with error probability ``risk``, that their mean is below.

    Wealth of a gambler who stakes a share on each loss being below ``bound``, chosen from the losses before: under a
    mean of ``bound`` or more it is a non-negative supermartingale, which ever reaches 1 / risk with probability risk at
    most (Ville).
    """
    n = len(loss)
    before = np.arange(n)
    mean = (0.5 + np.concatenate([[0.0], np.cumsum(loss)])) / (1 + np.arange(n + 1))
    squares = np.cumsum((loss - mean[1:]) ** 2)
    variance = (0.25 + np.concatenate([[0.0], squares[:-1]])) / (1 + before)
    stake = np.minimum(np.sqrt(2 * math.log(1 / risk) / (n * variance)), 0.75 / (1 - bound))
    wealth = np.cumsum(np.log1p(stake * (bound - loss)))
    return bool(wealth.max(initial=-math.inf) >= math.log(1 / risk))

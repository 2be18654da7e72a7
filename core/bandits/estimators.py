"""The estimators of off-policy evaluation as functions of column means, and the columns.

With w = pi_e(a|x) / p, e = r - qhat(x, a) and v = sum_a pi_e(a|x) qhat(x, a), each of them is mean(v), or nothing, plus
the mean of r or e times some form of w.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from core.bandits.rows import LoggedRows
from core.errors import InputError

Array: TypeAlias = NDArray[np.float64]


class Estimator(NamedTuple):
    """mean(direct) + mean(weighted), the second over mean(w) if ``normalised``; None for a term that is absent."""

    direct: str | None
    weighted: str | None = None
    normalised: bool = False

    @property
    def columns(self) -> set[str]:
        """The columns that it reads."""
        return {name for name in (self.direct, self.weighted, "w" if self.normalised else None) if name}

    def value(self, means: Mapping[str, Array]) -> Array:
        """The estimate (...) from the means (...) of the columns by name."""
        direct = means[self.direct] if self.direct else np.zeros(())
        weighted = means[self.weighted] if self.weighted else np.zeros(())
        return direct + (weighted / means["w"] if self.normalised else weighted)

    def slopes(self, means: Mapping[str, Array]) -> dict[str, float]:
        """Derivatives of the estimate by the means () of the ``columns``."""
        slopes = {self.direct: 1.0} if self.direct else {}
        if self.weighted:
            slopes[self.weighted] = 1.0
        if self.weighted and self.normalised:
            w = means["w"]
            slopes |= {self.weighted: float(1 / w), "w": float(-means[self.weighted] / w**2)}
        return slopes


ESTIMATORS: Mapping[str, Estimator] = {
    "ips": Estimator(None, "w r"),
    "clipped_ips": Estimator(None, "capped r"),
    "snips": Estimator(None, "w r", normalised=True),
    "dm": Estimator("v"),
    "dr": Estimator("v", "w e"),
    "sndr": Estimator("v", "w e", normalised=True),
    "switch_dr": Estimator("v", "switched e"),
    "dros": Estimator("v", "shrunk e"),
    "grouped_ips": Estimator(None, "grouped r"),
}
"""Horvitz and Thompson 1952 (ips); Swaminathan and Joachims 2015 (snips); Dudik, Erhan, Langford and Li 2014 (dm, dr);
Wang, Agarwal and Dudik 2017 (switch_dr); Su, Dimakopoulou, Krishnamurthy and Dudik 2020 (dros); Saito and Joachims 2022
(grouped_ips)."""

MEAN_REWARD = Estimator("r")


@dataclass(frozen=True)
class Limits:
    """What the biased estimators make of large weights, and how large a weight can be at all.

    Attributes:
        clip: ``clipped_ips`` takes min(w, clip).
        switch: ``switch_dr`` takes w where w <= switch, else 0.
        shrink: ``dros`` takes shrink w / (w^2 + shrink), which is at most sqrt(shrink) / 2.
        max_weight: bound of every possible w, for intervals that need one; a larger w is refused.

    Raises:
        InputError: one that is not above 0.
    """

    clip: float = 10.0
    switch: float = 10.0
    shrink: float = 100.0
    max_weight: float = math.inf

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise InputError(f"{name}: {value} is not above 0")

    def columns(self, rows: LoggedRows, part: slice) -> dict[str, Tensor]:
        """Columns (m,) by name of a part of the rows, as far as the rows have what they need."""
        w, r = rows.target[part] / rows.propensity[part], rows.reward[part]
        columns = {"w": w, "w r": w * r, "capped r": w.clamp(max=self.clip) * r}
        if rows.value is not None and rows.q_logged is not None:
            weighted = w * (r - rows.q_logged[part])
            columns |= {"v": rows.value[part], "w e": weighted, "switched e": weighted * (w <= self.switch)}
            columns["shrunk e"] = weighted / (w * w * (1 / self.shrink) + 1)
        if rows.group_weight is not None:
            columns["grouped r"] = rows.group_weight[part] * r
        if rows.missing is not None:
            columns["missing"] = rows.missing[part]
        return columns

    def width(self, estimator: Estimator, reward_range: tuple[float, float]) -> float:
        """Largest less smallest value of a row's term, if qhat keeps to the reward's range; infinite if unbounded."""
        low, high = reward_range
        if estimator.normalised or estimator.weighted == "grouped r":
            return math.inf
        caps = {"capped r": self.clip, "switched e": self.switch, "shrunk e": math.sqrt(self.shrink) / 2}
        weight = min(self.max_weight, caps.get(estimator.weighted or "", math.inf))
        if not estimator.weighted:
            return high - low
        if not estimator.direct:
            return weight * (max(high, 0.0) - min(low, 0.0))
        return (high - low) * (1 + 2 * weight)

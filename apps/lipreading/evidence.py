"""What the results of a study say: error rates of each objective by seed, and their paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from core.stats import Interval, t_interval
from core.study import Undecided

Array = NDArray[np.float64]
MEASURES = {"CER": "greedy", "CER sampled": "sampled", "WER": "greedy", "exact": "greedy", "WER sampled": "sampled"}
"""Error rates of a set of clips, and of which transcripts."""


@dataclass(frozen=True)
class Evidence:
    """The results by experiment, method and seed.

    Attributes:
        experiments: names in the order of the study.
        readings: test clips read by the reader that an experiment starts from.
        forks: what objectives made of it, by experiment and method, then seed.
        trials: error rates of sampled validation transcripts by weight, by experiment and method.
        gradients: of estimators, by experiment.
        grammars: name of the grammar of an experiment's sentences, None where there is none.
        absent: why an experiment was left out.
    """

    experiments: list[str]
    readings: Mapping[str, xr.Dataset]
    forks: Mapping[tuple[str, str], Mapping[int, xr.Dataset]] = field(default_factory=dict)
    trials: Mapping[tuple[str, str], Mapping[float, float]] = field(default_factory=dict)
    gradients: Mapping[str, xr.Dataset] = field(default_factory=dict)
    grammars: Mapping[str, str | None] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)

    def methods(self, experiment: str) -> list[str]:
        """Names of the objectives of an experiment."""
        return [method for name, method in self.forks if name == experiment]

    def values(self, experiment: str, method: str, measure: str) -> dict[int, float]:
        """A measure by seed.

        Raises:
            Undecided: the study has no such method.
        """
        if (experiment, method) not in self.forks:
            raise Undecided(self.absent.get(experiment, f"the study has no method {method} in {experiment}"))
        return {seed: rate(data, measure) for seed, data in self.forks[experiment, method].items()}

    def interval(self, experiment: str, method: str, measure: str) -> Interval:
        """Mean over seeds with its 95 % t interval."""
        return over_seeds(list(self.values(experiment, method, measure).values()))

    def differences(self, experiment: str, one: str, other: str, measure: str) -> Array:
        """Of each seed that both have."""
        first, second = self.values(experiment, one, measure), self.values(experiment, other, measure)
        common = sorted(set(first) & set(second))
        if len(common) < 2:
            raise Undecided(f"{one} and {other} have {len(common)} seeds in common; at least 2 are needed")
        return np.array([first[seed] - second[seed] for seed in common])

    def difference(self, experiment: str, one: str, other: str, measure: str, level: float = 0.95) -> Interval:
        """Mean paired difference with its t interval."""
        return t_interval(self.differences(experiment, one, other, measure), level=level)

    def differences_by_speaker(self, experiment: str, one: str, other: str) -> Array:
        """``(S, P)`` by seed and speaker: sampled edits of ``one`` less those of ``other``, over the characters.

        Raises:
            Undecided: as ``values``.
        """
        self.values(experiment, one, "CER sampled"), self.values(experiment, other, "CER sampled")
        first, second = self.forks[experiment, one], self.forks[experiment, other]
        found = []
        for seed in sorted(set(first) & set(second)):
            a, b = first[seed], second[seed]
            speaker = a["speaker"].values
            edits = a["sampled_edits"].values.astype(np.float64) - b["sampled_edits"].values
            top, bottom = (np.bincount(speaker, x) for x in (edits, a["characters"].values))
            found.append(top[bottom > 0] / bottom[bottom > 0])
        return np.stack(found)

    def weight(self, experiment: str, method: str) -> float:
        """Of the policy loss, given or chosen."""
        first = next(iter(self.forks[experiment, method].values()))
        return float(first.attrs["weight"])


def over_seeds(values: list[float]) -> Interval:
    """Mean with its 95 % t interval; of one seed without."""
    if len(values) < 2:
        return Interval(values[0], np.nan, np.nan, 1)
    return t_interval(np.array(values))


def tempered_rates(data: xr.Dataset) -> dict[float, float]:
    """CER of a reader's transcripts by the temperature at which they were sampled."""
    edits, characters = data["tempered_edits"].sum("utterance").values, int(data["characters"].sum())
    return {float(t): int(e) / characters for t, e in zip(data["temperature"].values, edits, strict=True)}


def rate(data: xr.Dataset, measure: str) -> float:
    """A measure of all clips: all edits over all characters or words, or the share of clips without any."""
    edits = data[f"{MEASURES[measure]}_edits"].values
    if measure == "exact":
        return float((edits == 0).mean())
    if measure.startswith("WER"):
        return int(data[f"{MEASURES[measure]}_word_edits"].sum()) / int(data["words"].sum())
    return int(edits.sum()) / int(data["characters"].sum())

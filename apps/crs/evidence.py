"""What the results of a study say: measures of each method on the same dialogues, and their paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from apps.crs.metrics import measures
from core.stats import Interval, clustered_difference
from core.study import Undecided

Numbers = NDArray[np.float64]
Played = Mapping[tuple[str, str], Mapping[int, xr.Dataset]]


@dataclass(frozen=True)
class Evidence:
    """The results by problem, method and seed.

    Attributes:
        problems: names, the one that claims are about first.
        methods: names in the order of the study.
        played: test dialogues, the same for all methods and seeds of a problem.
        gap: of the closed form from pymdp, None where they were not compared.
    """

    problems: list[str]
    methods: list[str]
    played: Played
    gap: xr.Dataset | None = None

    def of(self, problem: str, method: str) -> Mapping[int, xr.Dataset]:
        """Test dialogues by seed.

        Raises:
            Undecided: the study has no such method.
        """
        if (problem, method) not in self.played:
            raise Undecided(f"the study has no method {method}")
        return self.played[problem, method]

    def values(self, problem: str, method: str, measure: str) -> dict[int, Numbers]:
        """A measure of each dialogue ``(n,)`` by seed."""
        return {seed: measures(data)[measure] for seed, data in self.of(problem, method).items()}

    def interval(self, problem: str, method: str, measure: str) -> Interval:
        """The mean of a measure; 95 % bootstrap interval over seeds, then over common dialogues."""
        return clustered_difference(np.stack(list(self.values(problem, method, measure).values())))

    def difference(self, problem: str, one: str, other: str, measure: str) -> Interval:
        """The mean difference of a measure on the same dialogues, with the same kind of interval."""
        first, second = self.values(problem, one, measure), self.values(problem, other, measure)
        common = sorted(set(first) & set(second))
        if len(second) == 1:
            # What does not depend on the seed stands against every training.
            common, second = list(first), dict.fromkeys(first, next(iter(second.values())))
        elif len(first) == 1:
            common, first = list(second), dict.fromkeys(second, next(iter(first.values())))
        return clustered_difference(np.stack([first[s] - second[s] for s in common]))

    def last(self, problem: str) -> int:
        """T, the most turns of a dialogue."""
        data = next(iter(self.of(problem, self.methods[0]).values()))
        return int(data.sizes["turn"])

    def success(self, problem: str) -> str:
        """Name of the measure of success within a whole dialogue."""
        return f"SR@{min(15, self.last(problem))}"

"""From doses to the five levels of each drug."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.errors import InputError
from simulators.sepsis.features import LEVELS
from simulators.sepsis.readers.tables import Codes, Numbers


@dataclass(frozen=True)
class DoseBins:
    """Cut-points of one drug: level 0 is none, levels 1 to 4 are the quarters of the doses that were given.

    Attributes:
        cuts: highest dose of levels 1, 2 and 3.
        medians: of the doses of each level, the first 0; NaN for a level that none fell into.
    """

    cuts: tuple[float, ...]
    medians: tuple[float, ...]

    @staticmethod
    def fit(doses: Numbers, name: str) -> DoseBins:
        """From the doses ``(N,)`` of the training split.

        The quarter of a dose is that of its average rank among the doses above 0, so that equal doses share a level
        (as in Komorowski et al. 2018).

        Raises:
            InputError: no dose above 0, or a negative one.
        """
        given, count = np.unique(doses[doses > 0], return_counts=True)
        if not given.size or (doses < 0).any():
            raise InputError(f"{name}: its doses must be at least 0, and some above 0 in the training split")
        rank = (np.cumsum(count) - (count - 1) / 2) / count.sum()
        cuts = [float(given[rank <= quarter + 1e-10].max(initial=0.0)) for quarter in (0.25, 0.5, 0.75)]
        levels = DoseBins(tuple(cuts), ()).level(doses)
        medians = [float(np.median(doses[levels == i])) if (levels == i).any() else np.nan for i in range(LEVELS)]
        return DoseBins(tuple(cuts), tuple(medians))

    def level(self, doses: Numbers) -> Codes:
        """Levels 0 to 4 of doses."""
        return np.where(doses > 0, 1 + np.searchsorted(self.cuts, doses, side="left"), 0).astype(np.int64)

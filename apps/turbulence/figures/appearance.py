"""What is drawn in every figure: which closures, in which colour, averaged how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from numpy.typing import ArrayLike, NDArray

from apps.turbulence.claims import Evidence
from apps.turbulence.metrics import Numbers, window
from core.stats import mean_interval
from core.study import Undecided

COLOURS = {
    "none": "#7f7f7f",
    "leith": "#0072b2",
    "leith_local": "#08306b",
    "smag": "#009e73",
    "smag_local": "#7fc97f",
    "dleith": "#cc79a7",
    "dsmag": "#e69f00",
    "dsmag_tensor": "#a6761d",
    "gm2": "#8c564b",
    "gm4": "#c49c94",
    "backscatter": "#bcbd22",
}
"""One a closure; the first told apart with any colour vision (Okabe and Ito 2008)."""
STYLES = {"none": ":", "smag": "--", "dleith": "-.", "dsmag": (0, (5, 1, 1, 1, 1, 1))}
"""So that colour never tells a closure alone; the others are solid."""
ARMS = ("#d55e00", "#56b4e9", "#5e3c99", "#dd3497")
"""Agents are vermilion."""
MARKERS = "osD^"
"""Of agents."""
RESOLVED = "black"
"""The reference and the resolved flow."""
FEW = 3
"""Closures of the figures that have no room for all."""
RESAMPLES = 2000
"""Of the bootstrap."""
FIELD = "RdBu_r"
"""Colour map of signed fields."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A closure with one constant, or an arm with all its training seeds.

    Attributes:
        kind: of closure; ``agents``, or ``resolved`` for the flow on a fine grid.
        label: in legends.
        parts: evaluations ``(start, ...)``, one a training seed of agents or a realisation of a closure.
        colour: of its lines.
        style: of its lines.
        marker: on its lines; empty for none.
    """

    kind: str
    label: str
    parts: tuple[xr.Dataset, ...]
    colour: str
    style: Any = "-"
    marker: str = ""

    @property
    def simulations(self) -> int:
        """How many, of all training seeds."""
        return sum(part.sizes["start"] for part in self.parts)

    @property
    def lost(self) -> int:
        """How many blew up before the end of the statistics."""
        return sum(int((~stayed(part)).sum()) for part in self.parts)

    def over_starts(self, measure: Callable[[xr.Dataset], ArrayLike]) -> Numbers:
        """A measure of each start, the mean over training seeds, ``(starts, ...)``; what blew up is left out.

        Args:
            measure: ``(start, ...)`` of a dataset.
        """
        values = np.stack([np.asarray(measure(part), dtype=np.float64) for part in self.parts])
        finite = np.isfinite(values).reshape(*values.shape[:2], -1).all(-1)
        known = (finite & np.stack([stayed(part) for part in self.parts])).reshape(
            *finite.shape, *(1,) * (values.ndim - 2)
        )
        count = known.sum(0)
        some = count.reshape(len(count)) > 0
        means: Numbers = np.where(known, values, 0.0).sum(0)[some] / count[some]
        return means

    def runs(self, name: str) -> Numbers:
        """A variable in the window of the statistics, of every simulation that did not blow up, ``(runs, time, ...)``.

        Args:
            name: of a variable ``(start, time, ...)``.
        """
        return np.concatenate([window(part)[name].values[stayed(part)] for part in self.parts]).astype(np.float64)


def stayed(found: xr.Dataset) -> NDArray[np.bool_]:
    """Whether a simulation is finite up to the end of the window of the statistics, ``(start,)``."""
    return np.asarray(np.isfinite(window(found)["enstrophy"].isel(time=-1).values))


def entry_of(evidence: Evidence, name: str) -> Entry:
    """A closure with its chosen constant."""
    settings, parts = evidence.closures[name][0], evidence.evaluated(name)
    label = f"{name} ({float(parts[0]['constant']):g})" if name in evidence.training else name
    kind = settings.closure
    return Entry(kind, label, tuple(parts), COLOURS[kind], STYLES.get(kind, "-"))


def closures_of(evidence: Evidence) -> list[Entry]:
    """One of each closure: the tuned one, else that with the smallest error."""
    found = []
    for kind in dict.fromkeys(settings.closure for settings, _ in evidence.closures.values()):
        tuned = [name for name in evidence.training if evidence.closures[name][0].closure == kind]
        found.append(entry_of(evidence, tuned[0] if tuned else evidence.best((kind,))))
    return found


def arms_of(learned: Mapping[str, Sequence[xr.Dataset]]) -> list[Entry]:
    """The arms in their order."""
    return [
        Entry("agents", name, tuple(parts), ARMS[i % len(ARMS)], marker=MARKERS[i % len(MARKERS)])
        for i, (name, parts) in enumerate(learned.items())
        if parts
    ]


def headline(evidence: Evidence, arms: Sequence[Entry]) -> list[Entry]:
    """No closure, the better dynamic Leith model and the tuned constant, else a few others, and the arms."""
    names = []
    for find in (lambda: evidence.best(("none",)), lambda: evidence.best(("dleith",)), evidence.oracle):
        try:
            names.append(find())
        except Undecided:
            continue
    closures = [entry_of(evidence, name) for name in names] or closures_of(evidence)[:FEW]
    return [*closures, *arms]


def resolved_of(truth: xr.Dataset) -> Entry:
    """The flow simulated on a fine grid."""
    return Entry("resolved", "resolved", (truth,), RESOLVED, "--")


def only_with(name: str, entries: Iterable[Entry]) -> list[Entry]:
    """Those that have a variable."""
    return [e for e in entries if all(name in part for part in e.parts)]


def band(values: Numbers) -> Numbers:
    """Mean over starts and its 95 % bootstrap interval, of ``(starts, m)``, as ``(3, m)``; NaN ends of a single one."""
    if len(values) < 2:
        return np.stack([values.mean(0), *2 * (np.full(values.shape[1:], np.nan),)])
    intervals = [mean_interval(column, resamples=RESAMPLES) for column in values.T]
    return np.array([[i.mean, i.low, i.high] for i in intervals]).T


def draw_band(axes: Axes, x: ArrayLike, values: Numbers, entry: Entry, *, marks: bool = True) -> None:
    """Line of the mean over starts, with its band where there are two or more, of ``(starts, m)``."""
    if not len(values):
        return
    middle, low, high = band(values)
    marker = entry.marker if marks else ""
    style = {"ls": entry.style, "lw": 2.0 if entry.marker else 1.5, "marker": marker, "ms": 3.5}
    axes.plot(x, middle, color=entry.colour, zorder=3 if entry.marker else 2.5, label=entry.label, **style)
    if len(values) > 1:
        # On a logarithmic axis a band that reaches 0 has no lower end to draw.
        drawn = (low > 0) | (axes.get_yscale() != "log")
        axes.fill_between(np.asarray(x), low, high, where=drawn, color=entry.colour, alpha=0.18, lw=0)


def labelled(panels: Iterable[Axes]) -> dict[str, Artist]:
    """What a legend shows of some panels: every label once."""
    found: dict[str, Artist] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    return found


def legend(drawing: Drawing, *panels: Axes) -> None:
    """The labels of some panels, beside all of them."""
    found = labelled(panels)
    drawing.legend([*found.values()], [*found], loc="outside right upper", frameon=False, fontsize=9)


def starts_sentence(entries: Sequence[Entry]) -> str:
    """What the bands are, and what was left out."""
    starts = entries[0].parts[0].sizes["start"]
    counts = sorted({len(e.parts) for e in entries})
    over = ""
    if counts[-1] > 1:
        over = f" (of means over {' or '.join(map(str, counts))} training seeds of agents or realisations of a closure)"
    if starts == 1:
        return f"One start{over}, hence no bands.{lost_sentence(entries)}"
    return f"Bands: 95 % bootstrap intervals of the mean over {starts} starts{over}.{lost_sentence(entries)}"


def lost_sentence(entries: Sequence[Entry]) -> str:
    """Which simulations are not in a figure because they blew up; empty if none."""
    lost = [f"{e.lost} of {e.simulations} of {e.label}" for e in entries if e.lost]
    return f" Left out because they blew up: {', '.join(lost)}." if lost else ""

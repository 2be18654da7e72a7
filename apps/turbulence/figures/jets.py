"""Zonal jets of the flows with a Coriolis gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from apps.turbulence.figures.appearance import FIELD, Entry, band, legend, stayed
from apps.turbulence.figures.fields import scale_end
from apps.turbulence.metrics import Numbers, window
from simulators.turbulence.diagnostics import jet_summary

MODES = 2
"""Empirical orthogonal functions that are drawn."""


def hovmoeller(entries: Sequence[Entry]) -> Drawing:
    """Zonal-mean u(y, t) of the first simulation of each entry that stayed finite."""
    drawing = Drawing(figsize=(9.5, 1.0 + 1.7 * len(entries)), layout="constrained")
    panels = drawing.subplots(len(entries), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    shown = []
    for entry in entries:
        part = next(part for part in entry.parts if stayed(part).any())
        wind = part["zonal"].isel(start=int(np.argmax(stayed(part)))).sel(time=slice(0, part.attrs["until"] + 1e-6))
        shown.append((wind["time"].values, wind.transpose("y", "time").values))
    limit = scale_end([values for _, values in shown])
    for axes, entry, (time, values) in zip(panels, entries, shown, strict=True):
        step = time[1] - time[0] if len(time) > 1 else 1.0
        extent = (time[0] - step / 2, time[-1] + step / 2, 0, 2)
        drawn = axes.imshow(
            values,
            origin="lower",
            extent=extent,
            aspect="auto",
            cmap=FIELD,
            vmin=-limit,
            vmax=limit,
            interpolation="nearest",
        )
        axes.axvline(entry.parts[0].attrs["discard"], color="black", lw=0.8, ls=":")
        axes.set_yticks([0, 1, 2])
        axes.set_ylabel(r"$y/\pi$")
        axes.set_title(entry.label, fontsize=9, loc="left")
    panels[-1].set_xlabel("time")
    drawing.colorbar(drawn, ax=panels, extend="both", aspect=40, shrink=0.8, label=r"zonal-mean velocity $u$")
    return drawing


def profiles(entries: Sequence[Entry]) -> Drawing:
    """Mean profile of the wind and its leading modes of variability."""
    drawing = Drawing(figsize=(11, 4.8), layout="constrained")
    panels = drawing.subplots(1, 1 + MODES, sharey=True)
    first: Numbers | None = None
    for entry in entries:
        wind = entry.runs("zonal")
        y = np.append(entry.parts[0]["y"].values / np.pi, 2.0)
        _profile(panels[0], y, entry)
        # A bound of the number of modes, and a wind that never changes, are no news here: then there is no variability.
        if not len(wind) or np.ptp(wind, axis=(0, 1)).max() == 0 or min(wind.shape[0] * wind.shape[1], len(y)) < MODES:
            continue
        summary = jet_summary(wind, window(entry.parts[0])["time"].values, modes=MODES)
        modes = summary["eof"].values
        # The sign of a mode is free: that of the first entry is kept by the others.
        first = modes if first is None else first
        signs = np.where((modes * first).sum(1) < 0, -1.0, 1.0) if first.shape == modes.shape else np.ones(MODES)
        for axes, mode, sign, share in zip(panels[1:], modes, signs, summary["explained_variance"].values, strict=True):
            label = f"{entry.label}: {100 * share:.0f} %"
            axes.plot(
                sign * _closed(mode),
                y,
                color=entry.colour,
                ls=entry.style,
                lw=2.0 if entry.marker else 1.5,
                label=label,
            )
    panels[0].set(ylabel=r"$y/\pi$", xlabel=r"mean zonal velocity $u$", ylim=(0, 2))
    for i, axes in enumerate(panels[1:]):
        axes.set_xlabel(rf"$u$ of one standard deviation, EOF {i + 1}")
        if axes.lines:
            axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    for axes in panels:
        axes.axvline(0, color="black", lw=0.8)
        axes.set_yticks([0, 0.5, 1, 1.5, 2])
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.3)
    legend(drawing, panels[0])
    return drawing


def _profile(axes: Axes, y: Numbers, entry: Entry) -> None:
    """Time-mean wind, standing, with its band over starts."""
    winds = entry.over_starts(lambda found: window(found)["zonal"].mean("time").transpose("start", "y").values)
    if not len(winds):
        return
    middle, low, high = _closed(band(winds))
    axes.plot(middle, y, color=entry.colour, ls=entry.style, lw=2.0 if entry.marker else 1.5, label=entry.label)
    if len(winds) > 1:
        axes.fill_betweenx(y, low, high, color=entry.colour, alpha=0.15, lw=0)


def _closed(profile: Numbers) -> Numbers:
    """With the first value once more at the end: the box is periodic."""
    return np.concatenate([profile, profile[..., :1]], -1)

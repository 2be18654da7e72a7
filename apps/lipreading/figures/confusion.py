"""What is taken for what, and how sure a reader is of what it reads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure

from apps.lipreading.calibration import Reliability, reliability
from apps.lipreading.confusion import Confusion, confusion
from apps.lipreading.evaluation import symbols_right
from apps.lipreading.table import batch_of, reading_of


def of_reading(data: xr.Dataset) -> Callable[[], Figure] | None:
    """Visemes of a result; None where a word has no known pronunciation."""
    reading = reading_of(data)
    if not reading.pronounced:
        return None
    return lambda: draw_confusion(confusion(reading.hypotheses, reading.references))


def reliability_of(data: xr.Dataset) -> Callable[[], Figure] | None:
    """Probabilities of the greedy symbols of a result; None where the model gives none."""
    confidence = data["confidence"].values
    if not np.isfinite(confidence).all():
        return None
    batch, reference = (batch_of(data, name) for name in ("greedy", "reference"))
    sure, right = symbols_right(batch, torch.from_numpy(confidence), reference)
    return lambda: draw_reliability(reliability(np.concatenate(sure), np.concatenate(right)), "symbol")


def draw_confusion(found: Confusion) -> Figure:
    """A heat map of the shares, visemes of the references from above, what was read from the left."""
    size = 2.5 + 0.3 * len(found.visemes)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(found.shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(found.visemes)), found.visemes, rotation=90)
    axes.set_yticks(
        range(len(found.visemes)), [f"{v} ({n:,})" for v, n in zip(found.visemes, found.counts.sum(1), strict=True)]
    )
    axes.set(xlabel="viseme that was read (?: of no known word, –: none)", ylabel="viseme that was spoken (–: none)")
    figure.colorbar(image, label="share of the row")
    return figure


def draw_reliability(found: Reliability, unit: str) -> Figure:
    """How often a word or symbol is right, against how sure the model is of it."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#666666", linewidth=1)
    error = np.clip([found.accuracy - found.low, found.high - found.accuracy], 0, None)
    axes.errorbar(found.confidence, found.accuracy, yerr=error, fmt="o-", color="#0072b2", capsize=3)
    axes.set(xlabel=f"confidence in a {unit}", ylabel="share that is right", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title(f"expected calibration error {found.error:.3f}, {found.count.sum():,} {unit}s", fontsize=10)
    axes.grid(alpha=0.3)
    return figure

"""How a reader reads: where it looks, and what earned what."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from apps.lipreading.figures.appearance import COLOURS, GREY
from apps.lipreading.rewards import reward
from apps.lipreading.table import batch_of
from core.sequence.windows import Windowed
from simulators.lips import alphabet

SHOWN = 3
WINDOWS = ((1, 1), (5, 2), (9, 2))
"""Kernels and strides whose credit is drawn."""


def attention(data: xr.Dataset) -> Figure:
    """Where the decoder looked while it wrote the first clips, with the beginnings of the words."""
    count = min(SHOWN, data.sizes["example"])
    figure = Figure(figsize=(4.6 * count, 4.8), layout="constrained")
    frames = int(data["attention"].attrs["frames"])
    for i, axes in enumerate(np.atleast_1d(figure.subplots(1, count))):
        tokens = data["written"].values[i].astype(int)
        symbols = [_shown(t) for t in tokens]
        length = tokens.tolist().index(alphabet.EOS) + 1 if alphabet.EOS in tokens else len(tokens)
        weights = data["attention"].values[i][:length]
        image = axes.imshow(
            weights, aspect="auto", cmap="magma_r", extent=(0, frames, length - 0.5, -0.5), vmin=0, vmax=1
        )
        for start, _ in data["word_frames"].values[i]:
            if np.isfinite(start):
                axes.axvline(start, color=COLOURS[0], linewidth=1, linestyle="--")
        axes.set_yticks(range(length), symbols[:length])
        axes.set(xlim=(0, frames), xlabel="frame (40 ms)", ylabel="symbol that is written" if i == 0 else "")
    figure.colorbar(image, ax=axes, label="attention")
    return figure


def credit(data: xr.Dataset) -> Figure:
    """What each symbol of a sampled transcript earned, and the credit that windows give it."""
    row = _telling(data)
    reference, batch = (batch_of(data, name, slice(row, row + 1)) for name in ("reference", "sampled"))
    r = reward("dense", batch, reference)
    length = int(batch.length)
    symbols = [_shown(int(t)) for t in batch.tokens[0, :length]]
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    top, *panels = figure.subplots(1 + len(WINDOWS), 1, sharex=True)
    top.bar(range(length), r[0, :length].numpy(), color=GREY)
    top.set_ylabel("reward")
    said = alphabet.decode(reference.tokens)[0]
    top.set_title(f"said: “{said}”; written: “{alphabet.decode(batch.tokens)[0]}”", fontsize=10)
    for axes, (k, s), colour in zip(panels, WINDOWS, COLOURS, strict=False):
        found = Windowed(kernel=k, stride=s).credit(batch.with_(reward=r))[0, :length] / k
        axes.bar(range(length), found.numpy(), color=colour)
        axes.set_ylabel(f"k {k}, s {s}")
    for axes in (top, *panels):
        axes.axhline(0, color="black", linewidth=0.6)
        axes.grid(alpha=0.3, axis="y")
    panels[-1].set_xticks(range(length), symbols)
    panels[-1].set_xlabel("symbol")
    return figure


def _telling(data: xr.Dataset) -> int:
    """The first clip whose sampled transcript has three errors, or the one of the most."""
    edits = data["sampled_edits"].values
    three = np.flatnonzero(edits == 3)
    return int(three[0]) if len(three) else int(edits.argmax())


def _shown(token: int) -> str:
    if token == alphabet.EOS:
        return "end"
    return "␣" if token == 3 else (alphabet.CHARACTERS[token - 3] if token > 3 else "·")

"""Masks out of a finished study, for a scanner's protocol: CSV and BART's cfl."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import xarray as xr

from core.errors import InputError
from simulators.mri.readers import write_mask_cfl, write_mask_csv


def export_masks(directory: str | Path, out: str | Path, *, scenario: str | None = None, method: str = "ads") -> int:
    """Write the masks of one method, and the population's; the number of masks written.

    ``<scenario>/subject_0007.csv`` has the lines in the order of their acquisition, with diffusion step and score;
    ``.cfl`` and ``.hdr`` beside it have the mask. ``<scenario>/population.*`` has the lines that most subjects took,
    as many as the budget, the most frequent first.

    Args:
        directory: folder of a finished study.
        out: where to write.
        scenario: of the study; all whose actions are k-space lines if None.
        method: whose masks.

    Raises:
        InputError: no results there, or damaged ones, no such scenario or method, or actions that are not lines.
    """
    path = Path(directory) / "results.nc"
    if not path.is_file():
        raise InputError(f"{directory}: has no results.nc; szilard mri run writes it")
    try:
        opened = xr.open_datatree(path, engine="h5netcdf")
    except OSError as error:
        raise InputError(f"{path}: damaged; szilard mri report {directory} makes it anew") from error
    with opened as tree:
        names = [scenario] if scenario else [n for n, node in tree.children.items() if _lines(node.to_dataset())]
        if scenario is not None and scenario not in tree.children:
            raise InputError(f"{directory}: no scenario {scenario}; there are {', '.join(tree.children)}")
        if not names:
            raise InputError(f"{directory}: no scenario of k-space lines, which alone can be exported")
        written = 0
        for name in names:
            data = tree[name].to_dataset().load()
            if not _lines(data):
                raise InputError(f"{directory}: {name} is not of k-space lines, which alone can be exported")
            if method not in data.method.values:
                raise InputError(
                    f"{directory}: {name} has no method {method}; there are {', '.join(data.method.values)}"
                )
            written += _write(data.sel({"method": method}).isel(budget=0, seed=0), Path(out) / name)
    return written


def write_lines(stem: Path, data: xr.Dataset) -> None:
    """Write the actions of one subject as ``<stem>.csv`` and its mask as ``<stem>.cfl``: first the initial ones.

    Args:
        stem: path without suffix.
        data: mask (line), acq_order (acquisition; -1: none), acq_step and line_entropy of one subject.
    """
    mask = data["mask"].values > 0
    order = data.acq_order.values.astype(int)
    chosen = order >= 0
    first = [line for line in np.flatnonzero(mask).tolist() if line not in order]
    # A policy has no step and no score.
    steps = [None] * len(first) + [
        step if step >= 0 else None for step in data.acq_step.values[chosen].astype(int).tolist()
    ]
    given = data.line_entropy.values[chosen, order[chosen]].tolist()
    scores = [None] * len(first) + [score if np.isfinite(score) else None for score in given]
    write_mask_csv(stem.with_suffix(".csv"), first + order[chosen].tolist(), len(mask), steps, scores)
    write_mask_cfl(stem, torch.from_numpy(mask))


def _lines(data: xr.Dataset) -> bool:
    return bool(data.attrs.get("operator") == "kspace_lines")


def _write(data: xr.Dataset, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    masks = data["mask"].values > 0
    width = masks.shape[1]
    for i, subject in enumerate(data.subject.values):
        write_lines(folder / f"subject_{int(subject):04d}", data.isel(subject=i))
    share = masks.mean(0)
    common = np.argsort(-share, kind="stable")[: round(masks.sum(1).mean())]
    population = np.zeros(width, bool)
    population[common] = True
    write_mask_csv(folder / "population.csv", common.tolist(), width)
    write_mask_cfl(folder / "population", torch.from_numpy(population))
    return len(masks) + 1

"""From tensors to xarray: what a run keeps of its subjects, with dims, units and names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from apps.mri.board import Acquisition
from apps.mri.methods import display, point_estimate
from core import files
from simulators.mri.quality import mae, nmse, psnr, ssim

JOINED: dict[str, Any] = {"coords": "minimal", "compat": "override", "join": "override"}
"""How datasets of the same variables are put one after another."""
PARTS = {1: ["value"], 2: ["real", "imaginary"]}


Field = tuple[tuple[str, ...], Tensor, dict[str, str]]


def dataset(
    target: Tensor | None,
    outcome: Acquisition,
    *,
    first: int,
    seconds: float,
    recorded: int,
    region: Tensor | None = None,
    particles: bool = False,
) -> xr.Dataset:
    """The outcome of S subjects.

    Args:
        target: ``(S, C, H, W)`` the true images, or ``(S, 1, H, W)`` magnitudes; None where they are not known.
        outcome: what was acquired and sampled.
        first: number of the first subject.
        seconds: wall time a subject.
        recorded: subjects whose images are kept, from the first on.
        region: ``(H, W)`` bool, where the error is also taken by itself.
        particles: keep the particles of the recorded subjects.
    """
    estimate = point_estimate(outcome.particles)
    data: dict[str, Field] = {
        "actions": (("subject",), outcome.mask.sum(1), {"units": "1", "long_name": "actions acquired"}),
        "restarts": (("subject",), outcome.restarts, {"units": "1", "long_name": "particles restarted"}),
        "collapsed": (("subject",), outcome.collapsed, {"units": "1", "long_name": "particles agreed on everything"}),
        "saturated": (
            ("subject",),
            outcome.saturated,
            {"units": "1", "long_name": "scores could not tell"},
        ),
        "dropped": (("subject",), outcome.dropped, {"units": "1", "long_name": "requests not delivered"}),
        "mask": (("subject", "line"), outcome.mask, {"units": "1", "long_name": "acquired"}),
        "acq_order": (("subject", "acquisition"), outcome.order, {"units": "1", "long_name": "action acquired"}),
        "acq_step": (("acquisition",), outcome.step, {"units": "1", "long_name": "diffusion step"}),
        "line_entropy": (
            ("subject", "acquisition", "line"),
            outcome.scores.float(),
            {"units": "nat", "long_name": "score of the action"},
        ),
        "residual": (("subject", "step"), outcome.residual, {"units": "1", "long_name": "distance from the samples"}),
    }
    kept = slice(0, recorded)
    image, parts = ("recorded", "y", "x"), ("recorded", "part", "y", "x")
    seen = {"units": "1", "long_name": "image as it is looked at"}
    data |= {
        "recon": (parts, outcome.particles[kept].mean(1), {"units": "1", "long_name": "mean of the particles"}),
        "image": (image, estimate[kept], seen | {"long_name": "mean of the particles as they are looked at"}),
    }
    if target is not None:
        truth = display(target) if target.shape[1] == outcome.particles.shape[2] else target[:, 0]
        data |= _metrics(truth, estimate, region)
        data["target_image"] = (image, truth[kept], seen)
        if target.shape[1] == outcome.particles.shape[2]:
            data["target"] = (parts, target[kept], {"units": "1", "long_name": "true image"})
    if outcome.particles.shape[1] > 1:
        spread = display(outcome.particles).std(1)[kept]
        data["std"] = (image, spread, seen | {"long_name": "standard deviation of the particles"})
    if particles:
        dims = ("recorded", "particle", "part", "y", "x")
        data["particles"] = (dims, outcome.particles[kept], {"units": "1", "long_name": "posterior samples"})
    found = {name: (dims, _numpy(value), attrs) for name, (dims, value, attrs) in data.items()}
    count = len(outcome.mask)
    subjects = np.arange(first, first + count)
    coords = {"subject": subjects, "recorded": subjects[kept], "part": PARTS[outcome.particles.shape[2]]}
    scalars = {
        "seconds": ("subject", np.full(count, seconds), {"units": "s", "long_name": "wall time a subject"}),
        "n_forward": ((), outcome.forwards, {"units": "1", "long_name": "network evaluations a particle"}),
    }
    return xr.Dataset(found | scalars, coords)


def _metrics(truth: Tensor, estimate: Tensor, region: Tensor | None) -> dict[str, Field]:
    found: dict[str, Field] = {
        "nmse": (("subject",), nmse(truth, estimate), {"units": "1", "long_name": "normalised mean squared error"}),
        "psnr": (("subject",), psnr(truth, estimate), {"units": "dB", "long_name": "peak signal-to-noise ratio"}),
        "ssim": (("subject",), ssim(truth, estimate), {"units": "1", "long_name": "structural similarity"}),
        "mae": (("subject",), mae(truth, estimate), {"units": "1", "long_name": "mean absolute error"}),
    }
    if region is not None:
        inside = region.to(truth)
        error = nmse(truth * inside, estimate * inside)
        found["nmse_region"] = (("subject",), error, {"units": "1", "long_name": "NMSE in the region of interest"})
    return found


def write_part(path: Path, data: xr.Dataset) -> None:
    """Write a batch of subjects atomically."""
    files.write(path, lambda temporary: data.to_netcdf(temporary, engine="h5netcdf"))


def read_part(path: Path) -> xr.Dataset:
    """The batch that ``write_part`` wrote."""
    with xr.open_dataset(path, engine="h5netcdf") as data:
        return data.load()


def concatenate(parts: list[xr.Dataset]) -> xr.Dataset:
    """Batches of subjects, one after another."""
    if len(parts) == 1:
        return parts[0]
    both = [name for name in parts[0].data_vars if "recorded" in parts[0][name].dims]
    subjects = xr.concat([p.drop_vars([*both, "recorded"]) for p in parts], "subject", data_vars="minimal", **JOINED)
    images = xr.concat([p[both] for p in parts], "recorded", data_vars="minimal", **JOINED)
    return subjects.merge(images)


def _numpy(value: Tensor) -> np.ndarray:
    array: np.ndarray = value.detach().cpu().numpy()
    return array.astype(np.int8) if value.dtype == torch.bool else array

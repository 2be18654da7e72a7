"""From tensors to xarray: what a run keeps of its subjects, with dims, units and names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from apps.mri.ads import Acquisition
from apps.mri.methods import display, point_estimate
from core import files
from simulators.mri.quality import mae, nmse, psnr, ssim

PARTS = {1: ["value"], 2: ["real", "imaginary"]}


def dataset(
    target: Tensor,
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
        target: ``(S, C, H, W)`` the true images.
        outcome: what was acquired and sampled.
        first: number of the first subject.
        seconds: wall time a subject.
        recorded: subjects whose images are kept, from the first on.
        region: ``(H, W)`` bool, where the error is also taken by itself.
        particles: keep the particles of the recorded subjects.
    """
    truth, estimate = display(target), point_estimate(outcome.particles)
    data: dict[str, tuple[tuple[str, ...], Tensor, dict[str, str]]] = {
        "nmse": (("subject",), nmse(truth, estimate), {"units": "1", "long_name": "normalised mean squared error"}),
        "psnr": (("subject",), psnr(truth, estimate), {"units": "dB", "long_name": "peak signal-to-noise ratio"}),
        "ssim": (("subject",), ssim(truth, estimate), {"units": "1", "long_name": "structural similarity"}),
        "mae": (("subject",), mae(truth, estimate), {"units": "1", "long_name": "mean absolute error"}),
        "actions": (("subject",), outcome.mask.sum(1), {"units": "1", "long_name": "actions acquired"}),
        "restarts": (("subject",), outcome.restarts, {"units": "1", "long_name": "particles restarted"}),
        "collapsed": (("subject",), outcome.collapsed, {"units": "1", "long_name": "particles agreed on everything"}),
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
    if region is not None:
        inside = region.to(truth)
        error = ((truth - estimate) * inside).square().sum((1, 2)) / (truth * inside).square().sum((1, 2))
        data["nmse_region"] = (("subject",), error, {"units": "1", "long_name": "NMSE in the region of interest"})
    kept = slice(0, recorded)
    image = ("recorded", "y", "x")
    parts = ("recorded", "part", "y", "x")
    seen = {"units": "1", "long_name": "image as it is looked at"}
    data |= {
        "target": (parts, target[kept], {"units": "1", "long_name": "true image"}),
        "recon": (parts, outcome.particles[kept].mean(1), {"units": "1", "long_name": "mean of the particles"}),
        "target_image": (image, truth[kept], seen),
        "image": (image, estimate[kept], seen | {"long_name": "mean of the particles as they are looked at"}),
    }
    if outcome.particles.shape[1] > 1:
        spread = display(outcome.particles[kept]).std(1)
        data["std"] = (image, spread, seen | {"long_name": "standard deviation of the particles"})
    if particles:
        dims = ("recorded", "particle", "part", "y", "x")
        data["particles"] = (dims, outcome.particles[kept], {"units": "1", "long_name": "posterior samples"})
    found = {name: (dims, _numpy(value), attrs) for name, (dims, value, attrs) in data.items()}
    subjects = np.arange(first, first + len(target))
    coords = {"subject": subjects, "recorded": subjects[kept], "part": PARTS[target.shape[1]]}
    scalars = {
        "seconds": ("subject", np.full(len(target), seconds), {"units": "s", "long_name": "wall time a subject"}),
        "n_forward": ((), outcome.forwards, {"units": "1", "long_name": "network evaluations a particle"}),
    }
    return xr.Dataset(found | scalars, coords)


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
    subjects = xr.concat([p.drop_vars([*both, "recorded"]) for p in parts], "subject", data_vars="minimal", coords="minimal", compat="override", join="override")  # fmt: skip
    images = xr.concat([p[both] for p in parts], "recorded", data_vars="minimal", coords="minimal", compat="override", join="override")  # fmt: skip
    return subjects.merge(images)


def _numpy(value: Tensor) -> np.ndarray:
    array: np.ndarray = value.detach().cpu().numpy()
    return array.astype(np.int8) if value.dtype == torch.bool else array

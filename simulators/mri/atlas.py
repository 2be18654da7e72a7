"""Complex slices of an averaged human head, from the ICBM 2009 templates that come with nilearn.

There is ONE averaged head: two slices differ by plane, contrast, pose and phase, never by anatomy, and neither do
training and test slices. A report on these images says so.

Notice required with the ICBM 2009 files. Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre,
Montreal Neurological Institute, McGill University. Permission to use, copy, modify, and distribute this software and
its documentation for any purpose and without fee is hereby granted, provided that the above copyright notice appear in
all copies. The authors and McGill University make no representations about the suitability of this software for any
purpose. It is provided "as is" without express or implied warranty. Cite Fonov et al., NeuroImage 54 (2011) 313-327.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from core.errors import InputError, MissingExtra, require
from simulators.mri.phase import draw_phase, with_phase
from simulators.mri.subjects import draw_subjects, each

_TISSUES = ("t1", "gm", "wm")
_SHAPE = (197, 233, 189)
_SIDE = max(_SHAPE)
# Slices that are resampled at once: 64 take about 0.3 GB.
_AT_ONCE = 64


@dataclass(frozen=True)
class Atlas:
    """Random slices of the averaged head in a field of view of 233 mm.

    A plane (axial, coronal or sagittal; at 25-75 % of its axis); magnitude max(w0 T1 + w1 GM + w2 WM, 0) with
    w0 ~ U(0.3, 1), w1 ~ U(-0.3, 0.5), w2 ~ U(-0.2, 0.6); rotation U(-20, 20) degrees plus 0 or 90, scale
    U(0.85, 1.1), anisotropy U(0.9, 1.1), shift U(-5, 5) % of the field of view in each axis; a Gaussian blur of half a
    pixel against aliasing; divided by its maximum; times a smooth phase (``simulators.mri.phase``).

    Attributes:
        size: pixels along H and W, 8 to 256.
        folder: where the three ``mni_icbm152_*_tal_nlin_sym_09a_converted.nii.gz`` lie; None: in the installed nilearn.

    Raises:
        InputError: a size outside 8..256.
    """

    size: int = 32
    folder: Path | None = None

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 256:
            raise InputError(f"size = {self.size}: must be between 8 and 256 pixels")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(2, size, size)."""
        return (2, self.size, self.size)

    def sample(self, count: int, seed: int, first: int = 0) -> Tensor:
        """Images (count, 2, size, size), float32, of modulus at most 1; image i depends on (seed, first + i) only.

        Raises:
            InputError: count < 1, a negative seed or first subject, or a template that is not the ICBM file.
            MissingExtra: nibabel, or nilearn when no folder is given, is not installed.
        """
        head = _templates(self.folder or _nilearn_data())
        parameters = draw_subjects(_draw, count, seed, first)
        parts = parameters.split(_AT_ONCE)
        return torch.cat([with_phase(self._magnitude(head, part), part[:, -5:]) for part in parts])

    def _magnitude(self, head: Tensor, parameters: Tensor) -> Tensor:
        """Magnitudes (N, size, size), float64, of the padded templates (3, 233, 233, 233)."""
        planes = torch.stack([head.select(1 + int(axis), int(k)) for axis, k in parameters[:, :2].tolist()])
        t1, gm, wm = planes.float().div_(255).unbind(1)
        w0, w1, w2 = each(parameters[:, 2:5].float())
        image = (w0 * t1 + w1 * gm + w2 * wm).clamp_(min=0)
        # Resampled at about the template's 1 mm first, so that the blur meets the anatomy and not its aliases.
        finer = math.ceil(_SIDE / self.size)
        pose = _pose(parameters[:, 5:10].float(), finer * self.size)
        fine = grid_sample(image[:, None], pose, align_corners=False)[:, 0].double()
        blur = _blur(self.size, finer).expand(len(fine), -1, -1)
        image = blur @ fine @ blur.mT
        return image / image.amax((-2, -1), keepdim=True)


def _draw(rng: np.random.Generator) -> list[float]:
    axis = int(rng.integers(3))
    margin = (_SIDE - _SHAPE[axis]) // 2
    slice_index = margin + round(rng.uniform(0.25, 0.75) * (_SHAPE[axis] - 1))
    weights = rng.uniform((0.3, -0.3, -0.2), (1.0, 0.5, 0.6))
    angle = math.radians(rng.uniform(-20.0, 20.0) + 90.0 * int(rng.integers(2)))
    pose = rng.uniform((0.85, 0.9, -0.05, -0.05), (1.1, 1.1, 0.05, 0.05))
    return [axis, slice_index, *weights, angle, *pose, *draw_phase(rng)]


def _pose(pose: Tensor, side: int) -> Tensor:
    """Where each of side x side pixels lies in the template: (N, side, side, 2), both axes from -1 to 1."""
    angle, scale, anisotropy, shift_x, shift_y = each(pose)
    centres = (torch.arange(side, dtype=pose.dtype) + 0.5) * (2 / side) - 1
    # The field of view is 2 wide in these coordinates, so a shift of a fraction f of it is 2 f.
    x = (centres - 2 * shift_x) / (scale * anisotropy)
    y = (centres[:, None] - 2 * shift_y) / scale
    return torch.stack((angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y), dim=-1)


def _blur(size: int, finer: int) -> Tensor:
    """Gaussian averages (size, finer * size) with a standard deviation of half a coarse pixel."""
    fine = (torch.arange(finer * size, dtype=torch.float64) + 0.5) / finer
    coarse = torch.arange(size, dtype=torch.float64) + 0.5
    return torch.softmax(-0.5 * ((coarse[:, None] - fine) / 0.5) ** 2, dim=-1)


def _nilearn_data() -> Path:
    # The package is located without being imported: only its data files are wanted.
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra('nilearn is not installed: pip install "szilard[mri]"')
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data"


@cache
def _templates(folder: Path) -> Tensor:
    """T1, grey and white matter, zero-padded to a cube: (3, 233, 233, 233), uint8."""
    nibabel = require("nibabel", "mri")
    volumes = []
    for tissue in _TISSUES:
        path = folder / f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz"
        if not path.is_file():
            raise InputError(f"{path}: no such file; allowed is a folder with the ICBM 2009a templates of nilearn")
        volume = np.asarray(nibabel.load(path).dataobj)
        if volume.shape != _SHAPE or volume.dtype != np.uint8:
            raise InputError(f"{path}: {volume.shape} {volume.dtype}, must be {_SHAPE} uint8")
        volumes.append(torch.from_numpy(volume.copy()))
    margins = [((_SIDE - n) // 2, _SIDE - n - (_SIDE - n) // 2) for n in reversed(_SHAPE)]
    return pad(torch.stack(volumes), [m for pair in margins for m in pair])

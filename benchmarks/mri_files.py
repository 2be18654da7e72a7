"""Reading one slice of a fastMRI volume: ours, with its checks, against ``fastmri.data.SliceDataset``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import h5py  # type: ignore[import-untyped]
import numpy as np

from benchmarks.clock import spread
from benchmarks.mri_peers import missing
from benchmarks.turns import milliseconds, ratio
from simulators.mri.readers import read_fastmri
from simulators.mri.readers.fastmri import fastmri_dataset

SHAPES = {"singlecoil": (640, 368), "multicoil": (15, 640, 368)}
SLICES = 4
_SPACE = "<{0}><matrixSize><x>{1}</x><y>{2}</y><z>1</z></matrixSize></{0}>"
_HEADER = (
    '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>'
    f"{_SPACE.format('encodedSpace', 640, 368)}{_SPACE.format('reconSpace', 320, 320)}"
    "<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>367</maximum><center>184</center>"
    "</kspace_encoding_step_1></encodingLimits></encoding></ismrmrdHeader>"
)


def main(repeats: int = 25) -> None:
    """Print the CPU time of a slice and the ratio."""
    if reason := missing("fastmri.data"):
        print(f"  reading a slice: fastmri is not importable here ({reason})")
        return
    for challenge, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = _volume(Path(folder) / "file.h5", shape)
            dataset = import_module("fastmri.data").SliceDataset(folder, challenge)
            works = {
                "theirs": partial(_every, dataset.__getitem__),
                "ours": partial(_every, partial(read_fastmri, path)),
                "dataset": partial(_every, fastmri_dataset(folder, challenge).__getitem__),
            }
            found = milliseconds(works, repeats)
        theirs, ours, checked = ([value / SLICES for value in found[name]] for name in works)
        print(f"  reading a slice of {' x '.join(map(str, shape))}, {challenge}, ms")
        print(f"    fastmri.data.SliceDataset  {spread(theirs)}")
        print(f"    ours, checked              {spread(ours)} = {ratio(ours, theirs)} (target at most 1.1)")
        print(f"    theirs with our checks     {spread(checked)} = {ratio(checked, theirs)}")


def _every(read: Callable[[int], object]) -> None:
    for number in range(SLICES):
        read(number)


def _volume(path: Path, shape: tuple[int, ...]) -> Path:
    """A file as fastMRI lays it out, of noise."""
    parts = np.random.default_rng(0).standard_normal((SLICES, *shape, 2), dtype=np.float32) * 1e-5
    with h5py.File(path, "w") as file:
        file["kspace"] = parts.view(np.complex64)[..., 0]
        file["ismrmrd_header"] = _HEADER
        for target in ("reconstruction_esc", "reconstruction_rss"):
            file[target] = np.abs(parts[..., 0]).reshape(SLICES, -1)[:, : 320 * 320].reshape(SLICES, 320, 320)
        file.attrs.update(acquisition="CORPD_FBK", max=3e-4, norm=0.04)
    return path

"""ISMRMRD raw data: one HDF5 file a scan, one entry a readout (Inati et al. 2017, Magn. Reson. Med. 77, 411)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError, require
from simulators.mri.readers.hdf5 import dataset, open_hdf5
from simulators.mri.readers.header import Header
from simulators.mri.readers.kspace import KSpace

# Readouts that are no line of the image: noise, calibration alone, navigators, phase correction, feedback, dummies.
NOT_IMAGING = (
    "ACQ_IS_NOISE_MEASUREMENT",
    "ACQ_IS_PARALLEL_CALIBRATION",
    "ACQ_IS_NAVIGATION_DATA",
    "ACQ_IS_PHASECORR_DATA",
    "ACQ_IS_HPFEEDBACK_DATA",
    "ACQ_IS_DUMMYSCAN_DATA",
    "ACQ_IS_RTFEEDBACK_DATA",
    "ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA",
    "ACQ_IS_PHASE_STABILIZATION_REFERENCE",
    "ACQ_IS_PHASE_STABILIZATION",
)
# What makes an image of its own; averages and repetitions of one line are averaged.
SLICE_COUNTERS = ("slice", "contrast", "phase", "set")


def read_ismrmrd(path: str | Path) -> KSpace:
    """The Cartesian 2-D k-space of an ISMRMRD file (group ``dataset``, its first encoding).

    Readouts that are no line of the image are dropped, repeated lines averaged, an asymmetric echo is placed by its
    centre sample, and readout oversampling is removed in the image domain (orthonormal transforms, so that the noise of
    a sample keeps its size).

    Returns:
        k-space (slices, coils, H, W), H the readout and W the phase encodes; the first axis runs over slice, then
        contrast, cardiac phase and set.

    Raises:
        InputError: no whole HDF5 file, no ``dataset/xml`` or ``dataset/data``, no line of an image, a trajectory that
            is not Cartesian, a 3-D encoding, readouts of unequal size, or counters outside the encoded matrix.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        xml = dataset(file, "dataset/xml")
        header = Header(xml[0] if xml.shape else xml[()], f"{path}: dataset/xml")
        entries = dataset(file, "dataset/data")
        if entries.dtype.names is None or not {"head", "data"} <= set(entries.dtype.names):
            raise InputError(f"{path}: dataset/data: {entries.dtype}, must be ISMRMRD acquisitions (head, data)")
        readouts = entries[()]
    where = f"{path}: dataset/data"
    trajectory = header.text("encoding", "trajectory") or "cartesian"
    if trajectory.lower() != "cartesian":
        raise InputError(f"{header.where}: encoding/trajectory is {trajectory}, must be cartesian")
    readouts = _imaging(readouts)
    if not len(readouts):
        raise InputError(f"{where}: no line of an image among {entries.shape} acquisitions")
    height, width, _ = header.matrix("encodedSpace")
    columns = _columns(readouts, header, width, where)
    lines = _readouts(readouts, height, where)
    counters = np.stack([readouts["head"]["idx"][name] for name in SLICE_COUNTERS], axis=1)
    groups, group = np.unique(counters, axis=0, return_inverse=True)
    cells = torch.from_numpy(group.reshape(-1) * width + columns)
    total = torch.zeros(len(groups) * width, *lines.shape[1:], dtype=torch.complex64).index_add_(0, cells, lines)
    count = torch.bincount(cells, minlength=len(total))
    mean = total / count.clamp(min=1)[:, None, None]
    kspace = mean.unflatten(0, (len(groups), width)).permute(0, 2, 3, 1).contiguous()
    return KSpace(
        _without_oversampling(kspace, header),
        (count > 0).unflatten(0, (len(groups), width)),
        header.padding(width, complete=False),
        attrs={"recon_size": header.matrix("reconSpace")},
        path=path,
    )


def _imaging(readouts: np.ndarray) -> np.ndarray:
    constants = require("ismrmrd", "mri")
    dropped = np.uint64(sum(1 << (getattr(constants, name) - 1) for name in NOT_IMAGING))
    head = readouts["head"]
    return readouts[((head["flags"] & dropped) == 0) & (head["encoding_space_ref"] == 0)]


def _columns(readouts: np.ndarray, header: Header, width: int, where: str) -> np.ndarray:
    """Column along W of each readout: the central step goes to W // 2."""
    idx = readouts["head"]["idx"]
    if idx["kspace_encode_step_2"].any():
        raise InputError(
            f"{where}: kspace_encode_step_2 up to {idx['kspace_encode_step_2'].max()}: a 3-D encoding, must be 2-D"
        )
    steps = idx["kspace_encode_step_1"].astype(np.int64)
    columns = steps - header.center(default=width // 2) + width // 2
    outside = (columns < 0) | (columns >= width)
    if outside.any():
        raise InputError(
            f"{where}: kspace_encode_step_1 {steps[outside][0]} lies outside the encoded matrix of {width} lines"
        )
    return columns


def _readouts(readouts: np.ndarray, height: int, where: str) -> Tensor:
    """Samples (readouts, coils, height), complex, DC at height // 2."""
    head = readouts["head"]
    coils, samples = int(head["active_channels"][0]), int(head["number_of_samples"][0])
    for number, (entry, data) in enumerate(zip(head, readouts["data"], strict=True)):
        size = int(entry["active_channels"]), int(entry["number_of_samples"])
        if size != (coils, samples) or len(data) != 2 * coils * samples:
            raise InputError(
                f"{where}: scan_counter {entry['scan_counter']} (line {number} of the image) has {size[0]} coils of "
                f"{size[1]} samples in {len(data)} numbers, the first has {coils} of {samples}: must be equal"
            )
    lines = np.stack(list(readouts["data"])).astype(np.float32).view(np.complex64).reshape(-1, coils, samples)
    position = np.arange(samples)
    kept = position >= head["discard_pre"][:, None]
    kept &= position < samples - head["discard_post"].astype(np.int64)[:, None]
    # Some converters leave center_sample unset, which matters only where the echo is cut.
    starts = (
        np.zeros(len(head), np.int64) if samples == height else height // 2 - head["center_sample"].astype(np.int64)
    )
    if starts.min() < 0 or starts.max() + samples > height:
        raise InputError(
            f"{where}: {samples} samples with center_sample {head['center_sample'][starts.argmin()]} do not fit an "
            f"encoded readout of {height}"
        )
    placed = np.zeros((len(lines), coils, height), np.complex64)
    rows = np.arange(len(lines))[:, None]
    placed[rows, :, starts[:, None] + position] = (lines * kept[:, None]).transpose(0, 2, 1)
    return torch.from_numpy(placed)


def _without_oversampling(kspace: Tensor, header: Header) -> Tensor:
    """K-space of the field of view that is reconstructed, cropped along the readout."""
    encoded, wanted = (
        header.number("encoding", space, "fieldOfView_mm", "x") for space in ("encodedSpace", "reconSpace")
    )
    height = kspace.shape[-2]
    kept = round(height * wanted / encoded) if encoded > 0 else 0
    if not 0 < kept < height:
        return kspace
    image = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(kspace, dim=-2), dim=-2, norm="ortho"), dim=-2)
    image = image.narrow(-2, height // 2 - kept // 2, kept)
    return torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(image, dim=-2), dim=-2, norm="ortho"), dim=-2)

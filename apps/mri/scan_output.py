"""What one scan leaves behind: files for other tools, a picture, and a few lines on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr
from rich.console import Console
from rich.table import Table

from apps.mri.export import write_lines
from apps.mri.figures import Snapshot, acquisition_gif, acquisition_picture
from apps.mri.recording import write_part
from apps.mri.scan import Scan
from apps.mri.table import FAULTS
from core import files
from simulators.mri.operators import Pixels


def write_scan(out: Path, found: xr.Dataset, scan: Scan, snapshots: Sequence[Snapshot]) -> None:
    """Write ``result.nc``, ``mask.csv``, ``mask.cfl``, ``scan.png`` and, of snapshots, ``scan.gif``.

    Args:
        out: the folder.
        found: the outcome, of one subject.
        scan: what was scanned.
        snapshots: of the way there; none: no GIF.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_part(out / "result.nc", found)
    write_lines(out / "mask", found.isel(subject=0))
    kind = "pixels" if isinstance(scan.operator, Pixels) else "kspace_lines"
    picture = acquisition_picture(found, kind)
    files.write(out / "scan.png", lambda path: picture.savefig(path, dpi=120, format="png"))
    if snapshots:
        acquisition_gif(out / "scan.gif", snapshots, kind)


def print_scan(found: xr.Dataset, scan: Scan) -> None:
    """Say on the terminal what was acquired and, where the truth is known, how good the image is."""
    table = Table(box=None, show_header=False, pad_edge=False)
    if scan.size != (grid := tuple(scan.operator.shape[1:])):
        table.add_row("k-space", "{} x {}, cropped or padded to {} x {}".format(*scan.size, *grid))
    taken, width = int(found.actions[0]), scan.operator.actions
    table.add_row("acquired", f"{taken} of {width} ({width / taken:.2f}-fold acceleration)")
    order = [int(line) for line in found.acq_order.values[0] if line >= 0]
    if (center := scan.operator.center) is None:
        table.add_row("order", ", ".join(map(str, order)))
    else:
        table.add_row("order (offset from DC)", ", ".join(f"{line - center:+d}" for line in order))
    names = {"psnr": "PSNR, dB", "ssim": "SSIM", "nmse": "NMSE"}
    for name, label in names.items():
        if name in found:
            table.add_row(label, f"{float(found[name][0]):.4g} (one subject: no interval)")
    if "psnr" not in found:
        table.add_row("truth", "not known: the file is undersampled")
    for fault, what in FAULTS.items():
        if float(found[fault][0]):
            table.add_row(fault, f"{int(found[fault][0])} ({what})")
    Console(highlight=False).print(table)

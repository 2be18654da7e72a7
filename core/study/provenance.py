"""Where a number comes from: the versions, the code and the machine that made it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import xarray as xr


def version() -> str:
    """Version of the installed distribution."""
    return importlib.metadata.version("szilard")


@lru_cache(1)
def commit() -> str:
    """Git commit of the code, with ``-dirty`` when files differ from it; empty outside a repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def provenance(device: torch.device) -> dict[str, str | int]:
    """Versions, commit, device and thread count, ready for NetCDF attributes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "version": version(),
        "commit": commit(),
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "xarray": xr.__version__,
    }

"""A stored prior, of whichever kind it is."""

from __future__ import annotations

from pathlib import Path

import torch

from core import files
from core.diffusion.diffusers_prior import DiffusersPrior
from core.diffusion.mixture import GaussianMixturePrior
from core.diffusion.prior import Prior
from core.diffusion.unet import NetworkPrior, Precision


def load_prior(directory: str | Path, device: torch.device | str = "cpu", *, precision: Precision = "float32") -> Prior:
    """The prior in a folder: a mixture, the reference U-Net, or a directory of diffusers.

    ``precision`` is that of the arithmetic inside a network; a mixture has none.

    Raises:
        InputError: no prior there, or files that are damaged or do not fit each other.
        MissingExtra: a diffusers directory, and diffusers is not installed.
    """
    folder = Path(directory)
    if (folder / "unet").is_dir() or (folder / "config.json").is_file():
        return DiffusersPrior.load(folder, precision=precision).to(device)
    if "network" in files.read_json(folder / "prior.json"):
        return NetworkPrior.load(folder, precision=precision).to(device)
    return GaussianMixturePrior.load(folder).to(device)

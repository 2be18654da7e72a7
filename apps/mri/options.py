"""What the verbs of ``szilard mri`` take, and how it is read: each mistake is told in one line."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, get_args

import typer

from apps.mri.entropy import SCORES, Score
from apps.mri.images import Images
from core.errors import InputError


class Kind(StrEnum):
    """What a file holds."""

    image = "image"
    kspace = "kspace"


class Network(StrEnum):
    """Kinds of priors that are trained here."""

    gmm = "gmm"
    unet = "unet"


class Norm(StrEnum):
    """Over what the residual's norm runs."""

    joint = "joint"
    per_particle = "per_particle"


class PrecisionName(StrEnum):
    """Arithmetic inside a network."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Sampler(StrEnum):
    """How the posterior is sampled."""

    dps = "dps"
    exact = "exact"


PriorOption = Annotated[Path, typer.Option("--prior", help="Folder of a prior: of train-prior, or of diffusers.")]
KindOption = Annotated[Kind | None, typer.Option(help="What an npy, npz, NIfTI or cfl file holds.")]
ImagesArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGES",
        help="digits, atlas, adaptivity, knee, phantom2d, mnist, fastmri, or a file of images (npy, NIfTI, h5, cfl).",
    ),
]


SizeOption = Annotated[
    int | None, typer.Option(help="Rows and columns.  \\[default: 32; digits: 8; a file's own]", min=8, max=1024)
]
ComplexOption = Annotated[
    bool, typer.Option("--complex", help="Of a file: make real images complex, for k-space lines, of --size.")
]
PrecisionOption = Annotated[PrecisionName, typer.Option("--precision", help="Arithmetic inside a network.")]


def images_of(name: str, size: int | None, train: int | None, data: Path | None, make_complex: bool) -> Images:
    """The images that a name or a path means."""
    kinds = get_args(Images.model_fields["kind"].annotation)
    if name in kinds and name != "files":
        if make_complex:
            raise InputError(f"--complex: is for images of a file, {name} are what they are")
        usual = 8 if name == "digits" else 32
        images = Images(kind=name, size=size or usual, train=train, data=data)  # type: ignore[arg-type]
        if images.missing:
            raise InputError(images.missing.replace("set images.data", "give --data"))
        return images
    if not Path(name).exists():
        known = ", ".join(kind for kind in kinds if kind != "files")
        raise InputError(f"{name}: no such file, and not one of {known}")
    if size is not None and not make_complex:
        raise InputError(f"--size {size}: a file keeps its own, unless --complex crops or pads k-space")
    path, grid = Path(name), size or Images.model_fields["size"].default
    return Images(kind="files", train=train, train_path=path, test_path=path, complex=make_complex, size=grid)


def folder(out: Path) -> None:
    """Refuse ``--out`` where a file is in its place, before anything is computed."""
    there = next((place for place in (out, *out.parents) if place.exists()), out)
    if there.exists() and not there.is_dir():
        raise InputError(f"--out {out}: {'' if there == out else f'{there} '}is a file, not a folder")


def score_of(name: str) -> Score:
    """The score of that name."""
    if name not in SCORES:
        raise InputError(f"--score {name}: must be one of {', '.join(SCORES)}")
    return name


def shares(name: str, text: str) -> tuple[float, float]:
    """Two shares of a whole, the first below the second."""
    try:
        start, end = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{name} {text}: must be two numbers separated by a comma, such as 0.02,0.6") from None
    if not 0 <= start < end <= 1:
        raise InputError(f"{name} {text}: must be 0 <= from < to <= 1, shares of the diffusion steps")
    return start, end


def whole_numbers(name: str, text: str) -> list[int]:
    """Whole numbers separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{name} {text}: must be whole numbers separated by commas, such as 4,8") from None

"""Which images a study is about: what the prior is trained on, and the subjects that it is tested on."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import interpolate

from core.errors import InputError
from core.study import Config
from simulators.mri import readers
from simulators.mri.adaptivity import Adaptivity
from simulators.mri.atlas import Atlas
from simulators.mri.digits import Digits
from simulators.mri.knee import Knee
from simulators.mri.mnist import read_mnist
from simulators.mri.operators import fft2c, ifft2c, to_channels, to_complex
from simulators.mri.phantom2d import Phantom2D

_HELD_OUT = 5
"""Of one file for both parts, every so many images are test images and the others training images."""
_WORLDS = {"atlas": Atlas, "adaptivity": Adaptivity, "knee": Knee, "phantom2d": Phantom2D}


class Images(Config):
    """A kind of images, with its training part and its test part."""

    kind: Literal["digits", "atlas", "adaptivity", "knee", "phantom2d", "mnist", "fastmri", "files"]
    """``digits`` of scikit-learn; simulated ``atlas``, ``adaptivity``, ``knee`` and ``phantom2d``; ``mnist`` and
    ``fastmri`` from folders, and ``files`` of one's own, whose blank images are left out."""
    size: int = Field(default=32, ge=8, le=1024)
    """Rows and columns of simulated and fastMRI images, and of ``files`` made complex; digits have 8 and MNIST 32."""
    train: int | None = Field(default=None, ge=1)
    """Training images; all there are, or 3000 simulated ones, if null."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of simulated training images."""
    test_seed: int = Field(default=1, ge=0, lt=2**32)
    """Of simulated test images."""
    stride: int = Field(default=1, ge=1)
    """Of the test images of a data set, every so many are used."""
    data: Path | None = None
    """Folder of ``mnist`` or ``fastmri``; $SZILARD_DATA/mnist or $SZILARD_DATA/fastmri if null."""
    train_path: Path = Path("knee_singlecoil_train")
    """``fastmri``: folder of training volumes in ``data``. ``files``: file with training images; if it is the test
    file too, every fifth image is a test image."""
    test_path: Path = Path("knee_singlecoil_val")
    """``fastmri``: folder of test volumes in ``data``. ``files``: file with test images."""
    test_split: str | None = "knee_test"
    """``fastmri``: packaged list, or file, of the test volumes' names; all in the folder if null."""
    complex: bool = False
    """``files``: divide by the largest magnitude, take real images for complex ones of phase zero, and crop or pad
    their k-space to ``size``."""

    @model_validator(mode="after")
    def _only_files(self) -> Self:
        if self.complex and self.kind != "files":
            raise InputError(f"images.complex: is for kind files, not {self.kind}")
        return self

    @property
    def generated(self) -> bool:
        """Whether these images need no files of the user."""
        return self.kind in _WORLDS or self.kind == "digits"

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of an image; None where only the files know."""
        if self.kind == "files":
            return (2, self.size, self.size) if self.complex else None
        size = 32 if self.kind == "mnist" else self.size
        return (1 if self.kind in ("digits", "mnist") else 2, size, size)

    @property
    def missing(self) -> str:
        """Why these images cannot be had here; empty where they can."""
        if self.generated:
            return ""
        paths = [self.train_path, self.test_path] if self.kind == "files" else [self.folder]
        absent = [path for path in paths if path is None or not path.exists()]
        if not absent:
            return ""
        if absent[0] is None:
            return f"{self.kind}: no folder given: set images.data or $SZILARD_DATA"
        return f"{self.kind}: {absent[0]} does not exist"

    @property
    def folder(self) -> Path | None:
        """Where the data set lies."""
        if self.data is not None:
            return self.data
        root = os.environ.get("SZILARD_DATA")
        return Path(root) / self.kind if root else None

    def smoke(self) -> Images:
        """Simulated images of the same shape, where these are a data set."""
        if self.generated:
            return self
        if self.kind == "mnist":
            return Images(kind="digits", size=32, train=64)
        return Images(kind="knee", size=self.size, train=64)

    def training(self) -> Tensor:
        """The training images (N, C, H, W), float32.

        Raises:
            InputError: files that are absent or not what they should be.
        """
        if self.kind in _WORLDS:
            return self._world().sample(self.train or 3000, self.seed)
        images = self._training()
        return images[: self.train] if self.train else images

    def test(self, first: int, count: int) -> Tensor:
        """``count`` test images (count, C, H, W), float32, from number ``first`` on.

        Raises:
            InputError: fewer than that, or files that are absent or not what they should be.
        """
        if self.kind in _WORLDS:
            return self._world().sample(count, self.test_seed, first)
        held = self._fastmri_test() if self.kind == "fastmri" else self._test()
        if first + count > len(held):
            raise InputError(f"subjects: {first} to {first + count - 1}, but there are {len(held)} test images")
        wanted = held[first : first + count]
        if isinstance(wanted, Tensor):
            return wanted
        return torch.cat([readers.training_images(readers.read_fastmri(p, i), self.size) for p, i in wanted])

    @property
    def available(self) -> int | None:
        """How many test images there are; None: as many as wanted."""
        if self.kind in _WORLDS:
            return None
        return len(self._fastmri_test() if self.kind == "fastmri" else self._test())

    def _world(self) -> Atlas | Adaptivity | Knee | Phantom2D:
        return _WORLDS[self.kind](size=self.size)

    def _test(self) -> Tensor:
        if self.kind == "files":
            images = self._read(self.test_path)
            images = images[::_HELD_OUT] if self.test_path == self.train_path else images
        else:
            images = _fit(Digits().test(), self.size) if self.kind == "digits" else read_mnist(self._data(), "test")
        return images[:: self.stride]

    def _training(self) -> Tensor:
        if self.kind == "digits":
            return _fit(Digits().train(), self.size)
        if self.kind == "mnist":
            return read_mnist(self._data(), "train")
        if self.kind == "files":
            images = self._read(self.train_path)
            held_out = torch.arange(len(images)) % _HELD_OUT == 0
            return images[~held_out] if self.test_path == self.train_path else images
        pairs = readers.fastmri_slices(self._data() / self.train_path, challenge="singlecoil", with_rss=True)
        volumes = sorted({path for path, _ in pairs})
        return torch.cat([readers.training_images(readers.read_fastmri(path), self.size) for path in volumes])

    def _fastmri_test(self) -> list[tuple[Path, int]]:
        folder = self._data() / self.test_path
        return readers.fastmri_slices(folder, self.test_split, challenge="singlecoil", with_rss=True)[:: self.stride]

    def _read(self, path: Path) -> Tensor:
        file = path if path.is_file() else path.with_name(f"{path.name}.cfl")  # BART names a pair of files
        if not file.is_file():
            raise InputError(f"{path}: no such file")
        stat = file.stat()
        images = _read(path, stat.st_mtime_ns, stat.st_size)
        if not self.complex:
            return images
        known = to_complex(images) if images.shape[1] == 2 else images[:, 0].to(torch.complex64)
        fitted = ifft2c(readers.fit_kspace(fft2c(known), self.size))
        return to_channels(fitted / fitted.abs().max())

    def _data(self) -> Path:
        if self.folder is None or not self.folder.is_dir():
            raise InputError(self.missing)
        return self.folder


def _fit(images: Tensor, size: int) -> Tensor:
    """Digits at another size than 8, bilinearly."""
    if size == images.shape[-1]:
        return images
    return interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


@lru_cache(maxsize=2)
def _read(path: Path, modified: int, size: int) -> Tensor:
    """The images of a file, read once as long as it does not change; blank ones have no metric and are left out."""
    found = readers.read(path, None if path.name.endswith((".h5", ".hdf5", ".mrd")) else "image")
    images = found.require_full().image() if isinstance(found, readers.KSpace) else found
    flat = images.flatten(1)
    return images[flat.amin(1) < flat.amax(1)]

"""MNIST from its own files (LeCun et al.): idx images, padded to 32 x 32 and scaled to [-1, 1]."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError

FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}


def read_mnist(folder: str | Path, part: str) -> Tensor:
    """Images (N, 1, 32, 32), float32, of the ``train`` or ``test`` file in ``folder``, gzipped or not.

    Raises:
        InputError: no such file, or one that is not a whole idx file of 28 x 28 bytes an image.
    """
    name = FILES[part]
    found = [path for path in (Path(folder) / name, Path(folder) / f"{name}.gz") if path.is_file()]
    if not found:
        raise InputError(f"{folder}: has neither {name} nor {name}.gz")
    path = found[0]
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file ({error})") from error
    header = np.frombuffer(content[:16], dtype=">u4") if len(content) >= 16 else np.zeros(4, np.uint32)
    shape = tuple(int(n) for n in header[1:])
    if header[0] != 0x803 or shape[1:] != (28, 28) or len(content) != 16 + math.prod(shape):
        raise InputError(f"{path}: not an idx file of 28 x 28 byte images")
    images = torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).reshape(shape).copy())
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2))
    return (padded / 127.5 - 1)[:, None]

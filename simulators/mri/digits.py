"""Handwritten digits of 8 x 8 pixels: the smallest real images (UCI optical recognition, through scikit-learn)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from core.errors import require

_TRAIN = 1500
_SPLIT_SEED = 1


@dataclass(frozen=True)
class Digits:
    """1797 digits in [-1, 1], split once and for all by a permutation of seed 1.

    Attributes:
        shape: (1, 8, 8).
    """

    shape: ClassVar[tuple[int, int, int]] = (1, 8, 8)

    def train(self) -> Tensor:
        """The 1500 training images (1500, 1, 8, 8), float32.

        Raises:
            MissingExtra: scikit-learn is not installed.
        """
        return _images()[:_TRAIN].clone()

    def test(self) -> Tensor:
        """The 297 test images (297, 1, 8, 8), float32.

        Raises:
            MissingExtra: scikit-learn is not installed.
        """
        return _images()[_TRAIN:].clone()


@cache
def _images() -> Tensor:
    levels = require("sklearn.datasets", "mri").load_digits().images
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(levels))
    return torch.as_tensor(levels[order] / 8 - 1, dtype=torch.float32).unsqueeze(1)

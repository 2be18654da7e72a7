"""Random numbers of the type of a tensor and on its device."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """In [0, 1)."""
    return torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)

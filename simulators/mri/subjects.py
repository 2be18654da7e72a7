"""One stream of random numbers per subject, so that a subject is the same in whatever batch it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError


def draw_subjects(
    draw: Callable[[np.random.Generator], Sequence[float]], count: int, seed: int, first: int = 0
) -> Tensor:
    """What ``draw`` takes from the stream of each of ``count`` subjects: a float64 tensor (count, parameters).

    Subject i draws from NumPy's generator of (seed, first + i), and from no other.

    Raises:
        InputError: count < 1, or a negative seed or first subject.
    """
    if count < 1 or seed < 0 or first < 0:
        raise InputError(f"count = {count}, seed = {seed}, first = {first}: count must be >= 1, the others >= 0")
    rows = [draw(np.random.default_rng((seed, index))) for index in range(first, first + count)]
    return torch.as_tensor(np.asarray(rows, dtype=np.float64))


def each(parameters: Tensor) -> tuple[Tensor, ...]:
    """The columns of (count, parameters), each (count, 1, 1) to meet images (count, H, W)."""
    return parameters[..., None, None].unbind(1)

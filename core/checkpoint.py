"""Where a long computation is kept on disk, so that it goes on after a kill exactly where it was."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from core import files
from core.rl.checkpoint import read_tensors
from core.simulation import tree

COMPLEX = ":complex"
"""Ends the name of a complex tensor in the file, which holds real and imaginary part: the format has no complex128."""
EVERY_SECONDS = 20.0
"""What a kill loses at most."""


class Checkpoint:
    """A file of tensors, replaced atomically.

    Args:
        path: the file; None keeps nothing.
        every_seconds: pause after which the next save is ``due``.
    """

    def __init__(self, path: Path | None, every_seconds: float = EVERY_SECONDS) -> None:
        self.path = path
        self.every_seconds = every_seconds
        self._saved = time.monotonic()

    def load(self) -> dict[str, Tensor] | None:
        """What was saved last; None if nothing was.

        Raises:
            InputError: the file is damaged.
        """
        if self.path is None or not self.path.exists():
            return None
        return {
            name.removesuffix(COMPLEX): torch.view_as_complex(x) if name.endswith(COMPLEX) else x
            for name, x in read_tensors(self.path)[0].items()
        }

    @property
    def due(self) -> bool:
        """Whether the pause since the last save is over."""
        return self.path is not None and time.monotonic() - self._saved >= self.every_seconds

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Save now."""
        if self.path is not None:
            plain = {f"{name}{COMPLEX}" if x.is_complex() else name: tree.as_real(x) for name, x in tensors.items()}
            plain = {name: x.detach().cpu().clone().contiguous() for name, x in plain.items()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.write(self.path, safetensors.torch.save(plain))
        self._saved = time.monotonic()

"""Clips as every lip-reading model takes them: features or frames, padded to the longest of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InputError

FEWEST_FRAMES = 5
SMALLEST_SIDE = 24


@dataclass(frozen=True)
class Clips:
    """P silent clips of up to T frames.

    Attributes:
        frames: ``(P, T, D)`` features of each frame, ``(P, T, H, W)`` grey or ``(P, 3, T, H, W)`` colour in [0, 1];
            what stands after a clip's end is never read.
        length: ``(P,)`` int64, frames of each clip, at least 1.
    """

    frames: Tensor
    length: Tensor

    @classmethod
    def whole(cls, frames: Tensor) -> Clips:
        """Clips that all have T frames."""
        t = frames.shape[2 if frames.dim() == 5 else 1]
        return cls(frames, torch.full((len(frames),), t, device=frames.device))

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def steps(self) -> int:
        """T."""
        return self.frames.shape[2 if self.frames.dim() == 5 else 1]

    @property
    def valid(self) -> Tensor:
        """``(P, T)`` bool, the frames before a clip's end."""
        return torch.arange(self.steps, device=self.length.device) < self.length.unsqueeze(1)

    def to(self, device: torch.device | str) -> Clips:
        """The clips on a device."""
        return Clips(self.frames.to(device), self.length.to(device))

    def features(self, inputs: int) -> Tensor:
        """``(P, T, D)``, zero after each end.

        Raises:
            InputError: these are no features of D = ``inputs`` numbers.
        """
        if self.frames.dim() != 3 or self.frames.shape[2] != inputs:
            shape = tuple(self.frames.shape)
            raise InputError(f"Clips.frames: shape {shape}; this model reads features (P, T, {inputs})")
        return torch.where(self.valid.unsqueeze(-1), self.frames, 0.0)

    def images(self, channels: int) -> Tensor:
        """``(P, channels, T, H, W)``, zero after each end; grey is repeated for 3 channels, colour averaged for 1.

        Raises:
            InputError: these are no images.
        """
        x = self.frames
        if x.dim() not in (4, 5) or (x.dim() == 5 and x.shape[1] not in (1, 3)):
            raise InputError(f"Clips.frames: shape {tuple(x.shape)}; this model reads (P, T, H, W) or (P, 3, T, H, W)")
        x = x.unsqueeze(1) if x.dim() == 4 else x
        x = torch.where(self.valid[:, None, :, None, None], x, 0.0)
        if x.shape[1] != channels:
            x = x.expand(-1, channels, -1, -1, -1) if channels > 1 else x.mean(1, keepdim=True)
        return x

    def check(self, where: str = "clip") -> Clips:
        """The clips if a model can read them; looks at the numbers, so it waits for a device.

        Raises:
            InputError: a clip has fewer than 5 frames or more than there are, a frame is smaller than 24 x 24, or a
                number before a clip's end is not finite; the message begins with ``where`` and the row.
        """
        if self.frames.dim() >= 4 and min(self.frames.shape[-2:]) < SMALLEST_SIDE:
            high, wide = self.frames.shape[-2:]
            raise InputError(f"{where}: frames of {high} x {wide}; allowed: at least {SMALLEST_SIDE} x {SMALLEST_SIDE}")
        for row in torch.nonzero((self.length < FEWEST_FRAMES) | (self.length > self.steps)).flatten().tolist():
            found = int(self.length[row])
            raise InputError(f"{where} {row}: {found} frames; allowed: {FEWEST_FRAMES} to {self.steps}")
        time_first = self.frames.transpose(1, 2) if self.frames.dim() == 5 else self.frames
        finite = torch.isfinite(time_first).flatten(2).all(-1) | ~self.valid
        for row, frame in torch.nonzero(~finite).tolist():
            raise InputError(f"{where} {row}: frame {frame} holds a number that is not finite")
        return self

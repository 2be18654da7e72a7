"""How speakers differ: how far and how fast they move their mouths, and what these look like."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InputError
from core.simulation import tree

GAIN, LEAST, MOST = 0.15, 0.5, 1.5
"""Standard deviation of the gains and their bounds."""
BIAS, RATE = 0.04, 0.10
"""Standard deviations of the biases and of the logarithm of the rates."""
UPPER_LIP, LOWER_LIP, LIPS = 0.14, 0.20, 0.15
"""Thickness of the lips in units of half the picture's height, and standard deviation of its logarithm."""
SKIN, CONTRAST = (0.35, 0.8), (0.1, 0.3)
"""Ranges of the grey of the skin, and of how much darker the lips are."""
SCALE = 0.08
"""Standard deviation of the size of the mouth in the picture."""


@dataclass(frozen=True)
class Appearance:
    """What does not move; all ``(n,)``.

    Attributes:
        upper: thickness of the upper lip.
        lower: of the lower lip.
        skin: grey of the skin.
        lip: grey of the lips.
        scale: size of the mouth.
    """

    upper: Tensor
    lower: Tensor
    skin: Tensor
    lip: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Speakers:
    """n speakers; a mouth shape z becomes gain * z + bias.

    Attributes:
        gain: ``(n, 6)``.
        bias: ``(n, 6)``.
        rate: ``(n,)`` factor on all durations.
        appearance: of their mouths.
    """

    gain: Tensor
    bias: Tensor
    rate: Tensor
    appearance: Appearance

    @classmethod
    def draw(
        cls, n: int, seed: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Speakers:
        """The first n speakers of a population, the same on every device; another seed gives other people.

        Raises:
            InputError: n below 1.
        """
        if n < 1:
            raise InputError(f"speakers: {n}; allowed: at least 1")
        generator = torch.Generator().manual_seed(seed)
        # One row a speaker, so that more speakers of a seed begin with the same ones.
        rows = [(torch.randn(16, generator=generator), torch.rand(2, generator=generator)) for _ in range(n)]
        normal = torch.stack([x for x, _ in rows]).to(device, dtype)
        uniform = torch.stack([x for _, x in rows]).to(device, dtype)
        skin = SKIN[0] + (SKIN[1] - SKIN[0]) * uniform[:, 0]
        appearance = Appearance(
            upper=UPPER_LIP * torch.exp(LIPS * normal[:, 13]),
            lower=LOWER_LIP * torch.exp(LIPS * normal[:, 14]),
            skin=skin,
            lip=skin - (CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * uniform[:, 1]),
            scale=1.0 + SCALE * normal[:, 15],
        )
        gain = (1.0 + GAIN * normal[:, :6]).clamp(LEAST, MOST)
        return cls(gain, BIAS * normal[:, 6:12], torch.exp(RATE * normal[:, 12]), appearance)

    def __len__(self) -> int:
        return len(self.rate)

    def __getitem__(self, rows: Tensor | slice) -> Speakers:
        return tree.take(self, rows)

    def to(self, device: torch.device | str) -> Speakers:
        """The same speakers on a device."""
        return tree.map_tensors(lambda x: x.to(device), self)

"""The path of the mouth: every segment pulls towards its shape, the more so the nearer it is in time.

Cohen and Massaro, "Modeling coarticulation in synthetic visual speech", Models and Techniques in Computer Animation,
1993: z(t) = sum_j D_j(t) target_j / sum_j D_j(t) with dominances D_j(t) = alpha_j exp(-theta |t - c_j|).
"""

from __future__ import annotations

import torch
from torch import Tensor

from simulators.lips.draws import normal
from simulators.lips.timing import Schedule
from simulators.lips.visemes import DOMINANCE, TARGETS

THETA = 0.9
"""Decay of a dominance per frame."""
SPREAD = 0.1
"""Standard deviation of the logarithm of a segment's dominance."""
SILENCE = 3.0
"""Factor on the dominance of the silences at both ends; theirs is full inside and decays twice as fast outside."""


@torch.no_grad()
def articulate(times: Schedule, clip: float, first: int, frames: int, generator: torch.Generator) -> Tensor:
    """``(B, frames, 6)`` mouth shapes in the middle of each frame, in the order of ``visemes.PARAMETERS``.

    Args:
        times: when which viseme is made, in B sentences.
        clip: frame at which the silence after the sentence ends.
        first: number of the first frame that is wanted.
        frames: how many.
        generator: of the dominances.
    """
    like = times.start
    onset, offset = times.word_start[:, :1], times.word_end[:, -1:]
    target = torch.tensor(TARGETS, dtype=like.dtype, device=like.device)
    dominance = torch.tensor(DOMINANCE, dtype=like.dtype, device=like.device)
    weight = torch.where(times.duration > 0, dominance[times.viseme], 0.0)
    weight = torch.cat([weight, (SILENCE * dominance[0]).expand(len(weight), 2)], 1)
    weight = weight * torch.exp(SPREAD * normal(weight.shape, like, generator))
    target = target[torch.nn.functional.pad(times.viseme, (0, 2))]
    centre = torch.cat([times.centre, onset / 2, (offset + clip) / 2], 1)
    half = torch.cat([torch.zeros_like(like), onset / 2, (clip - offset) / 2], 1)
    slope = torch.cat([like.new_full((like.shape[1],), -THETA), like.new_full((2,), -2 * THETA)])

    middle = torch.arange(frames, device=like.device, dtype=like.dtype) + (first + 0.5)
    pull = (middle[:, None] - centre[:, None]).abs_().sub_(half[:, None]).clamp_(min=0.0)
    pull = pull.mul_(slope).exp_().mul_(weight[:, None])
    return torch.bmm(pull, target) / pull.sum(2, keepdim=True)

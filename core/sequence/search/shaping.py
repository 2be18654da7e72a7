"""Rewards of single steps that leave the best policy as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from core.errors import InputError


def shaped(reward: Tensor, potential: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """``(B, T)`` r_t + gamma phi(s_{t+1}) - phi(s_t), with phi = 0 once a sequence has ended.

    Ng, Harada and Russell 1999: with gamma = 1 every sequence's sum changes by -phi(s_0), which no choice alters. The
    reward -D_T at the end and phi = -D_t, with D_t the edit distance of a prefix, make the dense reward D_{t-1} - D_t.

    Args:
        reward: ``(B, T)`` of the tokens, or ``(B,)`` given with the last.
        potential: ``(B, T)`` phi of the state before each token.
        mask: ``(B, T)`` bool, the tokens of each sequence.
        gamma: discount of a step.

    Raises:
        InputError: potential and mask have different shapes.
    """
    if potential.shape != mask.shape:
        raise InputError(f"potential: has shape {tuple(potential.shape)}; {tuple(mask.shape)} of the mask is needed")
    following = torch.zeros_like(mask)
    following[:, :-1] = mask[:, 1:]
    if reward.dim() == 1:
        reward = torch.where(mask & ~following, reward.unsqueeze(1), 0.0)
    after = torch.where(following, potential.roll(-1, 1), 0.0)
    return torch.where(mask, reward + gamma * after - potential, 0.0)

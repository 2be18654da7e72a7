"""The rewards: how near the spectrum of the flow is to the reference's."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from core.errors import InputError
from simulators.turbulence.diagnostics.spectra import weighted_error

RewardKind = Literal["z1", "zc", "ze", "zlog", "zrms", "k1", "kc", "ke"]
"""``z`` compares enstrophy spectra, ``k`` energy spectra."""
REWARD_KINDS: tuple[RewardKind, ...] = get_args(RewardKind)
SMALLEST = 1e-30
"""What a spectrum is at least, before its logarithm is taken."""
STEEPEST = 40.0
"""Exponent of ``ze`` at most: beyond it single precision overflows."""
OFFSET: dict[RewardKind, float] = {"zlog": 5.0, "zrms": 2.0, "zc": 10.0, "kc": 10.0, "ze": 100.0, "ke": 100.0}
"""What is added to a reward that is negative on every step, so that ending early never pays; then it is cut at 0."""


def spectral_reward(spectrum: Tensor, reference: Tensor, kind: RewardKind) -> Tensor:
    """The reward of each copy, before any offset.

    With d = Z(k) - Z_ref(k): ``z1``, ``k1``: 1/sum (k d)^2; ``zc``, ``kc``: -sum d^2; ``ze``, ``ke``:
    -|| exp((log Z - log Z_ref)^2) ||_2 (Mojgani et al. 2023, the code's names); ``zlog``: -log10 sum (k d)^2;
    ``zrms``: -rms over k >= 1 of log10 Z/Z_ref.

    Args:
        spectrum: ``(B, K)``, or ``(B, 2, K)`` for the spectra along x and y, k = 0..K-1.
        reference: ``(K,)`` or ``(2, K)``.
        kind: see above.

    Returns:
        ``(B,)``.

    Raises:
        InputError: an unknown kind.
    """
    ratio = torch.log(spectrum.clamp(min=SMALLEST)) - torch.log(reference.clamp(min=SMALLEST))
    if kind in ("z1", "k1", "zlog"):
        error = weighted_error(spectrum, reference).reshape(len(spectrum), -1).sum(1)
        return -torch.log10(error) if kind == "zlog" else 1 / error
    if kind in ("zc", "kc"):
        return -(spectrum - reference).square().flatten(1).sum(1)
    if kind in ("ze", "ke"):
        return -torch.exp(ratio.square().clamp(max=STEEPEST)).flatten(1).norm(dim=1)
    if kind == "zrms":
        return -ratio[..., 1:].square().flatten(1).mean(1).sqrt() / math.log(10)
    raise InputError(f"reward = {kind!r}: must be one of {', '.join(REWARD_KINDS)}")

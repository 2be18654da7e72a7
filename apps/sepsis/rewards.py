"""What a policy is paid: survival, its shaping, and how its action fares in a debate (Sukovic and Radanovic 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from core.errors import InputError
from simulators.sepsis.cohort import Cohort
from simulators.sepsis.features import INDEX

Shaping = Literal["none", "normalised", "raw"]
DebateReward = Literal["01", "sign", "prob"]

TERMINAL = 15.0
"""Size of the reward at the last step."""
DEBATE_SCALE = 5.0
"""What a won debate is worth beside it."""
SOFA_HELD, SOFA_RISE, LACTATE_RISE = -0.025, -0.125, -2.0
"""Weights of the shaping (Raghu et al. 2017, "Deep reinforcement learning for sepsis treatment", eq. 1)."""


def environment_reward(cohort: Cohort, shaping: Shaping = "none") -> Tensor:
    """``(P, T)``: +15 or -15 at a patient's last step, and before it the shaping of Raghu et al. (2017).

    Args:
        cohort: P patients.
        shaping: ``none``; on ``normalised`` SOFA and lactate, as the published runs; or on ``raw`` ones, as defined.

    Raises:
        InputError: raw shaping of a cohort whose units are unknown.
    """
    reward = TERMINAL * cohort.rewards()
    if shaping == "none":
        return reward
    if shaping == "raw" and cohort.raw is None:
        raise InputError("shaping: raw, but the cohort holds normalised values only; allowed: none, normalised")
    state = cohort.raw if shaping == "raw" else cohort.state
    assert state is not None
    sofa, lactate = state[..., INDEX["SOFA"]], state[..., INDEX["Arterial_lactate"]]
    after, rise = sofa[:, 1:], sofa[:, 1:] - sofa[:, :-1]
    held = ((rise == 0) & (after > 0)).to(reward)
    shaped = SOFA_HELD * held + SOFA_RISE * rise + LACTATE_RISE * torch.tanh(lactate[:, 1:] - lactate[:, :-1])
    reward[:, :-1] += torch.where(cohort.mask[:, 1:], shaped, 0.0)
    return reward


def debate_reward(score: Tensor, rival: Tensor, kind: DebateReward = "01", differs: Tensor | None = None) -> Tensor:
    """Reward ``(N,)`` of an action whose score by the judge is ``score``, its rival's ``rival``; both ``(N,)``.

    Args:
        score: of the action, given the evidence of the debate.
        rival: of the baseline's action, given the same evidence.
        kind: ``01``, won or not (published); ``sign``, +1 or -1; ``prob``, the judge's probability of preferring it.
        differs: ``(N,)`` bool, the two are different actions; no reward where they are not.
    """
    gap = score - rival
    paid = {"01": (gap > 0).to(gap), "sign": torch.sign(gap), "prob": torch.sigmoid(gap)}[kind]
    return paid if differs is None else torch.where(differs, paid, 0.0)


def total_reward(
    cohort: Cohort,
    lam: float = 0.0,
    scores: Mapping[str, Tensor] | None = None,
    *,
    shaping: Shaping = "none",
    kind: DebateReward = "01",
) -> Tensor:
    """``(P, T)`` what a policy is paid for the logged actions.

    Args:
        cohort: P patients.
        lam: lambda, the share of the debates.
        scores: ``score``, ``rival`` and ``differs`` ``(N,)`` of all steps (``Arguments.scores``); None with lambda 0.
        shaping: see ``environment_reward``.
        kind: see ``debate_reward``.

    Raises:
        InputError: lambda outside [0, 1], lambda above 0 without scores, or as ``environment_reward``.
    """
    environment = environment_reward(cohort, shaping)
    if scores is None:
        if lam != 0:
            raise InputError(f"lambda: {lam}; without debates it must be 0")
        return environment
    won = debate_reward(scores["score"], scores["rival"], kind, scores["differs"])
    return mixed_reward(lam, environment, cohort.padded(won))


def mixed_reward(lam: float, environment: Tensor, debate: Tensor) -> Tensor:
    """``(1 - lambda) r^e + 5 lambda r^d`` of the same shape.

    Raises:
        InputError: lambda outside [0, 1].
    """
    if not 0 <= lam <= 1:
        raise InputError(f"lambda: {lam}; allowed: 0 to 1")
    return (1 - lam) * environment + lam * DEBATE_SCALE * debate

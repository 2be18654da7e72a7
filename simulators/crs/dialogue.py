"""Where dialogues stand, what is random in a turn, and what users say."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

UNASKED, NO, YES, DO_NOT_CARE, LIST_REJECTED, LIST_ACCEPTED = -1, 0, 1, 2, 3, 4
"""What the user said in a turn."""
NONE = -1
"""In place of an id where there is none."""


@dataclass(frozen=True)
class Dialogue:
    """Where B dialogues stand; the user's part is ``targets``, the system knows everything else.

    Attributes:
        user: ``(B,)`` int64; -1 is somebody unknown, who has the mean embedding.
        targets: ``(B, m)`` int64 acceptable items, the target first; -1 where there are fewer.
        score: ``(B, V)`` float32 score of each candidate (equation 1); of other items it is left as it was.
        candidate: ``(B, V)`` bool.
        recommended: ``(B, V)`` bool, rejected in a list.
        asked: ``(B, P)`` bool, will not be asked about again.
        accepted: ``(B, P)`` bool.
        rejected: ``(B, P)`` bool.
        order: ``(B, L)`` int64 accepted attributes in order, the opening first, then -1.
        questions: ``(B, T)`` int64 what each turn asked about, an attribute or, unless binary, a type; -1 for a list.
        answers: ``(B, T)`` int64, ``UNASKED`` to ``LIST_ACCEPTED``.
        lists: ``(B, T, K)`` int64 items of each recommendation, -1 elsewhere.
        turn: ``(B,)`` int64 system actions so far.
    """

    user: Tensor
    targets: Tensor
    score: Tensor
    candidate: Tensor
    recommended: Tensor
    asked: Tensor
    accepted: Tensor
    rejected: Tensor
    order: Tensor
    questions: Tensor
    answers: Tensor
    lists: Tensor
    turn: Tensor


@dataclass(frozen=True)
class Noise:
    """What is random in a turn: uniform numbers, so that policies can meet the same user.

    Attributes:
        flip: ``(B, W)`` for each attribute of the question.
        unknown: ``(B,)``.
        quit: ``(B,)``.
    """

    flip: Tensor
    unknown: Tensor
    quit: Tensor


@dataclass(frozen=True)
class Reply:
    """What B users say in a turn, the simulated ones or people.

    Attributes:
        yes: ``(B, W)`` bool, whether each attribute of the question is wanted.
        unknown: ``(B,)`` bool, does not care about what was asked.
        found: ``(B, K)`` bool, whether each item of the list is acceptable.
    """

    yes: Tensor
    unknown: Tensor
    found: Tensor

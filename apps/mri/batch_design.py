"""Several actions in one diffusion step: how the choice of one changes what the others are worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from core.errors import InputError

BatchRule = Literal["residual", "neighbours", "covariance"]
"""``residual`` scores again what the particles still disagree on once the chosen samples are known; ``neighbours``
lowers the scores beside a choice (zea's rule); ``covariance`` takes the best of 200 random sets by the determinant of
the particles' covariance."""

_CANDIDATES = 200


def choose(
    y: Tensor,
    allowed: Tensor,
    count: int,
    sigma: float,
    score: Callable[[Tensor], Tensor],
    rule: BatchRule,
    generators: Sequence[torch.Generator],
) -> tuple[Tensor, Tensor]:
    """Choose ``count`` different actions for every subject, best first.

    Args:
        y: ``(S, P, A, R)`` predicted samples of the particles.
        allowed: ``(S, A)`` actions that may be chosen.
        count: how many.
        sigma: belief width.
        score: ``(S, A)`` scores, not negative, of predicted samples.
        rule: used when ``count`` is above one.
        generators: one a subject; drawn from by ``covariance``.

    Returns:
        Actions (S, count), and the scores (S, A) before any was chosen; where scores are equal, the lowest index.
        An action of -1: the subject has none left.

    Raises:
        InputError: an unknown rule.
    """
    first = score(y)
    if count == 1:
        return _best(first, allowed)[:, None], first
    if rule == "covariance":
        return _best_set(y, allowed, count, sigma, generators), first
    if rule not in ("residual", "neighbours"):
        raise InputError(f"batch_rule: {rule!r}, must be residual, neighbours or covariance")
    scores, chosen, left = first, [], allowed.clone()
    rows = torch.arange(len(y), device=y.device)
    for i in range(count):
        action = _best(scores, left)
        chosen.append(action)
        left[rows, action] = False  # -1 is the last one, which is not allowed either
        if i + 1 < count and rule == "residual":
            y = _without(y, y[rows, :, action], sigma)
            scores = score(y)
        elif i + 1 < count:
            scores = scores * _dip(action, scores.shape[1])
    return torch.stack(chosen, 1), first


def _best(scores: Tensor, allowed: Tensor) -> Tensor:
    return torch.where(allowed.any(-1), torch.where(allowed, scores, -math.inf).argmax(-1), -1)


def _without(y: Tensor, seen: Tensor, sigma: float) -> Tensor:
    """Particles (S, P, A, R) less what a Gaussian fit to them infers from their samples ``seen`` (S, P, R).

    The samples are known to within sigma. With a vanishing ridge instead, one k-space line of 2 H components would
    explain all P - 1 < 2 H directions of the particles, and every other line would tie at zero.
    """
    centred, seen = y - y.mean(1, keepdim=True), seen - seen.mean(1, keepdim=True)
    gram = seen @ seen.transpose(1, 2)
    ridge = len(y[0]) * sigma**2 * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    explained = gram @ torch.linalg.solve(gram + ridge, centred.flatten(2))
    return centred - explained.view_as(centred)


def _dip(action: Tensor, actions: int) -> Tensor:
    """Factors (S, A) of zea's rule: 1 - exp(-u^2 / 2), u one step of the grid from -2 to 2 an action."""
    u = torch.arange(actions, device=action.device) - action[:, None]
    return torch.where(u.abs() <= 2, 1 - torch.exp(-0.5 * u.double() ** 2), 1.0)


def _best_set(y: Tensor, allowed: Tensor, count: int, sigma: float, generators: Sequence[torch.Generator]) -> Tensor:
    centred = (y - y.mean(1, keepdim=True)).transpose(1, 2).flatten(2)
    covariance = centred @ centred.transpose(1, 2) / y.shape[1]
    keys = torch.stack([torch.rand((_CANDIDATES, y.shape[2]), generator=g, device=g.device) for g in generators])
    sets = torch.where(allowed[:, None], keys, -1.0).argsort(-1, descending=True)[..., :count].sort(-1).values
    rows = torch.arange(len(y), device=y.device)[:, None, None, None]
    part = covariance[rows, sets[..., :, None], sets[..., None, :]]
    value = torch.logdet(part + sigma**2 * torch.eye(count, dtype=part.dtype, device=part.device))
    best = sets[torch.arange(len(y), device=y.device), value.argmax(-1)]
    return torch.where(allowed.gather(1, best), best, -1)

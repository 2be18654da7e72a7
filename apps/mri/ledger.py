"""What subjects hold of their samples, and the asking for more: again where a request was dropped."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simulators.mri.scanner import Instrument

RETRIES = 2
"""How often a dropped action is asked for again before another is taken in its place."""


class Ledger:
    """What an instrument has delivered, subject by subject; nothing is asked for that is held already.

    An action that stays away is replaced by the next best, or by the nearest where nothing says what is best. A subject
    that has nothing left to replace it with goes without; the others are not held up.

    Args:
        scanner: delivers the samples.
        initial: ``(S, A)`` bool, what is asked for at once.

    Attributes:
        mask: ``(S, A)`` what is held.
        samples: ``(S, A, R)`` real components, zero elsewhere.
        lost: ``(S, A)`` what cannot be had: never recorded, or dropped time and again.
        dropped: ``(S,)`` requests that came back empty.
    """

    def __init__(self, scanner: Instrument, initial: Tensor) -> None:
        self.scanner = scanner
        self.lost = ~scanner.available
        self.dropped = torch.zeros(len(initial), dtype=torch.long, device=initial.device)
        blank = scanner.operator.forward(torch.zeros(1, *scanner.operator.shape, device=initial.device))
        self.samples, self.mask = blank.repeat(len(initial), 1, 1), torch.zeros_like(initial)
        if bool(scanner.counts.any()):  # asked for before, as calibration lines are
            delivered, held = scanner.measured()
            self.mask = initial & held
            self.samples = torch.where(self.mask[..., None], delivered, 0.0)
        order = torch.where(initial & ~self.mask, torch.arange(initial.shape[1], device=initial.device), -1)
        self.take(order.sort(-1, descending=True).values[:, : int((order >= 0).sum(-1).max())].flip(-1))

    @property
    def free(self) -> Tensor:
        """``(S, A)`` what can still be asked for."""
        return ~(self.mask | self.lost)

    def take(self, actions: Tensor, scores: Tensor | None = None) -> Tensor:
        """Ask for actions until they are delivered.

        Args:
            actions: ``(S, n)``; -1: none.
            scores: ``(S, A)``, the highest of which takes the place of an action that stays away.

        Returns:
            What was delivered in their place (S, n); -1: nothing.
        """
        actions = torch.where(self.mask.gather(1, actions.clamp(min=0)), -1, actions)
        got = self.samples.new_full((*actions.shape, self.samples.shape[-1]), math.nan)
        attempt = 0
        while bool((missing := (actions >= 0) & ~torch.isfinite(got).all(-1)).any()):
            if attempt > 0:
                self.dropped += missing.sum(1)
            if attempt and attempt % (RETRIES + 1) == 0:
                actions = self._others(actions, missing, scores)
                missing &= actions >= 0
            for place in missing.any(0).nonzero().squeeze(1).tolist():
                rows = missing[:, place].nonzero().squeeze(1)
                delivered = self.scanner.acquire(actions[rows, place], rows)
                got[rows, place] = self.scanner.operator.components(delivered).to(got)
            attempt += 1
        rows, places = (actions >= 0).nonzero(as_tuple=True)
        self.mask[rows, actions[rows, places]] = True
        self.samples[rows, actions[rows, places]] = got[rows, places]
        return actions

    def _others(self, actions: Tensor, missing: Tensor, scores: Tensor | None) -> Tensor:
        """Replace the missing actions by others that are neither held, lost nor asked for."""
        actions, everything = actions.clone(), torch.arange(self.mask.shape[1], device=actions.device)
        for subject, place in missing.nonzero().tolist():
            action = int(actions[subject, place])
            self.lost[subject, action] = True
            free = self.free[subject]
            free[actions[subject][actions[subject] >= 0]] = False
            worth = -(everything - action).abs().double() if scores is None else scores[subject]
            best = torch.where(free, worth, -math.inf).argmax()
            actions[subject, place] = torch.where(free.any(), best, -1)
        return actions

"""How often a judge is right under random evidence, and whether it is as sure as it should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from apps.sepsis.judge.network import FEATURES
from apps.sepsis.preferences import Preferences
from core.errors import InputError
from core.stats import Interval


class Arbiter(Protocol):
    """A judge, or several who judge together."""

    @property
    def items(self) -> int:
        """Features it is shown."""
        ...

    def score(self, state: Tensor, mask: Tensor, action: Tensor) -> Tensor:
        """See ``Judge.score``."""
        ...

    def preference(self, state: Tensor, mask: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """See ``Judge.preference``."""
        ...


def random_evidence(
    n: int, items: int, generator: torch.Generator, device: torch.device | str = "cpu", *, cited: Tensor | None = None
) -> Tensor:
    """Masks ``(n, 44)`` of exactly ``items`` distinct features, each set as likely.

    Args:
        n: number of masks.
        items: features shown, 0..44.
        generator: on ``device``.
        device: of the masks.
        cited: ``(n, 44)`` bool, features that come first; the rest is filled up at random.

    Raises:
        InputError: more features than there are.
    """
    if not 0 <= items <= FEATURES:
        raise InputError(f"items: {items}; must be within 0..{FEATURES}")
    keys = torch.rand(n, FEATURES, generator=generator, device=device)
    if cited is not None:
        keys += cited
    return torch.zeros(n, FEATURES, dtype=torch.bool, device=device).scatter_(1, keys.topk(items).indices, True)


def judge_accuracy(judge: Arbiter, preferences: Preferences, generator: torch.Generator, draws: int = 1) -> Tensor:
    """``(N,)`` share of draws of random evidence under which J(preferred) > J(rejected).

    Ties have no right answer: take them out first.

    Args:
        judge: on the device of ``preferences``; it is shown as many features as it was trained for.
        preferences: N pairs.
        generator: on the same device.
        draws: sets of evidence a pair.
    """
    both = torch.stack((preferences.preferred, preferences.rejected))
    right = torch.zeros(len(preferences), device=both.device)
    for _ in range(draws):
        mask = random_evidence(len(preferences), judge.items, generator, both.device, cited=preferences.evidence)
        first, second = judge.score(preferences.state, mask, both)
        right += first > second
    return right / draws


@dataclass(frozen=True)
class Calibration:
    """How often a judge is right where it is so sure.

    Attributes:
        confidence: ``(B,)`` mean of max(p, 1 - p) in each bin of [.5, 1]; NaN in an empty one.
        accuracy: ``(B,)`` share of its verdicts that were right; NaN in an empty one.
        count: ``(B,)`` pairs.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor

    @property
    def error(self) -> float:
        """Expected calibration error: mean of |accuracy - confidence| over the pairs (Guo et al. 2017, eq. 3)."""
        return float(((self.accuracy - self.confidence).abs() * self.count).nansum() / self.count.sum())


def calibration(judge: Arbiter, preferences: Preferences, generator: torch.Generator, bins: int = 10) -> Calibration:
    """Reliability of the judge's probabilities under random evidence, in ``bins`` bins of equal width.

    Args:
        judge: on the device of ``preferences``.
        preferences: N pairs; a soft label counts in part as right.
        generator: on the same device.
        bins: of the confidence, from .5 to 1.
    """
    place, sure, right = _reliability(judge, preferences, generator, bins)
    count = torch.bincount(place, minlength=bins)
    confidence, accuracy = (torch.bincount(place, x, minlength=bins) / count for x in (sure, right))
    return Calibration(confidence, accuracy, count)


def calibration_error(
    judge: Arbiter,
    preferences: Preferences,
    generator: torch.Generator,
    bins: int = 10,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The expected calibration error of ``calibration``, with a bootstrap interval over patients.

    Resampled errors are too large on average, since noise in a bin counts as an error of it; the interval is moved down
    by what their mean exceeds the error.

    Args:
        judge: see ``calibration``, as are the next three.
        preferences: N pairs of at least 2 patients.
        generator: of the evidence.
        bins: of the confidence.
        resamples: draws.
        seed: of the draws.

    Raises:
        InputError: pairs of fewer than 2 patients.
    """
    place, sure, right = _reliability(judge, preferences, generator, bins)
    _, patient = torch.unique(preferences.patient, return_inverse=True)
    patients = int(patient.max()) + 1 if len(patient) else 0
    if patients < 2:
        raise InputError(f"preferences: pairs of {patients} patients; an interval needs at least 2")
    gap = torch.bincount(patient * bins + place, right - sure, patients * bins).view(patients, bins).cpu().numpy()
    pairs = torch.bincount(patient, minlength=patients).cpu().numpy()
    error = float(np.abs(gap.sum(0)).sum() / pairs.sum())
    drawn = np.random.default_rng(seed).multinomial(patients, np.full(patients, 1 / patients), resamples)
    errors = np.abs(drawn @ gap).sum(1) / np.maximum(drawn @ pairs, 1)
    low, high = np.clip(np.quantile(errors, (0.025, 0.975)) - (errors.mean() - error), 0, 1)
    return Interval(error, float(low), float(high), patients, 0.95)


def _reliability(
    judge: Arbiter, preferences: Preferences, generator: torch.Generator, bins: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Bin, confidence and correctness ``(N,)`` of each verdict under random evidence."""
    n, device = len(preferences), preferences.state.device
    mask = random_evidence(n, judge.items, generator, device, cited=preferences.evidence)
    wins = judge.preference(preferences.state, mask, preferences.preferred, preferences.rejected).double()
    sure = torch.maximum(wins, 1 - wins)
    right = torch.where(wins > 0.5, preferences.label, torch.where(wins < 0.5, 1 - preferences.label, 0.5)).double()
    return ((2 * sure - 1) * bins).long().clamp(max=bins - 1), sure, right

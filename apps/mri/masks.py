"""Fixed sampling masks: the rules that MR physicists use, each at exactly B actions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from core.errors import InputError

FixedRule = Literal[
    "random", "equispaced", "uniform", "fastmri", "vds", "vds_gaussian", "lowpass", "data_variance", "data_variance_top"
]
"""``random``, ``equispaced`` and the data-variance rules keep the initial actions; ``uniform`` (equispaced),
``fastmri`` (random) and ``vds`` add theirs to a fully sampled centre block."""

FIXED_RULES: tuple[FixedRule, ...] = get_args(FixedRule)
CENTRED: tuple[FixedRule, ...] = ("fastmri", "vds", "vds_gaussian", "lowpass")
"""The rules that need k-space, which alone has a centre."""


@dataclass(frozen=True)
class MaskProblem:
    """What a rule may know.

    Attributes:
        actions: number of actions A.
        budget: actions to take, the initial ones included.
        initial: ``(A,)`` bool, what every method holds from the start.
        center: the action at DC, about which a centre block lies; None where there is none.
        center_fraction: share of the actions in the centre block of ``fastmri`` and ``vds``.
        variance: ``(A,)`` variance of the training images' samples, summed over an action.
        width: actions side by side in a row, where they are laid out in a plane (pixels, k-space points).

    Raises:
        InputError: a budget below the initial actions, or above all.
    """

    actions: int
    budget: int
    initial: Tensor
    center: int | None = None
    center_fraction: float = 0.08
    variance: Tensor | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        held = int(self.initial.sum())
        if not held <= self.budget <= self.actions:
            raise InputError(
                f"budget: {self.budget}, must be between the {held} initial and all {self.actions} actions"
            )

    def distance(self) -> Tensor:
        """Distance (A,) of every action from DC, 1 at the edge.

        Raises:
            InputError: the actions have no centre.
        """
        if self.center is None:
            raise InputError("this mask needs k-space: pixels and columns have no centre")
        index = torch.arange(self.actions, device=self.initial.device)
        if self.width is None:
            return (index - self.center).abs() / (self.actions / 2)
        rows = self.actions // self.width
        y = (index // self.width - self.center // self.width) / (rows / 2)
        x = (index % self.width - self.center % self.width) / (self.width / 2)
        return (x**2 + y**2).sqrt()

    def block(self) -> Tensor:
        """The initial actions (A,) and the centre block of ``center_fraction``, not above the budget."""
        count = min(max(round(self.center_fraction * self.actions), 1), self.budget)
        return self.nearest(count)

    def nearest(self, count: int) -> Tensor:
        """``count`` actions (A,): the initial ones, then the nearest to DC; below it first where two are as near."""
        order = torch.where(self.initial, -1.0, self.distance()).argsort(stable=True)
        mask = torch.zeros_like(self.initial)
        mask[order[: max(count, int(self.initial.sum()))]] = True
        return mask


def fixed_masks(rule: FixedRule, problem: MaskProblem, generators: Sequence[torch.Generator]) -> Tensor:
    """One mask (S, A) for each generator, with exactly ``problem.budget`` actions.

    Raises:
        InputError: an unknown rule, one that needs k-space for another measurement, or one that needs the training
            variance and has none.
    """
    if rule not in _RULES:
        raise InputError(f"mask: {rule!r}, must be one of {', '.join(FIXED_RULES)}")
    return _RULES[rule](problem, generators)


def draw_without_replacement(
    start: Tensor, weights: Tensor, budget: int, generators: Sequence[torch.Generator]
) -> Tensor:
    """Masks (S, A): ``start`` (A,) filled up to ``budget`` by draws with probability proportional to ``weights`` (A,).

    The largest of log weight plus Gumbel noise are a draw without replacement (Yellott 1977). A weight of zero is
    drawn only when nothing else is left.
    """
    uniform = torch.stack([torch.rand(len(start), generator=g, device=g.device) for g in generators])
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
    keys = weights.clamp(min=1e-30).log().to(gumbel) + gumbel
    return _largest(torch.where(start, math.inf, keys), budget)


def _largest(keys: Tensor, budget: int) -> Tensor:
    order = keys.argsort(dim=-1, descending=True, stable=True)[..., :budget]
    return torch.zeros_like(keys, dtype=torch.bool).scatter_(-1, order, True)


def _random(problem: MaskProblem, generators: Sequence[torch.Generator]) -> Tensor:
    flat = torch.ones(problem.actions, device=problem.initial.device)
    return draw_without_replacement(problem.initial, flat, problem.budget, generators)


def _equispaced(problem: MaskProblem, generators: Sequence[torch.Generator]) -> Tensor:
    return _evenly(problem.initial, problem.budget, generators)


def _uniform(problem: MaskProblem, generators: Sequence[torch.Generator]) -> Tensor:
    start = problem.initial if problem.center is None else problem.block()
    return _evenly(start, problem.budget, generators)


def _evenly(start: Tensor, budget: int, generators: Sequence[torch.Generator]) -> Tensor:
    """``start`` (A,) filled up to the budget at equal distances among the rest, with a random offset."""
    free = torch.nonzero(~start).squeeze(1)
    count = budget - int(start.sum())
    masks = start.repeat(len(generators), 1)
    if count == 0:
        return masks
    spacing = len(free) / count
    offsets = torch.stack([torch.rand((), generator=g, device=g.device, dtype=torch.float64) for g in generators])
    steps = torch.arange(count, device=free.device, dtype=torch.float64)
    places = ((steps + offsets[:, None]) * spacing).long().clamp(max=len(free) - 1)
    return masks.scatter_(1, free[places], True)


def _fastmri(problem: MaskProblem, generators: Sequence[torch.Generator]) -> Tensor:
    flat = torch.ones(problem.actions, device=problem.initial.device)
    return draw_without_replacement(problem.block(), flat, problem.budget, generators)


def _vds(problem: MaskProblem, generators: Sequence[torch.Generator]) -> Tensor:
    weights = (1 - problem.distance()).clamp(min=0) ** 3 + 1e-3
    return draw_without_replacement(problem.block(), weights, problem.budget, generators)


def _vds_gaussian(problem: MaskProblem, generators: Sequence[torch.Generator]) -> Tensor:
    weights = torch.exp(-0.5 * (problem.distance() / 0.3) ** 2)
    return draw_without_replacement(problem.block(), weights, problem.budget, generators)


def _lowpass(problem: MaskProblem, generators: Sequence[torch.Generator]) -> Tensor:
    return problem.nearest(problem.budget).repeat(len(generators), 1)


def _variance(problem: MaskProblem) -> Tensor:
    if problem.variance is None:
        raise InputError("this mask needs the variance of training images, and there are none")
    return problem.variance.to(problem.initial.device)


def _data_variance(problem: MaskProblem, generators: Sequence[torch.Generator]) -> Tensor:
    return draw_without_replacement(problem.initial, _variance(problem), problem.budget, generators)


def _data_variance_top(problem: MaskProblem, generators: Sequence[torch.Generator]) -> Tensor:
    keys = torch.where(problem.initial, math.inf, _variance(problem).double())
    return _largest(keys, problem.budget).repeat(len(generators), 1)


_RULES: dict[str, Callable[[MaskProblem, Sequence[torch.Generator]], Tensor]] = {
    "random": _random,
    "equispaced": _equispaced,
    "uniform": _uniform,
    "fastmri": _fastmri,
    "vds": _vds,
    "vds_gaussian": _vds_gaussian,
    "lowpass": _lowpass,
    "data_variance": _data_variance,
    "data_variance_top": _data_variance_top,
}

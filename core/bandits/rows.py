"""What off-policy evaluation reads of a log, checked row by row and reduced from (n, K) tables to columns (n,)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from core.bandits.row_checks import as_tensor, extremes, refuse_outside, refuse_rows
from core.bandits.weights import group_weights
from core.errors import InputError

NET_VALUE = (-math.inf, math.inf)

_SUM_TOLERANCE = 1e-6
_COLUMNS = ("reward", "propensity", "target", "q_logged", "value", "missing", "group_weight")
# Rows that fit a core's cache, and enough of them to fill a GPU.
_AT_ONCE_ON_CPU, _AT_ONCE_ON_DEVICE = 1 << 14, 1 << 20


@dataclass(frozen=True, eq=False)
class LoggedRows:
    """n logged decisions as one policy sees them; arrays or tensors, kept as float64 tensors.

    Attributes:
        reward: (n,).
        propensity: (n,), probability in (0, 1] of the logged action when it was logged.
        target: (n,), probability of the logged action under the policy in question.
        q_logged: (n,), the reward model at the logged action; None without a model.
        value: (n,), sum_a pi_e(a|x) qhat(x, a); None without a model.
        missing: (n,), the policy's probability on actions that the logging policy does not support; None if unknown.
        group_weight: (n,), weights of ``grouped_ips`` (``group_weights`` or ``marginal_weights``); None without.
        reward_range: bounds that hold for every reward; ``NET_VALUE`` if there are none.
        first_row: number of the first row in messages.

    Raises:
        InputError: columns of different length, a propensity outside (0, 1], a target probability outside [0, 1], a
            reward outside its range, or a value that is not finite; the first such row is named.
    """

    reward: Tensor
    propensity: Tensor
    target: Tensor
    q_logged: Tensor | None = None
    value: Tensor | None = None
    missing: Tensor | None = None
    group_weight: Tensor | None = None
    reward_range: tuple[float, float] = (0.0, 1.0)
    first_row: int = 0

    def __post_init__(self) -> None:
        given = {name: as_tensor(getattr(self, name)) for name in _COLUMNS if getattr(self, name) is not None}
        for name, column in given.items():
            if column.ndim != 1 or len(column) != len(given["reward"]):
                raise InputError(f"{name}: has shape {tuple(column.shape)}, expected ({len(given['reward'])},)")
            object.__setattr__(self, name, column.double())
        if (self.q_logged is None) != (self.value is None):
            raise InputError("q_logged, value: a reward model gives both or neither")
        self._refuse("reward", *self.reward_range)
        hint = ": the logging policy's probability of the chosen action, recorded at the decision"
        self._refuse("propensity", 0.0, 1.0, above=True, hint=hint)
        self._refuse("target", 0.0, 1 + _SUM_TOLERANCE)
        self._refuse("q_logged", *NET_VALUE)
        self._refuse("value", *NET_VALUE)
        self._refuse("missing", 0.0, 1 + _SUM_TOLERANCE)
        self._refuse("group_weight", 0.0, math.inf)

    def __len__(self) -> int:
        return len(self.reward)

    def take(self, index: Tensor) -> LoggedRows:
        """The rows at ``index`` (m,), whole numbers, or where a mask (n,) is true: a segment of the log."""
        given = {name: getattr(self, name) for name in _COLUMNS}
        taken: dict[str, Any] = {name: column[index] for name, column in given.items() if column is not None}
        return replace(self, **taken)

    @property
    def model_is_bounded(self) -> bool:
        """Whether the reward model, if any, keeps to the reward's range on these rows."""
        low, high = self.reward_range
        columns = [column for column in (self.q_logged, self.value) if column is not None and len(column)]
        return all(low <= least and most <= high for least, most in map(extremes, columns))

    def _refuse(self, name: str, low: float, high: float, *, above: bool = False, hint: str = "") -> None:
        column = getattr(self, name)
        if column is not None:
            refuse_outside(name, column, low, high, above=above, hint=hint, first_row=self.first_row)


def logged_rows(
    action: ArrayLike | Tensor,
    reward: ArrayLike | Tensor,
    propensity: ArrayLike | Tensor,
    target_probabilities: ArrayLike | Tensor,
    qhat: ArrayLike | Tensor | None = None,
    mask: ArrayLike | Tensor | None = None,
    *,
    logging_probabilities: ArrayLike | Tensor | None = None,
    floor: float = 0.0,
    groups: ArrayLike | Tensor | None = None,
    reward_range: tuple[float, float] = (0.0, 1.0),
    first_row: int = 0,
) -> LoggedRows:
    """Checked rows of a log with K actions for one policy; arrays or tensors of one device, float32 or float64.

    Args:
        action: logged actions (n,), whole numbers in [0, K).
        reward: (n,).
        propensity: (n,), probability of the logged action when it was logged.
        target_probabilities: (n, K) of the policy in question.
        qhat: (n, K), a model of the reward; it should not have seen the rows (``cross_fitted``).
        mask: (n, K), which actions were available.
        logging_probabilities: (n, K) of the policy that logged.
        floor: logging probabilities below it count as unsupported, as 0 does.
        groups: (K,) whole numbers, the group of each action, for ``grouped_ips``; needs ``logging_probabilities``.
        reward_range: bounds that hold for every reward; ``NET_VALUE`` if there are none.
        first_row: number of the first row in messages.

    Raises:
        InputError: shapes that do not fit; target probabilities that are negative or do not sum to 1 within 1e-6; an
            action outside [0, K) or its mask; a row without an available action; qhat that is not finite; or as
            ``LoggedRows``. The first such row is named.
    """
    target, q, available, logging = (
        None if table is None else as_tensor(table)
        for table in (target_probabilities, qhat, mask, logging_probabilities)
    )
    assert target is not None
    _refuse_shapes(target, qhat=q, mask=available, logging_probabilities=logging)
    chosen = _checked_actions(as_tensor(action), target, first_row)
    unsupported = None if available is None else ~available.bool()
    if unsupported is not None:
        refuse_rows("mask", ~unsupported.all(1), ~unsupported.all(1), "an available action", first_row)
        allowed = ~unsupported.gather(1, chosen).squeeze(1)
        refuse_rows("action", chosen.squeeze(1), allowed, "an action in its mask", first_row)
    if logging is not None:
        never = (logging <= 0) | (logging < floor)
        unsupported = never if unsupported is None else unsupported | never
    columns = _reduced(chosen, target, q, unsupported, first_row)
    if groups is not None:
        if logging is None:
            raise InputError("groups: needs logging_probabilities, to weigh the groups")
        columns["group_weight"] = group_weights(chosen.squeeze(1), target, logging, as_tensor(groups))
    return LoggedRows(
        as_tensor(reward), as_tensor(propensity), **columns, reward_range=reward_range, first_row=first_row
    )


def slices(n: int, device: torch.device) -> Iterator[slice]:
    """Slices of n rows, as many at once as the device works best with."""
    step = _AT_ONCE_ON_CPU if device.type == "cpu" else _AT_ONCE_ON_DEVICE
    return (slice(start, min(n, start + step)) for start in range(0, n, step))


def _refuse_shapes(target: Tensor, **tables: Tensor | None) -> None:
    if target.ndim != 2 or not target.shape[1]:
        raise InputError(f"target_probabilities: has shape {tuple(target.shape)}, expected (n, K)")
    for name, table in tables.items():
        if table is not None and table.shape != target.shape:
            raise InputError(f"{name}: has shape {tuple(table.shape)}, expected {tuple(target.shape)}")


def _checked_actions(action: Tensor, target: Tensor, first_row: int) -> Tensor:
    if action.shape != target.shape[:1] or action.is_floating_point() or action.dtype == torch.bool:
        found = f"has shape {tuple(action.shape)} and type {action.dtype}"
        raise InputError(f"action: {found}, expected whole numbers ({len(target)},)")
    refuse_outside("action", action, 0, target.shape[1] - 1, first_row=first_row)
    return action.long()[:, None]


def _reduced(
    chosen: Tensor, target: Tensor, q: Tensor | None, unsupported: Tensor | None, first_row: int
) -> dict[str, Tensor]:
    n, actions = target.shape
    names = ["target"] + ["q_logged", "value"] * (q is not None) + ["missing"] * (unsupported is not None)
    columns = {name: target.new_empty(n, dtype=torch.float64) for name in names}
    ones = target.new_ones(actions, dtype=torch.float64)
    sums = target.new_ones(2, dtype=torch.float64)
    least = target.new_zeros((), dtype=torch.float64)
    for part in slices(n, target.device):
        probability = target[part].double()
        low, high = torch.aminmax(torch.mv(probability, ones))
        sums = torch.stack([torch.minimum(sums[0], low), torch.maximum(sums[1], high)])
        least = torch.minimum(least, probability.amin())
        torch.gather(probability, 1, chosen[part], out=columns["target"][part, None])
        if q is not None:
            model = q[part].double()
            torch.mv(probability * model, ones, out=columns["value"][part])
            torch.gather(model, 1, chosen[part], out=columns["q_logged"][part, None])
        if unsupported is not None:
            torch.mv(probability * unsupported[part], ones, out=columns["missing"][part])
    # What is not finite shows in the row's sum and its value: only then are the tables themselves looked through.
    if not bool(((sums - 1).abs() <= _SUM_TOLERANCE).all() & (least >= 0)):
        refuse_rows("target_probabilities", target, (target >= 0) & (target <= 1), "[0, 1]", first_row)
        total = target.sum(1, dtype=torch.float64)
        right = (total - 1).abs() <= _SUM_TOLERANCE
        refuse_rows("sum of target_probabilities", total, right, "1 within 1e-6", first_row)
    if q is not None and n and not math.isfinite(sum(extremes(columns["value"]))):
        refuse_rows("qhat", q, torch.isfinite(q), "finite", first_row)
    return columns

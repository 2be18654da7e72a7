"""Off-policy evaluation from mergeable sums.

Every estimator here is a smooth function of column means over the rows. So the means and comoments of the columns are
all that is kept of a log: they add over any partition of its rows, give each estimate its delta-method variance, and,
with the columns of several policies side by side, paired differences of policies.

    sums = Sums.of(logged_rows(action, reward, propensity, target_probabilities, qhat, mask))
    sums = sums + Sums.of(more_rows)
    evaluate(sums)["dr"], sums.difference("dr"), sums.diagnostics()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.bandits.diagnostics import Diagnostics, diagnose
from core.bandits.estimators import ESTIMATORS, MEAN_REWARD, Array, Estimator, Limits
from core.bandits.hashing import Ids
from core.bandits.off_policy_intervals import Evidence, IntervalMethod, Normal
from core.bandits.poisson_bootstrap import PoissonBootstrap
from core.bandits.row_checks import refuse_rows
from core.bandits.rows import NET_VALUE, LoggedRows, logged_rows, slices
from core.errors import InputError
from core.stats.interval import Interval

__all__ = ["ESTIMATORS", "LOGGED", "NET_VALUE", "Limits", "LoggedRows", "Sums", "evaluate", "logged_rows"]

LOGGED = "logged"
NORMAL = Normal()
_DEFAULT = Limits()


@dataclass(frozen=True, eq=False)
class Sums:
    """All that is kept of n rows for the policies that are evaluated on them; ``a + b`` is that of both logs' rows.

    Attributes:
        columns: (policy, name) of each of C columns; the first is (``LOGGED``, "r"), the reward itself.
        limits: what is made of large weights.
        reward_range: bounds of every reward.
        bootstrap: whose replicates are summed, None if none are.
        n: rows.
        mean: column means (C,).
        comoment: sums of products of deviations from the means (C, C).
        largest: largest weight of each policy.
        bounded: whether every reward model kept to the reward's range.
        replicates: count and column sums (B, 1 + C) of each bootstrap replicate, (0, 1 + C) without a bootstrap.
    """

    columns: tuple[tuple[str, str], ...]
    limits: Limits
    reward_range: tuple[float, float]
    bootstrap: PoissonBootstrap | None
    n: int
    mean: Array
    comoment: Array
    largest: Mapping[str, float]
    bounded: bool
    replicates: Array

    @classmethod
    def of(
        cls,
        rows: LoggedRows | Mapping[str, LoggedRows],
        *,
        clip: float = _DEFAULT.clip,
        switch: float = _DEFAULT.switch,
        shrink: float = _DEFAULT.shrink,
        max_weight: float = _DEFAULT.max_weight,
        bootstrap: PoissonBootstrap | None = None,
        ids: Ids | None = None,
    ) -> Sums:
        """Sums of the rows of one policy, or of the same rows as several policies see them, by name.

        Args:
            rows: of one policy, which is then called "target", or of each.
            clip: see ``Limits``, as for the next three.
            switch: see ``Limits``.
            shrink: see ``Limits``.
            max_weight: see ``Limits``.
            bootstrap: sums its replicates too.
            ids: (n,), what the bootstrap draws: ids of rows, or of clusters (merchant, day) of dependent rows. Rows in
                different parts of a log with the same id count together.

        Raises:
            InputError: no policy, or one named "logged"; policies with different rewards or numbers of rows; a limit
                that is not above 0; a weight above ``max_weight``; a bootstrap without ids, or ids that do not fit.
        """
        policies = {"target": rows} if isinstance(rows, LoggedRows) else dict(rows)
        limits = Limits(clip, switch, shrink, max_weight)
        logged = _same_rows(policies)
        keys = _keys(ids, len(logged)) if bootstrap else None
        names = tuple(_columns(policies, limits, slice(0, 0)))
        weights = [names.index((policy, "w")) for policy in policies]
        # Deviations are taken from a first guess of the mean, for the digits that large means would cost.
        origin = logged.reward.new_zeros(len(names), 1)
        total, product = torch.zeros_like(origin), origin.new_zeros(len(names), len(names))
        replicates = origin.new_zeros(bootstrap.replicates if bootstrap else 0, 1 + len(names))
        largest = origin.new_zeros(len(policies))
        for part in slices(len(logged), origin.device):
            table = torch.stack(list(_columns(policies, limits, part).values()))
            if bootstrap and keys is not None:
                replicates += bootstrap.sums(keys[part], table)
            largest = torch.maximum(largest, table[weights].amax(1))
            if not part.start:
                origin = table.mean(1, keepdim=True)
            table -= origin
            total += table.sum(1, keepdim=True)
            product.addmm_(table, table.T)
        for rows, w in zip(policies.values(), largest.tolist(), strict=True):
            if not w <= limits.max_weight or w == np.inf:
                weight = rows.target / rows.propensity
                right = (weight <= limits.max_weight) & torch.isfinite(weight)
                refuse_rows("weight", weight, right, f"at most {limits.max_weight:g}, and finite", rows.first_row)
        apart = _array(total[:, 0]) / max(1, len(logged))
        return cls(
            names,
            limits,
            logged.reward_range,
            bootstrap,
            len(logged),
            _array(origin[:, 0]) + apart,
            _array(product) - len(logged) * np.outer(apart, apart),
            dict(zip(policies, largest.tolist(), strict=True)),
            all(rows.model_is_bounded for rows in policies.values()),
            _array(replicates),
        )

    def __add__(self, other: Sums) -> Sums:
        """Sums of both logs' rows (Chan, Golub and LeVeque 1979); associative and commutative up to rounding.

        Raises:
            InputError: the two differ in policies, columns, limits, reward ranges or bootstraps.
        """
        for field in ("columns", "limits", "reward_range", "bootstrap"):
            ours, theirs = getattr(self, field), getattr(other, field)
            if ours != theirs:
                raise InputError(f"{field}: {ours} and {theirs}, only sums with equal ones add")
        n, apart = self.n + other.n, other.mean - self.mean
        share = other.n / n if n else 0.0
        return replace(
            self,
            n=n,
            mean=self.mean + share * apart,
            comoment=self.comoment + other.comoment + self.n * share * np.outer(apart, apart),
            largest={policy: max(w, other.largest[policy]) for policy, w in self.largest.items()},
            bounded=self.bounded and other.bounded,
            replicates=self.replicates + other.replicates,
        )

    @property
    def policies(self) -> tuple[str, ...]:
        """The policies in the order given."""
        return tuple(self.largest)

    def estimators(self, policy: str | None = None) -> tuple[str, ...]:
        """Names of the estimators that a policy's rows allow: some need a reward model, one needs group weights.

        Raises:
            InputError: no such policy.
        """
        policy = self._policy(policy)
        present = {name for owner, name in self.columns if owner == policy}
        return tuple(name for name, estimator in ESTIMATORS.items() if estimator.columns <= present)

    def estimate(self, name: str, policy: str | None = None, interval: IntervalMethod = NORMAL) -> Interval:
        """Estimated value of a policy; of ``LOGGED`` it is the mean reward, whatever the estimator.

        A self-normalised estimate is NaN where no logged action has any weight.

        Args:
            name: one of ``estimators(policy)``.
            policy: may be left out where there is but one.
            interval: ``Normal``, ``Percentile``, ``Bernstein`` or ``Anytime``.

        Raises:
            InputError: no such policy or estimator, fewer than two rows, or what the interval refuses.
        """
        return interval(self._evidence(name, {self._policy(policy): 1}))

    def difference(
        self, name: str, policy: str | None = None, baseline: str = LOGGED, interval: IntervalMethod = NORMAL
    ) -> Interval:
        """Value of a policy less the baseline's on the same rows, paired; ``LOGGED`` is the log's own mean reward.

        Raises:
            InputError: as ``estimate``.
        """
        policy, baseline = self._policy(policy), self._policy(baseline)
        if policy == baseline:
            raise InputError(f"baseline: {baseline!r} is the policy itself")
        return interval(self._evidence(name, {policy: 1, baseline: -1}))

    def diagnostics(self, policy: str | None = None, level: float = 0.99) -> Diagnostics:
        """Overlap of a policy with the log; ``level`` is that of the mean weight's interval, which must cover 1.

        Raises:
            InputError: no such policy, fewer than two rows, or an impossible level.
        """
        policy = self._policy(policy)
        if policy == LOGGED:
            raise InputError(f"policy: {LOGGED!r} has no weights, expected one of {', '.join(self.policies)}")
        w = self.columns.index((policy, "w"))
        mean = Normal(level)(Evidence("mean weight", float(self.mean[w]), self._variance({w: 1.0}), self.n))
        known = (policy, "missing") in self.columns
        missing = float(self.mean[self.columns.index((policy, "missing"))]) if known else None
        return diagnose(mean, float(self.comoment[w, w] / self.n + self.mean[w] ** 2), self.largest[policy], missing)

    def _policy(self, policy: str | None) -> str:
        if policy is None and len(self.policies) == 1:
            return self.policies[0]
        if policy is None or policy not in (*self.policies, LOGGED):
            raise InputError(f"policy: {policy!r}, expected one of {', '.join((*self.policies, LOGGED))}")
        return policy

    def _estimator(self, name: str, policy: str) -> Estimator:
        if policy == LOGGED:
            return MEAN_REWARD
        if name not in self.estimators(policy):
            raise InputError(f"estimator: {name!r}, the rows of {policy} allow {', '.join(self.estimators(policy))}")
        return ESTIMATORS[name]

    def _evidence(self, name: str, signs: Mapping[str, int]) -> Evidence:
        width, slopes = 0.0, dict[int, float]()
        value, replicates = np.zeros(()), np.zeros(len(self.replicates))
        with np.errstate(divide="ignore", invalid="ignore"):
            resampled = self.replicates[:, 1:] / self.replicates[:, :1]
            for policy, sign in signs.items():
                estimator = self._estimator(name, policy)
                at = {column: self.columns.index((policy, column)) for column in estimator.columns}
                means = {column: self.mean[i] for column, i in at.items()}
                value = value + sign * estimator.value(means)
                slopes |= {at[column]: sign * slope for column, slope in estimator.slopes(means).items()}
                replicates = replicates + sign * estimator.value({c: resampled[:, i] for c, i in at.items()})
                width += self.limits.width(estimator, self.reward_range)
            variance = self._variance(slopes)
        return Evidence(
            name,
            float(value),
            variance,
            self.n,
            width if self.bounded else np.inf,
            replicates if self.bootstrap else None,
            len(signs) > 1,
        )

    def _variance(self, slopes: Mapping[int, float]) -> float:
        if self.n < 2:
            raise InputError(f"rows: {self.n}, at least 2 are needed for an interval")
        at, slope = list(slopes), np.array(list(slopes.values()))
        comoment = self.comoment[np.ix_(at, at)]
        # Policies that are equal but for rounding must not differ significantly: no less than the comoments' rounding.
        rounding = np.finfo(np.float64).eps * (np.abs(slope) @ np.sqrt(np.diag(comoment))) ** 2
        return float(np.maximum(slope @ comoment @ slope, rounding) / (self.n - 1))


def evaluate(
    sums: Sums | LoggedRows, policy: str | None = None, *, against: str | None = None, interval: IntervalMethod = NORMAL
) -> dict[str, Interval]:
    """Every estimate that the rows allow, by the estimator's name, or its paired difference against another policy.

    Args:
        sums: or the rows themselves, with the default ``Limits``.
        policy: may be left out where there is but one.
        against: a policy, or ``LOGGED`` for the log's own mean reward; None for the value itself.
        interval: ``Normal``, ``Percentile``, ``Bernstein`` or ``Anytime``.

    Raises:
        InputError: as ``Sums.estimate``.
    """
    sums = Sums.of(sums) if isinstance(sums, LoggedRows) else sums
    names = sums.estimators(policy)
    if against is None:
        return {name: sums.estimate(name, policy, interval) for name in names}
    return {name: sums.difference(name, policy, against, interval) for name in names}


def _columns(policies: Mapping[str, LoggedRows], limits: Limits, part: slice) -> dict[tuple[str, str], Tensor]:
    columns = {(LOGGED, "r"): next(iter(policies.values())).reward[part]}
    for policy, rows in policies.items():
        columns |= {(policy, name): column for name, column in limits.columns(rows, part).items()}
    return columns


def _same_rows(policies: Mapping[str, LoggedRows]) -> LoggedRows:
    if not policies or LOGGED in policies:
        raise InputError(f"policies: {list(policies)}, expected at least one, none of them named {LOGGED!r}")
    first, logged = next(iter(policies.items()))
    for name, rows in policies.items():
        if rows.reward_range != logged.reward_range or not torch.equal(rows.reward, logged.reward):
            raise InputError(f"policies: the rewards of {name} are not those of {first}, row by row")
    return logged


def _keys(ids: Ids | None, n: int) -> NDArray[np.generic] | Tensor:
    keys = ids if isinstance(ids, Tensor) else np.asarray(ids)
    if keys.shape != (n,):
        raise InputError(f"ids: shape {tuple(keys.shape)}, the bootstrap needs one of each row ({n},)")
    return keys


def _array(values: Tensor) -> Array:
    array: Array = values.cpu().numpy()
    return array

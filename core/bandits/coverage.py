"""Coverage: how well the data of one policy can answer for another.

With logging policy p, target policy pi and weights w = pi / p: C_inf = max w, C_2 = E_p[w^2], and for scores that are
linear in features phi the largest generalised eigenvalue C_phi of E_pi[phi phi'] against E_p[phi phi']. A payment is
decided once (horizon 1), so concentrability is all of the coverage that matters.

Source: Zanette, "When is realizability sufficient for off-policy reinforcement learning?" (arXiv 2211.05311).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core.bandits.row_checks import refuse_outside
from core.errors import InputError

# Probabilities of float32 may exceed 1 by a few units in the last place.
_ONE = 1 + 1e-6


@dataclass(frozen=True)
class Coverage:
    """Concentrability of a target policy under a logging policy, one entry a segment.

    Attributes:
        segment: ``(S,)`` int64, ids in increasing order; a single 0 where none were given.
        rows: ``(S,)`` int64, number of rows.
        c_inf: ``(S,)`` float64, greatest weight; inf where the target plays what the log cannot show.
        c_2: ``(S,)`` float64, mean squared weight under the logging policy; n / ESS where the weights average 1.
    """

    segment: Tensor
    rows: Tensor
    c_inf: Tensor
    c_2: Tensor

    def bound(self, squared_error: float | Tensor) -> Tensor:
        """Bound on the error of the target's value by a model, ``(S,)``: sqrt(C_2 MSE_log), by Cauchy-Schwarz.

        Args:
            squared_error: mean squared error of the model under the logging policy, one or ``(S,)``.
        """
        return (self.c_2 * torch.as_tensor(squared_error, dtype=self.c_2.dtype, device=self.c_2.device)).sqrt()


def policy_coverage(target: Tensor, logging: Tensor, segment: Tensor | None = None) -> Coverage:
    """Coverage from the full distributions of both policies on the same contexts; exact for these contexts.

    Args:
        target: ``(n, K)`` probabilities of the policy to be evaluated.
        logging: ``(n, K)`` probabilities of the policy that logs.
        segment: ``(n,)`` integer id of each row, or none for one segment of all rows.

    Raises:
        InputError: no rows, probabilities outside [0, 1], or shapes that differ.
    """
    if target.ndim != 2:
        raise InputError(f"target of shape {tuple(target.shape)}: must be (rows, actions)")
    weight = _weight(target, logging)
    return _by_segment(weight.amax(1), (weight * target).sum(1), segment)


def log_coverage(target: Tensor, propensity: Tensor, segment: Tensor | None = None) -> Coverage:
    """Coverage estimated from logged rows; C_inf is then the greatest weight that occurred.

    Args:
        target: ``(n,)`` the target policy's probability of the logged action.
        propensity: ``(n,)`` the logged probability of the logged action.
        segment: ``(n,)`` integer id of each row, or none for one segment of all rows.

    Raises:
        InputError: no rows, a propensity of 0, probabilities outside [0, 1], or shapes that differ.
    """
    if target.ndim != 1:
        raise InputError(f"target of shape {tuple(target.shape)}: must be (rows,)")
    weight = _weight(target, propensity)
    refuse_outside("propensity", propensity, 0.0, _ONE, above=True)
    return _by_segment(weight, weight.square(), segment)


def feature_coverage(
    features: Tensor,
    target: Tensor,
    logging: Tensor | None = None,
    segment: Tensor | None = None,
    *,
    ridge: float = 1e-6,
) -> Tensor:
    """C_phi, the largest eigenvalue of S_log^-1/2 S_e S_log^-1/2, of each segment in increasing order; ``(S,)``.

    S_log = E_log[phi phi'] + ridge I and S_e = E_target[phi phi'] + ridge I. It bounds the target's mean squared error
    of any model that is linear in phi by C_phi times its error under the log.

    Args:
        features: ``(n, d)`` phi of the logged rows, or ``(n, K, d)`` of every action.
        target: ``(n,)`` weights pi / p of the logged rows, or ``(n, K)`` probabilities of the target policy.
        logging: ``(n, K)`` probabilities of the logging policy; none with logged rows.
        segment: ``(n,)`` integer id of each row, or none for one segment of all rows.
        ridge: what makes S_log regular; above 0.

    Raises:
        InputError: no rows, shapes that differ, values that are negative or not finite, or an impossible ridge.
    """
    logging = torch.ones_like(target) if logging is None else logging
    if features.shape[:-1] != target.shape or target.shape != logging.shape or features.ndim not in (2, 3):
        raise InputError(
            f"features {tuple(features.shape)}, target {tuple(target.shape)}, logging {tuple(logging.shape)}: "
            "must be (n, d) and (n,), or (n, K, d), (n, K) and (n, K)"
        )
    if not 0 < ridge < math.inf:
        raise InputError(f"ridge = {ridge}: must be above 0 and finite")
    refuse_outside("features", features, -math.inf, math.inf)
    refuse_outside("target", target, 0.0, math.inf)
    refuse_outside("logging", logging, 0.0, math.inf)
    _, inverse, rows = _segments(len(features), segment, features.device)
    pieces = inverse.argsort(stable=True).split(rows.tolist())
    return torch.stack([_largest_ratio(features[i], target[i], logging[i], ridge) for i in pieces])


def _largest_ratio(features: Tensor, target: Tensor, logging: Tensor, ridge: float) -> Tensor:
    n, d = len(features), features.shape[-1]
    phi = features.reshape(-1, d).to(torch.float64)
    identity = ridge * torch.eye(d, dtype=phi.dtype, device=phi.device)
    log, evaluated = (
        phi.T @ (phi * weight.reshape(-1, 1).to(phi.dtype)) / n + identity for weight in (logging, target)
    )
    factor = torch.linalg.cholesky(log)
    half = torch.linalg.solve_triangular(factor, evaluated, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return torch.linalg.eigvalsh((whitened + whitened.T) / 2)[-1]


def _weight(target: Tensor, logging: Tensor) -> Tensor:
    """Target over logging probability in float64, 0 where both are 0."""
    if target.shape != logging.shape:
        raise InputError(f"target {tuple(target.shape)} and logging {tuple(logging.shape)}: must have one shape")
    refuse_outside("target", target, 0.0, _ONE)
    refuse_outside("logging", logging, 0.0, _ONE)
    wanted = target.to(torch.float64)
    return torch.where(wanted > 0, wanted / logging, 0.0)


def _segments(n: int, segment: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids in increasing order ``(S,)``, each row's index into them ``(n,)``, and their numbers of rows ``(S,)``."""
    if n == 0:
        raise InputError("no rows: at least 1 is needed")
    if segment is None:
        segment = torch.zeros(n, dtype=torch.int64, device=device)
    if segment.shape != (n,) or segment.is_floating_point():
        raise InputError(f"segment of shape {tuple(segment.shape)}, {segment.dtype}: must be ({n},) integers")
    ids, inverse, rows = torch.unique(segment, return_inverse=True, return_counts=True)
    return ids.to(torch.int64), inverse, rows


def _by_segment(largest: Tensor, second_moment: Tensor, segment: Tensor | None) -> Coverage:
    ids, inverse, rows = _segments(len(largest), segment, largest.device)
    nothing = largest.new_zeros(len(ids))
    c_inf = nothing.scatter_reduce(0, inverse, largest, "amax")
    return Coverage(ids, rows, c_inf, nothing.index_add(0, inverse, second_moment) / rows)

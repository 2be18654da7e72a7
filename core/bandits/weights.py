"""Importance weights beyond target over propensity: several loggers, groups and embeddings of actions, MRDR."""

from __future__ import annotations

from torch import Tensor

from core.bandits.row_checks import refuse_outside, refuse_rows
from core.errors import InputError


def balance_heuristic(propensities: Tensor, counts: Tensor) -> Tensor:
    """Propensity (n,) of each logged action under the mixture of L loggers that produced the log.

    IPS with it never varies more than with each row's own propensity (Veach and Guibas 1995; Agarwal, Basu, Schnabel
    and Joachims 2017, "Effective evaluation using logged bandit feedback from multiple loggers").

    Args:
        propensities: (n, L), probability of the logged action under each logger.
        counts: (L,) rows that each logger contributed, or their shares.

    Raises:
        InputError: a probability outside [0, 1] (row named), no positive count, or shapes that do not fit.
    """
    if propensities.ndim != 2 or counts.shape != propensities.shape[1:]:
        shapes = f"{tuple(propensities.shape)} and {tuple(counts.shape)}"
        raise InputError(f"propensities, counts: have shapes {shapes}, expected (n, L) and (L,)")
    shares = counts.to(propensities.device).double()
    if not bool((shares >= 0).all()) or not float(shares.sum()) > 0:
        raise InputError(f"counts: {shares.tolist()}, expected numbers of at least 0, not all 0")
    refuse_outside("propensities", propensities, 0.0, 1.0)
    return propensities.double() @ (shares / shares.sum())


def group_weights(action: Tensor, target: Tensor, logging: Tensor, groups: Tensor) -> Tensor:
    """Weights (n,) of grouped IPS: w_g = pi_e(g|x) / pi_0(g|x) for the group g of the logged action.

    IPS with them is unbiased only if an action's effect depends on its group alone (Saito and Joachims 2022,
    "Off-policy evaluation for large action spaces via embeddings", assumption 3.2).

    Args:
        action: logged actions (n,) int64.
        target: probabilities (n, K) of the policy in question.
        logging: probabilities (n, K) of the policy that logged.
        groups: group (K,) of each action.

    Raises:
        InputError: as ``marginal_weights``.
    """
    return marginal_weights(target, logging, groups[None] == groups[action][:, None])


def marginal_weights(target: Tensor, logging: Tensor, likelihood: Tensor) -> Tensor:
    """MIPS weights (n,): sum_a pi_e(a|x) p(e|x,a) / sum_a pi_0(a|x) p(e|x,a) for the logged embedding e.

    Saito and Joachims 2022, "Off-policy evaluation for large action spaces via embeddings", section 3.

    Args:
        target: probabilities (n, K) of the policy in question.
        logging: probabilities (n, K) of the policy that logged.
        likelihood: probability (n, K) of the row's logged embedding, had each action been taken.

    Raises:
        InputError: the logging policy could not have produced a row's embedding (row named), or shapes that differ.
    """
    if not target.shape == logging.shape == likelihood.shape or target.ndim != 2:
        shapes = ", ".join(str(tuple(x.shape)) for x in (target, logging, likelihood))
        raise InputError(f"target, logging, likelihood: have shapes {shapes}, expected the same (n, K)")
    produced = (logging.double() * likelihood).sum(1)
    refuse_rows("logging probability of the embedding", produced, produced > 0, "above 0")
    return (target.double() * likelihood).sum(1) / produced


def mrdr_weights(target: Tensor, propensity: Tensor) -> Tensor:
    """Weights (n,) of the rows for fitting qhat so that the variance of DR is least: pi_e (1 - p) / p^2.

    Farajtabar, Chow and Ghavamzadeh 2018, "More robust doubly robust off-policy evaluation", for a
    deterministic policy; for a stochastic one its usual extension.

    Args:
        target: probability (n,) of the logged action under the policy in question.
        propensity: probability (n,) of the logged action when it was logged.

    Raises:
        InputError: a probability outside its range (row named).
    """
    refuse_outside("target", target, 0.0, 1.0)
    refuse_outside("propensity", propensity, 0.0, 1.0, above=True)
    return target.double() * (1 - propensity.double()) / propensity.double() ** 2

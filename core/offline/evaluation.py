"""Off-policy evaluation of sequential policies: what a policy would have earned, told from another policy's log.

With the ratios rho_t = pi(a_t|s_t) / b(a_t|s_t) of E episodes, their products w_t = rho_0 ... rho_t (w_{-1} = 1) and a
model Q of the policy's action values, V = sum_a pi(a|s) Q(s, a):

    IS     mean of w_T G                               WIS     sum w_T G / sum w_T
    PDIS   mean of sum_t gamma^t w_t r_t               WPDIS   the same with w_t / sum of w_t over the episodes
    DR     mean of sum_t gamma^t (w_t (r_t - Q_t) + w_{t-1} V_t)
    WDR    the same with both weights self-normalised  FQE     mean of V(s_0)

Precup, Sutton and Singh (2000) for IS to WPDIS; Jiang and Li (2016), eq. 10, for DR; Thomas and Brunskill (2016) for
WDR; Le, Voloshin and Yue (2019) for FQE. An episode that is over keeps its last weight and earns nothing; a truncated
one counts with what was logged, but for FQE, whose Q may value what the log has cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.bandits.off_policy_intervals import Evidence, Percentile
from core.bandits.poisson_bootstrap import PoissonBootstrap
from core.bandits.row_checks import refuse_outside, refuse_rows
from core.errors import InputError
from core.offline.dataset import OfflineDataset

Estimator: TypeAlias = Literal["IS", "WIS", "PDIS", "WPDIS", "DR", "WDR", "FQE"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
WITH_MODEL: tuple[Estimator, ...] = ("DR", "WDR", "FQE")
"""Estimators that need Q."""
Verdict: TypeAlias = Literal["identifiable", "not identifiable", "model alone"]

FLOOR = 0.01
"""Least probability that is believed of a behaviour policy that was itself estimated."""
LEAST_ESS_SHARE = 0.05
LEAST_ESS = 30.0
OFFICIAL_CLIP = (1e-8, 1e2)
OFFICIAL_GAMMA = 0.99
OFFICIAL_ZERO = 0.1

_LARGEST_LOG = 600.0


@dataclass(frozen=True)
class Estimate:
    """What the log says of a policy's value, and whether it can say it.

    Attributes:
        name: of the estimator.
        value: expected discounted return; NaN where no logged episode is possible under the policy.
        low: lower end of the 95 % interval, a bootstrap over episodes.
        high: upper end.
        ess: effective sample size (sum w)^2 / sum w^2 of the episodes' final weights (Kish 1965); E for FQE.
        max_weight_share: largest share of one episode in all weight.
        episodes: E.
        floored: logged actions whose behaviour probability was raised to the floor.
        verdict: "not identifiable" if the effective sample size is below 5 % of the episodes or below 30; "model alone"
            for FQE, which weighs nothing, so that no weight can warn.
    """

    name: str
    value: float
    low: float
    high: float
    ess: float
    max_weight_share: float
    episodes: int
    floored: int
    verdict: Verdict


@dataclass(frozen=True, eq=False)
class Trajectories:
    """E episodes as two policies and a model see them, padded to T steps; all float64.

    Attributes:
        rewards: ``(E, T)`` discounted by gamma^t from each episode's first step, 0 behind its end.
        log_weights: ``(E, T)`` log w_t; behind the end the last one.
        discounts: ``(T,)`` gamma^t.
        floored: number of steps whose behaviour probability was raised.
        q: ``(E, T)`` discounted model value of the logged action, 0 behind the end; None without a model.
        v: ``(E, T)`` discounted model value of the state under the policy.
    """

    rewards: Tensor
    log_weights: Tensor
    discounts: Tensor
    floored: int
    q: Tensor | None = None
    v: Tensor | None = None

    @staticmethod
    def of(
        dataset: OfflineDataset,
        target: Tensor,
        behaviour: Tensor | None = None,
        *,
        gamma: float = 1.0,
        q: Tensor | None = None,
        clip: tuple[float, float] | None = None,
        floor: float | None = None,
        official: bool = False,
    ) -> Trajectories:
        """From the rows of a dataset; the arguments are those of ``evaluate_policy``.

        Raises:
            InputError: as ``evaluate_policy``.
        """
        if not 0.0 <= gamma <= 1.0:
            raise InputError(f"gamma: {gamma}; allowed: [0, 1]")
        target = target.to(dataset.device)
        behaviour, q = (None if x is None else x.to(dataset.device) for x in (behaviour, q))
        pi = _of_logged(dataset, "target", target)
        log_b, floored = _behaviour(dataset, behaviour, floor, official)
        log_weights = torch.cumsum(dataset.padded(pi.log() - log_b), 1)
        if clip is not None:
            if not 0.0 <= clip[0] < clip[1]:
                raise InputError(f"clip: {clip}; allowed: (low, high) with 0 <= low < high")
            log_weights = log_weights.clamp(*torch.tensor(clip, dtype=torch.float64).log().tolist())
        discounts = gamma ** torch.arange(log_weights.shape[1], device=dataset.device, dtype=torch.float64)
        rewards = dataset.padded(dataset.rewards.double()) * discounts
        if q is None:
            return Trajectories(rewards, log_weights, discounts, floored)
        if target.ndim != 2 or q.shape != target.shape:
            raise InputError(
                f"q: has shape {tuple(q.shape)}; it and target must be ({len(dataset)}, {dataset.choices})"
            )
        refuse_outside("q", q, -math.inf, math.inf)
        values = (target.double() * q.double()).sum(1), _taken(dataset, q)
        v, taken = (dataset.padded(x) * discounts for x in values)
        return Trajectories(rewards, log_weights, discounts, floored, taken, v)

    @property
    def final_log_weights(self) -> Tensor:
        """``(E,)`` log of the weight of each whole episode."""
        return self.log_weights[:, -1]


def evaluate_policy(
    dataset: OfflineDataset,
    target: Tensor,
    behaviour: Tensor | None = None,
    *,
    gamma: float = 1.0,
    q: Tensor | None = None,
    estimators: Sequence[Estimator] | None = None,
    clip: tuple[float, float] | None = None,
    floor: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
    compat: Literal["official"] | None = None,
) -> list[Estimate]:
    """Estimate what the policy ``target`` earns in an episode, with a bootstrap over episodes (Poisson counts).

    Args:
        dataset: N logged steps. A model Q should have been fitted on other episodes.
        target: ``(N, A)`` probabilities of the policy in question; ``(N,)`` probabilities or densities of the logged
            actions alone serve the estimators without a model.
        behaviour: the same of the policy that logged, where it was estimated; None for the dataset's own record.
        gamma: discount factor.
        q: ``(N, A)`` model of the policy's action values, such as ``FittedQEvaluation``'s.
        estimators: names; None for all that the arguments allow.
        clip: bounds of every cumulative weight; None for none.
        floor: least behaviour probability; None for 0.01 if ``behaviour`` is given, and none for the dataset's record
            or for densities, which have units.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        compat: "official" weighs as the code behind Sukovic and Radanovic (2024) does: weights clipped to [1e-8, 100],
            gamma 0.99, and behaviour probabilities of 0, they alone, replaced by 0.1.

    Raises:
        InputError: probabilities that are negative or do not sum to 1, shapes that do not fit, a logged action that the
            behaviour policy cannot have taken, no knowledge of the behaviour policy, an estimator that is unknown or
            lacks its model.
    """
    official = compat == "official"
    if official:
        gamma, clip, floor = OFFICIAL_GAMMA, OFFICIAL_CLIP, 0.0
    names = [n for n in ESTIMATORS if q is not None or n not in WITH_MODEL] if estimators is None else list(estimators)
    for name in names:
        if name not in ESTIMATORS:
            raise InputError(f"estimators: {name!r}; allowed: {', '.join(ESTIMATORS)}")
        if name in WITH_MODEL and q is None:
            raise InputError(f"estimators: {name} needs q, the action values of a model")
    told = Trajectories.of(dataset, target, behaviour, gamma=gamma, q=q, clip=clip, floor=floor, official=official)
    columns = {name: _COLUMNS[name](told) for name in names}
    total = {name: torch.cat([torch.ones_like(x[:, :1]), x], 1).sum(0, keepdim=True) for name, x in columns.items()}
    widths = [columns[name].shape[1] for name in names]
    ids = torch.arange(dataset.episodes)
    drawn = PoissonBootstrap(resamples, seed).sums(ids, torch.cat(list(columns.values()), 1).T.contiguous())
    parts = dict(zip(names, drawn[:, 1:].split(widths, 1), strict=True))
    ess, share = effective_sample_size(told.final_log_weights)
    enough = enough_overlap(ess, dataset.episodes)
    found = []
    for name in names:
        value = _values(name, total[name])[0]
        replicates = _values(name, torch.cat([drawn[:, :1], parts[name]], 1))
        interval = Percentile()(Evidence(name, float(value), math.nan, dataset.episodes, replicates=replicates))
        model = name == "FQE"
        verdict: Verdict = "model alone" if model else "identifiable" if enough else "not identifiable"
        weights = (float(dataset.episodes), 1 / dataset.episodes) if model else (ess, share)
        found.append(
            Estimate(
                name, interval.mean, interval.low, interval.high, *weights, dataset.episodes, told.floored, verdict
            )
        )
    return found


def enough_overlap(ess: float, episodes: int) -> bool:
    """Whether so large an effective sample size of so many episodes identifies anything: 5 % of them, and 30."""
    return ess >= max(LEAST_ESS, LEAST_ESS_SHARE * episodes)


def effective_sample_size(log_weights: Tensor) -> tuple[float, float]:
    """(sum w)^2 / sum w^2 and the largest share of one weight, for log-weights (E,); (0, 1) if all weights are 0."""
    weights = torch.exp(log_weights - _largest(log_weights))
    total = weights.sum()
    if not float(total) > 0:
        return 0.0, 1.0
    return float(total**2 / weights.square().sum()), float(weights.max() / total)


def softened(greedy: Tensor, choices: int, epsilon: float = 0.01) -> Tensor:
    """Probabilities ``(N, A)`` of a deterministic policy (N,) int64 that takes a uniform action with ``epsilon``.

    Without it importance weights are 0 wherever the log differs from the policy once.
    """
    shares = torch.full((len(greedy), choices), epsilon / choices, dtype=torch.float64, device=greedy.device)
    return shares.scatter_add_(1, greedy[:, None], torch.full_like(shares[:, :1], 1 - epsilon))


# Each estimator is a function of sums over the episodes of a few columns, which the bootstrap weighs all at once. A
# self-normalised one has numerators (E, T) and denominators (E, T), and is the sum over t of their ratios.


def _is(told: Trajectories) -> Tensor:
    return _weights(told.final_log_weights[:, None]) * told.rewards.sum(1, keepdim=True)


def _wis(told: Trajectories) -> Tensor:
    weights = _relative(told.final_log_weights[:, None])
    return torch.cat([weights * told.rewards.sum(1, keepdim=True), weights], 1)


def _pdis(told: Trajectories) -> Tensor:
    return (_weights(told.log_weights) * told.rewards).sum(1, keepdim=True)


def _wpdis(told: Trajectories) -> Tensor:
    weights = _relative(told.log_weights)
    return torch.cat([weights * told.rewards, weights], 1)


def _dr(told: Trajectories) -> Tensor:
    assert told.q is not None
    assert told.v is not None
    weights = _weights(told.log_weights)
    return (weights * (told.rewards - told.q) + _before(weights) * told.v).sum(1, keepdim=True)


def _wdr(told: Trajectories) -> Tensor:
    assert told.q is not None
    assert told.v is not None
    weights = _relative(told.log_weights)
    before = _before(weights)
    return torch.cat([weights * (told.rewards - told.q), before * told.v, weights, before], 1)


def _fqe(told: Trajectories) -> Tensor:
    assert told.v is not None
    return told.v[:, :1]


_COLUMNS: dict[Estimator, Callable[[Trajectories], Tensor]] = {
    **{"IS": _is, "WIS": _wis, "PDIS": _pdis, "WPDIS": _wpdis, "DR": _dr, "WDR": _wdr, "FQE": _fqe}
}
_SELF_NORMALISED: tuple[Estimator, ...] = ("WIS", "WPDIS", "WDR")


def _values(name: Estimator, sums: Tensor) -> NDArray[np.float64]:
    """Value (B,) of each row of ``sums`` (B, 1 + C): the number of episodes and the sums of the columns."""
    if name in _SELF_NORMALISED:
        above, below = sums[:, 1:].chunk(2, 1)
        value = (above / below).sum(1)
    else:
        value = sums[:, 1] / sums[:, 0]
    found: NDArray[np.float64] = value.cpu().numpy()
    return found


def _weights(log_weights: Tensor) -> Tensor:
    # Some 1e260 is no estimate of anything, but infinity times a reward of 0 would be NaN.
    return torch.exp(log_weights.clamp(max=_LARGEST_LOG))


def _relative(log_weights: Tensor) -> Tensor:
    """Weights (E, T) relative to the largest of each column: all that a self-normalised estimator needs of them."""
    return torch.exp(log_weights - _largest(log_weights))


def _largest(log_weights: Tensor) -> Tensor:
    largest = log_weights.amax(0, keepdim=True)
    return torch.where(largest > -math.inf, largest, 0.0)


def _before(weights: Tensor) -> Tensor:
    """w_{t-1}, 1 at the first step."""
    return torch.cat([torch.ones_like(weights[:, :1]), weights[:, :-1]], 1)


def _taken(dataset: OfflineDataset, values: Tensor) -> Tensor:
    return values.double().gather(1, dataset.actions[:, None])[:, 0]


def _of_logged(dataset: OfflineDataset, name: str, probabilities: Tensor) -> Tensor:
    """Probability, or density, (N,) float64 of the logged actions."""
    n = len(dataset)
    if probabilities.shape == (n,):
        refuse_outside(name, probabilities, 0.0, 1.0 if dataset.discrete else math.inf)
        return probabilities.double()
    if not dataset.discrete:
        shape = tuple(probabilities.shape)
        raise InputError(f"{name}: has shape {shape}; continuous actions need the densities ({n},) of the logged ones")
    if probabilities.shape != (n, dataset.choices):
        shape = tuple(probabilities.shape)
        raise InputError(f"{name}: has shape {shape}; allowed: ({n}, {dataset.choices}) or ({n},)")
    refuse_outside(name, probabilities, 0.0, 1.0)
    total = probabilities.double().sum(1)
    refuse_rows(f"{name}: sum of probabilities", total, (total - 1).abs() < 1e-3, "1")
    return _taken(dataset, probabilities)


def _behaviour(
    dataset: OfflineDataset, behaviour: Tensor | None, floor: float | None, official: bool
) -> tuple[Tensor, int]:
    """Log-probability (N,) of the logged actions under the policy that logged, and how many were raised."""
    estimated = behaviour is not None
    least = floor if floor is not None else FLOOR if estimated and dataset.discrete else 0.0
    if not 0.0 <= least < 1.0:
        raise InputError(f"floor: {floor}; allowed: [0, 1)")
    if behaviour is None:
        behaviour = dataset.behaviour_probability
    if behaviour is not None:
        b = _of_logged(dataset, "behaviour", behaviour)
    elif dataset.behaviour_log_prob is not None:
        b = dataset.behaviour_log_prob.double().exp()
    else:
        raise InputError(f"{dataset.name}: the behaviour policy is unknown; give its estimated probabilities")
    if official:
        raised = torch.where(b == 0, OFFICIAL_ZERO, b)
    else:
        raised = b.clamp(min=least)
        refuse_rows("behaviour: probability of the logged action", raised, raised > 0, "above 0 (or give a floor)")
    return raised.log(), int((raised != b).sum())

"""What is measured of a generation: true values on its payments, and its new model on a fixed set of payments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from apps.payments import metrics
from apps.payments.metrics import PROPENSITY_EDGES, WEIGHT_EDGES
from apps.payments.scenario import Scenario
from core.bandits import feature_coverage, policy_coverage, sample_actions, uniform
from core.seeds import stream
from simulators.payments import FUNDINGS, INTERACTIONS, SCHEMES, PaymentState, dense_mask, flag_bits
from simulators.payments.approval import TYPICAL_LOG_AMOUNT

if TYPE_CHECKING:
    from apps.payments.generations import Decided, GenerationLoop

RANKS = ((0, 10), (10, 40), (40, None))
SEGMENTS = (
    *(f"scheme {name}" for name in SCHEMES),
    *(f"funding {name}" for name in FUNDINGS),
    *(f"interaction {name}" for name in INTERACTIONS),
    "domestic",
    "cross-border",
    *(f"issuers {low + 1}-{high}" if high else f"issuers after {low}" for low, high in RANKS),
)
"""Parts of the stream that mean the same in every world; issuers by popularity."""


@dataclass(frozen=True)
class Series:
    """A quantity that is recorded every generation.

    Attributes:
        long_name: in words.
        units: as printed on an axis.
        dims: after ``generation``.
    """

    long_name: str
    units: str = "1"
    dims: tuple[str, ...] = ()

    def variable(self, values: np.ndarray) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        """What an xarray Dataset takes."""
        return ("generation", *self.dims), values, {"units": self.units, "long_name": self.long_name}


ONLINE_SERIES = {
    "value": Series("online value: true approval rate of the deployed policy"),
    "best_value": Series("approval rate of the best action of every payment"),
    "uniform_value": Series("approval rate of uniform decisions on the same payments"),
    "approvals": Series("observed share of approvals"),
    "entropy": Series("entropy of the deployed policy", "nat"),
    "propensity": Series("mean logged propensity"),
    "regret": Series("regret: best value - value", "bps"),
    "rejections_avoided": Series("share of the declines of uniform decisions that are avoided"),
    "segment_value": Series("online value of a segment", dims=("segment",)),
    "propensity_counts": Series("decisions by log10 propensity", "decisions", ("propensity_bin",)),
    "rows": Series("rows that may teach", "rows"),
}
"""What is recorded of the deployed policy and its log."""

MODEL_SERIES = {
    "greedy_value": Series("greedy value of the model trained after the generation"),
    "mse_uniform": Series("realizability error of the new model: mean over available actions of (f - P)^2"),
    "mse_log": Series("error of the new model under the deployed policy"),
    "log_loss": Series("log-loss of the new model on uniform decisions", "nat"),
    "auc": Series("area under the ROC curve of the new model on uniform decisions"),
    "average_precision_declines": Series("area under the precision-recall curve of declines on uniform decisions"),
    "brier": Series("Brier score of the new model on uniform decisions"),
    "ece": Series("expected calibration error, 15 equal-mass bins"),
    "mce": Series("maximum calibration error, 15 equal-mass bins"),
    "gap": Series("mean predicted gap between the best and the other available actions"),
    "reliability_predicted": Series("mean prediction of a bin", dims=("bin",)),
    "reliability_observed": Series("observed share of approvals of a bin", dims=("bin",)),
    "action_ece": Series("expected calibration error of an action", dims=("action",)),
    "c2": Series("E_log[w^2] of the next policy: concentrability C_2 = n/ESS"),
    "c_inf": Series("largest importance weight of the next policy"),
    "c_phi": Series("largest ratio of second moments of the features, next policy over log: C_phi"),
    "missing_mass": Series("mass of the next policy on actions that the deployed one never takes"),
    "weight_mass": Series("mass of the log by log10 importance weight of the next policy", dims=("weight_bin",)),
    "model_error": Series("error of the model's own estimate of the next policy's value"),
    "model_error_bound": Series("its bound sqrt(C_2 MSE_log)"),
    "online_log_loss": Series("log-loss of an online oracle on its rows before it learned from them", "nat"),
    "learning_rate": Series("mean learning rate of an online oracle"),
}
"""What is recorded of the model that is trained on the log, and of the policy that it makes."""

SERIES = ONLINE_SERIES | MODEL_SERIES


def segment_masks(state: PaymentState) -> Tensor:
    """``(segments, n)`` bool, in the order of ``SEGMENTS``."""
    parts = [state.scheme == i for i in range(len(SCHEMES))]
    parts += [state.funding == i for i in range(len(FUNDINGS))]
    parts += [state.interaction == i for i in range(len(INTERACTIONS))]
    parts += [state.cross_border == 0, state.cross_border > 0]
    parts += [(state.issuer >= low) & (state.issuer < (high or 2**62)) for low, high in RANKS]
    return torch.stack(parts)


class OnlineSums:
    """Sums over the blocks of a generation; the truth is the simulator's."""

    def __init__(self, scenario: Scenario) -> None:
        self._n = scenario.payments
        self._sums: dict[str, Tensor] = {}

    def add(self, decided: Decided) -> None:
        """Count a block."""
        pi, mask, truth, rows = decided.probabilities, decided.mask, decided.truth, decided.rows
        value = (pi * truth).sum(1)
        parts = segment_masks(rows.state).to(value.dtype)
        edges = torch.tensor(10.0 ** PROPENSITY_EDGES[1:-1], dtype=rows.propensity.dtype, device=value.device)
        bins = torch.bucketize(rows.propensity, edges)
        for name, x in {
            "value": value.sum(),
            "best_value": truth.masked_fill(~mask, -1).amax(1).sum(),
            "uniform_value": (truth * mask).sum(1).div(mask.sum(1)).sum(),
            "approvals": rows.reward.sum(),
            "entropy": torch.special.entr(pi).sum(),
            "propensity": rows.propensity.sum(),
            "segment_sum": parts @ value,
            "segment_count": parts.sum(1),
            "propensity_counts": torch.bincount(bins, minlength=len(PROPENSITY_EDGES) - 1),
            "rows": rows.coin.sum(),
        }.items():
            self._sums[name] = self._sums[name] + x if name in self._sums else x

    def result(self) -> dict[str, Any]:
        """The measures of the generation."""
        sums = {name: x.double().cpu().numpy() for name, x in self._sums.items()}
        found: dict[str, Any] = {
            n: x / self._n for n, x in sums.items() if n in SERIES and n not in ("propensity_counts", "rows")
        }
        with np.errstate(invalid="ignore"):
            found["segment_value"] = sums["segment_sum"] / sums["segment_count"]
        found |= {name: sums[name] for name in ("propensity_counts", "rows")}
        value, best, everything = (float(found[name]) for name in ("value", "best_value", "uniform_value"))
        found["regret"] = metrics.regret(value, best)
        found["rejections_avoided"] = metrics.rejections_avoided(value, everything)
        return found


class Measures:
    """The fixed evaluation payments of a world, and what a model and the next policy are worth on them."""

    def __init__(self, scenario: Scenario, seed: int, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(stream(seed, "evaluation"))
        world, n = scenario.world(seed, device), scenario.evaluation
        self.state = world.reset(n, generator)
        self.mask = dense_mask(self.state.allowed, self.state.forced, scenario.sizes.flags)
        luck = torch.rand(2, n, generator=generator, dtype=world.dtype, device=device)
        self._everything = uniform(self.mask, world.dtype)
        self._action = sample_actions(self._everything, self.mask, luck[0]).action
        self._answer = luck[1]
        self._features = _features(self.state, scenario.sizes.flags) if scenario.feature_coverage else None
        lengths = {"bin": metrics.BINS, "action": scenario.sizes.actions, "weight_bin": len(WEIGHT_EDGES) - 1}
        self._shapes = {name: tuple(lengths[dim] for dim in series.dims) for name, series in MODEL_SERIES.items()}

    def policy(self, loop: GenerationLoop) -> Tensor:
        """The deployed policy on the evaluation payments ``(n, K)``."""
        return loop.policy(self.state, self.mask)

    def of_model(self, loop: GenerationLoop, deployed: Tensor) -> dict[str, Any]:
        """Measures of the model that was just trained, and of the policy that it makes.

        Args:
            loop: after learning.
            deployed: the policy before it, from ``policy``.
        """
        truth = loop.world.probabilities(self.state)
        if not loop.oracle:  # no model could be fitted yet
            return {name: np.full(self._shapes[name], np.nan) for name in MODEL_SERIES}
        scores = loop.scores(self.state)
        predicted = scores if scores.dim() == 2 else scores.mean(0)
        rows = torch.arange(len(truth), device=truth.device)
        label = (self._answer < truth[rows, self._action]).double()
        ranking = metrics.Ranking.of(predicted[rows, self._action], label)
        diagram, by_action = (
            ranking.reliability(),
            metrics.action_calibration_errors(predicted[rows, self._action], label, self._action, truth.shape[1]),
        )
        mse_log = metrics.realizability_error(predicted, truth, deployed)
        found: dict[str, Any] = {
            "greedy_value": metrics.greedy_value(predicted, truth, self.mask),
            "mse_uniform": metrics.realizability_error(predicted, truth, self._everything),
            "mse_log": mse_log,
            "log_loss": metrics.log_loss(ranking.prediction, ranking.reward),
            "auc": ranking.roc_auc(),
            "average_precision_declines": ranking.declines_average_precision(),
            "brier": metrics.brier_score(ranking.prediction, ranking.reward),
            "ece": diagram.expected_error,
            "mce": diagram.maximum_error,
            "gap": metrics.mean_gap(predicted, self.mask),
            "reliability_predicted": diagram.predicted,
            "reliability_observed": diagram.observed,
            "action_ece": by_action,
        }
        found |= self._coverage(deployed, self.policy(loop), predicted, truth, mse_log)
        return {name: x.cpu().numpy() if isinstance(x, Tensor) else x for name, x in found.items()}

    def _coverage(
        self, deployed: Tensor, following: Tensor, predicted: Tensor, truth: Tensor, mse_log: float
    ) -> dict[str, Any]:
        """How well the deployed policy's log covers the next policy (Zanette 2022, arXiv 2211.05311, at horizon 1)."""
        cover = policy_coverage(following, deployed)
        seen = deployed > 0
        weight = torch.where(seen, following / deployed, 0)
        edges = torch.tensor(10.0 ** WEIGHT_EDGES[1:-1], dtype=weight.dtype, device=weight.device)
        mass = torch.zeros(len(WEIGHT_EDGES) - 1, dtype=torch.float64, device=weight.device)
        mass.scatter_add_(0, torch.bucketize(weight, edges).flatten(), (deployed / len(deployed)).double().flatten())
        return {
            "c2": cover.c_2[0],
            "c_inf": cover.c_inf[0],
            "c_phi": self._feature_coverage(following, deployed),
            "missing_mass": following.masked_fill(seen, 0).sum(1).mean(),
            "weight_mass": mass,
            "model_error": (following * (predicted - truth)).sum(1).mean(),
            "model_error_bound": cover.bound(mse_log)[0],
        }

    def _feature_coverage(self, following: Tensor, deployed: Tensor) -> float | Tensor:
        if self._features is None:
            return np.nan
        return feature_coverage(self._features, following, deployed)[0]


def _features(state: PaymentState, flags: int) -> Tensor:
    """``(n, K, d)``: a constant, the interventions, their pairs, and each with the amount and the border."""
    bits = flag_bits(flags, state.issuer.device, state.log_amount.dtype)
    first, second = torch.triu_indices(flags, flags, 1, device=bits.device)
    of_action = torch.cat([bits, bits[:, first] * bits[:, second]], 1).expand(len(state), -1, -1)
    of_payment = torch.stack(
        [torch.ones_like(state.hour), state.log_amount - TYPICAL_LOG_AMOUNT, state.cross_border], 1
    )
    crossed = torch.einsum("nj,kf->nkjf", of_payment[:, 1:], bits).flatten(2)
    return torch.cat([of_payment[:, None].expand(-1, len(bits), -1), of_action, crossed], 2)

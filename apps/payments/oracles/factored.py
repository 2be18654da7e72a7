"""The factored oracle: a logistic regression whose effects of the interventions depend on the payment.

    f(x, a) = sigmoid(c(x) + sum_f b_f d_f(x) + sum_{f<h} b_f b_h e_fh),     b = the bits of the action

with c linear in a constant, the eight ``FEATURES`` and one indicator a level of each category, and each d_f linear in
a constant, the first four of them and one indicator a level of issuer, merchant and country. It is misspecified on
purpose: the truth is a product of three stages, so realizability fails in a controlled way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from torch import Tensor

from apps.payments.oracles.oracle import Oracle, OracleConfig, OracleDiverged
from apps.payments.oracles.rows import FEATURES, Rows, level_codes, numeric_features
from core.errors import InputError
from simulators.payments.context import CATEGORIES, PaymentContext, Sizes, flag_bits

Array = NDArray[np.float64]
Objective: TypeAlias = Callable[[Array], tuple[float, Array]]
"""A function of the coefficients and its gradient."""
Link = Literal["logistic", "identity"]

NUMBERS = 1 + len(FEATURES)
"""The constant and the features, the first columns of c."""
EFFECT_NUMBERS = 5
"""The constant and the first four features, the first columns of each d_f."""
EFFECT_CATEGORIES = CATEGORIES[:3]
"""Issuer, merchant and country, the categories of each d_f."""


@dataclass(frozen=True)
class Coefficients:
    """Where each coefficient lies in the vector of all: c, then d_0 ... d_{F-1}, then the pairs of flags.

    Attributes:
        sizes: of the portfolio.
    """

    sizes: Sizes

    @property
    def levels(self) -> list[int]:
        """Levels of each category, in their order."""
        return [self.sizes.levels[name] for name in CATEGORIES]

    @property
    def common(self) -> int:
        """Coefficients of c."""
        return NUMBERS + sum(self.levels)

    @property
    def effect(self) -> int:
        """Coefficients of each d_f."""
        return EFFECT_NUMBERS + sum(self.levels[: len(EFFECT_CATEGORIES)])

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The pairs of flags, in their order."""
        return list(combinations(range(self.sizes.flags), 2))

    def __len__(self) -> int:
        return self.common + self.sizes.flags * self.effect + len(self.pairs)

    def split(self, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of c ``(common,)``, d ``(F, effect)`` and the pairs ``(F (F - 1) / 2,)`` of all coefficients."""
        flags = self.sizes.flags
        common, effects, pairs = vector.split([self.common, flags * self.effect, len(self.pairs)])
        return common, effects.view(flags, self.effect), pairs

    def ridge(self, *, common: float, effect_levels: float, intercept: float) -> Array:
        """Penalty of each coefficient; ``common`` is also that of the pairs and of the first columns of each d_f."""
        penalty = torch.full((len(self),), common, dtype=torch.float64)
        shared, effects, _ = self.split(penalty)
        effects[:, EFFECT_NUMBERS:] = effect_levels
        shared[0] = intercept
        return penalty.numpy()

    def design(self, context: PaymentContext, action: Tensor) -> tuple[csr_matrix, NDArray[np.int64]]:
        """The matrix of which a row times the coefficients is the score of a payment and its action.

        Rows of one action have the same columns, so they are laid together: the matrix is built in blocks, without
        a mask and without a loop over rows.

        Returns:
            The matrix ``(n, coefficients)``, and the row ``(n,)`` that each of its rows was.
        """
        action = action.cpu()
        order = action.argsort(stable=True)
        context = context.to("cpu", torch.float64).take(order)
        taken, counts = action[order].unique_consecutive(return_counts=True)
        codes = torch.stack(list(level_codes(context, self.sizes).values()), 1).numpy()
        known = codes < self.levels
        features = np.vstack([np.ones(len(context)), numeric_features(context).numpy()]).T
        values = np.hstack([features, known])
        starts = np.cumsum([NUMBERS, *self.levels[:-1]])
        # An unknown level is a stored zero, so that all rows of an action have the same width.
        columns = np.empty(values.shape, dtype=np.int32)
        columns[:, :NUMBERS] = np.arange(NUMBERS)
        columns[:, NUMBERS:] = np.where(known, codes + starts, starts)
        last = NUMBERS + len(EFFECT_CATEGORIES)
        of_effect = np.r_[:EFFECT_NUMBERS, NUMBERS:last]
        effect_values, effect_columns = values[:, of_effect], columns[:, of_effect]
        effect_columns[:, EFFECT_NUMBERS:] -= NUMBERS - EFFECT_NUMBERS
        effects = [self.common + f * self.effect for f in range(self.sizes.flags)]
        every_pair = list(enumerate(self.pairs, len(self) - len(self.pairs)))
        blocks, start = [], 0
        for bits, count in zip(taken.tolist(), counts.tolist(), strict=True):
            rows = slice(start, start + count)
            on = [first for f, first in enumerate(effects) if bits >> f & 1]
            both = [i for i, (f, h) in every_pair if bits >> f & bits >> h & 1]
            pairs = np.broadcast_to(np.array(both, dtype=np.int32), (count, len(both)))
            at = np.hstack([columns[rows], *(effect_columns[rows] + np.int32(first) for first in on), pairs])
            blocks.append((at, np.hstack([values[rows], *[effect_values[rows]] * len(on), np.ones(pairs.shape)])))
            start += count
        widths = np.repeat([at.shape[1] for at, _ in blocks], counts)
        entries = [np.concatenate([part[i].ravel() for part in blocks]) for i in (1, 0)]
        matrix = csr_matrix((*entries, np.r_[0, widths.cumsum()]), shape=(len(context), len(self)))
        return matrix, order.numpy()


def penalised_loss(
    design: csr_matrix | Array, reward: Array, ridge: Array, weight: Array | None = None, focus: float = 0.0
) -> Objective:
    """The sum over rows of the log-loss plus half the sum of ridge times coefficient squared, and its gradient.

    With ``focus`` g > 0 the loss of a row is the focal loss -(1 - p)^g log p, p the probability of its label
    (Lin et al. 2017, equation 4), which is not convex.

    Args:
        design: ``(n, m)``.
        reward: ``(n,)`` in [0, 1].
        ridge: ``(m,)``.
        weight: ``(n,)`` of the rows' losses.
        focus: g.
    """
    transposed = design.T
    loss_of = _focal(reward, focus) if focus else _log_loss(reward)

    def objective(coefficients: Array) -> tuple[float, Array]:
        losses, slopes = loss_of(design @ coefficients)
        if weight is not None:
            losses, slopes = losses * weight, slopes * weight
        shrunk = ridge * coefficients
        return float(losses.sum() + 0.5 * shrunk @ coefficients), transposed @ slopes + shrunk

    return objective


def _log_loss(reward: Array) -> Callable[[Array], tuple[Array, Array]]:
    def loss(score: Array) -> tuple[Array, Array]:
        small = np.exp(-np.abs(score))
        losses = np.log1p(small) + np.maximum(score, 0.0) - reward * score
        return losses, np.where(score >= 0, 1.0, small) / (1.0 + small) - reward

    return loss


def _focal(reward: Array, focus: float) -> Callable[[Array], tuple[Array, Array]]:
    def of_label(score: Array) -> tuple[Array, Array]:
        log_p, log_q = -np.logaddexp(0.0, -score), -np.logaddexp(0.0, score)
        p, damped = np.exp(log_p), np.exp(focus * log_q)
        return -damped * log_p, damped * (focus * p * log_p - np.exp(log_q))

    def loss(score: Array) -> tuple[Array, Array]:
        approved, slope_approved = of_label(score)
        declined, slope_declined = of_label(-score)
        return (
            reward * approved + (1 - reward) * declined,
            reward * slope_approved - (1 - reward) * slope_declined,
        )

    return loss


class FactoredSettings(OracleConfig):
    """The factored logistic regression."""

    focal: ClassVar[bool] = True

    kind: Literal["factored"] = "factored"
    iterations: int = Field(default=40, ge=1, le=10_000)
    """Of L-BFGS."""
    ridge: float = Field(default=2.0, gt=0)
    """Penalty of c, of the pairs and of the numbers of each d_f."""
    ridge_levels: float = Field(default=8.0, gt=0)
    """Penalty of the levels of each d_f."""
    ridge_intercept: float = Field(default=1e-4, gt=0)
    """Penalty of the intercept."""
    intercept: float = 2.0
    """Where the intercept starts; the other coefficients start at 0."""

    def _fit(self, rows: Rows, sizes: Sizes, *, focus: float, **unused: Any) -> FactoredOracle:
        """Minimise the penalised loss by L-BFGS in float64 on the CPU; nothing in it is random."""
        coefficients = Coefficients(sizes)
        design, order = coefficients.design(rows.context, rows.action)
        reward = rows.reward.cpu().double().numpy()[order]
        weight = None if rows.weight is None else rows.weight.cpu().double().numpy()[order]
        ridge = coefficients.ridge(common=self.ridge, effect_levels=self.ridge_levels, intercept=self.ridge_intercept)
        start = np.zeros(len(coefficients))
        start[0] = self.intercept
        found = minimize(
            penalised_loss(design, reward, ridge, weight, focus),
            start,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": self.iterations, "maxfun": 10 * self.iterations},
        )
        # The line search chooses its own steps: there is no smaller one to try again with.
        if not np.isfinite(found.x).all() or not np.isfinite(found.fun):
            raise OracleDiverged(f"factored: the loss is {found.fun} after {found.nit} iterations of L-BFGS")
        return FactoredOracle(self, sizes, torch.from_numpy(found.x))

    def restore(self, state: Mapping[str, Tensor], extras: Mapping[str, Any], sizes: Sizes) -> FactoredOracle:
        """The oracle with the saved coefficients."""
        return FactoredOracle(self, sizes, state["coefficients"])


class FactoredOracle(Oracle[OracleConfig]):
    """Predictions of the factored model on any device.

    Args:
        settings: it was fitted with.
        sizes: of the portfolio.
        coefficients: ``(m,)`` float64, laid out as ``Coefficients`` says.
        link: whether a score is the logit of the approval probability, or that probability itself (clipped to [0, 1]).

    Raises:
        InputError: not as many coefficients as ``sizes`` asks for.
    """

    def __init__(self, settings: OracleConfig, sizes: Sizes, coefficients: Tensor, link: Link = "logistic") -> None:
        super().__init__(settings, sizes)
        if coefficients.shape != (len(Coefficients(sizes)),):
            raise InputError(
                f"coefficients: have shape {tuple(coefficients.shape)}, {sizes} asks for ({len(Coefficients(sizes))},)"
            )
        self.coefficients, self.link = coefficients, link
        self._tables: dict[tuple[torch.device, torch.dtype], _Tables] = {}

    @property
    def parameters(self) -> int:
        """Number of coefficients."""
        return len(self.coefficients)

    def state(self) -> dict[str, Tensor]:
        """The coefficients."""
        return {"coefficients": self.coefficients}

    def _approval(self, context: PaymentContext, dtype: torch.dtype) -> Tensor:
        tables = self._on(context.log_amount.device, dtype)
        return self._probability(torch.addmm(tables.pairs, tables.effects(context), tables.bits))

    def _approval_of(self, context: PaymentContext, action: Tensor, dtype: torch.dtype) -> Tensor:
        tables = self._on(context.log_amount.device, dtype)
        action = action.to(context.log_amount.device)
        bits = tables.bits.T[action]
        return self._probability((tables.effects(context) * bits).sum(1) + tables.pairs[action])

    def _probability(self, score: Tensor) -> Tensor:
        return score.sigmoid_() if self.link == "logistic" else score.clamp_(0, 1)

    def _on(self, device: torch.device, dtype: torch.dtype) -> _Tables:
        key = (device, dtype)
        if key not in self._tables:
            self._tables[key] = _Tables(self.sizes, self.coefficients.to(device), dtype)
        return self._tables[key]


class _Tables:
    """The coefficients as tables whose rows are [c, d_0, ..., d_{F-1}], so that a payment is a few looked-up rows.

    The categories with few levels share one table over their combinations: three rows a payment, in place of six.
    """

    def __init__(self, sizes: Sizes, coefficients: Tensor, dtype: torch.dtype) -> None:
        layout = Coefficients(sizes)
        common, effects, pairs = layout.split(coefficients)
        device, wide = coefficients.device, 1 + sizes.flags
        self.sizes, self.dtype = sizes, dtype
        numbers = coefficients.new_zeros(NUMBERS, wide)
        numbers[:, 0] = common[:NUMBERS]
        numbers[:EFFECT_NUMBERS, 1:] = effects[:, :EFFECT_NUMBERS].T
        levels = []
        starts = np.cumsum([0, *layout.levels])
        for i, (start, end) in enumerate(pairwise(starts)):
            # The last row is that of an unknown level.
            table = coefficients.new_zeros(int(end - start) + 1, wide)
            table[:-1, 0] = common[NUMBERS + start : NUMBERS + end]
            if i < len(EFFECT_CATEGORIES):
                table[:-1, 1:] = effects[:, EFFECT_NUMBERS + start : EFFECT_NUMBERS + end].T
            levels.append(table)
        issuer, merchant, few = levels[0], levels[1], levels[2]
        for table in levels[3:]:
            few = (few[:, None] + table).flatten(0, 1)
        self.intercept, self.numbers = numbers[0].to(dtype), numbers[1:].to(dtype)
        self.levels = torch.cat([issuer, merchant, few]).to(dtype)
        bits = flag_bits(sizes.flags, device)
        chosen = torch.tensor(layout.pairs, device=device)
        self.pairs = ((bits[:, chosen[:, 0]] * bits[:, chosen[:, 1]]) @ pairs).to(dtype)
        self.bits = torch.cat([bits.new_ones(len(bits), 1), bits], 1).T.contiguous().to(dtype)

    def effects(self, context: PaymentContext) -> Tensor:
        """``(n, 1 + F)``: c and every d_f of n payments."""
        levels = self.sizes.levels
        issuer, merchant, few, *rest = level_codes(context, self.sizes).items()
        row = few[1]
        for name, code in rest:
            row = row * (levels[name] + 1) + code
        first = levels["issuer"] + 1
        at = torch.stack([issuer[1], merchant[1] + first, row + (first + levels["merchant"] + 1)], 1)
        found = torch.nn.functional.embedding_bag(at, self.levels, mode="sum")
        return found.add_(self.intercept).addmm_(numeric_features(context, self.dtype).T, self.numbers)

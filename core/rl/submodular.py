"""Monotone submodular set functions, item by item: their marginal gains are rewards with diminishing returns.

F is submodular if the gain F(S + i) - F(S) of an item never rises as S grows, and monotone if it is never negative;
F(empty set) = 0. A state of the set so far is carried instead of the set itself, so that a world can keep it in its
own state and pay ``gain`` as the reward of a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from core.errors import InputError


class SetFunction(Protocol):
    """F of a set of items 0..n-1, for B sets at once.

    States are trees of tensors with the batch first; they are never changed in place. An item that is in the set
    already gains nothing.
    """

    @property
    def items(self) -> int:
        """Number of items n."""
        ...

    def start(self, batch: int) -> Any:
        """The state of ``batch`` empty sets."""
        ...

    def gain(self, state: Any, item: Tensor) -> tuple[Tensor, Any]:
        """F(S + item) - F(S) (B,) of one item (B,) for each set, and the state of S + item."""
        ...

    def gains(self, state: Any) -> Tensor:
        """F(S + i) - F(S) of every item i; (B, n)."""
        ...


class GreedyChoice(NamedTuple):
    """Result of ``greedy``.

    Attributes:
        items: (B, picks), in the order chosen.
        gains: (B, picks), the gain of each when it was chosen; they sum to F.
    """

    items: Tensor
    gains: Tensor


def greedy(function: SetFunction, picks: int, batch: int = 1) -> GreedyChoice:
    """Pick the item of largest gain ``picks`` times: at least 1 - 1/e of the best F (Nemhauser et al. 1978).

    Ties go to the lowest index.

    Raises:
        InputError: more picks than items, or none.
    """
    if not 1 <= picks <= function.items:
        raise InputError(f"picks: {picks}; allowed: 1 to {function.items}, the number of items")
    state = function.start(batch)
    taken: Tensor | None = None
    items, gains = [], []
    for _ in range(picks):
        values = function.gains(state)
        taken = torch.zeros_like(values, dtype=torch.bool) if taken is None else taken
        item = values.masked_fill(taken, -torch.inf).argmax(1)
        gain, state = function.gain(state, item)
        taken = taken.scatter(1, item.unsqueeze(1), True)
        items.append(item)
        gains.append(gain)
    return GreedyChoice(torch.stack(items, 1), torch.stack(gains, 1))


@dataclass(frozen=True)
class Coverage:
    """Number of elements that the chosen items cover; the state is the covered elements ``(B, elements)``, bool.

    Attributes:
        sets: ``(items, elements)`` bool; which elements an item covers.

    Raises:
        InputError: ``sets`` is not a bool matrix.
    """

    sets: Tensor

    def __post_init__(self) -> None:
        if self.sets.dim() != 2 or self.sets.dtype != torch.bool:
            raise InputError(
                f"sets: {self.sets.dtype} of shape {tuple(self.sets.shape)}; allowed: bool (items, elements)"
            )

    @property
    def items(self) -> int:
        """Number of sets."""
        return len(self.sets)

    @cached_property
    def worth(self) -> Tensor:
        """What an element counts; ``(elements,)``."""
        return torch.ones(self.sets.shape[1], device=self.sets.device)

    def start(self, batch: int) -> Tensor:
        """Nothing covered."""
        return self.sets.new_zeros(batch, self.sets.shape[1])

    def gain(self, state: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Worth of the elements that ``item`` covers first."""
        covered = self.sets[item]
        return (covered & ~state).to(self.worth) @ self.worth, state | covered

    def gains(self, state: Tensor) -> Tensor:
        """Worth of the elements that each item would cover first."""
        return (~state * self.worth) @ self.sets.to(self.worth).T


@dataclass(frozen=True)
class WeightedCoverage(Coverage):
    """Sum of the weights of the covered elements.

    Attributes:
        weights: ``(elements,)``, not negative.

    Raises:
        InputError: a negative weight, or not one for each element.
    """

    weights: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights.shape != self.sets.shape[1:] or not bool((self.weights >= 0).all()):
            raise InputError(
                f"weights of shape {tuple(self.weights.shape)}; "
                f"allowed: {self.sets.shape[1]} numbers that are not negative"
            )

    @cached_property
    def worth(self) -> Tensor:
        """The weights."""
        return self.weights


@dataclass(frozen=True)
class FacilityLocation:
    """Sum over clients of their similarity to the nearest chosen item; the state is that similarity ``(B, clients)``.

    Attributes:
        similarity: ``(clients, items)``, not negative.

    Raises:
        InputError: ``similarity`` is not a matrix, or negative somewhere.
    """

    similarity: Tensor

    def __post_init__(self) -> None:
        if self.similarity.dim() != 2 or not bool((self.similarity >= 0).all()):
            raise InputError("similarity: must be a matrix (clients, items) of numbers that are not negative")

    @property
    def items(self) -> int:
        """Number of facilities to choose from."""
        return self.similarity.shape[1]

    def start(self, batch: int) -> Tensor:
        """No client is served."""
        return self.similarity.new_zeros(batch, len(self.similarity))

    def gain(self, state: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """How much nearer ``item`` brings the clients."""
        nearest = torch.maximum(state, self.similarity.T[item])
        return (nearest - state).sum(1), nearest

    def gains(self, state: Tensor) -> Tensor:
        """How much nearer each item would bring the clients."""
        return (self.similarity.T - state.unsqueeze(1)).clamp(min=0).sum(2)


@dataclass(frozen=True)
class LogDetState:
    """Belief about the features after the measurements so far.

    Attributes:
        root: ``(B, m, m)``, a square root D of the features' covariance D D^T, in units of the prior's.
        taken: ``(B, items)`` bool.
    """

    root: Tensor
    taken: Tensor


@dataclass(frozen=True)
class LogDet:
    """Information that noisy measurements give about a Gaussian: F(A) = (1/2) logdet(I + Sigma_AA / noise^2), in nats.

    Sigma = Phi Phi^T + residual I over the rows of all items; an item is a block of R rows that are measured together,
    as a line of k-space is. A row's independent part ``residual`` is something to be known too. The belief is carried
    in the m features: with X = D^T Phi_a^T, S = noise^2 I + X^T X and its Cholesky factor S = T T^T, the gain of item
    a is sum log(diag T / noise) and D becomes D (I - X T^-T (T + noise I)^-1 X^T), Andrews' square-root form of the
    Kalman update (AIAA Journal 1968), which cannot lose positive definiteness.

    Attributes:
        features: ``(items, R, m)``, the rows of Phi.
        noise: standard deviation of a measurement.
        residual: variance of the independent part of a row.

    Raises:
        InputError: features of another shape, noise that is not positive, or a negative residual.
    """

    features: Tensor
    noise: float
    residual: float = 0.0

    def __post_init__(self) -> None:
        if self.features.dim() != 3:
            raise InputError(f"features of shape {tuple(self.features.shape)}; allowed: (items, rows, features)")
        if not self.noise > 0:
            raise InputError(f"noise: {self.noise}; allowed: greater than 0")
        if not self.residual >= 0:
            raise InputError(f"residual: {self.residual}; allowed: at least 0")

    @classmethod
    def of_covariance(cls, covariance: Tensor, noise: float, rows: int = 1) -> LogDet:
        """The function of a covariance ``(items * rows, items * rows)``; consecutive rows form an item.

        Raises:
            InputError: not a square matrix whose size is a multiple of ``rows``, or one that is not positive
                semi-definite.
        """
        size = len(covariance)
        if covariance.shape != (size, size) or rows < 1 or size % rows:
            raise InputError(
                f"covariance of shape {tuple(covariance.shape)}; allowed: square, its size a multiple of rows = {rows}"
            )
        values, vectors = torch.linalg.eigh(covariance)
        if float(values[0]) < -1e-5 * float(values[-1].abs()):
            raise InputError(
                f"covariance: an eigenvalue of {float(values[0]):.3g}; allowed: positive semi-definite matrices"
            )
        features = vectors * values.clamp(min=0).sqrt()
        return cls(features.unflatten(0, (size // rows, rows)), noise)

    @property
    def items(self) -> int:
        """Number of blocks."""
        return len(self.features)

    @cached_property
    def _noise(self) -> float:
        """Standard deviation of a row given the features."""
        return (self.noise**2 + self.residual) ** 0.5

    @cached_property
    def _own(self) -> float:
        """Information of a block about its rows' independent parts."""
        return self.features.shape[1] * torch.tensor(self._noise / self.noise, dtype=torch.float64).log().item()

    def start(self, batch: int) -> LogDetState:
        """Nothing measured."""
        items, _, m = self.features.shape
        root = torch.eye(m, dtype=self.features.dtype, device=self.features.device).expand(batch, m, m)
        return LogDetState(root, torch.zeros(batch, items, dtype=torch.bool, device=root.device))

    def gain(self, state: LogDetState, item: Tensor) -> tuple[Tensor, LogDetState]:
        """Information of measuring block ``item``."""
        x = (self.features[item] @ state.root).mT
        factor = self._factor(x)
        # D' = D - (D X) T^-T (T + noise I)^-1 X^T
        shifted = factor + self._noise * torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        step = torch.linalg.solve_triangular(shifted, x.mT, upper=False)
        step = torch.linalg.solve_triangular(factor.mT, step, upper=True)
        root = state.root - (state.root @ x) @ step
        known = state.taken.gather(1, item.unsqueeze(1)).squeeze(1)
        gain = self._information(factor).masked_fill(known, 0.0)
        root = torch.where(known[:, None, None], state.root, root)
        return gain, LogDetState(root, state.taken.scatter(1, item.unsqueeze(1), True))

    def gains(self, state: LogDetState) -> Tensor:
        """Information of measuring each block."""
        x = torch.einsum("irm,bmn->binr", self.features, state.root)
        return self._information(self._factor(x)).masked_fill(state.taken, 0.0)

    def _factor(self, x: Tensor) -> Tensor:
        """Cholesky factor of noise^2 I + X^T X."""
        rows = x.shape[-1]
        noise = self._noise**2 * torch.eye(rows, dtype=x.dtype, device=x.device)
        return torch.linalg.cholesky(noise + x.mT @ x)

    def _information(self, factor: Tensor) -> Tensor:
        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        return (diagonal / self._noise).log().sum(-1) + self._own

"""Echo state networks: a fixed random reservoir, shared by all series, and a linear readout for each.

h <- (1 - a) h + a tanh(W h + W_in u + b), x_{t+1} = W_out h + c (Jaeger 2001; constants of Gilpin 2023, arXiv
2303.08011).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from apps.chaos.forecasters.forecaster import Fitted, Fitting, Forecaster
from apps.chaos.forecasters.ridge import ridge
from core.seeds import stream

ELEMENTS = 2**26
"""Most numbers in the reservoir states of the series that are fitted at once."""


@dataclass(frozen=True)
class Reservoir:
    """The parts that are not learned.

    Attributes:
        recurrent: W ``(N, N)``.
        input: W_in ``(N, D)``.
        bias: b ``(N, 1)``.
    """

    recurrent: Tensor
    input: Tensor
    bias: Tensor


class ESN(Forecaster):
    """An echo state network; its readout by ridge regression on the states that the training series drives."""

    grid: ClassVar[Mapping[str, Sequence[Any]]] = {"leak": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)}

    kind: Literal["esn"] = "esn"
    leak: float = 0.3
    """Leaking rate a, in (0, 1]: the share of a neuron's state that a step replaces."""
    neurons: int = Field(default=500, ge=10, le=20_000)
    """Of the reservoir, N."""
    spectral_radius: float = Field(default=0.99, gt=0)
    """Largest absolute eigenvalue of W."""
    connectivity: float = Field(default=0.1, gt=0, le=1)
    """Share of the entries of W that are not zero; those are Gaussian."""
    input_connectivity: float = Field(default=0.2, gt=0, le=1)
    """Share of the entries of W_in that are not zero; those are -1 or 1."""
    bias_connectivity: float | None = Field(default=None, gt=0, le=1)
    """Share of the entries of b that are not zero, those are -1 or 1; null for that of W_in, as published."""
    input_scaling: float = Field(default=1.0, gt=0)
    """Factor of W_in."""
    ridge: float = Field(default=1e-4, ge=0)
    """Penalty of the squared weights, in units of the sum of squared residuals."""

    @field_validator("leak")
    @classmethod
    def _in_range(cls, leak: float) -> float:
        if not 0 < leak <= 1:
            raise ValueError(
                f"leak {leak} must be in (0, 1]; the 1.1 of the paper's grid is outside the meaningful range"
            )
        return leak

    def fit(self, train: Tensor, fitting: Fitting) -> Fitted:
        """Drive the reservoir with each series ``(G, T, D)`` and regress the next sample on its states.

        The first 10% of the samples, at most 100, warm the reservoir up and are left out of the regression.
        """
        network = _Network(reservoir(self, train.shape[2], fitting.seed), self.leak, train.device)
        parts = train.split(max(1, ELEMENTS // (train.shape[1] * self.neurons)))
        readouts, states, conditions = zip(*(self._fit(network, part) for part in parts), strict=True)
        notes = {"condition_number": torch.cat(conditions)}
        return _Generator(network, torch.cat(readouts), torch.cat(states, 1), notes)

    def _fit(self, network: _Network, train: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        series, samples, channels = train.shape
        skipped = min(100, samples // 10)
        inputs = train.permute(1, 2, 0).contiguous()
        joint = train.new_zeros(self.neurons + channels, series)
        states = train.new_empty(series, samples - 1 - skipped, self.neurons)
        for now in range(samples):
            joint[self.neurons :] = inputs[now]
            network.step(joint)
            if skipped <= now < samples - 1:
                states[:, now - skipped] = joint[: self.neurons].T
        found = ridge(states, train[:, skipped + 1 :], self.ridge)
        return torch.cat([found.weights, found.intercept], 1), joint, found.condition


@lru_cache(maxsize=8)
def _reservoir(
    neurons: int,
    channels: int,
    connectivity: float,
    input_connectivity: float,
    bias_connectivity: float,
    radius: float,
    scaling: float,
    seed: int,
) -> Reservoir:
    generator = torch.Generator().manual_seed(seed)

    def mask(columns: int, share: float) -> Tensor:
        return torch.rand(neurons, columns, generator=generator, dtype=torch.float64) < share

    recurrent = torch.randn(neurons, neurons, generator=generator, dtype=torch.float64) * mask(neurons, connectivity)
    recurrent *= radius / torch.linalg.eigvals(recurrent).abs().max()
    signs = torch.randint(2, (neurons, channels + 1), generator=generator) * 2.0 - 1.0
    # One draw decides all masks, so that a denser bias changes nothing else.
    kept = torch.rand(neurons, channels + 1, generator=generator, dtype=torch.float64)
    shares = torch.tensor([bias_connectivity] + [input_connectivity] * channels, dtype=torch.float64)
    driven = signs.double() * (kept < shares)
    return Reservoir(recurrent, scaling * driven[:, 1:], driven[:, :1])


def reservoir(settings: ESN, channels: int, seed: int) -> Reservoir:
    """The reservoir for series of ``channels`` channels, on the CPU; the same for every leak and ridge.

    Args:
        settings: its size, connectivities and scales.
        channels: D.
        seed: of the training; equal seeds give equal reservoirs.
    """
    bias = settings.input_connectivity if settings.bias_connectivity is None else settings.bias_connectivity
    shape = settings.neurons, channels, settings.connectivity, settings.input_connectivity
    return _reservoir(*shape, bias, settings.spectral_radius, settings.input_scaling, stream(seed, "reservoir"))


class _Network:
    """One step of all series: their states are the columns of one matrix ``(N + D, G)``, above their inputs."""

    def __init__(self, parts: Reservoir, leak: float, device: torch.device) -> None:
        self.neurons, self.leak = len(parts.bias), leak
        # tanh(x) = 2 sigmoid(2 x) - 1, and a CPU takes a sixth of the time for the sigmoid.
        self.bias = 2 * parts.bias.to(device)
        matrix = 2 * torch.cat([parts.recurrent, parts.input], 1).to(device)
        if device.type == "cpu" and torch.backends.mkl.is_available():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
                matrix = matrix.to_sparse_csr()
        self.matrix = matrix

    def step(self, joint: Tensor) -> None:
        """Replace the states in ``joint`` ``(N + D, G)`` by the next."""
        gate = torch.addmm(self.bias, self.matrix, joint).sigmoid_()
        joint[: self.neurons].mul_(1 - self.leak).sub_(self.leak).add_(gate, alpha=2 * self.leak)


@dataclass
class _Generator(Fitted):
    """Networks that read their own output.

    Attributes:
        network: shared by all series.
        readouts: ``(G, N + 1, D)``, the intercept last.
        joint: ``(N + D, G)``, states after the last training sample.
    """

    network: _Network
    readouts: Tensor
    joint: Tensor
    notes: Mapping[str, Tensor] = field(default_factory=dict)

    def forecast(self, horizon: int) -> Tensor:
        """The samples after the training series, ``(G, horizon, D)``, from the state that it left."""
        neurons, joint = self.network.neurons, self.joint.clone()
        weights = self.readouts[:, :-1].permute(1, 2, 0).contiguous()
        intercept = self.readouts[:, -1].T.contiguous()
        samples = joint.new_empty(horizon, *intercept.shape)
        for now in range(horizon):
            if now:
                joint[neurons:] = samples[now - 1]
                self.network.step(joint)
            torch.sum(joint[:neurons, None] * weights, 0, out=samples[now]).add_(intercept)
        return samples.permute(2, 0, 1).contiguous()

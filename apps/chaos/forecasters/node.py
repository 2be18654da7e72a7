"""Neural ordinary differential equations fitted to segments of a series, all series of a group at once."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from apps.chaos.forecasters.forecaster import Fitted, Fitting, Forecaster
from core.nn.adam import minimise
from core.nn.grouped import GroupedLinear, Initial
from core.seeds import stream
from simulators.chaos.steppers import tableau


class Node(Forecaster):
    """Neural ODE y' = f(y) in units of the sampling time (Chen et al. 2018; the network of Gilpin 2023).

    f(y) = V (h + SiLU(W2 SiLU(W1 h))) with h = tanh(U y), each map with a bias. Weights start from N(0, 0.1^2), biases
    from 0. Adam minimises the mean square error over random segments of the training series, integrated from their
    first samples.

    The published code integrates by torchdiffeq's dopri5 at relative tolerance 1e-7 with steps chosen for a whole
    batch. Here one step of the same method covers ``samples_per_step`` samples, those inside a step come from its
    quartic interpolant, and nothing depends on the other series of a group. At the 100 samples a period of the
    benchmark the difference is far below the error of the fit: ``notes["stepping_error"]`` is the root mean square
    difference between such a step and steps of a single sample, from the samples of the training series; where it is
    not small, the network is stiff and ``samples_per_step`` too large.
    """

    grid: ClassVar = {"segment": (2, 5, 15, 30, 60, 120)}

    kind: Literal["node"] = "node"
    segment: int = Field(default=30, ge=2)
    """Samples of a training segment, its first one included."""
    batch: PositiveInt = 128
    """Segments a step; fewer where the series has not as many."""
    iterations: PositiveInt = 500
    """Steps of Adam."""
    learning_rate: PositiveFloat = 1e-2
    """Of Adam."""
    hidden: PositiveInt = 30
    """Width of the network."""
    samples_per_step: PositiveInt = 2
    """Samples that a step of the integrator covers; 1 for series of few samples a period."""
    legacy_offset: bool = False
    """Begin the forecast with the last training sample, as the published forecasts do: they lag by one sample."""
    dtype: Literal["float32", "float64"] = "float32"
    """Arithmetic of training and forecast."""

    @property
    def shortest(self) -> int:
        """Ten segments at least."""
        return self.segment + 10

    def fit(self, train: Tensor, fitting: Fitting) -> NodeFitted:
        """Train one network for each series; see ``Forecaster.fit``. Series share the order of the segments."""
        self.check(train.shape[1])
        series = train.to(getattr(torch, self.dtype)).mT
        network = NodeNetwork(fitting.seeds, series.shape[1], self.hidden, series.dtype).to(series.device)
        starts = series.shape[-1] - self.segment
        within = torch.arange(self.segment, device=series.device)[:, None]

        def loss(step: int) -> Tensor:
            generator = torch.Generator().manual_seed(stream(fitting.seed, f"node segments {step}"))
            first = torch.randperm(starts, generator=generator)[: self.batch].to(series.device)
            segments = series[:, :, within + first].movedim(2, 0)
            rolled = integrate(network, segments[0], self.segment - 1, self.samples_per_step)
            # The first sample of a segment counts in the mean, though its error is 0.
            return (rolled - segments[1:]).square().mean((2, 3)).sum() / self.segment

        minimise(
            dict(network.named_parameters()),
            loss,
            self.iterations,
            learning_rate=self.learning_rate,
            checkpoint=fitting.keep(f"{self.kind}-{self.hash}"),
            progress=fitting.progress,
        )
        return NodeFitted(self, network.requires_grad_(False), series)


class NodeFitted(Fitted):
    """Neural ODEs, and their training series ``(G, D, T)``, whose last samples they start from."""

    def __init__(self, settings: Node, network: NodeNetwork, series: Tensor) -> None:
        self.settings, self.network, self.last = settings, network, series[:, :, -1:]
        self.notes = {"stepping_error": self._stepping_error(series)}

    @torch.no_grad()
    def forecast(self, horizon: int) -> Tensor:
        """See ``Fitted.forecast``."""
        ahead = integrate(self.network, self.last, horizon, self.settings.samples_per_step)[..., 0]
        if self.settings.legacy_offset:
            ahead = torch.cat([self.last.movedim(2, 0), ahead])[:horizon]
        return ahead.movedim(0, 1).double()

    @torch.no_grad()
    def _stepping_error(self, series: Tensor) -> Tensor:
        """Root mean square of what a step of the integrator differs from steps of one sample, ``(G,)``."""
        span = self.settings.samples_per_step
        coarse, fine = (integrate(self.network, series, span, step)[-1] for step in (span, 1))
        return (coarse - fine).double().square().mean((1, 2)).sqrt()


class NodeNetwork(nn.Module):
    """The derivative f of each series: columns ``(G, D, N)`` to the same shape.

    Args:
        seeds: of the initial weights of each series.
        dimension: D.
        hidden: width.
        dtype: of the parameters.
    """

    def __init__(self, seeds: tuple[int, ...], dimension: int, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        initial = Initial([torch.Generator().manual_seed(seed) for seed in seeds], dtype)
        sizes = ((dimension, hidden), (hidden, hidden), (hidden, hidden), (hidden, dimension))
        layers = [GroupedLinear(initial, inputs, outputs, bound=0.0) for inputs, outputs in sizes]
        self.first, self.inner, self.outer, self.last = layers
        for layer in layers:
            for weight, generator in zip(layer.weight.data, initial.generators, strict=True):
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))

    def forward(self, y: Tensor) -> Tensor:
        """f(y)."""
        h = torch.tanh(self.first(y))
        h = h + functional.silu(self.outer(functional.silu(self.inner(h))))
        return self.last(h)


def integrate(network: nn.Module, y: Tensor, samples: int, span: int) -> Tensor:
    """States at the times 1 to ``samples`` from ``y`` ``(G, D, N)`` at time 0, ``(samples, G, D, N)``.

    Dormand and Prince's method of order 5 in steps of ``span``, the last one shorter where they do not fit; states
    within a step by its interpolant. Gradients flow through.
    """
    method = tableau("dopri5")
    states, slope, left = [], network(y), samples
    while left > 0:
        length = min(span, left)
        left -= length
        slopes = [slope]
        for weights in method.stages[1:]:
            following = _advance(y, slopes, length * weights)
            slopes.append(network(following))
        slope = slopes[-1]  # at the end of the step, for the stages' last weights are the step's
        for inside in range(1, length):
            powers = (inside / length) ** np.arange(1, method.dense.shape[1] + 1)
            states.append(_advance(y, slopes, length * method.dense @ powers))
        states.append(following)
        y = following
    return torch.stack(states)


def _advance(y: Tensor, slopes: list[Tensor], weights: NDArray[np.float64]) -> Tensor:
    """``y`` plus the weighted sum of the slopes, which may be fewer than the weights."""
    for slope, weight in zip(slopes, weights, strict=False):
        if weight:
            y = torch.add(y, slope, alpha=float(weight))
    return y

"""Layers that hold one small model for each group, so that many are trained and run by the same few kernels.

Samples are columns: activations are ``(G, features, N)``. Matrix products on a CPU are fast where their last dimension
is a multiple of the vector length, as batch sizes are, while widths of models (5 coefficients, 3 channels) are not.

Initial values of a group come from its own generator by the scheme of ``torch.nn``, and nothing mixes groups: a group
is trained as it would be alone, up to rounding, and one that is not finite spoils no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.seeds import stream

Cell = Literal["elman", "lstm", "gru"]
State = tuple[Tensor, ...]
Dropout = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Initial:
    """Where initial values come from.

    Attributes:
        generators: one for each group, on the CPU.
        dtype: of the parameters; the draws are the same in each.
    """

    generators: Sequence[torch.Generator]
    dtype: torch.dtype = torch.float32

    def uniform(self, *shape: int, bound: float) -> nn.Parameter:
        """``(G, *shape)`` uniform in ``[-bound, bound]``."""
        drawn = torch.empty(len(self.generators), *shape, dtype=self.dtype)
        for group, generator in zip(drawn, self.generators, strict=True):
            group.copy_(torch.empty(shape, dtype=torch.float64).uniform_(-bound, bound, generator=generator))
        return nn.Parameter(drawn)


def affine(weight: Tensor, x: Tensor, offset: Tensor | None = None) -> Tensor:
    """``weight x + offset`` for each group.

    Args:
        weight: ``(G, outputs, inputs)``.
        x: ``(G, inputs, N)``.
        offset: ``(G, outputs, N)`` or ``(G, outputs, 1)``; 0 by default.
    """
    if x.shape[2] == 1:  # a product of a row and a matrix is several times faster than one of a matrix and a column
        row = torch.bmm(x.mT, weight.mT) if offset is None else torch.baddbmm(offset.mT, x.mT, weight.mT)
        return row.mT
    return torch.bmm(weight, x) if offset is None else torch.baddbmm(offset, weight, x)


def serve(model: nn.Module) -> None:
    """Store the weights of a trained ``model`` such that ``affine`` is fastest for one column; values are unchanged."""
    for layer in model.modules():
        if isinstance(layer, GroupedLinear):
            layer.weight.data = layer.weight.data.mT.contiguous().mT


class GroupedLinear(nn.Module):
    """An affine map for each group.

    Args:
        initial: source of initial values.
        inputs: features in.
        outputs: features out.
        bias: whether a constant is added.
        bound: of the initial weights and biases; 1 / sqrt(inputs) by default, as in ``torch.nn.Linear``.
        bias_bound: of the initial biases alone.
    """

    def __init__(
        self,
        initial: Initial,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        bound: float | None = None,
        bias_bound: float | None = None,
    ) -> None:
        super().__init__()
        bound = inputs**-0.5 if bound is None else bound
        self.weight = initial.uniform(outputs, inputs, bound=bound)
        self.bias = initial.uniform(outputs, 1, bound=bound if bias_bound is None else bias_bound) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """``(G, inputs, N)`` to ``(G, outputs, N)``."""
        return affine(self.weight, x, self.bias)

    def rows(self, x: Tensor) -> Tensor:
        """``(G, ..., inputs)`` to ``(G, ..., outputs)``, for models whose samples are rows."""
        flat, weight = x.flatten(1, -2), self.weight.mT
        y = torch.bmm(flat, weight) if self.bias is None else torch.baddbmm(self.bias.mT, flat, weight)
        return y.unflatten(1, x.shape[1:-1])


class GroupedLayerNorm(nn.Module):
    """Layer normalisation of rows, with a scale and an offset for each group (as ``torch.nn.LayerNorm``).

    Args:
        groups: G.
        features: size of the last dimension.
        dtype: of the parameters.
    """

    def __init__(self, groups: int, features: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(groups, features, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(groups, features, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """``(G, ..., features)`` to the same shape."""
        each = (-1, *[1] * (x.ndim - 2), x.shape[-1])
        normal = functional.layer_norm(x, x.shape[-1:])
        return torch.addcmul(self.bias.view(each), normal, self.weight.view(each))


class GroupedCausalConvolution(nn.Module):
    """A dilated convolution over time that sees no future; before the first sample stand zeros.

    Args:
        initial: source of initial values.
        inputs: channels in.
        outputs: channels out.
        kernel: taps.
        dilation: samples between two taps.
    """

    def __init__(self, initial: Initial, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.taps = GroupedLinear(initial, inputs * kernel, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(G, inputs, B, L)`` to ``(G, outputs, B, L)``."""
        length = x.shape[-1]
        padded = functional.pad(x, (self.dilation * (self.kernel - 1), 0))
        shifted = [padded[..., i * self.dilation : i * self.dilation + length] for i in range(self.kernel)]
        return self.taps(torch.stack(shifted, 2).flatten(1, 2).flatten(2)).unflatten(2, x.shape[2:])


class GroupedRecurrent(nn.Module):
    """A recurrent layer for each group, with the gates and biases of ``torch.nn.RNN``, ``LSTM`` or ``GRU``.

    Args:
        initial: source of initial values.
        cell: kind.
        inputs: features in.
        hidden: features out.
    """

    def __init__(self, initial: Initial, cell: Cell, inputs: int, hidden: int) -> None:
        super().__init__()
        self.cell, self.hidden = cell, hidden
        outputs, bound = hidden * {"elman": 1, "lstm": 4, "gru": 3}[cell], hidden**-0.5
        self.input = GroupedLinear(initial, inputs, outputs, bound=bound)
        self.recurrent = GroupedLinear(initial, hidden, outputs, bound=bound)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Outputs at every step, and the state after the last.

        Args:
            x: ``(G, inputs, steps, B)``.
            state: before the first step, tensors ``(G, hidden, B)``: one, or hidden and cell state of an LSTM; zeros
                by default.

        Returns:
            ``(G, hidden, steps, B)`` and the state.
        """
        if state is None:
            zeros = x.new_zeros(x.shape[0], self.hidden, x.shape[-1])
            state = (zeros, zeros) if self.cell == "lstm" else (zeros,)
        given = self.input(x.flatten(2))
        if self.cell != "gru":
            given = given + self.recurrent.bias
        step = {"elman": _elman, "lstm": _lstm, "gru": _gru}[self.cell]
        outputs = []
        for each in given.unflatten(2, x.shape[2:]).unbind(2):
            state = step(each, self.recurrent, state)
            outputs.append(state[0])
        return torch.stack(outputs, 2), state


def _elman(given: Tensor, recurrent: GroupedLinear, state: State) -> State:
    return (affine(recurrent.weight, state[0], given).tanh(),)


def _lstm(given: Tensor, recurrent: GroupedLinear, state: State) -> State:
    before, kept = state
    gates = affine(recurrent.weight, before, given)
    width = before.shape[1]
    opened, new, shown = gates.split((2 * width, width, width), 1)
    enter, keep = opened.sigmoid().split(width, 1)
    kept = torch.addcmul(keep * kept, enter, new.tanh())
    return shown.sigmoid() * kept.tanh(), kept


def _gru(given: Tensor, recurrent: GroupedLinear, state: State) -> State:
    (before,) = state
    width = before.shape[1]
    sizes = (2 * width, width)
    (gates, new), (more, candidate) = given.split(sizes, 1), recurrent(before).split(sizes, 1)
    reset, keep = (gates + more).sigmoid().split(width, 1)
    return (torch.lerp(torch.addcmul(new, reset, candidate).tanh(), before, keep),)


def keep_all(x: Tensor) -> Tensor:
    """No dropout."""
    return x


def shared_dropout(rate: float, seed: int, step: int, device: torch.device) -> Dropout:
    """Dropout whose masks follow from seed and step alone, so that a resumed training repeats them.

    All groups share a mask, as they share the order of their batches: what a group sees does not depend on the others.

    Args:
        rate: share of the values that are set to 0, in [0, 1); the others are scaled to keep the mean.
        seed: of the training.
        step: of the training.
        device: of the values.

    Returns:
        A function of a tensor ``(G, ...)``, with a new mask at each call.
    """
    if rate == 0:
        return keep_all
    generator = torch.Generator(device).manual_seed(stream(seed, f"dropout {step}"))

    def drop(x: Tensor) -> Tensor:
        drawn = torch.empty(x.shape[1:], dtype=x.dtype, device=x.device).uniform_(generator=generator)
        return x * drawn.ge_(rate).div_(1 - rate)

    return drop

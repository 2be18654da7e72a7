"""The small network of the offline learners."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.seeds import stream

ROWS_AT_ONCE = 1 << 16


def mlp(sizes: Sequence[int], seed: int, *, batch_norm: bool = False) -> nn.Sequential:
    """Linear layers between ``sizes``, a ReLU behind each but the last, and behind it batch normalisation if wished.

    The initial weights (PyTorch's own) follow from ``seed``; the global generator is left as it was.
    """
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would set the generators of all GPUs too.
        torch.default_generator.manual_seed(stream(seed, "weights"))
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            layers += [nn.BatchNorm1d(outputs)] if batch_norm else []
    return nn.Sequential(*layers[: -2 if batch_norm else -1])


def evaluated(network: nn.Module, observations: Tensor) -> Tensor:
    """Outputs (N, ...) for observations (N, do), without gradients and with the statistics of the training."""
    network.eval()
    with torch.no_grad():
        return torch.cat([network(part.float()) for part in observations.split(ROWS_AT_ONCE)])

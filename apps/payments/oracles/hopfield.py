"""The neural oracle with a memory: payments like this one, what was done with them and what came of it.

A modern Hopfield network (Ramsauer et al. 2021, arXiv 2008.02217) stores the last M rows: keys are the embedded
payments, values the bits of the action and the reward. One step of retrieval, softmax(beta xi K^T) V with
beta = 1 / sqrt(d), gives the network of ``mlp`` the values that belong to payments like xi.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from apps.payments.oracles.mlp import ApprovalNetwork, Inputs, NeuralSettings
from core.nn.hopfield import retrieve
from simulators.payments.context import Sizes


class MemoryNetwork(ApprovalNetwork):
    """The network of ``mlp``, whose input also holds what the memory retrieves.

    Args:
        sizes: of the portfolio.
        embedding: width of each category's embedding.
        width: of the two hidden layers.
        key: width d of the keys.
        value: width of the stored values, a layer of ReLU over (bits, reward): their plain mean would lose which
            action had which reward.
        remembered: rows M.
    """

    levels: Tensor
    numbers: Tensor
    answers: Tensor
    first: Tensor

    def __init__(self, sizes: Sizes, embedding: int, width: int, key: int, value: int, remembered: int) -> None:
        super().__init__(sizes, embedding, width, memory=value)
        self.remembered = remembered
        self.key = nn.Linear(self.described, key)
        self.value = nn.Linear(sizes.flags + 1, value)
        self.register_buffer("levels", torch.zeros(remembered, len(sizes.levels), dtype=torch.long))
        self.register_buffer("numbers", torch.zeros(remembered, self.described - len(sizes.levels) * embedding))
        self.register_buffer("answers", torch.zeros(remembered, sizes.flags + 1))
        self.register_buffer("first", torch.zeros((), dtype=torch.long))

    def remember(self, inputs: Inputs, bits: Tensor, reward: Tensor) -> None:
        """Store the last M rows of a training set."""
        self.first.fill_(len(reward) - self.remembered)
        self.levels.copy_(inputs.levels[-self.remembered :])
        self.numbers.copy_(inputs.numbers[-self.remembered :])
        self.answers.copy_(torch.cat([bits, reward[:, None]], 1)[-self.remembered :])

    def encode(self, inputs: Inputs, rows: Tensor | None = None) -> Tensor:
        """``(n, width)``; a training row never retrieves itself, whose reward it has to predict."""
        described = self.describe(inputs)
        keys = self.key(self.describe(Inputs(self.levels, self.numbers)))
        query, values = self.key(described), functional.relu(self.value(self.answers))
        allowed = None
        if rows is not None:
            allowed = rows[:, None] != self.first + torch.arange(self.remembered, device=rows.device)
        retrieved = retrieve(query, keys, values, allowed=allowed)
        encoded: Tensor = self.context(torch.cat([described, retrieved], 1))
        return encoded


class HopfieldSettings(NeuralSettings):
    """The neural oracle with a memory of recent rows."""

    kind: Literal["hopfield"] = "hopfield"
    memory: int = Field(default=4096, ge=2, le=2**20)
    """Most recent rows that are remembered; the rows must come in the order of time."""
    key: int = Field(default=32, ge=1, le=1024)
    """Width of the keys."""
    value: int = Field(default=32, ge=1, le=1024)
    """Width of the stored values."""

    def network(self, sizes: Sizes, rows: int) -> MemoryNetwork:
        """The network before it has learned, for a training set of so many rows."""
        return MemoryNetwork(sizes, self.embedding, self.width, self.key, self.value, min(self.memory, rows))

    def prepare(self, network: ApprovalNetwork, inputs: Inputs, bits: Tensor, reward: Tensor) -> None:
        """Store the most recent rows."""
        assert isinstance(network, MemoryNetwork)
        network.remember(inputs, bits, reward)

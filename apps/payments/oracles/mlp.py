"""The neural oracle: embeddings of the categories, the numbers and the flag bits, through two layers of ReLU."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from apps.payments.oracles.oracle import Oracle, OracleConfig, OracleDiverged
from apps.payments.oracles.rows import FEATURES, Rows, level_codes, numeric_features
from core.errors import InputError
from simulators.payments.context import PaymentContext, Sizes, flag_bits

NUMBERS = len(FEATURES) + 2
"""The features, whether a token is available, and the days to expiry in units of ``EXPIRY_SCALE``."""
EXPIRY_SCALE = 1400.0
TRIES = 2
"""Smaller steps that are tried after a loss that is not finite."""


@dataclass(frozen=True)
class Inputs:
    """What the network reads of n payments.

    Attributes:
        levels: ``(n, 6)`` int64, the categories as rows of one table of embeddings; 0 is that of an unknown level.
        numbers: ``(n, 10)``.
    """

    levels: Tensor
    numbers: Tensor

    @staticmethod
    def of(context: PaymentContext, sizes: Sizes, device: torch.device | str, dtype: torch.dtype) -> Inputs:
        """The inputs of payments, moved to the network."""
        context = context.to(device)
        more = torch.stack([context.token_available, context.expiry_days / EXPIRY_SCALE]).to(dtype)
        numbers = torch.cat([numeric_features(context, dtype), more]).T
        levels, first = [], 1
        for name, code in level_codes(context, sizes).items():
            levels.append(torch.where(code < sizes.levels[name], code + first, 0))
            first += sizes.levels[name]
        return Inputs(torch.stack(levels, 1), numbers)

    def take(self, index: Tensor | slice) -> Inputs:
        """The payments that an index or a slice selects."""
        return Inputs(self.levels[index], self.numbers[index])


class ApprovalNetwork(nn.Module):
    """Logit of the approval probability of a payment and an action.

    The first layer is linear in the flag bits, so its context part is computed once a payment, its action part once
    an action, and only their sum goes through the rest for each pair.

    Args:
        sizes: of the portfolio.
        embedding: width of each category's embedding.
        width: of the two hidden layers.
        memory: numbers that ``encode`` of a subclass adds.
    """

    def __init__(self, sizes: Sizes, embedding: int, width: int, memory: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1 + sum(sizes.levels.values()), embedding, padding_idx=0)
        self.described = len(sizes.levels) * embedding + NUMBERS
        self.context = nn.Linear(self.described + memory, width)
        self.action = nn.Linear(sizes.flags, width, bias=False)
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)

    def describe(self, inputs: Inputs) -> Tensor:
        """``(n, described)``: the embeddings and the numbers."""
        return torch.cat([self.embedding(inputs.levels).flatten(1), inputs.numbers], 1)

    def encode(self, inputs: Inputs, rows: Tensor | None = None) -> Tensor:
        """``(n, width)``: the context part of the first layer; ``rows`` are the inputs' places in the training set."""
        encoded: Tensor = self.context(self.describe(inputs))
        return encoded

    def decide(self, encoded: Tensor, bits: Tensor) -> Tensor:
        """Logits of encoded payments ``(..., width)`` and the bits of actions ``(..., F)``; the two broadcast."""
        hidden = functional.relu(encoded + self.action(bits), inplace=True)
        logits: Tensor = self.score(functional.relu(self.hidden(hidden), inplace=True)).squeeze(-1)
        return logits

    @torch.no_grad()
    def forget_unseen(self, levels: Tensor) -> None:
        """Give every level that does not occur in ``levels`` ``(n, 6)`` the embedding of an unknown one, zero."""
        seen = torch.zeros(len(self.embedding.weight), 1, dtype=torch.bool, device=levels.device)
        seen[levels.flatten()] = True
        seen[0] = False
        self.embedding.weight.mul_(seen)


class NeuralSettings(OracleConfig):
    """What every neural oracle is built and trained with."""

    focal: ClassVar[bool] = True

    embedding: int = Field(default=16, ge=1, le=1024)
    """Width of each category's embedding."""
    width: int = Field(default=128, ge=1, le=8192)
    """Of the two hidden layers."""
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    """Of Adam."""
    batch: int = Field(default=4096, ge=1)
    """Rows a step."""
    epochs: int = Field(default=3, ge=1, le=10_000)
    """Passes over the rows."""

    def network(self, sizes: Sizes, rows: int) -> ApprovalNetwork:
        """The network before it has learned, for a training set of so many rows."""
        return ApprovalNetwork(sizes, self.embedding, self.width)

    def _fit(
        self, rows: Rows, sizes: Sizes, *, seed: int, device: torch.device | str, focus: float, **unused: Any
    ) -> NeuralOracle:
        """Train in float32 on ``device``; the initial weights and the order of the rows come from ``seed``."""
        network = self._initial(sizes, len(rows), seed).to(device)
        inputs = Inputs.of(rows.context, sizes, device, torch.float32)
        reward = rows.reward.to(device, torch.float32)
        weight = None if rows.weight is None else rows.weight.to(device, torch.float32)
        bits = flag_bits(sizes.flags, device, torch.float32)[rows.action.to(device)]
        self.prepare(network, inputs, bits, reward)

        def loss(index: Tensor) -> Tensor:
            logits = network.decide(network.encode(inputs.take(index), index), bits[index])
            each = focal_loss(logits, reward[index], focus)
            return (each if weight is None else each * weight[index]).mean()

        self._train(network, loss, len(rows), seed)
        network.forget_unseen(inputs.levels)
        return NeuralOracle(self, sizes, network.eval())

    def _initial(self, sizes: Sizes, rows: int, seed: int) -> ApprovalNetwork:
        # Layers draw from the global generator, which is nobody's to change.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.network(sizes, rows)

    def prepare(self, network: ApprovalNetwork, inputs: Inputs, bits: Tensor, reward: Tensor) -> None:
        """What a network keeps of its training set before it learns: nothing."""

    def _train(self, network: ApprovalNetwork, loss: Any, rows: int, seed: int) -> None:
        """Adam, an epoch at a time; an epoch whose loss is not finite is undone and repeated with a tenth of the step.

        Raises:
            OracleDiverged: it happened more often than ``TRIES``.
        """
        optimizer = torch.optim.Adam(network.parameters(), self.learning_rate)
        generator = torch.Generator().manual_seed(seed)
        device = next(network.parameters()).device
        epoch, failures = 0, 0
        while epoch < self.epochs:
            before = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
            total = torch.zeros((), device=device)
            order = torch.randperm(rows, generator=generator).to(device)
            for index in order.split(self.batch):
                optimizer.zero_grad()
                value = loss(index)
                value.backward()
                optimizer.step()
                total += value.detach()
            # The last step is not in the loss: its weights are looked at too.
            for parameter in network.parameters():
                total += 0 * parameter.detach().sum()
            if bool(total.isfinite()):
                epoch += 1
                continue
            failures += 1
            if failures > TRIES:
                raise OracleDiverged(
                    f"{self.kind}: the loss of epoch {epoch + 1} is not finite, nor with the step lowered {TRIES} times"
                )
            network.load_state_dict(before[0])
            optimizer.load_state_dict(before[1])
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * 10.0**-failures

    def restore(self, state: Mapping[str, Tensor], extras: Mapping[str, Any], sizes: Sizes) -> NeuralOracle:
        """The oracle with the saved weights.

        Raises:
            InputError: weights of another network.
        """
        network = self._initial(sizes, int(extras["rows"]), 0)
        try:
            network.load_state_dict(dict(state))
        except RuntimeError as error:
            raise InputError(f"{self.kind}: the saved weights do not fit its settings ({error})") from error
        return NeuralOracle(self, sizes, network.to(next(iter(state.values())).device).eval())


class MLPSettings(NeuralSettings):
    """The neural oracle."""

    kind: Literal["mlp"] = "mlp"


class NeuralOracle(Oracle[NeuralSettings]):
    """Predictions of a trained network, whose arithmetic is in float32.

    Args:
        settings: it was trained with.
        sizes: of the portfolio.
        network: trained.
    """

    def __init__(self, settings: NeuralSettings, sizes: Sizes, network: ApprovalNetwork) -> None:
        super().__init__(settings, sizes)
        self.network = network

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.network.parameters())

    def state(self) -> dict[str, Tensor]:
        """The weights."""
        return dict(self.network.state_dict())

    def extras(self) -> dict[str, Any]:
        """Rows that are remembered."""
        return {"rows": getattr(self.network, "remembered", 0)}

    def _chunk(self, device: torch.device) -> int:
        # The activations of a chunk should stay in a CPU's cache, and keep a GPU busy.
        pairs = 2**14 if self.network.score.weight.device.type == "cpu" else 2**20
        return max(1, pairs // self.sizes.actions)

    def _approval(self, context: PaymentContext, dtype: torch.dtype) -> Tensor:
        return self._decide(context, self._bits(), dtype, pairs=True)

    def _approval_of(self, context: PaymentContext, action: Tensor, dtype: torch.dtype) -> Tensor:
        bits = self._bits()
        return self._decide(context, bits[action.to(bits.device)], dtype, pairs=False)

    def _bits(self) -> Tensor:
        return flag_bits(self.sizes.flags, self.network.score.weight.device, torch.float32)

    @torch.no_grad()
    def _decide(self, context: PaymentContext, bits: Tensor, dtype: torch.dtype, *, pairs: bool) -> Tensor:
        encoded = self.network.encode(Inputs.of(context, self.sizes, bits.device, torch.float32))
        logits = self.network.decide(encoded[:, None] if pairs else encoded, bits)
        return logits.to(context.log_amount.device, dtype).sigmoid_()


def focal_loss(logits: Tensor, reward: Tensor, focus: float = 0.0) -> Tensor:
    """``(n,)``: -(1 - p)^focus log p, p the probability of the label (Lin et al. 2017); the log-loss at focus 0."""
    if not focus:
        return functional.binary_cross_entropy_with_logits(logits, reward, reduction="none")
    approved, declined = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    return -(reward * (focus * declined).exp() * approved + (1 - reward) * (focus * approved).exp() * declined)

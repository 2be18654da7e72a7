"""The online oracle: a network that learns from each answer once, at a rate that is constant, scheduled or regulated.

A processor's log is a stream, and this oracle goes on where it stopped: weights, memory and learning rate are those of
the generation before. The rate may be regulated by what the network recognises (Man, Damasio and Neven 2022, arXiv
2205.08645): a decline raises it, an approval lowers it, so failures bring plasticity. No gain is promised; the rule is
to be read against constants, and against its own rates in random order.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from apps.payments.oracles.mlp import ApprovalNetwork, Inputs, NeuralOracle
from apps.payments.oracles.oracle import Oracle, OracleConfig, OracleDiverged
from apps.payments.oracles.rows import Rows
from core.errors import InputError
from core.nn import DriveRate, HomeostaticRate, LearningRate, RandomRate, ScheduledRate, shuffled
from core.seeds import stream
from simulators.payments.context import Sizes, flag_bits


class OnlineNetwork(ApprovalNetwork):
    """The network of ``mlp`` with ELU, called with one action a payment; class 0 is declined and class 1 approved."""

    def decide(self, encoded: Tensor, bits: Tensor) -> Tensor:
        """Logits of encoded payments ``(..., width)`` and the bits of actions ``(..., F)``; the two broadcast."""
        hidden = functional.elu(encoded + self.action(bits))
        logits: Tensor = self.score(functional.elu(self.hidden(hidden))).squeeze(-1)
        return logits

    def forward(self, levels: Tensor, numbers: Tensor, bits: Tensor) -> Tensor:
        """``(n, 2)`` logits of the classes."""
        approved = self.decide(self.encode(Inputs(levels, numbers)), bits)
        return torch.stack([torch.zeros_like(approved), approved], 1)


@dataclass(frozen=True)
class Trace:
    """What happened batch by batch in the last fit, each ``(batches,)`` float64.

    Attributes:
        learning_rate: of the step.
        log_loss: mean over the batch, in nats, before the step: of predictions that no label of the batch had touched.
    """

    learning_rate: Tensor
    log_loss: Tensor


class HomeostaticSettings(OracleConfig):
    """The online oracle."""

    binary: ClassVar[bool] = True

    kind: Literal["homeostatic"] = "homeostatic"
    rate: Literal["constant", "cosine", "random", "shuffled", "homeostatic", "drive"] = "homeostatic"
    """What sets the learning rate: nothing; half a cosine from eta_0 to 0 over each fit; the effect of the true class,
    by a coin; the rates of the homeostatic rule, in random order; that rule; the distance of expected effects."""
    learning_rate: float = Field(default=0.01, gt=0, le=100)
    """Of plain stochastic gradient descent on the mean loss of a batch."""
    multiple: float = Field(default=1.0, gt=0, le=1000)
    """eta_0 in units of ``learning_rate``."""
    effect: tuple[float, float] = (1.0, -1.0)
    """What a decline and an approval do to the rate, in units of ``step``. Equal sizes are those of the paper, whose
    classes are balanced; where most payments are approved they lower the rate to ``low``, and (1, -odds of a decline),
    about (1, -0.2), does not."""
    step: float = Field(default=0.1, ge=0, le=1000)
    """Size of a move of the rate, in eta_0."""
    memory: int = Field(default=256, ge=1, le=2**20)
    """Last rows, by whose log-loss the homeostatic rule judges."""
    gradient: Literal["first", "full"] = "full"
    """Of the updates that the homeostatic rule simulates: the first row's share, or the batch's."""
    every: int = Field(default=1, ge=1)
    """Batches from one decision about the rate to the next."""
    low: float = Field(default=1e-6, ge=0)
    """Least rate."""
    high: float = Field(default=10.0, ge=1, le=1000)
    """Largest rate, in eta_0."""
    batch: int = Field(default=10, ge=1)
    """Rows a step."""
    embedding: int = Field(default=16, ge=1, le=1024)
    """Width of each category's embedding."""
    width: int = Field(default=80, ge=1, le=8192)
    """Of the two hidden layers."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.low > self.learning_rate * self.multiple:
            raise InputError(
                f"low = {self.low}: must be at most {self.learning_rate * self.multiple:g}, which is eta_0"
            )
        return self

    @property
    def eta(self) -> float:
        """eta_0, the rate of the first step."""
        return self.learning_rate * self.multiple

    def _fit(
        self,
        rows: Rows,
        sizes: Sizes,
        *,
        seed: int,
        device: torch.device | str,
        previous: Oracle[Any] | None,
        **_: Any,
    ) -> HomeostaticOracle:
        """Go once through the rows, in their order, in float32; ``previous`` is gone on from and stays as it is.

        Raises:
            InputError: weights, or a ``previous`` oracle with other settings or sizes.
            OracleDiverged: a loss or a weight is not finite.
        """
        if rows.weight is not None:
            raise InputError(f"weight: {self.kind} learns from each row once, as it comes, and takes no weights")
        if previous is not None and (previous.settings, previous.sizes) != (self, sizes):
            raise InputError(f"previous: its settings or sizes are not those of this {self.kind} oracle")
        assert previous is None or isinstance(previous, HomeostaticOracle)
        twin = None
        if self.rate == "shuffled":
            regulated = self.model_copy(update={"rate": "homeostatic"})
            before = None if previous is None else previous.twin
            twin = regulated._fit(rows, sizes, seed=seed, device=device, previous=before)
        network = self._network(sizes, seed) if previous is None else copy.deepcopy(previous.network)
        network.to(device)
        rate = self._rate(network, len(rows), seed, twin)
        if previous is not None and not isinstance(rate, ScheduledRate):
            rate.load_state_dict(previous.rate)
        inputs = Inputs.of(rows.context, sizes, device, torch.float32)
        bits = flag_bits(sizes.flags, device, torch.float32)[rows.action.to(device)]
        trace = self._pass(network, rate, inputs, bits, rows.reward.to(device).long())
        if previous is None:  # what is seen later has learned from zero, and would be forgotten with what is not
            network.forget_unseen(inputs.levels)
        return HomeostaticOracle(self, sizes, network, rate.state_dict(), trace, twin)

    def _network(self, sizes: Sizes, seed: int) -> ApprovalNetwork:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return OnlineNetwork(sizes, self.embedding, self.width)

    def _rate(self, network: ApprovalNetwork, rows: int, seed: int, twin: HomeostaticOracle | None) -> LearningRate:
        sgd = torch.optim.SGD(network.parameters(), lr=self.eta)
        effect = torch.tensor(self.effect)
        generator = torch.Generator().manual_seed(stream(seed, f"{self.rate} learning rate"))
        bounds: dict[str, Any] = {"step": self.step, "every": self.every, "low": self.low, "high": self.high}
        if twin is not None:
            return ScheduledRate(sgd, shuffled(twin.trace.learning_rate, generator))
        if self.rate == "cosine":
            passed = torch.arange(0, rows, self.batch, dtype=torch.float64) / rows
            return ScheduledRate(sgd, self.eta / 2 * (1 + torch.cos(math.pi * passed)))
        if self.rate == "random":
            return RandomRate(sgd, effect, generator, **bounds)
        if self.rate == "homeostatic":
            judged: dict[str, Any] = {"memory": self.memory, "decide": "loss", "recognise": "centred"}
            return HomeostaticRate(network, sgd, effect, gradient=self.gradient, **judged, **bounds)
        if self.rate == "drive":
            return DriveRate(sgd, effect, high=self.high, expect="mean")
        return LearningRate(sgd)

    def _pass(
        self, network: ApprovalNetwork, rate: LearningRate, inputs: Inputs, bits: Tensor, approved: Tensor
    ) -> Trace:
        columns = (inputs.levels, inputs.numbers, bits, approved)
        rates, losses = [], []
        for *x, y in zip(*(column.split(self.batch) for column in columns), strict=True):
            logits = network(*x)
            loss = functional.cross_entropy(logits, y)
            rate.optimizer.zero_grad()
            loss.backward()
            rate.observe(tuple(x), y, logits)
            rate.optimizer.step()
            rates.append(rate.rate)
            losses.append(loss.detach())
        rate.optimizer.zero_grad()
        log_loss = torch.stack(losses).double().cpu()
        # The last step is not in the losses: its weights are looked at too.
        if not math.isfinite(log_loss.sum() + sum(w.detach().sum().cpu() for w in network.parameters())):
            batch = int(log_loss.isfinite().logical_not().int().argmax())
            raise OracleDiverged(f"{self.kind}: the loss is not finite after {batch or len(losses)} batches")
        return Trace(torch.tensor(rates, dtype=torch.float64), log_loss)

    def restore(self, state: Mapping[str, Tensor], extras: Mapping[str, Any], sizes: Sizes) -> HomeostaticOracle:
        """The oracle as it was saved, ready to go on.

        Raises:
            InputError: weights of another network.
        """
        network = self._network(sizes, 0)
        try:
            network.load_state_dict(_under("network.", state))
        except RuntimeError as error:
            raise InputError(f"{self.kind}: the saved weights do not fit its settings ({error})") from error
        network.to(next(iter(state.values())).device)
        trace = Trace(**{name: x.cpu() for name, x in _under("trace.", state).items()})
        twin = None
        if self.rate == "shuffled":
            twin = self.model_copy(update={"rate": "homeostatic"}).restore(_under("twin.", state), extras, sizes)
        return HomeostaticOracle(self, sizes, network, _under("rate.", state), trace, twin)


class HomeostaticOracle(NeuralOracle):
    """Predictions of a network that goes on learning.

    Args:
        settings: it learns with.
        sizes: of the portfolio.
        network: as it is now.
        rate: state of its learning rate.
        trace: of the last fit.
        twin: the oracle under the homeostatic rule on the same rows, whose rates a shuffled one takes.
    """

    def __init__(
        self,
        settings: HomeostaticSettings,
        sizes: Sizes,
        network: ApprovalNetwork,
        rate: dict[str, Tensor],
        trace: Trace,
        twin: HomeostaticOracle | None,
    ) -> None:
        super().__init__(settings, sizes, network)  # type: ignore[arg-type]
        self.rate, self.trace, self.twin = rate, trace, twin

    def state(self) -> dict[str, Tensor]:
        """Weights, learning rate and trace, and those of the twin."""
        parts = {"network.": super().state(), "rate.": self.rate, "trace.": vars(self.trace)}
        if self.twin is not None:
            parts["twin."] = self.twin.state()
        return {f"{prefix}{name}": x for prefix, part in parts.items() for name, x in part.items()}


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}

"""Learning rates that rise and fall with what the learner recognises, and the controls to compare them with.

Man, Damasio and Neven (2022), "Need is all you need: homeostatic neural networks adapt to concept shift", arXiv
2205.08645. Each class of a classification problem has an effect on the learner's own learning rate: +1 raises it, -1
lowers it. All rates here are used alike, between the gradient and the step that it is for::

    logits = model(x)
    optimizer.zero_grad()
    cross_entropy(logits, y).backward()
    rate.observe(x, y, logits)
    optimizer.step()

The released rule did not beat a tuned constant rate on label swaps of scikit-learn's digits; compare it with a grid of
constants and with ``ScheduledRate`` on its own ``shuffled`` rates, which shares all but their timing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from core.errors import InputError

Inputs: TypeAlias = Tensor | tuple[Tensor, ...]
"""What a model is called with: one tensor, or several of the same first dimension."""
Decide = Literal["accuracy", "loss"]
Gradient = Literal["first", "full"]
Recognise = Literal["argmax", "centred"]
Expect = Literal["argmax", "mean"]


class LearningRate:
    """A constant learning rate, and what every other rate of an optimiser offers.

    Args:
        optimizer: any of torch's; the rate that it has now is eta_0.

    Attributes:
        initial: eta_0.

    Raises:
        InputError: groups of parameters with different rates.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        rates = {float(group["lr"]) for group in optimizer.param_groups}
        if len(rates) > 1:
            raise InputError(f"optimizer: its groups have the learning rates {sorted(rates)}, must be one rate")
        self.optimizer = optimizer
        self.initial = rates.pop()

    @property
    def rate(self) -> float:
        """The learning rate of the optimiser's next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @rate.setter
    def rate(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def observe(self, x: Inputs, y: Tensor, logits: Tensor) -> None:
        """Set the rate of the next step, whose gradient the parameters hold.

        Args:
            x: inputs of the step's batch, first dimension n.
            y: ``(n,)`` int64, their classes.
            logits: ``(n, C)``, what the model said of them before the step.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next rates depend on, as tensors in memory of their own."""
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self._numbers().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state_dict``; sets the optimiser's rate too."""
        for name in self._numbers():
            # Counters stay integers.
            setattr(self, name, type(getattr(self, name))(state[name].item()))

    def _numbers(self) -> dict[str, float]:
        return {"initial": self.initial, "rate": self.rate}


class ScheduledRate(LearningRate):
    """Rates known beforehand, one for each step.

    Args:
        optimizer: as for ``LearningRate``.
        rates: ``(T,)``, at least 0.

    Raises:
        InputError: no rates, or one that is negative or not finite; in ``observe``, more than T steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rates: Tensor) -> None:
        super().__init__(optimizer)
        self.rates = torch.as_tensor(rates, dtype=torch.float64, device="cpu")
        self.calls = 0
        refused = ~(self.rates >= 0) | self.rates.isinf()
        if self.rates.dim() != 1 or not len(self.rates) or bool(refused.any()):
            raise InputError(f"rates of shape {tuple(self.rates.shape)}: must be (T,), at least 0 and finite")

    def observe(self, x: Inputs, y: Tensor, logits: Tensor) -> None:
        """Set the rate to the next of the schedule."""
        if self.calls == len(self.rates):
            raise InputError(f"rates: are {len(self.rates)}, this is one step more")
        self.rate = float(self.rates[self.calls])
        self.calls += 1

    def _numbers(self) -> dict[str, float]:
        return super()._numbers() | {"calls": self.calls}


def shuffled(rates: Tensor, generator: torch.Generator) -> Tensor:
    """The same rates ``(T,)`` in random order: as a schedule, the control that isolates their timing."""
    return rates[torch.randperm(len(rates), generator=generator)]


class _Regulated(LearningRate):
    """A rate that moves, when it moves, by ``step`` eta_0 times the effect of the class of the batch's first sample."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        effect: Tensor,
        *,
        step: float = 0.1,
        every: int = 1,
        low: float = 1e-8,
        high: float = 100.0,
    ) -> None:
        super().__init__(optimizer)
        self.effect, self.step, self.every, self.low, self.high = _effect(effect), step, every, low, high
        self.calls = 0
        if not 0 <= step < math.inf:
            raise InputError(f"step = {step}: must be at least 0 and finite")
        if every < 1:
            raise InputError(f"every = {every}: must be at least 1")
        if not (0 <= low <= self.initial and 1 <= high < math.inf):
            raise InputError(f"low = {low}, high = {high}: must be in [0, {self.initial}] (eta_0) and in [1, inf)")

    def observe(self, x: Inputs, y: Tensor, logits: Tensor) -> None:
        """Move the rate, or not."""
        if self.calls % self.every == 0 and self._moves(x, y, logits):
            self.rate = self._after(int(y[0]))
        self.calls += 1

    def _moves(self, x: Inputs, y: Tensor, logits: Tensor) -> bool:
        raise NotImplementedError

    def _after(self, recognised: int) -> float:
        """The rate after the effect of a class."""
        moved = self.rate + self.step * self.initial * float(self.effect[recognised])
        return min(max(moved, self.low), self.high * self.initial)

    def _numbers(self) -> dict[str, float]:
        return super()._numbers() | {"calls": self.calls}


class RandomRate(_Regulated):
    """The effect of the true class is applied with probability 1/2: regulation that looks at nothing (section 2).

    Where effects are balanced this is a random walk held above ``low``, so its mean drifts up.

    Args:
        optimizer: as for ``LearningRate``.
        effect: ``(C,)``, what each class does to the rate.
        generator: of the coins, on the CPU.
        step: size of a move, in eta_0.
        every: calls of ``observe`` from one decision to the next.
        low: least rate.
        high: largest rate, in eta_0.

    Raises:
        InputError: an argument out of its range.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        effect: Tensor,
        generator: torch.Generator,
        *,
        step: float = 0.1,
        every: int = 1,
        low: float = 1e-8,
        high: float = 100.0,
    ) -> None:
        super().__init__(optimizer, effect, step=step, every=every, low=low, high=high)
        self.generator = generator

    def _moves(self, x: Inputs, y: Tensor, logits: Tensor) -> bool:
        return bool(torch.rand((), generator=self.generator) < 0.5)

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next rates depend on, as tensors in memory of their own."""
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state_dict``; sets the optimiser's rate too."""
        super().load_state_dict(state)
        self.generator.set_state(state["generator"].cpu())


class HomeostaticRate(_Regulated):
    """The effect of what was recognised is tried out, and the effect of what was there is what comes of it.

    Two updates of the weights w by the gradient g are simulated: w - eta g, and w - eta' g with the rate eta' that the
    effect of the PREDICTED class of the batch's first sample would give. If the second is strictly better on the last
    samples seen, the rate moves by the effect of the TRUE class of that sample: a mistake harms (Man et al. 2022,
    section 2, as released). Nothing happens until the memory is full; the batch at hand is remembered after the
    decision, with its labels as they are then. The simulated updates are those of plain SGD.

    Args:
        model: called as ``model(x)``, or ``model(*x)`` for a tuple; without buffers that a forward pass changes.
        optimizer: as for ``LearningRate``.
        effect: ``(C,)``, what each class does to the rate.
        step: size of a move, in eta_0.
        memory: number of samples that judge.
        decide: by what they judge: ``accuracy`` (as released) or cross-entropy ``loss``.
        gradient: ``first`` is that of the first sample's share of the mean loss (as released, where the decision falls
            on the first sample of a batch); ``full`` is the one that the parameters hold.
        recognise: what the predicted class is: ``argmax`` of the logits, or, for rare classes that no argmax ever
            predicts, the ``centred`` one: whose probability exceeds most its mean over the memory.
        every: calls of ``observe`` from one decision to the next.
        low: least rate.
        high: largest rate, in eta_0.

    Raises:
        InputError: an argument out of its range; in ``observe``, ``full`` and no gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        effect: Tensor,
        *,
        step: float = 0.1,
        memory: int = 20,
        decide: Decide = "accuracy",
        gradient: Gradient = "first",
        recognise: Recognise = "argmax",
        every: int = 1,
        low: float = 1e-8,
        high: float = 100.0,
    ) -> None:
        super().__init__(optimizer, effect, step=step, every=every, low=low, high=high)
        if memory < 1:
            raise InputError(f"memory = {memory}: must be at least 1")
        _choose("decide", decide, get_args(Decide))
        _choose("gradient", gradient, get_args(Gradient))
        _choose("recognise", recognise, get_args(Recognise))
        self.model, self.memory, self.decide = model, memory, decide
        self.gradient, self.recognise = gradient, recognise
        self.seen: tuple[Tensor, ...] = ()
        """Inputs, classes and logits of the last samples, oldest first."""

    def observe(self, x: Inputs, y: Tensor, logits: Tensor) -> None:
        """Decide about the rate, then remember the batch."""
        super().observe(x, y, logits)
        batch = (*_several(x), y, logits.detach())
        seen = (torch.cat(pair) for pair in zip(self.seen, batch, strict=True)) if self.seen else batch
        self.seen = tuple(column[-self.memory :] for column in seen)

    def relabel_memory(self, classes: Tensor) -> None:
        """Class c of what is remembered becomes ``classes[c]``, ``(C,)`` int64.

        In the paper a shift of the concept relabels the whole data set and with it the samples that judge, which is
        told the learner at once; calling this at every shift reproduces that.
        """
        if self.seen:
            *x, y, logits = self.seen
            self.seen = (*x, classes[y], logits)

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next rates depend on, as tensors in memory of their own."""
        return super().state_dict() | {f"seen.{i}": column.clone() for i, column in enumerate(self.seen)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state_dict``; sets the optimiser's rate too."""
        super().load_state_dict(state)
        device = next(self.model.parameters()).device
        count = sum(name.startswith("seen.") for name in state)
        self.seen = tuple(state[f"seen.{i}"].to(device) for i in range(count))

    def _moves(self, x: Inputs, y: Tensor, logits: Tensor) -> bool:
        if not self.seen or len(self.seen[-1]) < self.memory:
            return False
        tried = self._after(self._recognised(logits[0].detach()))
        if tried == self.rate:
            return False
        parameters = dict(self.model.named_parameters())
        gradients = self._gradients(parameters.values(), x, y)
        named = [(name, w.detach(), g) for (name, w), g in zip(parameters.items(), gradients, strict=True)]
        now, then = (self._score({n: torch.sub(w, g, alpha=rate) for n, w, g in named}) for rate in (self.rate, tried))
        return bool(then > now)

    def _recognised(self, logits: Tensor) -> int:
        if self.recognise == "centred":
            logits = logits.softmax(0) - self.seen[-1].softmax(1).mean(0)
        return int(logits.argmax())

    def _gradients(self, parameters: Iterable[nn.Parameter], x: Inputs, y: Tensor) -> list[Tensor]:
        parameters = list(parameters)
        if self.gradient == "first":
            with torch.enable_grad():
                logits = self.model(*(column[:1] for column in _several(x)))
                loss = functional.cross_entropy(logits, y[:1]) / len(y)
            return list(torch.autograd.grad(loss, parameters, materialize_grads=True))
        if all(w.grad is None for w in parameters):
            raise InputError("gradient = 'full': there is none; call observe after backward and before the step")
        return [torch.zeros_like(w) if w.grad is None else w.grad for w in parameters]

    @torch.no_grad()
    def _score(self, weights: dict[str, Tensor]) -> Tensor:
        *x, y, _ = self.seen
        logits = functional_call(self.model, weights, tuple(x))
        if self.decide == "loss":
            return -functional.cross_entropy(logits, y)
        return (logits.argmax(1) == y).sum()


class DriveRate(LearningRate):
    """A rate that rises with the distance between the effects that came and those that were expected.

    The drive h follows, sample by sample, h <- retention h + (1 - retention) (effect_true - effect_predicted); the rate
    is eta_0 exp(gain |h|). Without mistakes h decays and the rate is eta_0. This is a variant of this project, after
    the homeostatic drive of Man et al. (2022).

    Args:
        optimizer: as for ``LearningRate``.
        effect: ``(C,)``, what each class does.
        retention: of the drive, per sample.
        gain: of the logarithm of the rate.
        high: largest rate, in eta_0.
        expect: which effect is expected: that of the ``argmax``, or the ``mean`` over the predicted probabilities,
            whose distance is zero on average for a calibrated model of rare classes.

    Raises:
        InputError: an argument out of its range.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        effect: Tensor,
        *,
        retention: float = 0.9,
        gain: float = 2.0,
        high: float = 100.0,
        expect: Expect = "argmax",
    ) -> None:
        super().__init__(optimizer)
        if not 0 <= retention < 1:
            raise InputError(f"retention = {retention}: must be in [0, 1)")
        if not 0 <= gain < math.inf:
            raise InputError(f"gain = {gain}: must be at least 0 and finite")
        if not 1 <= high < math.inf:
            raise InputError(f"high = {high}: must be at least 1 and finite")
        _choose("expect", expect, get_args(Expect))
        self.effect, self.retention, self.gain = _effect(effect), retention, gain
        self.high, self.expect = high, expect
        self.drive = 0.0

    def observe(self, x: Inputs, y: Tensor, logits: Tensor) -> None:
        """Let the drive follow the batch, and the rate the drive."""
        logits = logits.detach().to("cpu", torch.float64)
        expected = logits.softmax(1) @ self.effect if self.expect == "mean" else self.effect[logits.argmax(1)]
        ages = torch.arange(len(y) - 1, -1, -1, dtype=torch.float64)
        pull = float((self.retention**ages * (self.effect[y.cpu()] - expected)).sum())
        self.drive = self.retention ** len(y) * self.drive + (1 - self.retention) * pull
        # The bound is on the exponent, which could overflow.
        self.rate = self.initial * math.exp(min(self.gain * abs(self.drive), math.log(self.high)))

    def _numbers(self) -> dict[str, float]:
        return super()._numbers() | {"drive": self.drive}


def _several(x: Inputs) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def _effect(effect: Tensor) -> Tensor:
    effect = torch.as_tensor(effect, dtype=torch.float64, device="cpu")
    if effect.dim() != 1 or not bool(effect.isfinite().all()):
        raise InputError(f"effect of shape {tuple(effect.shape)}: must be (C,), finite")
    return effect


def _choose(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")

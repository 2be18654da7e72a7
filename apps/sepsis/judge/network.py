"""The judge's network: a score of a treatment given the few features of a patient that are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError
from torch import Tensor, nn
from torch.nn import functional

from core import files
from core.errors import InputError
from core.rl.checkpoint import read_tensors
from core.study import Config
from simulators.sepsis.features import ACTIONS, STATE, feature_hash

FEATURES = len(STATE)
CHUNK = {"cpu": 2048, "cuda": 1 << 18}
"""Evaluations at a time: on a CPU the hidden layers then stay in the cache."""
WEIGHTS, RECORD = "judge.safetensors", "judge.json"


class JudgeSettings(Config):
    """How a judge is built and trained; the defaults are those of the authors' code."""

    items: int = Field(default=6, ge=1, le=FEATURES)
    """Features that the judge is shown; 44 is the full state."""
    hidden: PositiveInt = 256
    """Units of each of the two hidden layers."""
    norm: Literal["batch", "layer"] = "batch"
    """Normalisation after each activation."""
    ties: Literal["soft", "davidson"] = "soft"
    """A tie counts as half a win of either (soft), or is an outcome with a probability of its own (Davidson 1970)."""
    epochs: PositiveInt = 100
    """Passes over the preferences, each with fresh evidence."""
    batch: int = Field(default=64, ge=2)
    """Pairs an update."""
    learning_rate: PositiveFloat = 5e-4
    """Step size of Adam; there is no weight decay."""
    balanced: bool = True
    """Draw a pair in proportion to 1 / count(preferred treatment), so that common treatments do not drown the rest."""


class Judge(nn.Module):
    """J(a, e): Linear, PReLU, norm; Linear, PReLU, norm; Linear to one score, from (shown values, mask, treatment).

    Hidden values reach the network as zeros and marked as hidden, so the score does not depend on them.

    Args:
        items: number of features it is trained to be shown.
        hidden: units of each hidden layer.
        norm: ``batch`` or ``layer``.
        ties: ``davidson`` adds one parameter, the logarithm of the propensity to tie.
        features: names of the state's features, in order.

    Attributes:
        history: one line an epoch of training: mean loss, and the accuracy on validation preferences if there were any.
    """

    def __init__(
        self,
        items: int = 6,
        hidden: int = 256,
        norm: Literal["batch", "layer"] = "batch",
        ties: Literal["soft", "davidson"] = "soft",
        features: Sequence[str] = STATE,
    ) -> None:
        super().__init__()
        self.items, self.hidden, self.norm, self.ties = items, hidden, norm, ties
        self.features = tuple(features)
        self.history: list[dict[str, float]] = []
        normalise = nn.BatchNorm1d if norm == "batch" else nn.LayerNorm
        self.linear_1 = nn.Linear(2 * len(self.features) + ACTIONS, hidden)
        self.slope_1 = nn.PReLU(hidden)
        self.norm_1 = normalise(hidden)
        self.linear_2 = nn.Linear(hidden, hidden)
        self.slope_2 = nn.PReLU(hidden)
        self.norm_2 = normalise(hidden)
        self.linear_3 = nn.Linear(hidden, 1)
        self.log_tie = nn.Parameter(torch.zeros(())) if ties == "davidson" else None

    def forward(self, state: Tensor, mask: Tensor, action: Tensor) -> Tensor:
        """Scores, with gradient, of treatments ``(N,)``, or of several for each state ``(K, N)``: same shape.

        While training with batch normalisation, treatments to be compared must be in one call: scores of two calls
        are each normalised to the same mean, and their difference teaches nothing.

        Args:
            state: ``(N, 44)`` normalised.
            mask: ``(N, 44)`` bool, what is shown.
            action: int64 in 0..24.
        """
        shown = functional.linear(_evidence(state, mask), self.linear_1.weight[:, :-ACTIONS], self.linear_1.bias)
        # As a product, not as a look-up: its gradient is one too, and the same in every run on a GPU.
        given = functional.one_hot(action, ACTIONS).to(shown.dtype) @ self.linear_1.weight[:, -ACTIONS:].T
        x = (shown + given).flatten(0, -2)
        x = self.norm_1(_prelu(x, self.slope_1.weight))
        x = self.norm_2(_prelu(self.linear_2(x), self.slope_2.weight))
        return self.linear_3(x).view(action.shape)

    @torch.no_grad()
    def score(self, state: Tensor, mask: Tensor, action: Tensor) -> Tensor:
        """Scores ``(...)`` in evaluation mode, without gradient and in chunks.

        Args:
            state: ``(..., 44)``.
            mask: ``(..., 44)`` bool.
            action: ``(...)``; the leading dimensions broadcast.
        """
        shape = torch.broadcast_shapes(state.shape[:-1], mask.shape[:-1], action.shape)
        net = _Frozen(self)
        flat = [x.expand(*shape, x.shape[-1]).flatten(0, -2) for x in (state, mask)]
        chunks = zip(*(x.split(net.chunk) for x in (*flat, action.expand(shape).flatten())), strict=True)
        return torch.cat([net.top(net.first(*chunk)) for chunk in chunks]).view(shape)

    @torch.no_grad()
    def candidate_scores(self, state: Tensor, mask: Tensor, action: Tensor) -> Tensor:
        """Scores ``(N, 44)`` of a treatment after each feature in turn is shown too, in evaluation mode.

        A feature that is shown already changes nothing. The first layer is linear: a feature adds its two columns to
        it, so that it is not multiplied out 44 times.

        Args:
            state: ``(N, 44)``.
            mask: ``(N, 44)`` bool, what is shown so far.
            action: ``(N,)``.
        """
        net, n = _Frozen(self), state.shape[-1]
        chunks = zip(*(x.split(max(1, net.chunk // n)) for x in (state, mask, action)), strict=True)
        scores = []
        for s, m, a in chunks:
            hidden = ~m[..., None]
            added = torch.addcmul(net.present, s[..., None], net.value).mul_(hidden)
            scores.append(net.top(added.add_(net.first(s, m, a)[:, None]).flatten(0, 1)).view(len(s), n))
        return torch.cat(scores)

    def preference(self, state: Tensor, mask: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """P(first is preferred | one is) = sigmoid(J(first, e) - J(second, e)), shapes as in ``score``."""
        return torch.sigmoid(self.score(state, mask, first) - self.score(state, mask, second))

    def tie(self, state: Tensor, mask: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """P(tie) by Davidson's model, nu / (exp(d/2) + exp(-d/2) + nu); 0 for a judge without it."""
        half = (self.score(state, mask, first) - self.score(state, mask, second)) / 2
        return (
            torch.zeros_like(half) if self.log_tie is None else torch.exp(self.log_tie.detach() - self._log_sum(half))
        )

    def loss(self, state: Tensor, mask: Tensor, first: Tensor, second: Tensor, label: Tensor) -> Tensor:
        """Mean negative log-likelihood of the labels (probabilities that ``first`` wins; .5 is a tie)."""
        difference = self(state, mask, torch.stack((first, second))).diff(dim=0).neg().squeeze(0)
        if self.log_tie is None:
            return functional.binary_cross_entropy_with_logits(difference, label)
        lead = 2 * label - 1
        half = difference / 2
        return (self._log_sum(half) - lead * half - (1 - lead.abs()) * self.log_tie).mean()

    def save(self, folder: Path) -> None:
        """Write ``judge.safetensors`` and ``judge.json`` into a folder, each atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: x.detach().cpu().clone().contiguous() for name, x in self.state_dict().items()}
        files.write(folder / WEIGHTS, safetensors.torch.save(weights))
        settings = {name: getattr(self, name) for name in ("items", "hidden", "norm", "ties")}
        names = {"features": list(self.features), "feature_hash": feature_hash(self.features)}
        files.write(folder / RECORD, json.dumps({**settings, **names, "history": self.history}, indent=2) + "\n")

    @staticmethod
    def load(folder: Path, items: int | None = None, features: Sequence[str] = STATE) -> Judge:
        """The judge in a folder, in evaluation mode, on the CPU.

        Args:
            folder: that ``save`` was given.
            items: features that it will be shown; None takes any judge.
            features: of the states that it will be shown.

        Raises:
            InputError: missing or damaged files, a judge trained for another number of items, or for other features.
        """
        source = folder / RECORD
        record = files.read_json(source, ("items", "hidden", "norm", "ties", "features", "feature_hash", "history"))
        if record["feature_hash"] != feature_hash(features):
            raise InputError(f"{source}: feature_hash {record['feature_hash']}; needed here: {feature_hash(features)}")
        if items is not None and record["items"] != items:
            raise InputError(f"{source}: items is {record['items']}; needed here: {items}")
        try:
            kept = JudgeSettings(**{name: record[name] for name in ("items", "hidden", "norm", "ties")})
        except ValidationError as error:
            problem = error.errors()[0]
            raise InputError(f"{source}: {problem['loc'][0]}: {problem['msg'].lower()}") from error
        judge = Judge(kept.items, kept.hidden, kept.norm, kept.ties, features)
        try:
            judge.load_state_dict(read_tensors(folder / WEIGHTS)[0])
        except RuntimeError as error:
            raise InputError(f"{folder / WEIGHTS}: {' '.join(str(error).split())}") from error
        judge.history = record["history"]
        return judge.eval()

    def _log_sum(self, half: Tensor) -> Tensor:
        """log(exp(d/2) + exp(-d/2) + nu)."""
        assert self.log_tie is not None
        return torch.logaddexp(torch.logaddexp(half, -half), self.log_tie)


class _Frozen:
    """A judge in evaluation mode, its norms folded into the layers above them where that is exact."""

    def __init__(self, judge: Judge) -> None:
        weight, n = judge.linear_1.weight.detach(), len(judge.features)
        self.evidence, self.bias, self.action = weight[:, : 2 * n].T, judge.linear_1.bias, weight[:, 2 * n :].T
        self.value, self.present = self.evidence[:n].contiguous(), self.evidence[n:].contiguous()
        self.slopes = judge.slope_1.weight, judge.slope_2.weight
        self.norms = judge.norm_1, judge.norm_2
        self.layers: list[tuple[Tensor, Tensor]] = [(x.weight, x.bias) for x in (judge.linear_2, judge.linear_3)]
        self.folded = judge.norm == "batch"
        self.chunk = CHUNK.get(weight.device.type, CHUNK["cuda"])
        if self.folded:
            self.layers = [_fold(*x) for x in zip(self.norms, self.layers, strict=True)]

    def first(self, state: Tensor, mask: Tensor, action: Tensor) -> Tensor:
        """The first layer before its activation, ``(N, hidden)``."""
        return torch.addmm(self.bias, _evidence(state, mask), self.evidence).add_(self.action[action])

    def top(self, x: Tensor) -> Tensor:
        """From the first layer ``(N, hidden)`` to the scores ``(N,)``."""
        for slope, norm, (weight, bias) in zip(self.slopes, self.norms, self.layers, strict=True):
            x = torch.prelu(x, slope)
            x = functional.linear(x if self.folded else norm(x), weight, bias)
        return x.squeeze(1)


def _fold(norm: nn.BatchNorm1d | nn.LayerNorm, layer: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that does the batch normalisation below it too."""
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = layer
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return weight * scale, bias + weight @ (norm.bias - norm.running_mean * scale)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    """PReLU; torch's own gradient of it takes three times as long on a CPU."""
    return torch.lerp(x.relu(), x, slope)


def _evidence(state: Tensor, mask: Tensor) -> Tensor:
    """Shown values, zeros elsewhere, and the mask, ``(..., 88)``."""
    return torch.cat((torch.where(mask, state, 0.0), mask.to(state.dtype)), -1)

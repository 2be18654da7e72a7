"""How a judge is fitted to preferences."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from apps.sepsis.judge.accuracy import judge_accuracy, random_evidence
from apps.sepsis.judge.network import FEATURES, Judge, JudgeSettings
from apps.sepsis.preferences import Preferences
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.rl.algorithm import TrainingDiverged
from core.rl.checkpoint import load_optimizer, optimizer_tensors
from core.seeds import stream
from simulators.sepsis.features import ACTIONS


def train_judge(
    preferences: Preferences,
    settings: JudgeSettings,
    seed: int,
    *,
    validation: Preferences | None = None,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Judge:
    """Fit a judge to preferences by maximum likelihood, and return it in evaluation mode.

    Each pair of each update is seen with its own random evidence, filled up around what was cited for it. Both
    treatments of all pairs go through the network in one batch (see ``Judge.forward``); the loss does not depend on
    which of the two is named first, so positions need no shuffling. What is random in an epoch follows from the seed
    and its number: a training that was killed goes on from its last checkpoint to the same weights.

    Args:
        preferences: N pairs.
        settings: see ``JudgeSettings``.
        seed: of first weights, order and evidence.
        validation: pairs on which the accuracy is measured after each epoch; they do not change the judge.
        device: where to train; the judge stays there.
        checkpoint: file of the exact state (safetensors), replaced at the end of an epoch; a finished one is only read.
        progress: told the share done and a message, each epoch.

    Raises:
        InputError: no pairs, values that are refused, or a checkpoint of another judge.
        TrainingDiverged: the loss or a weight is not finite; ``checkpoint`` holds the state of the last good epoch.
    """
    _check(preferences)
    device = torch.device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "first weights of the judge"))
        judge = Judge(settings.items, settings.hidden, settings.norm, settings.ties).to(device)
    run = _Training(judge, settings, Checkpoint(checkpoint))
    pairs, held = preferences.to(device), None if validation is None else validation.to(device)
    weight = torch.ones(len(pairs), dtype=torch.float64, device=device)
    if settings.balanced:
        weight = 1.0 / pairs.preferred.bincount(minlength=ACTIONS).double()[pairs.preferred]
    for epoch in range(run.epoch, settings.epochs):
        generator = torch.Generator(device).manual_seed(stream(seed, f"epoch {epoch}"))
        loss = run.train(pairs, _order(weight, settings.balanced, generator), generator)
        accuracy = math.nan
        if held is not None:
            drawn = torch.Generator(device).manual_seed(stream(seed, "validation"))
            accuracy = float(judge_accuracy(judge, held, drawn).mean())
        run.finish(loss, accuracy)
        if progress is not None:
            message = f"epoch {epoch + 1} of {settings.epochs}, loss {loss:.4f}"
            progress((epoch + 1) / settings.epochs, message + (f", accuracy {accuracy:.3f}" if held else ""))
    judge.history = run.history
    return judge.eval()


class _Training:
    """The state of one training: judge, optimiser, and (loss, accuracy) of each epoch."""

    def __init__(self, judge: Judge, settings: JudgeSettings, checkpoint: Checkpoint) -> None:
        self.judge, self.settings, self.checkpoint = judge.train(), settings, checkpoint
        self.optimizer = torch.optim.Adam(judge.parameters(), lr=settings.learning_rate, fused=True)
        self.record = torch.zeros(0, 2, dtype=torch.float64)
        if (saved := checkpoint.load()) is not None:
            try:
                judge.load_state_dict({x.removeprefix("judge."): saved[x] for x in saved if x.startswith("judge.")})
                load_optimizer(self.optimizer, saved)
                self.record = saved["record"]
            except (RuntimeError, ValueError, KeyError) as error:
                raise InputError(f"{checkpoint.path}: of another judge ({' '.join(str(error).split())})") from error
        self.good = self._tensors()

    @property
    def epoch(self) -> int:
        return len(self.record)

    @property
    def history(self) -> list[dict[str, float]]:
        measured = ({"loss": loss, "accuracy": accuracy} for loss, accuracy in self.record.tolist())
        return [{name: x for name, x in line.items() if math.isfinite(x)} for line in measured]

    def train(self, pairs: Preferences, rows: Tensor, generator: torch.Generator) -> float:
        """One epoch; its mean loss."""
        total = torch.zeros((), device=rows.device)
        for row in rows.tensor_split(max(1, -(-len(rows) // self.settings.batch))):
            drawn = pairs.take(row)
            mask = random_evidence(len(row), self.settings.items, generator, row.device, cited=drawn.evidence)
            loss = self.judge.loss(drawn.state, mask, drawn.preferred, drawn.rejected, drawn.label)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(row)
        return float(total) / len(rows)

    def finish(self, loss: float, accuracy: float) -> None:
        """Record an epoch, and keep its state if it is due."""
        if not (math.isfinite(loss) and all(bool(x.isfinite().all()) for x in self.judge.parameters())):
            self.checkpoint.save(self.good)
            raise TrainingDiverged(f"the judge's loss or a weight is not finite in epoch {self.epoch + 1}")
        self.record = torch.cat((self.record, torch.tensor([[loss, accuracy]], dtype=torch.float64)))
        self.good = self._tensors()
        if self.checkpoint.due or self.epoch == self.settings.epochs:
            self.checkpoint.save(self.good)

    def _tensors(self) -> dict[str, Tensor]:
        weights = {f"judge.{name}": x for name, x in self.judge.state_dict().items()}
        return {
            k: x.clone() for k, x in (weights | optimizer_tensors(self.optimizer) | {"record": self.record}).items()
        }


def _order(weight: Tensor, balanced: bool, generator: torch.Generator) -> Tensor:
    """Rows of an epoch: drawn in proportion to their weight, with replacement, or each once."""
    if not balanced:
        return torch.randperm(len(weight), generator=generator, device=weight.device)
    # Not multinomial, which takes at most 2^24 rows.
    bound = weight.cumsum(0)
    drawn = torch.rand(len(weight), dtype=weight.dtype, generator=generator, device=weight.device) * bound[-1]
    return torch.searchsorted(bound, drawn, right=True).clamp(max=len(weight) - 1)


def _check(pairs: Preferences) -> None:
    if not len(pairs):
        raise InputError("preferences: none; at least one pair is needed")
    for name in ("preferred", "rejected"):
        actions = getattr(pairs, name)
        if bool(((actions < 0) | (actions >= ACTIONS)).any()):
            raise InputError(f"preferences.{name}: must be within 0..{ACTIONS - 1}")
    if bool((pairs.preferred == pairs.rejected).any()):
        raise InputError("preferences: the treatments of a pair must differ")
    if pairs.state.shape[1:] != (FEATURES,) or not bool(pairs.state.isfinite().all()):
        raise InputError(f"preferences.state of shape {tuple(pairs.state.shape)}: must be finite, (N, {FEATURES})")
    if not bool(((pairs.label >= 0) & (pairs.label <= 1)).all()):
        raise InputError("preferences.label: must be within [0, 1]")

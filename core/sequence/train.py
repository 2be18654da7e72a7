"""The one training loop of all objectives over token sequences."""

from __future__ import annotations

import inspect
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.checkpoint import Checkpoint
from core.errors import InputError
from core.rl import TrainingDiverged
from core.rl.checkpoint import load_optimizer, optimizer_tensors
from core.seeds import stream
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.clusters import tied_groups
from core.sequence.entropy import entropy_alarm
from core.sequence.minibatch import Part
from core.sequence.objective import Objective
from core.sequence.policy import NOTHING
from core.sequence.rollouts import Source, total_reward
from core.sequence.scheduled import ScheduledSampling
from core.sequence.scoring import backward_in_parts, check_frozen, device_of, learning, score_all, seeded

__all__ = ["Callback", "Objective", "Rate", "Record", "SequencePolicyOptimization"]

Record = dict[str, float]
"""What one update logs."""
Callback = Callable[["SequencePolicyOptimization", Record], bool | None]
"""Told of each update; False ends the training for good."""
Rate = float | Callable[[int], float]
"""A learning rate, constant or of the number of the update."""
HALVE_AFTER, STOP_AFTER = 3, 10
"""Steps in a row without a finite gradient after which the learning rate is halved, and the training ended."""
WINDOW = 20
"""Updates over which entropy and reward are watched; see ``entropy_alarm``."""
WEIGHT, PHASE, COUNTS, RATE, RECORDS, RUN = "policy.", "phase", "counts", "rate", "records", "run"
"""Names in a checkpoint."""


class SequencePolicyOptimization:
    """Trains a policy: sequences of a source, their advantages, and steps of a gradient-based optimiser.

    All that is random in an update follows from the seed and its number, so a training that was killed goes on bit for
    bit on a CPU. Survived: a loss or gradient that is not finite (no step; after 3 in a row half the learning rate,
    after 10 the end), a GPU whose memory does not suffice (half as many rows a pass), a gradient of exactly 0, as when
    all samples are tied (no step, which the optimiser's momentum would otherwise take).

    Attributes:
        step: updates done.
        ended: whether a callback has ended the training.
        records: one a done update: ``loss``, ``grad_norm``, ``skipped`` (steps whose gradient was not finite), ``idle``
            (steps whose gradient was 0), ``rate``, ``seconds``, what the source and the losses log. Where both log a
            name it is the source's, which is of all that was drawn; the losses and the monitor see parts of it.

    Args:
        policy: a module with ``sample`` and ``score``.
        source: of the sequences.
        objective: to be minimised.
        learning_rate: or one for each of the objective's phases.
        max_grad_norm: to which a gradient is cut.
        weight_decay: of the optimiser.
        optimizer: a class of ``torch.optim``.
        reference: fills ``log_prob_ref``; see ``core.sequence.scoring.frozen``.
        micro_batch: rows that a graph is held of at a time; None: all of a step.
        dropout: whether it is on while the gradient is taken (and with it batch normalisation in training mode); the
            ratio to the sampling policy is then not 1 at the first step.
        seed: of everything random.
        monitor: logs further numbers of the scored samples; see ``core.sequence.entropy``.

    Raises:
        InputError: the reference would be trained too, or the source samples at another temperature.
    """

    def __init__(
        self,
        policy: Any,
        source: Source,
        objective: Objective,
        *,
        learning_rate: Rate | Sequence[Rate] = 1e-3,
        max_grad_norm: float = 1.0,
        weight_decay: float = 0.0,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        reference: Any = None,
        micro_batch: int | None = None,
        dropout: bool = False,
        seed: int = 0,
        monitor: Any = None,
    ) -> None:
        check_frozen(policy, reference)
        if (other := getattr(source, "temperature", objective.temperature)) != objective.temperature:
            raise InputError(f"Objective.temperature: {objective.temperature}; allowed: the source's, {other}")
        if micro_batch is not None and micro_batch < 1:
            raise InputError(f"micro_batch: {micro_batch}; allowed: at least 1, or None")
        self.policy, self.source, self.objective = policy, source, objective
        self.max_grad_norm, self.reference, self.micro_batch = max_grad_norm, reference, micro_batch
        self.dropout, self.seed, self.monitor = dropout, seed, monitor
        phases = len(objective.phases)
        self.rates = tuple(learning_rate) if isinstance(learning_rate, Sequence) else (learning_rate,) * phases
        if len(self.rates) != phases:
            raise InputError(
                f"learning_rate: {len(self.rates)} rates; allowed: one, or one for each of {phases} phases"
            )
        self.parameters = [x for x in policy.parameters() if x.requires_grad]
        fused = {"fused": True} if "fused" in inspect.signature(optimizer).parameters else {}
        self.optimizers = [
            optimizer(self.parameters, lr=0.0, weight_decay=weight_decay, **fused) for _ in objective.phases
        ]
        self.device = device_of(policy)
        self.generator = torch.Generator(self.device)
        self.step, self.bad, self.scale, self.records = 0, 0, 1.0, list[Record]()
        self.ended, self._warned = False, False

    def train(
        self,
        updates: int,
        *,
        run: str = "",
        checkpoint: Path | None = None,
        progress: Callable[[float, str], None] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> list[Record]:
        """Go on until ``updates`` updates are done in all.

        Args:
            updates: in all.
            run: a text that tells this training from others whose checkpoint it might be given.
            checkpoint: a file from which an interrupted training goes on, and which it keeps up to date.
            progress: told the share done and a message.
            callbacks: told of each update; one that returns False ends the training for good: a later call, or one
                that goes on from the checkpoint, does no further update.

        Returns:
            The records of all updates.

        Raises:
            InputError: the checkpoint is damaged or that of another training.
            TrainingDiverged: 10 steps in a row had no finite gradient; the state before them is saved. Its weights
                include the good steps that went before them in the same update, while ``step`` is that update's start.
        """
        kept = Checkpoint(checkpoint)
        number = stream(self.seed, f"sequence policy optimization {run}")
        if self.step == 0 and (saved := kept.load()) is not None:
            self._restore(saved, number, kept.path)
        self.policy.eval()
        while self.step < updates and not self.ended:
            try:
                with seeded(stream(self.seed, f"losses {self.step}"), self.device):
                    record = self._update(self.step)
            except TrainingDiverged:
                kept.save(self._state(number))
                raise
            self.records.append(record)
            self._warn_of_collapse()
            self.step += 1
            if progress is not None:
                progress(self.step / updates, f"update {self.step} of {updates}: loss {record['loss']:.4f}")
            if False in [callback(self, record) for callback in callbacks]:
                self.ended = True
                break
            # After the callbacks: a saved update is not repeated, so one killed in them would never have been told.
            if kept.due:
                kept.save(self._state(number))
        kept.save(self._state(number))
        return self.records

    def _update(self, step: int) -> Record:
        began, o = time.perf_counter(), self.objective
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = self.scale * (rate(step) if callable(rate) else rate)
        if isinstance(self.policy, ScheduledSampling):
            self.policy.update = step
        generator = self.generator.manual_seed(stream(self.seed, f"update {step}"))
        drawn = self.source.draw(self.policy, step, generator)
        logged: list[tuple[str, Tensor]] = []
        sampled = None if o.policy is None or drawn.sampled is None else self._prepared(drawn.sampled)
        reference = None if o.supervised is None else drawn.reference
        counts, took = {"skipped": 0.0, "idle": 0.0}, 0
        if sampled is not None or reference is not None:
            whole = Part.of(sampled, reference)
            for _ in range(o.epochs):
                for part in whole.minibatches(o.minibatches, generator):
                    for phase in range(len(o.phases)):
                        self._step(part, phase, stream(self.seed, f"step {step} {took}"), logged, counts)
                        took += 1
        record = {"loss": math.nan if took else 0.0, "grad_norm": 0.0, **_means(logged)}
        # The source's numbers are of the whole draw; a monitor's of the same name may lack the tied prompts.
        record |= _means(list(drawn.metrics.items())) | counts
        rate = self.optimizers[-1].param_groups[0]["lr"]
        record = record | {"rate": float(rate), "seconds": time.perf_counter() - began}
        return record

    def _prepared(self, sampled: TokenBatch) -> TokenBatch | None:
        """With the reference's log-probabilities and advantages; None if nothing is left."""
        o = self.objective
        if o.drop_ties:
            different = ~tied_groups(total_reward(sampled), sampled.group)
            if not bool(different.any()):
                return None
            sampled = sampled[different]
        if self.reference is not None and sampled.log_prob_ref is None:
            found = score_all(self.reference, sampled, o.temperature, rows=self.micro_batch)
            sampled = sampled.with_(log_prob_ref=found.log_prob)
        return sampled if o.estimator is None else o.estimator(sampled)

    def _step(
        self, part: Part, phase: int, seed: int, logged: list[tuple[str, Tensor]], counts: dict[str, float]
    ) -> None:
        """One step of an optimiser, if the gradient allows it."""
        optimizer = self.optimizers[phase]
        metrics = self._backward(part, phase, seed)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        loss = metrics["loss"]
        size, value = torch.stack((norm.to(loss), loss)).tolist()
        if not (math.isfinite(size) and math.isfinite(value)):
            counts["skipped"] += 1
            self._count_bad()
            return
        self.bad = 0
        logged += metrics.items()
        logged.append(("grad_norm", norm))
        if size == 0:
            counts["idle"] += 1
            return
        optimizer.step()

    def _count_bad(self) -> None:
        self.bad += 1
        if self.bad % HALVE_AFTER == 0:
            self.scale /= 2
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] /= 2
            warnings.warn(f"{self.bad} steps in a row without a finite gradient; learning rate halved", stacklevel=2)
        if self.bad >= STOP_AFTER:
            raise TrainingDiverged(
                f"update {self.step}: {self.bad} steps in a row without a finite loss and gradient; the policy has its "
                "last good weights"
            )

    def _backward(self, part: Part, phase: int, seed: int) -> dict[str, Tensor]:
        """Gradients of a step, and what is to be logged; half as many rows at a time if memory does not suffice."""
        while True:
            self.optimizers[phase].zero_grad()
            try:
                with seeded(seed, self.device):
                    return self._differentiate(part, phase, seed)
            except torch.OutOfMemoryError:
                rows = min(self.micro_batch or len(part.batch), len(part.batch))
                if rows == 1:
                    raise
                self.micro_batch = (rows + 1) // 2
            # After the except block, whose traceback holds the graph in memory.
            warnings.warn(f"out of memory: {self.micro_batch} rows at a time from here on", stacklevel=2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _differentiate(self, part: Part, phase: int, seed: int) -> dict[str, Tensor]:
        o, rows = self.objective, self.micro_batch
        watched = self.monitor is not None and part.sampled is not None and phase == len(o.phases) - 1
        need = o.need(part, phase) | ({"entropy"} if watched else NOTHING)
        metrics: dict[str, Tensor] = {}

        def score(batch: TokenBatch, number: int) -> TokenScores:
            with learning(self.policy, stream(seed, f"part {number}"), self.dropout):
                scores: TokenScores = self.policy.score(batch, o.temperature, need)
                return scores

        def loss(scores: TokenScores) -> Tensor:
            found = o.loss(scores, part, phase)
            if watched:
                metrics.update(self.monitor.update(part.halves(scores)[0], part.sampled) or {})
            metrics.update({**found.metrics, "loss": found.value.detach()})
            return found.value

        if rows is not None and rows < len(part.batch):
            backward_in_parts(score, part.batch, loss, rows)
        elif (value := loss(score(part.batch, 0))).requires_grad:
            value.backward()
        return metrics

    def _warn_of_collapse(self) -> None:
        known = [x for x in self.records[-WINDOW:] if "entropy" in x and "reward" in x]
        if self._warned or not known:
            return
        told = entropy_alarm([x["entropy"] for x in known], [x["reward"] for x in known], WINDOW)
        if told is not None:
            self._warned = True
            warnings.warn(told, stacklevel=2)

    def _state(self, run: int) -> dict[str, Tensor]:
        counts = torch.tensor([self.step, self.bad, self.micro_batch or 0, int(self.ended)])
        text = bytearray(json.dumps(self.records), "utf-8")
        state = {RUN: torch.tensor(run), COUNTS: counts, RATE: torch.tensor(self.scale, dtype=torch.float64)}
        state[RECORDS] = torch.frombuffer(text, dtype=torch.uint8)
        state |= {f"{WEIGHT}{name}": x for name, x in self.policy.state_dict().items()}
        for k, optimizer in enumerate(self.optimizers):
            state |= {f"{PHASE}{k}.{name}": x for name, x in optimizer_tensors(optimizer).items()}
        return state

    def _restore(self, saved: dict[str, Tensor], run: int, path: Path | None) -> None:
        if RUN not in saved or int(saved[RUN]) != run:
            raise InputError(
                f"{path}: is the state of another training; allowed: one of the same seed and run, or no file"
            )
        weights = {name.removeprefix(WEIGHT): x for name, x in saved.items() if name.startswith(WEIGHT)}
        try:
            self.policy.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(f"{path}: {' '.join(str(error).split())}") from error
        for k, optimizer in enumerate(self.optimizers):
            begins = f"{PHASE}{k}."
            mine = {name.removeprefix(begins): x for name, x in saved.items() if name.startswith(begins)}
            load_optimizer(optimizer, mine)
        # States that were kept before ``ended`` was have three counts.
        self.step, self.bad, rows, ended = [*saved[COUNTS].tolist(), 0][:4]
        self.micro_batch, self.ended = rows or None, bool(ended)
        self.scale = float(saved[RATE])
        self.records = json.loads(bytes(saved[RECORDS].tolist()))


def _means(logged: list[tuple[str, Tensor]]) -> Record:
    """Mean of each name's values, which leave their device in one transfer."""
    if not logged:
        return {}
    device = next((x.device for _, x in logged if x.device.type != "cpu"), logged[0][1].device)
    values = torch.stack([x.detach().to(device, torch.float32) for _, x in logged]).tolist()
    found: dict[str, list[float]] = {}
    for (name, _), value in zip(logged, values, strict=True):
        found.setdefault(name, []).append(value)
    return {name: sum(x) / len(x) for name, x in found.items()}

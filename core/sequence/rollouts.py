"""Where the sequences of an update come from: a policy's own answers, recorded ones, or the right ones."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from core.errors import InputError
from core.sequence.batch import TokenBatch
from core.sequence.clusters import tied_groups
from core.sequence.policy import SequencePolicy
from core.sequence.reductions import per_row, wide
from core.sequence.scoring import acting
from core.simulation import tree


@dataclass(frozen=True)
class Prompts:
    """P prompts and, where there are, their right answers.

    Attributes:
        context: P entries, in the form that the policy reads.
        reference: rows of which ``group`` is the prompt; its ``context`` is not read.
    """

    context: Any
    reference: TokenBatch | None = None


class Task(Protocol):
    """Something to be answered by a sequence, and a verifier."""

    @property
    def max_length(self) -> int:
        """T at most."""
        ...

    def prompts(self, n: int, step: int, generator: torch.Generator) -> Prompts:
        """Prompts for the update ``step``."""
        ...

    def reward(self, batch: TokenBatch, prompts: Prompts) -> Tensor:
        """``(B,)`` for sequences or ``(B, T)`` for their tokens; ``batch.group`` is the row of the prompts."""
        ...


class Resets(Protocol):
    """Chooses the tokens that rollouts start from."""

    def __call__(self, reference: TokenBatch, n: int, step: int, generator: torch.Generator) -> TokenBatch:
        """``P * n`` rows of beginnings of the P references, row ``p * n + i`` for the i-th rollout of prompt p."""
        ...


@dataclass(frozen=True)
class Drawn:
    """The sequences of an update; where both are there they have the same ``context`` object.

    Attributes:
        sampled: with their rewards, for the policy loss.
        reference: right answers, for the supervised loss.
        metrics: detached scalars to be logged.
    """

    sampled: TokenBatch | None
    reference: TokenBatch | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Source(Protocol):
    """Gives each update its sequences."""

    def draw(self, policy: SequencePolicy, step: int, generator: torch.Generator) -> Drawn:
        """All that is random in it follows from the generator, which lives on the policy's device."""
        ...


@dataclass(frozen=True)
class Rollouts:
    """Answers that the policy samples, ``group`` to each of some prompts, with the verifier's rewards.

    A verifier that raises anything but an ``InputError`` costs its prompt the reward, 0 instead; where it gives a
    number that is not finite, that sequence or token alone gets 0. The prompts of either are counted in the metric
    ``verifier_faults`` and warned of.

    Attributes:
        task: gives prompts and rewards.
        prompts: of an update.
        group: answers to a prompt.
        temperature: of sampling.
        resets: from where rollouts start; None starts all at the prompt.
    """

    task: Task
    prompts: int
    group: int = 8
    temperature: float = 1.0
    resets: Resets | None = None

    def __post_init__(self) -> None:
        for name in ("prompts", "group"):
            if getattr(self, name) < 1:
                raise InputError(f"Rollouts.{name}: {getattr(self, name)}; allowed: at least 1")
        if not self.temperature > 0:
            raise InputError(f"Rollouts.temperature: {self.temperature}; allowed: above 0")

    def draw(self, policy: SequencePolicy, step: int, generator: torch.Generator) -> Drawn:
        """See ``Source.draw``.

        Raises:
            InputError: resets without references, or a reward of a wrong shape.
        """
        prompts = self.task.prompts(self.prompts, step, generator)
        right = None if prompts.reference is None else prompts.reference.with_(context=prompts.context)
        prefix = None
        if self.resets is not None:
            if right is None:
                raise InputError("Rollouts.resets: the task gives no references; allowed: a task with right answers")
            prefix = self.resets(right, self.group, step, generator)
        with acting(policy):
            sampled = policy.sample(
                prompts.context, self.group, self.task.max_length, self.temperature, prefix, generator
            )
            reward, faults = verified(self.task, sampled, prompts)
        sampled = sampled.with_(reward=reward)
        metrics = {"reward": total_reward(sampled).mean(), "length": sampled.mask.sum() / len(sampled)}
        if sampled.log_prob_old is not None:
            # The mean of -log p over what was sampled is an unbiased estimate of the entropy, and costs nothing.
            metrics["entropy"] = -sampled.log_prob_old.sum() / sampled.mask.sum().clamp(min=1)
        if self.group > 1:
            metrics["tied"] = tied_groups(total_reward(sampled), sampled.group).float().mean()
        if faults:
            metrics["verifier_faults"] = torch.tensor(float(faults))
        return Drawn(sampled, right, metrics)


@dataclass(frozen=True)
class Recorded:
    """Rows of a fixed batch, those of ``prompts`` prompts drawn at random for each update, or all."""

    batch: TokenBatch
    prompts: int | None = None

    def __post_init__(self) -> None:
        if not len(self.batch):
            raise InputError("Recorded.batch: has no sequences; allowed: at least 1")
        if self.prompts is not None and self.prompts < 1:
            raise InputError(f"Recorded.prompts: {self.prompts}; allowed: at least 1")

    @functools.cached_property
    def _prompts(self) -> Tensor:
        return torch.unique(self.batch.group)

    def draw(self, policy: SequencePolicy, step: int, generator: torch.Generator) -> Drawn:
        """See ``Source.draw``."""
        found, every = self.batch, self._prompts
        if self.prompts is not None and self.prompts < len(every):
            order = torch.randperm(len(every), generator=generator, device=generator.device)
            found = found[torch.isin(found.group, every[order[: self.prompts].to(every.device)])]
        metrics = {} if found.reward is None else {"reward": total_reward(found).mean()}
        return Drawn(found, metrics=metrics)


@dataclass(frozen=True)
class Supervised:
    """The right answers alone, to ``prompts`` prompts an update."""

    task: Task
    prompts: int

    def __post_init__(self) -> None:
        if self.prompts < 1:
            raise InputError(f"Supervised.prompts: {self.prompts}; allowed: at least 1")

    def draw(self, policy: SequencePolicy, step: int, generator: torch.Generator) -> Drawn:
        """See ``Source.draw``.

        Raises:
            InputError: the task gives no references.
        """
        prompts = self.task.prompts(self.prompts, step, generator)
        if prompts.reference is None:
            raise InputError("Supervised.task: gives no references; allowed: a task with right answers")
        return Drawn(None, prompts.reference.with_(context=prompts.context))


def verified(task: Task, batch: TokenBatch, prompts: Prompts) -> tuple[Tensor, int]:
    """The verifier's rewards, 0 where it failed, and for how many prompts it did.

    Raises:
        InputError: the rewards have another shape than ``(B,)`` or ``(B, T)``.
    """
    faults = 0
    try:
        reward = _checked(task.reward(batch, prompts), batch)
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        warnings.warn(f"a verifier raised {error!r}; its prompts are verified one by one", stacklevel=2)
        reward, faults = _one_by_one(task, batch, prompts)
    good = torch.isfinite(reward)
    if not bool(good.all()):
        bad = ~good if good.dim() == 1 else ~good.all(1)
        faults += len(torch.unique(batch.group[bad]))
        warnings.warn(f"a verifier gave {int(bad.sum())} rewards that are not finite; counted as 0", stacklevel=2)
        reward = torch.where(good, reward, 0.0)
    return reward, faults


def _one_by_one(task: Task, batch: TokenBatch, prompts: Prompts) -> tuple[Tensor, int]:
    found: list[tuple[Tensor, Tensor]] = []
    every = torch.unique(batch.group).tolist()
    for prompt in every:
        rows = batch.group == prompt
        reference = prompts.reference
        if reference is not None:
            reference = reference.with_(context=None)[reference.group == prompt]
        index = torch.tensor([prompt], device=batch.group.device)
        try:
            one = batch[rows]
            reward = task.reward(one, Prompts(tree.take(prompts.context, index), reference))
            found.append((rows, _checked(reward, one)))
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            warnings.warn(f"a verifier raised {error!r}; its prompt gets reward 0", stacklevel=2)
    dense = bool(found) and found[0][1].dim() == 2
    whole = torch.zeros(batch.tokens.shape if dense else batch.group.shape, device=batch.tokens.device)
    for rows, reward in found:
        whole[rows] = reward
    return whole, len(every) - len(found)


def _checked(reward: Tensor, batch: TokenBatch) -> Tensor:
    """In floating point, 0 outside the mask.

    Raises:
        InputError: a wrong shape.
    """
    if reward.shape not in (batch.group.shape, batch.tokens.shape):
        raise InputError(
            f"reward: shape {tuple(reward.shape)}; allowed: {tuple(batch.group.shape)} for sequences or "
            f"{tuple(batch.tokens.shape)} for tokens"
        )
    reward = reward.to(batch.tokens.device, torch.promote_types(reward.dtype, torch.float32))
    return reward if reward.dim() == 1 else torch.where(batch.mask, reward, 0.0)


def total_reward(batch: TokenBatch) -> Tensor:
    """``(B,)`` reward of each sequence, in floating point."""
    return per_row(wide(batch.need("reward")), batch.mask)

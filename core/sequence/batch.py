"""What every objective over token sequences reads: the sequences of a batch, and the policy's scores of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from core.errors import InputError
from core.simulation import tree

PAD = 0
"""Stands in ``tokens`` after a sequence's end."""


@dataclass(frozen=True)
class TokenBatch:
    """B sequences of up to T generated tokens, padded on the right.

    Attributes:
        tokens: ``(B, T)`` int64, the end symbol included, ``PAD`` after it.
        mask: ``(B, T)`` bool, what the loss counts: True up to and including the end symbol, False for tokens that were
            forced (a prefix that a rollout started from).
        group: ``(B,)`` int64, the row of ``context`` that a sequence answers. Sequences of one prompt share it; they
            need not stand together.
        context: what the policy conditions on, one entry a prompt: a tensor, dict or dataclass of tensors with the P
            prompts first, or None.
        present: ``(B, T)`` bool, all tokens before the padding, the forced ones too; None where that is ``mask``.
        reward: ``(B,)`` of a sequence or ``(B, T)`` of its tokens, 0 where not ``mask``.
        log_prob_old: ``(B, T)`` under the policy that sampled, at its temperature; 0 where not ``mask``.
        log_prob_ref: ``(B, T)`` under a frozen reference.
        advantage: ``(B, T)``, filled by an estimator.
        segment: ``(B, T)`` int64, number of the word or step that a token belongs to.
    """

    tokens: Tensor
    mask: Tensor
    group: Tensor
    context: Any = None
    present: Tensor | None = None
    reward: Tensor | None = None
    log_prob_old: Tensor | None = None
    log_prob_ref: Tensor | None = None
    advantage: Tensor | None = None
    segment: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def valid(self) -> Tensor:
        """``(B, T)`` bool, all tokens before the padding."""
        return self.mask if self.present is None else self.present

    @property
    def length(self) -> Tensor:
        """``(B,)`` number of tokens before the padding."""
        return self.valid.sum(1)

    def need(self, name: str) -> Tensor:
        """The field of that name.

        Raises:
            InputError: it is None.
        """
        found: Tensor | None = getattr(self, name)
        if found is None:
            raise InputError(f"TokenBatch.{name}: is absent; the loss or estimator that was called reads it")
        return found

    def with_(self, **fields: Any) -> Self:
        """The batch with some fields replaced."""
        return dataclasses.replace(self, **fields)

    def __getitem__(self, rows: Any) -> Self:
        """The sequences that a slice, mask or index selects, with the prompts they answer and no others."""
        kept, group = torch.unique(self.group[rows], return_inverse=True)
        found = {name: x[rows] for name, x in self._tensors()}
        return self.with_(**{**found, "group": group, "context": tree.take(self.context, kept)})

    def deal(self, n: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Masks ``(B,)`` of the rows of n parts, or of as many as there are prompts if those are fewer.

        The parts have nearly as many prompts each, drawn at random; no prompt's sequences are parted.
        """
        prompts = torch.unique(self.group)
        order = prompts[torch.randperm(len(prompts), generator=generator, device=generator.device).to(prompts.device)]
        for part in order.tensor_split(min(n, len(order)) or 1):
            yield torch.isin(self.group, part)

    def to(self, device: torch.device | str) -> Self:
        """The batch on a device."""
        return tree.map_tensors(lambda x: x.to(device), self)

    def pad_to(self, length: int) -> Self:
        """The batch with T at least ``length``."""
        more = length - self.tokens.shape[1]
        if more <= 0:
            return self
        padded = {name: torch.nn.functional.pad(x, (0, more)) for name, x in self._tensors() if x.dim() == 2}
        return self.with_(**padded)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The sequences of several batches, one after the other.

        Batches with the same ``context`` object share its prompts (references and samples of the same clips are then
        scored in one pass); others keep their own, renumbered. Fields that not all parts have are left out.
        """
        longest = max(part.tokens.shape[1] for part in parts)
        parts = [part.pad_to(longest) for part in parts]
        if any(part.present is not None for part in parts):
            parts = [part.with_(present=part.valid) for part in parts]
        names = set.intersection(*({name for name, _ in part._tensors()} for part in parts))
        found = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in names
            if len({getattr(part, name).dim() for part in parts}) == 1
        }
        absent = {f.name: None for f in dataclasses.fields(parts[0]) if f.name not in found and f.name != "context"}
        context = parts[0].context
        if any(part.context is not context for part in parts):
            context = tree.map_tensors(lambda *x: torch.cat(x), *(part.context for part in parts))
            before = itertools.accumulate((count_prompts(part.context)[0] for part in parts), initial=0)
            found["group"] = torch.cat([part.group + n for part, n in zip(parts, before, strict=False)])
        return parts[0].with_(**{**absent, **found, "context": context})

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All fields that are there, without the context."""
        for f in dataclasses.fields(self):
            if f.name != "context" and (value := getattr(self, f.name)) is not None:
                yield f.name, value


def count_prompts(context: Any) -> tuple[int, torch.device]:
    """P and the device of a context.

    Raises:
        InputError: it holds no tensor.
    """
    some = next((x for _, x in tree.named_tensors(context)), None)
    if some is None:
        raise InputError(f"context: {type(context).__name__} holds no tensor; allowed: one entry a prompt")
    return len(some), some.device


@dataclass(frozen=True)
class TokenScores:
    """One parallel pass of the current policy over a ``TokenBatch``, with its graph.

    Attributes:
        log_prob: ``(B, T)`` of the tokens; 0 where they are not ``valid``.
        entropy: ``(B, T)`` of the policy at each token, in nats.
        logits: ``(B, T, V)`` divided by the temperature; ``(B, T_frames, V)`` for CTC.
        value: ``(B, T)`` of the state before each token.
        hidden: ``(B, T, D)`` what the logits are computed from.
        frames: ``(B,)`` int64, number of valid ``T_frames``, for CTC.
    """

    log_prob: Tensor
    entropy: Tensor | None = None
    logits: Tensor | None = None
    value: Tensor | None = None
    hidden: Tensor | None = None
    frames: Tensor | None = None

    def need(self, name: str) -> Tensor:
        """The field of that name.

        Raises:
            InputError: it is None.
        """
        found: Tensor | None = getattr(self, name)
        if found is None:
            raise InputError(f"TokenScores.{name}: is absent; ask for it by score(..., need={{{name!r}}})")
        return found

    def __getitem__(self, rows: Any) -> TokenScores:
        return tree.take(self, rows)


@dataclass(frozen=True)
class LossResult:
    """A scalar to minimise, and detached scalars to be logged."""

    value: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


Loss = Callable[[TokenScores, TokenBatch], LossResult]
"""What an objective is. What it reads of the scores beyond ``log_prob`` it names in an attribute ``need``."""
Estimator = Callable[[TokenBatch], TokenBatch]
"""Fills ``advantage`` from ``reward``."""

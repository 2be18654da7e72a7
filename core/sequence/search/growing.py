"""Sequences of different lengths that grow side by side, with the policy's states kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.sequence.batch import TokenBatch, count_prompts
from core.sequence.policy import StepwisePolicy, draw_tokens
from core.simulation import tree


def join_states(policy: StepwisePolicy, states: Sequence[Any]) -> Any:
    """One state of the sequences of several, one after the other.

    A policy whose states are not trees of tensors with the sequences first, or of one size at any length, has a method
    ``join`` that does this. Tensors that are the same object in all states belong to no sequence and are kept. What is
    returned goes to ``select`` before it is advanced.
    """
    own = getattr(policy, "join", None)
    if own is not None:
        return own(states)
    return tree.map_tensors(lambda *x: x[0] if all(y is x[0] for y in x) else torch.cat(x), *states)


@dataclass(frozen=True)
class Growing:
    """R sequences, the logits of their next tokens and the policy's state.

    Attributes:
        tokens: ``(R, T)`` int64, ``PAD`` beyond the length.
        log_prob: ``(R, T)`` at the temperature of the draws.
        length: ``(R,)`` int64.
        done: ``(R,)`` bool: has its end symbol or T tokens, and is never advanced again.
        group: ``(R,)`` int64, the prompt.
        logits: ``(R, V)``; of no meaning where done.
        row: ``(R,)`` int64, where in the state a sequence stands; of no meaning where done.
        state: of the policy.
        rows: sequences in the state.
    """

    tokens: Tensor
    log_prob: Tensor
    length: Tensor
    done: Tensor
    group: Tensor
    logits: Tensor
    row: Tensor
    state: Any
    rows: int

    @classmethod
    def begin(cls, policy: StepwisePolicy, context: Any, max_length: int) -> Growing:
        """An empty sequence a prompt."""
        prompts, device = count_prompts(context)
        group = torch.arange(prompts, device=device)
        logits, state = policy.start(context, group)
        tokens = group.new_zeros(prompts, max_length)
        return cls(
            tokens=tokens,
            log_prob=torch.zeros_like(tokens, dtype=torch.float32),
            length=torch.zeros_like(group),
            done=torch.zeros_like(group, dtype=torch.bool),
            group=group,
            logits=logits,
            row=group,
            state=state,
            rows=prompts,
        )

    def take(self, policy: StepwisePolicy, rows: Tensor) -> Growing:
        """Some sequences, in a given order, with repetitions."""
        own = {name: x[rows] for name, x in self._own().items()}
        state = policy.select(self.state, own["row"])
        own["row"] = torch.arange(len(rows), device=rows.device)
        return dataclasses.replace(self, **own, state=state, rows=len(rows))

    def joined(self, policy: StepwisePolicy, other: Growing) -> Growing:
        """These sequences, then the others."""
        theirs = {**other._own(), "row": other.row + self.rows}
        own = {name: torch.cat([x, theirs[name]]) for name, x in self._own().items()}
        state = join_states(policy, (self.state, other.state))
        return dataclasses.replace(self, **own, state=state, rows=self.rows + other.rows)

    def append(self, policy: StepwisePolicy, token: Tensor, active: Tensor, temperature: float) -> Growing:
        """The sequences with a token more where ``active`` ``(R,)``; the others wait; temperature 0 counts as 1."""
        at = self.length.clamp(max=self.tokens.shape[1] - 1).unsqueeze(1)
        lp = (self.logits.float() / (temperature or 1.0)).log_softmax(-1).gather(1, token.unsqueeze(1))
        here = active.unsqueeze(1)
        length = self.length + active
        ended = active & ((token == policy.eos) | (length == self.tokens.shape[1]))
        grown = dataclasses.replace(
            self,
            tokens=self.tokens.scatter(1, at, torch.where(here, token.unsqueeze(1), self.tokens.gather(1, at))),
            log_prob=self.log_prob.scatter(1, at, torch.where(here, lp, self.log_prob.gather(1, at))),
            length=length,
            done=self.done | ended,
        )
        return grown._advance(policy, token, active & ~grown.done)

    def _advance(self, policy: StepwisePolicy, token: Tensor, goes: Tensor) -> Growing:
        """Advance the policy where ``goes``; it never sees a sequence that is done, which may be too long for it."""
        rows = goes.nonzero().squeeze(1)
        if len(rows) == 0:
            return self
        where = self.row[rows]
        as_is = len(rows) == self.rows and bool((where == torch.arange(self.rows, device=where.device)).all())
        state = self.state if as_is else policy.select(self.state, where)
        logits, state = policy.advance(state, token[rows])
        waits = (~goes & ~self.done).nonzero().squeeze(1)
        if len(waits):
            state = join_states(policy, (state, policy.select(self.state, self.row[waits])))
        both = torch.cat([rows, waits])
        row = torch.zeros_like(self.row).index_copy(0, both, torch.arange(len(both), device=both.device))
        logits = self.logits.index_copy(0, rows, logits)
        return dataclasses.replace(self, logits=logits, row=row, state=state, rows=len(both))

    def extend(
        self,
        policy: StepwisePolicy,
        temperature: float,
        generator: torch.Generator | None,
        boundary: Tensor | None = None,
    ) -> Growing:
        """Draw until every sequence is done or, with ``boundary``, has appended one of its symbols.

        Args:
            policy: what draws.
            temperature: of the draws; 0 takes the most probable token.
            generator: of the draws.
            boundary: symbols ``(K,)`` after which a sequence waits for the others.
        """
        grown, waits = self, torch.zeros_like(self.done)
        while bool((active := ~grown.done & ~waits).any()):
            token, _ = draw_tokens(grown.logits, temperature, generator)
            grown = grown.append(policy, token, active, temperature)
            if boundary is not None:
                waits = waits | active & torch.isin(token, boundary)
        return grown

    def batch(self, context: Any) -> TokenBatch:
        """The sequences as they are."""
        mask = torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.length.unsqueeze(1)
        return TokenBatch(self.tokens, mask, self.group, context, log_prob_old=self.log_prob)

    def _own(self) -> dict[str, Tensor]:
        """All tensors that are not the policy's."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("state", "rows")}

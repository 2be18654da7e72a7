"""A beam of sampled steps that keeps what a value function thinks best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.errors import InputError
from core.sequence.batch import TokenBatch
from core.sequence.clusters import repeated
from core.sequence.policy import SequencePolicy, StepwisePolicy
from core.sequence.search.growing import Growing
from core.sequence.search.ranking import Score, ranked

Value = Callable[[Any, TokenBatch], Tensor]
"""Of a policy and unfinished sequences: how well each ``(B,)`` is expected to end."""


@torch.no_grad()
def state_value(policy: SequencePolicy, batch: TokenBatch) -> Tensor:
    """``(B,)`` the policy's own value of the state each sequence has reached; before its end symbol, if it has one.

    The policy's ``score`` gives the value before each token, so unfinished sequences are read with one token more. No
    loss trains the value after the last token of a sequence that the length has cut: judge those by their score.
    """
    length = batch.length
    wider = batch.pad_to(batch.tokens.shape[1] + 1)
    last = wider.tokens.gather(1, (length - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    at = torch.where((length > 0) & (last == policy.eos), length - 1, length).unsqueeze(1)
    columns = torch.arange(wider.tokens.shape[1], device=length.device)
    bare = TokenBatch(wider.tokens, columns <= at, wider.group, wider.context)
    return policy.score(bare, need=frozenset({"value"})).need("value").gather(1, at).squeeze(1)


@torch.no_grad()
def value_beam(
    policy: StepwisePolicy,
    context: Any,
    width: int,
    expand: int,
    max_length: int,
    value: Value = state_value,
    boundary: Tensor | None = None,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    score: Score | None = None,
) -> TokenBatch:
    """Keep ``width`` unfinished sequences a prompt, go on from each by ``expand`` draws, keep the best by their values.

    Width 1 and expand 1 is sampling. Sequences that are equal count once as long as there are others.

    Args:
        policy: what draws.
        context: of P prompts.
        width: sequences a prompt that are kept.
        expand: draws from each.
        max_length: tokens at most.
        value: of a sequence so far, higher is better; also of one that has ended.
        boundary: symbols ``(K,)`` that end a step, such as the space between words; None makes each token a step.
        temperature: of the draws.
        generator: of the draws.
        score: of sequences that are done, by their end symbol or by their length, on the scale of ``value`` and in its
            place. It is called on unfinished ones too, and what it says of them is not used. None: ``value`` judges.

    Returns:
        ``P * width`` sequences, best first, ``reward`` their values or scores; one that is not a number counts as -inf.

    Raises:
        InputError: width, expand or max_length < 1.
    """
    if min(width, expand, max_length) < 1:
        raise InputError(f"value_beam: width, expand, max_length are {width}, {expand}, {max_length}; at least 1 each")
    grown = Growing.begin(policy, context, max_length)
    prompts = len(grown.group)
    grown = grown.take(policy, grown.group.repeat_interleave(width))
    if boundary is None:
        boundary = torch.arange(grown.logits.shape[1], device=grown.group.device)
    first = torch.arange(prompts, device=grown.group.device).unsqueeze(1) * (width * expand)
    found = torch.zeros_like(grown.length, dtype=torch.float32)
    while not bool(grown.done.all()):
        rows = torch.arange(len(grown.group), device=grown.group.device).repeat_interleave(expand)
        grown = grown.take(policy, rows).extend(policy, temperature, generator, boundary)
        batch = grown.batch(context)
        values = value(policy, batch).float()
        if score is not None:
            values = torch.where(grown.done, score(batch).float(), values)
        values = torch.where(values.isnan(), -torch.inf, values)
        # A repetition must come after a sequence whose value is -inf.
        lowest = torch.finfo(values.dtype).min
        key = torch.where(repeated(batch), -torch.inf, values.clamp(min=lowest)).view(prompts, width * expand)
        kept = (first + key.topk(width, dim=1).indices).flatten()
        grown, found = grown.take(policy, kept), values[kept]
    return ranked(grown.batch(context), found)

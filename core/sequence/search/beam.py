"""Beam search over all prompts at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.errors import InputError
from core.sequence.batch import PAD, TokenBatch, count_prompts
from core.sequence.policy import StepwisePolicy

Constraint = Callable[[Tensor, Tensor], Tensor]
"""Of tokens so far ``(B, t)`` and the prompts ``(B,)`` they answer: which symbols may follow, ``(B, V)`` bool."""


@torch.no_grad()
def beam(
    policy: StepwisePolicy,
    context: Any,
    width: int,
    max_length: int,
    length_penalty: float = 0.6,
    constraint: Constraint | None = None,
) -> TokenBatch:
    """The ``width`` best sequences a prompt by sum of log-probabilities / length^length_penalty, best first.

    Wu et al. 2016, arXiv:1609.08144, section 7, with the plain power of the length (the end symbol counted). A sequence
    that has ended keeps its place among the ``width`` until as many are better; so width 1 is ``greedy``, and a width
    of all sequences finds the best of all. The policy's state is reordered, never computed again.

    Args:
        policy: what scores the next tokens.
        context: of P prompts.
        width: sequences a prompt that are kept.
        max_length: tokens at most; what has not ended by then is cut and scored as it is.
        length_penalty: 0 takes the plain sum, which prefers short sequences; 1 the mean.
        constraint: what may follow, such as a grammar; its answer for sequences that have ended is not used.

    Returns:
        ``P * width`` sequences, prompt after prompt, with ``reward`` their scores and ``log_prob_old`` without the
        constraint. Where a prompt has fewer sequences than ``width`` (a constraint that leaves a dead end, logits that
        are not finite) the last rows have no token and reward -inf.

    Raises:
        InputError: width or max_length < 1; a constraint's mask has another shape.
    """
    if width < 1 or max_length < 1:
        raise InputError(f"beam: width is {width} and max_length {max_length}; both must be at least 1")
    prompts, device = count_prompts(context)
    group = torch.arange(prompts, device=device)
    logits, state = policy.start(context, group)
    tokens = group.new_zeros(prompts, 0)
    log_probs = logits.new_zeros(prompts, 0, dtype=torch.float32)
    total = logits.new_zeros(prompts, dtype=torch.float32)
    length, ended = torch.zeros_like(group), torch.zeros_like(group, dtype=torch.bool)
    for t in range(max_length):
        # Unless told to keep it, nan_to_num makes -inf a finite number, and what may not follow would have a score.
        log_prob = logits.float().log_softmax(-1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        allowed = None if constraint is None else _allowed(constraint, tokens, group, log_prob)
        row, token, score = _best(log_prob, allowed, total, length, ended, prompts, width, length_penalty)
        gone = torch.isneginf(score)
        was_ended = ended[row]
        step = torch.where(was_ended | gone, 0.0, log_prob[row, token])
        token = torch.where(was_ended | gone, PAD, token)
        tokens = torch.cat([tokens[row], token.unsqueeze(1)], 1)
        log_probs = torch.cat([log_probs[row], step.unsqueeze(1)], 1)
        total = torch.where(gone, -torch.inf, total[row] + step)
        length = torch.where(was_ended | gone, length[row], length[row] + 1)
        ended = was_ended | gone | (token == policy.eos) & ~was_ended
        group = group[row]
        # Asking a GPU whether all have ended makes the CPU wait for it.
        if t + 1 == max_length or ((t % 8 == 7 or not ended.is_cuda) and bool(ended.all())):
            break
        logits, state = policy.advance(policy.select(state, row), token)
    score = total / length.clamp(min=1).float() ** length_penalty
    length = torch.where(torch.isneginf(total), 0, length)
    mask = torch.arange(tokens.shape[1], device=device) < length.unsqueeze(1)
    tokens = torch.where(mask, tokens, PAD)
    return TokenBatch(tokens, mask, group, context, reward=score, log_prob_old=torch.where(mask, log_probs, 0.0))


def _allowed(constraint: Constraint, tokens: Tensor, group: Tensor, log_prob: Tensor) -> Tensor:
    """The constraint's answer, checked."""
    allowed = constraint(tokens, group)
    if allowed.shape != log_prob.shape or allowed.dtype != torch.bool:
        raise InputError(
            f"constraint: returned {allowed.dtype} of shape {tuple(allowed.shape)}; "
            f"a bool mask of shape {tuple(log_prob.shape)} is needed"
        )
    return allowed


def _best(
    log_prob: Tensor,
    allowed: Tensor | None,
    total: Tensor,
    length: Tensor,
    ended: Tensor,
    prompts: int,
    width: int,
    penalty: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, tokens and scores ``(P * width,)`` of the best continuations of each prompt, best first.

    A sequence that has ended has one continuation, itself.
    """
    vocabulary = log_prob.shape[1]
    held = len(log_prob) // max(prompts, 1)
    step = log_prob if allowed is None else torch.where(allowed, log_prob, -torch.inf)
    itself = torch.full_like(step[:1], -torch.inf)
    itself[:, PAD] = 0.0
    step = torch.where(ended.unsqueeze(1), itself, step)
    lengths = torch.where(ended, length, length + 1).clamp(min=1).float()
    scores = ((total.unsqueeze(1) + step) / lengths.unsqueeze(1) ** penalty).view(prompts, held * vocabulary)
    if scores.shape[1] < width:
        scores = torch.nn.functional.pad(scores, (0, width - scores.shape[1]), value=-torch.inf)
    score, index = scores.topk(width, dim=1)
    index = index.clamp(max=held * vocabulary - 1)
    first = torch.arange(prompts, device=log_prob.device).unsqueeze(1) * held
    return (first + index // vocabulary).flatten(), (index % vocabulary).flatten(), score.flatten()

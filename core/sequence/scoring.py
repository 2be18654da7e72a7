"""Scores of many sequences by a policy: in parts where memory is short, with or without dropout and a graph."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from core.errors import InputError
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.policy import NOTHING, SequencePolicy

P = TypeVar("P", bound=nn.Module)
Score = Callable[[TokenBatch, int], TokenScores]
"""Scores of a part of a batch, given also the number of the part."""


def frozen(policy: P) -> P:
    """A copy of a policy that no training changes: dropout off, no gradients."""
    return copy.deepcopy(policy).eval().requires_grad_(False)


@contextmanager
def acting(policy: Any) -> Iterator[None]:
    """In this block there is no graph, and a policy that is a module has its dropout off."""
    training = [module for module in policy.modules() if module.training] if isinstance(policy, nn.Module) else []
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def learning(policy: nn.Module, seed: int, dropout: bool) -> Iterator[None]:
    """In this block a policy is in the mode in which its gradient is taken; afterwards it is in evaluation mode.

    Args:
        policy: in evaluation mode.
        seed: of what is random in it.
        dropout: whether it is on.
    """
    # cuDNN has no backward pass through a recurrent layer in evaluation mode; what dropout it has is set to 0 instead.
    recurrent = [] if dropout else [m for m in policy.modules() if isinstance(m, nn.RNNBase)]
    rates = [m.dropout for m in recurrent]
    for module in recurrent:
        module.training, module.dropout = True, 0.0
    if dropout:
        policy.train()
    try:
        with seeded(seed, device_of(policy)):
            yield
    finally:
        for module, rate in zip(recurrent, rates, strict=True):
            module.training, module.dropout = False, rate
        if dropout:
            policy.eval()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """In this block PyTorch's own generators, from which dropout draws, begin with the seed."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield


def device_of(policy: nn.Module) -> torch.device:
    """Where the parameters of a policy are."""
    first = next(policy.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def score_all(
    policy: SequencePolicy,
    batch: TokenBatch,
    temperature: float = 1.0,
    need: frozenset[str] = NOTHING,
    rows: int | None = None,
) -> TokenScores:
    """Scores without a graph and with dropout off, ``rows`` sequences at a time (None: all at once)."""
    with acting(policy):
        return _in_parts(lambda part, _: policy.score(part, temperature, need), batch, rows)


def backward_in_parts(score: Score, batch: TokenBatch, loss: Callable[[TokenScores], Tensor], rows: int) -> None:
    """Add the gradient of a loss of all sequences to the parameters, with the graph of ``rows`` of them at a time.

    The scores are computed without a graph, the loss is differentiated by them, and each part is scored again with its
    graph to pass that derivative on (Gao et al. 2021, arXiv 2101.06983). So the gradient is that of the whole batch
    whatever the loss does across its rows, for one more forward pass.

    Args:
        score: gives the same result for the same part each time.
        batch: the sequences.
        loss: a scalar of the scores of all.
        rows: sequences a part.
    """
    with torch.no_grad():
        found = _in_parts(score, batch, rows)
    leaves = {
        f.name: x.requires_grad_()
        for f in dataclasses.fields(found)
        if (x := getattr(found, f.name)) is not None and x.is_floating_point()
    }
    value = loss(found)
    if value.requires_grad:
        value.backward()
    derivatives = {name: x.grad for name, x in leaves.items() if x.grad is not None}
    if not derivatives:
        return
    for number, part in enumerate(_parts(batch, rows)):
        scores = score(batch[part], number)
        pairs = [(getattr(scores, name), d[part]) for name, d in derivatives.items()]
        pairs = [(x, d) for x, d in pairs if x.requires_grad]
        torch.autograd.backward([x for x, _ in pairs], [d for _, d in pairs])


def shares_parameters(policy: nn.Module, reference: nn.Module) -> bool:
    """Whether training the one would change the other."""
    mine = {x.data_ptr() for x in policy.parameters()}
    return any(x.data_ptr() in mine for x in reference.parameters())


def check_frozen(policy: nn.Module, reference: Any) -> None:
    """Refuse a reference that the training of the policy would change.

    Raises:
        InputError: it shares parameters with the policy, or its own ask for a gradient.
    """
    if not isinstance(reference, nn.Module):
        return
    if shares_parameters(policy, reference):
        raise InputError("reference: shares parameters with the policy; allowed: core.sequence.scoring.frozen(policy)")
    if any(x.requires_grad for x in reference.parameters()):
        raise InputError("reference: its parameters ask for a gradient; allowed: core.sequence.scoring.frozen(policy)")


def _parts(batch: TokenBatch, rows: int) -> tuple[Tensor, ...]:
    """Row numbers, those of a prompt together so that it is encoded in as few parts as possible."""
    return batch.group.argsort(stable=True).split(rows)


def _in_parts(score: Score, batch: TokenBatch, rows: int | None) -> TokenScores:
    if rows is None or rows >= len(batch):
        return score(batch, 0)
    parts = _parts(batch, rows)
    found = [score(batch[part], number) for number, part in enumerate(parts)]
    back = torch.cat(parts).argsort()
    names = [f.name for f in dataclasses.fields(TokenScores) if getattr(found[0], f.name) is not None]
    return TokenScores(**{name: torch.cat([getattr(scores, name) for scores in found])[back] for name in names})

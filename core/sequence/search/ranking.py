"""Scores of sequences against the others of their prompt, and putting the best of each prompt first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core.errors import InputError
from core.sequence.batch import TokenBatch
from core.sequence.clusters import Cluster, cluster_ids
from core.sequence.edit_distance import edit_distances
from core.sequence.reductions import group_sum

Score = Callable[[TokenBatch], Tensor]
"""Gives each sequence of a batch a number ``(B,)``; higher is better."""

PAIRS_AT_ONCE = 2**17
"""Bounds the memory of the distances: a pair takes a few int32 a token."""


def ranked(batch: TokenBatch, score: Tensor) -> TokenBatch:
    """The batch with ``reward = score`` ``(B,)``, its sequences sorted by prompt and then with the best first.

    A score that is not a number counts as -inf.
    """
    score = torch.where(torch.isnan(score), -torch.inf, score.float())
    order = score.argsort(descending=True, stable=True)
    order = order[batch.group[order].argsort(stable=True)]
    context = batch.context
    rows = batch.with_(context=None)[order]
    return rows.with_(group=batch.group[order], context=context, reward=score[order])


def best(batch: TokenBatch) -> TokenBatch:
    """Of a ranked batch, the first sequence of each prompt."""
    first = torch.ones_like(batch.group, dtype=torch.bool)
    first[1:] = batch.group[1:] != batch.group[:-1]
    return batch[first]


def mean_log_prob(batch: TokenBatch) -> Tensor:
    """``(B,)`` mean of ``log_prob_old`` over the sampled tokens; -inf where there is none."""
    count = batch.mask.sum(1)
    total = torch.where(batch.mask, batch.need("log_prob_old"), 0.0).sum(1)
    return torch.where(count > 0, total / count.clamp(min=1), -torch.inf)


def members(prompt: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """``(P, G)`` rows of each prompt's sequences, G of the prompt that has most, and which of them are there.

    Args:
        prompt: ``(B,)`` int64 in 0..P-1.
        counts: ``(P,)`` sequences of each.
    """
    order = prompt.argsort(stable=True)
    columns = torch.arange(int(counts.max()), device=prompt.device)
    there = columns < counts.unsqueeze(1)
    starts = counts.cumsum(0) - counts
    index = (starts.unsqueeze(1) + columns).clamp(max=len(prompt) - 1)
    return torch.where(there, order[index], order[starts].unsqueeze(1)), there


@torch.no_grad()
def mbr(batch: TokenBatch, weight: Tensor | None = None) -> Tensor:
    """``(B,)`` expected edit distance between a sequence and the others of its prompt: its Bayes risk.

    risk_i = sum_j w_j ED(o_i, o_j) / sum_j w_j. The sequence of least risk is the decision for an error rate (Goel and
    Byrne 2000, Computer Speech & Language 14). Needs no label. The end symbol takes part as any other, so a sequence
    that was cut is one further away from those that ended. Rows without a token take no part; their risk is infinite.

    Args:
        batch: several sequences a prompt.
        weight: ``(B,)`` of the sequences; None counts all alike, which is right for samples. A list of distinct
            sequences, as a beam finds, wants their probabilities.
    """
    length = batch.length
    if not len(batch):
        return length.float()
    _, prompt, counts = torch.unique(batch.group, return_inverse=True, return_counts=True)
    index, there = members(prompt, counts)
    weight = torch.ones_like(length, dtype=torch.float32) if weight is None else weight.float()
    weight = torch.where(length > 0, weight, 0.0)
    i, j = torch.triu_indices(index.shape[1], index.shape[1], 1, device=index.device)
    pair = (there[:, i] & there[:, j]).flatten()
    left, right = index[:, i].flatten()[pair], index[:, j].flatten()[pair]
    risk = torch.zeros_like(weight)
    for a, b in zip(left.split(PAIRS_AT_ONCE), right.split(PAIRS_AT_ONCE), strict=True):
        distance = edit_distances(batch.tokens[a], batch.valid[a], batch.tokens[b], length[b]).float()
        risk = risk.index_add(0, a, weight[b] * distance).index_add(0, b, weight[a] * distance)
    total = torch.zeros_like(counts, dtype=weight.dtype).index_add(0, prompt, weight)[prompt]
    return torch.where(length > 0, risk / total.clamp(min=torch.finfo(total.dtype).tiny), torch.inf)


def majority_vote(batch: TokenBatch, cluster: Cluster = "exact") -> Tensor:
    """``(B,)`` share of a prompt's sequences that say the same as this one (self-consistency).

    Wang et al. 2023, arXiv:2203.11171. Rows without a token have no vote and share 0.

    Args:
        batch: several sequences a prompt.
        cluster: which sequences say the same, such as those with the same final answer.

    Raises:
        InputError: a cluster function's result has another shape.
    """
    votes = batch.valid.any(1).float()
    alike = group_sum(votes, cluster_ids(batch, cluster))
    return votes * alike / group_sum(votes, batch.group).clamp(min=1)


def pass_at_k(passed: Tensor, drawn: int, k: int) -> Tensor:
    """Unbiased estimate of the chance that one of k samples passes, 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021, arXiv:2107.03374.

    Args:
        passed: ``(...)`` c, how many of the drawn samples of a prompt passed.
        drawn: n.
        k: at most n.

    Raises:
        InputError: k is not in 1..n, or a count not in 0..n.
    """
    if not 1 <= k <= drawn:
        raise InputError(f"k: is {k}; allowed is 1 to the {drawn} samples that were drawn")
    if bool(((passed < 0) | (passed > drawn)).any()):
        raise InputError(f"passed: holds {passed.min()} to {passed.max()}; allowed is 0 to the {drawn} drawn")
    failed = drawn - passed.double()
    # C(n - c, k) / C(n, k) is a product of k ratios, none above 1.
    steps = torch.arange(k, dtype=torch.float64, device=passed.device)
    return 1 - ((failed.unsqueeze(-1) - steps).clamp(min=0) / (drawn - steps)).prod(-1)

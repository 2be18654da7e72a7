"""Which sequences of a batch are compared with which."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from core.errors import InputError
from core.sequence.batch import TokenBatch
from core.sequence.reductions import group_max, per_row


def ordered_pairs(reward: Tensor, group: Tensor | None = None, *, ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """All comparisons that rewards allow: rows of the winners, rows of the losers, and weights, ``(N,)`` each.

    Args:
        reward: ``(B,)``; -inf, as of the rows of a search that hold no sequence, is compared with nothing.
        group: ``(B,)``, rows of different groups are not compared; all rows are where None.
        ties: whether rows of equal reward are compared too, both ways with weight 1/2.
    """
    # All ordered pairs of a group, group by group: memory goes with the sum of squared group sizes, not with B^2.
    group = torch.zeros_like(reward, dtype=torch.int64) if group is None else group
    order, size = group.argsort(stable=True), torch.bincount(group)
    mates = size[group]
    winner = torch.arange(len(reward), device=reward.device).repeat_interleave(mates)
    place = torch.arange(len(winner), device=reward.device) - (mates.cumsum(0) - mates)[winner]
    loser = order[(size.cumsum(0) - size)[group[winner]] + place]
    weight = (reward[winner] > reward[loser]).float()
    if ties:
        weight = weight + 0.5 * ((reward[winner] == reward[loser]) & (winner != loser))
    kept = (weight > 0) & (reward[loser] > -math.inf)
    return winner[kept], loser[kept], weight[kept]


def draw_pairs(
    batch: TokenBatch,
    loser: Literal["worst", "sample", "did"],
    generator: torch.Generator,
    weight: Tensor | None = None,
) -> TokenBatch:
    """One comparison for each group that allows one: a winner of reward 1 and a loser of reward 0, row after row.

    Args:
        batch: several sequences a group, with rewards.
        loser: ``worst`` compares the best of a group with its worst, ``sample`` with one drawn from those below it.
            ``did`` draws the winner evenly, so it stands for the policy that sampled the group, which must be the
            reference, and the loser with ``weight`` from the others; rewards are not read. Rows without a token of
            their own take no part.
        generator: of the draws, those among equals too.
        weight: ``(B,)`` for ``did``, from ``did_weights``.

    Raises:
        InputError: ``weight`` is lacking for ``did``, or another ``loser``.
    """
    if loser not in ("worst", "sample", "did") or (loser == "did" and weight is None):
        raise InputError(f"loser = {loser!r}: must be worst or sample, or did with weights")
    if not bool((there := batch.mask.any(1)).all()):
        batch, weight = batch[there], None if weight is None else weight[there]
    even = torch.zeros(len(batch), device=batch.group.device)
    reward = even if loser == "did" else per_row(batch.need("reward"), batch.mask)
    won = _first(reward, batch.group, generator)
    if weight is not None and loser == "did":
        u = torch.rand(len(batch), generator=generator, device=generator.device).to(even.device)
        key = (weight.log() - (-u.log()).log()).index_fill(0, won, -math.inf)
    else:
        below = reward < group_max(reward, batch.group)
        key = (-reward if loser == "worst" else even).masked_fill(~below, -math.inf)
    lost = _first(key, batch.group, generator)
    pairs = torch.stack((won, lost), 1)[key[lost] > -math.inf]
    return batch[pairs.flatten()].with_(reward=torch.tensor([1.0, 0.0], device=even.device).repeat(len(pairs)))


def _first(key: Tensor, group: Tensor, generator: torch.Generator) -> Tensor:
    """``(P,)`` row of the largest key in each group, drawn among equals, in the order of the groups' numbers."""
    order = torch.randperm(len(key), generator=generator, device=generator.device).to(key.device)
    order = order[key[order].argsort(descending=True, stable=True)]
    order = order[group[order].argsort(stable=True)]
    number = group[order]
    leads = torch.ones_like(number, dtype=torch.bool)
    leads[1:] = number[1:] != number[:-1]
    return order[leads]

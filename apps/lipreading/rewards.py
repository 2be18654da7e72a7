"""What a spelled transcript earns: per symbol by edit distances of its prefixes, or as a whole."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from core.errors import InputError
from core.sequence.advantages import SemanticShare, Voting, random_reward
from core.sequence.batch import TokenBatch
from core.sequence.edit_distance import edit_distances, prefix_edit_distances
from simulators.lips import alphabet

Kind = Literal["dense", "hit", "cer", "wer", "exact", "share", "voting", "random"]
"""dense: edits that a symbol takes off the distance to the reference; hit: 1 where symbol t is the reference's t-th;
cer, wer: 1 less the error rate of characters or words; exact: 1 for the reference itself. The first two are over n.
Without labels, from the transcripts of a clip alone: share of them that say the same, voting: 1 for the most frequent,
random: 0 or 1, which tells nothing.
"""
UNLABELLED = ("share", "voting", "random")


def reward(kind: Kind, batch: TokenBatch, reference: TokenBatch) -> Tensor:
    """The reward of each sequence ``(B,)``, or of each symbol ``(B, T)``.

    A symbol's dense reward is (D_{t-1} - D_t) / n, with D_t the distance between the first t symbols and the reference
    of n characters. Its sum is 1 - CER; that potential-based form leaves the best transcript the best (Luo et al. 2020,
    arXiv 2003.03983). The end symbol earns nothing: stopping early costs what it forgoes.

    Args:
        kind: see ``Kind``.
        batch: sampled transcripts.
        reference: ``(P, L + 1)`` transcripts of the prompts, the end symbol included; ``batch.group`` points into it.

    Raises:
        InputError: an unknown kind, or a reference of no characters.
    """
    if kind not in get_args(Kind):
        raise InputError(f"reward: {kind} is unknown; allowed: {', '.join(get_args(Kind))}")
    if kind in UNLABELLED:
        return unlabelled(kind, batch)
    n = characters(reference)
    truth, length = reference.tokens[batch.group], n[batch.group]
    if kind == "dense":
        distances = prefix_edit_distances(batch.tokens, spelled(batch), truth, length)
        return (torch.cat([length[:, None], distances[:, :-1]], 1) - distances) / length[:, None]
    if kind == "hit":
        return hits(batch, truth) / length[:, None]
    if kind == "cer":
        return 1 - edit_distances(batch.tokens, spelled(batch), truth, length) / length
    if kind == "exact":
        return (edit_distances(batch.tokens, spelled(batch), truth, length) == 0).float()
    return 1 - word_error_rate(batch, reference)


def unlabelled(kind: Kind, batch: TokenBatch) -> Tensor:
    """``(B,)`` rewards that no reference is needed for (Zhang et al. 2025, EMPO, arXiv 2504.05812)."""
    if kind == "share":
        return SemanticShare()(batch)
    if kind == "voting":
        return Voting()(batch)
    # By PyTorch's own generator, which the trainer seeds anew for each update: a coin that hangs on the transcript,
    # such as a hash of it, could be learnt.
    return random_reward(batch)


def characters(reference: TokenBatch) -> Tensor:
    """``(P,)`` number of characters of each reference.

    Raises:
        InputError: one has none.
    """
    n = spelled(reference).sum(1)
    if not bool((n > 0).all()):
        raise InputError(f"reference {int((n == 0).nonzero()[0])}: has no characters, its error rate is not defined")
    return n


def spelled(batch: TokenBatch) -> Tensor:
    """``(B, T)`` bool, the characters: neither padding nor start nor end symbol."""
    return batch.valid & (batch.tokens > alphabet.EOS)


def hits(batch: TokenBatch, truth: Tensor) -> Tensor:
    """``(B, T)`` 1.0 where a character is the one at the same place of the reference."""
    width = batch.tokens.shape[1]
    same = torch.zeros_like(batch.mask)
    shared = min(width, truth.shape[1])
    same[:, :shared] = batch.tokens[:, :shared] == truth[:, :shared]
    return (same & spelled(batch)).float()


def words(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Words as numbers ``(B, W)`` int64 and which of them there are ``(B, W)``: equal words have equal numbers.

    A word is what stands between spaces; the number is a hash of 63 bits, so that nothing leaves the device.
    """
    space, keep = alphabet.EOS + 1, spelled(batch)
    letter = keep & (batch.tokens != space)
    # Symbols that are skipped part no word: a word begins where the last character before it is a space.
    at = torch.arange(batch.tokens.shape[1], device=keep.device)
    last = torch.where(keep, at, -1).cummax(1).values
    before = torch.nn.functional.pad(last, (1, 0), value=-1)[:, :-1]
    begins = letter & ((before < 0) | (batch.tokens.gather(1, before.clamp(min=0)) == space))
    place = begins.cumsum(1)
    number = torch.zeros(len(batch), int(place.max()) + 1 if place.numel() else 1, dtype=torch.long, device=keep.device)
    position = letter.long().cumsum(1)
    start = torch.zeros_like(number).scatter_reduce(1, place, position, "amin", include_self=False)
    within = position - start.gather(1, place)
    power = _powers(batch.tokens.shape[1] + 1, keep.device)[within.clamp(min=0)]
    number.scatter_add_(1, place, torch.where(letter, batch.tokens * power, 0))
    there = torch.zeros_like(number).scatter_add_(1, place, begins.long()) > 0
    return number[:, 1:], there[:, 1:]


def word_edits(batch: TokenBatch, reference: TokenBatch) -> tuple[Tensor, Tensor]:
    """``(B,)`` edits between the words of a transcript and its reference, and the words of the reference."""
    number, there = words(batch)
    truth, known = words(reference)
    count = known.sum(1)
    return edit_distances(number, there, truth[batch.group], count[batch.group]), count[batch.group]


def word_error_rate(batch: TokenBatch, reference: TokenBatch) -> Tensor:
    """``(B,)`` edits of words over the number of words of the reference."""
    edits, count = word_edits(batch, reference)
    return edits / count


def _powers(n: int, device: torch.device) -> Tensor:
    """Powers of an odd number modulo 2^64, the weights of a polynomial hash."""
    found = torch.ones(n, dtype=torch.long)
    for i in range(1, n):
        found[i] = found[i - 1] * 6364136223846793005
    return found.to(device)

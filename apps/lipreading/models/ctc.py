"""Sequences under a connectionist temporal classification: their probability, draws of them, and a search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from core.sequence.batch import PAD
from core.simulation import tree
from simulators.lips.alphabet import EOS

BLANK = PAD
"""Symbol of frames that say nothing; no transcript holds padding, so its number is free."""
_PRIME = 1_000_003


def sequence_log_prob(log_probs: Tensor, frames: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
    """``(B,)`` log-probability of sequences, summed over all ways to spread them over the frames.

    Args:
        log_probs: ``(B, F, V)`` of the symbols of each frame.
        frames: ``(B,)`` int64, frames of each clip.
        tokens: ``(B, T)`` int64; end symbols do not count.
        valid: ``(B, T)`` bool, the tokens before the padding.
    """
    length = (valid & (tokens != EOS)).sum(1)
    return -functional.ctc_loss(log_probs.transpose(0, 1), tokens, frames, length, BLANK, reduction="none")


def collapse(path: Tensor, frames: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
    """Tokens ``(B, T)`` and mask that symbols of frames ``(B, F)`` spell: runs count once, blanks not at all.

    An end symbol follows each that is shorter than ``max_length``; longer ones are cut.
    """
    before = functional.pad(path, (1, 0), value=BLANK)[:, :-1]
    inside = torch.arange(path.shape[1], device=path.device) < frames.unsqueeze(1)
    spoken = (path != BLANK) & (path != before) & inside
    # What is not kept is written to a column that is cut off afterwards.
    column = torch.where(spoken, spoken.cumsum(1) - 1, max_length).clamp(max=max_length)
    tokens = path.new_full((len(path), max_length + 1), PAD).scatter(1, column, path)[:, :max_length]
    return ended(tokens, spoken.sum(1))


def ended(tokens: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens ``(B, T)`` with an end symbol after each that is shorter than T, and the mask."""
    place = torch.arange(tokens.shape[1], device=tokens.device)
    at = length.unsqueeze(1)
    tokens = torch.where(place < at, tokens, torch.where(place == at, EOS, PAD))
    return tokens, place <= at


@dataclass(frozen=True)
class Prefixes:
    """W beginnings of a transcript for each of P clips.

    Attributes:
        tokens: ``(P, W, T)`` without end symbols.
        length: ``(P, W)``.
        last: ``(P, W)`` last symbol, ``BLANK`` of an empty one.
        seen: ``(P, W)`` hash of the symbols.
        blank: ``(P, W)`` log-probability of all paths that spell it and end in a blank.
        spoken: ``(P, W)`` of those that end in its last symbol.
    """

    tokens: Tensor
    length: Tensor
    last: Tensor
    seen: Tensor
    blank: Tensor
    spoken: Tensor

    @property
    def total(self) -> Tensor:
        """``(P, W)`` log-probability of all paths that spell it."""
        return torch.logaddexp(self.blank, self.spoken)


def prefix_beam(log_probs: Tensor, frames: Tensor, width: int, max_length: int) -> Prefixes:
    """The most probable sequences of P clips by a prefix beam search, best first, all clips at once.

    After each frame the ``width`` most probable prefixes are kept. One that is reached in two ways is one prefix: it is
    recognised by its hash.

    Args:
        log_probs: ``(P, F, V)``.
        frames: ``(P,)`` int64.
        width: W.
        max_length: T, symbols of a sequence at most.
    """
    clips, device = len(log_probs), log_probs.device
    tokens = torch.full((clips, width, max_length), PAD, device=device)
    zeros = tokens.new_zeros(clips, width)
    never = log_probs.new_full((clips, width), -torch.inf)
    # Only the first, empty prefix exists; the others get hashes that nothing is extended to.
    seen = -torch.arange(width, device=device).expand(clips, width) * _PRIME
    beam = Prefixes(tokens, zeros, zeros, seen, never.index_fill(1, zeros[0, :1], 0.0), never)
    for t in range(log_probs.shape[1]):
        beam = tree.where(t < frames, _after(beam, log_probs[:, t]), beam)
    order = beam.total.argsort(1, descending=True)
    return tree.map_tensors(lambda x: _rows(x, order), beam)


def _after(beam: Prefixes, frame: Tensor) -> Prefixes:
    """The best prefixes after one more frame, of log-probabilities ``(P, V)``."""
    width, most, v = *beam.tokens.shape[1:], frame.shape[1]
    symbol = torch.arange(v, device=frame.device)
    stay_blank = beam.total + frame[:, BLANK, None]
    stay_spoken = beam.spoken + frame.gather(1, beam.last)
    # The last symbol again is a new one only after a blank.
    before = torch.where(symbol == beam.last.unsqueeze(-1), beam.blank.unsqueeze(-1), beam.total.unsqueeze(-1))
    full = (beam.length == most).unsqueeze(-1)
    longer = (before + frame.unsqueeze(1)).masked_fill((symbol == BLANK) | full, -torch.inf)
    reached = beam.seen.unsqueeze(-1) * _PRIME + symbol + 1
    same = reached.unsqueeze(-1) == beam.seen[:, None, None, :]
    joins = torch.where(same, longer.unsqueeze(-1), -torch.inf).flatten(1, 2).amax(1)
    stay_spoken = torch.logaddexp(stay_spoken, joins)
    longer = longer.masked_fill(same.any(-1), -torch.inf).flatten(1)
    best = torch.cat((torch.logaddexp(stay_blank, stay_spoken), longer), 1).topk(width, 1).indices
    grows, candidate = best >= width, (best - width).clamp(min=0)
    parent, added = torch.where(grows, candidate // v, best), candidate % v
    old: Prefixes = tree.map_tensors(lambda x: _rows(x, parent), beam)
    writes = grows.unsqueeze(-1) & (torch.arange(most, device=frame.device) == old.length.unsqueeze(-1))
    return Prefixes(
        torch.where(writes, added.unsqueeze(-1), old.tokens),
        old.length + grows,
        torch.where(grows, added, old.last),
        torch.where(grows, old.seen * _PRIME + added + 1, old.seen),
        torch.where(grows, -torch.inf, stay_blank.gather(1, parent)),
        torch.where(grows, longer.gather(1, candidate), stay_spoken.gather(1, parent)),
    )


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` ``(P, W)`` of ``x`` ``(P, W, ...)``."""
    return x.take_along_dim(tree.expand_mask(index, x), 1)

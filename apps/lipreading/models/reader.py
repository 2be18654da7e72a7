"""What all lip-reading models share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from apps.lipreading.clips import Clips
from core.errors import InputError
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.policy import NOTHING
from core.simulation import tree
from simulators.lips import alphabet

Memory = TypeVar("Memory")


class LipReader(nn.Module):
    """A distribution over the symbols of a transcript given a clip; a ``core.sequence.policy.SequencePolicy``.

    The context of its batches is a ``Clips``. Dropout acts in ``score`` alone, and only in training mode; sampling and
    search use the model as it is in evaluation mode.

    Attributes:
        settings: that it was built from.
        vocabulary: V, number of symbols.
    """

    eos: int = alphabet.EOS
    ctc: ClassVar[bool] = False
    """Whether it is trained by CTC, on the distributions of frames, and not by cross-entropy."""
    fields: ClassVar[frozenset[str]] = frozenset({"entropy", "logits", "hidden"})
    """What ``score`` can fill, besides ``value`` with a value head."""

    def __init__(self, settings: Any, vocabulary: int) -> None:
        super().__init__()
        self.settings, self.vocabulary = settings, vocabulary

    @property
    def parameter_count(self) -> int:
        """Number of trained numbers."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def score(
        self,
        batch: TokenBatch,
        temperature: float = 1.0,
        need: frozenset[str] = NOTHING,
        replace: Tensor | None = None,
    ) -> TokenScores:
        """One pass over the sequences, see ``SequencePolicy.score``.

        Args:
            batch: the sequences; its context is a ``Clips``.
            temperature: divides the logits.
            need: names of further fields that are to be filled.
            replace: ``(B, T)`` int64, symbols that the decoder reads in place of ``batch.tokens``, of which the
                log-probabilities are all the same (scheduled sampling).

        Raises:
            InputError: a field of ``need`` that this model does not have.
        """
        raise NotImplementedError

    def sample(
        self,
        context: Clips,
        n: int,
        max_length: int,
        temperature: float = 1.0,
        prefix: TokenBatch | None = None,
        generator: torch.Generator | None = None,
    ) -> TokenBatch:
        """Draw n transcripts a clip, see ``SequencePolicy.sample``."""
        raise NotImplementedError

    def attention(self, batch: TokenBatch) -> Tensor:
        """``(B, T, T_frames)`` weights of the clip's frames in each step, which sum to 1; without a graph.

        Raises:
            InputError: the model has no attention.
        """
        raise InputError(f"model {self.settings.name!r}: has no attention")

    def _check_need(self, need: frozenset[str], value: bool) -> None:
        absent = need - self.fields - ({"value"} if value else set())
        if absent:
            why = " (its settings have no value_head)" if "value" in absent else ""
            raise InputError(f"model {self.settings.name!r}: cannot fill TokenScores.{min(absent)}{why}")


class GRU(nn.GRU):
    """A GRU that can be differentiated in evaluation mode on a GPU too, for which cuDNN has no backward pass."""

    def forward(self, x: Any, hx: Tensor | None = None) -> Any:
        """See ``torch.nn.GRU``."""
        if self.training or not torch.is_grad_enabled():
            return super().forward(x, hx)
        rate, self.dropout, self.training = self.dropout, 0.0, True
        try:
            return super().forward(x, hx)
        finally:
            self.dropout, self.training = rate, False


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, afterwards each of its parts as it was."""
    were = [part for part in model.modules() if part.training]
    for part in were:
        part.training = False
    try:
        yield
    finally:
        for part in were:
            part.training = True


def arranged(memory: Memory, group: Tensor) -> tuple[Memory, int]:
    """A memory of P clips for sequences of the clips ``group`` ``(B,)``, and how many rows share each of its entries.

    It is copied only where the sequences of a clip do not stand together, or clips have different numbers of them.
    """
    clips = len(next(x for _, x in tree.named_tensors(memory)))
    each, rest = divmod(len(group), clips)
    if not rest and torch.equal(group, torch.arange(clips, device=group.device).repeat_interleave(each)):
        return memory, each
    return tree.map_tensors(lambda x: x.index_select(0, group), memory), 1


def previous(tokens: Tensor) -> Tensor:
    """``(B, T)`` the symbol before each of ``tokens`` ``(B, T)``, the start symbol before the first."""
    before = tokens.roll(1, 1)
    before[:, 0] = alphabet.SOS
    return before


def run_gru(gru: nn.GRU, x: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs ``(B, T, H)`` and final states of a batch-first GRU on clips that end at ``length`` ``(B,)``.

    What stands after an end is read in neither direction; the outputs there are 0.
    """
    ends = length.cpu()
    if bool((ends == x.shape[1]).all()):
        out: tuple[Tensor, Tensor] = gru(x)
        return out
    packed, last = gru(pack_padded_sequence(x, ends, batch_first=True, enforce_sorted=False))
    return pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])[0], last

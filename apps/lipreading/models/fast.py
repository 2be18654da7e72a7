"""A model whose attention feeds only upwards, so that all steps of a given sequence are scored at once.

The decoder's first GRU reads the previous symbols, its state asks the memory, and the second GRU reads both. With the
symbols given, nothing waits for the step before but the GRUs themselves: three fused calls score a sequence, and a
policy gradient needs no graph through its sampling loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from apps.lipreading.clips import Clips
from apps.lipreading.models.reader import GRU, LipReader, arranged, evaluating, previous, run_gru
from apps.lipreading.models.settings import FastSettings
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.policy import NOTHING, Stepwise, scores_of
from simulators.lips import alphabet

FRAME_GRID = (2, 3)
"""Rows and columns that the features of a frame are averaged to."""


@dataclass(frozen=True)
class Memory:
    """What the decoder sees of P clips, F steps each.

    Attributes:
        keys: ``(P, F, D)``; their products with the state of the first GRU, plus ``bias``, are the attention's logits.
        bias: ``(P, F)``, minus infinity after a clip's end.
        values: ``(P, F, M)`` what attention averages.
    """

    keys: Tensor
    bias: Tensor
    values: Tensor

    def attend(self, asked: Tensor) -> tuple[Tensor, Tensor]:
        """What is read ``(P, N, M)`` and its weights ``(P, N, F)`` for N states a clip, ``asked`` ``(P, N, D)``."""
        weights = torch.baddbmm(self.bias.unsqueeze(1), asked, self.keys.mT).softmax(-1)
        return torch.bmm(weights, self.values), weights


@dataclass(frozen=True)
class FastState:
    """Where B sequences stand.

    Attributes:
        prompts: memory of the P clips.
        memory: the same, arranged for the rows.
        each: rows that stand together for each entry of ``memory``.
        group: ``(B,)`` clip of a row.
        first: ``(B, D)`` state of the first GRU.
        second: ``(B, D)`` state of the second.
    """

    prompts: Memory
    memory: Memory
    each: int
    group: Tensor
    first: Tensor
    second: Tensor


class FrameFeatures(nn.Module):
    """Grey images as features: three strided convolutions, averaged over a grid."""

    outputs = 32 * FRAME_GRID[0] * FRAME_GRID[1]

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(FRAME_GRID), nn.Flatten()),
        )

    def forward(self, clips: Clips) -> Tensor:
        """``(P, T, outputs)``, zero after each end."""
        valid = clips.valid
        found = valid.new_zeros(*valid.shape, self.outputs, dtype=clips.frames.dtype)
        images = clips.images(1).squeeze(1)
        # Centred, because brightness is the largest and least telling part of a frame.
        return found.masked_scatter(valid.unsqueeze(-1), self.layers(images[valid].unsqueeze(1) - 0.5))


class FastReader(Stepwise, LipReader):
    """See the module; settings name the sizes."""

    settings: FastSettings

    def __init__(self, settings: FastSettings, vocabulary: int = alphabet.SIZE) -> None:
        super().__init__(settings, vocabulary)
        s = settings
        frames = s.front_end == "frames"
        self.front_end = FrameFeatures() if frames else None
        width = FrameFeatures.outputs if frames else s.inputs
        self.stem = nn.Conv1d(width, s.encoder, s.kernel, s.stride, s.kernel // 2)
        self.encoder = GRU(s.encoder, s.encoder, batch_first=True, bidirectional=True)
        self.embedding = nn.Embedding(vocabulary, s.embedding)
        self.first = GRU(s.embedding, s.decoder, batch_first=True)
        self.query = nn.Linear(s.decoder, 2 * s.encoder)
        self.second = GRU(s.decoder + 2 * s.encoder, s.decoder, batch_first=True)
        self.output = nn.Linear(s.decoder + 2 * s.encoder, vocabulary)
        self.value = nn.Linear(s.decoder + 2 * s.encoder, 1) if s.value_head else None

    def encode(self, clips: Clips) -> Memory:
        """The memory of clips, one entry for ``stride`` frames.

        Raises:
            InputError: the clips are not of the kind that the settings name.
        """
        x = clips.features(self.settings.inputs) if self.front_end is None else self.front_end(clips)
        x = self._drop(self.stem(x.mT).relu().mT)
        length = torch.div(clips.length + self.settings.stride - 1, self.settings.stride, rounding_mode="floor")
        values = self._drop(run_gru(self.encoder, x, length)[0])
        scaled = values / values.shape[-1] ** 0.5
        # The query is linear, so it can be applied to the memory once and not to every step.
        bias = scaled @ self.query.bias
        after = torch.arange(x.shape[1], device=x.device) >= length.unsqueeze(1)
        return Memory(scaled @ self.query.weight, bias.masked_fill(after, -torch.inf), values)

    def score(
        self,
        batch: TokenBatch,
        temperature: float = 1.0,
        need: frozenset[str] = NOTHING,
        replace: Tensor | None = None,
    ) -> TokenScores:
        """See ``LipReader.score``."""
        self._check_need(need, self.value is not None)
        hidden, _ = self._decode(batch, replace)
        value = self.value(hidden).squeeze(-1) if self.value is not None and "value" in need else None
        return scores_of(self.output(hidden), batch, temperature, need, hidden=hidden, value=value)

    @torch.no_grad()
    def attention(self, batch: TokenBatch) -> Tensor:
        """See ``LipReader.attention``; T_frames counts steps of the memory, ``stride`` frames each."""
        with evaluating(self):
            return self._decode(batch)[1]

    def start(self, context: Clips, group: Tensor) -> tuple[Tensor, FastState]:
        """See ``StepwisePolicy.start``."""
        with evaluating(self):
            prompts = self.encode(context)
        memory, each = arranged(prompts, group)
        zeros = prompts.keys.new_zeros(len(group), self.settings.decoder)
        return self.advance(FastState(prompts, memory, each, group, zeros, zeros), torch.full_like(group, alphabet.SOS))

    def advance(self, state: FastState, tokens: Tensor) -> tuple[Tensor, FastState]:
        """See ``StepwisePolicy.advance``."""
        first = _step(self.first, self.embedding(tokens), state.first)
        read, _ = state.memory.attend(first.unflatten(0, (-1, state.each)))
        read = read.flatten(0, 1)
        second = _step(self.second, torch.cat((first, read), 1), state.second)
        logits = self.output(torch.cat((second, read), 1))
        return logits, FastState(state.prompts, state.memory, state.each, state.group, first, second)

    def select(self, state: FastState, rows: Tensor) -> FastState:
        """See ``StepwisePolicy.select``."""
        group = state.group[rows]
        memory, each = arranged(state.prompts, group)
        return FastState(state.prompts, memory, each, group, state.first[rows], state.second[rows])

    def _decode(self, batch: TokenBatch, replace: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Input of the last layer ``(B, T, D + M)`` and weights of the memory ``(B, T, F)``."""
        memory, each = arranged(self.encode(batch.context), batch.group)
        first, _ = self.first(self._drop(self.embedding(previous(batch.tokens if replace is None else replace))))
        rows, steps, width = first.shape
        read, weights = memory.attend(first.reshape(rows // each, each * steps, width))
        read = read.reshape(rows, steps, -1)
        second, _ = self.second(torch.cat((first, read), -1))
        return self._drop(torch.cat((second, read), -1)), weights.reshape(rows, steps, -1)

    def _drop(self, x: Tensor) -> Tensor:
        p = self.settings.dropout
        return functional.dropout(x, p, self.training) if p else x


def _step(gru: nn.GRU, x: Tensor, state: Tensor) -> Tensor:
    """Next state of a one-layer GRU."""
    return torch.gru_cell(x, state, *gru.all_weights[0])

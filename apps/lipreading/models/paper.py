"""The sequence-to-sequence model of Luo et al. (2020), "Pseudo-Convolutional Policy Gradient", arXiv 2003.03983.

Its attention is asked by the decoder's state of the *previous* step, so that each step waits for the one before: a
given sequence is scored step by step, with a graph through all of them. ``models.fast`` exists because of that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from apps.lipreading.clips import Clips
from apps.lipreading.models.reader import GRU, LipReader, arranged, evaluating, previous, run_gru
from apps.lipreading.models.resnet import ResNetFrontEnd
from apps.lipreading.models.settings import PaperSettings
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.policy import NOTHING, Stepwise, scores_of
from simulators.lips import alphabet


@dataclass(frozen=True)
class Memory:
    """What the decoder sees of P clips of up to T frames.

    Attributes:
        keys: ``(P, T, H)`` W_m m_i + b, the part of the attention that does not change from step to step.
        values: ``(P, T, H)`` m_i.
        valid: ``(P, T)`` bool.
    """

    keys: Tensor
    values: Tensor
    valid: Tensor


@dataclass(frozen=True)
class PaperState:
    """Where B sequences stand.

    Attributes:
        prompts: memory of the P clips.
        memory: the same, arranged for the rows.
        each: rows that stand together for each entry of ``memory``.
        group: ``(B,)`` clip of a row.
        hidden: ``(layers, B, H)`` states of the decoder.
    """

    prompts: Memory
    memory: Memory
    each: int
    group: Tensor
    hidden: Tensor


class PaperReader(Stepwise, LipReader):
    """See the module; settings name the sizes.

    e_ti = v . tanh(W [m_i; h_{t-1}]), alpha_t = softmax(e_t), c_t = sum_i alpha_ti m_i, with h the state of the last
    layer; the decoder reads [embedding; c_t] and the output layer [h_t; c_t].
    """

    settings: PaperSettings

    def __init__(self, settings: PaperSettings, vocabulary: int = alphabet.SIZE) -> None:
        super().__init__(settings, vocabulary)
        s = settings
        h = s.hidden
        self.front_end = ResNetFrontEnd(s.channels)
        between = s.encoder_dropout if s.layers > 1 else 0.0
        self.encoder = GRU(ResNetFrontEnd.outputs, h, s.layers, batch_first=True, bidirectional=True, dropout=between)
        self.embedding = nn.Embedding(vocabulary, s.embedding)
        self.attention_memory = nn.Linear(h, h)
        self.attention_state = nn.Linear(h, h, bias=False)
        self.attention_vector = nn.Linear(h, 1, bias=False)
        self.cells = nn.ModuleList(nn.GRUCell(s.embedding + h if i == 0 else h, h) for i in range(s.layers))
        self.output = nn.Linear(2 * h, vocabulary)
        self.value = nn.Linear(2 * h, 1) if s.value_head else None

    def encode(self, clips: Clips) -> tuple[Memory, Tensor]:
        """The memory of clips, and the decoder's first states ``(layers, P, H)``.

        Raises:
            InputError: the clips are no images.
        """
        s = self.settings
        x = functional.dropout(self.front_end(clips), s.encoder_dropout, self.training)
        both, last = run_gru(self.encoder, x, clips.length)
        values = both.unflatten(-1, (2, s.hidden)).sum(-2)
        # The published code cuts the states in the order of layers and directions, not one of each layer.
        first = last[: s.layers] if s.init == "paper" else torch.zeros_like(last[: s.layers])
        return Memory(self.attention_memory(values), values, clips.valid), first

    def score(
        self,
        batch: TokenBatch,
        temperature: float = 1.0,
        need: frozenset[str] = NOTHING,
        replace: Tensor | None = None,
    ) -> TokenScores:
        """See ``LipReader.score``; as many steps as the longest sequence has."""
        self._check_need(need, self.value is not None)
        hidden, _ = self._decode(batch, replace)
        value = self.value(hidden).squeeze(-1) if self.value is not None and "value" in need else None
        return scores_of(self.output(hidden), batch, temperature, need, hidden=hidden, value=value)

    @torch.no_grad()
    def attention(self, batch: TokenBatch) -> Tensor:
        """See ``LipReader.attention``."""
        with evaluating(self):
            return self._decode(batch)[1]

    def start(self, context: Clips, group: Tensor) -> tuple[Tensor, PaperState]:
        """See ``StepwisePolicy.start``."""
        with evaluating(self):
            state = self._state(context, group)
        return self.advance(state, torch.full_like(group, alphabet.SOS))

    def advance(self, state: PaperState, tokens: Tensor) -> tuple[Tensor, PaperState]:
        """See ``StepwisePolicy.advance``."""
        read, _, after = self._step(state, self.embedding(tokens), 0.0)
        return self.output(read), after

    def select(self, state: PaperState, rows: Tensor) -> PaperState:
        """See ``StepwisePolicy.select``."""
        group = state.group[rows]
        memory, each = arranged(state.prompts, group)
        return PaperState(state.prompts, memory, each, group, state.hidden[:, rows])

    def _state(self, context: Clips, group: Tensor) -> PaperState:
        """The state before the start symbol."""
        prompts, first = self.encode(context)
        memory, each = arranged(prompts, group)
        return PaperState(prompts, memory, each, group, first[:, group])

    def _decode(self, batch: TokenBatch, replace: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Input of the last layer ``(B, T, 2 H)`` and weights of the frames ``(B, T, T_frames)``."""
        p = self.settings.decoder_dropout if self.training else 0.0
        state = self._state(batch.context, batch.group)
        symbols = functional.dropout(self.embedding(previous(batch.tokens if replace is None else replace)), p)
        hidden, weights = [], []
        for symbol in symbols.unbind(1):
            read, looked, state = self._step(state, symbol, p)
            hidden.append(read)
            weights.append(looked)
        return torch.stack(hidden, 1), torch.stack(weights, 1)

    def _step(self, state: PaperState, symbol: Tensor, dropout: float) -> tuple[Tensor, Tensor, PaperState]:
        """Input of the last layer ``(B, 2 H)``, weights of the frames ``(B, T_frames)``, and the next state."""
        memory = state.memory
        asked = self.attention_state(state.hidden[-1]).unflatten(0, (-1, state.each))
        energy = self.attention_vector((memory.keys.unsqueeze(1) + asked.unsqueeze(2)).tanh()).squeeze(-1)
        weights = energy.masked_fill(~memory.valid.unsqueeze(1), -torch.inf).softmax(-1)
        read = torch.bmm(weights, memory.values).flatten(0, 1)
        x, hidden = torch.cat((symbol, read), 1), []
        for i, cell in enumerate(self.cells):
            x = cell(functional.dropout(x, dropout) if i else x, state.hidden[i])
            hidden.append(x)
        after = PaperState(state.prompts, memory, state.each, state.group, torch.stack(hidden))
        return torch.cat((x, read), 1), weights.flatten(0, 1), after

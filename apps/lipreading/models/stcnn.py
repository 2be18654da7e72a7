"""LipNet (Assael et al. 2016, arXiv 1611.01599): spatio-temporal convolutions, two bidirectional GRUs and CTC."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from apps.lipreading.clips import Clips
from apps.lipreading.models.ctc import collapse, ended, prefix_beam, sequence_log_prob
from apps.lipreading.models.reader import GRU, LipReader, evaluating, run_gru
from apps.lipreading.models.settings import StcnnSettings
from core.errors import InputError
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.policy import NOTHING, draw_tokens
from simulators.lips import alphabet

UNSAID = -1e4
"""Logit of the start and end symbols, which no frame says; finite, so that no gradient is NaN."""


class StcnnReader(LipReader):
    """See the module; settings name the sizes.

    It gives each frame a distribution over symbols, with padding as the blank, and a transcript the probability of all
    paths that spell it. That has no parts for single tokens: ``log_prob`` holds it at the last token and 0 before.
    """

    settings: StcnnSettings
    ctc: ClassVar[bool] = True
    fields: ClassVar[frozenset[str]] = frozenset({"logits", "frames"})

    def __init__(self, settings: StcnnSettings, vocabulary: int = alphabet.SIZE) -> None:
        super().__init__(settings, vocabulary)
        s = settings
        first, second, third = s.filters
        self.convolutions = nn.ModuleList(
            (
                nn.Conv3d(s.channels, first, (3, 5, 5), (1, 2, 2), (1, 2, 2)),
                nn.Conv3d(first, second, (3, 5, 5), 1, (1, 2, 2)),
                nn.Conv3d(second, third, (3, 3, 3), 1, (1, 1, 1)),
            )
        )
        self.tail = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout3d(s.dropout), nn.MaxPool3d((1, 2, 2)))
        high, wide = ((side + 1) // 2 // 8 for side in (s.height, s.width))
        self.encoder = GRU(
            s.filters[-1] * high * wide, s.hidden, 2, batch_first=True, bidirectional=True, dropout=s.dropout
        )
        self.output = nn.Linear(2 * s.hidden, vocabulary - 2)

    def encode(self, clips: Clips) -> Tensor:
        """``(P, T, V)`` logits of the symbols of each frame.

        Raises:
            InputError: the clips are no images of the size in the settings.
        """
        s = self.settings
        x = clips.images(s.channels)
        if x.shape[-2:] != (s.height, s.width):
            raise InputError(f"Clips.frames: {x.shape[-2]} x {x.shape[-1]}; this model reads {s.height} x {s.width}")
        inside = clips.valid[:, None, :, None, None]
        for convolution in self.convolutions:
            # A later convolution must find nothing after a clip's end, though this one has written there.
            x = self.tail(torch.where(inside, convolution(x), 0.0))
        found = self.output(run_gru(self.encoder, x.transpose(1, 2).flatten(2), clips.length)[0])
        blank, spoken = found.split([1, found.shape[-1] - 1], -1)
        return torch.cat((blank, found.new_full((*found.shape[:2], 2), UNSAID), spoken), -1)

    def score(
        self,
        batch: TokenBatch,
        temperature: float = 1.0,
        need: frozenset[str] = NOTHING,
        replace: Tensor | None = None,
    ) -> TokenScores:
        """See ``LipReader.score``; ``logits`` ``(B, T_frames, V)`` and ``frames`` are what a CTC loss reads.

        Raises:
            InputError: ``replace`` is given, for which nothing here stands; or as ``LipReader.score``.
        """
        self._check_need(need, False)
        if replace is not None:
            raise InputError("model 'stcnn': replace is given, but no step reads the symbol before it")
        logits = self.encode(batch.context).float()[batch.group] / (temperature or 1.0)
        frames = batch.context.length[batch.group]
        whole = sequence_log_prob(logits.log_softmax(-1), frames, batch.tokens, batch.valid)
        log_prob = _at_last(whole, batch.valid)
        return TokenScores(
            log_prob, logits=logits if "logits" in need else None, frames=frames if "frames" in need else None
        )

    @torch.no_grad()
    def sample(
        self,
        context: Clips,
        n: int,
        max_length: int,
        temperature: float = 1.0,
        prefix: TokenBatch | None = None,
        generator: torch.Generator | None = None,
    ) -> TokenBatch:
        """Draw a path of symbols through the frames and collapse it; temperature 0 takes the most probable path.

        Raises:
            InputError: ``prefix`` is given; the paths of a transcript do not part at a token.
        """
        if prefix is not None:
            raise InputError("model 'stcnn': a prefix is given; only models with a decoder go on from one")
        log_probs, frames, group = self._frames(context, n, temperature)
        path, _ = draw_tokens(log_probs.flatten(0, 1), 0.0 if temperature == 0 else 1.0, generator)
        tokens, mask = collapse(path.unflatten(0, log_probs.shape[:2]), frames, max_length)
        whole = sequence_log_prob(log_probs, frames, tokens, mask)
        return TokenBatch(tokens, mask, group, context, log_prob_old=_at_last(whole, mask))

    @torch.no_grad()
    def search(self, context: Clips, n: int, max_length: int, width: int = 10) -> TokenBatch:
        """The n most probable transcripts of each clip by a prefix beam search, best first; ``reward`` is their log-
        probability as far as the search has found its paths.

        Raises:
            InputError: n exceeds the width.
        """
        if not 1 <= n <= width:
            raise InputError(f"n = {n}: allowed: 1 to the width of the beam, {width}")
        log_probs, frames, _ = self._frames(context, 1, 1.0)
        beam = prefix_beam(log_probs, frames, width, max_length)
        tokens, mask = ended(beam.tokens[:, :n].flatten(0, 1), beam.length[:, :n].flatten())
        group = torch.arange(len(frames), device=tokens.device).repeat_interleave(n)
        return TokenBatch(tokens, mask, group, context, reward=beam.total[:, :n].flatten())

    def _frames(self, context: Clips, n: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities ``(P n, F, V)``, frames and clips of n rows a clip."""
        with evaluating(self):
            logits = self.encode(context).float() / (temperature or 1.0)
        group = torch.arange(len(logits), device=logits.device).repeat_interleave(n)
        return logits.log_softmax(-1)[group], context.length[group], group


def _at_last(whole: Tensor, valid: Tensor) -> Tensor:
    """``(B, T)``: a number of each row at its last valid token, 0 elsewhere."""
    after = functional.pad(valid, (0, 1))[:, 1:]
    return torch.where(valid & ~after, whole.unsqueeze(1), 0.0)

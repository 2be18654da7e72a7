"""Transcripts that say how sure they are: minimum-risk decoding over samples, and what else the samples said.

The transcript is the sample with the smallest expected number of edits to the others. The confidence of a word is the
share of the samples that have it in its place, once their words are aligned with those of the transcript.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from apps.lipreading.alignment import aligned
from apps.lipreading.calibration import Abstention
from apps.lipreading.metrics import texts
from core.sequence.batch import TokenBatch
from core.sequence.search.ranking import mbr
from simulators.lips.grammar import Grammar

HIDDEN = "?"
"""Stands for a word that is not sure enough to be shown."""


@dataclass(frozen=True)
class Alternative:
    """A word, or none where it is empty, and the share of the samples that have it in this place."""

    word: str
    share: float


@dataclass(frozen=True)
class Hypothesis:
    """What some of the samples said.

    Attributes:
        text: of them.
        share: of the samples.
        log_prob: of one of them under the model, in nats; of the likeliest spelling where there are several.
        risk: expected number of edits between its symbols and a sample's.
        in_grammar: whether it is a sentence of the grammar; None where there is no grammar.
    """

    text: str
    share: float
    log_prob: float
    risk: float
    in_grammar: bool | None


@dataclass(frozen=True)
class Transcript:
    """What was read from a clip.

    Attributes:
        text: of least risk.
        words: of it.
        confidence: of each word, the share of the samples that have it in its place.
        samples: number of them.
        in_grammar: whether the text is a sentence of the grammar; None where there is no grammar.
        lattice: for each word the alternatives in its place, the most frequent first. Words of samples that stand for
            none of the text are not in it.
        best: the distinct texts of the samples, the one of least risk first.
    """

    text: str
    words: tuple[str, ...]
    confidence: tuple[float, ...]
    samples: int
    in_grammar: bool | None
    lattice: tuple[tuple[Alternative, ...], ...]
    best: tuple[Hypothesis, ...]

    def shown(self, abstention: Abstention) -> str:
        """The text with ``HIDDEN`` for words that are less sure than the threshold, or for all where there is none.

        All are hidden, too, where there are more than ``abstention.most``.
        """
        least = abstention.threshold
        if abstention.most is not None and len(self.words) > abstention.most:
            least = None
        return " ".join(
            word if least is not None and sure >= least else HIDDEN
            for word, sure in zip(self.words, self.confidence, strict=True)
        )

    def record(self, most: int = 10) -> dict[str, Any]:
        """Plain data for JSON, with the ``most`` best hypotheses."""
        return {
            "text": self.text,
            "words": [{"word": w, "confidence": c} for w, c in zip(self.words, self.confidence, strict=True)],
            "samples": self.samples,
            "in_grammar": self.in_grammar,
            "lattice": [[asdict(found) for found in place] for place in self.lattice],
            "n_best": [asdict(found) for found in self.best[:most]],
        }


def transcripts(batch: TokenBatch, grammar: Grammar | None = None) -> list[Transcript]:
    """One transcript of each prompt.

    Args:
        batch: samples, several a prompt, with ``log_prob_old``.
        grammar: whose sentences are expected, if any.
    """
    risk = mbr(batch)
    log_prob = batch.need("log_prob_old").where(batch.mask, 0.0).sum(1)
    parses = None if grammar is None else grammar.parses(batch.tokens).tolist()
    said, group = texts(batch), batch.group.tolist()
    rows: dict[int, list[int]] = {}
    for row, prompt in enumerate(group):
        rows.setdefault(prompt, []).append(row)
    numbers = risk.tolist(), log_prob.tolist()
    ranked = {p: _ranked(found, said, *numbers, parses) for p, found in sorted(rows.items())}
    chosen = [ranked[prompt][0].text.split() for prompt in group]
    spoken = [text.split() for text in said]
    partner = aligned(spoken, chosen).partner.tolist()
    return [_transcript(ranked[p], [(spoken[row], partner[row]) for row in rows[p]]) for p in ranked]


def _ranked(
    rows: list[int], said: list[str], risk: list[float], log_prob: list[float], parses: list[bool] | None
) -> tuple[Hypothesis, ...]:
    """The distinct texts of a prompt's samples, of least risk first, then the most frequent."""
    found: dict[str, list[int]] = {}
    for row in rows:
        found.setdefault(said[row], []).append(row)
    hypotheses = [
        Hypothesis(
            text,
            len(same) / len(rows),
            max(log_prob[row] for row in same),
            min(risk[row] for row in same),
            None if parses is None else parses[same[0]],
        )
        for text, same in found.items()
    ]
    return tuple(sorted(hypotheses, key=lambda h: (h.risk, -h.share, h.text)))


def _transcript(best: tuple[Hypothesis, ...], samples: list[tuple[list[str], list[int]]]) -> Transcript:
    """The first hypothesis, and what each sample has in place of its words: its own, and which stands for which."""
    words = tuple(best[0].text.split())
    lattice = []
    for place in range(len(words)):
        counts = Counter(spoken[partner[place]] if partner[place] >= 0 else "" for spoken, partner in samples)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        lattice.append(tuple(Alternative(word, times / len(samples)) for word, times in ordered))
    confidence = tuple(
        next((found.share for found in place if found.word == word), 0.0)
        for word, place in zip(words, lattice, strict=True)
    )
    return Transcript(best[0].text, words, confidence, len(samples), best[0].in_grammar, tuple(lattice), best)

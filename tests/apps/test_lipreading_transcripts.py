"""Transcripts from samples, and clips that are read while they are seen."""

import json

import numpy as np
import pytest
import torch

from apps.lipreading.calibration import Abstention, abstention
from apps.lipreading.clips import Clips
from apps.lipreading.streaming import stream
from apps.lipreading.transcripts import HIDDEN, transcripts
from core.errors import InputError
from core.sequence.batch import TokenBatch
from simulators.lips import alphabet
from simulators.lips.grammar import GRID, MINI


def sampled(*prompts):
    """A batch of these samples, by prompt."""
    texts = [text for prompt in prompts for text in prompt]
    tokens = torch.full((len(texts), max(map(len, texts)) + 1), alphabet.PAD)
    for row, text in zip(tokens, texts, strict=True):
        spelled = [alphabet.CHARACTERS.index(c) + 3 for c in text] + [alphabet.EOS]
        row[: len(spelled)] = torch.tensor(spelled)
    group = torch.tensor([p for p, prompt in enumerate(prompts) for _ in prompt])
    mask = tokens != alphabet.PAD
    return TokenBatch(tokens, mask, group, log_prob_old=torch.where(mask, -0.1, 0.0))


def test_the_sample_of_least_risk_is_chosen_and_words_are_as_sure_as_they_are_frequent():
    samples = ["b two now"] * 4 + ["b two soon"] * 3 + ["p nine now"] * 3
    (found,) = transcripts(sampled(samples), MINI)
    assert found.text == "b two now"
    assert found.words == ("b", "two", "now")
    assert found.confidence == pytest.approx((0.7, 0.7, 0.7))
    assert found.in_grammar is True
    assert [(a.word, a.share) for a in found.lattice[2]] == [("now", pytest.approx(0.7)), ("soon", pytest.approx(0.3))]
    assert found.best[0].text == "b two now"
    assert sum(h.share for h in found.best) == pytest.approx(1)
    assert [h.risk for h in found.best] == sorted(h.risk for h in found.best)
    assert found.best[0].log_prob == pytest.approx(-0.1 * 10)


def test_risk_is_the_mean_distance_to_all_samples():
    levenshtein = pytest.importorskip("rapidfuzz.distance").Levenshtein
    samples = ["b two now", "b two soon", "p nine now", "d one again", "b one now"]
    (found,) = transcripts(sampled(samples))
    for hypothesis in found.best:
        expected = np.mean([levenshtein.distance(hypothesis.text, other) for other in samples])
        assert hypothesis.risk == pytest.approx(expected)
    assert found.text == min(found.best, key=lambda h: h.risk).text


def test_words_are_aligned_so_that_one_left_out_moves_no_other():
    (found,) = transcripts(sampled(["b two now"] * 3 + ["two now"] * 2))
    assert found.confidence == pytest.approx((0.6, 1.0, 1.0))
    assert [a.word for a in found.lattice[0]] == ["b", ""]


def test_samples_that_agree_are_sure_and_the_order_of_samples_does_not_matter():
    (same,) = transcripts(sampled(["bin blue at f two now"] * 8), GRID)
    assert same.confidence == (1.0,) * 6
    assert len(same.best) == 1
    samples = ["b two now", "b two soon", "p two now", "b six now"]
    assert transcripts(sampled(samples)) == transcripts(sampled(samples[::-1]))


def test_prompts_do_not_meet():
    apart = [transcripts(sampled(s))[0] for s in (["b two now"] * 3, ["p six soon"] * 3)]
    assert transcripts(sampled(["b two now"] * 3, ["p six soon"] * 3)) == apart


@pytest.mark.parametrize(("text", "inside"), [("b two now", True), ("b twq now", False), ("two b now", False)])
def test_what_is_no_sentence_is_flagged(text, inside):
    assert transcripts(sampled([text] * 3), MINI)[0].in_grammar is inside
    assert transcripts(sampled([text] * 3))[0].in_grammar is None


def test_samples_that_are_all_empty_have_no_words():
    (found,) = transcripts(sampled([""] * 4), MINI)
    assert (found.text, found.words, found.confidence, found.in_grammar) == ("", (), (), False)


def test_unsure_words_are_hidden():
    (found,) = transcripts(sampled(["b two now"] * 3 + ["p two soon"]))
    shown = lambda threshold: found.shown(Abstention(threshold, 0.1, 0.1, 0.5, 0.0, 10))  # noqa: E731
    assert shown(0.8) == f"{HIDDEN} two {HIDDEN}"
    assert shown(0.5) == "b two now"
    assert shown(None) == f"{HIDDEN} {HIDDEN} {HIDDEN}"


def test_of_a_transcript_of_more_words_than_the_guarantee_is_of_none_is_shown():
    proven = abstention([[1.0] * 6] * 90 + [[1.0] * 30] * 10, [[True] * 6] * 90 + [[False] * 30] * 10, 0.2, most=6)
    assert proven.threshold == 0.0
    six, ten = (transcripts(sampled([" ".join(["now"] * n)] * 3))[0] for n in (6, 10))
    assert six.shown(proven) == six.text
    assert ten.shown(proven) == " ".join([HIDDEN] * 10)


def test_the_record_is_json():
    (found,) = transcripts(sampled(["b two now"] * 3 + ["p two soon"]), MINI)
    record = json.loads(json.dumps(found.record(most=1)))
    assert record["text"] == "b two now"
    assert record["words"][0] == {"word": "b", "confidence": 0.75}
    assert len(record["n_best"]) == 1
    assert record["lattice"][0][1] == {"word": "p", "share": 0.25}


class Hearing:
    """Says word w of a sentence once frame ``10 (w + 1)`` is seen, and guesses at random before."""

    eos = alphabet.EOS
    said = ("bin", "blue", "at", "f", "two", "now")

    def eval(self):
        return self

    def sample(self, context, n, max_length, temperature=1.0, prefix=None, generator=None):
        seen = int(context.length[0])
        rows = []
        for _ in range(n):
            guess = GRID.texts(GRID.sample(1, generator))[0].split()
            rows.append(" ".join(w if seen >= 10 * (i + 1) else guess[i] for i, w in enumerate(self.said)))
        return sampled(rows)


def test_words_are_given_out_soon_after_they_were_said_and_not_before():
    found = stream(Hearing(), torch.zeros(1, 75, 4), Clips, 40, chunk=5)
    assert found.text == found.whole == "bin blue at f two now"
    # Sure at frame 10 w, and a second time at the next reading.
    assert [word.frames for word in found.words] == [15, 25, 35, 45, 55, 65]
    assert all(word.seconds >= word.frames / 25 for word in found.words)
    assert found.record()["word_edits_to_whole"] == 0
    assert len(found.compute) == 15


def test_the_last_reading_is_that_of_a_generator_of_the_same_seed():
    found = stream(Hearing(), torch.zeros(1, 30, 4), Clips, 40, samples=4, seed=7)
    clips = Clips(torch.zeros(1, 30, 4), torch.tensor([30]))
    drawn = Hearing().sample(clips, 4, 40, generator=torch.Generator().manual_seed(7))
    assert found.whole == transcripts(drawn)[0].text


def test_a_clip_that_ends_too_soon_is_read_all_the_same():
    found = stream(Hearing(), torch.zeros(1, 12, 4), Clips, 40, chunk=5)
    assert found.words[0].word == "bin"
    assert [word.frames for word in found.words] == [12] * 6
    with pytest.raises(InputError, match="clip of 4 frames"):
        stream(Hearing(), torch.zeros(1, 4, 4), Clips, 40)

"""Error rates of transcripts."""

import random

import numpy as np
import pytest
import torch

from apps.lipreading.alignment import aligned, slots_right
from apps.lipreading.metrics import Errors, character_errors, corpus_rate, exact, texts, utterance_mean, word_errors
from core.errors import InputError
from core.sequence.batch import TokenBatch
from simulators.lips import alphabet


def sentences(n, seed, empty=0.0):
    rng = random.Random(seed)
    word = lambda: "".join(rng.choice("abc") for _ in range(rng.randint(1, 5)))  # noqa: E731
    return ["" if rng.random() < empty else " ".join(word() for _ in range(rng.randint(1, 6))) for _ in range(n)]


def symbols(found):
    table = torch.full((len(found), max(map(len, found)) + 1), alphabet.PAD)
    for row, text in enumerate(found):
        spelled = [alphabet.CHARACTERS.index(c) + 3 for c in text] + [alphabet.EOS]
        table[row, : len(spelled)] = torch.tensor(spelled)
    return table


@pytest.fixture(scope="module")
def pairs():
    return sentences(400, 0, empty=0.05), sentences(400, 1)


def test_rates_agree_with_jiwer(pairs):
    jiwer = pytest.importorskip("jiwer")
    hypotheses, references = pairs
    characters, words = character_errors(*pairs), word_errors(*pairs)
    assert corpus_rate(characters).mean == pytest.approx(jiwer.cer(references, hypotheses), abs=1e-12)
    assert corpus_rate(words).mean == pytest.approx(jiwer.wer(references, hypotheses), abs=1e-12)
    of_clip = [jiwer.cer(r, h) for h, r in zip(hypotheses, references, strict=True)]
    np.testing.assert_allclose(characters.rate, of_clip)
    assert utterance_mean(characters.rate).mean == pytest.approx(np.mean(of_clip))


def test_texts_and_symbols_have_the_same_errors(pairs):
    tables = [symbols(found) for found in pairs]
    batch = TokenBatch(tables[0], tables[0] > 0, torch.arange(len(tables[0])))
    for measure in (character_errors, word_errors):
        expected = measure(*pairs)
        for given in (tables[0], batch):
            found = measure(given, tables[1])
            assert torch.equal(found.edits, expected.edits)
            assert torch.equal(found.length, expected.length)
        assert torch.equal(measure(tables[0], pairs[1]).edits, expected.edits)


def test_nothing_after_the_end_symbol_counts_nor_padding_within():
    right = symbols(["bin"])
    read = torch.tensor([[5, alphabet.PAD, alphabet.SOS, 12, 17, alphabet.EOS, 20, 21]])
    assert texts(read) == [alphabet.decode(read)[0]]
    assert character_errors(read, right).edits.item() == character_errors(texts(read), ["bin"]).edits.item()
    assert word_errors(read, right).edits.item() == word_errors(texts(read), ["bin"]).edits.item()


def test_exact_is_all_characters_right():
    assert exact(["bin blue", "bin blue ", "bin"], ["bin blue"] * 3).tolist() == [True, False, False]


def test_an_empty_transcript_has_as_many_edits_as_characters():
    found = character_errors(["", "aaaaaa"], ["abc", "b"])
    assert found.rate.tolist() == [1.0, 6.0]


@pytest.mark.parametrize("measure", [character_errors, word_errors])
def test_refusals(measure):
    with pytest.raises(InputError, match=r"1 for 2 hypotheses"):
        measure(["a", "b"], ["a"])
    with pytest.raises(InputError, match=r"references\[1\]: is empty"):
        measure(["a", "b"], ["a", ""])
    with pytest.raises(InputError, match="reference 1"):
        measure(symbols(["a", "b"]), symbols(["a", ""]))


def test_corpus_rate_and_mean_of_utterances_differ_by_length():
    errors = Errors(torch.tensor([1, 0]), torch.tensor([1, 9]))
    assert corpus_rate(errors).mean == pytest.approx(0.1)
    assert utterance_mean(errors.rate).mean == pytest.approx(0.5)


def test_intervals_over_speakers_are_wider_when_speakers_differ():
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(6), 100)
    edits = torch.from_numpy(rng.binomial(20, 0.05 + 0.1 * speaker / 5))
    errors = Errors(edits, torch.full_like(edits, 20))
    by_clip, by_speaker = corpus_rate(errors), corpus_rate(errors, speaker.tolist())
    assert by_clip.mean == pytest.approx(by_speaker.mean)
    assert by_speaker.high - by_speaker.low > 3 * (by_clip.high - by_clip.low)
    assert (by_speaker.n, by_speaker.p) == (6, None)
    assert utterance_mean(errors.rate, speaker.tolist()).mean == pytest.approx(by_clip.mean)
    with pytest.raises(InputError, match="speakers: 1;"):
        corpus_rate(errors, ["s1"] * 600)
    with pytest.raises(InputError, match="3 for 600"):
        corpus_rate(errors, ["s1", "s2", "s3"])


def test_an_alignment_is_a_shortest_path(pairs):
    levenshtein = pytest.importorskip("rapidfuzz.distance").Levenshtein
    hypotheses, references = ([list(text) for text in found] for found in pairs)
    path = aligned(hypotheses, references)
    for row, (read, right) in enumerate(zip(hypotheses, references, strict=True)):
        partner = path.partner[row].tolist()
        placed = [at for at in partner[: len(right)] if at >= 0]
        assert placed == sorted(set(placed)), "the path must not turn back"
        assert set(partner[len(right) :]) <= {-1}
        same = [at >= 0 and read[at] == one for at, one in zip(partner, right, strict=False)]
        assert path.right[row, : len(right)].tolist() == same
        assert int(path.inserted[row].sum()) == len(read) - len(placed)
        edits = len(right) - sum(same) + len(read) - len(placed)
        assert edits == levenshtein.distance(read, right)


def test_a_word_left_out_moves_no_other_out_of_its_slot():
    right = "bin blue at f two now"
    read = ["bin blue at f two now", "bin at f two now", "bin bin blue at f one now", ""]
    expected = [[1] * 6, [1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1], [0] * 6]
    assert slots_right(read, [right] * 4).int().tolist() == expected
    with pytest.raises(InputError, match=r"references\[1\]: has 2 words; must be 1"):
        slots_right(["a", "a"], ["a", "a b"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_symbols_are_compared_on_their_device(pairs):
    tables = [symbols(found) for found in pairs]
    for measure in (character_errors, word_errors):
        found = measure(*(x.cuda() for x in tables))
        assert found.edits.is_cuda
        assert torch.equal(found.edits.cpu(), measure(*tables).edits)

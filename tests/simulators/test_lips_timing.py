import math
import os
import zipfile
from pathlib import Path

import pytest
import torch

from simulators.lips.grammar import GRID, MINI
from simulators.lips.phonemes import segments
from simulators.lips.timing import CLIP, EARLIEST, LATEST, ONSET, SPREAD, WORD_FRAMES, schedule
from simulators.lips.visemes import VISEMES

BATCH = 20000


def drawn(grammar=GRID, durations="phonemes", rate=1.0, batch=BATCH, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    slots = grammar.sample(batch, generator)
    return slots, schedule(grammar, slots, torch.full((batch,), rate, dtype=dtype), generator, durations)


@pytest.mark.parametrize("grammar", [GRID, MINI])
def test_segments_are_those_of_the_words_one_after_the_other(grammar):
    slots, times = drawn(grammar, batch=300)
    torch.testing.assert_close(times.start[:, 1:], (times.start + times.duration)[:, :-1])
    for b, text in enumerate(grammar.texts(slots)):
        spoken = times.duration[b] > 0
        expected = [VISEMES.index(name) for word in text.split() for name, _ in segments(word)]
        assert times.viseme[b, spoken].tolist() == expected
        ends = torch.tensor([len(segments(word)) for word in text.split()]).cumsum(0) - 1
        last = (times.start + times.duration)[b, spoken][ends]
        torch.testing.assert_close(times.word_end[b], last)
        torch.testing.assert_close(times.word_start[b, 1:], last[:-1])
    assert torch.equal(times.word_start[:, 0], times.start[:, 0])


@pytest.mark.parametrize("rate", [1.0, 1.6, 2.5])
def test_speech_stays_inside_the_clip(rate):
    _, times = drawn(rate=rate, batch=4000, dtype=torch.float32)
    assert times.word_start.min() >= EARLIEST
    assert times.word_end.max() <= LATEST + 1e-4 < CLIP
    squeezed = (times.word_end[:, -1] - times.word_start[:, 0] - (LATEST - EARLIEST)).abs() < 1e-3
    assert (squeezed.float().mean() > 0.9) == (rate == 2.5)
    assert torch.equal(times.word_start[squeezed, 0], torch.full((int(squeezed.sum()),), EARLIEST))


def test_durations_and_onsets_follow_their_laws():
    slots, times = drawn()
    letter = GRID.slot("letter")
    e = slots[:, letter] == GRID.words[letter].index("e")
    log = (times.word_end - times.word_start)[e, letter].log()
    error = SPREAD / math.sqrt(len(log))
    assert abs(log.mean() - math.log(2.6)) < 4 * error
    assert abs(log.std() - SPREAD) < 4 * error
    # Few sentences reach frame 72 or the second one, so that the median is the normal law's.
    assert abs(times.word_start[:, 0].median() - ONSET) < 0.2


def test_a_slow_speaker_takes_longer_by_the_rate():
    _, times = drawn(MINI)
    _, slow = drawn(MINI, rate=1.3)
    torch.testing.assert_close(slow.duration, 1.3 * times.duration)


def test_words_last_as_long_as_in_the_corpus_where_asked():
    slots, times = drawn(durations="grid")
    length = times.word_end - times.word_start
    for s, words in enumerate(GRID.words):
        for w, word in enumerate(words):
            found = length[slots[:, s] == w, s]
            spread = found.std() / len(found) ** 0.5
            # The logarithm is what is centred.
            assert abs(found.mean() - WORD_FRAMES[word] * math.exp(SPREAD**2 / 2)) < 4.5 * spread
            assert 0.05 < found.std() / found.mean() < 0.25
    speech = times.word_end[:, -1] - times.word_start[:, 0]
    assert abs(speech.mean() - 36.9) < 1.5
    _, plain = drawn()
    # By phonemes alone a sentence is about a tenth too long, and single words are up to a half off.
    assert 36.9 < (plain.word_end[:, -1] - plain.word_start[:, 0]).mean() < 1.1 * 36.9


def test_the_constants_are_those_of_the_recorded_speaker():
    folder = Path(os.environ.get("SZILARD_DATA") or Path(__file__).parents[2].parent / "shared" / "data") / "lipreading"
    if not (folder / "s1_align.zip").exists():
        pytest.skip("needs the alignments of GRID s1 in shared/data/lipreading")
    lengths, onsets = {}, []
    with zipfile.ZipFile(folder / "s1_align.zip") as pack:
        for name in pack.namelist():
            rows = [line.split() for line in pack.read(name).decode().splitlines() if line.strip()]
            spoken = [(int(a) / 1000, int(b) / 1000, word) for a, b, word in rows if word not in ("sil", "sp")]
            onsets.append(spoken[0][0])
            for start, end, word in spoken:
                lengths.setdefault(word, []).append(end - start)
    assert set(lengths) == set(WORD_FRAMES)
    for word, found in lengths.items():
        found = torch.tensor(found)
        assert abs(found.mean() - WORD_FRAMES[word]) < 0.05 + 2 * found.std() / len(found) ** 0.5
    onsets = torch.tensor(onsets)
    assert onsets.mean() == pytest.approx(ONSET, abs=0.1)
    assert onsets.std() == pytest.approx(4.8, abs=0.1)

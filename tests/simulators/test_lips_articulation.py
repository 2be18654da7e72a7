import math

import pytest
import torch

from simulators.lips.articulation import SILENCE, SPREAD, THETA, articulate
from simulators.lips.draws import normal
from simulators.lips.grammar import GRID, MINI
from simulators.lips.speakers import LEAST, MOST, Speakers
from simulators.lips.timing import CLIP, schedule
from simulators.lips.visemes import DOMINANCE, PARAMETERS, TARGETS

OPENING, WIDTH, PROTRUSION, TEETH, TUCK, TONGUE = range(len(PARAMETERS))


def timed(*texts, grammar=GRID, seed=0, rate=1.0):
    slots = torch.tensor([grammar.parse(text) for text in texts])
    generator = torch.Generator().manual_seed(seed)
    return schedule(grammar, slots, torch.full((len(texts),), rate, dtype=torch.float64), generator)


def by_the_sum(times, b, weights, tau):
    """One frame by the textbook: silences at both ends, segments between, an exponential for each."""
    onset, offset = float(times.word_start[b, 0]), float(times.word_end[b, -1])
    parts = []
    for j, viseme in enumerate(times.viseme[b].tolist()):
        start, length = float(times.start[b, j]), float(times.duration[b, j])
        if length > 0:
            dominance = DOMINANCE[viseme] * weights[j]
            parts.append((dominance * math.exp(-THETA * abs(tau - start - length / 2)), TARGETS[viseme]))
    for k, (start, end) in enumerate([(0.0, onset), (offset, CLIP)]):
        away = max(0.0, abs(tau - (start + end) / 2) - (end - start) / 2)
        parts.append((SILENCE * DOMINANCE[0] * weights[k - 2] * math.exp(-THETA * 2 * away), TARGETS[0]))
    total = sum(d for d, _ in parts)
    return [sum(d * target[i] for d, target in parts) / total for i in range(6)]


def test_it_is_the_weighted_mean_of_the_targets():
    times = timed("bin blue at f two now", "place white with x seven please", rate=1.1)
    first, frames = 3, 60
    found = articulate(times, CLIP, first, frames, torch.Generator().manual_seed(4))
    shape = (2, times.viseme.shape[1] + 2)
    weights = torch.exp(SPREAD * normal(shape, found, torch.Generator().manual_seed(4))).tolist()
    for b in range(2):
        expected = [by_the_sum(times, b, weights[b], first + i + 0.5) for i in range(frames)]
        torch.testing.assert_close(found[b], torch.tensor(expected, dtype=found.dtype))


def test_shapes_stay_between_the_targets_and_rest_in_silence():
    generator = torch.Generator().manual_seed(1)
    slots = GRID.sample(500, generator)
    times = schedule(GRID, slots, torch.ones(500), generator)
    z = articulate(times, CLIP, 0, CLIP, generator)
    targets = torch.tensor(TARGETS)
    assert (z >= targets.amin(0) - 1e-6).all()
    assert (z <= targets.amax(0) + 1e-6).all()
    middle = torch.arange(CLIP) + 0.5
    silent = (middle < times.word_start[:, :1] - 8) | (middle > times.word_end[:, -1:] + 8)
    assert silent.any()
    torch.testing.assert_close(z[silent], targets[0].expand(int(silent.sum()), 6), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("letter", "parameter", "least"),
    [("f", TUCK, 0.5), ("o", PROTRUSION, 0.5), ("r", OPENING, 0.6), ("c", TEETH, 0.5), ("l", TONGUE, 0.3)],
)
def test_letters_show_what_makes_them(letter, parameter, least):
    times = timed(f"{letter} eight again", grammar=MINI)
    z = articulate(times, CLIP, 0, CLIP, torch.Generator().manual_seed(0))[0]
    frame = torch.arange(CLIP) + 0.5
    during = (frame > times.word_start[0, 0]) & (frame < times.word_end[0, 0])
    assert z[during, parameter].max() > least
    assert z[during, parameter].max() > z[~during & (frame < times.word_start[0, 0]), parameter].max()


def test_lips_close_for_b_and_p_alike():
    """The two differ by the duration of the closure alone; with equal times not at all."""
    times = timed("b one now", grammar=MINI)
    twin = timed("p one now", grammar=MINI)
    assert torch.equal(times.viseme, twin.viseme)
    assert not torch.equal(times.duration, twin.duration)
    z = articulate(times, CLIP, 0, CLIP, torch.Generator().manual_seed(0))[0]
    at = int(times.centre[0, 0])
    assert z[at, OPENING] < 0.1
    assert z[at, OPENING] < z[at + 3, OPENING]


def test_speakers_are_the_same_people_however_many_are_drawn():
    few, many, others = Speakers.draw(3, 5), Speakers.draw(40, 5), Speakers.draw(40, 6)
    assert torch.equal(few.gain, many[:3].gain)
    assert torch.equal(few.appearance.skin, many[torch.arange(3)].appearance.skin)
    assert not torch.isin(others.rate, many.rate).any()
    assert (len(few), len(many)) == (3, 40)


def test_speakers_differ_by_as_much_as_they_should():
    people = Speakers.draw(4000, 0)
    assert people.gain.amin() >= LEAST
    assert people.gain.amax() <= MOST
    for found, mean, spread in (
        (people.gain, 1.0, 0.15),
        (people.bias, 0.0, 0.04),
        (people.rate.log(), 0.0, 0.1),
        (people.appearance.upper.log(), math.log(0.14), 0.15),
        (people.appearance.lower.log(), math.log(0.20), 0.15),
        (people.appearance.scale, 1.0, 0.08),
    ):
        assert abs(found.mean() - mean) < 5 * spread / 4000**0.5
        assert abs(found.std() - spread) < 0.05 * spread
    look = people.appearance
    assert look.skin.min() >= 0.35
    assert look.skin.max() <= 0.8
    assert (look.skin - look.lip).min() >= 0.1 - 1e-6
    assert (look.skin - look.lip).max() <= 0.3 + 1e-6

import pytest
import torch

from core.errors import InputError
from simulators.lips.grammar import GRID, MINI
from simulators.lips.speakers import Speakers
from simulators.lips.talking_mouth import FEATURES, NOISE, UTTERANCE, TalkingMouth
from simulators.lips.timing import CLIP

PEOPLE = Speakers.draw(20, 1)
MODES = {"features": (CLIP, FEATURES), "landmarks": (CLIP, 40), "frames": (CLIP, 32, 48)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mode", MODES)
def test_clips_come_with_all_that_is_known_about_them(mode):
    mouth = TalkingMouth(mode=mode)
    speech = mouth.sample(6, seeded(), PEOPLE)
    assert speech.observation.shape == (6, *MODES[mode]) == (6, *mouth.shape)
    assert speech.observation.dtype == torch.float32
    assert torch.isfinite(speech.observation).all()
    assert speech.texts == GRID.texts(speech.slots)
    assert [len(text) for text in speech.texts] == speech.text_length.tolist()
    assert speech.length.tolist() == [CLIP] * 6
    assert (speech.word_start < speech.word_end).all()
    assert len(speech[torch.tensor([4, 1])]) == 2
    assert speech[1:3].texts == speech.texts[1:3]
    again = mouth.sample(6, seeded(), PEOPLE)
    assert torch.equal(speech.observation, again.observation)
    assert torch.equal(speech.tokens, again.tokens)
    assert not torch.equal(speech.observation, mouth.sample(6, seeded(1), PEOPLE).observation)


def test_given_sentences_and_speakers_are_kept():
    slots = torch.tensor([GRID.parse("bin blue at f two now"), GRID.parse("set red by z zero soon")])
    clips = TalkingMouth().trajectory(2, seeded(), PEOPLE, slots=slots, speaker=torch.tensor([7, 3]))
    assert clips.texts == ["bin blue at f two now", "set red by z zero soon"]
    assert clips.speaker.tolist() == [7, 3]
    assert torch.equal(clips.appearance.skin, PEOPLE.appearance.skin[[7, 3]])


def test_a_shorter_window_is_cut_from_the_same_clip():
    whole = TalkingMouth(grammar=MINI).trajectory(5, seeded(), PEOPLE)
    part = TalkingMouth.mini().trajectory(5, seeded(), PEOPLE)
    assert torch.equal(part.tokens, whole.tokens)
    assert part.tokens.shape[1] == 15
    torch.testing.assert_close(part.articulation, whole.articulation[:, 8:56])
    torch.testing.assert_close(part.word_start + 8, whole.word_start)


def test_a_speaker_moves_by_gain_and_bias():
    neutral = Speakers.draw(1, 0)
    plain = Speakers(torch.ones(1, 6), torch.zeros(1, 6), neutral.rate, neutral.appearance)
    z = TalkingMouth().trajectory(3, seeded(), plain).articulation
    theirs = TalkingMouth().trajectory(3, seeded(), neutral).articulation
    torch.testing.assert_close(theirs, z * neutral.gain + neutral.bias)


def test_features_are_a_fixed_linear_map_of_the_mouth():
    mouth = TalkingMouth(noise=0.0)
    clips = mouth.trajectory(8, seeded(), PEOPLE)
    seen = mouth.observe(clips, seeded(1))
    mixing = torch.randn(6, FEATURES, generator=seeded(7)) / 6**0.5
    torch.testing.assert_close(seen, clips.articulation @ mixing)
    assert torch.equal(seen, mouth.observe(clips, seeded(2)))


@pytest.mark.parametrize("noise", [None, 0.5])
def test_noise_is_redrawn_with_a_part_that_a_clip_keeps(noise):
    mouth = TalkingMouth()
    clips = mouth.trajectory(1500, seeded(), PEOPLE)
    clean = mouth.observe(clips, seeded(), noise=0.0)
    error = mouth.observe(clips, seeded(1), noise=noise) - clean
    scale = NOISE["features"] if noise is None else noise
    assert error.std() == pytest.approx(scale * (1 + UTTERANCE**2) ** 0.5, rel=0.02)
    assert error.mean(1).std() == pytest.approx(scale * (UTTERANCE**2 + 1 / CLIP) ** 0.5, rel=0.03)
    assert not torch.equal(mouth.observe(clips, seeded(1)), mouth.observe(clips, seeded(2)))


def test_double_precision_follows_the_speakers():
    people = Speakers.draw(4, 0, dtype=torch.float64)
    for mode in MODES:
        assert TalkingMouth(mode=mode, frames=20).sample(2, seeded(), people).observation.dtype == torch.float64


def test_longer_clips_end_in_silence():
    clips = TalkingMouth(frames=100).trajectory(20, seeded(), PEOPLE)
    late = clips.articulation[:, 90:]
    torch.testing.assert_close(late, late[:, :1].expand_as(late), atol=1e-3, rtol=0)


def test_a_sentence_can_be_read_from_clean_features():
    """Letters are those of the nearest of other clips more often than 1 in 25, the homophenes apart."""
    one = Speakers.draw(1, 3)
    fixed = Speakers(torch.ones(1, 6), torch.zeros(1, 6), torch.ones(1), one.appearance)
    mouth = TalkingMouth(grammar=MINI, noise=0.0)
    clips = mouth.trajectory(4000, seeded(), fixed)
    x = mouth.observe(clips, seeded())
    start = clips.word_start[:, :1].round().long() + torch.arange(-2, 6)
    x = x.gather(1, start.clamp(0, CLIP - 1)[..., None].expand(-1, -1, FEATURES)).flatten(1)
    letters = clips.slots[:, 0]
    nearest = torch.cdist(x[3000:], x[:3000]).argmin(1)
    assert (letters[:3000][nearest] == letters[3000:]).float().mean() > 0.5


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: TalkingMouth(mode="video"), "mode: 'video'; allowed: features, landmarks, frames"),
        (lambda: TalkingMouth(durations="fast"), "durations: 'fast'; allowed: phonemes, grid"),
        (lambda: TalkingMouth(noise=-1.0), "noise: -1.0"),
        (lambda: TalkingMouth(noise=float("nan")), "noise: nan"),
        (lambda: TalkingMouth(frames=4), "frames: 4; allowed: at least 5"),
        (lambda: TalkingMouth(height=4), "height: 4"),
        (lambda: TalkingMouth(first_frame=-1), "first_frame: -1"),
        (lambda: TalkingMouth(first_frame=75), "first_frame: 75; allowed: 0 to 74"),
        (lambda: TalkingMouth().trajectory(0, seeded(), PEOPLE), "batch: 0"),
        (lambda: TalkingMouth().trajectory(2, seeded(), PEOPLE, slots=torch.zeros(1, 6).long()), "sentences: 1"),
        (lambda: TalkingMouth().trajectory(1, seeded(), PEOPLE, speaker=torch.tensor([20])), "allowed: 0 to 19"),
        (lambda: TalkingMouth().trajectory(1, seeded(), PEOPLE.to("meta")), "speakers: on meta; allowed: cpu"),
        (lambda: Speakers.draw(0, 1), "speakers: 0"),
    ],
)
def test_refusals(fault, message):
    with pytest.raises(InputError, match=message):
        fault()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", MODES)
def test_clips_are_made_where_the_generator_is(mode):
    speech = TalkingMouth(mode=mode).sample(4, torch.Generator("cuda").manual_seed(0), PEOPLE.to("cuda"))
    assert speech.observation.device.type == "cuda"
    assert speech.to("cpu").texts == GRID.texts(speech.slots.cpu())

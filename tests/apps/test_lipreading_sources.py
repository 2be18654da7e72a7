"""Clips come out the same for the same seed, are changed only as asked, and eigen-lips are principal components."""

import pytest
import torch

from apps.lipreading.clips import Clips
from apps.lipreading.features import EigenLips, EigenLipSettings
from apps.lipreading.sources import Augmentation, PackSource, SimulatedSource
from core.errors import InputError

SMALL = {
    "clips": 12,
    "validation_clips": 4,
    "test_clips": 6,
    "speakers": 3,
    "validation_speakers": 2,
    "test_speakers": 2,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_test_clips_are_the_same_each_time_and_training_noise_is_not():
    corpus = SimulatedSource(**SMALL).open()
    a, b = corpus.all("test"), SimulatedSource(**SMALL).open().all("test")
    assert torch.equal(a.clips.frames, b.clips.frames)
    rows = torch.arange(4)
    first, again, other = (corpus.training(rows, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first.clips.frames, again.clips.frames)
    assert not torch.equal(first.clips.frames, other.clips.frames)
    assert torch.equal(first.reference.tokens, other.reference.tokens)


def test_parts_of_a_split_are_the_split():
    corpus = SimulatedSource(**SMALL).open()
    parts = list(corpus.batches("test", 4))
    assert [len(part) for part in parts] == [4, 2]
    whole = corpus.all("test")
    assert torch.equal(torch.cat([p.reference.tokens for p in parts]), whole.reference.tokens)
    assert torch.equal(torch.cat([p.speaker for p in parts]), whole.speaker)


def test_splits_have_speakers_of_their_own():
    corpus = SimulatedSource(**SMALL, noise=0).open()
    gains = [corpus._talk(split).appearance.skin.unique() for split in ("train", "validation", "test")]
    assert len(torch.cat(gains).unique()) == 3 + 2 + 2


def test_eigen_lips_explain_most_and_forget_the_face():
    generator = seeded()
    basis = torch.linalg.qr(torch.randn(24 * 24, 3, generator=generator)).Q.T.reshape(3, 24, 24)
    amount = torch.randn(6, 20, 3, generator=generator) * torch.tensor([200.0, 100.0, 50.0])
    face = 60 * torch.rand(6, 1, 24, 24, generator=generator)
    frames = (110 + face + torch.einsum("ntk,khw->nthw", amount, basis)).clamp(0, 255).to(torch.uint8)
    lips = EigenLips.fit(frames, EigenLipSettings(components=3))
    assert lips.explained > 0.9
    torch.testing.assert_close(lips.components @ lips.components.T, torch.eye(3), atol=1e-4, rtol=0)
    seen = lips(frames).frames
    assert seen.shape == (6, 20, 6)
    torch.testing.assert_close(seen[:, 1:, 3:], seen[:, 1:, :3] - seen[:, :-1, :3])
    darker = lips((frames.float() - 20).clamp(min=0).to(torch.uint8)).frames
    assert float((darker - seen).abs().max()) < 0.05 * float(seen.abs().max())


def test_frames_of_another_size_are_refused():
    frames = torch.randint(0, 255, (2, 6, 24, 24), dtype=torch.uint8)
    lips = EigenLips.fit(frames, EigenLipSettings(components=2))
    with pytest.raises(InputError, match="24 x 24"):
        lips(frames[..., :20])
    with pytest.raises(InputError, match="components"):
        EigenLips.fit(frames, EigenLipSettings(components=1000))


def test_nothing_is_changed_unless_asked():
    frames = torch.rand(3, 7, 30, 40)
    assert torch.equal(Augmentation().of_frames(frames, seeded()), frames)
    clips = Clips(torch.rand(3, 7, 5), torch.tensor([7, 5, 6]))
    assert torch.equal(Augmentation().of_features(clips, seeded()).frames, clips.frames)


def test_what_is_asked_is_done():
    frames = torch.rand(3, 7, 30, 40)
    assert torch.equal(Augmentation(flip=1).of_frames(frames, seeded()), frames.flip(-1))
    repeated = Augmentation(repeat=1).of_frames(frames, seeded())
    assert torch.equal(repeated[:, 1:], frames[:, :-1])
    assert torch.equal(repeated[:, 0], frames[:, 0])
    cut = Augmentation(crop=(24, 24))
    assert cut.of_frames(frames, seeded()).shape == (3, 7, 24, 24)
    assert torch.equal(cut.middle(frames), frames[:, :, 3:27, 8:32])
    with pytest.raises(InputError, match="larger than a frame"):
        Augmentation(crop=(31, 24)).middle(frames)


def test_each_clip_is_cut_at_a_place_of_its_own():
    high, wide = torch.meshgrid(torch.arange(30), torch.arange(27), indexing="ij")
    place = (100 * high + wide).expand(64, 3, 30, 27) + 10_000 * torch.arange(64)[:, None, None, None]
    cut = Augmentation(crop=(26, 24)).of_frames(place, seeded())
    assert cut.shape == (64, 3, 26, 24)
    corner = cut[:, 0, 0, 0] - 10_000 * torch.arange(64)
    top, left = corner // 100, corner % 100
    assert (top.unique().tolist(), left.unique().tolist()) == ([0, 1, 2, 3, 4], [0, 1, 2, 3])
    for i in range(64):
        assert torch.equal(cut[i], place[i, :, top[i] : top[i] + 26, left[i] : left[i] + 24])


def test_a_shift_moves_a_clip_within_its_length():
    clips = Clips(torch.arange(8.0).expand(50, 8).unsqueeze(-1).clone(), torch.full((50,), 6))
    seen = Augmentation(shift=2).of_features(clips, seeded()).frames[:, :6, 0]
    assert float(seen.max()) <= 5  # nothing after the end comes in
    starts = (seen[:, 3] - 3).unique().tolist()
    assert starts == [-2, -1, 0, 1, 2]


def test_a_corpus_that_is_not_there_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv("SZILARD_DATA", raising=False)
    assert "SZILARD_DATA" in PackSource().missing()
    assert "index.csv" in PackSource(data=tmp_path).missing()

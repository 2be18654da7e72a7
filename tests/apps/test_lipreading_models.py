"""Lip-reading models: scores are those of the draws, padding is never read, CTC agrees with an enumeration."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from apps.lipreading.clips import Clips
from apps.lipreading.models import FastSettings, LipReader, PaperSettings, StcnnReader, StcnnSettings, build
from apps.lipreading.models.ctc import BLANK, collapse, prefix_beam, sequence_log_prob
from apps.lipreading.models.reader import run_gru
from core.errors import InputError
from core.sequence.batch import TokenBatch
from core.sequence.losses import CTC
from simulators.lips.alphabet import EOS, PAD

FAST = FastSettings(inputs=5, encoder=10, embedding=6, decoder=12, value_head=True)
FRAMES = FAST.model_copy(update={"front_end": "frames"})
PAPER = PaperSettings(channels=1, hidden=16, layers=2, embedding=8, value_head=True)
STCNN = StcnnSettings(channels=1, height=24, width=32, filters=(4, 6, 8), hidden=12)
DECODERS = [FAST, FRAMES, PAPER]
ALL = [*DECODERS, STCNN]


def name_of(settings: Any) -> str:
    return f"{settings.name}-{getattr(settings, 'front_end', 'images')}"


def model_of(settings: Any, seed: int = 0) -> LipReader:
    torch.manual_seed(seed)
    model = build(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            # Away from the nearly uniform start, where many mistakes would not show.
            parameter.mul_(1.5)
    return model.eval()


def clips_of(settings: Any, clips: int = 3, frames: int = 14, seed: int = 0) -> Clips:
    generator = torch.Generator().manual_seed(seed)
    shape = (5,) if settings is FAST else (24, 32)
    length = torch.tensor([frames - 3 * i for i in range(clips)])
    return Clips(torch.rand(clips, frames, *shape, generator=generator), length)


def drawn(model: LipReader, clips: Clips, n: int = 2, seed: int = 1, **options: Any) -> TokenBatch:
    return model.sample(clips, n, 9, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("settings", ALL, ids=name_of)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_scores_are_the_log_probabilities_of_the_draws(settings: Any, temperature: float) -> None:
    model = model_of(settings)
    batch = drawn(model, clips_of(settings), temperature=temperature)
    scores = model.score(batch, temperature)
    torch.testing.assert_close(scores.log_prob, batch.log_prob_old, atol=1e-5, rtol=1e-5)
    assert bool((scores.log_prob[~batch.valid] == 0).all())


@pytest.mark.parametrize("settings", ALL, ids=name_of)
def test_the_order_of_rows_does_not_matter(settings: Any) -> None:
    model = model_of(settings)
    batch = drawn(model, clips_of(settings), n=3)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(2))
    shuffled = batch.with_(**{name: getattr(batch, name)[order] for name in ("tokens", "mask", "group")})
    torch.testing.assert_close(model.score(shuffled).log_prob, model.score(batch).log_prob[order])


@pytest.mark.parametrize("settings", ALL, ids=name_of)
@pytest.mark.parametrize("training", [False, True])
def test_what_stands_after_a_clip_is_not_read(settings: Any, training: bool) -> None:
    model = model_of(settings)
    clips = clips_of(settings)
    batch = drawn(model, clips)
    for part in model.modules():
        # Statistics of the normalisation are those of the batch, but nothing is dropped at random.
        part.training = training and isinstance(part, torch.nn.BatchNorm2d)
    junk = torch.where(clips.valid.reshape(*clips.valid.shape, *(1,) * (clips.frames.dim() - 2)), clips.frames, 9.0)
    longer = torch.cat((junk, torch.full_like(junk[:, :4], torch.nan)), 1)
    expected = model.score(batch).log_prob
    for frames in (junk, longer):
        found = model.score(batch.with_(context=Clips(frames, clips.length))).log_prob
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", ALL, ids=name_of)
def test_every_weight_learns_and_scoring_in_training_mode_is_differentiable(settings: Any) -> None:
    model = model_of(settings)
    batch = drawn(model, clips_of(settings))
    model.train()
    need = frozenset({"value"}) if settings is not STCNN else frozenset()
    scores = model.score(batch, need=need)
    loss = scores.log_prob.sum() + (scores.value.sum() if scores.value is not None else 0.0)
    loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not bool(torch.isfinite(p.grad).all())]
    assert still == []


@pytest.mark.parametrize("settings", [PAPER, STCNN, FAST.model_copy(update={"dropout": 0.5})], ids=name_of)
def test_dropout_acts_in_scores_and_not_in_draws(settings: Any) -> None:
    kind = FAST if settings.name == "fast" else settings
    model, clips = model_of(settings), clips_of(kind)
    batch = drawn(model, clips)
    model.train()
    again = drawn(model, clips)
    assert torch.equal(again.tokens, batch.tokens)
    assert all(part.training for part in model.modules())
    first, second = model.score(batch).log_prob, model.score(batch).log_prob
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("settings", DECODERS, ids=name_of)
def test_attention_is_a_distribution_over_the_frames_of_the_clip(settings: Any) -> None:
    model = model_of(settings)
    clips = clips_of(settings)
    weights = model.attention(drawn(model, clips))
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    stride = getattr(settings, "stride", 1)
    ends = -(-clips.length // stride)
    after = torch.arange(weights.shape[2]) >= ends.repeat_interleave(2).unsqueeze(1)
    assert bool((weights.transpose(1, 2)[after] == 0).all())
    assert not weights.requires_grad


@pytest.mark.parametrize("settings", DECODERS, ids=name_of)
def test_a_selected_state_goes_on_as_its_row_does(settings: Any) -> None:
    model = model_of(settings)
    clips = clips_of(settings)
    group = torch.arange(3).repeat_interleave(2)
    with torch.no_grad():
        _, state = model.start(clips, group)  # type: ignore[operator]
        token = torch.arange(4, 10)
        logits, after = model.advance(state, token)  # type: ignore[operator]
        for rows in (torch.tensor([5, 0, 0, 3]), torch.tensor([1, 0, 2, 2, 4, 5])):
            chosen, _ = model.advance(model.select(state, rows), token[rows])  # type: ignore[operator]
            torch.testing.assert_close(chosen, logits[rows])
        torch.testing.assert_close(model.advance(state, token)[0], logits)  # type: ignore[operator]
        twice = model.advance(after, token)[0]  # type: ignore[operator]
    tokens = torch.stack((token, token, token), 1)
    batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool), group, clips)
    with torch.no_grad():
        scored = model.score(batch, need=frozenset({"logits"})).need("logits")
    torch.testing.assert_close(scored[:, 1], logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scored[:, 2], twice, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", DECODERS, ids=name_of)
def test_a_prefix_is_gone_on_from(settings: Any) -> None:
    model = model_of(settings)
    clips = clips_of(settings)
    tokens = torch.tensor([[7, 8], [9, PAD], [7, 8]])
    prefix = TokenBatch(tokens, tokens != PAD, torch.arange(3), clips)
    batch = drawn(model, clips, n=1, prefix=prefix)
    assert bool((batch.tokens[:, :2][tokens != PAD] == tokens[tokens != PAD]).all())
    scores = model.score(batch).log_prob
    torch.testing.assert_close(scores[batch.mask], batch.need("log_prob_old")[batch.mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", DECODERS, ids=name_of)
def test_further_scores(settings: Any) -> None:
    model = model_of(settings)
    batch = drawn(model, clips_of(settings))
    scores = model.score(batch, 0.5, frozenset({"entropy", "logits", "hidden", "value"}))
    p = scores.need("logits").softmax(-1)
    torch.testing.assert_close(scores.need("entropy"), -(p * p.log()).sum(-1))
    torch.testing.assert_close(model.output(scores.need("hidden")) / 0.5, scores.need("logits"))  # type: ignore[operator]
    assert scores.need("value").shape == batch.tokens.shape


@pytest.mark.parametrize("settings", DECODERS, ids=name_of)
def test_replaced_symbols_are_read_and_others_scored(settings: Any) -> None:
    model = model_of(settings)
    batch = drawn(model, clips_of(settings))
    torch.testing.assert_close(model.score(batch, replace=batch.tokens).log_prob, model.score(batch).log_prob)
    other = batch.tokens.clone()
    other[:, 2] = 11
    logits = model.score(batch.with_(tokens=other), need=frozenset({"logits"})).need("logits")
    expected = logits.log_softmax(-1).gather(-1, batch.tokens.unsqueeze(-1)).squeeze(-1)
    found = model.score(batch, replace=other).log_prob
    torch.testing.assert_close(found, torch.where(batch.valid, expected, 0.0))


def test_a_gru_on_ragged_clips_reads_each_as_if_it_were_alone() -> None:
    torch.manual_seed(0)
    gru = torch.nn.GRU(3, 4, 2, batch_first=True, bidirectional=True)
    x, length = torch.randn(3, 7, 3), torch.tensor([4, 7, 1])
    out, last = run_gru(gru, x, length)
    for row, n in enumerate(length.tolist()):
        alone, final = gru(x[row : row + 1, :n])
        torch.testing.assert_close(out[row, :n], alone[0])
        torch.testing.assert_close(last[:, row], final[:, 0])
        assert bool((out[row, n:] == 0).all())


def test_the_paper_starts_from_the_first_of_the_final_states() -> None:
    model = model_of(PAPER)
    clips = clips_of(PAPER, clips=1)
    _, first = model.encode(clips)  # type: ignore[operator]
    _, last = model.encoder(model.front_end(clips))  # type: ignore[operator]
    torch.testing.assert_close(first, last[:2])
    zeros = model_of(PAPER.model_copy(update={"init": "zeros"}))
    assert float(zeros.encode(clips)[1].abs().max()) == 0  # type: ignore[operator]


def test_grey_frames_stand_for_three_equal_channels() -> None:
    grey = clips_of(PAPER)
    colour = Clips(grey.frames.unsqueeze(1).expand(-1, 3, -1, -1, -1), grey.length)
    torch.testing.assert_close(grey.images(3), colour.images(3))
    torch.testing.assert_close(colour.images(1), grey.images(1))
    assert colour.steps == grey.steps == 14


def test_the_tested_sizes() -> None:
    assert build(FastSettings()).parameter_count == 166_782


def spelled(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(s for s, _ in itertools.groupby(path) if s != BLANK)


def enumerated(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """Probability of every sequence, from all paths."""
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        p = math.exp(sum(float(log_probs[t, s]) for t, s in enumerate(path)))
        found[spelled(path)] = found.get(spelled(path), 0.0) + p
    return found


def frames_of(symbols: int, frames: int, seed: int = 0) -> Tensor:
    """Log-probabilities of the blank and the symbols from 3 on."""
    logits = 2 * torch.randn(2, frames, symbols + 3, generator=torch.Generator().manual_seed(seed))
    logits[..., 1:3] = -1e4
    return logits.log_softmax(-1)


def test_a_wide_enough_prefix_beam_finds_every_sequence_with_its_probability() -> None:
    log_probs, frames = frames_of(2, 5), torch.tensor([5, 4])
    beam = prefix_beam(log_probs, frames, 64, 5)
    for clip in range(2):
        expected = enumerated(log_probs[clip, : frames[clip]])
        found = {
            tuple(beam.tokens[clip, w, : beam.length[clip, w]].tolist()): math.exp(float(beam.total[clip, w]))
            for w in range(64)
            if float(beam.total[clip, w]) > -1e3
        }
        expected = {sequence: p for sequence, p in expected.items() if p > 1e-12}
        assert found == pytest.approx(expected, abs=1e-6)
        totals = beam.total[clip]
        assert bool((totals[:-1] >= totals[1:]).all())


def test_the_probability_of_a_sequence_is_the_sum_over_its_paths() -> None:
    log_probs, frames = frames_of(2, 5), torch.tensor([5, 4])
    tokens = torch.tensor([[3, 3, EOS], [4, EOS, PAD]])
    found = sequence_log_prob(log_probs, frames, tokens, tokens != PAD).exp()
    expected = [enumerated(log_probs[0])[3, 3], enumerated(log_probs[1, :4])[4,]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_draws_come_as_often_as_their_probability() -> None:
    log_probs, frames = frames_of(2, 4), torch.tensor([4, 4])
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    paths = torch.multinomial(log_probs[0].exp(), n, replacement=True, generator=generator).T
    tokens, mask = collapse(paths, frames[:1].expand(n), 6)
    expected = enumerated(log_probs[0])
    rows, count = torch.unique(tokens, dim=0, return_counts=True)
    for row, k in zip(rows.tolist(), count.tolist(), strict=True):
        p = expected[tuple(row[: row.index(EOS)])]
        assert abs(k / n - p) < 5 * math.sqrt(p * (1 - p) / n) + 1e-9
    assert bool((mask.sum(1) == (tokens > PAD).sum(1)).all())


def test_paths_are_collapsed_ended_and_cut() -> None:
    path = torch.tensor([[0, 5, 5, 0, 5, 6, 6, 7], [0] * 8])
    tokens, mask = collapse(path, torch.tensor([7, 8]), 4)
    assert tokens.tolist() == [[5, 5, 6, EOS], [EOS, PAD, PAD, PAD]]
    assert mask.tolist() == [[True] * 4, [True, False, False, False]]
    assert collapse(path, torch.tensor([8, 8]), 3)[0][0].tolist() == [5, 5, 6]


def test_a_wide_search_of_lipnet_is_at_least_as_good_as_its_best_path() -> None:
    model = model_of(STCNN)
    assert isinstance(model, StcnnReader)
    clips = clips_of(STCNN)
    found = model.search(clips, 3, 9, width=60)
    best = model.sample(clips, 1, 9, temperature=0.0)
    assert found.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    reward = found.need("reward").unflatten(0, (3, 3))
    assert bool((reward[:, :-1] >= reward[:, 1:]).all())
    assert bool((reward[:, 0] >= best.need("log_prob_old").sum(1) - 1e-4).all())
    whole = model.score(found).log_prob.sum(1)
    assert bool((whole >= found.need("reward") - 1e-4).all())


def test_the_ctc_loss_reads_the_scores_of_lipnet() -> None:
    model = model_of(STCNN)
    batch = drawn(model, clips_of(STCNN), n=1)
    loss = CTC(blank=BLANK, eos=EOS)
    found = loss(model.score(batch, need=loss.need), batch).value
    length = batch.length - (batch.tokens == EOS).sum(1)
    expected = -batch.need("log_prob_old").sum(1) / length.clamp(min=1)
    torch.testing.assert_close(found, expected.mean())


@pytest.mark.gpu
@pytest.mark.parametrize("settings", ALL, ids=name_of)
def test_a_gpu_gives_the_scores_and_gradients_of_the_cpu(settings: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    here = model_of(settings)
    there = copy.deepcopy(here).to("cuda")
    batch = drawn(here, clips_of(settings))
    first, second = here.score(batch).log_prob, there.score(batch.to("cuda")).log_prob
    torch.testing.assert_close(second.cpu(), first, atol=1e-3, rtol=1e-3)
    first.sum().backward()
    second.sum().backward()
    for mine, its in zip(here.parameters(), there.parameters(), strict=True):
        if mine.grad is not None and its.grad is not None:
            torch.testing.assert_close(its.grad.cpu(), mine.grad, atol=1e-2, rtol=1e-2)
    drawn_there = there.sample(clips_of(settings).to("cuda"), 2, 9, generator=torch.Generator("cuda").manual_seed(0))
    again = there.score(drawn_there).log_prob
    torch.testing.assert_close(again, drawn_there.log_prob_old, atol=1e-3, rtol=1e-3)


def test_refusals() -> None:
    fast, lipnet = model_of(FAST), model_of(STCNN)
    batch = drawn(fast, clips_of(FAST))
    plain = model_of(FAST.model_copy(update={"value_head": False}))
    with pytest.raises(InputError, match=r"value .its settings have no value_head"):
        plain.score(batch, need=frozenset({"value"}))
    with pytest.raises(InputError, match=r"cannot fill TokenScores\.frames"):
        fast.score(batch, need=frozenset({"frames"}))
    with pytest.raises(InputError, match="reads features"):
        fast.sample(clips_of(PAPER), 1, 5)
    with pytest.raises(InputError, match=r"reads \(P, T, H, W\)"):
        model_of(PAPER).sample(clips_of(FAST), 1, 5)
    with pytest.raises(InputError, match="30 x 30; this model reads 24 x 32"):
        lipnet.sample(Clips.whole(torch.zeros(1, 9, 30, 30)), 1, 5)
    own = drawn(lipnet, clips_of(STCNN))
    with pytest.raises(InputError, match="replace"):
        lipnet.score(own, replace=own.tokens)
    with pytest.raises(InputError, match="prefix"):
        lipnet.sample(clips_of(STCNN), 2, 9, prefix=own)
    with pytest.raises(InputError, match="has no attention"):
        lipnet.attention(own)


def test_clips_that_no_model_can_read_are_refused() -> None:
    good = torch.zeros(2, 8, 24, 24)
    assert len(Clips.whole(good).check()) == 2
    bad = good.clone()
    bad[1, 6, 3, 3] = torch.nan
    assert Clips(bad, torch.tensor([8, 6])).check() is not None
    for clips, message in (
        (Clips(bad, torch.tensor([8, 7])), "clip 1: frame 6"),
        (Clips(good, torch.tensor([4, 8])), "clip 0: 4 frames; allowed: 5 to 8"),
        (Clips(good, torch.tensor([8, 9])), "clip 1: 9 frames"),
        (Clips.whole(good[..., :20]), "frames of 24 x 20"),
    ):
        with pytest.raises(InputError, match=message):
            clips.check()

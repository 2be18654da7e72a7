from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from core.errors import InputError
from core.sequence.advantages import Whole, leave_one_out
from core.sequence.any_loss import AnyLoss
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.losses import Reinforce
from core.sequence.windows import Windowed
from tests.core.token_batches import gradient, ragged, scores_of


def literal(loss: Windowed, scores: TokenScores, batch: TokenBatch, reward: torch.Tensor | None = None) -> torch.Tensor:
    """The double sum as it is written: a loop over sequences, windows and places in them."""
    r = batch.need("reward") if reward is None else reward
    w = loss.weights or [loss.gamma**j for j in range(loss.kernel)]
    k, s = loss.kernel, loss.stride
    total = torch.zeros((), dtype=r.dtype)
    for b in range(len(batch)):
        n = int(batch.length[b])
        starts = range(1 - k, n, s) if loss.pad == "both" else range(0, n - k + 1, s)
        if loss.pad == "both":
            assert len(starts) == (n + k - 2) // s + 1

        def at(x: torch.Tensor, t: int, b: int = b) -> torch.Tensor:
            # Rewards beyond the end are there where those of other sequences were taken from them.
            inside = 0 <= t < x.shape[1] and (x is r or bool(batch.mask[b, t]))
            return x[b, t] if inside else x.new_zeros(())

        for q in starts:
            if loss.causal:
                for i, j in itertools.product(range(k), range(k)):
                    if j >= i:
                        total = total - w[i] * w[j] * at(scores.log_prob, q + i) * at(r, q + j) / k
            else:
                rewards = sum(w[j] * at(r, q + j) for j in range(k))
                losses = sum(w[j] * -at(scores.log_prob, q + j) for j in range(k))
                total = total + rewards * losses / k
    return total / len(batch)


SETTINGS = [
    {"kernel": k, "stride": s, "pad": pad, "causal": causal, **weights}
    for k, s, pad, causal, weights in itertools.product(
        (1, 2, 3, 5, 7),
        (1, 2, 3),
        ("both", "none"),
        (False, True),
        ({}, {"gamma": 0.7}, {"weights": "drawn"}),
    )
    if s <= k
]


def test_the_credit_form_is_the_double_sum_in_value_and_gradient() -> None:
    batch = ragged(rows=5, prompts=1)
    scores = scores_of(batch)
    for given in SETTINGS:
        settings: dict[str, Any] = dict(given)
        if "weights" in settings:
            g = torch.Generator().manual_seed(settings["kernel"])
            settings["weights"] = tuple(torch.randn(settings["kernel"], generator=g).tolist())
        loss = Windowed(**settings)
        found, wanted = loss(scores, batch).value, literal(loss, scores, batch)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12, msg=str(settings))
        torch.testing.assert_close(
            gradient(found, scores.log_prob), gradient(wanted, scores.log_prob), msg=str(settings)
        )


def test_windows_that_begin_further_apart_than_they_are_wide_skip_tokens() -> None:
    batch = ragged(rows=5, prompts=1)
    scores = scores_of(batch)
    loss = Windowed(kernel=2, stride=4, allow_gaps=True)
    torch.testing.assert_close(loss(scores, batch).value, literal(loss, scores, batch))


def test_one_token_wide_windows_are_the_gradient_of_the_immediate_reward() -> None:
    batch = ragged()
    scores = scores_of(batch)
    found = Windowed(kernel=1, stride=1)(scores, batch).value
    immediate = Reinforce()(scores, batch.with_(advantage=batch.need("reward"))).value
    torch.testing.assert_close(found, immediate)


def test_one_window_over_a_whole_sequence_is_reinforce() -> None:
    # n(1 - CER)/(n k) log pi, where the reward of a token is already a part of n.
    batch = ragged()
    full = batch.with_(mask=torch.ones_like(batch.mask), reward=torch.randn(12, 7, dtype=torch.float64))
    scores = scores_of(full)
    for stride in (1, 3, 7):
        found = Windowed(kernel=7, stride=stride, pad="none")(scores, full).value
        torch.testing.assert_close(found, Reinforce()(scores, Whole()(full)).value / 7)


def test_overlapping_windows_are_a_triangle_around_the_token() -> None:
    k, length = 4, 20
    A, _ = Windowed(kernel=k, stride=1).windows(length)
    t = torch.arange(length)
    torch.testing.assert_close(A.T @ A, (k - (t - t.unsqueeze(1)).abs()).clamp(min=0).double())


def test_a_constant_reward_credits_each_token_with_about_the_width_over_the_stride() -> None:
    batch = ragged(rows=2, length=60, prompts=1)
    batch = batch.with_(mask=torch.ones_like(batch.mask), reward=torch.ones(2, 60, dtype=torch.float64))
    for k, s in ((5, 2), (9, 3), (4, 1)):
        inner = Windowed(kernel=k, stride=s).credit(batch)[:, k : 60 - k] / k
        assert float(inner.mean()) == pytest.approx(k / s, rel=0.03)


def test_a_causal_credit_ignores_what_came_before() -> None:
    batch = ragged(rows=4, prompts=1)
    later = batch.need("reward").clone()
    later[:, :3] += 1
    loss, moved = Windowed(causal=True), batch.with_(reward=later)
    torch.testing.assert_close(loss.credit(moved)[:, 3:], loss.credit(batch)[:, 3:])
    assert not torch.allclose(Windowed().credit(moved)[:, 3:], Windowed().credit(batch)[:, 3:])


@pytest.mark.parametrize("causal", [False, True])
def test_the_group_baseline_takes_the_others_windowed_rewards_aligned_by_window(causal: bool) -> None:
    batch = ragged()
    scores = scores_of(batch)
    others = leave_one_out(batch.need("reward"), batch.group)
    loss = Windowed(kernel=3, stride=2, causal=causal, baseline="group")
    torch.testing.assert_close(loss(scores, batch).value, literal(loss, scores, batch, others))
    # The same by the windowed rewards themselves, of which all sequences have equally many once padded.
    A, _ = Windowed(kernel=3, stride=2).windows(7)
    windowed = batch.need("reward") @ A.T
    if not causal:
        credit = leave_one_out(windowed, batch.group) @ A
        torch.testing.assert_close(loss.credit(batch), torch.where(batch.mask, credit, 0.0))


def test_equal_sequences_get_no_credit_beside_a_group_baseline() -> None:
    batch = ragged(rows=6, prompts=6)
    twice = TokenBatch.joined((batch, batch))
    assert Windowed(baseline="group").credit(twice).abs().max() < 1e-12


def test_standardised_credit_has_no_scale() -> None:
    batch = ragged()
    loss = Windowed(kernel=3, stride=1, baseline="zscore")
    found = loss.credit(batch.with_(reward=9 * batch.need("reward")))
    torch.testing.assert_close(found, loss.credit(batch), rtol=1e-5, atol=1e-5)
    kept = found[0]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-9)
    assert float(kept.std()) == pytest.approx(1, rel=1e-5)


def test_padding_changes_nothing() -> None:
    batch = ragged()
    for loss in (
        Windowed(),
        Windowed(pad="none"),
        Windowed(baseline="group"),
        Windowed(baseline="zscore", causal=True),
    ):
        torch.testing.assert_close(loss.credit(batch.pad_to(25))[:, :7], loss.credit(batch))


def test_a_reward_of_the_sequence_stands_at_its_last_token() -> None:
    batch = ragged()
    last = torch.nn.functional.one_hot(batch.length - 1, 7).double()
    total = batch.need("reward").sum(1)
    found = Windowed().credit(batch.with_(reward=total))
    torch.testing.assert_close(found, Windowed().credit(batch.with_(reward=last * total.unsqueeze(1))))


def test_short_sequences_are_survived_and_forced_tokens_get_no_gradient() -> None:
    short = ragged(rows=4, length=1, prompts=2)
    assert torch.isfinite(Windowed(kernel=5)(scores_of(short), short).value)
    batch = ragged()
    mask = batch.mask.clone()
    mask[:, :2] = False
    forced = batch.with_(mask=mask, present=batch.mask)
    scores = scores_of(forced)
    assert not gradient(Windowed()(scores, forced).value, scores.log_prob)[:, :2].any()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kernel": 0}, "kernel"),
        ({"stride": 0}, "stride"),
        ({"kernel": 2, "stride": 3}, "stride: 3 is not in"),
        ({"kernel": 3, "weights": (1.0, 2.0)}, "weights"),
        ({"gamma": 0.0}, "gamma"),
        ({"kernel": 2, "gamma": 0.9, "weights": (1.0, 2.0)}, "gamma"),
        ({"pad": "left"}, "pad"),
        ({"baseline": "mean"}, "baseline"),
    ],
)
def test_impossible_windows_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"Windowed.{named}"):
        Windowed(**settings)
    with pytest.raises(ValidationError):
        TypeAdapter(AnyLoss).validate_python({"name": "pcpg", **settings})


def test_batches_that_a_setting_does_not_fit_are_refused() -> None:
    batch = ragged()
    with pytest.raises(InputError, match=r"kernel: 8 is not in \[1, 7\]"):
        Windowed(kernel=8, pad="none").credit(batch)
    with pytest.raises(InputError, match="row 1 is the only sequence"):
        Windowed(baseline="group").credit(batch[torch.tensor([0, 1, 3])])


def test_a_configuration_names_windows_by_the_paper() -> None:
    found = TypeAdapter(AnyLoss).validate_python({"name": "pcpg", "kernel": 2, "weights": [1, 0.5]})
    assert found == Windowed(kernel=2, weights=(1.0, 0.5))

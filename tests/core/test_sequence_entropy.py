from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from core.errors import InputError
from core.sequence.batch import TokenScores
from core.sequence.entropy import EntropyMonitor, entropy_alarm, entropy_change, fit_entropy_law
from core.sequence.surrogate import covariance
from tests.core.token_batches import ragged, scores_of


def entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def states() -> tuple[Tensor, Tensor]:
    """512 random softmax policies over 11 actions, and advantages that they have mean 0 under."""
    g = torch.Generator().manual_seed(0)
    logits, a = (torch.randn(512, 11, generator=g, dtype=torch.float64) for _ in range(2))
    return logits, a - (logits.softmax(-1) * a).sum(-1, keepdim=True)


@pytest.mark.parametrize("natural", [False, True])
def test_the_entropy_changes_by_minus_the_covariance_up_to_second_order(natural: bool) -> None:
    logits, a = states()
    direction = a if natural else logits.softmax(-1) * a
    errors = []
    for eta in (1e-1, 1e-2, 1e-3, 1e-4):
        exact = entropy(logits + eta * direction) - entropy(logits)
        errors.append(float((exact - entropy_change(logits, eta * direction)).abs().max()))
    orders = -np.diff(np.log10(errors))
    assert np.abs(orders - 2).max() < 0.05, (errors, orders)


def test_a_natural_gradient_step_changes_it_by_the_covariance_of_log_probability_and_advantage() -> None:
    logits, a = states()
    p, log_p = logits.softmax(-1), logits.log_softmax(-1)
    cov = (p * (log_p - (p * log_p).sum(-1, keepdim=True)) * (a - (p * a).sum(-1, keepdim=True))).sum(-1)
    torch.testing.assert_close(entropy_change(logits, a), -cov)
    torch.testing.assert_close(entropy_change(logits, a + 3.0), -cov)


def test_rewarding_the_probable_lowers_the_entropy_and_the_improbable_raises_it() -> None:
    logits, _ = states()
    log_p = logits.log_softmax(-1)
    assert (entropy_change(logits, log_p) < 0).all()
    assert (entropy_change(logits, -log_p) > 0).all()


def test_the_monitor_logs_what_a_plain_computation_gives() -> None:
    batch = ragged(rows=40, prompts=5)
    scores = scores_of(batch)
    found = EntropyMonitor(shares=(0.02, 0.2)).update(scores, batch)
    kept = scores.need("entropy")[batch.mask]
    cov = covariance(scores.log_prob, batch.need("advantage"), batch.mask)[batch.mask]
    top = cov.sort(descending=True).values
    n = len(cov)
    wanted = {
        "entropy": kept.mean(),
        "entropy_q50": kept.quantile(0.5),
        "entropy_q80": kept.quantile(0.8),
        "entropy_q95": kept.quantile(0.95),
        "entropy_q99": kept.quantile(0.99),
        "cov": cov.mean(),
        "cov_positive": (cov > 0).double().mean(),
        "entropy_slope": -cov.mean(),
        "cov_top_2%": top[: max(1, int(0.02 * n))].mean(),
        "cov_top_20%": top[: int(0.2 * n)].mean(),
        "reward": batch.need("reward").sum(1).mean(),
        "tied": torch.zeros(()),
    }
    x = (scores.log_prob - batch.need("log_prob_old"))[batch.mask]
    wanted["kl"] = (x.exp() - 1 - x).mean()
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert float(found[name]) == pytest.approx(float(value.detach()), rel=1e-6), name
        assert found[name].dim() == 0
        assert not found[name].requires_grad


def test_the_monitor_counts_prompts_whose_rewards_are_all_equal() -> None:
    batch = ragged(rows=12, prompts=3)
    r = torch.arange(12.0)
    r[batch.group == 1] = 0.3
    assert float(EntropyMonitor().update(scores_of(batch), batch.with_(reward=r))["tied"]) == pytest.approx(1 / 3)


def test_the_monitor_leaves_out_what_it_cannot_know() -> None:
    batch = ragged()
    bare = batch.with_(reward=None, advantage=None, log_prob_old=None)
    assert EntropyMonitor().update(TokenScores(batch.need("log_prob_old")), bare) == {}
    with pytest.raises(InputError, match=r"EntropyMonitor\.quantiles"):
        EntropyMonitor(quantiles=(0.5, 1.5))


def test_the_law_is_found_again_where_it_holds() -> None:
    rng = np.random.default_rng(0)
    h = np.linspace(0.7, 0.15, 200) + 0.02 * rng.normal(size=200)
    r = 1.2 - 0.45 * np.exp(h)
    exact = fit_entropy_law(h, r)
    assert (exact.a, exact.b, exact.r2) == pytest.approx((0.45, 1.2, 1.0))
    assert (exact.ceiling.mean, exact.ceiling.low, exact.ceiling.high) == pytest.approx((0.75, 0.75, 0.75))
    np.testing.assert_allclose(exact.reward(h), r)
    noisy = fit_entropy_law(torch.tensor(h), r + 0.02 * rng.normal(size=200))
    assert noisy.ceiling.low < 0.75 < noisy.ceiling.high
    assert 0.7 < noisy.r2 < 1
    slope, intercept = np.polyfit(np.exp(h), r, 1)
    assert (exact.a, exact.b) == pytest.approx((-slope, intercept))


def test_the_interval_of_the_ceiling_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    h = np.linspace(0.8, 0.1, 120)
    covered = 0
    for seed in range(100):
        found = fit_entropy_law(h, 1 - 0.4 * np.exp(h) + 0.05 * rng.normal(size=120), seed=seed, resamples=400).ceiling
        covered += found.low < 0.6 < found.high
    # A bootstrap of 20 blocks is a little narrow; 100 draws of .95 lie above 86 but once in 10^4.
    assert covered >= 86


def test_rewards_that_cannot_be_fitted_are_refused() -> None:
    h = [0.1 * i for i in range(30)]
    for entropies, rewards, settings in (
        (h, h[:-1], {}),
        (h[:10], h[:10], {}),
        ([0.5] * 30, h, {}),
        ([math.nan, *h[1:]], h, {}),
        (h, h, {"level": 1.0}),
        (h, h, {"blocks": 1}),
    ):
        with pytest.raises(InputError):
            fit_entropy_law(entropies, rewards, **settings)  # type: ignore[arg-type]
    assert fit_entropy_law(h, [1.0] * 30).r2 == 0


def test_the_alarm_is_raised_by_collapse_and_by_explosion_alone() -> None:
    falling, rising = [0.7 * 0.9**i for i in range(200)], [0.1 * 1.05**i for i in range(60)]
    assert entropy_alarm(falling[:60], [0.01 * i for i in range(60)]) is None
    assert "collapsed" in (entropy_alarm(falling, [0.5] * 200) or "")
    assert entropy_alarm(falling, [0.01 * i for i in range(200)]) is None
    assert "risen" in (entropy_alarm(rising, [0.5] * 60) or "")
    assert entropy_alarm(rising[:20], [0.5] * 20) is None


def test_a_batch_without_sequences_has_nothing_to_watch() -> None:
    batch = ragged()
    assert EntropyMonitor().update(scores_of(batch)[:0], batch[:0]) == {}
    assert EntropyMonitor().update(scores_of(batch), batch.with_(mask=torch.zeros_like(batch.mask))) == {}

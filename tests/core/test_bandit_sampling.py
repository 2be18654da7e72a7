import numpy as np
import pytest
import torch
from scipy import stats

from core import bandits
from core.errors import InputError

DTYPES = [torch.float32, torch.float64]


def rows(n, actions=6, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, actions, generator=rng, dtype=torch.float64).to(dtype)
    mask = torch.rand(n, actions, generator=rng) < 0.6
    mask[:, 2] = True
    return scores, mask, torch.rand(n, generator=rng, dtype=torch.float64)


def test_actions_are_drawn_as_often_as_their_probabilities_say():
    p = torch.tensor([0.5, 0.0, 0.2, 0.299, 0.001, 0.0], dtype=torch.float64)
    n = 200_000
    mask = (p > 0).expand(n, 6)
    choice = bandits.sample_actions(p.expand(n, 6), mask, rows(n)[2])
    counts = choice.action.bincount(minlength=6).numpy()
    assert (counts[[1, 5]] == 0).all()
    drawn = (p > 0).numpy()
    assert stats.chisquare(counts[drawn], n * p.numpy()[drawn]).pvalue > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_drawing_inverts_the_cumulative_sum_and_returns_the_propensity(dtype):
    scores, mask, uniforms = rows(2000, dtype=dtype)
    p = bandits.inverse_gap_weighting(scores, mask, 5.0)
    choice = bandits.sample_actions(p, mask, uniforms)
    steps = np.cumsum(p.double().numpy(), axis=1)
    expected = [np.searchsorted(row, u, side="right") for row, u in zip(steps, uniforms.numpy(), strict=True)]
    # A uniform within rounding of a step may go either way in float32.
    assert (choice.action.numpy() != expected).mean() <= (2e-3 if dtype == torch.float32 else 0)
    assert torch.equal(choice.propensity, p.gather(1, choice.action[:, None])[:, 0])
    assert choice.propensity.dtype == dtype
    assert mask.gather(1, choice.action[:, None]).all()


def test_the_same_uniform_draws_the_same_action_in_any_batch():
    scores, mask, uniforms = rows(500)
    p = bandits.softmax(scores, mask, 0.1)
    together = bandits.sample_actions(p, mask, uniforms)
    alone = [bandits.sample_actions(p[i : i + 1], mask[i : i + 1], uniforms[i : i + 1]) for i in range(0, 500, 50)]
    assert [int(c.action) for c in alone] == together.action[::50].tolist()
    assert bandits.sample_actions(p[:0], mask[:0], uniforms[:0]).action.shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_uniform_beyond_the_sum_takes_the_last_action_with_probability(dtype):
    short = 1 - 8 * torch.finfo(dtype).eps
    p = torch.tensor([[0.0, short / 2, short / 2, 0.0, 0.0]], dtype=dtype)
    mask = torch.tensor([[True, True, True, True, False]])
    below_one = 1 - torch.finfo(torch.float64).eps / 2  # rounds to 1 in float32
    choice = bandits.sample_actions(p, mask, torch.tensor([below_one], dtype=torch.float64))
    assert choice.action.tolist() == [2]
    assert float(choice.propensity) == pytest.approx(0.5)


def test_a_uniform_of_zero_takes_the_first_action_with_probability():
    p = torch.tensor([[0.0, 0.0, 0.25, 0.75]], dtype=torch.float64)
    assert bandits.sample_actions(p, p > 0, torch.zeros(1)).action.tolist() == [2]


def test_every_uniform_draws_an_available_action_of_every_rule():
    n = 20_000
    scores, mask, _ = rows(n, actions=32, dtype=torch.float32)
    ends = torch.tensor([0.0, 1e-12, 1 - 2**-24, 1 - 2**-53], dtype=torch.float64).repeat(n // 4)
    for p in (
        bandits.inverse_gap_weighting(scores, mask, 1e5),
        bandits.softmax(scores, mask, 0.01),
        bandits.greedy(scores, mask),
        bandits.uniform(mask, torch.float32),
        bandits.with_minimum(bandits.softmax(scores, mask, 0.1), mask, 0.1),
    ):
        choice = bandits.sample_actions(p, mask, ends)
        assert mask.gather(1, choice.action[:, None]).all()
        assert (choice.propensity > 0).all()


def test_slice_explores_by_the_coin_and_logs_both_propensities():
    n, epsilon = 40_000, 0.2
    scores, mask, uniforms = rows(n)
    coins = torch.rand(n, generator=torch.Generator().manual_seed(9))
    choice = bandits.sample_epsilon_slice(scores, mask, epsilon, coins, uniforms)
    assert torch.equal(choice.explored, coins < epsilon)
    best, available = bandits.best_action(scores, mask), mask.sum(1)
    assert torch.equal(choice.action[~choice.explored], best[~choice.explored])
    torch.testing.assert_close(choice.given_coin, torch.where(choice.explored, 1 / available, 1.0).double())
    marginal = bandits.epsilon_greedy(scores, mask, epsilon).gather(1, choice.action[:, None])[:, 0]
    assert torch.equal(choice.propensity, marginal)
    # Both are the propensities of what was drawn: sum over actions of E[1{a} / p] = n_A, in the slice and overall.
    every = available.double()
    for weight, of in ((1 / choice.given_coin, choice.explored), (1 / choice.propensity, coins < 1)):
        assert float(weight[of].mean()) == pytest.approx(float(every[of].mean()), rel=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, m, u: (p * torch.linspace(1, 1.01, 50)[:, None], m, u), "sum of the probabilities: row 1 is 1.0002"),
        (lambda p, m, u: (p.index_fill(0, torch.tensor([3]), torch.nan), m, u), "sum of the probabilities: row 3"),
        (lambda p, m, u: (p, m, u - 0.5), r"uniforms: row \d+ is -0.*allowed is \[0, 1\)"),
        (lambda p, m, u: (p, m, u * torch.nan), "uniforms: row 0 is nan"),
        (lambda p, m, u: (p, m.index_fill(0, torch.tensor([5]), False), u), "drawn action: row 5"),
        (lambda p, m, u: (p, m[:, :3], u), "must be .n, K., .n, K. and .n,."),
        (lambda p, m, u: (p, m, u[:4]), "must be .n, K., .n, K. and .n,."),
        (lambda p, m, u: (p.half(), m, u), "float16"),
    ],
)
def test_refusals_name_the_row_in_one_line(change, message):
    scores, mask, uniforms = rows(50)
    with pytest.raises(InputError, match=message) as refusal:
        bandits.sample_actions(*change(bandits.softmax(scores, mask, 0.1), mask, uniforms))
    assert "\n" not in str(refusal.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_agrees_with_cpu(dtype):
    n = 100_000
    scores, mask, uniforms = rows(n, actions=32, dtype=dtype)
    p = bandits.inverse_gap_weighting(scores, mask, 300.0)
    ours = bandits.sample_actions(p.cuda(), mask.cuda(), uniforms.cuda())
    theirs = bandits.sample_actions(p, mask, uniforms)
    # Sums in another order move a step of the cumulative sum by 1e-7, over at most 32 steps a row.
    same = ours.action.cpu() == theirs.action
    assert int((~same).sum()) <= (n * 32 * 4e-7 if dtype == torch.float32 else 0)
    torch.testing.assert_close(ours.propensity.cpu()[same], theirs.propensity[same], rtol=0, atol=1e-5)
    assert mask.gather(1, ours.action.cpu()[:, None]).all()

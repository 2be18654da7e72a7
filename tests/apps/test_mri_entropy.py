"""What the next sample would tell, when to take it, and how to choose several at once."""

import itertools
import math

import pytest
import torch

from apps.mri.batch_design import choose
from apps.mri.entropy import SCORES, entropy_scores, pairwise_distances
from apps.mri.schedule import acquisition_steps
from core.errors import InputError

RULES = ["residual", "neighbours", "covariance"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def noise_entropy(components, sigma):
    return 0.5 * components * math.log(2 * math.pi * math.e * sigma**2)


def direct(y, width):
    """Excess entropy (S, A) straight from its definition, in float64."""
    y = y.double()
    d = (y[:, :, None] - y[:, None]).square().sum(-1)
    return -(-d / width).exp().mean(2).log().mean(1)


def disagreeing(actions=20, components=32, particles=8, spread=1e-2, dtype=torch.float64):
    """Particles (1, P, A, R) about 20 in size that disagree more on later actions."""
    growing = spread * torch.linspace(0.5, 1.0, actions, dtype=torch.float64)[None, None, :, None]
    apart = growing * normal(1, particles, actions, components, seed=1)
    return (20 * normal(1, 1, actions, components) + apart).to(dtype)


@pytest.mark.parametrize("score", ["kl", "bhattacharyya"])
@pytest.mark.parametrize("particles", [2, 5, 16])
@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 50.0])
def test_the_entropy_beyond_the_noises_is_between_zero_and_log_p(score, particles, sigma):
    y = normal(2, particles, 4, 6) * torch.tensor([0.0, 1e-3, 1.0, 1e3], dtype=torch.float64)[:, None]
    excess = entropy_scores(y, sigma, score) - noise_entropy(6, sigma)
    assert bool((excess >= -1e-12).all())
    assert bool((excess <= math.log(particles) + 1e-12).all())
    assert excess[:, 0].abs().max() < 1e-12  # all particles agree
    assert bool((excess[:, 1:] > 1e-12).all())
    far = entropy_scores(1e6 * y[:, :, 3:], sigma, score) - noise_entropy(6, sigma)
    assert far == pytest.approx(math.log(particles), abs=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_the_order_of_the_particles_and_a_common_shift_do_not_matter(score):
    y = normal(2, 7, 5, 6)
    found = entropy_scores(y, 0.8, score, point=2)
    shuffled = y[:, torch.randperm(7, generator=seeded())]
    torch.testing.assert_close(entropy_scores(shuffled, 0.8, score, point=2), found, rtol=1e-12, atol=1e-12)
    moved = y + 30 * normal(2, 1, 5, 6, seed=3)
    torch.testing.assert_close(entropy_scores(moved, 0.8, score, point=2), found, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(entropy_scores(y[1:], 0.8, score, point=2), found[1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("apart", [0.3, 1.0, 2.0, 5.0])
def test_the_two_bounds_hold_the_entropy_of_the_mixture_between_them(apart):
    sigma, count = 0.7, 200_000
    y = apart * normal(1, 5, 1, 2, seed=4)
    drawn = torch.randint(5, (count,), generator=seeded(1))
    samples = y[0, drawn, 0] + sigma * normal(count, 2, seed=2)
    squared = (samples[:, None] - y[0, :, 0]).square().sum(-1)
    log_density = (-squared / (2 * sigma**2)).logsumexp(1) - math.log(5) - math.log(2 * math.pi * sigma**2)
    entropy, error = -log_density.mean(), log_density.std() / math.sqrt(count)
    low, high = (float(entropy_scores(y, sigma, score)) for score in ("bhattacharyya", "kl"))
    assert low <= entropy + 4 * error
    assert high >= entropy - 4 * error
    assert high - low > 5 * error  # so that neither bound could stand in for the other


def test_the_gram_form_equals_the_direct_one_in_float64():
    y = disagreeing(components=256, particles=16, dtype=torch.float32)
    for score, width in (("kl", 2.0), ("bhattacharyya", 8.0)):
        excess = entropy_scores(y, 1.0, score) - noise_entropy(256, 1.0)
        torch.testing.assert_close(excess, direct(y, width), rtol=0, atol=1e-6)
    exact = (y.double()[:, :, None] - y.double()[:, None]).square().sum(-1).permute(0, 3, 1, 2)
    torch.testing.assert_close(pairwise_distances(y).double(), exact, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_small_distances_do_not_vanish_beside_a_wide_belief(score):
    """The published sigma of 50: hundreds of nats of noise, and differences of a millionth."""
    y = disagreeing(components=256, spread=1e-3, dtype=torch.float32)
    spread = y.double().var(1, correction=0).sum(-1)[0]
    assert torch.equal(entropy_scores(y, 50.0, score, point=2)[0].argsort(), spread.argsort())


def test_distances_small_against_sigma_make_every_score_the_variance():
    y, sigma = disagreeing(), 5.0
    variance = y.var(1, correction=0).sum(-1)
    expected = {
        "kl": noise_entropy(32, sigma) + variance / sigma**2,
        "bhattacharyya": noise_entropy(32, sigma) + variance / (4 * sigma**2),
        "reference_positive": 8 * math.log(8) + 8 * variance / sigma**2,
        "kl_pixelwise": variance / sigma**2,
        "variance": variance,
        "noise_aware": variance / (2 * sigma**2),
    }
    assert set(expected) == set(SCORES)
    for score, value in expected.items():
        found = entropy_scores(y, sigma, score, point=2)
        torch.testing.assert_close(found - found.mean(), value - value.mean(), rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(found, value, rtol=1e-3, atol=0)


def test_point_by_point_is_the_sum_of_its_points():
    y = normal(2, 6, 5, 8)
    points = entropy_scores(y.reshape(2, 6, 20, 2), 0.6, "kl") - noise_entropy(2, 0.6)
    found = entropy_scores(y, 0.6, "kl_pixelwise", point=2)
    torch.testing.assert_close(found, points.view(2, 5, 4).sum(-1))
    pixels = y[..., :1]
    torch.testing.assert_close(
        entropy_scores(pixels, 0.6, "kl_pixelwise"), entropy_scores(pixels, 0.6, "kl") - noise_entropy(1, 0.6)
    )


def test_where_distances_are_large_one_outlier_counts_for_the_reference_and_not_for_the_entropy():
    y = torch.zeros(1, 6, 2, 1, dtype=torch.float64)
    y[0, 0, 0] = 30.0
    y[0, :, 1, 0] = 5 * torch.arange(6)
    assert int(entropy_scores(y, 1.0, "reference_positive").argmax()) == 0
    assert int(entropy_scores(y, 1.0, "kl").argmax()) == 1


def test_impossible_beliefs_are_refused():
    with pytest.raises(InputError, match="at least 2"):
        entropy_scores(normal(1, 1, 3, 2), 1.0)
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match=r"sigma: .* must be above 0"):
            entropy_scores(normal(1, 2, 3, 2), sigma)
    with pytest.raises(InputError, match=f"'entropy', must be one of {', '.join(SCORES)}$"):
        entropy_scores(normal(1, 2, 3, 2), 1.0, "entropy")


# ---- when


@pytest.mark.parametrize("window", [(0, 40), (3, 24), (50, 2500), (10, 11)])
@pytest.mark.parametrize("count", [1, 2, 7, 24, 31, 40])
def test_exactly_so_many_acquisitions_spread_evenly_over_the_window(window, count):
    start, end = window
    steps = acquisition_steps(count, window, 10_000)
    assert len(steps) == count
    assert steps[0] == start
    assert steps == sorted(steps)
    assert steps[-1] < end
    assert all(abs(k - (start + i * (end - start) / count)) <= 1 for i, k in enumerate(steps))


@pytest.mark.parametrize(
    ("count", "window", "taken"),
    [(24, (0, 800), 25), (250, (0, 800), 267), (500, (0, 800), 800), (100, (0, 800), 100), (31, (50, 2500), 31)],
)
def test_the_references_rule_takes_more_where_the_division_leaves_a_rest(count, window, taken):
    steps = acquisition_steps(count, window, 10_000, "reference")
    assert len(steps) == taken
    assert len(set(steps)) == taken


def test_nothing_to_take_takes_nothing():
    assert acquisition_steps(0, (0, 10), 10) == acquisition_steps(0, (0, 10), 10, "reference") == []


@pytest.mark.parametrize("window", [(5, 5), (6, 5), (-1, 5), (0, 11), (11, 12)])
def test_a_window_that_is_empty_or_outside_is_refused(window):
    with pytest.raises(InputError, match=f"window: steps {window[0]} to {window[1]}, must be .* steps = 10"):
        acquisition_steps(2, window, 10)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(InputError, match="'even', must be exact or reference"):
        acquisition_steps(2, (0, 5), 10, "even")


# ---- several at once


def variance(y):
    return y.var(1, correction=0).sum(-1)


def chosen(y, count, rule, *, sigma=0.1, allowed=None, score=variance, seeds=None):
    everything = torch.ones(y.shape[0], y.shape[2], dtype=torch.bool)
    luck = [seeded(seed) for seed in seeds or range(len(y))]
    return choose(y, everything if allowed is None else allowed, count, sigma, score, rule, luck)


@pytest.mark.parametrize("rule", RULES)
def test_one_action_is_the_best_one_and_of_equals_the_first(rule):
    y = normal(4, 6, 9, 3)
    actions, scores = chosen(y, 1, rule)
    assert torch.equal(scores, variance(y))
    assert torch.equal(actions[:, 0], variance(y).argmax(-1))
    equal = y[:, :, :1].expand(-1, -1, 9, -1)
    allowed = torch.ones(4, 9, dtype=torch.bool)
    allowed[:, :2] = False
    assert chosen(equal, 1, rule, allowed=allowed)[0].tolist() == [[2]] * 4


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [2, 5, 7])
def test_several_actions_are_different_and_allowed(rule, count):
    y = normal(5, 4, 10, 6)
    allowed = torch.ones(5, 10, dtype=torch.bool)
    allowed[:, [0, 4, 9]] = False
    actions, _ = chosen(y, count, rule, allowed=allowed)
    assert actions.shape == (5, count)
    assert all(len(set(row)) == count for row in actions.tolist())
    assert bool(allowed.gather(1, actions).all())


@pytest.mark.parametrize("rule", RULES)
def test_the_choices_for_a_subject_do_not_depend_on_its_batch(rule):
    y = normal(4, 6, 12, 3)
    together = chosen(y, 4, rule, seeds=[10, 11, 12, 13])[0]
    alone = torch.cat([chosen(y[i : i + 1], 4, rule, seeds=[10 + i])[0] for i in range(4)])
    assert torch.equal(together, alone)


def test_the_residual_knows_a_duplicate_when_it_sees_one():
    """Lines 1 and 3 say the same, and more than any other; line 5 says something else."""
    y = 0.1 * normal(1, 200, 7, 2)
    y[:, :, 1] = y[:, :, 3] = normal(1, 200, 2, seed=1)
    y[:, :, 5] = 0.5 * normal(1, 200, 2, seed=2)
    assert variance(y)[0].topk(3).indices.sort().values.tolist() == [1, 3, 5]
    assert chosen(y, 2, "residual")[0].tolist() == [[1, 5]]
    assert sorted(chosen(y, 2, "covariance")[0][0].tolist()) in ([1, 5], [3, 5])
    # Even a duplicate in other units.
    y[:, :, 3] = -3 * y[:, :, 1] + 4
    assert chosen(y, 2, "residual")[0].tolist() == [[3, 5]]


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_what_a_choice_leaves_is_the_gaussian_residual(sigma):
    """Two lines that are multiples of each other: the regression on one, known to within sigma, leaves that share."""
    y = normal(1, 50, 1, 1) * torch.tensor([3.0, 2.0], dtype=torch.float64).view(1, 1, 2, 1)
    worth = []

    def score(particles):
        worth.append(variance(particles)[0])
        return worth[-1][None]

    chosen(y, 2, "residual", sigma=sigma, score=score)
    left = sigma**2 / (worth[0][0] + sigma**2)
    torch.testing.assert_close(worth[1], worth[0] * left**2, rtol=1e-6, atol=0)


def test_a_choice_is_known_to_within_sigma_and_does_not_explain_everything():
    """Four particles and lines of eight components: each line alone could tell the particles apart."""
    y = normal(1, 4, 3, 8) * torch.tensor([3.0, 0.2, 2.0], dtype=torch.float64)[:, None]
    assert chosen(y, 2, "residual", sigma=1.0)[0].tolist() == [[0, 2]]
    # Of a duplicate little is known where sigma is wide: it stays worth more than a line that says little.
    y[:, :, 1] = y[:, :, 0]
    y[:, :, 2] *= 0.3
    assert chosen(y, 2, "residual", sigma=20.0)[0].tolist() == [[0, 1]]


def test_what_is_independent_of_a_choice_keeps_its_worth():
    basis = torch.linalg.qr(normal(40, 12) - normal(40, 12).mean(0))[0]
    y = (basis[:, :12] * torch.linspace(1, 2, 12, dtype=torch.float64)).view(1, 40, 12, 1)
    y = y - y.mean(1, keepdim=True)
    order = chosen(y, 12, "residual", sigma=0.01)[0][0]
    assert order.tolist() == list(range(11, -1, -1))


def test_the_covariance_rule_finds_the_best_set_of_a_few():
    y, sigma = normal(3, 5, 6, 2), 0.3
    centred = (y - y.mean(1, keepdim=True)).transpose(1, 2).flatten(2)
    covariance = centred @ centred.mT / 5 + sigma**2 * torch.eye(6, dtype=torch.float64)
    for count in (2, 3):
        sets = torch.tensor(list(itertools.combinations(range(6), count)))
        values = torch.stack([torch.logdet(covariance[:, s][:, :, s]) for s in sets], 1)
        found = chosen(y, count, "covariance", sigma=sigma)[0]
        assert torch.equal(found.sort(1).values, sets[values.argmax(1)])


def test_neighbours_of_a_choice_are_worth_less():
    worth = torch.tensor([[0.3, 0.5, 1.0, 0.95, 0.6, 0.55, 0.44, 0.1]], dtype=torch.float64)
    expected, left = [], worth[0].clone()
    for _ in range(4):
        best = int(left.argmax())
        expected.append(best)
        for i in range(8):
            if abs(i - best) <= 2:
                left[i] *= 1 - math.exp(-0.5 * (i - best) ** 2)
    assert expected[:2] == [2, 5]  # and not 3 or 4, which were the next best
    actions, first = chosen(normal(1, 3, 8, 1), 4, "neighbours", score=lambda y: worth)
    assert actions.tolist() == [expected]
    assert torch.equal(first, worth)


def test_an_unknown_rule_is_refused():
    with pytest.raises(InputError, match="'best', must be residual, neighbours or covariance"):
        chosen(normal(1, 3, 8, 1), 2, "best")

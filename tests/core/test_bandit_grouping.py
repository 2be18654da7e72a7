import math
from itertools import pairwise

import pytest
import torch

from core import bandits
from core.errors import InputError


def world(n=3000, groups=4, each=5, clusters=6, within=0.0, seed=0):
    """Rewards of actions that differ between groups, and by ``within`` inside them; the mask, clusters and groups."""
    rng = torch.Generator().manual_seed(seed)
    of = torch.arange(groups).repeat(each)
    centre = torch.rand(clusters, groups, generator=rng, dtype=torch.float64)
    own = within * (torch.rand(clusters, groups * each, generator=rng, dtype=torch.float64) - 0.5)
    cluster = torch.randint(clusters, (n,), generator=rng)
    level = 0.2 * torch.randn(n, 1, generator=rng, dtype=torch.float64)
    mask = torch.rand(n, groups * each, generator=rng) < 0.6
    mask[:, 0] = True
    return level + (centre[:, of] + own)[cluster], mask, cluster, of


def distribution(mask, seed):
    rng = torch.Generator().manual_seed(seed)
    p = torch.rand(mask.shape, generator=rng, dtype=torch.float64).pow(2) * mask
    return p / p.sum(1, keepdim=True)


def test_effects_are_mean_scores_beyond_the_rows_own():
    scores = torch.tensor([[1.0, 3.0, 8.0], [2.0, 6.0, 100.0], [1.0, 2.0, 3.0]])
    mask = torch.tensor([[True, True, False], [True, True, False], [True, True, True]])
    effects = bandits.effect_vectors(scores, mask, torch.tensor([0, 0, 2]))
    # Cluster 0: (-1 and -2) / 2 and its opposite; cluster 2: -1, 0, 1; nothing of cluster 1, nor of action 2 in 0.
    expected = [[-1.5, (-1 - 2 - 1) / 3, -1.0], [1.5, (1 + 2 + 0) / 3, 0.0], [1.0, 1.0, 1.0]]
    torch.testing.assert_close(effects, torch.tensor(expected, dtype=torch.float64))


def test_effects_do_not_depend_on_the_level_of_a_row():
    scores, mask, cluster, _ = world()
    shifted = scores + torch.randn(len(scores), 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(
        bandits.effect_vectors(shifted, mask, cluster), bandits.effect_vectors(scores, mask, cluster)
    )


def test_agglomeration_finds_the_groups_there_are():
    scores, mask, cluster, groups = world(within=0.02)
    effects = bandits.effect_vectors(scores, mask, cluster)
    assert torch.equal(bandits.agglomerate(effects, 4), groups)
    assert bandits.agglomerate(effects, 1).tolist() == [0] * 20
    assert bandits.agglomerate(effects, 20).tolist() == list(range(20))
    assert bandits.agglomerate(effects[:1], 1).tolist() == [0]
    for h in range(1, 21):
        numbers = bandits.agglomerate(effects, h).tolist()
        assert list(dict.fromkeys(numbers)) == list(range(h))  # in the order of their lowest actions


def test_equal_actions_still_make_as_many_groups_as_asked():
    assert bandits.agglomerate(torch.zeros(8, 3), 5).unique().tolist() == list(range(5))


def test_the_number_of_groups_balances_spread_and_estimation():
    scores, mask, cluster, groups = world(within=0.02)
    half = len(scores) // 2
    effects = bandits.effect_vectors(scores[:half], mask[:half], cluster[:half])
    chosen = bandits.choose_grouping(effects, scores[half:], mask[half:], rows=10_000)
    assert torch.equal(chosen.groups, groups)
    assert chosen.sizes == tuple(range(1, 21))
    assert chosen.spread[19] == 0.0
    assert all(coarse > fine for coarse, fine in pairwise(chosen.spread[:4]))
    for h, spread, criterion in zip(chosen.sizes, chosen.spread, chosen.criterion, strict=True):
        assert criterion == pytest.approx(spread + math.sqrt(h * math.log(10_000) / 10_000))
    # Estimation that costs much affords one group; that costs nothing, one for each action.
    costly = bandits.choose_grouping(effects, scores[half:], mask[half:], rows=10, c=10.0)
    assert costly.groups.unique().tolist() == [0]
    free = bandits.choose_grouping(effects, scores[half:], mask[half:], rows=10_000, c=0.0)
    assert free.groups.tolist() == list(range(20))
    assert bandits.choose_grouping(effects, scores, mask, 10_000, sizes=(2, 16)).sizes == (2, 16)


def test_spread_is_the_mean_range_within_groups():
    scores = torch.tensor([[1.0, 4.0, 2.0, 9.0], [5.0, math.nan, 1.0, 1.5]])
    mask = torch.tensor([[True, True, True, True], [True, False, True, True]])
    groups = torch.tensor([0, 0, 1, 1])
    assert bandits.within_group_spread(scores, mask, groups) == pytest.approx(((3 + 7) / 2 + (0 + 0.5) / 2) / 2)
    # A group without an available action does not count.
    mask[1, 2:] = False
    assert bandits.within_group_spread(scores, mask, groups) == pytest.approx((5 + 0) / 2)
    target = torch.tensor([[0.1, 0.0, 0.9, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert bandits.within_group_spread(scores, mask, groups, target) == pytest.approx((0.3 + 6.3) / 2)


@pytest.mark.parametrize("within", [0.0, 0.1, 0.5])
def test_spread_bounds_the_bias_of_grouped_importance_weights(within):
    scores, mask, _, groups = world(within=within)
    target, logging = distribution(mask, 1), distribution(mask, 2)
    value = float((target * scores).sum(1).mean())
    over_groups = [bandits.group_probabilities(p, groups) for p in (target, logging)]
    weight = torch.where(over_groups[1] > 0, over_groups[0] / over_groups[1], 0.0)
    grouped = float((logging * weight[:, groups] * scores).sum(1).mean())
    bound = bandits.within_group_spread(scores, mask, groups, target)
    assert abs(grouped - value) <= bound + 1e-12
    if within == 0:
        assert grouped == pytest.approx(value)
    else:
        assert abs(grouped - value) > 1e-4


@pytest.mark.parametrize("gamma", [0.0, 20.0, 1e4])
def test_one_group_or_one_action_a_group_is_plain_inverse_gap_weighting(gamma):
    scores, mask, _, _ = world(n=300, within=0.3)
    plain = bandits.inverse_gap_weighting(scores, mask, gamma)
    for groups in (torch.zeros(20, dtype=torch.int64), torch.randperm(20)):
        grouped = bandits.grouped_inverse_gap_weighting(scores, mask, groups, gamma)
        torch.testing.assert_close(grouped, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grouped_weighting_is_groups_first_and_then_within(dtype):
    scores, mask, _, groups = world(n=200, within=0.3)
    mask[0, groups == 2] = False
    scores, gamma = scores.to(dtype), torch.linspace(0, 50, 200)
    p = bandits.grouped_inverse_gap_weighting(torch.where(mask, scores, math.nan), mask, groups, gamma)
    assert p.dtype == dtype
    assert (p[~mask] == 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(200, dtype=dtype))
    best = torch.stack([torch.where(mask & (groups == g), scores, -math.inf).amax(1) for g in range(4)], dim=1)
    over = bandits.inverse_gap_weighting(best, best > -math.inf, gamma)
    torch.testing.assert_close(bandits.group_probabilities(p, groups), over)
    for g in range(4):
        opened = mask[:, groups == g].any(1)
        within = bandits.inverse_gap_weighting(
            scores[opened][:, groups == g], mask[opened][:, groups == g], gamma[opened]
        )
        torch.testing.assert_close(p[opened][:, groups == g], within * over[opened, g : g + 1])


def test_many_like_actions_do_not_draw_exploration_from_the_others():
    # Fifteen copies of one action and one other: the other is explored as one of two, not as one of sixteen.
    scores, mask = torch.zeros(1, 16, dtype=torch.float64), torch.ones(1, 16).bool()
    groups = torch.tensor([0] * 15 + [1])
    p = bandits.grouped_inverse_gap_weighting(scores, mask, groups, 100.0)
    assert p[0, -1] == 0.5
    assert p[0, :-1].tolist() == pytest.approx([1 / 30] * 15)


def test_large_gamma_is_greedy():
    scores, mask, _, groups = world(n=200, within=0.5)
    p = bandits.grouped_inverse_gap_weighting(scores, mask, groups, 1e12)
    torch.testing.assert_close(p, bandits.greedy(scores, mask), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, m, c, g: bandits.effect_vectors(f[:0], m[:0], c[:0]), "at least 1 row"),
        (lambda f, m, c, g: bandits.effect_vectors(f, m, c - 9), "cluster of torch.int64: must be"),
        (lambda f, m, c, g: bandits.effect_vectors(f / 0, m, c), "scores: row 0, column 0 is -?inf"),
        (lambda f, m, c, g: bandits.agglomerate(torch.ones(4, 2), 5), "groups = 5: must be between 1 and .* 4"),
        (lambda f, m, c, g: bandits.choose_grouping(torch.ones(20, 2), f, m, 0), "rows = 0"),
        (lambda f, m, c, g: bandits.choose_grouping(torch.ones(20, 2), f, m, 5, c=-1.0), "c = -1.0"),
        (lambda f, m, c, g: bandits.within_group_spread(f, m & False, g), "available actions: row 0 is 0"),
        (lambda f, m, c, g: bandits.within_group_spread(f / 0, m, g), "spread of the scores: row 0"),
        (lambda f, m, c, g: bandits.within_group_spread(f[:0], m[:0], g), "no rows"),
        (lambda f, m, c, g: bandits.group_probabilities(f, g[:3]), r"groups of shape \(3,\)"),
        (lambda f, m, c, g: bandits.grouped_inverse_gap_weighting(f, m, g - 1, 1.0), "torch.int64 of at least 0"),
        (lambda f, m, c, g: bandits.grouped_inverse_gap_weighting(f, m & False, g, 1.0), "actions: row 0 is 0"),
        (lambda f, m, c, g: bandits.grouped_inverse_gap_weighting(f * math.nan, m, g, 1.0), "scores: row 0 is nan"),
        (lambda f, m, c, g: bandits.grouped_inverse_gap_weighting(f, m[:4], g, 1.0), "must have one shape"),
    ],
)
def test_refusals_name_what_is_wrong_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as refusal:
        call(*world(n=20))
    assert "\n" not in str(refusal.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu():
    scores, mask, cluster, groups = world(within=0.3)
    scores = scores.float()
    ours = bandits.grouped_inverse_gap_weighting(scores.cuda(), mask.cuda(), groups, 50.0).cpu()
    theirs = bandits.grouped_inverse_gap_weighting(scores, mask, groups, 50.0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    effects = bandits.effect_vectors(scores.cuda(), mask.cuda(), cluster.cuda())
    torch.testing.assert_close(effects.cpu(), bandits.effect_vectors(scores, mask, cluster), rtol=0, atol=1e-9)
    chosen = bandits.choose_grouping(effects, scores.cuda(), mask.cuda(), 1000)
    assert chosen.groups.is_cuda
    assert torch.equal(chosen.groups.cpu(), bandits.choose_grouping(effects.cpu(), scores, mask, 1000).groups)

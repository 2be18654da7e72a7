"""Fixed masks: the number of lines is exact, the centre is where it belongs, and draws follow their law."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from scipy import stats

from apps.mri.masks import FIXED_RULES, MaskProblem, draw_without_replacement, fixed_masks
from apps.mri.methods import generators
from core.errors import InputError

ANYWHERE = ("random", "equispaced", "uniform", "data_variance", "data_variance_top")
DRAWN = ("random", "equispaced", "uniform", "fastmri", "vds", "vds_gaussian", "data_variance")


def luck(count, first=0):
    return generators(range(first, first + count), torch.device("cpu"))


def lines(actions=32, budget=8, initial=1, **more):
    none = torch.zeros(actions, dtype=torch.bool)
    variance = torch.rand(actions, generator=torch.Generator().manual_seed(1)) ** 4
    problem = MaskProblem(actions, max(initial, 1), none, actions // 2, variance=variance, **more)
    return replace(problem, budget=budget, initial=problem.nearest(initial) if initial else none)


def pixels(budget=10):
    variance = torch.rand(64, generator=torch.Generator().manual_seed(1))
    return MaskProblem(64, budget, torch.zeros(64, dtype=torch.bool), variance=variance, width=8)


def taken(mask):
    return mask.nonzero().flatten().tolist()


@pytest.mark.parametrize("rule", FIXED_RULES)
@pytest.mark.parametrize(
    ("actions", "budget", "initial"),
    [(32, 8, 1), (32, 8, 0), (33, 5, 3), (128, 32, 1), (32, 32, 1), (32, 4, 4), (9, 1, 1)],
)
def test_every_mask_has_exactly_its_budget_and_the_initial_lines(rule, actions, budget, initial):
    problem = lines(actions, budget, initial)
    masks = fixed_masks(rule, problem, luck(40))
    assert masks.shape == (40, actions)
    assert masks.dtype == torch.bool
    assert masks.sum(1).tolist() == [budget] * 40
    assert bool(masks[:, problem.initial].all())


@pytest.mark.parametrize("rule", ANYWHERE)
@pytest.mark.parametrize("budget", [1, 10, 63, 64])
def test_so_have_masks_of_pixels(rule, budget):
    assert fixed_masks(rule, pixels(budget), luck(20)).sum(1).tolist() == [budget] * 20


@pytest.mark.parametrize("rule", FIXED_RULES)
def test_a_mask_is_the_same_in_whatever_batch_it_is_drawn(rule):
    problem = lines(32, 8, 1)
    together = fixed_masks(rule, problem, luck(6))
    alone = torch.cat([fixed_masks(rule, problem, luck(1, first=i)) for i in range(6)])
    assert torch.equal(together, alone)
    assert (len(together.unique(dim=0)) > 1) == (rule in DRAWN)


def test_the_published_fastmri_mask():
    """Lines 59 to 68 of 128, and 22 others anywhere."""
    masks = fixed_masks("fastmri", lines(128, 32, 1), luck(3000))
    assert bool(masks[:, 59:69].all())
    rest = torch.cat((masks[:, :59], masks[:, 69:]), 1)
    assert rest.sum(1).tolist() == [22] * 3000
    expected = 3000 * 22 / 118
    # A line is in or out: the sum of squares is a chi-square of 117 degrees, but for the factor of a fixed number.
    spread = ((rest.sum(0) - expected) ** 2 / (expected * (1 - 22 / 118))).sum() * 117 / 118
    assert 1e-3 < stats.chi2.sf(float(spread), 117) < 1 - 1e-3


@pytest.mark.parametrize(
    ("actions", "budget", "expected"),
    [(32, 8, range(12, 20)), (32, 7, range(13, 20)), (33, 4, range(14, 18)), (8, 8, range(8))],
)
def test_a_low_pass_mask_is_the_block_about_dc(actions, budget, expected):
    assert taken(fixed_masks("lowpass", lines(actions, budget, 1), luck(1))[0]) == list(expected)


def test_the_centre_of_k_space_points_is_a_disk():
    none = torch.zeros(15 * 15, dtype=torch.bool)
    problem = MaskProblem(225, 49, none, center=7 * 15 + 7, width=15)
    block = fixed_masks("lowpass", problem, luck(1))[0].view(15, 15)
    y, x = torch.meshgrid(torch.arange(15) - 7, torch.arange(15) - 7, indexing="ij")
    assert torch.equal(block, x**2 + y**2 <= 16)


def test_the_centre_block_never_exceeds_the_budget():
    masks = fixed_masks("vds", lines(32, 4, 1, center_fraction=0.5), luck(5))
    assert masks.sum(1).tolist() == [4] * 5


def test_variable_density_thins_out_with_the_distance_from_dc():
    counts = fixed_masks("vds", lines(64, 16, 1), luck(2000)).sum(0).double()
    assert counts[30:35].tolist() == [2000] * 5
    below, above = counts[1:30].flip(0), counts[35:64]
    assert stats.spearmanr(below, range(29)).statistic < -0.99
    assert stats.spearmanr(above, range(29)).statistic < -0.99
    # Both sides alike, within the noise of counts.
    both = (below - above) ** 2 / (below + above).clamp(min=1)
    assert stats.chi2.sf(float(both.sum()), 29) > 1e-3
    # Most lines of a density like (1 - |u|)^3 lie in the inner half.
    assert counts[16:49].sum() / counts.sum() > 0.85


def set_probabilities(weights, count):
    """Of every set, when one after another is drawn with probability proportional to its weight."""
    found = Counter()
    for order in itertools.permutations(range(len(weights)), count):
        left, p = sum(weights), 1.0
        for i in order:
            p, left = p * weights[i] / left, left - weights[i]
        found[frozenset(order)] += p
    return found


def test_draws_without_replacement_follow_the_law_of_sequential_draws():
    weights, draws = [0.05, 0.3, 1.0, 2.0, 0.6, 4.0], 20_000
    none = torch.zeros(6, dtype=torch.bool)
    masks = draw_without_replacement(none, torch.tensor(weights), 3, luck(draws))
    seen = Counter(frozenset(taken(mask)) for mask in masks)
    law = set_probabilities(weights, 3)
    assert sum(law.values()) == pytest.approx(1)
    rare = {s for s, p in law.items() if p * draws < 10}
    observed = [seen[s] for s in law if s not in rare] + [sum(seen[s] for s in rare)]
    expected = [draws * law[s] for s in law if s not in rare] + [draws * sum(law[s] for s in rare)]
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    # A law of independent lines, taken in proportion to their weights, would be seen.
    wrong = [draws * sum(weights[i] for i in s) / (10 * sum(weights)) for s in law if s not in rare]
    assert stats.chisquare(observed[:-1], [w * sum(observed[:-1]) / sum(wrong) for w in wrong]).pvalue < 1e-6


def test_what_has_no_weight_is_drawn_only_when_nothing_else_is_left():
    weights = torch.tensor([0.0, 1e-6, 0.0, 5.0, 1.0])
    none = torch.zeros(5, dtype=torch.bool)
    assert all(taken(m) == [1, 3, 4] for m in draw_without_replacement(none, weights, 3, luck(500)))
    found = {tuple(taken(m)) for m in draw_without_replacement(none, weights, 4, luck(50))}
    assert found == {(0, 1, 3, 4), (1, 2, 3, 4)}


def test_equispaced_lines_are_equispaced_and_start_anywhere():
    problem = lines(32, 9, 1)
    starts = set()
    for mask in fixed_masks("equispaced", problem, luck(200)):
        free = torch.tensor([i for i in range(32) if i != 16])
        places = torch.searchsorted(free, torch.tensor([i for i in taken(mask) if i != 16]))
        assert set(places.diff().tolist()) <= {3, 4}  # 31 free lines, 8 of them
        starts.add(int(places[0]))
    assert starts == {0, 1, 2, 3}


def test_a_uniform_mask_has_its_centre_block_and_the_rest_equispaced():
    masks = fixed_masks("uniform", lines(128, 32, 1), luck(100))
    assert bool(masks[:, 59:69].all())
    rest = torch.cat((masks[:, :59], masks[:, 69:]), 1)
    for mask in rest:
        assert set(torch.tensor(taken(mask)).diff().tolist()) <= {5, 6}  # 118 lines, 22 of them
    assert len(rest.unique(dim=0)) > 3
    # Pixels have no centre: there it is equispaced.
    assert torch.equal(fixed_masks("uniform", pixels(9), luck(5)), fixed_masks("equispaced", pixels(9), luck(5)))


def test_data_variance_takes_the_largest_or_draws_by_it():
    problem = lines(32, 6, 1)
    top = fixed_masks("data_variance_top", problem, luck(3))
    others = torch.where(problem.initial, -1, problem.variance)
    assert set(taken(top[0])) == {16, *others.topk(5).indices.tolist()}
    counts = fixed_masks("data_variance", problem, luck(1000)).sum(0)
    assert stats.spearmanr(counts[counts < 1000], problem.variance[counts < 1000]).statistic > 0.9


def test_impossible_masks_are_refused():
    with pytest.raises(InputError, match=f"'poisson', must be one of {', '.join(FIXED_RULES)}$"):
        fixed_masks("poisson", lines(), luck(1))
    for budget in (0, 33):
        with pytest.raises(InputError, match=f"budget: {budget}, must be between the 1 initial and all 32"):
            lines(32, budget, 1)
    for rule in ("fastmri", "vds", "vds_gaussian", "lowpass"):
        with pytest.raises(InputError, match="needs k-space"):
            fixed_masks(rule, pixels(), luck(1))
    blind = MaskProblem(8, 2, torch.zeros(8, dtype=torch.bool), 4)
    for rule in ("data_variance", "data_variance_top"):
        with pytest.raises(InputError, match="needs the variance of training images"):
            fixed_masks(rule, blind, luck(1))

"""The searched mask: the errors that it minimises, the order of its choices, and where the best one is known."""

import pytest
import torch

from apps.mri.greedy_fixed import PAIRED, SHARED, MaskErrors, greedy_fixed
from apps.mri.regret import _clairvoyant
from core.diffusion import ExactPosterior, GaussianMixturePrior
from simulators.mri.operators import Columns, KSpaceLines, Pixels

SHAPE = (2, 6, 8)
D = 96
OPERATORS = {"lines": KSpaceLines(SHAPE), "columns": Columns(SHAPE), "pixels": Pixels(SHAPE)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(operator, seed=0, components=4, rank=5):
    """Clusters whose means and directions live mostly in the actions near the middle."""
    g, middle = seeded(seed), (torch.arange(operator.actions) - operator.actions // 2).abs()
    strength = torch.exp(-3.0 * middle / operator.actions).double()[:, None]

    def images(count):
        rough = torch.randn(count, operator.actions, D // operator.actions, generator=g, dtype=torch.float64)
        return operator.adjoint(strength * rough).flatten(1)

    means = 0.5 * images(components)
    basis = torch.stack([torch.linalg.qr(images(rank).T)[0] for _ in range(components)])
    eigenvalues = 0.2 + torch.rand(components, rank, generator=g, dtype=torch.float64)
    weights = torch.full((components,), 1 / components, dtype=torch.float64)
    return GaussianMixturePrior(SHAPE, weights, means, basis, eigenvalues, torch.full_like(weights, 1e-3))


def problem(name="lines", sigma=0.05):
    operator = OPERATORS[name]
    prior = mixture(operator)
    return ExactPosterior(prior, operator, sigma), prior.draw(24, seeded(1))


def mean_errors(posterior, images, mask):
    """Squared error (N,) of the exact posterior mean's samples outside of ``mask`` (A,), each image by itself."""
    y = posterior.measurement.forward(images.double())
    missed = y - posterior.measurement.forward(posterior.mean(y, mask.expand(len(y), -1)).double())
    return missed[:, ~mask].square().sum((1, 2))


def masks_of(operator, count, seed=2):
    chance = torch.rand(count, operator.actions, generator=seeded(seed))
    return chance < torch.linspace(0, 1, count)[:, None]


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_errors_are_those_of_the_exact_posterior_mean(name, sigma):
    posterior, images = problem(name, sigma)
    masks = masks_of(posterior.measurement, 20)
    found = MaskErrors(posterior, images)(masks)
    expected = torch.stack([mean_errors(posterior, images, mask) for mask in masks])
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5)
    assert found[0].min() > 0
    assert torch.equal(found[-1], torch.zeros(24))  # all was measured


def test_errors_do_not_depend_on_how_many_masks_are_asked_at_once():
    posterior, images = problem()
    errors, masks = MaskErrors(posterior, images), masks_of(posterior.measurement, 700)
    assert len(masks) > 2 * (SHARED // len(images))
    whole = errors(masks)
    torch.testing.assert_close(torch.cat([errors(part) for part in masks.split(50)]), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_paired_errors_are_those_of_the_full_table(name, sigma):
    posterior, images = problem(name, sigma)
    errors, count = MaskErrors(posterior, images), len(images)
    masks = masks_of(posterior.measurement, 3 * count).view(3, count, -1).transpose(0, 1)
    found = errors.paired(masks)
    assert found.shape == (count, 3)
    for column in range(3):
        diagonal = errors(masks[:, column]).diagonal()
        torch.testing.assert_close(found[:, column], diagonal, rtol=1e-4, atol=1e-6)
    assert found.max() > 0.1


def test_paired_errors_do_not_depend_on_how_many_are_asked_at_once():
    posterior, images = problem()
    errors = MaskErrors(posterior, images)
    masks = masks_of(posterior.measurement, 24 * 700).view(24, 700, 8)
    assert masks.shape[1] < PAIRED < masks[:, :, 0].numel()
    parts = [errors.paired(part) for part in masks.split(50, 1)]
    torch.testing.assert_close(errors.paired(masks), torch.cat(parts, 1), rtol=1e-4, atol=1e-6)


def test_the_clairvoyant_takes_what_helps_each_subject_most():
    posterior, images = problem()
    initial = torch.arange(8) == 4
    found = _clairvoyant(MaskErrors(posterior, images), initial, 4)
    for image, error in zip(images, found, strict=True):
        _, alone = greedy_fixed(posterior, image[None], initial, 4)
        assert error.item() == pytest.approx(alone[-1].item(), rel=1e-4)


@pytest.mark.parametrize("name", OPERATORS)
def test_each_choice_is_the_best_of_all_that_are_left(name):
    posterior, images = problem(name)
    initial = torch.zeros(posterior.measurement.actions, dtype=torch.bool)
    initial[3] = True
    order, errors = greedy_fixed(posterior, images, initial, 4)
    mask = initial.clone()
    for step, action in enumerate(order.tolist()):
        tried = {}
        for other in torch.nonzero(~mask).flatten().tolist():
            more = mask.clone()
            more[other] = True
            tried[other] = mean_errors(posterior, images, more).mean().item()
        assert action == min(tried, key=tried.__getitem__)
        assert errors[step].item() == pytest.approx(tried[action], rel=1e-4)
        mask[action] = True


def test_no_action_is_chosen_twice_until_all_are_taken():
    posterior, images = problem()
    initial = torch.zeros(8, dtype=torch.bool)
    initial[[2, 4]] = True
    shares = []
    order, errors = greedy_fixed(posterior, images, initial, 8, shares.append)
    assert sorted([*order.tolist(), 2, 4]) == list(range(8))
    assert errors[-1] == 0
    assert shares == pytest.approx([(i + 1) / 6 for i in range(6)])
    assert initial.sum() == 2  # the caller's mask is not written to
    for budget in (3, 5):
        shorter = greedy_fixed(posterior, images, initial, budget)[0]
        assert torch.equal(shorter, order[: budget - 2])


def test_where_no_action_helps_the_first_ones_are_taken():
    operator, prior = KSpaceLines(SHAPE), mixture(KSpaceLines(SHAPE), components=1)
    known = prior.means.view(1, *SHAPE)
    order, errors = greedy_fixed(ExactPosterior(prior, operator), known, torch.arange(8) == 2, 5)
    assert order.tolist() == [0, 1, 3, 4]
    assert torch.equal(errors, torch.zeros(4))


def test_independent_actions_are_taken_in_the_order_of_their_variance():
    """Where no action tells of another, every mask of the largest variances is the best one."""
    operator = KSpaceLines(SHAPE)
    per_line = D // 8
    variances = torch.tensor([0.3, 1.2, 0.05, 0.9, 0.6, 2.0, 0.15, 0.02], dtype=torch.float64)
    rows = operator.adjoint(torch.eye(D, dtype=torch.float64).view(D, 8, per_line)).flatten(1)
    spread = variances.repeat_interleave(per_line)[:-1]
    prior = GaussianMixturePrior(
        SHAPE, torch.ones(1).double(), torch.zeros(1, D).double(), rows[:-1].T[None], spread[None], variances[-1:]
    )
    images = prior.draw(200, seeded(3))
    order, errors = greedy_fixed(ExactPosterior(prior, operator), images, torch.zeros(8, dtype=torch.bool), 6)
    assert order.tolist() == variances.argsort(descending=True)[:6].tolist()
    left = variances.sort(descending=True).values.flip(0).cumsum(0).flip(0)[1:7] * per_line
    torch.testing.assert_close(errors.double(), left, rtol=0.05, atol=0)


def test_a_spent_budget_asks_for_nothing():
    posterior, images = problem()
    initial = torch.arange(8) < 3
    order, errors = greedy_fixed(posterior, images, initial, 3)
    assert (len(order), len(errors), order.dtype) == (0, 0, torch.long)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_the_mask_of_the_cpu():
    posterior, images = problem()
    initial = torch.zeros(8, dtype=torch.bool)
    expected = greedy_fixed(posterior, images, initial, 4)
    there = ExactPosterior(mixture(OPERATORS["lines"]).cuda(), OPERATORS["lines"], 0.05)
    found = greedy_fixed(there, images.cuda(), initial.cuda(), 4)
    assert torch.equal(found[0].cpu(), expected[0])
    torch.testing.assert_close(found[1].cpu(), expected[1], rtol=1e-3, atol=1e-5)

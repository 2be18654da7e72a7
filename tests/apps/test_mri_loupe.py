"""LOUPE: exact counts, probabilities that keep their sum, gradients through the threshold, and lines that are found."""

import pytest
import torch

from apps.mri.learned import loupe
from apps.mri.learned.loupe import LOUPE, LOUPESettings, center_block, rescale, threshold_uniforms
from core import torchvision_guard
from core.errors import InputError
from core.rl import TrainingDiverged
from simulators.mri.operators import Columns, KSpaceLines, KSpacePoints

OPERATOR = KSpaceLines((2, 16, 16))
SETTINGS = LOUPESettings(budget=6, center_lines=2, channels=4, levels=1, epochs=2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def energy_in(lines, count, seed=0):
    """Images whose k-space is random on a few lines and zero on the others."""
    k = torch.zeros(count, 16, 32)
    k[:, lines] = torch.randn(count, len(lines), 32, generator=seeded(seed))
    return OPERATOR.adjoint(k)


def policy_of_fastmri(budget):
    torchvision_guard.shield()
    policy = pytest.importorskip("fastmri.models.policy")
    return policy.LOUPEPolicy(12, budget, use_softplus=False, slope=5), policy.ThresholdSigmoidMask


@pytest.mark.parametrize("wanted", [1, 4, 11])
@pytest.mark.parametrize("highest", [0.2, 0.99])
def test_rescaled_probabilities_keep_the_budget_the_order_and_their_range(wanted, highest):
    p = highest * torch.rand(12, generator=seeded(), dtype=torch.float64)
    scaled = rescale(p, wanted)
    assert scaled.sum().item() == pytest.approx(wanted, abs=1e-12)
    assert bool(((scaled >= 0) & (scaled <= 1)).all())
    assert torch.equal(scaled.argsort(), p.argsort())


@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_rescaling_certain_lines_keeps_the_gradient_finite(certain):
    p = torch.full((8,), certain, requires_grad=True)
    rescale(p, 3).square().sum().backward()
    assert bool(p.grad.isfinite().all())


def test_probabilities_start_spread_and_sum_to_the_budget():
    network = LOUPE.drawn(KSpacePoints((2, 16, 16)), SETTINGS.model_copy(update={"budget": 40, "center_lines": 0}), 0)
    first = torch.sigmoid(5 * network.weights)
    assert bool(((first > 0.01) & (first < 0.99)).all())
    ordered = first.sort().values
    uniform = torch.linspace(0.01, 0.99, 256)
    assert (ordered - uniform).abs().max() < 0.12  # Kolmogorov-Smirnov, far beyond the 0.1 % level
    assert network.probabilities().sum().item() == pytest.approx(40, rel=1e-5)


def test_masks_have_exactly_the_budget_and_the_preselected_lines():
    network = LOUPE.drawn(OPERATOR, SETTINGS, 0)
    masks = network.masks(500, seeded())
    assert masks.dtype == torch.bool
    assert bool((masks.sum(1) == 6).all())
    assert bool(masks[:, [7, 8]].all())
    assert len(masks.unique(dim=0)) > 50
    top = network.top_mask()
    assert top.sum() == 6
    assert bool(top[[7, 8]].all())
    chances = network.probabilities()
    assert chances[top].min() >= chances[~top].max()


def test_rare_counts_are_redrawn_until_they_match():
    operator = KSpacePoints((2, 32, 32))
    network = LOUPE.drawn(operator, SETTINGS.model_copy(update={"budget": 300, "center_lines": 0}), 0)
    assert bool((network.masks(64, seeded()).sum(1) == 300).all())  # a draw in 30 has the count


def test_a_mask_is_a_poisson_sample_given_its_count():
    p = torch.tensor([0.9, 0.6, 0.4, 0.1])
    masks = p > threshold_uniforms(p, 2, 20000, seeded())
    subsets = torch.combinations(torch.arange(4), 2)
    taken = torch.zeros(6, 4).scatter_(1, subsets, 1.0)
    law = (p * taken + (1 - p) * (1 - taken)).prod(1)
    expected = (law / law.sum()) @ taken
    assert (masks.float().mean(0) - expected).abs().max() < 5 * 0.5 / 20000**0.5


def test_the_sampler_has_the_law_of_fastmris():
    theirs, threshold = policy_of_fastmri(4)
    p = torch.rand(12, generator=seeded())
    torch.testing.assert_close(rescale(p, 4), theirs.rescale_probs(p[None])[0])
    scaled = rescale(p, 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = threshold.apply(scaled.expand(3000, -1), 10, False)
    assert bool((drawn.sum(1) == 4).all())
    ours = (scaled > threshold_uniforms(scaled, 4, 3000, seeded())).float()
    assert (ours.mean(0) - drawn.mean(0)).abs().max() < 5 * (0.5 / 3000) ** 0.5


def test_the_gradient_reaches_the_weights_by_the_straight_through_rule():
    network = LOUPE.drawn(OPERATOR, SETTINGS, 0)
    value = torch.randn(16, generator=seeded(3))
    (network.sample(5, seeded(1)) @ value).sum().backward()
    got = network.weights.grad.clone()
    network.weights.grad = None
    p = rescale(torch.sigmoid(5 * network.weights), 4)
    u = threshold_uniforms(p.detach(), 4, 5, seeded(1))
    free = ~center_block(OPERATOR, 2)
    (torch.sigmoid(10 * (p - u)) @ value[free]).sum().backward()
    torch.testing.assert_close(got, network.weights.grad)
    assert got.abs().min() > 0


@pytest.mark.parametrize("loss", ["l1", "ssim"])
def test_the_lines_that_hold_the_energy_are_found(loss):
    lines = [2, 9, 13]
    settings = LOUPESettings(
        budget=3, center_lines=0, channels=4, levels=1, epochs=15, batch=8, mask_learning_rate=0.05, loss=loss
    )
    network = loupe.train(OPERATOR, energy_in(lines, 128), settings, seed=1)
    assert network.top_mask().nonzero().flatten().tolist() == lines
    assert network.probabilities()[lines].min() > 0.5


def test_training_is_a_function_of_its_seed():
    images = energy_in([2, 9, 13], 32)
    settings = SETTINGS.model_copy(update={"noise": 0.1})
    runs = [loupe.train(OPERATOR, images, settings, seed=seed).weights for seed in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_a_saved_loupe_comes_back(tmp_path):
    network = loupe.train(OPERATOR, energy_in([2, 9, 13], 16), SETTINGS)
    network.save(tmp_path / "loupe")
    again = LOUPE.load(tmp_path / "loupe", OPERATOR)
    assert torch.equal(again.masks(20, seeded()), network.masks(20, seeded()))
    samples, mask = OPERATOR.forward(energy_in([2, 9], 4)), network.masks(4, seeded())
    assert torch.equal(again.reconstruction(samples, mask), network.reconstruction(samples, mask))
    with pytest.raises(InputError, match="actions is 16"):
        LOUPE.load(tmp_path / "loupe", KSpacePoints((2, 16, 16)))


def test_a_probability_that_is_not_a_number_ends_the_training():
    network = LOUPE.drawn(OPERATOR, SETTINGS, 0)
    with torch.no_grad():
        network.weights[3] = torch.nan
    with pytest.raises(TrainingDiverged, match="not finite"):
        network.sample(2, seeded())


def test_the_centre_block_lies_about_dc():
    assert center_block(KSpaceLines((2, 8, 128)), 10).nonzero().flatten().tolist() == list(range(59, 69))
    assert center_block(KSpaceLines((2, 8, 16)), 3).nonzero().flatten().tolist() == [7, 8, 9]
    points = KSpacePoints((2, 8, 8))
    assert center_block(points, 1).nonzero().item() == points.center
    assert not center_block(Columns((1, 8, 8)), 0).any()


@pytest.mark.parametrize(
    ("operator", "changes", "message"),
    [
        (OPERATOR, {"budget": 2}, "budget 2: must be more than the 2 preselected"),
        (OPERATOR, {"budget": 16}, "budget 16"),
        (Columns((1, 16, 16)), {}, "no centre"),
    ],
)
def test_refusals(operator, changes, message):
    with pytest.raises(InputError, match=message):
        LOUPE(operator, SETTINGS.model_copy(update=changes))

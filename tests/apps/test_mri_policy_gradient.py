"""Greedy policy gradient: an unbiased gradient, lines taken once, nothing seen that was not acquired, and learning."""

import math

import pytest
import torch

from apps.mri.classical import ZeroFilled
from apps.mri.learned import policy_gradient
from apps.mri.learned.policy_gradient import LinePolicy, PolicyGradientSettings, advantages, surrogate
from core.errors import InputError
from core.rl import TrainingDiverged
from simulators.mri.operators import Columns, KSpaceLines, to_channels
from simulators.mri.scanner import RecordedScanner

OPERATOR = KSpaceLines((2, 16, 16))
ZERO_FILLED = ZeroFilled(OPERATOR)
SETTINGS = PolicyGradientSettings(budget=4, channels=4, hidden=16, epochs=2)
LINES = torch.tensor([1, 4, 11, 14])
"""The line that matters for each class of ``stripes``."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def stripes(count, seed):
    """Images and classes: the stripes along H, which the central line shows, say which line holds those along W."""
    generator = seeded(seed)
    label = torch.randint(4, (count,), generator=generator)
    y, x = torch.arange(16.0)[:, None], torch.arange(16.0)
    shown = 1 + 0.6 * torch.cos(2 * math.pi * (label + 1)[:, None, None] * y / 16)
    frequency = (LINES[label] - 8)[:, None, None]
    phase = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    return to_channels(shown + 0.8 * torch.exp(1j * (2 * math.pi * frequency * x / 16 + phase))), label


def test_advantages_sum_to_zero_over_the_actions_tried():
    rewards = torch.randn(6, 8, generator=seeded(), dtype=torch.float64)
    assert advantages(rewards).sum(-1).abs().max() < 1e-14
    torch.testing.assert_close(advantages(rewards + 3), advantages(rewards))


def test_the_surrogate_has_the_gradient_of_the_expected_reward():
    logits = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    value = torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64)
    (exact,) = torch.autograd.grad(-(logits.softmax(0) * value).sum(), logits)
    log_probs = logits.log_softmax(0).expand(50000, 3)
    tried = torch.multinomial(log_probs.exp().detach(), 4, replacement=True, generator=seeded())
    (found,) = torch.autograd.grad(surrogate(log_probs.gather(1, tried), value[tried]), logits)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.02)


def test_taken_lines_have_no_chance():
    policy, (images, _) = LinePolicy.drawn(OPERATOR, SETTINGS, 0), stripes(5, 0)
    mask = torch.rand(5, 16, generator=seeded()) < 0.5
    log_probs = policy(images, mask)
    assert bool((log_probs.exp()[mask] == 0).all())
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(5))


def chosen(policy, samples):
    """Masks and orders of the policy when a scanner answers with ``samples``."""
    scanner = RecordedScanner(OPERATOR, samples, torch.ones(samples.shape[:2], dtype=torch.bool))
    ledger, order = policy.chooser(ZERO_FILLED).acquire(scanner)
    mask = ledger.mask
    return mask, order


@pytest.mark.parametrize("budget", [4, 16])
def test_no_line_is_chosen_twice_and_the_budget_is_met(budget):
    policy = LinePolicy.drawn(OPERATOR, SETTINGS.model_copy(update={"budget": budget}), 0)
    images, _ = stripes(7, 0)
    mask, order = chosen(policy, OPERATOR.forward(images))
    assert bool((mask.sum(1) == budget).all())
    assert order.shape == (7, budget - 1)
    assert all(len({8, *row}) == budget for row in order.tolist())
    again = torch.zeros_like(mask).scatter_(1, order, True)
    again[:, 8] = True
    assert torch.equal(mask, again)


def test_training_never_tries_a_line_that_was_taken():
    seen = []

    def reconstruct(samples, mask):
        seen.append(mask)
        return ZERO_FILLED(samples, mask)

    settings = SETTINGS.model_copy(update={"epochs": 1, "budget": 16})
    policy_gradient.train(OPERATOR, reconstruct, stripes(3, 0)[0], settings)
    assert [sorted(set(mask.sum(1).tolist())) for mask in seen] == [[count] for count in range(1, 17)]


def test_training_shows_each_state_its_own_reconstruction(monkeypatch):
    states, forward = [], LinePolicy.forward

    def record(policy, images, mask):
        states.append((OPERATOR.forward(images).abs().amax(-1), mask))
        return forward(policy, images, mask)

    monkeypatch.setattr(LinePolicy, "forward", record)
    settings = SETTINGS.model_copy(update={"epochs": 1, "noise": 0.1})
    policy_gradient.train(OPERATOR, ZERO_FILLED, stripes(6, 0)[0], settings)
    assert [int(mask.sum()) for _, mask in states] == [6, 12, 18]
    for energy, mask in states:
        assert torch.equal(energy > 1e-4, mask)


def test_choices_depend_on_acquired_samples_alone():
    policy, (images, _) = LinePolicy.drawn(OPERATOR, SETTINGS, 0), stripes(6, 0)
    samples = OPERATOR.forward(images)
    mask, order = chosen(policy, samples)
    other = torch.randn(samples.shape, generator=seeded(9))
    assert torch.equal(chosen(policy, torch.where(mask[..., None], samples, other))[1], order)


def test_the_learned_policy_takes_the_line_of_each_class():
    settings = PolicyGradientSettings(budget=2, epochs=12)
    said = []
    policy = policy_gradient.train(
        OPERATOR, ZERO_FILLED, stripes(96, 0)[0], settings, seed=0, progress=lambda *now: said.append(now)
    )
    images, label = stripes(64, 1)
    _, order = chosen(policy, OPERATOR.forward(images))
    right = (order[:, 0] == LINES[label]).float().mean()
    assert right > 0.9  # a fixed line is right for a quarter of them, a random one for a fifteenth
    gains = [float(message.removeprefix("SSIM gain ")) for _, message in said]
    assert gains[-1] > gains[0] + 0.1
    assert said[-1][0] == 1.0


def test_training_is_a_function_of_its_seed():
    images = stripes(20, 0)[0]
    settings = SETTINGS.model_copy(update={"noise": 0.05})
    before = torch.get_rng_state()
    runs = [policy_gradient.train(OPERATOR, ZERO_FILLED, images, settings, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    weights = [torch.cat([p.flatten() for p in run.parameters()]) for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_diverged_training_says_so():
    images = stripes(4, 0)[0]

    def fails_later(samples, mask):
        return ZERO_FILLED(samples, mask) * (math.nan if mask.sum() > len(mask) else 1)

    with pytest.raises(TrainingDiverged, match="the probabilities of the policy"):
        policy_gradient.train(OPERATOR, lambda s, m: ZERO_FILLED(s, m) * math.inf, images, SETTINGS)
    with pytest.raises(TrainingDiverged, match="epoch 1: the mean gain"):
        policy_gradient.train(OPERATOR, fails_later, images, SETTINGS.model_copy(update={"budget": 2}))


def test_a_saved_policy_comes_back(tmp_path):
    policy, (images, _) = LinePolicy.drawn(OPERATOR, SETTINGS, 5), stripes(6, 0)
    policy.save(tmp_path / "policy")
    again = LinePolicy.load(tmp_path / "policy", OPERATOR)
    samples = OPERATOR.forward(images)
    assert torch.equal(chosen(again, samples)[1], chosen(policy, samples)[1])
    with pytest.raises(InputError, match="shape is"):
        LinePolicy.load(tmp_path / "policy", KSpaceLines((2, 16, 32)))


@pytest.mark.parametrize(
    ("operator", "changes", "message"),
    [
        (OPERATOR, {"budget": 1}, "budget 1"),
        (OPERATOR, {"budget": 17}, "budget 17"),
        (OPERATOR, {"levels": 5}, "levels 5"),
        (Columns((1, 16, 16)), {}, "no centre"),
    ],
)
def test_refusals(operator, changes, message):
    with pytest.raises(InputError, match=message):
        LinePolicy(operator, SETTINGS.model_copy(update=changes))

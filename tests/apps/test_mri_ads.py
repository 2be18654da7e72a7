"""Active Diffusion Subsampling: what it asks for, what it may see, and what it survives."""

import math
from dataclasses import fields
from typing import get_args

import pytest
import torch

from apps.mri.ads import ADS, Sampling
from apps.mri.batch_design import BatchRule
from apps.mri.board import Stop, predicted_nmse
from apps.mri.entropy import SCORES
from apps.mri.ledger import RETRIES
from core.diffusion.guided import Guidance, GuidedSampler, sample_posterior
from core.diffusion.mixture import GaussianMixturePrior
from core.diffusion.prior import Prior
from core.diffusion.schedule import CosineAngle
from core.errors import InputError
from simulators.mri.coils import coil_maps
from simulators.mri.operators import Columns, KSpaceLines, MulticoilLines, Pixels
from simulators.mri.quality import psnr
from simulators.mri.scanner import RecordedScanner
from tests.apps.mri_cases import LINES, OPERATOR, SHAPE, center, luck, mixture, nothing, scanner, seeded, subjects

FAST = Sampling(steps=12, particles=4)
PRIOR = mixture()


def settings(**more):
    return FAST.model_copy(update=more)


def run(budget=6, count=2, machine=None, initial=None, on_step=None, first=0, prior=PRIOR, operator=OPERATOR, **more):
    """A short acquisition; ``more`` goes to ADS, or else to its settings."""
    own = {name: more.pop(name) for name in ("weights", "fallback", "stop") if name in more}
    ads = ADS(prior, operator, settings(**more), **own)
    machine = machine or scanner(count, operator)
    start = nothing(count, operator.actions) if initial is None else initial
    return ads.run(machine, start, budget, luck(count, first), on_step)


def same(one, other):
    """Whether two outcomes are equal in every number."""
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def check_bookkeeping(found, machine, initial, budget):
    """The budget is met, no action is taken twice, and the scanner was asked for these actions only, in this order."""
    assert found.mask.sum(1).tolist() == [budget] * len(found.mask)
    for mask, start, order, asked in zip(found.mask, initial, found.order, machine.requests, strict=True):
        held = start.nonzero().flatten().tolist()
        assert asked == held + order.tolist()
        assert sorted(asked) == mask.nonzero().flatten().tolist()
    assert found.order.shape[1] == len(found.step) == found.scores.shape[1] == budget - int(initial[0].sum())
    torch.testing.assert_close(found.samples, machine.measured()[0])


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("rule", ["residual", "neighbours", "covariance"])
def test_it_asks_for_exactly_its_budget(score, rule):
    """A window of three steps for seven lines, so that several are taken in one."""
    machine = scanner(3)
    found = run(8, 3, machine=machine, initial=center(3), score=score, batch_rule=rule, window=(0.25, 0.5))
    check_bookkeeping(found, machine, center(3), 8)
    assert found.step.tolist() == [3, 3, 4, 4, 5, 5, 5]


@pytest.mark.parametrize("operator", [Pixels((1, 6, 6)), Columns((1, 6, 6)), OPERATOR])
@pytest.mark.parametrize("sampler", ["dps", "exact"])
def test_so_it_does_of_pixels_columns_and_lines_and_with_exact_samples(operator, sampler):
    prior, budget = mixture(operator.shape), 5
    machine = scanner(2, operator, subjects(2, prior))
    found = run(budget, machine=machine, prior=prior, operator=operator, sampler=sampler, particles=2)
    check_bookkeeping(found, machine, nothing(2, operator.actions), budget)
    assert found.particles.shape == (2, 2, *operator.shape)


@pytest.mark.parametrize("budget", [1, 6, LINES])
def test_the_steps_of_acquisition_are_those_of_the_schedule(budget):
    seen = []
    found = run(budget, initial=center(), on_step=lambda p: seen.append((p.step, p.steps, p.mask.sum(1).tolist())))
    assert [s[:2] for s in seen] == [(k, 12) for k in range(12)]
    taken = [1 + int((found.step <= k).sum()) for k in range(12)]
    assert [s[2] for s in seen] == [[n, n] for n in taken]
    assert all(k < 0.8 * 12 for k in found.step)
    assert found.residual.shape == (2, 12)
    assert found.forwards == 12


def test_each_action_has_the_highest_of_the_scores_it_was_chosen_from():
    found = run(9, initial=center())
    taken = center()
    for i in range(8):
        best = torch.where(taken, -math.inf, found.scores[:, i]).argmax(-1)
        assert torch.equal(found.order[:, i], best)
        taken = taken.scatter(1, best[:, None], True)
    assert torch.equal(taken, found.mask)


def test_the_reference_schedule_takes_what_its_rule_takes():
    machine = scanner()
    found = run(6, machine=machine, schedule="reference", steps=20, window=(0.0, 0.8))
    assert found.step.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]  # every 16 // 6 = 2 of 16 steps
    assert found.mask.sum(1).tolist() == [8, 8]


# ---- what it may see


@pytest.mark.parametrize("sampler", ["dps", "exact"])
def test_what_was_not_acquired_makes_no_difference(sampler):
    samples, everything = OPERATOR.forward(subjects()), torch.ones(2, LINES, dtype=torch.bool)
    one = run(6, machine=RecordedScanner(OPERATOR, samples, everything), sampler=sampler, hard_consistency=True)
    other = torch.where(one.mask[..., None], samples, 50 * torch.randn(samples.shape, generator=seeded(9)))
    again = run(6, machine=RecordedScanner(OPERATOR, other, everything), sampler=sampler, hard_consistency=True)
    assert same(one, again)
    # What was acquired does.
    changed = torch.where(one.mask[..., None], samples + 0.5, samples)
    assert not same(one, run(6, machine=RecordedScanner(OPERATOR, changed, everything), sampler=sampler))


@pytest.mark.parametrize("rule", ["residual", "covariance"])
def test_a_batch_equals_its_single_subjects(rule):
    targets, more = subjects(4), {"batch_rule": rule, "window": (0.0, 0.3)}
    together = run(7, 4, machine=scanner(4, target=targets), **more)
    for i in range(4):
        alone = run(7, 1, machine=scanner(1, target=targets[i : i + 1]), first=i, **more)
        assert torch.equal(alone.mask[0], together.mask[i])
        assert torch.equal(alone.order[0], together.order[i])
        torch.testing.assert_close(alone.particles[0], together.particles[i], rtol=0, atol=1e-4)
    assert len(together.mask.unique(dim=0)) > 1


@pytest.mark.parametrize("sampler", ["dps", "exact"])
def test_the_same_seed_gives_the_same_bits(sampler):
    assert same(run(sampler=sampler), run(sampler=sampler))
    assert not torch.equal(run(sampler=sampler).particles, run(first=7, sampler=sampler).particles)


@pytest.mark.parametrize("norm", ["joint", "per_particle"])
def test_a_fixed_mask_is_plain_posterior_sampling(norm):
    mask = nothing()
    mask[0, [1, 7, 8]] = mask[1, [8, 9, 14]] = True
    machine = scanner()
    found = run(3, machine=machine, initial=mask, omega=0.7, guidance_norm=norm, window=(0.0, 0.5))
    sampler = GuidedSampler(PRIOR, OPERATOR, 12, Guidance(0.7, norm))
    expected = sample_posterior(sampler, OPERATOR.forward(subjects()), mask, 4, luck(2))
    torch.testing.assert_close(found.particles, expected, rtol=0, atol=1e-5)
    assert found.order.shape == (2, 0)
    assert torch.equal(found.mask, mask)
    assert machine.requests == [[1, 7, 8], [8, 9, 14]]


@pytest.mark.parametrize("sampler", ["dps", "exact"])
def test_a_full_budget_gives_the_image_with_hard_consistency_only(sampler):
    target = subjects()
    hard = run(LINES, sampler=sampler, hard_consistency=True).particles
    soft = run(LINES, sampler=sampler, noise=0.1).particles
    for found, exact in ((hard, True), (soft, False)):
        quality = psnr(target.norm(dim=1), found.norm(dim=2).mean(1))
        assert bool(((quality > 60) == exact).all())
    # Hard consistency puts the measured samples into every particle, and leaves the others to the prior.
    partial = run(6, sampler=sampler, hard_consistency=True)
    again = OPERATOR.forward(partial.particles)
    missed = (again - partial.samples[:, None])[partial.mask[:, None].expand(-1, 4, -1)]
    assert missed.abs().max() < 1e-5


def test_lines_asked_for_before_are_not_asked_for_again():
    machine = scanner()
    machine.acquire(torch.tensor([[8], [8]]))
    found = run(5, machine=machine, initial=center())
    check_bookkeeping(found, machine, center(), 5)


# ---- what steers the choice


def test_it_measures_where_the_particles_differ():
    """All of the prior's variance is in two columns."""
    basis = torch.zeros(1, 36, 12)
    for i, pixel in enumerate(x + 6 * y for x in (1, 4) for y in range(6)):
        basis[0, pixel, i] = 1.0
    eigenvalues = torch.full((1, 12), 0.5)
    prior = GaussianMixturePrior((1, 6, 6), torch.ones(1), torch.zeros(1, 36), basis, eigenvalues, torch.tensor([1e-4]))
    operator = Columns((1, 6, 6))
    machine = scanner(3, operator, subjects(3, prior))
    found = run(2, 3, machine=machine, prior=prior, operator=operator)
    assert [sorted(row) for row in found.order.tolist()] == [[1, 4]] * 3


@pytest.mark.parametrize("score", ["kl", "variance"])
def test_a_region_of_interest_draws_the_choice_to_itself(score):
    prior, operator = mixture((1, 8, 8), rank=20), Pixels((1, 8, 8))
    targets, weights = subjects(4, prior), torch.full((8, 8), 0.02)
    weights[2:5, 3:7] = 1.0
    more = {"prior": prior, "operator": operator, "score": score}
    plain, same_weights, drawn = (
        run(12, 4, machine=scanner(4, operator, targets), weights=w, **more) for w in (None, 0 * weights + 1, weights)
    )
    inside = (weights == 1).flatten()
    assert drawn.mask[:, inside].sum(1).tolist() == [12] * 4
    assert bool((plain.mask[:, inside].sum(1) < 8).all())
    assert torch.equal(plain.mask, same_weights.mask)


def test_a_subject_stops_when_it_knows_enough():
    targets = subjects(6)
    whole = run(12, 6, machine=scanner(6, target=targets))
    never = run(12, 6, machine=scanner(6, target=targets), stop=Stop(0.0))
    assert same(whole, never)
    machine = scanner(6, target=targets)
    assert run(12, 6, machine=machine, stop=Stop(math.inf)).mask.sum() == 0
    assert machine.counts.sum() == 0
    # Who stopped does not start again.
    assert run(12, 6, stop=Stop(0.08, [0.0] * 3 + [math.inf] * 9)).mask.sum() == 0
    # One number for each step: nothing is enough before step 5.
    patient = Stop(0.08, [math.inf] * 5 + [1.0] * 7)
    machine, seen = scanner(6, target=targets), []
    found = run(12, 6, machine=machine, stop=patient, on_step=lambda p: seen.append(predicted_nmse(p.x0)))
    taken = found.mask.sum(1)
    assert int((whole.step < 5).sum()) <= int(taken.min()) < int(taken.max())
    for i, asked in enumerate(machine.requests):
        order = found.order[i].tolist()
        assert asked == order[: int(taken[i])]
        assert order[int(taken[i]) :] == [-1] * (12 - int(taken[i]))
        if taken[i] < 12:
            assert seen[int(whole.step[taken[i]])][i] <= 0.08
        assert all(seen[int(k)][i] > 0.08 for k in whole.step[: taken[i]] if k >= 5)


def test_the_predicted_error_is_the_variance_over_the_energy():
    x = 3 + 0.5 * torch.randn(2, 4000, 1, 4, 4, generator=seeded())
    assert predicted_nmse(x).tolist() == pytest.approx([0.25 / 9] * 2, rel=0.03)


def test_exact_samples_of_the_posterior_need_no_network():
    """A Gaussian prior: the particles' spread on what is not measured is the posterior's, before any diffusion."""
    prior = mixture(components=1)
    found = run(6, prior=prior, machine=scanner(target=subjects(2, prior)), sampler="exact", particles=64)
    assert found.forwards == 0
    assert found.residual.shape == (2, 7)
    assert found.step.tolist() == list(range(6))
    assert bool((found.residual[:, -1] < 0.5).all())  # noise of 0.01 on 192 numbers, not of the prior's spread
    with pytest.raises(InputError, match="sampler: exact needs the mixture"):
        ADS(Constant(), OPERATOR, settings(sampler="exact"))


# ---- what it survives


def test_a_dropped_line_is_asked_for_again():
    plain = run(7, initial=center())
    line = int(plain.order[0, 2])
    machine = scanner(drops={(0, line): RETRIES, (1, OPERATOR.center): 1})
    found = run(7, machine=machine, initial=center())
    assert torch.equal(found.order, plain.order)
    torch.testing.assert_close(found.particles, plain.particles)
    assert found.dropped.tolist() == [RETRIES, 1]
    assert machine.requests[0].count(line) == 1 + RETRIES
    assert bool(torch.isfinite(found.samples).all())


def test_a_line_that_stays_away_is_replaced_by_the_next_best():
    plain = run(7, initial=center())
    line = int(plain.order[0, 0])
    machine = scanner(drops={(0, line): 99})
    found = run(7, machine=machine, initial=center())
    second = torch.where(center()[0], -math.inf, plain.scores[0, 0]).topk(2).indices[1]
    assert int(found.order[0, 0]) == int(second)
    assert machine.requests[0][1 : RETRIES + 3] == [line] * (1 + RETRIES) + [int(second)]
    assert machine.requests[0].count(line) == 1 + RETRIES  # and never again
    assert found.mask.sum(1).tolist() == [7, 7]
    assert not found.mask[0, line]
    assert torch.equal(found.order[1], plain.order[1])
    assert found.dropped.tolist() == [1 + RETRIES, 0]


def test_several_lines_that_stay_away_in_one_step_get_different_replacements():
    more = {"window": (0.5, 0.6), "batch_rule": "neighbours"}
    plain = run(6, 1, **more)
    lost = plain.order[0, :3].tolist()
    found = run(6, 1, machine=scanner(1, drops={(0, line): 99 for line in lost}), **more)
    assert found.mask.sum() == 6
    assert len(set(found.order[0].tolist())) == 6
    assert not found.mask[0, lost].any()


def test_an_initial_line_that_stays_away_is_replaced_by_its_neighbour():
    machine = scanner(drops={(1, OPERATOR.center): 99})
    found = run(5, machine=machine, initial=center())
    assert found.mask.sum(1).tolist() == [5, 5]
    assert bool(found.mask[1, OPERATOR.center - 1])
    assert found.dropped.tolist() == [0, 1 + RETRIES]
    assert torch.equal(found.order[0], run(5, initial=center()).order[0])


RULES = [{"window": (0.5, 0.6), "batch_rule": rule} for rule in get_args(BatchRule)]


@pytest.mark.parametrize("more", [{"sampler": "exact"}, {}, *RULES])
def test_a_subject_with_nothing_left_goes_without_and_holds_up_no_other(more):
    """All lines are wanted: one of subject 1 and all of subject 2 never come."""
    drops = lambda subject, line, attempt: (subject, line) == (1, 3) or subject == 2  # noqa: E731
    machine = scanner(3, drops=drops)
    found = run(LINES, 3, machine=machine, initial=center(3), **more)
    assert found.mask.sum(1).tolist() == [LINES, LINES - 1, 0]
    assert found.order.shape == (3, LINES - 1)
    for row, held in zip(found.order.tolist(), found.mask, strict=True):
        taken = [line for line in row if line >= 0]
        assert len(set(taken)) == len(taken)
        assert set(taken) | {OPERATOR.center} >= set(held.nonzero().squeeze(1).tolist())
    counts = machine.counts
    assert int(counts[0].max()) == 1
    assert int(counts[1:].max()) == 1 + RETRIES
    assert found.dropped.tolist() == [0, 1 + RETRIES, LINES * (1 + RETRIES)]
    assert torch.equal(found.order[0], run(LINES, 3, initial=center(3), **more).order[0])
    assert bool(torch.isfinite(found.particles).all())


def test_lines_that_were_never_recorded_are_never_asked_for():
    samples, available = OPERATOR.forward(subjects()), torch.zeros(2, LINES, dtype=torch.bool)
    available[0, 3:12] = available[1, 5:16:2] = True
    machine = RecordedScanner(OPERATOR, samples, available)
    found = run(6, machine=machine)
    check_bookkeeping(found, machine, nothing(), 6)
    assert not (found.mask & ~available).any()
    with pytest.raises(InputError, match="budget: 7, must be between 0 initial and 6 actions"):
        run(7, machine=RecordedScanner(OPERATOR, samples, available))


class Constant(Prior):
    """All particles believe in the same image."""

    def __init__(self):
        super().__init__()
        self.shape, self.schedule = SHAPE, CosineAngle()

    def noise(self, x, tau):
        return x

    def denoise(self, x, tau):
        return 0 * x + 0.2, x


@pytest.mark.parametrize("score", SCORES)
def test_particles_that_agree_fall_back_to_the_given_order(score):
    fallback = torch.rand(LINES, generator=seeded(3))
    machine = scanner()
    found = run(6, machine=machine, initial=center(), prior=Constant(), fallback=fallback, score=score)
    expected = [i for i in fallback.argsort(descending=True).tolist() if i != OPERATOR.center][:5]
    assert found.order.tolist() == [expected] * 2
    assert found.collapsed.tolist() == [True, True]
    check_bookkeeping(found, machine, center(), 6)
    several = run(6, prior=Constant(), fallback=fallback, score=score, window=(0.0, 0.1))
    assert several.order.tolist() == [fallback.argsort(descending=True)[:6].tolist()] * 2
    plain = run(3, prior=Constant(), score=score)
    assert plain.order.tolist() == [[0, 1, 2]] * 2
    assert plain.collapsed.all()
    assert not run(6, score=score).collapsed.any()


def test_particles_that_disagree_beyond_the_score_fall_back_too_and_it_is_said():
    """At a tiny belief width every line is worth log P: what is free to vary most is asked for first."""
    fallback = torch.rand(LINES, generator=seeded(3))
    found = run(4, fallback=fallback, sigma=1e-9)
    assert found.order.tolist() == [fallback.argsort(descending=True)[:4].tolist()] * 2
    assert found.saturated.tolist() == [True, True]
    assert not found.collapsed.any()
    assert not run(4, fallback=fallback).saturated.any()


class Bursting(GaussianMixturePrior):
    """Sees infinite noise in particle 0 of the first subject at some evaluations."""

    at: tuple[int, ...] = ()
    particles: tuple[int, ...] = (0,)
    calls = 0

    def noise(self, x, tau):
        eps = super().noise(x, tau)
        self.calls += 1
        if self.calls - 1 in self.at:
            eps = eps.clone()
            eps[list(self.particles)] = math.inf
        return eps


@pytest.mark.parametrize("at", [(0,), (3, 7), (11,), tuple(range(12))])
@pytest.mark.parametrize("norm", ["joint", "per_particle"])
def test_a_particle_that_blows_up_is_restarted_and_the_others_go_on(at, norm):
    prior, machine = mixture(kind=Bursting), scanner()
    prior.at = at
    found = run(6, machine=machine, prior=prior, guidance_norm=norm)
    assert found.restarts.tolist() == [len(at), 0]
    check_bookkeeping(found, machine, nothing(), 6)
    for values in (found.particles, found.residual, found.scores):
        assert bool(torch.isfinite(values).all())
    plain = run(6, guidance_norm=norm)
    torch.testing.assert_close(found.particles[1], plain.particles[1])
    assert torch.equal(found.order[1], plain.order[1])


def test_all_particles_may_blow_up():
    prior, machine = mixture(kind=Bursting), scanner()
    prior.at, prior.particles = (2,), (0, 1, 2, 3)
    found = run(6, machine=machine, prior=prior)
    assert found.restarts.tolist() == [4, 0]
    assert bool(torch.isfinite(found.particles).all())
    check_bookkeeping(found, machine, nothing(), 6)


# ---- what it refuses


def test_impossible_acquisitions_are_refused():
    start = center()
    start[:, :3] = True
    with pytest.raises(InputError, match="budget: 3, must be between 4 initial and 16 actions"):
        run(3, initial=start)
    with pytest.raises(InputError, match="budget: 17, must be between 0 initial and 16 actions"):
        run(17)
    with pytest.raises(InputError, match="particles: 1, but one particle has no entropy"):
        run(3, particles=1)
    assert run(1, initial=center(), particles=1).particles.shape[1] == 1  # a fixed mask needs no entropy
    uneven = center()
    uneven[0, 0] = True
    with pytest.raises(InputError, match="every subject needs as many initial actions"):
        run(3, initial=uneven)
    with pytest.raises(InputError, match="score: 'entropy', must be one of kl, "):
        run(3, score="entropy")
    with pytest.raises(InputError, match="batch_rule: 'best', must be residual"):
        run(6, batch_rule="best", window=(0.0, 0.1))


@pytest.mark.parametrize("window", [(0.5, 0.5), (0.6, 0.2), (-0.1, 0.5), (0.0, 1.2), (0.01, 0.02)])
def test_a_window_without_steps_is_refused(window):
    with pytest.raises(InputError, match="window: steps"):
        ADS(PRIOR, OPERATOR, settings(window=window))


def test_a_prior_of_other_images_is_refused():
    with pytest.raises(InputError, match=r"prior of shape \(2, 16, 16\), but data of shape \(2, 8, 8\)"):
        ADS(PRIOR, KSpaceLines((2, 8, 8)), FAST)
    with pytest.raises(InputError, match=r"prior of shape \(1, 16, 16\), but data of shape \(2, 16, 16\)"):
        ADS(mixture((1, 16, 16)), OPERATOR, FAST)


def test_several_coils_work_and_the_exact_sampler_is_for_one():
    operator = MulticoilLines(SHAPE, coil_maps(3, 16, 16))
    machine = scanner(operator=operator)
    check_bookkeeping(run(6, machine=machine, operator=operator), machine, nothing(), 6)
    loose, put_in = (run(6, machine=scanner(operator=operator), operator=operator, hard_consistency=h) for h in (0, 1))
    left = [
        (operator.forward(found.particles) - found.samples[:, None])[found.mask[:, None].expand(-1, 4, -1)].norm()
        for found in (loose, put_in)
    ]
    assert left[1] < 0.2 * left[0]
    with pytest.raises(InputError, match="orthonormal rows, not several coils"):
        run(6, machine=scanner(operator=operator), operator=operator, sampler="exact")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sigma", 0),
        ("sigma", -1),
        ("particles", 0),
        ("steps", 0),
        ("score", "best"),
        ("omega", -1),
        ("omega", math.inf),
    ],
)
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Sampling(**{name: value})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("sampler", ["dps", "exact"])
def test_a_gpu_finds_images_as_good(sampler):
    """Masks may differ where scores are close; the noise of the particles does, for a generator is of its device."""
    targets, quality = subjects(32), []
    for device in ("cpu", "cuda"):
        generators = [torch.Generator(device).manual_seed(i) for i in range(32)]
        ads = ADS(mixture().to(device), OPERATOR, settings(sampler=sampler, particles=16, hard_consistency=True))
        machine = scanner(32, target=targets.to(device))
        found = ads.run(machine, center(32).to(device), 8, generators)
        assert found.mask.sum(1).tolist() == [8] * 32
        quality.append(psnr(targets.norm(dim=1), found.particles.cpu().norm(dim=2).mean(1)).mean())
    assert abs(quality[0] - quality[1]) < 0.5

"""What a policy is paid, held against the definitions, one patient and step at a time."""

import math
from dataclasses import replace

import pytest
import torch

from apps.sepsis.rewards import debate_reward, environment_reward, mixed_reward, total_reward
from core.errors import InputError
from simulators.sepsis.features import INDEX
from tests.apps.sepsis_cohorts import small_cohort

KINDS = ("01", "sign", "prob")


def shaped_by_hand(cohort, values):
    """Raghu et al. (2017), eq. 1, in a loop."""
    reward = torch.zeros(cohort.mask.shape)
    for patient, length in enumerate(cohort.lengths.tolist()):
        sofa, lactate = (values[patient, :, INDEX[name]].tolist() for name in ("SOFA", "Arterial_lactate"))
        for t in range(length - 1):
            held = sofa[t + 1] == sofa[t] and sofa[t + 1] > 0
            reward[patient, t] = (
                -0.025 * held - 0.125 * (sofa[t + 1] - sofa[t]) - 2 * math.tanh(lactate[t + 1] - lactate[t])
            )
        reward[patient, length - 1] = 15 * float(cohort.outcome[patient])
    return reward


def test_without_shaping_only_the_last_step_pays_15_or_costs_15():
    cohort = small_cohort()
    reward = environment_reward(cohort)
    assert torch.equal(reward, 15 * cohort.rewards())
    assert torch.equal(reward.sum(1), 15 * cohort.outcome)
    assert ((reward != 0).sum(1) == 1).all()


@pytest.mark.parametrize("kind", ["raw", "normalised"])
def test_shaping_is_that_of_the_definition(kind):
    cohort = small_cohort()
    values = cohort.raw if kind == "raw" else cohort.state
    reward = environment_reward(cohort, kind)
    torch.testing.assert_close(reward, shaped_by_hand(cohort, values), rtol=0, atol=1e-5)
    # Some SOFA scores are held above 0 and some at 0, or the loop would test nothing.
    sofa = values[..., INDEX["SOFA"]]
    held = (sofa[:, 1:] == sofa[:, :-1]) & cohort.mask[:, 1:]
    assert (held & (sofa[:, 1:] > 0)).any()
    assert (held & (sofa[:, 1:] <= 0)).any()


@pytest.mark.parametrize("kind", ["none", "raw", "normalised"])
def test_nothing_behind_a_patient_s_end_pays_or_is_looked_at(kind):
    cohort = small_cohort()
    hidden = ~cohort.mask[..., None]
    other = replace(
        cohort,
        state=torch.where(hidden, 1e3, cohort.state),
        raw=torch.where(hidden, torch.nan, cohort.raw),
    )
    reward = environment_reward(other, kind)
    assert torch.equal(reward, environment_reward(cohort, kind))
    assert (reward[~cohort.mask] == 0).all()


def test_shaping_in_units_needs_units():
    cohort = small_cohort(units=False)
    with pytest.raises(InputError, match="shaping: raw, but the cohort holds normalised values only") as refused:
        environment_reward(cohort, "raw")
    assert "\n" not in str(refused.value)
    assert torch.isfinite(environment_reward(cohort, "normalised")).all()


def test_a_debate_pays_by_its_kind():
    score, rival = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 3.0, 0.5])
    assert debate_reward(score, rival).tolist() == [1, 0, 0]
    assert debate_reward(score, rival, "sign").tolist() == [1, -1, 0]
    expected = [1 / (1 + math.exp(-gap)) for gap in (1.0, -4.0, 0.0)]
    assert debate_reward(score, rival, "prob").tolist() == pytest.approx(expected)


def test_the_two_sides_of_a_debate_share_what_it_pays():
    generator = torch.Generator().manual_seed(0)
    score, rival = torch.randn(2, 200, generator=generator)
    for kind, total in (("01", 1.0), ("sign", 0.0), ("prob", 1.0)):
        both = debate_reward(score, rival, kind) + debate_reward(rival, score, kind)
        torch.testing.assert_close(both, torch.full((200,), total))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_actions_are_paid_nothing(kind):
    differs = torch.tensor([True, False, False])
    paid = debate_reward(torch.tensor([1.0, 1.0, 0.0]), torch.zeros(3), kind, differs)
    assert paid[0] > 0
    assert paid[1:].tolist() == [0, 0]


def test_lambda_goes_from_the_environment_to_five_times_the_debate():
    generator = torch.Generator().manual_seed(1)
    environment, debate = torch.randn(2, 7, 5, generator=generator)
    assert torch.equal(mixed_reward(0.0, environment, debate), environment)
    assert torch.equal(mixed_reward(1.0, environment, debate), 5 * debate)
    between = 0.75 * environment + 0.25 * 5 * debate
    torch.testing.assert_close(mixed_reward(0.25, environment, debate), between)


@pytest.mark.parametrize("lam", [-0.01, 1.01, math.nan])
def test_lambda_outside_0_to_1_is_refused(lam):
    with pytest.raises(InputError, match=r"lambda: .*; allowed: 0 to 1"):
        mixed_reward(lam, torch.zeros(2), torch.zeros(2))


@pytest.mark.parametrize("kind", KINDS)
def test_the_total_is_both_rewards_at_their_steps(kind):
    cohort = small_cohort()
    steps = cohort.steps()
    generator = torch.Generator().manual_seed(2)
    score, rival = torch.randn(2, len(steps), generator=generator)
    scores = {"score": score, "rival": rival, "differs": torch.rand(len(steps), generator=generator) < 0.7}
    total = total_reward(cohort, 0.25, scores, shaping="raw", kind=kind)
    won = debate_reward(score, rival, kind, scores["differs"])
    environment = environment_reward(cohort, "raw")
    for row, (patient, step) in enumerate(zip(steps.patient.tolist(), steps.step.tolist(), strict=True)):
        expected = 0.75 * environment[patient, step] + 0.25 * 5 * won[row]
        assert total[patient, step] == pytest.approx(float(expected), abs=1e-6)
    assert (total[~cohort.mask] == 0).all()


def test_without_debates_the_total_is_the_environment_s_and_lambda_must_be_0():
    cohort = small_cohort()
    assert torch.equal(total_reward(cohort, shaping="normalised"), environment_reward(cohort, "normalised"))
    with pytest.raises(InputError, match=r"lambda: 0.5; without debates it must be 0"):
        total_reward(cohort, 0.5)

from dataclasses import replace

import numpy as np
import pytest
import torch

from apps.sepsis.counterfactual import CAUSES, evidence_check, evidence_precision
from apps.sepsis.debate import Debate, argue_alone, hold_debate
from apps.sepsis.debaters import FixedEvidence, RandomDebater
from apps.sepsis.preferences import draw_preferences
from core.errors import InputError
from simulators.sepsis import INDEX, STATE, Sepsis44, simulate_cohort
from simulators.sepsis.sepsis44 import SCALARS, _circulation, _seen

WORLD = Sepsis44(horizon=9)
COHORT = simulate_cohort(WORLD, 80, seed=0)
ROUNDING = 1e-6  # the last digits of a row depend on its place in the batch
RNG = torch.Generator().manual_seed(0)
PAIRS = draw_preferences(COHORT.steps(), RNG)
ROWS = torch.randperm(len(PAIRS), generator=RNG)[:60]
PAIRS = PAIRS.take(ROWS)


def debate(names=None, pairs=PAIRS):
    """Player 1 cites these features, or both cite six at random."""
    if names is None:
        random = RandomDebater(torch.Generator().manual_seed(1))
        return hold_debate(pairs.state, pairs.preferred, pairs.rejected, random, random, 6, generator=RNG)
    order = torch.tensor([[INDEX[name] for name in names]]).expand(len(pairs), -1)
    return argue_alone(pairs.state, pairs.preferred, pairs.rejected, FixedEvidence(order), len(names))


def check(held, pairs=PAIRS, cohort=COHORT, utility=None, **options):
    utility = torch.ones(len(pairs)) if utility is None else utility
    return evidence_check(WORLD, cohort, pairs, held, utility, seed=3, **{"draws": 1} | options)


def test_the_causes_are_those_of_the_simulator():
    """A feature changes with a part of the body, the noise kept, exactly where that part is listed."""
    generator = torch.Generator().manual_seed(4)
    state = WORLD.reset(3000, generator)
    noise, dose = WORLD.noise(3000, generator).observation, torch.zeros(3000)

    def seen(state):
        circulation = _circulation(state.deficit, state.vasoplegia, state.kidney, state.response, dose)
        return _seen(state, circulation, dose + 0.1, noise)

    # At a dose of 0 the response to it would show nothing.
    dose = dose + 0.1
    before = seen(state)
    found = {name: set() for name in STATE}
    for part in set(SCALARS) - {"vasopressor", "step", "immune"}:
        other = replace(state, **{part: getattr(state, part).roll(1)})
        for i in (seen(other) != before).any(0).nonzero()[:, 0].tolist():
            found[STATE[i]].add(part)
    assert found == {name: set(causes) for name, causes in CAUSES.items()}


def test_swapped_actions_turn_the_treatment_effect_and_keep_the_items():
    held = debate()
    one, other = check(held), check(held.swapped)
    np.testing.assert_allclose(one["treatment_effect"], -other["treatment_effect"], atol=ROUNDING)
    np.testing.assert_allclose(one["effect"], other["effect"], atol=ROUNDING)
    np.testing.assert_array_equal(one["need"], other["need"])
    assert (one["effect"] > 0.01).any()


def test_the_same_action_twice_has_no_effect():
    held = debate()
    found = check(replace(held, second=held.first))
    np.testing.assert_allclose(found["treatment_effect"], 0, atol=ROUNDING)
    np.testing.assert_allclose(found["effect"], 0, atol=ROUNDING)
    assert not found["need"].any()


def test_an_exchange_with_an_equal_patient_changes_nothing():
    pairs = PAIRS.take(torch.zeros(5, dtype=torch.int64))
    found = check(debate(pairs=pairs), pairs)
    # Each copy meets its own luck, so the treatments differ, but no exchange does.
    assert found["treatment_effect"].any()
    assert not found["effect"].any()
    assert not found["need"].any()


def test_what_is_right_for_the_patient_saves_lives():
    scores = COHORT.flat(COHORT.truth["score"])[ROWS]
    held = replace(debate(), first=scores.argmax(1), second=scores.argmin(1))
    effect = check(held)["treatment_effect"].values
    assert effect.mean() > 0.01
    assert (effect > 0).mean() > 0.8


def test_precision_counts_the_items_that_bear():
    idle = evidence_precision([check(debate(["Chloride", "Calcium", "gender"]))])
    assert idle.mean == idle.high == 0
    pressure = evidence_precision([check(debate(["MeanBP", "SysBP", "HR"]), draws=2)], by="need")
    random = evidence_precision([check(debate(), draws=2)], "any", by="need")
    assert pressure.low > random.high
    assert pressure.mean > 0.7


def test_winner_loser_and_undecided():
    held = debate()
    utility = torch.tensor([1.0, -1.0, 0.0]).repeat(20)
    found = check(held, utility=utility)
    speaker, bears = found["speaker"].values, found["effect"].values > 0.01
    winner = np.concatenate([bears[0::3][speaker[0::3] == 1], bears[1::3][speaker[1::3] == 2]])
    assert evidence_precision([found], "winner").mean == pytest.approx(winner.mean())
    assert evidence_precision([found], "both").mean == pytest.approx(bears[speaker > 0].mean())
    assert evidence_precision([found], "any").mean == pytest.approx(bears.mean())
    assert found["speaker"].astype(bool).sum("feature").values.tolist() == [6] * 60
    with pytest.raises(InputError, match="must be positive"):
        evidence_precision([check(held, utility=torch.zeros(60))])


def test_what_cannot_be_asked_is_refused():
    held = debate()
    with pytest.raises(InputError, match="latent"):
        check(held, cohort=replace(COHORT, truth={}))
    with pytest.raises(InputError, match="60, 60 and 59 rows"):
        check(held, utility=torch.ones(59))
    one = Debate(*(x[:1] for x in (held.state, held.first, held.second, held.items, held.speaker)))
    with pytest.raises(InputError, match="at least 2"):
        check(one, PAIRS.take(torch.tensor([0])))

"""The judge: what it may not see, what its loss is, and that its fast paths are exact."""

import json

import pytest
import torch

from apps.sepsis.judge import (
    Judge,
    JudgeEnsemble,
    JudgeSettings,
    calibration,
    judge_accuracy,
    most_useful_pairs,
    random_evidence,
    train_ensemble,
    train_judge,
)
from apps.sepsis.judge.training import _order
from apps.sepsis.preferences import Preferences, draw_preferences
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.rl.algorithm import TrainingDiverged
from core.rl.checkpoint import read_tensors
from simulators.sepsis.cohort import Steps
from simulators.sepsis.features import ACTIONS, STATE
from simulators.sepsis.sepsis44 import Sepsis44
from simulators.sepsis.simulated_cohort import simulate_cohort

SMALL = JudgeSettings(items=6, hidden=16, epochs=3, batch=64, learning_rate=3e-3)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steps(n: int, seed: int = 0) -> Steps:
    """Decisions that follow the first two features: fluid by one, vasopressor by the other."""
    state = torch.randn(n, 44, generator=seeded(seed))
    fluid, vasopressor = ((2 + 1.2 * state[:, i]).round().clamp(0, 4).long() for i in (0, 1))
    return Steps(state, 5 * fluid + vasopressor, torch.arange(n) // 10, torch.arange(n) % 10)


def pairs(n: int, seed: int = 0) -> Preferences:
    return draw_preferences(steps(n, seed), seeded(seed + 100))


def judge(norm="batch", ties="soft", items=6, seed=0) -> Judge:
    """One whose weights and running statistics are not those it was born with."""
    torch.manual_seed(seed)
    made = Judge(items, 16, norm, ties)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        made.linear_3.weight.mul_(3)
    case = pairs(200, seed + 1)
    made(case.state, random_evidence(200, items, seeded(1)), torch.stack((case.preferred, case.rejected)))
    return made


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_what_is_not_shown_does_not_matter(norm):
    one, case = judge(norm), pairs(50)
    mask = random_evidence(50, 6, seeded(2))
    changed = torch.where(mask, case.state, 1e3 * torch.randn(50, 44, generator=seeded(3)))
    assert torch.equal(one.score(case.state, mask, case.preferred), one.score(changed, mask, case.preferred))
    assert not torch.allclose(one.score(-case.state, mask, case.preferred), one.score(case.state, mask, case.preferred))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_scores_are_those_of_the_network_in_evaluation_mode(norm):
    one, case = judge(norm), pairs(40)
    mask = random_evidence(40, 6, seeded(2))
    scores = one.score(case.state, mask, case.preferred)
    assert one.training
    torch.testing.assert_close(scores, one.eval()(case.state, mask, case.preferred).detach(), rtol=1e-4, atol=1e-5)
    both = torch.stack((case.preferred, case.rejected))
    torch.testing.assert_close(one.score(case.state, mask, both)[0], scores)
    torch.testing.assert_close(one(case.state, mask, both)[0].detach(), scores, rtol=1e-4, atol=1e-5)


def test_scores_broadcast_and_do_not_depend_on_the_chunks():
    one, case = judge(), pairs(70)
    masks = random_evidence(60, 6, seeded(2))
    wide = one.score(case.state[:, None], masks, case.preferred[:, None])
    assert wide.shape == (70, 60)
    torch.testing.assert_close(wide[33], one.score(case.state[33], masks, case.preferred[33]), rtol=1e-4, atol=1e-5)
    assert one.score(case.state[:0], masks[:0], case.preferred[:0]).shape == (0,)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_candidate_scores_are_scores_with_one_more_item(norm):
    one, case = judge(norm), pairs(100)
    mask = random_evidence(100, 3, seeded(2))
    fast = one.candidate_scores(case.state, mask, case.preferred)
    more = mask[:, None] | torch.eye(44, dtype=torch.bool)
    slow = one.score(case.state[:, None], more, case.preferred[:, None])
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    same = one.score(case.state, mask, case.preferred)[:, None].expand(-1, 44)
    torch.testing.assert_close(fast[mask], same[mask], rtol=1e-4, atol=1e-5)
    assert one.candidate_scores(case.state[:0], mask[:0], case.preferred[:0]).shape == (0, 44)


@pytest.mark.parametrize("items", [0, 1, 6, 44])
def test_random_evidence_has_exactly_its_items_and_every_item_equally_often(items):
    mask = random_evidence(20_000, items, seeded(4))
    assert (mask.sum(1) == items).all()
    share = items / 44
    assert (mask.float().mean(0) - share).abs().max() <= 4.5 * (share * (1 - share) / 20_000) ** 0.5


def test_cited_features_are_shown_first_and_filled_up():
    cited = random_evidence(300, 4, seeded(5))
    mask = random_evidence(300, 6, seeded(6), cited=cited)
    assert (mask.sum(1) == 6).all()
    assert (mask | ~cited).all()
    few = random_evidence(300, 2, seeded(6), cited=cited)
    assert (few.sum(1) == 2).all()
    assert (cited | ~few).all()


def test_two_calls_of_batch_normalisation_hide_the_difference_that_one_call_shows():
    one, case = judge(), pairs(256)
    mask = random_evidence(256, 6, seeded(2))
    with torch.no_grad():
        apart = one(case.state, mask, case.preferred).mean() - one(case.state, mask, case.rejected).mean()
        together = one(case.state, mask, torch.stack((case.preferred, case.rejected))).mean(1)
    assert abs(apart) < 1e-5
    assert abs(together[0] - together[1]) > 1e-3


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_judge_learns_the_physicians_habits(norm):
    settings = JudgeSettings(items=44, hidden=32, norm=norm, epochs=8, batch=64, learning_rate=3e-3)
    case = pairs(3000, 7)
    made = train_judge(pairs(3000), settings, 0, validation=case)
    accuracy = judge_accuracy(made, case, seeded(0)).mean()
    assert not made.training
    assert accuracy > 0.85
    assert made.history[-1]["accuracy"] == pytest.approx(float(accuracy))
    assert made.history[-1]["loss"] < made.history[0]["loss"]


@pytest.mark.parametrize("ties", ["soft", "davidson"])
def test_the_loss_does_not_know_which_treatment_is_named_first(ties):
    one, case = judge(ties=ties), pairs(80)
    mask, label = random_evidence(80, 6, seeded(2)), torch.rand(80, generator=seeded(3))
    a = one.loss(case.state, mask, case.preferred, case.rejected, label)
    b = one.loss(case.state, mask, case.rejected, case.preferred, 1 - label)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_likelihood_of_bradley_and_terry():
    one, case = judge().eval(), pairs(60)
    mask, label = random_evidence(60, 6, seeded(2)), torch.rand(60, generator=seeded(3))
    p = one.preference(case.state, mask, case.preferred, case.rejected)
    expected = -(label * p.log() + (1 - label) * (1 - p).log()).mean()
    torch.testing.assert_close(
        one.loss(case.state, mask, case.preferred, case.rejected, label), expected, rtol=1e-4, atol=1e-5
    )


def test_win_loss_and_tie_of_davidsons_model_are_all_that_can_happen():
    one, case = judge(ties="davidson").eval(), pairs(1)
    mask = random_evidence(1, 6, seeded(2))
    win, loss, tie = (
        torch.exp(-one.loss(case.state, mask, case.preferred, case.rejected, torch.tensor([label])).detach())
        for label in (1.0, 0.0, 0.5)
    )
    torch.testing.assert_close(win + loss + tie, torch.ones(()), rtol=1e-4, atol=1e-5)
    asked = (case.state, mask, case.preferred, case.rejected)
    torch.testing.assert_close(one.tie(*asked)[0], tie, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.preference(*asked)[0], win / (win + loss), rtol=1e-4, atol=1e-5)
    assert judge().tie(*asked) == 0


def test_balanced_order_shows_every_treatment_equally_often():
    preferred = torch.tensor([0] * 900 + [1] * 90 + [2] * 10).repeat(20)
    weight = 1.0 / preferred.bincount()[preferred].double()
    counts = preferred[_order(weight, True, seeded(1))].bincount()
    assert (counts - 20_000 / 3).abs().max() < 4.5 * (20_000 * 2 / 9) ** 0.5
    assert torch.equal(_order(weight, False, seeded(1)).sort().values, torch.arange(20_000))


def test_a_training_that_was_killed_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "due", True)
    case, whole, parts = pairs(300), tmp_path / "whole", tmp_path / "parts"
    expected = train_judge(case, SMALL, 3, validation=case, checkpoint=whole)

    def kill(share: float, message: str) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_judge(case, SMALL, 3, validation=case, checkpoint=parts, progress=kill)
    for resumed in (train_judge(case, SMALL, 3, validation=case, checkpoint=parts) for _ in range(2)):
        for name, value in expected.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name
        assert resumed.history == expected.history


def test_another_seed_is_another_judge_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    one, other, again = (train_judge(pairs(200), SMALL, seed).linear_2.weight for seed in (0, 1, 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_diverged_training_keeps_its_last_good_state(tmp_path):
    case, path = pairs(300), tmp_path / "judge.safetensors"
    case.state[5] = 1e38
    settings = SMALL.model_copy(update={"norm": "layer", "items": 44})
    # The spoilt row is first drawn in the third epoch.
    with pytest.raises(TrainingDiverged, match="epoch 3"):
        train_judge(case, settings, 0, checkpoint=path)
    kept, _ = read_tensors(path)
    good = train_judge(case, settings.model_copy(update={"epochs": 2}), 0)
    assert len(kept["record"]) == 2
    for name, value in good.state_dict().items():
        assert torch.equal(kept[f"judge.{name}"], value), name


@pytest.mark.parametrize(("norm", "ties"), [("batch", "soft"), ("layer", "davidson")])
def test_a_saved_judge_says_the_same(tmp_path, norm, ties):
    one, case = judge(norm, ties), pairs(30)
    one.history = [{"loss": 0.5}]
    one.save(tmp_path / "judge")
    back = Judge.load(tmp_path / "judge", items=6)
    mask = random_evidence(30, 6, seeded(2))
    assert torch.equal(back.score(case.state, mask, case.preferred), one.score(case.state, mask, case.preferred))
    assert not back.training
    assert (back.history, back.norm, back.ties) == (one.history, norm, ties)


def test_a_judge_of_other_evidence_or_features_is_refused(tmp_path):
    judge().save(tmp_path)
    with pytest.raises(InputError, match="items is 6; needed here: 4"):
        Judge.load(tmp_path, items=4)
    with pytest.raises(InputError, match="feature_hash"):
        Judge.load(tmp_path, features=STATE[::-1])
    record = json.loads((tmp_path / "judge.json").read_text())
    (tmp_path / "judge.json").write_text(json.dumps(record | {"norm": "group"}))
    with pytest.raises(InputError, match="norm: input should be 'batch' or 'layer'"):
        Judge.load(tmp_path)
    (tmp_path / "judge.json").write_text(json.dumps(record | {"hidden": 32}))
    with pytest.raises(InputError, match="size mismatch"):
        Judge.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": torch.full((10,), 25)}, r"preferences.rejected: must be within 0..24"),
        ({"rejected": pairs(10).preferred}, "must differ"),
        ({"state": torch.full((10, 44), torch.nan)}, "must be finite"),
        ({"label": torch.full((10,), 1.5)}, r"must be within \[0, 1\]"),
    ],
)
def test_pairs_that_cannot_be_judged_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        train_judge(Preferences(**(vars(pairs(10)) | change)), SMALL, 0)


def test_no_pairs_are_refused():
    with pytest.raises(InputError, match="at least one pair"):
        train_judge(pairs(10).take(torch.arange(0)), SMALL, 0)


def test_a_judge_of_labels_drawn_from_its_own_probabilities_is_calibrated():
    one, case = judge(items=44), pairs(20_000)
    p = one.preference(case.state, torch.ones(20_000, 44, dtype=torch.bool), case.preferred, case.rejected)
    first = torch.rand(20_000, generator=seeded(8)) < p
    drawn = Preferences(**(vars(case) | {"label": first.float()}))
    assert calibration(one, drawn, seeded(0)).error < 0.02
    sure = calibration(one, Preferences(**(vars(case) | {"label": 1 - first.float()})), seeded(0))
    assert sure.count.sum() == 20_000
    assert sure.error > 0.1


def test_judges_that_agree_do_not_abstain_and_those_that_contradict_do():
    one, case = judge(), pairs(40)
    mask = random_evidence(40, 6, seeded(2))
    asked = (case.state, mask, case.preferred, case.rejected)
    same = JudgeEnsemble((one, one, one))
    assert same.disagreement(*asked).abs().max() < 1e-5
    assert torch.equal(same.verdict(*asked), torch.where(one.preference(*asked) > 0.5, 1, -1).int())
    torch.testing.assert_close(same.score(*asked[:3]), one.score(*asked[:3]))
    torch.testing.assert_close(same.candidate_scores(*asked[:3]), one.candidate_scores(*asked[:3]))
    opposite = judge()
    with torch.no_grad():
        opposite.linear_3.weight.neg_()
    split = JudgeEnsemble((one, one, opposite))
    assert (split.verdict(*asked) == 0).all()
    assert torch.equal(split.verdict(*asked, agreement=2 / 3), same.verdict(*asked))
    assert (split.disagreement(*asked) > same.disagreement(*asked)).all()


def test_judges_of_different_evidence_make_no_ensemble():
    with pytest.raises(InputError, match="same features and number of items"):
        JudgeEnsemble((judge(), judge(items=4)))


def test_the_most_useful_questions_are_those_of_largest_disagreement():
    several = train_ensemble(pairs(300), SMALL.model_copy(update={"epochs": 1}), 0, members=3)
    assert len({one.linear_3.bias.item() for one in several.judges}) == 3
    logged = steps(200, 9)
    asked = most_useful_pairs(several, logged, 20, seeded(1))
    again = torch.stack((asked.patient * 10 + asked.step, asked.preferred, asked.rejected), 1)
    assert len(asked) == 20
    assert len(again[:, 0].unique()) == 20
    assert ((asked.preferred == logged.action[again[:, 0]]) ^ (asked.rejected == logged.action[again[:, 0]])).all()
    chosen = several.disagreement(asked.state, asked.evidence, asked.preferred, asked.rejected)
    mask = random_evidence(200, 6, seeded(1))
    every = several.disagreement(logged.state[:, None], mask[:, None], logged.action[:, None], torch.arange(ACTIONS))
    torch.testing.assert_close(chosen.sort().values, every.max(1).values.sort().values[-20:], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("items", "least"), [(6, 0.68), (44, 0.80)])
def test_the_judge_of_the_quick_study_is_good_enough(items, least):
    shares = []
    for seed in range(3):
        cohort = simulate_cohort(Sepsis44(), 2000, seed, fractions=(0.75, 0.0, 0.25))
        train, test = (draw_preferences(cohort.steps(split), seeded(seed)) for split in ("train", "test"))
        settings = JudgeSettings(items=items, hidden=128, epochs=15, batch=256)
        shares.append(judge_accuracy(train_judge(train, settings, seed), test, seeded(seed), draws=5).mean())
    assert torch.stack(shares).mean() >= least

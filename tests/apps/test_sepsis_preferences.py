"""Pairs of treatments: how they are drawn, and that a file of labels means what it says."""

import pytest
import torch

from apps.sepsis.preferences import draw_preferences, read_preferences, truth_preferences, write_preferences
from core.errors import InputError
from simulators.sepsis.cohort import Cohort, Steps
from simulators.sepsis.features import ACTIONS, LEVELS


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steps(n: int, action: torch.Tensor | None = None) -> Steps:
    drawn = torch.randint(ACTIONS, (n,), generator=seeded(0)) if action is None else action
    return Steps(torch.randn(n, 44, generator=seeded(1)), drawn, torch.arange(n) // 2, torch.arange(n) % 2)


def cohort() -> Cohort:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    return Cohort(
        torch.randn(2, 3, 44, generator=seeded(2)) * mask[..., None],
        torch.randint(ACTIONS, (2, 3), generator=seeded(3)) * mask,
        mask,
        torch.tensor([1.0, -1.0]),
        torch.zeros(2, dtype=torch.int64),
    )


def test_a_random_rival_is_each_of_the_24_others_equally_often():
    drawn = draw_preferences(steps(24_000, torch.full((24_000,), 7)), seeded(4))
    counts = drawn.rejected.bincount(minlength=ACTIONS)
    assert counts[7] == 0
    expected = torch.full((24,), 1000.0)
    chi2 = ((counts[torch.arange(ACTIONS) != 7] - expected) ** 2 / expected).sum()
    assert chi2 < 49.7  # 99.9 % of chi-square with 23 degrees of freedom
    assert (drawn.preferred == 7).all()
    assert (drawn.label == 1).all()


@pytest.mark.parametrize(
    ("action", "neighbours"), [(0, {1, 5, 6}), (12, {6, 7, 8, 11, 13, 16, 17, 18}), (22, {16, 17, 18, 21, 23})]
)
def test_an_offset_rival_is_a_neighbour_inside_the_grid(action, neighbours):
    drawn = draw_preferences(steps(4000, torch.full((4000,), action)), seeded(5), "offset")
    counts = drawn.rejected.bincount(minlength=ACTIONS)
    assert set(counts.nonzero().flatten().tolist()) == neighbours
    share = 4000 / len(neighbours)
    assert (counts[list(neighbours)] - share).abs().max() < 5 * share**0.5


def test_offset_rivals_belong_to_their_own_treatment():
    drawn = draw_preferences(steps(1000), seeded(6), "offset")
    for levels in (lambda a: a // LEVELS, lambda a: a % LEVELS):
        assert (levels(drawn.preferred) - levels(drawn.rejected)).abs().max() == 1
    assert (drawn.preferred != drawn.rejected).all()


def test_exhaustive_rivals_are_all_others_once():
    logged = steps(30)
    drawn = draw_preferences(logged, seeded(0), "exhaustive")
    assert len(drawn) == 30 * 24
    both = torch.cat((drawn.rejected.view(30, 24), logged.action[:, None]), 1)
    assert torch.equal(both.sort(1).values, torch.arange(ACTIONS).expand(30, -1))
    assert torch.equal(drawn.state[24 * 7 + 3], logged.state[7])


def test_truth_prefers_the_higher_score_and_ties_equal_ones():
    logged = steps(500)
    scores = torch.randint(3, (500, ACTIONS), generator=seeded(7)).float()
    drawn = truth_preferences(logged, scores, seeded(8))
    better, worse = (scores.gather(1, a[:, None])[:, 0] for a in (drawn.preferred, drawn.rejected))
    assert (better >= worse).all()
    assert torch.equal(drawn.label == 0.5, better == worse)
    assert ((drawn.preferred == logged.action) ^ (drawn.rejected == logged.action)).all()


def test_truth_refuses_scores_of_other_steps():
    with pytest.raises(InputError, match=r"scores of shape \(3, 25\)"):
        truth_preferences(steps(4), torch.zeros(3, ACTIONS), seeded(0))


def test_a_file_of_labels_comes_back_as_it_was_written(tmp_path):
    known = cohort()
    logged = Steps(
        known.state[known.mask], known.action[known.mask], torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 1])
    )
    pairs = draw_preferences(logged, seeded(9))
    cited = torch.zeros(5, 44, dtype=torch.bool)
    cited[0, 5], cited[2, 11], cited[2, 30] = True, True, True
    pairs = type(pairs)(**(vars(pairs) | {"label": torch.tensor([1.0, 0.5, 1.0, 1.0, 0.5]), "evidence": cited}))
    write_preferences(tmp_path / "labels.csv", pairs)
    back = read_preferences(tmp_path / "labels.csv", known)
    for name, value in vars(pairs).items():
        assert torch.equal(getattr(back, name), value), name


def test_questions_without_an_answer_are_left_out_and_second_may_win(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("traj,step,action_1,action_2,preference\n0,0,3,4,2\n0,1,3,4,\n1,1,9,2,0\n")
    back = read_preferences(path, cohort())
    assert back.preferred.tolist() == [4, 9]
    assert back.rejected.tolist() == [3, 2]
    assert back.label.tolist() == [1.0, 0.5]
    assert back.evidence is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2,0,3,4,1,", r"row 3, column traj: '2'; must be a whole number within 0..1"),
        ("1,2,3,4,1,", r"row 3, column step: '2'; must be a whole number within 0..1"),
        ("1,1,25,4,1,", r"row 3, column action_1: '25'"),
        ("1,1,3,-1,1,", r"row 3, column action_2: '-1'"),
        ("1,1,3,,1,", r"row 3, column action_2: ''"),
        ("1,1,3,3,1,", r"row 3: action_1 and action_2 are both 3"),
        ("1,1,3,4,3,", r"row 3, column preference: '3'; must be 1, 2, 0 or empty"),
        ("1,1,3,4,1,Lactat", r"row 3, column evidence: 'Lactat'"),
        ("1,1,3,4,1,SOFA,GCS", r"row 3: more fields"),
    ],
)
def test_labels_that_mean_nothing_are_refused_with_their_row(tmp_path, line, message):
    path = tmp_path / "labels.csv"
    path.write_text(f"traj,step,action_1,action_2,preference,evidence\n0,0,3,4,1,SOFA GCS\n{line}\n")
    with pytest.raises(InputError, match=message):
        read_preferences(path, cohort())


def test_files_that_are_no_labels_are_refused(tmp_path):
    path = tmp_path / "labels.csv"
    with pytest.raises(InputError, match="no such file"):
        read_preferences(path, cohort())
    path.write_text("traj,step,action_1\n")
    with pytest.raises(InputError, match="no column action_2, preference"):
        read_preferences(path, cohort())
    path.write_text("traj,step,action_1,action_2,preference\n0,0,1,2,\n")
    with pytest.raises(InputError, match="no row has an answer"):
        read_preferences(path, cohort())


def test_a_soft_label_has_no_place_in_a_file(tmp_path):
    pairs = draw_preferences(steps(3), seeded(0))
    pairs.label[1] = 0.7
    with pytest.raises(InputError, match=r"preferences.label\[1\] = 0.7"):
        write_preferences(tmp_path / "labels.csv", pairs)

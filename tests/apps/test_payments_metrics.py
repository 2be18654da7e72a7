import math

import numpy as np
import pytest
import torch

from apps.payments import metrics


def logged(n=2000, seed=0, levels=None):
    g = torch.Generator().manual_seed(seed)
    f = torch.rand(n, generator=g, dtype=torch.float64) * 0.5 + 0.45
    if levels:
        f = (f * levels).round() / levels
    r = (torch.rand(n, generator=g, dtype=torch.float64) < f).double()
    return f, r


def world(n=500, actions=8, seed=1):
    g = torch.Generator().manual_seed(seed)
    f, truth = torch.rand(2, n, actions, generator=g, dtype=torch.float64)
    mask = torch.rand(n, actions, generator=g) < 0.4
    mask[torch.arange(n), torch.randint(actions, (n,), generator=g)] = True
    return f, truth, mask, mask / mask.sum(1, keepdim=True).double()


@pytest.mark.parametrize("levels", [None, 20])
def test_ranking_metrics_agree_with_scikit_learn_with_and_without_ties(levels):
    reference = pytest.importorskip("sklearn.metrics")
    f, r = logged(levels=levels)
    assert metrics.roc_auc(f, r) == pytest.approx(reference.roc_auc_score(r, f), abs=1e-12)
    expected = reference.average_precision_score(1 - r, 1 - f.numpy())
    assert metrics.declines_average_precision(f, r) == pytest.approx(expected, abs=1e-12)
    assert metrics.log_loss(f, r) == pytest.approx(reference.log_loss(r, f), abs=1e-12)
    assert metrics.brier_score(f.numpy(), r.numpy()) == pytest.approx(reference.brier_score_loss(r, f), abs=1e-12)


def test_one_label_has_no_auc_and_certain_errors_cost_infinitely_much():
    assert math.isnan(metrics.roc_auc([0.2, 0.4], [1, 1]))
    assert math.isnan(metrics.declines_average_precision([0.2, 0.4], [1, 1]))
    assert metrics.log_loss([1.0, 0.0], [1, 0]) == 0
    assert metrics.log_loss([1.0, 0.0], [1, 1]) == math.inf


def test_calibration_error_of_a_shifted_forecast_is_the_shift():
    truth = np.linspace(0.2, 0.6, 3000)
    diagram = metrics.reliability(truth + 0.1, truth)
    assert diagram.expected_error == pytest.approx(0.1, abs=1e-12)
    assert diagram.maximum_error == pytest.approx(0.1, abs=1e-12)
    assert metrics.reliability(truth, truth).expected_error == pytest.approx(0, abs=1e-12)


def test_bins_have_equal_mass_and_their_largest_gap_is_the_maximum_error():
    f, r = logged(n=1003)
    diagram = metrics.reliability(f, r)
    assert len(diagram.count) == metrics.BINS
    assert int(diagram.count.sum()) == 1003
    assert int(diagram.count.max() - diagram.count.min()) <= 1
    order = np.argsort(f.numpy())
    gaps = [abs(f.numpy()[part].mean() - r.numpy()[part].mean()) for part in np.array_split(order, metrics.BINS)]
    assert diagram.maximum_error == pytest.approx(max(gaps), abs=0.01)
    assert diagram.expected_error <= diagram.maximum_error


def test_calibration_error_of_an_action_is_that_of_its_own_rows():
    f, r = logged()
    action = torch.randint(3, (2000,), generator=torch.Generator().manual_seed(3))
    found = metrics.action_calibration_errors(f, r, action, 4)
    for a in range(3):
        own = action == a
        assert float(found[a]) == pytest.approx(metrics.reliability(f[own], r[own]).expected_error, abs=1e-12)
    assert math.isnan(found[3])


def test_entropy_of_a_uniform_choice_is_the_log_of_its_actions_and_of_a_certain_one_zero():
    *_, mask, uniform = world()
    assert metrics.action_entropy(uniform) == pytest.approx(float(mask.sum(1).double().log().mean()), abs=1e-12)
    assert metrics.action_entropy(np.eye(3)) == 0


def test_realizability_error_is_the_mean_square_of_the_deviation_on_available_actions():
    _, truth, mask, uniform = world()
    assert metrics.realizability_error(truth, truth, uniform) == 0
    off = truth + torch.where(mask, 0.1, 5.0).double()
    assert metrics.realizability_error(off, truth, uniform) == pytest.approx(0.01, abs=1e-8)


def test_gap_and_greedy_choice_see_available_actions_only():
    f, truth, mask, _ = world()
    hidden = torch.where(mask, f, 100.0)
    assert metrics.mean_gap(hidden, mask) == pytest.approx(metrics.mean_gap(f, mask), abs=1e-12)
    assert metrics.greedy_value(hidden, truth, mask) == metrics.greedy_value(f, truth, mask)


def test_mean_gap_by_hand_leaves_out_payments_without_a_choice():
    f = [[0.9, 0.8, 0.5], [0.1, 0.2, 0.3]]
    assert metrics.mean_gap(f, [[True, True, True], [True, False, False]]) == pytest.approx(0.25)


def test_the_truth_is_the_best_greedy_model_and_ties_take_the_lowest_action():
    f, truth, mask, uniform = world()
    best = metrics.greedy_value(truth, truth, mask)
    assert metrics.policy_value(uniform, truth) < best
    assert metrics.greedy_value(f, truth, mask) < best
    assert best == pytest.approx(float(truth.masked_fill(~mask, -1).amax(1).mean()))
    assert metrics.greedy_value([[0.5, 0.5]], [[0.1, 0.9]], [[True, True]]) == pytest.approx(0.1)


def test_a_basis_point_is_one_payment_of_ten_thousand():
    assert metrics.regret(0.9, 0.9001) == pytest.approx(1.0)
    assert metrics.rejections_avoided(0.9, 0.8) == pytest.approx(0.5)
    assert math.isnan(metrics.rejections_avoided(1.0, 1.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_metrics_agree_between_devices():
    f, r = logged(levels=50)
    scores, _, mask, _ = world()
    assert metrics.roc_auc(f.cuda(), r.cuda()) == pytest.approx(metrics.roc_auc(f, r), abs=1e-12)
    there = metrics.reliability(f.cuda(), r.cuda()).expected_error
    assert there == pytest.approx(metrics.reliability(f, r).expected_error, abs=1e-12)
    assert metrics.mean_gap(scores.cuda(), mask.cuda()) == pytest.approx(metrics.mean_gap(scores, mask), abs=1e-12)

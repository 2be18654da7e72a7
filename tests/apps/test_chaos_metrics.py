import math
import re
import warnings

import numpy as np
import pytest
import torch
from scipy import stats as reference
from scipy.spatial.distance import cdist

from apps.chaos import metrics
from apps.chaos.metrics import CURVES, METRICS, cumulative, evaluate, instantaneous, metric
from core.errors import InputError

NUMBERS = [name for name in METRICS if name not in ("mutual_information", "mase")]


def series(*shape, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.cumsum(rng.normal(size=shape), axis=-2) + 1.0
    return truth, truth + 0.5 * rng.normal(size=shape)


def dysts_metrics():
    pytest.importorskip("sklearn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("dysts.metrics")


@pytest.mark.parametrize("name", sorted(set(list(METRICS)[:17]) - {"smape", "mutual_information", "kl_divergence"}))
def test_metric_agrees_with_dysts(name):
    theirs = dysts_metrics()
    truth, forecast = series(150, 3)
    expected = theirs.compute_metrics(truth, forecast, include=[name])[name]
    assert metric(name)(truth, forecast) == pytest.approx(expected, rel=1e-6)


def test_all_17_metrics_of_dysts_come_first_in_the_registry():
    theirs = dysts_metrics()
    with pytest.raises(AssertionError) as refused:
        theirs.compute_metrics(*series(12, 2), include=["?"])
    assert re.findall(r"'(\w+)'", str(refused.value)) == list(METRICS)[:17]


def test_smape_is_twice_that_of_dysts():
    theirs = dysts_metrics()
    truth, forecast = series(150, 3)
    assert metrics.smape(truth, forecast) == pytest.approx(2 * theirs.smape(truth, forecast))
    assert metrics.smape(truth, forecast) == pytest.approx(theirs.smape(truth, forecast, scaled=False))


def test_ope_agrees_with_dysts():
    theirs = dysts_metrics()
    truth, forecast = series(30, 2)
    assert metrics.ope(truth, forecast) == pytest.approx(theirs.ope(truth, forecast))


def test_mutual_information_is_that_of_scikit_learn_and_the_same_twice():
    # dysts calls the same function, and fails with NumPy 2.4.
    estimate = pytest.importorskip("sklearn.feature_selection").mutual_info_regression
    truth, forecast = series(3, 200, 2)
    forecast[1, 5, 1] = np.nan
    ours = metrics.mutual_information(truth, forecast)
    for i in (0, 2):
        expected = [estimate(truth[i, :, c, None], forecast[i, :, c], random_state=0)[0] for c in range(2)]
        assert ours[i] == pytest.approx(np.mean(expected))
        assert ours[i] == metrics.mutual_information(truth[i], forecast[i])
    assert np.isnan(ours[1])


def test_mutual_information_of_normal_variables_is_known():
    pytest.importorskip("sklearn")
    x, noise = np.random.default_rng(0).normal(size=(2, 3000, 1))
    correlated = 0.9 * x + math.sqrt(1 - 0.81) * noise
    assert metrics.mutual_information(x, correlated) == pytest.approx(-0.5 * math.log(1 - 0.81), abs=0.06)


@pytest.mark.parametrize(("scale", "bandwidth"), [(1.0, "unit"), (None, "neighbours")])
def test_kl_divergence_in_raw_units_agrees_with_dysts_up_to_the_draws(scale, bandwidth):
    theirs = dysts_metrics()
    truth, _ = series(60, 2)
    forecast = truth + 1.0
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.estimate_kl_divergence(truth, forecast, n_samples=4000, sigma_scale=scale)
    np.random.set_state(state)  # noqa: NPY002
    options = {"standardise": False, "bandwidth": bandwidth}
    found = [metrics.kl_divergence(truth, forecast, samples=4000, seed=s, **options) for s in range(6)]
    # The draws of ours and of theirs scatter alike; five standard deviations of a difference.
    assert np.mean(found) == pytest.approx(expected, abs=5 * math.sqrt(1 + 1 / 6) * np.std(found, ddof=1))


def test_errors_of_a_hand_example():
    truth, forecast = np.array([[1.0, 2.0], [3.0, -2.0]]), np.array([[1.0, 4.0], [1.0, -4.0]])
    expected = {
        "mae": 1.5,
        "mse": 3.0,
        "rmse": math.sqrt(3),
        "smape": 200 * (0 + 1 / 3 + 1 / 2 + 1 / 3) / 4,
        "wape": 100 * 6 / 8,
        "mape": 100 * (0 + 1 + 2 / 3 + 1) / 4,
        "marre": 100 * 1.5 / 5,
        "ope": 6 / (0 + 1 + 2 + 3),
        "r2_score": 1 - 12 / 14,
        "coefficient_of_variation": 100 * math.sqrt(3 - 0.25),
        "nrmse": math.sqrt((4 / 1 + 4 / 4 + 4 / 4) / 4),
        "rmsle": math.sqrt((math.log(3) ** 2 + (math.log(9) - math.log(5)) ** 2) / 4),
    }
    for name, value in expected.items():
        assert metric(name)(truth, forecast) == pytest.approx(value, rel=1e-7), name
    assert metrics.mape(truth, forecast, signed=True) == pytest.approx(100 * (0 + 1 + 2 / 3 - 1) / 4)


def test_mase_is_one_for_an_error_as_large_as_the_steps_of_the_training_series():
    train = np.array([[0.0], [2.0], [1.0], [4.0]])
    truth = np.zeros((5, 1))
    assert metrics.mase(truth, truth + 2.0, train=train) == pytest.approx(1.0)
    assert metrics.mase(truth, truth + 1.5, train=train, season=2) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "name", ["mse", "smape", "wape", "nrmse", "marre", "ope", "mape", "rmsle", "hellinger_distance"]
)
def test_a_perfect_forecast_has_no_error(name):
    truth = np.concatenate([np.zeros((1, 2)), series(30, 2)[0]])
    assert metric(name)(truth, truth) == pytest.approx(0.0, abs=1e-7)


def test_a_perfect_forecast_has_the_best_scores():
    truth = series(40, 3)[0]
    for name in ("r2_score", "spearman", "pearson", "kendall"):
        assert metric(name)(truth, truth) == pytest.approx(1.0)
    assert metrics.kl_divergence(truth, truth) == pytest.approx(0.0, abs=1e-12)
    assert metrics.dtw(truth, truth) == 0.0


def test_smape_of_the_mean_of_standardised_data_is_200():
    truth = series(50, 3)[0]
    assert metrics.smape(truth, np.zeros_like(truth)) == pytest.approx(200.0)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_batch_is_its_series(name):
    truth, forecast = series(2, 3, 40, 2)
    whole = metric(name)(truth, forecast)
    assert whole.shape == (2, 3)
    for i in np.ndindex(2, 3):
        assert whole[i] == pytest.approx(float(metric(name)(truth[i], forecast[i])), rel=1e-12)


@pytest.mark.parametrize("name", NUMBERS)
def test_tensors_give_the_tensor_of_the_same_numbers(name):
    truth, forecast = series(3, 40, 2)
    found = metric(name)(torch.from_numpy(truth), torch.from_numpy(forecast))
    assert isinstance(found, torch.Tensor)
    assert found.numpy().tolist() == metric(name)(truth, forecast).tolist()


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_forecast_that_is_not_finite_has_no_score_and_touches_no_other(name, bad):
    truth, forecast = series(3, 40, 2)
    expected = metric(name)(truth, forecast)
    forecast[1, 30, 0] = bad
    found = metric(name)(truth, forecast)
    assert np.isnan(found).tolist() == [False, True, False]
    assert found[[0, 2]].tolist() == expected[[0, 2]].tolist()


def test_a_constant_forecast_has_no_correlation():
    truth = series(40, 2)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = evaluate(truth, np.ones_like(truth), ["spearman", "pearson", "kendall"])
    assert np.isnan(list(values.values())).all()


def test_metrics_without_unit_do_not_depend_on_the_unit():
    truth, forecast = series(60, 2)
    for name, m in METRICS.items():
        if m.unit in ("%", "1", "nat") and name not in ("rmsle", "mase", "mutual_information"):
            assert m(1e-3 * truth, 1e-3 * forecast) == pytest.approx(float(m(truth, forecast)), rel=1e-3), name


def test_published_kl_divergence_depends_on_the_unit():
    truth, forecast = series(60, 2)
    raw = [metrics.kl_divergence(c * truth, c * forecast, standardise=False) for c in (1.0, 1e-2)]
    assert abs(raw[1]) < 0.1 * abs(raw[0])


def test_kl_divergence_of_displaced_points_is_half_the_square_of_the_distance():
    # Around one point each density is a Gaussian of variance 1, where the divergence is known.
    truth = np.zeros((5, 2))
    found = metrics.kl_divergence(truth, truth + np.array([3.0, 4.0]), samples=40_000, standardise=False)
    assert found == pytest.approx(12.5, abs=5 * 5.0 / math.sqrt(40_000))


def test_hellinger_distance_of_disjoint_spectra_is_one():
    t = np.arange(200)[:, None] / 200
    assert metrics.hellinger_distance(np.sin(2 * np.pi * 5 * t), np.sin(2 * np.pi * 20 * t)) == pytest.approx(1.0)
    assert metrics.hellinger_distance(np.sin(2 * np.pi * 5 * t), 3 * np.cos(2 * np.pi * 5 * t)) < 1e-6


def test_dtw_is_the_cheapest_of_all_matchings():
    truth, forecast = series(7, 2)
    cost = cdist(truth, forecast)

    def cheapest(i, j):
        if i < 0 or j < 0:
            return math.inf
        if i == j == 0:
            return cost[0, 0]
        return cost[i, j] + min(cheapest(i - 1, j), cheapest(i, j - 1), cheapest(i - 1, j - 1))

    assert metrics.dtw(truth, forecast) == pytest.approx(cheapest(6, 6) / 16)


def test_dtw_forgives_a_pause():
    truth = np.repeat(np.arange(10.0), 2)[:, None]
    forecast = np.concatenate([np.repeat(np.arange(9.0), 2), [8.0, 9.0]])[:, None]
    assert metrics.dtw(truth, forecast) == 0.0


def test_correlations_agree_with_scipy_with_ties():
    truth, forecast = (np.round(x) for x in series(60, 2))
    for name, theirs in (("spearman", reference.spearmanr), ("kendall", reference.kendalltau)):
        expected = np.mean([theirs(truth[:, i], forecast[:, i]).statistic for i in range(2)])
        assert metric(name)(truth, forecast) == pytest.approx(expected)


@pytest.mark.parametrize("name", CURVES)
def test_the_cumulative_error_is_the_metric_of_the_first_samples(name):
    truth, forecast = series(2, 30, 3)
    std = truth.std(-2)
    options = {"std": std} if name == "nrmse" else {}
    curve = cumulative(name, truth, forecast, **options)
    assert curve.shape == (2, 30)
    for i in range(1, 31):
        assert curve[:, i - 1] == pytest.approx(metric(name)(truth[:, :i], forecast[:, :i], **options))
    assert curve[:, -1] == pytest.approx(metric(name)(truth, forecast))


@pytest.mark.parametrize("name", CURVES)
def test_the_instantaneous_error_is_the_metric_of_one_sample(name):
    truth, forecast = series(2, 30, 3)
    options = {"std": truth.std(-2)} if name == "nrmse" else {}
    curve = instantaneous(name, truth, forecast, **options)
    assert curve[:, 7] == pytest.approx(metric(name)(truth[:, 7:8], forecast[:, 7:8], **options))


def test_curves_end_where_a_forecast_is_not_finite():
    truth, forecast = series(2, 30, 3)
    forecast[0, 10, 1] = np.inf
    running, single = cumulative("smape", truth, forecast), instantaneous("smape", truth, forecast)
    assert np.flatnonzero(np.isnan(running[0])).tolist() == list(range(10, 30))
    assert np.flatnonzero(np.isnan(single[0])).tolist() == [10]
    assert np.isfinite(running[1]).all()


def test_the_truth_is_broadcast_over_methods():
    truth, forecast = series(4, 30, 3)
    assert metrics.mae(truth[0], forecast).shape == (4,)


def test_evaluate_leaves_out_what_needs_training_data():
    truth, forecast = series(40, 2)
    names = [name for name in METRICS if name != "mutual_information"]
    assert set(evaluate(truth, forecast, names[:3])) == {"mse", "mae", "rmse"}
    assert "mase" in evaluate(truth, forecast, names, train=truth)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda y, p: metric("smap"), "metric 'smap'"),
        (lambda y, p: cumulative("dtw", y, p), "no curve"),
        (lambda y, p: metrics.mse(y, p[:5]), r"truth \(40, 2\), forecast \(5, 2\)"),
        (lambda y, p: metrics.mse(y[:, 0], p[:, 0]), "samples, channels"),
        (lambda y, p: metrics.mse(np.stack([y] * 2), np.stack([p] * 3)), "leading axes"),
        (lambda y, p: evaluate(y, p, ["mase"]), "train: mase"),
        (lambda y, p: metrics.mase(y, p, train=y, season=40), "season 40"),
        (lambda y, p: metrics.kl_divergence(y, p, samples=0), "samples: 0"),
        (lambda y, p: metrics.kl_divergence(y[:8], p[:8], bandwidth="neighbours"), "8 samples"),
    ],
)
def test_impossible_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(*series(40, 2))


@pytest.mark.gpu
def test_metrics_stay_on_the_device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    truth, forecast = (torch.from_numpy(x).cuda() for x in series(3, 40, 2))
    for name in NUMBERS:
        found = metric(name)(truth, forecast)
        assert found.device == truth.device
        assert found.cpu().numpy() == pytest.approx(metric(name)(truth.cpu(), forecast.cpu()).numpy(), rel=1e-9)

import math

import pytest
import torch

from core import bandits
from core.errors import InputError


def policies(n=400, actions=5, seed=0):
    rng = torch.Generator().manual_seed(seed)
    target, logging = torch.rand(2, n, actions, generator=rng, dtype=torch.float64).pow(3) + 0.01
    return target / target.sum(1, keepdim=True), logging / logging.sum(1, keepdim=True)


def test_coverage_of_two_policies_by_hand():
    target = torch.tensor([[0.8, 0.2], [0.5, 0.5]])
    logging = torch.tensor([[0.2, 0.8], [0.5, 0.5]])
    coverage = bandits.policy_coverage(target, logging)
    assert float(coverage.c_inf) == pytest.approx(4.0)
    # Row 1: .64/.2 + .04/.8 = 3.25; row 2: 1.
    assert float(coverage.c_2) == pytest.approx((3.25 + 1) / 2)
    assert coverage.rows.tolist() == [2]


def test_a_policy_covers_itself():
    target, _ = policies()
    coverage = bandits.policy_coverage(target, target)
    assert (float(coverage.c_inf), float(coverage.c_2)) == pytest.approx((1.0, 1.0))


def test_what_the_log_cannot_show_is_infinite_and_what_neither_plays_is_not():
    target, logging = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    coverage = bandits.policy_coverage(target, logging)
    assert math.isinf(coverage.c_inf)
    assert math.isinf(coverage.c_2)
    reverse = bandits.policy_coverage(logging, target)
    assert (float(reverse.c_inf), float(reverse.c_2)) == pytest.approx((2.0, 2.0))


def test_the_value_of_a_model_errs_by_no_more_than_the_bound():
    target, logging = policies()
    rng = torch.Generator().manual_seed(1)
    coverage = bandits.policy_coverage(target, logging)
    error = torch.randn(target.shape, generator=rng, dtype=torch.float64)
    worst = target / logging  # the error that meets the bound
    for wrong in (error, worst):
        bound = float(coverage.bound((logging * wrong**2).sum(1).mean()))
        assert abs(float((target * wrong).sum(1).mean())) <= bound * (1 + 1e-12)
    assert float((target * worst).sum(1).mean()) == pytest.approx(bound)


def test_the_log_estimates_the_coverage_and_the_effective_sample_size():
    target, logging = policies(n=100_000)
    rng = torch.Generator().manual_seed(2)
    action = torch.multinomial(logging, 1, generator=rng)
    target_of, logged = (p.gather(1, action)[:, 0] for p in (target, logging))
    exact, estimate = bandits.policy_coverage(target, logging), bandits.log_coverage(target_of, logged)
    assert float(estimate.c_2) == pytest.approx(float(exact.c_2), rel=0.1)
    assert float(estimate.c_inf) <= float(exact.c_inf)
    weight = target_of / logged
    ess = float(weight.sum() ** 2 / weight.square().sum())
    assert float(estimate.c_2) == pytest.approx(float(weight.mean() ** 2) * len(weight) / ess)


def test_segments_are_covered_each_for_itself():
    target, logging = policies()
    segment = torch.tensor([30, -2, 7, 7]).repeat(100)
    together = bandits.policy_coverage(target, logging, segment)
    assert together.segment.tolist() == [-2, 7, 30]
    assert together.rows.tolist() == [100, 200, 100]
    features = torch.randn(400, 5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    phi = bandits.feature_coverage(features, target, logging, segment)
    for at, name in enumerate(together.segment.tolist()):
        of = segment == name
        alone = bandits.policy_coverage(target[of], logging[of])
        assert float(together.c_inf[at]) == float(alone.c_inf)
        assert float(together.c_2[at]) == pytest.approx(float(alone.c_2))
        assert float(phi[at]) == pytest.approx(float(bandits.feature_coverage(features[of], target[of], logging[of])))
        logged = bandits.log_coverage(target[:, 0], logging[:, 0], segment)
        assert float(logged.c_2[at]) == pytest.approx(float((target[of, 0] / logging[of, 0]).square().mean()))


def test_feature_coverage_is_the_worst_ratio_of_squared_errors_of_linear_models():
    target, logging = policies()
    features = torch.randn(400, 5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    c_phi = float(bandits.feature_coverage(features, target, logging))
    directions = torch.randn(50_000, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    error = features.reshape(-1, 3) @ directions.T
    under = [(p.reshape(-1, 1) * error**2).sum(0) for p in (target, logging)]
    assert float((under[0] / under[1]).max()) == pytest.approx(c_phi, rel=1e-3)
    assert bandits.feature_coverage(features, logging, logging).tolist() == pytest.approx([1.0])
    # One indicator an action, and no context: C_phi is the greatest weight.
    indicator = torch.eye(5, dtype=torch.float64).expand(400, 5, 5)
    same = [p[:1].expand(400, 5) for p in (target, logging)]
    weight = float(bandits.policy_coverage(*same).c_inf)
    assert float(bandits.feature_coverage(indicator, *same)) == pytest.approx(weight, rel=1e-3)


def test_feature_coverage_of_logged_rows_weighs_them():
    target, logging = policies(n=50_000)
    rng = torch.Generator().manual_seed(6)
    features = torch.randn(5, 3, generator=rng, dtype=torch.float64).expand(50_000, 5, 3)
    action = torch.multinomial(logging, 1, generator=rng)
    weight = (target / logging).gather(1, action)[:, 0]
    logged = bandits.feature_coverage(features[torch.arange(50_000), action[:, 0]], weight)
    assert float(logged) == pytest.approx(float(bandits.feature_coverage(features, target, logging)), rel=0.05)


def test_features_that_the_log_never_shows_cost_the_ridge():
    features, target, logging = torch.eye(2).expand(10, 2, 2), torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    c_phi = bandits.feature_coverage(features, target.expand(10, 2), logging.expand(10, 2), ridge=1e-4)
    assert float(c_phi) == pytest.approx((0.5 + 1e-4) / 1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, p: bandits.policy_coverage(t[:0], p[:0]), "no rows"),
        (lambda t, p: bandits.policy_coverage(t, p[:5]), "must have one shape"),
        (lambda t, p: bandits.policy_coverage(t[:, 0], p[:, 0]), "must be .rows, actions."),
        (lambda t, p: bandits.policy_coverage(2 * t, p), r"target: row \d+, column \d is 1"),
        (lambda t, p: bandits.policy_coverage(t, p * torch.nan), "logging: row 0, column 0 is nan"),
        (lambda t, p: bandits.policy_coverage(t, p, torch.zeros(3)), "segment of shape"),
        (lambda t, p: bandits.log_coverage(t[:, 0], 0 * p[:, 0]), r"propensity: row 0 is 0.0, allowed is \(0, 1\]"),
        (lambda t, p: bandits.log_coverage(t, p), "must be .rows,."),
        (lambda t, p: bandits.feature_coverage(torch.ones(400, 2), t), "features .400, 2., target .400, 5."),
        (lambda t, p: bandits.feature_coverage(torch.ones(400, 5, 2) / 0, t, p), "features: row 0"),
        (lambda t, p: bandits.feature_coverage(torch.ones(400, 5, 2), t, p, ridge=0.0), "ridge = 0.0"),
    ],
)
def test_refusals_name_what_is_wrong_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as refusal:
        call(*policies())
    assert "\n" not in str(refusal.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu():
    target, logging = (p.float() for p in policies(n=5000))
    segment = torch.arange(5000) % 7
    features = torch.randn(5000, 5, 3, generator=torch.Generator().manual_seed(7))
    ours = bandits.policy_coverage(target.cuda(), logging.cuda(), segment.cuda())
    theirs = bandits.policy_coverage(target, logging, segment)
    torch.testing.assert_close(ours.c_2.cpu(), theirs.c_2, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.c_inf.cpu(), theirs.c_inf, rtol=1e-5, atol=0)
    phi = bandits.feature_coverage(features.cuda(), target.cuda(), logging.cuda(), segment.cuda())
    torch.testing.assert_close(phi.cpu(), bandits.feature_coverage(features, target, logging, segment))

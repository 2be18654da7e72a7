from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from core.bandits.off_policy import LOGGED, LoggedRows, Sums, evaluate, logged_rows
from core.bandits.off_policy_intervals import Anytime, Bernstein, Evidence, Normal, Percentile
from core.bandits.poisson_bootstrap import _TABLE, PoissonBootstrap
from core.errors import InputError

# ---- a world whose truth is known: six kinds of payment, four actions, uniform logging

APPROVAL = np.array(
    [
        [0.9, 0.8, 0.6, 0.95],
        [0.5, 0.7, 0.9, 0.4],
        [0.8, 0.8, 0.85, 0.7],
        [0.3, 0.6, 0.5, 0.9],
        [0.95, 0.9, 0.99, 0.9],
        [0.7, 0.2, 0.6, 0.65],
    ]
)
SHARE = np.array([0.3, 0.25, 0.2, 0.1, 0.1, 0.05])
# A model that is wrong by up to a fifth.
MODEL = np.clip(APPROVAL + 0.2 * np.cos(np.arange(24).reshape(6, 4)), 0, 1)
GREEDY = np.eye(4)[APPROVAL.argmax(1)]
SOFTMAX = np.exp(APPROVAL / 0.1) / np.exp(APPROVAL / 0.1).sum(1, keepdims=True)
POLICIES = {"greedy": GREEDY, "softmax": SOFTMAX, "epsilon": 0.8 * np.eye(4)[MODEL.argmax(1)] + 0.05}
TRUTH = {name: float(SHARE @ (policy * APPROVAL).sum(1)) for name, policy in POLICIES.items()}
UNIFORM = float(SHARE @ APPROVAL.mean(1))


def played(n, seed):
    rng = np.random.default_rng(seed)
    kind, action = rng.choice(6, n, p=SHARE), rng.integers(0, 4, n)
    reward = (rng.random(n) < APPROVAL[kind, action]).astype(float)
    return {
        name: logged_rows(action, reward, np.full(n, 0.25), policy[kind], MODEL[kind])
        for name, policy in POLICIES.items()
    }


def evidence(value, variance, n, **more):
    return Evidence("x", value, variance, n, **more)


# ---- coverage


def test_intervals_of_ips_and_dr_cover_the_truth_as_often_as_they_say():
    covered = {(name, policy): 0 for name in ("ips", "dr") for policy in POLICIES}
    differences = 0
    for seed in range(200):
        sums = Sums.of(played(1500, seed))
        for name, policy in covered:
            interval = sums.estimate(name, policy)
            covered[name, policy] += interval.low <= TRUTH[policy] <= interval.high
        interval = sums.difference("dr", "greedy", "softmax")
        differences += interval.low <= TRUTH["greedy"] - TRUTH["softmax"] <= interval.high
    for share in (*covered.values(), differences):
        assert 0.90 <= share / 200 <= 0.99


def test_an_anytime_sequence_covers_at_all_looks_and_the_normal_interval_does_not():
    looks, missed = range(100, 5001, 100), {"anytime": 0, "normal": 0}
    for seed in range(100):
        rows = played(5000, 1000 + seed)["softmax"]
        sums, misses = None, {"anytime": False, "normal": False}
        for stop in looks:
            more = Sums.of(rows.take(torch.arange(stop - 100, stop)))
            sums = more if sums is None else sums + more
            for name, method in (("anytime", Anytime(tight_at=1000)), ("normal", Normal())):
                interval = sums.estimate("dr", interval=method)
                misses[name] |= not interval.low <= TRUTH["softmax"] <= interval.high
        for name, miss in misses.items():
            missed[name] += miss
    assert missed["anytime"] <= 5
    assert missed["normal"] >= 15


def test_a_bernstein_interval_covers_with_few_rows_too():
    missed = 0
    for seed in range(200):
        interval = Sums.of(played(30, seed)["greedy"], max_weight=4).estimate("ips", interval=Bernstein())
        missed += not interval.low <= TRUTH["greedy"] <= interval.high
    assert missed == 0


# ---- analytic ends


def test_a_normal_interval_of_a_difference_has_the_z_tests_p_value():
    interval = Normal(0.9)(evidence(0.02, 0.25, 1000, tested=True))
    z = 0.02 / math.sqrt(0.25 / 1000)
    assert interval.p == pytest.approx(2 * stats.norm.sf(z))
    assert (interval.low, interval.high) == pytest.approx(stats.norm.interval(0.9, 0.02, 0.02 / z))
    assert Normal()(evidence(0.0, 0.0, 10, tested=True)).p == 1
    assert Normal()(evidence(0.1, 0.0, 10, tested=True)).p == 0


def test_bernstein_is_audiberts_bound_on_the_range_that_the_limits_leave():
    rows = played(400, 0)["softmax"]
    sums = Sums.of(rows, clip=2.0, switch=1.5, shrink=4.0, max_weight=4.0)
    w = (rows.target / rows.propensity).numpy()
    r, e, v = rows.reward.numpy(), (rows.reward - rows.q_logged).numpy(), rows.value.numpy()
    expected = {
        "ips": (w * r, 4.0),
        "clipped_ips": (np.minimum(w, 2) * r, 2.0),
        "dm": (v, 1.0),
        "dr": (v + w * e, 9.0),
        "switch_dr": (v + w * (w <= 1.5) * e, 4.0),
        "dros": (v + 4 * w / (w**2 + 4) * e, 3.0),
    }
    log = math.log(3 / 0.1)
    for name, (terms, width) in expected.items():
        half = math.sqrt(2 * terms.var() * log / 400) + 3 * width * log / 400
        found = sums.estimate(name, interval=Bernstein(0.9))
        assert (found.low, found.high) == pytest.approx((terms.mean() - half, terms.mean() + half), rel=1e-10)
    half = math.sqrt(2 * (w * r - r).var() * log / 400) + 3 * 5 * log / 400
    found = sums.difference("ips", baseline=LOGGED, interval=Bernstein(0.9))
    assert found.high - found.mean == pytest.approx(half, rel=1e-10)


def test_bernstein_refuses_what_nothing_bounds():
    rows = played(100, 0)["softmax"]
    message = r"^{}: nothing bounds a row's term, as an empirical Bernstein interval needs: .*give max_weight.*$"
    for name, sums in (
        ("ips", Sums.of(rows)),
        ("snips", Sums.of(rows, max_weight=4)),
        ("dm", Sums.of(LoggedRows(rows.reward, rows.propensity, rows.target, rows.q_logged, rows.value + 2))),
    ):
        with pytest.raises(InputError, match=message.format(name)):
            sums.estimate(name, interval=Bernstein())


def test_an_anytime_interval_is_narrowest_at_its_n_and_wider_than_the_normal_one():
    def half(tight_at, n=1000):
        interval = Anytime(0.95, tight_at)(evidence(0.0, 1.0, n))
        return interval.high

    best = half(1000)
    assert best < half(900)
    assert best < half(1100)
    assert 1.3 < best / (1.96 / math.sqrt(1000)) < 1.7
    assert half(1000, 10**8) < half(1000, 10**6) / 8


# ---- bootstrap


def test_counts_are_poissons_with_exact_mean_and_variance():
    assert len(_TABLE) == 2**16
    assert (_TABLE.mean(), _TABLE.var()) == (1.0, 1.0)
    share = np.bincount(_TABLE.astype(int)) / 2**16
    assert share == pytest.approx(stats.poisson(1).pmf(range(9)), abs=2.5e-4)
    counts = PoissonBootstrap(200).counts(np.arange(5000))
    found = np.bincount(counts.flatten().long())[:7] / counts.numel()
    assert found == pytest.approx(stats.poisson(1).pmf(range(7)), abs=0.001)


def test_counts_of_rows_and_replicates_are_uncorrelated():
    counts = PoissonBootstrap(64).counts(np.arange(4000)).numpy() - 1
    between = np.corrcoef(counts.T)
    np.fill_diagonal(between, 0)
    assert np.abs(between).max() < 5 / math.sqrt(4000)
    lagged = [(counts[:-lag] * counts[lag:]).mean() for lag in (1, 2, 3, 7, 64)]
    assert np.abs(lagged).max() < 4 / math.sqrt(counts.size)


def test_counts_depend_on_id_replicate_and_seed_alone():
    all_of_them = PoissonBootstrap(10).counts(np.arange(50))
    assert torch.equal(PoissonBootstrap(10).counts(np.array([7, 3])), all_of_them[[7, 3]])
    assert torch.equal(PoissonBootstrap(13).counts(np.arange(50))[:, :10], all_of_them)
    assert not torch.equal(PoissonBootstrap(10, seed=1).counts(np.arange(50)), all_of_them)


def test_percentiles_agree_with_resampled_rows():
    n, rows = 1500, played(1500, 5)["epsilon"]
    sums = Sums.of(rows, bootstrap=PoissonBootstrap(4000), ids=np.arange(n))
    w, e = (rows.target / rows.propensity).numpy(), (rows.reward - rows.q_logged).numpy()
    index = np.random.default_rng(0).integers(0, n, (4000, n))
    expected = {
        "snips": (w * rows.reward.numpy())[index].sum(1) / w[index].sum(1),
        "sndr": rows.value.numpy()[index].mean(1) + (w * e)[index].sum(1) / w[index].sum(1),
    }
    for name, values in expected.items():
        found = sums.estimate(name, interval=Percentile(0.9))
        # Monte Carlo error of the difference of two such ends: about 3 % of the standard error.
        tolerance = 0.12 * values.std()
        assert found.low == pytest.approx(np.quantile(values, 0.05), abs=tolerance)
        assert found.high == pytest.approx(np.quantile(values, 0.95), abs=tolerance)


def test_the_bootstrap_of_a_difference_is_paired():
    rows = played(1000, 6)
    sums = Sums.of(rows, bootstrap=PoissonBootstrap(1000), ids=np.arange(1000))
    found = sums.difference("dr", "greedy", "softmax", Percentile())
    normal = sums.difference("dr", "greedy", "softmax")
    assert found.high - found.low == pytest.approx(normal.high - normal.low, rel=0.15)
    assert found.p < 0.05
    assert evaluate(sums, "greedy", interval=Percentile())["dr"].p is None


def test_rows_of_one_cluster_count_together_wherever_they_are():
    size, clusters = 25, 80
    rng = np.random.default_rng(7)
    reward = np.repeat(rng.random(clusters), size)
    n, half = len(reward), np.full(len(reward), 0.5)
    cluster = np.repeat([f"merchant {i}" for i in range(clusters)], size)
    rows, bootstrap = LoggedRows(reward, half, half), PoissonBootstrap(1000)  # type: ignore[arg-type]
    clustered = Sums.of(rows, bootstrap=bootstrap, ids=cluster)
    alone = Sums.of(rows, bootstrap=bootstrap, ids=np.arange(n))

    def width(sums):
        interval = sums.estimate("ips", interval=Percentile())
        return interval.high - interval.low

    # The design effect of clusters whose rows are all alike is their size.
    assert width(clustered) == pytest.approx(math.sqrt(size) * width(alone), rel=0.15)
    shuffled = torch.from_numpy(rng.permutation(n))
    parts = [
        Sums.of(rows.take(i), bootstrap=bootstrap, ids=cluster[i.numpy()]) for i in (shuffled[:900], shuffled[900:])
    ]
    np.testing.assert_allclose((parts[0] + parts[1]).replicates, clustered.replicates, rtol=1e-12)


def test_replicates_that_drew_nothing_are_left_out():
    rows = LoggedRows(torch.tensor([0.0, 1.0]), torch.ones(2), torch.ones(2))
    sums = Sums.of(rows, bootstrap=PoissonBootstrap(200), ids=np.arange(2))
    assert (sums.replicates[:, 0] == 0).any()
    interval = sums.estimate("ips", interval=Percentile())
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_bootstraps_need_ids_and_percentiles_need_a_bootstrap():
    rows = played(10, 0)["greedy"]
    with pytest.raises(InputError, match=r"^ids: shape \(\), the bootstrap needs one of each row \(10,\)$"):
        Sums.of(rows, bootstrap=PoissonBootstrap(10))
    with pytest.raises(InputError, match=r"^dr: no bootstrap was summed, give Sums.of a bootstrap and ids$"):
        Sums.of(rows).estimate("dr", interval=Percentile())
    with pytest.raises(InputError, match=r"^replicates: 1 is below 2$"):
        PoissonBootstrap(1)
    with pytest.raises(InputError, match=r"^level: 1.5 is outside \(0, 1\)$"):
        Normal(1.5)

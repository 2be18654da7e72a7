from __future__ import annotations

import functools
import itertools
import math
import operator
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.bandits.hashing import cross_fitted, folds_of, hashed
from core.bandits.off_policy import ESTIMATORS, LOGGED, NET_VALUE, LoggedRows, Sums, evaluate, logged_rows
from core.bandits.poisson_bootstrap import PoissonBootstrap
from core.bandits.weights import balance_heuristic, group_weights, marginal_weights, mrdr_weights
from core.errors import InputError

CLIP, SWITCH, SHRINK = 2.0, 3.0, 5.0
N, K = 4000, 6


def simplex(rng, n, k, sharpness=1.0):
    table = np.exp(sharpness * rng.normal(size=(n, k)))
    return table / table.sum(1, keepdims=True)


@functools.cache
def log(n=N, k=K, seed=0):
    rng = np.random.default_rng(seed)
    logging, truth = simplex(rng, n, k), rng.uniform(0.5, 1.0, (n, k))
    action = (logging.cumsum(1) < rng.random((n, 1))).sum(1)
    return {
        "action": action,
        "reward": (rng.random(n) < truth[np.arange(n), action]).astype(float),
        "propensity": logging[np.arange(n), action],
        "target_probabilities": simplex(rng, n, k, 1.5),
        "qhat": np.clip(truth + rng.normal(0, 0.1, truth.shape), 0, 1),
    }


def part(rows: slice, **changes):
    return {name: column[rows] for name, column in (log() | changes).items()}


def influences(columns):
    """The published estimators, each as a value and the influence of every row, in plain NumPy."""
    n = len(columns["action"])
    at = np.arange(n), columns["action"]
    w, r = columns["target_probabilities"][at] / columns["propensity"], columns["reward"]
    e = r - columns["qhat"][at]
    v = np.sum(columns["target_probabilities"] * columns["qhat"], axis=1)
    found = {
        "ips": w * r,
        "clipped_ips": np.minimum(w, CLIP) * r,
        "dm": v,
        "dr": v + w * e,
        "switch_dr": v + np.where(w <= SWITCH, w, 0) * e,
        "dros": v + SHRINK * w / (w**2 + SHRINK) * e,
    }
    values = {name: (terms.mean(), terms - terms.mean()) for name, terms in found.items()}
    snips, correction = np.sum(w * r) / np.sum(w), np.sum(w * e) / np.sum(w)
    values["snips"] = snips, w * (r - snips) / w.mean()
    values["sndr"] = v.mean() + correction, v - v.mean() + w * (e - correction) / w.mean()
    return values


def sums(columns, **more):
    return Sums.of(logged_rows(**columns), clip=CLIP, switch=SWITCH, shrink=SHRINK, **more)


def same(a: Sums, b: Sums):
    assert a.n == b.n
    assert a.largest == b.largest
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-13)
    np.testing.assert_allclose(a.comoment, b.comoment, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(a.replicates, b.replicates, rtol=1e-12)


# ---- the estimators


def test_values_and_intervals_are_those_of_the_published_formulas():
    table = evaluate(sums(log()))
    expected = influences(log())
    assert table.keys() == expected.keys()
    for name, (value, influence) in expected.items():
        error = influence.std(ddof=1) / math.sqrt(N)
        assert table[name].mean == pytest.approx(value, abs=1e-13)
        assert table[name].high - value == pytest.approx(1.959963984540054 * error, rel=1e-10)
        assert value - table[name].low == pytest.approx(1.959963984540054 * error, rel=1e-10)
        assert table[name].n == N


def test_values_are_those_of_obp():
    ope = pytest.importorskip(
        "obp.ope", reason="obp 0.5.7 has an environment of its own: benchmarks/payments_evaluation"
    )
    columns = log()
    theirs = {
        "action": columns["action"],
        "reward": columns["reward"],
        "pscore": columns["propensity"],
        "action_dist": columns["target_probabilities"][:, :, None],
        "estimated_rewards_by_reg_model": columns["qhat"][:, :, None],
        "position": np.zeros(N, dtype=int),
    }
    estimators = {
        "ips": ope.InverseProbabilityWeighting(),
        "clipped_ips": ope.InverseProbabilityWeighting(lambda_=CLIP),
        "snips": ope.SelfNormalizedInverseProbabilityWeighting(),
        "dm": ope.DirectMethod(),
        "dr": ope.DoublyRobust(),
        "sndr": ope.SelfNormalizedDoublyRobust(),
        "switch_dr": ope.SwitchDoublyRobust(lambda_=SWITCH),
        "dros": ope.DoublyRobustWithShrinkage(lambda_=SHRINK),
    }
    ours = evaluate(sums(columns))
    for name, estimator in estimators.items():
        assert ours[name].mean == pytest.approx(estimator.estimate_policy_value(**theirs), abs=1e-12)


def test_the_logging_policy_is_worth_its_mean_reward():
    rng = np.random.default_rng(1)
    logging = simplex(rng, N, K)
    action = log()["action"]
    propensity = logging[np.arange(N), action]
    found = sums(part(slice(None), propensity=propensity, target_probabilities=logging))
    assert found.estimate("ips").mean == pytest.approx(log()["reward"].mean(), abs=1e-14)
    assert found.estimate("snips").mean == pytest.approx(log()["reward"].mean(), abs=1e-14)
    assert found.diagnostics().ess == pytest.approx(N)
    assert found.difference("ips").high == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("limits", [{"clip": math.inf}, {"switch": math.inf}, {"shrink": math.inf}])
def test_without_a_limit_the_limited_estimators_are_the_unlimited_ones(limits):
    table = evaluate(Sums.of(logged_rows(**log()), **limits))
    limited, plain = {"clip": ("clipped_ips", "ips"), "switch": ("switch_dr", "dr"), "shrink": ("dros", "dr")}[
        next(iter(limits))
    ]
    assert table[limited].mean == pytest.approx(table[plain].mean, abs=1e-14)
    assert table[limited].low == pytest.approx(table[plain].low, abs=1e-12)


def test_a_true_model_makes_dr_exact_where_rewards_are_certain():
    columns = part(slice(None), reward=log()["qhat"][np.arange(N), log()["action"]])
    table = evaluate(sums(columns))
    for name in ("dr", "sndr", "switch_dr", "dros"):
        assert table[name].mean == pytest.approx(table["dm"].mean, abs=1e-14)


def test_without_a_model_only_the_weighting_estimators_are_there():
    columns = {name: column for name, column in log().items() if name != "qhat"}
    found = sums(columns)
    assert found.estimators() == ("ips", "clipped_ips", "snips")
    with pytest.raises(InputError, match=r"^estimator: 'dr', the rows of target allow ips, clipped_ips, snips$"):
        found.estimate("dr")


def test_a_policy_that_no_logged_action_follows_has_no_self_normalised_value():
    rows = LoggedRows(torch.ones(3), torch.full((3,), 0.5), torch.zeros(3))
    found = Sums.of(rows)
    assert math.isnan(found.estimate("snips").mean)
    assert found.estimate("ips").mean == 0
    assert found.diagnostics().verdict == "weak"


def test_single_precision_tables_give_the_same_values():
    tables = {"target_probabilities": torch.tensor(log()["target_probabilities"], dtype=torch.float32)}
    tables["qhat"] = torch.tensor(log()["qhat"], dtype=torch.float32)
    exact, rounded = evaluate(sums(log())), evaluate(sums(log() | tables))
    for name in exact:
        assert rounded[name].mean == pytest.approx(exact[name].mean, abs=1e-6)


def test_net_values_scale_and_shift_as_money_does():
    scaled = part(slice(None), reward=50 * log()["reward"] - 3, qhat=50 * log()["qhat"] - 3)
    rows = logged_rows(**scaled, reward_range=NET_VALUE)
    money, share = evaluate(Sums.of(rows)), evaluate(Sums.of(logged_rows(**log())))
    for name in ("dm", "snips", "sndr", "dr"):
        assert money[name].mean == pytest.approx(50 * share[name].mean - 3, abs=1e-10)
    with pytest.raises(InputError, match=r"^reward: row 0 is (47|-3)\.0, allowed is \[0, 1\]$"):
        logged_rows(**scaled)


# ---- sums


def test_sums_of_parts_in_any_order_are_the_sums_of_the_whole():
    ids, bootstrap = np.arange(N), PoissonBootstrap(16)
    bounds = [0, 1, 2, 700, 700, 2500, N]
    pieces = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    parts = [sums(part(p), bootstrap=bootstrap, ids=ids[p]) for p in pieces]
    whole = sums(log(), bootstrap=bootstrap, ids=ids)
    same(functools.reduce(operator.add, parts), whole)
    same(functools.reduce(operator.add, parts[::-1]), whole)
    same(parts[0] + (parts[1] + parts[2]), (parts[0] + parts[1]) + parts[2])
    shuffled = np.random.default_rng(2).permutation(N)
    same(sums(part(shuffled), bootstrap=bootstrap, ids=ids[shuffled]), whole)


def test_a_log_longer_than_what_is_taken_at_once_is_summed_whole(monkeypatch):
    expected = sums(log())
    monkeypatch.setattr("core.bandits.rows._AT_ONCE_ON_CPU", 999)
    same(sums(log()), expected)


def test_no_rows_are_the_neutral_element_and_give_no_estimate():
    none, some = sums(part(slice(0, 0))), sums(log())
    same(none + some, some)
    same(some + none, some)
    same(none + none, none)
    with pytest.raises(InputError, match=r"^rows: 0, at least 2 are needed for an interval$"):
        none.estimate("ips")


def test_small_differences_of_large_rewards_keep_their_digits():
    rng = np.random.default_rng(3)
    reward = 1e8 + rng.normal(size=N)
    rows = LoggedRows(torch.tensor(reward), torch.ones(N), torch.ones(N), reward_range=NET_VALUE)
    halves = [rows.take(torch.arange(N // 2)), rows.take(torch.arange(N // 2, N))]
    found = (Sums.of(halves[0]) + Sums.of(halves[1])).estimate("ips")
    assert found.high - found.mean == pytest.approx(1.959963984540054 * reward.std(ddof=1) / math.sqrt(N), rel=1e-6)


def test_sums_that_were_made_differently_are_not_added():
    rows = logged_rows(**log())
    with pytest.raises(InputError, match=r"^limits: .*clip=10.*clip=20.*only sums with equal ones add$"):
        Sums.of(rows) + Sums.of(rows, clip=20.0)
    with pytest.raises(InputError, match=r"^columns: "):
        Sums.of(rows) + Sums.of({"new": rows})
    with pytest.raises(InputError, match=r"^bootstrap: None and PoissonBootstrap"):
        Sums.of(rows) + Sums.of(rows, bootstrap=PoissonBootstrap(4), ids=np.arange(N))


# ---- differences


@functools.cache
def two_policies():
    other = part(slice(None), target_probabilities=simplex(np.random.default_rng(4), N, K))
    pair = {"new": logged_rows(**log()), "old": logged_rows(**other)}
    return Sums.of(pair, clip=CLIP, switch=SWITCH, shrink=SHRINK), influences(log()), influences(other)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "grouped_ips"])
def test_differences_are_paired_row_by_row(name):
    found, new, old = two_policies()
    reward = log()["reward"]
    for baseline, (value, influence) in ((LOGGED, (reward.mean(), reward - reward.mean())), ("old", old[name])):
        difference = found.difference(name, "new", baseline)
        error = (new[name][1] - influence).std(ddof=1) / math.sqrt(N)
        assert difference.mean == pytest.approx(new[name][0] - value, abs=1e-13)
        assert difference.high - difference.mean == pytest.approx(1.959963984540054 * error, rel=1e-8)
        back = found.difference(name, baseline, "new")
        assert (back.mean, back.low) == pytest.approx((-difference.mean, -difference.high))
        assert back.p == pytest.approx(difference.p)


def test_a_table_of_differences_has_a_p_value_and_one_of_values_has_none():
    found, *_ = two_policies()
    assert all(interval.p is not None for interval in evaluate(found, "new", against="old").values())
    assert all(interval.p is None for interval in evaluate(found, "old").values())
    assert evaluate(found, LOGGED) == {}
    assert found.estimate("dr", LOGGED).mean == pytest.approx(log()["reward"].mean())


def test_equal_policies_do_not_differ():
    rows = logged_rows(**log())
    difference = Sums.of({"a": rows, "b": rows}).difference("dr", "a", "b")
    assert difference.mean == pytest.approx(0, abs=1e-15)
    assert difference.low < 0 < difference.high < 1e-8
    assert difference.p == pytest.approx(1, abs=1e-5)


def test_a_policy_that_is_the_loggers_but_for_rounding_does_not_differ_from_it():
    w = 1 + torch.randint(-2, 3, (N,), generator=torch.Generator().manual_seed(0)) * 2.0**-52
    found = Sums.of(LoggedRows(torch.tensor(log()["reward"]), torch.full((N,), 0.5), 0.5 * w.double()))
    assert found.difference("ips").p > 0.99


def test_policies_are_named_and_see_the_same_rewards():
    found, *_ = two_policies()
    rows = logged_rows(**log())
    with pytest.raises(InputError, match=r"^policy: None, expected one of new, old, logged$"):
        found.estimate("dr")
    with pytest.raises(InputError, match=r"^policy: 'newer', expected one of new, old, logged$"):
        found.estimate("dr", "newer")
    with pytest.raises(InputError, match=r"^baseline: 'new' is the policy itself$"):
        found.difference("dr", "new", "new")
    with pytest.raises(InputError, match=r"^policies: the rewards of b are not those of a, row by row$"):
        Sums.of({"a": rows, "b": replace(rows, reward=1 - rows.reward)})
    with pytest.raises(InputError, match=r"none of them named 'logged'$"):
        Sums.of({LOGGED: rows})


# ---- diagnostics


def test_diagnostics_are_kishs_and_cover_one():
    w = log()["target_probabilities"][np.arange(N), log()["action"]] / log()["propensity"]
    found = sums(log()).diagnostics()
    assert found.ess == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert found.ess_share == pytest.approx(found.ess / N)
    assert found.max_weight == w.max()
    assert found.mean_weight.low < 1 < found.mean_weight.high
    assert (found.verdict, found.reasons, found.missing_mass) == ("ok", (), None)


def test_halved_propensities_do_not_pass():
    found = sums(part(slice(None), propensity=log()["propensity"] / 2)).diagnostics()
    assert found.verdict == "weak"
    assert "leaves out 1" in found.reasons[0]


def test_one_row_with_much_of_the_weight_is_weak_evidence():
    propensity = torch.full((1000,), 0.5, dtype=torch.float64)
    propensity[3] = 1e-3
    found = Sums.of(LoggedRows(torch.ones(1000), propensity, torch.full((1000,), 0.5))).diagnostics()
    assert found.verdict == "weak"
    assert any("one row has 33.4% of all weight" in reason for reason in found.reasons)
    propensity[3] = 1e-5
    found = Sums.of(LoggedRows(torch.ones(1000), propensity, torch.full((1000,), 0.5))).diagnostics()
    assert any("effective sample size is 0.10% of the rows" in reason for reason in found.reasons)


def test_mass_on_what_the_log_cannot_hold_is_unsupported():
    target = np.array([[0.5, 0.3, 0.2], [0.5, 0.5, 0.0]])
    few = {"action": np.array([0, 1]), "reward": np.ones(2), "propensity": np.array([0.6, 0.5])}
    mask = np.array([[True, True, False], [True, True, False]])
    found = Sums.of(logged_rows(**few, target_probabilities=target, mask=mask)).diagnostics()
    assert found.missing_mass == pytest.approx(0.1)
    assert (found.verdict, found.reasons[0]) == (
        "unsupported",
        "10.000% of the policy's probability is on unsupported actions",
    )
    logging = np.array([[0.6, 0.399, 0.001], [0.5, 0.5, 0.0]])
    supported = logged_rows(**few, target_probabilities=target, logging_probabilities=logging)
    assert Sums.of(supported).diagnostics().missing_mass == 0
    floored = logged_rows(**few, target_probabilities=target, logging_probabilities=logging, floor=0.01)
    assert Sums.of(floored).diagnostics().missing_mass == pytest.approx(0.1)


# ---- weights


def test_the_balance_heuristic_is_the_propensity_of_the_mixture():
    rng = np.random.default_rng(5)
    n, loggers = 30_000, (np.array([0.9, 0.05, 0.05]), np.array([0.1, 0.6, 0.3]))
    counts = np.array([20_000, 10_000])
    action = np.concatenate([rng.choice(3, m, p=p) for m, p in zip(counts, loggers, strict=True)])
    reward = (rng.random(n) < np.array([0.9, 0.5, 0.7])[action]).astype(float)
    each = torch.tensor(np.stack([p[action] for p in loggers], axis=1))
    mixed = balance_heuristic(each, torch.tensor(counts))
    np.testing.assert_allclose(mixed, (2 * each[:, 0] + each[:, 1]) / 3)
    own = np.concatenate([loggers[0][action[:20_000]], loggers[1][action[20_000:]]])
    target = np.tile([0.1, 0.8, 0.1], (n, 1))
    single, balanced = (evaluate(logged_rows(action, reward, p, target))["ips"] for p in (own, mixed))
    assert balanced.low < 0.1 * 0.9 + 0.8 * 0.5 + 0.1 * 0.7 < balanced.high
    assert balanced.high - balanced.low < 0.6 * (single.high - single.low)


def test_groups_of_one_action_are_ips_and_one_group_is_the_mean_reward():
    rng = np.random.default_rng(6)
    logging = simplex(rng, N, K)
    columns = part(slice(None), propensity=logging[np.arange(N), log()["action"]])

    def grouped(groups):
        rows = logged_rows(**columns, logging_probabilities=logging, groups=np.array(groups))
        return evaluate(rows)

    alone = grouped(range(K))
    assert alone["grouped_ips"].mean == pytest.approx(alone["ips"].mean, abs=1e-13)
    together = grouped([0] * K)
    assert together["grouped_ips"].mean == pytest.approx(log()["reward"].mean(), abs=1e-13)


def test_grouped_weights_are_unbiased_with_less_variance_where_a_group_is_one_effect():
    rng = np.random.default_rng(7)
    n, groups = 20_000, np.array([0, 0, 0, 1, 1, 1])
    logging, target = simplex(rng, n, K), simplex(rng, n, K, 2.0)
    effect = np.array([0.9, 0.4])[groups]
    action = (logging.cumsum(1) < rng.random((n, 1))).sum(1)
    reward = (rng.random(n) < effect[action]).astype(float)
    propensity = logging[np.arange(n), action]
    table = evaluate(logged_rows(action, reward, propensity, target, logging_probabilities=logging, groups=groups))
    truth = (target * effect).sum(1).mean()
    assert table["grouped_ips"].low < truth < table["grouped_ips"].high
    width = {name: table[name].high - table[name].low for name in ("ips", "grouped_ips")}
    assert width["grouped_ips"] < 0.45 * width["ips"]


def test_marginal_weights_are_group_weights_for_a_group_as_embedding():
    rng = np.random.default_rng(8)
    logging, target = (torch.tensor(simplex(rng, 50, 4)) for _ in range(2))
    action, groups = torch.tensor(rng.integers(0, 4, 50)), torch.tensor([0, 1, 1, 0])
    found = group_weights(action, target, logging, groups)
    share = [[float(p[i, groups == groups[action[i]]].sum()) for i in range(50)] for p in (target, logging)]
    np.testing.assert_allclose(found, np.array(share[0]) / np.array(share[1]))
    likelihood = torch.tensor(simplex(rng, 50, 4))
    np.testing.assert_allclose(
        marginal_weights(target, logging, likelihood), (target * likelihood).sum(1) / (logging * likelihood).sum(1)
    )


def test_mrdr_weights_are_the_variance_that_a_wrong_model_adds():
    # With a deterministic policy the variance of DR over the logged action is sum_a pi_e (1 - p) / p (q - qhat)^2: the
    # expectation of these weights times the squared error.
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    target, error = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.3, 0.7, 0.1], dtype=torch.float64)
    terms = target / p * error
    variance = (p * terms**2).sum() - (p * terms).sum() ** 2
    assert float((p * mrdr_weights(target, p) * error**2).sum()) == pytest.approx(float(variance))


# ---- cross-fitting


def test_folds_depend_on_the_id_alone_and_are_even():
    ids = np.arange(30_000)
    fold = folds_of(ids)
    assert torch.equal(fold, folds_of(torch.from_numpy(ids)))
    assert torch.equal(fold[5:100], folds_of(ids[5:100].astype(np.uint64)))
    assert torch.bincount(fold).tolist() == pytest.approx([10_000] * 3, rel=0.03)
    agree = (fold == folds_of(ids, seed=1)).double().mean()
    assert float(agree) == pytest.approx(1 / 3, abs=0.02)
    texts = np.array([f"payment {i}" for i in range(3000)])
    assert torch.equal(folds_of(texts), folds_of(texts.astype(object)))
    assert torch.bincount(folds_of(texts, 2)).tolist() == pytest.approx([1500] * 2, rel=0.1)


def test_hashes_are_splitmix64s():
    # The first outputs of SplitMix64 from state 1234567, as in its authors' test vectors.
    golden, state = 0x9E3779B97F4A7C15, 1234567

    def mix(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    first = [mix((state + (i + 1) * golden) % 2**64) for i in range(5)]
    assert first[:2] == [6457827717110365317, 3203168211198807973]
    ids = np.array([0, 1, 2**63 + 5], dtype=np.uint64)
    expected = [mix(int(i) ^ mix((7 + golden) % 2**64)) for i in ids]
    assert [int(h) % 2**64 for h in hashed(ids, seed=7)] == expected


def test_every_prediction_comes_from_a_model_that_did_not_see_the_fold():
    fold = folds_of(np.arange(100))

    def fit(training):
        seen = set(training.tolist())

        def predict(rows):
            assert not seen & set(rows.tolist())
            assert len(seen) + len(rows) == 100
            return torch.stack([rows, -rows], dim=1)

        return predict

    found = cross_fitted(fold, fit)
    assert torch.equal(found, torch.stack([torch.arange(100), -torch.arange(100)], dim=1))
    with pytest.raises(InputError, match=r"^fold: all 4 row\(s\) lie in 1 fold\(s\), at least 2 are needed$"):
        cross_fitted(torch.zeros(4, dtype=torch.int64), fit)


# ---- refusals


def changed(name, at, value):
    column = np.array(log()[name], copy=True)
    column[at] = value
    return {name: column}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed("propensity", 17, 0.0),
            r"propensity: row 17 is 0\.0, allowed is \(0, 1\]: the logging policy's prob.*",
        ),
        (changed("propensity", 17, 1.2), r"propensity: row 17 is 1\.2, allowed is \(0, 1\].*"),
        (changed("propensity", 17, np.nan), r"propensity: row 17 is nan, allowed is \(0, 1\].*"),
        (changed("reward", 5, 1.5), r"reward: row 5 is 1\.5, allowed is \[0, 1\]"),
        (changed("reward", 5, np.nan), r"reward: row 5 is nan, allowed is \[0, 1\]"),
        (changed("action", 9, K), rf"action: row 9 is {K}, allowed is \[0, {K - 1}\]"),
        (changed("action", 9, -1), rf"action: row 9 is -1, allowed is \[0, {K - 1}\]"),
        (changed("qhat", (3, 2), np.inf), r"qhat: row 3, column 2 is inf, allowed is finite"),
        (changed("qhat", (3, 2), np.nan), r"qhat: row 3, column 2 is nan, allowed is finite"),
        (changed("target_probabilities", (8, 1), np.nan), r"target_probabilities: row 8, column 1 is nan, .*"),
        (changed("target_probabilities", (8, 1), -0.1), r"target_probabilities: row 8, column 1 is -0\.1, .*"),
        (
            changed("target_probabilities", 8, 0.5 / K),
            r"sum of target_probabilities: row 8 is 0\.(5|49).*1 within 1e-6",
        ),
        ({"mask": np.arange(N)[:, None] != np.full(K, 6)}, r"mask: row 6 is False, allowed is an available action"),
        ({"action": log()["action"].astype(float)}, r"action: has shape \(4000,\) and type torch.float64, .*"),
        ({"qhat": log()["qhat"][:, :2]}, r"qhat: has shape \(4000, 2\), expected \(4000, 6\)"),
        ({"reward": log()["reward"][:7]}, r"propensity: has shape \(4000,\), expected \(7,\)"),
        ({"groups": np.zeros(K)}, r"groups: needs logging_probabilities, to weigh the groups"),
    ],
)
def test_the_first_bad_row_is_named(change, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        logged_rows(**(log() | change))


def test_a_chosen_action_outside_its_mask_is_named_by_its_number_in_the_log():
    mask = np.ones((N, K), dtype=bool)
    mask[11, log()["action"][11]] = False
    with pytest.raises(InputError, match=r"^action: row 1011 is \d, allowed is an action in its mask$"):
        logged_rows(**log(), mask=mask, first_row=1000)


def test_a_weight_above_its_bound_is_refused():
    rows = LoggedRows(torch.ones(3), torch.tensor([0.5, 0.01, 0.5]), torch.ones(3))
    with pytest.raises(InputError, match=r"^weight: row 1 is (100|99\.9).*, allowed is at most 50, and finite$"):
        Sums.of(rows, max_weight=50)
    with pytest.raises(InputError, match=r"^clip: nan is not above 0$"):
        Sums.of(rows, clip=math.nan)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1.5], r"^ids: 1 dimension\(s\) of kind 'f', expected one of whole numbers or texts$"),
        ([[1]], r"^ids: 2 dimension\(s\) of kind 'i'"),
        (np.array(["a", None], dtype=object), r"^ids: row 1 is missing$"),
    ],
)
def test_ids_are_whole_numbers_or_texts(ids, message):
    with pytest.raises(InputError, match=message):
        hashed(ids)


def test_weights_refuse_what_cannot_have_been_logged():
    half = torch.full((2, 2), 0.5)
    with pytest.raises(InputError, match=r"^logging probability of the embedding: row 1 is 0\.0, allowed is above 0$"):
        marginal_weights(half, torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(InputError, match=r"^propensities: row 0, column 1 is 1\.5, allowed is \[0, 1\]$"):
        balance_heuristic(torch.tensor([[0.5, 1.5]]), torch.tensor([1, 1]))
    with pytest.raises(InputError, match=r"^counts: \[0\.0, 0\.0\]"):
        balance_heuristic(half, torch.tensor([0, 0]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_sums():
    columns = {name: torch.tensor(column) for name, column in log().items()}
    bootstrap, ids = PoissonBootstrap(8), torch.arange(N)
    cpu = sums(columns, bootstrap=bootstrap, ids=ids)
    gpu = sums({name: column.cuda() for name, column in columns.items()}, bootstrap=bootstrap, ids=ids.cuda())
    assert cpu.largest == pytest.approx(gpu.largest)
    np.testing.assert_allclose(gpu.mean, cpu.mean, rtol=1e-12)
    np.testing.assert_allclose(gpu.comoment, cpu.comoment, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(gpu.replicates, cpu.replicates, rtol=1e-12)

"""Evaluation of policies on logs: parts and machines add up, truths are covered, anchors met, and what is promoted."""

import importlib.util
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from apps.payments.evaluation.evidence import (
    HELD_OUT,
    Evaluator,
    Histograms,
    PaymentsLog,
    UniformTarget,
    fit_models,
    fold_of,
    largest_levels,
    segment_name,
    words,
)
from apps.payments.evaluation.evidence import Evidence as LogEvidence
from apps.payments.evaluation.runs import METHODS, Candidate, Estimation, evidence_data
from apps.payments.evaluation.study import EvaluationStudy, discoveries, evaluation_of
from apps.payments.exploration import Exploration, Learned
from apps.payments.log import join_log
from apps.payments.log.tables import logged_chunks
from apps.payments.oracles import FactoredSettings, ImbalanceSettings, Rows, fit_oracle
from apps.payments.policy import Policy
from apps.payments.simulated_log import simulate_log
from apps.payments.training import train_policy
from core.bandits import LoggedRows, PoissonBootstrap, Sums, logged_rows, sample_actions, uniform
from core.errors import InputError
from core.study import StudyError
from simulators.payments import Payments, dense_mask
from tests.apps.payments_cases import SIZES, arm, scenario

pl = pytest.importorskip("polars")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

PAYMENTS = 600
BOUNDED = ("clipped_ips", "dm", "switch_dr", "dros")
"""Estimators whose terms are bounded whatever the weights, as an empirical Bernstein interval needs."""


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Folder with joined logs of uniform decisions and of IGW, and the policy that IGW had learned."""
    folder = tmp_path_factory.mktemp("logs")
    for name, rule in (("uniform", arm("uniform")), ("igw", arm(gamma=30.0))):
        found = simulate_log(scenario(generations=2, payments=PAYMENTS), rule, 0, folder / f"log_{name}")
        join_log(folder / f"log_{name}", folder / name)
        found.next_policy.rename(folder / f"{name}_next")
    return folder


@pytest.fixture(scope="module")
def log(logs):
    return PaymentsLog.open(logs / "igw")


@pytest.fixture(scope="module")
def rows(log):
    """All rows of it at once."""
    return log.sample(10**6)


@pytest.fixture(scope="module")
def policies(logs):
    return {"uniform": UniformTarget(), "next": Policy.load(logs / "igw_next")}


@pytest.fixture(scope="module")
def evaluator(rows, log, policies):
    """With everything that can be summed."""
    models = fit_models(rows, log.sizes, FactoredSettings())
    levels = largest_levels(rows, "issuer", 3)
    bootstrap = PoissonBootstrap(50, seed=1)
    return Evaluator(policies, models, bootstrap=bootstrap, cluster="merchant", segment="issuer", levels=levels)


def same(a: Sums, b: Sums):
    assert (a.n, a.policies, a.columns) == (b.n, b.policies, b.columns)
    assert a.largest == pytest.approx(b.largest, rel=1e-12)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(a.comoment, b.comoment, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(a.replicates, b.replicates, rtol=1e-10, atol=1e-10)


def same_evidence(a: LogEvidence, b: LogEvidence):
    same(a.whole, b.whole)
    assert a.segments.keys() == b.segments.keys()
    for name, sums in a.segments.items():
        same(sums, b.segments[name])
    np.testing.assert_array_equal(a.histograms.propensities, b.histograms.propensities)
    np.testing.assert_allclose(a.histograms.calibration, b.histograms.calibration, atol=1e-9)
    for name, counts in a.histograms.weights.items():
        np.testing.assert_array_equal(counts, b.histograms.weights[name])


# ---- sums over parts


def test_sums_over_parts_are_those_of_the_whole(log, rows, evaluator):
    whole = evaluator(rows)
    parts = list(logged_chunks(log.path, log.actions, rows=250))
    assert [len(part) for part in parts] == [250] * 4 + [200]
    evidence = [evaluator(part) for part in parts]
    same_evidence(sum(evidence[1:], evidence[0]), whole)
    same_evidence(sum(evidence[-2::-1], evidence[-1]), whole)
    told = []
    same_evidence(log.reduce(evaluator, told.append), whole)
    assert told == [2 * PAYMENTS]


def test_segments_add_up_to_the_whole(rows, evaluator):
    found = evaluator(rows)
    levels = evaluator.levels
    assert set(found.segments) == {segment_name("issuer", level) for level in levels} | {"other issuers"}
    sums = list(found.segments.values())
    same(sum(sums[1:], sums[0]), found.whole)
    counts = torch.bincount(rows.context.issuer)
    assert sorted(counts[list(levels)].tolist()) == sorted(counts.tolist())[-3:]
    assert [found.segments[f"issuer {level}"].n for level in levels] == counts[list(levels)].tolist()
    for name in ("scheme", "funding", "interaction"):
        every = replace(evaluator, segment=name, levels=tuple(range(3)))(rows)
        assert sum(s.n for s in every.segments.values()) == len(rows)
    assert [segment_name("scheme", i) for i in (0, 2, 9)] == ["scheme visa", "scheme local", "scheme 9"]


def test_histograms_count_every_row(rows, evaluator, policies):
    found = evaluator(rows).histograms
    assert found.propensities.sum() == len(rows)
    assert found.weights.keys() == policies.keys()
    assert all(counts.sum() == len(rows) for counts in found.weights.values())
    assert found.calibration[0].sum() == len(rows)
    assert found.calibration[2].sum() == pytest.approx(float(rows.reward.sum()))


def test_no_row_is_predicted_by_a_model_that_has_seen_it(log, rows, policies):
    models, fold = fit_models(rows, log.sizes, FactoredSettings()), fold_of(rows)
    assert torch.bincount(fold).min() > len(rows) / 4
    expected = torch.empty(rows.mask.shape, dtype=torch.float64)
    for k, model in enumerate(models):
        others = rows.take(fold != k)
        alone = fit_oracle(
            FactoredSettings(), ImbalanceSettings(), Rows(others.context, others.action, others.reward), log.sizes
        )
        assert torch.equal(alone.coefficients, model.coefficients)
        expected[fold == k] = model.predict_all(rows.context.take(fold == k))
    seen = {
        name: logged_rows(rows.action, rows.reward, rows.propensity, p.probabilities(rows.context, rows.mask), expected)
        for name, p in policies.items()
    }
    found, by_hand = Evaluator(policies, models)(rows).whole, Sums.of(seen)
    for name in policies:
        for estimator in ("ips", "snips", "dm", "dr", "sndr"):
            one, two = found.estimate(estimator, name), by_hand.estimate(estimator, name)
            assert (one.mean, one.low, one.high) == pytest.approx((two.mean, two.low, two.high), rel=1e-12)


def test_the_bootstrap_draws_what_hangs_together(rows, policies):
    bootstrap, some = PoissonBootstrap(40), {"next": policies["next"]}
    target = policies["next"].probabilities(rows.context, rows.mask)
    seen = {"next": replace(logged_rows(rows.action, rows.reward, rows.propensity, target), missing=None)}
    for cluster, ids in (
        ("row", words(rows.ids)),
        ("day", rows.day),
        ("merchant", rows.context.merchant),
        ("issuer", rows.context.issuer),
    ):
        found = Evaluator(some, bootstrap=bootstrap, cluster=cluster)(rows).whole
        np.testing.assert_allclose(found.replicates, Sums.of(seen, bootstrap=bootstrap, ids=ids).replicates)
    assert len(words(rows.ids).unique()) == len(rows)
    assert 12 < len(rows.day.unique()) < 17  # two generations of a week


def test_a_sample_is_by_hash_and_about_as_large_as_asked(log, rows):
    some = log.sample(300, seed=3)
    assert 240 < len(some) < 360
    assert torch.equal(log.sample(300, seed=3).ids, some.ids)
    assert set(map(bytes, some.ids.numpy())) < set(map(bytes, rows.ids.numpy()))
    more = log.sample(600, seed=3)
    assert set(map(bytes, some.ids.numpy())) < set(map(bytes, more.ids.numpy()))
    assert not torch.equal(log.sample(300, seed=4).ids[:100], some.ids[:100])
    assert torch.bincount(fold_of(some)).min() > 60  # the hash of the folds is another


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_ray_data_gives_what_this_process_gives(evaluated, no_pictures, tmp_path):
    study, out, _ = evaluated
    study.run(tmp_path, engine="ray", workers=2, device="cpu", quiet=True)
    (journal,) = tmp_path.glob("runs/*/log.jsonl")
    assert '"progress"' not in journal.read_text()  # the rows passed through other processes than the run's
    here, there = (xr.load_dataset(folder / "results.nc", engine="h5netcdf") for folder in (out, tmp_path))
    xr.testing.assert_allclose(here, there, rtol=1e-9, atol=1e-12)


# ---- logs as they are found


def test_a_log_says_its_sizes_and_is_refused_where_it_is_none(logs, log, tmp_path):
    assert (log.rows, log.actions) == (2 * PAYMENTS, 32)
    assert log.sizes.issuers == SIZES.issuers
    assert PaymentsLog.open(logs / "igw" / "joined.parquet") == log
    assert sum(table.num_rows for table in log.tables()) == log.rows
    with pytest.raises(InputError, match="no such log; szilard payments join makes one"):
        PaymentsLog.open(tmp_path)
    (tmp_path / "joined.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(InputError, match="not a joined log"):
        PaymentsLog.open(tmp_path)
    shutil.copy(logs / "igw" / "joined.parquet", tmp_path / "joined.parquet")
    with pytest.raises(InputError, match=r"no join\.json beside it says how many actions there are: give --actions"):
        PaymentsLog.open(tmp_path)
    with pytest.raises(InputError, match=r"--actions 16: .*join\.json says 32"):
        PaymentsLog.open(logs / "igw", actions=16)


@pytest.mark.parametrize(("actions", "expected"), [(1, 32), (8, 32), (32, 32), (34, 64)])
def test_the_actions_of_a_log_are_as_many_combinations_as_hold_them(logs, tmp_path, actions, expected):
    shutil.copy(logs / "igw" / "joined.parquet", tmp_path / "alone.parquet")
    assert PaymentsLog.open(tmp_path / "alone.parquet", actions=actions).actions == expected


def test_a_log_without_a_reward_is_refused(logs, tmp_path):
    table = parquet.read_table(logs / "igw" / "joined.parquet")
    place = table.schema.get_field_index("reward")
    empty = table.set_column(place, "reward", pa.nulls(len(table), pa.float32()))
    parquet.write_table(empty, tmp_path / "joined.parquet")
    log = PaymentsLog.open(tmp_path / "joined.parquet", actions=32)
    for read in (lambda: log.sample(100), lambda: log.reduce(Evaluator({"u": UniformTarget()}), lambda _: None)):
        with pytest.raises(InputError, match="no decision in it has a reward"):
            read()


# ---- studies


def table(summary, scenario, method):
    return {row.metric: row for row in summary.table if (row.scenario, row.method) == (scenario, method)}


FAST = Estimation(replicates=50)


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr("apps.payments.evaluation.figures.of_evaluation", lambda *_: [])


def test_uniform_decisions_are_worth_their_own_mean_reward(logs, no_pictures, tmp_path):
    study = evaluation_of(logs / "uniform", [Candidate(name="same")], estimation=FAST)
    summary = study.run(tmp_path, workers=0, quiet=True)
    log = PaymentsLog.open(logs / "uniform").sample(10**6)
    mean = float(log.reward.mean())
    for estimator in ("ips", "clipped_ips", "snips"):
        rows = table(summary, "same", estimator)
        assert rows["value (normal)"].mean == pytest.approx(mean, abs=1e-12)
        difference = rows["difference (normal)"]
        assert abs(difference.low) + abs(difference.high) < 1e-3  # of a basis point
    weights = table(summary, "same", "weights")
    n = 2 * PAYMENTS
    assert weights["mean weight (99 %)"].mean == pytest.approx(1)
    for metric, value in (("ESS", n), ("ESS share", 1), ("largest weight", 1), ("missing mass", 0)):
        assert weights[metric].mean == pytest.approx(value, rel=1e-9)
    assert table(summary, "log", "logged")["value (normal)"].mean == pytest.approx(mean, abs=1e-12)
    (claim,) = summary.claims
    assert (claim.id, claim.holds, claim.n) == ("promote_same", False, n)
    assert "verdict ok" in claim.reason


@pytest.fixture(scope="module")
def evaluated(logs, tmp_path_factory):
    """The next policy of IGW on IGW's log, by scheme, with every picture: study, folder, summary."""
    out = tmp_path_factory.mktemp("evaluated")
    candidates = [Candidate(name="next", source=str(logs / "igw_next")), Candidate(name="uniform")]
    study = evaluation_of(logs / "igw", candidates, estimation=Estimation(replicates=50, segment="scheme"))
    return study, out, study.run(out, workers=0, quiet=True)


def test_an_evaluation_ends_in_a_page_a_summary_results_and_pictures(evaluated):
    _, out, summary = evaluated
    page = (out / "report.html").read_text()
    for text in ("promote_next", "1,200 rows with a reward", "scheme visa", "switch_dr"):
        assert text in page
    said = json.loads((out / "summary.json").read_text())
    assert [claim["id"] for claim in said["claims"]] == ["promote_next", "promote_uniform"]
    data = xr.load_dataset(out / "results.nc", engine="h5netcdf")
    assert data["value"].dims == ("policy", "estimator", "interval", "end")
    assert data["segment_difference"].dims == ("segment", "policy", "estimator", "interval", "end")
    assert data["segment"].values.tolist() == ["scheme visa", "scheme mc", "scheme local"]
    assert int(data["segment_rows"].sum()) == data.attrs["rows"] == 1200
    assert {p.stem for p in (out / "figures").glob("*.png")} == {
        *("estimates", "intervals", "weights", "reward_model", "segments")
    }
    # Every estimator has the intervals that its assumptions allow.
    for estimator in ("ips", "clipped_ips", "snips", "dm", "dr", "sndr", "switch_dr", "dros"):
        rows = table(summary, "next", estimator)
        expected = set(METHODS) if estimator in BOUNDED else set(METHODS) - {"bernstein"}
        assert {method for method in METHODS if f"value ({method})" in rows} == expected, estimator
        value = rows["value (normal)"]
        assert value.low < value.mean < value.high
        assert rows["value (anytime)"].low < value.low
    found = [row for row in summary.table if row.scenario == "next by segment"]
    assert [row.method for row in found] == ["scheme visa", "scheme mc", "scheme local"]
    assert sum(row.n for row in found) == 1200


def test_the_same_again_is_not_evaluated_again(evaluated, no_pictures, logs):
    study, out, summary = evaluated
    (result,) = out.glob("runs/*/result.nc")
    before = result.stat().st_mtime_ns
    again = evaluation_of(logs / "igw", study.candidates, estimation=study.estimation)
    assert again.hash == study.hash
    assert again.run(out, workers=0, quiet=True).table == summary.table
    assert result.stat().st_mtime_ns == before


def test_a_changed_policy_log_or_setting_is_another_evaluation(evaluated, no_pictures, logs, tmp_path):
    study, out, _ = evaluated
    folder = tmp_path / "next"
    policy = Policy.load(logs / "igw_next")
    replace(policy, exploration=Exploration(rule="igw", gamma=77.0)).save(folder)
    other = [Candidate(name="next", source=str(folder)), Candidate(name="uniform")]
    first = evaluation_of(logs / "igw", other, estimation=study.estimation)
    replace(policy, exploration=Exploration(rule="igw", gamma=78.0)).save(folder)
    changed = [
        evaluation_of(logs / "igw", other, estimation=study.estimation),
        evaluation_of(logs / "uniform", study.candidates, estimation=study.estimation),
        evaluation_of(logs / "igw", study.candidates, estimation=FAST),
    ]
    assert len({s.runs()[0].hash for s in (study, first, *changed)}) == 5
    for one in changed:
        with pytest.raises(InputError, match="choose another --out, or --fresh"):
            one.run(out, workers=0, quiet=True)


def test_a_policy_whose_files_do_not_belong_together_is_not_evaluated(logs, tmp_path):
    policy = Policy.load(logs / "igw_next")
    policy.save(tmp_path / "next")
    (tmp_path / "next" / "oracle" / "oracle.json").write_text("{}")
    study = evaluation_of(logs / "igw", [Candidate(name="next", source=str(tmp_path / "next"))], estimation=FAST)
    with pytest.raises(StudyError, match="is not the file that"):
        study.run(tmp_path / "out", workers=0, quiet=True)


def test_what_cannot_be_evaluated_is_refused_in_one_line(logs, tmp_path):
    cases = [
        (lambda: evaluation_of(tmp_path / "none", [Candidate(name="u")]), "no such log"),
        (lambda: evaluation_of(logs / "igw", [Candidate(name="u", source="none")]), "none/policy.json does not exist"),
        (lambda: evaluation_of(logs / "igw", [Candidate(name="u"), Candidate(name="u")]), "two have the same name"),
        (lambda: evaluation_of(tmp_path, [Candidate(name="u")], "open_bandit"), "no such log"),
    ]
    for make, message in cases:
        with pytest.raises(InputError, match=message) as refused:
            make()
        assert "\n" not in str(refused.value)


def test_without_a_reward_model_weights_alone_decide(logs, no_pictures, tmp_path):
    study = evaluation_of(logs / "uniform", [Candidate(name="same")], estimation=Estimation(replicates=0, model=None))
    summary = study.run(tmp_path / "none", workers=0, quiet=True)
    assert {row.method for row in summary.table if row.scenario == "same"} == {"ips", "clipped_ips", "snips", "weights"}
    assert not any("bootstrap" in row.metric for row in summary.table)
    assert summary.claims[0].reason.startswith("snips: ")


def test_a_log_of_one_label_has_no_reward_model_and_says_so(logs, no_pictures, tmp_path):
    approved = pl.read_parquet(logs / "uniform" / "joined.parquet").with_columns(reward=pl.lit(1.0, pl.Float32))
    parquet.write_table(
        approved.to_arrow().cast(parquet.read_schema(logs / "uniform" / "joined.parquet")), tmp_path / "j"
    )
    study = evaluation_of(tmp_path / "j", [Candidate(name="same")], estimation=FAST, actions=32)
    summary = study.run(tmp_path / "out", workers=0, quiet=True)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No reward model: all" in page
    assert table(summary, "same", "ips")["value (normal)"].mean == pytest.approx(1)


def test_estimated_propensities_decide_nothing(logs, no_pictures, tmp_path):
    lacking = pl.read_parquet(logs / "uniform" / "joined.parquet").drop("propensity")
    lacking.write_parquet(tmp_path / "joined.parquet")
    with pytest.raises(InputError, match="the column propensity is missing"):
        evaluation_of(tmp_path / "joined.parquet", [Candidate(name="same")], actions=32)
    how = Estimation(replicates=0, estimate_propensities=True)
    study = evaluation_of(tmp_path / "joined.parquet", [Candidate(name="same")], estimation=how, actions=32)
    summary = study.run(tmp_path / "out", workers=0, quiet=True)
    assert summary.claims[0].holds is None
    assert "PROPENSITIES WERE ESTIMATED" in summary.claims[0].reason
    # Uniform decisions are in the model: what it says of them is then right.
    logged = table(summary, "log", "logged")["value (normal)"].mean
    assert table(summary, "same", "snips")["value (normal)"].mean == pytest.approx(logged, abs=0.02)


# ---- what is promoted


def promotion(rows: LoggedRows):
    """The claim of promotion that these rows lead to."""
    study = EvaluationStudy(study="s", log="log", checksum="0", candidates=(Candidate(name="better"),))
    counts = Histograms({"better": np.ones(64)}, np.ones(64), np.zeros((3, 20)))
    data = evidence_data(LogEvidence(Sums.of({"better": rows}), {}, counts), [])
    (claim,) = study.analyse({study.runs()[0]: data}).claims
    return claim


def two_actions(n=4000, gap=0.2, target=0.9, missing=0.0):
    """A log that chose between two actions alike; one is better, and the policy prefers it."""
    rng = np.random.default_rng(0)
    action = rng.integers(0, 2, n)
    reward = (rng.random(n) < 0.5 + gap * action).astype(float)
    chosen = np.where(action == 1, target, 1 - target)
    return LoggedRows(reward, np.full(n, 0.5), chosen, missing=np.full(n, missing))


def test_a_policy_is_promoted_if_it_is_better_and_the_log_supports_it():
    found = promotion(two_actions())
    assert found.holds is True
    assert found.reason.endswith("verdict ok")
    assert found.difference == pytest.approx(1e4 * 0.2 * 0.4, abs=300)  # (0.9 - 0.5) of the gap
    assert found.p < 1e-6
    assert promotion(two_actions(gap=0.0)).holds is False
    assert promotion(two_actions(target=0.1)).holds is False


def test_no_policy_is_promoted_on_weak_or_missing_support():
    rows = two_actions()
    heavy = rows.propensity.clone()
    heavy[(rows.reward == 1) & (rows.target > 0.5)] = 0.4  # the mean weight leaves 1 out
    weak = promotion(LoggedRows(rows.reward, heavy, rows.target, missing=rows.missing))
    assert weak.low > 0
    assert weak.holds is False
    assert "verdict weak (mean weight is" in weak.reason
    unsupported = promotion(two_actions(missing=0.01))
    assert unsupported.low > 0
    assert unsupported.holds is None
    assert "verdict unsupported (1.000% of the policy's probability" in unsupported.reason


def test_segments_are_found_at_a_false_discovery_rate():
    p = np.array([0.001, 0.02, 0.03, 0.2, np.nan, 0.9])
    found = discoveries(xr.Dataset({"segment_p": ("segment", p)}))
    # Benjamini and Hochberg with an undefined p as 1: the k-th of six must be below k / 6 of 5 %.
    assert found.tolist() == [True, False, False, False, False, False]
    found = discoveries(xr.Dataset({"segment_p": ("segment", p[:3])}))
    assert found.tolist() == [True, True, True]


# ---- the Open Bandit logs


@pytest.fixture(scope="module")
def campaigns():
    folder = Path(os.environ.get("SZILARD_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
    root = folder / "payments" / "open_bandit_small"
    if not root.is_dir():
        pytest.skip(f"{root} is not there: set SZILARD_DATA")
    return {logger: root / logger / "men" for logger in ("random", "bts")}


FORWARD = {
    "ips": 0.00565627,
    "snips": 0.00573986,
    "dm": 0.00558671,
    "dr": 0.00568611,
    "sndr": 0.00568757,
    "switch_dr": 0.00570780,
    "dros": 0.00559773,
}
BACKWARD = {"ips": 0.00300863, "snips": 0.00318942, "dm": 0.00504223, "dr": 0.00274919}


def test_the_open_bandit_anchors_are_met_with_every_estimator_and_interval(campaigns, no_pictures, tmp_path):
    candidates = [Candidate(name="bts", source=str(campaigns["bts"])), Candidate(name="uniform")]
    study = evaluation_of(campaigns["random"], candidates, "open_bandit", Estimation(replicates=200))
    summary = study.run(tmp_path, workers=0, quiet=True)
    for estimator, anchor in FORWARD.items():
        rows = table(summary, "bts", estimator)
        assert rows["value (normal)"].mean == pytest.approx(anchor, abs=1e-8)
        methods = set(METHODS) if estimator in BOUNDED else set(METHODS) - {"bernstein"}
        assert {m for m in METHODS if f"value ({m})" in rows} == methods
        for method in methods:
            row = rows[f"value ({method})"]
            assert row.mean == pytest.approx(anchor, abs=1e-8)
            assert row.low < row.mean < row.high
    weights = table(summary, "bts", "weights")
    assert weights["ESS"].mean == pytest.approx(2869.28, abs=0.005)
    assert weights["largest weight"].mean == pytest.approx(7.4843, abs=5e-5)
    assert weights["mean weight (99 %)"].mean == pytest.approx(0.985436, abs=5e-7)
    # What bts earned when it did run stands beside it, with its own interval.
    own = table(summary, "bts", "on its own log")["value (Wilson)"]
    assert own.mean == pytest.approx(0.0069)
    assert own.low < 0.0069 < own.high
    assert table(summary, "log", "logged")["value (normal)"].mean == pytest.approx(0.0046)
    assert table(summary, "uniform", "snips")["value (normal)"].mean == pytest.approx(0.0046)
    assert {claim.id: claim.holds for claim in summary.claims}["promote_bts"] is False


def test_the_anchors_the_other_way_round(campaigns, no_pictures, tmp_path):
    study = evaluation_of(campaigns["bts"], [Candidate(name="uniform")], "open_bandit", Estimation(replicates=0))
    summary = study.run(tmp_path, workers=0, quiet=True)
    for estimator, anchor in BACKWARD.items():
        assert table(summary, "uniform", estimator)["value (normal)"].mean == pytest.approx(anchor, abs=1e-8)
    weights = table(summary, "uniform", "weights")
    assert weights["ESS"].mean == pytest.approx(655.71, abs=0.005)
    assert weights["largest weight"].mean == pytest.approx(178.2531, abs=5e-5)


def test_what_an_open_bandit_log_does_not_have_is_refused(campaigns):
    for how, message in (
        ({"segment": "issuer"}, "has no such column"),
        ({"estimate_propensities": True}, "has its prop"),
    ):
        with pytest.raises(InputError, match=message):
            evaluation_of(campaigns["random"], [Candidate(name="uniform")], "open_bandit", Estimation(**how))


# ---- the truth is covered

REPLICATIONS, SIZE = 200, 2000


def test_intervals_on_uniform_logs_cover_the_truth_as_often_as_they_say():
    world, generator = Payments(seed=5), torch.Generator().manual_seed(11)
    flags = world.sizes.flags

    def answered(n):
        state = world.reset(n, generator)
        mask = dense_mask(state.allowed, state.forced, flags)
        luck = torch.rand(n, generator=generator, dtype=torch.float64)
        choice = sample_actions(uniform(mask), mask, luck)
        return state, mask, choice, world.step(state, choice.action, world.noise(n, generator)).reward

    state, _, choice, reward = answered(4000)
    rows = Rows(state, choice.action, reward)
    model = fit_oracle(FactoredSettings(iterations=15), ImbalanceSettings(), rows, world.sizes)
    rules = {
        "igw": Exploration(rule="igw", gamma=50.0),
        "epsilon": Exploration(rule="epsilon", epsilon=0.5),
        "softmax": Exploration(rule="softmax", temperature=0.1),
    }
    truth = dict.fromkeys(rules, 0.0)
    covered = {(rule, estimator): 0 for rule in rules for estimator in ("ips", "dr")}
    found = []
    for _ in range(REPLICATIONS):
        state, mask, choice, reward = answered(SIZE)
        scores, chance = model.predict_all(state), world.probabilities(state)
        seen = {}
        for rule, exploration in rules.items():
            target = exploration.probabilities(scores, mask, Learned())
            truth[rule] += float((target * chance).sum(1).mean()) / REPLICATIONS
            seen[rule] = logged_rows(choice.action, reward, choice.propensity, target, scores, mask)
        found.append(Sums.of(seen))
    for sums in found:
        for rule, estimator in covered:
            interval = sums.estimate(estimator, rule)
            covered[rule, estimator] += interval.low <= truth[rule] <= interval.high
    shares = {key: count / REPLICATIONS for key, count in covered.items()}
    assert all(0.90 <= share <= 0.99 for share in shares.values()), shares
    # And all logs together tell the truth more exactly than any one of them.
    whole = sum(found[1:], found[0])
    for rule, estimator in covered:
        interval = whole.estimate(estimator, rule)
        assert interval.high - interval.low < 0.03
        assert interval.mean == pytest.approx(truth[rule], abs=2 * (interval.high - interval.low))


# ---- what a verdict rests on


def trained(logs, tmp_path, **options):
    log = PaymentsLog.open(logs / "igw")
    settings = (Exploration(rule="greedy"), FactoredSettings())
    return train_policy(log, tmp_path / "next", *settings, **options)


def test_a_policy_is_judged_on_rows_that_it_did_not_learn_from(logs, rows, no_pictures, tmp_path):
    _, learned = trained(logs, tmp_path)
    held = int((fold_of(rows) == HELD_OUT).sum())
    assert learned == len(rows) - held
    summary = evaluation_of(logs / "igw", [Candidate(name="next", source=str(tmp_path / "next"))], estimation=FAST).run(
        tmp_path / "out", workers=0, quiet=True
    )
    assert {row.n for row in summary.table if row.method == "dr"} == {held}
    assert summary.claims[0].holds is not None


def test_nothing_is_decided_about_a_policy_that_has_seen_the_log(logs, no_pictures, tmp_path):
    trained(logs, tmp_path, hold_out=False)
    candidates = [Candidate(name="next", source=str(tmp_path / "next")), Candidate(name="uniform")]
    summary = evaluation_of(logs / "igw", candidates, estimation=FAST).run(tmp_path / "out", workers=0, quiet=True)
    seen, other = summary.claims
    assert seen.holds is None
    assert "trained on all rows of this log" in seen.reason
    assert other.holds is not None


def test_a_baseline_is_paired_on_the_same_rows(logs, no_pictures, tmp_path):
    candidates = [Candidate(name="next", source=str(logs / "igw_next")), Candidate(name="uniform")]
    study = evaluation_of(logs / "igw", candidates, estimation=FAST, baseline="uniform")
    summary = study.run(tmp_path, workers=0, quiet=True)
    (claim,) = summary.claims
    assert claim.statement.startswith("next is worth more than uniform")
    values = {row.scenario: row.mean for row in summary.table if (row.method, row.metric) == ("dr", "value (normal)")}
    assert claim.difference == pytest.approx(1e4 * (values["next"] - values["uniform"]))
    with pytest.raises(InputError, match="baseline = other: must be one of logged, next, uniform"):
        evaluation_of(logs / "igw", candidates, baseline="other")


def test_what_the_logged_policy_never_did_is_unsupported(rows):
    best = FirstAction().probabilities(rows.context, rows.mask)
    action = best.argmax(1)
    greedy = replace(rows, action=action, propensity=torch.ones(len(rows), dtype=torch.float64), pi=best)
    known = Evaluator({"uniform": UniformTarget()}, distributions=True)(greedy).whole.diagnostics("uniform")
    assert known.verdict == "unsupported"
    assert known.missing_mass > 0.5
    unknown = Evaluator({"uniform": UniformTarget()})(greedy).whole.diagnostics("uniform")
    assert unknown.missing_mass is None
    assert unknown.verdict == "weak"  # the mean weight gives it away


class FirstAction:
    """Always the first available action."""

    def probabilities(self, context, mask):
        return torch.nn.functional.one_hot(mask.int().argmax(1), mask.shape[1]).double()


def test_dependent_rows_are_decided_by_their_clusters(logs, no_pictures, tmp_path):
    how = FAST.model_copy(update={"cluster": "merchant", "replicates": 100})
    summary = evaluation_of(logs / "uniform", [Candidate(name="same")], estimation=how).run(
        tmp_path, workers=0, quiet=True
    )
    assert summary.claims[0].test == "95 % bootstrap interval over merchants, paired on the log"


def test_clusters_are_refused_without_the_bootstrap_that_draws_them():
    with pytest.raises(ValueError, match="cluster = day: is drawn by the bootstrap: replicates must be at least 2"):
        Estimation(cluster="day", replicates=0)

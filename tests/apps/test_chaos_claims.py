"""The claims and the table, decided from planted valid times: both ways, and open where something is missing."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from apps.chaos import claims
from apps.chaos.claims import CLAIMS, CONTESTS, STATEMENTS, decide
from apps.chaos.evidence import NOT_CHAOTIC, Evidence, describe_systems, pairs
from apps.chaos.table import rows_of
from core.stats import holm, kaplan_meier_median, proportion_interval, rank_correlation
from tests.apps.chaos_cases import attributes, evidence

FAMILY = tuple(CONTESTS)
RATE = 0.09  # Lyapunov times a sample: exponent 0.9, time step 0.1


def planted(linear=10.0, nvar=20.0, nbeats=40.0, polynomial=80.0, systems=12, replicates=2, **options):
    """Valid times around these, larger for some systems than for others, in samples."""
    generator = np.random.default_rng(0)
    scale = generator.uniform(0.8, 1.2, (systems, 1))
    means = {"linear": linear, "nvar": nvar, "nbeats": nbeats, "polynomial": polynomial}
    valid = {
        name: scale * mean + generator.uniform(-1, 1, (systems, replicates))
        for name, mean in means.items()
        if mean is not None
    }
    return evidence(valid, options.pop("lyapunov", [0.9] * systems), **options)


def decided(given, ids=FAMILY):
    return {claim.id: claim for claim in decide(given, {}, ids)}


def rows(given, reference="nbeats"):
    return {(r.method, r.metric): r for r in rows_of(given, reference)}


# ---- comparisons


def test_each_claim_has_a_statement_and_they_come_in_the_order_asked_for():
    assert set(STATEMENTS) == set(CLAIMS)
    assert "as set in this study (V1 of" in decided(planted())["nbeats_beats_linear"].statement
    order = FAMILY[::-1]
    assert [c.id for c in decide(planted(), {}, order)] == list(order)


def test_what_is_so_holds_with_its_difference_in_lyapunov_times_by_system():
    given = planted()
    found = decided(given)["nbeats_beats_linear"]
    difference = given.by_system("nbeats") - given.by_system("linear")
    assert found.holds is True
    assert found.n == 12  # systems, not series
    assert found.difference == pytest.approx(np.median(difference))
    assert found.difference == pytest.approx(30 * RATE, rel=0.15)
    assert difference.min() <= found.low < found.difference < found.high <= difference.max()
    assert found.p == pytest.approx(3 * stats.wilcoxon(difference).pvalue)
    assert "V1 of standardised series, scenario whole" in found.statement
    assert "Holm over 3" in found.test


def test_the_opposite_does_not_hold_however_certain():
    found = decided(planted(nbeats=40.0, polynomial=20.0))["tuned_polynomial_beats_nbeats"]
    assert found.holds is False
    assert found.p < 0.01
    assert found.difference < 0


def test_no_difference_does_not_hold():
    found = decided(planted(linear=40.0, nbeats=40.0))["nbeats_beats_linear"]
    assert found.holds is False
    assert found.p > 0.05
    assert found.low <= 0 <= found.high
    same = planted()
    twice = Evidence(same.name, same.systems, {"nbeats": same.methods["nbeats"], "linear": same.methods["nbeats"]})
    assert decided(twice)["nbeats_beats_linear"].p == 1.0


def test_p_values_are_adjusted_as_one_family_of_those_that_could_be_tested():
    given = planted(systems=7)
    raw = []
    for first, second in CONTESTS.values():
        raw.append(stats.wilcoxon(given.by_system(first) - given.by_system(second)).pvalue)
    found = decided(given)
    assert [found[claim].p for claim in FAMILY] == pytest.approx(holm(raw))
    # 2/2^7 alone is below 5 %, and thrice that as well; of six systems thrice 2/2^6 is not.
    assert all(c.holds for c in found.values())
    few = planted(systems=6)
    assert not any(c.holds for c in decided(few).values())
    (alone,) = decide(few, {}, ("nbeats_beats_linear",))
    assert alone.p == pytest.approx(2 / 2**6)
    assert alone.holds is True
    absent = decided(planted(systems=6, polynomial=None))
    assert absent["nbeats_beats_linear"].p == pytest.approx(2 * 2 / 2**6)


def test_a_claim_about_an_absent_method_is_open_and_says_so():
    found = decided(planted(nbeats=None))
    assert {c.holds for c in found.values()} == {None}
    assert found["nbeats_beats_linear"].reason == "scenario whole has no method nbeats"
    assert found["nbeats_beats_linear"].difference is None


def test_systems_without_lyapunov_time_or_without_forecast_are_left_out():
    exponents = [0.9] * 10 + [np.nan] * 2
    given = planted(lyapunov=exponents)
    found = decided(given)["nbeats_beats_linear"]
    assert (found.n, found.holds) == (10, True)
    given.methods["linear"]["valid_samples"][0] = np.nan
    assert decided(given)["nbeats_beats_linear"].n == 9
    none = decided(planted(lyapunov=[np.nan] * 11 + [0.9]))["nbeats_beats_linear"]
    assert (none.holds, none.reason) == (None, "fewer than two systems with a Lyapunov time")


# ---- published numbers


def test_the_published_smape_is_met_when_every_deviation_is_small():
    small, large = np.array([1e-6, -9e-5, 0.0]), np.array([1e-6, -2e-4])
    for deviation, holds in ((small, True), (large, False), (np.array([0.0, np.nan]), False)):
        data = xr.Dataset({"deviation": ("row", deviation)})
        (found,) = decide(planted(), {"published_smape_reproduced": data}, ("published_smape_reproduced",))
        assert (found.holds, found.n) == (holds, len(deviation))
        if np.isfinite(deviation).all():
            bounds = [np.abs(deviation).max(), np.abs(deviation).min(), np.abs(deviation).max()]
            assert [found.difference, found.low, found.high] == bounds


@pytest.mark.parametrize(("met", "holds"), [(100, True), (99, False)])
def test_the_published_truth_is_met_in_at_least_a_hundred_systems(met, holds):
    flags = np.arange(109) < met
    data = xr.Dataset({"met": ("system", flags)}, {"system": [f"S{i}" for i in range(109)]})
    (found,) = decide(planted(), {"published_truth_reproduced": data}, ("published_truth_reproduced",))
    share = proportion_interval(met, 109)
    assert (found.holds, found.n) == (holds, 109)
    assert (found.difference, found.low, found.high) == (share.mean, share.low, share.high)
    assert "S108" in found.reason
    assert claims.FEWEST_REPRODUCED == 100


# ---- evidence


def test_an_exponent_is_ours_else_the_catalogue_s_and_none_where_there_is_no_chaos():
    known = [(0.9, 0.8), (np.nan, 0.8), (0.0, 0.8), (0.9, NOT_CHAOTIC), (np.nan, np.nan)]
    series = []
    for number, (ours, theirs) in enumerate(known):
        attrs = attributes(f"S{number}") | {"lyapunov_estimated": ours, "lyapunov_stored": theirs}
        series.append(xr.Dataset(attrs=attrs))
    found = describe_systems(series, "estimated")
    assert found["lyapunov"].values.tolist() == pytest.approx([0.9, 0.8, np.nan, np.nan, np.nan], nan_ok=True)
    assert found["lyapunov_source"].values[:2].tolist() == ["estimated", "stored"]
    assert describe_systems(series, "stored")["lyapunov"].values[:2].tolist() == [0.8, 0.8]
    assert found.attrs["versions"] == "dysts 0.96"


def test_valid_times_are_samples_times_exponent_and_time_step_means_over_replicates():
    given = evidence({"a": np.array([[10, 20], [np.nan, 30]])}, [0.9, 2.0])
    assert given.valid_time("a").values[0] == pytest.approx([10 * RATE, 20 * RATE])
    assert given.by_system("a") == pytest.approx([15 * RATE, 30 * 0.2])
    assert given.by_system("a", "V3") == pytest.approx([30 * RATE, 60 * 0.2])


def test_a_curve_is_linear_between_its_leads_and_unknown_beyond_them():
    given = evidence({"a": np.array([[50.0], [50.0], [50.0]])}, [0.9, 2.0, np.nan])
    data = given.methods["a"]
    lead = data["lead"].values
    data["smape"][:] = 2.0 * lead + 1
    horizons = np.array([0.04, 1.0, 3.3, 36.5, 70.0])
    curve = given.curve("a", "smape", horizons)
    assert curve[0] == pytest.approx([np.nan, *(2 * horizons[1:3] / RATE + 1), np.nan, np.nan], nan_ok=True)
    assert curve[1] == pytest.approx([np.nan, *(2 * horizons[1:4] / 0.2 + 1), 2 * 350 + 1], nan_ok=True)
    assert np.isnan(curve[2]).all()


def test_pairs_are_the_systems_that_both_have():
    a, b = pairs(np.array([1, np.nan, 3, 4]), np.array([5, 6, np.nan, 8]))
    assert (a.tolist(), b.tolist()) == ([1, 4], [5, 8])


# ---- the table


def test_forecasts_that_hold_to_their_end_are_censored_in_the_median():
    valid = np.array([[10], [20], [400], [400], [400]])
    given = evidence({"a": valid}, [0.9] * 5)
    found = rows(given)
    assert found["a", "valid time V1, median"].mean == pytest.approx(400 * RATE)
    row = found["a", "valid time V1, Kaplan-Meier"]
    expected = kaplan_meier_median(valid[:, 0] * RATE, valid[:, 0] == 400)
    assert (row.mean, row.low, row.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert row.mean == np.inf
    assert found["a", "forecasts valid to their end"].mean == pytest.approx(60)


def test_forecasts_of_one_system_do_not_narrow_the_interval_of_a_share():
    once = rows(evidence({"a": np.array([[10], [400], [400], [10], [10]])}, [0.9] * 5))
    often = rows(evidence({"a": np.repeat([[10], [400], [400], [10], [10]], 30, 1)}, [0.9] * 5))
    name = "a", "forecasts valid to their end"
    wilson = proportion_interval(2, 5)
    for row in (once[name], often[name]):
        assert (row.mean, row.low, row.high) == pytest.approx((40, 100 * wilson.low, 100 * wilson.high))
        assert row.n == 5
    none = rows(evidence({"a": np.full((20, 2), 10.0)}, [0.9] * 20))[name]
    assert none.low == 0 < none.high == pytest.approx(100 * proportion_interval(0, 20).high)


def test_rows_of_one_system_stand_without_interval_and_of_none_without_number():
    found = rows(evidence({"a": np.array([[10.0]]), "nbeats": np.array([[30.0]])}, [0.9]))
    row = found["a", "valid time V1, median"]
    assert (row.mean, row.low, row.n) == (pytest.approx(10 * RATE), None, 1)
    assert found["a", "valid time less that of nbeats, median"].mean == pytest.approx(-20 * RATE)
    assert ("a", "valid time V1, Kaplan-Meier") not in found
    none = rows(evidence({"a": np.array([[10.0]])}, [np.nan]))["a", "valid time V1, median"]
    assert (none.mean, none.n) == (None, 0)


def test_errors_are_correlated_with_the_exponent_where_there_are_eight_systems():
    exponents = np.linspace(0.2, 2, 9)
    given = planted(systems=9, lyapunov=exponents)
    found = rows(given)
    name = "rank correlation of exponent and sMAPE at 1 Lyapunov times"
    at_one = given.curve("linear", "smape", np.ones(1))[:, 0]
    expected = rank_correlation(exponents, at_one)
    assert (found["linear", name].mean, found["linear", name].low) == (expected.mean, expected.low)
    assert not any("rank correlation" in metric for _, metric in rows(planted(systems=7)))
    given.methods["linear"]["smape"][:] = 200.0
    constant = rows(given).get(("linear", name))
    assert constant is None or constant.mean is None


def test_mean_ranks_and_half_the_critical_difference_about_them():
    found = rows(planted())
    ranks = {m: found[m, "rank by valid time, mean"] for m in ("polynomial", "nbeats", "nvar", "linear")}
    assert [r.mean for r in ranks.values()] == [1, 2, 3, 4]
    # Nemenyi's quantile of four methods at 5 % (Demsar 2006, table 5).
    difference = 2.569 * np.sqrt(4 * 5 / (6 * 12))
    assert [r.high - r.low for r in ranks.values()] == pytest.approx([difference] * 4, rel=1e-3)

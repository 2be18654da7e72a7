"""Measures of dialogues: the values of the papers' formulas, and sums over dialogues one by one."""

import math

import numpy as np
import pytest
import xarray as xr

from apps.crs.metrics import hdcg, measures, success_by, success_curve


def played(turns, rank, horizon=15):
    one = ("dialogue",)
    returns = np.arange(len(turns), dtype=np.float32)
    found = {"turns": (one, np.array(turns)), "rank": (one, np.array(rank)), "return": (one, returns)}
    return xr.Dataset(found, {"turn": np.arange(1, horizon + 1)})


def random_dialogues(n=300, horizon=15):
    rng = np.random.default_rng(0)
    rank = rng.integers(0, 11, n)
    return played(np.where(rank > 0, rng.integers(1, horizon + 1, n), horizon), rank, horizon)


@pytest.mark.parametrize(
    ("turn", "rank", "value"),
    [(1, 1, 1.0), (1, 2, 0.8638), (3, 1, 0.5), (5, 3, 0.3715), (10, 10, 0.2819), (15, 1, 0.25)],
)
def test_the_gain_has_its_known_values(turn, rank, value):
    assert float(hdcg(turn, rank)) == pytest.approx(value, abs=5e-5)


def test_the_gain_falls_with_turn_and_rank_and_is_nothing_for_a_failure():
    turn, rank = np.meshgrid(np.arange(1, 16), np.arange(1, 11), indexing="ij")
    gain = hdcg(turn, rank)
    assert (np.diff(gain, axis=0) < 0).all()
    assert (np.diff(gain, axis=1) < 0).all()
    # Even the last place of a list is better than the first of the next turn's.
    assert (gain[:-1, -1] > gain[1:, 0]).all()
    assert hdcg([15, 1], [0, 0]).tolist() == [0.0, 0.0]


def test_the_success_curve_rises_and_counts_those_that_are_done():
    data = random_dialogues()
    curve = success_curve(data)
    pairs = list(zip(data["turns"].values, data["rank"].values, strict=True))
    brute = [sum(k > 0 and turn <= t for turn, k in pairs) / len(pairs) for t in range(1, 16)]
    assert curve == pytest.approx(brute)
    assert (np.diff(curve) >= 0).all()
    assert curve[-1] == pytest.approx((data["rank"].values > 0).mean())


def test_a_failure_at_the_limit_is_no_success_and_a_success_there_is():
    assert success_by(played([15, 15], [0, 4]), 15).tolist() == [0.0, 1.0]


def test_measures_are_those_of_each_dialogue():
    data = random_dialogues()
    found = measures(data)
    assert list(found) == ["SR@5", "SR@10", "SR@15", "AT", "hDCG", "return"]
    for i, (t, k) in enumerate(zip(data["turns"].values, data["rank"].values, strict=True)):
        gain = 0.0
        if k:
            later = 1 / math.log2(t + 2)
            gain = later + (1 / math.log2(t + 1) - later) / math.log2(k + 1)
        assert found["hDCG"][i] == pytest.approx(gain)
        assert [found[f"SR@{n}"][i] for n in (5, 10, 15)] == [float(k > 0 and t <= n) for n in (5, 10, 15)]
    assert found["AT"].mean() == pytest.approx(data["turns"].values.mean())
    assert found["return"].tolist() == list(range(300))


def test_a_short_limit_has_no_later_rates():
    assert list(measures(played([2, 3], [1, 0], horizon=3))) == ["SR@3", "AT", "hDCG", "return"]

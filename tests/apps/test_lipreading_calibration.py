"""Confidences, and from which of them a word may be shown."""

import numpy as np
import pytest

from apps.lipreading.calibration import THRESHOLDS, abstention, calibration_error, proven, reliability
from core.errors import InputError


def clips(n, seed, gap=0.0, words=6):
    """Confidences of words, right with that probability less ``gap``; clips differ, so that their words depend."""
    rng = np.random.default_rng(seed)
    sure = rng.beta(4, 1, size=(n, words))
    luck = rng.normal(0, 0.05, size=(n, 1))
    return sure, rng.random((n, words)) < np.clip(sure - gap + luck, 0, 1)


def test_the_error_is_the_mean_distance_of_the_bins():
    found = reliability([0.1, 0.1, 0.9, 0.9], [0, 1, 1, 1], bins=2)
    np.testing.assert_allclose(found.confidence, [0.1, 0.9])
    np.testing.assert_allclose(found.accuracy, [0.5, 1.0])
    assert found.count.tolist() == [2, 2]
    assert found.error == pytest.approx((0.4 + 0.1) / 2)
    assert (found.low <= found.accuracy).all()
    assert (found.accuracy <= found.high + 1e-12).all()


def test_every_confidence_is_in_a_bin():
    sure = np.linspace(0, 1, 31)
    assert reliability(sure, sure > 0.5, bins=15).count.sum() == 31


def test_calibrated_confidences_have_a_small_error_and_others_theirs():
    sure, right = clips(4000, 0)
    assert reliability(sure.ravel(), right.ravel()).error < 0.015
    sure, right = clips(4000, 0, gap=0.2)
    found = calibration_error(list(sure), list(right))
    assert found.mean == pytest.approx(0.2, abs=0.02)
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(reliability(sure.ravel(), right.ravel()).error)


@pytest.mark.parametrize(
    ("sure", "right", "match"),
    [([0.5, 1.5], [0, 1], r"confidence\[1\] is 1.5"), ([0.5, 0.5], [0, 1, 1], "2 and 3"), ([0.5], [1], "at least 2")],
)
def test_impossible_confidences_are_refused(sure, right, match):
    with pytest.raises(InputError, match=match):
        reliability(sure, right)


def test_the_guarantee_holds():
    """Of thresholds that were proven at risk 0.1, at most a tenth shows more errors than allowed (here 80 sets)."""
    future = clips(20_000, 10_000, gap=0.05)
    failures = found_any = 0
    for seed in range(80):
        sure, right = clips(300, seed, gap=0.05)
        found = abstention(sure.tolist(), right.tolist(), 0.2, most=6)
        if found.threshold is None:
            continue
        found_any += 1
        shown = future[0] >= found.threshold
        failures += (shown & ~future[1]).sum() > 0.2 * shown.sum()
    assert found_any > 60, "the test has no power"
    # 0.1 at most, so that more than 14 of 80 have a probability below 1 %.
    assert failures <= 14


def test_a_mean_at_the_bound_is_rarely_proven_to_be_below():
    rng = np.random.default_rng(0)
    loss = (rng.random((500, 200)) < 0.2).astype(float)
    assert np.mean([proven(x, 0.2, 0.1) for x in loss]) <= 0.13
    assert np.mean([proven(x, 0.35, 0.1) for x in loss]) > 0.9


def test_a_reader_without_errors_shows_all_and_one_without_skill_nothing():
    sure = np.full((200, 6), 0.97)
    found = abstention(sure.tolist(), np.ones((200, 6), bool).tolist(), 0.1)
    assert (found.threshold, found.shown, found.wrong) == (THRESHOLDS[-1], 1.0, 0.0)
    assert "at most a share of 0.1" in found.guarantee
    none = abstention(sure.tolist(), np.zeros((200, 6), bool).tolist(), 0.1)
    assert (none.threshold, none.shown) == (None, 0.0)
    assert "no word is shown" in none.guarantee


def test_a_lower_rate_shows_no_more():
    sure, right = (x.tolist() for x in clips(2000, 3))
    shown = [abstention(sure, right, rate).shown for rate in (0.02, 0.1, 0.2, 0.4)]
    assert shown == sorted(shown)
    assert shown[0] < shown[-1]


def test_a_clip_of_more_words_than_the_grammar_shows_none():
    sure, right = [[0.9] * 3] * 100 + [[0.9] * 5] * 100, [[True] * 3] * 100 + [[False] * 5] * 100
    found = abstention(sure, right, 0.2, most=3)
    assert found.threshold is not None
    assert found.wrong == 0.0
    assert (found.most, abstention(sure, right, 0.2).most) == (3, 5)


@pytest.mark.parametrize("change", [{"error_rate": 0.0}, {"risk": 1.0}, {"right": [[True]]}, {"confidence": []}])
def test_impossible_questions_are_refused(change):
    given = {"confidence": [[0.5], [0.4, 0.3]], "right": [[True], [True, False]], "error_rate": 0.1} | change
    with pytest.raises(InputError, match=next(iter(change))):
        abstention(**given)

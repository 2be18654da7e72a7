import math

import pytest
import torch

from core import bandits
from core.errors import InputError

AVAILABLE = torch.tensor([1, 4, 32])


def test_constant_gamma_is_constant():
    schedule = bandits.ConstantGamma(300.0)
    for examples in (0, 10**9):
        assert schedule(AVAILABLE, examples).tolist() == [300.0] * 3


def test_power_gamma_grows_as_vowpal_wabbits():
    schedule = bandits.PowerGamma()
    assert schedule(AVAILABLE, 0).tolist() == [0.0] * 3
    assert schedule(AVAILABLE, 400).tolist() == pytest.approx([200.0] * 3)
    assert bandits.PowerGamma(3.0, 0.25)(AVAILABLE, 10_000).tolist() == pytest.approx([30.0] * 3)


def test_squarecb_gamma_is_that_of_its_regret_bound():
    schedule = bandits.SquareCBGamma(horizon=10_000, complexity=5.0, delta=0.1)
    expected = [math.sqrt(n * 10_000 / (5 * math.log(10_000) + math.log(20))) for n in (1, 4, 32)]
    assert schedule(AVAILABLE, 17).tolist() == pytest.approx(expected)
    # The bound of the regret, n_A T / gamma + gamma (Reg + log(2 / delta)), is least at this gamma.
    regret = 5 * math.log(10_000) + math.log(20)
    bound = [n * 10_000 / g + g * regret for n, g in ((4, expected[1] * s) for s in (0.99, 1.0, 1.01))]
    assert bound[1] == min(bound)


def test_falcon_epochs_double():
    schedule = bandits.FalconGamma(complexity=5.0)
    assert [schedule.epoch(t) for t in (1, 2, 3, 4, 5, 8, 9, 1024, 1025)] == [1, 1, 2, 2, 3, 3, 4, 10, 11]
    assert schedule.rows(1) == range(1, 1)
    assert schedule.rows(4) == range(1, 9)
    assert bandits.FalconGamma(5.0, previous_epoch=True).rows(4) == range(5, 9)
    assert bandits.FalconGamma(5.0, previous_epoch=True).rows(2) == range(1, 3)


def test_falcon_epochs_may_be_given():
    schedule = bandits.FalconGamma(complexity=5.0, epochs=(100, 300))
    assert [schedule.epoch(t) for t in (1, 100, 101, 300, 301, 10**9)] == [1, 1, 2, 2, 3, 3]
    assert [schedule.rows(m) for m in (1, 2, 3)] == [range(1, 1), range(1, 101), range(1, 301)]
    with pytest.raises(InputError, match="epoch = 4"):
        schedule.rows(4)


@pytest.mark.parametrize("previous_epoch", [False, True])
def test_every_falcon_epoch_learns_from_rounds_before_it(previous_epoch):
    schedule = bandits.FalconGamma(1.0, previous_epoch=previous_epoch)
    for t in range(1, 200):
        learned = schedule.rows(schedule.epoch(t))
        assert learned.stop - 1 < t
        if previous_epoch and learned:
            assert {schedule.epoch(i) for i in learned} == {schedule.epoch(t) - 1}


def test_falcon_gamma_is_one_and_then_its_formula():
    schedule = bandits.FalconGamma(complexity=5.0, delta=0.1)
    assert schedule(AVAILABLE, 1).tolist() == [1.0] * 3
    # Round 601 is in epoch 10, of rounds 513 to 1024, whose oracle learned from the first 512.
    for examples in (512, 600, 1023):
        expected = [math.sqrt(n * 512 / (5 + math.log(512 / 0.1))) / 30 for n in (1, 4, 32)]
        assert schedule(AVAILABLE, examples).tolist() == pytest.approx(expected)
    recent = bandits.FalconGamma(complexity=5.0, delta=0.1, c=2.0, previous_epoch=True)
    expected = [2 * math.sqrt(n * 256 / (5 + math.log(256 / 0.1))) for n in (1, 4, 32)]
    assert recent(AVAILABLE, 600).tolist() == pytest.approx(expected)


def test_schedules_feed_inverse_gap_weighting_in_either_precision():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    for dtype in (torch.float32, torch.float64):
        scores = torch.tensor([[0.9, 0.4, 0.0], [0.9, 0.4, 0.4]], dtype=dtype)
        for schedule in (
            bandits.ConstantGamma(7.0),
            bandits.PowerGamma(),
            bandits.SquareCBGamma(1000, 3.0),
            bandits.FalconGamma(3.0),
        ):
            gamma = schedule(mask.sum(1), 900)
            p = bandits.inverse_gap_weighting(scores, mask, gamma)
            first, second = gamma.tolist()
            assert p.dtype == dtype
            assert p[:, 1].tolist() == pytest.approx([1 / (2 + first * 0.5), 1 / (3 + second * 0.5)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bandits.ConstantGamma(-1.0), "gamma = -1.0: must be at least 0 and finite"),
        (lambda: bandits.ConstantGamma(math.nan), "gamma = nan"),
        (lambda: bandits.PowerGamma(scale=math.inf), "scale = inf"),
        (lambda: bandits.PowerGamma(rho=-0.5), "rho = -0.5"),
        (lambda: bandits.PowerGamma()(AVAILABLE, -1), "examples = -1"),
        (lambda: bandits.SquareCBGamma(0, 1.0), "horizon = 0"),
        (lambda: bandits.SquareCBGamma(10, -1.0), "complexity = -1.0"),
        (lambda: bandits.SquareCBGamma(10, 1.0, delta=0.0), "delta = 0.0: must be above 0 and below 1"),
        (lambda: bandits.SquareCBGamma(10, 1.0, delta=1.0), "delta = 1.0"),
        (lambda: bandits.FalconGamma(1.0, c=0.0), "c = 0.0"),
        (lambda: bandits.FalconGamma(1.0, epochs=()), r"epochs = \(\)"),
        (lambda: bandits.FalconGamma(1.0, epochs=(4, 4)), r"epochs = \(4, 4\)"),
        (lambda: bandits.FalconGamma(1.0, epochs=(0, 4)), r"epochs = \(0, 4\)"),
        (lambda: bandits.FalconGamma(1.0).epoch(0), "t = 0"),
    ],
)
def test_refusals_name_what_is_wrong_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)

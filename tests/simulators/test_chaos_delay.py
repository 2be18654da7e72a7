"""Delay equations against known solutions and an independent integration; order, embedding, histories, refusals."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from core.errors import InputError
from simulators.chaos.delay import History, integrate_delay
from simulators.chaos.flow import DelayFlow

EXACT = torch.float64


def linear(coefficient=-1.0, delay=1.0):
    return DelayFlow("linear", 4, lambda t, x, past: coefficient * past, torch.ones(1, dtype=EXACT), delay, period=4.0)


def mackey_glass(rows=None, tau=16.0):
    def rhs(t, x, past):
        return 0.2 * past / (1 + past**10) - 0.1 * x

    delay = tau if rows is None else torch.full((rows,), tau, dtype=EXACT)
    return DelayFlow("mackey", 10, rhs, torch.full((1,), 0.8, dtype=EXACT), delay, period=6.0)


def by_steps(constant, duration, tau=16.0):
    """Mackey-Glass by DOP853, delay after delay, the last delay's dense output being the past."""
    pieces, past, x = [], lambda t: constant, constant
    for k in range(math.ceil(duration / tau)):
        span = (k * tau, (k + 1) * tau)

        def rhs(t, y, past=past):
            delayed = past(t - tau)
            return [0.2 * delayed / (1 + delayed**10) - 0.1 * y[0]]

        piece = solve_ivp(rhs, span, [x], method="DOP853", rtol=1e-10, atol=1e-12, dense_output=True, max_step=0.5)
        pieces.append(piece.sol)
        past, x = (lambda t, sol=piece.sol: sol(t)[0]), piece.y[0, -1]
    return lambda t: pieces[min(int(t // tau), len(pieces) - 1)](t)[0]


def test_a_linear_equation_is_solved_as_by_hand():
    # x' = -x(t - 1) with x = 1 before: 1 - t, then 1 - t + (t - 1)^2 / 2, ...
    times = torch.linspace(0, 4, 41, dtype=EXACT)
    found = integrate_delay(linear(), torch.ones(2, dtype=EXACT), 4.0).at(times)
    expected = sum(
        (-1) ** k * (times - k + 1).clamp(min=0) ** k / math.factorial(k) for k in range(1, 6)
    ) + torch.ones_like(times)
    torch.testing.assert_close(found, expected.expand(2, -1), rtol=0, atol=1e-9)


def test_mackey_glass_agrees_with_an_independent_integration():
    times = torch.linspace(0, 80, 161, dtype=EXACT)
    found = integrate_delay(mackey_glass(), torch.tensor([0.8, 1.1], dtype=EXACT), 80.0).at(times)
    for row, constant in enumerate((0.8, 1.1)):
        exact = by_steps(constant, 80.0)
        np.testing.assert_allclose(found[row].numpy(), [exact(t) for t in times.tolist()], rtol=0, atol=1e-6)


def test_the_order_is_four_across_the_kinks():
    times = torch.linspace(0, 60, 121, dtype=EXACT)
    start = torch.tensor([0.8], dtype=EXACT)
    reference = integrate_delay(mackey_glass(), start, 60.0, steps=1440).at(times)
    errors = [
        float((integrate_delay(mackey_glass(), start, 60.0, steps=n).at(times) - reference).abs().max())
        for n in (45, 90, 180)
    ]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(4, abs=0.5)


def test_a_history_of_a_solution_continues_it():
    whole = integrate_delay(mackey_glass(), torch.tensor([0.8], dtype=EXACT), 120.0)
    place = torch.tensor([700, 901])
    continued = integrate_delay(mackey_glass(), whole.history(place), 30.0)
    step = float(whole.step)
    times = torch.linspace(0, 30, 50, dtype=EXACT)
    for row in range(2):
        offset = (int(place[row]) - whole.steps) * step
        torch.testing.assert_close(continued.at(times)[row], whole.at(times + offset)[0], rtol=0, atol=1e-9)


def test_rows_have_their_own_delays():
    delays = torch.tensor([14.0, 17.0], dtype=EXACT)
    flow = mackey_glass()
    ensemble = DelayFlow(flow.name, 10, flow.right_hand_side, flow.initial, delays, 6.0, {"tau": delays})
    times = torch.linspace(0, 50, 60, dtype=EXACT)
    together = integrate_delay(ensemble, flow.initial.repeat(2), 50.0, steps=270).at(times)
    for row, tau in enumerate(delays.tolist()):
        alone = integrate_delay(mackey_glass(tau=tau), flow.initial, 50.0, steps=270).at(times)[0]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-9)
    assert ensemble.rows == 2


def test_the_embedding_looks_back_in_equal_lags():
    found = integrate_delay(mackey_glass(), torch.tensor([0.8, 0.9], dtype=EXACT), 60.0)
    times = torch.linspace(0, 60, 25, dtype=EXACT)
    embedded = found.embedded(times, 10)
    assert embedded.shape == (2, 25, 10)
    for k in (0, 4, 9):
        torch.testing.assert_close(embedded[..., k], found.at(times - k * 16 / 9), rtol=0, atol=1e-12)
    torch.testing.assert_close(embedded[0, 0], torch.full((10,), 0.8, dtype=EXACT))


def test_one_channel_is_the_present_itself():
    flow = DelayFlow("scalar", 1, lambda t, x, past: -past, torch.ones(1, dtype=EXACT), 1.0, period=4.0)
    times = torch.tensor([0.5, 1.0], dtype=EXACT)
    found = integrate_delay(flow, flow.initial, 1.0).embedded(times, 1)
    torch.testing.assert_close(found[0, :, 0], 1 - times)


def test_a_row_that_explodes_fails_alone():
    flow = DelayFlow("growing", 3, lambda t, x, past: x * past, torch.ones(1, dtype=EXACT), 1.0, 1.0)
    start = torch.tensor([-1.0, 3.0, torch.nan], dtype=EXACT)
    found = integrate_delay(flow, start, 20.0)
    assert found.failed.tolist() == [False, True, True]
    alone = integrate_delay(flow, start[:1], 20.0)
    torch.testing.assert_close(found.values[:, 0], alone.values[:, 0], rtol=0, atol=1e-13)
    assert bool(found.values[: found.steps, 1].isfinite().all())
    assert bool(found.values[-1, 1:].isnan().all())


@pytest.mark.parametrize(
    ("history", "duration", "options", "message"),
    [
        (torch.ones(2, 3), 1.0, {}, r"history has shape \(2, 3\); allowed is \(B,\)"),
        (History(torch.ones(1, 5), torch.ones(1, 5)), 1.0, {}, r"history has shape \(1, 5\); allowed is \(B, 91\)"),
        (torch.ones(2), 0.0, {}, "duration = 0.0; it must be > 0"),
        (torch.ones(2), 1.0, {"steps": 0}, "steps = 0"),
    ],
)
def test_what_does_not_fit_is_refused(history, duration, options, message):
    with pytest.raises(InputError, match=message):
        integrate_delay(linear(), history, duration, **options)

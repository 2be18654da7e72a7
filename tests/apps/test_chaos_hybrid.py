from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.integrate import odeint

from apps.chaos.forecasters.equations import imperfect
from apps.chaos.forecasters.forecaster import Fitting
from apps.chaos.forecasters.hybrid import Hybrid
from core.checkpoint import Checkpoint
from core.errors import InputError
from simulators.chaos.flow import DelayFlow, Flow

DT, TRAIN, HORIZON = 0.015, 400, 150


def lorenz(y, t, rho=28.0):
    return [10 * (y[1] - y[0]), y[0] * (rho - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]]


def own_flow(name="mine", rho=28.0):
    def right_hand_side(t, y):
        return torch.stack(lorenz(y.unbind(-1), t, rho), -1)

    def serial(row):
        return partial(lorenz, rho=rho)

    initial = torch.tensor([1.0, 1.0, 20.0], dtype=torch.float64)
    return Flow(name, 3, right_hand_side, initial, period=1.5, serial=serial)


def lorenz_series(series=3, samples=TRAIN + HORIZON):
    starts = np.random.default_rng(0).normal([0, 0, 25], 5, (series, 3))
    times = DT * np.arange(1000 + samples)
    return torch.tensor(np.array([odeint(lorenz, y, times, rtol=1e-11, atol=1e-11)[1000:] for y in starts]))


@pytest.fixture(scope="module")
def raw():
    return lorenz_series()


@pytest.fixture(scope="module")
def offset(raw):
    return raw[:, :TRAIN].mean(1)


@pytest.fixture(scope="module")
def scale(raw):
    return raw[:, :TRAIN].std(1)


@pytest.fixture(scope="module")
def scaled(raw, offset, scale):
    return (raw - offset[:, None]) / scale[:, None]


def fitting(flow, offset, scale, **more):
    count = len(offset)
    return Fitting(
        seeds=tuple(range(5, 5 + count)), dt=(DT,) * count, flows=(flow,) * count, offset=offset, scale=scale, **more
    )


def valid(forecast, truth):
    """Samples until the error of a series is beyond 0.4 standard deviations."""
    bad = ~((forecast - truth).square().mean(-1).sqrt() < 0.4)
    return torch.where(bad.any(1), bad.int().argmax(1), truth.shape[1]).double()


def catalogued():
    pytest.importorskip("dysts", reason="dysts is not installed")
    from simulators.chaos import load

    return load("Lorenz")


def test_exact_equations_alone_give_the_truth(scaled, offset, scale):
    fitted = Hybrid(parameter_error=0, residual="none").fit(scaled[:, :TRAIN], fitting(own_flow(), offset, scale))
    torch.testing.assert_close(fitted.forecast(HORIZON), scaled[:, TRAIN:], rtol=0, atol=1e-5)


def test_a_correction_of_exact_equations_leaves_the_truth(scaled, offset, scale):
    fitted = Hybrid(parameter_error=0).fit(scaled[:, :TRAIN], fitting(own_flow(), offset, scale))
    torch.testing.assert_close(fitted.forecast(HORIZON), scaled[:, TRAIN:], rtol=0, atol=1e-3)


def test_the_units_of_the_series_do_not_matter(raw, scaled, offset, scale):
    none = Hybrid(parameter_error=0, residual="none")
    flow = own_flow(rho=27.0)
    found = none.fit(scaled[:, :TRAIN], fitting(flow, offset, scale)).forecast(50)
    plain = none.fit(raw[:, :TRAIN], fitting(flow, torch.zeros_like(offset), torch.ones_like(scale))).forecast(50)
    torch.testing.assert_close(offset[:, None] + scale[:, None] * found, plain, rtol=1e-6, atol=1e-6)


def test_a_correction_makes_wrong_equations_better(scaled, offset, scale):
    # Equations with another rho: what is missed in a step is nearly a polynomial of the state.
    fit, truth = fitting(own_flow(rho=26.6), offset, scale), scaled[:, TRAIN:]
    found = {
        kind: valid(
            Hybrid(parameter_error=0, residual=kind, iterations=400).fit(scaled[:, :TRAIN], fit).forecast(HORIZON),
            truth,
        )
        for kind in ("none", "ridge", "mlp")
    }
    assert bool((found["ridge"] == HORIZON).all())
    assert bool((found["none"] < 0.8 * HORIZON).all())
    assert float(found["mlp"].mean()) > 1.3 * float(found["none"].mean())


def test_five_percent_on_every_parameter_are_corrected(scaled, offset, scale):
    fit, truth = fitting(catalogued(), offset, scale), scaled[:, TRAIN:]
    alone, both = (Hybrid(residual=kind).fit(scaled[:, :TRAIN], fit).forecast(HORIZON) for kind in ("none", "ridge"))
    assert bool((valid(both, truth) > 2 * valid(alone, truth)).all())


def test_every_parameter_is_off_by_the_error_with_signs_from_the_seed():
    flow = catalogued()
    wrong = [imperfect(flow, 0.1, seed) for seed in range(20)]
    for name, value in flow.parameters.items():
        ratios = {round(other.parameters[name] / value, 12) for other in wrong}
        assert ratios == {0.9, 1.1}
    assert imperfect(flow, 0.1, 3).parameters == wrong[3].parameters
    changed = replace(flow, parameters={**flow.parameters, "rho": 50.0})
    assert imperfect(changed, 0.1, 3).parameters["rho"] in (pytest.approx(45.0), pytest.approx(55.0))


def test_arrays_of_parameters_are_perturbed_too():
    catalogued()
    from simulators.chaos import load, names, stored

    name = next(n for n in names("ode") if any(np.ndim(v) for v in stored(n).parameters.values()))
    flow = load(name)
    y, t = flow.initial[None], torch.zeros(1, dtype=torch.float64)
    assert not torch.equal(imperfect(flow, 0.1, 0).right_hand_side(t, y), flow.right_hand_side(t, y))


def test_a_series_is_fitted_alike_in_every_group_and_a_system_that_escapes_spoils_no_other(scaled, offset, scale):
    train, flow = scaled[:, :TRAIN], own_flow(rho=27.0)
    settings, fit = Hybrid(parameter_error=0), fitting(flow, offset, scale)
    group = settings.fit(train, fit).forecast(40)
    assert torch.equal(group, settings.fit(train, fit).forecast(40))
    alone = settings.fit(train[1:2], replace(fitting(flow, offset[1:2], scale[1:2]), seeds=(6,))).forecast(40)
    torch.testing.assert_close(group[1:2], alone, rtol=1e-6, atol=1e-6)
    escaping = Flow("away", 3, lambda t, y: 50 * y, flow.initial, period=1.5)
    alone = Hybrid(parameter_error=0, residual="none")
    mixed = alone.fit(train, replace(fit, flows=(escaping, flow, flow))).forecast(40)
    assert bool(mixed[0, 0].isfinite().all())
    assert not bool(mixed[0, -1].isfinite().any())
    torch.testing.assert_close(mixed[1:], alone.fit(train, fit).forecast(40)[1:], rtol=1e-6, atol=1e-6)


def test_the_network_resumes_bit_for_bit(tmp_path, monkeypatch, scaled, offset, scale):
    settings, train = Hybrid(parameter_error=0, residual="mlp", iterations=30, hidden=8), scaled[:, :TRAIN]
    flow = own_flow(rho=27.0)
    whole = settings.fit(train, fitting(flow, offset, scale)).forecast(10)
    monkeypatch.setattr(Checkpoint, "due", property(lambda self: self.path is not None))

    def stop(share, text):
        if share >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        settings.fit(train, fitting(flow, offset, scale, checkpoint=tmp_path, progress=stop))
    assert torch.equal(whole, settings.fit(train, fitting(flow, offset, scale, checkpoint=tmp_path)).forecast(10))


def test_equations_that_do_not_fit_the_series_are_refused_in_one_line(scaled, offset, scale):
    flow, settings = own_flow(), Hybrid(parameter_error=0)
    train, fit = scaled[:, :TRAIN], fitting(own_flow(), offset, scale)

    def refused(message, settings=settings, train=train, **changes):
        with pytest.raises(InputError, match=message):
            settings.fit(train, replace(fit, **changes))

    refused("hybrid: needs the equations", flows=None)
    refused("map of its state", flows=(replace(flow, coordinates=torch.sin),) * 3)
    refused("depends on time", flows=(replace(flow, autonomous=False),) * 3)
    refused("show 2 of 3 channels", train=train[..., :2])
    refused(r"show \[0, 2, 1\] of 3", observed=(0, 2, 1))
    refused("4 rows", flows=(replace(flow, parameters={"rho": torch.full((4,), 28.0)}),) * 3)
    delay = DelayFlow("late", 3, lambda t, x, y: -y, flow.initial[:1], 1.0, 6.0)
    refused("late is a delay system", flows=(delay,) * 3)
    refused("needs at least 12", train=train[:, :11])
    catalogued()
    refused("mine is not of the catalogue; allowed is 0", settings=Hybrid())

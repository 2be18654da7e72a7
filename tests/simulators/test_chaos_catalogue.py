"""Every system against dysts, Jacobians against differences, ensembles, bounded coordinates, refusals."""

import warnings

import numpy as np
import pytest
import torch

from core.errors import InputError, MissingExtra
from simulators.chaos import catalogue
from simulators.chaos.flow import DelayFlow, Flow, jacobian

dysts_flows = pytest.importorskip("dysts.flows", reason="the catalogue needs dysts")


def dysts(name):
    """dysts' own system, its functions not compiled where numba is there."""
    system = getattr(dysts_flows, name)()
    for attribute in dir(type(system)):
        compiled = getattr(type(system), attribute)
        if hasattr(compiled, "py_func"):
            setattr(system, attribute, compiled.py_func)
    return system


def states_near(flow, rows, seed=0):
    noise = torch.randn(rows, flow.dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return flow.initial * (1 + 0.05 * noise)


def by_vmap(flow):
    return "of_rows" in flow.right_hand_side.__qualname__


def test_the_catalogue_has_129_ordinary_and_6_delay_systems():
    assert (len(catalogue.names("ode")), len(catalogue.names("delay")), len(catalogue.names())) == (129, 6, 135)


def test_every_ordinary_system_agrees_with_dysts_at_seven_states():
    worst = {}
    for name in catalogue.names("ode"):
        flow = catalogue.load(name)
        y, t = states_near(flow, 7), torch.linspace(0, 3, 7, dtype=torch.float64)
        own = dysts(name)
        with np.errstate(all="ignore"):
            expected = np.stack(
                [np.asarray(own.rhs(a, float(b)), dtype=float) for a, b in zip(y.numpy(), t, strict=True)]
            )
        found = flow.right_hand_side(t, y).numpy()
        worst[name] = np.abs(found - expected).max() / np.abs(expected).max()
    assert len(worst) == 129
    assert {name: error for name, error in worst.items() if not error < 1e-12} == {}


def test_one_system_alone_needs_vmap():
    assert [name for name in catalogue.names("ode") if by_vmap(catalogue.load(name))] == ["MacArthur"]


@pytest.mark.parametrize(
    "name", ["Lorenz", "Lorenz96", "BeerRNN", "MacArthur", "BickleyJet", "Torus", "InteriorSquirmer"]
)
def test_jacobians_are_the_derivatives(name):
    flow = catalogue.load(name)
    y, t = states_near(flow, 3), torch.rand(3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = jacobian(flow, t, y)
    step = 1e-6
    for k, direction in enumerate(torch.eye(flow.dimension, dtype=torch.float64)):
        ahead, behind = (flow.right_hand_side(t, y + sign * step * direction) for sign in (1, -1))
        torch.testing.assert_close(found[..., k], (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)


def test_every_system_has_a_jacobian_of_finite_entries():
    for name in catalogue.names("ode"):
        flow = catalogue.load(name)
        found = jacobian(flow, torch.zeros(2, dtype=torch.float64), states_near(flow, 2))
        assert found.shape == (2, flow.dimension, flow.dimension), name
        assert bool(found.isfinite().all()), name


@pytest.mark.parametrize(("name", "parameter"), [("Lorenz", "rho"), ("MacArthur", "d"), ("CaTwoPlus", "beta")])
def test_an_ensemble_of_parameters_equals_single_ones(name, parameter):
    alone = catalogue.load(name)
    values = alone.parameters[parameter] * torch.linspace(0.9, 1.1, 3, dtype=torch.float64)
    ensemble = catalogue.load(name, {parameter: values})
    y, t = states_near(alone, 3), torch.zeros(3, dtype=torch.float64)
    found = ensemble.right_hand_side(t, y)
    singles = [catalogue.load(name, {parameter: float(value)}) for value in values]
    torch.testing.assert_close(
        found, torch.cat([s.right_hand_side(t[:1], y[i : i + 1]) for i, s in enumerate(singles)])
    )
    torch.testing.assert_close(
        jacobian(ensemble, t, y), torch.cat([jacobian(s, t[:1], y[i : i + 1]) for i, s in enumerate(singles)])
    )
    for i, single in enumerate(singles):
        row = y[i].numpy()
        np.testing.assert_array_equal(ensemble.serial(i)(row, 0.0), single.serial(0)(row, 0.0))
    assert ensemble.rows == 3
    assert alone.rows is None


def test_an_array_parameter_is_replaced_by_one_of_its_shape():
    louder = catalogue.load("InteriorSquirmer", {"a": torch.ones(5, dtype=torch.float64)})
    t = torch.zeros(2, dtype=torch.float64)
    y = states_near(louder, 2)
    assert not torch.allclose(louder.right_hand_side(t, y), catalogue.load("InteriorSquirmer").right_hand_side(t, y))
    assert louder.rows is None


def test_bounded_coordinates_agree_with_dysts():
    mapped = [name for name in catalogue.names("ode") if catalogue.load(name).coordinates is not None]
    assert len(mapped) == 19
    for name in mapped:
        flow = catalogue.load(name)
        states = states_near(flow, 6).unflatten(0, (2, 3))
        expected = dysts(name)._postprocessing(*states.movedim(-1, 0).numpy())
        np.testing.assert_allclose(flow.coordinates(states).numpy(), np.stack(expected, -1), rtol=1e-12, atol=1e-14)


def test_bounded_coordinates_take_the_parameters_of_their_row():
    k = torch.tensor([1.0, 2.0], dtype=torch.float64)
    flow = catalogue.load("OscillatingFlow", {"k": k})
    states = states_near(flow, 6).unflatten(0, (2, 3))
    for i in range(2):
        single = catalogue.load("OscillatingFlow", {"k": float(k[i])})
        torch.testing.assert_close(flow.coordinates(states)[i], single.coordinates(states[i]))


def test_delay_systems_agree_with_dysts():
    for name in catalogue.names("delay"):
        flow = catalogue.load(name)
        assert isinstance(flow, DelayFlow)
        x, delayed = torch.rand(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        own = dysts(name)
        expected = own._rhs(x.numpy(), delayed.numpy(), 0.0, *own.param_list)
        np.testing.assert_allclose(flow.right_hand_side(torch.zeros(5), x, delayed).numpy(), expected, rtol=1e-12)
        assert flow.delay == own.tau


def test_single_precision_stays():
    flow = catalogue.load("Hopfield")
    y = states_near(flow, 4).float()
    assert flow.right_hand_side(torch.zeros(4), y).dtype == torch.float32


def test_only_the_torus_depends_on_time():
    assert [name for name in catalogue.names("ode") if not catalogue.load(name).autonomous] == ["Torus"]


def test_metadata_is_that_of_dysts():
    lorenz = catalogue.stored("Lorenz")
    assert (lorenz.dimension, lorenz.delay, lorenz.postprocessed) == (3, False, False)
    assert lorenz.period == dysts("Lorenz").period
    assert lorenz.maximum_lyapunov == pytest.approx(0.8917, abs=1e-4)
    assert "Lorenz" in lorenz.citation
    plain = [
        n for n in catalogue.names("ode") if not catalogue.stored(n).postprocessed and catalogue.load(n).autonomous
    ]
    assert len(plain) == 109


def test_a_function_of_ones_own_is_a_flow_without_the_catalogue():
    flow = Flow("circle", 2, lambda t, y: torch.stack([y[:, 1], -y[:, 0]], 1), torch.tensor([1.0, 0.0]), 6.2832)
    expected = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64).expand(4, 2, 2)
    assert torch.equal(jacobian(flow, torch.zeros(4), torch.ones(4, 2, dtype=torch.float64)), expected)


def test_an_unknown_system_is_refused_with_the_nearest_names():
    with pytest.raises(InputError, match=r"'Lorentz' is not in the catalogue; the nearest are .*Lorenz"):
        catalogue.load("Lorentz")
    with pytest.raises(InputError, match="there are 135"):
        catalogue.stored("qqqqqqqq")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"gamma": 1.0}, "parameter 'gamma' of Lorenz is unknown; there are beta, rho, sigma"),
        ({"rho": float("nan")}, "rho of Lorenz is not finite"),
        ({"rho": torch.ones(2, 2)}, r"rho of Lorenz has shape \(2, 2\)"),
        (
            {"rho": torch.ones(2), "beta": torch.ones(3)},
            r"beta of Lorenz has shape \(3,\); allowed is a number or \(2,\)",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        catalogue.load("Lorenz", parameters)


def test_an_unknown_kind_and_a_delay_of_zero_are_refused():
    with pytest.raises(InputError, match="kind = 'map'"):
        catalogue.names("map")
    with pytest.raises(InputError, match="tau of MackeyGlass"):
        catalogue.load("MackeyGlass", {"tau": 0.0})


def test_without_dysts_the_catalogue_says_which_extra_brings_it(monkeypatch):
    def missing(module, extra):
        raise MissingExtra(f'{module.split(".")[0]} is not installed: pip install "szilard[{extra}]"')

    catalogue._flows.cache_clear()
    monkeypatch.setattr(catalogue, "require", missing)
    with pytest.raises(MissingExtra, match=r'dysts is not installed: pip install "szilard\[chaos\]"'):
        catalogue._flows()
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        catalogue._flows()

import csv
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from core.errors import InputError
from simulators.chaos import exponents
from simulators.chaos.estimation import estimate
from simulators.chaos.exponents import estimated, exponent
from simulators.chaos.flow import Flow
from simulators.chaos.invariants import exponents_along, invariant_differences, series_invariants

DT = 0.02


def vector_field(t, y):
    x, v, z = y.unbind(-1)
    return torch.stack([10 * (v - x), x * (28 - z) - v, x * v - 8 / 3 * z], -1)


LORENZ = Flow("Lorenz63", 3, vector_field, torch.tensor([1.0, 1.0, 20.0], dtype=torch.float64), 0.75)


@pytest.fixture(scope="module")
def orbit():
    times = DT * np.arange(8000) + 20
    found = solve_ivp(
        lambda t, y: [10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]],
        (0, times[-1]),
        [1.0, 1.0, 20.0],
        t_eval=times,
        rtol=1e-9,
        atol=1e-9,
    )
    return torch.as_tensor(found.y.T)


@pytest.fixture(scope="module")
def halves(orbit):
    return orbit[:1500], orbit[4000:5500]


def test_the_invariants_of_lorenz_hold_the_literature(orbit):
    found = series_invariants(orbit[:4000], DT)
    low, high = found.correlation_dimension_interval.values
    assert low < 2.05 < high
    assert 0.6 < float(found.largest_exponent) < 1.2
    assert 0.6 < float(found.period) < 1.6
    assert found.sample_entropy.shape == (3, 5)
    for name in ("largest_exponent", "correlation_dimension"):
        low, high = found[f"{name}_interval"].values
        assert low < float(found[name]) < high
    assert all(v.attrs["units"] and v.attrs["long_name"] for v in found.data_vars.values())


def test_one_channel_is_embedded(orbit):
    found = series_invariants(orbit[:3000, 0], DT, period=0.75)
    assert int(found.embedding_dimension) == 3
    assert 0.08 < float(found.embedding_delay) < 0.25
    assert float(found.correlation_dimension) == pytest.approx(2.05, abs=0.25)
    assert found.attrs["theiler_window"] == pytest.approx(0.76)


def test_units_of_time_and_of_the_channels_only_rescale(orbit):
    plain = series_invariants(orbit[:1000], DT, period=0.75)
    other = series_invariants(orbit[:1000] * 50 - 3, 10 * DT, period=7.5)
    assert float(other.largest_exponent) == pytest.approx(float(plain.largest_exponent) / 10)
    assert float(other.correlation_dimension) == pytest.approx(float(plain.correlation_dimension), abs=1e-6)


def test_the_truth_differs_from_itself_in_nothing(halves):
    truth, _ = halves
    assert all(float(value) < 1e-6 for value in invariant_differences(truth, truth, DT, flow=LORENZ).values())


def test_another_stretch_of_the_orbit_is_nearer_than_noise_or_a_circle(halves):
    truth, other = halves
    noise = truth.mean(0) + truth.std(0) * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)).double()
    angle = torch.linspace(0, 200, len(truth), dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin(), angle.cos()], 1) * truth.std(0) + truth.mean(0)
    found = invariant_differences(truth, torch.stack([other, noise, circle]), DT, flow=LORENZ)
    for name, (same, *wrong) in {name: value.tolist() for name, value in found.items()}.items():
        assert same < min(wrong), name


def test_a_forecast_is_judged_alone(halves):
    truth, other = halves
    broken = torch.stack([other, other.clone(), torch.ones_like(other), 1e200 * other])
    broken[1, 700:] = torch.nan
    found = invariant_differences(truth, broken, DT, flow=LORENZ)
    alone = invariant_differences(truth, other, DT, flow=LORENZ)
    for name, value in found.items():
        assert float(value[0]) == pytest.approx(float(alone[name]), rel=1e-9), name
        assert bool(value[1:3].isnan().all()), name
        assert bool(value[1:].isnan().all()) or name != "correlation_dimension"


def test_every_truth_has_its_own_window(halves):
    truth, other = halves
    slow = truth[:750].repeat_interleave(2, 0) + 1e-3 * other
    pairs = invariant_differences(torch.stack([truth, slow]), torch.stack([other, other]), DT)
    for i, one in enumerate((truth, slow)):
        for name, value in invariant_differences(one, other, DT).items():
            assert float(pairs[name][i]) == pytest.approx(float(value), rel=1e-9), name


def test_the_exponents_along_an_orbit_are_those_of_the_flow(orbit):
    found = exponents_along(LORENZ, orbit[None], DT)[0]
    assert found.tolist() == pytest.approx([0.906, 0.0, -14.57], abs=0.06)
    assert float(found.sum()) == pytest.approx(-(10 + 1 + 8 / 3), abs=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: series_invariants(x[:300], DT), "300 samples"),
        (lambda x: series_invariants(x[:600] * 0, DT), "constant"),
        (lambda x: series_invariants(x[:600] / 0, DT), "finite"),
        (lambda x: series_invariants(x[:600], DT, period=9.0), "period: 9.0"),
        (lambda x: series_invariants(x[:600], 0.0), "dt: 0"),
        (lambda x: invariant_differences(x[:300], x[:400], DT), r"\(300, 3\) and \(400, 3\)"),
        (lambda x: invariant_differences(x[:100], x[:100], DT), "200 or more"),
        (lambda x: invariant_differences(x[:300] * 0, x[:300], DT), "truth: has"),
        (lambda x: invariant_differences(x[:300], x[:300], DT, theiler=200), "theiler: 200"),
        (lambda x: exponents_along(LORENZ, x[None, :300, :2], DT), "3 states"),
    ],
)
def test_what_has_no_invariants_is_refused(orbit, call, message):
    with pytest.raises(InputError, match=message):
        call(orbit)


def test_the_table_has_every_system_with_values_or_a_reason():
    pytest.importorskip("dysts")
    from simulators.chaos.catalogue import names, stored

    table = exponents.table()
    assert set(table) == set(names("ode"))
    for name, entry in table.items():
        assert bool(entry.values) != bool(entry.reason)
        if entry.values:
            assert len(entry.values) == len(entry.standard_errors) == stored(name).dimension
            assert list(entry.values) == sorted(entry.values, reverse=True)
            assert entry.trajectories >= 8
            assert all(math.isfinite(x) for x in (*entry.values, *entry.standard_errors))
    assert sum(bool(entry.values) for entry in table.values()) >= 110


def test_the_table_agrees_with_the_literature_where_dysts_does_not():
    rossler, lorenz = estimated("Rossler"), estimated("Lorenz")
    assert rossler is not None
    assert lorenz is not None
    assert abs(rossler.values[0] - 0.0714) < 3 * rossler.standard_errors[0] + 1e-3
    assert abs(lorenz.values[0] - 0.9056) < 3 * lorenz.standard_errors[0] + 1e-3
    assert lorenz.kaplan_yorke == pytest.approx(2.062, abs=0.002)
    assert exponent("Rossler") == rossler.values[0]
    pytest.importorskip("dysts")
    assert exponent("Rossler", "stored") / exponent("Rossler") == pytest.approx(2.1, abs=0.2)


def test_the_table_agrees_with_sprott():
    # Sprott (1994), Physical Review E 50, R647, table I: the dissipative flows, to three decimals.
    published = {"B": 0.210, "C": 0.163, "D": 0.103, "E": 0.078, "F": 0.117, "G": 0.034, "H": 0.117, "I": 0.012}
    published |= {"J": 0.076, "K": 0.038, "L": 0.061, "M": 0.044, "N": 0.076, "O": 0.049, "P": 0.087, "Q": 0.109}
    published |= {"R": 0.062, "S": 0.188}
    for letter, value in published.items():
        found = estimated(f"Sprott{letter}")
        assert found is not None
        assert abs(found.values[0] - value) < 3 * found.standard_errors[0] + 1e-3, letter


def test_exponents_that_we_lack_are_refused():
    assert estimated("MackeyGlass") is None
    with pytest.raises(InputError, match="MackeyGlass"):
        exponent("MackeyGlass")
    with pytest.raises(InputError, match="source = 'guessed'"):
        exponent("Lorenz", "guessed")


def test_a_table_is_read_as_it_was_written(tmp_path):
    entries = {
        "A": exponents.Estimated("A", (0.5, -1.25), (0.01, 0.02), 1.4, 0.1, -1e-9, 64, 3, 60.0, 30),
        "B": exponents.Estimated("B", reason="flow: too stiff, by far"),
    }
    path = tmp_path / "table.csv"
    path.write_text(exponents.written(entries))
    assert exponents.read(path) == entries
    with path.open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["A", "B"]


def test_a_system_of_the_catalogue_is_estimated():
    pytest.importorskip("dysts")
    found = estimate("Halvorsen", trajectories=40, periods=10, transient=10)
    assert abs(found.values[0] - 0.69) < 4 * found.standard_errors[0] + 0.01
    assert found.sum_error == pytest.approx(0, abs=1e-2)
    assert "delay" in estimate("MackeyGlass").reason

"""What is said of a policy: formulas that are known are found again, and shares and importances are right."""

import numpy as np
import pytest
import torch

from apps.turbulence.interpretation import LEVELS, SPECTRUM_ERROR, fitted, interpret
from core.errors import InputError
from simulators.turbulence.agents import ClosureAgents, PolicyClosure
from simulators.turbulence.cases import case
from simulators.turbulence.grid import Grid
from simulators.turbulence.solver import Solver

N = 16


def flows(number=12, seed=0):
    """Vorticities of different strengths."""
    generator = torch.Generator().manual_seed(seed)
    grid = Grid(N)
    noise = torch.randn(number, N, N, generator=generator, dtype=torch.float64)
    omega = grid.to_physical(grid.to_spectral(noise) * grid.resolved * (grid.k2 > 0) / (1 + grid.k2 / 9))
    strength = 2 + 4 * torch.rand(number, 1, 1, generator=generator, dtype=torch.float64)
    return strength * omega / omega.std()


def world(**changes):
    solver = Solver(case("kolmogorov4"), N, 0.005, dtype=torch.float64)
    options = {"agents_per_side": 4} | changes
    return ClosureAgents(solver, torch.full((N // 2,), 0.5, dtype=torch.float64), flows(), **options)


def described(function, agents=None, **options):
    """The description of a policy that is a function of standardised states ``(B, agents, S)``."""
    agents = world() if agents is None else agents
    return interpret(PolicyClosure(agents, lambda seen, state=None: function(seen).unsqueeze(-1)), flows(), **options)


def coefficients(found):
    return dict(zip(found.term.values.tolist(), found.coefficient.values.tolist(), strict=True))


def test_a_linear_formula_is_found_again():
    found = described(lambda z: 0.01 + 0.004 * z[..., 0] - 0.003 * z[..., 3])
    terms = coefficients(found)
    first, fourth = (f"z({found.state.values[i]})" for i in (0, 3))
    assert terms.keys() == {"1", first, fourth}
    assert list(terms.values()) == pytest.approx([0.01, 0.004, -0.003], rel=1e-8)
    assert int(found.degree) == 1
    assert float(found.r2) == pytest.approx(1.0)
    assert float(found.error) < 1e-10
    assert found.attrs["formula"] == f"c = 0.01 + 0.004 {first} - 0.003 {fourth}"


def test_products_and_the_error_of_the_spectrum_are_found_again():
    agents = world()
    fixed = agents.moved(agents.solver)

    def policy(z):
        spectrum = z[..., 5:] * fixed.std[5:] + fixed.mean[5:]
        error = (spectrum - np.log(0.5))[..., 1:].mean(-1) / np.log(10)
        return 0.01 + 0.02 * error + 0.002 * z[..., 2] ** 2 - 0.003 * z[..., 0] * z[..., 4]

    found = described(policy, agents)
    terms = coefficients(found)
    z = [f"z({name})" for name in agents.state_names]
    expected = {"1": 0.01, SPECTRUM_ERROR: 0.02, f"{z[2]}^2": 0.002, f"{z[0]} {z[4]}": -0.003}
    assert terms.keys() == expected.keys()
    assert terms == pytest.approx(expected, rel=1e-6)
    assert int(found.degree) == 2


def test_a_formula_is_scored_by_what_it_has_not_seen():
    rng = np.random.default_rng(1)
    features, group = rng.normal(size=(400, 6)), np.repeat(np.arange(20), 20)
    names = [f"x{i}" for i in range(6)]
    noise = rng.normal(size=400)
    nothing = fitted(features, names, noise, group)
    assert nothing.terms == ("1",)
    assert abs(nothing.r2) < 0.05
    half = fitted(features, names, features[:, 1] + noise, group)
    assert half.terms == ("1", "x1")
    assert half.r2 == pytest.approx(0.5, abs=0.1)
    assert half.error == pytest.approx(1.0, abs=0.1)


def test_features_that_repeat_each_other_enter_once():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 1))
    features = np.concatenate((x, x, np.zeros_like(x)), 1)
    formula = fitted(features, ["a", "b", "none"], 2 * x[:, 0] + 1, np.arange(200) // 10)
    assert formula.text in ("c = 1 + 2 a", "c = 1 + 2 b")


def test_the_partial_dependence_is_the_policy_where_only_one_number_matters():
    agents = world()
    found = described(lambda z: 0.01 * torch.tanh(z[..., 1]), agents)
    row = found.isel(state=1)
    z = (row.value.values - float(row.state_mean)) / float(row.state_std)
    assert row.dependence.values == pytest.approx(0.01 * np.tanh(z), abs=1e-12)
    assert row.high.values == pytest.approx(row.low.values, abs=1e-12)
    others = found.isel(state=[i for i in range(found.sizes["state"]) if i != 1])
    assert np.ptp(others.dependence.values, axis=1) == pytest.approx(0, abs=1e-12)
    assert (others.high > others.low).all()
    assert found.sizes["level"] == LEVELS


def test_importances_are_shares_of_the_variance():
    found = described(lambda z: 0.003 * (2 * z[..., 0] + z[..., 5]))
    importance = found.importance.values
    assert importance[0] > 2 * importance[5] > 0
    assert importance[[i for i in range(len(importance)) if i not in (0, 5)]] == pytest.approx(0)
    alone = described(lambda z: 0.003 * z[..., 3])
    assert float(alone.importance[3]) == pytest.approx(1.0, abs=0.05)
    assert alone.group_importance.sel(group="place") == pytest.approx(1.0, abs=0.05)
    assert alone.group_importance.sel(group="spectrum") == 0


def test_backscatter_is_counted_over_agents_and_over_points():
    place = torch.arange(16) < 2  # the first two of the first row

    def policy(z):
        return torch.where(place, -0.01, 0.011).to(z).expand(z.shape[:2])

    found = described(policy, world(interpolation="bilinear"))
    assert float(found.backscatter_agents) == 2 / 16
    # Five points from one to the other and one beyond each, in their row and in the two beside it.
    assert float(found.backscatter_points) == 3 * 7 / N**2
    assert float(found["mean"]) == pytest.approx((14 * 0.011 - 2 * 0.01) / 16)


def test_positivity_of_the_world_is_part_of_the_policy():
    found = described(lambda z: -0.01 + 0 * z[..., 0], world(positivity="clip"))
    assert float(found["mean"]) == 0
    assert float(found.backscatter_points) == 0
    assert (found.importance == 0).all()
    assert found.attrs["formula"] == "c = 0"


@pytest.mark.parametrize("state", ["invariants", "enstrophy", "psiomega"])
def test_other_states_have_what_they_see(state):
    found = described(lambda z: 0.01 + 0.001 * z[..., 0], world(state=state))
    groups = {"invariants": ["place"], "enstrophy": ["spectrum"], "psiomega": ["place"]}
    assert found.group.values.tolist() == groups[state]


def test_the_description_repeats_and_is_kept_in_a_file(tmp_path):
    policy = lambda z: 0.01 * torch.sin(z[..., 0] + z[..., 6])  # noqa: E731
    first, again = described(policy), described(policy)
    assert first.identical(again)
    first.to_netcdf(tmp_path / "policy.nc", engine="h5netcdf")


def test_too_few_flows_are_refused():
    agents = world()
    with pytest.raises(InputError, match="vorticity of 2 flows: must be 3 or more"):
        interpret(PolicyClosure(agents, lambda seen, state=None: seen[..., :1]), flows(2))

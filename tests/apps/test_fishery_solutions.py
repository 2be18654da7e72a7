"""Exact dynamic programming and the poor model, against known optima and against simulation."""

import numpy as np
import pytest
import torch

from apps.fishery import ConstantEscapement, evaluate, fit_logistic, model, poor_model_rule, solve
from apps.fishery.approximate_model import LogisticFit
from core.errors import InputError
from simulators.fishery import FisheryState, fixed_points

EXACT = torch.float64


@pytest.fixture(scope="module")
def world():
    return model(1, dtype=EXACT)


@pytest.fixture(scope="module")
def finite(world):
    return solve(world)


def earned(world, rule, replicates=4000):
    returns = evaluate(world, rule, replicates=replicates, seed=5)["return"].values
    return returns.mean(), returns.std() / np.sqrt(replicates)


@pytest.mark.parametrize("gamma", [0.9, 0.95, 0.99])
def test_the_golden_rule_of_logistic_growth(gamma):
    """Clark (1990): without noise the discounted optimum keeps the escapement where 1 + g'(E) = 1 / gamma."""
    calm = model(1, parameters={"beta_H": 0.0}, sigma=0.0, dtype=EXACT)
    solution = solve(calm, mode="discounted", gamma=gamma, quadrature=1)
    assert solution.constant_escapement() == pytest.approx((2 - 1 / gamma) / 2, abs=0.004)


def test_value_is_what_the_policy_earns(world, finite):
    mean, error = earned(world, finite.policy())
    assert finite.value_at(0.7) == pytest.approx(2.07, abs=0.01)
    assert mean == pytest.approx(finite.value_at(0.7), abs=3 * error)


@pytest.mark.parametrize(("sigma", "quadrature"), [(0.0, 9), (0.001, 9), (0.004, 9), (0.05, 1)])
def test_the_value_stays_what_can_be_earned_where_noise_is_not_resolved(sigma, quadrature):
    """Near a tipping point the value without noise has a jump, at which the recursion must not blow up."""
    calm = model(1, sigma=sigma if quadrature > 1 else 0.0, dtype=EXACT)
    value = solve(model(1, sigma=sigma, dtype=EXACT), quadrature=quadrature).value_at(0.7)
    best = max(earned(calm, ConstantEscapement([s]), 100)[0] for s in (0.45, 0.48, 0.52))
    assert best - 0.02 < value < 1.3 * best


def test_the_stationary_rule_is_constant_escapement(world):
    solution = solve(world, mode="stationary")
    assert solution.constant_escapement() == pytest.approx(0.519, abs=0.005)
    population = torch.linspace(0.35, 1.5, 200, dtype=EXACT).unsqueeze(1)
    left = population * (1 - solution.policy()(population))
    expected = population.clamp(max=solution.constant_escapement())
    np.testing.assert_allclose(left, expected, atol=0.005)


def test_a_stock_beyond_rescue_is_taken(world):
    """Below the unstable equilibrium the stock is lost either way, and a late extinction costs little: take all."""
    rule = solve(world, mode="stationary").policy()
    unstable = max(x for x, kept in zip(*_equilibria(world), strict=True) if not kept)
    below = torch.tensor([[0.6 * unstable]], dtype=EXACT)
    assert float(rule(below)) > 0.9


def _equilibria(world):
    diagram = fixed_points(world.parameters, 4000)
    near = abs(diagram.beta_H - world.parameters.beta_H) < 2e-3
    return diagram.population[near], diagram.stable[near]


def test_no_escapement_beats_the_optimum(world, finite):
    for escapement in (0.3, 0.45, 0.52, 0.6, 0.8):
        mean, error = earned(world, ConstantEscapement([escapement]), 2000)
        assert mean < finite.value_at(0.7) + 3 * error


def test_the_value_converges_with_the_grid(world, finite):
    fine = solve(world, nodes=1601, quadrature=15).value_at(0.7)
    errors = [abs(solve(world, nodes=n, quadrature=15).value_at(0.7) - fine) for n in (51, 201, 801)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def test_the_last_year_takes_all_and_the_first_does_not(finite):
    rule, population = finite.policy(), torch.tensor([[0.8]], dtype=EXACT)

    def mortality(year):
        return float(rule(population, FisheryState(population, torch.tensor([float(year)]))))

    # Not quite all in the last year: an extinction would still cost 0.5, more than the rest of the stock.
    assert 0.85 < mortality(199) < 0.95
    assert mortality(0) < 0.5
    with pytest.raises(InputError, match="needs the world's state"):
        rule(population)


def test_the_dataset_holds_the_policy(world):
    data = solve(world, mode="stationary").to_dataset()
    mortality = data["mortality"].sel(population=slice(0.35, None)).values[0]
    assert (np.diff(mortality) >= -1e-12).all()
    assert mortality[0] == 0
    assert mortality[-1] == pytest.approx(1 - 0.519 / 2.5, abs=0.005)
    assert data.attrs["escapement"] == pytest.approx(0.519, abs=0.005)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solve(model(3)), "takes one-species models"),
        (lambda: solve(model(1, cost=0.1)), "cost and weights must be absent"),
        (lambda: solve(model(1), nodes=2), "nodes = 2: must be between 16 and 10001"),
        (lambda: solve(model(1), quadrature=0), "quadrature = 0: must be between 1 and 101"),
        (lambda: solve(model(1), gamma=1.0), "gamma = 1.0: must be between 0 and 1"),
        (lambda: solve(model(1), mode="slow"), "must be finite, stationary or discounted"),
        (lambda: solve(model(1, threshold=0.0)), "threshold"),
        (lambda: fit_logistic(model(1), episodes=1, years=1), "fewer than 3 years of data"),
    ],
)
def test_what_cannot_be_solved_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_logistic_world_is_recovered():
    truth = model(1, parameters={"beta_H": 0.0, "r": 0.6, "K": 0.9}, dtype=EXACT)
    fit = fit_logistic(truth, episodes=400, years=50, seed=1)
    assert fit.r == pytest.approx(0.6, rel=0.05)
    assert abs(fit.K - 0.9) < 0.02


def test_the_exact_solution_of_a_poor_model_is_ruinous(world):
    """Near a tipping point the fitted logistic harvests the stock to extinction, whatever the data's seed."""
    for seed in range(3):
        data = evaluate(world, poor_model_rule(world, seed=seed), replicates=500, seed=3)
        assert not data["survived"].any()
        assert float(data["return"].mean()) < -10


def test_the_right_model_is_not_ruinous():
    truth = model(1, parameters={"beta_H": 0.0}, dtype=EXACT)
    poor = evaluate(truth, poor_model_rule(truth, seed=0), replicates=500, seed=3)["return"].mean()
    exact = evaluate(truth, solve(truth, mode="stationary").policy(), replicates=500, seed=3)["return"].mean()
    assert float(poor) > 0.97 * float(exact)


def test_the_fitted_world_has_the_true_noise(world):
    fitted = LogisticFit(0.3, 0.6, 10).world(world)
    assert (fitted.sigma, fitted.threshold, fitted.penalty) == (world.sigma, world.threshold, world.penalty)
    assert fitted.parameters.beta_H == 0

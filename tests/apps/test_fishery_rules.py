"""Harvest rules, their tuning, and the published figures that they must reproduce."""

import numpy as np
import pytest
import torch

from apps.fishery import ConstantEscapement, ConstantMortality, PrecautionaryRamp, evaluate, model, tune, tuned_rule
from apps.fishery.evaluation import digest, policy_slices
from apps.fishery.tuning import search
from core.errors import InputError
from core.simulation import draw, episode_totals

POPULATIONS = torch.tensor([[0.2, 0.6, 0.9], [0.5, 0.4, 0.3], [1.5, 0.0, 1.0]])


def test_constant_mortality_is_constant():
    assert ConstantMortality([0.3, 0.1])(POPULATIONS).tolist() == [[pytest.approx(0.3), pytest.approx(0.1)]] * 3


def test_constant_escapement_leaves_its_escapement():
    left = POPULATIONS[:, :2] * (1 - ConstantEscapement([0.4, 0.5])(POPULATIONS))
    np.testing.assert_allclose(left, torch.minimum(POPULATIONS[:, :2], torch.tensor([0.4, 0.5])), atol=1e-6)


def test_the_ramp_rises_from_limit_to_trigger():
    ramp = PrecautionaryRamp(0.2, 0.6, [0.4])
    population = torch.tensor([[0.0], [0.2], [0.3], [0.4], [0.6], [2.0]])
    np.testing.assert_allclose(ramp(population)[:, 0], [0, 0, 0.1, 0.2, 0.4, 0.4], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstantMortality([1.2]), "constant_mortality.mortality = [1.2]: must be"),
        (lambda: ConstantMortality([-0.1, 0.2]), "each in [0, 1]"),
        (lambda: ConstantMortality([float("nan")]), "each in [0, 1]"),
        (lambda: ConstantMortality(0.3), "a list of numbers"),
        (lambda: ConstantEscapement([-0.1]), "each at least 0"),
        (lambda: PrecautionaryRamp(0.5, 0.5, [0.3]), "must be 0 <= x1 < x2"),
        (lambda: PrecautionaryRamp(0.1, 0.5, [1.3]), "precautionary_ramp.y2"),
        (lambda: tune(model(1), "magic"), "rule = 'magic': must be one of constant_mortality"),
        (lambda: tune(model(1), "constant_mortality", points=1), "= 1 points: must be at least 2"),
        (lambda: tune(model(1), "constant_mortality", replicates=0), "replicates = 0: must be at least 1"),
    ],
)
def test_impossible_rules_are_refused(make, message):
    with pytest.raises(InputError) as refusal:
        make()
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_grid_search_equals_one_rule_at_a_time():
    """Every grid point meets the very same replicates, in whatever block it is computed."""
    world, seed = model(3, dtype=torch.float64), 7
    draws = draw(world, 60, 30, seed)
    axes = {"mortality_X": np.linspace(0, 0.4, 5), "mortality_Y": np.linspace(0, 0.3, 4)}
    grid = search(world, ConstantMortality, axes, draws, lambda p: -p.sum(1))
    for i, x in enumerate(axes["mortality_X"]):
        for j, y in enumerate(axes["mortality_Y"]):
            alone = episode_totals(world, ConstantMortality([x, y]), draws).reward.mean()
            assert grid.mean[i, j] == pytest.approx(float(alone), abs=1e-12)
    best = np.unravel_index(grid.mean.argmax(), grid.mean.shape)
    assert grid.best == {"mortality_X": axes["mortality_X"][best[0]], "mortality_Y": axes["mortality_Y"][best[1]]}


def test_a_tie_goes_to_the_cautious_rule():
    world = model(1, sigma=0.0, initial_std=0.0)
    draws = draw(world, 5, 2, 0)
    # Escapements above any population are all the same rule: no harvest.
    axes = {"escapement_X": np.linspace(1.0, 2.0, 4)}
    assert search(world, ConstantEscapement, axes, draws, lambda p: p.sum(1)).best == {"escapement_X": 2.0}
    assert search(world, ConstantEscapement, axes, draws, lambda p: -p.sum(1)).best == {"escapement_X": 1.0}


def test_the_best_constant_mortality_of_logistic_growth_is_known():
    """Without noise a long harvest settles at the equilibrium yield, whose maximum has a closed form."""
    world = model(1, parameters={"beta_H": 0.0}, sigma=0.0, initial_std=0.0, dtype=torch.float64)
    tuned = tune(world, "constant_mortality", replicates=1, points=251, horizon=2000)
    # E = (1 - M) N and N = E + E(1 - E) give E = 2 - 1/(1 - M) at equilibrium; the yield is M E / (1 - M).
    shares = np.linspace(0, 0.5, 251)
    best = shares[np.argmax(shares / (1 - shares) * (2 - 1 / (1 - shares)))]
    assert float(tuned["mortality_X"]) == pytest.approx(best, abs=0.003)


def test_a_tuned_rule_has_the_tuned_numbers():
    tuned = tune(model(3), "precautionary_ramp", replicates=10, points=6, horizon=40)
    rule = tuned_rule(tuned)
    assert (rule.x1, rule.x2) == (float(tuned["x1"]), float(tuned["x2"]))
    assert rule.y2 == [float(tuned["y2_X"]), float(tuned["y2_Y"])]
    assert np.isnan(tuned["mean_return"].values[3, 3])  # x1 = x2 is no ramp
    mortality = tune(model(1), "constant_mortality", replicates=10, points=6, horizon=40)
    assert tuned_rule(mortality, 0.5).mortality == [0.5 * float(mortality["mortality_X"])]
    with pytest.raises(InputError, match="only constant_mortality has fractions"):
        tuned_rule(tuned, 0.9)


PUBLISHED = [
    (1, ConstantMortality([0.01]), 0.882, 0.15, 0.56),
    (1, ConstantEscapement([0.51]), 1.985, 0.15, 0.85),
    (2, ConstantMortality([0.29]), 19.77, 0.25, 1.00),
    (2, ConstantEscapement([0.22]), 19.52, 0.25, 0.99),
    (3, ConstantMortality([0.30, 0.25]), 62.30, 2.0, 0.75),
    (3, ConstantEscapement([0.38, 0.52]), 48.36, 2.0, 0.57),
    (4, ConstantMortality([0.13, 0.27]), 44.52, 2.0, 0.80),
    (4, ConstantEscapement([0.52, 0.38]), 36.76, 2.0, 0.54),
]


@pytest.mark.parametrize(("number", "rule", "published", "tolerance", "survival"), PUBLISHED)
def test_published_rules_earn_their_published_returns(number, rule, published, tolerance, survival):
    """Published rules on fresh episodes: means within the tolerance, give or take 4 standard errors of ours; survival
    within 4 standard errors of both samples.
    """
    data = evaluate(model(number, dtype=torch.float64), rule, replicates=2000, seed=99)
    margin = tolerance + 4 * float(data["return_paper"].std()) / np.sqrt(2000)
    assert float(data["return_paper"].mean()) == pytest.approx(published, abs=margin)
    share = float(data["frac_full"].mean())
    error = np.sqrt(max(share * (1 - share), 0.01) * (1 / 100 + 1 / 2000))
    assert share == pytest.approx(survival, abs=4 * error)


def test_the_measures_of_an_episode_by_definition():
    data = evaluate(model(3, dtype=torch.float64), ConstantMortality([0.3, 0.28]), replicates=300, seed=1)
    lost = data["terminated"].values
    assert 0 < lost.mean() < 1
    length = data["length"].values
    rewards = data["reward"].values
    last = rewards[np.arange(300), length - 1]
    np.testing.assert_allclose(data["return"], rewards.sum(1), rtol=1e-12)
    np.testing.assert_allclose(data["return_paper"], rewards.sum(1) - last, rtol=1e-9)
    np.testing.assert_array_equal(data["survived"], ~lost)
    np.testing.assert_array_equal(data["frac_full"], length == 200)
    harvest = data["harvest"].values.sum((1, 2))
    np.testing.assert_allclose(data["annual_catch"], harvest / 200, rtol=1e-12)
    np.testing.assert_allclose(rewards.sum(1)[lost], (harvest - 100 / length)[lost], rtol=1e-9)


def test_a_rule_is_measured_on_other_episodes_than_tuned_on():
    """Equal seeds, different purposes: the streams of tuning and evaluation are disjoint."""
    world = model(1, dtype=torch.float64)
    tuned = tune(world, "constant_escapement", points=3, replicates=50, horizon=20, seed=4)
    data = evaluate(world, tuned_rule(tuned), replicates=50, horizon=20, seed=4)
    assert abs(float(data["return"].mean()) - tuned.attrs["in_sample"]) > 1e-6


def test_a_digest_keeps_sums_bands_and_some_episodes():
    data = evaluate(model(3), ConstantMortality([0.5, 0.5]), replicates=50, horizon=60, seed=1)
    kept = digest(data, 5)
    assert kept["population"].sizes == {"trace": 5, "time": 60, "species": 3}
    assert kept["return"].sizes == {"rep": 50}
    alive = data["alive"].values
    for year in (0, 5):
        expected = np.median(data["population"].values[alive[:, year], year], axis=0)
        np.testing.assert_allclose(kept["population_quantile"].sel(quantile=0.5).values[year], expected, rtol=1e-6)
    last = int(data["length"].max())
    assert last < 60
    assert np.isnan(kept["population_quantile"].values[:, last:]).all()


def test_slices_show_the_rule():
    slices = policy_slices(model(3), ConstantEscapement([0.4, 0.5]))
    axis = slices["slice_population"].values
    for name, escapement in (("X", 0.4), ("Y", 0.5)):
        expected = np.clip(1 - escapement / np.maximum(axis, 1e-9), 0, 1)
        for k in range(3):
            np.testing.assert_allclose(slices["slice_mortality"].sel(harvested=name)[:, k], expected, atol=1e-6)

"""The fishery against its equations, its known behaviour, and the libraries that will drive it."""

import math
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from core.errors import InputError
from core.simulation import GymEnv, GymVectorEnv, SB3VecEnv, rollout
from simulators.fishery import (
    VARIANTS,
    YEARS,
    Fishery,
    FisheryNoise,
    FisheryState,
    OneSpecies,
    ThreeSpecies,
    fixed_points,
    growth,
    model,
    stock_world,
)

EXACT = torch.float64


def state_of(*populations, year=0.0):
    population = torch.tensor([populations], dtype=EXACT)
    return FisheryState(population, torch.full((1,), year, dtype=EXACT))


def noise_of(*normals):
    return FisheryNoise(torch.tensor([normals], dtype=EXACT))


def action_of(*mortalities):
    return torch.tensor([mortalities], dtype=EXACT)


def test_one_year_of_three_species_by_hand():
    """Harvest first, growth on what is left with all right-hand sides simultaneous, noise on what is left."""
    m = (0.2, 0.1)
    n = (0.6, 0.5, 0.9)
    xi = (0.3, -1.2, 0.7)
    x, y, z = n[0] * (1 - m[0]), n[1] * (1 - m[1]), n[2]
    eaten_x, eaten_y = (0.3 * z * v * v / (0.3**2 + v * v) for v in (x, y))
    expected = (
        x + x * (1 - x) - eaten_x - 0.1 * x * y + 0.1 * x * xi[0],
        y + y * (1 - y) - 1.1 * eaten_y - 0.1 * x * y + 0.1 * y * xi[1],
        z + z * (0.1 * (x + 1.1 * y) - 0.1) + 0.1 * z * xi[2],
    )
    step = model(3, dtype=EXACT).step(state_of(*n, year=7.0), action_of(*m), noise_of(*xi))
    np.testing.assert_allclose(step.state.population[0], expected, rtol=1e-14)
    assert float(step.state.year) == 8
    assert float(step.reward) == pytest.approx(m[0] * n[0] + m[1] * n[1], rel=1e-14)
    assert not bool(step.terminated)


def test_one_year_of_one_species_by_hand():
    after = 0.7 * 0.9
    expected = after + after * (1 - after) - 0.25 * after**2 / (0.01 + after**2) + 0.05 * after * 0.5
    step = model(1, dtype=EXACT).step(state_of(0.7), action_of(0.1), noise_of(0.5))
    assert float(step.state.population) == pytest.approx(expected, rel=1e-14)
    assert float(step.reward) == pytest.approx(0.07, rel=1e-14)


def test_the_unharvested_equilibrium_and_its_eigenvalues():
    world = model(3, sigma=0.0, initial_std=0.0, dtype=EXACT)
    data = rollout(world, lambda o, s: torch.zeros_like(o[:, :2]), 1500, 1)
    equilibrium = torch.tensor(data["population"].values[0, -1])
    np.testing.assert_allclose(equilibrium, (0.5260, 0.4309, 1.0013), atol=5e-5)
    jacobian = torch.eye(3, dtype=EXACT) + torch.autograd.functional.jacobian(
        lambda n: growth(world.parameters, n), equilibrium
    )
    values = torch.linalg.eigvals(jacobian)
    values = values[values.real.argsort()]
    np.testing.assert_allclose(values.real, (0.7597, 0.8410, 0.8410), atol=5e-5)
    np.testing.assert_allclose(values.imag.abs(), (0, 0.1427, 0.1427), atol=5e-5)
    assert 2 * math.pi / float(values[1].angle().abs()) == pytest.approx(37.4, abs=0.1)


def test_all_three_species_coexist_without_harvest():
    data = rollout(model(3), lambda o, s: torch.zeros_like(o[:, :2]), YEARS, 1000, seed=0)
    assert not data["terminated"].any()
    late = data["population"].values[:, 100:].reshape(-1, 3)
    np.testing.assert_allclose(late.mean(0), (0.536, 0.467, 0.949), atol=0.02)
    low, high = np.quantile(late, (0.05, 0.95), axis=0)
    np.testing.assert_allclose(low, (0.30, 0.24, 0.60), atol=0.03)
    np.testing.assert_allclose(high, (0.75, 0.70, 1.38), atol=0.05)


def test_an_extinction_costs_a_hundred_over_the_year():
    world = model(1, dtype=EXACT)
    step = world.step(state_of(0.7, year=9.0), action_of(1.0), noise_of(0.0))
    assert bool(step.terminated)
    assert float(step.reward) == pytest.approx(0.7 - 100 / 10)
    at_threshold = Fishery(OneSpecies(beta_H=0.0), 1, 0.0, initial=(0.7,), threshold=0.2, dtype=EXACT)
    just = (2 - math.sqrt(4 - 4 * 0.2)) / 2  # grows to exactly the threshold
    assert bool(at_threshold.step(state_of(just - 1e-9), action_of(0.0), noise_of(0.0)).terminated)
    assert not bool(at_threshold.step(state_of(just + 1e-9), action_of(0.0), noise_of(0.0)).terminated)


def test_harvest_is_taken_from_the_population():
    """What is not harvested and what is add up to what was there, and only the fleet's species are touched."""
    world = model(3, dtype=EXACT)
    still = Fishery(
        ThreeSpecies(r_x=1e-12, r_y=1e-12, beta=0.0, c_xy=0.0, b=0.0, d_z=0.0),
        2,
        0.0,
        initial=(0.5, 0.5, 0.7),
        dtype=EXACT,
    )
    state = world.reset(200, torch.Generator().manual_seed(0))
    action = torch.rand(200, 2, generator=torch.Generator().manual_seed(1), dtype=EXACT) * 1.4 - 0.2
    step = still.step(state, action, still.noise(200, torch.Generator()))
    total = step.state.population[:, :2] + step.info["harvest"]
    np.testing.assert_allclose(total, state.population[:, :2], atol=1e-10)
    np.testing.assert_allclose(step.state.population[:, 2], state.population[:, 2], atol=1e-10)
    assert torch.equal(step.info["mortality"], action.clamp(0, 1))


def test_costs_and_weights_enter_the_reward():
    world = model(3, weights=(2.0, 0.5), cost=0.3, dtype=EXACT)
    step = world.step(state_of(0.6, 0.5, 0.9), action_of(0.2, 0.1), noise_of(0, 0, 0))
    assert float(step.reward) == pytest.approx(2 * 0.12 + 0.5 * 0.05 - 0.3 * 0.3)


def test_initial_populations_scatter_as_published():
    population = model(3, dtype=EXACT).reset(40_000, torch.Generator().manual_seed(0)).population
    np.testing.assert_allclose(population.mean(0), (0.5, 0.5, 0.7), atol=4 * 0.02 / 200)
    np.testing.assert_allclose(population.std(0), 0.02, rtol=0.02)


def test_wild_noise_leaves_no_nan():
    data = rollout(model(3, sigma=8.0), lambda o, s: torch.full_like(o[:, :2], 0.1), 30, 500, seed=0)
    assert bool(data["terminated"].all())
    for name in ("population", "harvest", "reward"):
        assert np.isfinite(data[name]).all()
    assert float(data["population"].min()) >= 0


def test_gradients_pass_through_the_world():
    """d reward / d mortality is the population, and next year's population falls with this year's harvest."""
    world, action = model(1, dtype=EXACT), action_of(0.1).requires_grad_()
    step = world.step(state_of(0.7), action, noise_of(0.0))
    (slope,) = torch.autograd.grad(step.reward.sum(), action, retain_graph=True)
    assert float(slope) == pytest.approx(0.7)
    (slope,) = torch.autograd.grad(step.state.population.sum(), action)
    assert float(slope) < 0


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_variants_start_from_the_base_model_and_depart_from_it(variant):
    """Drifts and fluctuations are absent at t = 0 (except where the structure itself differs) and present later."""
    harvested = 1 if variant == "y_abiotic" else 2
    base, changed = model(3, dtype=EXACT, harvested=harvested), model(3, variant=variant, dtype=EXACT)

    def after(world, year):
        return world.step(state_of(0.6, 0.5, 0.9, year=year), action_of(*[0.1] * harvested), noise_of(0, 0, 0)).state

    same = torch.allclose(after(base, 0.0).population, after(changed, 0.0).population)
    structural = {"k_limit", "k_limit_rx_drift", "y_abiotic", "z_abiotic"}
    assert same == (variant not in structural)
    assert not torch.allclose(after(base, 40.0).population, after(changed, 40.0).population)


@pytest.mark.parametrize(
    ("variant", "year", "name", "value"),
    [
        ("rx_drift", 60.0, "r_x", 0.7),
        ("rx_drift", 180.0, "r_x", 0.5),
        ("v0_drift", 75.0, "c", 0.15),
        ("v0_drift", 140.0, "c", 0.1),
        ("D_drift", 50.0, "D", 1.1 - 0.05),
        ("cV_drift", 50.0, "c_xy", 0.15),
        ("cV_drift", 190.0, "c_xy", 0.2),
        ("beta_drift", 50.0, "beta", 0.45),
        ("k_fluct", 12.5, "K_x", 1.1),
        ("coupling_fluct", 12.5, "c", math.sqrt(0.09 * 1.1)),
        ("comp_fluct", 37.5, "c_xy", 0.09),
    ],
)
def test_a_variant_is_the_model_with_the_parameter_of_its_year(variant, year, name, value):
    drifting = model(3, variant=variant, dtype=EXACT)
    fixed = model(3, parameters={name: value}, dtype=EXACT)
    args = action_of(0.1, 0.2), noise_of(0.4, -0.3, 0.9)
    ours = drifting.step(state_of(0.6, 0.5, 0.9, year=year), *args).state.population
    theirs = fixed.step(state_of(0.6, 0.5, 0.9, year=year), *args).state.population
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_forced_species_follow_their_schedule_and_cannot_go_extinct():
    data = rollout(model(3, variant="y_abiotic", dtype=EXACT), lambda o, s: torch.zeros_like(o[:, :1]), 100, 20, seed=0)
    years = np.arange(100)
    np.testing.assert_allclose(
        data["population"].sel(species="Y")[0], 0.4 + 0.4 * np.sin(2 * np.pi * years / 50), atol=1e-12
    )
    assert float(data["population"].sel(species="Y").min()) < 0.05
    assert not data["terminated"].any()
    predator = rollout(
        model(3, variant="z_abiotic", dtype=EXACT), lambda o, s: torch.zeros_like(o[:, :2]), 51, 3, seed=0
    )
    z = predator["population"].sel(species="Z").values
    np.testing.assert_allclose(z[:, 1] / z[:, 0], 1.02, rtol=1e-12)


def test_model_4_is_model_3_with_a_falling_growth_rate():
    noise, action = noise_of(0.1, 0.2, 0.3), action_of(0.1, 0.1)
    for year, r_x in ((0.0, 1.0), (100.0, 0.5), (300.0, 0.5)):
        ours = model(4, dtype=EXACT).step(state_of(0.5, 0.5, 0.7, year=year), action, noise)
        theirs = model(3, parameters={"r_x": r_x}, dtype=EXACT).step(state_of(0.5, 0.5, 0.7, year=year), action, noise)
        assert torch.allclose(ours.state.population, theirs.state.population, rtol=1e-13)


def test_migration_conserves_and_alpha_scales_the_predator():
    pair = torch.tensor([0.6, 0.4, 0.9], dtype=EXACT)
    base, moving = ThreeSpecies(), ThreeSpecies(tau_xy=0.1, tau_yx=0.05)
    difference = growth(moving, pair) - growth(base, pair)
    np.testing.assert_allclose(difference, (-0.04, 0.04, 0.0), atol=1e-12)
    slow = model(3, parameters={"alpha": 0.25}, dtype=EXACT).step(state_of(*pair), action_of(0, 0), noise_of(0, 0, 1.0))
    fast = model(3, dtype=EXACT).step(state_of(*pair), action_of(0, 0), noise_of(0, 0, 1.0))
    gains = [float(s.state.population[0, 2] - 0.9) for s in (slow, fast)]
    assert gains[0] == pytest.approx(gains[1] / 4, rel=1e-12)


def test_surplus_production_has_its_textbook_maximum():
    """Pella and Tomlinson: the largest surplus is r K / (p+1)^((p+1)/p), at K (p+1)^(-1/p)."""
    for p in (0.5, 1.0, 2.3):
        biology = OneSpecies(r=0.4, K=1.0, beta_H=0.0, exponent=p)
        x = torch.linspace(0.01, 1, 20_001, dtype=EXACT).unsqueeze(1)
        surplus = growth(biology, x)[:, 0]
        assert float(surplus.max()) == pytest.approx(0.4 / (p + 1) ** ((p + 1) / p), rel=1e-6)
        assert float(x[surplus.argmax()]) == pytest.approx((p + 1) ** (-1 / p), abs=1e-4)
    world = stock_world(0.4, 0.3, 2.3)
    assert world.initial == (0.3,)
    assert world.parameters.beta_H == 0


def test_fixed_points_stay_where_they_are_and_fold_at_the_tipping_points():
    diagram = fixed_points(OneSpecies())
    for i in range(0, 400, 37):
        at = OneSpecies(beta_H=float(diagram.beta_H[i]))
        assert float(growth(at, torch.tensor([diagram.population[i]], dtype=EXACT))) == pytest.approx(0, abs=1e-12)
    low, high = diagram.tipping_points
    assert low < 0.25 < high

    def equilibria(predation):
        # roots of (1 - X)(c^2 + X^2) - predation X
        roots = np.roots([-1, 1, -(0.01 + predation), 0.01])
        return int(((abs(roots.imag) < 1e-9) & (roots.real > 0)).sum())

    assert [equilibria(p) for p in (0.98 * low, 1.02 * low, 0.98 * high, 1.02 * high)] == [1, 3, 3, 1]
    with pytest.raises(InputError, match="exponent = 2"):
        fixed_points(OneSpecies(exponent=2.0))


def test_the_year_is_seen_when_asked_for():
    world = model(3, observe_time=True)
    state = world.reset(4, torch.Generator())
    noise, action = world.noise(4, torch.Generator()), torch.zeros(4, 2)
    for year in range(3):
        observation = world.observe(state)
        assert torch.equal(observation[:, :3], state.population)
        assert observation[:, 3].tolist() == [year] * 4
        state = world.step(state, action, noise).state
    assert world.observation_space.high.tolist() == [2, 2, 2, YEARS]


@pytest.mark.parametrize("number", [1, 3, 4])
def test_the_checkers_of_gymnasium_and_sb3_pass(number):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("Fishery-v0", model=number)
        check_env(env.unwrapped, skip_render_check=True)
        sb3_check_env(env.unwrapped)


def test_every_view_plays_the_same_game():
    """Scaled views of one copy, of a batch, and of SB3 give the world's own rewards."""
    world = model(3)
    single, vector = GymEnv(world, horizon=YEARS), GymVectorEnv(world, 1, horizon=YEARS)
    sb3 = SB3VecEnv(world, 1, horizon=YEARS)
    first, _ = single.reset(seed=11)
    np.testing.assert_array_equal(first, vector.reset(seed=11)[0][0])
    sb3.episodes.seed(11)  # SB3's own seed() gives the world another stream than the learner's
    np.testing.assert_array_equal(first, sb3.reset()[0])
    assert abs(first + 1 - np.array([0.5, 0.5, 0.7])).max() < 0.1
    for _ in range(5):
        before, action = first, np.full(2, -0.5, np.float32)  # mortality 0.25
        first, reward, *_ = single.step(action)
        batched, rewards, *_ = vector.step(action[None])
        seen, earned, *_ = sb3.step(action[None])
        np.testing.assert_array_equal(first, batched[0])
        np.testing.assert_array_equal(first, seen[0])
        assert reward == rewards[0] == earned[0] == pytest.approx(0.25 * (before[0] + before[1] + 2), rel=1e-5)


@pytest.mark.parametrize("make", [GymEnv, lambda w: GymVectorEnv(w, 4), lambda w: SB3VecEnv(w, 4)])
def test_every_view_refuses_actions_that_are_none(make):
    env = make(model(3))
    env.reset()
    copies = getattr(env, "num_envs", None)
    good = np.zeros((2,) if copies is None else (copies, 2), np.float32)
    env.step(good)
    with pytest.raises(InputError, match="not finite"):
        env.step(np.where(np.arange(2) == 1, np.nan, good))
    with pytest.raises(InputError, match=r"action of shape .*: must be "):
        env.step(good[..., :1])


REFUSALS = [
    (lambda: model(5), "model = 5: must be 1, 2, 3 or 4"),
    (lambda: model(1, parameters={"K": 0.0}), "parameters.K = 0.0: must be greater than 0"),
    (lambda: model(3, parameters={"r_x": -1.0}), "parameters.r_x = -1.0: must be greater than 0"),
    (lambda: model(3, parameters={"rx": 1.0}), "parameters.rx: unknown parameter; known here: r_x"),
    (lambda: model(3, sigma=-0.1), "sigma = -0.1: must be at least 0"),
    (lambda: model(3, sigma=float("nan")), "sigma = nan: must be at least 0"),
    (lambda: model(3, threshold=1.0), "threshold = 1.0: must be at least 0 and below the carrying capacity 1.0"),
    (lambda: model(3, variant="warming"), "variant = 'warming': must be one of rx_drift"),
    (lambda: model(1, variant="rx_drift"), "only the three-species models have variants"),
    (lambda: model(4, variant="k_fluct"), "Model 4 is Model 3 with rx_drift"),
    (lambda: model(3, variant="y_abiotic", harvested=2), "a forced species cannot be harvested"),
    (lambda: model(3, harvested=4), "harvested = 4: must be between 1 and 3"),
    (lambda: model(3, initial=(0.5, 0.5)), "must be 3 finite populations above the threshold 0.05"),
    (lambda: model(3, weights=(1.0,)), "must be 2 finite numbers, one a species"),
    (lambda: model(3, sigma=math.inf), "sigma = inf: must be at least 0 and finite"),
    (lambda: model(3, parameters={"K_x": math.inf}), "parameters.K_x = inf: must be greater than 0 and finite"),
    (lambda: stock_world(0.3, 0.03), "finite populations above the threshold 0.05"),
    (lambda: model(3, bound=0.0), "bound = 0.0: must be greater than 0"),
]


@pytest.mark.parametrize(("make", "message"), REFUSALS, ids=[m for _, m in REFUSALS])
def test_impossible_worlds_are_refused(make, message):
    with pytest.raises(InputError) as refusal:
        make()
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_actions_of_another_shape_are_refused():
    world = model(3)
    state, noise = world.reset(4, torch.Generator()), world.noise(4, torch.Generator())
    with pytest.raises(InputError, match=r"action of shape \(4, 3\): must be \(4, 2\)"):
        world.step(state, torch.zeros(4, 3), noise)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_does_not_change_the_world():
    world = model(3, dtype=EXACT)
    state, noise = world.reset(1000, torch.Generator()), world.noise(1000, torch.Generator())
    action = torch.full((1000, 2), 0.2, dtype=EXACT)
    here = world.step(state, action, noise)
    there = world.step(
        FisheryState(state.population.cuda(), state.year.cuda()), action.cuda(), FisheryNoise(noise.growth.cuda())
    )
    np.testing.assert_allclose(there.state.population.cpu(), here.state.population, atol=1e-13)

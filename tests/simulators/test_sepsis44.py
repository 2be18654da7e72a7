"""Sepsis44 against its equations, what is known of its truth, and the libraries that drive it."""

import math
import warnings
from dataclasses import fields, replace

import gymnasium
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import simulators  # noqa: F401 (registers the environments)
from core.errors import InputError
from core.simulation import GymVectorEnv, SB3VecEnv, draw, episode_totals, rollout, tree
from simulators.sepsis import (
    FLUID_ML,
    INDEX,
    STATE,
    VASOPRESSOR,
    Physician,
    Sepsis44,
    TruthDose,
    physician_probabilities,
    sample_actions,
    sirs,
    sofa,
    survival,
    truth_dose,
    truth_scores,
)

EXACT = Sepsis44(dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def always(action):
    return lambda observation, state: torch.full((len(observation),), action)


class Uniform:
    def reset(self, batch):
        self.generator = seeded(1)

    def __call__(self, observation, state):
        return torch.randint(25, (len(observation),), generator=self.generator)


def feature(observation, name):
    return observation[..., INDEX[name]]


# --- the known survival --------------------------------------------------------------------------------------------

POLICIES = {
    "physician": (Physician(), 0.844),
    "a sharper physician": (Physician(0.55, 0.35), 0.867),
    "the doses needed": (TruthDose(), 0.893),
    "no treatment": (always(0), 0.523),
    "fluid level 2": (always(10), 0.660),
    "vasopressor level 2": (always(2), 0.704),
    "at random": (Uniform(), 0.486),
    "all of both": (always(24), 0.0),
}


@pytest.mark.parametrize(("policy", "expected"), POLICIES.values(), ids=POLICIES)
def test_survival_under_eight_policies(policy, expected):
    found = survival(Sepsis44(), policy, 6000, 1)
    # Both figures are estimates from 6000 patients.
    error = math.sqrt(2) * float(found.std()) / math.sqrt(6000)
    assert abs(float(found.mean()) - expected) < 4 * error + 1e-3


def test_survival_is_the_share_of_survivors_with_less_variance():
    world, policy, n = Sepsis44(), always(12), 20_000
    expected = survival(world, policy, n, 1)
    totals = episode_totals(world, policy, draw(world, world.horizon, n, 2))
    alive = (totals.reward > 0).double()
    error = math.sqrt(float(expected.var() + alive.var()) / n)
    assert abs(float(expected.mean() - alive.mean())) < 4 * error
    assert expected.var() < 0.6 * alive.var()


def test_every_policy_meets_the_same_patients():
    first, again, other = (survival(Sepsis44(), always(a), 50, 3) for a in (6, 6, 7))
    assert torch.equal(first, again)
    assert torch.corrcoef(torch.stack([first, other]))[0, 1] > 0.5


# --- the equations -------------------------------------------------------------------------------------------------


def reference_step(s, action, body):
    """The inside of one patient after a step, number by number, and the hazard."""
    fluid, dose = FLUID_ML[action // 5] / 1000, VASOPRESSOR[action % 5]

    def within(x, low, high):
        return min(max(x, low), high)

    d = s["deficit"] + 0.10 + 0.16 * s["infection"] - 0.75 * fluid - 0.10 + 0.08 * body[0]
    g = 0.88 * s["lung_water"] + 0.55 * max(-d, 0) + 0.16 * s["infection"] * fluid + 0.05 * body[1]
    g = max(g, 0)
    w = within(0.92 * s["vasoplegia"] + 0.1 * s["infection"] + 0.06 * body[2], 0, 2.5)
    i = max(s["infection"] * (1 - s["immune"]) + 0.04 * body[3], 0)
    effect = 1.3 * math.sqrt(s["response"]) * dose / (dose + 0.15)
    pressure = within(92 - 22 * max(w - effect, 0) - 14 * max(d, 0) + 4 * max(-d, 0), 30, 130)
    h = max(68 - pressure, 0) / 12
    urine = max(340 * math.exp(-0.9 * h - 0.5 * s["kidney"]) * (1 - 0.25 * within(d, -1, 2)), 0)
    need = within((w - 0.3) / (1.3 * math.sqrt(s["response"])), 0, 0.82)
    ischaemia = max(dose - 1.25 * 0.15 * need / (1 - need) - 0.03, 0)
    q = s["lactate"]
    q = within(q + 0.7 * h - 0.28 * (q - 1.1) + 2.2 * ischaemia + 0.15 * g + 0.15 * body[4], 0.5, 18)
    k = max(0.97 * s["kidney"] + 0.16 * h + 0.25 * ischaemia + 0.04 * body[5], 0)
    liver = max(0.97 * s["liver"] + 0.08 * h + 0.05 * i + 0.04 * body[6], 0)
    hazard = -6.1 + 0.33 * q + 0.5 * k + 0.45 * g + 0.25 * liver + 0.012 * (s["age"] - 65)
    after = {
        **{"deficit": d, "lung_water": g, "vasoplegia": w, "infection": i, "lactate": q, "kidney": k, "liver": liver},
        **{"ventilated": 1.0 if g > 1.3 else s["ventilated"], "input_total": s["input_total"] + 1000 * fluid},
        **{"output_total": s["output_total"] + urine, "vasopressor": action % 5, "step": s["step"] + 1},
    }
    return {**s, **after}, 1 / (1 + math.exp(-hazard)), pressure


def test_a_step_follows_the_equations():
    generator, state = seeded(3), EXACT.reset(40, seeded(2))
    numbers = [f.name for f in fields(state) if getattr(state, f.name).dim() == 1]
    patients = [{name: float(getattr(state, name)[b]) for name in numbers} for b in range(40)]
    for _ in range(6):
        noise = EXACT.noise(40, generator)
        action = torch.randint(25, (40,), generator=generator)
        step = EXACT.step(state, action, noise)
        for b in range(40):
            patients[b], hazard, pressure = reference_step(patients[b], int(action[b]), noise.body[b].tolist())
            assert float(step.info["hazard"][b]) == pytest.approx(hazard, rel=1e-12)
            assert float(step.info["pressure"][b]) == pytest.approx(pressure, rel=1e-12)
            for name, value in patients[b].items():
                assert float(getattr(step.state, name)[b]) == pytest.approx(value, rel=1e-11, abs=1e-11), name
        state = step.state


def test_without_noise_the_features_follow_from_the_inside():
    state, noise = EXACT.reset(200, seeded()), EXACT.noise(200, seeded(1))
    quiet = replace(state, idiosyncrasy=torch.zeros_like(state.idiosyncrasy))
    step = EXACT.step(quiet, torch.full((200,), 7), replace(noise, observation=torch.zeros_like(noise.observation)))
    inside, seen = step.state, {name: feature(step.state.observation, name) for name in STATE}
    torch.testing.assert_close(seen["MeanBP"], step.info["pressure"])
    torch.testing.assert_close(seen["SysBP"], (1.42 * seen["MeanBP"]).clamp(min=20))
    torch.testing.assert_close(seen["Arterial_lactate"], inside.lactate)
    torch.testing.assert_close(seen["output_4hourly"], inside.output_total - quiet.output_total)
    torch.testing.assert_close(seen["cumulated_balance"], inside.input_total - inside.output_total)
    torch.testing.assert_close(seen["paO2"], seen["FiO2_1"] * seen["PaO2_FiO2"])
    torch.testing.assert_close(seen["HCO3"], 24 - 1.3 * (inside.lactate - 1.2))
    torch.testing.assert_close(seen["BUN"].log(), math.log(18) + 0.35 * inside.kidney)
    torch.testing.assert_close(seen["INR"], 1.1 + 0.22 * inside.liver)
    torch.testing.assert_close(seen["Shock_Index"], seen["HR"] / seen["SysBP"])
    assert torch.equal(seen["GCS"], seen["GCS"].round())
    dose = torch.full_like(inside.deficit, VASOPRESSOR[2])
    organs = (seen[name] for name in ("PaO2_FiO2", "Platelets_count", "Total_bili", "MeanBP"))
    assert torch.equal(seen["SOFA"], sofa(*organs, dose, seen["GCS"], seen["Creatinine"], seen["output_4hourly"]))
    signs = ("Temp_C", "HR", "RR", "paCO2", "WBC_count")
    assert torch.equal(seen["SIRS"], sirs(*(seen[name] for name in signs)))


def test_a_part_of_the_deviation_stays_with_the_patient():
    """Chloride depends on nothing inside: of two steps only 0.36 of the variance is shared."""
    world, n = Sepsis44(), 40_000
    state = world.reset(n, seeded())
    after = world.step(state, torch.zeros(n, dtype=torch.int64), world.noise(n, seeded(1))).state
    pair = torch.stack([feature(x.observation, "Chloride") for x in (state, after)])
    assert float(torch.corrcoef(pair)[0, 1]) == pytest.approx(0.36, abs=4 / math.sqrt(n))
    assert pair.std(1).tolist() == pytest.approx([4, 4], rel=0.02)


def test_admissions_have_the_stated_laws():
    n = 40_000
    state = Sepsis44().reset(n, seeded())
    moments = {
        "infection": (3 * 0.33, 3 * 0.33**2),
        "response": (1.0, 4 * 0.25**2),
        "input_total": (3000.0, 2 * 1500.0**2),
        "output_total": (1600.0, 2 * 800.0**2),
        "deficit": (0.8, 0.36),
        "male": (0.56, 0.56 * 0.44),
        "ventilated": (0.3, 0.21),
    }
    for name, (mean, variance) in moments.items():
        values = getattr(state, name).double()
        assert abs(float(values.mean()) - mean) < 4 * math.sqrt(variance / n), name
        assert float(values.var()) == pytest.approx(variance, rel=0.08), name


# --- deaths, rewards and twins -------------------------------------------------------------------------------------


def test_an_episode_pays_the_outcome_once():
    world = Sepsis44(horizon=5)
    totals = episode_totals(world, Physician(), draw(world, 9, 4000, 1))
    assert bool(totals.terminated.all())
    assert torch.equal(totals.reward, totals.last_reward)
    assert set(totals.reward.tolist()) == {-1.0, 1.0}
    assert bool((totals.length[totals.reward > 0] == 5).all())
    assert int(totals.length[totals.reward < 0].min()) < 5


@pytest.mark.parametrize(("uniform", "dies"), [(1.0, False), (0.0, True)])
def test_the_uniform_of_death_switches_it_off_or_on(uniform, dies):
    world = Sepsis44()
    state, noise = world.reset(100, seeded()), world.noise(100, seeded(1))
    step = world.step(state, torch.full((100,), 24), replace(noise, death=torch.full((100,), uniform)))
    assert bool((step.info["died"] == dies).all())
    assert bool((step.reward == (-1.0 if dies else 0.0)).all())


def test_twins_differ_by_their_treatment_alone():
    state, noise = EXACT.reset(300, seeded()), EXACT.noise(300, seeded(1))
    little, much = (EXACT.step(state, torch.full((300,), a), noise).state for a in (5, 15))
    again = EXACT.step(state, torch.full((300,), 5), noise).state
    assert torch.equal(again.observation, little.observation)
    torch.testing.assert_close(little.deficit - much.deficit, torch.full((300,), 0.75 * 0.29).double())
    for name in ("infection", "vasoplegia", "age", "weight", "idiosyncrasy"):
        assert torch.equal(getattr(little, name), getattr(much, name))
    untouched = [INDEX[name] for name in ("Chloride", "Magnesium", "Temp_C", "Weight_kg", "WBC_count")]
    assert torch.equal(little.observation[:, untouched], much.observation[:, untouched])
    assert bool((feature(much.observation, "MeanBP") >= feature(little.observation, "MeanBP")).all())


@pytest.mark.parametrize("world", [Sepsis44(), EXACT], ids=["float32", "float64"])
def test_a_batch_equals_its_single_copies(world):
    n = 37
    state, noise, action = world.reset(n, seeded()), world.noise(n, seeded(1)), torch.arange(n) % 25
    whole = world.step(state, action, noise)
    for b in range(n):
        row = slice(b, b + 1)
        one = world.step(tree.take(state, row), action[row], tree.take(noise, row))
        assert torch.equal(one.reward, whole.reward[row])
        for name, value in tree.named_tensors(one.state):
            assert torch.equal(value, dict(tree.named_tensors(whole.state))[name][row]), name


@pytest.mark.parametrize("policy", [always(24), always(0), Uniform()], ids=["all", "nothing", "random"])
def test_what_is_seen_lies_in_the_space_and_is_read_alike_twice(policy):
    world, n = Sepsis44(), 500
    state = world.reset(n, seeded())
    low, high = (torch.from_numpy(x) for x in (world.observation_space.low, world.observation_space.high))
    if hasattr(policy, "reset"):
        policy.reset(n)
    for t in range(world.horizon):
        seen = world.observe(state)
        assert torch.equal(seen, world.observe(state, world.noise(n, seeded(99))))
        assert bool(((seen >= low) & (seen <= high)).all())
        state = world.step(state, policy(seen, state), world.noise(n, seeded(t))).state
        assert bool(tree.finite(state).all())


def test_a_state_is_restored_from_its_numbers():
    world = Sepsis44()
    state = world.reset(50, seeded())
    state = world.step(state, torch.arange(50) % 25, world.noise(50, seeded(1))).state
    restored = world.reset_to(world.latent(state), state.observation)
    for name, value in tree.named_tensors(state):
        found = dict(tree.named_tensors(restored))[name]
        assert found.dtype == value.dtype
        assert torch.equal(found, value), name


# --- the physician and the truth -----------------------------------------------------------------------------------


def test_the_physician_weighs_the_signs_as_stated():
    world = EXACT
    state = world.reset(60, seeded())
    state = world.step(state, torch.arange(60) % 25, world.noise(60, seeded(1))).state
    found = physician_probabilities(state.observation, state.vasopressor, 0.5, 0.2)
    for b in range(60):
        seen = {name: float(feature(state.observation[b], name)) for name in STATE}
        lactate, pressure, urine = seen["Arterial_lactate"], seen["MeanBP"], seen["output_4hourly"]
        fluid = 1.6 + 1.1 * (lactate - 2) / 1.5 + 0.9 * (75 - pressure) / 12 + 0.7 * (200 - urine) / 150
        fluid += 0.2 - 0.5 * (seen["PaO2_FiO2"] < 250) - 0.15 * seen["cumulated_balance"] / 3000
        pressor = 0.2 + 2 * (68 - pressure) / 9 + 0.5 * (lactate - 2.5) / 1.5 + 0.72 * int(state.vasopressor[b])
        fluid, pressor = (min(max(x, 0), 4) for x in (fluid, pressor))
        weights = torch.tensor([math.exp(-((a // 5 - fluid) ** 2) - (a % 5 - pressor) ** 2) for a in range(25)])
        torch.testing.assert_close(found[b].float(), weights / weights.sum())


def test_actions_are_drawn_with_their_probabilities():
    probabilities = torch.softmax(torch.randn(25, generator=seeded()), 0)
    probabilities[[0, 7, 24]] = 0.0
    n = 100_000
    drawn = torch.bincount(sample_actions(probabilities.expand(n, 25), seeded(1)), minlength=25) / n
    probabilities = probabilities / probabilities.sum()
    assert bool((drawn[probabilities == 0] == 0).all())
    assert bool(((drawn - probabilities).abs() <= 4 * (probabilities / n).sqrt()).all())


def test_the_physician_repeats_himself_after_a_reset():
    world, physician = Sepsis44(), Physician(seed=4)
    state = world.reset(200, seeded())
    physician.reset(200)
    first, second = (physician(state.observation, state) for _ in range(2))
    physician.reset(200)
    assert torch.equal(physician(state.observation, state), first)
    assert not torch.equal(first, second)


def test_the_dose_needed_leaves_the_tone_it_aims_at():
    """Unless it is cut at an end, it takes the vasoplegia down to 0.55."""
    state = EXACT.reset(2000, seeded())
    fluid, dose = truth_dose(state)
    left = state.vasoplegia - 1.3 * state.response.sqrt() * dose / (dose + 0.15)
    inside = (dose > 0) & (dose < 0.68)
    assert int(inside.sum()) > 500
    torch.testing.assert_close(left[inside], torch.full_like(left[inside], 0.55))
    assert bool((fluid[state.deficit <= 0] == 0).all())
    assert float(fluid.max()) <= 1


def test_the_best_score_is_that_of_the_dose_needed():
    state = Sepsis44().reset(500, seeded())
    scores = truth_scores(state)
    best = TruthDose()(state.observation, state)
    assert torch.equal(scores.argmax(1), best)
    assert bool((scores.gather(1, best[:, None]) == 0).all())
    assert bool(((scores < 0).sum(1) == 24).all())
    # One level off in one drug costs 1, two levels 4.
    row = scores[(best == 6).nonzero()[0, 0]]
    assert [float(row[a]) for a in (7, 11, 12, 16, 24)] == [-1, -1, -2, -4, -18]


# --- the libraries and refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Sepsis44-v0", "ICUSepsis44-v0", "GumbelSepsis-v0"])
def test_the_checkers_of_gymnasium_and_sb3_pass(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(name).unwrapped
        check_env(env, skip_render_check=True)
        sb3_check_env(env)


def test_the_small_world_is_truncated_and_this_one_ends_by_itself():
    """The end of the third day decides the reward, so that it belongs to the world."""
    env = gymnasium.make("Sepsis44-v0").unwrapped
    env.reset(seed=0)
    over = [env.step(6)[2:4] for _ in range(18)]
    assert over[-1] == (True, False) or any(terminated for terminated, _ in over)
    assert not any(truncated for _, truncated in over)
    assert gymnasium.make("GumbelSepsis-v0").unwrapped.episodes.horizon == 20


def test_the_batched_views_step_it():
    envs = GymVectorEnv(Sepsis44(), 3)
    assert envs.reset(seed=0)[0].shape == (3, 44)
    env = SB3VecEnv(Sepsis44(), 4, seed=0)
    env.reset()
    for _ in range(20):
        observation, reward, done, _ = env.step(torch.full((4,), 6).numpy())
    assert observation.shape == (4, 44)
    assert abs(observation).max() <= 1
    assert reward.shape == done.shape == (4,)


def test_a_rollout_records_the_variables_with_their_units():
    world = Sepsis44()
    data = rollout(world, Physician(), world.horizon, 100, 1)
    for name, variable in world.variables.items():
        assert data[name].dims == ("rep", "time", *variable.dims)
        assert data[name].attrs["units"] == variable.units
    assert data["feature"].values.tolist() == list(STATE)
    assert bool((data["died"].sum("time") == (data["reward"].sum("time") < 0)).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sepsis44(horizon=0), "horizon = 0: must be at least 1 step"),
        (lambda: Sepsis44(dtype=torch.int64), "dtype = torch.int64: must be torch.float32 or torch.float64"),
        (
            lambda: Physician(temperature=0),
            "temperature = 0, bias = 0.8: must be finite, the temperature above 0",
        ),
        (lambda: survival(Sepsis44(), always(0), 0, 1), "patients = 0: must be at least 1"),
        (
            lambda: Sepsis44().step(Sepsis44().reset(2, seeded()), torch.tensor([3, 25]), None),
            "action[1] = 25: must be 0 to 24",
        ),
        (
            lambda: Sepsis44().step(Sepsis44().reset(2, seeded()), torch.zeros(2), None),
            "action: torch.float32 of shape (2,); must be whole numbers (2,)",
        ),
        (
            lambda: Sepsis44().reset_to(torch.zeros(2, 5), torch.zeros(2, 44)),
            "latent (2, 5), observation (2, 44): must be (B, 61) and (B, 44)",
        ),
    ],
)
def test_what_is_impossible_is_refused(make, message):
    with pytest.raises(InputError) as refusal:
        make()
    assert str(refusal.value) == message

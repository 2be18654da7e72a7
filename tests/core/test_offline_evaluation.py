import dataclasses
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from core.checkpoint import Checkpoint
from core.errors import InputError
from core.offline import FittedQEvaluation, effective_sample_size, evaluate_policy, softened
from core.offline.evaluation import ESTIMATORS
from core.rl.algorithm import TrainingDiverged
from tests.core.offline_logs import HORIZON, Tabular, ragged

LENGTHS = [1, 5, 3, 8, 2] * 8


def values(*args, **kwargs):
    return {e.name: e.value for e in evaluate_policy(*args, **kwargs)}


def other_policy(data, seed=9):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(len(data), data.choices, generator=generator, dtype=torch.float64), 1)


def by_loops(data, target, q, gamma):
    """Every estimator as its definition has it, episode by episode."""
    b, n = data.behaviour_probability.double(), data.episodes
    longest = int(data.lengths.max())
    w, r, v, qa = (np.zeros((n, longest)) for _ in range(4))
    dr, g = np.zeros(n), np.zeros(n)
    for i, (start, length) in enumerate(zip(data.starts.tolist(), data.lengths.tolist(), strict=True)):
        weight = 1.0
        for t in range(length):
            row, a = start + t, int(data.actions[start + t])
            weight *= float(target[row, a] / b[row, a])
            w[i, t], r[i, t] = weight, float(data.rewards[row])
            v[i, t], qa[i, t] = float(target[row] @ q[row]), float(q[row, a])
        w[i, length:] = weight
        g[i] = sum(gamma**t * r[i, t] for t in range(length))
        for t in reversed(range(length)):
            row, a = start + t, int(data.actions[start + t])
            dr[i] = v[i, t] + float(target[row, a] / b[row, a]) * (r[i, t] + gamma * dr[i] - qa[i, t])
    discounts = gamma ** np.arange(longest)
    before = np.concatenate([np.ones((n, 1)), w[:, :-1]], 1)
    share, share_before = w / w.sum(0), before / before.sum(0)
    return {
        "IS": (w[:, -1] * g).mean(),
        "WIS": (w[:, -1] * g).sum() / w[:, -1].sum(),
        "PDIS": (w * r * discounts).sum(1).mean(),
        "WPDIS": (share * r * discounts).sum(),
        "DR": dr.mean(),
        "WDR": (discounts * (share * (r - qa) + share_before * v)).sum(),
        "FQE": v[:, 0].mean(),
    }


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_every_estimator_equals_its_definition(gamma):
    data = ragged(LENGTHS)
    target, q = other_policy(data), torch.randn(len(data), 3, generator=torch.Generator().manual_seed(4)).double()
    assert values(data, target, gamma=gamma, q=q) == pytest.approx(by_loops(data, target, q, gamma), abs=1e-9)


def test_the_behaviour_policy_has_the_mean_return():
    data = ragged(LENGTHS)
    q = torch.randn(len(data), 1).expand(-1, 3)
    found = values(data, data.behaviour_probability, gamma=0.9, q=q)
    mean = float(data.episode_returns(0.9).sum()) / data.episodes
    assert [found["IS"], found["WIS"]] == pytest.approx([mean] * 2, rel=1e-13)
    # A model that ignores the action telescopes away.
    assert [found[n] for n in ("PDIS", "WPDIS", "DR", "WDR")] == pytest.approx([mean] * 4, abs=1e-6)


def test_doubly_robust_with_the_exact_model_of_a_deterministic_world_has_no_variance():
    world = Tabular.of(3, deterministic=True)
    data = world.log(50, seed=0)
    state = data.extras["state"]
    found = {
        e.name: e
        for e in evaluate_policy(data, world.target[state], q=world.q()[data.step, state], estimators=["DR", "WDR"])
    }
    for estimate in found.values():
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((world.value(),) * 3, abs=1e-6)


def test_estimators_are_unbiased_or_consistent():
    world = Tabular.of(1)
    errors = {500: [], 2000: []}
    for episodes, found in errors.items():
        for seed in range(150):
            data = world.log(episodes, seed)
            state = data.extras["state"]
            wrong = torch.zeros(len(data), 3).double() + 0.3 * world.reward[state]
            found.append(values(data, world.target[state], q=wrong, resamples=2))
    names = [n for n in ESTIMATORS if n != "FQE"]
    error = {n: np.array([[e[name] - world.value() for name in names] for e in found]) for n, found in errors.items()}
    for column, name in enumerate(names):
        small, large = error[500][:, column], error[2000][:, column]
        assert abs(large.mean()) < 3.5 * large.std() / math.sqrt(len(large)), name
        ratio = math.sqrt((small**2).mean() / (large**2).mean())
        assert 1.6 < ratio < 2.5, name


def test_intervals_cover():
    world = Tabular.of(1)
    covered = 0
    for seed in range(200):
        data = world.log(300, seed)
        (wis,) = evaluate_policy(data, world.target[data.extras["state"]], estimators=["WIS"], resamples=300, seed=seed)
        covered += wis.low <= world.value() <= wis.high
    assert 0.89 <= covered / 200 <= 0.99


def test_official_weights():
    data = ragged(LENGTHS)
    b = other_policy(data, 1)
    b[data.step == 0] = torch.nn.functional.one_hot((data.actions[data.step == 0] + 1) % 3, 3).double()
    target = other_policy(data)
    (found,) = evaluate_policy(data, target, b, estimators=["WIS"], compat="official")
    weights, returns = [], []
    for start, length in zip(data.starts.tolist(), data.lengths.tolist(), strict=True):
        rows = range(start, start + length)
        a = [int(data.actions[row]) for row in rows]
        ratio = [float(target[row, c]) / (float(b[row, c]) or 0.1) for row, c in zip(rows, a, strict=True)]
        weights.append(min(max(math.prod(ratio), 1e-8), 1e2))
        returns.append(sum(0.99**t * float(data.rewards[row]) for t, row in enumerate(rows)))
    assert found.value == pytest.approx(np.dot(weights, returns) / np.sum(weights), rel=1e-9)
    assert found.floored == data.episodes
    assert found.ess == pytest.approx(np.sum(weights) ** 2 / np.square(weights).sum())


def test_an_estimated_behaviour_is_floored_and_counted():
    data = ragged(LENGTHS)
    b = torch.full((len(data), 3), 0.0005)
    b[:, 0] = 0.999
    (found,) = evaluate_policy(data, other_policy(data), b, estimators=["WIS"])
    assert found.floored == int((data.actions != 0).sum())
    logged = b.gather(1, data.actions[:, None])[:, 0].clamp(min=0.01)
    (raised,) = evaluate_policy(data, other_policy(data), logged, estimators=["WIS"], floor=0.0)
    assert found.value == pytest.approx(raised.value, rel=1e-6)
    with pytest.raises(InputError, match=r"behaviour: probability of the logged action: row \d+ is 0"):
        evaluate_policy(data, other_policy(data), torch.eye(3)[(data.actions + 1) % 3], floor=0.0)


def test_densities_have_units_and_no_floor_of_their_own():
    data = ragged(LENGTHS)
    data = dataclasses.replace(
        data,
        actions=torch.zeros(len(data), 1),
        action_space=spaces.Box(-1e3, 1e3, (1,)),
        behaviour_probability=None,
    )
    density = torch.full((len(data),), 1e-3)
    (found,) = evaluate_policy(data, density, density, estimators=["WIS"])
    assert (found.floored, found.value) == (0, pytest.approx(float(data.episode_returns().mean())))
    (found,) = evaluate_policy(data, density, density, estimators=["WIS"], floor=0.01)
    assert found.floored == len(data)


def test_a_policy_that_the_log_never_follows_has_no_estimate():
    data = ragged(LENGTHS)
    never = torch.eye(3)[(data.actions + 1) % 3]
    found = {e.name: e for e in evaluate_policy(data, never, q=torch.zeros(len(data), 3))}
    assert math.isnan(found["WIS"].value)
    assert (found["WIS"].ess, found["WIS"].verdict) == (0.0, "not identifiable")
    assert found["IS"].value == 0
    assert found["FQE"].verdict == "model alone"


def test_softened_policies_give_every_action_a_chance():
    shares = softened(torch.tensor([2, 0]), 4, 0.04)
    assert torch.allclose(shares, torch.tensor([[0.01, 0.01, 0.97, 0.01], [0.97, 0.01, 0.01, 0.01]]).double())


@pytest.mark.parametrize(("episodes", "verdict"), [(40, "identifiable"), (20, "not identifiable")])
def test_few_episodes_identify_nothing(episodes, verdict):
    data = ragged([3] * episodes)
    (found,) = evaluate_policy(data, data.behaviour_probability, estimators=["WIS"])
    assert found.verdict == verdict
    assert (found.ess, found.max_weight_share) == pytest.approx((episodes, 1 / episodes))


def test_the_effective_sample_size_ignores_the_scale_of_the_weights():
    weights = torch.tensor([1.0, 2.0, 3.0]).double()
    expected = (36 / 14, 0.5)
    assert effective_sample_size(weights.log()) == pytest.approx(expected)
    assert effective_sample_size(weights.log() + 5000) == pytest.approx(expected)


def test_weights_beyond_the_range_of_numbers_stay_finite():
    data = ragged([400, 300])
    b = torch.full((len(data), 3), 1e-4)
    found = evaluate_policy(data, torch.full((len(data), 3), 1 / 3), b / b.sum(1, keepdim=True), floor=0.0)
    assert all(math.isfinite(e.value) for e in found)
    tiny = torch.full((len(data),), 1e-4)
    found = evaluate_policy(data, torch.ones(len(data)), tiny, floor=0.0)
    assert all(math.isfinite(e.value) for e in found)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"target": torch.full((152, 3), 0.5)}, "target: sum of probabilities: row 0 is 1.5"),
        ({"target": torch.full((152, 3), math.nan)}, "target: row 0, column 0 is nan"),
        ({"target": torch.full((152, 4), 0.25)}, r"target: has shape \(152, 4\)"),
        ({"estimators": ["WDR"]}, "WDR needs q"),
        ({"estimators": ["XIS"]}, "'XIS'; allowed: IS"),
        ({"gamma": 1.5}, "gamma: 1.5"),
        ({"clip": (2.0, 1.0)}, "clip:"),
        ({"target": torch.full((152,), 0.5), "q": torch.zeros(152, 3)}, "q: has shape"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, says):
    data = ragged(LENGTHS)
    assert len(data) == 152
    with pytest.raises(InputError, match=says):
        evaluate_policy(data, **{"target": torch.full((152, 3), 1 / 3), **arguments})


def test_an_unknown_behaviour_is_refused():
    data = ragged(LENGTHS)
    data = dataclasses.replace(data, behaviour_probability=None)
    with pytest.raises(InputError, match="the behaviour policy is unknown"):
        evaluate_policy(data, other_policy(data))


def test_densities_of_logged_actions_serve_the_plain_estimators():
    data = ragged(LENGTHS)
    target = other_policy(data)
    logged = target.gather(1, data.actions[:, None])[:, 0]
    assert values(data, logged) == pytest.approx(values(data, target))


def discounted_q(world, data, gamma):
    """Solution of Q = r + gamma P_pi Q with the transitions and rewards of the log, states by time."""
    state, last = data.extras["state"] + 4 * data.step, data.step == HORIZON - 1
    after = torch.where(last, 0, torch.cat([state[1:], state[:1]]))
    index, n = state * 3 + data.actions, 12 * 3
    joint = torch.zeros(n, n).double()
    weight = world.target[after % 4] * ~last[:, None] * gamma
    for choice in range(3):
        joint.index_put_((index, after * 3 + choice), weight[:, choice], accumulate=True)
    counts = torch.bincount(index, minlength=n).double()
    mean = torch.zeros(n).double().index_add_(0, index, data.rewards.double()) / counts.clamp(min=1)
    q = torch.linalg.solve(torch.eye(n).double() - joint / counts.clamp(min=1)[:, None], mean)
    return q.reshape(12, 3), counts.reshape(12, 3) > 0


def timed(data):
    """The same log with one-hot codes of state and time as observations."""
    state = data.extras["state"] + 4 * data.step
    code = torch.eye(12)[state]
    following = torch.cat([code[1:], code[:1]])
    return dataclasses.replace(
        data, observations=code, next_observations=following, observation_space=spaces.Box(0, 1, (12,))
    )


def test_tabular_fitted_q_is_the_linear_solution():
    world = Tabular.of(2)
    data = world.log(300, seed=0)
    expected, seen = discounted_q(world, data, 0.9)
    model = FittedQEvaluation(gamma=0.9, hidden=(), ridge=1e-8)
    found = model.fit(timed(data), lambda x: world.target[x.argmax(1) % 4]).q_values(torch.eye(12).double())
    assert torch.allclose(found[seen], expected[seen], atol=1e-5)
    value = values(
        timed(data), world.target[data.extras["state"]], gamma=0.9, q=model.q_values(timed(data).observations)
    )
    assert value["FQE"] == pytest.approx(float(world.target[0] @ expected[0]), abs=1e-4)


def test_a_network_learns_the_same_values():
    world = Tabular.of(2)
    data = timed(world.log(500, seed=0))
    expected, seen = discounted_q(world, data, 0.9)
    model = FittedQEvaluation(gamma=0.9, hidden=(32,), gradient_steps=1500, tau=0.02, learning_rate=3e-3)
    found = model.fit(data, lambda x: world.target[x.argmax(1) % 4]).q_values(torch.eye(12)).double()
    assert (found - expected)[seen].abs().mean() < 0.05


def test_targets_are_probabilities_and_data_may_be_double():
    data = ragged(LENGTHS)
    target = other_policy(data)
    beyond = torch.where(data.terminated[:, None], 0.0, target)  # where they count for nothing
    settings = {"gradient_steps": 20, "batch": 8}
    found = FittedQEvaluation(**settings).fit(data, target).q_values(data.observations)
    assert torch.equal(found, FittedQEvaluation(**settings).fit(data, beyond).q_values(data.observations))
    double = {name: getattr(data, name).double() for name in ("observations", "next_observations", "rewards")}
    again = FittedQEvaluation(**settings).fit(dataclasses.replace(data, **double), target)
    torch.testing.assert_close(again.q_values(double["observations"]), found, atol=1e-3, rtol=0)
    with pytest.raises(InputError, match=r"target: sum of probabilities: row 1 is 0\."):
        FittedQEvaluation(**settings).fit(data, target / 2)


class Killed(Exception):
    pass


def test_a_killed_fit_goes_on_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "due", property(lambda self: self.path is not None))
    data = ragged([10] * 5)
    target, settings = other_policy(data).float(), {"gradient_steps": 40, "batch": 8}
    whole = FittedQEvaluation(**settings).fit(data, target).q_values(data.observations)

    def kill(fraction, message):
        if fraction > 0.6:
            raise Killed

    path = tmp_path / "fqe.safetensors"
    with pytest.raises(Killed):
        FittedQEvaluation(**settings).fit(data, target, checkpoint=path, progress=kill)
    resumed = FittedQEvaluation(**settings).fit(data, target, checkpoint=path).q_values(data.observations)
    assert torch.equal(whole, resumed)


def test_a_network_that_diverges_keeps_its_last_good_weights():
    data = ragged([30] * 3)
    data = dataclasses.replace(data, rewards=torch.full_like(data.rewards, 1e30))
    model = FittedQEvaluation(hidden=(8,), gradient_steps=300, batch=16)
    with pytest.raises(TrainingDiverged, match="not finite by step 256; last good weights restored"):
        model.fit(data, other_policy(data))
    assert model.q_values(data.observations).isfinite().all()


def test_values_that_grow_without_bound_stop():
    data = ragged([30] * 3)
    # Next observations that are far larger than those that the values are fitted to.
    data = dataclasses.replace(data, next_observations=10 * data.next_observations)
    with pytest.raises(TrainingDiverged):
        FittedQEvaluation(hidden=()).fit(data, other_policy(data))

"""The payments world against its equations, the laws of its draws, and the libraries that will drive it."""

import dataclasses
import math
import warnings
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete, MultiBinary
from gymnasium.utils.env_checker import check_env
from scipy import stats
from scipy.special import expit
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import simulators  # noqa: F401 (registers the environments)
from benchmarks.payments_simulator import numpy_truth
from core.errors import InputError
from core.simulation import GymEnv, GymVectorEnv, SB3VecEnv, draw, episode_totals, rollout, tree
from simulators.payments import (
    FLAGS,
    NUMERICS,
    Delay,
    Drift,
    Fraud,
    Outage,
    PaymentContext,
    PaymentNoise,
    Payments,
    Retry,
    Sizes,
    dense_mask,
    flag_bits,
)

EXACT, SINGLE = torch.float64, torch.float32
THREEDS, TOKEN, UPDATE, FORMAT, ROUTE = (1 << f for f in range(5))
ALWAYS_SOFT = Retry(soft=1.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def payments(world, n, seed=0):
    return world.reset(n, seeded(seed))


def moved(value, device="cpu", dtype=EXACT):
    return tree.map_tensors(lambda x: x.to(device, dtype if x.is_floating_point() else x.dtype), value)


def answers(n, *, approval=0.5, soft=0.5, fraud=0.5, never=0.5, delay=0.0):
    """Noise with chosen uniforms; an approval of 1 declines everything, of 0 approves everything."""

    def filled(value):
        return torch.as_tensor(value, dtype=EXACT).expand(n).clone()

    return PaymentNoise(filled(approval), filled(delay), filled(never), filled(soft), filled(fraud))


def required(observation, state):
    """The policy that turns on what the law asks for and nothing else."""
    return state.forced


def available(mask, generator):
    """A uniform draw from each row of a dense mask."""
    return torch.multinomial(mask.double(), 1, generator=generator).squeeze(1)


def drifts(world, generations, seed=1):
    generator, found = seeded(seed), [world]
    for g in range(1, generations + 1):
        found.append(found[-1].drifted(g, generator))
    return found


def assert_law(sample, law, *args):
    """The sample is of the continuous law, as far as its Kolmogorov distance tells; seeded, so it never flickers."""
    assert stats.kstest(np.asarray(sample).ravel(), law, args).pvalue > 1e-4


def assert_normal(sample):
    """Standard normal, and its standard deviation more sharply than the Kolmogorov distance sees it."""
    assert_law(sample, "norm")
    assert float(np.asarray(sample).std()) == pytest.approx(1, abs=4 / math.sqrt(2 * np.asarray(sample).size))


def assert_counts(index, probabilities):
    probabilities = np.asarray(probabilities)
    expected = len(index) * probabilities / probabilities.sum()
    observed = np.bincount(index, minlength=len(probabilities))
    assert len(observed) == len(probabilities)
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def assert_share(events, probability):
    """Independent events whose mean probability is given, within four standard deviations."""
    p = np.broadcast_to(np.asarray(probability), len(events))
    assert abs(np.asarray(events).sum() - p.sum()) <= 4 * math.sqrt((p * (1 - p)).sum())


def assert_same(one, other, without=()):
    """Two worlds' or states' tensors are equal bit by bit, but for the named ones, which are not."""
    other = dict(tree.named_tensors(other))
    for name, value in tree.named_tensors(one):
        assert torch.equal(value, other[name]) == (name not in without), name


# --- the truth -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "rows"), [(5, 2 * 2**13 + 1), (7, 2 * 2**11 + 1), (10, 2**8 + 1)])
def test_every_action_of_every_payment_has_its_published_probability(flags, rows):
    """The rows run past the chunks of 2^18 elements, so the last one of each chunk and the first of the next count."""
    world = Payments(seed=3, sizes=Sizes(flags=flags))
    state = payments(world, rows)
    expected = numpy_truth(world.portfolio, state)
    assert expected.shape == (rows, 2**flags)
    assert all(column.unique().numel() > 1 for column in state.columns().values())
    np.testing.assert_allclose(world.probabilities(state), expected, rtol=0, atol=1e-12)
    single = Payments(seed=3, sizes=Sizes(flags=flags), dtype=SINGLE)
    found = single.probabilities(moved(state, dtype=SINGLE))
    assert found.dtype == SINGLE
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_one_payment_by_hand():
    world = Payments(seed=5)
    numbers = zip(NUMERICS, (5, 1, 20, -3, 1, 1, 2), strict=True)  # abroad, at 20 h, expired, the third attempt
    state = replace(payments(world, 1), **{name: torch.full((1,), value, dtype=EXACT) for name, value in numbers})
    state = replace(state, funding=torch.tensor([2]))
    p = tree.map_tensors(torch.Tensor.numpy, world.portfolio)
    issuer, merchant, la = int(state.issuer), int(state.merchant), 5 - 3.6
    d = p.issuer_flag[issuer] + p.merchant_flag[merchant]
    z = 3.0 + p.issuer[issuer] + p.merchant[merchant] - 0.25 * la - 0.35 - 0.5 - 0.45 * 2 - 0.9
    update = z + d[0] + 0.45 * la + d[2] + 1.2 + p.pair[THREEDS | UPDATE]
    route = z + d[3] - 0.3 + d[4] + 0.5 + p.pair[FORMAT | ROUTE]
    by_hand = {
        0: expit(z) * expit(4.0),
        THREEDS | UPDATE: expit(update) * expit(4.0) * expit(2.6 + p.challenge[int(state.country)] - 0.2 * la),
        FORMAT | ROUTE: expit(route) * expit(4 + p.technical[issuer].sum() - 1),
    }
    found = world.probabilities(state)[0]
    for action, expected in by_hand.items():
        assert float(found[action]) == pytest.approx(expected, abs=1e-14)
    assert p.pair[0] == p.pair[THREEDS] == 0


@pytest.mark.parametrize("dtype", [EXACT, SINGLE])
def test_the_probability_of_an_action_is_its_column(dtype):
    world = Payments(seed=1, sizes=Sizes(flags=6), dtype=dtype)
    state = payments(world, 64 * 20)
    action = torch.arange(64).repeat(20)
    of_all = world.probabilities(state).gather(1, action[:, None]).squeeze(1)
    torch.testing.assert_close(world.probability(state, action), of_all, rtol=0, atol=1e-14 if dtype == EXACT else 1e-6)


def test_a_bank_approves_as_often_as_it_should():
    world = Payments(seed=2)
    state = payments(world, 100_000)
    action = available(world.action_mask(state), seeded(1))
    step = world.step(state, action, world.noise(100_000, seeded(2)))
    assert torch.equal(step.info["probability"], world.probability(state, action))
    assert torch.equal(step.reward, step.info["approved"].double())
    assert bool(step.terminated.all())
    for band in np.array_split(np.argsort(step.info["probability"].numpy()), 5):
        assert_share(step.reward[band], step.info["probability"][band])


def test_uniform_and_best_values_are_as_measured():
    """Means over worlds 0 to 5; the published figures are of six other worlds, hence the error of both means."""
    values = []
    for seed in range(6):
        world = Payments(seed=seed)
        state = payments(world, 10_000, 100 + seed)
        mask, truth = world.action_mask(state), world.probabilities(state)
        uniform, best = (truth * mask).sum(1) / mask.sum(1), (truth * mask).amax(1)
        values.append((float(uniform.mean()), float(best.mean())))
    values = np.array(values)
    error = values.std(0, ddof=1) * math.sqrt(2 / 6)
    assert (abs(values.mean(0) - (0.816, 0.932)) < 2 * error).all()
    assert (error < (0.02, 0.006)).all()


# --- the contexts --------------------------------------------------------------------------------------------------


def test_contexts_have_the_published_marginals():
    world = Payments(seed=4)
    p, x = world.portfolio, tree.map_tensors(torch.Tensor.numpy, payments(world, 100_000))
    for name, count in (("issuer", 120), ("merchant", 40)):
        assert_counts(getattr(x, name), np.arange(1, count + 1) ** -0.9)
    assert_counts(x.scheme, (0.5, 0.4, 0.1))
    assert_counts(x.funding, (0.45, 0.47, 0.08))
    assert_counts(x.interaction, (0.62, 0.33, 0.05))
    assert_counts(x.attempt.astype(int), (0.85, 0.15 * 0.85, 0.15**2 * 0.85, 0.15**3))  # more than three are three
    assert_law(x.hour / 24, "uniform")
    assert_law((x.expiry_days + 20) / 1420, "uniform")
    assert_law(x.time / 168, "uniform")
    np.testing.assert_array_equal(x.country, p.issuer_country.numpy()[x.issuer])
    np.testing.assert_array_equal(x.cross_border, p.merchant_country.numpy()[x.merchant] != x.country)
    assert_share(x.token_available[x.scheme < 2], 0.65)
    assert not x.token_available[x.scheme == 2].any()
    assert_share(x.stored[x.interaction != 1], 0.2)
    assert x.stored[x.interaction == 1].all()
    assert not x.retries.any()
    assert_law((x.log_amount - p.log_amount.numpy()[x.merchant]) / 0.9, "norm")


@pytest.mark.parametrize(("mean", "bound"), [(0.5, 0.0), (8.5, 9.0)])
def test_amounts_are_clipped(mean, bound):
    world = Payments()
    world = replace(world, portfolio=replace(world.portfolio, log_amount=torch.full((40,), mean, dtype=EXACT)))
    amount = payments(world, 50_000).log_amount
    assert_share(amount == bound, stats.norm.sf(0.5 / 0.9))
    assert float(amount.min()) >= 0
    assert float(amount.max()) <= 9


def test_what_is_available_follows_the_rules():
    """Each payment's set from the words of the rules, flag by flag, and its size as measured."""
    sizes = []
    for seed in range(6):
        world = Payments(seed=seed)
        x, p = payments(world, 2000), world.portfolio
        may = [
            x.interaction != 2,
            x.token_available == 1,
            (x.stored == 1) & (x.expiry_days < 250),
            x.scheme < 2,
            p.route[x.merchant, x.country],
        ]
        must = (x.interaction == 0) & p.sca[x.country] & (x.log_amount.exp() > 250)
        expected = torch.ones(2000, 32, dtype=torch.bool)
        for action in range(32):
            for f in range(5):
                if action >> f & 1:
                    expected[:, action] &= may[f]
            if not action & THREEDS:
                expected[:, action] &= ~must
        mask = world.action_mask(x)
        assert torch.equal(mask, expected)
        assert torch.equal(x.forced, must.long())
        assert bool(must.any()) == bool(p.sca.any())
        sizes.append(mask.sum(1))
    sizes = torch.cat(sizes)
    assert (int(sizes.min()), int(sizes.median()), int(sizes.max())) == (1, 8, 32)


def test_further_interventions_are_offered_by_merchants():
    world = Payments(seed=1, sizes=Sizes(merchants=2000, flags=8))
    assert_share(world.portfolio.offers[:, 5:].flatten(), 0.6)
    state = payments(world, 5000)
    flags = state.allowed[:, None] >> torch.arange(8) & 1
    assert torch.equal(flags[:, 5:], world.portfolio.offers[state.merchant, 5:].long())


def test_worlds_are_drawn_from_the_published_laws():
    p = Payments(sizes=Sizes(issuers=4000, merchants=4000, countries=1000)).portfolio
    h, scale, mean = 0.9, np.array((1, 0.8, 0.7, 0.9, 0.9)), np.array((-0.1, 0.35, 0.5, -0.1, 0))
    normals = {
        "issuer": p.issuer / 0.6,
        "merchant": p.merchant / 0.35,
        "log_amount": (p.log_amount - 3.6) / 0.7,
        "merchant_flag": p.merchant_flag / (h * 0.35),
        "challenge": p.challenge / 0.7,
        "technical": p.technical / 0.8,
        "fraud": p.fraud,
    }
    for value in normals.values():
        assert_normal(value)
    for f in range(5):
        assert_normal((p.issuer_flag[:, f].numpy() - mean[f]) / (h * scale[f]))
    assert_share(p.route[:, :50].flatten(), 0.6)
    assert_share(p.sca, 0.4)
    assert_law(p.phase / (2 * math.pi), "uniform")
    assert_counts(p.issuer_country, np.ones(1000))
    pairs = [
        Payments(seed=s).portfolio.pair[[(1 << f) + (1 << g) for f in range(5) for g in range(f)]] for s in range(50)
    ]
    assert_normal(torch.stack(pairs) / (h * 0.45))


def test_without_heterogeneity_only_the_mean_effects_are_left():
    p = Payments(heterogeneity=0.0).portfolio
    assert torch.equal(p.issuer_flag, torch.tensor((-0.1, 0.35, 0.5, -0.1, 0.0), dtype=EXACT).expand(120, 5))
    assert not p.merchant_flag.any()
    assert not p.pair.any()


def test_columns_are_selected_converted_and_joined():
    state = payments(Payments(), 10)
    context = PaymentContext(**state.columns())
    assert len(context) == 10
    parts = [context.take(slice(0, 4)), context.take(torch.arange(4, 9)), context.take(torch.arange(10) == 9)]
    assert_same(PaymentContext.cat(parts), context)
    single = context.to(dtype=SINGLE)
    assert {column.dtype for column in single.columns().values()} == {SINGLE, torch.int64}
    assert torch.equal(single.hour, context.hour.float())
    assert_same(state.take(torch.tensor([7])), tree.take(state, slice(7, 8)))


def test_sizes_count_the_levels_of_the_categories():
    sizes = Sizes(issuers=7, merchants=3, countries=2, flags=6)
    assert sizes.actions == 64
    world = Payments(sizes=sizes)
    for name, levels in sizes.levels.items():
        assert world.observation_space[name] == Discrete(levels)
        column = getattr(payments(world, 2000), name)
        assert column.unique().tolist() == list(range(levels)) or name == "country"
    assert len(FLAGS) == 10


# --- luck ----------------------------------------------------------------------------------------------------------

EVERYTHING = {
    "drift": Drift(),
    "delay": Delay(decline_factor=3.0),
    "retry": Retry(),
    "fraud": Fraud(intercept=-1.0),
    "outage": Outage(rate=0.5),
    "reward": "net_value",
}


def busy(**options):
    """A world with all that can happen, after one generation, and what it needs for a step of 200 payments."""
    world = Payments(seed=6, **EVERYTHING, **options).drifted(1, seeded(1))
    state = payments(world, 200)
    action = available(world.action_mask(state), seeded(2))
    return world, state, action, world.noise(200, seeded(3))


def test_an_answer_is_determined_by_its_noise_and_a_batch_equals_its_copies():
    world, state, action, noise = busy()
    step = world.step(state, action, noise)
    assert_same(step, world.step(state, action, noise))
    assert 0 < int(step.terminated.sum()) < 200
    singles = [
        world.step(state.take(slice(r, r + 1)), action[r : r + 1], tree.take(noise, slice(r, r + 1)))
        for r in range(200)
    ]
    for name, value in tree.named_tensors(step):  # torch's own sigmoid differs by a last bit between batch sizes
        joined = torch.cat([dict(tree.named_tensors(s))[name] for s in singles])
        torch.testing.assert_close(value, joined, rtol=1e-14, atol=1e-15, msg=name)
    alone = torch.cat([world.probabilities(state.take(slice(r, r + 1))) for r in range(200)])
    torch.testing.assert_close(alone, world.probabilities(state), rtol=0, atol=1e-15)


def test_equal_seeds_give_equal_streams_and_worlds():
    world, state, _, noise = busy()
    again, same, _, luck = busy()
    assert_same(world.portfolio, again.portfolio)
    assert_same(state, same)
    assert_same(noise, luck)
    assert_same(payments(world, 200, seed=1), state, without={f.name for f in dataclasses.fields(state)} - {"retries"})
    other = Payments(seed=7).portfolio
    kept = {"issuer_cdf", "merchant_cdf", "offers"}
    assert_same(Payments(seed=6).portfolio, other, without={f.name for f in dataclasses.fields(other)} - kept)


def test_policies_meet_the_same_luck():
    """A payment that a less likely action gets approved, a likelier one gets approved too."""
    world = Payments(seed=1)
    draws = draw(world, 1, 5000, seed=9)
    mask, truth = world.action_mask(draws.start), world.probabilities(draws.start)
    best = torch.where(mask, truth, -1).argmax(1)
    worst = torch.where(mask, truth, 2).argmin(1)
    totals = [episode_totals(world, lambda o, s, a=a: a, draws).reward for a in (worst, best)]
    assert bool((totals[0] <= totals[1]).all())
    assert float(totals[0].mean()) < float(totals[1].mean()) - 0.1


def test_a_world_in_single_precision_is_the_same_world():
    world, state, action, noise = busy()
    single, narrow = busy(dtype=SINGLE)[0], moved(state, dtype=SINGLE)
    assert {x.dtype for _, x in tree.named_tensors(single.portfolio)} == {SINGLE, torch.int64, torch.bool}
    assert single.down.dtype == payments(single, 3).hour.dtype == single.noise(3, seeded()).delay.dtype == SINGLE
    assert torch.equal(single.action_mask(narrow), world.action_mask(state))
    step, exact = single.step(narrow, action, moved(noise, dtype=SINGLE)), world.step(state, action, noise)
    assert step.reward.dtype == SINGLE
    torch.testing.assert_close(step.info["probability"].double(), exact.info["probability"], rtol=0, atol=1e-5)
    assert float((noise.approval - exact.info["probability"]).abs().min()) > 1e-4  # no answer hangs on the rounding
    assert torch.equal(step.terminated, exact.terminated)
    torch.testing.assert_close(step.reward.double(), exact.reward, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(step.info["delay"].double(), exact.info["delay"], rtol=1e-5, atol=0)


# --- drift, outages, delays ----------------------------------------------------------------------------------------


def test_wandering_effects_have_the_moments_of_an_ornstein_uhlenbeck_process():
    """From its start the variance is s^2 (1 - r^2g) / (1 - r^2), the mean stays, and neighbours correlate by r."""
    scale, kept, count = 0.5, 0.9, 4000 * 5
    worlds = drifts(Payments(sizes=Sizes(issuers=4000), drift=Drift(scale=scale)), 31)
    away = [(w.portfolio.issuer_flag - worlds[0].portfolio.issuer_flag).flatten() for w in worlds]
    for g in (1, 3, 10, 30, 31):
        variance = scale**2 * (1 - kept ** (2 * g)) / (1 - kept**2)
        assert_law(away[g] / math.sqrt(variance), "norm")
    stationary = scale**2 / (1 - 0.81)
    assert float(away[30].square().mean()) == pytest.approx(stationary, rel=4 * math.sqrt(2 / count) + 0.81**30)
    slope = float((away[31] * away[30]).sum() / away[30].square().sum())
    assert slope == pytest.approx(kept, abs=4 * scale / math.sqrt(stationary * count))
    assert_same(worlds[0].portfolio, worlds[-1].portfolio, without={"issuer_flag"})


def test_an_abrupt_change_redraws_a_share_of_issuers_in_its_generation():
    drift = Drift("abrupt", generation=3, share=0.2)
    worlds = drifts(Payments(sizes=Sizes(issuers=2000), drift=drift), 5)
    before, after = worlds[2].portfolio, worlds[3].portfolio
    for one, other in ((0, 1), (1, 2), (3, 4), (4, 5)):
        assert_same(worlds[one].portfolio, worlds[other].portfolio)
    assert_same(before, after, without={"issuer_flag"})
    changed = (before.issuer_flag != after.issuer_flag).any(1)
    assert int(changed.sum()) == 400
    anew = after.issuer_flag[changed].numpy()
    scale, mean = 0.9 * np.array((1, 0.8, 0.7, 0.9, 0.9)), (-0.1, 0.35, 0.5, -0.1, 0)
    assert_law((anew - mean) / scale, "norm")
    assert abs(stats.pearsonr(anew.ravel(), before.issuer_flag[changed].numpy().ravel() - np.tile(mean, 400))[0]) < 0.2
    others = drifts(worlds[0], 3, seed=2)[3].portfolio.issuer_flag
    assert not torch.equal(others, after.issuer_flag)


def test_seasons_return():
    worlds = drifts(Payments(drift=Drift("seasonal", amplitude=0.4, period=4.0)), 8)
    origin = worlds[0].portfolio
    assert [world.generation for world in worlds] == list(range(9))
    for g, world in enumerate(worlds[1:], 1):
        swing = world.portfolio.issuer - origin.issuer
        torch.testing.assert_close(swing, 0.4 * torch.sin(math.pi * g / 2 + origin.phase), rtol=0, atol=1e-13)
        assert_same(origin, world.portfolio, without={"issuer"})
    torch.testing.assert_close(worlds[8].portfolio.issuer, worlds[4].portfolio.issuer, rtol=0, atol=1e-13)
    mean = torch.stack([w.portfolio.issuer for w in worlds[1:5]]).mean(0)
    torch.testing.assert_close(mean, origin.issuer, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["ornstein_uhlenbeck", "abrupt", "seasonal"])
def test_a_drifted_world_is_a_new_one(kind):
    world = Payments(drift=Drift(kind, generation=1), outage=Outage(rate=0.5))
    kept = moved(world.portfolio)
    new = world.drifted(1, seeded(1))
    assert_same(world.portfolio, kept)
    assert (world.generation, new.generation) == (0, 1)
    assert world.down is None
    assert_same(new.portfolio, world.drifted(1, seeded(1)).portfolio)
    assert_same(payments(new, 50), payments(world, 50))
    assert not torch.equal(new.probabilities(payments(new, 50)), world.probabilities(payments(world, 50)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        new.generation = 2
    still = Payments().drifted(1, seeded())
    assert_same(still.portfolio, Payments().portfolio)


def test_an_outage_multiplies_the_technical_success_while_it_lasts():
    outage = Outage(rate=0.3, hours=12.0, factor=0.1)
    world = Payments(sizes=Sizes(issuers=5000), outage=outage)
    new = world.drifted(1, seeded(1))
    down = new.down.isfinite()
    assert_share(down, 0.3)
    assert_law(new.down[down] / 168, "uniform")
    state = payments(new, 20_000)
    since = (state.time - new.down[state.issuer]).numpy()
    failing = np.where((since >= 0) & (since < 12), 0.1, 1.0)
    assert 100 < (failing < 1).sum() < 1000
    np.testing.assert_allclose(
        new.probabilities(state), numpy_truth(world.portfolio, state, failing), rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
        new.probability(state, state.forced) / world.probability(state, state.forced), failing, rtol=1e-12
    )
    again = new.drifted(2, seeded(2))
    assert not torch.equal(again.down, new.down)


def test_delays_are_log_normal_and_some_answers_never_come():
    world, n = Payments(delay=Delay()), 50_000
    state, noise = payments(world, n), world.noise(n, seeded(1))
    step = world.step(state, state.forced, noise)
    delay = step.info["delay"]
    never = delay.isinf()
    assert_share(never, 0.02)
    hours = delay[~never].numpy()
    assert_law(np.log(hours / 6) / 1.2, "norm")
    assert np.log(hours).std() == pytest.approx(1.2, rel=4 / math.sqrt(2 * n))
    assert hours.mean() == pytest.approx(6 * math.exp(1.2**2 / 2), rel=4 * math.sqrt((math.exp(1.2**2) - 1) / n))
    slow = Payments(delay=Delay(decline_factor=3.0)).step(state, state.forced, noise)
    expected = torch.where(step.info["approved"], delay, 3 * delay)
    torch.testing.assert_close(slow.info["delay"], expected, rtol=1e-14, atol=0)
    at_once = Payments().step(state, state.forced, noise)
    assert not at_once.info["delay"].any()
    assert torch.equal(at_once.reward, step.reward)


# --- money ---------------------------------------------------------------------------------------------------------


def test_only_soft_declines_may_be_tried_again():
    world = Payments(retry=Retry(soft=0.7))
    state = payments(world, 3)
    noise = answers(3, approval=torch.tensor([1.0, 1.0, 0.0]), soft=torch.tensor([0.69, 0.71, 0.0]))
    step = world.step(state, state.forced, noise)
    assert step.terminated.tolist() == [False, True, True]
    assert step.info["approved"].tolist() == [False, False, True]
    assert (step.state.attempt - state.attempt).tolist() == [1, 0, 0]
    assert step.state.retries.tolist() == [1, 0, 0]
    assert_same(step.state, state, without={"attempt", "retries"})
    np.testing.assert_allclose(step.reward, (-0.02, -0.02, float(state.log_amount[2].exp()) - 0.02), rtol=1e-14)


@pytest.mark.parametrize("attempts", [1, 4])
def test_an_episode_has_so_many_retries_and_each_attempt_its_fee(attempts):
    world = Payments(retry=Retry(soft=1.0, attempts=attempts, fee=0.5))
    draws = draw(world, 10, 100, seed=0)
    draws = replace(draws, noise=tuple(answers(100, approval=1.0, soft=0.0) for _ in range(10)))
    totals = episode_totals(world, required, draws)
    assert bool(totals.terminated.all())
    assert totals.length.tolist() == [attempts + 1] * 100
    assert totals.reward.tolist() == [-0.5 * (attempts + 1)] * 100
    luck = draw(world, 10, 5000, seed=1)
    totals = episode_totals(world, required, luck)
    assert set(totals.length.tolist()) == set(range(1, attempts + 2))
    approved = totals.last_reward > 0
    expected = torch.where(approved, luck.start.log_amount.exp(), 0.0) - 0.5 * totals.length
    torch.testing.assert_close(totals.reward, expected, rtol=1e-12, atol=1e-10)


def test_giving_up_ends_the_episode_and_pays_nothing():
    world = Payments(retry=ALWAYS_SOFT, fraud=Fraud(intercept=50.0), reward="net_value")
    state = payments(world, 50)
    step = world.step(state, torch.full((50,), 32), answers(50, approval=0.0, soft=0.0, fraud=0.0))
    assert bool(step.terminated.all())
    for found in (step.reward, step.info["approved"], step.info["probability"], step.info["chargeback"]):
        assert not found.any()
    assert_same(step.state, state)


def test_every_attempt_lowers_the_chance():
    world = Payments(retry=ALWAYS_SOFT)
    state = payments(world, 100)
    before = world.probabilities(state)
    after = world.step(state, state.forced, answers(100, approval=1.0)).state
    assert bool((world.probabilities(after) < before).all())
    np.testing.assert_allclose(world.probabilities(after), numpy_truth(world.portfolio, after), rtol=0, atol=1e-12)
    once = world.probability(state, torch.zeros(100, dtype=torch.int64)) / expit(4.0)
    twice = world.probability(after, torch.zeros(100, dtype=torch.int64)) / expit(4.0)
    torch.testing.assert_close(once.logit() - twice.logit(), torch.full_like(once, 0.45), rtol=0, atol=1e-10)


def test_net_value_by_hand():
    """100 EUR kept; 100 EUR charged back at 1.2 amounts; a decline; with retries each pays its fee besides."""
    world = Payments(seed=1, reward="net_value", fraud=Fraud())
    state = replace(
        payments(world, 3), log_amount=torch.full((3,), math.log(100), dtype=EXACT), forced=torch.zeros(3).long()
    )
    noise = answers(3, approval=torch.tensor([0.0, 0.0, 1.0]), fraud=torch.tensor([1.0, 0.0, 0.0]), soft=1.0)
    step = world.step(state, state.forced, noise)
    np.testing.assert_allclose(step.reward, (100, -20, 0), atol=1e-12)
    assert step.info["chargeback"].tolist() == [False, True, False]
    with_fee = replace(world, retry=Retry(fee=0.02)).step(state, state.forced, noise)
    np.testing.assert_allclose(with_fee.reward, (99.98, -20.02, -0.02), atol=1e-12)
    plain = replace(world, reward="approval").step(state, state.forced, noise)
    assert plain.reward.tolist() == [1, 1, 0]
    without_fraud = replace(world, fraud=None).step(state, state.forced, noise)
    np.testing.assert_allclose(without_fraud.reward, (100, 100, 0), atol=1e-12)


def test_chargebacks_come_with_their_probability():
    world = Payments(seed=2, fraud=Fraud(intercept=-1.0, issuer_scale=0.5))
    n = 50_000
    state = payments(world, n)
    action = available(world.action_mask(state), seeded(1))
    u = world.portfolio.fraud[state.issuer].numpy()
    expected = expit(-1 + 0.3 * (state.log_amount.numpy() - 3.6) - 1.5 * (action.numpy() & 1) + 0.5 * u)
    np.testing.assert_allclose(world.chargeback_probability(state, action), expected, rtol=1e-13)
    step = world.step(state, action, world.noise(n, seeded(2)))
    approved = step.info["approved"].numpy()
    assert not step.info["chargeback"].numpy()[~approved].any()
    assert_share(step.info["chargeback"].numpy()[approved], expected[approved])
    with pytest.raises(InputError, match="fraud: is off in this world"):
        Payments().chargeback_probability(state, action)


# --- actions -------------------------------------------------------------------------------------------------------

WORLDS = {
    "plain": {},
    "retry": {"retry": Retry(soft=0.9)},
    "flags": {"sizes": Sizes(flags=10)},
}


def test_the_action_space_is_listed_up_to_eight_interventions():
    assert Payments(sizes=Sizes(flags=8)).action_space == Discrete(256)
    retry = Payments(retry=Retry())
    assert retry.action_space == Discrete(33)
    mask = retry.action_mask(payments(retry, 100))
    assert mask.shape == (100, 33)
    assert bool(mask[:, 32].all())
    assert torch.equal(mask[:, :32], Payments().action_mask(payments(retry, 100)))
    assert Payments(sizes=Sizes(flags=9)).action_space == MultiBinary(9)


def test_a_mask_of_flags_means_the_same_actions():
    """0 must be off, 1 must be on, 2 is free: as many combinations, and the same ones, as the list."""
    world = Payments(seed=3, sizes=Sizes(flags=10))
    state = payments(world, 500)
    mask = world.action_mask(state)
    assert mask.shape == (500, 10)
    assert mask.dtype == torch.int8
    assert mask.unique().tolist() == [0, 1, 2]
    bits = flag_bits(10).to(torch.int8)
    expected = ((mask[:, None] == 2) | (mask[:, None] == bits)).all(2)
    assert torch.equal(dense_mask(state.allowed, state.forced, 10), expected)
    alone = dense_mask(torch.tensor([0]), torch.tensor([ROUTE]), 5)  # what is forced need not be allowed besides
    assert alone.nonzero().tolist() == [[0, ROUTE]]


def test_a_thousand_actions_given_as_flags():
    world = Payments(seed=3, sizes=Sizes(flags=10))
    state = payments(world, 1000)
    action = available(dense_mask(state.allowed, state.forced, 10), seeded(1))
    step = world.step(state, flag_bits(10, dtype=torch.int8)[action], world.noise(1000, seeded(2)))
    truth = world.probabilities(state)
    assert truth.shape == (1000, 1024)
    torch.testing.assert_close(
        step.info["probability"], truth.gather(1, action[:, None]).squeeze(1), rtol=0, atol=1e-14
    )
    assert action.unique().numel() > 200


@pytest.mark.parametrize("options", WORLDS.values(), ids=WORLDS)
def test_a_sample_of_the_mask_is_always_accepted(options):
    env = gymnasium.make("Payments-v0", **options)
    env.action_space.seed(0)
    _, info = env.reset(seed=0)
    for _ in range(150):
        action = env.action_space.sample(info["action_mask"])
        observation, _, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(observation)
        assert not truncated
        if terminated:
            _, info = env.reset()


REFUSED_ACTIONS = [
    ({}, TOKEN, "action[2] = 2: not available to this payment, whose interventions allowed are 1 and forced are 1"),
    ({}, 0, "action[2] = 0: not available to this payment"),
    ({}, THREEDS | ROUTE, "action[2] = 17: not available"),
    ({}, 32, "action[2] = 32: not available"),
    ({}, -1, "action[2] = -1: not available"),
    ({"retry": Retry()}, 33, "action[2] = 33: not available"),
    ({"sizes": Sizes(flags=10)}, 0, "action[2] = 0: not available"),
    ({"sizes": Sizes(flags=10)}, 513, "action[2] = 513: not available"),
]


@pytest.mark.parametrize(("options", "action", "message"), REFUSED_ACTIONS, ids=[m for *_, m in REFUSED_ACTIONS])
def test_an_unavailable_action_is_refused_with_its_row(options, action, message):
    world = Payments(**options)
    state = payments(world, 4)
    only_threeds = torch.ones(4, dtype=torch.int64)
    state = replace(state, allowed=only_threeds, forced=only_threeds)
    actions = torch.tensor([1, 1, action, 1])
    if isinstance(world.action_space, MultiBinary):
        actions = flag_bits(10)[actions]
    with pytest.raises(InputError) as refusal:
        world.step(state, actions, answers(4))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("options", "shape"), [({}, (4, 1)), ({}, (1,)), ({"sizes": Sizes(flags=10)}, (4, 9))])
def test_actions_of_another_shape_are_refused(options, shape):
    world = Payments(**options)
    with pytest.raises(InputError, match=r"action of shape .*: must be \(4,"):
        world.step(payments(world, 4), torch.zeros(shape, dtype=torch.int64), answers(4))


INF, NAN = math.inf, math.nan
REFUSALS = [
    (lambda: Sizes(issuers=0), "issuers = 0: must be between 1 and 1000000"),
    (lambda: Sizes(merchants=10**7 + 1), "merchants = 10000001: must be between 1 and 10000000"),
    (lambda: Sizes(countries=1001), "countries = 1001: must be between 1 and 1000"),
    (lambda: Sizes(flags=4), "flags = 4: must be between 5 and 10"),
    (lambda: Sizes(flags=11), "flags = 11: must be between 5 and 10"),
    (lambda: Drift("sudden"), "drift.kind = 'sudden': must be one of ornstein_uhlenbeck, abrupt, seasonal"),
    (lambda: Drift(scale=-0.1), "drift.scale = -0.1: must be at least 0 and finite"),
    (lambda: Drift(scale=INF), "drift.scale = inf: must be at least 0 and finite"),
    (lambda: Drift(return_rate=1.1), "drift.return_rate = 1.1: must be between 0 and 1"),
    (lambda: Drift(generation=0), "drift.generation = 0: must be at least 1 and finite"),
    (lambda: Drift(share=1.2), "drift.share = 1.2: must be between 0 and 1"),
    (lambda: Drift(amplitude=NAN), "drift.amplitude = nan: must be at least 0 and finite"),
    (lambda: Drift(period=0.5), "drift.period = 0.5: must be at least 1 and finite"),
    (lambda: Delay(median_hours=0.0), "delay.median_hours = 0.0: must be at least 1e-06 and finite"),
    (lambda: Delay(sigma=-1.0), "delay.sigma = -1.0: must be at least 0 and finite"),
    (lambda: Delay(never=1.5), "delay.never = 1.5: must be between 0 and 1"),
    (lambda: Delay(decline_factor=0.0), "delay.decline_factor = 0.0: must be at least 1e-06 and finite"),
    (lambda: Retry(soft=-0.1), "retry.soft = -0.1: must be between 0 and 1"),
    (lambda: Retry(attempts=0), "retry.attempts = 0: must be between 1 and 100"),
    (lambda: Retry(attempts=101), "retry.attempts = 101: must be between 1 and 100"),
    (lambda: Retry(fee=-0.01), "retry.fee = -0.01: must be at least 0 and finite"),
    (lambda: Fraud(intercept=51.0), "fraud.intercept = 51.0: must be between -50 and 50"),
    (lambda: Fraud(issuer_scale=-1.0), "fraud.issuer_scale = -1.0: must be at least 0 and finite"),
    (lambda: Fraud(cost=-1.0), "fraud.cost = -1.0: must be at least 0 and finite"),
    (lambda: Outage(rate=2.0), "outage.rate = 2.0: must be between 0 and 1"),
    (lambda: Outage(hours=-1.0), "outage.hours = -1.0: must be at least 0 and finite"),
    (lambda: Outage(factor=1.1), "outage.factor = 1.1: must be between 0 and 1"),
    (lambda: Payments(heterogeneity=-1.0), "heterogeneity = -1.0: must be at least 0 and finite"),
    (lambda: Payments(heterogeneity=NAN), "heterogeneity = nan: must be at least 0 and finite"),
    (lambda: Payments(duration=0.0), "duration = 0.0: must be greater than 0 hours and finite"),
    (lambda: Payments(duration=INF), "duration = inf: must be greater than 0 hours and finite"),
    (lambda: Payments(reward="profit"), "reward = 'profit': must be approval or net_value"),
    (
        lambda: Payments(retry=Retry(), sizes=Sizes(flags=9)),
        "retry: takes at most 8 interventions, here are 9",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSALS, ids=[m for _, m in REFUSALS])
def test_impossible_worlds_are_refused(make, message):
    with pytest.raises(InputError) as refusal:
        make()
    assert str(refusal.value) == message


# --- the libraries -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", WORLDS.values(), ids=WORLDS)
def test_the_checkers_of_gymnasium_and_sb3_pass(options):
    """Both draw actions without asking for the mask, which is put into their hands here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("Payments-v0", **options).unwrapped
        sample = env.action_space.sample
        env.action_space.sample = lambda: sample(env.action_masks().astype(np.int8))
        check_env(env, skip_render_check=True)
        sb3_check_env(env)


@pytest.mark.parametrize("options", WORLDS.values(), ids=WORLDS)
def test_a_rollout_records_the_variables_with_their_units(options):
    world = Payments(seed=1, delay=Delay(), **options)
    flags = isinstance(world.action_space, MultiBinary)

    def policy(observation, state):
        return (state.forced[:, None] >> torch.arange(10) & 1) if flags else state.forced

    data = rollout(world, policy, 5, 300, seed=2)
    for name, variable in world.variables.items():
        assert data[name].dims == ("rep", "time", *variable.dims)
        assert data[name].attrs["units"] == variable.units
    units = {"log_amount": "ln EUR", "hour": "h", "expiry_days": "d", "delay": "h", "issuer": "1"}
    assert {name: data[name].attrs["units"] for name in units} == units
    assert data["reward"].attrs["units"] == ("EUR" if "retry" in options else "1")
    assert bool(data["terminated"].all())
    start = draw(world, 5, 300, seed=2).start
    for name, column in start.columns().items():
        np.testing.assert_array_equal(data[name][:, 0], column)
    assert (data["length"].max() > 1) == ("retry" in options)
    if "retry" not in options:
        np.testing.assert_array_equal(data["reward"], data["approved"])


def test_a_payment_that_has_its_answer_stays_what_it_was():
    data = rollout(Payments(retry=Retry(soft=0.9)), required, 8, 300)
    assert 1 < int(data["length"].max()) < 8
    for name in ("issuer", "log_amount", "hour"):
        assert (data[name] == data[name][:, 0]).all()
    attempts = data["attempt"] - data["attempt"][:, 0]
    np.testing.assert_array_equal(attempts[:, -1], data["length"] - 1)
    assert not data["reward"].where(~data["alive"], 0).any()


def test_every_view_plays_the_same_game():
    world = Payments(seed=1, retry=ALWAYS_SOFT)
    single, vector, sb3 = GymEnv(world), GymVectorEnv(world, 1), SB3VecEnv(world, 1)
    first, info = single.reset(seed=10)
    batched, infos = vector.reset(seed=10)
    sb3.episodes.seed(10)  # SB3's own seed() gives the world another stream than the learner's
    seen = sb3.reset()
    terminated, steps = False, 0
    while not terminated:
        for name, value in first.items():
            np.testing.assert_array_equal(value, batched[name][0])
            np.testing.assert_array_equal(value, seen[name][0])
        np.testing.assert_array_equal(info["action_mask"], infos["action_mask"][0])
        np.testing.assert_array_equal(info["action_mask"], sb3.action_masks()[0])
        action = np.flatnonzero(info["action_mask"])[:1]
        first, reward, terminated, _, info = single.step(action[0])
        batched, rewards, *_, infos = vector.step(action)
        seen, earned, done, _ = sb3.step(action)
        assert done[0] == terminated
        assert reward == rewards[0] == pytest.approx(earned[0], rel=1e-6)
        steps += 1
    assert steps == 5


@pytest.mark.parametrize("options", WORLDS.values(), ids=WORLDS)
def test_many_payments_stream_through_the_views(options):
    """Every row is answered and replaced, its mask beside it; the mean reward is that of the policy."""
    world = Payments(seed=1, dtype=SINGLE, **options)
    vector, sb3 = GymVectorEnv(world, 64), SB3VecEnv(world, 64, seed=0)

    def chosen(masks):
        return (masks == 1).astype(np.int8) if masks.shape[1] == 10 else masks.argmax(1)

    _, infos = vector.reset(seed=0)
    sb3.reset()
    ended = 0
    for _ in range(20):
        observation, reward, terminated, truncated, infos = vector.step(chosen(infos["action_mask"]))
        assert vector.observation_space.contains(observation)
        assert np.isfinite(reward).all()
        assert not truncated.any()
        seen, earned, done, found = sb3.step(chosen(sb3.action_masks()))
        assert all(seen[name].shape == (64, *space.shape) for name, space in sb3.observation_space.items())
        assert np.isfinite(earned).all()
        assert [bool(i) for i in found] == done.tolist()
        ended += int(done.sum())
        if "retry" not in options:
            assert terminated.all()
            assert set(np.unique(reward)) <= {0, 1}
    assert (ended == 20 * 64) == ("retry" not in options)


def test_the_registered_environment_takes_the_fields_of_the_world():
    env = gymnasium.make("Payments-v0", seed=3, scaled=False, fraud=Fraud(), sizes=Sizes(issuers=50)).unwrapped
    assert (env.simulator.seed, env.simulator.fraud, env.action_space) == (3, Fraud(), Discrete(32))
    observation, _ = env.reset(seed=0)
    assert env.observation_space == env.simulator.observation_space
    hour = env.simulator.reset(1, seeded(0)).hour
    assert observation["hour"] == hour.numpy()


# --- the device ----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("flags", [False, True])
def test_the_device_does_not_change_the_world(flags):
    """The device's own payments, brought to the CPU, have there the same masks, truth, drift and answers."""
    options = EVERYTHING | ({"retry": None, "sizes": Sizes(flags=10)} if flags else {})
    here = Payments(seed=2, dtype=SINGLE, **options).drifted(1, seeded(1))
    there = Payments(seed=2, dtype=SINGLE, **options).on("cuda").drifted(1, seeded(1))
    assert_same(here.portfolio, moved(there.portfolio, dtype=SINGLE))
    generator = torch.Generator("cuda").manual_seed(0)
    state, noise = there.reset(20_000, generator), there.noise(20_000, generator)
    local, luck = moved(state, dtype=SINGLE), moved(noise, dtype=SINGLE)
    mask = there.action_mask(state)
    assert torch.equal(mask.cpu(), here.action_mask(local))
    torch.testing.assert_close(there.probabilities(state).cpu(), here.probabilities(local), rtol=0, atol=1e-5)
    action = (mask == 1).long() if flags else available(mask, generator)
    answered, expected = there.step(state, action, noise), here.step(local, action.cpu(), luck)
    probability = expected.info["probability"]
    torch.testing.assert_close(answered.info["probability"].cpu(), probability, rtol=0, atol=1e-5)
    clear = (luck.approval - probability).abs() > 1e-5  # an answer that hangs on the rounding may differ
    assert torch.equal(answered.info["approved"].cpu()[clear], expected.info["approved"][clear])
    same = (answered.info["approved"].cpu() == expected.info["approved"]) & (
        answered.info["chargeback"].cpu() == expected.info["chargeback"]
    )
    assert float(same.double().mean()) > 0.999
    torch.testing.assert_close(answered.reward.cpu()[same], expected.reward[same], rtol=1e-5, atol=1e-5)

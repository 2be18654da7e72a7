import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from apps.payments.oracles import OracleDiverged, Rows, load_oracle
from apps.payments.oracles.homeostatic import HomeostaticSettings
from apps.payments.oracles.mlp import Inputs
from core.errors import InputError
from simulators.payments import Payments, Sizes, dense_mask, flag_bits

SIZES = Sizes(issuers=6, merchants=4, countries=2)
RATES = ("constant", "cosine", "random", "shuffled", "homeostatic", "drive")
# Effects that do not drive the rate to its lower bound, and a memory that is full early.
LIVELY = {"learning_rate": 0.05, "effect": (1.0, -0.2), "memory": 40}


def rows(count, seed=0):
    """Answered payments whose actions were drawn uniformly; every level occurs."""
    world, generator = Payments(seed=1, sizes=SIZES), torch.Generator().manual_seed(seed)
    state = world.reset(count, generator)
    mask = dense_mask(state.allowed, state.forced, SIZES.flags)
    action = torch.multinomial(mask.double(), 1, generator=generator).squeeze(1)
    return Rows(state, action, world.step(state, action, world.noise(count, generator)).reward)


def fit(given, previous=None, seed=0, **settings):
    return HomeostaticSettings(**LIVELY | settings).fit(given, SIZES, seed=seed, previous=previous)


def weights(oracle):
    return torch.cat([w.detach().flatten() for w in oracle.network.parameters()])


def same(one, other):
    a, b = one.state(), other.state()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("rate", ["random", "homeostatic", "shuffled", "drive"])
def test_without_an_effect_every_rule_is_the_constant_rate_to_the_bit(rate):
    given = rows(800)
    oracle, constant = fit(given, rate=rate, effect=(0.0, 0.0)), fit(given, rate="constant")
    assert torch.equal(weights(oracle), weights(constant))
    assert torch.equal(oracle.trace.log_loss, constant.trace.log_loss)
    assert set(oracle.trace.learning_rate.tolist()) == {0.05}


@pytest.mark.parametrize("rate", RATES)
def test_every_rule_stays_within_its_bounds_and_moves(rate):
    found = fit(rows(800), rate=rate, low=1e-4, high=2.0, step=0.5).trace.learning_rate
    assert len(found) == 80
    assert found.max() <= 0.1
    assert (len(set(found.tolist())) > 5) == (rate != "constant")
    if rate == "cosine":
        assert found[0] == 0.05
        assert found[40] == pytest.approx(0.025)
        assert found[-1] < 1e-4
    else:
        assert found.min() >= 1e-4


@pytest.mark.parametrize("rate", ["constant", "random", "homeostatic", "drive"])
def test_two_generations_are_one_stream(rate):
    given = rows(1200)
    whole = fit(given, rate=rate)
    first = fit(given.take(slice(600)), rate=rate)
    # The second fit's seed plays no part: everything random goes on too.
    second = fit(given.take(slice(600, None)), first, seed=9, rate=rate)
    assert torch.equal(weights(second), weights(whole))
    for name in ("learning_rate", "log_loss"):
        parts = torch.cat([getattr(o.trace, name) for o in (first, second)])
        assert torch.equal(parts, getattr(whole.trace, name))


@pytest.mark.parametrize("rate", RATES)
def test_a_saved_oracle_predicts_and_goes_on_as_before(rate, tmp_path):
    given = rows(1000)
    oracle = fit(given.take(slice(600)), rate=rate)
    oracle.save(tmp_path)
    loaded = load_oracle(tmp_path)
    assert loaded.settings == oracle.settings
    assert same(loaded, oracle)
    context = given.context.take(slice(50))
    assert torch.equal(loaded.predict_all(context), oracle.predict_all(context))
    before = weights(oracle)
    more = given.take(slice(600, None))
    assert same(fit(more, loaded, rate=rate), fit(more, oracle, rate=rate))
    assert torch.equal(weights(oracle), before)  # whoever is deployed is left as it is


def test_shuffled_takes_the_rates_of_the_homeostatic_rule_generation_by_generation():
    given = rows(1200)
    first, second = given.take(slice(600)), given.take(slice(600, None))
    regulated, shuffled = (fit(first, rate=rate) for rate in ("homeostatic", "shuffled"))
    pairs = [(regulated, shuffled)]
    pairs.append(tuple(fit(second, o, seed=1, rate=o.settings.rate) for o in pairs[0]))
    for rule, control in pairs:
        ours, theirs = control.trace.learning_rate, rule.trace.learning_rate
        assert not torch.equal(ours, theirs)
        assert torch.equal(ours.sort().values, theirs.sort().values)
    again = fit(first, rate="shuffled", seed=0)
    assert torch.equal(again.trace.learning_rate, shuffled.trace.learning_rate)
    assert not torch.equal(fit(first, rate="shuffled", seed=1).trace.learning_rate, shuffled.trace.learning_rate)


def test_the_traced_loss_of_a_batch_knows_none_of_its_labels():
    given = rows(400)
    flipped = given.reward.clone()
    flipped[200:210] = 1 - flipped[200:210]
    one, other = (fit(replace(given, reward=r), rate="constant").trace.log_loss for r in (given.reward, flipped))
    assert torch.equal(one[:20], other[:20])
    # One batch, its labels turned: -log f and -log (1 - f) of the same predictions.
    assert one[20] != other[20]
    assert (one[21:] != other[21:]).all()
    untouched = fit(given.take(slice(200)), rate="constant")
    f = untouched.predict(given.context.take(slice(200, 210)), given.action[200:210], torch.float32)
    for loss, reward in ((one[20], given.reward), (other[20], flipped)):
        assert loss == pytest.approx(functional.binary_cross_entropy(f, reward[200:210].float()).item(), rel=1e-5)


def test_predictions_are_those_of_the_two_logits():
    given = rows(300)
    oracle = fit(given)
    every = oracle.predict_all(given.context)
    assert every.shape == (300, 32)
    inputs = Inputs.of(given.context, SIZES, "cpu", torch.float32)
    logits = oracle.network(inputs.levels, inputs.numbers, flag_bits(5, dtype=torch.float32)[given.action])
    taken = every.gather(1, given.action[:, None]).squeeze(1)
    assert torch.allclose(logits.softmax(1)[:, 1].double(), taken, atol=1e-6)


def test_levels_never_seen_have_no_effect_until_they_are():
    given = rows(900)
    known, new = given.take(given.context.issuer != 3), given.take(given.context.issuer == 3)
    first = fit(known, rate="constant")
    # Nothing but the issuer differs; its country is left.
    unknown = replace(new.context, issuer=torch.full_like(new.context.issuer, -1))
    assert torch.equal(first.predict_all(new.context), first.predict_all(unknown))
    second = fit(new, first, rate="constant")
    assert not torch.equal(second.predict_all(new.context), second.predict_all(unknown))
    # What was learned of the others is not forgotten with the rows.
    third = fit(known, second, rate="constant")
    assert not torch.equal(third.predict_all(new.context), third.predict_all(unknown))


def test_it_learns():
    oracle = fit(rows(6000), rate="constant")
    fresh = rows(3000, seed=1)
    losses = functional.binary_cross_entropy(oracle.predict(fresh.context, fresh.action), fresh.reward)
    share = fresh.reward.mean()
    entropy = -(share * share.log() + (1 - share) * (1 - share).log())
    assert losses < entropy - 0.02


def test_refusals():
    given = rows(100)
    for message, make in {
        "weight: homeostatic": lambda: fit(replace(given, weight=torch.ones(100))),
        r"reward\[0\] is 0.5": lambda: fit(replace(given, reward=torch.full((100,), 0.5))),
        "previous: its settings": lambda: fit(given, fit(given, rate="drive")),
        "imbalance.method = focal": lambda: HomeostaticSettings().fit(given, SIZES, focus=2.0),
    }.items():
        with pytest.raises(InputError, match=message):
            make()
    with pytest.raises(ValueError, match=r"low = 0\.1: must be at most 0\.05"):
        HomeostaticSettings(learning_rate=0.05, low=0.1)
    with pytest.raises(OracleDiverged, match=r"not finite after \d+ batches"):
        fit(rows(2000), rate="constant", learning_rate=100.0, multiple=1000.0)


def test_thinned_decisions_move_the_rate_less_often():
    given = rows(1200)
    moves = [int((fit(given, rate="random", every=k).trace.learning_rate.diff() != 0).sum()) for k in (1, 6)]
    # A fair coin each decision; four standard errors.
    assert moves[0] == pytest.approx(60, abs=4 * math.sqrt(30))
    assert moves[1] == pytest.approx(10, abs=4 * math.sqrt(5))

"""Scheduled sampling: what a decoder reads in place of a reference, and how rates and shares change with updates."""

import math

import pytest
import torch
from torch import nn

from core.errors import InputError
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.losses import CrossEntropy
from core.sequence.objective import Objective
from core.sequence.rollouts import Drawn
from core.sequence.scheduled import ScheduledSampling
from core.sequence.schedules import constant, cosine, linear, steps
from core.sequence.train import SequencePolicyOptimization
from tests.core.token_batches import ragged

V = 5


class Chain(nn.Module):
    """Reads the symbol before each, and nothing else; counts its passes."""

    eos, vocabulary = 1, V

    def __init__(self, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(V, V, generator=g))
        self.passes = 0

    def score(self, batch, temperature=1.0, need=frozenset(), replace=None):
        self.passes += 1
        read = batch.tokens if replace is None else replace
        before = torch.nn.functional.pad(read, (1, 0))[:, :-1]
        logits = self.table[before] / temperature
        log_prob = logits.log_softmax(-1).gather(-1, batch.tokens.unsqueeze(-1)).squeeze(-1)
        kept = torch.where(batch.valid, log_prob, 0.0)
        return TokenScores(kept, logits=logits if "logits" in need else None)

    def sample(self, context, n, *rest, **named):
        return "drawn", n, rest, named


class Given:
    """A source of the same references again and again."""

    def __init__(self, batch):
        self.batch = batch

    def draw(self, policy, step, generator):
        return Drawn(None, self.batch)


def many(rows=400, length=6):
    """References of random symbols, all of full length."""
    g = torch.Generator().manual_seed(5)
    tokens = torch.randint(2, V, (rows, length), generator=g)
    return TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(rows))


def test_without_a_share_it_is_the_policy_itself():
    policy, batch = Chain(), ragged()
    before = torch.random.get_rng_state()
    found = ScheduledSampling(policy, constant(0.0)).score(batch)
    assert policy.passes == 1
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(found.log_prob, policy.score(batch).log_prob)


def test_with_all_of_the_share_it_reads_its_most_probable_symbols():
    policy, batch = Chain(), ragged()
    scheduled = ScheduledSampling(policy, constant(1.0), greedy=True)
    own = policy.score(batch, need=frozenset({"logits"})).need("logits").argmax(-1)
    expected = torch.where(batch.mask, own, batch.tokens)
    assert torch.equal(scheduled.replaced(batch), expected)
    assert not torch.equal(expected, batch.tokens)
    found = scheduled.score(batch).log_prob
    assert torch.equal(found, policy.score(batch, replace=expected).log_prob)
    assert not torch.equal(found, policy.score(batch).log_prob)


def test_sampled_symbols_have_the_probabilities_of_the_policy():
    policy, batch = Chain(), many(4000)
    torch.manual_seed(0)
    own = ScheduledSampling(policy, constant(1.0)).replaced(batch)
    for symbol in range(2, V):
        here = own[:, 1:][batch.tokens[:, :-1] == symbol]
        share = torch.bincount(here, minlength=V) / len(here)
        expected = policy.table[symbol].detach().softmax(0)
        assert float((share - expected).abs().max()) < 5 * math.sqrt(0.25 / len(here))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_as_many_symbols_are_replaced_as_the_share_says(share):
    class Other(Chain):
        """Believes in a symbol that stands nowhere."""

        def score(self, batch, *rest, **named):
            logits = torch.zeros(*batch.tokens.shape, V)
            logits[..., 0] = 50.0
            return TokenScores(torch.zeros_like(logits[..., 0]), logits=logits)

    batch = many(2000)
    torch.manual_seed(1)
    own = ScheduledSampling(Other(), constant(share)).replaced(batch) == 0
    assert abs(float(own.float().mean()) - share) < 5 * math.sqrt(share * (1 - share) / own.numel())


def test_what_was_forced_and_what_is_padding_stays():
    batch = ragged()
    forced = torch.arange(batch.tokens.shape[1]) < 2
    batch = batch.with_(mask=batch.mask & ~forced, present=batch.mask)
    own = ScheduledSampling(Chain(), constant(1.0), greedy=True).replaced(batch)
    assert torch.equal(own[~batch.mask], batch.tokens[~batch.mask])


def test_a_seed_decides_what_is_replaced():
    batch, scheduled = many(), ScheduledSampling(Chain(), constant(0.5))
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(scheduled.replaced(batch))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_gradient_is_that_of_the_scores_with_these_inputs():
    batch, policy = ragged(), Chain()
    scheduled = ScheduledSampling(policy, constant(1.0), greedy=True)
    inputs = scheduled.replaced(batch)
    (found,) = torch.autograd.grad(scheduled.score(batch).log_prob.sum(), policy.table)
    (expected,) = torch.autograd.grad(policy.score(batch, replace=inputs).log_prob.sum(), policy.table)
    assert torch.equal(found, expected)
    assert not inputs.requires_grad


def test_samples_are_the_policys_own():
    assert ScheduledSampling(Chain(), constant(1.0)).sample("context", 3, 7, prefix=None) == (
        "drawn",
        3,
        (7,),
        {"prefix": None},
    )


def test_a_training_asks_for_the_share_of_each_update_also_when_it_goes_on(tmp_path):
    def training(asked, updates, **options):
        def share(update):
            asked.append(update)
            return 0.5

        policy = Chain()
        made = SequencePolicyOptimization(
            ScheduledSampling(policy, share), Given(ragged()), Objective(supervised=CrossEntropy()), seed=3
        )
        made.train(updates, **options)
        return policy.table.detach()

    whole, parts = [], []
    expected = training(whole, 6)
    training(parts, 4, checkpoint=tmp_path / "state")
    found = training(parts, 6, checkpoint=tmp_path / "state")
    assert sorted(set(whole)) == list(range(6))
    assert parts == whole
    assert torch.equal(found, expected)


# ---- schedules


def test_schedules_have_the_values_they_name():
    assert [constant(0.3)(u) for u in (0, 5)] == [0.3, 0.3]
    line = linear(1.0, 3.0, 4)
    assert [line(u) for u in (0, 1, 2, 4, 9)] == [1.0, 1.5, 2.0, 3.0, 3.0]
    half = cosine(4e-3, 5e-4, 100)
    assert half(0) == pytest.approx(4e-3, rel=1e-12)
    assert half(50) == pytest.approx((4e-3 + 5e-4) / 2, rel=1e-12)
    assert half(25) == pytest.approx(5e-4 + 3.5e-3 * (1 + math.sqrt(0.5)) / 2, rel=1e-12)
    assert half(100) == half(1000) == pytest.approx(5e-4, rel=1e-12)
    assert all(half(u) > half(u + 1) for u in range(100))
    stairs = steps(1.0, {10: 0.25, 4: 0.5})
    assert [stairs(u) for u in (0, 3, 4, 9, 10, 99)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert steps(0.1, {})(7) == 0.1


@pytest.mark.parametrize("schedule", [cosine, linear])
def test_a_schedule_over_no_updates_is_refused(schedule):
    with pytest.raises(InputError, match=r"updates 0; allowed: at least 1"):
        schedule(1.0, 0.0, 0)


def test_a_step_before_the_first_update_is_refused():
    with pytest.raises(InputError, match=r"update -1; allowed: 0 or later"):
        steps(1.0, {-1: 0.5, 3: 0.1})

"""Sampling and scoring of a policy agree, whatever the lengths, the temperature and the forced tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import InputError
from core.sequence.batch import PAD, TokenBatch
from core.sequence.policy import draw_tokens, scores_of
from core.sequence.reductions import reduce
from core.sequence.tasks.brackets import Brackets
from core.sequence.tasks.toy_policy import ToyPolicy

TASK = Brackets(depth=6, kinds=3, shallowest=0)


def policy(seed: int = 0, **options: Any) -> ToyPolicy:
    made = TASK.policy(seed=seed, **options)
    with torch.no_grad():
        made.head.weight *= 4  # further from uniform than a fresh policy is
    return made


def context(prompts: int = 10) -> Tensor:
    found: Tensor = TASK.prompts(prompts, 0, torch.Generator().manual_seed(0)).context
    return found


def prefix(n: int, cut: int) -> TokenBatch:
    """The first ``cut`` tokens of the right answers, n times each."""
    tokens, mask = (x.repeat_interleave(n, 0) for x in TASK.answers(context()))
    forced = mask & (torch.arange(TASK.depth) < cut)
    group = torch.arange(10).repeat_interleave(n)
    return TokenBatch(torch.where(forced, tokens, PAD), torch.zeros_like(forced), group, present=forced)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("cut", [None, 0, 2])
def test_scores_are_the_log_probabilities_of_sampling(temperature: float, cut: int | None) -> None:
    mine = policy()
    forced = None if cut is None else prefix(7, cut)
    batch = mine.sample(context(), 7, TASK.depth, temperature, forced, torch.Generator().manual_seed(1))
    lengths = batch.length
    assert len(lengths.unique()) > 2
    found = mine.score(batch, temperature, frozenset({"entropy", "logits"}))
    torch.testing.assert_close(
        torch.where(batch.mask, found.log_prob, 0.0), batch.need("log_prob_old"), rtol=0, atol=1e-5
    )
    assert (found.log_prob[~batch.valid] == 0).all()
    picked = found.need("logits").log_softmax(-1).gather(-1, batch.tokens.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(torch.where(batch.valid, picked, 0.0), found.log_prob)
    p = torch.distributions.Categorical(logits=found.need("logits"))
    torch.testing.assert_close(found.need("entropy"), p.entropy())


def test_sequences_end_at_the_end_symbol_and_are_padded_after_it() -> None:
    mine = policy()
    batch = mine.sample(context(), 50, TASK.depth, generator=torch.Generator().manual_seed(2))
    t = torch.arange(batch.tokens.shape[1])
    ends = batch.tokens.eq(mine.eos) & batch.mask
    ended = ends.any(1)
    assert 0 < int(ended.sum()) < len(batch)
    assert torch.equal(batch.length[ended], ends.int().argmax(1)[ended] + 1)
    assert (batch.length[~ended] == TASK.depth).all()
    assert (batch.tokens[t >= batch.length.unsqueeze(1)] == PAD).all()
    assert torch.equal(batch.group, torch.arange(10).repeat_interleave(50))


def test_first_tokens_come_as_often_as_they_are_probable() -> None:
    mine = policy()
    n = 20_000
    batch = mine.sample(context(1), n, 1, generator=torch.Generator().manual_seed(3))
    logits, _ = mine.start(context(1), torch.tensor([0]))
    expected = n * logits[0].softmax(0).detach()
    found = batch.tokens[:, 0].bincount(minlength=4)
    # 3 degrees of freedom; 21.1 is exceeded with probability 1e-4.
    assert float(((found - expected) ** 2 / expected).sum()) < 21.1


def test_temperature_0_takes_the_most_probable_tokens() -> None:
    mine = policy()
    one = mine.sample(context(), 1, TASK.depth, 0)
    cold = mine.sample(context(), 1, TASK.depth, 1e-4, generator=torch.Generator())
    assert torch.equal(one.tokens, cold.tokens)


def test_forced_tokens_stand_first_and_are_not_counted() -> None:
    mine, forced = policy(), prefix(5, 3)
    batch = mine.sample(context(), 5, TASK.depth, 1.0, forced, torch.Generator().manual_seed(4))
    wide = batch.pad_to(TASK.depth)
    assert torch.equal(wide.tokens[forced.valid], forced.tokens[forced.valid])
    assert not wide.mask[forced.valid].any()
    assert wide.valid[forced.valid].all()
    assert (wide.need("log_prob_old")[forced.valid] == 0).all()
    # A row whose forced tokens end it samples nothing.
    whole = (forced.tokens.eq(mine.eos) & forced.valid).any(1)
    assert whole.any()
    assert not batch.mask[whole].any()
    assert batch.mask[~whole].any(1).all()


def test_a_row_that_is_forced_throughout_adds_no_loss_and_no_nan() -> None:
    mine, forced = policy(), prefix(2, TASK.depth)
    batch = mine.sample(context(), 2, TASK.depth, 1.0, forced, torch.Generator())
    assert not batch.mask.any()
    for how in ("token", "sequence", "row_sum", "constant"):
        mine.zero_grad()
        loss = reduce(-mine.score(batch).log_prob, batch.mask, how)
        loss.backward()
        assert loss == 0
        assert all((x.grad == 0).all() for x in mine.parameters() if x.grad is not None)


def test_what_follows_forced_tokens_is_what_followed_them() -> None:
    mine = policy()
    with torch.no_grad():
        mine.head.bias[mine.eos] -= 3
    batch = mine.sample(context(), 1, TASK.depth, 0)
    first = batch.mask & (torch.arange(batch.tokens.shape[1]) < 2)
    forced = TokenBatch(batch.tokens * first, torch.zeros_like(first), batch.group, present=first)
    again = mine.sample(context(), 1, TASK.depth, 0, forced)
    assert (batch.length > 2).any()
    assert torch.equal(again.tokens, batch.tokens)
    assert torch.equal(again.mask, batch.mask & ~first)


def test_the_generator_decides() -> None:
    mine = policy()
    first, second, third = (
        mine.sample(context(), 4, TASK.depth, generator=torch.Generator().manual_seed(seed)).tokens
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert first.shape != third.shape or not torch.equal(first, third)


def test_a_policy_in_double_precision_is_sampled_in_it() -> None:
    mine = policy().double()
    batch = mine.sample(context(), 4, TASK.depth, 0.7, generator=torch.Generator().manual_seed(0))
    found = torch.where(batch.mask, mine.score(batch, 0.7).log_prob, 0.0)
    assert batch.need("log_prob_old").dtype == torch.float64
    torch.testing.assert_close(found, batch.need("log_prob_old"), rtol=0, atol=1e-12)


def test_logits_that_are_not_finite_show_in_the_log_probabilities() -> None:
    logits = torch.tensor([[0.0, torch.nan], [torch.inf, 0.0], [-torch.inf, 0.0]])
    token, log_prob = draw_tokens(logits, 1.0, torch.Generator())
    assert log_prob[:2].isnan().all()
    assert token[2] == 1
    assert log_prob[2] == 0


def test_advancing_leaves_the_old_state_and_selecting_repeats_it() -> None:
    mine = policy()
    logits, state = mine.start(context(), torch.arange(10))
    kept = state.clone()
    mine.advance(state, logits.argmax(1))
    assert torch.equal(state, kept)
    rows = torch.tensor([3, 3, 0])
    again, _ = mine.advance(mine.select(state, rows), torch.tensor([0, 1, 2]))
    once, _ = mine.advance(state, torch.zeros(10, dtype=torch.int64))
    torch.testing.assert_close(again[0], once[3])


def test_values_are_of_the_state_before_the_token() -> None:
    mine = policy(value=True)
    batch = mine.sample(context(), 3, TASK.depth, generator=torch.Generator().manual_seed(5))
    other = batch.with_(tokens=torch.where(batch.tokens == 0, 1, 0))
    need = frozenset({"value"})
    torch.testing.assert_close(
        mine.score(batch, need=need).need("value")[:, 0], mine.score(other, need=need).need("value")[:, 0]
    )


def test_a_length_of_0_is_refused() -> None:
    task = Brackets(depth=4, kinds=2)
    context = task.prompts(2, 0, torch.Generator().manual_seed(0)).context
    with pytest.raises(InputError, match="max_length: is 0"):
        task.policy().sample(context, 2, 0)


def test_a_symbol_that_is_ruled_out_costs_neither_entropy_nor_gradient() -> None:
    raw = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    ruled = raw.index_fill(2, torch.tensor([2]), -torch.inf)
    batch = TokenBatch(torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2).long())
    entropy = scores_of(ruled, batch, 0.7, frozenset({"entropy"})).need("entropy")
    rest = torch.distributions.Categorical(logits=raw[:, :, [0, 1, 3]] / 0.7)
    assert torch.allclose(entropy, rest.entropy())
    found, expected = (torch.autograd.grad(x.sum(), raw)[0] for x in (entropy, rest.entropy()))
    assert torch.allclose(found, expected)

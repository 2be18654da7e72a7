"""Search: exact on tiny vocabularies, lawful where the chances are known, the same for one prompt as for many."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import InputError
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.policy import NOTHING, Stepwise
from core.sequence.search import beam, best, best_of_n, greedy, majority_vote, mbr, mean_log_prob, pass_at_k, ranked

EOS, V, T = 2, 4, 4


@dataclass(frozen=True)
class State:
    prompt: Tensor
    seen: Tensor


class Prefixes(Stepwise):
    """Logits that are a fixed random function of the prompt and of the whole prefix, by a table."""

    eos, vocabulary = EOS, V

    def __init__(self, seed: int, prompts: int, length: int = T) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = 2 * torch.randn(prompts, (V + 1) ** length, V, generator=generator)

    def start(self, context: Any, group: Tensor) -> tuple[Tensor, State]:
        state = State(context[group], torch.zeros_like(group))
        return self.table[state.prompt, state.seen], state

    def advance(self, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        state = State(state.prompt, state.seen * (V + 1) + tokens + 1)
        return self.table[state.prompt, state.seen % self.table.shape[1]], state

    def score(self, batch: TokenBatch, temperature: float = 1.0, need: frozenset[str] = NOTHING) -> TokenScores:
        logits, state = self.start(batch.context, batch.group)
        found = []
        for t in range(batch.tokens.shape[1]):
            found.append((logits / temperature).log_softmax(-1).gather(1, batch.tokens[:, t : t + 1]))
            logits, state = self.advance(state, batch.tokens[:, t])
        return TokenScores(torch.where(batch.valid, torch.cat(found, 1), 0.0))


def everything(context: Tensor) -> TokenBatch:
    """All sequences of up to T symbols of every prompt."""
    rows = [
        list(s)
        for n in range(1, T + 1)
        for s in itertools.product(range(V), repeat=n)
        if EOS not in s[:-1] and (s[-1] == EOS or n == T)
    ]
    tokens = torch.tensor([r + [0] * (T - len(r)) for r in rows])
    mask = torch.arange(T) < torch.tensor([len(r) for r in rows]).unsqueeze(1)
    n = len(context)
    group = torch.arange(n).repeat_interleave(len(rows))
    return TokenBatch(tokens.repeat(n, 1), mask.repeat(n, 1), group, context)


def exact(policy: Prefixes, context: Tensor, penalty: float) -> TokenBatch:
    """All sequences, best first."""
    batch = everything(context)
    return ranked(batch, policy.score(batch).log_prob.sum(1) / batch.length**penalty)


def given(*rows: str, group: list[int] | None = None) -> TokenBatch:
    """Letters as tokens; a point is the end symbol."""
    width = max(map(len, rows))
    tokens = torch.tensor([[1 if c == "." else ord(c) for c in r] + [0] * (width - len(r)) for r in rows])
    mask = torch.arange(width) < torch.tensor([len(r) for r in rows]).unsqueeze(1)
    return TokenBatch(tokens, mask, torch.tensor(group or [0] * len(rows)), torch.zeros(2, 1))


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
def test_a_beam_of_all_sequences_finds_the_best_of_all_in_their_order(penalty: float) -> None:
    policy, context = Prefixes(0, 3), torch.arange(3)
    want = exact(policy, context, penalty)
    found = beam(policy, context, V**T, T, penalty)
    each = len(want) // 3
    found = found[(torch.arange(V**T) < each).repeat(3)]
    assert torch.allclose(found.need("reward"), want.need("reward"), atol=1e-5)
    assert torch.equal(found.tokens, want.tokens)
    assert torch.equal(found.mask, want.mask)


def test_width_one_is_greedy() -> None:
    policy, context = Prefixes(1, 40), torch.arange(40)
    one, other = beam(policy, context, 1, T), greedy(policy, context, T)
    assert torch.equal(one.pad_to(T).tokens, other.pad_to(T).tokens)
    assert torch.allclose(one.pad_to(T).need("log_prob_old"), other.pad_to(T).need("log_prob_old"), atol=1e-6)


def test_beam_scores_are_the_policys_and_sorted() -> None:
    policy, context = Prefixes(2, 10), torch.arange(10)
    found = beam(policy, context, 5, T, 0.6)
    assert torch.allclose(found.need("log_prob_old"), policy.score(found).log_prob, atol=1e-5)
    assert torch.allclose(found.need("reward"), policy.score(found).log_prob.sum(1) / found.length**0.6, atol=1e-5)
    score = found.need("reward").view(10, 5)
    assert bool((score[:, 1:] <= score[:, :-1]).all())
    assert all(len({tuple(r) for r in rows}) == 5 for rows in found.tokens.view(10, 5, -1).tolist())


def test_a_prompt_is_answered_alike_alone_and_among_others() -> None:
    policy, context = Prefixes(3, 6), torch.arange(6)
    among = beam(policy, context, 4, T)
    for p in range(6):
        alone = beam(policy, context[p : p + 1], 4, T)
        assert torch.equal(alone.pad_to(T).tokens, among.pad_to(T).tokens[4 * p : 4 * p + 4])


def test_a_constrained_beam_finds_the_best_that_the_grammar_allows() -> None:
    policy, context = Prefixes(4, 8), torch.arange(8)

    def rising(tokens: Tensor, group: Tensor) -> Tensor:
        """No symbol twice in a row, and for odd prompts no end before two symbols."""
        allowed = torch.ones(len(tokens), V, dtype=torch.bool)
        if tokens.shape[1]:
            allowed[torch.arange(len(tokens)), tokens[:, -1]] = False
        if tokens.shape[1] < 2:
            allowed[:, EOS] &= group % 2 == 0
        return allowed

    every = exact(policy, context, 0.6)
    rows = [list(r[:n]) for r, n in zip(every.tokens.tolist(), every.length.tolist(), strict=True)]
    fits = [
        all(a != b for a, b in itertools.pairwise(r)) and (g % 2 == 0 or EOS not in r[:2])
        for r, g in zip(rows, every.group.tolist(), strict=True)
    ]
    found = beam(policy, context, V**T, T, 0.6, rising)
    assert torch.equal(best(found).tokens, best(every[torch.tensor(fits)]).tokens)
    assert int((found.need("reward") > -torch.inf).sum()) == sum(fits)


def test_a_dead_end_leaves_rows_without_a_token_that_no_vote_counts() -> None:
    policy, context = Prefixes(5, 2), torch.arange(2)

    def only_one(tokens: Tensor, group: Tensor) -> Tensor:
        allowed = torch.zeros(len(tokens), V, dtype=torch.bool)
        allowed[:, EOS if tokens.shape[1] else 1] = group == 0
        return allowed

    found = beam(policy, context, 3, T, constraint=only_one)
    assert found.length.tolist() == [2, 0, 0, 0, 0, 0]
    assert found.tokens[0, :2].tolist() == [1, EOS]
    assert not found.tokens[1:].any()
    assert torch.isneginf(found.need("reward")[1:]).all()
    assert torch.isfinite(found.need("log_prob_old")).all()
    assert mbr(found).tolist() == [0.0] + [math.inf] * 5
    assert majority_vote(found).tolist() == [1.0] + [0.0] * 5


def test_logits_that_are_not_finite_spoil_their_own_prompt_alone() -> None:
    policy, context = Prefixes(6, 3), torch.arange(3)
    fine = beam(policy, context, 2, T)
    policy.table[1] = torch.nan
    found = beam(policy, context, 2, T)
    assert found.length[2:4].tolist() == [0, 0]
    assert torch.equal(found.tokens[[0, 1, 4, 5]], fine.tokens[[0, 1, 4, 5]])


def test_a_beam_never_finds_what_has_no_chance() -> None:
    policy, context = Prefixes(9, 3), torch.arange(3)
    policy.table[:, :, 3] = -torch.inf
    want = exact(policy, context, 0.6)
    want = want[~((want.tokens == 3) & want.mask).any(1)]
    found = beam(policy, context, V**T, T, 0.6)
    there = found.need("reward") > -torch.inf
    assert torch.equal(found[there].tokens, want.tokens)
    assert torch.allclose(found[there].need("reward"), want.need("reward"), atol=1e-5)
    assert not found.mask[~there].any()
    assert torch.isneginf(found.need("reward")[~there]).all()


@pytest.mark.parametrize("n", [1, 4, 16])
def test_best_of_n_with_a_verifier_passes_as_often_as_independent_draws_must(n: int) -> None:
    policy, prompts = Prefixes(7, 1), 3000

    def verifier(batch: TokenBatch) -> Tensor:
        return (batch.tokens[:, 0] == 3).float()

    logits, _ = policy.start(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    want = 1 - (1 - float(logits.softmax(-1)[0, 3])) ** n
    found = best_of_n(
        policy, torch.zeros(prompts, dtype=torch.int64), n, T, verifier, generator=torch.Generator().manual_seed(0)
    )
    passed = float(best(found).need("reward").mean())
    assert abs(passed - want) < 4 * math.sqrt(want * (1 - want) / prompts) + 1e-9


def test_best_of_n_ranks_all_its_samples() -> None:
    policy, context = Prefixes(8, 5), torch.arange(5)
    found = best_of_n(policy, context, 6, T, generator=torch.Generator().manual_seed(1))
    assert len(found) == 30
    assert torch.equal(found.group, torch.arange(5).repeat_interleave(6))
    score = found.need("reward").view(5, 6)
    assert torch.equal(score, mean_log_prob(found).view(5, 6))
    assert bool((score[:, 1:] <= score[:, :-1]).all())


def test_pass_at_k_is_the_share_of_subsets_with_a_pass() -> None:
    for n, c in itertools.product([5], range(6)):
        for k in range(1, n + 1):
            subsets = list(itertools.combinations([i < c for i in range(n)], k))
            want = sum(map(any, subsets)) / len(subsets)
            assert float(pass_at_k(torch.tensor([c]), n, k)) == pytest.approx(want, abs=1e-12)
    assert float(pass_at_k(torch.tensor(1), 10**6, 10**3)) == pytest.approx(1e-3)


def test_the_bayes_risk_is_the_mean_distance_to_all_others() -> None:
    batch = given("abc.", "xy.", "abd.", "abc", ".", group=[0, 1, 0, 0, 1])
    assert mbr(batch).tolist() == pytest.approx([2 / 3, 1.0, 1.0, 1.0, 1.0])
    weight = torch.tensor([0.5, 0.25, 0.25, 0.25, 0.75])
    assert mbr(batch, weight).tolist() == pytest.approx([0.5, 1.5, 1.0, 1.0, 0.5])
    assert best(ranked(batch, -mbr(batch, weight))).tokens[:, 0].tolist() == [ord("a"), 1]


def test_the_bayes_risk_agrees_with_a_library() -> None:
    distance = pytest.importorskip("rapidfuzz").distance.Levenshtein.distance
    generator = torch.Generator().manual_seed(0)
    group = torch.randint(0, 4, (40,), generator=generator)
    length = torch.randint(0, 9, (40,), generator=generator)
    mask = torch.arange(8) < length.unsqueeze(1)
    batch = TokenBatch(torch.randint(1, 4, (40, 8), generator=generator) * mask, mask, group, torch.zeros(4, 1))
    rows = [r[:n] for r, n in zip(batch.tokens.tolist(), length.tolist(), strict=True)]
    for i, risk in enumerate(mbr(batch).tolist()):
        others = [distance(rows[i], r) for r, g in zip(rows, group.tolist(), strict=True) if g == group[i] and r]
        assert risk == (pytest.approx(sum(others) / len(others)) if rows[i] else math.inf)


def test_a_majority_is_counted_among_the_sequences_of_a_prompt() -> None:
    batch = given("ab.", "ab.", "b.", "ab.", "ab", group=[0, 0, 0, 1, 0])
    assert majority_vote(batch).tolist() == [0.5, 0.5, 0.25, 1.0, 0.25]
    assert majority_vote(batch, lambda _: torch.tensor([7, 7, 3, 7, 7])).tolist() == [0.75, 0.75, 0.25, 1.0, 0.75]
    with pytest.raises(InputError, match="cluster: returned"):
        majority_vote(batch, lambda _: torch.zeros(4, dtype=torch.int64))


def test_a_score_that_is_no_number_comes_last() -> None:
    batch = ranked(given("a.", "b.", "c."), torch.tensor([torch.nan, 0.0, 1.0]))
    assert batch.tokens[:, 0].tolist() == [ord("c"), ord("b"), ord("a")]


def test_impossible_searches_are_refused() -> None:
    policy, context = Prefixes(0, 1), torch.arange(1)
    with pytest.raises(InputError, match="width is 0"):
        beam(policy, context, 0, T)
    with pytest.raises(InputError, match="n: is 0"):
        best_of_n(policy, context, 0, T)
    with pytest.raises(InputError, match="constraint: returned"):
        beam(policy, context, 2, T, constraint=lambda tokens, group: torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(InputError, match="k: is 6"):
        pass_at_k(torch.tensor(1), 5, 6)
    with pytest.raises(InputError, match="passed: holds"):
        pass_at_k(torch.tensor(9), 5, 2)

"""Search that goes by values: exact where the tree is small, and against a plain tree search of one prompt."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import InputError
from core.sequence.batch import TokenBatch
from core.sequence.edit_distance import prefix_edit_distances
from core.sequence.search import (
    Counted,
    beam,
    best,
    best_of_n,
    shaped,
    state_value,
    tree_search,
    value_beam,
)
from core.sequence.tasks.count_down import CountDown, MovesPolicy
from core.sequence.tasks.random_tree import RandomTree, TabularPolicy
from core.sequence.tasks.toy_policy import ToyPolicy


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy(seed: int, value: bool = False) -> ToyPolicy:
    """Sequences over 5 symbols, of which 1 ends them; its logits are spread out so that lengths differ."""
    policy = ToyPolicy(2, 7, 5, 1, hidden=16, value=value, seed=seed).eval()
    with torch.no_grad():
        policy.head.weight.mul_(6)
    return policy


CONTEXT = torch.cartesian_prod(torch.arange(7), torch.arange(7))


def test_a_value_beam_of_one_and_one_is_sampling() -> None:
    policy = toy(0)
    found = value_beam(policy, CONTEXT, 1, 1, 9, lambda _, b: b.length.float(), generator=seeded(3))
    want = policy.sample(CONTEXT, 1, 9, generator=seeded(3))
    assert len(set(want.length.tolist())) > 3
    assert torch.equal(found.tokens, want.pad_to(9).tokens)
    assert torch.allclose(found.need("log_prob_old"), want.pad_to(9).need("log_prob_old"), atol=1e-6)


def test_a_value_beam_judges_at_the_ends_of_steps_and_reports_the_policys_own_probabilities() -> None:
    policy, space = toy(1), torch.tensor([2])
    judged: list[TokenBatch] = []

    def value(_: Any, batch: TokenBatch) -> Tensor:
        judged.append(batch)
        return (batch.tokens == 3).sum(1).float()

    found = value_beam(policy, CONTEXT, 3, 2, 9, value, space, 0.7, seeded(0))
    for batch in judged:
        last = batch.tokens.gather(1, batch.length.unsqueeze(1) - 1).squeeze(1)
        assert bool(((last == 2) | (last == 1) | (batch.length == 9)).all())
    assert len(judged) > 2
    assert torch.equal(found.need("reward"), (found.tokens == 3).sum(1).float())
    assert torch.allclose(policy.score(found, 0.7).log_prob, found.need("log_prob_old"), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_perfect_value_never_misses_where_the_draws_cover_the_choices(seed: int) -> None:
    tree = RandomTree(depth=6, branching=2, rewarded=0.05, seed=seed)
    policy = TabularPolicy(tree, torch.zeros(tree.nodes, 2, dtype=torch.float64))

    def value(_: Any, batch: TokenBatch) -> Tensor:
        """The best leaf below a prefix."""
        number = torch.zeros_like(batch.group)
        for token, there in zip(batch.tokens.unbind(1), batch.valid.unbind(1), strict=True):
            number = torch.where(there, 2 * number + token, number)
        first, last = number * 2 ** (tree.depth - batch.length), (number + 1) * 2 ** (tree.depth - batch.length)
        count = torch.cat([torch.zeros(1), tree.leaf_reward.cumsum(0)])
        return (count[last] > count[first]).float()

    context = torch.zeros(5, 1)
    found = best(value_beam(policy, context, 1, 30, tree.depth, value, generator=seeded(seed)))
    assert found.need("reward").tolist() == [1.0] * 5


@pytest.mark.parametrize("seed", range(8))
def test_a_score_judges_what_the_length_has_ended(seed: int) -> None:
    """The policy's value is right before each token, and means nothing after the last one."""
    tree = RandomTree(depth=4, branching=2, seed=seed)
    policy = TabularPolicy(tree, torch.zeros(tree.nodes, 2, dtype=torch.float64))
    with torch.no_grad():
        policy.value.copy_(tree.soft_optimal(0.02)[1])
    prompts = tree.prompts(5, 0, seeded(0))

    def score(batch: TokenBatch) -> Tensor:
        return tree.reward(batch, prompts)

    found = value_beam(policy, prompts.context, 1, 30, tree.depth, generator=seeded(seed), score=score)
    assert found.need("reward").tolist() == [1.0] * 5
    assert score(found).tolist() == [1.0] * 5


def test_what_a_score_says_of_unfinished_sequences_is_not_used() -> None:
    def score(batch: TokenBatch) -> Tensor:
        """Of no use before the end symbol or the length."""
        ended = (batch.tokens == 1).any(1) | (batch.length == 6)
        return torch.where(ended, batch.length.float(), 100.0)

    policy = toy(2)
    found = value_beam(policy, CONTEXT, 2, 4, 6, lambda _, b: -b.length.float(), generator=seeded(1), score=score)
    assert torch.equal(found.need("reward"), found.length.float())


def test_values_that_are_infinite_or_no_numbers_stay_below_all_others() -> None:
    policy = toy(2)

    def value(_: Any, batch: TokenBatch) -> Tensor:
        return torch.tensor([-torch.inf, torch.nan]).repeat(len(batch))[: len(batch)]

    found = value_beam(policy, CONTEXT, 4, 8, 6, value, generator=seeded(1))
    assert torch.isneginf(found.need("reward")).all()
    for rows, lengths in zip(found.tokens.view(-1, 4, 6).tolist(), found.length.view(-1, 4).tolist(), strict=True):
        assert len({(*r, n) for r, n in zip(rows, lengths, strict=True)}) == 4


def test_equal_sequences_count_once() -> None:
    policy = toy(2)
    found = value_beam(policy, CONTEXT, 4, 8, 6, lambda _, b: -b.length.float(), generator=seeded(1))
    for rows, lengths in zip(found.tokens.view(-1, 4, 6).tolist(), found.length.view(-1, 4).tolist(), strict=True):
        assert len({(*r, n) for r, n in zip(rows, lengths, strict=True)}) == 4


def test_the_policys_value_is_that_of_the_state_a_sequence_has_reached() -> None:
    policy = toy(3, value=True)
    batch = policy.sample(CONTEXT, 2, 6, generator=seeded(0))
    full = policy.score(batch.pad_to(7), need=frozenset({"value"})).need("value")
    ended = batch.tokens.gather(1, batch.length.unsqueeze(1) - 1).squeeze(1) == policy.eos
    assert ended.any()
    assert not ended.all()
    want = full.gather(1, (batch.length - ended.long()).unsqueeze(1)).squeeze(1)
    assert torch.allclose(state_value(policy, batch), want, atol=1e-6)
    assert torch.isfinite(value_beam(policy, CONTEXT, 2, 2, 6, generator=seeded(0)).need("reward")).all()


def plain_search(policy: ToyPolicy, context: Tensor, simulations: int, length: int, c: float, expand: int) -> list[Any]:
    """The prefixes that a PUCT of one prompt adds, in their order, with node objects and the policy run anew."""

    def children(prefix: tuple[int, ...]) -> dict[int, list[float]]:
        """Prior, visits, total of each."""
        if prefix and (prefix[-1] == policy.eos or len(prefix) == length):
            return {}
        logits, state = policy.start(context, torch.zeros(1, dtype=torch.int64))
        for token in prefix:
            logits, state = policy.advance(state, torch.tensor([token]))
        prior, token = logits.softmax(-1)[0].topk(expand)
        return {int(t): [float(p), 0, 0.0] for p, t in zip(prior, token, strict=True)}

    nodes: dict[tuple[int, ...], dict[int, list[float]]] = {(): children(())}
    seen_whole: set[tuple[int, ...]] = set()
    order = []
    for _ in range(simulations):
        prefix: tuple[int, ...] = ()
        while prefix in nodes:
            edges = nodes[prefix]
            root = math.sqrt(max(1, sum(n for _, n, _ in edges.values())))
            worth = {
                (*prefix, a): total / max(1, n) + c * prior * root / (1 + n)
                for a, (prior, n, total) in edges.items()
                if (*prefix, a) not in seen_whole
            }
            prefix = max(worth, key=lambda child: worth[child])
        order.append(prefix)
        nodes[prefix] = children(prefix)
        for n in range(len(prefix), 0, -1):
            edge = nodes[prefix[: n - 1]][prefix[n - 1]]
            edge[1] += 1
            edge[2] += liking(prefix)
            if all((*prefix[:n], a) in seen_whole for a in nodes[prefix[:n]]):
                seen_whole.add(prefix[:n])
    return order


def liking(prefix: tuple[int, ...]) -> float:
    return math.sin(sum((i + 1) * (t + 1) for i, t in enumerate(prefix)))


@torch.no_grad()
def test_the_trees_of_many_prompts_are_those_of_a_plain_search_of_each() -> None:
    policy, length, simulations = toy(4), 4, 40
    added: list[list[tuple[int, ...]]] = [[] for _ in range(6)]

    def value(_: Any, batch: TokenBatch) -> Tensor:
        rows = [tuple(r[:n]) for r, n in zip(batch.tokens.tolist(), batch.length.tolist(), strict=True)]
        for where, row in zip(added, rows, strict=True):
            where.append(row)
        return torch.tensor([liking(r) for r in rows])

    def score(batch: TokenBatch) -> Tensor:
        rows = zip(batch.tokens.tolist(), batch.length.tolist(), strict=True)
        return torch.tensor([liking(tuple(r[:n])) for r, n in rows])

    context = CONTEXT[::8][:6]
    found = tree_search(policy, context, simulations, length, score, value=value, expand=3, c_puct=1.5)
    for p in range(6):
        assert added[p] == plain_search(policy, context[p : p + 1], simulations, length, 1.5, 3)
    assert len(found) == 6 * simulations
    assert torch.allclose(found.need("reward"), score(found))
    assert torch.allclose(policy.score(found).log_prob, found.need("log_prob_old"), atol=1e-5)


def test_a_tree_is_seen_whole_once_and_then_left_alone() -> None:
    tree = RandomTree(depth=3, branching=2, rewarded=0.1, seed=1)
    policy, prompts = TabularPolicy(tree), torch.zeros(2, 1)

    def score(batch: TokenBatch) -> Tensor:
        return tree.reward(batch, tree.prompts(2, 0, seeded(0)))

    found = tree_search(policy, prompts, 20, 3, score, expand=2, generator=seeded(0))
    reward = found.need("reward").view(2, 20)
    assert reward[:, 0].tolist() == [1.0, 1.0]
    assert torch.isneginf(reward[:, 14:]).all()
    assert torch.isfinite(reward[:, :14]).all()
    assert found.length.view(2, 20)[:, 14:].eq(0).all()
    assert not found.need("log_prob_old")[~found.mask].any()
    assert all(len({tuple(r) for r in rows}) == 8 for rows in found.tokens.view(2, 20, 3)[:, :14].tolist())


@pytest.mark.parametrize("floor", [0.0, -1.0])
def test_scores_of_minus_infinity_repeat_no_simulation(floor: float) -> None:
    """Each of the 3 + 9 + 27 nodes takes one simulation, so as many see every leaf; at floor -1 all scores are -inf."""
    tree = RandomTree(depth=3, branching=3, seed=1)
    prompts = tree.prompts(2, 0, seeded(0))

    def score(batch: TokenBatch) -> Tensor:
        return (tree.reward(batch, prompts) + floor).clamp(min=0).log()

    found = tree_search(TabularPolicy(tree), prompts.context, 39, 3, score, expand=3, generator=seeded(0))
    assert found.length.tolist() == [3] * 78
    assert all(len({tuple(r) for r in rows}) == 27 for rows in found.tokens.view(2, 39, 3).tolist())


def test_a_share_of_right_answers_is_what_even_draws_find() -> None:
    task = CountDown(3)
    context = task.prompts(40, 0, seeded(0)).context
    share = task.share_right(context)
    assert bool((share > 0).all())
    assert len(task.answers()) == 9 * 3
    found = best_of_n(MovesPolicy(task), context, 300, 2, task.verify, generator=seeded(1))
    passed = found.need("reward").view(40, 300).mean(1)
    assert bool(((passed - share).abs() <= 5 * (share * (1 - share) / 300).sqrt() + 1e-6).all())


def test_references_are_right_and_forbidden_answers_are_not() -> None:
    task = CountDown(4)
    prompts = task.prompts(100, 0, seeded(2))
    assert prompts.reference is not None
    assert task.reward(prompts.reference, prompts).tolist() == [1.0] * 100
    context = torch.tensor([[2, 3, 4, 5, 6]])
    # Place 2 is empty after the first token; an answer that ends early, and one that is too short.
    for tokens in ([1, 1, 1], [1, 4, 0], [1, 4]):
        row = torch.tensor([tokens])
        batch = TokenBatch(row, torch.ones_like(row, dtype=torch.bool), torch.zeros(1, dtype=torch.int64), context)
        assert task.verify(batch).tolist() == [0.0]
    with pytest.raises(InputError, match="n = 1"):
        CountDown(1)


def test_success_rises_with_the_budget_to_the_exact_optimum() -> None:
    task = CountDown(4)
    context = task.prompts(100, 0, seeded(3)).context
    policy, n = MovesPolicy(task), 64
    want = float((1 - (1 - task.share_right(context)) ** n).mean())
    drawn = best(best_of_n(policy, context, n, 3, task.verify, generator=seeded(4)))
    assert abs(float(drawn.need("reward").mean()) - want) < 4 * math.sqrt(want * (1 - want) / 100)
    success, cost = [], []
    for simulations in (1, 4, 16, 64):
        counted = Counted(policy)
        found = tree_search(counted, context, simulations, 3, task.verify, expand=19, generator=seeded(5))
        success.append(float(best(found).need("reward").mean()))
        cost.append(counted.tokens)
    assert success == sorted(success)
    assert success[-1] > success[0] + 0.2
    assert all(a < b for a, b in itertools.pairwise(cost))


def test_all_prefixes_seen_means_every_target_reached() -> None:
    task = CountDown(3)
    context = task.prompts(20, 0, seeded(6)).context
    found = tree_search(MovesPolicy(task), context, 9 + 27, 2, task.verify, expand=10, generator=seeded(0))
    assert best(found).need("reward").tolist() == [1.0] * 20


def test_the_budget_counts_every_distribution() -> None:
    tree = RandomTree(depth=4, branching=3)
    counted, context = Counted(TabularPolicy(tree)), torch.zeros(5, 1)
    beam(counted, context, 2, 4)
    assert counted.tokens == 5 + 3 * 10
    counted.tokens = 0
    best_of_n(counted, context, 7, 4, generator=seeded(0))
    assert counted.tokens == 35 * 4


def test_shaping_changes_all_returns_of_a_prompt_alike() -> None:
    tree = RandomTree(depth=4, branching=3, seed=2)
    leaves = tree.leaves()
    reward = torch.randn(len(leaves), generator=seeded(0), dtype=torch.float64)
    policy = TabularPolicy(tree)
    with torch.no_grad():
        policy.value.copy_(torch.randn(tree.nodes, generator=seeded(1), dtype=torch.float64))
        potential = policy.score(leaves, need=frozenset({"value"})).need("value")
    total = shaped(reward, potential, leaves.valid).sum(1)
    assert torch.allclose(total - reward, -potential[:, 0], atol=1e-10)
    assert int(total.argmax()) == int(reward.argmax())
    half = shaped(reward, potential, leaves.valid, 0.5)
    discount = 0.5 ** torch.arange(4)
    assert torch.allclose((half * discount).sum(1) - 0.5**3 * reward, -potential[:, 0], atol=1e-10)


def test_the_dense_edit_reward_is_a_shaped_one() -> None:
    tokens = torch.randint(1, 4, (50, 6), generator=seeded(0))
    reference = torch.randint(1, 4, (50, 5), generator=seeded(1))
    length = torch.randint(1, 6, (50,), generator=seeded(2))
    mask = torch.arange(6) < torch.randint(1, 7, (50, 1), generator=seeded(3))
    after = prefix_edit_distances(tokens, mask, reference, length).float()
    before = torch.cat([length.unsqueeze(1).float(), after[:, :-1]], 1)
    dense = torch.where(mask, before - after, 0.0)
    assert torch.equal(shaped(-after[:, -1], -before, mask), dense)
    with pytest.raises(InputError, match="potential: has shape"):
        shaped(after[:, -1], before[:, 1:], mask)


def test_impossible_searches_are_refused() -> None:
    policy = toy(0)
    with pytest.raises(InputError, match="value_beam: width"):
        value_beam(policy, CONTEXT, 0, 1, 3, lambda _, b: b.length)
    with pytest.raises(InputError, match="tree_search: simulations"):
        tree_search(policy, CONTEXT, 0, 3, lambda b: b.length)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_searches_run_where_the_prompts_are_and_find_the_same() -> None:
    policy = toy(5)
    want = beam(policy, CONTEXT, 4, 9), beam(policy, CONTEXT, 1, 9)
    policy.to("cuda")
    context = CONTEXT.to("cuda")
    for batch, width in zip(want, (4, 1), strict=True):
        found = beam(policy, context, width, 9)
        assert found.tokens.is_cuda
        assert torch.allclose(found.need("reward").cpu(), batch.need("reward"), atol=1e-4)
    task = CountDown(3, device="cuda")
    targets = task.prompts(20, 0, torch.Generator("cuda").manual_seed(0)).context
    generator = torch.Generator("cuda").manual_seed(1)
    seen = tree_search(MovesPolicy(task), targets, 36, 2, task.verify, expand=10, generator=generator)
    assert best(seen).need("reward").tolist() == [1.0] * 20
    space = torch.tensor([2], device="cuda")
    kept = value_beam(policy, context, 3, 2, 9, lambda _, b: b.length.float(), space, generator=generator)
    assert torch.allclose(policy.score(kept).log_prob, kept.need("log_prob_old"), atol=1e-4)

"""Rounds of search and imitation: what is kept, what a round is, and that rounds help."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from core.errors import InputError
from core.seeds import stream
from core.sequence.batch import TokenBatch
from core.sequence.expert_iteration import ExpertIteration, Imitation, Search, Successes, Weighted
from core.sequence.losses import CrossEntropy, Reinforce
from core.sequence.objective import Objective
from core.sequence.pairs import draw_pairs
from core.sequence.preferences import DPO
from core.sequence.rollouts import Prompts, Recorded, Supervised
from core.sequence.search import best_of_n, greedy
from core.sequence.tasks.modular_chain import ModularChain
from core.sequence.tasks.toy_policy import ToyPolicy
from core.sequence.train import SequencePolicyOptimization


def warm(task: ModularChain, seed: int, updates: int) -> ToyPolicy:
    """A policy that is right now and then."""
    policy = task.policy(seed=seed)
    objective = Objective(supervised=CrossEntropy())
    source = Supervised(task, 256)
    SequencePolicyOptimization(
        policy, source, objective, learning_rate=2e-3, optimizer=torch.optim.Adam, seed=seed
    ).train(updates)
    return policy


def searching(task: ModularChain, prompts: Prompts, n: int = 8) -> Search:
    """The best of n samples of every prompt."""
    return lambda policy, _, generator: best_of_n(
        policy, prompts.context, n, 4, lambda batch: task.reward(batch, prompts), generator=generator
    )


def accuracy(task: ModularChain, prompts: Prompts, policy: ToyPolicy) -> float:
    with torch.no_grad():
        return float(task.reward(greedy(policy, prompts.context, 4), prompts).mean())


def rows(reward: list[float], group: list[int], tokens: list[list[int]]) -> TokenBatch:
    found = torch.tensor(tokens)
    return TokenBatch(found, found >= 0, torch.tensor(group), torch.arange(max(group) + 1), reward=torch.tensor(reward))


def test_successes_are_kept_once_each_with_their_prompts() -> None:
    batch = rows([1.0, 0.0, 1.0, 1.0, 1.0], [2, 2, 2, 0, 0], [[1, 2], [3, 4], [1, 2], [1, 2], [4, 4]])
    kept = Successes()(batch)
    assert kept.tokens.tolist() == [[1, 2], [1, 2], [4, 4]]
    assert kept.context[kept.group].tolist() == [2, 0, 0]
    assert len(Successes(2.0)(batch)) == 0


def test_weights_lie_between_the_best_alone_and_all_alike() -> None:
    batch = rows([1.0, 2.0, 4.0, 7.0, 7.0], [0, 0, 0, 1, 1], [[1, 2]] * 5)
    assert Weighted(1e9)(batch).need("advantage").flatten().tolist() == pytest.approx([1.0] * 10)
    assert Weighted(1e-2)(batch).need("advantage")[:, 0].tolist() == pytest.approx([0, 0, 3, 1, 1])
    want = 3 * torch.tensor([1.0, 2.0, 4.0]).softmax(0)
    assert torch.allclose(Weighted(1.0)(batch).need("advantage")[:3, 0], want)
    lost = batch.with_(reward=torch.tensor([1.0, -torch.inf, 1.0, -torch.inf, -torch.inf]))
    assert Weighted()(lost).need("advantage").tolist() == [[1.0, 1.0]] * 2
    with pytest.raises(InputError, match="temperature is 0"):
        Weighted(0.0)


def test_one_round_is_behaviour_cloning_of_what_was_kept() -> None:
    task = ModularChain(5)
    every, policy = task.of(task.every), warm(task, 0, 40)
    other = copy.deepcopy(policy)
    search, learn = searching(task, every), Imitation(updates=20)
    ExpertIteration(search, learn, rounds=1).run(policy, seed=3)
    with torch.no_grad():
        batch = search(other, 0, torch.Generator().manual_seed(stream(3, "search 0")))
    right = batch[batch.need("reward") == 1]
    clone = SequencePolicyOptimization(
        other, Recorded(Successes()(right), 256), Objective(policy=CrossEntropy()), seed=stream(3, "learning 0")
    )
    clone.train(20)
    for a, b in zip(policy.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("restart", [True, False])
def test_each_round_starts_from_the_first_policy_or_from_the_last(restart: bool) -> None:
    task = ModularChain(3)
    every, policy = task.of(task.every), task.policy()
    seen: list[Tensor] = []

    def learn(policy: torch.nn.Module, batch: TokenBatch, seed: int) -> None:
        weight = next(policy.parameters())
        seen.append(weight.detach().clone())
        with torch.no_grad():
            weight.add_(1.0)

    ExpertIteration(searching(task, every), learn, Successes(0.0), rounds=3, restart=restart).run(policy, 0)
    steps = [float((x - seen[0]).mean()) for x in seen]
    assert steps == pytest.approx([0, 0, 0] if restart else [0, 1, 2], abs=1e-5)


def test_a_round_without_success_changes_nothing() -> None:
    task = ModularChain(5)
    every, policy = task.of(task.every), task.policy()
    before = copy.deepcopy(policy.state_dict())
    records = ExpertIteration(searching(task, every), select=Successes(2.0), rounds=2).run(policy, 0)
    assert [r["kept"] for r in records] == [0.0, 0.0]
    assert [r["solved"] for r in records] == [0.0, 0.0]
    for name, x in policy.state_dict().items():
        assert torch.equal(x, before[name])
    with pytest.raises(InputError, match="rounds is 0"):
        ExpertIteration(searching(task, every), rounds=0)


@pytest.mark.parametrize(
    ("select", "objective"),
    [(Successes(), Objective(policy=CrossEntropy())), (Weighted(0.1), Objective(policy=Reinforce()))],
    ids=["successes", "weighted"],
)
def test_imitation_of_a_search_makes_the_policy_right_more_often(
    select: Callable[[TokenBatch], TokenBatch], objective: Objective
) -> None:
    task = ModularChain(5)
    every, policy = task.of(task.every), warm(task, 1, 35)
    before = accuracy(task, every, policy)
    learn = Imitation(objective, updates=40, learning_rate=2e-3)
    ExpertIteration(searching(task, every), learn, select, rounds=1).run(policy, 0)
    assert accuracy(task, every, policy) > before + 0.04


def test_the_best_and_the_worst_of_a_search_are_told_apart() -> None:
    task = ModularChain(5)
    every, policy = task.of(task.every), warm(task, 1, 35)
    kept: list[TokenBatch] = []

    def pairs(batch: TokenBatch) -> TokenBatch:
        kept.append(draw_pairs(batch, "worst", torch.Generator().manual_seed(0)))
        return kept[-1]

    def margin() -> Tensor:
        """How much more probable the right answers are than the wrong ones."""
        with torch.no_grad():
            won, lost = policy.score(kept[0]).log_prob.sum(1).view(-1, 2).unbind(1)
        return (won - lost).mean()

    with torch.no_grad():
        pairs(searching(task, every)(policy, 0, torch.Generator().manual_seed(stream(0, "search 0"))))
    before = margin()
    learn = Imitation(Objective(policy=DPO()), updates=20, learning_rate=3e-4, against_itself=True)
    ExpertIteration(searching(task, every), learn, pairs, rounds=1).run(policy, 0)
    assert torch.equal(kept[0].tokens, kept[1].tokens)
    assert margin() > before + 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_greedy_accuracy_rises_in_each_of_four_rounds(seed: int) -> None:
    task = ModularChain(11)
    every, policy = task.of(task.every), warm(task, seed, 150)
    found = [accuracy(task, every, policy)]
    learn = Imitation(updates=150, learning_rate=2e-3)
    ExpertIteration(searching(task, every), learn).run(
        policy, seed, lambda _, policy, __: found.append(accuracy(task, every, policy))
    )
    assert found == sorted(set(found))


def test_a_success_is_kept_where_a_verifier_has_refused_the_same_sequence_before() -> None:
    tokens = torch.tensor([[1, 2], [1, 2], [1, 2], [3, 4]])
    batch = TokenBatch(tokens, tokens > 0, torch.zeros(4, dtype=torch.int64), torch.zeros(1, 1))
    kept = Successes()(batch.with_(reward=torch.tensor([0.0, 1.0, 1.0, 0.0])))
    assert kept.tokens.tolist() == [[1, 2]]

"""The toy tasks: their verifiers agree with a check by hand, and their right answers are right."""

from __future__ import annotations

import itertools

import pytest
import torch

from core.errors import InputError
from core.sequence.batch import TokenBatch
from core.sequence.losses import CrossEntropy
from core.sequence.rollouts import Prompts, Supervised
from core.sequence.tasks.brackets import Brackets
from core.sequence.tasks.modular_chain import ModularChain
from core.sequence.train import Objective, SequencePolicyOptimization


def rows(sequences: list[tuple[int, ...]], eos: int) -> TokenBatch:
    """Sequences that end at ``eos`` or where they end, all of the prompt 0."""
    longest = max(len(x) for x in sequences)
    tokens = torch.zeros(len(sequences), longest, dtype=torch.int64)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, x in enumerate(sequences):
        tokens[i, : len(x)], mask[i, : len(x)] = torch.tensor(x), True
    assert all(eos not in x[:-1] for x in sequences)
    return TokenBatch(tokens, mask, torch.zeros(len(sequences), dtype=torch.int64))


def test_the_answers_of_the_chain() -> None:
    task = ModularChain(p=5)
    answers = task.answers(task.every).tolist()
    for (a, b, c), answer in zip(task.every.tolist(), answers, strict=True):
        s, q = (a + b) % 5, a * c % 5
        u = (s + q) % 5
        assert answer == [s, q, u, (u * b + a) % 5]


def test_only_one_answer_in_all_is_right() -> None:
    task = ModularChain(p=3)
    every = list(itertools.product(range(4), repeat=4))
    ended = sorted({x[: x.index(3) + 1] if 3 in x else x for x in every})
    prompts = task.of(torch.tensor([[1, 2, 2]]))
    reward = task.reward(rows(ended, eos=3), prompts)
    assert reward.sum() == 1
    assert ended[int(reward.argmax())] == (0, 2, 2, 2)


def test_answers_that_all_end_early_are_wrong() -> None:
    task = ModularChain(p=3)
    batch = rows([(0, 2, 2), (3,)], eos=3)
    assert task.reward(batch, task.of(torch.tensor([[1, 2, 2]]))).tolist() == [0, 0]


def test_prompts_are_drawn_without_repetition() -> None:
    task = ModularChain(p=4)
    generator = torch.Generator().manual_seed(0)
    assert len(task.prompts(64, 0, generator).context.unique(dim=0)) == 64
    assert len(task.every) == 64
    more = task.prompts(100, 0, generator).context
    assert more.shape == (100, 3)
    assert int(more.max()) == 3


def balanced(prompt: list[int], answer: tuple[int, ...], eos: int) -> bool:
    stack = [kind - 1 for kind in reversed(prompt) if kind]
    for token in answer:
        if token == eos:
            return not stack
        if not stack or stack.pop() != token:
            return False
    return not stack


@pytest.mark.parametrize("prompt", [[0, 0, 0], [2, 0, 0], [1, 2, 0], [1, 1, 2]])
def test_brackets_are_verified_as_with_a_stack(prompt: list[int]) -> None:
    task, eos = Brackets(depth=3, kinds=2, shallowest=0), 2
    every = itertools.product(range(3), repeat=3)
    ended = sorted({x[: x.index(eos) + 1] if eos in x else x for x in every})
    reward = task.reward(rows(ended, eos), task.of(torch.tensor([prompt])))
    assert reward.tolist() == [float(balanced(prompt, answer, eos)) for answer in ended]
    assert reward.sum() == 1


@pytest.mark.parametrize("prompt", [[0, 0, 0], [1, 2, 0], [1, 1, 2]])
def test_brackets_longer_than_the_depth_are_verified_as_with_a_stack(prompt: list[int]) -> None:
    task, eos = Brackets(depth=3, kinds=2, shallowest=0), 2
    every = itertools.product(range(3), repeat=5)
    ended = sorted({x[: x.index(eos) + 1] if eos in x else x for x in every})
    reward = task.reward(rows(ended, eos), task.of(torch.tensor([prompt])))
    assert reward.tolist() == [float(balanced(prompt, answer, eos)) for answer in ended]
    assert reward.sum() == 1


def test_a_second_end_symbol_is_wrong() -> None:
    task = Brackets(depth=3, kinds=2)
    tokens = torch.tensor([[0, 1, 2, 2], [0, 1, 2, 0]])
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    batch = TokenBatch(tokens, mask, torch.zeros(2, dtype=torch.int64))
    assert task.reward(batch, task.of(torch.tensor([[1, 2, 0]]))).tolist() == [0, 1]


@pytest.mark.parametrize(
    "task", [ModularChain(p=7), Brackets(depth=5, kinds=3), Brackets(depth=4, kinds=2, shallowest=4)]
)
def test_references_have_reward_1(task: ModularChain | Brackets) -> None:
    prompts = task.prompts(40, 0, torch.Generator().manual_seed(1))
    assert prompts.reference is not None
    assert prompts.reference.tokens.shape[1] == task.max_length
    batch = prompts.reference.with_(context=prompts.context)
    assert (task.reward(batch, prompts) == 1).all()
    rotated = batch.with_(group=batch.group.roll(1))
    assert task.reward(rotated, prompts).mean() < 0.5


def test_brackets_are_of_all_depths_and_kinds() -> None:
    context = Brackets(depth=5, kinds=3, shallowest=2).prompts(2000, 0, torch.Generator().manual_seed(2)).context
    depth = (context > 0).sum(1)
    assert torch.equal(context > 0, torch.arange(5) < depth.unsqueeze(1))
    shares = depth.bincount(minlength=6) / 2000
    torch.testing.assert_close(shares, torch.tensor([0, 0, 0.25, 0.25, 0.25, 0.25]), rtol=0, atol=0.04)
    assert context[:, 0].unique().tolist() == [1, 2, 3]


def test_a_fresh_policy_is_almost_never_right_about_deep_brackets() -> None:
    task = Brackets(depth=10, kinds=4, shallowest=10)
    prompts = task.prompts(100, 0, torch.Generator().manual_seed(3))
    batch = task.policy().sample(prompts.context, 20, 10, generator=torch.Generator().manual_seed(3))
    assert task.reward(batch, Prompts(prompts.context)).sum() == 0


def test_cross_entropy_teaches_the_chain() -> None:
    task = ModularChain(p=3)
    mine = task.policy()
    SequencePolicyOptimization(
        mine, Supervised(task, 27), Objective(supervised=CrossEntropy()), learning_rate=5e-3
    ).train(60)
    greedy = mine.sample(task.every, 1, task.max_length, 0)
    assert task.reward(greedy, Prompts(task.every)).mean() > 0.9


def test_sizes_that_make_no_task_are_refused() -> None:
    with pytest.raises(InputError, match=r"ModularChain\.p: 1"):
        ModularChain(p=1)
    with pytest.raises(InputError, match=r"Brackets\.kinds: 0"):
        Brackets(kinds=0)
    with pytest.raises(InputError, match=r"Brackets\.shallowest: 4"):
        Brackets(depth=3, shallowest=4)

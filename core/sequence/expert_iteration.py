"""Search with a policy, keep what was good, teach it to the policy, and search again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from core.errors import InputError
from core.seeds import stream
from core.sequence.batch import TokenBatch
from core.sequence.clusters import repeated
from core.sequence.losses import CrossEntropy
from core.sequence.objective import Objective
from core.sequence.reductions import group_max, group_size, group_sum
from core.sequence.rollouts import Recorded, total_reward
from core.sequence.scoring import acting, device_of, frozen
from core.sequence.train import Rate, Record, SequencePolicyOptimization

Search = Callable[[Any, int, torch.Generator], TokenBatch]
"""Of a policy, the number of the round and a generator: sequences with rewards, for prompts that may change."""
Select = Callable[[TokenBatch], TokenBatch]
"""What of a search is learned from."""


class Learn(Protocol):
    """Changes a policy in place."""

    def __call__(self, policy: nn.Module, batch: TokenBatch, seed: int) -> object:
        """Learn from the sequences; all that is random follows from the seed."""
        ...


@dataclass(frozen=True)
class Successes:
    """Keep the sequences that reached a reward, equal ones once (Zelikman et al. 2022, STaR, arXiv:2203.14465).

    Attributes:
        at_least: this reward.
    """

    at_least: float = 1.0

    def __call__(self, batch: TokenBatch) -> TokenBatch:
        """The sequences that are kept; there may be none."""
        good = batch[(total_reward(batch) >= self.at_least) & batch.mask.any(1)]
        return good[~repeated(good)]


@dataclass(frozen=True)
class Weighted:
    """Keep all, with ``advantage`` G softmax(reward / temperature) over the G sequences of a prompt; for ``Reinforce``.

    Advantage-weighted regression (Peng et al. 2019, arXiv:1910.00177), its normaliser taken within a prompt.

    Attributes:
        temperature: near 0 only the best count, at infinity all alike.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"Weighted: temperature is {self.temperature}; allowed is above 0")

    def __call__(self, batch: TokenBatch) -> TokenBatch:
        """The sequences with a token and a finite reward, weighted."""
        batch = batch[batch.mask.any(1) & torch.isfinite(total_reward(batch))]
        if not len(batch):
            return batch
        reward = total_reward(batch).float()
        raw = ((reward - group_max(reward, batch.group)) / self.temperature).exp()
        weight = group_size(batch.group) * raw / group_sum(raw, batch.group)
        return batch.with_(advantage=torch.where(batch.mask, weight.unsqueeze(1), 0.0))


@dataclass(frozen=True)
class Imitation:
    """Gradient steps on a fixed set of sequences.

    Attributes:
        objective: such as ``CrossEntropy`` after ``Successes``, ``Reinforce`` after ``Weighted``, ``DPO`` after
            ``draw_pairs`` of the best and the worst.
        updates: of each round.
        learning_rate: of them.
        prompts: whose sequences are in an update; None: all.
        against_itself: the policy before the round fills ``log_prob_ref``, as DPO needs.
    """

    objective: Objective = Objective(policy=CrossEntropy())  # noqa: RUF009  frozen
    updates: int = 100
    learning_rate: Rate = 1e-3
    prompts: int | None = 256
    against_itself: bool = False

    def __call__(self, policy: nn.Module, batch: TokenBatch, seed: int) -> list[Record]:
        """The records of the updates."""
        training = SequencePolicyOptimization(
            policy,
            Recorded(batch, self.prompts),
            self.objective,
            learning_rate=self.learning_rate,
            reference=frozen(policy) if self.against_itself else None,
            seed=seed,
        )
        return training.train(self.updates)


@dataclass(frozen=True)
class ExpertIteration:
    """Rounds of search and imitation (Anthony et al. 2017, arXiv:1705.08439).

    Attributes:
        search: such as ``best_of_n`` or ``tree_search`` with a verifier, on prompts of a task.
        learn: from what ``select`` has kept.
        select: see ``Successes`` and ``Weighted``.
        rounds: of both.
        restart: each round teaches the policy of the beginning anew, so that errors of earlier rounds are not kept
            (STaR); else it goes on.
    """

    search: Search
    learn: Learn = Imitation()
    select: Select = Successes()
    rounds: int = 4
    restart: bool = True

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InputError(f"ExpertIteration: rounds is {self.rounds}; at least 1 is needed")

    def run(
        self, policy: nn.Module, seed: int, told: Callable[[int, nn.Module, Record], None] | None = None
    ) -> list[Record]:
        """Improve the policy in place.

        A round whose search finds nothing to learn from leaves the policy as the round before made it.

        Args:
            policy: with what the search needs.
            seed: of everything random.
            told: called after each round with its number, the policy and the record.

        Returns:
            One record a round: ``sequences`` found and ``kept``, ``found`` and ``solved`` shares of prompts: the mean
            of their best reward and the share of which something is kept.
        """
        base = copy.deepcopy(policy.state_dict())
        records = []
        for number in range(self.rounds):
            generator = torch.Generator(device_of(policy)).manual_seed(stream(seed, f"search {number}"))
            with acting(policy):
                batch = self.search(policy, number, generator)
                kept = self.select(batch)
            record = _summary(batch, kept)
            if len(kept):
                if self.restart:
                    policy.load_state_dict(base)
                self.learn(policy, kept, stream(seed, f"learning {number}"))
            records.append(record)
            if told is not None:
                told(number, policy, record)
        return records


def _summary(batch: TokenBatch, kept: TokenBatch) -> Record:
    prompts = len(torch.unique(batch.group))
    top = _best_reward(batch)
    return {
        "sequences": float(len(batch)),
        "kept": float(len(kept)),
        "found": float(top.mean()),
        "solved": len(torch.unique(kept.group)) / prompts,
    }


def _best_reward(batch: TokenBatch) -> Tensor:
    """``(P,)`` of each prompt."""
    prompts, prompt = torch.unique(batch.group, return_inverse=True)
    top = group_max(total_reward(batch).float(), batch.group)
    return top.new_empty(len(prompts)).scatter(0, prompt, top)

"""What the papers say of their objectives, on the toy tasks; minutes, so not part of the quick suite."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.sequence.advantages import GroupRelative, SemanticShare, random_reward
from core.sequence.batch import Loss, TokenBatch
from core.sequence.entropy import EntropyMonitor, fit_entropy_law
from core.sequence.losses import GRPO, ClipCov, CrossEntropy, EntropyBonus, ForkingTokens
from core.sequence.offline import OREO, with_reference
from core.sequence.preferences import DPO
from core.sequence.resets import DatasetReset
from core.sequence.rollouts import Prompts, Recorded, Rollouts, Source, Supervised
from core.sequence.scoring import frozen
from core.sequence.tasks.brackets import Brackets
from core.sequence.tasks.modular_chain import ModularChain
from core.sequence.tasks.toy_policy import ToyPolicy
from core.sequence.train import Objective, Record, SequencePolicyOptimization

pytestmark = pytest.mark.slow
CHAIN = ModularChain()


def warm(seed: int, *, value: bool = False) -> ToyPolicy:
    """A policy that has learnt the chain in part."""
    made = CHAIN.policy(seed=seed, value=value)
    objective = Objective(supervised=CrossEntropy())
    SequencePolicyOptimization(made, Supervised(CHAIN, 256), objective, learning_rate=2e-3, seed=seed).train(160)
    return made


def tuned(
    start: ToyPolicy, loss: Loss, updates: int, seed: int, rate: float = 5e-4, source: Source | None = None
) -> tuple[ToyPolicy, list[Record]]:
    """A copy trained on its own answers to 64 prompts an update, 8 each."""
    made = copy.deepcopy(start)
    objective = Objective(policy=loss, estimator=GroupRelative(), minibatches=4)
    source = source or Rollouts(CHAIN, prompts=64, group=8)
    trainer = SequencePolicyOptimization(
        made, source, objective, learning_rate=rate, seed=seed, monitor=EntropyMonitor()
    )
    return made, trainer.train(updates)


def answered(policy: ToyPolicy, n: int, temperature: float = 1.0, seed: int = 0) -> tuple[TokenBatch, Tensor]:
    """n answers to every prompt, and ``(P, n)`` whether they are right."""
    batch = policy.sample(CHAIN.every, n, 4, temperature, generator=torch.Generator().manual_seed(seed))
    return batch, CHAIN.reward(batch, Prompts(CHAIN.every)).view(-1, n)


def accuracies(policy: ToyPolicy) -> dict[str, float]:
    """Greedy, of single samples, and of the best of 16."""
    right = answered(policy, 16)[1]
    return {
        "greedy": float(answered(policy, 1, 0)[1].mean()),
        "sampled": float(right.mean()),
        "pass16": float(right.amax(1).mean()),
    }


def mean(records: list[Record], name: str, last: int = 20) -> float:
    return float(np.mean([record[name] for record in records[-last:]]))


def entropy_runs(seed: int) -> dict[str, Any]:
    start = warm(seed)
    plain, first = tuned(start, GRPO(), 800, seed)
    kept, second = tuned(start, ClipCov(ratio=0.2, low=0.2, high=10), 800, seed)
    longer, _ = tuned(plain, GRPO(), 300, seed + 100)
    spent, _ = tuned(kept, GRPO(), 300, seed + 100)
    law = fit_entropy_law([x["entropy"] for x in first], [x["reward"] for x in first])
    early = fit_entropy_law([x["entropy"] for x in first[:200]], [x["reward"] for x in first[:200]])
    end = mean(first, "reward", 100)
    return {
        "seed": seed,
        "start": accuracies(start),
        "entropy": (first[0]["entropy"], mean(first, "entropy"), mean(second, "entropy")),
        "cov_above_0": float(np.mean([record["cov"] > 0 for record in first])),
        "law": (law.a, law.b, law.r2),
        "foretold": (float(early.reward([mean(first, "entropy", 100)])[0]), end),
        "grpo": accuracies(plain),
        "clip_cov": accuracies(kept),
        "grpo_1100": accuracies(longer),
        "clip_cov_then_grpo": accuracies(spent),
        "ms": 1000 * mean(first, "seconds"),
    }


@dataclass(frozen=True)
class Unlabelled(ModularChain):
    """The chain with a reward that knows no answers."""

    share: bool = True

    def reward(self, batch: TokenBatch, prompts: Prompts) -> Tensor:
        return SemanticShare()(batch) if self.share else random_reward(batch)


def majority(policy: ToyPolicy) -> Tensor:
    """``(P,)`` whether the most frequent of 16 answers is right."""
    batch, right = answered(policy, 16, seed=1)
    share = SemanticShare(guard=None)(batch).view(-1, 16)
    return right.gather(1, share.argmax(1, keepdim=True)).squeeze(1)


def unlabelled_runs(seed: int) -> dict[str, Any]:
    start = warm(seed)
    found: dict[str, Any] = {"seed": seed, "start": accuracies(start), "majority16": float(majority(start).mean())}
    wrong = majority(start) == 0
    found["start_where_majority_wrong"] = float(answered(start, 16)[1][wrong].mean())
    for name, share in (("share", True), ("random", False)):
        source = Rollouts(Unlabelled(share=share), prompts=32, group=16)
        made, records = tuned(start, GRPO(), 200, seed, 1e-4, source)
        found[name] = accuracies(made)
        found[f"{name}_entropy"] = mean(records, "entropy")
        found[f"{name}_where_majority_wrong"] = float(answered(made, 16)[1][wrong].mean())
    return found


def forking_runs(seed: int, rate: float = 5e-4, updates: int = 800) -> dict[str, Any]:
    start = warm(seed)
    found: dict[str, Any] = {"seed": seed, "rate": rate}
    losses = {"all": GRPO(0.2, 0.28), "top20": ForkingTokens(share=0.2), "low80": ForkingTokens(share=0.2, lowest=True)}
    for name, loss in losses.items():
        made, _ = tuned(start, loss, updates, seed, rate)
        found[name] = accuracies(made)
    return found


def needle_runs(seed: int, updates: int = 800, distinct: int = 8) -> dict[str, Any]:
    task = Brackets(depth=10, kinds=4, shallowest=10, distinct=distinct)
    resets = {"none": None, "uniform": DatasetReset(), "curriculum": DatasetReset(curriculum=400)}
    found: dict[str, Any] = {"seed": seed}
    prompts = task.prompts(256, 0, torch.Generator().manual_seed(99))
    for name, reset in resets.items():
        made = task.policy(seed=seed)
        curve: list[float] = []

        def look(trainer: SequencePolicyOptimization, record: Record, curve: list[float] = curve) -> None:
            if trainer.step % 50 == 0:
                batch = trainer.policy.sample(prompts.context, 1, 10, 0)
                curve.append(float(task.reward(batch, prompts).mean()))

        loss, estimator = EntropyBonus(GRPO(), 0.05), GroupRelative(scale=None)
        objective = Objective(policy=loss, estimator=estimator, minibatches=2)
        source = Rollouts(task, prompts=32, group=8, resets=reset)
        trainer = SequencePolicyOptimization(made, source, objective, learning_rate=2e-3, seed=seed)
        records = trainer.train(updates if reset else 50, callbacks=[look])
        found[name] = {
            "greedy": curve,
            "rewards": sum(record["reward"] for record in records),
            "seconds": sum(record["seconds"] for record in records),
        }
    return found


def offline_runs(
    seed: int, updates: int = 600, rate: float = 5e-4, beta: float = 0.03, kl: float = 0.01
) -> dict[str, Any]:
    start = warm(seed, value=True)
    batch, right = answered(start, 16, seed=seed)
    batch = batch.with_(reward=right.flatten(), log_prob_old=None)
    found: dict[str, Any] = {"seed": seed, "start": accuracies(start)}
    base = frozen(start)
    referenced = with_reference(batch, base)
    both = right.amax(1) > right.amin(1)
    best, worst = right.argmax(1)[both], right.argmin(1)[both]
    first = torch.arange(len(right))[both] * 16
    pairs = referenced[torch.stack((first + best, first + worst), 1).flatten()]
    runs: dict[str, tuple[Source, Loss]] = {
        "cloning": (Recorded(batch, 32), CrossEntropy()),
        "rejection": (Recorded(batch[batch.need("reward") > 0], 32), CrossEntropy()),
        "oreo": (Recorded(referenced, 32), OREO(beta=beta, kl=kl)),
        "dpo": (Recorded(pairs, 64), DPO()),
    }
    for name, (source, loss) in runs.items():
        made = copy.deepcopy(start)
        SequencePolicyOptimization(made, source, Objective(policy=loss), learning_rate=rate, seed=seed).train(updates)
        found[name] = accuracies(made)
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clip_cov_keeps_entropy_that_plain_grpo_spends(seed: int) -> None:
    # From a policy that is weaker than this one (10 steps of cross-entropy less), Clip-Cov's entropy explodes for two
    # seeds of three, and what the policy knew is lost.
    found = entropy_runs(seed)
    assert found["cov_above_0"] > 0.95
    assert found["law"][2] > 0.7
    before, plain, kept = found["entropy"]
    assert plain < 0.5 * before
    assert kept > 1.3 * plain
    assert found["clip_cov"]["pass16"] > found["grpo"]["pass16"]
    for name in ("greedy", "sampled", "pass16"):
        assert found["clip_cov_then_grpo"][name] > found["grpo_1100"][name]


def test_rollouts_that_start_inside_right_answers_find_the_needle() -> None:
    found = needle_runs(0)
    assert found["none"]["rewards"] == 0
    assert found["uniform"]["greedy"][-1] > 0.7
    assert found["curriculum"]["greedy"][-1] > 0.2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agreement_among_answers_is_no_worse_than_chance_and_no_better_than_the_majority(seed: int) -> None:
    # The papers' rise towards the majority does not appear here: accuracy falls from .24-.26 to .20-.26, because one
    # network answers all prompts and learns answers that are common to many. A reward at random takes it to .15-.16.
    found = unlabelled_runs(seed)
    assert found["share"]["sampled"] > found["random"]["sampled"] + 0.02
    assert found["share"]["sampled"] < found["majority16"] + 0.02
    assert found["share_entropy"] < found["random_entropy"]
    assert found["share_where_majority_wrong"] < found["start_where_majority_wrong"]


def test_the_tokens_of_lowest_entropy_alone_do_not_teach() -> None:
    found = forking_runs(0)
    for name in ("all", "top20"):
        assert found[name]["greedy"] > found["low80"]["greedy"] + 0.2
        assert found[name]["sampled"] > found["low80"]["sampled"] + 0.1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rewards_of_recorded_answers_teach_more_than_the_answers(seed: int) -> None:
    # With as many updates, cross-entropy of the right answers alone is ahead of OREO by .17-.19.
    found = offline_runs(seed)
    assert found["oreo"]["greedy"] > found["cloning"]["greedy"] + 0.03
    assert found["rejection"]["greedy"] > found["cloning"]["greedy"] + 0.1

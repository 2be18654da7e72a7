"""What a training survives, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.errors import InputError
from core.rl import TrainingDiverged
from core.sequence.advantages import GroupRelative
from core.sequence.batch import LossResult, TokenBatch, TokenScores
from core.sequence.losses import GRPO, CrossEntropy
from core.sequence.rollouts import Prompts, Recorded, Rollouts, Supervised, verified
from core.sequence.schedules import cosine, steps
from core.sequence.scoring import frozen
from core.sequence.tasks.brackets import Brackets
from core.sequence.tasks.toy_policy import ToyPolicy
from core.sequence.train import Objective, SequencePolicyOptimization

TASK = Brackets(depth=3, kinds=2, shallowest=0)
ROLLOUTS = Rollouts(TASK, prompts=6, group=4)


def policy(**options: Any) -> ToyPolicy:
    return ToyPolicy(3, 3, 3, 2, embedding=8, hidden=16, **options)


def weights(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach()


@dataclass
class Sometimes:
    """Cross-entropy, in some updates times a factor."""

    factor: float
    bad: range
    calls: int = -1

    def __call__(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        self.calls += 1
        loss = -scores.log_prob.mean()
        return LossResult(loss * self.factor if self.calls in self.bad else loss)


@pytest.mark.parametrize("factor", [torch.nan, torch.inf])
def test_an_update_that_is_not_finite_is_left_out(factor: float) -> None:
    mine = policy()
    seen = [weights(mine)]
    trainer = SequencePolicyOptimization(mine, ROLLOUTS, Objective(policy=Sometimes(factor, range(1, 3))))
    records = trainer.train(4, callbacks=[lambda trainer, record: seen.append(weights(mine))])
    assert [record["skipped"] for record in records] == [0, 1, 1, 0]
    assert torch.equal(seen[1], seen[2])
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[3], seen[4])
    assert torch.isfinite(seen[-1]).all()
    assert records[-1]["rate"] == records[0]["rate"]


def test_the_learning_rate_is_halved_after_three_in_a_row() -> None:
    trainer = SequencePolicyOptimization(policy(), ROLLOUTS, Objective(policy=Sometimes(torch.nan, range(1, 7))))
    with pytest.warns(UserWarning, match="learning rate halved"):
        records = trainer.train(8)
    assert [record["rate"] for record in records] == pytest.approx([1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 5e-4, 2.5e-4, 2.5e-4])


@pytest.mark.filterwarnings("ignore:.*learning rate halved")
def test_ten_in_a_row_end_the_training_with_its_state_saved(tmp_path: Path) -> None:
    mine = policy()
    trainer = SequencePolicyOptimization(mine, ROLLOUTS, Objective(policy=Sometimes(torch.nan, range(3, 99))))
    with pytest.raises(TrainingDiverged, match="update 12: 10 steps"):
        trainer.train(99, checkpoint=tmp_path / "state")
    assert torch.isfinite(weights(mine)).all()
    other = policy(seed=1)
    again = SequencePolicyOptimization(other, ROLLOUTS, Objective(policy=Sometimes(1, range(0))))
    again.train(12, checkpoint=tmp_path / "state")
    assert torch.equal(weights(other), weights(mine))
    assert len(again.records) == 12


def test_a_gradient_of_zero_moves_nothing_although_the_optimiser_has_momentum() -> None:
    mine = policy()
    seen = []
    trainer = SequencePolicyOptimization(mine, ROLLOUTS, Objective(policy=Sometimes(0.0, range(2, 3))))
    records = trainer.train(3, callbacks=[lambda trainer, record: seen.append(weights(mine))])
    assert [record["idle"] for record in records] == [0, 0, 1]
    assert torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("drop_ties", [False, True])
def test_an_update_of_nothing_but_ties_is_counted_and_changes_nothing(drop_ties: bool) -> None:
    class Unsolvable(Brackets):
        def reward(self, batch: TokenBatch, prompts: Prompts) -> Tensor:
            return torch.zeros(len(batch))

    mine = policy()
    before = weights(mine)
    objective = Objective(policy=GRPO(), estimator=GroupRelative(), drop_ties=drop_ties)
    (record,) = SequencePolicyOptimization(mine, Rollouts(Unsolvable(3, 2), 4, 4), objective).train(1)
    assert record["tied"] == 1
    assert record["loss"] == 0
    assert torch.equal(weights(mine), before)


class Small(ToyPolicy):
    """Has memory for 5 rows with a graph."""

    def score(self, batch: TokenBatch, *arguments: Any, **named: Any) -> TokenScores:
        if len(batch) > 5 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().score(batch, *arguments, **named)


@pytest.mark.filterwarnings("ignore:out of memory")
def test_when_memory_runs_out_fewer_rows_at_a_time_give_the_same_update() -> None:
    objective = Objective(policy=GRPO(), estimator=GroupRelative(), supervised=CrossEntropy())
    small, large = Small(3, 3, 3, 2, embedding=8, hidden=16).double(), policy().double()
    trainer = SequencePolicyOptimization(small, ROLLOUTS, objective)
    with pytest.warns(UserWarning, match="out of memory: 4 rows"):
        trainer.train(2)
    assert trainer.micro_batch == 4
    SequencePolicyOptimization(large, ROLLOUTS, objective).train(2)
    torch.testing.assert_close(weights(small), weights(large), rtol=0, atol=1e-7)


@pytest.mark.filterwarnings("ignore:out of memory")
def test_memory_that_does_not_suffice_for_one_row_is_an_error() -> None:
    class Tiny(ToyPolicy):
        def score(self, *arguments: Any, **named: Any) -> TokenScores:
            raise torch.OutOfMemoryError("CUDA out of memory")

    trainer = SequencePolicyOptimization(Tiny(3, 3, 3, 2), ROLLOUTS, Objective(policy=Sometimes(1, range(0))))
    with pytest.warns(UserWarning, match="1 rows"), pytest.raises(torch.OutOfMemoryError):
        trainer.train(1)


@dataclass(frozen=True)
class Fragile(Brackets):
    """Its verifier gives 1, but fails where the first bracket is of kind 2."""

    how: str = "raises"

    def reward(self, batch: TokenBatch, prompts: Prompts) -> Tensor:
        bad = prompts.context[batch.group, 0] == 2
        if self.how == "raises" and bool(bad.any()):
            raise KeyError("no such bracket")
        return torch.where(bad, torch.nan, 1.0)


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_a_verifier_that_fails_costs_its_prompts_the_reward_and_is_counted(how: str) -> None:
    source = Rollouts(Fragile(3, 2, how=how), prompts=6, group=4)
    with pytest.warns(UserWarning, match="a verifier"):
        drawn = source.draw(policy(), 0, torch.Generator().manual_seed(1))
    assert drawn.sampled is not None
    bad = drawn.sampled.context[:, 0] == 2
    assert 0 < int(bad.sum()) < 6
    assert drawn.metrics["verifier_faults"] == bad.sum()
    assert torch.equal(drawn.sampled.need("reward"), (~bad).float().repeat_interleave(4))


def test_a_reward_of_a_wrong_shape_is_refused() -> None:
    class Wrong(Brackets):
        def reward(self, batch: TokenBatch, prompts: Prompts) -> Tensor:
            return torch.zeros(len(batch) + 1)

    with pytest.raises(InputError, match=r"reward: shape \(25,\); allowed: \(24,\) for sequences or \(24, 3\)"):
        Rollouts(Wrong(3, 2), 6, 4).draw(policy(), 0, torch.Generator())


def test_a_dense_reward_counts_nothing_outside_the_mask() -> None:
    class Dense(Brackets):
        def reward(self, batch: TokenBatch, prompts: Prompts) -> Tensor:
            return torch.ones(batch.tokens.shape, dtype=torch.int64)

    batch = policy().sample(TASK.prompts(6, 0, torch.Generator()).context, 4, 3, generator=torch.Generator())
    reward, faults = verified(Dense(3, 2), batch, Prompts(batch.context))
    assert faults == 0
    assert torch.equal(reward, batch.mask.float())


def test_a_policy_without_entropy_whose_reward_stands_still_is_warned_of() -> None:
    mine = policy()
    with torch.no_grad():
        mine.head.bias[0] = 50.0
    objective = Objective(policy=GRPO(), estimator=GroupRelative())
    with pytest.warns(UserWarning, match="entropy has collapsed .* reward stands still"):
        SequencePolicyOptimization(mine, Rollouts(Brackets(3, 2, 3), 4, 4), objective).train(22)


def test_answers_that_are_never_ended_are_cut_and_counted_as_they_are() -> None:
    mine = policy()
    with torch.no_grad():
        mine.head.bias[mine.eos] = -1e4
    drawn = ROLLOUTS.draw(mine, 0, torch.Generator())
    assert drawn.sampled is not None
    assert drawn.sampled.mask.all()
    assert drawn.metrics["length"] == 3
    assert SequencePolicyOptimization(mine, ROLLOUTS, Objective(policy=Sometimes(1, range(0)))).train(1)


def test_answers_of_the_end_symbol_alone_can_be_trained_on() -> None:
    mine = policy()
    with torch.no_grad():
        mine.head.bias[mine.eos] = 1e4
    objective = Objective(policy=GRPO(), estimator=GroupRelative(), supervised=CrossEntropy())
    (record,) = SequencePolicyOptimization(mine, ROLLOUTS, objective).train(1)
    assert record["length"] == 1
    assert record["skipped"] == 0


def test_a_group_of_one_has_nothing_to_be_compared_with() -> None:
    objective = Objective(policy=GRPO(), estimator=GroupRelative())
    with pytest.raises(InputError, match="at least 2 a prompt"):
        SequencePolicyOptimization(policy(), Rollouts(TASK, 6, group=1), objective).train(1)


def test_a_reference_that_would_be_trained_is_refused() -> None:
    mine = policy()
    objective = Objective(policy=GRPO(), estimator=GroupRelative())
    with pytest.raises(InputError, match="shares parameters"):
        SequencePolicyOptimization(mine, ROLLOUTS, objective, reference=mine)
    with pytest.raises(InputError, match="ask for a gradient"):
        SequencePolicyOptimization(mine, ROLLOUTS, objective, reference=policy())
    SequencePolicyOptimization(mine, ROLLOUTS, objective, reference=frozen(mine))


def test_settings_that_make_no_sense_are_refused() -> None:
    mine, right = policy(), Objective(supervised=CrossEntropy())
    batch = ROLLOUTS.draw(mine, 0, torch.Generator()).sampled
    assert batch is not None
    wrong = {
        "at least one loss": lambda: Objective(),
        "Objective.epochs: 0": lambda: Objective(supervised=CrossEntropy(), epochs=0),
        "Objective.minibatches: 0": lambda: Objective(supervised=CrossEntropy(), minibatches=0),
        "Objective.temperature: 0": lambda: Objective(supervised=CrossEntropy(), temperature=0),
        "Rollouts.group: 0": lambda: Rollouts(TASK, 1, 0),
        "Rollouts.prompts: 0": lambda: Rollouts(TASK, 0),
        "Rollouts.temperature: nan": lambda: Rollouts(TASK, 1, temperature=torch.nan),
        "Recorded.prompts: 0": lambda: Recorded(batch, 0),
        "Recorded.batch": lambda: Recorded(batch[:0]),
        "Supervised.prompts: 0": lambda: Supervised(TASK, 0),
        "allowed: the source's, 0.5": lambda: SequencePolicyOptimization(mine, Rollouts(TASK, 1, 1, 0.5), right),
        "micro_batch: 0": lambda: SequencePolicyOptimization(mine, ROLLOUTS, right, micro_batch=0),
        "learning_rate: 2 rates": lambda: SequencePolicyOptimization(mine, ROLLOUTS, right, learning_rate=(1, 2)),
        "cosine: updates 0": lambda: cosine(1, 0, 0),
        "steps: a change at update -1": lambda: steps(1, {-1: 0}),
    }
    for message, make in wrong.items():
        with pytest.raises(InputError, match=message):
            make()


def test_a_task_without_references_cannot_supervise_or_reset() -> None:
    class Unanswered(Brackets):
        def of(self, context: Tensor) -> Prompts:
            return Prompts(context)

    task = Unanswered(3, 2)
    with pytest.raises(InputError, match=r"Supervised\.task: gives no references"):
        Supervised(task, 2).draw(policy(), 0, torch.Generator())
    with pytest.raises(InputError, match=r"Rollouts\.resets"):
        Rollouts(task, 2, resets=lambda reference, n, step, generator: reference).draw(policy(), 0, torch.Generator())


def test_the_state_of_another_training_is_refused(tmp_path: Path) -> None:
    path, objective = tmp_path / "state", Objective(policy=Sometimes(1, range(0)))
    SequencePolicyOptimization(policy(), ROLLOUTS, objective).train(1, run="one", checkpoint=path)
    for seed, run in ((0, "two"), (1, "one")):
        with pytest.raises(InputError, match="state of another training"):
            SequencePolicyOptimization(policy(), ROLLOUTS, objective, seed=seed).train(2, run=run, checkpoint=path)
    wider = ToyPolicy(3, 3, 3, 2, embedding=8, hidden=32)
    with pytest.raises(InputError, match="size mismatch"):
        SequencePolicyOptimization(wider, ROLLOUTS, objective).train(2, run="one", checkpoint=path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="safetensors"):
        SequencePolicyOptimization(policy(), ROLLOUTS, objective).train(2, run="one", checkpoint=path)


def test_records_that_are_not_numbers_survive_a_restart(tmp_path: Path) -> None:
    trainer = SequencePolicyOptimization(policy(), ROLLOUTS, Objective(policy=Sometimes(torch.nan, range(1))))
    trainer.train(1, checkpoint=tmp_path / "state")
    again = SequencePolicyOptimization(policy(), ROLLOUTS, Objective(policy=Sometimes(1, range(0))))
    again.train(1, checkpoint=tmp_path / "state")
    assert json.dumps(again.records) == json.dumps(trainer.records)

"""The training loop: what a step does, that nothing about its execution changes it, and that it resumes exactly."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.checkpoint import Checkpoint
from core.seeds import stream
from core.sequence.advantages import GroupRelative, RewardToGo
from core.sequence.batch import Loss, LossResult, TokenBatch, TokenScores
from core.sequence.entropy import EntropyMonitor
from core.sequence.losses import GRPO, ClipCov, CrossEntropy, EntropyBonus, Reinforce
from core.sequence.rollouts import Prompts, Recorded, Rollouts, Supervised
from core.sequence.scheduled import ScheduledSampling
from core.sequence.schedules import constant, cosine, steps
from core.sequence.scoring import backward_in_parts, frozen, score_all
from core.sequence.tasks.brackets import Brackets
from core.sequence.tasks.toy_policy import ToyPolicy
from core.sequence.train import Objective, Record, SequencePolicyOptimization

TASK = Brackets(depth=3, kinds=2, shallowest=0)
ROLLOUTS = Rollouts(TASK, prompts=6, group=4)
GROUPS = Objective(policy=GRPO(), estimator=GroupRelative(), epochs=2, minibatches=2)


class Dropped(ToyPolicy):
    """With dropout on the first state."""

    def encode(self, context: Tensor) -> Tensor:
        return nn.functional.dropout(super().encode(context), 0.3, self.training)


def policy(seed: int = 0, **options: Any) -> ToyPolicy:
    return ToyPolicy(3, 3, 3, 2, embedding=8, hidden=16, seed=seed, **options)


def weights(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def timeless(records: list[Record]) -> list[Record]:
    return [{name: x for name, x in record.items() if name != "seconds"} for record in records]


def both(**options: Any) -> Objective:
    return Objective(policy=GRPO(), estimator=GroupRelative(), supervised=CrossEntropy(), weight=0.5, **options)


def test_a_supervised_step_is_adams() -> None:
    mine, other = policy(), policy()
    objective = Objective(supervised=CrossEntropy())
    prompts = TASK.prompts(8, 0, torch.Generator().manual_seed(3))
    assert prompts.reference is not None
    batch = prompts.reference.with_(context=prompts.context)

    @dataclass(frozen=True)
    class Fixed(Brackets):
        def prompts(self, n: int, step: int, generator: torch.Generator) -> Prompts:
            return prompts

    SequencePolicyOptimization(mine, Supervised(Fixed(3, 2), 8), objective, learning_rate=1e-2).train(5)
    adam = torch.optim.Adam(other.parameters(), lr=1e-2)
    for _ in range(5):
        adam.zero_grad()
        (-other.score(batch).log_prob.sum() / batch.mask.sum()).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        adam.step()
    torch.testing.assert_close(weights(mine), weights(other), rtol=0, atol=1e-6)


def test_references_and_samples_of_the_same_prompts_are_scored_in_one_pass_and_weigh_as_asked() -> None:
    mine, passes, found = policy(), [], {}
    objective = both(supervised_weight=3.0)

    class Watched(ToyPolicy):
        def score(self, batch: TokenBatch, *arguments: Any, **named: Any) -> TokenScores:
            passes.append(batch)
            return super().score(batch, *arguments, **named)

    watched = Watched(3, 3, 3, 2, embedding=8, hidden=16, seed=0)
    trainer = SequencePolicyOptimization(watched, ROLLOUTS, objective, max_grad_norm=1e9)

    def keep(trainer: SequencePolicyOptimization, record: Record) -> None:
        found.update({name: x.grad.clone() for name, x in watched.named_parameters() if x.grad is not None})

    (record,) = trainer.train(1, callbacks=[keep])
    assert record["tied"] < 1
    (whole,) = passes
    assert len(whole) == 6 + 6 * 4
    assert len(whole.context) == 6
    drawn = ROLLOUTS.draw(mine, 0, trainer.generator.manual_seed(trainer.generator.initial_seed()))
    assert drawn.sampled is not None
    assert drawn.reference is not None
    sampled = GroupRelative()(drawn.sampled)
    first = GRPO()(mine.score(sampled), sampled).value
    second = CrossEntropy()(mine.score(drawn.reference), drawn.reference).value
    total = 0.5 * first + 3.0 * second
    total.backward()
    assert record["loss"] == pytest.approx(total.item(), abs=1e-5)
    assert record["policy_loss"] == pytest.approx(first.item(), abs=1e-5)
    assert record["supervised_loss"] == pytest.approx(second.item(), abs=1e-5)
    for name, x in mine.named_parameters():
        if x.grad is not None:
            torch.testing.assert_close(found[name], x.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 16])
def test_the_gradient_does_not_depend_on_the_rows_of_a_pass(rows: int) -> None:
    objective = both(epochs=2, minibatches=2)
    whole, parts = policy().double(), policy().double()
    SequencePolicyOptimization(whole, ROLLOUTS, objective, seed=1).train(3)
    SequencePolicyOptimization(parts, ROLLOUTS, objective, seed=1, micro_batch=rows).train(3)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=0, atol=1e-7)


def test_a_loss_across_all_rows_has_the_same_gradient_in_parts() -> None:
    mine = policy(value=True).double()
    batch = mine.sample(TASK.prompts(5, 0, torch.Generator()).context, 3, 3, generator=torch.Generator())
    need = frozenset({"value", "entropy", "logits"})

    def loss(scores: TokenScores) -> Tensor:
        spread = scores.log_prob.std() * scores.need("value").square().mean().sqrt()
        return spread + (scores.need("entropy").mean() + scores.need("logits")[0].mean() - 1) ** 2

    loss(mine.score(batch, need=need)).backward()
    expected = {name: x.grad for name, x in mine.named_parameters()}
    mine.zero_grad()
    backward_in_parts(lambda part, _: mine.score(part, need=need), batch, loss, 4)
    for name, x in mine.named_parameters():
        torch.testing.assert_close(x.grad, expected[name])


def test_scores_in_parts_are_those_of_the_whole() -> None:
    mine = policy()
    batch = mine.sample(TASK.prompts(5, 0, torch.Generator()).context, 3, 3, generator=torch.Generator())
    batch = batch[torch.randperm(15, generator=torch.Generator().manual_seed(0))]
    whole, parts = (score_all(mine, batch, 0.7, frozenset({"logits"}), rows) for rows in (None, 4))
    torch.testing.assert_close(whole.log_prob, parts.log_prob)
    torch.testing.assert_close(whole.need("logits"), parts.need("logits"))
    assert not whole.log_prob.requires_grad


def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def made() -> SequencePolicyOptimization:
        dropped = Dropped(3, 3, 3, 2, embedding=8, hidden=16)
        rate = cosine(1e-2, 1e-3, 6)
        return SequencePolicyOptimization(dropped, ROLLOUTS, both(minibatches=2), learning_rate=rate, dropout=True)

    whole, killed, resumed = made(), made(), made()
    whole.train(6)
    killed.train(4, checkpoint=tmp_path / "state")
    resumed.train(6, checkpoint=tmp_path / "state")
    assert torch.equal(weights(whole.policy), weights(resumed.policy))
    assert timeless(whole.records) == timeless(resumed.records)


def test_a_training_that_a_callback_has_ended_stays_ended(tmp_path: Path) -> None:
    first, second = (SequencePolicyOptimization(policy(), ROLLOUTS, GROUPS) for _ in range(2))
    records = first.train(6, checkpoint=tmp_path / "state", callbacks=[lambda trainer, record: trainer.step < 2])
    assert first.ended
    ended = weights(first.policy)
    assert second.train(6, checkpoint=tmp_path / "state") == records
    assert first.train(6) == records
    assert len(records) == 2
    assert torch.equal(weights(first.policy), ended)
    assert torch.equal(weights(second.policy), ended)


def test_a_state_from_before_trainings_could_stay_ended_is_read(tmp_path: Path) -> None:
    first, second = (SequencePolicyOptimization(policy(), ROLLOUTS, GROUPS) for _ in range(2))
    first.train(2, checkpoint=tmp_path / "state")
    kept = Checkpoint(tmp_path / "state")
    saved = kept.load()
    assert saved is not None
    kept.save({**saved, "counts": saved["counts"][:3]})
    assert len(second.train(3, checkpoint=tmp_path / "state")) == 3


def test_a_finished_training_is_read_back(tmp_path: Path) -> None:
    first, second = (SequencePolicyOptimization(policy(), ROLLOUTS, GROUPS) for _ in range(2))
    first.train(2, checkpoint=tmp_path / "state")
    assert second.train(2, checkpoint=tmp_path / "state") == first.records
    assert torch.equal(weights(first.policy), weights(second.policy))


def test_two_calls_are_one_training() -> None:
    once, twice = (SequencePolicyOptimization(policy(), ROLLOUTS, GROUPS, seed=5) for _ in range(2))
    once.train(4)
    twice.train(1)
    assert len(twice.train(4)) == 4
    assert torch.equal(weights(once.policy), weights(twice.policy))


def test_the_seed_decides_and_the_generators_of_pytorch_do_not() -> None:
    # A loss that drops tokens at random, on a policy with dropout.
    loss = ClipCov(ratio=0.5, low=-1, high=10)
    objective = Objective(policy=loss, estimator=GroupRelative(), minibatches=2)

    def trained(seed: int, other: int) -> Tensor:
        mine = Dropped(3, 3, 3, 2, embedding=8, hidden=16)
        torch.manual_seed(other)
        (*_, last) = SequencePolicyOptimization(mine, ROLLOUTS, objective, seed=seed, dropout=True).train(2)
        assert last["dropped"] > 0
        return weights(mine)

    with torch.random.fork_rng():
        assert torch.equal(trained(0, 1), trained(0, 2))
        assert not torch.equal(trained(0, 1), trained(1, 1))


def test_dropout_is_off_unless_asked_for_and_always_off_where_sequences_are_sampled() -> None:
    modes: list[tuple[str, bool]] = []

    class Watched(Dropped):
        def encode(self, context: Tensor) -> Tensor:
            modes.append(("gradient" if torch.is_grad_enabled() else "sampling", self.training))
            return super().encode(context)

    for dropout in (False, True):
        modes.clear()
        mine = Watched(3, 3, 3, 2, embedding=8, hidden=16).train()
        SequencePolicyOptimization(mine, ROLLOUTS, GROUPS, dropout=dropout).train(1)
        assert set(modes) == {("sampling", False), ("gradient", dropout)}
        assert not any(module.training for module in mine.modules())


def test_the_first_ratio_to_the_sampling_policy_is_1() -> None:
    ratios: list[Tensor] = []

    def watched(scores: TokenScores, batch: TokenBatch) -> LossResult:
        ratios.append((scores.log_prob - batch.need("log_prob_old")).detach().abs().max())
        return LossResult(scores.log_prob.sum() * 0)

    source = Rollouts(TASK, 6, 4, temperature=0.7)
    SequencePolicyOptimization(policy().train(), source, Objective(policy=watched, temperature=0.7)).train(2)
    assert max(ratios) < 1e-5


def test_minibatches_part_prompts_not_their_samples_and_leave_none_out() -> None:
    seen: list[TokenBatch] = []

    def watched(scores: TokenScores, batch: TokenBatch) -> LossResult:
        assert scores.log_prob.shape == batch.tokens.shape
        seen.append(batch)
        return LossResult(scores.log_prob.mean())

    objective = Objective(policy=watched, supervised=watched, epochs=2, minibatches=3)
    SequencePolicyOptimization(policy(), ROLLOUTS, objective).train(1)
    assert [len(batch) for batch in seen] == [8, 2] * 6
    for sampled, right in zip(seen[::2], seen[1::2], strict=True):
        assert sampled.context is right.context
        assert sampled.group.bincount().tolist() == [4, 4]
        answers, mask = TASK.answers(right.context)
        assert torch.equal(right.pad_to(3).tokens[right.group.argsort()] * mask, answers)
    for epoch in (seen[:6:2], seen[6::2]):
        prompts = torch.cat([batch.context for batch in epoch])
        assert len(prompts) == 6


@dataclass(frozen=True)
class TwoPhases:
    """Fits the value, then the policy; remembers what it was given."""

    seen: list[tuple[str, float]] = field(default_factory=list)

    @property
    def phases(self) -> tuple[Loss, ...]:
        return self.critic, self.actor

    def __call__(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        raise AssertionError("the phases are called in its place")

    def critic(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        value = (scores.need("value") - 1).square().mean()
        self.seen.append(("critic", float(value.detach())))
        return LossResult(value, {"critic": value.detach()})

    critic.need = frozenset({"value"})  # type: ignore[attr-defined]

    def actor(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        value = (scores.need("value") - 1).square().mean().detach()
        self.seen.append(("actor", float(value)))
        return LossResult(-scores.log_prob.mean())

    actor.need = frozenset({"value"})  # type: ignore[attr-defined]


def test_each_phase_has_a_step_on_fresh_scores_and_an_optimiser_of_its_own() -> None:
    loss = TwoPhases()
    mine = policy(value=True)
    recorded = Recorded(ROLLOUTS.draw(mine, 0, torch.Generator()).sampled)  # type: ignore[arg-type]
    trainer = SequencePolicyOptimization(mine, recorded, Objective(policy=loss), learning_rate=(1e-2, 1e-3))
    (record,) = trainer.train(1)
    (first, before), (second, after) = loss.seen
    assert (first, second) == ("critic", "actor")
    assert after < before
    assert record["critic"] == pytest.approx(before)
    assert record["rate"] == 1e-3
    critic, actor = trainer.optimizers
    assert mine.value is not None
    assert mine.value.weight in critic.state
    assert mine.value.weight not in actor.state
    assert mine.head.weight in actor.state
    assert mine.head.weight not in critic.state


def test_a_reference_fills_its_log_probabilities_and_stays() -> None:
    mine = policy()
    reference, found = frozen(policy(seed=1)), []

    def watched(scores: TokenScores, batch: TokenBatch) -> LossResult:
        found.append(batch)
        return LossResult(scores.log_prob.mean())

    before = weights(reference)
    objective = Objective(policy=watched)
    SequencePolicyOptimization(mine, ROLLOUTS, objective, reference=reference, micro_batch=5).train(2)
    assert torch.equal(weights(reference), before)
    torch.testing.assert_close(found[-1].log_prob_ref, score_all(reference, found[-1]).log_prob)


def test_tied_prompts_can_be_left_out() -> None:
    seen: list[TokenBatch] = []

    def watched(scores: TokenScores, batch: TokenBatch) -> LossResult:
        seen.append(batch)
        return LossResult(scores.log_prob.mean())

    (record,) = SequencePolicyOptimization(policy(), ROLLOUTS, Objective(policy=watched, drop_ties=True)).train(1)
    (batch,) = seen
    rewards = batch.need("reward").view(-1, 4)
    assert 0 < len(rewards) < 6
    assert (rewards.amax(1) > rewards.amin(1)).all()
    assert record["tied"] == pytest.approx(1 - len(rewards) / 6)


def test_a_record_tells_reward_entropy_and_rate() -> None:
    objective = Objective(policy=EntropyBonus(Reinforce(), 0.01), estimator=RewardToGo())
    trainer = SequencePolicyOptimization(policy(), ROLLOUTS, objective, learning_rate=steps(1e-2, {1: 1e-3}))
    first, second = trainer.train(2)
    assert 0 <= first["reward"] <= 1
    assert 0 < first["entropy"] < 1.2
    assert 1 <= first["length"] <= 3
    assert (first["rate"], second["rate"]) == (1e-2, 1e-3)
    assert all(record["skipped"] == 0 and record["grad_norm"] > 0 for record in (first, second))


def test_a_monitor_adds_its_numbers_and_changes_nothing_else() -> None:
    plain, watched = policy(), policy()
    SequencePolicyOptimization(plain, ROLLOUTS, GROUPS).train(2)
    records = SequencePolicyOptimization(watched, ROLLOUTS, GROUPS, monitor=EntropyMonitor(), micro_batch=5).train(2)
    assert {"entropy_q50", "cov_positive", "kl"} <= records[-1].keys()
    torch.testing.assert_close(weights(plain), weights(watched))


def test_what_the_source_logs_is_of_all_samples_whatever_losses_and_monitor_see() -> None:
    objective = Objective(
        policy=EntropyBonus(GRPO()), estimator=GroupRelative(), drop_ties=True, epochs=2, minibatches=2
    )
    mine = policy()
    start = copy.deepcopy(mine.state_dict())
    trainer = SequencePolicyOptimization(mine, ROLLOUTS, objective, monitor=EntropyMonitor())
    (record,) = trainer.train(1)
    mine.load_state_dict(start)
    generator = torch.Generator().manual_seed(stream(0, "update 0"))
    drawn = ROLLOUTS.draw(mine, 0, generator).metrics
    assert 0 < record["tied"] < 1
    for name in ("reward", "tied", "entropy"):
        assert record[name] == pytest.approx(float(drawn[name]))


def test_the_gradient_norm_is_cut_before_the_step() -> None:
    mine = policy()
    before = weights(mine)
    trainer = SequencePolicyOptimization(
        mine, ROLLOUTS, both(), learning_rate=1.0, max_grad_norm=0.01, optimizer=torch.optim.SGD
    )
    (record,) = trainer.train(1)
    assert record["grad_norm"] > 0.01
    assert float((weights(mine) - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_progress_ends_at_1_and_callbacks_see_each_update() -> None:
    told: list[float] = []
    seen: list[int] = []
    SequencePolicyOptimization(policy(), ROLLOUTS, GROUPS).train(
        3,
        progress=lambda share, message: told.append(share),
        callbacks=[lambda trainer, record: seen.append(trainer.step)],
    )
    assert told == [pytest.approx(1 / 3), pytest.approx(2 / 3), 1]
    assert seen == [1, 2, 3]


def test_scheduled_sampling_is_told_the_update() -> None:
    told: list[int] = []
    mine = ScheduledSampling(policy(), lambda update: told.append(update) or 0.0)  # type: ignore[func-returns-value]
    mine.policy.score = lambda *x, replace: ToyPolicy.score(mine.policy, *x)  # type: ignore[assignment,arg-type]
    SequencePolicyOptimization(mine, Supervised(TASK, 4), Objective(supervised=CrossEntropy())).train(3)
    assert told == [0, 1, 2]


def test_recorded_rows_are_drawn_by_prompt() -> None:
    mine = policy()
    batch = Rollouts(TASK, 10, 3).draw(mine, 0, torch.Generator()).sampled
    assert batch is not None
    part = Recorded(batch, 4).draw(mine, 0, torch.Generator().manual_seed(1)).sampled
    assert part is not None
    assert part.group.bincount().tolist() == [3] * 4
    assert Recorded(batch).draw(mine, 0, torch.Generator()).sampled is batch


def test_schedules() -> None:
    assert constant(0.1)(7) == 0.1
    half = cosine(1.0, 0.2, 10)
    assert [half(0), half(5), half(10), half(99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    stairs = steps(1.0, {5: 0.1, 2: 0.5})
    assert [stairs(i) for i in (0, 1, 2, 4, 5, 9)] == [1.0, 1.0, 0.5, 0.5, 0.1, 0.1]


def test_reinforcement_finds_the_right_answers() -> None:
    objective = Objective(policy=GRPO(), estimator=GroupRelative(), minibatches=2)
    source = Rollouts(TASK, prompts=16, group=8)
    records = SequencePolicyOptimization(TASK.policy(), source, objective, learning_rate=3e-3).train(60)
    assert records[0]["reward"] < 0.2
    assert sum(record["reward"] for record in records[-10:]) / 10 > 0.5


@pytest.mark.gpu
def test_a_gpu_trains_as_a_cpu_does() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    found = []
    for device in ("cpu", "cuda"):
        mine = policy().to(device)
        batch = policy(seed=1).sample(TASK.prompts(6, 0, torch.Generator()).context, 4, 3, generator=torch.Generator())
        batch = batch.with_(reward=TASK.reward(batch, Prompts(batch.context))).to(device)
        SequencePolicyOptimization(mine, Recorded(batch), GROUPS, max_grad_norm=1e9).train(1)
        SequencePolicyOptimization(mine, Rollouts(Brackets(3, 2, device=device), 4, 4), both()).train(1)
        found.append(weights(mine).cpu())
    assert torch.isfinite(found[1]).all()
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-2)

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from core.errors import InputError
from core.sequence.advantages import (
    GroupRelative,
    LeaveOneOut,
    RewardToGo,
    SemanticEntropyScale,
    SemanticShare,
    StandardisedReturns,
    Voting,
    Whole,
    group_relative,
    leave_one_out,
    random_reward,
)
from core.sequence.any_loss import AnyEstimator
from core.sequence.batch import TokenBatch
from core.sequence.clusters import (
    cluster_ids,
    cluster_mass,
    exact_clusters,
    near_clusters,
    semantic_entropy,
    tied_groups,
)
from tests.core.token_batches import ragged

A_FEW = torch.tensor([0, 1, 0, 2, 1, 0, 0, 2, 1])


def advantage_by_rows(r: Tensor, group: Tensor, eps: float) -> Tensor:
    """The same by a loop, as other libraries write it."""
    members: dict[int, list[float]] = {}
    for i in range(len(r)):
        members.setdefault(int(group[i]), []).append(float(r[i]))
    found = torch.empty_like(r)
    for i in range(len(r)):
        mine = torch.tensor(members[int(group[i])], dtype=r.dtype)
        mean, std = (mine.mean(), mine.std()) if len(mine) > 1 else (torch.tensor(0.0), torch.tensor(1.0))
        found[i] = (r[i] - mean) / (std + eps)
    return found


def answers(rows: list[list[int]], group: list[int], log_prob: list[float] | None = None) -> TokenBatch:
    tokens = torch.tensor(rows)
    lp = torch.zeros(tokens.shape)
    lp[:, 0] = torch.tensor(log_prob or [-1.0] * len(rows))
    return TokenBatch(tokens, tokens != 0, torch.tensor(group), reward=torch.rand(len(rows)), log_prob_old=lp)


def test_group_relative_is_that_of_a_loop() -> None:
    r = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(group_relative(r, A_FEW), advantage_by_rows(r, A_FEW, 1e-6))
    alone = torch.tensor([0, 1, 0, 2, 0, 0, 0, 2, 2])
    torch.testing.assert_close(group_relative(r, alone), advantage_by_rows(r, alone, 1e-6))


def test_scales_differ_by_what_divides() -> None:
    r = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = group_relative(r, A_FEW, None)
    torch.testing.assert_close(group_relative(r, A_FEW, "batch", 0.0), plain / r.std())
    for g in range(3):
        assert float(plain[g == A_FEW].mean()) == pytest.approx(0, abs=1e-15)
        assert float(group_relative(r, A_FEW)[g == A_FEW].std()) == pytest.approx(1, rel=1e-5)


def test_tied_groups_get_exactly_nothing() -> None:
    # The mean of equal single-precision numbers may differ from them by rounding, which 1e-6 would blow up.
    r = torch.full((7,), 0.3)
    group = torch.zeros(7, dtype=torch.int64)
    assert not group_relative(r, group).any()
    assert tied_groups(r, group).all()
    r[3] = 0.4
    assert not tied_groups(r, group).any()
    assert tied_groups(r, torch.tensor([0, 0, 0, 1, 1, 0, 0])).tolist() == [True] * 3 + [False] * 2 + [True] * 2


def test_leave_one_out_is_a_multiple_of_the_centred_reward() -> None:
    r = torch.randn(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    size = torch.bincount(A_FEW)[A_FEW]
    torch.testing.assert_close(leave_one_out(r, A_FEW), size / (size - 1) * group_relative(r, A_FEW, None))
    dense = torch.stack([r, 2 * r], 1)
    torch.testing.assert_close(leave_one_out(dense, A_FEW)[:, 1], 2 * leave_one_out(r, A_FEW))


def test_advantages_do_not_depend_on_the_order_of_the_rows() -> None:
    batch = ragged()
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    for estimator in (GroupRelative(), GroupRelative("batch"), LeaveOneOut(), StandardisedReturns(), RewardToGo(0.9)):
        whole = estimator(batch).need("advantage")
        torch.testing.assert_close(estimator(batch[order]).need("advantage"), whole[order])
        assert not whole[~batch.mask].any()


def test_reward_to_go_is_the_whole_reward_at_the_first_token() -> None:
    batch = ragged()
    whole, to_go = Whole()(batch).need("advantage"), RewardToGo()(batch).need("advantage")
    torch.testing.assert_close(to_go[:, 0], whole[:, 0])
    last = batch.mask.sum(1, keepdim=True) - 1
    torch.testing.assert_close(to_go.gather(1, last), batch.need("reward").gather(1, last))
    of_rows = batch.with_(reward=whole[:, 0])
    torch.testing.assert_close(RewardToGo()(of_rows).need("advantage"), whole)


def test_standardised_returns_ignore_how_good_a_sequence_is() -> None:
    batch = ragged()
    found = StandardisedReturns()(batch).need("advantage")
    better = batch.with_(reward=3 * batch.need("reward"))
    torch.testing.assert_close(StandardisedReturns()(better).need("advantage"), found, rtol=1e-5, atol=1e-5)
    alone = batch.mask.sum(1) == 1
    assert alone.any()
    assert not found[alone].any()


def test_one_sequence_a_prompt_is_refused_but_one_left_alone_is_not() -> None:
    batch = ragged(prompts=12)
    for estimator in (GroupRelative(), LeaveOneOut()):
        with pytest.raises(InputError, match="only sequence of its prompt"):
            estimator(batch)
    left = ragged(rows=4, prompts=2)[torch.tensor([0, 1, 2])]
    assert torch.isfinite(GroupRelative()(left).need("advantage")).all()


def test_exact_clusters_tell_prompts_lengths_and_tokens_apart() -> None:
    batch = answers([[3, 1, 0], [3, 1, 0], [3, 1, 1], [3, 0, 0], [3, 1, 0]], [0, 0, 0, 0, 1])
    ids = exact_clusters(batch)
    assert ids[0] == ids[1]
    assert len(ids.unique()) == 4
    torch.testing.assert_close(cluster_mass(ids, batch.group), torch.tensor([0.5, 0.5, 0.25, 0.25, 1.0]))


def test_near_answers_join_the_first_of_their_cluster() -> None:
    batch = answers([[1, 1, 1], [2, 2, 2], [1, 1, 2], [1, 2, 2], [1, 1, 0], [1, 1, 1]], [0, 0, 0, 0, 0, 1])
    assert near_clusters(batch, 2).tolist() == [0, 1, 0, 1, 0, 5]
    many = ragged(rows=60, prompts=4, length=4, vocabulary=3)
    exact, found = exact_clusters(many), near_clusters(many, 1)
    assert ((exact.unsqueeze(0) == exact.unsqueeze(1)) == (found.unsqueeze(0) == found.unsqueeze(1))).all()
    assert len(near_clusters(many, 99).unique()) == 4
    assert float(semantic_entropy(cluster_ids(many, partial(near_clusters, distance=99)), many.group).max()) < 1e-6


def test_a_cluster_function_may_number_each_prompt_from_zero() -> None:
    batch = answers([[1], [2], [1], [2]], [0, 0, 1, 1])
    assert len(cluster_ids(batch, lambda b: b.tokens[:, 0]).unique()) == 4
    for wrong in (lambda b: b.tokens, lambda b: b.tokens[:2, 0], lambda b: b.tokens[:, 0].float()):
        with pytest.raises(InputError, match="cluster: returned"):
            cluster_ids(batch, wrong)


def test_semantic_entropy_is_between_zero_and_the_log_of_the_group() -> None:
    group = torch.zeros(4, dtype=torch.int64)
    same, differ = torch.zeros(4, dtype=torch.int64), torch.arange(4)
    for formula in ("entropy", "mean_log"):
        assert float(semantic_entropy(same, group, None, formula)[0]) == pytest.approx(0, abs=1e-6)  # type: ignore[arg-type]
        assert float(semantic_entropy(differ, group, None, formula)[0]) == pytest.approx(math.log(4))  # type: ignore[arg-type]
    lp = torch.tensor([-1.0, -30.0, -60.0, -90.0])
    assert 0 <= float(semantic_entropy(differ, group, lp)[0]) < 1e-6
    # The paper's formula grows without bound as a share vanishes.
    assert float(semantic_entropy(differ, group, lp, "mean_log")[0]) > math.log(4)


def test_a_semantic_entropy_scale_of_zero_is_dr_grpo() -> None:
    batch = ragged()
    found = SemanticEntropyScale(alpha=0)(batch).need("advantage")
    assert (found == GroupRelative(scale=None)(batch).need("advantage")).all()


@pytest.mark.parametrize("f", ["linear", "exp", "focal"])
@pytest.mark.parametrize("entropy", ["entropy", "mean_log"])
@pytest.mark.parametrize("mass", ["probability", "count"])
def test_the_scale_falls_from_one_for_agreement_to_its_least_for_disagreement(f: str, entropy: str, mass: str) -> None:
    scale = SemanticEntropyScale(alpha=0.5, f=f, entropy=entropy, mass=mass)  # type: ignore[arg-type]
    least = {"linear": 0.5, "exp": math.exp(-0.5), "focal": 0.25}[f]
    batch = answers(
        [[1, 0]] * 4 + [[1, 0], [2, 0], [3, 0], [4, 0]] + [[1, 0], [1, 0], [2, 0], [2, 0]], [0] * 4 + [1] * 4 + [2] * 4
    )
    factor = scale.factor(batch)
    torch.testing.assert_close(factor[:4], torch.ones(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(factor[4:8], torch.full((4,), least))
    assert ((factor[8:] < 1) & (factor[8:] > least)).all()
    order = torch.tensor([3, 1, 0, 2, 7, 5, 4, 6, 9, 8, 11, 10])
    torch.testing.assert_close(scale.factor(batch[order]), factor[order])


def test_the_scale_stays_within_its_range_for_any_probabilities() -> None:
    batch = ragged(rows=40, prompts=8, length=3, vocabulary=3)
    for entropy in ("entropy", "mean_log"):
        factor = SemanticEntropyScale(alpha=1, entropy=entropy).factor(batch)  # type: ignore[arg-type]
        assert ((factor >= 0) & (factor <= 1)).all()
        for g in range(8):
            assert len(factor[batch.group == g].unique()) == 1


def test_semantic_share_is_the_share_of_equal_answers_and_its_guards_act() -> None:
    batch = answers([[1], [1], [1], [2], [1], [2], [3], [4]], [0] * 4 + [1] * 4)
    assert SemanticShare(guard=None)(batch).tolist() == [0.75, 0.75, 0.75, 0.25] + [0.25] * 4
    assert SemanticShare()(batch).tolist() == [0.75, 0.75, 0.75, 0.25] + [0.0] * 4
    assert SemanticShare(guard="majority", threshold=0.8)(batch).tolist() == [0.0] * 8
    assert Voting()(batch).tolist() == [1, 1, 1, 0] + [1] * 4
    drawn = random_reward(batch, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {0.0, 1.0}
    with pytest.raises(InputError, match="only sequence"):
        SemanticShare()(batch[torch.tensor([0, 4])])


def test_the_gradient_flow_of_semantic_share_sharpens_the_majority() -> None:
    # The expected reward of one softmax is sum p^2; the flow is monotone towards the largest.
    z = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().requires_grad_()
    largest = 0.5
    for _ in range(400):
        (grad,) = torch.autograd.grad(z.softmax(0).square().sum(), z)
        z = (z + 2 * grad).detach().requires_grad_()
        now = float(z.detach().softmax(0).max())
        assert now >= largest
        largest = now
    torch.testing.assert_close(z.softmax(0).detach(), torch.tensor([1.0, 0, 0], dtype=torch.float64), rtol=0, atol=0.01)
    tie = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(tie.softmax(0).square().sum(), tie)[0].abs().max() < 1e-16


def test_an_estimator_is_read_from_a_configuration_by_its_name() -> None:
    read: TypeAdapter[object] = TypeAdapter(AnyEstimator)
    assert read.validate_python({"name": "group_relative", "scale": None}) == GroupRelative(scale=None)
    found = read.validate_python({"name": "semantic_entropy", "alpha": 0.1, "inner": {"name": "leave_one_out"}})
    assert found == SemanticEntropyScale(alpha=0.1, inner=LeaveOneOut())
    for wrong in (
        {"name": "leave_two_out"},
        {"name": "whole", "gamma": 1},
        {"name": "reward_to_go", "gamma": 1.5},
        {"name": "group_relative", "scale": "prompt"},
        {"name": "semantic_entropy", "alpha": -1},
        {"name": "semantic_entropy", "cluster": "viseme"},
    ):
        with pytest.raises(ValidationError):
            read.validate_python(wrong)
    read.json_schema()


def test_impossible_values_are_refused_where_they_are_given() -> None:
    for make in (
        lambda: RewardToGo(-0.1),
        lambda: StandardisedReturns(1.1),
        lambda: GroupRelative(eps=0),
        lambda: SemanticEntropyScale(f="cubic"),  # type: ignore[arg-type]
        lambda: SemanticEntropyScale(focus=0),
        lambda: SemanticShare(threshold=0),
    ):
        with pytest.raises(InputError, match="is not"):
            make()


def test_a_lonely_row_keeps_its_reward_whosever_deviation_divides() -> None:
    group = torch.tensor([0, 0, 1])
    for scale in ("group", "batch", None):
        found = group_relative(torch.ones(3), group, scale)
        assert torch.allclose(found, torch.tensor([0.0, 0.0, 1.0]), atol=1e-5)
    assert torch.allclose(group_relative(torch.tensor([2.0]), group[:1], "batch"), torch.tensor([2.0]))


@pytest.mark.parametrize("scale", ["group", "batch", None])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16])
def test_a_verifier_may_answer_in_any_type(scale: Any, dtype: torch.dtype) -> None:
    batch = ragged(dtype=torch.float32).with_(reward=torch.arange(12) % 4 < 1)
    found = batch.with_(reward=batch.need("reward").to(dtype))
    for estimator in (Whole(), RewardToGo(), GroupRelative(scale), LeaveOneOut(), SemanticEntropyScale()):
        expected = estimator(batch.with_(reward=batch.need("reward").float())).need("advantage")
        assert torch.equal(estimator(found).need("advantage"), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SemanticEntropyScale(mass="shares"),  # type: ignore[arg-type]
        lambda: SemanticEntropyScale(entropy="log_mean"),  # type: ignore[arg-type]
        lambda: SemanticShare(guard="minority"),  # type: ignore[arg-type]
    ],
)
def test_a_misspelt_choice_is_refused_and_never_taken_for_another(wrong: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=r"'shares'|'log_mean'|'minority'"):
        wrong()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_random_rewards_of_a_batch_on_a_gpu_may_be_drawn_on_the_cpu() -> None:
    batch = ragged(dtype=torch.float32)
    found = random_reward(batch.to("cuda"), torch.Generator().manual_seed(0))
    assert found.is_cuda
    assert torch.equal(found.cpu(), random_reward(batch, torch.Generator().manual_seed(0)))

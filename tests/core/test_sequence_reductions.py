from __future__ import annotations

import pytest
import torch

from core.errors import InputError
from core.sequence.advantages import group_relative
from core.sequence.clusters import tied_groups
from core.sequence.reductions import (
    check_groups,
    group_max,
    group_sum,
    per_row,
    per_token,
    reduce,
    standardised,
    suffix_sum,
)
from tests.core.token_batches import gradient, ragged

EACH = ("token", "sequence", "row_sum", "constant")


def test_reductions_are_those_of_a_loop_over_rows() -> None:
    batch = ragged()
    x, mask = batch.need("advantage"), batch.mask
    rows = [row[kept] for row, kept in zip(x, mask, strict=True)]
    assert reduce(x, mask, "token") == pytest.approx(float(torch.cat(rows).mean()))
    assert reduce(x, mask, "sequence") == pytest.approx(float(torch.stack([row.mean() for row in rows]).mean()))
    assert reduce(x, mask, "row_sum") == pytest.approx(float(torch.stack([row.sum() for row in rows]).mean()))
    assert reduce(x, mask, "constant") == pytest.approx(float(torch.cat(rows).sum() / x.numel()))


@pytest.mark.parametrize("how", EACH)
def test_padding_is_not_read(how: str) -> None:
    batch = ragged()
    x = batch.need("advantage")
    found = reduce(torch.where(batch.mask, x, torch.nan), batch.mask, how)  # type: ignore[arg-type]
    assert found == reduce(x, batch.mask, how)  # type: ignore[arg-type]
    if how != "constant":  # whose divisor is the padded length, by definition
        padded = batch.pad_to(20)
        assert reduce(padded.need("advantage"), padded.mask, how) == pytest.approx(float(found))  # type: ignore[arg-type]


@pytest.mark.parametrize("how", EACH)
def test_a_batch_without_a_valid_token_gives_zero_and_a_zero_gradient(how: str) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    value = reduce(x, torch.zeros(3, 4, dtype=torch.bool), how)  # type: ignore[arg-type]
    assert float(value.detach()) == 0
    assert not gradient(value, x).any()


def test_half_precision_is_summed_in_single_precision() -> None:
    x = torch.full((64, 64), 0.1, dtype=torch.bfloat16)
    found = reduce(x, torch.ones(64, 64, dtype=torch.bool), "row_sum")
    assert found.dtype == torch.float32
    assert found == pytest.approx(64 * float(x[0, 0]), rel=1e-5)


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(InputError, match="how: 'mean'"):
        reduce(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), "mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("gamma", [1.0, 0.95, 0.0])
def test_suffix_sums_obey_their_recursion(gamma: float) -> None:
    batch = ragged()
    x = batch.need("reward")
    found = suffix_sum(x, batch.mask, gamma)
    later = torch.nn.functional.pad(found[:, 1:], (0, 1))
    torch.testing.assert_close(found, x + gamma * later)


def test_rewards_of_rows_and_of_tokens_are_the_same_sum() -> None:
    batch = ragged()
    total = per_row(batch.need("reward"), batch.mask)
    placed = per_token(total, batch.mask)
    torch.testing.assert_close(per_row(placed, batch.mask), total)
    assert ((placed != 0).sum(1) == 1).all()
    assert (placed.gather(1, batch.mask.sum(1, keepdim=True) - 1).squeeze(1) == total).all()


def test_dense_rewards_in_another_order_tie_and_have_no_advantage() -> None:
    g = torch.Generator().manual_seed(0)
    dense = torch.randint(-1, 2, (64, 25), generator=g) / torch.randint(5, 30, (64, 1), generator=g)
    permuted = torch.stack([row[torch.randperm(25, generator=g)] for row in dense for _ in range(8)])
    group = torch.arange(64).repeat_interleave(8)
    total = per_row(permuted, torch.ones_like(permuted, dtype=torch.bool))
    assert total.dtype == torch.float32
    assert tied_groups(total, group).all()
    assert not group_relative(total, group).any()
    assert not tied_groups(permuted.sum(1), group).all()  # which is what the sum in double precision is for


def test_groups_need_not_stand_together_nor_be_numbered_without_gaps() -> None:
    x, group = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([5, 0, 5, 0])
    assert group_sum(x, group).tolist() == [5, 10, 5, 10]
    assert group_max(x, group).tolist() == [4, 8, 4, 8]
    assert group_sum(x[:0], group[:0]).shape == (0,)


def test_standardised_rows_have_mean_zero_and_deviation_one() -> None:
    batch = ragged()
    found = standardised(batch.need("reward"), batch.mask, 1e-12)
    for row, mask in zip(found, batch.mask, strict=True):
        kept = row[mask]
        assert float(kept.mean()) == pytest.approx(0, abs=1e-9)
        if len(kept) > 1:
            assert float(kept.std()) == pytest.approx(1)


def test_lonely_sequences_are_refused_with_their_row() -> None:
    check_groups(torch.tensor([0, 1, 0]), "it")
    with pytest.raises(InputError, match=r"group: row 1 .* it needs at least 2"):
        check_groups(torch.tensor([0, 1, 0]), "it", every=True)
    with pytest.raises(InputError, match="row 0"):
        check_groups(torch.tensor([2, 1, 0]), "it")

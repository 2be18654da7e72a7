from __future__ import annotations

import editdistance
import pytest
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from core.sequence.edit_distance import edit_distances, next_row, prefix_edit_distances


def pairs(rows: int, longest: int, letters: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sequences and references of 0 to ``longest`` letters; the letters beyond their ends must not count."""
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(1, letters + 1, (rows, longest), generator=g) for _ in range(2))
    n, m = (torch.randint(0, longest + 1, (rows,), generator=g) for _ in range(2))
    return a, torch.arange(longest) < n.unsqueeze(1), b, m


@pytest.mark.parametrize("letters", [1, 2, 4, 26])
def test_distances_are_those_of_two_libraries(letters: int) -> None:
    a, keep, b, m = pairs(200, 14, letters, letters)
    found = edit_distances(a, keep, b, m).tolist()
    for i, distance in enumerate(found):
        mine, other = a[i][keep[i]].tolist(), b[i, : m[i]].tolist()
        assert distance == editdistance.eval(mine, other) == Levenshtein.distance(mine, other)


def test_every_prefix_is_compared_with_the_whole_reference() -> None:
    a, _, b, m = pairs(60, 12, 3, 0)
    keep = torch.rand(a.shape, generator=torch.Generator().manual_seed(1)) < 0.8
    found = prefix_edit_distances(a, keep, b, m)
    assert found.dtype == torch.int64
    for i in range(len(a)):
        for t in range(a.shape[1]):
            prefix = a[i, : t + 1][keep[i, : t + 1]].tolist()
            assert int(found[i, t]) == editdistance.eval(prefix, b[i, : m[i]].tolist())


def test_a_row_holds_the_distances_to_all_beginnings_of_the_reference() -> None:
    a, _, b, _ = pairs(20, 8, 3, 0)
    row = torch.zeros(20, 9, dtype=torch.int32)
    for t, token in enumerate(a.unbind(1)):
        row = next_row(row, token, b)
        for i in range(20):
            mine, other = a[i, : t + 1].tolist(), b[i].tolist()
            assert (row[i] + torch.arange(9)).tolist() == [editdistance.eval(mine, other[:j]) for j in range(9)]


def test_rewards_by_prefix_add_up_to_the_errors_avoided() -> None:
    a, keep, b, m = pairs(100, 10, 3, 2)
    distance = prefix_edit_distances(a, keep, b, m)
    reward = -torch.diff(torch.cat([m.unsqueeze(1), distance], 1), dim=1)
    assert set(reward.unique().tolist()) <= {-1, 0, 1}
    assert (reward.sum(1) == m - distance[:, -1]).all()
    assert not reward[~keep].any()


def test_distances_are_a_metric() -> None:
    a, _, b, _ = pairs(100, 9, 3, 3)
    c = pairs(100, 9, 3, 4)[0]
    full, n = torch.ones_like(a, dtype=torch.bool), torch.full((100,), 9)

    def d(x: Tensor, y: Tensor) -> Tensor:
        return edit_distances(x, full, y, n)

    assert not d(a, a).any()
    assert (d(a, b) == d(b, a)).all()
    assert (d(a, c) <= d(a, b) + d(b, c)).all()
    assert (d(a, b) <= 9).all()


def test_empty_sequences_and_references_have_their_lengths_for_distances() -> None:
    a, keep, b, m = pairs(20, 8, 3, 5)
    assert (edit_distances(a, torch.zeros_like(keep), b, m) == m).all()
    assert (edit_distances(a, keep, b, torch.zeros_like(m)) == keep.sum(1)).all()
    assert (edit_distances(a[:, :0], keep[:, :0], b, m) == m).all()
    assert prefix_edit_distances(a[:, :0], keep[:, :0], b, m).shape == (20, 0)
    assert (edit_distances(a, keep, b[:, :0], torch.zeros_like(m)) == keep.sum(1)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_computes_the_same_and_is_never_waited_for() -> None:
    given = pairs(500, 30, 4, 6)
    there = tuple(x.cuda() for x in given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = prefix_edit_distances(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (found.cpu() == prefix_edit_distances(*given)).all()

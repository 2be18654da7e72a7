import pytest
import torch
from torch import nn

from core.errors import InputError
from core.nn.hopfield import (
    hopfield_energy,
    hopfield_update,
    hopfield_weights,
    metastable_size,
    retrieve,
    separation,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_retrieval_is_the_softmax_over_the_stored_patterns():
    query, keys, values = normal(3, 8), normal(20, 8, seed=1), normal(20, 2, seed=2)
    expected = torch.softmax(query @ keys.T / 8**0.5, 1) @ values
    assert torch.allclose(retrieve(query, keys, values), expected)
    assert torch.allclose(hopfield_weights(keys, query, 8**-0.5) @ values, expected)
    allowed = torch.ones(3, 20, dtype=torch.bool)
    allowed[:, 10:] = False
    assert torch.allclose(retrieve(query, keys, values, allowed=allowed), retrieve(query, keys[:10], values[:10]))


def test_one_update_is_torchs_attention_with_the_patterns_as_keys_and_values():
    patterns, state = normal(30, 16), normal(5, 16, seed=1)
    attention = nn.MultiheadAttention(16, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.eye(16, dtype=torch.float64).repeat(3, 1))
        attention.out_proj.weight.copy_(torch.eye(16))
        output, weights = attention(state, patterns, patterns)
    assert torch.allclose(hopfield_update(patterns, state, 16**-0.5), output, atol=1e-12)
    assert torch.allclose(hopfield_weights(patterns, state, 16**-0.5), weights, atol=1e-12)
    assert torch.allclose(retrieve(state, patterns, patterns), output, atol=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0, 50.0])
def test_the_energy_never_rises_and_stays_between_its_bounds(beta):
    patterns = normal(4, 40, 12)
    state = normal(4, 25, 40, seed=1).softmax(-1) @ patterns
    most = 2 * patterns.norm(dim=-1).amax(-1).square()[:, None]
    before = hopfield_energy(patterns, state, beta)
    for _ in range(8):
        state = hopfield_update(patterns, state, beta)
        after = hopfield_energy(patterns, state, beta)
        assert ((after >= -1e-9) & (after <= most)).all()
        assert (after <= before + 1e-9).all()
        before = after


@pytest.mark.parametrize(("count", "width"), [(1000, 64), (100, 16)])
def test_one_update_retrieves_within_the_bound_of_theorem_4(count, width):
    patterns = normal(count, width)
    state = patterns + 0.1 * normal(count, width, seed=1) / width**0.5
    fixed = hopfield_update(patterns, patterns, 1.0, steps=200, tolerance=1e-12)
    largest = patterns.norm(dim=1).max()
    away = torch.maximum((state - patterns).norm(dim=1), (fixed - patterns).norm(dim=1))
    margin = separation(patterns) - 2 * away * largest
    bound = 2 * (count - 1) * torch.exp(-margin) * largest
    told_apart = separation(patterns) > 0
    assert told_apart.sum() > count // 2
    error = (hopfield_update(patterns, state, 1.0) - patterns).norm(dim=1)
    assert (error <= bound + 1e-12)[told_apart].all()
    if width == 64:
        # Where patterns are well apart the bound says something: one update retrieves.
        clear = bound < 1e-3
        assert clear.sum() > count // 2
        assert error[clear].max() < 1e-3


def test_separation_is_the_least_margin_to_another_pattern():
    patterns = normal(2, 7, 3)
    for rows, found in zip(patterns, separation(patterns), strict=True):
        for i in range(7):
            others = [float(rows[i] @ rows[j]) for j in range(7) if j != i]
            assert float(found[i]) == pytest.approx(float(rows[i] @ rows[i]) - max(others))


def test_five_clusters_go_from_the_global_mean_through_cluster_means_to_single_patterns():
    centres = nn.functional.normalize(normal(5, 32))
    patterns = nn.functional.normalize(centres[:, None] + 0.02 * normal(5, 10, 32, seed=1), dim=2)
    means, flat = patterns.mean(1), patterns.flatten(0, 1)

    def rest(beta):
        state = hopfield_update(flat, flat, beta, steps=100, tolerance=1e-9)
        return state, metastable_size(hopfield_weights(flat, state, beta))

    state, size = rest(0.5)
    assert torch.allclose(state, flat.mean(0).expand_as(state), atol=0.05)
    assert (size >= 43).all()
    state, size = rest(20.0)
    assert (state.view(5, 10, 32) - means[:, None]).norm(dim=2).max() < 0.02
    assert ((size >= 8) & (size <= 10)).all()
    state, size = rest(2000.0)
    assert (state - flat).norm(dim=1).max() < 0.05
    assert (size == 1).all()


def test_euclidean_weights_are_the_softmax_of_negative_squared_distances():
    patterns, state = normal(3, 20, 4), normal(3, 6, 4, seed=1)
    expected = torch.softmax(-3.0 * torch.cdist(state, patterns).square(), -1)
    assert torch.allclose(hopfield_weights(patterns, state, 3.0, "euclidean"), expected)
    squares = patterns.square().sum(-1)
    assert torch.allclose(hopfield_weights(patterns, state, 3.0, "euclidean", squares), expected)
    # Of patterns in a row the shorter is nearest to itself only under this similarity.
    row = torch.tensor([[1.0], [10.0]])
    assert hopfield_update(row, row, 100.0, "euclidean").flatten().tolist() == pytest.approx([1.0, 10.0])
    assert hopfield_update(row, row, 100.0).flatten().tolist() == pytest.approx([10.0, 10.0])


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_patterns_that_may_not_be_seen_might_as_well_not_be_stored(similarity):
    patterns, state = normal(9, 4, seed=4), normal(5, 4, seed=5)
    allowed = torch.arange(9).expand(5, 9) % 3 > 0
    fewer = patterns[allowed[0]]
    weights = hopfield_weights(patterns, state, 2.0, similarity, allowed=allowed)
    torch.testing.assert_close(weights[:, allowed[0]], hopfield_weights(fewer, state, 2.0, similarity))
    assert (weights[~allowed] == 0).all()
    updated = hopfield_update(patterns, state, 2.0, similarity, steps=3, allowed=allowed)
    torch.testing.assert_close(updated, hopfield_update(fewer, state, 2.0, similarity, steps=3))


def test_logarithms_of_the_weights_do_not_underflow():
    patterns, state = normal(9, 4, seed=4), normal(5, 4, seed=5)
    logs = hopfield_weights(patterns, state, 2.0, log=True)
    torch.testing.assert_close(logs.exp(), hopfield_weights(patterns, state, 2.0))
    cold = hopfield_weights(patterns, state, 2000.0, log=True)
    assert (hopfield_weights(patterns, state, 2000.0) == 0).any()
    assert cold.isfinite().all()


def test_a_state_at_rest_is_left_alone_while_others_move():
    patterns = normal(40, 8)
    state = torch.cat([patterns[:1] * 3, normal(5, 8, seed=1)])
    together = hopfield_update(patterns, state, 0.7, steps=50)
    for i in range(len(state)):
        assert torch.allclose(together[i : i + 1], hopfield_update(patterns, state[i : i + 1], 0.7, steps=50))
    assert torch.allclose(hopfield_update(patterns, together, 0.7), together, atol=1e-3)


def test_metastable_size_counts_the_patterns_that_carry_the_mass():
    weights = torch.tensor([[0.05, 0.9, 0.05], [0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    assert metastable_size(weights).tolist() == [1, 3, 3]
    assert metastable_size(weights, 0.7).tolist() == [1, 2, 3]
    assert metastable_size(weights, 1.1).tolist() == [3, 3, 3]


def test_the_gradient_of_a_cold_memory_is_finite():
    patterns, state = normal(50, 8).requires_grad_(), normal(4, 8, seed=1).requires_grad_()
    hopfield_update(patterns, state, 1e3).square().sum().backward()
    assert patterns.grad.isfinite().all()
    assert state.grad.isfinite().all()


def test_settings_out_of_range_are_refused():
    with pytest.raises(InputError, match="beta = 0"):
        hopfield_weights(normal(3, 2), normal(1, 2), 0)
    with pytest.raises(InputError, match="beta = nan"):
        hopfield_weights(normal(3, 2), normal(1, 2), float("nan"))
    with pytest.raises(InputError, match="steps = 0"):
        hopfield_update(normal(3, 2), normal(1, 2), 1.0, steps=0)

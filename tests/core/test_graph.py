import pytest
import torch

from core.nn.graph import GraphConvolution, Neighbourhoods, normalised


def _weighted_graph(nodes, edges, seed):
    """Undirected edges, each once and no loops, and the dense matrix A."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.combinations(torch.arange(nodes))
    chosen = pairs[torch.randperm(len(pairs), generator=generator)[:edges]]
    weight = torch.rand(edges, generator=generator, dtype=torch.float64) + 0.1
    dense = torch.zeros(nodes, nodes, dtype=torch.float64)
    dense[chosen[:, 0], chosen[:, 1]] = weight
    return chosen[:, 0], chosen[:, 1], weight, dense + dense.T


def _both_ways(first, second, weight, nodes):
    return Neighbourhoods.of(torch.cat([first, second]), torch.cat([second, first]), weight.repeat(2), nodes)


def _case(nodes=9, edges=17, seed=0, inputs=4, outputs=5, **options):
    first, second, weight, dense = _weighted_graph(nodes, edges, seed)
    torch.manual_seed(seed)
    layer = GraphConvolution(inputs, outputs, **options).double()
    features = torch.randn(nodes, inputs, dtype=torch.float64, requires_grad=True)
    return first, second, weight, dense, layer, features


def _dense_lam(dense):
    degree = dense.sum(1)
    inverse = torch.where(degree > 0, degree, torch.inf).rsqrt()
    return inverse[:, None] * dense * inverse


def test_layer_is_the_dense_formula():
    first, second, weight, dense, layer, features = _case()
    around = _both_ways(first, second, normalised(first, second, weight, 9), 9)
    expected = torch.relu(
        _dense_lam(dense) @ features @ layer.of_neighbours.weight.T + features @ layer.of_own.weight.T
    )
    torch.testing.assert_close(layer(features, around, torch.arange(9)), expected)


def test_without_own_term_relu_and_normalisation_it_is_a_matrix_product():
    first, second, weight, dense, layer, features = _case(own=False, rectified=False)
    found = layer(features, _both_ways(first, second, weight, 9), torch.arange(9))
    torch.testing.assert_close(found, dense @ features @ layer.of_neighbours.weight.T)
    assert layer.of_own is None


def test_gradients_are_those_of_the_dense_formula():
    first, second, weight, dense, layer, features = _case()
    around = _both_ways(first, second, normalised(first, second, weight, 9), 9)
    wanted = [features, *layer.parameters()]
    pull = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = torch.autograd.grad((layer(features, around, torch.arange(9)) * pull).sum(), wanted)
    result = torch.relu(_dense_lam(dense) @ features @ layer.of_neighbours.weight.T + features @ layer.of_own.weight.T)
    torch.testing.assert_close(found, torch.autograd.grad((result * pull).sum(), wanted))


def test_nodes_in_another_order_have_the_same_results():
    first, second, weight, _, layer, features = _case()
    lam = normalised(first, second, weight, 9)
    renamed = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    moved = torch.empty_like(features).index_copy(0, renamed, features)
    result = layer(features, _both_ways(first, second, lam, 9), torch.arange(9))
    again = layer(moved, _both_ways(renamed[first], renamed[second], lam, 9), torch.arange(9))
    torch.testing.assert_close(again[renamed], result)


def test_edges_in_another_order_have_the_same_results():
    first, second, weight, _, layer, features = _case()
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(1))
    nodes = torch.arange(9)
    lam = normalised(first, second, weight, 9)
    one = layer(features, _both_ways(first, second, lam, 9), nodes)
    other = layer(features, _both_ways(first[order], second[order], lam[order], 9), nodes)
    torch.testing.assert_close(one, other)


def test_some_nodes_alone_are_computed_as_with_all_others():
    first, second, weight, _, layer, features = _case()
    lam = normalised(first, second, weight, 9)
    target, source, both = torch.cat([first, second]), torch.cat([second, first]), lam.repeat(2)
    result = layer(features, Neighbourhoods.of(target, source, both, 9), torch.arange(9))
    wanted = torch.tensor([7, 2, 4])
    row = torch.full((9,), -1)
    row[wanted] = torch.arange(3)
    kept = row[target] >= 0
    few = Neighbourhoods.of(row[target[kept]], source[kept], both[kept], 3)
    torch.testing.assert_close(layer(features, few, wanted), result[wanted])


def test_nodes_that_share_a_row_of_features_are_computed_each():
    first, second, weight, _, layer, features = _case()
    lam = normalised(first, second, weight, 9)
    around = _both_ways(first, second, lam, 9)
    result = layer(features, around, torch.arange(9))
    copies = 3
    target = torch.cat([torch.cat([first, second]) + 9 * copy for copy in range(copies)])
    source = torch.cat([second, first]).repeat(copies)
    shared = layer(
        features, Neighbourhoods.of(target, source, lam.repeat(2 * copies), 9 * copies), torch.arange(9).repeat(copies)
    )
    torch.testing.assert_close(shared, result.repeat(copies, 1))


def test_graphs_of_a_batch_do_not_touch():
    layer = _case()[4]
    alone, ends, weights, together = [], [], [], []
    for number, seed in enumerate((4, 5)):
        first, second, weight, _, _, features = _case(seed=seed)
        around = _both_ways(first, second, normalised(first, second, weight, 9), 9)
        alone.append(layer(features, around, torch.arange(9)))
        ends.append((first + 9 * number, second + 9 * number))
        weights.append(weight)
        together.append(features)
    first, second = (torch.cat(part) for part in zip(*ends, strict=True))
    weight = torch.cat(weights)
    around = _both_ways(first, second, normalised(first, second, weight, 18), 18)
    torch.testing.assert_close(layer(torch.cat(together), around, torch.arange(18)), torch.cat(alone))


def test_node_without_edges_has_its_own_term_alone():
    _, _, _, _, layer, features = _case()
    first, second = torch.tensor([0, 1]), torch.tensor([1, 2])
    lam = normalised(first, second, torch.ones(2, dtype=torch.float64), 9)
    result = layer(features, _both_ways(first, second, lam, 9), torch.arange(9))
    torch.testing.assert_close(result[3:], torch.relu(features @ layer.of_own.weight.T)[3:])
    assert torch.isfinite(result).all()


def test_edges_of_weight_0_are_none():
    lam = normalised(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([0.0, 0.0]), 3)
    torch.testing.assert_close(lam, torch.zeros(2))


def test_graph_without_edges():
    empty = torch.empty(0, dtype=torch.int64)
    around = Neighbourhoods.of(empty, empty, torch.empty(0), 3)
    torch.testing.assert_close(around.aggregate(torch.ones(3, 2)), torch.zeros(3, 2))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_lam_does_not_depend_on_the_unit_of_the_weights(scale):
    first, second, weight, _ = _weighted_graph(9, 17, 0)
    torch.testing.assert_close(
        normalised(first, second, scale * weight, 9), normalised(first, second, weight, 9), rtol=1e-12, atol=0
    )

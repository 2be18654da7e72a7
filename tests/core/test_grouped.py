import pytest
import torch
from torch import Tensor, nn

from core.nn.grouped import (
    GroupedCausalConvolution,
    GroupedLayerNorm,
    GroupedLinear,
    GroupedRecurrent,
    Initial,
    keep_all,
    serve,
    shared_dropout,
)

GROUPS, BATCH, STEPS, INPUTS, HIDDEN = 3, 5, 7, 4, 6


def initial(seeds=range(GROUPS), dtype=torch.float64) -> Initial:
    return Initial([torch.Generator().manual_seed(seed) for seed in seeds], dtype)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def copied(layer: GroupedLinear, group: int) -> nn.Linear:
    single = nn.Linear(layer.weight.shape[2], layer.weight.shape[1], bias=layer.bias is not None).double()
    single.weight.data.copy_(layer.weight[group])
    if layer.bias is not None:
        single.bias.data.copy_(layer.bias[group, :, 0])
    return single


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, BATCH])
def test_a_grouped_linear_layer_is_a_linear_layer_for_each_group(bias, batch):
    layer, x = GroupedLinear(initial(), INPUTS, HIDDEN, bias=bias), normal(GROUPS, INPUTS, batch)
    for group in range(GROUPS):
        expected = copied(layer, group)(x[group].mT).mT
        torch.testing.assert_close(layer(x)[group], expected)
        torch.testing.assert_close(layer.rows(x.mT)[group], expected.mT)


def test_rows_may_have_several_dimensions():
    layer, x = GroupedLinear(initial(), INPUTS, HIDDEN), normal(GROUPS, 2, 3, INPUTS)
    torch.testing.assert_close(layer.rows(x)[1], copied(layer, 1)(x[1]))


def test_weights_stored_for_single_columns_give_the_same_values():
    layer, x = GroupedLinear(initial(), INPUTS, HIDDEN), normal(GROUPS, INPUTS, 1)
    before, weight = layer(x), layer.weight.detach().clone()
    serve(layer)
    assert layer.weight.mT.is_contiguous()
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=0)
    torch.testing.assert_close(layer(x), before)


def test_initial_values_follow_the_scheme_of_torch():
    layer = GroupedLinear(initial(), 100, 200)
    for values in (layer.weight, layer.bias):
        assert 0.95 * 0.1 < values.abs().amax() <= 0.1
        assert values.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.1)


def test_initial_values_of_a_group_depend_on_no_other_and_on_no_precision():
    together = GroupedLinear(initial((4, 5, 6)), INPUTS, HIDDEN)
    alone = GroupedLinear(initial((5,)), INPUTS, HIDDEN)
    single = GroupedLinear(initial((5,), torch.float32), INPUTS, HIDDEN)
    assert torch.equal(together.weight[1], alone.weight[0])
    assert torch.equal(together.bias[1], alone.bias[0])
    assert torch.equal(alone.weight.float(), single.weight)
    assert not torch.equal(together.weight[0], together.weight[1])


@pytest.mark.parametrize(("cell", "kind"), [("elman", nn.RNN), ("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_a_grouped_recurrent_layer_is_that_of_torch_for_each_group(cell, kind):
    layer, x = GroupedRecurrent(initial(), cell, INPUTS, HIDDEN), normal(GROUPS, INPUTS, STEPS, BATCH)
    start = tuple(normal(GROUPS, HIDDEN, BATCH) * (i + 1) for i in range(2 if cell == "lstm" else 1))
    for state in (None, start):
        outputs, after = layer(x, state)
        for group in range(GROUPS):
            single = kind(INPUTS, HIDDEN).double()
            single.weight_ih_l0.data.copy_(layer.input.weight[group])
            single.weight_hh_l0.data.copy_(layer.recurrent.weight[group])
            single.bias_ih_l0.data.copy_(layer.input.bias[group, :, 0])
            single.bias_hh_l0.data.copy_(layer.recurrent.bias[group, :, 0])
            given = None if state is None else tuple(part[group].mT[None].contiguous() for part in state)
            expected, last = single(x[group].permute(1, 2, 0), given if given is None or cell == "lstm" else given[0])
            torch.testing.assert_close(outputs[group].permute(1, 2, 0), expected)
            for part, known in zip(after, last if cell == "lstm" else (last,), strict=True):
                torch.testing.assert_close(part[group].mT[None], known)


@pytest.mark.parametrize("cell", ["elman", "lstm", "gru"])
def test_a_recurrent_layer_goes_on_from_its_state(cell):
    layer, x = GroupedRecurrent(initial(), cell, INPUTS, HIDDEN), normal(GROUPS, INPUTS, STEPS, 1)
    whole, _ = layer(x)
    first, state = layer(x[:, :, :3])
    second, _ = layer(x[:, :, 3:], state)
    torch.testing.assert_close(torch.cat((first, second), 2), whole)


@pytest.mark.parametrize("dilation", [1, 4])
def test_a_grouped_convolution_is_a_causal_one_for_each_group(dilation):
    layer, x = GroupedCausalConvolution(initial(), INPUTS, HIDDEN, 3, dilation), normal(GROUPS, INPUTS, BATCH, STEPS)
    for group in range(GROUPS):
        single = nn.Conv1d(INPUTS, HIDDEN, 3, dilation=dilation).double()
        single.weight.data.copy_(layer.taps.weight[group].unflatten(1, (INPUTS, 3)))
        single.bias.data.copy_(layer.taps.bias[group, :, 0])
        expected = single(nn.functional.pad(x[group].transpose(0, 1), (2 * dilation, 0)))
        torch.testing.assert_close(layer(x)[group].transpose(0, 1), expected)


def test_a_grouped_normalisation_is_that_of_torch_for_each_group():
    layer, x = GroupedLayerNorm(GROUPS, INPUTS, torch.float64), normal(GROUPS, 2, BATCH, INPUTS)
    layer.weight.data.copy_(normal(GROUPS, INPUTS))
    layer.bias.data.copy_(2 * normal(GROUPS, INPUTS))
    for group in range(GROUPS):
        single = nn.LayerNorm(INPUTS).double()
        single.weight.data.copy_(layer.weight[group])
        single.bias.data.copy_(layer.bias[group])
        torch.testing.assert_close(layer(x)[group], single(x[group]))


def test_training_a_group_is_training_each_model_alone():
    x, y = normal(GROUPS, INPUTS, 50), normal(GROUPS, 2, 50)
    first, second = GroupedLinear(initial(), INPUTS, HIDDEN), GroupedLinear(initial(), HIDDEN, 2)
    singles = [nn.Sequential(copied(first, i), nn.Tanh(), copied(second, i)) for i in range(GROUPS)]
    grouped = torch.optim.Adam([*first.parameters(), *second.parameters()], 1e-2)
    alone = [torch.optim.Adam(single.parameters(), 1e-2) for single in singles]
    for _ in range(20):
        grouped.zero_grad()
        (second(first(x).tanh()) - y).square().mean((1, 2)).sum().backward()
        grouped.step()
        for group, (single, optimizer) in enumerate(zip(singles, alone, strict=True)):
            optimizer.zero_grad()
            (single(x[group].mT) - y[group].mT).square().mean().backward()
            optimizer.step()
    for group, single in enumerate(singles):
        torch.testing.assert_close(first.weight[group], single[0].weight, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(second.bias[group, :, 0], single[2].bias, rtol=1e-6, atol=1e-9)


def test_masks_of_dropout_follow_from_seed_and_step():
    x, device = torch.ones(GROUPS, 40, 50), torch.device("cpu")
    drop, again = shared_dropout(0.25, 3, 7, device), shared_dropout(0.25, 3, 7, device)
    masks = [drop(x), drop(x)]
    assert torch.equal(masks[0], again(x))
    assert torch.equal(masks[1], again(x))
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], shared_dropout(0.25, 3, 8, device)(x))
    for seed in (4, 5, 3 + 2**32):
        assert not torch.equal(masks[0], shared_dropout(0.25, seed, 7, device)(x))


def test_dropout_keeps_the_mean_and_treats_groups_alike():
    dropped = shared_dropout(0.25, 0, 0, torch.device("cpu"))(torch.ones(GROUPS, 100, 200))
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (dropped == dropped[:1]).all()
    assert shared_dropout(0.0, 0, 0, torch.device("cpu")) is keep_all

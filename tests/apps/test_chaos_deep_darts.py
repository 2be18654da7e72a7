"""Our networks against the modules of darts with copied weights."""

import importlib

import pytest
import torch
from torch import Tensor, nn

from apps.chaos.forecasters.deep import TCN, DeepForecaster, DLinear, NBeats, NHits, NLinear
from apps.chaos.forecasters.deep.training import Network
from apps.chaos.forecasters.forecaster import Fitting
from core.nn.grouped import GroupedCausalConvolution, GroupedLinear
from core.torchvision_guard import shield

pytestmark = pytest.mark.slow  # darts takes many seconds to import
LENGTH, CHANNELS, GROUPS = 10, 2, 2
NO_COVARIATES = {"future_cov_dim": 0, "static_cov_dim": 0, "shared_weights": False, "const_init": True}


def darts(name: str, module: str, **settings: object) -> nn.Module:
    """A network of darts in float64, without dropout."""
    pytest.importorskip("darts", reason="darts is not installed")
    shield()
    try:
        made = getattr(importlib.import_module(f"darts.models.forecasting.{module}"), name)
    except ImportError as error:
        pytest.skip(f"the networks of darts cannot be imported: {error}")
    shape = {"input_chunk_length": LENGTH, "output_chunk_length": 1, "nr_params": 1}
    return made(**shape, **settings).double().eval()


def ours(forecaster: DeepForecaster) -> Network:
    series = torch.zeros(GROUPS, LENGTH, CHANNELS, dtype=torch.float64)
    return forecaster.untrained(series, Fitting(tuple(range(GROUPS))))


def copy(target: nn.Module, source: GroupedLinear | GroupedCausalConvolution, group: int, rows: slice = slice(None)):
    source = source.taps if isinstance(source, GroupedCausalConvolution) else source
    target.weight.data.copy_(source.weight[group, rows].reshape(target.weight.shape))
    if source.bias is None:  # darts has one, which adds no function before a map with a bias of its own
        target.bias.data.zero_()
    else:
        target.bias.data.copy_(source.bias[group, rows, 0])


def assert_equal(theirs: nn.Module, network: Network, group: int) -> None:
    inputs = importlib.import_module("darts.utils.data.torch_datasets.utils").PLModuleInput
    windows = torch.randn(GROUPS, 4, LENGTH, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    predicted: Tensor = theirs(inputs(past_target=windows[group])).prediction[:, -1, :, 0]
    torch.testing.assert_close(predicted, network(windows)[group, :, -1], rtol=1e-9, atol=1e-9)


def test_nbeats():
    theirs = darts(
        "_NBEATSModule",
        "nbeats",
        **{"input_dim": CHANNELS, "output_dim": CHANNELS, "generic_architecture": True, "num_stacks": 3},
        **{"num_blocks": 1, "num_layers": 4, "layer_widths": [8] * 3, "expansion_coefficient_dim": 5},
        **{"trend_polynomial_degree": 2, "batch_norm": False, "dropout": 0.0, "activation": "ReLU"},
    )
    network = ours(NBeats(stacks=3, width=8, look_back=LENGTH, dtype="float64"))
    for group in range(GROUPS):
        for stack, block in zip(theirs.stacks_list, network.blocks, strict=True):
            (their,) = stack.blocks_list
            for target, source in zip(their.linear_layer_stack_list, block.layers, strict=True):
                copy(target, source, group)
            copy(their.forecast_linear_layer, block.theta, group, slice(-5, None))
            copy(their.forecast_g, block.forecast, group)
            if block.backcast is not None:
                copy(their.backcast_linear_layer, block.theta, group, slice(0, 5))
                copy(their.backcast_g, block.backcast, group)
        assert_equal(theirs, network, group)


def test_nhits():
    forecaster = NHits(width=8, look_back=LENGTH, dtype="float64")
    theirs = darts(
        "_NHiTSModule",
        "nhits",
        **{"input_dim": CHANNELS, "output_dim": CHANNELS, "num_stacks": 3, "num_blocks": 1, "num_layers": 2},
        **{"layer_widths": [8] * 3, "pooling_kernel_sizes": [(pool,) for pool in forecaster.pools]},
        **{"n_freq_downsample": ((1,),) * 3, "batch_norm": False, "dropout": 0.0, "activation": "ReLU"},
        MaxPool1d=True,
    )
    network = ours(forecaster)
    for group in range(GROUPS):
        for stack, block in zip(theirs.stacks_list, network.blocks, strict=True):
            (their,) = stack.blocks_list
            linear = [layer for layer in their.layers if isinstance(layer, nn.Linear)]
            for target, source in zip(linear, block.layers, strict=True):
                copy(target, source, group)
            copy(their.forecast_linear_layer, block.forecast, group)
            if block.backcast is not None:
                copy(their.backcast_linear_layer, block.backcast, group)
        assert_equal(theirs, network, group)


def test_tcn():
    theirs = darts(
        "_TCNModule",
        "tcn_model",
        **{"input_size": CHANNELS, "target_size": CHANNELS, "kernel_size": 3, "num_filters": 3, "num_layers": None},
        **{"dilation_base": 2, "weight_norm": False, "target_length": 1, "dropout": 0.0},
    )
    network = ours(TCN(look_back=LENGTH, dtype="float64"))
    for group in range(GROUPS):
        for their, block in zip(theirs.res_blocks_list, network.blocks, strict=True):
            copy(their.conv1, block.first, group)
            copy(their.conv2, block.second, group)
            if block.around is not None:
                copy(their.conv3, block.around, group)
        assert_equal(theirs, network, group)


@pytest.mark.parametrize("name", ["dlinear", "nlinear", "nlinear without normalisation"])
def test_linear_networks_and_their_initial_weights(name: str):
    size = {"input_dim": CHANNELS, "output_dim": CHANNELS, **NO_COVARIATES}
    if name == "dlinear":
        theirs = darts("_DLinearModule", "dlinear", kernel_size=25, **size)
        network = ours(DLinear(look_back=LENGTH, dtype="float64"))
        pairs = [(theirs.linear_seasonal, network.remainder), (theirs.linear_trend, network.trend)]
    else:
        normalize = name == "nlinear"
        theirs = darts("_NLinearModule", "nlinear", normalize=normalize, **size)
        network = ours(NLinear(look_back=LENGTH, dtype="float64", normalize=normalize))
        pairs = [(theirs.layer, network.map)]
    for their, our in pairs:
        torch.testing.assert_close(their.weight.data, our.weight[0].data, rtol=1e-6, atol=0)
        our.weight.data += torch.randn(our.weight.shape, generator=torch.Generator().manual_seed(3))
    for group in range(GROUPS):
        for their, our in pairs:
            copy(their, our, group)
        assert_equal(theirs, network, group)

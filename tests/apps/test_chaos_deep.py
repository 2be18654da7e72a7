import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from apps.chaos.forecasters.deep import LSTM, RNN, TCN, DeepForecaster, DLinear, NBeats, NHits, NLinear, Transformer
from apps.chaos.forecasters.deep.linear import moving_average
from apps.chaos.forecasters.deep.training import DeepFitted
from apps.chaos.forecasters.deep.transformer import TransformerNetwork
from apps.chaos.forecasters.forecaster import Fitting
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.nn.grouped import GroupedLinear, Initial

SMALL = {"look_back": 5, "epochs": 2, "batch": 16}
KINDS: list[DeepForecaster] = [
    NBeats(stacks=3, width=8, **SMALL),
    NHits(width=8, **SMALL),
    Transformer(width=8, heads=2, layers=2, feed_forward=12, **SMALL),
    LSTM(hidden=5, training_length=8, **SMALL),
    LSTM(hidden=5, training_length=8, cell="gru", **SMALL),
    RNN(hidden=5, **SMALL),
    TCN(**SMALL),
    DLinear(**SMALL),
    NLinear(**SMALL),
    NLinear(normalize=False, **SMALL),
]
NAMES = [f"{kind.kind}{i}" for i, kind in enumerate(KINDS)]
every_kind = pytest.mark.parametrize("forecaster", KINDS, ids=NAMES)


def waves(groups: int, samples: int, channels: int = 2, period: float = 20.0) -> Tensor:
    """Sinusoids of amplitude 2**.5 with their own phase in every channel and series."""
    t = torch.arange(samples, dtype=torch.float64)[None, :, None]
    phase = torch.arange(groups * channels, dtype=torch.float64).reshape(groups, 1, channels)
    return 2**0.5 * torch.sin(2 * math.pi * t / period + phase)


def double(forecaster: DeepForecaster) -> DeepForecaster:
    return forecaster.model_copy(update={"dtype": "float64"})


@every_kind
@pytest.mark.parametrize("channels", [1, 4])
def test_a_forecast_has_a_sample_of_every_channel_at_every_step(forecaster, channels):
    forecast = forecaster.fit(waves(2, 40, channels), Fitting((0, 1))).forecast(7)
    assert forecast.shape == (2, 7, channels)
    assert forecast.dtype == torch.float64
    assert forecast.isfinite().all()


@every_kind
def test_a_fit_repeats_bit_for_bit(forecaster):
    train = waves(2, 40)
    first, second = (forecaster.fit(train, Fitting((3, 4), seed=5)).forecast(9) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, forecaster.fit(train, Fitting((3, 4), seed=6)).forecast(9))


@every_kind
def test_a_series_is_fitted_in_a_group_as_alone(forecaster):
    train, forecaster = waves(3, 40), double(forecaster)
    together = forecaster.fit(train, Fitting((7, 8, 9))).forecast(5)
    alone = forecaster.fit(train[1:2], Fitting((8,))).forecast(5)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-7, atol=1e-9)


@every_kind
def test_a_series_that_is_not_finite_leaves_the_others_as_they_are(forecaster):
    train = waves(3, 40)
    healthy = forecaster.fit(train, Fitting((0, 1, 2))).forecast(5)
    train[1, 20, 0] = float("nan")
    forecast = forecaster.fit(train, Fitting((0, 1, 2))).forecast(5)
    assert forecast[1].isnan().all()
    assert torch.equal(forecast[[0, 2]], healthy[[0, 2]])


@every_kind
def test_every_parameter_is_trained(forecaster):
    series = waves(2, 40)
    network = double(forecaster).untrained(series, Fitting((0, 1)))
    double(forecaster).loss(network, series, 0)(0).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.flatten(1).abs().amax(1) > 0).all(), name


@every_kind
def test_an_interrupted_training_ends_as_an_uninterrupted_one(forecaster, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "due", property(lambda self: self.path is not None))
    train = waves(2, 40)
    whole = forecaster.fit(train, Fitting((0, 1))).forecast(5)

    def kill(share: float, _: str) -> None:
        if share > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forecaster.fit(train, Fitting((0, 1), checkpoint=tmp_path, progress=kill))
    shares: list[float] = []
    fitted = forecaster.fit(train, Fitting((0, 1), checkpoint=tmp_path, progress=lambda share, _: shares.append(share)))
    assert 0.6 < shares[0] <= 1 == shares[-1]
    assert torch.equal(fitted.forecast(5), whole)


@every_kind
def test_training_lowers_the_error_of_the_next_sample(forecaster):
    series = waves(2, 120).float()
    forecaster = forecaster.model_copy(update={"epochs": 30, "learning_rate": 1e-2})
    before = forecaster.untrained(series, Fitting((0, 1)))
    after = forecaster.fit(series.double(), Fitting((0, 1))).network
    errors = []
    for network in (before, after):
        windows = series.unfold(1, forecaster.window, 1)[:, :-1].mT
        predicted = network(windows)[:, :, -1]
        errors.append((predicted - series[:, forecaster.window :]).square().mean((1, 2)))
    assert (errors[1] < 0.2 * errors[0]).all()


@every_kind
def test_a_series_that_is_too_short_is_refused(forecaster):
    needed = forecaster.shortest
    assert needed == max(forecaster.window, forecaster.look_back) + 11
    forecaster.fit(waves(1, needed), Fitting((0,)))
    with pytest.raises(InputError, match=f"{forecaster.kind}: {needed - 1} training samples: needs at least {needed}"):
        forecaster.fit(waves(1, needed - 1), Fitting((0,)))


@every_kind
def test_a_forecast_follows_from_the_last_look_back_samples(forecaster):
    network = double(forecaster).untrained(waves(2, 40), Fitting((0, 1)))
    past = waves(2, 40)[:, -forecaster.look_back :]
    forecast = DeepFitted(network, past).forecast(3)
    # Autoregression: the forecast is the last sample of one step after a window that ends with the forecast before.
    longer = torch.cat((past, forecast), 1)
    expected = network(longer[:, None, : forecaster.look_back])[:, 0, -1]
    torch.testing.assert_close(forecast[:, 0], expected)
    start = 0 if isinstance(forecaster, LSTM) else 2
    again = network(longer[:, None, start : forecaster.look_back + 2])[:, 0, -1]
    torch.testing.assert_close(forecast[:, 2], again)


def test_the_look_back_of_an_lstm_is_its_warm_up_alone():
    short, long = (
        LSTM(look_back=n, hidden=5, training_length=8, epochs=1).fit(waves(1, 40), Fitting((0,))) for n in (2, 20)
    )
    for a, b in zip(short.network.parameters(), long.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(short.forecast(3), long.forecast(3))


def test_all_windows_are_seen_once_in_an_epoch_in_an_order_that_series_share():
    series = torch.arange(30, dtype=torch.float64)[None, :, None].repeat(2, 1, 1)
    forecaster, seen = NLinear(look_back=3, batch=8, dtype="float64"), []
    network = forecaster.untrained(series, Fitting((0, 1)))
    network.forward = lambda windows, dropout: seen.append(windows) or windows[:, :, -1:]
    loss = forecaster.loss(network, series, 0)
    assert forecaster.batches(series) == 4
    assert [loss(step).item() for step in range(4)] == [2.0] * 4  # the next sample is larger by 1
    assert [x.shape[1] for x in seen] == [8, 8, 8, 3]
    starts = torch.cat(seen, 1)[:, :, 0, 0]
    assert torch.equal(starts[0], starts[1])
    assert starts[0].sort().values.tolist() == list(range(27))
    loss(4)
    for seed in (1, 2, 2**32):
        forecaster.loss(network, series, seed)(0)
    assert all(not torch.equal(other, seen[0]) for other in seen[4:])


def test_nbeats_continues_a_sinusoid():
    series = waves(3, 260)
    fitted = NBeats(stacks=2, width=32, look_back=10, epochs=40).fit(series[:, :200], Fitting((0, 1, 2)))
    error = (fitted.forecast(60) - series[:, 200:]).square().mean((1, 2)).sqrt()
    assert (error < 0.1).all()


def test_a_linear_network_finds_a_linear_law():
    angle = 2 * math.pi / 20
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    state, states = torch.tensor([1.0, 0.0], dtype=torch.float64), []
    for _ in range(240):
        states.append(state)
        state = turn @ state
    series = torch.stack(states)[None]
    fitted = NLinear(look_back=2, epochs=60, batch=8, learning_rate=1e-2).fit(series[:, :200], Fitting((0,)))
    assert (fitted.forecast(40) - series[:, 200:]).abs().max() < 0.02


def test_a_transformer_is_that_of_torch_with_the_same_weights():
    settings = Transformer(width=8, heads=2, layers=2, feed_forward=12, look_back=6)
    ours = TransformerNetwork(settings, 3, Initial([torch.Generator().manual_seed(i) for i in range(2)], torch.float64))
    for parameter in ours.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    windows = torch.randn(2, 4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for group in range(2):
        theirs = nn.Transformer(8, 2, 2, 2, 12, batch_first=True).double().eval()

        def copy(target: nn.Linear, source: GroupedLinear, rows: slice = slice(None), group: int = group) -> None:
            target.weight.data[rows] = source.weight[group]
            target.bias.data[rows] = source.bias[group, :, 0]

        def attention(target: nn.MultiheadAttention, source: nn.Module) -> None:
            joint = nn.Linear(8, 24)
            joint.weight, joint.bias = target.in_proj_weight, target.in_proj_bias
            if hasattr(source, "query"):
                copy(joint, source.query, slice(0, 8))
                copy(joint, source.key_value, slice(8, 24))
            else:
                copy(joint, source.value, slice(16, 24))
            copy(target.out_proj, source.out)

        pairs = [
            *zip(theirs.encoder.layers, ours.encoder, strict=True),
            *zip(theirs.decoder.layers, ours.decoder, strict=True),
        ]
        norms = [(theirs.encoder.norm, ours.encoded), (theirs.decoder.norm, ours.decoded)]
        for their, our in pairs:
            attention(their.self_attn, our.own if hasattr(our, "own") else our.attention)
            if hasattr(our, "own"):
                attention(their.multihead_attn, our.attention)
            copy(their.linear1, our.feed_forward.first)
            copy(their.linear2, our.feed_forward.second)
            norms += [(getattr(their, f"norm{i + 1}"), norm) for i, norm in enumerate(our.norms)]
        for their, our in norms:
            their.weight.data.copy_(our.weight[group])
            their.bias.data.copy_(our.bias[group])
        embedded = ours.embedding.rows(windows)[group]
        expected = theirs(embedded + ours.positions, embedded[:, -1:] + ours.positions[:1])
        expected = ours.out.rows(expected.expand(2, -1, -1, -1))[group]
        torch.testing.assert_close(ours(windows)[group], expected)


def test_a_transformer_whose_heads_do_not_divide_its_width_is_refused():
    with pytest.raises(ValueError, match="8 is no multiple of the 3 heads"):
        Transformer(width=8, heads=3)


def test_the_moving_average_repeats_the_ends():
    averaged = moving_average(4, 3) @ torch.tensor([3.0, 6.0, 9.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(averaged, torch.tensor([4.0, 6.0, 5.0, 3.0], dtype=torch.float64))


@pytest.mark.parametrize(("look_back", "pools"), [(5, [2, 1, 1]), (10, [5, 2, 1]), (25, [12, 3, 1]), (100, [50, 7, 1])])
def test_pools_of_nhits_shrink_geometrically(look_back, pools):
    assert NHits(look_back=look_back).pools == pools


@pytest.mark.parametrize(("look_back", "blocks"), [(5, 1), (10, 2), (25, 3), (50, 4), (100, 5)])
def test_a_tcn_has_the_blocks_that_see_its_window(look_back, blocks):
    forecaster = TCN(look_back=look_back, dtype="float64")
    assert forecaster.blocks == blocks
    network = forecaster.untrained(waves(1, look_back), Fitting((0,)))
    for parameter in network.parameters():
        parameter.data.abs_()
    window = torch.ones(1, 1, look_back, 2, dtype=torch.float64, requires_grad=True)
    network(window)[0, 0, -1].sum().backward()
    assert (window.grad > 0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_fit_runs_on_a_device():
    train = waves(2, 60)
    for forecaster in map(double, KINDS):
        if forecaster.dropped:  # a device has masks of its own
            forecaster = forecaster.model_copy(update={"dropout": 0.0})
        here = forecaster.fit(train, Fitting((0, 1))).forecast(5)
        there = forecaster.fit(train.cuda(), Fitting((0, 1))).forecast(5)
        torch.testing.assert_close(there.cpu(), here, rtol=1e-6, atol=1e-8)

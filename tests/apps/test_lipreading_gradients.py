"""Signal and noise are estimated without the bias of squared noise, and gradients are those of the losses."""

import numpy as np
import pytest
import torch
import xarray as xr

from apps.lipreading.gradients import apart, gradients, jackknife, last_weights, signal, standard_error
from apps.lipreading.methods import Method
from apps.lipreading.models import FastSettings, build
from apps.lipreading.sources import SimulatedSource


def products(draws: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return draws @ draws.T, draws @ other.T, other @ other.T


def test_estimates_meet_the_truth_where_noise_is_known():
    rng, repeats, size = np.random.default_rng(0), 400, 50
    mean = rng.normal(size=size)
    turned = mean + 0.5 * rng.normal(size=size)
    noise = rng.normal(size=(repeats, size))
    draws, other = mean + 4 * noise, turned + 2 * noise  # the same luck in both, as of the same transcripts
    found = signal(*products(draws, other))
    snr = mean @ mean / (16 * size)
    cosine = mean @ turned / np.sqrt((mean @ mean) * (turned @ turned))
    assert found.snr == pytest.approx(snr, rel=0.1)
    assert found.cosine == pytest.approx(cosine, abs=0.03)
    assert found.one_repeat == pytest.approx(found.cosine * np.sqrt(snr / (1 + snr)), rel=0.05)
    # Means over all repeats would count the noise that both share.
    naive = draws.mean(0) @ other.mean(0) / np.linalg.norm(draws.mean(0)) / np.linalg.norm(other.mean(0))
    assert abs(found.cosine - cosine) < abs(naive - cosine)


@pytest.mark.filterwarnings("error")
def test_a_gradient_of_zero_has_neither_signal_nor_direction():
    draws, nothing = np.random.default_rng(1).normal(size=(30, 4)), np.zeros((30, 4))
    for one, other in ((nothing, draws), (nothing, nothing)):
        found = signal(*products(one, other))
        assert np.isnan([found.snr, found.cosine, found.one_repeat]).all()
    assert np.isnan(signal(*products(draws + 1, nothing)).cosine)


def test_pure_noise_has_no_signal():
    draws = np.random.default_rng(1).normal(size=(300, 40))
    assert abs(signal(*products(draws, draws)).snr) < 0.01
    assert apart(np.ones((5, 5))) == 1


def test_the_jackknife_error_is_the_spread_over_experiments():
    rng, found, errors = np.random.default_rng(2), [], []
    for _ in range(60):
        draws = 0.6 + rng.normal(size=(40, 30))
        data = xr.Dataset(dict.fromkeys(("own", "shared"), (("method", "repeat", "other"), (draws @ draws.T)[None])))
        whole, left = jackknife(data.assign_coords(method=["a"]), "a")
        found.append(whole.snr)
        errors.append(standard_error([x.snr for x in left]))
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.35)


def test_gradients_are_those_of_the_losses_one_by_one():
    source = SimulatedSource(clips=8, speakers=2, validation_clips=2, test_clips=2)
    corpus = source.open()
    torch.manual_seed(0)
    model = build(FastSettings(encoder=8, embedding=8, decoder=8)).eval()
    seen = corpus.training(torch.arange(8), torch.Generator().manual_seed(0))
    batch = model.sample(seen.clips, 2, corpus.max_length, generator=torch.Generator().manual_seed(1))
    methods = (
        Method(name="pg", loss={"name": "reinforce"}, estimator={"name": "whole"}),
        Method(name="pcpg", loss={"name": "pcpg"}, reward="dense"),
    )
    weights = last_weights(model)
    found = gradients(model, weights, batch, seen.reference, methods)
    assert found.shape == (2, sum(w.numel() for w in weights))
    alone = gradients(model, weights, batch, seen.reference, methods[1:])
    torch.testing.assert_close(found[1:], alone)
    assert not torch.allclose(found[0], found[1])

"""A stored prior is recognised by its files, whichever kind it is."""

import json

import pytest
import torch

from core.diffusion import DiffusersPrior, GaussianMixturePrior, NetworkPrior, ResidualUNet, load_prior
from core.errors import InputError
from core.torchvision_guard import shield
from tests.core.analytic import SHAPE, mixture

TAU = torch.tensor(0.4)


def network():
    torch.manual_seed(0)
    net = ResidualUNet(2, (8, 8), depth=1)
    torch.nn.init.normal_(net.head.weight)
    return NetworkPrior(net, (2, 8, 8)).eval()


def of_diffusers():
    shield()
    diffusers = pytest.importorskip("diffusers", reason="the extra mri is not installed")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    net = diffusers.UNet2DModel(8, 2, 2, layers_per_block=1, norm_num_groups=4, **blocks)
    return DiffusersPrior(net.eval(), diffusers.DDPMScheduler(clip_sample=False))


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: mixture(dtype=torch.float32), GaussianMixturePrior),
        (network, NetworkPrior),
        (of_diffusers, DiffusersPrior),
    ],
    ids=["mixture", "network", "diffusers"],
)
def test_each_kind_comes_back_from_its_folder(make, kind, tmp_path):
    prior = make()
    prior.save(tmp_path)
    x = torch.randn(3, *prior.shape, generator=torch.Generator().manual_seed(1))
    for folder in (tmp_path, str(tmp_path)):
        again = load_prior(folder)
        assert type(again) is kind
        assert again.shape == prior.shape
        assert torch.equal(again.noise(x, TAU), prior.noise(x, TAU))


def test_a_flat_directory_of_diffusers_is_recognised(tmp_path):
    prior = of_diffusers()
    prior.network.save_pretrained(tmp_path)
    prior.scheduler.save_pretrained(tmp_path)
    assert type(load_prior(tmp_path)) is DiffusersPrior


def test_folders_without_a_prior_are_refused_in_one_line(tmp_path):
    def refused(match):
        with pytest.raises(InputError, match=match) as error:
            load_prior(tmp_path)
        assert "\n" not in str(error.value)

    refused(r"prior\.json: no such file")
    (tmp_path / "prior.json").write_text(json.dumps({"shape": SHAPE}))
    refused("keys kind, shape, signal_rates")
    (tmp_path / "prior.json").write_text(json.dumps({"kind": "flow", "shape": SHAPE, "signal_rates": [0.9, 0.1]}))
    refused("kind is 'flow', expected 'gmm'")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_prior_comes_back_on_the_device_that_is_asked_for(tmp_path):
    for number, prior in enumerate((mixture(dtype=torch.float32), network())):
        prior.save(tmp_path / str(number))
        x = torch.randn(3, *prior.shape)
        found = load_prior(tmp_path / str(number), "cuda").noise(x.cuda(), TAU.cuda())
        torch.testing.assert_close(found.cpu(), prior.noise(x, TAU), rtol=1e-3, atol=1e-3)

"""The residual U-Net and the prior on it: what it is built of, where it starts, and what its files hold."""

import json
import math
import subprocess
import sys

import pytest
import torch

from core.diffusion.schedule import CosineAngle
from core.diffusion.unet import EMBEDDING, NetworkPrior, ResidualUNet
from core.errors import InputError


def prior(**options):
    torch.manual_seed(0)
    network = ResidualUNet(2, (8, 12), depth=1, **options)
    torch.nn.init.normal_(network.head.weight)
    return NetworkPrior(network, (2, 8, 12)).eval()


def test_it_has_the_weights_of_the_paper_s_architecture():
    count = sum(weight.numel() for weight in ResidualUNet(2, (32, 64, 96), depth=1).parameters())
    stem, head = 2 * 32 + 32, 32 * 2 + 2

    def block(before, width):
        return before * width + width + 9 * before * width + width + 9 * width * width + width

    blocks = [(32 + EMBEDDING, 32), (32, 64), (64, 96), (96 + 64, 64), (64 + 32, 32)]
    assert count == stem + sum(block(*ends) for ends in blocks) + head == 411_650
    deeper = ResidualUNet(1, (32, 64, 128), depth=2)
    assert [len(level) for level in deeper.down] == [2, 2]
    assert [len(level) for level in deeper.up] == [2, 2]
    norms = [module for module in deeper.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 2 * 2 + 2 + 2 * 2
    assert all(norm.weight is None and norm.bias is None for norm in norms)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_an_untrained_network_answers_zero_in_the_shape_of_its_images(norm):
    network = ResidualUNet(2, (8, 12, 16), depth=2, norm=norm)
    x = torch.randn(3, 2, 8, 12)
    out = network(x, torch.full((3,), 0.5))
    assert out.shape == x.shape
    assert torch.equal(out, torch.zeros_like(x))
    torch.nn.init.ones_(network.head.weight)
    assert network(x, torch.full((3,), 0.5)).abs().sum() > 0


def test_the_embedding_is_sine_and_cosine_of_the_variance():
    network = ResidualUNet(1, (8,), depth=1)
    variance = torch.tensor([0.0, 0.25])
    out = network.embedding(variance)
    assert out.shape == (2, EMBEDDING)
    torch.testing.assert_close(out[0], torch.cat((torch.zeros(16), torch.ones(16))))
    torch.testing.assert_close(out[1, [0, 16]], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)  # f = 1: 2 pi / 4
    last = 2 * math.pi * 1000 * 0.25
    assert out[1, 15].item() == pytest.approx(math.sin(last), abs=2e-3)
    assert out[1, 31].item() == pytest.approx(math.cos(last), abs=2e-3)


def test_the_network_hears_the_noise_variance_of_each_image():
    model = prior()
    x, tau = torch.randn(4, 2, 8, 12), torch.tensor([0.1, 0.4, 0.6, 0.9])
    together = model.noise(x, tau)
    for i in range(4):
        torch.testing.assert_close(model.noise(x[i : i + 1], tau[i]), together[i : i + 1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together, model.network(x, model.schedule.rates(tau)[1] ** 2))
    assert not torch.allclose(model.noise(x, tau.flip(0)), together)


def test_group_norm_does_not_depend_on_the_batch():
    model, x, tau = prior(norm="group").train(), torch.randn(4, 2, 8, 12), torch.tensor(0.5)
    torch.testing.assert_close(model.noise(x, tau)[:1], model.noise(x[:1], tau), atol=1e-5, rtol=1e-4)
    batch = prior().train()
    assert not torch.allclose(batch.noise(x, tau)[:1], batch.noise(x[:1], tau), atol=1e-3)


def test_the_noise_is_differentiable_in_the_images():
    model = prior().double()
    x = torch.randn(1, 2, 8, 12, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)
    tau = torch.tensor(0.5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(model.noise(x, tau).square().sum(), x)
    with torch.no_grad():
        ends = [model.noise(x + step * direction, tau).square().sum() for step in (1e-5, -1e-5)]
    assert ((ends[0] - ends[1]) / 2e-5).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


class PerfectNetwork(ResidualUNet):
    """Knows that the images are N(mean, deviation^2) in every component."""

    mean, deviation = 0.4, 0.3

    def forward(self, x, variance):
        q2 = variance.reshape(-1, 1, 1, 1)
        s2 = 1 - q2
        return q2.sqrt() * (x - s2.sqrt() * self.mean) / (s2 * self.deviation**2 + q2)


def test_ddim_with_a_perfect_denoiser_draws_its_normal_distribution():
    model = NetworkPrior(PerfectNetwork(1, (8,)), (1, 4, 4))
    x = model.sample(4000, steps=200, generator=torch.Generator().manual_seed(0))
    # The exact flow multiplies deviations by sqrt(v(tau = 0) / v(tau = 1)) and ends in Tweedie's estimate at s = 0.95.
    s, q = (rate.item() for rate in CosineAngle().rates(torch.tensor(1 / 200)))
    v1 = 0.02**2 * 0.3**2 + 1 - 0.02**2
    v0 = s**2 * 0.3**2 + q**2
    deviation = s * 0.3**2 / v0 * math.sqrt(v0 / v1)
    assert x.mean().item() == pytest.approx(0.4, abs=0.01)
    assert x.std().item() == pytest.approx(deviation, rel=0.01)


def test_files_hold_weights_statistics_and_all_that_rebuilds_the_prior(tmp_path):
    model = prior().train()
    model.schedule, model.training_norm = CosineAngle(0.9, 0.05), 12.5
    x, tau = torch.randn(4, 2, 8, 12), torch.tensor(0.3)
    for _ in range(3):
        model.noise(5 + 2 * x, tau)  # moves the running statistics
    model.eval().save(tmp_path)
    again = NetworkPrior.load(tmp_path)
    assert not again.training
    assert (again.shape, again.schedule, again.training_norm) == ((2, 8, 12), CosineAngle(0.9, 0.05), 12.5)
    torch.testing.assert_close(again.noise(x, tau), model.noise(x, tau), rtol=0, atol=0)
    assert again.network.state_dict()["bottleneck.0.norm.running_var"].sub(1).abs().max() > 1e-3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prior.json", "weights.safetensors"]


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path):
    prior().save(tmp_path)
    record = json.loads((tmp_path / "prior.json").read_text())
    for key, value in {
        "network": {"channels": 2, "widths": [8], "depth": 1, "norm": "batch"},
        "shape": [2, 7, 8],
    }.items():
        (tmp_path / "prior.json").write_text(json.dumps(record | {key: value}))
        with pytest.raises(InputError, match=r"weights\.safetensors|multiples of 2") as error:
            NetworkPrior.load(tmp_path)
        assert "\n" not in str(error.value)
    (tmp_path / "prior.json").write_text(json.dumps(record))
    whole = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(whole[:-40])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        NetworkPrior.load(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        NetworkPrior.load(tmp_path / "absent")


def test_sizes_and_channels_that_cannot_be_are_refused():
    network = ResidualUNet(2, (8, 8, 8), depth=1)
    with pytest.raises(InputError, match="8 x 10: height and width must be multiples of 4"):
        NetworkPrior(network, (2, 8, 10))
    with pytest.raises(InputError, match="images of 1 channels: the network has 2"):
        NetworkPrior(network, (1, 8, 8))
    with pytest.raises(InputError, match="multiples of 4"):
        network(torch.zeros(1, 2, 6, 8), torch.zeros(1))
    with pytest.raises(InputError, match="at least 1"):
        ResidualUNet(2, ())
    with pytest.raises(InputError, match="allowed: batch, group"):
        ResidualUNet(2, (8,), norm="layer")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_inside_the_network(precision):
    model, x, tau = prior(), torch.randn(2, 2, 8, 12), torch.tensor(0.5)
    exact = model.noise(x, tau)
    model.precision = precision
    rough = model.noise(x, tau)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()
    with pytest.raises(InputError, match="allowed: float32, bfloat16, float16"):
        NetworkPrior(ResidualUNet(2, (8,)), (2, 8, 8), precision="int8").noise(torch.zeros(1, 2, 8, 8), tau)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_noise_of_the_cpu():
    model, x, tau = prior(), torch.randn(2, 2, 8, 12), torch.tensor(0.5)
    there = model.cuda().noise(x.cuda(), tau.cuda()).cpu()
    torch.testing.assert_close(there, model.cpu().noise(x, tau), atol=1e-3, rtol=1e-3)


def test_a_torchvision_that_cannot_load_is_taken_for_absent(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from torchvision import half\nraise RuntimeError('operator does not exist')\n"
    )
    (package / "half.py").write_text("")
    code = (
        "import importlib.util, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from core.torchvision_guard import shield\n"
        "shield(); shield()\n"
        "assert importlib.util.find_spec('torchvision') is None\n"
        "assert [name for name in sys.modules if name.startswith('torchvision')] == ['torchvision']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    (package / "__init__.py").write_text("good = True\n")
    code = code.split("assert")[0] + "assert sys.modules['torchvision'].good\n"
    subprocess.run([sys.executable, "-c", code], check=True)

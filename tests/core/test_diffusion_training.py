"""Training of priors: the optimum that it finds, the average that it returns, and a kill that leaves no trace."""

import json
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from core.diffusion.prior import Prior, broadcast
from core.diffusion.schedule import CosineAngle, DiscreteSchedule
from core.diffusion.training import Training, diffuse, draw, train
from core.diffusion.unet import NetworkPrior, ResidualUNet
from core.errors import InputError
from core.rl.algorithm import TrainingDiverged


class Killed(Exception):
    pass


def killer(steps):
    """A progress callback that ends the training at its first report from ``steps`` on."""

    def progress(fraction, message):
        if int(message.split()[1]) >= steps:
            raise Killed

    return progress


def unet(shape=(1, 8, 8), widths=(4, 8), seed=0, **options):
    torch.manual_seed(seed)
    return NetworkPrior(ResidualUNet(shape[0], widths, depth=1, **options), shape)


def images(count=20, shape=(1, 8, 8)):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(3))


def digits(side):
    """Handwritten digits (N, 1, side, side) in [-1, 1]."""
    x = torch.tensor(load_digits().images / 8 - 1, dtype=torch.float32)[:, None]
    return x if side == 8 else functional.interpolate(x, size=(side, side), mode="bilinear")


def losses(path):
    return [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]


def same(one, other):
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


class Scale(Prior):
    """eps_hat = weight x: one number for all times, whose optimum is known."""

    def __init__(self, schedule=None):
        super().__init__()
        self.shape, self.schedule = (1, 2, 2), schedule or CosineAngle(0.8, 0.7)
        self.weight = nn.Parameter(torch.zeros(()))

    def noise(self, x, tau):
        return self.weight * x


def test_squared_error_finds_the_least_squares_denoiser():
    prior, x = Scale(), 0.5 * images(2000, (1, 2, 2))
    trained = train(prior, x, Training(steps=400, batch=200, learning_rate=0.02, ema=0.98, loss="mse"))
    tau = torch.linspace(0, 1, 1001)
    signal, noise = prior.schedule.rates(tau)
    power = x.square().mean()
    best = noise.mean() / (signal**2 * power + noise**2).mean()  # E[x eps] / E[x^2]
    assert trained.weight.item() == pytest.approx(best.item(), abs=0.01)
    assert prior.weight.item() == 0  # the prior that was given stays as it is
    assert not trained.training
    assert not any(weight.requires_grad for weight in trained.parameters())


def test_the_average_follows_weights_and_statistics_by_its_rate():
    x = images()
    one = {"batch": 20, "learning_rate": 0.01}
    start = unet()
    last = train(start, x, Training(steps=1, ema=0.0, **one)).state_dict()
    average = train(start, x, Training(steps=1, ema=0.75, **one)).state_dict()
    for name, value in start.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(average[name], 0.75 * value + 0.25 * last[name])
        else:
            assert average[name] == last[name] == 1  # batches that the statistics have seen
    names = [name for name in last if "running_mean" in name]
    assert names
    assert all(not torch.equal(last[name], start.state_dict()[name]) for name in names)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_killed_training_ends_like_one_that_was_not(tmp_path, precision):
    settings = Training(steps=130, batch=6, learning_rate=1e-3, ema=0.9, checkpoint_every=35, precision=precision)
    whole = train(unet(), images(), settings, checkpoint=tmp_path / "whole")
    for steps in (50, 100):
        with pytest.raises(Killed):
            train(unet(), images(), settings, checkpoint=tmp_path / "parts", progress=killer(steps))
    assert len(losses(tmp_path / "parts")) < len(losses(tmp_path / "whole")) == 3
    parts = train(unet(), images(), settings, checkpoint=tmp_path / "parts")
    assert same(whole, parts)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert [line["step"] for line in losses(tmp_path / "whole")] == [50, 100, 130]

    def never(fraction, message):
        raise AssertionError("a finished training trains no more")

    again = train(unet(), images(), settings, checkpoint=tmp_path / "whole", progress=never)
    assert same(again, whole)
    assert again.training_norm == whole.training_norm == pytest.approx(images().flatten(1).norm(dim=1).mean().item())


def test_layers_that_drop_out_resume_too_and_the_caller_s_luck_is_untouched(tmp_path):
    def prior():
        model = unet()
        model.network.bottleneck.append(nn.Dropout(0.5))
        return model

    settings = Training(steps=60, batch=6, learning_rate=1e-3, checkpoint_every=20)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    whole = train(prior().train(), images(), settings)
    with pytest.raises(Killed):
        train(prior(), images(), settings, checkpoint=tmp_path / "parts", progress=killer(50))
    torch.manual_seed(7)
    assert same(train(prior(), images(), settings, checkpoint=tmp_path / "parts"), whole)
    torch.manual_seed(1)
    train(Scale(), images(5, (1, 2, 2)), settings)
    assert torch.equal(torch.get_rng_state(), state)


class Numbered(torch.utils.data.Dataset):
    def __init__(self, tensor):
        self.tensor, self.read = tensor, []

    def __len__(self):
        return len(self.tensor)

    def __getitem__(self, index):
        self.read.append(index)
        return self.tensor[index]


def test_images_by_number_train_like_a_tensor_and_each_pass_reads_each_once(tmp_path):
    data = Numbered(images(20))
    settings = Training(epochs=3, batch=8, checkpoint_every=5)
    trained = train(unet(), data, settings, checkpoint=tmp_path / "state")
    assert same(trained, train(unet(), data.tensor, settings))
    passes = data.read[1:65]  # the first look is for the shape; 8 steps of 8 images make 64 of 3 x 20
    assert [sorted(passes[i : i + 20]) for i in (0, 20, 40)] == [list(range(20))] * 3
    assert passes[:20] != passes[20:40]


def test_every_step_of_a_discrete_schedule_is_drawn_equally_often_and_none_without_noise():
    schedule = DiscreteSchedule(torch.linspace(0.9, 0.1, 4))
    torch.manual_seed(0)
    tau, eps = draw(Scale(schedule), torch.zeros(20_000, 1, 2, 2))
    signal, noise = schedule.rates(tau)
    assert (noise > 0).all()
    assert torch.bincount(schedule.step(tau)).sub(5000).abs().max() < 4 * math.sqrt(5000)
    x = diffuse(Scale(schedule), torch.full_like(eps, 2.0), tau, eps)
    torch.testing.assert_close(x, broadcast(signal, eps) * 2 + broadcast(noise, eps) * eps)


def test_a_diverged_training_stops_and_keeps_its_last_good_state(tmp_path):
    path = tmp_path / "state"
    settings = Training(steps=200, batch=6, learning_rate=1e-3, checkpoint_every=50)

    def poison(model, after=80):
        """Makes the network answer NaN after some steps of training."""
        calls = iter(range(10_000))
        model.network.head.register_forward_hook(
            lambda module, inputs, out: out * math.nan if module.training and next(calls) >= after else out
        )
        return model

    with pytest.raises(TrainingDiverged, match="not finite after 100 steps of 200"):
        train(poison(unet()), images(), settings, checkpoint=path)
    assert losses(path)[-1]["step"] == 50
    assert same(train(unet(), images(), settings, checkpoint=path), train(unet(), images(), settings))


def test_another_training_s_checkpoint_is_refused(tmp_path):
    path, settings = tmp_path / "state", Training(steps=5, batch=4)
    train(unet(), images(), settings, checkpoint=path)
    for change, match in (
        ({"steps": 6}, "steps 5, but this training has 6"),
        ({"learning_rate": 1e-3}, "learning_rate 0.0001"),
        ({"precision": "bfloat16"}, "precision 'float32'"),
    ):
        with pytest.raises(InputError, match=match):
            train(unet(), images(), Training.model_validate(settings.model_dump() | change), checkpoint=path)
    with pytest.raises(InputError, match="images 20, but this training has 19"):
        train(unet(), images(19), settings, checkpoint=path)
    with pytest.raises(InputError, match=r"data '[0-9a-f]+', but this training has"):
        train(unet(), images() + 1, settings, checkpoint=path)
    for other in (unet(widths=(4, 4)), unet(seed=1)):
        with pytest.raises(InputError, match=r"start '[0-9a-f]+', but this training has"):
            train(other, images(), settings, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        train(unet(), images(), settings, checkpoint=path)


def test_images_and_settings_that_cannot_be_are_refused():
    with pytest.raises(InputError, match=r"images of shape \(1, 4, 4\): the prior's are \(1, 8, 8\)"):
        train(unet(), images(3, (1, 4, 4)), Training(steps=1))
    with pytest.raises(InputError, match="there are none"):
        train(unet(), images(0), Training(steps=1))
    for fields in ({}, {"steps": 1, "epochs": 1}, {"steps": 1, "ema": 1.0}, {"steps": 0}, {"steps": 1, "lr": 1}):
        with pytest.raises(ValidationError):
            Training(**fields)


def test_training_on_digits_lowers_the_loss(tmp_path):
    settings = Training(steps=300, batch=32, learning_rate=5e-3, ema=0.97)
    trained = train(unet(widths=(8, 16)), digits(8), settings, checkpoint=tmp_path / "state")
    history = [line["loss"] for line in losses(tmp_path / "state")]
    assert history[0] < 0.9
    assert history[-1] < 0.75 * history[0]
    # The average, on images in evaluation mode, is as good as what was trained.
    torch.manual_seed(5)
    x = digits(8)[:500]
    tau, eps = draw(trained, x)
    with torch.no_grad():
        error = (trained.noise(diffuse(trained, x, tau, eps), tau) - eps).abs().mean()
    assert error.item() < 1.1 * history[-1]


@pytest.mark.slow
def test_training_on_larger_digits_leaves_a_fifth_of_the_loss(tmp_path):
    prior = unet((1, 16, 16), (16, 32, 64))
    settings = Training(steps=1000, batch=32, learning_rate=2e-3)
    train(prior, digits(16), settings, checkpoint=tmp_path / "state")
    late = np.mean([line["loss"] for line in losses(tmp_path / "state")][10:])
    assert late < 0.2 * math.sqrt(2 / math.pi)  # E|eps|, the loss of an untrained network, which answers zero

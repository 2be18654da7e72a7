"""Networks of diffusers as priors: the schedulers' own estimates, their directories, and what is refused."""

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.diffusion.diffusers_prior import DiffusersPrior, EDMSchedule
from core.diffusion.training import Training, train
from core.errors import InputError
from core.torchvision_guard import shield

shield()
diffusers = pytest.importorskip("diffusers", reason="the extra mri is not installed")
# Some schedulers of diffusers hand tensors to NumPy in a way that NumPy 2 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def unet(**options):
    torch.manual_seed(0)
    settings = {
        "sample_size": 8,
        "in_channels": 2,
        "out_channels": 2,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    return diffusers.UNet2DModel(**(settings | options)).eval()


def ddpm(**options):
    return diffusers.DDPMScheduler(clip_sample=False, **options)


BETAS = {"num_train_timesteps": 500, "beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear"}
KINDS = "epsilon, v_prediction, sample"
DISCRETE = (
    "DDIMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)


def noisy(count=2):
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
def test_estimates_are_those_of_the_scheduler(kind, prediction):
    scheduler = getattr(diffusers, kind)(clip_sample=False, prediction_type=prediction)
    prior = DiffusersPrior(unet(), scheduler)
    scheduler.set_timesteps(1000)
    count, x = len(prior.schedule.alphas_cumprod), noisy()
    for step in (0, 1, 300, count - 1):
        tau = torch.tensor((step + 1) / count)
        assert prior.schedule.step(tau) == step
        output = prior.network(x, step, return_dict=False)[0]
        x0 = scheduler.step(output, step, x).pred_original_sample
        mine, eps = prior.denoise(x, tau)
        torch.testing.assert_close(mine, x0, atol=2e-4, rtol=2e-4)
        signal, noise = prior.schedule.rates(tau)
        torch.testing.assert_close(signal * mine + noise * eps, x, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("levels", ["karras", "exponential"])
def test_edm_estimates_are_those_of_the_scheduler(levels, prediction):
    scheduler = diffusers.EDMEulerScheduler(sigma_max=40.0, sigma_schedule=levels, prediction_type=prediction)
    prior = DiffusersPrior(unet(), scheduler)
    scheduler.set_timesteps(21)
    for k, time in enumerate(scheduler.timesteps):
        sigma, tau = scheduler.sigmas[k], torch.tensor(1 - k / 20)
        torch.testing.assert_close(prior.schedule.sigma(tau), sigma, rtol=1e-4, atol=0)
        z = noisy() * torch.sqrt(1 + sigma**2)
        output = prior.network(scheduler.scale_model_input(z, time), time, return_dict=False)[0]
        x0 = scheduler.step(output, time, z).pred_original_sample
        torch.testing.assert_close(prior.denoise(noisy(), tau)[0], x0, atol=1e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", DISCRETE)
def test_how_a_scheduler_walks_does_not_matter(kind, prediction):
    settings = BETAS | {"prediction_type": prediction}
    prior, same = (DiffusersPrior(unet(), getattr(diffusers, name)(**settings)) for name in (kind, "DDPMScheduler"))
    for tau in (0.0, 0.001, 0.3, 1.0):
        assert torch.equal(prior.noise(noisy(), torch.tensor(tau)), same.noise(noisy(), torch.tensor(tau)))


@torch.no_grad()
def test_eulers_own_estimates_are_those_of_the_prior():
    """Its images are x / s: a law of its own, where the agreement with DDPM above could be of two equal mistakes."""
    for prediction in ("epsilon", "v_prediction"):
        scheduler = diffusers.EulerDiscreteScheduler(prediction_type=prediction)
        prior = DiffusersPrior(unet(), scheduler)
        scheduler.set_timesteps(timesteps=[800, 500, 100, 3])
        count, x = len(prior.schedule.alphas_cumprod), noisy()
        for time in scheduler.timesteps:
            tau = (time + 1) / count
            z = x / prior.schedule.rates(tau)[0]
            output = prior.network(scheduler.scale_model_input(z, time), time, return_dict=False)[0]
            x0 = scheduler.step(output, time, z).pred_original_sample
            torch.testing.assert_close(prior.denoise(x, tau)[0], x0, atol=1e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("levels", ["karras", "exponential"])
def test_the_two_schedulers_of_edm_give_one_prior(levels, prediction):
    settings = {"sigma_max": 40.0, "sigma_schedule": levels, "prediction_type": prediction}
    kinds = (diffusers.EDMDPMSolverMultistepScheduler, diffusers.EDMEulerScheduler)
    prior, same = (DiffusersPrior(unet(), kind(**settings)) for kind in kinds)
    for tau in (0.0, 0.3, 1.0):
        assert torch.equal(prior.noise(noisy(), torch.tensor(tau)), same.noise(noisy(), torch.tensor(tau)))


def test_edm_rates_are_variance_preserving_and_end_at_a_signal_of_two_percent():
    for rho in (7.0, None):
        signal, noise = EDMSchedule(0.002, 80.0, rho).rates(torch.linspace(0, 1, 11, dtype=torch.float64))
        torch.testing.assert_close(signal**2 + noise**2, torch.ones(11, dtype=torch.float64))
        torch.testing.assert_close((noise / signal)[0].item(), 0.002)
        assert signal[-1].item() == pytest.approx(0.02)
        assert bool((signal.diff() < 0).all())


@pytest.mark.parametrize(
    "options", [{}, {"beta_schedule": "squaredcos_cap_v2"}, {"rescale_betas_zero_snr": True}], ids=str
)
def test_steps_without_signal_are_left_out_and_the_others_keep_their_numbers(options):
    scheduler = ddpm(**options)
    prior = DiffusersPrior(unet(), scheduler)
    alphas = prior.schedule.alphas_cumprod
    assert 0.02**2 <= alphas[-1] < 0.025**2
    assert torch.equal(alphas, scheduler.alphas_cumprod[: len(alphas)].double())
    assert scheduler.alphas_cumprod[len(alphas)] < 0.02**2
    x = prior.sample(2, steps=5, generator=torch.Generator().manual_seed(0))
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_last_step_that_a_scheduler_makes_up_is_left_out(kind):
    settings = BETAS | {"rescale_betas_zero_snr": True}
    scheduler, plain = getattr(diffusers, kind)(**settings), ddpm(**settings)
    assert scheduler.alphas_cumprod[-1] != plain.alphas_cumprod[-1]
    found, expected = (DiffusersPrior(unet(), s).schedule.alphas_cumprod for s in (scheduler, plain))
    assert torch.equal(found, expected)


@torch.no_grad()
def test_a_time_for_each_image_equals_each_image_alone():
    for scheduler in (ddpm(), diffusers.EDMEulerScheduler()):
        prior, x, tau = DiffusersPrior(unet(), scheduler), noisy(3), torch.tensor([0.0, 0.3, 1.0])
        alone = [prior.denoise(x[i : i + 1], tau[i]) for i in range(3)]
        for together, *single in zip(prior.denoise(x, tau), *alone, strict=True):
            torch.testing.assert_close(together, torch.cat(single), atol=1e-3, rtol=1e-3)
            assert bool(together.isfinite().all())


@torch.no_grad()
def test_directories_go_back_and_forth(tmp_path):
    x, tau = noisy(), torch.tensor(0.4)
    schedulers = (
        ddpm(prediction_type="v_prediction"),
        diffusers.EDMEulerScheduler(),
        diffusers.EulerDiscreteScheduler(**BETAS, rescale_betas_zero_snr=True, use_karras_sigmas=True),
        diffusers.DPMSolverMultistepScheduler(**BETAS, prediction_type="sample"),
        diffusers.EDMDPMSolverMultistepScheduler(sigma_max=20.0),
    )
    for number, scheduler in enumerate(schedulers):
        folder = tmp_path / str(number)
        prior = DiffusersPrior(unet(), scheduler, training_norm=3.5)
        prior.save(folder)
        prior.save(folder)  # over itself
        again = DiffusersPrior.load(folder)
        assert (again.shape, again.training_norm, again.prediction) == ((2, 8, 8), 3.5, prior.prediction)
        assert type(again.scheduler) is type(scheduler)
        assert torch.equal(again.noise(x, tau), prior.noise(x, tau))
        assert not again.training
        assert not [path for path in folder.rglob("*") if path.name.startswith(".") or path.suffix == ".bin"]
        theirs = diffusers.UNet2DModel.from_pretrained(folder / "unet")
        assert torch.equal(theirs(x, 5).sample, prior.network(x, 5).sample)
        assert type(scheduler).from_pretrained(folder / "scheduler").config.prediction_type == prior.prediction


@torch.no_grad()
def test_a_pipeline_of_diffusers_and_a_flat_directory_are_read(tmp_path):
    network, x, tau = unet(), noisy(), torch.tensor(0.4)
    diffusers.DDPMPipeline(network, ddpm()).save_pretrained(tmp_path / "pipeline")
    network.save_pretrained(tmp_path / "flat")
    ddpm().save_pretrained(tmp_path / "flat")
    expected = DiffusersPrior(network, ddpm()).noise(x, tau)
    for name in ("pipeline", "flat"):
        assert torch.equal(DiffusersPrior.load(tmp_path / name).noise(x, tau), expected)


def test_pickles_and_foreign_directories_are_refused_in_one_line(tmp_path):
    def refused(match):
        with pytest.raises(InputError, match=match) as error:
            DiffusersPrior.load(tmp_path)
        assert "\n" not in str(error.value)

    refused("config.json: no such file")
    DiffusersPrior(unet(), ddpm()).save(tmp_path)
    weights, config = tmp_path / "unet/diffusion_pytorch_model.safetensors", tmp_path / "unet/config.json"
    record = json.loads(config.read_text())
    config.write_text(json.dumps(record | {"block_out_channels": [8, 8]}))
    refused("size mismatch|mismatch|shape")
    config.write_text(json.dumps(record))
    tensors = load_file(weights)
    save_file({name: value for name, value in tensors.items() if name != "conv_out.bias"}, weights)
    refused("not those of config.json")
    save_file(tensors, weights)
    config.write_text(json.dumps(record | {"_class_name": "UNet2DConditionModel"}))
    refused("'UNet2DConditionModel'; allowed: UNet2DModel")
    config.write_text(json.dumps(record))
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(str(tmp_path))
    weights.rename(weights.with_suffix(".bin"))
    refused(r"diffusion_pytorch_model.bin is a pickle and is not read")
    weights.with_suffix(".bin").unlink()
    refused("there are no weights")


@pytest.mark.parametrize(
    "name",
    [
        "NoSuchScheduler",
        "UNet2DModel",  # of diffusers, not a scheduler
        "SchedulerMixin",  # not one by itself
        "scheduling_ddpm",  # a module
        "FlaxDDPMScheduler",  # of another framework
        "__class__",
        ["DDPMScheduler"],
        None,
    ],
    ids=str,
)
def test_a_file_cannot_name_what_is_no_scheduler(tmp_path, name):
    DiffusersPrior(unet(), ddpm()).save(tmp_path)
    schedule = tmp_path / "scheduler/scheduler_config.json"
    schedule.write_text(json.dumps(json.loads(schedule.read_text()) | {"_class_name": name}))
    line = rf"^{re.escape(f'{schedule}: _class_name {name!r}')}; allowed: a scheduler of diffusers with alphas_cumprod"
    with pytest.raises(InputError, match=line) as error:
        DiffusersPrior.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_stored_scheduler_of_flow_matching_is_refused(tmp_path):
    unet().save_pretrained(tmp_path)
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="scheduler FlowMatchEulerDiscreteScheduler; allowed: a scheduler of") as error:
        DiffusersPrior.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}, "scheduler FlowMatchEulerDiscreteScheduler; allowed: a scheduler of"),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}, f"'flow_prediction'; allowed: {KINDS}"),
        ("EulerDiscreteScheduler", {"prediction_type": "original_sample"}, f"'original_sample'; allowed: {KINDS}"),
        ("RePaintScheduler", {}, f"prediction_type None; allowed: {KINDS}"),
        ("EDMEulerScheduler", {"prediction_type": "sample"}, "'sample'; allowed: epsilon, v_prediction$"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas true; allowed: false"),
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous", "prediction_type": "v_prediction"},
            "timestep_type 'continuous', the network takes noise levels; allowed: discrete",
        ),
    ],
)
def test_schedulers_of_another_kind_are_refused(kind, settings, message):
    with pytest.raises(InputError, match=message) as error:
        DiffusersPrior(unet(), getattr(diffusers, kind)(**settings))
    assert "\n" not in str(error.value)


def test_networks_and_shapes_that_do_not_fit_are_refused():
    for network, shape, match in (
        (unet(), (2, 8, 9), "8 x 9: height and width must be multiples of 2"),
        (unet(), (1, 8, 8), "images of 1 channels: the network has 2"),
        (unet(sample_size=None), None, "no sample_size"),
        (unet(out_channels=4), None, "out_channels 4: must equal in_channels 2"),
        (unet(num_class_embeds=3), None, "class labels"),
        (unet(time_embedding_type="fourier"), None, "fourier"),
    ):
        with pytest.raises(InputError, match=match):
            DiffusersPrior(network, ddpm(), shape)
    assert DiffusersPrior(unet(sample_size=(4, 8)), ddpm()).shape == (2, 4, 8)
    assert DiffusersPrior(unet(), ddpm(), (2, 16, 4)).shape == (2, 16, 4)


def test_it_trains_and_keeps_the_scale_of_its_images(tmp_path):
    start = DiffusersPrior(unet(), ddpm())
    trained = train(start, 3 * noisy(6), Training(steps=3, batch=4, ema=0.0), checkpoint=tmp_path / "state")
    before, after = start.state_dict(), trained.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    trained.save(tmp_path / "prior")
    again = DiffusersPrior.load(tmp_path / "prior")
    assert again.training_norm == pytest.approx((3 * noisy(6)).flatten(1).norm(dim=1).mean().item())
    assert torch.equal(again.noise(noisy(), torch.tensor(0.4)), trained.noise(noisy(), torch.tensor(0.4)))


def test_diffusers_is_imported_late_and_behind_the_shield():
    code = (
        "import sys, core.diffusion.diffusers_prior\n"
        "assert 'diffusers' not in sys.modules\n"
        "from core.torchvision_guard import shield; shield()\n"
        "from diffusers import UNet2DModel, DDPMScheduler\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

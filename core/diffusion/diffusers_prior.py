"""Any ``diffusers.UNet2DModel`` as a prior, read from and written to the directories that diffusers itself uses."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from core import files
from core.diffusion.prior import Prior, broadcast
from core.diffusion.schedule import DiscreteSchedule, Schedule
from core.diffusion.unet import Precision, autocast, check_multiple
from core.errors import InputError, require
from core.torchvision_guard import shield

MIN_SIGNAL_RATE = 0.02
EDM_SCHEDULERS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
_SCHEDULERS = f"a scheduler of diffusers with alphas_cumprod (as DDPMScheduler), {', '.join(EDM_SCHEDULERS)}"


class EDMSchedule:
    """The noise levels of Karras et al. (2022), eq. 5, as a variance-preserving path.

    A noise level sigma at unit signal is s = 1 / sqrt(1 + sigma^2), q = sigma / sqrt(1 + sigma^2). sigma rises from
    ``sigma_min`` at tau = 0 to ``sigma_max`` at tau = 1, or to the level whose signal rate is 0.02 where that is less.

    Args:
        sigma_min: lowest noise level.
        sigma_max: highest noise level.
        rho: sigma^(1/rho) is linear in tau; None makes log sigma linear.
    """

    def __init__(self, sigma_min: float, sigma_max: float, rho: float | None = 7.0) -> None:
        self.sigma_min, self.rho = sigma_min, rho
        self.sigma_max = min(sigma_max, math.sqrt(MIN_SIGNAL_RATE**-2 - 1))

    def sigma(self, tau: Tensor) -> Tensor:
        """Noise level at ``tau``."""
        if self.rho is None:
            low, high = math.log(self.sigma_min), math.log(self.sigma_max)
            return torch.exp(low + tau * (high - low))
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + tau * (high - low)) ** self.rho

    def rates(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise rate at ``tau``."""
        sigma = self.sigma(tau)
        signal = torch.rsqrt(1 + sigma**2)
        return signal, sigma * signal


class DiffusersPrior(Prior):
    """A ``diffusers.UNet2DModel`` with the noise schedule and the kind of prediction of a diffusers scheduler.

    What else a scheduler holds says how it walks from noise to an image, which is left to the samplers here: with the
    same betas, DDPM, DPM-Solver, PNDM, Euler, Heun or UniPC give one and the same prior.

    Schedulers with ``alphas_cumprod``: the steps at which the signal rate is below 0.02 are left out at the noisy end,
    where x0_hat = (x - q eps_hat) / s would magnify an error of the network more than fifty times (squaredcos_cap_v2
    ends at a signal rate of 5e-5, a rescaled schedule at 0, or at the 2^-12 that Euler's and the solvers put in its
    place). The steps that stay keep their numbers. EDM: ``EDMSchedule`` and the preconditioning of Karras et al.
    (2022), table 1. Estimates are never clipped, whatever ``clip_sample`` says: the parts of complex images have no
    bounds.

    Args:
        network: a ``UNet2DModel`` without classes, whose output has the channels of its input.
        scheduler: with ``alphas_cumprod`` and a ``prediction_type`` of epsilon, v_prediction or sample; or an
            ``EDMEulerScheduler`` or ``EDMDPMSolverMultistepScheduler``, of epsilon or v_prediction. Not one of flow
            matching.
        shape: (C, H, W) of one image; None takes it from the network's ``sample_size``.
        training_norm: see ``NetworkPrior``.
        precision: arithmetic inside the network.

    Raises:
        InputError: a network, scheduler or shape that does not fit this.
    """

    def __init__(
        self,
        network: nn.Module,
        scheduler: Any,
        shape: tuple[int, int, int] | None = None,
        *,
        training_norm: float | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        config: Any = network.config
        self.shape = shape or _shape(config)
        _check(config, self.shape)
        _check_scheduler(scheduler)
        self.network = network
        self.scheduler = scheduler
        self.training_norm = training_norm
        self.precision = precision
        self.prediction: str = scheduler.config.prediction_type
        self.sigma_data: float = scheduler.config.get("sigma_data", 0.0)
        self.schedule = _schedule(scheduler)

    def noise(self, x: Tensor, tau: Tensor) -> Tensor:
        """See ``Prior.noise``; the network is told the number of the nearest step, or log(sigma) / 4 under EDM."""
        tau = tau.expand(len(x))
        schedule = self.schedule
        if isinstance(schedule, EDMSchedule):
            return self._preconditioned(x, schedule.sigma(tau))
        assert isinstance(schedule, DiscreteSchedule)
        # Below half a step the schedule has no noise at all, but the network still sees that of step 0.
        rates = schedule.rates(tau.clamp(min=1 / len(schedule.alphas_cumprod)))
        signal, noise = (broadcast(rate, x) for rate in rates)
        output = self._output(x, schedule.step(tau))
        if self.prediction == "v_prediction":
            return signal * output + noise * x
        return output if self.prediction == "epsilon" else (x - signal * output) / noise

    def _preconditioned(self, x: Tensor, sigma: Tensor) -> Tensor:
        """eps_hat = (z - D(z)) / sigma for z = x sqrt(1 + sigma^2), with the difference taken on paper."""
        level, data = broadcast(sigma, x), self.sigma_data
        z = x * torch.sqrt(1 + level**2)
        total = torch.sqrt(level**2 + data**2)
        output = self._output(z / total, sigma.log() / 4)
        sign = 1.0 if self.prediction == "epsilon" else -1.0
        return z * level / total**2 - sign * output * data / total

    def _output(self, x: Tensor, time: Tensor) -> Tensor:
        with autocast(self.precision, x.device):
            output = self.network(x, time, return_dict=False)[0]
        return output.to(x.dtype)

    def save(self, directory: str | Path) -> None:
        """Write ``unet/`` and ``scheduler/`` as diffusers does (safetensors), each file whole or absent.

        ``prior.json`` beside them holds what diffusers has no place for.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        network: Any = self.network
        staging = folder / f".saving.{os.getpid()}"
        try:
            network.save_pretrained(staging / "unet", safe_serialization=True)
            self.scheduler.save_pretrained(staging / "scheduler")
            for path in sorted(staging.rglob("*.*")):
                target = folder / path.relative_to(staging)
                target.parent.mkdir(exist_ok=True)
                files.write(target, path.replace)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        files.write_json(folder / "prior.json", {"shape": list(self.shape), "training_norm": self.training_norm})

    @classmethod
    def load(
        cls, directory: str | Path, shape: tuple[int, int, int] | None = None, *, precision: Precision = "float32"
    ) -> Self:
        """Read a directory of diffusers, on the CPU and ready to be used (not to be trained).

        Either a pipeline's, with ``unet/`` and ``scheduler/``, or one with ``config.json`` and
        ``scheduler_config.json`` side by side.

        Raises:
            InputError: a file is absent or damaged, weights are a pickle, or a network or scheduler is not one of
                those above.
            MissingExtra: diffusers is not installed.
        """
        folder = Path(directory)
        unet, schedule = (folder / "unet", folder / "scheduler") if (folder / "unet").is_dir() else (folder, folder)
        _check_network(unet / "config.json")
        shield()
        diffusers = require("diffusers", "mri")
        kind = _scheduler_class(schedule / "scheduler_config.json", diffusers)
        if not any(unet.glob("*.safetensors")):
            pickles = ", ".join(path.name for path in sorted(unet.glob("*.bin")))
            reason = f"{pickles} is a pickle and is not read" if pickles else "there are no weights"
            raise InputError(f"{unet}: {reason}; allowed: diffusion_pytorch_model.safetensors")
        extra = files.read_json(folder / "prior.json") if (folder / "prior.json").exists() else {}
        try:
            network, loading = diffusers.UNet2DModel.from_pretrained(
                unet, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
            )
            scheduler = kind.from_pretrained(schedule, local_files_only=True)
        except Exception as error:  # diffusers passes on what any of its parts raise
            raise InputError(f"{folder}: {' '.join(str(error).split())}") from error
        if loading["missing_keys"] or loading["unexpected_keys"]:
            raise InputError(f"{unet}: the weights are not those of config.json")
        known = shape or (tuple(extra["shape"]) if "shape" in extra else None)
        prior = cls(network, scheduler, known, training_norm=extra.get("training_norm"), precision=precision)
        return prior.eval()


def _shape(config: Any) -> tuple[int, int, int]:
    size = config.sample_size
    if size is None:
        raise InputError("shape: the network's config has no sample_size, so (C, H, W) must be given")
    height, width = (size, size) if isinstance(size, int) else size
    return config.in_channels, height, width


def _check(config: Any, shape: tuple[int, int, int]) -> None:
    channels = config.in_channels
    if config.out_channels != channels:
        raise InputError(f"out_channels {config.out_channels}: must equal in_channels {channels} (no learned variance)")
    if config.num_class_embeds is not None or config.class_embed_type is not None:
        raise InputError("the network expects class labels; allowed: an unconditional one")
    if config.time_embedding_type == "fourier":
        raise InputError("time_embedding_type 'fourier': takes noise levels; allowed: positional, learned")
    if shape[0] != channels:
        raise InputError(f"images of {shape[0]} channels: the network has {channels}")
    check_multiple(shape, 2 ** (len(config.block_out_channels) - 1))


def _check_scheduler(scheduler: Any) -> None:
    name = type(scheduler).__name__
    edm = name in EDM_SCHEDULERS
    if not edm and getattr(scheduler, "alphas_cumprod", None) is None:
        raise InputError(f"scheduler {name}; allowed: {_SCHEDULERS}")
    config = scheduler.config
    prediction = config.get("prediction_type")
    # Karras et al. fix what the network predicts up to a sign; diffusers has no third kind there either.
    allowed = PREDICTIONS[:2] if edm else PREDICTIONS
    if prediction not in allowed:
        raise InputError(f"{name}: prediction_type {prediction!r}; allowed: {', '.join(allowed)}")
    if config.get("use_flow_sigmas"):
        raise InputError(f"{name}: use_flow_sigmas true; allowed: false (noise levels are those of alphas_cumprod)")
    if config.get("timestep_type") == "continuous" and prediction == "v_prediction":
        # As in diffusers, where the other kinds of prediction keep the numbers of the steps.
        raise InputError(f"{name}: timestep_type 'continuous', the network takes noise levels; allowed: discrete")


def _schedule(scheduler: Any) -> Schedule:
    config = scheduler.config
    if type(scheduler).__name__ in EDM_SCHEDULERS:
        rho = config.rho if config.sigma_schedule == "karras" else None
        return EDMSchedule(config.sigma_min, config.sigma_max, rho)
    alphas = scheduler.alphas_cumprod
    return DiscreteSchedule(alphas[alphas >= MIN_SIGNAL_RATE**2])


def _check_network(path: Path) -> None:
    name = files.read_json(path, ("_class_name",))["_class_name"]
    if name != "UNet2DModel":
        raise InputError(f"{path}: _class_name {name!r}; allowed: UNet2DModel")


def _scheduler_class(path: Path, diffusers: Any) -> Any:
    """The class that the file names, once it is known to be a scheduler: a file must not choose what is called."""
    name = files.read_json(path, ("_class_name",))["_class_name"]
    # diffusers imports a submodule at the mention of its name: names that no scheduler has are not even looked up.
    named = isinstance(name, str) and name.endswith("Scheduler")
    kind = getattr(diffusers.schedulers, name, None) if named else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise InputError(f"{path}: _class_name {name!r}; allowed: {_SCHEDULERS}")
    return kind

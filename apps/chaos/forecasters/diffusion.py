"""Ensembles of futures by a diffusion model of the next patch of samples, given a window of the past."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from apps.chaos.forecasters.forecaster import Ensemble, Fitting, Forecaster
from core.diffusion.schedule import DiscreteSchedule
from core.errors import require
from core.nn.adam import minimise
from core.nn.grouped import GroupedLinear, Initial
from core.seeds import stream
from core.torchvision_guard import shield

FREQUENCIES = 8
"""Sines and cosines by which the network is told the noise level."""


class Diffusion(Forecaster):
    """A conditional denoiser of the next ``patch`` samples given the last ``context`` ones, rolled patch by patch.

    Noise is added to patches at N levels (Ho et al. 2020), with variances beta that rise linearly from 0.1 / N to
    20 / N. The network is trained by mean square error on v = s eps - q x, of which the noise is eps = s v + q x_noisy
    (Salimans and Ho 2022): with the noise itself as target, its errors at the highest levels sent rolled-out members
    away. Members follow by deterministic DDIM (Song et al. 2021, eq. 12; diffusers' ``DDIMScheduler``), each from noise
    of its own, and go on from their own patches. Series must have about mean 0 and standard deviation 1.

    The defaults train 20 series in about a minute on one core; a GPU takes ``width=512, blocks=4, levels=1000,
    iterations=20_000``.
    """

    packages: ClassVar = (("diffusers", "chaos"),)

    kind: Literal["diffusion"] = "diffusion"
    context: int = Field(default=16, ge=2)
    """Samples of the window."""
    patch: PositiveInt = 16
    """Samples that are drawn at once."""
    levels: int = Field(default=200, ge=100, le=1000)
    """Noise levels of the training."""
    denoising_steps: int = Field(default=20, ge=2, le=100)
    """Steps of DDIM."""
    width: PositiveInt = 128
    """Of the network."""
    blocks: PositiveInt = 2
    """Residual blocks of the network, of two layers each."""
    iterations: PositiveInt = 2000
    """Steps of Adam."""
    batch: PositiveInt = 64
    """Patches a step."""
    learning_rate: PositiveFloat = 1e-3
    """Of Adam."""
    members: PositiveInt = 20
    """Of the ensemble that a single forecast summarises."""
    point: Literal["mean", "median"] = "mean"
    """What of the members a single forecast is."""
    dtype: Literal["float32", "float64"] = "float32"
    """Arithmetic of training and sampling."""

    @property
    def shortest(self) -> int:
        """Ten windows with the patches after them."""
        return self.context + self.patch + 10

    def check(self, samples: int) -> None:
        """See ``Forecaster.check``."""
        shield()
        super().check(samples)

    def scheduler(self) -> Any:
        """The noise levels and the DDIM of diffusers, ready to sample."""
        shield()
        scheduler = require("diffusers.schedulers", "chaos").DDIMScheduler(
            num_train_timesteps=self.levels,
            beta_start=0.1 / self.levels,
            beta_end=20 / self.levels,
            beta_schedule="linear",
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            clip_sample=False,
        )
        scheduler.set_timesteps(self.denoising_steps)
        return scheduler

    def fit(self, train: Tensor, fitting: Fitting) -> DiffusionFitted:
        """Train one network for each series; see ``Forecaster.fit``. Series share patches, levels and noise."""
        self.check(train.shape[1])
        series = train.to(getattr(torch, self.dtype))
        pieces = series.unfold(1, self.context + self.patch, 1).mT
        condition, clean = (columns(x) for x in (pieces[:, :, : self.context], pieces[:, :, self.context :]))
        initial = Initial([torch.Generator().manual_seed(seed) for seed in fitting.seeds], series.dtype)
        network = Denoiser(initial, clean.shape[1], condition.shape[1], self.width, self.blocks).to(series.device)
        schedule = DiscreteSchedule(self.scheduler().alphas_cumprod)

        def loss(step: int) -> Tensor:
            generator = torch.Generator().manual_seed(stream(fitting.seed, f"diffusion batch {step}"))
            chosen = torch.randint(clean.shape[-1], (self.batch,), generator=generator).to(series.device)
            level = torch.randint(self.levels, (self.batch,), generator=generator)
            noise = torch.randn(clean.shape[1], self.batch, generator=generator, dtype=torch.float64).to(series)
            tau = (level + 1).double() / self.levels
            signal, amount = (rate.to(series) for rate in schedule.rates(tau))
            patches = clean[..., chosen]
            found = network(signal * patches + amount * noise, tau.to(series), condition[..., chosen])
            return (found - (signal * noise - amount * patches)).square().mean((1, 2)).sum()

        minimise(
            dict(network.named_parameters()),
            loss,
            self.iterations,
            learning_rate=self.learning_rate,
            checkpoint=fitting.keep(f"{self.kind}-{self.hash}"),
            progress=fitting.progress,
        )
        return DiffusionFitted(self, network.requires_grad_(False), series[:, -self.context :], fitting.seeds)


class DiffusionFitted(Ensemble):
    """Denoisers, and the last windows ``(G, context, D)`` of their training series."""

    def __init__(self, settings: Diffusion, network: Denoiser, window: Tensor, seeds: tuple[int, ...]) -> None:
        self.settings, self.network, self.window, self.seeds = settings, network, window, seeds
        self.notes = {}

    def forecast(self, horizon: int) -> Tensor:
        """Mean or median of ``members`` futures, the same at every call; see ``Fitted.forecast``."""
        generators = [torch.Generator().manual_seed(stream(seed, "diffusion forecast")) for seed in self.seeds]

        def noise(*shape: int) -> Tensor:
            return torch.stack([torch.randn(shape, generator=g, dtype=torch.float64) for g in generators])

        drawn = self._rolled(horizon, self.settings.members, noise)
        return drawn.mean(1) if self.settings.point == "mean" else drawn.median(1).values

    def sample(self, horizon: int, members: int, generator: torch.Generator) -> Tensor:
        """See ``Ensemble.sample``."""

        def noise(*shape: int) -> Tensor:
            drawn = (len(self.window), *shape)
            return torch.randn(drawn, generator=generator, dtype=torch.float64, device=generator.device)

        return self._rolled(horizon, members, noise)

    @torch.no_grad()
    def _rolled(self, horizon: int, members: int, noise: Callable[..., Tensor]) -> Tensor:
        """Futures ``(G, members, horizon, D)`` from ``noise(rows, members)``, ``(G, rows, members)``."""
        window = self.window[:, None].expand(-1, members, -1, -1)
        size = (self.settings.patch, window.shape[-1])
        futures: list[Tensor] = []
        for _ in range(-(-horizon // size[0])):
            patch = self._denoised(noise(math.prod(size), members).to(window), columns(window))
            futures.append(patch.mT.unflatten(2, size))
            window = torch.cat([window, futures[-1]], 2)[:, :, -self.settings.context :]
        return torch.cat(futures, 2)[:, :, :horizon].double()

    def _denoised(self, x: Tensor, condition: Tensor) -> Tensor:
        """DDIM from noise ``(G, rows, N)``."""
        scheduler = self.settings.scheduler()
        for step in scheduler.timesteps:
            tau = ((step + 1) / self.settings.levels).to(x).expand(x.shape[-1])
            x = scheduler.step(self.network(x, tau, condition), step, x).prev_sample
        return x


def columns(pieces: Tensor) -> Tensor:
    """Pieces of series ``(G, N, samples, D)`` as columns ``(G, samples D, N)``."""
    return pieces.flatten(2).mT.contiguous()


class Denoiser(nn.Module):
    """The v of noisy patches, by a residual network for each series.

    Args:
        initial: source of initial values.
        rows: numbers of a patch.
        conditions: numbers that stand for a window.
        width: features of the residual stream.
        blocks: of two layers.
    """

    def __init__(self, initial: Initial, rows: int, conditions: int, width: int, blocks: int) -> None:
        super().__init__()
        self.enter = GroupedLinear(initial, rows + conditions + 2 * FREQUENCIES, width)
        self.blocks = nn.ModuleList(Block(initial, width) for _ in range(blocks))
        self.leave = GroupedLinear(initial, width, rows)

    def forward(self, noisy: Tensor, tau: Tensor, condition: Tensor) -> Tensor:
        """The networks' v ``(G, rows, N)`` of patches at diffusion times ``tau`` ``(N,)`` in (0, 1]."""
        angles = torch.pi * tau * 2.0 ** torch.arange(FREQUENCIES, dtype=tau.dtype, device=tau.device)[:, None]
        level = torch.cat([angles.sin(), angles.cos()]).expand(len(noisy), -1, -1)
        h = self.enter(torch.cat([noisy, condition, level], 1))
        for block in self.blocks:
            h = block(h)
        return self.leave(functional.silu(h))


class Block(nn.Module):
    """h plus two layers of it, SiLU before each."""

    def __init__(self, initial: Initial, width: int) -> None:
        super().__init__()
        self.first, self.second = (GroupedLinear(initial, width, width) for _ in range(2))

    def forward(self, h: Tensor) -> Tensor:
        """``(G, width, N)`` to the same shape."""
        return h + self.second(functional.silu(self.first(functional.silu(h))))

"""The peers: diffusion posterior sampling of deepinv and of zea, with our network and the same k-space lines.

Neither is a dependency of this project. deepinv 0.5.0 and zea 0.1.8 were seen to evaluate the network once a step, as
ours does. The functions take samples (W, 2 H), the mask (W,) of the lines that were taken, the number of steps and that
of particles, and return a run without arguments.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from core.diffusion.unet import NetworkPrior
from simulators.mri.operators import KSpaceLines, fft2c

# Keras looks at them when it is first imported.
os.environ["KERAS_BACKEND"] = "torch"
os.environ.setdefault("ZEA_LOG_LEVEL", "ERROR")

Run = Callable[[], object]


def missing(module: str) -> str:
    """Why ``module`` cannot be imported here; empty if it can."""
    try:
        import_module(module)
    except Exception as error:  # beside a torchvision that does not load there are many ways
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


@dataclass(frozen=True)
class Peer:
    """Somebody else's posterior sampling.

    Attributes:
        package: its name.
        module: what is imported of it.
        limit: how many times as long as the peer's a step of ours may take.
        build: makes a run.
    """

    package: str
    module: str
    limit: float
    build: Callable[[NetworkPrior, Tensor, Tensor, int, int], Run]


def deepinv_dps(prior: NetworkPrior, samples: Tensor, mask: Tensor, steps: int, particles: int) -> Run:
    """``deepinv.sampling.DPS`` with deterministic DDIM steps in float32."""
    deepinv = import_module("deepinv")

    class Denoiser(deepinv.models.Denoiser):  # type: ignore[name-defined]
        def forward(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            signal = torch.rsqrt(1 + sigma**2)
            variance = ((sigma * signal) ** 2).expand(len(x))
            return x - sigma * prior.network(signal * x, variance)

    y = _kspace(prior, samples, mask).movedim(-1, 0).expand(particles, -1, -1, -1)
    physics = deepinv.physics.MRI(mask=mask.to(samples).expand(prior.shape[1:]), device=samples.device)
    sampler = deepinv.sampling.DPS(
        Denoiser(),
        solver="ddim",
        num_steps=steps + 1,  # points in time; the last is free of noise and needs no evaluation
        device=samples.device,
        dtype=torch.float32,
        minus_one_one=False,
    )
    return lambda: sampler(y, physics)


def zea_dps(
    prior: NetworkPrior, samples: Tensor, mask: Tensor, steps: int, particles: int, *, compiled: bool = False
) -> Run:
    """``zea.models.diffusion.DPS`` on the torch backend, its guidance through ``torch.compile`` or not."""
    diffusion, operators = import_module("zea.models.diffusion"), import_module("zea.internal.operators")
    keras = import_module("keras")
    channels, height, width = prior.shape
    device = samples.device.type

    class Model(diffusion.DiffusionModel):  # type: ignore[name-defined]
        def call(self, inputs: list[Tensor], training: bool = False, network: Any = None) -> Tensor:
            x, variance = inputs
            return prior.network(x.permute(0, 3, 1, 2).contiguous(), variance.flatten()).permute(0, 2, 3, 1)

    class Lines(operators.Operator):  # type: ignore[name-defined]
        def forward(self, data: Tensor, mask: Tensor) -> Tensor:
            return mask * torch.view_as_real(fft2c(torch.complex(data[..., 0], data[..., 1])))

        def transpose(self, data: Tensor, mask: Tensor) -> Tensor:
            raise NotImplementedError  # guidance by DPS has no use for it

        def __str__(self) -> str:
            return "y = M F x"

    lines = Lines()
    y, taken = _kspace(prior, samples, mask), mask.to(samples)[None, :, None]
    with keras.device(device):
        # The constructor builds a network of its own, which is never called.
        own = {"widths": [4, 4], "block_depth": 1}
        model = Model((height, width, channels), network_kwargs=own, operator=lines, guidance=None)
        model.guidance_fn = diffusion.DPS(model, lines, disable_jit=not compiled)

    def run() -> object:
        with keras.device(device):
            return model.posterior_sample(y, particles, steps, seed=0, omega=1.0, mask=taken, disable_jit=True)

    return run


def _kspace(prior: NetworkPrior, samples: Tensor, mask: Tensor) -> Tensor:
    """Real and imaginary part (H, W, 2) of the lines that were taken."""
    complex_lines = KSpaceLines(prior.shape).samples(torch.where(mask[:, None], samples, 0.0))
    return torch.view_as_real(complex_lines.transpose(0, 1).contiguous())


PEERS = {
    "deepinv": Peer("deepinv", "deepinv", 1.05, deepinv_dps),
    "zea": Peer("zea", "zea.models.diffusion", 1.0, zea_dps),
}
# On one CPU core compiling takes minutes, and what comes of it was slower.
COMPILED = {"zea, compiled": Peer("zea", "zea.models.diffusion", 1.0, partial(zea_dps, compiled=True))}

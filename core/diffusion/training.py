"""Training of a diffusion prior: denoising at random times, an averaged copy, and a checkpoint that resumes exactly."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar

import safetensors.torch
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from core import files
from core.diffusion.prior import Prior, broadcast
from core.diffusion.unet import Precision, autocast, load_weights
from core.errors import InputError
from core.rl.algorithm import TrainingDiverged
from core.rl.checkpoint import load_optimizer, optimizer_tensors, read_tensors
from core.seeds import stream
from core.study.config import Config

REPORT = 50  # steps a line of the loss history
P = TypeVar("P", bound=Prior)


class Images(Protocol):
    """Training images by number, such as a ``torch.utils.data.Dataset``; each a tensor (C, H, W)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Training(Config):
    """How a prior is trained; the defaults are those of Active Diffusion Subsampling, section 2.2 of its code."""

    steps: PositiveInt | None = None
    """Optimiser steps; or give epochs."""
    epochs: PositiveInt | None = None
    """Passes over the images; or give steps."""
    batch: PositiveInt = 16
    """Images a step."""
    learning_rate: PositiveFloat = 1e-4
    """Step size of AdamW."""
    weight_decay: NonNegativeFloat = 1e-4
    """Decoupled weight decay of AdamW."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Share of the averaged weights that a step keeps; 0 returns the last weights."""
    loss: Literal["mae", "mse"] = "mae"
    """Mean absolute or mean squared error of the predicted noise."""
    seed: NonNegativeInt = 42
    """Of the order of the images, of times and of noise."""
    precision: Precision = "float32"
    """Arithmetic inside the network; float16 scales the loss."""
    checkpoint_every: PositiveInt = 1000
    """Steps between two checkpoints."""
    workers: NonNegativeInt = 0
    """Processes that read images; a tensor needs none."""

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self


def train(
    prior: P,
    images: Tensor | Images,
    settings: Training,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
    device: torch.device | str = "cpu",
) -> P:
    """Train a copy of ``prior`` and return its exponential moving average, on ``device`` and in evaluation mode.

    Each step predicts the noise in a batch at times tau ~ U(0, 1), one an image (Ho et al. 2020, algorithm 1, in
    continuous time). The average runs over weights and buffers. Everything random in step k follows from the seed and
    k, so a training that was killed goes on from ``checkpoint`` to the same weights, bit for bit on one kind of device
    with one number of threads. Where the prior has a ``training_norm``, it is set.

    Args:
        prior: where to start; stays as it is.
        images: (N, C, H, W), or images by number.
        settings: see ``Training``.
        checkpoint: file of the exact state (safetensors), replaced atomically; a finished one is only read. The loss
            history stands beside it, with the suffix ``.jsonl``: a line each 50 steps.
        progress: called with the share that is done and a message.
        device: where to train.

    Raises:
        InputError: no images, images of another shape, or a checkpoint of another training.
        TrainingDiverged: a loss or a weight is not finite; ``checkpoint`` holds the last good state that was saved.
    """
    device = torch.device(device)
    _check(prior, images)
    total = settings.steps or math.ceil((settings.epochs or 0) * len(images) / settings.batch)
    identity: dict[str, Any] = {"images": len(images), "shape": list(prior.shape)}
    if isinstance(images, Tensor):  # a data set would have to be read for it
        identity["data"] = digest({"images": images})
    run = _Run(prior, settings, total, device, identity)
    if checkpoint is not None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        if checkpoint.exists():
            run.restore(checkpoint)
    # Layers such as dropout draw from torch's global generators: seeded each step here, given back afterwards.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for batch in _batches(images, settings, run.step, total):
            run.update(batch.to(device, torch.float32))
            finished = run.step == total
            if run.step % REPORT == 0 or finished:
                loss = run.check()
                if progress is not None:
                    progress(run.step / total, f"step {run.step} of {total}, loss {loss:.4f}")
            if checkpoint is not None and (run.step % settings.checkpoint_every == 0 or finished):
                run.save(checkpoint)
    average: Any = run.average
    if hasattr(average, "training_norm"):
        average.training_norm = _mean_norm(images)
    return run.average


def draw(prior: Prior, images: Tensor) -> tuple[Tensor, Tensor]:
    """Times tau ~ U(0, 1) (N,) and noise like ``images``, from torch's global generator of their device."""
    tau = torch.rand(len(images), device=images.device)
    # A discrete schedule has no noise below half a step; mirrored, each of its steps is equally likely.
    tau = torch.where(prior.schedule.rates(tau)[1] > 0, tau, 1 - tau)
    return tau, torch.randn_like(images)


def diffuse(prior: Prior, images: Tensor, tau: Tensor, eps: Tensor) -> Tensor:
    """The images at time ``tau``: s x + q eps."""
    signal, noise = (broadcast(rate, images) for rate in prior.schedule.rates(tau))
    return signal * images + noise * eps


def seed_all(device: torch.device, seed: int) -> None:
    """Seed torch's global generators of the CPU and of ``device``, and of no other device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


class _Run(Generic[P]):
    """The state of one training: model, average, optimiser, loss scale and losses."""

    def __init__(
        self, prior: P, settings: Training, total: int, device: torch.device, identity: dict[str, Any]
    ) -> None:
        self.settings, self.device, self.total = settings, device, total
        kept = settings.model_dump(exclude={"steps", "epochs", "checkpoint_every", "workers"})
        self.identity = identity | {"steps": total} | kept | {"start": fingerprint(prior)}
        self.model = copy.deepcopy(prior).to(device).requires_grad_(True).train()
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
        self.losses = torch.zeros(total, device=device)
        self.step = 0

    def update(self, images: Tensor) -> None:
        """One step of the optimiser, and of the average behind it."""
        seed_all(self.device, stream(self.settings.seed, f"step {self.step}"))
        tau, eps = draw(self.model, images)
        with autocast(self.settings.precision, self.device):
            predicted = self.model.noise(diffuse(self.model, images, tau, eps), tau)
        distance = functional.l1_loss if self.settings.loss == "mae" else functional.mse_loss
        loss = distance(predicted.float(), eps)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._follow()
        self.losses[self.step] = loss.detach()
        self.step += 1

    @torch.no_grad()
    def _follow(self) -> None:
        mine, others = self.average.state_dict(), self.model.state_dict()
        names = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in names], [others[name] for name in names], 1 - self.settings.ema)
        for name in mine.keys() - set(names):
            mine[name].copy_(others[name])

    def check(self) -> float:
        """Mean loss since the last report, known to be finite, as are the weights."""
        start = (self.step - 1) // REPORT * REPORT
        loss = float(self.losses[start : self.step].mean())
        norms = torch.stack(torch._foreach_norm(list(self.model.parameters())))
        if not math.isfinite(loss) or not bool(norms.isfinite().all()):
            raise TrainingDiverged(f"the loss or a weight is not finite after {self.step} steps of {self.total}")
        return loss

    def save(self, path: Path) -> None:
        """Write the exact state and, beside it, the history of the loss."""
        self.check()
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer)
        tensors["losses"] = self.losses[: self.step]
        write_state(path, tensors, {"training": self.identity, "scaler": self.scaler.state_dict()})
        means = ((at, chunk.mean()) for at, chunk in enumerate(tensors["losses"].cpu().split(REPORT)))
        lines = (
            json.dumps({"step": min((at + 1) * REPORT, self.step), "loss": round(float(loss), 6)}) for at, loss in means
        )
        files.write(path.with_suffix(".jsonl"), "\n".join(lines) + "\n")

    def restore(self, path: Path) -> None:
        """Read what ``save`` wrote."""
        tensors, record = read_state(path, self.identity)
        load_weights(self.model, under("model.", tensors), str(path))
        load_weights(self.average, under("average.", tensors), str(path))
        load_optimizer(self.optimizer, tensors)
        if record["scaler"]:
            self.scaler.load_state_dict(record["scaler"])
        self.step = len(tensors["losses"])
        self.losses[: self.step] = tensors["losses"].to(self.device)


def fingerprint(prior: Prior) -> str:
    """Digest of a prior's weights and buffers."""
    return digest(prior.state_dict())


def digest(tensors: Mapping[str, Tensor]) -> str:
    """What tells these tensors, or tensors of other names, from others."""
    found = hashlib.sha256()
    for name, value in tensors.items():
        found.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def write_state(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write the state of a training, atomically: tensors, and in ``record["training"]`` whose state it is."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"state": json.dumps(record)}
    files.write(path, lambda temporary: safetensors.torch.save_file(tensors, temporary, metadata))


def read_state(path: Path, identity: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record that ``write_state`` wrote.

    Raises:
        InputError: no such file, or one of another training than ``identity`` says.
    """
    tensors, metadata = read_tensors(path)
    if "state" not in metadata:
        raise InputError(f"{path}: not a checkpoint of a training")
    record = json.loads(metadata["state"])
    for name, value in identity.items():
        if record["training"].get(name) != value:
            raise InputError(
                f"{path}: {name} {record['training'].get(name)!r}, but this training has {value!r}; "
                "remove the file to start anew"
            )
    return tensors, record


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check(prior: Prior, images: Tensor | Images) -> None:
    if len(images) == 0:
        raise InputError("images: there are none")
    shape = tuple(torch.as_tensor(images[0]).shape)
    if shape != tuple(prior.shape):
        raise InputError(f"images of shape {shape}: the prior's are {tuple(prior.shape)}")


def _batches(images: Tensor | Images, settings: Training, start: int, total: int) -> Iterator[Tensor]:
    order = _order(len(images), settings, start, total)
    if isinstance(images, Tensor):
        return (images[index.to(images.device)] for index in order)
    numbers = (index.tolist() for index in order)
    return iter(DataLoader(images, batch_sampler=numbers, num_workers=settings.workers))  # type: ignore[arg-type]


def _order(count: int, settings: Training, start: int, total: int) -> Iterator[Tensor]:
    """Numbers of the images of each step: one shuffled pass after the other, cut into equal batches."""

    def shuffled(epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(stream(settings.seed, f"epoch {epoch}"))
        return torch.randperm(count, generator=generator)

    epoch, skipped = divmod(start * settings.batch, count)
    left = shuffled(epoch)[skipped:]
    for _ in range(start, total):
        while len(left) < settings.batch:
            epoch += 1
            left = torch.cat((left, shuffled(epoch)))
        yield left[: settings.batch]
        left = left[settings.batch :]


def _mean_norm(images: Tensor | Images) -> float:
    """Mean L2 norm of an image, over at most 1000 of them."""
    numbers = torch.linspace(0, len(images) - 1, min(len(images), 1000)).long().tolist()
    return float(torch.stack([torch.as_tensor(images[i]).float().norm() for i in numbers]).mean())

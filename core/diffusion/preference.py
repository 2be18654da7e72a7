"""Alignment of a diffusion prior to preferred images: Diffusion-DPO, self-play, and SePPO's anchor test."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from core.diffusion.prior import Prior
from core.diffusion.training import (
    REPORT,
    Training,
    diffuse,
    digest,
    draw,
    fingerprint,
    read_state,
    seed_all,
    train,
    under,
    write_state,
)
from core.diffusion.unet import load_weights
from core.errors import InputError
from core.rl.algorithm import TrainingDiverged
from core.rl.checkpoint import load_optimizer, optimizer_tensors, read_tensors
from core.seeds import stream
from core.sequence.preferences import margin_loss
from core.study.config import Config

P = TypeVar("P", bound=Prior)


class Preference(Config):
    """How a prior is aligned; see ``DiffusionPreference``."""

    mode: Literal["dpo", "spin", "seppo"] = "seppo"
    """Losers given (dpo), or samples of the reference, taken for losers always (spin) or by the anchor test (seppo)."""
    reference: Literal["init", "previous", "uniform"] = "uniform"
    """The prior one started from, the last checkpoint, or one drawn from all checkpoints so far."""
    beta: PositiveFloat = 2000.0
    """Weight of the errors, which are means over the components of an image."""
    updates: PositiveInt = 300
    """Optimiser steps."""
    refresh: PositiveInt = 100
    """Updates between two checkpoints; after each, the reference is chosen and sampled anew."""
    samples: PositiveInt = 1024
    """Samples of the reference that are kept until the next refresh."""
    sampling_steps: PositiveInt = 10
    """DDIM steps of a sample."""
    batch: PositiveInt = 128
    """Pairs an update."""
    learning_rate: PositiveFloat = 1e-4
    """Step size of AdamW."""
    weight_decay: NonNegativeFloat = 1e-4
    """Decoupled weight decay of AdamW."""
    seed: NonNegativeInt = 0
    """Of pairs, times, noise and samples."""


class DiffusionPreference(Generic[P]):
    """Preference optimisation of a prior with trainable parameters.

    A winner x_w and a loser x_l are noised with the same eps at the same tau ~ U(0, 1). With
    e(x) = mean |eps - eps_hat(x_tau)|^2, a = e(x_w) - e_ref(x_w) and b = e(x_l) - e_ref(x_l), the loss is
    -log sigmoid(-(beta / 2) (a - s b)). s = 1 is Diffusion-DPO (Wallace et al. 2024, eq. 14) and, with samples of the
    reference as losers, self-play (Yuan et al. 2024). SePPO (Zhang et al. 2024, arXiv 2410.05255) sets s = -1 where the
    reference denoises the winner better than the prior does: its sample then counts as a winner too. SePPO has no
    public training code; the loss is Diffusion-DPO's with its idea.

    Networks run in evaluation mode, with the running statistics of their normalisation as they were: the errors of
    winners and losers must not depend on each other.

    Always report ``finetune`` beside: on a ring of eight Gaussians nothing here clearly beat it. There the anchor test
    kept self-play from failing where the reference was renewed every 150 updates, and slowed it down where every 50.

    Args:
        prior: where to start; stays as it is.
        settings: see ``Preference``.
        device: where to train.

    Attributes:
        history: one line each 50 updates of ``fit``: update, mean loss, and the mean share of pairs with s = -1.
    """

    def __init__(self, prior: P, settings: Preference, *, device: torch.device | str = "cpu") -> None:
        self.settings = settings
        self.device = torch.device(device)
        self.initial = copy.deepcopy(prior).to(self.device).eval().requires_grad_(False)
        self.history: list[dict[str, float]] = []

    def fit(
        self,
        winners: Tensor,
        losers: Tensor | None = None,
        *,
        checkpoint: Path | None = None,
        progress: Callable[[float, str], None] | None = None,
    ) -> P:
        """The aligned prior, in evaluation mode.

        Everything random in an update follows from the seed and its number, so an alignment that was killed goes on
        from its last refresh to the same weights.

        Args:
            winners: preferred images (N, C, H, W).
            losers: (N, C, H, W), the i-th of which lost against the i-th winner; for ``dpo``, and only for it.
            checkpoint: file of the exact state (safetensors), replaced at each refresh; a finished one is only read.
                Until then, references that may still be drawn lie beside it, in ``<checkpoint>.<update>``.
            progress: called with the share that is done and a message.

        Raises:
            InputError: images of another shape, losers that are lacking or not wanted, or a checkpoint of another
                training.
            TrainingDiverged: a loss is not finite.
        """
        settings, device = self.settings, self.device
        winners, pool = self._accept(winners, losers)
        run = _Alignment(self.initial, settings, {"images": digest({"winners": winners, "losers": pool})})
        self.history = []
        if checkpoint is not None:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            if checkpoint.exists():
                run.restore(checkpoint)
                for updates in range(1, run.update + 1):
                    self._report(run.record, updates, None)
        left = range(run.update, settings.updates)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for update in left:
                if update % settings.refresh == 0 and checkpoint is not None:
                    run.save(checkpoint)
                seed_all(device, stream(settings.seed, f"update {update}"))
                if update % settings.refresh == 0:
                    run.refresh()
                    if settings.mode != "dpo":
                        pool = self._samples(run.reference, update)
                won = torch.randint(len(winners), (settings.batch,), device=device)
                lost = won if settings.mode == "dpo" else torch.randint(len(pool), (settings.batch,), device=device)
                run.step(winners[won], pool[lost])
                self._report(run.record, run.update, progress)
        if checkpoint is not None and left:
            run.save(checkpoint)
        return run.model.requires_grad_(False)

    def finetune(
        self,
        winners: Tensor,
        *,
        checkpoint: Path | None = None,
        progress: Callable[[float, str], None] | None = None,
    ) -> P:
        """Plain training on the winners alone, with the same number of updates, batch and step size; see ``train``."""
        kept = self.settings.model_dump(include={"batch", "learning_rate", "weight_decay", "seed"})
        often = self.settings.refresh
        settings = Training(steps=self.settings.updates, ema=0.0, loss="mse", checkpoint_every=often, **kept)
        return train(self.initial, winners, settings, checkpoint=checkpoint, progress=progress, device=self.device)

    def _accept(self, winners: Tensor, losers: Tensor | None) -> tuple[Tensor, Tensor]:
        """Winners and pool of losers on the device; the pool is empty where the reference is to fill it."""
        if (losers is not None) != (self.settings.mode == "dpo"):
            raise InputError(
                f"losers: must {'be given' if losers is None else 'be left out'} in mode {self.settings.mode}"
            )
        pool = winners[:0] if losers is None else losers
        if len(winners) == 0 or tuple(winners.shape[1:]) != tuple(self.initial.shape):
            raise InputError(
                f"winners of shape {tuple(winners.shape)}: images of the prior are {tuple(self.initial.shape)}"
            )
        if losers is not None and losers.shape != winners.shape:
            raise InputError(f"losers of shape {tuple(losers.shape)}: the winners' is {tuple(winners.shape)}")
        return winners.to(self.device), pool.to(self.device)

    def _samples(self, reference: Prior, update: int) -> Tensor:
        seed = stream(self.settings.seed, f"samples {update}")
        generator = torch.Generator(self.device).manual_seed(seed)
        return reference.sample(self.settings.samples, steps=self.settings.sampling_steps, generator=generator)

    def _report(self, record: Tensor, updates: int, progress: Callable[[float, str], None] | None) -> None:
        """A line of the history, every so many updates and after the last."""
        if updates % REPORT and updates < record.shape[1]:
            return
        loss, flipped = record[:, (updates - 1) // REPORT * REPORT : updates].mean(1).tolist()
        if not math.isfinite(loss):
            raise TrainingDiverged(f"the preference loss is not finite after {updates} updates")
        self.history.append({"update": updates, "loss": loss, "flipped": flipped})
        if progress is not None:
            progress(updates / record.shape[1], f"update {updates} of {record.shape[1]}, loss {loss:.4f}")


class _Alignment(Generic[P]):
    """The state of one alignment: model, optimiser, the references it may be held against, and the record of its loss.

    ``record`` (2, updates) has the loss and the share of pairs with s = -1.
    """

    def __init__(self, initial: P, settings: Preference, identity: dict[str, Any]) -> None:
        self.settings = settings
        self.identity = identity | settings.model_dump() | {"start": fingerprint(initial)}
        self.model = copy.deepcopy(initial).requires_grad_(True)
        self.reference = copy.deepcopy(initial)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.references: list[dict[str, Tensor]] = []
        self.record = torch.zeros(2, settings.updates, device=next(self.model.parameters()).device)
        self.update = 0

    def refresh(self) -> None:
        """Take a checkpoint, forget those that cannot be chosen, and make one of the rest the reference."""
        if self.settings.reference == "previous":
            self.references.clear()
        if self.settings.reference == "uniform" or not self.references:
            self.references.append({name: value.detach().clone() for name, value in self.model.state_dict().items()})
        self.reference.load_state_dict(self.references[int(torch.randint(len(self.references), ()))])

    def step(self, winners: Tensor, losers: Tensor) -> None:
        """One step of the optimiser on pairs of images."""
        tau, eps = draw(self.model, winners)
        beta, anchor = self.settings.beta, self.settings.mode == "seppo"
        loss, sign = preference_loss(self.model, self.reference, winners, losers, tau, eps, beta=beta, anchor=anchor)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.record[:, self.update] = torch.stack((loss.detach(), (sign < 0).float().mean()))
        self.update += 1

    def save(self, path: Path) -> None:
        """Write the exact state before a refresh; the model is a reference from then on, in a file of its own.

        After the last update no reference is drawn any more, and their files go.
        """
        if not bool(self.record.isfinite().all()):
            raise TrainingDiverged(f"the preference loss is not finite after {self.update} updates")
        model = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        done = self.update == self.settings.updates
        if self.settings.reference == "uniform" and not done:
            write_state(_reference(path, self.update), model, {"training": self.identity})
        tensors = model | optimizer_tensors(self.optimizer) | {"record": self.record[:, : self.update]}
        write_state(path, tensors, {"training": self.identity})
        for update in range(0, self.update, self.settings.refresh) if done else ():
            _reference(path, update).unlink(missing_ok=True)

    def restore(self, path: Path) -> None:
        """Read what ``save`` wrote."""
        tensors, _ = read_state(path, self.identity)
        load_weights(self.model, under("model.", tensors), str(path))
        load_optimizer(self.optimizer, tensors)
        self.update = tensors["record"].shape[1]
        self.record[:, : self.update] = tensors["record"].to(self.record.device)
        if self.settings.reference == "uniform" and self.update < self.settings.updates:
            saved = range(0, self.update, self.settings.refresh)
            self.references = [under("model.", read_tensors(_reference(path, update))[0]) for update in saved]
        elif self.settings.reference == "init" and self.update:
            self.references = [self.reference.state_dict()]


def _reference(path: Path, update: int) -> Path:
    return path.with_name(f"{path.name}.{update:06d}")


def preference_loss(
    model: Prior,
    reference: Prior,
    winners: Tensor,
    losers: Tensor,
    tau: Tensor,
    eps: Tensor,
    *,
    beta: float,
    anchor: bool,
) -> tuple[Tensor, Tensor]:
    """Mean loss of pairs and the sign s of each pair, without gradient through the reference or the sign.

    Args:
        model: the prior that is trained.
        reference: what it is measured against.
        winners: (N, C, H, W).
        losers: (N, C, H, W).
        tau: times (N,), the same for both of a pair.
        eps: noise (N, C, H, W), the same for both of a pair.
        beta: see ``DiffusionPreference``.
        anchor: whether the anchor test sets the sign; else it is 1.
    """
    both, noise = torch.cat((tau, tau)), torch.cat((eps, eps))
    x = diffuse(model, torch.cat((winners, losers)), both, noise)

    def errors(prior: Prior) -> tuple[Tensor, ...]:
        return (prior.noise(x, both) - noise).square().flatten(1).mean(1).chunk(2)

    won, lost = errors(model)
    with torch.no_grad():
        reference_won, reference_lost = errors(reference)
        sign = torch.where(won > reference_won, -1.0, 1.0) if anchor else torch.ones_like(won)
    advantage = (won - reference_won) - sign * (lost - reference_lost)
    return margin_loss(-beta / 2 * advantage, 0.0), sign

"""The runs of an MRI study: one method on one shard of subjects, and how its samples become an image."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from apps.mri.ads import ADS, Progress, Sampling
from apps.mri.board import Acquisition, Stop
from apps.mri.classical import ZeroFilled
from apps.mri.learned.products import TrainedLOUPE, TrainedPolicy, TrainedUNet, subject_seeds
from apps.mri.learned.subpo import TrainedSubPO
from apps.mri.ledger import Ledger
from apps.mri.masks import FIXED_RULES, FixedRule, MaskProblem, fixed_masks
from apps.mri.methods import ADAPTIVE, SAMPLED, Method, Sequential, deterministic, generators, ordered
from apps.mri.preparation import Calibrate, Search, TunedWeight
from apps.mri.problem import PriorSettings, Problem, prior_of, scale_warning
from apps.mri.recording import concatenate, dataset, read_part, write_part
from apps.mri.table import FAULTS
from core.diffusion.prior import Prior
from core.errors import InputError
from core.study import Config, Context, Run
from simulators.mri.acquisition_noise import noise_std
from simulators.mri.coils import coil_maps, estimate_maps
from simulators.mri.operators import MulticoilLines, Operator
from simulators.mri.scanner import Scanner


class Region(Config):
    """A rectangle of the image that matters most."""

    rows: tuple[int, int]
    """First row, and the row after the last."""
    columns: tuple[int, int]
    """First column, and the column after the last."""
    outside: float = Field(default=0.1, ge=0, le=1)
    """Weight of the rest of the image in the choice of samples."""

    def weights(self, shape: tuple[int, int, int]) -> Tensor:
        """Weight (H, W) of each pixel: 1 in the region.

        Raises:
            InputError: the region is empty, or not in the image.
        """
        for name, (start, end), size in (("rows", self.rows, shape[1]), ("columns", self.columns, shape[2])):
            if not 0 <= start < end <= size:
                raise InputError(f"region.{name}: {start} to {end}, must be 0 <= first < end <= {size}")
        weights = torch.full(shape[1:], self.outside)
        weights[slice(*self.rows), slice(*self.columns)] = 1.0
        return weights


@dataclass(frozen=True)
class _Prepared:
    """What all batches of a run share: a prior, one mask or a chooser of actions, and a reconstruction."""

    operator: Operator
    problem: MaskProblem
    inputs: Mapping[str, xr.Dataset]
    prior: Prior | None = None
    mask: Tensor | None = None
    chooser: Callable[[Sequence[torch.Generator]], Sequential] | None = None
    reconstruct: Callable[[Tensor, Tensor], Tensor] | None = None


class Acquire(Run):
    """One method on a shard of the subjects; every method meets the same subjects, scanner and particle noise."""

    problem: Problem
    """What is measured of which images."""
    prior: PriorSettings
    """Of the posterior sampling."""
    sampling: Sampling
    """Of the posterior sampling."""
    method: Method
    """What is done."""
    first: int
    """Number of the first subject among the test images."""
    count: int
    """Subjects of the shard."""
    at_once: int
    """Subjects in one batch; after each batch the results are safe."""
    seed: int
    """Of particles, masks and scanner."""
    record: int
    """Subjects of the shard whose images are kept."""
    particles: bool = False
    """Whether every particle of these images is."""
    reference_mask: FixedRule
    """The mask that other reconstructions get."""
    searched: Search | None = None
    """The searched mask."""
    calibrated: Calibrate | None = None
    """Of the stop rule."""
    target: float | None = None
    """Of the stop rule: the NMSE at which a subject has enough."""
    region: Region | None = None
    """The region of interest."""
    weight: TunedWeight | None = None
    """The tuned weight of compressed sensing."""
    unet: TrainedUNet | None = None
    """The trained U-Net."""
    loupe: TrainedLOUPE | None = None
    """The trained LOUPE."""
    policy: TrainedPolicy | None = None
    """The trained policy."""
    subpo: TrainedSubPO | None = None
    """The policy trained on the acquisition world."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        shard = f" {self.first}-{self.first + self.count - 1}"
        return f"{self.problem.name} {self.method}{shard} seed {self.seed}"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """Masks, orders, scores, metrics and images of the subjects; batch by batch, so that a kill costs one batch."""
        starts = range(self.first, self.first + self.count, self.at_once)
        paths = [context.checkpoint / f"part_{i:05d}.nc" for i in range(len(starts))]
        ready = None if all(path.exists() for path in paths) else self._prepare(inputs, context)
        for i, (first, path) in enumerate(zip(starts, paths, strict=True)):
            if ready is not None and not path.exists():
                count = min(self.at_once, self.first + self.count - first)
                recorded = max(0, min(count, self.first + self.record - first))
                write_part(path, self._batch(ready, context, first, count, recorded, (i, len(starts))))
        parts = [read_part(path) for path in paths]
        return concatenate(parts).assign_attrs(method=self.method, scenario=self.problem.name)

    def _prepare(self, inputs: Mapping[str, xr.Dataset], context: Context) -> _Prepared:
        """Whatever takes time and does not depend on the subject."""
        shape = self.problem.images.test(self.first, 1).shape
        operator = self.problem.measurement((shape[1], shape[2], shape[3]))
        rules = (self.method, self.reference_mask)
        informed = self.method in ADAPTIVE or any(rule.startswith("data_variance") for rule in rules)
        known = self.problem.known if informed else self.problem.unknown
        problem, ready = known(operator, context), dict[str, Any]()
        if self.method in SAMPLED:
            ready["prior"] = prior_of(self.prior, self.problem.images, context)
        if self.method == "greedy_fixed":
            mask = problem.initial.clone()
            mask[torch.as_tensor(inputs["searched"]["order"].values, device=mask.device)] = True
            ready["mask"] = mask
        if self.loupe is not None:
            network = self.loupe.load(operator, context)
            ready |= {"mask": network.top_mask(), "reconstruct": network.reconstruction}
        if self.policy is not None:
            reconstruct = self.policy.unet.load(operator, context)
            chooser = self.policy.load(operator, context).chooser(reconstruct)
            ready |= {"reconstruct": reconstruct, "chooser": lambda luck: chooser}
        if self.subpo is not None:
            lines = self.subpo.lines(context)
            ready["chooser"] = lambda luck: Sequential(lines(luck), problem.initial, self.problem.budget)
        if self.unet is not None:
            ready["reconstruct"] = self.unet.load(operator, context)
        if self.weight is not None:
            ready["reconstruct"] = self.weight.load(operator, context)
        if self.method == "zero_filled":
            ready["reconstruct"] = ZeroFilled(operator)
        return _Prepared(operator, problem, inputs, **ready)

    def _batch(
        self, ready: _Prepared, context: Context, first: int, count: int, recorded: int, batch: tuple[int, int]
    ) -> xr.Dataset:
        """The subjects ``first`` to ``first + count - 1``."""
        device = context.device
        target = self.problem.images.test(first, count).to(device)
        scanner = self._scanner(ready.operator, target, first, device)
        started = time.perf_counter()
        if self.method in SAMPLED:
            outcome = self._sample(ready, scanner, context, first, count, batch)
        else:
            outcome = self._reconstruct(ready, scanner, context, first, count)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = (time.perf_counter() - started) / count
        self._log_faults(outcome, first, context)
        region = None if self.region is None else self.region.weights(ready.operator.shape) == 1
        kept = self.particles and outcome.particles.shape[1] > 1
        found = dataset(target, outcome, first=first, seconds=seconds, recorded=recorded, region=region, particles=kept)
        warning = "" if ready.prior is None else scale_warning(target, ready.prior)
        if warning:
            context.log(warning=warning)
        return found.assign_attrs(warning=warning)

    def _scanner(self, operator: Operator, target: Tensor, first: int, device: torch.device) -> Scanner:
        sigma: float | Tensor = 0.0 if self.problem.snr is None else noise_std(target, self.problem.snr)
        luck = generators(subject_seeds(self.seed, "scanner", first, len(target)), device)
        if self.problem.coils > 1:
            maps = coil_maps(self.problem.coils, *operator.shape[1:], seed=self.seed).to(device)
            operator = MulticoilLines(operator.shape, maps)
        return Scanner(operator, target, sigma_n=sigma, generators=luck)

    def _sample(
        self,
        ready: _Prepared,
        scanner: Scanner,
        context: Context,
        first: int,
        count: int,
        batch: tuple[int, int],
    ) -> Acquisition:
        """Methods whose images are posterior samples: adaptive ones, or fixed masks with the same sampler."""
        assert ready.prior is not None
        operator, problem, region = ready.operator, ready.problem, self.region
        if self.problem.coils > 1:
            operator = _estimated(operator, scanner, problem.initial)
        ads = ADS(
            ready.prior,
            operator,
            self._settings(),
            weights=region.weights(operator.shape).to(context.device) if region and self.method == "ads_roi" else None,
            fallback=problem.variance,
            stop=self._stop(ready.inputs) if self.method == "ads_stop" else None,
        )
        if self.method in ADAPTIVE:
            mask = problem.initial.repeat(count, 1)
        elif ready.chooser is not None:
            ledger, order = ready.chooser(self._luck("policy", first, count, context)).acquire(scanner)
            mask = ledger.mask
        else:
            mask = self._masks(ready, context, first, count)

        def look(progress: Progress) -> None:
            context.progress((batch[0] + (progress.step + 1) / progress.steps) / batch[1])

        # The reference's schedule may take more than the budget: it reports how many it took.
        budget = self.problem.budget if self.method in ADAPTIVE else int(mask[0].sum())
        outcome = ads.run(scanner, mask, budget, self._luck("particles", first, count, context), look)
        if ready.chooser is None:
            return outcome
        return replace(ordered(outcome, order), dropped=outcome.dropped + ledger.dropped)

    def _luck(self, purpose: str, first: int, count: int, context: Context) -> list[torch.Generator]:
        return generators(subject_seeds(self.seed, purpose, first, count), context.device)

    def _settings(self) -> Sampling:
        scores = ("greedy_variance", "bhattacharyya", "reference_positive", "kl_pixelwise", "noise_aware")
        if self.method in scores:
            score = "variance" if self.method == "greedy_variance" else self.method
            return self.sampling.model_copy(update={"score": score})
        return self.sampling.model_copy(update={"sampler": "exact"}) if self.method == "ads_exact" else self.sampling

    def _stop(self, inputs: Mapping[str, xr.Dataset]) -> Stop:
        assert self.target is not None
        return Stop(self.target, inputs["calibrated"]["ratio"].values.tolist())

    def _masks(self, ready: _Prepared, context: Context, first: int, count: int) -> Tensor:
        """The fixed masks (S, A): the same for all, or drawn by a rule."""
        if ready.mask is not None:
            return ready.mask.repeat(count, 1)
        rule: FixedRule = self.reference_mask if self.method not in FIXED_RULES else self.method
        return fixed_masks(rule, ready.problem, self._luck("mask", first, count, context))

    def _reconstruct(self, ready: _Prepared, scanner: Scanner, context: Context, first: int, count: int) -> Acquisition:
        """Methods that make one image without a posterior."""
        assert ready.reconstruct is not None
        with torch.no_grad():
            if ready.chooser is not None:
                ledger, order = ready.chooser(()).acquire(scanner)
            else:
                ledger = Ledger(scanner, self._masks(ready, context, first, count))
                order = torch.zeros(count, 0, dtype=torch.long, device=context.device)
            return deterministic(ready.reconstruct(ledger.samples, ledger.mask), ledger, order)

    def _log_faults(self, outcome: Acquisition, first: int, context: Context) -> None:
        counts = {name: getattr(outcome, name) for name in FAULTS}
        if self.method != "ads_stop":
            counts["short"] = (self.problem.budget - outcome.mask.sum(1)).clamp(min=0)
        for name, count in counts.items():
            for subject in count.nonzero().squeeze(1).tolist():
                context.log(fault=name, subject=first + subject, count=int(count[subject]))


def _estimated(operator: Operator, scanner: Scanner, initial: Tensor) -> MulticoilLines:
    """The operator with coil maps estimated from the initial lines, which are asked for here.

    Raises:
        InputError: several subjects at once: each has its own maps.
    """
    if scanner.subjects != 1:
        raise InputError("at_once: with several coils it must be 1, since each subject has its own maps")
    lines = initial.nonzero().squeeze(1)[None]
    delivered = scanner.acquire(lines)
    kspace = delivered.new_zeros(1, delivered.shape[2], operator.shape[1], operator.shape[2])
    kspace[..., lines[0]] = delivered.permute(0, 2, 3, 1)
    return MulticoilLines(operator.shape, estimate_maps(kspace, initial)[0])

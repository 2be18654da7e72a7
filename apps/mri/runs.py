"""The runs of an MRI study: one method on one shard of subjects, and how its samples become an image."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from apps.mri.ads import ADS, Acquisition, Progress, Sampling, Stop
from apps.mri.classical import CompressedSensing, Penalty, TotalVariation, Wavelet, ZeroFilled, tune
from apps.mri.learned.products import TrainedLOUPE, TrainedPolicy, TrainedUNet, subject_seeds, training_set
from apps.mri.learned.subpo import TrainedSubPO
from apps.mri.masks import FIXED_RULES, FixedRule, fixed_masks
from apps.mri.methods import (
    ADAPTIVE,
    Method,
    Sequential,
    acquire_mask,
    deterministic,
    generators,
)
from apps.mri.preparation import Calibrate, Search
from apps.mri.problem import (
    PriorSettings,
    Problem,
    TrainingImages,
    prior_of,
    sample_variance,
)
from apps.mri.recording import concatenate, dataset, read_part, write_part
from core.errors import InputError
from core.study import Config, Context, Run
from simulators.mri.acquisition_noise import noise_std
from simulators.mri.coils import coil_maps, estimate_maps
from simulators.mri.operators import MulticoilLines, Operator
from simulators.mri.scanner import Scanner

WEIGHTS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Regularisation weights among which compressed sensing is tuned."""


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
        parts = []
        starts = range(self.first, self.first + self.count, self.at_once)
        for i, first in enumerate(starts):
            path = context.checkpoint / f"part_{i:05d}.nc"
            count = min(self.at_once, self.first + self.count - first)
            if not path.exists():
                recorded = max(0, min(count, self.first + self.record - first))
                write_part(path, self._batch(inputs, context, first, count, recorded, (i, len(starts))))
            parts.append(read_part(path))
        return concatenate(parts).assign_attrs(method=self.method, scenario=self.problem.name)

    def _batch(
        self,
        inputs: Mapping[str, xr.Dataset],
        context: Context,
        first: int,
        count: int,
        recorded: int,
        batch: tuple[int, int],
    ) -> xr.Dataset:
        """The subjects ``first`` to ``first + count - 1``."""
        device = context.device
        target = self.problem.images.test(first, count).to(device)
        operator = self.problem.measurement((target.shape[1], target.shape[2], target.shape[3]))
        scanner = self._scanner(operator, target, first, device)
        started = time.perf_counter()
        if self.method in ("zero_filled", "wavelet", "tv", "unet", "loupe_unet", "pg"):
            outcome = self._reconstruct(operator, scanner, first, count, context)
        else:
            outcome = self._sample(operator, scanner, inputs, context, first, count, batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = (time.perf_counter() - started) / count
        self._log_faults(outcome, first, context)
        region = None if self.region is None else self.region.weights(operator.shape) == 1
        return dataset(target, outcome, first=first, seconds=seconds, recorded=recorded, region=region)

    def _scanner(self, operator: Operator, target: Tensor, first: int, device: torch.device) -> Scanner:
        sigma: float | Tensor = 0.0 if self.problem.snr is None else noise_std(target, self.problem.snr)
        luck = generators(subject_seeds(self.seed, "scanner", first, len(target)), device)
        if self.problem.coils > 1:
            maps = coil_maps(self.problem.coils, *operator.shape[1:], seed=self.seed).to(device)
            operator = MulticoilLines(operator.shape, maps)
        return Scanner(operator, target, sigma_n=sigma, generators=luck)

    def _sample(
        self,
        operator: Operator,
        scanner: Scanner,
        inputs: Mapping[str, xr.Dataset],
        context: Context,
        first: int,
        count: int,
        batch: tuple[int, int],
    ) -> Acquisition:
        """Methods whose images are posterior samples: adaptive ones, or fixed masks with the same sampler."""
        prior = prior_of(self.prior, self.problem.images, context)
        variance = None
        if self.method in (*ADAPTIVE, "data_variance", "data_variance_top"):
            variance = sample_variance(operator, TrainingImages(images=self.problem.images).load(context))
        problem = self.problem.mask_problem(operator, variance, context.device)
        if self.problem.coils > 1:
            operator = _estimated(operator, scanner, problem.initial)
        region = self.region
        ads = ADS(
            prior,
            operator,
            self._settings(),
            weights=region.weights(operator.shape).to(context.device) if region and self.method == "ads_roi" else None,
            fallback=None if variance is None else variance.to(context.device),
            stop=self._stop(inputs) if self.method == "ads_stop" else None,
        )
        if self.method in ADAPTIVE:
            mask = problem.initial.repeat(count, 1)
        elif self.method == "subpo":
            assert self.subpo is not None
            chooser = Sequential(self.subpo.chooser(context), problem.initial, self.problem.budget)
            mask = chooser.acquire(scanner)[0]
        else:
            mask = self._mask(operator, inputs, context, first, count)

        def look(progress: Progress) -> None:
            context.progress((batch[0] + (progress.step + 1) / progress.steps) / batch[1])

        luck = generators(subject_seeds(self.seed, "particles", first, count), context.device)
        # The reference's schedule may take more than the budget: it reports how many it took.
        budget = self.problem.budget if self.method in ADAPTIVE else int(mask[0].sum())
        return ads.run(scanner, mask, budget, luck, look)

    def _settings(self) -> Sampling:
        scores = ("greedy_variance", "bhattacharyya", "reference_positive", "kl_pixelwise", "noise_aware")
        if self.method in scores:
            score = "variance" if self.method == "greedy_variance" else self.method
            return self.sampling.model_copy(update={"score": score})
        return self.sampling.model_copy(update={"sampler": "exact"}) if self.method == "ads_exact" else self.sampling

    def _stop(self, inputs: Mapping[str, xr.Dataset]) -> Stop:
        assert self.target is not None
        return Stop(self.target, inputs["calibrated"]["ratio"].values.tolist())

    def _mask(
        self, operator: Operator, inputs: Mapping[str, xr.Dataset], context: Context, first: int, count: int
    ) -> Tensor:
        """The fixed masks (S, A) of a method."""
        variance = None
        if self.method.startswith("data_variance"):
            variance = sample_variance(operator, TrainingImages(images=self.problem.images).load(context))
        problem = self.problem.mask_problem(operator, variance, context.device)
        luck = generators(subject_seeds(self.seed, "mask", first, count), context.device)
        if self.method == "greedy_fixed":
            mask = problem.initial.clone()
            mask[torch.as_tensor(inputs["searched"]["order"].values, device=mask.device)] = True
            return mask.repeat(count, 1)
        if self.method == "loupe":
            assert self.loupe is not None
            return self.loupe.load(operator, context).top_mask().repeat(count, 1)
        rule: FixedRule = self.reference_mask if self.method not in FIXED_RULES else self.method
        return fixed_masks(rule, problem, luck)

    def _reconstruct(
        self, operator: Operator, scanner: Scanner, first: int, count: int, context: Context
    ) -> Acquisition:
        """Methods that make one image without a posterior."""
        none = torch.zeros(count, 0, dtype=torch.long, device=context.device)
        with torch.no_grad():
            if self.method == "pg":
                assert self.policy is not None
                policy, network = self.policy.load(operator, context), self.policy.unet.load(operator, context)
                chooser = policy.chooser(network)
                mask, samples, order = chooser.acquire(scanner)
                return deterministic(network(samples, mask), mask, samples, order)
            if self.method == "loupe_unet":
                assert self.loupe is not None
                trained = self.loupe.load(operator, context)
                mask = trained.top_mask().repeat(count, 1)
                samples = acquire_mask(scanner, mask)
                return deterministic(trained.reconstruction(samples, mask), mask, samples, none)
            mask = self._mask(operator, {}, context, first, count)
            samples = acquire_mask(scanner, mask)
            if self.method == "zero_filled":
                images = ZeroFilled(operator)(samples, mask)
            elif self.method == "unet":
                assert self.unet is not None
                images = self.unet.load(operator, context)(samples, mask)
            else:
                images = self._compressed_sensing(operator, context)(samples, mask)
            return deterministic(images, mask, samples, none)

    def _compressed_sensing(self, operator: Operator, context: Context) -> CompressedSensing:
        """Tuned on training images under masks of the same rule."""
        images, _ = training_set(self.problem, 64, context)
        problem = self.problem.mask_problem(operator, sample_variance(operator, images), context.device)
        luck = generators(subject_seeds(self.seed, "tuning mask", 0, len(images)), context.device)
        penalty: Penalty = Wavelet() if self.method == "wavelet" else TotalVariation()
        tuned, tried = tune(
            CompressedSensing(operator, penalty), WEIGHTS, images, fixed_masks(self.reference_mask, problem, luck)
        )
        context.log(message="tuned", weight=tuned.weight, tried={str(k): v for k, v in tried.items()})
        return tuned

    def _log_faults(self, outcome: Acquisition, first: int, context: Context) -> None:
        for name in ("restarts", "collapsed", "dropped"):
            count = getattr(outcome, name)
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

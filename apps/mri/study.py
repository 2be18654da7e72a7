"""The MRI study: which ways of choosing samples are compared on which images, and what follows from the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from apps.mri import figures
from apps.mri.ads import Sampling
from apps.mri.claims import QUICK, ClaimId, Evidence, decide
from apps.mri.learned.loupe import LOUPESettings
from apps.mri.learned.policy_gradient import PolicyGradientSettings
from apps.mri.learned.products import TrainedLOUPE, TrainedPolicy, TrainedUNet
from apps.mri.learned.subpo import SubPOSettings, TrainedSubPO
from apps.mri.learned.unet import UNetSettings
from apps.mri.masks import CENTRED, FIXED_RULES, FixedRule
from apps.mri.methods import ADAPTIVE, RECONSTRUCTIONS, SAMPLED, Method
from apps.mri.preparation import Calibrate, Search, TunedWeight
from apps.mri.problem import MixtureSettings, NetworkSettings, PriorSettings, Problem
from apps.mri.recording import JOINED, concatenate
from apps.mri.regret import Regret
from apps.mri.runs import Acquire, Region
from apps.mri.table import MEASURES, coverage_rows, losses_of, metrics_of, notes_of, regret_rows, rows_of
from core.diffusion.training import Training
from core.errors import InputError, require
from core.study import Analysis, Config, Figure, Results, Row, Study


class Subjects(Config):
    """The test images."""

    first: int = Field(default=0, ge=0)
    """Number of the first."""
    count: int = Field(default=32, ge=2)
    """How many."""
    at_once: int | None = Field(default=None, ge=1)
    """Subjects in one batch, after which the results are safe; all of a run if null."""
    per_run: int | None = Field(default=None, ge=1)
    """Subjects of a run, so that an engine can share them out; all if null."""
    record: int = Field(default=16, ge=1)
    """Subjects of each run whose images are kept."""
    particles: bool = False
    """Keep every particle of these images too, not their mean and spread only."""


class StopRule(Config):
    """When a subject has enough samples."""

    nmse: float = Field(gt=0, lt=1)
    """Predicted normalised mean squared error at which acquisition stops."""
    images: int = Field(default=128, ge=2)
    """Training images that calibrate the prediction."""


class Comparison(Problem):
    """A problem and the methods compared on it."""

    methods: tuple[Method, ...] = Field(min_length=1)
    """What is compared."""
    prior: PriorSettings = MixtureSettings()
    """Of the posterior sampling, the same for all methods."""
    sampling: Sampling = Sampling()
    """Of the posterior sampling, the same for all methods."""
    subjects: Subjects = Subjects()
    """The test images."""
    reference_mask: FixedRule = "fastmri"
    """The mask that zero-filled, compressed-sensing and U-Net reconstructions get, and that trains the U-Net."""
    search: MixtureSettings | None = None
    """The mixture of the searched mask; the prior itself if null."""
    search_images: int = Field(default=256, ge=1)
    """Training images of the search."""
    learning_images: int | None = Field(default=None, ge=1)
    """Training images of U-Net, LOUPE and policy; all if null."""
    unet: UNetSettings = UNetSettings()
    """Of the U-Net."""
    loupe: LOUPESettings | None = None
    """Of LOUPE; its budget must be the problem's."""
    policy: PolicyGradientSettings | None = None
    """Of the greedy policy gradient; its budget must be the problem's."""
    subpo: SubPOSettings | None = None
    """Of SubPO."""
    region: Region | None = None
    """The region of interest of ``ads_roi``; its error is reported for every method."""
    stop: StopRule | None = None
    """The stop rule of ``ads_stop``."""
    regret: bool = False
    """Judge the masks of all sampled methods against the best mask of each subject."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needs: dict[str, object] = {
            "loupe": self.loupe,
            "loupe_unet": self.loupe,
            "pg": self.policy,
            "subpo": self.subpo,
        }
        needs |= {"ads_roi": self.region, "ads_stop": self.stop}
        for method, settings in needs.items():
            if method in self.methods and settings is None:
                key = {"loupe_unet": "loupe", "pg": "policy"}.get(method, method.removeprefix("ads_"))
                key = "region" if key == "roi" else key
                raise InputError(f"{self.name}: method {method} needs the key {key}")
        for name, settings in (("loupe", self.loupe), ("policy", self.policy)):
            if settings is not None and settings.budget != self.budget:
                raise InputError(f"{self.name}: {name}.budget must be the problem's, {self.budget}")
        # LOUPE's preselected lines are its own; a policy acquires one after another, and starts where the others do.
        if self.policy is not None and self.policy.center_lines != self.initial:
            raise InputError(f"{self.name}: policy.center_lines must be the problem's initial, {self.initial}")
        if len(set(self.methods)) < len(self.methods):
            raise InputError(f"{self.name}: methods: one stands there twice")
        if self.sampling.particles < 2 and set(self.methods) & set(ADAPTIVE):
            raise InputError(f"{self.name}: sampling.particles: 1, but one particle has no entropy; at least 2")
        mixture = isinstance(self.mixture, MixtureSettings)
        if not mixture and (self.regret or {"greedy_fixed", "subpo"} & set(self.methods)):
            raise InputError(f"{self.name}: greedy_fixed, subpo and regret need a mixture: give the key search")
        if "ads_exact" in self.methods and not isinstance(self.prior, MixtureSettings):
            raise InputError(f"{self.name}: ads_exact needs a prior of kind gmm")
        self._measurable()
        return self

    def _measurable(self) -> None:
        """Refuse what the measurement has no place for."""
        if (shape := self.images.shape) is not None:
            self.measurement(shape)
            if self.region is not None:
                self.region.weights(shape)
        if not 0 <= self.sampling.window[0] < self.sampling.window[1] <= 1:
            raise InputError(f"{self.name}: sampling.window: {self.sampling.window}, must be 0 <= from < to <= 1")
        chosen = set(self.methods)
        masks = {*chosen, self.reference_mask} if chosen & {*RECONSTRUCTIONS, "pg"} else chosen
        if self.operator in ("pixels", "columns") and (centred := masks & set(CENTRED)):
            raise InputError(f"{self.name}: {', '.join(sorted(centred))} need k-space: {self.operator} have no centre")
        if "subpo" in chosen and (self.operator != "kspace_lines" or self.initial != 1 or self.budget < 2):
            raise InputError(f"{self.name}: subpo needs kspace_lines, initial 1 and a budget of at least 2")
        noise: dict[str, float] = {"ads_exact": self.sampling.noise, "ads_stop": self.sampling.noise, "subpo": 0.0}
        noise |= {"unet": self.unet.noise, "pg": getattr(self.policy, "noise", 0.0)}
        noise |= {m: getattr(self.loupe, "noise", 0.0) for m in ("loupe", "loupe_unet")}
        if self.snr is not None and (blind := sorted(m for m in chosen if m in noise and not noise[m])):
            raise InputError(f"{self.name}: snr is {self.snr}: {', '.join(blind)} must be told the noise, or left out")
        if self.coils == 1:
            return
        if self.subjects.at_once != 1:
            raise InputError(f"{self.name}: subjects.at_once: must be 1 with several coils")
        if single := chosen - {*ADAPTIVE, *FIXED_RULES, "greedy_fixed"} | chosen & {"ads_exact", "ads_stop"}:
            raise InputError(f"{self.name}: {', '.join(sorted(single))}: for one coil, coils is {self.coils}")
        if self.sampling.sampler == "exact":
            raise InputError(f"{self.name}: sampling.sampler: exact is for one coil")

    @property
    def problem(self) -> Problem:
        """The problem alone: runs that differ in the methods around them are the same runs."""
        return Problem(**{name: getattr(self, name) for name in Problem.model_fields})

    @property
    def mixture(self) -> PriorSettings:
        """What the searched mask and the regret reconstruct with."""
        return self.search or self.prior

    def smoke(self) -> Comparison:
        """The same comparison, at full shapes and in minutes: simulated images, 20 steps, a few training steps."""
        prior = self.prior
        if isinstance(prior, NetworkSettings):
            training = Training(steps=4, batch=min(prior.training.batch, 4), seed=prior.training.seed)
            prior = prior.model_copy(update={"training": training})
        settings = {
            "images": self.images.smoke(),
            "prior": prior,
            "sampling": self.sampling.model_copy(update={"steps": 20, "particles": min(self.sampling.particles, 2)}),
            "subjects": Subjects(count=2, at_once=1, per_run=2, record=2),
            "search": None if self.search is None else MixtureSettings(components=4, rank=4),
            "search_images": 8,
            "learning_images": 8,
            "unet": self.unet.model_copy(update={"epochs": 1}),
            "loupe": None if self.loupe is None else self.loupe.model_copy(update={"epochs": 1}),
            "policy": None if self.policy is None else self.policy.model_copy(update={"epochs": 1}),
        }
        return self.model_copy(update=settings)


class MRIStudy(Study):
    """Active Diffusion Subsampling beside fixed, searched and learned masks, with the same posterior sampling.

    After Nolan et al. (2025), "Active Diffusion Subsampling", TMLR.
    """

    app: ClassVar[str] = "mri"
    headline: ClassVar[tuple[str, ...]] = ("PSNR", "SSIM", "MAE")

    seeds: int = Field(default=1, ge=1, le=1000)
    """Seeds of particles, masks and scanner; a subject counts once, with its mean over the seeds."""
    scenarios: tuple[Comparison, ...] = Field(min_length=1)
    """What is compared on what."""
    smoke: bool = False
    """Go through all of it at full shapes in minutes, on simulated images; the numbers mean nothing."""
    claims: tuple[ClaimId, ...] = QUICK
    """The claims to decide."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [s.name for s in self.scenarios]
        if len(set(names)) < len(names):
            raise InputError("scenarios: two have the same name")
        return self

    @property
    def compared(self) -> list[Comparison]:
        """The scenarios whose images can be had here."""
        return [s.smoke() if self.smoke else s for s in self.scenarios if self.smoke or not s.images.missing]

    def shards(self, s: Comparison, method: Method) -> list[list[Acquire]]:
        """The runs of one method, seed by seed and shard by shard."""
        size = s.subjects.per_run or s.subjects.count
        problem, end = s.problem, s.subjects.first + s.subjects.count
        unet = TrainedUNet(
            problem=problem, rule=s.reference_mask, fewest=None, settings=s.unet, limit=s.learning_images, seed=0
        )
        inputs: dict[str, object] = {}
        if method == "greedy_fixed":
            inputs["searched"] = self.search(s)
        if method == "ads_stop" and s.stop is not None:
            calibrate = Calibrate(problem=problem, prior=s.prior, sampling=s.sampling, images=s.stop.images, seed=0)
            inputs |= {"calibrated": calibrate, "target": s.stop.nmse}
        if method in ("wavelet", "tv"):
            inputs["weight"] = TunedWeight(problem=problem, penalty=method, rule=s.reference_mask, seed=0)
        if method == "unet":
            inputs["unet"] = unet
        if method in ("loupe", "loupe_unet") and s.loupe is not None:
            inputs["loupe"] = TrainedLOUPE(problem=problem, settings=s.loupe, limit=s.learning_images, seed=0)
        if method == "subpo" and s.subpo is not None and isinstance(s.mixture, MixtureSettings):
            limit = s.learning_images
            inputs["subpo"] = TrainedSubPO(problem=problem, prior=s.mixture, settings=s.subpo, limit=limit, seed=0)
        if method == "pg" and s.policy is not None:
            # The policy's reconstructor meets every number of lines on the way to the budget.
            anywhere = unet.model_copy(update={"rule": "random", "fewest": max(1, s.initial)})
            limit = s.learning_images
            inputs["policy"] = TrainedPolicy(problem=problem, settings=s.policy, unet=anywhere, limit=limit, seed=0)
        return [
            [
                Acquire(
                    problem=problem,
                    prior=s.prior,
                    sampling=s.sampling,
                    method=method,
                    first=first,
                    count=min(size, end - first),
                    at_once=s.subjects.at_once or min(size, end - first),
                    seed=seed,
                    record=s.subjects.record,
                    particles=s.subjects.particles,
                    reference_mask=s.reference_mask,
                    region=s.region,
                    **inputs,  # type: ignore[arg-type]
                )
                for first in range(s.subjects.first, end, size)
            ]
            for seed in range(self.seeds)
        ]

    def search(self, s: Comparison) -> Search:
        """The search for the one mask."""
        assert isinstance(s.mixture, MixtureSettings)
        return Search(problem=s.problem, prior=s.mixture, images=s.search_images)

    def regrets(self, s: Comparison) -> list[Regret]:
        """The runs that judge masks, one a shard."""
        assert isinstance(s.mixture, MixtureSettings)
        methods = [m for m in s.methods if m in SAMPLED and m != "ads_stop"]
        shards = zip(*(self.shards(s, m)[0] for m in methods), strict=True)
        return [Regret(problem=s.problem, prior=s.mixture, compared=runs) for runs in shards]

    def runs(self) -> list[Acquire | Regret]:  # type: ignore[override]
        """Every method in every scenario.

        Raises:
            MissingExtra: a package of the extra ``mri`` is not installed.
            InputError: no scenario's images can be had here.
        """
        require("sklearn", "mri")
        if not self.compared:
            missing = "; ".join(f"{s.name}: {s.images.missing}" for s in self.scenarios)
            raise InputError(f"no images for any scenario ({missing}); --set smoke=true goes through it without them")
        found: list[Acquire | Regret] = []
        # Searches first: they are the longest, and no worker should wait for one at the end.
        for s in sorted(self.compared, key=lambda s: "greedy_fixed" not in s.methods):
            order = sorted(s.methods, key=lambda m: m != "greedy_fixed")
            found += [run for m in order for shards in self.shards(s, m) for run in shards]
        return found + [run for s in self.compared if s.regret for run in self.regrets(s)]

    def analyse(self, results: Results) -> Analysis:
        """Table, claims, figures and data of the study."""
        table: list[Row] = []
        drawn: list[Figure] = []
        notes: list[str] = []
        groups: dict[str, xr.Dataset] = {}
        evidence: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        everything: dict[str, dict[str, xr.Dataset]] = {}
        for s in self.compared:
            found: dict[str, xr.Dataset] = {m: _gather(results, self.shards(s, m)) for m in s.methods}
            metrics: dict[str, dict[str, np.ndarray]] = {m: metrics_of(data) for m, data in found.items()}
            evidence |= {(s.name, m): values for m, values in metrics.items()}
            table += rows_of(s, metrics) + coverage_rows(s, found)
            if s.regret:
                table += regret_rows(s, [results[run] for run in self.regrets(s)])
            drawn += figures.of_scenario(
                s.name, s.operator, found, [results[run] for run in self.regrets(s)] if s.regret else ()
            )
            notes += losses_of(s, metrics) + notes_of(s, found)
            groups[f"/{s.name}"] = _merged(found, s.budget).assign_attrs(operator=s.operator)
            everything[s.name] = found
        drawn = figures.of_budgets({s.name: s for s in self.compared}, everything) + drawn
        absent = {s.name: s.images.missing for s in self.scenarios if s not in self.compared and not self.smoke}
        notes += [f"{name} was left out: {why}." for name, why in absent.items()]
        if self.smoke:
            notes.insert(0, "A smoke run: simulated images, 20 steps, hardly trained networks: no result.")
            evidence, absent = {}, {s.name: "a smoke run decides nothing" for s in self.scenarios}
        subjects = {s.name: (s.subjects.first, s.subjects.count) for s in self.compared}
        claims = decide(Evidence(evidence, absent, subjects), self.claims)
        notes.append(MEASURES)
        notes.append(
            "Intervals are 95 % percentile bootstrap intervals over subjects (Wilson's for a share). All methods of a "
            "scenario met the same subjects, with the same noise of particles and scanner. p values of a scenario's "
            "rivals are adjusted together (Holm)."
        )
        return Analysis(table, claims, drawn, xr.DataTree.from_dict(groups), notes)


def _gather(results: Results, shards: list[list[Acquire]]) -> xr.Dataset:
    """All shards and seeds of a method: dims seed, subject, recorded, ..."""
    seeds = [concatenate([results[run] for run in runs]) for runs in shards]
    return xr.concat(seeds, xr.Variable("seed", np.arange(len(seeds))), **JOINED)


def _merged(found: Mapping[str, xr.Dataset], budget: int) -> xr.Dataset:
    """All methods of a scenario: dims method, budget, seed, subject, ..."""
    longest = {d: np.arange(max(data.sizes[d] for data in found.values())) for d in ("acquisition", "step")}
    parts = []
    for data in found.values():
        plain = data.drop_attrs(deep=False).drop_vars("target", errors="ignore")
        indexed = plain.assign_coords({d: np.arange(data.sizes[d]) for d in longest})
        # A method that acquires less often is padded with -1, as a subject that stopped is.
        parts.append(indexed.reindex(longest, fill_value={"acq_order": -1, "acq_step": -1}))
    how = {"join": "exact", "coords": "minimal", "compat": "override", "data_vars": "all"}
    merged = xr.concat(parts, xr.Variable("method", list(found)), **how)  # type: ignore[call-overload]
    first = next(iter(found.values()))
    return merged.assign(target=first["target"].isel(seed=0, drop=True)).expand_dims(budget=[budget])

"""The runs of the turbulence study: the reference's statistics, ensembles of closures, and ensembles of policies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
import xarray as xr
from pydantic import Field, model_validator
from torch import Tensor

from apps.turbulence.ensemble import Sampling, simulate
from apps.turbulence.learning import StoredPolicy, TrainedPolicy, load_policy, world_of
from apps.turbulence.scenario import Discretisation, Scenario
from apps.turbulence.snapshots import numbered, reference_spectra, snapshots_of, truncated
from core.errors import InputError
from core.seeds import stream
from core.study import Config, Context, Run
from simulators.turbulence.closures import Closure, closure
from simulators.turbulence.diagnostics import VorticityHistogram
from simulators.turbulence.flow import Flow
from simulators.turbulence.grid import Grid

ClosureName = Literal[
    "none",
    "smag",
    "smag_local",
    "leith",
    "leith_local",
    "dsmag",
    "dleith",
    "dsmag_tensor",
    "gm2",
    "gm4",
    "backscatter",
]
Role = Literal["training", "evaluation"]
AXES = ["x", "y"]
PERTURBATION = 1e-2
"""Of a realisation, over the standard deviation of the vorticity: forgotten long before the window begins."""


class ClosureSettings(Config):
    """A closure of the literature; with several constants each is simulated, and the training starts choose."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Name in the report."""
    closure: ClosureName
    """Which one."""
    constants: tuple[float, ...] = ()
    """Cl, Cs or Cb with D = 2 pi/N; several are a grid to choose from."""
    clip: Literal["positive_product", "mean_then_clip", "local"] | None = None
    """How a dynamic model keeps its coefficient positive."""
    share: float | None = Field(default=None, ge=0, lt=1)
    """Share of the sink's energy that ``backscatter`` returns."""
    padded: bool = False
    """De-alias the products of a stress that varies in space."""
    every: int = Field(default=1, ge=1)
    """Solver steps between two evaluations."""
    long: bool = False
    """Simulate as long as the trained agents."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.built(self.constants[0] if self.constants else None)
        return self

    def built(self, constant: float | Tensor | None) -> Closure:
        """The closure with one constant, or with one for each copy.

        Raises:
            InputError: options that this closure does not have.
        """
        options = {"constant": constant, "clip": self.clip, "share": self.share, "padded": self.padded or None}
        return closure(self.closure, **{name: value for name, value in options.items() if value is not None})


class SamplingSettings(Config):
    """How long is simulated, and when statistics are taken."""

    duration: float = Field(default=70.0, gt=0)
    """Time units of a simulation."""
    discard: float = Field(default=10.0, ge=0)
    """What is left out at its beginning."""
    every: float = Field(default=0.25, gt=0)
    """Time between two samples."""
    realisations: int = Field(default=1, ge=1, le=1000)
    """Evaluations of each closure, from perturbed starts; as many as training seeds give all methods equal samples."""

    def sampling(self, duration: float | None = None) -> Sampling:
        """As the ensemble takes it; a longer duration keeps the window of the statistics."""
        whole = max(self.duration, duration or 0.0)
        return Sampling(duration=whole, discard=self.discard, every=self.every, until=self.duration)


class ReferenceStatistics(Run):
    """What a few resolved snapshots say of the flow: spectra, distribution, energy."""

    scenario: Scenario
    """The flow, its snapshots and the coarse grid."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.scenario.flow.title} reference"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """Spectra of each snapshot in both bands, and what is left of the distribution on the coarse grid."""
        s = self.scenario
        snapshots = snapshots_of(s).load(context)
        omega = numbered(snapshots, s.reference)
        coarse = truncated(omega, s.grid.n, torch.float64)
        sigma = float(coarse.std(correction=0))
        histogram = VorticityHistogram.of(coarse, sigma)
        flow = Flow(Grid(s.grid.n), Grid(s.grid.n).to_spectral(coarse))
        data: dict[str, Any] = {}
        without_file = s.model_copy(update={"spectrum": None})
        kinds: tuple[tuple[str, Literal["enstrophy", "energy"]], ...] = (("Z", "enstrophy"), ("E", "energy"))
        bands: tuple[Literal["full", "les"], ...] = ("full", "les")
        for letter, kind in kinds:
            for band in bands:
                scenario = s if kind == "enstrophy" else without_file
                spectra = reference_spectra(scenario, snapshots, kind, band)
                text = {"units": "1", "long_name": f"{kind} spectrum of a snapshot, {band} band"}
                data[f"{letter}_{band}"] = (("snapshot", "axis", "k"), spectra.numpy(), text)
        plain = {"units": "1"}
        data |= {
            "counts": ("omega", histogram.counts[0].numpy(), plain),
            "exceeded": ("q", histogram.exceeded[0].numpy(), plain),
            "points": ((), int(histogram.points[0]), plain),
            "kurtosis": ((), float(histogram.kurtosis[0]), plain),
            "sigma": ((), sigma, plain),
            "energy": ("snapshot", flow.energy.numpy(), plain),
            "enstrophy": ("snapshot", flow.enstrophy.numpy(), plain),
            "largest": ("snapshot", coarse.abs().amax((-2, -1)).numpy(), plain),
            "field": (("x", "y"), coarse[0].numpy(), plain),
        }
        x = np.arange(s.grid.n) * 2 * math.pi / s.grid.n
        coords = {"snapshot": list(s.reference), "axis": AXES, "k": np.arange(s.grid.n // 2), "q": [2, 3, 4]}
        return xr.Dataset(data, {**coords, "omega": histogram.centres.numpy(), "x": x, "y": x})


class ClosureEnsemble(Run):
    """A closure, with each of its constants, from every start of a role: one batch."""

    scenario: Scenario
    """Flow and grid."""
    closure: ClosureSettings
    """The closure."""
    sampling: SamplingSettings
    """When statistics are taken."""
    role: Role = "evaluation"
    """Which snapshots it starts from."""
    realisation: int = Field(default=0, ge=0)
    """Seed of a perturbation of the starts, which the flow forgets; 0 for none."""
    long: float = Field(default=0.0, ge=0)
    """Simulate on up to this time."""
    reference: ReferenceStatistics
    """Gives the unit of the distribution."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        again = f" {self.realisation + 1}" if self.realisation else ""
        return f"{self.scenario.flow.title} {self.closure.name} ({self.role}{again})"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """Statistics with the dims ``constant`` and ``start`` in front."""
        starts = _starts(self.scenario, self.role, context)
        if self.realisation:
            generator = torch.Generator().manual_seed(stream(self.realisation, "perturbed starts"))
            noise = torch.randn(starts.shape, generator=generator, dtype=starts.dtype)
            starts = starts + PERTURBATION * starts.std() * noise
        constants = self.closure.constants or (math.nan,)
        batch = starts.repeat(len(constants), 1, 1)
        # One number for each copy: all starts of the first constant, then those of the second.
        values = torch.tensor(constants, dtype=starts.dtype, device=context.device).repeat_interleave(len(starts))
        model = self.closure.built(values if self.closure.constants else None)
        solver = self.scenario.grid.solver(
            self.scenario.flow, model, closure_every=self.closure.every, device=context.device
        )
        found = simulate(
            solver,
            batch,
            self.sampling.sampling(self.long),
            float(inputs["reference"]["sigma"]),
            checkpoint=context.checkpoint / "state.safetensors",
            progress=context.progress,
        )
        return _by_start(found, list(getattr(self.scenario, self.role)), list(constants))


class PolicyEnsemble(Run):
    """A trained policy as closure, from every start of a role."""

    scenario: Scenario
    """Flow and grid."""
    policy: TrainedPolicy | StoredPolicy
    """The policy; where it was trained is part of it."""
    sampling: SamplingSettings
    """When statistics are taken."""
    role: Role = "evaluation"
    """Which snapshots it starts from."""
    long: float = Field(default=0.0, ge=0)
    """Simulate on up to this time, to see whether the flow stays where it belongs."""
    reference: ReferenceStatistics
    """Gives the unit of the distribution."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.scenario.flow.title} on {self.scenario.grid.n} points: {self.policy.label} ({self.role})"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """Statistics with the dim ``start`` in front; ``coefficient`` and ``gradient`` are of the last fields."""
        training = self.policy.training
        world = world_of(training, context)
        if (training.scenario.flow, training.scenario.grid) != (self.scenario.flow, self.scenario.grid):
            world = world.moved(self.scenario.grid.solver(self.scenario.flow, device=context.device))
        folder = self.policy.folder(context)
        policy = load_policy(folder / "policy", world, training.learner.kind)
        found = simulate(
            world.solver,
            _starts(self.scenario, self.role, context),
            self.sampling.sampling(self.long),
            float(inputs["reference"]["sigma"]),
            closure=policy,
            advance=policy.advance,
            checkpoint=context.checkpoint / "state.safetensors",
            progress=context.progress,
        )
        final = world.solver.start(torch.nan_to_num(torch.from_numpy(found["final"].values)))
        field = policy.coefficient_field(final).cpu().numpy()
        gradient = world.solver.flow(final).gradient_norm.cpu().numpy()
        found = found.assign(
            coefficient=(("copy", "x", "y"), field, {"units": "1", "long_name": "coefficient c at the end"}),
            gradient=(("copy", "x", "y"), gradient, {"units": "1", "long_name": "|grad omega| at the end"}),
        )
        found = _by_start(found, list(getattr(self.scenario, self.role)), [math.nan]).isel(constant=0, drop=True)
        found.attrs["action"] = training.agents.action
        return found.assign(training.curve_of(folder / "curve.jsonl"))


class ResolvedEnsemble(Run):
    """The flow on a fine grid without closure, seen on the coarse grid: the truth of extremes and long series."""

    scenario: Scenario
    """Flow and coarse grid."""
    grid: Discretisation
    """The fine grid."""
    sampling: SamplingSettings
    """When statistics are taken."""
    role: Role = "evaluation"
    """Which snapshots it starts from."""
    reference: ReferenceStatistics
    """Gives the unit of the distribution."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.scenario.flow.title} resolved on {self.grid.n} points ({self.role})"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """Statistics of the truncated flow with the dim ``start`` in front."""
        s = self.scenario
        omega = numbered(snapshots_of(s).load(context), getattr(s, self.role))
        solver = self.grid.solver(s.flow, device=context.device)
        found = simulate(
            solver,
            truncated(omega, self.grid.n, solver.grid.dtype),
            self.sampling.sampling(),
            float(inputs["reference"]["sigma"]),
            seen_on=s.grid.n,
            checkpoint=context.checkpoint / "state.safetensors",
            progress=context.progress,
        )
        return _by_start(found, list(getattr(s, self.role)), [math.nan]).isel(constant=0, drop=True)


def _starts(scenario: Scenario, role: Role, context: Context) -> Tensor:
    omega = numbered(snapshots_of(scenario).load(context), getattr(scenario, role))
    return truncated(omega, scenario.grid.n, getattr(torch, scenario.grid.dtype))


def _by_start(found: xr.Dataset, starts: Sequence[int], constants: Sequence[float]) -> xr.Dataset:
    """The copies as ``constant`` x ``start``."""
    shape = (len(constants), len(starts))
    data = {}
    for name, array in found.data_vars.items():
        if array.dims[:1] != ("copy",):
            raise InputError(f"{name}: has no copies")
        values = array.values.reshape(*shape, *array.shape[1:])
        data[name] = (("constant", "start", *array.dims[1:]), values, array.attrs)
    coords = {name: found[name] for name in found.coords if name != "copy"}
    return xr.Dataset(data, {**coords, "constant": list(constants), "start": list(starts)}, found.attrs)

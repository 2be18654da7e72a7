"""A scenario: the flow, the grid it is simulated on, and where its resolved snapshots come from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator

from core.errors import InputError
from core.study import Config
from simulators.turbulence.advection import Dealias
from simulators.turbulence.cases import Case, case
from simulators.turbulence.closures import Closure
from simulators.turbulence.snapshots import COUNT
from simulators.turbulence.solver import BetaScheme, ImplicitScheme, Integrator, Solver

CaseName = Literal["case1", "case2", "case4", "kolmogorov4"]


class FlowSettings(Config):
    """The flow: a named case, with some of its parameters replaced."""

    case: CaseName = "kolmogorov4"
    """Cases 1, 2 and 4 of Mojgani et al. (2023), or the flow of the shipped snapshots."""
    reynolds: float | None = Field(default=None, gt=0)
    """Re."""
    fkx: int | None = Field(default=None, ge=0)
    """Wavenumber of the forcing along x."""
    fky: int | None = Field(default=None, ge=0)
    """Wavenumber of the forcing along y."""
    beta: float | None = None
    """Gradient of the Coriolis parameter."""
    drag: float | None = Field(default=None, ge=0)
    """Linear drag."""

    def built(self) -> Case:
        """The case."""
        given = {name: getattr(self, name) for name in ("reynolds", "fkx", "fky", "beta", "drag")}
        return case(self.case, **{name: value for name, value in given.items() if value is not None})

    @property
    def title(self) -> str:
        """The case and what differs from it, in a few words."""
        changed = [f"{k} {v:g}" for k, v in self.model_dump(exclude={"case"}, exclude_none=True).items()]
        return " ".join([self.case, *changed])


class Discretisation(Config):
    """Grid and time step of a simulation."""

    n: int = Field(default=32, ge=8, le=8192, multiple_of=2)
    """Points on each side."""
    dt: float = Field(default=5e-3, gt=0)
    """Time step."""
    integrator: Integrator = "ab2cn"
    """Time stepping."""
    dealias: Dealias = "padded"
    """What is done about aliases."""
    drag: ImplicitScheme = "crank_nicolson"
    """How the drag is stepped."""
    beta_scheme: BetaScheme = "crank_nicolson"
    """How beta is stepped."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision."""

    def solver(
        self,
        flow: FlowSettings,
        closure: Closure | None = None,
        *,
        closure_every: int = 1,
        device: torch.device | str = "cpu",
    ) -> Solver:
        """The solver of a flow on this grid.

        Raises:
            InputError: the grid cannot represent the forcing.
        """
        return Solver(
            flow.built(),
            self.n,
            self.dt,
            closure=closure,
            integrator=self.integrator,
            dealias=self.dealias,
            drag=self.drag,
            beta_scheme=self.beta_scheme,
            closure_every=closure_every,
            dtype=getattr(torch, self.dtype),
            device=device,
        )


class Shipped(Config):
    """The 20 snapshots of case kolmogorov4 that come with this package (128 x 128, Jakhar et al. 2024)."""

    kind: Literal["shipped"] = "shipped"
    """Filtered direct simulation; the filter is undone."""


class DirectSimulation(Config):
    """Snapshots of a direct simulation, made here from a random start."""

    kind: Literal["dns"] = "dns"
    """Direct numerical simulation."""
    grid: Discretisation = Discretisation(n=1024, dt=5e-4, integrator="rk4cn")
    """Its grid; Adams-Bashforth amplifies what a resolved flow does not damp, and blows up."""
    keep: int = Field(default=256, ge=8, multiple_of=2)
    """Points on each side of what is kept of a snapshot, truncated."""
    spin_up: float = Field(default=50.0, ge=0)
    """Time before the first snapshot."""
    spacing: float = Field(default=5.0, gt=0)
    """Time between snapshots."""
    count: int = Field(default=20, ge=2, le=100_000)
    """Snapshots."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the random start."""
    backend: Literal["torch", "jax_cfd"] = "torch"
    """This project's solver, or jax-cfd's RK4 with the 2/3 rule as an independent one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        grid = self.grid
        ours = (grid.integrator, grid.dealias, grid.drag, grid.beta_scheme)
        theirs = ("rk4cn", "two_thirds", "crank_nicolson", "crank_nicolson")
        if self.backend == "jax_cfd" and ours != theirs:
            raise InputError(f"backend = jax_cfd: has integrator, dealias, drag, beta_scheme = {', '.join(theirs)}")
        if self.keep > self.grid.n:
            raise InputError(f"keep = {self.keep}: must be at most grid.n = {self.grid.n}")
        return self


class FieldFiles(Config):
    """Snapshots in files: NetCDF or Zarr with vorticity or velocities, or a folder of MATLAB files."""

    kind: Literal["files"] = "files"
    """A user's own simulation."""
    data: str
    """The file, or the folder."""
    filter_width: float | None = Field(default=None, gt=0)
    """Width of a Gaussian filter to undo; null if the fields are not filtered."""


SnapshotSource = Annotated[Shipped | DirectSimulation | FieldFiles, Field(discriminator="kind")]


class Scenario(Config):
    """A flow, its snapshots, and which of them serve for what; they are numbered from 1."""

    flow: FlowSettings = FlowSettings()
    """The flow."""
    grid: Discretisation = Discretisation()
    """Grid of the large-eddy simulations."""
    snapshots: SnapshotSource = Shipped()
    """Where resolved snapshots come from."""
    reference: tuple[int, ...] = tuple(range(1, 11))
    """Snapshots of the reference statistics: the only knowledge of the resolved flow that a closure may use."""
    training: tuple[int, ...] = tuple(range(11, 16))
    """Starts of training and calibration."""
    evaluation: tuple[int, ...] = tuple(range(16, 21))
    """Starts of what is scored."""
    band: Literal["full", "les"] = "full"
    """The reference spectrum sums over all wavenumbers of the other axis, or over those of the coarse grid."""
    axis: Literal["both", "stacked"] = "both"
    """The reward compares the mean of the spectra along x and y, or the two of them."""
    spectrum: str | None = None
    """Text file (columns k, Z) of the enstrophy spectrum to reach, in place of that of the reference snapshots."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        parts = {name: getattr(self, name) for name in ("reference", "training", "evaluation")}
        for name, numbers in parts.items():
            if len(numbers) < 2 or len(set(numbers)) < len(numbers) or min(numbers) < 1:
                raise InputError(f"{name} = {list(numbers)}: must be two or more different numbers of at least 1")
        if set(self.evaluation) & (set(self.reference) | set(self.training)):
            raise InputError("evaluation: shares snapshots with reference or training")
        if self.spectrum is not None and self.axis != "both":
            raise InputError(f"axis = {self.axis}: a file holds one spectrum; must be both")
        if isinstance(self.snapshots, Shipped) and self.flow.case != "kolmogorov4":
            raise InputError(f"snapshots: the shipped ones are of case kolmogorov4, not of {self.flow.case}")
        known = {"shipped": COUNT, "dns": getattr(self.snapshots, "count", None)}.get(self.snapshots.kind)
        if known is not None and self.last > known:
            raise InputError(f"snapshot {self.last}: there are {known}, numbered from 1")
        self.grid.solver(self.flow)
        return self

    @property
    def last(self) -> int:
        """The largest number of a snapshot that is used."""
        return max(self.reference + self.training + self.evaluation)

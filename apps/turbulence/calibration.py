"""Constants of a closure that fit the enstrophy spectrum of a few snapshots best: the rival of whatever is learned.

Three ways: a grid; CMA-ES (Hansen 2016, arXiv 1604.00772); ensemble Kalman inversion (Iglesias, Law and Stuart 2013,
Inverse Problems 29:045001), as used for such constants by Guan et al. (2024), arXiv 2409.04985. Each simulates all its
constants from all training starts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, model_validator
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from apps.turbulence.ensemble import Progress, Sampling, simulate
from apps.turbulence.scenario import Scenario
from apps.turbulence.snapshots import numbered, reference_spectra, snapshots_of, truncated
from core.checkpoint import Checkpoint
from core.errors import InputError, require
from core.seeds import stream
from core.stats import t_interval
from core.study import Config, Context, Run
from core.study.numbers import estimate, number
from simulators.turbulence.closures import Closure, closure
from simulators.turbulence.diagnostics import check_reference, log_spectrum_error

ClosureName = Literal["leith", "leith_local", "smag", "smag_local", "backscatter"]
Numbers = NDArray[np.float64]

PENALTY = 100.0
"""Error in decades, for CMA-ES and the grid, of a start from which a constant blows up."""
SHOWN = 20
"""Constants up to which all are printed; of more, the best of each round."""


@dataclass(frozen=True)
class Parameter:
    """A constant that can be calibrated.

    Attributes:
        option: of the closure's class.
        symbol: in print.
        grid: values that are tried by default.
        bounds: of CMA-ES and EKI by default.
    """

    option: str
    symbol: str
    grid: tuple[float, ...]
    bounds: tuple[float, float]


_LEITH = Parameter("constant", "Cl", (0.10, 0.13, 0.16, 0.19, 0.22, 0.26, 0.30), (0.03, 0.6))
_SMAGORINSKY = Parameter("constant", "Cs", (0.05, 0.065, 0.08, 0.11, 0.17), (0.01, 0.4))
_SINK = Parameter("constant", "Cb", (0.12, 0.15, 0.18, 0.21, 0.25), (0.05, 0.5))
_SHARE = Parameter("share", "c_b", (0.2, 0.5, 0.8), (0.02, 0.98))
PARAMETERS: dict[ClosureName, tuple[Parameter, ...]] = {
    "leith": (_LEITH,),
    "leith_local": (_LEITH,),
    "smag": (_SMAGORINSKY,),
    "smag_local": (_SMAGORINSKY,),
    "backscatter": (_SINK, _SHARE),
}
"""The constants of every closure that can be calibrated, with D = 2 pi/N."""


class GridSearch(Config):
    """Try given values; the best is chosen."""

    kind: Literal["grid"] = "grid"
    """Grid search."""
    values: tuple[float, ...] = ()
    """Values of the constant; by default some around those of the literature."""
    shares: tuple[float, ...] = ()
    """Values of the share of ``backscatter``, each tried with each value of the constant."""

    @property
    def given(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What is tried of the constant and of the share."""
        return self.values, self.shares

    @property
    def rounds_in_all(self) -> int:
        """Batches that are simulated."""
        return 1


class _Bounded(Config):
    bounds: tuple[float, float] | None = None
    """Smallest and largest constant; by default wide ones around the literature's."""
    share_bounds: tuple[float, float] | None = None
    """Smallest and largest share of ``backscatter``."""
    seed: int = Field(default=0, ge=0)
    """Of the random constants."""

    @property
    def given(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Bounds of the constant and of the share."""
        return self.bounds or (), self.share_bounds or ()


class CMAES(_Bounded):
    """Evolution strategy of the package ``cma`` in the logarithm of the constants; its last mean is chosen."""

    kind: Literal["cmaes"] = "cmaes"
    """Covariance matrix adaptation."""
    population: int = Field(default=8, ge=4, le=10_000)
    """Constants of a generation."""
    generations: int = Field(default=8, ge=1, le=10_000)
    """Generations."""

    @property
    def rounds_in_all(self) -> int:
        """Batches that are simulated."""
        return self.generations + 1


class EKI(_Bounded):
    """Ensemble Kalman inversion of the logarithm of the spectrum for that of the constants; the mean is chosen.

    Prior, in the logarithm of the constants: a normal distribution of which the bounds are two standard deviations from
    the mean. A member that would leave the bounds goes half the way to them.
    """

    kind: Literal["eki"] = "eki"
    """Ensemble Kalman inversion."""
    members: int = Field(default=16, ge=4, le=10_000)
    """Members of the ensemble."""
    rounds: int = Field(default=5, ge=1, le=1000)
    """Updates."""

    @property
    def rounds_in_all(self) -> int:
        """Batches that are simulated."""
        return self.rounds + 1


Method = Annotated[GridSearch | CMAES | EKI, Field(discriminator="kind")]


class CalibrationSettings(Config):
    """What is calibrated, and how."""

    closure: ClosureName = "leith"
    """The closure."""
    method: Method = GridSearch()
    """How its constants are found."""
    duration: float = Field(default=70.0, gt=0)
    """Time units of a simulation."""
    discard: float = Field(default=10.0, ge=0)
    """What is left out at its beginning."""
    every: float = Field(default=0.25, gt=0)
    """Time between two samples of the spectrum."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(PARAMETERS[self.closure]) == 1 and self.method.given[1]:
            raise InputError(f"method: a share is given, but closure {self.closure} has none; only backscatter has one")
        for parameter, values in zip(PARAMETERS[self.closure], self.ranges, strict=True):
            self._check_range(parameter.option, values)
        self.built(torch.tensor(list(product(*self.ranges)), dtype=torch.float64))
        last = int(self.duration / self.every + 1e-9) * self.every
        if last <= self.sampling.discard:
            raise InputError(f"duration = {self.duration:g}: holds no sample of every = {self.every:g} after discard")
        return self

    def _check_range(self, option: str, values: tuple[float, ...]) -> None:
        if isinstance(self.method, GridSearch):
            if len(set(values)) < max(len(values), 2 if option == "constant" else 1):
                raise InputError(
                    f"method: {option} = {list(values)}: must be different values, two or more of constant"
                )
        elif not 0 < values[0] < values[1]:
            raise InputError(f"method: bounds {list(values)} of {option}: must be 0 < smallest < largest")

    @property
    def ranges(self) -> list[tuple[float, ...]]:
        """Of each constant the values of the grid, or the bounds."""
        grid = isinstance(self.method, GridSearch)
        known = PARAMETERS[self.closure]
        return [own or (p.grid if grid else p.bounds) for p, own in zip(known, self.method.given, strict=False)]

    @property
    def sampling(self) -> Sampling:
        """As the ensemble takes it."""
        return Sampling(duration=self.duration, discard=self.discard, every=self.every)

    def built(self, points: Tensor) -> Closure:
        """The closure with constants ``(B, parameter)``, a row for each copy.

        Raises:
            InputError: a constant outside its range.
        """
        options = [parameter.option for parameter in PARAMETERS[self.closure]]
        return closure(self.closure, **dict(zip(options, points.unbind(-1), strict=True)))


@dataclass(frozen=True)
class _Target:
    """What the spectra should be.

    Attributes:
        spectrum: ``(K,)`` mean over the reference snapshots.
        log: ``(K-2,)`` its log10 at k = 1..K-2.
        variance: ``(K-2,)`` of ``log``, from the snapshots.
    """

    spectrum: Numbers
    log: Numbers
    variance: Numbers

    @classmethod
    def of(cls, scenario: Scenario, snapshots: NDArray[Any]) -> _Target:
        n, count = scenario.grid.n, len(scenario.reference)
        # Gamma is the snapshots' own variance, also where a file gives the mean.
        own = scenario.model_copy(update={"spectrum": None})
        spectra = reference_spectra(own, snapshots).mean(1)
        target = reference_spectra(scenario, snapshots).mean((0, 1))
        mean = check_reference(target, n)
        variance = spectra[:, 1:-1].log10().var(0) / count
        if not bool((variance > 0).all()):
            raise InputError("reference: the spectra of its snapshots are equal at some wavenumber")
        return cls(mean.numpy(), mean[1:-1].log10().numpy(), variance.numpy())

    def errors(self, spectra: Numbers) -> Numbers:
        """``(P, S)`` of time-mean spectra ``(P, S, K)``; NaN where a copy blew up."""
        error: Numbers = log_spectrum_error(torch.from_numpy(spectra), torch.from_numpy(self.spectrum)).numpy()
        return np.where(np.isfinite(error), error, np.nan)

    def scores(self, spectra: Numbers) -> Numbers:
        """``(P,)`` mean errors over starts, with ``PENALTY`` for a copy that blew up."""
        scores: Numbers = np.nan_to_num(self.errors(spectra), nan=PENALTY).mean(1)
        return scores


_Outcome = tuple[int, list[Numbers]]
_Search = Generator[Numbers, Numbers, _Outcome]
"""Yields constants ``(P, parameter)``, is sent their spectra ``(P, S, K)``, and returns which of all rows it chooses,
and the ensembles it went through. It depends on nothing else, so that what it was sent is all of its state."""


def _grid(settings: CalibrationSettings, target: _Target) -> _Search:
    spectra = yield np.array(list(product(*settings.ranges)))
    return int(target.scores(spectra).argmin()), []


def _cmaes(settings: CalibrationSettings, target: _Target) -> _Search:
    method = settings.method
    assert isinstance(method, CMAES)
    low, high = np.log(np.array(settings.ranges)).T
    # The package's own seed would be that of the whole process.
    draw = np.random.RandomState(stream(method.seed, "cmaes")).randn
    options = {"bounds": [0, 1], "popsize": method.population, "randn": draw, "seed": np.nan, "verbose": -9}
    # The package needs two dimensions at least: a single constant gets an idle one beside it.
    strategy = require("cma", "turbulence").CMAEvolutionStrategy(max(2, len(low)) * [0.5], 0.25, options)

    def constants(unit: Any) -> Numbers:
        values: Numbers = np.exp(low + np.atleast_2d(unit)[:, : len(low)] * (high - low))
        return values

    for _ in range(method.generations):
        asked = strategy.ask()
        spectra = yield constants(asked)
        strategy.tell(asked, target.scores(spectra).tolist())
        if strategy.stop():
            break
    yield constants(strategy.result.xfavorite)
    return -1, []


def _eki(settings: CalibrationSettings, target: _Target) -> _Search:
    method = settings.method
    assert isinstance(method, EKI)
    low, high = np.log(np.array(settings.ranges)).T
    generator = np.random.default_rng(stream(method.seed, "eki"))
    drawn = generator.standard_normal((method.members, len(low)))
    ensembles = [np.clip((low + high) / 2 + drawn * (high - low) / 4, low, high)]
    for _ in range(method.rounds):
        spectra = yield np.exp(ensembles[-1])
        with np.errstate(divide="ignore", invalid="ignore"):
            seen = np.log10(spectra.mean(1)[:, 1:-1])
        before = ensembles[-1]
        members = kalman_update(before, seen, target.log, target.variance, generator)
        # Clipped members would soon be equal at the bound, and equal members stay where they are.
        members = np.where(members > high, (before + high) / 2, members)
        ensembles.append(np.where(members < low, (before + low) / 2, members))
    yield np.exp(ensembles[-1].mean(0, keepdims=True))
    return -1, [np.exp(members) for members in ensembles]


_SEARCHES: dict[str, Callable[[CalibrationSettings, _Target], _Search]] = {
    "grid": _grid,
    "cmaes": _cmaes,
    "eki": _eki,
}


def kalman_update(
    members: Numbers, seen: Numbers, target: Numbers, variance: Numbers, generator: np.random.Generator
) -> Numbers:
    """One update of ensemble Kalman inversion with perturbed observations.

    x_j <- x_j + C_xg (C_gg + Gamma)^-1 (y + eta_j - g_j), eta_j ~ N(0, Gamma). A member whose g is not finite takes no
    part; it is drawn anew from the normal distribution of the updated others.

    Args:
        members: ``(J, p)`` x.
        seen: ``(J, K)`` g.
        target: ``(K,)`` y.
        variance: ``(K,)`` the diagonal of Gamma.
        generator: of eta and of what is drawn anew.

    Raises:
        InputError: fewer than two members are finite.
    """
    noise = generator.standard_normal(seen.shape) * np.sqrt(variance)
    anew = generator.standard_normal(members.shape)
    sound = np.isfinite(seen).all(1)
    if sound.sum() < 2:
        raise InputError(f"eki: {len(members) - sound.sum()} of {len(members)} members blew up; lower bounds or dt")
    x, g = members[sound], seen[sound]
    dx, dg = x - x.mean(0), g - g.mean(0)
    count = len(x) - 1
    gain = np.linalg.solve(dg.T @ dg / count + np.diag(variance), dg.T @ dx / count)
    updated = members.copy()
    updated[sound] = x + (target + noise[sound] - g) @ gain
    spread = updated[sound] - updated[sound].mean(0)
    values, vectors = np.linalg.eigh(spread.T @ spread / count)
    root = vectors * np.sqrt(values.clip(min=0))
    updated[~sound] = updated[sound].mean(0) + anew[~sound] @ root.T
    return updated


class _Rounds:
    """The rounds that have been simulated, on disk as well."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.file = Checkpoint(None if folder is None else folder / "rounds.safetensors")
        self.done: list[tuple[Numbers, Numbers]] = []
        self.held: list[tuple[Numbers, Numbers]] = []
        if (held := self.file.load()) is not None:
            sizes = held["sizes"].tolist()
            parts = (held[name].split(sizes) for name in ("points", "spectra"))
            self.held = [(p.numpy(), s.numpy()) for p, s in zip(*parts, strict=True)]

    @property
    def simulation(self) -> Path | None:
        """File of the round that is being simulated."""
        return None if self.folder is None else self.folder / f"round-{len(self.done)}.safetensors"

    def known(self, points: Numbers) -> Numbers | None:
        """The spectra of the next round's points from the disk, if they are there.

        Raises:
            InputError: the round on disk is another one.
        """
        if len(self.done) == len(self.held):
            return None
        asked, spectra = self.held[len(self.done)]
        if asked.shape != points.shape or not np.allclose(asked, points):
            raise InputError(f"{self.file.path}: belongs to another calibration; remove it to start anew")
        return spectra

    def add(self, points: Numbers, spectra: Numbers, *, save: bool) -> None:
        simulated = self.simulation
        self.done.append((points, spectra))
        if save:
            self.held = list(self.done)
            sizes = torch.tensor([len(p) for p, _ in self.done])
            arrays = [torch.from_numpy(np.concatenate(part)) for part in zip(*self.done, strict=True)]
            self.file.save({"sizes": sizes, "points": arrays[0], "spectra": arrays[1]})
        if simulated is not None:
            simulated.unlink(missing_ok=True)


def _outcome(search: _Search, answer: Callable[[Numbers], Numbers]) -> _Outcome:
    points = next(search)
    while True:
        spectra = answer(points)
        try:
            points = search.send(spectra)
        except StopIteration as end:
            found: _Outcome = end.value
            return found


def calibrate(
    scenario: Scenario,
    settings: CalibrationSettings,
    snapshots: NDArray[Any],
    *,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Find the constants of a closure whose time-mean enstrophy spectra fit the reference best.

    The error is the root mean square over k = 1..N/2-2 of log10(Z/Z_ref), in decades, of each start's time mean; the
    mean over the training starts is what counts. Snapshots of other roles than reference and training are not looked
    at.

    Args:
        scenario: flow, grid and the roles of the snapshots.
        settings: closure and method.
        snapshots: ``(S, N, N)`` resolved vorticity.
        device: where to compute.
        checkpoint: folder from which an interrupted calibration goes on, bit for bit.
        progress: told the share done and a message.

    Returns:
        Dims ``point`` (everything that was simulated, in its order), ``parameter``, ``start`` and ``k``: ``value``,
        ``round``, ``error`` (NaN where a copy blew up), ``Z`` (mean over time), ``Z_reference``, ``chosen``,
        ``chosen_error``, the number ``blown`` of copies that blew up; with EKI also the ``ensemble`` (update, member,
        parameter).

    Raises:
        InputError: snapshots that are missing, a time step too large, no constant that survives, or a checkpoint of
            another calibration.
        MissingExtra: CMA-ES without the package ``cma``.
    """
    target = _Target.of(scenario, snapshots)
    dtype = getattr(torch, scenario.grid.dtype)
    starts = truncated(numbered(snapshots, scenario.training), scenario.grid.n, dtype).to(device)
    rounds, total = _Rounds(checkpoint), settings.method.rounds_in_all

    def tell(share: float, message: str) -> None:
        if progress is not None:
            progress((len(rounds.done) + share) / total, f"round {len(rounds.done) + 1} of {total}, {message}")

    def answer(points: Numbers) -> Numbers:
        known = rounds.known(points)
        spectra = known if known is not None else _simulated(scenario, settings, points, starts, rounds, tell)
        rounds.add(points, spectra, save=known is None)
        return spectra

    best, ensembles = _outcome(_SEARCHES[settings.method.kind](settings, target), answer)
    found = _dataset(scenario, settings, target, rounds.done, ensembles)
    chosen = found.isel(point=best)
    if not np.isfinite(chosen["error"].values).all():
        lost = int(np.isnan(chosen["error"].values).sum())
        values = ", ".join(f"{value:.4g}" for value in chosen["value"].values)
        raise InputError(
            f"{settings.closure}: the best constants found, {values}, blew up from {lost} of {len(starts)} starts; "
            "allow others or take a smaller dt"
        )
    text = {"units": "decades", "long_name": "error of the chosen constants"}
    error = ("start", chosen["error"].values, text)
    return found.assign(chosen=("parameter", chosen["value"].values, {"units": "1"}), chosen_error=error)


def _simulated(
    scenario: Scenario,
    settings: CalibrationSettings,
    points: Numbers,
    starts: Tensor,
    rounds: _Rounds,
    progress: Progress,
) -> Numbers:
    """Time-mean spectra ``(P, S, K)`` of all points from all starts, one batch."""
    # One row for each copy: all starts of the first point, then those of the second.
    rows = torch.from_numpy(points).to(starts.device, starts.dtype).repeat_interleave(len(starts), 0)
    solver = scenario.grid.solver(scenario.flow, settings.built(rows), device=starts.device)
    found = simulate(
        solver,
        starts.repeat(len(points), 1, 1),
        settings.sampling,
        float(starts.std()),
        checkpoint=rounds.simulation,
        progress=progress,
    )
    series = found["Z"].values[:, found["time"].values > settings.discard].astype(np.float64)
    with np.errstate(invalid="ignore"):
        spectra: Numbers = series.mean((1, 2)).reshape(len(points), len(starts), -1)
    return spectra


def _dataset(
    scenario: Scenario,
    settings: CalibrationSettings,
    target: _Target,
    rounds: list[tuple[Numbers, Numbers]],
    ensembles: list[Numbers],
) -> xr.Dataset:
    points, spectra = (np.concatenate(part) for part in zip(*rounds, strict=True))
    error = target.errors(spectra)
    known = PARAMETERS[settings.closure]
    data: dict[str, Any] = {
        "value": (("point", "parameter"), points, {"units": "1", "long_name": "constants that were simulated"}),
        "round": ("point", np.repeat(np.arange(len(rounds)), [len(p) for p, _ in rounds])),
        "error": (("point", "start"), error, {"units": "decades", "long_name": "rms of log10(Z/Z_ref)"}),
        "Z": (("point", "start", "k"), spectra, {"units": "1", "long_name": "time-mean enstrophy spectrum"}),
        "Z_reference": ("k", target.spectrum, {"units": "1", "long_name": "enstrophy spectrum of the reference"}),
        "blown": ((), int(np.isnan(error).sum()), {"long_name": "copies that blew up"}),
    }
    if ensembles:
        text = {"units": "1", "long_name": "members after each update"}
        data["ensemble"] = (("update", "member", "parameter"), np.stack(ensembles), text)
    coords: dict[str, Any] = {
        "parameter": [p.option for p in known],
        "symbol": ("parameter", [p.symbol for p in known]),
        "start": list(scenario.training),
        "k": np.arange(len(target.spectrum)),
    }
    attrs = {
        "closure": settings.closure,
        "method": settings.method.kind,
        "band": scenario.band,
        "n": scenario.grid.n,
        "delta": 2 * np.pi / scenario.grid.n,
        "delta_convention": "2 pi / N",
    }
    return xr.Dataset(data, coords, attrs)


def calibrated_closure(data: xr.Dataset) -> Closure:
    """The closure with the constants that ``calibrate`` chose."""
    options = dict(zip(data["parameter"].values.tolist(), data["chosen"].values.tolist(), strict=True))
    return closure(data.attrs["closure"], **options)


class Calibration(Run):
    """The constants of a closure, chosen on the training starts of a scenario."""

    scenario: Scenario
    """Flow, grid and the roles of the snapshots."""
    settings: CalibrationSettings = CalibrationSettings()
    """What is calibrated, and how."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.scenario.flow.title} calibrate {self.settings.closure} ({self.settings.method.kind})"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """What ``calibrate`` finds."""
        return calibrate(
            self.scenario,
            self.settings,
            snapshots_of(self.scenario).load(context),
            device=context.device,
            checkpoint=context.checkpoint,
            progress=context.progress,
        )


def print_calibration(data: xr.Dataset, console: Console | None = None) -> None:
    """Print the constants that were tried with their errors, the chosen ones last.

    Of many, only the best of each round is shown.
    """
    console = console or Console(highlight=False)
    mean = data["error"].mean("start", skipna=False).values
    rows = np.arange(len(mean))
    if len(rows) > SHOWN:
        score = np.nan_to_num(mean, nan=PENALTY)
        rounds = [np.flatnonzero(data["round"].values == r) for r in np.unique(data["round"].values)]
        rows = np.array([inside[score[inside].argmin()] for inside in rounds])
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("round", justify="right")
    for symbol in data["symbol"].values:
        table.add_column(escape(str(symbol)), justify="right")
    table.add_column("error (decades)", justify="right", no_wrap=True)
    for row in rows:
        point = data.isel(point=row)
        table.add_row(str(int(point["round"]) + 1), *_cells(point["value"].values, point["error"].values))
    table.add_row("chosen", *_cells(data["chosen"].values, data["chosen_error"].values), style="bold")
    console.print(f"{escape(data.attrs['closure'])}, {data.attrs['method']}", style="bold")
    console.print(table)
    shown = f"best of each round, {len(mean)} constants in all; " if len(rows) < len(mean) else ""
    blown = f"; {int(data['blown'])} copies blew up" if int(data["blown"]) else ""
    note = f"{shown}mean [95 % interval] over {data.sizes['start']} starts; D = {data.attrs['delta_convention']}{blown}"
    console.print(escape(note), style="dim")
    if data.attrs["method"] == "grid" and (edge := _at_the_edge(data)):
        console.print(escape(f"{', '.join(edge)}: at the edge of the grid; a wider one may hold a better value"))


def _at_the_edge(data: xr.Dataset) -> list[str]:
    """Symbols of the constants whose chosen value is the smallest or the largest of several tried."""
    low, high = data["value"].min("point"), data["value"].max("point")
    edge = (low < high) & ((data["chosen"] == low) | (data["chosen"] == high))
    return [str(symbol) for symbol in data["symbol"].values[edge.values]]


def _cells(values: Numbers, errors: Numbers) -> list[str]:
    lost = int(np.isnan(errors).sum())
    constants = [number(float(value)) for value in values]
    if lost:
        return [*constants, f"blew up from {lost} of {len(errors)}"]
    found = t_interval(errors)
    return [*constants, escape(estimate(found.mean, found.low, found.high))]

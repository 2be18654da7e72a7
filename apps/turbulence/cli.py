"""The verbs of ``szilard turbulence``."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
import typer
import xarray as xr
from pydantic import model_validator
from rich.console import Console
from rich.progress import Progress

from apps.turbulence.learning import StoredPolicy, Training, load_policy
from apps.turbulence.learning import train as train_policy
from apps.turbulence.runs import ClosureSettings, SamplingSettings
from apps.turbulence.scenario import DirectSimulation, FlowSettings, Scenario
from apps.turbulence.snapshots import given, numbered, simulate_directly, truncated, write_snapshots
from apps.turbulence.study import Arm, TurbulenceStudy, evaluation_of
from core import files
from core.errors import InputError
from core.rl import TrainingDiverged
from core.study import Config, StudyError, add_study_commands
from core.study.commands import Device, DeviceOption, Engine, SeedOption, Set
from core.study.loading import from_options
from core.study.runner import resolve_device
from core.study.terminal import print_summary
from simulators.turbulence.closures import CLOSURES
from simulators.turbulence.diagnostics import snapshot_spectra, snapshots_needed

app = typer.Typer(no_args_is_help=True, help="Closures of two-dimensional turbulence: classical, tuned and learned.")
add_study_commands(app, TurbulenceStudy)


class CaseOption(StrEnum):
    """A flow."""

    case1 = "case1"
    case2 = "case2"
    case4 = "case4"
    kolmogorov4 = "kolmogorov4"


class Method(StrEnum):
    """How constants are calibrated."""

    grid = "grid"
    cmaes = "cmaes"
    eki = "eki"


ClosuresOption = Annotated[
    list[str] | None,
    typer.Option(
        "--closure",
        metavar="NAME[:VALUE]",
        help="none, smag, leith, smag_local, leith_local, dsmag, dleith, dsmag_tensor, gm2, gm4 or backscatter, with "
        "its constant or a dynamic model's clip, such as leith:0.19 or dleith:mean_then_clip; may be repeated.",
    ),
]
DurationOption = Annotated[float, typer.Option(help="Time units of a simulation.", min=1e-3)]
EveryOption = Annotated[
    float, typer.Option(help="Time units between two samples; with agents, a multiple of the time of an action.")
]
DiscardOption = Annotated[float, typer.Option(help="Time units left out of the statistics at the beginning.", min=0)]
SnapshotsOption = Annotated[
    str | None,
    typer.Option(
        help="Resolved snapshots: the folder of dns, NetCDF, Zarr or a folder of MATLAB files; numbers 1-10 are the "
        "reference, 11-15 training, 16-20 evaluation unless --set reference=[1,2,3] ... says otherwise.  "
        "\\[default: shipped]"
    ),
]
EngineOption = Annotated[Engine, typer.Option(help="Processes of this machine, or a Ray cluster.")]
FreshOption = Annotated[bool, typer.Option("--resume/--fresh", help="Keep finished runs, or start anew.")]
PolicyOption = Annotated[list[Path], typer.Option("--policy", help="Folder that train has written; may be repeated.")]


class Simulation(Config):
    """What ``dns`` simulates."""

    flow: FlowSettings
    """The flow."""
    source: DirectSimulation
    """How."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.source.grid.solver(self.flow)
        return self


def _closure(text: str) -> ClosureSettings:
    """The closure that ``name[:value]`` means."""
    name, _, value = text.partition(":")
    values: dict[str, Any] = {"name": text.replace(":", "_"), "closure": name}
    if value:
        try:
            values["constants"] = [float(value)]
        except ValueError:
            if name in CLOSURES and "clip" not in inspect.signature(CLOSURES[name]).parameters:
                raise InputError(f"--closure {text}: {value!r} must be a number, the constant") from None
            values["clip"] = value
    return from_options(ClosureSettings, values, f"--closure {text}")


def _scenario_values(snapshots: str | None) -> dict[str, Any]:
    if snapshots is None:
        return {}
    folder = Path(snapshots) / "snapshots.nc"
    return {"snapshots": {"kind": "files", "data": str(folder) if folder.is_file() else snapshots}}


def _simulate(
    name: str,
    closures: Sequence[ClosureSettings],
    arms: Sequence[Arm],
    scenario: dict[str, Any],
    sampling: dict[str, float],
    overrides: list[str] | None,
    **options: Any,
) -> None:
    """Simulate closures and policies as a study without claims."""
    chosen = from_options(Scenario, scenario, name, overrides or ())
    _check_starts(chosen)
    study = evaluation_of(
        closures, arms, chosen, name=name, sampling=from_options(SamplingSettings, dict(sampling), name)
    )
    print_summary(study.run(**options), TurbulenceStudy.headline)


@app.command()
def dns(
    out: Annotated[Path, typer.Option(help="Folder of the snapshots.")],
    case: Annotated[CaseOption, typer.Option(help="The flow.")] = CaseOption.kolmogorov4,
    n: Annotated[int, typer.Option(help="Points on each side.", min=8)] = 256,
    dt: Annotated[float, typer.Option(help="Time step.")] = 2.5e-3,
    spin_up: Annotated[float, typer.Option(help="Time before the first snapshot.", min=0)] = 50.0,
    spacing: Annotated[float, typer.Option(help="Time between snapshots.")] = 5.0,
    count: Annotated[int, typer.Option(help="Snapshots.", min=2)] = 20,
    seed: SeedOption = 0,
    overrides: Set = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Simulate a flow directly and keep snapshots; the same command goes on with a simulation that was stopped.

    --set changes the flow or the simulation, such as --set flow.reynolds=5000 or --set source.backend=jax_cfd.

    Example: szilard turbulence dns --case case1 --n 256 --out runs/case1
    """
    values = {
        "flow": {"case": str(case)},
        "source": {
            "grid": {"n": n, "dt": dt, "integrator": "rk4cn"},
            "keep": min(n, 256),
            "spin_up": spin_up,
            "spacing": spacing,
            "count": count,
            "seed": seed,
        },
    }
    simulation = from_options(Simulation, values, "dns", overrides or ())
    flow, source = simulation.flow, simulation.source
    target = resolve_device(device, torch.cuda.is_available())
    _keep_record(out / "simulation.json", simulation.model_dump(), "--out")
    with Progress(transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task("simulating", total=1.0)
        omega = simulate_directly(
            flow,
            source,
            device=target,
            checkpoint=out / "state.safetensors",
            progress=lambda share, text: bar.update(task, completed=share, description=f"simulating {text}"),
        )
    times = source.spin_up + source.spacing * np.arange(source.count)
    title = f"{flow.title}, direct simulation on {source.grid.n}"
    write_snapshots(out / "snapshots.nc", omega, title, flow, times)
    (out / "state.safetensors").unlink(missing_ok=True)
    _print_snapshots(omega)
    print(out / "snapshots.nc")


def _print_snapshots(omega: np.ndarray) -> None:
    sigma = omega.std((-2, -1))
    print(f"{len(omega)} snapshots; sigma of the vorticity {omega.std():.3f} ({sigma.min():.3f} to {sigma.max():.3f})")
    spectra = snapshot_spectra(torch.from_numpy(omega.astype(np.float64)), min(64, omega.shape[-1]))
    found = snapshots_needed(spectra, target=0.03)
    print(f"for a reference spectrum known to 0.03 decades: {int(found['needed'])} snapshots")


def _check_starts(scenario: Scenario) -> None:
    """Refuse, before a study begins, snapshots that it cannot start from."""
    omega = _snapshots_of(scenario)
    numbered(omega, scenario.reference + scenario.training)
    solver = scenario.grid.solver(scenario.flow)
    starts = truncated(numbered(omega, scenario.evaluation), scenario.grid.n, solver.grid.dtype)
    solver.check_cfl(solver.start(starts), warn=False)


def _difference(held: Any, asked: Any, name: str = "") -> str:
    """The first setting that differs, with both values."""
    if isinstance(held, dict) and isinstance(asked, dict) and held.keys() == asked.keys():
        key = next(key for key in asked if held[key] != asked[key])
        return _difference(held[key], asked[key], f"{name}.{key}" if name else key)
    return f"other settings: {name} = {json.dumps(held)}, now {json.dumps(asked)}"


def _keep_record(path: Path, asked: dict[str, Any], option: str) -> None:
    """Refuse to go on with work that was asked for differently; otherwise write down what is asked for."""
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{option} {folder}: is a file, not a folder")
    asked = json.loads(json.dumps(asked))
    if path.exists() and (held := files.read_json(path)) != asked:
        raise InputError(f"{folder}: holds work with {_difference(held, asked)}: choose another {option}")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(path, asked)


@app.command()
def les(
    closure: ClosuresOption = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/les"),
    snapshots: SnapshotsOption = None,
    duration: DurationOption = 70.0,
    discard: DiscardOption = 10.0,
    every: EveryOption = 0.25,
    overrides: Set = None,
    device: DeviceOption = Device.auto,
    engine: EngineOption = Engine.local,
    resume: FreshOption = True,
) -> None:
    """Large-eddy simulations with closures of the literature, against the statistics of resolved snapshots.

    --set changes the scenario, such as --set grid.n=64 or --set flow.case=case1 (which needs snapshots of that flow).

    Example: szilard turbulence les --closure none --closure leith:0.19 --closure dleith:mean_then_clip
    """
    chosen = [_closure(text) for text in closure or ["none", "leith:0.17"]]
    options = {"out": out, "device": device, "engine": engine, "fresh": not resume}
    sampling = {"duration": duration, "discard": discard, "every": every}
    _simulate("les", chosen, (), _scenario_values(snapshots), sampling, overrides, **options)


@app.command()
def calibrate(
    closure: Annotated[str, typer.Option(help="leith, smag, leith_local, smag_local or backscatter.")] = "leith",
    method: Annotated[Method, typer.Option(help="Grid, CMA-ES or ensemble Kalman inversion.")] = Method.grid,
    out: Annotated[Path | None, typer.Option(help="NetCDF file to write; its checkpoint stands beside it.")] = None,
    snapshots: SnapshotsOption = None,
    duration: DurationOption = 70.0,
    discard: DiscardOption = 10.0,
    overrides: Set = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Calibrate the constants of a closure against the spectrum of a few snapshots, on the training starts.

    --set changes the scenario or, after "calibration.", the method: --set calibration.method.members=32.

    Example: szilard turbulence calibrate --closure leith --method eki --out runs/leith.nc
    """
    from apps.turbulence.calibration import CalibrationSettings, print_calibration
    from apps.turbulence.calibration import calibrate as calibrate_constants

    if out is not None and (out.suffix != ".nc" or out.is_dir()):
        raise InputError(f"--out {out}: must be a file that ends in .nc")
    prefix = "calibration."
    own = [text.removeprefix(prefix) for text in overrides or () if text.startswith(prefix)]
    others = [text for text in overrides or () if not text.startswith(prefix)]
    scenario = from_options(Scenario, _scenario_values(snapshots), "calibrate", others)
    values = {"closure": closure, "method": {"kind": str(method)}, "duration": duration, "discard": discard}
    settings = from_options(CalibrationSettings, values, "calibrate", own)
    omega = _snapshots_of(scenario)
    target = resolve_device(device, torch.cuda.is_available())
    checkpoint = None if out is None else out.with_suffix(".checkpoint")
    if checkpoint is not None:
        asked = {"scenario": scenario.model_dump(mode="json"), "calibration": settings.model_dump(mode="json")}
        _keep_record(checkpoint / "calibration.json", asked, "--out, or remove it")
    with Progress(transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task("calibrating", total=1.0)
        found = calibrate_constants(
            scenario,
            settings,
            omega,
            device=target,
            checkpoint=checkpoint,
            progress=lambda share, text: bar.update(task, completed=share, description=f"calibrating {text}"),
        )
    print_calibration(found)
    if out is not None and checkpoint is not None:
        _write(out, found)
        shutil.rmtree(checkpoint)


def _snapshots_of(scenario: Scenario) -> np.ndarray:
    """Snapshots that exist; a direct simulation is for the verb ``dns``."""
    source = scenario.snapshots
    if isinstance(source, DirectSimulation):
        raise InputError("snapshots: szilard turbulence dns makes them first; then give --snapshots DIR/snapshots.nc")
    return given(scenario.flow, source)


def _write(path: Path, data: xr.Dataset) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, lambda temporary: data.to_netcdf(temporary, engine="h5netcdf"))
    print(path)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the policy.")],
    snapshots: SnapshotsOption = None,
    overrides: Set = None,
    device: DeviceOption = Device.cpu,
    seed: SeedOption = 0,
) -> None:
    """Train agents on the grid; the same command goes on with a training that was stopped.

    --set changes scenario, agents or learner: --set scenario.grid.n=64, --set learner.kind=vracer (or gradient).

    Example: szilard turbulence train --out runs/policy --set learner.iterations=40
    """
    values = {"scenario": _scenario_values(snapshots), "learner": {"kind": "ppo"}, "seed": seed}
    training = from_options(Training, values, "train", overrides or ())
    omega = _snapshots_of(training.scenario)
    world = training.agents.world(training.scenario, omega, resolve_device(device, torch.cuda.is_available()))
    _keep_record(out / "training.json", training.model_dump(mode="json"), "--out")
    with Progress(transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=1.0)
        try:
            model = train_policy(
                world,
                training.learner,
                seed=seed,
                checkpoint=out / "state.safetensors",
                curve=out / "curve.jsonl",
                progress=lambda share, text: bar.update(task, completed=share, description=f"training {text}"),
            )
        except TrainingDiverged as error:
            raise StudyError(f"{error} in {out / 'state.safetensors'}") from error
    model.save(out / "policy")
    print(out / "policy.safetensors")


@app.command()
def evaluate(
    policy: PolicyOption,
    closure: ClosuresOption = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/evaluate"),
    snapshots: SnapshotsOption = None,
    duration: DurationOption = 70.0,
    discard: DiscardOption = 10.0,
    every: EveryOption = 0.25,
    overrides: Set = None,
    device: DeviceOption = Device.auto,
    engine: EngineOption = Engine.local,
    resume: FreshOption = True,
) -> None:
    """Simulate trained policies, several of which count as trainings of one method, beside closures.

    --set changes the scenario, which need not be the one of the training.

    Example: szilard turbulence evaluate --policy runs/policy --closure none --closure leith:0.19
    """
    stored = tuple(StoredPolicy.of(folder) for folder in policy)
    first = stored[0].training
    scenario = first.scenario.model_dump() | _scenario_values(snapshots)
    label = re.sub(r"[^A-Za-z0-9_.-]", "_", policy[0].resolve().name) if len(policy) == 1 else "policies"
    arm = Arm(name=label, agents=first.agents, learner=first.learner, stored=stored)
    chosen = [_closure(text) for text in closure or ["none"]]
    options = {"out": out, "device": device, "engine": engine, "fresh": not resume}
    sampling = {"duration": duration, "discard": discard, "every": every}
    _simulate("evaluate", chosen, (arm,), scenario, sampling, overrides, **options)


@app.command()
def transfer(
    config: Annotated[str, typer.Argument(help="A YAML file with several scenarios, or a packaged study.")],
    train_on: Annotated[
        list[str] | None,
        typer.Option(help="Scenario whose agents move; may recur.  \\[default: all with agents]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results.  \\[default: runs/<study>]")] = None,
    overrides: Set = None,
    device: DeviceOption = Device.auto,
    engine: EngineOption = Engine.local,
    resume: FreshOption = True,
) -> None:
    """Train in some flows and simulate the policies in all: the matrix of errors.

    Example: szilard turbulence transfer configs/turbulence/transfer.yaml --train-on kolmogorov4
    """
    study = TurbulenceStudy.load(config, overrides or ())
    sources = tuple(train_on or study.transfer or [s.name for s in study.scenarios if s.arms])
    study = from_options(TurbulenceStudy, study.model_dump() | {"transfer": sources}, f"transfer {config}")
    print_summary(study.run(out, device=device, engine=engine, fresh=not resume), TurbulenceStudy.headline)


@app.command()
def export(
    policy: Annotated[Path, typer.Option(help="Folder that train has written.")],
    out: Annotated[Path, typer.Option(help="Folder of the exported closure.")],
    explain: Annotated[bool, typer.Option(help="Also say what the policy depends on, and fit a formula.")] = False,
) -> None:
    """Export a trained policy as one NumPy function for other codes, and as ONNX where that package is installed.

    Example: szilard turbulence export --policy runs/policy --out runs/closure --explain
    """
    from apps.turbulence.export import export_policy
    from apps.turbulence.interpretation import interpret

    stored = StoredPolicy.of(policy)
    training = stored.training
    omega = _snapshots_of(training.scenario)
    world = training.agents.world(training.scenario, omega)
    closure = load_policy(policy / "policy", world, training.learner.kind)
    written = export_policy(closure, out)
    for path in (written.module, written.weights, written.network):
        if path is not None:
            print(path)
    print(written.note)
    if explain:
        fields = truncated(numbered(omega, training.scenario.evaluation), training.scenario.grid.n, torch.float32)
        found = interpret(closure, fields)
        print(f"share of points with c < 0: {100 * float(found['backscatter_points']):.1f} %")
        for name, value in sorted(zip(found["group"].values, found["group_importance"].values, strict=True)):
            print(f"importance of the {name}: {value:.2f}")
        print(f"formula (cross-validated R^2 {float(found['r2']):.2f}): {found.attrs['formula']}")
        _write(out / "interpretation.nc", found)

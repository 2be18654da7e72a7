"""The verbs of ``szilard fishery``."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import xarray as xr
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from apps.fishery import figures
from apps.fishery.dynamic_programming import solve as solve_exactly
from apps.fishery.evaluation import evaluate as evaluate_policy
from apps.fishery.evaluation import tidy
from apps.fishery.learning import PPOSettings, load_policy
from apps.fishery.learning import train as train_policy
from apps.fishery.policies import ConstantEscapement, ConstantMortality, PrecautionaryRamp
from apps.fishery.study import FisheryStudy
from apps.fishery.surplus_production import SurplusProductionFit, fit_surplus_production
from apps.fishery.surplus_production_figure import plot_fit
from apps.fishery.tuning import RULES, tuned_rule
from apps.fishery.tuning import tune as tune_rule
from core import files
from core.errors import InputError
from core.rl import TrainingDiverged
from core.simulation import Policy
from core.stats import mean_interval, proportion_interval
from core.study import StudyError, add_study_commands
from core.study.commands import Device, SeedOption
from core.study.loading import load_values
from core.study.numbers import estimate
from core.study.provenance import provenance
from core.study.runner import resolve_device
from simulators.fishery import YEARS, Fishery, fixed_points, model, stock_world
from simulators.fishery.stocks import read_stock

app = typer.Typer(no_args_is_help=True, help="Harvest rules, learned policies and exact solutions for a fishery.")
add_study_commands(app, FisheryStudy)


class Rule(StrEnum):
    """A harvest rule."""

    unharvested = "unharvested"
    constant_mortality = "constant_mortality"
    constant_escapement = "constant_escapement"
    precautionary_ramp = "precautionary_ramp"


ModelOption = Annotated[int | None, typer.Option("--model", help="Model of the paper, 1 to 4.")]
StockOption = Annotated[str | None, typer.Option("--stock", help="A shipped stock or a CSV file, fitted first.")]
VariantOption = Annotated[str | None, typer.Option("--variant", help="Drift or forcing of the three-species model.")]
SigmaOption = Annotated[float | None, typer.Option("--sigma", help="Process noise (standard deviation).")]
ParameterOption = Annotated[
    list[str] | None, typer.Option("--parameter", metavar="NAME=VALUE", help="Biological parameter; may be repeated.")
]
ReplicatesOption = Annotated[int, typer.Option(help="Episodes.", min=2, max=1_000_000)]
YearsOption = Annotated[int, typer.Option(help="Years of an episode.", min=1, max=100_000)]
ValuesOption = Annotated[
    str | None,
    typer.Option(help="The rule's numbers: M or S a species; for the ramp x1,x2 and y2 a species. Example: 0.28,0.25"),
]
OutOption = Annotated[Path | None, typer.Option(help="NetCDF file to write.")]


def _world(
    number: int | None,
    stock: str | None,
    variant: str | None = None,
    sigma: float | None = None,
    parameters: list[str] | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Fishery, float, str]:
    """The world, and the factor and unit that turn its harvest into the data's."""
    if (number is None) == (stock is None):
        raise InputError("give either --model (1 to 4) or --stock")
    if stock is None:
        values = {}
        for text in parameters or ():
            name, _, value = text.partition("=")
            try:
                values[name] = float(value)
            except ValueError:
                raise InputError(f"--parameter {text}: must read NAME=NUMBER, such as r_x=0.9") from None
        world = model(number or 0, variant=variant, parameters=values, sigma=sigma, dtype=dtype)
        return world, 1.0, "K"
    if variant or parameters:
        raise InputError("--variant and --parameter belong to --model, not to --stock")
    fit = fit_surplus_production(read_stock(stock), intervals="none")
    if not fit.identified:
        raise InputError(f"--stock {stock}: not identified: {', '.join(fit.at_bound)} at a bound")
    noise = 0.05 if sigma is None else sigma
    return stock_world(fit.r, fit.biomass_next / fit.K, 1.0, noise, dtype=dtype), fit.K, fit.stock.catch_unit


def _rule(rule: Rule, values: str | None, world: Fishery) -> Policy:
    """The rule with the numbers given on the command line."""
    k = world.harvested
    if rule is Rule.unharvested:
        return ConstantMortality([0.0] * k)
    try:
        numbers = [float(v) for v in (values or "").split(",")]
    except ValueError:
        raise InputError(f"--values {values}: must be numbers separated by commas, such as 0.28,0.25") from None
    needed = k + 2 if rule is Rule.precautionary_ramp else k
    if len(numbers) != needed:
        raise InputError(f"--values {values}: {rule} takes {needed} numbers in this world, {len(numbers)} given")
    if rule is Rule.constant_mortality:
        return ConstantMortality(numbers)
    if rule is Rule.constant_escapement:
        return ConstantEscapement(numbers)
    return PrecautionaryRamp(numbers[0], numbers[1], numbers[2:])


def _check_file(path: Path | None, *suffixes: str) -> None:
    """Refuse, before anything is computed, a file that could not be written."""
    if path is None:
        return
    if path.suffix not in suffixes:
        raise InputError(f"--out {path}: must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise InputError(f"--out {path}: is a folder")
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: the folder {path.parent} does not exist")


def _check_folder(path: Path | None) -> None:
    """Refuse, before anything is computed, a folder that could not be made."""
    if path is not None and path.exists() and not path.is_dir():
        raise InputError(f"--out {path}: is a file, not a folder")


def _write(path: Path | None, data: xr.Dataset) -> None:
    """Write NetCDF and, beside it, the CSV of a roll-out."""
    if path is None:
        return
    data = data.assign_attrs(command=" ".join(sys.argv[1:]), **provenance(torch.device("cpu")))
    files.write(path, lambda temporary: data.to_netcdf(temporary, engine="h5netcdf"))
    print(path)
    if "population" in data and "time" in data["population"].dims:
        files.write(path.with_suffix(".csv"), lambda temporary: tidy(data).to_csv(temporary, index=False))
        print(path.with_suffix(".csv"))


def _print(data: xr.Dataset, factor: float, unit: str, years: int) -> None:
    """Print the measures of an evaluation with their intervals."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("metric", "mean [95 % interval]", "unit"):
        table.add_column(column, justify="right" if column.startswith("mean") else "left")
    n = data.sizes["rep"]
    for name, metric, scale, units in (
        ("return", "return", 1.0, "K"),
        ("return without the last step", "return_paper", 1.0, "K"),
        ("mean annual catch", "annual_catch", factor, f"{unit}/year"),
    ):
        i = mean_interval(data[metric])
        table.add_row(name, estimate(scale * i.mean, scale * i.low, scale * i.high), units)
    for name, metric in (("no extinction", "survived"), (f"reached year {years}", "frac_full")):
        i = proportion_interval(int(data[metric].sum()), n)
        table.add_row(name, estimate(100 * i.mean, 100 * i.low, 100 * i.high), "%")
    Console(highlight=False).print(table)
    print(f"n = {n} episodes")


@app.command()
def simulate(
    model: ModelOption = None,
    stock: StockOption = None,
    rule: Annotated[Rule, typer.Option(help="Harvest rule.")] = Rule.unharvested,
    values: ValuesOption = None,
    variant: VariantOption = None,
    sigma: SigmaOption = None,
    parameter: ParameterOption = None,
    replicates: ReplicatesOption = 100,
    years: YearsOption = YEARS,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Simulate a rule and write every year of every episode.

    Example: szilard fishery simulate --model 3 --rule constant_mortality --values 0.28,0.25 --out runs/sim.nc
    """
    _check_file(out, ".nc")
    world, factor, unit = _world(model, stock, variant, sigma, parameter)
    data = evaluate_policy(world, _rule(rule, values, world), replicates=replicates, horizon=years, seed=seed)
    _print(data, factor, unit, years)
    _write(out, data.assign_attrs(rule=str(rule), values=values or ""))


@app.command()
def tune(
    rule: Annotated[str, typer.Argument(help=", ".join(RULES))],
    model: ModelOption = None,
    stock: StockOption = None,
    variant: VariantOption = None,
    sigma: SigmaOption = None,
    parameter: ParameterOption = None,
    replicates: Annotated[int, typer.Option(help="Episodes a grid point.", min=1, max=100_000)] = 100,
    points: Annotated[
        int | None, typer.Option(help="Points on each axis.  \\[default: the paper's]", min=2, max=1001)
    ] = None,
    fresh: Annotated[int, typer.Option(help="Fresh episodes for the tuned rule.", min=2, max=1_000_000)] = 2000,
    years: YearsOption = YEARS,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Tune a rule by grid search, then measure it on fresh episodes.

    Example: szilard fishery tune constant_escapement --model 3
    """
    _check_file(out, ".nc")
    world, factor, unit = _world(model, stock, variant, sigma, parameter)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"tuning {rule}", total=1.0)
        tuned = tune_rule(
            world.to(torch.float32),
            rule,
            replicates=replicates,
            points=points,
            seed=seed,
            horizon=years,
            progress=lambda share: bar.update(task, completed=share),
        )
    print(", ".join(f"{n} = {float(tuned[n]):.4g}" for n in tuned.data_vars if tuned[n].ndim == 0))
    print(f"in sample: mean return {tuned.attrs['in_sample']:.4g} over the {replicates} episodes that chose it; fresh:")
    data = evaluate_policy(world, tuned_rule(tuned), replicates=fresh, horizon=years, seed=seed)
    _print(data, factor, unit, years)
    _write(out, tuned)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the policy.")],
    model: ModelOption = None,
    stock: StockOption = None,
    variant: VariantOption = None,
    sigma: SigmaOption = None,
    parameter: ParameterOption = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting of PPO; may be repeated.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where tensors live; auto takes a GPU if there is one.")] = Device.cpu,
    seed: SeedOption = 0,
) -> None:
    """Train PPO; the same command goes on with a training that was stopped.

    Example: szilard fishery train --model 3 --out runs/policy --set timesteps=200000
    """
    _check_folder(out)
    world, _, _ = _world(model, stock, variant, sigma, parameter)
    settings = load_values(PPOSettings, overrides or ())
    target = resolve_device(device, torch.cuda.is_available())
    asked = {"world": repr(world), "seed": seed, "settings": settings.model_dump(mode="json")}
    out.mkdir(parents=True, exist_ok=True)
    _same_training(out / "training.json", asked)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training", total=1.0)

        def report(share: float, message: str) -> None:
            bar.update(task, completed=share, description=f"training {message}")

        try:
            trained = train_policy(
                world,
                settings,
                seed=seed,
                device=target,
                checkpoint=out / "state.safetensors",
                curve=out / "curve.jsonl",
                progress=report,
            )
        except TrainingDiverged as error:
            raise StudyError(f"{error} in {out / 'state.safetensors'}") from error
    trained.save(out / "policy")
    print(out / "policy.safetensors")


RECORD = ("world", "seed", "settings")


def _same_training(path: Path, asked: dict[str, Any]) -> None:
    """Refuse to go on with a training that was asked for differently."""
    if path.exists() and files.read_json(path, RECORD) != asked:
        raise InputError(f"{path.parent}: holds a training with another world, seed or settings: choose another --out")
    files.write_json(path, asked)


def _trained(folder: Path, world: Fishery, sampled: bool) -> Policy:
    """The policy that ``train`` left in a folder; a word on stderr if it was trained in another world."""
    if not (folder / "policy.safetensors").exists():
        raise InputError(f"--policy {folder}: holds no trained policy; szilard fishery train writes one")
    record = files.read_json(folder / "training.json", RECORD)
    settings = load_values(PPOSettings, [f"{key}={json.dumps(value)}" for key, value in record["settings"].items()])
    if record["world"] != repr(world):
        print("note: the policy was trained in another world than the one it is evaluated in", file=sys.stderr)
    return load_policy(folder / "policy", world, settings, deterministic=not sampled)


@app.command()
def evaluate(
    model: ModelOption = None,
    stock: StockOption = None,
    rule: Annotated[Rule | None, typer.Option(help="Harvest rule; or give --policy.")] = None,
    values: ValuesOption = None,
    policy: Annotated[Path | None, typer.Option(help="Folder that train has written.")] = None,
    sampled: Annotated[bool, typer.Option(help="Sample the policy's actions.")] = False,
    variant: VariantOption = None,
    sigma: SigmaOption = None,
    parameter: ParameterOption = None,
    replicates: ReplicatesOption = 2000,
    years: YearsOption = YEARS,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Measure a rule or a trained policy on fresh episodes.

    Example: szilard fishery evaluate --model 3 --policy runs/policy
    """
    _check_file(out, ".nc")
    world, factor, unit = _world(model, stock, variant, sigma, parameter)
    if (rule is None) == (policy is None):
        raise InputError("give either --rule or --policy")
    if policy is not None:
        chosen = _trained(policy, world, sampled)
    else:
        chosen = _rule(rule or Rule.unharvested, values, world)
    data = evaluate_policy(world, chosen, replicates=replicates, horizon=years, seed=seed)
    _print(data, factor, unit, years)
    _write(out, data)


class Mode(StrEnum):
    """Which exact solution."""

    finite = "finite"
    stationary = "stationary"
    discounted = "discounted"


@app.command()
def solve(
    model: ModelOption = None,
    stock: StockOption = None,
    mode: Annotated[Mode, typer.Option(help="Time-aware, the rule of mid-horizon, or discounted.")] = Mode.finite,
    nodes: Annotated[int, typer.Option(help="Points of the population grid.")] = 801,
    quadrature: Annotated[int, typer.Option(help="Nodes of the noise.")] = 9,
    gamma: Annotated[float, typer.Option(help="Discount of the mode discounted.")] = 0.99,
    sigma: SigmaOption = None,
    parameter: ParameterOption = None,
    replicates: ReplicatesOption = 2000,
    years: YearsOption = YEARS,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Solve a one-species fishery by dynamic programming.

    Example: szilard fishery solve --model 1 --mode stationary
    """
    _check_file(out, ".nc")
    world, factor, unit = _world(model, stock, None, sigma, parameter)
    grid = {"nodes": nodes, "quadrature": quadrature, "horizon": years, "gamma": gamma}
    solution = solve_exactly(world, mode=mode.value, **grid)  # type: ignore[arg-type]
    start = world.initial[0]
    if mode is Mode.finite:
        print(f"expected return from N = {start:.4g} K: {solution.value_at(start):.4f} K")
    print(
        f"escapement of the {'first year' if mode is Mode.finite else 'rule'}: {solution.constant_escapement():.4f} K"
    )
    print("its policy on fresh episodes:")
    data = evaluate_policy(world, solution.policy(), replicates=replicates, horizon=years, seed=seed)
    _print(data, factor, unit, years)
    _write(out, solution.to_dataset())


class Initial(StrEnum):
    """Biomass of the first year."""

    virgin = "virgin"
    free = "free"


class Intervals(StrEnum):
    """How the intervals of a fit are made."""

    profile = "profile"
    bootstrap = "bootstrap"


@app.command()
def fit(
    file: Annotated[str, typer.Argument(help="CSV file, or the name of a shipped stock.")],
    exponent: Annotated[float, typer.Option(help="Shape p of the production; 1 is Schaefer's.")] = 1.0,
    initial: Annotated[Initial, typer.Option(help="Biomass of the first year: K, or estimated.")] = Initial.virgin,
    intervals: Annotated[Intervals, typer.Option(help="Kind of the 95 % intervals.")] = Intervals.profile,
    unit: Annotated[str | None, typer.Option(help="Unit of the catch, for the labels.")] = None,
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for fit.nc and fit.png.")] = None,
) -> None:
    """Fit a surplus-production model to catch and index (CSV: year,catch,index).

    Example: szilard fishery fit namibian_hake --out runs/hake
    """
    _check_folder(out)
    stock = read_stock(file) if unit is None else read_stock(file, catch_unit=unit)
    found = fit_surplus_production(
        stock, exponent=exponent, initial=initial.value, intervals=intervals.value, seed=seed
    )
    _print_fit(found, file)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "fit.nc", found.to_dataset())
        drawing = plot_fit(stock, found)
        files.write(out / "fit.png", lambda temporary: drawing.savefig(temporary, dpi=150, format="png"))
        print(out / "fit.png")


def _print_fit(found: SurplusProductionFit, file: str) -> None:
    stock = found.stock
    if not found.identified:
        print(f"{stock.name}: not identified: {', '.join(found.at_bound)} ended at a bound; no result is given")
        return
    table = Table(box=None, header_style="bold", pad_edge=False, title=f"{stock.name}, {len(stock.year)} years")
    for column in ("parameter", "estimate", f"95 % interval ({found.interval_method})", "unit"):
        table.add_column(column, justify="left" if column in ("parameter", "unit") else "right")
    units = {"r": "1/year", "K": stock.catch_unit, "msy": f"{stock.catch_unit}/year"}
    for name, text in units.items():
        ends = found.intervals[name]
        low, high = ("open" if is_open else f"{end:.4g}" for end, is_open in zip(ends[:2], ends[2:], strict=True))
        table.add_row(name, f"{getattr(found, name):.4g}", escape(f"[{low}, {high}]"), text)
    table.add_row("B after the last catch / K", f"{found.biomass_next / found.K:.3f}", "", "")
    table.add_row("first B / K", f"{found.initial_depletion:.3f}", "", "")
    table.add_row("sigma (observation)", f"{found.sigma:.3f}", "", "log")
    Console(highlight=False).print(table)
    changes = {"stock": file, "exponent": found.exponent, "initial": found.initial}
    sets = " ".join(f"--set scenarios.0.{k}={v}" for k, v in changes.items() if v not in (1.0, "virgin"))
    print(
        "Process noise is not estimated: the study below assumes 0.05 (scenarios.0.sigma). Every policy on this stock:"
    )
    print(f"  szilard fishery run stock {sets}")


@app.command("fixed-points")
def fixed_points_(
    out: Annotated[Path, typer.Option(help="Picture to write (PNG or PDF).")],
    parameter: ParameterOption = None,
) -> None:
    """Draw the equilibria of Model 1 against predation, with the tipping points.

    Example: szilard fishery fixed-points --out runs/fixed_points.png
    """
    _check_file(out, ".png", ".pdf")
    world, _, _ = _world(1, None, parameters=parameter)
    diagram = fixed_points(world.parameters)  # type: ignore[arg-type]
    print("tipping points at beta_H = " + ", ".join(f"{x:.4f}" for x in diagram.tipping_points))
    drawing = figures.fixed_point_diagram(diagram, world.parameters.beta_H)  # type: ignore[union-attr]
    files.write(out, lambda temporary: drawing.savefig(temporary, dpi=150, format=out.suffix[1:]))
    print(out)

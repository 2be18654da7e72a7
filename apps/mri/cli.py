"""The verbs of ``szilard mri``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from apps.mri.adaptation import Adaptation, adapt, judge
from apps.mri.ads import ADS, Sampling
from apps.mri.ads import Progress as Step
from apps.mri.board import Stop
from apps.mri.comparison import compare_masks
from apps.mri.entropy import SCORES
from apps.mri.export import export_masks as export_all
from apps.mri.figures import Snapshot
from apps.mri.images import Images
from apps.mri.information import describe
from apps.mri.methods import ADAPTIVE, NAMES, display
from apps.mri.options import (
    ComplexOption,
    ImagesArgument,
    KindOption,
    Network,
    Norm,
    PrecisionName,
    PrecisionOption,
    PriorOption,
    Sampler,
    SizeOption,
    folder,
    images_of,
    score_of,
    shares,
    whole_numbers,
)
from apps.mri.preparation import errors_on_the_way
from apps.mri.problem import MixtureSettings, NetworkSettings, fit_prior
from apps.mri.recording import dataset
from apps.mri.scan import Scan, open_scan
from apps.mri.scan_output import print_scan, write_scan
from apps.mri.study import MRIStudy
from core import files
from core.diffusion.loading import load_prior
from core.diffusion.mixture import GaussianMixturePrior
from core.diffusion.prior import Prior
from core.diffusion.training import Training
from core.errors import InputError
from core.rl import TrainingDiverged
from core.seeds import stream
from core.study import StudyError, add_study_commands
from core.study.commands import Device, DeviceOption, SeedOption
from core.study.loading import from_options
from core.study.provenance import provenance
from core.study.runner import resolve_device
from core.study.terminal import print_rows, print_summary
from simulators.mri.operators import MulticoilLines

app = typer.Typer(no_args_is_help=True, help="Which k-space lines to acquire next, with a posterior at every step.")
add_study_commands(app, MRIStudy)


@contextmanager
def _bar() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as bar:
        try:
            yield bar
        except InputError:
            bar.live.transient = True  # what is refused is told in one line
            raise


@app.command("train-prior")
def train_prior(
    images: ImagesArgument,
    out: Annotated[Path, typer.Option(help="Folder of the prior.")],
    kind: Annotated[Network, typer.Option(help="Gaussian mixture (seconds), or the reference U-Net.")] = Network.gmm,
    size: SizeOption = None,
    make_complex: ComplexOption = False,
    count: Annotated[
        int | None,
        typer.Option(
            help="Training images; 3000, or all there are (of a file four in five: the rest are for tests).", min=1
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of mnist or fastmri.")] = None,
    components: Annotated[int, typer.Option(help="Mixture: clusters.", min=1)] = 32,
    rank: Annotated[int, typer.Option(help="Mixture: principal directions of each.", min=1)] = 20,
    widths: Annotated[str, typer.Option(help="U-Net: channels of each level.")] = "32,64,96,128",
    depth: Annotated[int, typer.Option(help="U-Net: residual blocks of each level.", min=1)] = 2,
    steps: Annotated[int, typer.Option(help="U-Net: optimiser steps.", min=1)] = 20_000,
    batch: Annotated[int, typer.Option(help="U-Net: images a step.", min=1)] = 16,
    learning_rate: Annotated[float, typer.Option(help="U-Net: of AdamW.", min=0)] = 1e-4,
    ema: Annotated[
        float | None,
        typer.Option(
            help="U-Net: share of the averaged weights that a step keeps.  \\[default: .999, less of few steps]"
        ),
    ] = None,
    precision: PrecisionOption = PrecisionName.float32,
    start: Annotated[Path | None, typer.Option(help="Adapt this U-Net prior to IMAGES instead.")] = None,
    adaptation: Annotated[
        Adaptation, typer.Option(help="With --start: plain fine-tuning, or SePPO with IMAGES as winners.")
    ] = Adaptation.finetune,
    seed: SeedOption = 42,
    device: DeviceOption = Device.auto,
) -> None:
    """Train a diffusion prior, or adapt one; started again after a kill, training goes on.

    Example: szilard mri train-prior atlas --out priors/atlas
    """
    folder(out)
    if (out / "prior.json").exists():
        raise InputError(f"--out {out}: holds a prior already")
    levels, target = tuple(whole_numbers("--widths", widths)), resolve_device(device, torch.cuda.is_available())
    source = images_of(images, size, count, data, make_complex)
    pictures = source.training()
    given = {
        "steps": steps,
        "batch": min(batch, len(pictures)),
        "learning_rate": learning_rate,
        # Of the published .999, an average of a few hundred steps would be mostly the untrained weights.
        "ema": max(0.0, min(0.999, 1 - 10 / steps)) if ema is None else ema,
        "checkpoint_every": min(1000, max(1, steps // 20)),
        "precision": precision.value,
        "seed": seed,
    }
    training, state = from_options(Training, given, "train-prior"), out / "checkpoint"
    if kind == "gmm" and start is None and state.exists():
        raise InputError(f"--out {out}: holds the unfinished training of a U-Net; a mixture needs another")
    if start is not None:
        if precision is not PrecisionName.float32 or ema is not None:
            raise InputError("--precision, --ema: are of a training from the start, not of an adaptation")
        held_out = _held_out(source, images).to(target)
    with _bar() as bar:
        task = bar.add_task(f"{len(pictures)} images", total=1.0, said="")

        def progress(fraction: float, message: str = "") -> None:
            bar.update(task, completed=fraction, said=message)

        try:
            if start is not None:
                old = load_prior(start, target)
                adapted = adapt(old, pictures, adaptation, training, target, checkpoint=state, progress=progress)
            else:
                settings: MixtureSettings | NetworkSettings = (
                    MixtureSettings(components=components, rank=rank, seed=seed)
                    if kind == "gmm"
                    else NetworkSettings(kind="unet", widths=levels, block_depth=depth, training=training)
                )
                fit_prior(settings, pictures, target, checkpoint=state, progress=progress).save(out)
        except TrainingDiverged as error:
            raise StudyError(str(error)) from error
        bar.update(task, completed=1.0)
    if start is not None:
        adapted[adaptation.value].save(out)
        rows = judge({"before": old, **adapted}, held_out, seed)
        files.write_json(out / "adaptation.json", [asdict(row) for row in rows])
        print_rows(rows)
    print(out)


def _held_out(source: Images, name: str) -> Tensor:
    """The test images on which an adaptation is judged, at most 16."""
    found = source.test(0, min(16, source.available or 16))
    if len(found) < 2:
        raise InputError(f"{name}: {len(found)} test images: at least 2 are needed to judge an adaptation")
    return found


@app.command()
def acquire(
    file: Annotated[Path, typer.Argument(help="k-space or images: fastMRI or ISMRMRD HDF5, npy, NIfTI, BART cfl.")],
    prior: PriorOption,
    out: Annotated[Path, typer.Option(help="Folder for result.nc, mask.csv, mask.cfl and scan.png.")],
    kind: KindOption = None,
    number: Annotated[int, typer.Option("--slice", help="Which slice of the file.", min=0)] = 0,
    budget: Annotated[
        int | None, typer.Option(help="Lines, the initial ones included; a quarter of all.", min=1)
    ] = None,
    initial: Annotated[
        int | None, typer.Option(help="Central lines first; 1, or 16 with several coils.", min=0)
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Times the file's numbers.  \\[default: by the norm]")] = None,
    precision: PrecisionOption = PrecisionName.float32,
    sampler: Annotated[Sampler, typer.Option(help="Diffusion, or a mixture's exact posterior.")] = Sampler.dps,
    steps: Annotated[int | None, typer.Option(help="Diffusion steps.  \\[default: 1000; mixture: 40]", min=1)] = None,
    particles: Annotated[int, typer.Option(help="Posterior samples.", min=2)] = 16,
    omega: Annotated[float, typer.Option(help="Guidance weight.", min=0)] = 1.0,
    norm: Annotated[Norm, typer.Option(help="Residual norm of each particle, or of all.")] = Norm.per_particle,
    window: Annotated[str, typer.Option(help="Share of the steps in which lines are chosen.")] = "0.02,0.6",
    score: Annotated[str, typer.Option(help=f"What the next line maximises: {', '.join(SCORES)}.")] = "kl",
    sigma: Annotated[float, typer.Option(help="Belief width.", min=1e-9)] = 1.0,
    stop: Annotated[
        float | None, typer.Option(help="Stop when the predicted NMSE falls below this; sampler exact.", min=0)
    ] = None,
    gif: Annotated[bool, typer.Option(help="Also write scan.gif.")] = False,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Scan one subject adaptively: choose, acquire and reconstruct, with the posterior on the screen and in files.

    Example: szilard mri acquire volume.h5 --prior priors/knee --slice 17 --budget 32 --out runs/scan
    """
    folder(out)
    if stop is not None and sampler is not Sampler.exact:
        raise InputError("--stop: needs --sampler exact: particles under way predict far too small an error")
    target = resolve_device(device, torch.cuda.is_available())
    loaded = load_prior(prior, target, precision=precision.value)
    scan = open_scan(file, loaded, kind=kind, number=number, scale=scale, initial=initial, device=target)
    if scan.warning:
        _warn(f"{file}: {scan.warning}")
    if sampler is Sampler.exact and isinstance(scan.operator, MulticoilLines):
        raise InputError(f"--sampler exact: is for one coil, {file} has {scan.operator.coils}")
    given = {
        "sampler": sampler.value,
        "steps": steps or (40 if isinstance(loaded, GaussianMixturePrior) else 1000),
        "particles": particles,
        "omega": omega,
        "guidance_norm": norm.value,
        "window": shares("--window", window),
        "score": score_of(score),
        "sigma": sigma,
        "hard_consistency": True,
    }
    settings = from_options(Sampling, given, "acquire")
    held, reachable = int(scan.initial.sum()), int(scan.scanner.available.sum())
    lines = budget or min(max(scan.operator.actions // 4, held), reachable)
    if not held <= lines <= reachable:
        raise InputError(f"--budget {lines}: must be between {held} (initial) and {reachable} (all that was recorded)")
    if lines == held:
        _warn(f"the {held} initial lines are the whole budget, nothing is left to choose: give a larger --budget")
    rule = None if stop is None else _stop(stop, loaded, scan, settings, lines)
    ads = ADS(loaded, scan.operator, settings, fallback=scan.variance, stop=rule)
    snapshots: list[Snapshot] = []
    started = time.perf_counter()
    with _bar() as bar:
        task = bar.add_task("scan", total=1.0, said="")

        def look(step: Step) -> None:
            taken = int(step.mask.sum())
            said = f"{taken} of {lines} lines, residual {float(step.residual.mean()):.3g}"
            bar.update(task, completed=(step.step + 1) / step.steps, said=said)
            if gif and (not snapshots or taken > int(snapshots[-1].mask.sum()) or step.step + 1 == step.steps):
                seen = display(step.x0[0]).cpu()
                snapshots.append(Snapshot(seen.mean(0), seen.std(0), step.mask[0].cpu().clone()))  # it grows

        luck = [torch.Generator(target).manual_seed(stream(seed, "particles"))]
        outcome = ads.run(scan.scanner, scan.initial, lines, luck, look)
    found = dataset(
        scan.target, outcome, first=number, seconds=time.perf_counter() - started, recorded=1, particles=True
    )
    record = provenance(torch.device(target)) | {"file": str(file), "scale": scan.scale}
    record["settings"] = settings.model_dump_json()
    write_scan(out, found.assign_attrs({k: str(v) for k, v in record.items()}), scan, snapshots)
    if bool(outcome.saturated.any()):
        _warn(
            "the particles disagreed on every line by more than the score can tell, and the prior's variance chose: "
            "is the prior trained, is --sigma large enough?"
        )
    if bool(outcome.collapsed.any()):
        _warn("the particles agreed on every line, and the prior's variance chose")
    print_scan(found, scan)
    print(out / "scan.png")


def _warn(words: str) -> None:
    print(f"warning: {words}", file=sys.stderr)


def _stop(target: float, prior: Prior, scan: Scan, settings: Sampling, budget: int) -> Stop:
    """The stop rule, calibrated on images drawn from the prior; real images are less predictable than those."""
    assert isinstance(prior, GaussianMixturePrior)
    device = scan.initial.device
    luck = [torch.Generator(device).manual_seed(stream(i, "calibration")) for i in range(64)]
    ads, initial = ADS(prior, scan.operator, settings), scan.initial.repeat(len(luck), 1)
    predicted, true = errors_on_the_way(ads, prior.draw(len(luck), luck[0]), initial, budget, luck)
    return Stop(target, (true.mean(0) / predicted.mean(0)).tolist())


@app.command()
def compare(
    images: ImagesArgument,
    prior: Annotated[
        Path | None, typer.Option("--prior", help="Folder of a prior; a mixture is fitted if none.")
    ] = None,
    budgets: Annotated[str, typer.Option(help="Actions, the initial ones included.")] = "8",
    methods: Annotated[
        str | None,
        typer.Option(help="What to compare; szilard schema mri lists all.  \\[default: ADS and fixed masks]"),
    ] = None,
    subjects: Annotated[int, typer.Option(help="Test images.", min=2)] = 16,
    size: SizeOption = None,
    make_complex: ComplexOption = False,
    data: Annotated[Path | None, typer.Option(help="Folder of mnist or fastmri.")] = None,
    steps: Annotated[int, typer.Option(help="Diffusion steps.", min=1)] = 40,
    particles: Annotated[int, typer.Option(help="Posterior samples.", min=2)] = 8,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/mri_compare"),
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Keep finished runs, or start anew.")] = True,
    device: DeviceOption = Device.auto,
) -> None:
    """Compare masks on images of one kind, with the same posterior sampling: a study made from a few options.

    Example: szilard mri compare adaptivity --budgets 3,4,6 --methods ads,fastmri,greedy_fixed --out runs/compare
    """
    wanted = whole_numbers("--budgets", budgets)
    if len(set(wanted)) < len(wanted):
        raise InputError(f"--budgets {budgets}: one stands there twice")
    study = compare_masks(
        images_of(images, size, None, data, make_complex),
        wanted,
        None if methods is None else methods.split(","),
        prior=prior,
        subjects=subjects,
        sampling=from_options(Sampling, {"steps": steps, "particles": particles, "window": (0.02, 0.6)}, "compare"),
    )
    print_summary(study.run(out, device=device, fresh=not resume), MRIStudy.headline)


@app.command("export-masks")
def export_masks(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished study.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    scenario: Annotated[str | None, typer.Option(help="Of the study; all with k-space lines if none.")] = None,
    method: Annotated[str, typer.Option(help=f"Whose masks, such as {', '.join(ADAPTIVE[:2])}.")] = "ads",
) -> None:
    """Write masks of a study as CSV and BART cfl: every subject's, and the population's most frequent lines.

    Example: szilard mri export-masks runs/mri_quick --scenario lines_atlas --out masks
    """
    folder(out)
    written = export_all(directory, out, scenario=scenario, method=method)
    print(f"{written} masks of {NAMES.get(method, method)}")
    print(out)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A file of k-space or images, or the folder of a prior.")],
    kind: KindOption = None,
) -> None:
    """Say what a file or a prior holds: format, shape, coils, which lines were acquired, and the scale.

    Example: szilard mri info file1000007.h5
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in describe(path, kind).items():
        table.add_row(name, escape(str(value)))
    Console(highlight=False).print(table)

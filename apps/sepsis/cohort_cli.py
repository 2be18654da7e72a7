"""The verbs that make a cohort and look at what clinicians do in it."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps.sepsis.settings import (
    ClinicianSettings,
    MechanisticPatients,
    TabularPatients,
)
from apps.sepsis.verb_inputs import COHORT, CohortArgument, OutOption, finish, open_cohort
from core.errors import InputError, require
from core.study.commands import Device, DeviceOption, SeedOption, Set, open_device
from core.study.loading import from_options
from simulators.sepsis.cohort import FRACTIONS

if TYPE_CHECKING:
    from simulators.sepsis.report import CohortReport


class World(StrEnum):
    """A simulator of patients."""

    sepsis44 = "sepsis44"
    icusepsis44 = "icusepsis44"


class Layout(StrEnum):
    """Layout of a user's records."""

    auto = "auto"
    mimic_sepsis = "mimic_sepsis"
    ai_clinician = "ai_clinician"


def simulate(
    out: Annotated[Path, typer.Option(help="Folder of the cohort.")],
    world: Annotated[World, typer.Option(help="The simulator.")] = World.sepsis44,
    patients: Annotated[int, typer.Option(help="How many.", min=20)] = 2000,
    seed: SeedOption = 0,
    temperature: Annotated[float | None, typer.Option(help="sepsis44: spread of the doses.  \\[default: 0.8]")] = None,
    bias: Annotated[float | None, typer.Option(help="sepsis44: levels of fluid too much.  \\[default: 0.8]")] = None,
    kappa: Annotated[float | None, typer.Option(help="icusepsis44: spread of a cluster.  \\[default: 1]")] = None,
    minari: Annotated[
        str | None, typer.Option(metavar="ID", help="Also write a Minari dataset, such as sepsis/physician-v0.")
    ] = None,
) -> None:
    """Simulate patients as a physician treats them: a cohort whose truth is known, split 70/15/15.

    Example: szilard sepsis simulate --out runs/cohort --patients 2000
    """
    from apps.sepsis.ingestion import write_report
    from apps.sepsis.products import simulated
    from simulators.sepsis.report import describe

    kind: type[MechanisticPatients] | type[TabularPatients]
    kind = MechanisticPatients if world is World.sepsis44 else TabularPatients
    given = {"temperature": temperature, "bias": bias, "kappa": kappa}
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    source = from_options(kind, values | {"patients": patients, "fractions": FRACTIONS}, f"simulate --world {world}")
    if minari is not None:
        require("minari", "sepsis")
        if not re.fullmatch(r"([\w-]+/)*[\w-]+-v\d+", minari):
            raise InputError(f"--minari {minari}: must read NAME-v0 or FOLDER/NAME-v0")
        if (folder := out / "minari" / minari).exists():
            raise InputError(f"{folder}: exists; choose another version or remove it")
    cohort = simulated(source, seed)
    _make_folder(out)
    cohort.save(out / COHORT)
    report = describe(cohort, seed=seed)
    write_report(out, report)
    if minari is not None:
        from core.offline import to_minari

        print(
            to_minari(
                cohort.dataset(cohort.rewards()),
                minari,
                out / "minari",
                algorithm_name="the physician of the simulator",
                author="szilard sepsis simulate",
                description=f"{patients} simulated patients of {world}, seed {seed}; the reward is the outcome.",
            )
        )
    _print_cohort(report, out)


def ingest(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV or Parquet extracted from MIMIC.")],
    out: Annotated[Path, typer.Option(help="Folder of the cohort.")],
    raw: Annotated[Path | None, typer.Option(help="The same trajectories in units, if FILE is normalised.")] = None,
    layout: Annotated[Layout, typer.Option(help="Of the file.")] = Layout.auto,
    column_map: Annotated[Path | None, typer.Option(help="YAML: NAME: column in the file.")] = None,
    split_seed: Annotated[int, typer.Option(help="Of the split by patient.", min=0)] = 5568,
    horizon: Annotated[int | None, typer.Option(help="Keep so many first steps.  \\[default: all]", min=2)] = None,
    mortality: Annotated[
        str | None, typer.Option(help="AI-Clinician: column that says who died.  \\[default: died within 48 h]")
    ] = None,
    recompute_scores: Annotated[bool, typer.Option(help="Put SOFA and SIRS computed here into the state.")] = False,
    close_gaps: Annotated[bool, typer.Option(help="Close up steps that are not consecutive.")] = False,
) -> None:
    """Read records that you extracted from MIMIC; nothing that names a patient is kept, and no row is ever printed.

    Example: szilard sepsis ingest sepsis_final_data_RAW_withTimes.csv --out runs/mimic
    """
    from apps.sepsis.ingestion import ingest as ingest_records

    options: dict[str, Any] = {} if mortality is None else {"mortality": mortality}
    report = ingest_records(
        file,
        out,
        layout=layout.value,
        raw=raw,
        column_map=column_map,
        split_seed=split_seed,
        horizon=horizon,
        recompute_scores=recompute_scores,
        gaps="close" if close_gaps else "refuse",
        **options,
    )
    _print_cohort(report, out)


def clinician(
    cohort: CohortArgument,
    out: OutOption = Path("runs/clinician"),
    overrides: Set = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Estimate the clinician's policy from the log, by cloning or (--set kind=neighbours) from the nearest states.

    Example: szilard sepsis clinician runs/cohort --out runs/clinician --set epochs=20
    """
    from apps.sepsis.clinician import clinician_rows, save_clinician, train_clinician
    from apps.sepsis.output_folder import output_folder
    from core.seeds import stream

    settings = from_options(ClinicianSettings, {}, "clinician", overrides or ())
    data = open_cohort(cohort)
    target = open_device(device)
    asked = {"settings": settings.model_dump(mode="json"), "seed": seed}
    with output_folder(out, "clinician", data, asked) as folder:
        data = data.to(target)
        trained = train_clinician(
            data,
            settings,
            stream(seed, "clinician"),
            device=target,
            checkpoint=folder.checkpoint("clinician.safetensors"),
            progress=folder.progress,
        )
        save_clinician(out, trained)
        rows = clinician_rows(data, trained)
        folder.write_rows("clinician", rows)
    finish(rows, out)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {(error.strerror or str(error)).lower()}") from error


def _print_cohort(report: CohortReport, out: Path) -> None:
    from core.stats import proportion_interval
    from core.study.numbers import estimate

    for stage in report.flow:
        print(f"{stage.name}: {stage.trajectories:,} trajectories, {stage.steps:,} steps")
    patients = report.flow[-1].trajectories
    lived = proportion_interval(round(report.survived * patients), patients)
    print(f"survived: {estimate(100 * lived.mean, 100 * lived.low, 100 * lived.high)} %")
    print("split: " + ", ".join(f"{split.name} {split.trajectories:,}" for split in report.splits))
    for line in report.warnings:
        print(f"warning: {line}")
    print(out / COHORT)

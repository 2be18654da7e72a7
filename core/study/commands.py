"""The verbs that every application has: ``run`` and ``report``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from core.configs import configs
from core.errors import InputError
from core.study.store import Store
from core.study.study import Study
from core.study.terminal import print_summary


class Device(StrEnum):
    """Where tensors live."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Engine(StrEnum):
    """Where runs are done."""

    local = "local"
    ray = "ray"


SeedOption = Annotated[int, typer.Option(help="Of the random numbers.", min=0, max=2**32 - 1)]
DeviceOption = Annotated[Device, typer.Option(help="Where tensors live; auto takes a GPU if there is one.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the config; may be repeated."),
]


def add_study_commands(app: typer.Typer, study: type[Study]) -> None:
    """Give ``app`` the verbs ``run`` and ``report`` for studies of this class."""
    name = study.app
    config = typer.Argument(
        help="A YAML file, or the name of a packaged study (szilard list).",
        autocompletion=lambda: [config for config, _ in configs(name)],
    )

    @app.command("run", help=f"Run a study, or go on with one that was stopped.\n\n{_example(name, 'run')}")
    def run(
        config: Annotated[str, config],
        out: Annotated[Path | None, typer.Option(help="Folder of the results.  \\[default: runs/<study>]")] = None,
        overrides: Set = None,
        device: DeviceOption = Device.auto,
        engine: Annotated[Engine, typer.Option(help="Processes of this machine, or a Ray cluster.")] = Engine.local,
        address: Annotated[str | None, typer.Option(help="Of a running Ray cluster.", metavar="HOST:PORT")] = None,
        workers: Annotated[
            int | None, typer.Option(help="Runs at once; 0: in this process.  \\[default: one a core]")
        ] = None,
        resume: Annotated[bool, typer.Option("--resume/--fresh", help="Keep finished runs, or start anew.")] = True,
        require_claims: Annotated[bool, typer.Option(help="Exit with 1 unless every claim holds.")] = False,
    ) -> None:
        summary = study.load(config, overrides or ()).run(
            out, device=device, engine=engine, address=address, workers=workers, fresh=not resume
        )
        print_summary(summary, study.headline)
        if require_claims and not summary.all_hold:
            raise typer.Exit(1)

    @app.command("report", help=f"Analyse stored results again; nothing is run.\n\n{_example(name, 'report')}")
    def report(
        directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that run has written.")],
        require_claims: Annotated[bool, typer.Option(help="Exit with 1 unless every claim holds.")] = False,
    ) -> None:
        if not Store(directory).manifest():
            raise InputError(f"{directory}: holds no study")
        summary = study.load(directory / "config.yaml").report(directory)
        print_summary(summary, study.headline)
        if require_claims and not summary.all_hold:
            raise typer.Exit(1)


def _example(app: str, verb: str) -> str:
    if verb == "run":
        return f"Example: szilard {app} run configs/{app}/quick.yaml --set seeds=5 --out runs/five"
    return f"Example: szilard {app} report runs/five"

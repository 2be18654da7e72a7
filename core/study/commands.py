"""The verbs that every application has, ``run`` and ``report``, and what its own verbs share."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from core.configs import configs
from core.errors import InputError
from core.study.analysis import StudyError
from core.study.runner import resolve_device
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


def open_device(device: Device) -> torch.device:
    """Where to compute.

    Raises:
        InputError: a GPU was asked for and there is none.
    """
    return torch.device(resolve_device(device, torch.cuda.is_available()))


@contextmanager
def working(what: str, *, resumable: bool = False) -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr that is told the share done and a message.

    Args:
        what: is done.
        resumable: whether the same command goes on after Ctrl-C, which is then said.

    Raises:
        StudyError: a training has diverged.
    """
    from core.rl import TrainingDiverged

    console = Console(stderr=True)
    try:
        with Progress(transient=True, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(what, total=1.0)
            yield lambda share, said: bar.update(task, completed=share, description=f"{what}: {said}")
    except TrainingDiverged as error:
        raise StudyError(f"{what}: {error}") from error
    except KeyboardInterrupt:
        if resumable:
            print("interrupted; the same command goes on from here", file=sys.stderr)
        raise


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

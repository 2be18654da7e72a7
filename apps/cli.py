"""The command ``szilard``: finds the application that is called and imports nothing else, so that help is instant."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.main import get_group

from core.allocator import keep_freed_memory
from core.configs import configs
from core.errors import InputError, MissingExtra, NotWritten


@dataclass(frozen=True)
class App:
    """What is known of an application before it is imported: a line of help, and its study in ``apps.<name>.study``."""

    help: str
    study: str


APPS = {
    "fishery": App("Harvest rules, learned policies and exact solutions for a fishery.", "FisheryStudy"),
    "payments": App("Exploration for payment decisions, learned and proven on logs, and a service.", "PaymentsStudy"),
    "turbulence": App("Closures of two-dimensional turbulence: classical, tuned and learned.", "TurbulenceStudy"),
    "chaos": App("Forecasting of chaotic systems: how long, at what cost, and who won.", "ChaosStudy"),
    "sepsis": App(
        "Treatment policies that can be justified to a judge, and debates that test the judge.", "SepsisStudy"
    ),
    "crs": App("What to ask, what to recommend and when, in dialogues about a catalogue.", "CRSStudy"),
    "lipreading": App("Silent clips into text, and objectives that train on the error rate.", "LipReadingStudy"),
    "mri": App("Which k-space lines to acquire next, with a posterior at every step.", "MRIStudy"),
}


class LazyGroup(TyperGroup):
    """Knows the applications by name, and imports the one that is called (``app`` in ``apps.<name>.cli``)."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, app in APPS.items():
            self.add_command(TyperGroup(name=name, help=app.help, rich_help_panel="Applications"))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first argument names, and the arguments left for it."""
        if args[0] not in APPS:
            return super().resolve_command(ctx, args)
        group = get_group(importlib.import_module(f"apps.{args[0]}.cli").app)
        group.help = group.help or APPS[args[0]].help
        return args[0], group, args[1:]


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"szilard {importlib.metadata.version('szilard')}")
        raise typer.Exit


@app.callback()
def szilard(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """An agent that decides what to measure, ask, harvest, prescribe or emit next.

    Example: szilard fishery run configs/fishery/quick.yaml --out runs/demo
    """


@app.command("list")
def list_() -> None:
    """List the applications, their packaged studies and the optional extras.

    Example: szilard list
    """
    import yaml
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    for name, known in APPS.items():
        console.print(f"[bold]{name}[/]  {escape(known.help)}")
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for column in ("  study", "takes", "what it compares"):
            table.add_column(column, overflow="fold")
        for config, path in configs(name):
            said = yaml.safe_load(path.read_text(encoding="utf-8"))
            cells = (f"  {config}", said.get("takes", ""), said.get("description", ""))
            table.add_row(*(escape(str(cell)) for cell in cells))
        console.print(table if table.row_count else "  no packaged study")
        console.print()
    console.print("[bold]extras[/]")
    for extra, packages in _extras().items():
        missing = [package for package in packages if not _installed(package)]
        state = f'pip install "szilard[{extra}]" brings {", ".join(missing)}' if missing else "installed"
        console.print(f"  {extra:<12}{escape(state)}")


@app.command()
def schema(
    name: Annotated[str, typer.Argument(metavar="APP", help="Application.", autocompletion=lambda: list(APPS))],
) -> None:
    """Print the JSON Schema of an application's studies, for editors that check YAML while it is written.

    Example: szilard schema fishery > fishery.schema.json
    """
    if name not in APPS:
        raise InputError(f"{name}: no such application; there are: {', '.join(APPS)}")
    study = getattr(importlib.import_module(f"apps.{name}.study"), APPS[name].study)
    print(json.dumps(study.model_json_schema(), indent=2))


def _extras() -> dict[str, list[str]]:
    """The packages that each extra brings to an application."""
    extras: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("szilard") or []:
        extra = re.search(r"""extra == ['"]([\w-]+)['"]""", requirement)
        package = re.match(r"[\w.-]+", requirement)
        if extra and package and extra[1] not in ("all", "test"):
            extras.setdefault(extra[1], []).append(package[0])
    return extras


def _installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main() -> None:
    """Run the command; what the user must mend is told in one line with exit code 2, a failed study exits with 1."""
    keep_freed_memory()
    try:
        sys.exit(app(standalone_mode=False))
    except TyperException as error:
        # A command without arguments has printed its help instead of a message.
        if message := " ".join(error.format_message().split()):
            print(f"szilard: error: {message.rstrip('.')}; see --help", file=sys.stderr)
        sys.exit(error.exit_code)
    except (InputError, MissingExtra) as error:
        print(f"szilard: error: {error}", file=sys.stderr)
        sys.exit(2)
    except NotWritten as error:
        print(f"szilard: error: {error.filename}: {str(error.strerror).lower()}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        # Imported here, because it comes with torch; whoever raises a StudyError has paid for it already.
        from core.study import StudyError

        if not isinstance(error, StudyError):
            raise
        print(f"szilard: error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""What the verbs of ``szilard crs`` share: their options, and the catalogues they are given, opened and checked."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from apps.crs.methods import AnyMethod
from apps.crs.problem import GeneratedSource, Problem, StoredSource, check_rules
from core.errors import InputError
from core.study.loading import from_options
from simulators.crs import Catalogue, Rules
from simulators.crs.generated import PRESETS
from simulators.crs.readers import read

METHODS = {method.model_fields["kind"].default: method for method in get_args(get_args(AnyMethod)[0])}
"""All methods by their kind."""

_RULES = tuple(rule.name for rule in fields(Rules))

CatalogueArgument = Annotated[
    str,
    typer.Argument(
        metavar="CATALOGUE",
        help=f"A folder in any layout, a CSV file of items, or a generated catalogue: {', '.join(PRESETS)}.",
        autocompletion=lambda: list(PRESETS),
    ),
]
OverlapOption = Annotated[bool, typer.Option(help="Warn of pairs that stand in two splits, and do not refuse them.")]
RulesOption = Annotated[
    list[str] | None,
    typer.Option("--rules", metavar="KEY=VALUE", help="Change a rule of the dialogue; may be repeated."),
]


def source_of(text: str) -> GeneratedSource | StoredSource:
    """The catalogue that a word of the command line means.

    Raises:
        InputError: neither a path nor a preset.
    """
    if Path(text).exists():
        return StoredSource(path=Path(text))
    if text in PRESETS:
        return GeneratedSource.model_validate({"preset": text})
    raise InputError(f"{text}: no such file or folder, nor a generated catalogue; there are: {', '.join(PRESETS)}")


def open_catalogue(
    source: GeneratedSource | StoredSource, *, allow_overlap: bool = False, quiet: bool = False
) -> Catalogue:
    """The catalogue, with what one should know about it on stderr.

    Raises:
        InputError: it is refused.
    """
    if isinstance(source, GeneratedSource):
        return source.open()
    catalogue, notes = read(source.path, source.layout, seed=source.seed, allow_overlap=allow_overlap)
    if not quiet:
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    return catalogue


def open_problem(
    source: GeneratedSource | StoredSource, catalogue: Catalogue, rules: Sequence[str] | None, verb: str, **values: Any
) -> Problem:
    """A problem about a catalogue, asked as the catalogue says, with changed rules.

    Raises:
        InputError: an unknown rule, or one that the catalogue cannot be played by.
    """
    # A shop with fewer items than a list has by default is no mistake; a list that was asked for and is too long is.
    usual = {"question": catalogue.question, "list_length": min(Rules.list_length, catalogue.n_items)}
    given = {"catalogue": source.model_dump(), "rules": usual, **values}
    problem = with_rules(given, rules, verb)
    check_rules(problem.rules, catalogue)
    return problem


def with_rules(values: dict[str, Any], rules: Sequence[str] | None, origin: str) -> Problem:
    """A problem of these values with each ``KEY=VALUE`` of ``--rules`` applied.

    Raises:
        InputError: a key or value that is refused.
    """
    for rule in rules or ():
        name = rule.partition("=")[0].partition(".")[0].strip()
        if name not in _RULES:
            raise InputError(f"--rules {rule}: {name}: unknown rule; known here: {', '.join(_RULES)}")
    try:
        return from_options(Problem, values, origin, [f"rules.{rule}" for rule in rules or ()])
    except InputError as error:
        raise InputError(str(error).replace("--set rules.", "--rules ", 1)) from error


def open_method(kind: str, overrides: Sequence[str] | None, verb: str) -> AnyMethod:
    """The settings of a method.

    Raises:
        InputError: an unknown method, key or value.
    """
    if kind not in METHODS:
        raise InputError(f"{kind}: no such method; there are: {', '.join(METHODS)}")
    method: AnyMethod = from_options(METHODS[kind], {"name": kind}, f"{verb} {kind}", overrides or ())
    return method


def check_new_folder(folder: Path, name: str, own: Collection[str] = ()) -> None:
    """Refuse, before anything is computed, a path that is no folder, or a folder that holds something.

    Args:
        folder: that is to be written.
        name: of the argument.
        own: files that mark a folder as written by the same verb, which may be there.

    Raises:
        InputError: so it is.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{name} {folder}: is a file, not a folder")
    held = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.exists() else []
    if held and not set(own) & set(held):
        raise InputError(f"{name} {folder}: holds {held[0]}; must be empty or new")


def make_folder(folder: Path, name: str) -> None:
    """Make a folder.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{name} {folder}: {(error.strerror or str(error)).lower()}") from error

"""The verbs that make a catalogue, look at it, and fit its embeddings."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from apps.crs.embedding import EmbeddingSettings, fit_embeddings
from apps.crs.problem import GeneratedSource
from apps.crs.verb_inputs import (
    CatalogueArgument,
    OverlapOption,
    check_new_folder,
    make_folder,
    open_catalogue,
    source_of,
)
from core.errors import InputError
from core.seeds import stream
from core.study.commands import Device, DeviceOption, SeedOption, Set, open_device, working
from core.study.loading import from_options
from simulators.crs import storage
from simulators.crs.catalogue import SPLITS, Catalogue, no_pairs
from simulators.crs.embeddings import RECORD
from simulators.crs.generated import PRESETS
from simulators.crs.readers import read

if TYPE_CHECKING:
    from collections.abc import Sequence

data = typer.Typer(no_args_is_help=True, help="Make a catalogue, read one, or look at it.")


CHECKPOINT = "checkpoint.safetensors"
"""In the folder of embeddings that are being fitted."""


class Layout(StrEnum):
    """Layout of the files of a catalogue."""

    auto = "auto"
    canonical = "canonical"
    scpr = "scpr"
    tcrs = "tcrs"
    table = "table"


OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the catalogue, new or empty.")]
LayoutOption = Annotated[Layout, typer.Option(help="Of the files.")]
BinsOption = Annotated[int, typer.Option(help="Of a table: most ranges of a column of numbers.", min=2)]


@data.command()
def synth(
    out: OutArgument,
    preset: Annotated[str, typer.Option(help=f"Sizes: {', '.join(PRESETS)}.")] = "small",
    items: Annotated[int | None, typer.Option(help="Items.  \\[default: the preset's]")] = None,
    users: Annotated[int | None, typer.Option(help="Users, likewise.")] = None,
    types: Annotated[int | None, typer.Option(help="Types of attributes, likewise.")] = None,
    values: Annotated[int | None, typer.Option(help="Attributes of a type, likewise.")] = None,
    per_user: Annotated[int | None, typer.Option(help="Interactions of a user, likewise.")] = None,
    taste_drift: Annotated[
        float | None, typer.Option(help="Share of a taste that is new after the training interactions, likewise.")
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Generate a catalogue with users, readable names and three splits.

    Example: szilard crs data synth runs/shop --preset small --items 2000 --seed 1
    """
    given = {"n_items": items, "n_users": users, "n_types": types, "n_values": values}
    given |= {"per_user": per_user, "taste_drift": taste_drift}  # type: ignore[dict-item]
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    source = from_options(GeneratedSource, {"preset": preset, "seed": seed, **asked}, "data synth")
    least = PRESETS[preset].least_types
    if types is not None and types < least:
        raise InputError(f"--types {types}: must be at least {least}, as an item of {preset} has so many or more")
    catalogue = source.open()
    _save(catalogue, out)
    _print(catalogue)
    print(out)


@data.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder, or a CSV file of items.")],
    out: OutArgument,
    layout: LayoutOption = Layout.auto,
    allow_overlap: OverlapOption = False,
    bins: BinsOption = 5,
    seed: SeedOption = 0,
) -> None:
    """Read a catalogue in a published layout, or the table of a shop, and write it in the layout of this program.

    Example: szilard crs data import shop/items.csv runs/shop
    """
    catalogue, notes = read(source, layout.value, seed=seed, bins=bins, allow_overlap=allow_overlap)
    _save(catalogue, out)
    _print(catalogue, notes)
    print(out)


@data.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder in any layout, or a CSV file of items.")],
    layout: LayoutOption = Layout.auto,
    allow_overlap: OverlapOption = False,
    bins: BinsOption = 5,
    seed: SeedOption = 0,
) -> None:
    """Say what is in a catalogue, and what one should know about it.

    Example: szilard crs data check runs/shop
    """
    _print(*read(folder, layout.value, seed=seed, bins=bins, allow_overlap=allow_overlap))


def embed(
    catalogue: CatalogueArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the embeddings.")],
    overrides: Set = None,
    allow_overlap: OverlapOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Fit points of users, items and attributes in one space, from the training split alone.

    Example: szilard crs embed small runs/points --set dim=64 --set epochs=40
    """
    settings = from_options(EmbeddingSettings, {}, "embed", overrides or ())
    source, target = source_of(catalogue), open_device(device)
    check_new_folder(out, "OUT", (RECORD, CHECKPOINT))
    found = open_catalogue(source, allow_overlap=allow_overlap)
    make_folder(out, "OUT")
    checkpoint = out / CHECKPOINT
    with working("embeddings", resumable=True) as progress:
        points = fit_embeddings(
            found, settings, stream(seed, "embeddings"), device=target, checkpoint=checkpoint, progress=progress
        )
    points.save(out, found, settings.model_dump(mode="json"))
    checkpoint.unlink(missing_ok=True)
    counts = f"{found.n_users:,} users, {found.n_items:,} items, {found.n_attributes:,} attributes"
    print(f"{settings.method}, dim {settings.dim}: {counts}")
    print(out)


def _save(catalogue: Catalogue, out: Path) -> None:
    """Write it where nothing else is; the same catalogue may stand there already."""
    check_new_folder(out, "OUT", (storage.META,))
    if (out / storage.META).exists() and (held := storage.load(out, allow_overlap=True).hash) != catalogue.hash:
        raise InputError(f"OUT {out}: holds another catalogue, {held}; this is {catalogue.hash}: choose another OUT")
    make_folder(out, "OUT")
    storage.save(catalogue, out)


def _print(catalogue: Catalogue, notes: Sequence[str] = ()) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(escape(catalogue.name))
    table.add_column("", justify="right")
    counts: dict[str, str] = {
        "users": f"{catalogue.n_users:,}",
        "items": f"{catalogue.n_items:,}",
        "attributes": f"{catalogue.n_attributes:,}",
        "types of attributes": f"{catalogue.n_types:,}",
        "pairs of item and attribute": f"{len(catalogue.edges):,}",
        "attributes of an item, mean": f"{len(catalogue.edges) / catalogue.n_items:.2f}",
    }
    for split in SPLITS:
        rows = catalogue.interactions.get(split, no_pairs())
        users = len(np.unique(rows[:, 0]))
        counts[f"interactions, {split}"] = f"{len(rows):,} of {users:,} users"
    counts |= {"friendships": f"{len(catalogue.friends):,}"} if len(catalogue.friends) else {}
    counts |= {"attributes that users like": f"{len(catalogue.likes):,}"} if len(catalogue.likes) else {}
    counts |= {"questions": catalogue.question, "hash": catalogue.hash}
    counts |= {"licence": catalogue.licence} if catalogue.licence else {}
    for name, value in counts.items():
        table.add_row(name, escape(value))
    Console(highlight=False).print(table)
    for note in notes:
        print(f"warning: {note}")

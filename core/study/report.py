"""The files that a finished study leaves: results, figures, a page to read, and a summary for programs."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from jinja2 import Environment, StrictUndefined

from core import files
from core.study import numbers
from core.study.analysis import Analysis, Figure, Row, Summary, side_by_side
from core.study.store import Store

VERSIONS = ("version", "commit", "python", "torch", "numpy", "xarray", "device", "threads")


@dataclass(frozen=True)
class Picture:
    """A drawn figure, ready for the page."""

    name: str
    caption: str
    png: str


def write_report(store: Store, description: str, analysis: Analysis, summary: Summary) -> None:
    """Write ``results.nc``, ``figures/``, ``report.html``, ``table.csv`` and, last, ``summary.json``."""
    runs = _run_attributes(store)
    provenance = {name: _distinct(runs, name) for name in VERSIONS}
    config = (store.root / "config.yaml").read_text(encoding="utf-8")
    data = analysis.data.copy()
    data.attrs |= {"study": summary.study, "config_hash": summary.config_hash, "config": config, **provenance}
    files.write(store.root / "results.nc", lambda path: data.to_netcdf(path, engine="h5netcdf"))
    pictures = _draw(store, analysis.figures)
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    )
    html = page.render(
        summary=summary,
        description=description,
        notes=analysis.notes,
        pictures=pictures,
        config=config,
        provenance=provenance,
        runs=runs,
        counts={verdict: sum(c.holds is verdict for c in summary.claims) for verdict in (True, False, None)},
        groups=side_by_side(summary.table),
        numbers=numbers,
    )
    files.write(summary.report, html)
    files.write(store.root / "table.csv", _table_csv(summary))
    files.write_json(store.root / "summary.json", summary.content())


def _table_csv(summary: Summary) -> str:
    """The table for spreadsheets and for other languages; a number that is absent leaves its cell empty."""
    rows = summary.content()["table"]
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _draw(store: Store, figures: list[Figure]) -> list[Picture]:
    """Draw each figure as PNG and PDF, and remove those of an earlier report."""
    from matplotlib import pyplot  # here, because the workers have no use for it

    folder = store.root / "figures"
    folder.mkdir(exist_ok=True)
    earlier = set(store.manifest().get("figures", []))
    own = {f"{figure.name}.{kind}" for figure in figures for kind in ("pdf", "png")}
    store.update(figures=sorted(earlier | own))  # before they are there: what is listed is ours to remove
    for name in earlier - own:
        (folder / Path(name).name).unlink(missing_ok=True)
    pictures = []
    for figure in figures:
        drawing = figure.draw()
        for kind in ("pdf", "png"):
            buffer = io.BytesIO()
            drawing.savefig(buffer, format=kind, dpi=150, bbox_inches="tight", facecolor="white")
            files.write(folder / f"{figure.name}.{kind}", buffer.getvalue())
        pyplot.close(drawing)
        pictures.append(Picture(figure.name, figure.caption, base64.b64encode(buffer.getvalue()).decode()))
    store.update(figures=sorted(own))
    return pictures


def _run_attributes(store: Store) -> list[dict[str, Any]]:
    """The provenance of every result, in the order of their labels."""
    attributes = []
    for path in sorted(store.root.glob("runs/*/result.nc")):
        with xr.open_dataset(path, engine="h5netcdf", decode_timedelta=False) as result:
            attributes.append(dict(result.attrs))
    return sorted(attributes, key=lambda run: (run["label"], run["config_hash"]))


def _distinct(runs: list[dict[str, Any]], name: str) -> str:
    return ", ".join(sorted({str(run[name]) for run in runs} - {""}))

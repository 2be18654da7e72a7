"""A cohort's report as one page: what each filter left, the splits, the treatments, the features."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from apps.sepsis.model_card import WARNING
from core import files
from simulators.sepsis.features import LEVELS, UNITS
from simulators.sepsis.report import CohortReport, SplitCounts

_DRUGS = {"input_4hourly": "intravenous fluid", "max_dose_vaso": "vasopressor"}


def cohort_page(report: CohortReport) -> str:
    """The report as self-contained HTML."""
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("cohort_page.html.jinja").read_text(encoding="utf-8")
    )
    largest = max(1, *report.actions)
    # The square root, because most steps go without vasopressor and would leave the other cells blank.
    cells = [{"count": count, "shade": math.sqrt(count / largest)} for count in report.actions]
    return page.render(
        report=report,
        warning=WARNING,
        grid=[cells[i : i + LEVELS] for i in range(0, len(cells), LEVELS)],
        doses=[_dose(name, bins) for name, bins in (report.origin.get("doses") or {}).items()],
        origin={
            name.replace("_", " "): value
            for name, value in report.origin.items()
            if value is not None and name != "doses"
        },
        percent=_percent,
        without_vasopressor=_without_vasopressor,
    )


def write_cohort_page(path: Path, report: CohortReport) -> None:
    """Write the page atomically."""
    files.write(path, cohort_page(report))


def _dose(name: str, bins: dict[str, Any]) -> dict[str, Any]:
    edges = ["0", *(f"{cut:.3g}" for cut in bins["cuts"])]
    ranges = [f"{low} to {high}" for low, high in pairwise(edges)] + [f"above {edges[-1]}"]
    medians = [f"{median:.3g}" if median is not None and math.isfinite(median) else "–" for median in bins["medians"]]
    return {"name": _DRUGS[name], "levels": list(zip(ranges, medians[1:], strict=True)), "unit": UNITS[name]}


def _percent(share: float) -> str:
    return f"{share:.1%}" if math.isfinite(share) else "–"


def _without_vasopressor(split: SplitCounts) -> float:
    return sum(split.actions[::LEVELS]) / split.steps if split.steps else math.nan

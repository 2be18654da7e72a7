"""From a user's records to a cohort file, with a report of what was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apps.sepsis.cohort_page import write_cohort_page
from core import files
from core.errors import InputError
from simulators.sepsis.readers import read_cohort
from simulators.sepsis.report import CohortReport

COHORT, REPORT, PAGE = "cohort.nc", "report.json", "report.html"


def ingest(path: str | Path, out: str | Path, **options: Any) -> CohortReport:
    """Read a cohort and write ``cohort.nc``, ``report.json`` and ``report.html`` into a folder.

    The cohort file holds the records, without any id, and stays under the licence of its source; the two reports hold
    counts and quartiles only.

    Args:
        path: of the records.
        out: folder, made if absent; files of an earlier call are replaced.
        options: of ``simulators.sepsis.readers.read_cohort``.

    Raises:
        InputError: as ``read_cohort``, or the folder cannot be written; nothing is written then.
        MissingExtra: Parquet without pyarrow.
    """
    cohort, report = read_cohort(path, **options)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        cohort.save(folder / COHORT)
        write_report(folder, report)
    except OSError as error:
        raise InputError(f"{folder}: {(error.strerror or str(error)).lower()}") from error
    return report


def write_report(folder: Path, report: CohortReport) -> None:
    """Write a report of any cohort as ``report.json`` and ``report.html`` into a folder."""
    files.write(folder / REPORT, report.to_json())
    write_cohort_page(folder / PAGE, report)

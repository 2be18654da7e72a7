"""The card of a trained policy: what it is for, what it was made of, how it did, and what it must not be used for.

After Mitchell et al. (2019), "Model Cards for Model Reporting", FAT* 2019, arXiv 1810.03993.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from core import files
from core.study import Claim, Row, numbers
from core.study.analysis import side_by_side
from simulators.sepsis.features import STATE, feature_hash
from simulators.sepsis.report import CohortReport

WARNING = "Research only, not for clinical use."
LIMITS = (
    "A judge trained on logged choices prefers what clinicians usually did; its preference is no evidence of benefit.",
    "Estimates from logged data rest on the behaviour policy and on overlap, and cannot see confounders that were not "
    "recorded.",
    "Evidence that wins a debate is what the judge weighs, not what causes an outcome.",
)
_VERDICTS = {True: "holds", False: "does not hold", None: "not decided"}


def model_card(
    title: str,
    report: CohortReport,
    settings: Mapping[str, Any],
    *,
    table: Sequence[Row] = (),
    claims: Sequence[Claim] = (),
    limits: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """A card in Markdown.

    Args:
        title: of the model.
        report: of the cohort it was trained on.
        settings: of the training, plain data; a mapping in it is one line.
        table: what was measured.
        claims: what was tested.
        limits: of this model, beside those of all.
        provenance: version, commit, seeds, date.
    """
    kind = "simulated patients" if report.synthetic else "trajectories of real patients, which are not redistributed"
    lines = [
        f"# {_plain(title)}",
        f"> **{WARNING}** It recommends no treatment for any patient, and nobody has tried it on one.",
        "## What it is",
        "A policy over 25 treatments of sepsis (intravenous fluid and vasopressor, five levels each, every 4 h), "
        "trained from logged decisions with a reward that mixes survival and whether a debate about the patient's "
        "features justifies the treatment to a judge (Sukovic and Radanovic, ICLR 2024, arXiv 2402.15826).",
        "## Intended use",
        "- Research on offline reinforcement learning, on debate and on the evaluation of policies from logs.",
        "- Not intended: decisions about patients, triage, dosing, quality control of clinicians, or any product.",
        "## Data",
        f"Source {_plain(report.source)}: {report.flow[-1].trajectories:,} {kind}, {report.flow[-1].steps:,} steps "
        f"of 4 h, {report.survived:.1%} survived. {len(STATE)} features (hash `{feature_hash()}`).",
        _rows(
            ("Split", "Trajectories", "Steps", "Survived"),
            [
                (split.name, f"{split.trajectories:,}", f"{split.steps:,}", numbers.number(split.survived, 3))
                for split in report.splits
            ],
        ),
        *(f"- {_plain(line)}" for line in report.warnings),
        "## Training",
        _rows(("Setting", "Value"), [(name, str(value)) for name, value in settings.items()]),
    ]
    if table or claims:
        lines.append("## Results")
    for claim in claims:
        measured = numbers.estimate(claim.difference, claim.low, claim.high) if claim.difference is not None else ""
        reason = f" {claim.reason}" if claim.reason else ""
        lines.append(f"- {_VERDICTS[claim.holds]}: {_plain(claim.statement)} {measured}{_plain(reason)}".rstrip())
    for scenario, metrics in side_by_side(table).items():
        cells = [
            (
                metric,
                row.method,
                numbers.number(row.mean, numbers.decimals(row.low, row.high)),
                _interval(row),
                _count(row),
            )
            for metric, rows in metrics.items()
            for row in rows
        ]
        lines += [f"### {_plain(scenario)}", _rows(("Metric", "Method", "Mean", "Interval", "n"), cells)]
    lines += ["## Limits", *(f"- {_plain(line)}" for line in (*limits, *LIMITS))]
    if provenance:
        lines += ["## Provenance", _rows(("", ""), [(name, str(value)) for name, value in provenance.items()])]
    return _joined(lines)


def write_model_card(path: Path, title: str, report: CohortReport, settings: Mapping[str, Any], **options: Any) -> None:
    """Write ``model_card(...)`` atomically."""
    files.write(path, model_card(title, report, settings, **options))


def _rows(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows)


def _plain(text: str) -> str:
    """Text that Markdown leaves alone in a cell: on one line, with its bars escaped."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _interval(row: Row) -> str:
    return numbers.interval(row.low, row.high)


def _count(row: Row) -> str:
    return "" if row.n is None else f"{row.n:,}"


def _joined(lines: Sequence[str]) -> str:
    """Paragraphs with an empty line between them, the items of a list without."""
    text = lines[0]
    for before, line in pairwise(lines):
        together = before.startswith("- ") and line.startswith("- ")
        text += ("\n" if together else "\n\n") + line
    return text + "\n"

"""Off-policy estimates as one page: the flags first, then pictures and the table."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from apps.sepsis.figures.off_policy import estimates, overlap
from apps.sepsis.model_card import WARNING
from apps.sepsis.off_policy import OffPolicyReport
from core import files
from core.study import numbers
from core.study.analysis import side_by_side

CAPTIONS = {
    "estimates": "Estimates with 95 % bootstrap intervals over patients; hollow and red: not identifiable. Green: the "
    "truth, where a simulator knows it. Estimates beyond the possible range of -1 to 1 are in the table alone.",
    "overlap": "How much of all importance weight the patients of largest weight carry (weights not clipped). On the "
    "diagonal policy and log are the same; a curve that jumps up rests on a few patients.",
}


def off_policy_page(report: OffPolicyReport) -> str:
    """The report as self-contained HTML."""
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("off_policy_page.html.jinja").read_text(encoding="utf-8")
    )
    pictures = []
    for name, draw in (("estimates", estimates), ("overlap", overlap)):
        buffer = io.BytesIO()
        draw(report).savefig(buffer, format="png", dpi=150, facecolor="white")
        pictures.append((name, CAPTIONS[name], base64.b64encode(buffer.getvalue()).decode()))
    return page.render(
        report=report, warning=WARNING, pictures=pictures, groups=side_by_side(report.rows()), numbers=numbers
    )


def write_off_policy_page(path: Path, report: OffPolicyReport) -> None:
    """Write the page atomically."""
    files.write(path, off_policy_page(report))

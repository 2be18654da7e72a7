"""The end of a study on the terminal: table, claims, and the path of the report as the last line."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.study.analysis import Row, Summary, side_by_side
from core.study.claims import Claim
from core.study.numbers import estimate

VERDICTS = {True: ("green", "holds"), False: ("red", "does not hold"), None: ("yellow", "not decided")}


def print_summary(summary: Summary, headline: Sequence[str] = ()) -> None:
    """Print to stdout what the study found; with a ``headline``, only these metrics, as columns."""
    console = _console()
    print_rows(summary.table, headline, console)
    for claim in summary.claims:
        _print_claim(console, claim)
    if summary.claims:
        held = sum(claim.holds is True for claim in summary.claims)
        console.print(f"\n{held} of {len(summary.claims)} claims hold.")
    # The last line is for the eye and for scripts: no wrapping, no markup.
    print(summary.report)


def print_rows(rows: list[Row], headline: Sequence[str] = (), console: Console | None = None) -> None:
    """Print a table to stdout, scenario by scenario; with a ``headline``, only these metrics.

    They are columns where the terminal is wide enough, and stand one below the other where it is not.
    """
    console = console or _console()
    if headline:
        rows = [row for row in rows if row.metric in headline]
    for scenario, metrics in side_by_side(rows).items():
        if headline:
            metrics = dict(sorted(metrics.items(), key=lambda item: headline.index(item[1][0].metric)))
        if headline and _width(columns := _columns(scenario, metrics), console) <= console.width:
            console.print(columns)
            counts = sorted({row.n for group in metrics.values() for row in group if row.n is not None})
            console.print(f"estimate [95 % interval], n = {' or '.join(f'{n:,}' for n in counts)}\n", style="dim")
        else:
            _print_all(console, scenario, metrics)


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 110
    return console


def _width(table: Table, console: Console) -> int:
    """Characters a line of the table takes when nothing is folded."""
    return console.measure(table, options=console.options.update(width=10_000)).maximum


def _columns(scenario: str, metrics: dict[str, list[Row]]) -> Table:
    """One line a method, one column a metric."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(escape(scenario), overflow="fold")
    for metric in metrics:
        table.add_column(escape(metric.replace(" (", "\n(")), justify="right", no_wrap=True)
    values = {
        (row.method, metric): estimate(row.mean, row.low, row.high)
        for metric, group in metrics.items()
        for row in group
    }
    for method in dict.fromkeys(method for method, _ in values):
        table.add_row(escape(method), *(escape(values.get((method, metric), "")) for metric in metrics))
    return table


def _print_all(console: Console, scenario: str, metrics: dict[str, list[Row]]) -> None:
    """Every metric, method by method."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(escape(scenario), overflow="fold")
    table.add_column(escape("estimate [low, high]"), justify="right", no_wrap=True)
    table.add_column("n", justify="right")
    for metric, group in metrics.items():
        table.add_row(f"  {escape(metric)}")
        for row in group:
            value = escape(estimate(row.mean, row.low, row.high))
            table.add_row(f"    {escape(row.method)}", value, "" if row.n is None else f"{row.n:,}")
    console.print(table)


def _print_claim(console: Console, claim: Claim) -> None:
    colour, verdict = VERDICTS[claim.holds]
    console.print(f"\n[{colour} bold]{verdict}[/]  [bold]{escape(claim.id)}[/]: {escape(claim.statement)}")
    parts = []
    if claim.difference is not None:
        parts.append(f"difference {estimate(claim.difference, claim.low, claim.high)}")
    parts += [f"n = {claim.n:,}"] if claim.n is not None else []
    parts += [f"p = {claim.p:.2g}"] if claim.p is not None else []
    parts += [claim.test] if claim.test else []
    for line in ("; ".join(parts), claim.reason):
        if line:
            console.print(f"  {escape(line)}")

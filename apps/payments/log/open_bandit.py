"""Logs in the Open Bandit format, and what one logger's log says of another policy over items and positions.

Saito, Aihara, Matsutani and Narita, "Open Bandit Dataset and Pipeline", NeurIPS 2021 Datasets and Benchmarks. It is
e-commerce data: the reward is a click on an item that was shown at one of three positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.bandits.off_policy import LoggedRows, logged_rows
from core.errors import InputError
from core.stats import Interval, proportion_interval

POSITIONS = 3

_Column: TypeAlias = "pd.Series[float]"


@dataclass(frozen=True, eq=False)
class OpenBanditLog:
    """n impressions in the order of their time.

    Attributes:
        item: (n,) int64 in [0, items), the action.
        position: (n,) int64 in {0, 1, 2}, where it was shown.
        click: (n,) float64, 0 or 1, the reward.
        propensity: (n,) float64, probability of the item at its position under the policy that logged.
        timestamp: (n,) datetime64[ns], UTC.
        items: number of items, K.
    """

    item: Tensor
    position: Tensor
    click: Tensor
    propensity: Tensor
    timestamp: NDArray[np.datetime64]
    items: int

    def __len__(self) -> int:
        return len(self.item)

    @property
    def click_rate(self) -> Interval:
        """Clicks an impression under the policy that logged, with Wilson's interval."""
        return proportion_interval(int(self.click.sum()), len(self))

    @property
    def impressions(self) -> Tensor:
        """How often each item was shown at each position (3, K), float64."""
        return self._counted(torch.ones_like(self.click))

    def item_frequencies(self) -> Tensor:
        """The log's items as a policy: their share of the impressions at each position (3, K).

        Raises:
            InputError: a position without impressions.
        """
        shown = self.impressions
        total = shown.sum(1, keepdim=True)
        if not bool((total > 0).all()):
            raise InputError(f"position: {int(total.argmin()) + 1} has no impressions, its frequencies are undefined")
        return shown / total

    def click_rates(self, prior: float = 10.0) -> Tensor:
        """Clicks an impression of each item at each position (3, K), shrunk to the log's own rate by ``prior`` rows."""
        return (self._counted(self.click) + prior * self.click.mean()) / (self.impressions + prior)

    def rows(self, policy: Tensor, click_rates: Tensor | None = None) -> LoggedRows:
        """The log as a policy over items at each position (3, K) sees it.

        Args:
            policy: probability (3, K) of each item at each position.
            click_rates: reward model (3, K); the log's own ``click_rates()`` if None, without cross-fitting.

        Raises:
            InputError: tables of another shape, or as ``logged_rows``.
        """
        model = self.click_rates() if click_rates is None else click_rates
        for name, table in (("policy", policy), ("click_rates", model)):
            if table.shape != (POSITIONS, self.items):
                raise InputError(f"{name}: has shape {tuple(table.shape)}, expected ({POSITIONS}, {self.items})")
        at = self.position
        return logged_rows(self.item, self.click, self.propensity, policy[at], model[at])

    def _counted(self, weights: Tensor) -> Tensor:
        cell = self.position * self.items + self.item
        return torch.bincount(cell, weights, minlength=POSITIONS * self.items).view(POSITIONS, self.items)


def read_open_bandit(path: Path, items: int | None = None) -> OpenBanditLog:
    """Read a log of the Open Bandit Dataset: a CSV file, or the folder of a campaign (``bts/men``) that holds it.

    Columns: ``timestamp`` (ISO, with time zone), ``item_id``, ``position`` (1 to 3), ``click``, ``propensity_score``;
    others are not read. Rows are sorted by time.

    Args:
        path: of the file or the folder.
        items: number of items; that of the rows of ``item_context.csv`` beside the log if None.

    Raises:
        InputError: no such file, not such a CSV file, a column that is missing, or a cell that is not a number in its
            column's range or not a time with its zone; file, row (from 0) and column are named.
    """
    file = csv_of(path)
    if items is None:
        items = len(_table(file.with_name("item_context.csv"), ["item_id"]))
    table = _table(file, ["timestamp", "item_id", "position", "click", "propensity_score"])
    time = _times(file, table["timestamp"])
    order = np.argsort(time, kind="stable")

    def column(name: str, right: Callable[[_Column], _Column], allowed: str) -> NDArray[np.float64]:
        numbers = pd.to_numeric(table[name], errors="coerce")
        _refuse(file, table[name], right(numbers), allowed)
        return numbers.to_numpy(np.float64)[order]

    item = column("item_id", lambda x: x.isin(range(items)), f"a whole number in [0, {items - 1}]")
    position = column("position", lambda x: x.isin(range(1, POSITIONS + 1)), f"1 to {POSITIONS}")
    click = column("click", lambda x: x.isin((0, 1)), "0 or 1")
    propensity = column("propensity_score", lambda x: (x > 0) & (x <= 1), "in (0, 1]")
    return OpenBanditLog(
        torch.from_numpy(item).long(),
        torch.from_numpy(position).long() - 1,
        torch.from_numpy(click),
        torch.from_numpy(propensity),
        time[order],
        items,
    )


def csv_of(path: Path) -> Path:
    """The CSV file of a log: the path itself, or the one in a campaign's folder that has its name."""
    return path / f"{path.name}.csv" if path.is_dir() else path


def _table(file: Path, columns: list[str]) -> pd.DataFrame:
    try:
        # The default parser of pandas < 3 is off by a last digit: a probability of 1/34 must be read as 1/34.
        table = pd.read_csv(file, usecols=lambda name: name in columns, float_precision="round_trip")
    except OSError as error:
        raise InputError(f"{file}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise InputError(f"{file}: cannot be read as a CSV file: {str(error).splitlines()[0]}") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise InputError(f"{file}: column {missing[0]} is missing, expected {', '.join(columns)}")
    if table.empty:
        raise InputError(f"{file}: has no rows")
    return table


def _times(file: Path, cells: _Column) -> NDArray[np.datetime64]:
    zoned = cells.astype(str).str.contains(r"(?:Z|[+-]\d\d:?\d\d)$", regex=True)
    times = pd.to_datetime(cells, format="ISO8601", utc=True, errors="coerce")
    _refuse(file, cells, zoned & times.notna(), "an ISO time with its time zone")
    return np.asarray(times.dt.tz_localize(None), dtype="datetime64[ns]")


def _refuse(file: Path, cells: _Column, right: _Column, allowed: str) -> None:
    wrong = np.flatnonzero(~right.to_numpy(bool))
    if wrong.size:
        raise InputError(f"{file}: row {wrong[0]}: {cells.name} is {cells.iloc[wrong[0]]}, must be {allowed}")

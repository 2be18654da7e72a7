"""Masks and orders of k-space lines as files: CSV for people and scanners; see ``bart`` for cfl."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core import files
from core.errors import InputError

COLUMNS = ("order", "line", "offset", "step", "entropy")


@dataclass(frozen=True)
class LineOrder:
    """Lines in the order of their acquisition.

    Attributes:
        lines: column index along W of each, no line twice.
        width: W, the number of lines there are.
        steps: reverse-diffusion step at which each was chosen; None for lines given before the first step.
        entropy: the score by which each was chosen, in nats; None where there is none.

    Raises:
        InputError: a line outside 0..W-1 or twice, a step under 0, an entropy that is not finite, or columns of unequal
            length.
    """

    lines: tuple[int, ...]
    width: int
    steps: tuple[int | None, ...]
    entropy: tuple[float | None, ...]

    def __post_init__(self) -> None:
        if not len(self.lines) == len(self.steps) == len(self.entropy):
            raise InputError(
                f"{len(self.lines)} lines, {len(self.steps)} steps, {len(self.entropy)} entropies: not equal"
            )
        for order, line in enumerate(self.lines):
            if not 0 <= line < self.width:
                raise InputError(f"order {order}: line {line}, must be 0..{self.width - 1}")
            if line in self.lines[:order]:
                raise InputError(f"order {order}: line {line} stands there twice")
        for order, (step, entropy) in enumerate(zip(self.steps, self.entropy, strict=True)):
            if step is not None and step < 0:
                raise InputError(f"order {order}: step {step}, must be at least 0")
            if entropy is not None and not math.isfinite(entropy):
                raise InputError(f"order {order}: entropy {entropy}, must be finite")

    def mask(self) -> Tensor:
        """The mask (W,) of the lines, bool."""
        mask = torch.zeros(self.width, dtype=torch.bool)
        mask[list(self.lines)] = True
        return mask


def write_mask_csv(
    path: str | Path,
    lines: Iterable[int],
    width: int,
    steps: Sequence[int | None] | None = None,
    entropy: Sequence[float | None] | None = None,
) -> None:
    """Write lines in the order of their acquisition, with the columns order, line, offset, step, entropy.

    ``offset`` is line - W // 2, the distance from DC. What is None is left empty.

    Raises:
        InputError: as ``LineOrder``.
    """
    chosen = tuple(int(line) for line in lines)
    none = [None] * len(chosen)
    order = LineOrder(
        chosen,
        width,
        tuple(None if step is None else int(step) for step in (none if steps is None else steps)),
        tuple(None if score is None else float(score) for score in (none if entropy is None else entropy)),
    )
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for number, (line, step, score) in enumerate(zip(order.lines, order.steps, order.entropy, strict=True)):
        rows.writerow((number, line, line - width // 2, step, score))
    files.write(Path(path), text.getvalue())


def read_mask_csv(path: str | Path, width: int) -> LineOrder:
    """Lines in the order of their acquisition, of a CSV file as ``write_mask_csv`` writes it.

    Raises:
        InputError: other columns, a row that is not numbers, rows out of order, an offset that is not line - W // 2, or
            lines that ``LineOrder`` refuses.
    """
    path = Path(path)
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file ({error})") from error
    if not rows or tuple(rows[0]) != COLUMNS:
        raise InputError(f"{path}: columns are {','.join(rows[0]) if rows else 'absent'}, must be {','.join(COLUMNS)}")
    lines, steps, scores = [], [], []
    for number, row in enumerate(rows[1:]):
        try:
            order, line, offset = (int(value) for value in row[:3])
            step, score = row[3:]
            steps.append(int(step) if step else None)
            scores.append(float(score) if score else None)
        except ValueError as error:
            raise InputError(f"{path}: row {number + 1} is {','.join(row)}, must be {','.join(COLUMNS)}") from error
        if (order, offset) != (number, line - width // 2):
            raise InputError(
                f"{path}: row {number + 1} has order {order} and offset {offset}, must be {number} and "
                f"{line - width // 2} for line {line} of {width}"
            )
        lines.append(line)
    try:
        return LineOrder(tuple(lines), width, tuple(steps), tuple(scores))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def binary_mask(values: np.ndarray, width: int, where: str) -> Tensor:
    """A mask (W,), bool, of zeros and ones of any type.

    Raises:
        InputError: not one value for each line, or values other than 0 and 1.
    """
    if values.shape != (width,):
        raise InputError(f"{where}: shape {values.shape}, must be ({width},), a value for each line")
    if not np.isin(values, (0, 1)).all():
        raise InputError(f"{where}: not binary: holds {values[~np.isin(values, (0, 1))][0]}, must be 0 or 1")
    return torch.from_numpy(values != 0)

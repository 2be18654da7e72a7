"""The records of a file in one form, whatever its layout: rows by trajectory and step, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError
from simulators.sepsis.cohort import SPLITS
from simulators.sepsis.features import ACTIONS, STATE
from simulators.sepsis.readers.tables import Codes, Numbers, Table, read_table
from simulators.sepsis.readers.units import Values, check_units, check_values

Gaps = Literal["refuse", "close"]
DOSES = ("input_4hourly", "max_dose_vaso")
"""Columns of the doses behind an action: fluid and vasopressor."""
SPLIT_NAMES: dict[str, int] = {"train": 0, "validation": 1, "val": 1, "test": 2}


@dataclass(frozen=True)
class Layout:
    """How the files of one extraction are laid out.

    Attributes:
        name: of the layout.
        trajectory: column that tells trajectories apart.
        step: column that counts their steps.
        first: number of the first step; the smallest in the file if None.
        outcome: column that says who survived.
        outcomes: from the table, its rows in order ``(N,)`` and their trajectories ``(N,)`` to outcomes ``(P,)``,
            +1 survived, -1 died.
    """

    name: str
    trajectory: str
    step: str
    first: int | None
    outcome: str
    outcomes: Callable[[Table, Codes, Codes], Numbers]


@dataclass(frozen=True, eq=False)
class Records:
    """N steps of P trajectories, trajectory by trajectory, step by step.

    Attributes:
        file: they come from.
        row: ``(N,)`` of the file, from 0.
        trajectory: ``(N,)``, 0 to P - 1 ascending.
        step: ``(N,)`` as in the file.
        features: ``(N, 44)``, in units or normalised.
        doses: ``(N, 2)`` of fluid, mL in 4 h, and of vasopressor, micrograms per kg and minute; None if not in units.
        action: ``(N,)`` of the file, 0 to 24; None if it has none.
        outcome: ``(P,)``, +1 survived, -1 died.
        patient: ``(P,)`` codes; trajectories of one patient share theirs.
        split: ``(P,)`` of the file, 0 to 2; None if it has none.
        key: ``(P,)`` of the file's name for each trajectory, to match another file by; never stored.
        days: whether the file gave ages in days.
        gaps: trajectories whose steps were not consecutive and are now.
        by_patient: whether the file says which stays are of the same patient.
    """

    file: Path
    row: Codes
    trajectory: Codes
    step: Codes
    features: Numbers
    doses: Numbers | None
    action: Codes | None
    outcome: Numbers
    patient: Codes
    split: Codes | None
    key: NDArray[np.object_]
    days: bool
    gaps: int
    by_patient: bool

    def keep(self, trajectories: NDArray[np.bool_], steps: NDArray[np.bool_] | None = None) -> Records:
        """The trajectories ``(P,)`` and, of those, the steps ``(N,)`` that are true."""
        rows = trajectories[self.trajectory] & (True if steps is None else steps)
        renumbered = np.cumsum(trajectories) - 1
        return replace(
            self,
            row=self.row[rows],
            trajectory=renumbered[self.trajectory[rows]],
            step=self.step[rows],
            features=self.features[rows],
            doses=None if self.doses is None else self.doses[rows],
            action=None if self.action is None else self.action[rows],
            outcome=self.outcome[trajectories],
            patient=self.patient[trajectories],
            split=None if self.split is None else self.split[trajectories],
            key=self.key[trajectories],
        )


def read_records(
    file: Path,
    columns: dict[str, str],
    layout: Layout,
    *,
    values: Values | Literal["auto"],
    gaps: Gaps,
    outcome_known: bool = False,
) -> tuple[Records, Values]:
    """Read and check a file.

    Args:
        file: CSV or Parquet.
        columns: from ``file_columns``.
        layout: of the file.
        values: what the file must hold; ``auto`` finds it out.
        gaps: whether steps that are not consecutive are refused or closed up.
        outcome_known: from another file, so that this one may lack it; it is 0 then.

    Returns:
        The records, and whether they are in units or normalised.

    Raises:
        InputError: as ``read_table``; or a cell, a trajectory or a patient is not as it must be.
    """
    required = (layout.trajectory, layout.step, *STATE, *(() if outcome_known else (layout.outcome,)))
    optional = (*DOSES, "action", "icustayid", "subject_id", "split", layout.outcome)
    table = read_table(file, columns, required, optional)
    order, trajectory, step, closed = _ordered(table, layout, gaps)
    features = np.stack([table.numbers(name) for name in STATE], axis=1)
    found = check_values(table, features, values)
    days = found == "raw" and check_units(table, features)
    doses = None
    if found == "raw" and table.has(*DOSES):
        doses = np.stack([table.numbers(name) for name in DOSES], axis=1)
        for i, name in enumerate(DOSES):
            table.refuse(name, doses[:, i] < 0, "at least 0, a dose")
    last = _last(trajectory)
    outcome = np.zeros(len(last))
    if table.has(layout.outcome):
        outcome = layout.outcomes(table, order, trajectory)
    patient = _patients(table, layout, order, trajectory, last)
    action = table.whole("action", 0, ACTIONS - 1)[order] if table.has("action") else None
    return (
        Records(
            file=file,
            row=order,
            trajectory=trajectory,
            step=step,
            features=features[order],
            doses=None if doses is None else doses[order],
            action=action,
            outcome=outcome,
            patient=patient,
            split=_splits(table, order, trajectory, patient, last) if table.has("split") else None,
            key=table.cells[layout.trajectory].to_numpy(object)[order][last],
            days=days,
            gaps=closed,
            by_patient=table.has("subject_id"),
        ),
        found,
    )


def mortality(column: str) -> Callable[[Table, Codes, Codes], Numbers]:
    """Outcomes from a column that says in every row of a trajectory whether the patient died, 0 or 1."""

    def outcomes(table: Table, order: Codes, trajectory: Codes) -> Numbers:
        died = table.whole(column, 0, 1)[order]
        changed = np.append(False, (np.diff(died) != 0) & (np.diff(trajectory) == 0))
        _refuse_ordered(table, column, changed, order, "the same in all rows of a trajectory")
        return (1 - 2 * died[_last(trajectory)]).astype(np.float64)

    return outcomes


def final_reward(table: Table, order: Codes, trajectory: Codes) -> Numbers:
    """Outcomes from rewards: +1 or -1 at the last step of a trajectory, 0 before it."""
    reward = table.numbers("reward")
    table.refuse("reward", ~np.isin(reward, (-1.0, 0.0, 1.0)), "1 (survived), -1 (died) or 0", show=reward)
    reward = reward[order]
    count = int(trajectory[-1]) + 1
    both = (np.bincount(trajectory, reward == 1, count) > 0) & (np.bincount(trajectory, reward == -1, count) > 0)
    died_too = (reward == -1) & both[trajectory]
    _refuse_ordered(table, "reward", died_too, order, "of one sign: this trajectory has both 1 and -1")
    last = _last(trajectory)
    early = reward != 0
    early[last] = False
    _refuse_ordered(table, "reward", early, order, "0 before the last step of a trajectory")
    unknown = np.zeros(len(reward), dtype=bool)
    unknown[last] = reward[last] == 0
    _refuse_ordered(table, "reward", unknown, order, "1 (survived) or -1 (died) at the last step of a trajectory")
    return reward[last]


def _ordered(table: Table, layout: Layout, gaps: Gaps) -> tuple[Codes, Codes, Codes, int]:
    """Rows in order, with their trajectory and step, and how many trajectories had gaps that were closed."""
    codes, steps = table.codes(layout.trajectory), table.whole(layout.step, 0)
    order = np.lexsort((steps, codes))
    trajectory, step = codes[order], steps[order]
    same, ahead = np.diff(trajectory) == 0, np.diff(step)
    twice = np.append(False, same & (ahead == 0))
    if twice.any():
        at = int(twice.argmax())
        raise InputError(
            f"{table.file}: row {order[at]}: {table.columns[layout.step]} {step[at]} of this {layout.trajectory} "
            f"stands in row {order[at - 1]} too, must be there once"
        )
    first = int(step.min()) if layout.first is None else layout.first
    starts = np.append(True, ~same)
    wanted = np.where(starts, first, np.append(first, step[:-1] + 1))
    wrong = step != wanted
    if wrong.any() and gaps == "refuse":
        at = int(wrong.argmax())
        after = "at the start of a trajectory" if starts[at] else f"after {step[at - 1]}"
        raise InputError(
            f"{table.file}: row {order[at]}: {table.columns[layout.step]} is {step[at]}, must be {wanted[at]} {after}"
            "; gaps = close joins what is there"
        )
    return order, trajectory, step, len(np.unique(trajectory[wrong]))


def _patients(table: Table, layout: Layout, order: Codes, trajectory: Codes, last: Codes) -> Codes:
    """``(P,)`` codes of the patients, of the most reliable column that tells them apart."""
    column = next(name for name in ("subject_id", "icustayid", layout.trajectory) if table.has(name))
    patient = table.codes(column)[order]
    changed = np.append(False, (np.diff(patient) != 0) & (np.diff(trajectory) == 0))
    _refuse_ordered(table, column, changed, order, "the same in all rows of a trajectory")
    return patient[last]


def _splits(table: Table, order: Codes, trajectory: Codes, patient: Codes, last: Codes) -> Codes:
    """``(P,)`` the file's own split, by patient."""
    names = table.cells["split"].astype(str).str.strip().str.lower()
    found = names.map(SPLIT_NAMES)
    table.refuse("split", found.isna().to_numpy(), f"one of {', '.join(SPLITS)}")
    split = found.to_numpy(np.int64)[order]
    persons = patient[trajectory]
    # The first row, in the file's order, says in which split a patient is.
    first = np.full(int(persons.max()) + 1, len(order))
    np.minimum.at(first, persons, order)
    elsewhere = split != found.to_numpy(np.int64)[first[persons]]
    if elsewhere.any():
        row = int(order[elsewhere].min())
        patient_row = int(first[persons[order == row][0]])
        raise InputError(
            f"{table.file}: row {row}: {table.columns['split']} is {names[row]}, but the same patient is in "
            f"{names[patient_row]} in row {patient_row}; must be one split a patient"
        )
    return split[last]


def _last(trajectory: Codes) -> Codes:
    return np.append(np.flatnonzero(np.diff(trajectory)), len(trajectory) - 1)


def _refuse_ordered(table: Table, name: str, wrong: NDArray[np.bool_], order: Codes, allowed: str) -> None:
    """``Table.refuse`` for marks in the sorted order."""
    marks = np.zeros(len(order), dtype=bool)
    marks[order] = wrong
    table.refuse(name, marks, allowed)

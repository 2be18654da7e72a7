"""Read a cohort that a user extracted from MIMIC, whatever its layout, and report what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import InputError
from simulators.sepsis.cohort import Cohort, check_cohort, split_patients
from simulators.sepsis.features import INDEX, LEVELS, STATE, UNITS, Normalisation
from simulators.sepsis.readers.ai_clinician import ai_clinician
from simulators.sepsis.readers.column_map import MORTALITIES, read_column_map
from simulators.sepsis.readers.doses import DoseBins
from simulators.sepsis.readers.mimic_sepsis import MIMIC_SEPSIS
from simulators.sepsis.readers.records import DOSES, Gaps, Layout, Records, read_records
from simulators.sepsis.readers.tables import Codes, Numbers, file_columns
from simulators.sepsis.readers.units import Values
from simulators.sepsis.report import CohortReport, ScoreCheck, Stage, describe
from simulators.sepsis.scores import sirs, sofa
from simulators.sepsis.sepsis44 import LIMITS

LayoutName = Literal["mimic_sepsis", "ai_clinician"]
SPLIT_SEED = 5568
CHOICES = {
    "values": ("auto", "raw", "normalised"),
    "actions": ("auto", "doses", "file"),
    "gaps": ("refuse", "close"),
}
"""What the options of a reading may be."""
BEYOND = 3.0
"""Times the usual range of a feature beyond which a value is told to be impossible."""


def read_cohort(
    path: str | Path,
    *,
    layout: LayoutName | Literal["auto"] = "auto",
    raw: str | Path | None = None,
    column_map: str | Path | None = None,
    split_seed: int = SPLIT_SEED,
    horizon: int | None = None,
    values: Values | Literal["auto"] = "auto",
    actions: Literal["auto", "doses", "file"] = "auto",
    mortality: str = MORTALITIES[0],
    gaps: Gaps = "refuse",
    recompute_scores: bool = False,
    measures: bool = True,
) -> tuple[Cohort, CohortReport]:
    """Read a cohort from CSV or Parquet.

    Layouts: ``mimic_sepsis`` (``traj, step``, ``o:`` columns, ``a:action``, ``r:reward``), ``ai_clinician``
    (``MIMICtable``: ``bloc, icustayid``, no prefixes); exports of MIMIC-IV in either. Where values are in units, they
    are normalised by the training split, and doses become actions by its quartiles; a normalised file stays as it is.
    No id of a patient or a stay is kept.

    Args:
        path: of the file.
        layout: of the file; found out if ``auto``.
        raw: file with the same trajectories in units, where ``path`` is normalised.
        column_map: YAML that says ``NAME: column in the file`` for columns with other names.
        split_seed: of the split by patient, 70/15/15, stratified by outcome; unused where the file has a column
            ``split``.
        horizon: keep so many first steps of each trajectory; all if None.
        values: what ``path`` must hold; found out by its heart rates if ``auto``.
        actions: by dose quartiles, or the file's own; ``auto`` prefers doses.
        mortality: column that says who died in an AI-Clinician table.
        gaps: ``refuse`` steps that are not consecutive, or ``close`` them up (blocks without data may be left out).
        recompute_scores: put SOFA and SIRS computed here into the state; they are always compared.
        measures: report quality and coverage too.

    Returns:
        The cohort and its report.

    Raises:
        InputError: a file, a row, a column or a trajectory is not as it must be; the message is one line that names it.
        MissingExtra: Parquet without pyarrow.
    """
    path = Path(path)
    if horizon is not None and horizon < 2:
        raise InputError(f"horizon = {horizon}: must be at least 2 steps, or none")
    for name, given in (("values", values), ("actions", actions), ("gaps", gaps)):
        if given not in CHOICES[name]:
            raise InputError(f"{name} = {given}: must be one of {', '.join(CHOICES[name])}")
    renamed = {} if column_map is None else read_column_map(Path(column_map))
    columns = file_columns(path, renamed)
    known: dict[str, Layout] = {"mimic_sepsis": MIMIC_SEPSIS, "ai_clinician": ai_clinician(mortality)}
    found_layout = _layout(path, columns, layout, known)
    expected = values if raw is None else "normalised"
    records, found = read_records(path, columns, found_layout, values=expected, gaps=gaps)
    if raw is not None:
        raw = Path(raw)
        in_units, found = read_records(
            raw, file_columns(raw, renamed), found_layout, values="raw", gaps=gaps, outcome_known=True
        )
        records = _paired(records, in_units)
    notes = _notes(records, found)
    flow = [Stage("in the file", len(records.outcome), len(records.step))]
    records = records.keep(np.bincount(records.trajectory) > 1)
    flow.append(Stage("of two steps or more", len(records.outcome), len(records.step)))
    if not len(records.outcome):
        raise InputError(f"{path}: every trajectory has one step; must be two or more for a decision to have a sequel")
    position = _positions(records.trajectory)
    if horizon is not None:
        records = records.keep(np.ones(len(records.outcome), dtype=bool), position < horizon)
        position = _positions(records.trajectory)
        flow.append(Stage(f"cut to {horizon} steps", len(records.outcome), len(records.step)))

    split = _split(records, split_seed)
    training = split[records.trajectory] == 0
    if not training.any():
        raise InputError(f"{path}: no trajectory is in the training split; must be at least one")
    action, doses = _actions(records, actions, training, notes)
    scores: tuple[ScoreCheck, ...] = ()
    if found == "raw" and records.doses is not None:
        scores = _check_scores(records, records.doses[:, 1], notes, recompute=recompute_scores)
    elif recompute_scores:
        raise InputError(f"{path}: SOFA cannot be recomputed without values in units and {' and '.join(DOSES)}")

    origin = {
        "source": found_layout.name,
        "synthetic": False,
        "file": path.name,
        "raw_file": None if raw is None else raw.name,
        "values": found,
        "split_seed": "the file's own split" if records.split is not None else split_seed,
        "outcome": found_layout.outcome,
        "actions": "the file's" if doses is None else "quartiles of the doses in the training split",
        "doses": doses,
        "scores": "recomputed" if recompute_scores else "the file's",
        "horizon": horizon,
    }
    cohort = _cohort(records, position, action, split, found, origin)
    check_cohort(cohort, str(path))
    return cohort, describe(cohort, flow=flow, scores=scores, warnings=notes, measures=measures, seed=split_seed)


def _layout(path: Path, columns: Mapping[str, str], wanted: str, known: Mapping[str, Layout]) -> Layout:
    if wanted != "auto":
        if wanted not in known:
            raise InputError(f"layout = {wanted}: must be auto, {' or '.join(known)}")
        return known[wanted]
    for layout in known.values():
        if layout.trajectory in columns and layout.step in columns:
            return layout
    kinds = " or ".join(f"{x.trajectory} and {x.step} ({x.name})" for x in known.values())
    raise InputError(f"{path}: its layout is unknown: must have the columns {kinds}; a column map can name them")


def _paired(records: Records, raw: Records) -> Records:
    """Normalised records with the features and doses of the file in units."""
    where = pd.Index(raw.key).get_indexer(pd.Index(records.key))
    starts = np.searchsorted(raw.trajectory, np.arange(len(raw.outcome)))
    lengths, raw_lengths = np.bincount(records.trajectory), np.bincount(raw.trajectory)
    absent = (where < 0) | (lengths != raw_lengths[where])
    place = starts[where[records.trajectory]] + _positions(records.trajectory)
    unlike = absent[records.trajectory]
    unlike[~unlike] = records.step[~unlike] != raw.step[place[~unlike]]
    if unlike.any() or len(raw.step) != len(records.step):
        row = f"row {records.row[unlike].min()} of {records.file}" if unlike.any() else f"all rows of {records.file}"
        raise InputError(f"{raw.file}: must have the same trajectories and steps, lacks or adds to those of {row}")
    died_there = raw.outcome[where]
    if ((died_there != 0) & (died_there != records.outcome)).any():
        at = int(records.row[np.isin(records.trajectory, np.flatnonzero(died_there != records.outcome))].min())
        raise InputError(f"{raw.file}: has another outcome for the trajectory of row {at} of {records.file}")
    return replace(
        records,
        features=raw.features[place],
        doses=None if raw.doses is None else raw.doses[place],
        action=raw.action[place] if records.action is None and raw.action is not None else records.action,
        days=raw.days,
    )


def _cohort(
    records: Records, position: Codes, action: Codes, split: Codes, found: Values, origin: dict[str, Any]
) -> Cohort:
    """The rows as a cohort, padded to the longest trajectory; values in units are normalised by the training split."""
    features = torch.from_numpy(records.features).float()
    training = torch.from_numpy(split[records.trajectory] == 0)
    normalisation = Normalisation.fit(features[training]) if found == "raw" else None
    place = torch.from_numpy(records.trajectory), torch.from_numpy(position)
    size = len(records.outcome), int(position.max()) + 1

    def padded(rows: Tensor) -> Tensor:
        return rows.new_zeros(*size, *rows.shape[1:]).index_put_(place, rows)

    return Cohort(
        state=padded(features if normalisation is None else normalisation.apply(features)),
        action=padded(torch.from_numpy(action)),
        mask=padded(torch.ones(len(action), dtype=torch.bool)),
        outcome=torch.from_numpy(records.outcome).float(),
        split=torch.from_numpy(split),
        raw=None if normalisation is None else padded(features),
        normalisation=normalisation,
        origin=origin,
    )


def _notes(records: Records, found: Values) -> list[str]:
    """What a user must know of a file that was accepted."""
    notes = []
    if found == "normalised":
        notes.append("the file's own normalisation is kept: it has seen all splits, and values have no units")
        spread = float(records.features[:, INDEX["input_total"]].std())
        if 1.8 < spread < 2.2:
            notes.append(f"input_total has standard deviation {spread:.2f}: the extraction doubled this column")
    if records.days:
        notes.append("age is in days in the file and in years here")
    if records.gaps:
        notes.append(
            f"steps that were not consecutive were closed up in {records.gaps} of {len(records.outcome)} trajectories"
        )
    if not records.by_patient and records.split is None:
        notes.append("no column subject_id: a patient who came twice may be in two splits")
    if found == "raw":
        for name, (low, high) in LIMITS.items():
            values = records.features[:, INDEX[name]]
            beyond = int(((values < min(0.0, BEYOND * low)) | (values > BEYOND * high)).sum())
            if beyond:
                notes.append(f"{name}: {beyond} values far beyond {low:g} to {high:g} {UNITS[name]}; they are kept")
    return notes


def _positions(trajectory: Codes) -> Codes:
    """``(N,)`` place of each row in its trajectory, from 0."""
    starts = np.searchsorted(trajectory, trajectory)
    return np.arange(len(trajectory)) - starts


def _split(records: Records, seed: int) -> Codes:
    """``(P,)`` the file's split, else one drawn by patient: whoever died in one stay counts as dead."""
    if records.split is not None:
        return records.split
    _, person = np.unique(records.patient, return_inverse=True)
    outcome = np.ones(int(person.max()) + 1)
    np.minimum.at(outcome, person, records.outcome)
    drawn: Codes = split_patients(torch.from_numpy(outcome), seed).numpy()[person]
    return drawn


def _actions(
    records: Records, wanted: str, training: NDArray[np.bool_], notes: list[str]
) -> tuple[Codes, dict[str, Any] | None]:
    """Actions, and the bins of the doses if they came of them."""
    if wanted == "file" or (wanted == "auto" and records.doses is None):
        if records.action is None:
            raise InputError(
                f"{records.file}: column action is missing, and so are {' and '.join(DOSES)} in units, of which it "
                "could be made; must have one or the other"
            )
        return records.action, None
    if records.doses is None:
        raise InputError(f"{records.file}: actions = doses needs {' and '.join(DOSES)} in units")
    bins = [DoseBins.fit(records.doses[training, i], f"{records.file}: {name}") for i, name in enumerate(DOSES)]
    fluid, vasopressor = (drug.level(records.doses[:, i]) for i, drug in enumerate(bins))
    action = LEVELS * fluid + vasopressor
    if records.action is not None:
        unlike = float((action != records.action).mean())
        if unlike > 0:
            notes.append(f"the file's actions differ from those by dose quartiles on {unlike:.2%} of the steps")
    return action, {name: asdict(drug) for name, drug in zip(DOSES, bins, strict=True)}


def _check_scores(records: Records, dose: Numbers, notes: list[str], *, recompute: bool) -> tuple[ScoreCheck, ...]:
    """SOFA and SIRS from the columns they are made of, against the file's; put into the features if asked."""
    values = torch.from_numpy(records.features)
    column = {name: values[:, i] for i, name in enumerate(STATE)}
    ours = {
        "SOFA": sofa(
            pf=column["PaO2_FiO2"],
            platelets=column["Platelets_count"],
            bilirubin=column["Total_bili"],
            mean_bp=column["MeanBP"],
            vasopressor_dose=torch.from_numpy(dose),
            gcs=column["GCS"],
            creatinine=column["Creatinine"],
            urine_4h=column["output_4hourly"],
        ),
        "SIRS": sirs(*(column[name] for name in ("Temp_C", "HR", "RR", "paCO2", "WBC_count"))),
    }
    checks = []
    for name, score in ours.items():
        gap = (score - column[name]).abs()
        check = ScoreCheck(
            name=name,
            maximum=float(column[name].max()),
            recomputed_maximum=float(score.max()),
            differs=float((gap > 0).double().mean()),
            differs_much=float((gap > 1).double().mean()),
        )
        checks.append(check)
        if check.differs:
            notes.append(
                f"{name}: differs from what its own columns give on {check.differs:.2%} of the steps, by more than 1 "
                f"on {check.differs_much:.2%}; largest {check.maximum:g} in the file, {check.recomputed_maximum:g} here"
                + (_CAUSES[name] if check.maximum <= _TRUNCATED[name] < check.recomputed_maximum else "")
            )
        if recompute:
            records.features[:, INDEX[name]] = score.numpy()
    return tuple(checks)


_TRUNCATED = {"SOFA": 16, "SIRS": 1}
_CAUSES = {
    "SOFA": ": the terms of coma and kidney seem to be lost",
    "SIRS": ": all criteria but temperature seem to be lost",
}

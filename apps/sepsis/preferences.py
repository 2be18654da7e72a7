"""Pairs of treatments in the same state, one of which is preferred: from the log, from a scorer, or from clinicians.

Sukovic and Radanovic (ICLR 2024, arXiv 2402.15826) call the clinician's logged treatment preferred to any other.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from core import files
from core.errors import InputError
from simulators.sepsis.cohort import Cohort, Steps
from simulators.sepsis.features import ACTIONS, LEVELS, STATE

How = Literal["random", "offset", "exhaustive"]
"""Which treatments are held against the logged one: any other, one next to it, or all others."""
COLUMNS = ("traj", "step", "action_1", "action_2", "preference")
"""Columns of a file of labels; ``evidence`` may follow."""
ANSWERS = {"1": 1.0, "2": 0.0, "0": 0.5}
"""What stands in the column ``preference``, and the probability that it gives to the first treatment."""


@dataclass(frozen=True)
class Preferences:
    """N judged pairs of treatments.

    Attributes:
        state: ``(N, 44)`` normalised.
        preferred: ``(N,)`` int64 in 0..24.
        rejected: ``(N,)`` int64 in 0..24, never the preferred one.
        patient: ``(N,)`` int64, row of the patient in the cohort.
        step: ``(N,)`` int64, 4 h each.
        label: ``(N,)`` float32, probability that ``preferred`` wins: 1 for a plain preference, .5 for a tie.
        evidence: ``(N, 44)`` bool, the features that whoever judged has cited; None if nobody was asked.
    """

    state: Tensor
    preferred: Tensor
    rejected: Tensor
    patient: Tensor
    step: Tensor
    label: Tensor
    evidence: Tensor | None = None

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: Tensor) -> Preferences:
        """Those rows: indices ``(K,)``, in that order, or a mask ``(N,)``."""
        return self._each(lambda x: x[rows])

    def to(self, device: torch.device | str) -> Preferences:
        """The same on another device."""
        return self._each(lambda x: x.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Preferences:
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(x) for name, x in held.items() if x is not None})


def draw_preferences(steps: Steps, generator: torch.Generator, how: How = "random") -> Preferences:
    """The logged treatment of each decision, preferred to others.

    Args:
        steps: N decisions.
        generator: on the device of ``steps``.
        how: ``random``, one of the 24 others, each as likely; ``offset``, one of those at most one level away in both
            drugs, each as likely; ``exhaustive``, all 24, which gives 24 N pairs.
    """
    state, action, patient, step = steps.state, steps.action, steps.patient, steps.step
    if how == "exhaustive":
        state, action, patient, step = (x.repeat_interleave(ACTIONS - 1, 0) for x in (state, action, patient, step))
        rejected = (action + 1 + torch.arange(len(action), device=action.device) % (ACTIONS - 1)) % ACTIONS
    elif how == "offset":
        weight = _neighbours(action.device)[action].float()
        rejected = torch.multinomial(weight, 1, generator=generator).squeeze(1) if len(action) else action
    else:
        rejected = _other(action, generator)
    return Preferences(state, action, rejected, patient, step, torch.ones(len(action), device=action.device))


def truth_preferences(steps: Steps, scores: Tensor, generator: torch.Generator) -> Preferences:
    """The logged treatment of each decision against a random other one, judged by a scorer that knows the truth.

    Args:
        steps: N decisions.
        scores: ``(N, 25)``, higher is better, such as ``cohort.truth["score"]`` at the same steps; equal scores tie.
        generator: on the device of ``steps``.

    Raises:
        InputError: scores of another shape, or not finite.
    """
    if scores.shape != (len(steps), ACTIONS) or not bool(scores.isfinite().all()):
        raise InputError(f"scores of shape {tuple(scores.shape)}: must be finite, of shape ({len(steps)}, {ACTIONS})")
    first, second = steps.action, _other(steps.action, generator)
    gain = (scores.gather(1, first[:, None]) - scores.gather(1, second[:, None])).squeeze(1)
    return Preferences(
        steps.state,
        torch.where(gain >= 0, first, second),
        torch.where(gain >= 0, second, first),
        steps.patient,
        steps.step,
        torch.where(gain == 0, 0.5, 1.0),
    )


def read_preferences(path: Path, cohort: Cohort) -> Preferences:
    """Labels of clinicians, from a CSV file.

    Its columns are ``traj``, ``step``, ``action_1``, ``action_2``, ``preference`` and, optional, ``evidence``.
    ``traj`` is the row of the patient in the cohort and ``step`` counts from 0, as ``write_preferences`` has them.
    ``preference`` is 1 or 2 for the action that is the better one, 0 if neither is; rows without an answer are left
    out. ``evidence`` names the features that decided, with spaces between them. Several answers to the same question,
    from several clinicians, are several rows.

    Raises:
        InputError: no such file, a missing column, a value that is refused (the message names the row, the header
            being row 1), or no answer at all.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "not text in UTF-8"
        raise InputError(f"{path}: {reason}") from error
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    if absent := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise InputError(f"{path}: no column {', '.join(absent)}; needed are {', '.join(COLUMNS)}")
    steps = cohort.mask.sum(1).tolist()
    answers = [
        _answer(row, f"{path}, row {reader.line_num}", steps, cohort.features)
        for row in reader
        if (row["preference"] or "").strip()
    ]
    if not answers:
        raise InputError(f"{path}: no row has an answer in the column preference")
    table = torch.tensor([answer[:4] for answer in answers])
    patient, step, first, second = table.unbind(1)
    label = torch.tensor([answer[4] for answer in answers])
    evidence = torch.zeros(len(answers), len(cohort.features), dtype=torch.bool)
    for row, answer in zip(evidence, answers, strict=True):
        row[answer[5]] = True
    return Preferences(
        cohort.state.cpu()[patient, step],
        torch.where(label == 0, second, first),
        torch.where(label == 0, first, second),
        patient,
        step,
        torch.where(label == 0, 1.0, label),
        evidence if bool(evidence.any()) else None,
    )


def write_preferences(
    path: Path, preferences: Preferences, *, answered: bool = True, features: Sequence[str] = STATE
) -> None:
    """Write the file that ``read_preferences`` reads, atomically; it holds no values of patients.

    Args:
        path: a CSV file.
        preferences: N pairs.
        answered: False leaves ``preference`` empty, for clinicians to fill in.
        features: names of the state's features, in order.

    Raises:
        InputError: a label that is neither a preference nor a tie.
    """
    p = preferences
    known = (p.label == 1) | (p.label == 0.5) | (p.label == 0)
    if answered and not bool(known.all()):
        row = int((~known).nonzero()[0])
        raise InputError(f"preferences.label[{row}] = {float(p.label[row]):g}; a file can hold 0, 0.5 and 1")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow((*COLUMNS, "evidence"))
    answer = {label: name for name, label in ANSWERS.items()}
    columns = torch.stack((p.patient, p.step, p.preferred, p.rejected), 1).tolist()
    cited = [""] * len(p) if p.evidence is None else [_names(row, features) for row in p.evidence.tolist()]
    for numbers, label, names in zip(columns, p.label.tolist(), cited, strict=True):
        writer.writerow((*numbers, answer[label] if answered else "", names))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, file.getvalue())


def _answer(
    row: Mapping[str, str | None], place: str, steps: Sequence[int], features: Sequence[str]
) -> tuple[int, int, int, int, float, list[int]]:
    """Patient, step, the two actions, probability that the first wins, and the features cited."""
    if None in row:
        raise InputError(f"{place}: more fields than the header has; names in evidence have spaces between them")
    patient = _whole(row, "traj", place, len(steps))
    step = _whole(row, "step", place, steps[patient])
    first, second = (_whole(row, name, place, ACTIONS) for name in ("action_1", "action_2"))
    if first == second:
        raise InputError(f"{place}: action_1 and action_2 are both {first}; they must differ")
    given = (row["preference"] or "").strip()
    if given not in ANSWERS:
        raise InputError(f"{place}, column preference: {given!r}; must be {', '.join(ANSWERS)} or empty")
    names = (row.get("evidence") or "").split()
    if unknown := [name for name in names if name not in features]:
        raise InputError(f"{place}, column evidence: {unknown[0]!r} is not a feature of the cohort")
    return patient, step, first, second, ANSWERS[given], [features.index(name) for name in names]


def _whole(row: Mapping[str, str | None], name: str, place: str, end: int) -> int:
    text = (row[name] or "").strip()
    if not text.isdecimal() or int(text) >= end:
        raise InputError(f"{place}, column {name}: {text!r}; must be a whole number within 0..{end - 1}")
    return int(text)


def _names(row: Sequence[bool], features: Sequence[str]) -> str:
    return " ".join(name for name, cited in zip(features, row, strict=True) if cited)


def _other(action: Tensor, generator: torch.Generator) -> Tensor:
    shift = torch.randint(1, ACTIONS, action.shape, generator=generator, device=action.device)
    return (action + shift) % ACTIONS


def _neighbours(device: torch.device) -> Tensor:
    """``(25, 25)`` bool: another treatment, at most one level away in each drug."""
    level = torch.arange(ACTIONS, device=device)
    fluid, vasopressor = level // LEVELS, level % LEVELS
    near = ((fluid[:, None] - fluid).abs() <= 1) & ((vasopressor[:, None] - vasopressor).abs() <= 1)
    return near & (level[:, None] != level)

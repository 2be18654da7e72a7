"""Debates to be read: who revealed which feature, and how the judge leaned after each, as JSON and as one HTML page.

Where the patients are real, values are withheld (``redact``): a reader sees whether each is low, normal or high for
the training cohort, and no page says which patient it was. The judge's scores are rounded then: one value after
another could be worked out from exact ones by whoever has the judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import Environment, StrictUndefined
from torch import Tensor

from apps.sepsis.debate import Debate, Scorer, check_items
from core import files
from core.errors import InputError
from simulators.sepsis.features import CENTRED, STATE, UNITS, action_name

Band = Literal["low", "normal", "high"]

WARNING = "Research only, not for clinical use."
BAND = 1.0
"""Standard deviations of the training cohort from its mean within which a value is called normal."""
DEVIATION = "standard deviations from the training mean"
WITHHELD = (
    f"low, normal, high: more than {BAND:g} standard deviation below, within, above the training mean; scores rounded"
)
SCORE_STEP, LEANING_STEP = 0.1, 0.05
"""To which scores and probabilities are rounded where values are withheld."""
PAGE, RECORD = "transcripts.html", "transcripts.json"


@dataclass(frozen=True)
class Turn:
    """One item of evidence.

    Attributes:
        speaker: 1 or 2.
        feature: name of the revealed feature.
        band: the value against the training cohort; binary features are low or high.
        value: in ``unit``; None if withheld.
        unit: of the value; empty if withheld or without one.
        score_first: the judge's score of player 1's action after this turn; rounded if values are withheld.
        score_second: of player 2's action.
        preference: the judge's probability that the first action is the better one, after this turn; rounded likewise.
    """

    speaker: int
    feature: str
    band: Band
    value: float | None
    unit: str
    score_first: float
    score_second: float
    preference: float


@dataclass(frozen=True)
class Transcript:
    """One debate.

    Attributes:
        patient: whose state it was, as the cohort counts; of redacted transcripts ``case 1``, ``case 2``, ... in the
            order in which they appear; None if unknown.
        step: of the stay, 4 h each; None if unknown.
        first: player 1's action in words.
        second: player 2's action in words.
        sides: the names of player 1 and player 2.
        opening: the judge's probability that the first action is the better one before it has seen anything.
        turns: in order.
        winner: the name of the side whose action the judge prefers at the end; None if it is undecided.
        redacted: whether values were withheld.
    """

    patient: str | None
    step: int | None
    first: str
    second: str
    sides: tuple[str, str]
    opening: float
    turns: tuple[Turn, ...]
    winner: str | None
    redacted: bool

    @property
    def leanings(self) -> list[float]:
        """The judge's probability of the first action before the debate and after each turn."""
        return [self.opening, *(turn.preference for turn in self.turns)]


def transcribe(
    judge: Scorer,
    debate: Debate,
    *,
    patient: Tensor | None = None,
    step: Tensor | None = None,
    raw: Tensor | None = None,
    sides: tuple[str, str] = ("player 1", "player 2"),
    features: Sequence[str] = STATE,
    redact: bool = True,
) -> list[Transcript]:
    """Write down finished debates; those between two equal actions are left out, there is nothing to judge.

    Args:
        judge: scores the evidence after every turn.
        debate: N debates.
        patient: ``(N,)`` row of each patient in its cohort.
        step: ``(N,)`` of each stay.
        raw: ``(N, F)`` states in units; without them values are given in standard deviations.
        sides: names of the players.
        features: names of the F features, in order.
        redact: withhold values and patients, and round scores. Only for simulated patients may it be False.

    Raises:
        InputError: another number of features, or of rows.
    """
    if debate.state.shape[1] != len(features):
        raise InputError(f"debate: {debate.state.shape[1]} features; must be {len(features)}")
    for name, rows in (("patient", patient), ("step", step), ("raw", raw)):
        if rows is not None and len(rows) != len(debate):
            raise InputError(f"{name}: {len(rows)} rows; must be {len(debate)}, one a debate")
    check_items(debate.items.shape[1], len(features), players=1)
    kept = torch.nonzero(debate.first != debate.second)[:, 0]
    if not len(kept):
        return []
    debate = debate.take(kept)
    first, second = _running_scores(judge, debate)
    winner = (first[:, -1] - second[:, -1]).sign().tolist()
    leaning = torch.sigmoid(first - second)
    if redact:
        first, second, leaning = (
            _rounded(first, SCORE_STEP),
            _rounded(second, SCORE_STEP),
            _rounded(leaning, LEANING_STEP),
        )
    revealed = debate.state.gather(1, debate.items)
    units = revealed if raw is None else raw[kept].gather(1, debate.items)
    names = [None] * len(debate) if patient is None else _names(patient[kept].tolist(), redact)
    steps = [None] * len(debate) if step is None else step[kept].tolist()
    transcripts = []
    for n in range(len(debate)):
        turns = []
        for t, (item, speaker) in enumerate(zip(debate.items[n].tolist(), debate.speaker[n].tolist(), strict=True)):
            unit = DEVIATION if raw is None else UNITS.get(features[item], "")
            turn = Turn(
                speaker=speaker,
                feature=features[item],
                band=_band(features[item], float(revealed[n, t])),
                value=None if redact else float(units[n, t]),
                unit="" if redact or unit == "1" else unit,
                score_first=float(first[n, t + 1]),
                score_second=float(second[n, t + 1]),
                preference=float(leaning[n, t + 1]),
            )
            turns.append(turn)
        won = {1: sides[0], -1: sides[1], 0: None}[int(winner[n])]
        actions = action_name(int(debate.first[n])), action_name(int(debate.second[n]))
        transcripts.append(
            Transcript(names[n], steps[n], *actions, sides, float(leaning[n, 0]), tuple(turns), won, redact)
        )
    return transcripts


def write_transcripts(folder: Path, transcripts: Sequence[Transcript], title: str = "Debates") -> tuple[Path, Path]:
    """Write ``transcripts.json`` and ``transcripts.html`` into a folder, each atomically.

    The page needs no other file and no network.

    Args:
        folder: made if absent.
        transcripts: in the order in which they are to be read.
        title: of the page.

    Returns:
        The two files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"warning": WARNING, "title": title, "debates": [asdict(t) for t in transcripts]}
    files.write_json(folder / RECORD, record)
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("transcripts.html.jinja").read_text(encoding="utf-8")
    )
    html = page.render(
        title=title,
        warning=WARNING,
        withheld=WITHHELD,
        transcripts=transcripts,
        deviation=DEVIATION,
        deviating=any(turn.unit == DEVIATION for t in transcripts for turn in t.turns),
        number=_number,
        score=_score,
        won=sum(t.winner == t.sides[0] for t in transcripts),
    )
    files.write(folder / PAGE, html)
    return folder / RECORD, folder / PAGE


def _running_scores(judge: Scorer, debate: Debate) -> tuple[Tensor, Tensor]:
    """``(N, L + 1)`` scores of both actions, before the first turn and after each."""
    n, turns = debate.items.shape
    shown = torch.zeros(n, turns + 1, debate.state.shape[1], dtype=torch.bool, device=debate.state.device)
    for turn in range(turns):
        shown[:, turn + 1 :].scatter_(2, debate.items[:, turn, None, None].expand(-1, turns - turn, 1), True)
    state = debate.state[:, None]
    return judge.score(state, shown, debate.first[:, None]), judge.score(state, shown, debate.second[:, None])


def _rounded(values: Tensor, step: float) -> Tensor:
    return torch.round(torch.round(values.double() / step) * step, decimals=2)


def _band(feature: str, deviation: float) -> Band:
    limit = 0.0 if feature in CENTRED else BAND
    return "high" if deviation > limit else "low" if deviation < -limit else "normal"


def _names(patients: Sequence[int], redact: bool) -> list[str]:
    cases = {patient: f"case {i + 1}" for i, patient in enumerate(dict.fromkeys(patients))}
    return [cases[patient] if redact else str(patient) for patient in patients]


def _number(value: float) -> str:
    """A value with three digits or more, never in powers of ten; a true minus sign."""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.001 else "0"
    return text.replace("-", "\u2212")


def _score(value: float) -> str:
    return f"{value:.2f}".replace("-", "\u2212")

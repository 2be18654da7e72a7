"""One pair of debaters on trial: trained if wished, played on pairs that nobody trained on, and written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from apps.sepsis.arguments import LEARNED, arguments_by
from apps.sepsis.debate import Debate, Debater, verdict
from apps.sepsis.evidence import share
from apps.sepsis.judge import Judge, JudgeEnsemble, judge_accuracy
from apps.sepsis.learned_debaters import (
    ConfuserSettings,
    DebaterSettings,
    LearnedDebater,
    train_confuser,
    train_debaters,
)
from apps.sepsis.matches import matches
from apps.sepsis.metrics import evidence_counts
from apps.sepsis.preferences import Preferences
from apps.sepsis.table import row_of
from apps.sepsis.transcripts import Transcript, transcribe
from core.seeds import stream
from core.study import Row
from simulators.sepsis.cohort import Cohort
from simulators.sepsis.features import ACTIONS, STATE

DRAWS = 5
"""Sets of random features for each pair, to compare with."""


@dataclass(frozen=True)
class Players:
    """Who debates.

    Attributes:
        kind: how they choose, or how they were trained.
        debaters: who argues for the logged action, and who against it.
        learned: the same if they were trained, else None.
        confuser: the attacker that was trained against them, if any.
    """

    kind: str
    debaters: tuple[Debater, Debater]
    learned: tuple[LearnedDebater, LearnedDebater] | None = None
    confuser: LearnedDebater | None = None

    @property
    def upfront(self) -> bool:
        """Whether the advocate lays its items down before the other side answers."""
        return self.kind == "precommit"


@dataclass(frozen=True)
class Trial:
    """What came of debates on N test pairs.

    Attributes:
        pairs: the logged action and another.
        debates: by setting, see ``matches``.
        won: ``(N,)`` whether the judge sides with the logged action, by setting.
    """

    pairs: Preferences
    debates: dict[str, Debate]
    won: dict[str, Tensor]

    @property
    def between_equals(self) -> Debate:
        """The debates of two like debaters; of one who lays down its items first, those with the search."""
        return self.debates.get("itself", self.debates["refuted"])

    def shown(self) -> tuple[NDArray[np.float64], int]:
        """``(44, 25)`` how often each feature is shown, by the logged action, and the number of debates."""
        debate = self.between_equals
        return evidence_counts(debate.evidence, debate.first).cpu().numpy(), len(debate)

    def dataset(self) -> xr.Dataset:
        """``correct`` (setting, pair) and ``shown`` (feature, action); nothing of a patient."""
        correct = np.stack([won.cpu().numpy() for won in self.won.values()])
        data = {"correct": (("setting", "pair"), correct), "shown": (("feature", "action"), self.shown()[0])}
        coordinates = {"setting": list(self.won), "feature": list(STATE), "action": np.arange(ACTIONS)}
        return xr.Dataset(data, coordinates)

    def transcripts(
        self, judge: Judge | JudgeEnsemble, cohort: Cohort, count: int, *, redact: bool
    ) -> list[Transcript]:
        """``count`` debates of ``between_equals``, spread over all pairs, hence over patients, in words."""
        pairs = self.pairs
        rows = torch.arange(min(count, len(pairs)), device=pairs.state.device) * max(len(pairs) // max(count, 1), 1)
        return transcribe(
            judge,
            self.between_equals.take(rows),
            patient=pairs.patient[rows],
            step=pairs.step[rows],
            raw=None if cohort.raw is None else cohort.raw[pairs.patient[rows], pairs.step[rows]],
            sides=("logged action", "other action"),
            features=cohort.features,
            redact=redact,
        )


def train_players(
    judge: Judge | JudgeEnsemble,
    pairs: Preferences,
    debaters: str,
    seed: int,
    *,
    settings: DebaterSettings | None = None,
    confuser: ConfuserSettings | None = None,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Players:
    """Debaters, trained here or not, and an attacker trained against them if wished.

    Args:
        judge: before whom; on ``device``.
        pairs: to train on.
        debaters: a kind of training with ``settings``; without them a name or a folder, see ``arguments_by``.
        seed: of networks and games.
        settings: of the training.
        confuser: of the attacker's training; None for none.
        device: where.
        checkpoint: folder that survives a kill.
        progress: told the share done and a message.

    Raises:
        InputError: as ``arguments_by`` and ``train_debaters``.
        TrainingDiverged: a training has diverged.
    """
    stages = (settings is not None) + (confuser is not None)

    def options(name: str, stage: int) -> dict[str, Any]:
        def told(share: float, message: str) -> None:
            if progress is not None:
                progress((stage + share) / stages, message)

        return {"device": device, "checkpoint": None if checkpoint is None else checkpoint / name, "progress": told}

    learned: tuple[LearnedDebater, LearnedDebater] | None = None
    if settings is None:
        arguments = arguments_by(judge, debaters, device)
        kind: str = arguments.kind
        generator = torch.Generator(device).manual_seed(stream(seed, "random debater"))
        players = arguments.players(generator)
    else:
        kind = debaters
        seed_of = stream(seed, f"{kind} debaters")
        learned = train_debaters(kind, judge, pairs, settings, seed_of, **options("debaters", 0))  # type: ignore[arg-type]
        players = learned
    attacker = None
    if confuser is not None:
        attacker = train_confuser(
            judge,
            pairs,
            confuser,
            stream(seed, f"{kind} confuser"),
            rival=players[0],
            order="upfront" if kind == "precommit" else "alternating",
            **options("confuser", stages - 1),
        )
    return Players(kind, players, learned, attacker)


def debate_trial(judge: Judge | JudgeEnsemble, players: Players, pairs: Preferences, seed: int) -> Trial:
    """Hold all debates of ``matches``."""
    debates = matches(
        judge,
        pairs,
        players.debaters,
        stream(seed, f"debates {players.kind}"),
        upfront=players.upfront,
        confuser=players.confuser,
    )
    return Trial(pairs, debates, {name: verdict(judge, debate) > 0 for name, debate in debates.items()})


def debate_rows(judge: Judge | JudgeEnsemble, players: Players, trial: Trial, seed: int) -> list[Row]:
    """How often the judge sides with the logged action, by setting, beside random features; patients resampled."""
    name = f"PPO {players.kind}" if players.kind in LEARNED else players.kind
    generator = torch.Generator(trial.pairs.state.device).manual_seed(stream(seed, "random evidence"))
    random = judge_accuracy(judge, trial.pairs, generator, DRAWS)
    measured = [(f"accuracy, {setting}", name, won.float()) for setting, won in trial.won.items()]
    measured.append(("accuracy", "random features", random))
    rows = []
    for metric, method, value in measured:
        if (i := share(value, trial.pairs.patient)) is not None:
            rows.append(row_of("debate", method, metric, "%", i, 100))
    return rows

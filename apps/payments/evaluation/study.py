"""The evaluation of policies on a log, as a study: it resumes, it can run on Ray, and it ends in a page to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from apps.payments.evaluation import figures
from apps.payments.evaluation.evidence import HELD_OUT, PaymentsLog
from apps.payments.evaluation.runs import METHODS, UNIFORM, Candidate, Estimation, EvaluateLog, Format, discoveries
from apps.payments.log import manifest
from apps.payments.log.open_bandit import csv_of
from apps.payments.metrics import BASIS_POINTS
from apps.payments.policy import KEYS, NAME
from core import files
from core.bandits import LOGGED
from core.errors import InputError
from core.study import Analysis, Claim, Results, Row, Run, Study
from core.study.loading import from_options
from simulators.payments import Sizes

DECIDING = ("dr", "snips")
"""Estimators that decide whether a policy is promoted: the first that the log allows."""
SEEN = (
    "it was trained on all rows of this log, which flatter it: nothing is decided; train it with a fold held out, or "
    "evaluate it on a later log."
)
ESTIMATED = (
    "THE PROPENSITIES WERE ESTIMATED, NOT LOGGED: whatever the logged policy looked at and the model does not biases "
    "every number here, and no interval shows it. Nothing is decided."
)


class EvaluationStudy(Study):
    """What policies would have been worth on a log that another one left."""

    app: ClassVar[str] = "payments"
    headline: ClassVar[tuple[str, ...]] = (
        "value (normal)",
        "difference (normal)",
        "value (Wilson)",
        "ESS share",
    )

    log: str
    """Path of the log."""
    format: Format = "payments"
    """``payments``: a joined log; ``open_bandit``: a campaign's folder or CSV file."""
    checksum: str
    """Of the log."""
    candidates: tuple[Candidate, ...] = Field(min_length=1)
    """The policies."""
    estimation: Estimation = Estimation()
    """How they are evaluated."""
    sizes: Sizes = Sizes()
    """Of the portfolio, on a payments log."""
    fold: int | None = None
    """Only the rows of this fold are evaluated: those that a candidate did not learn from."""
    baseline: str = LOGGED
    """What the policies are compared with: the policy that logged (``logged``), or a candidate."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [c.name for c in self.candidates]
        if len(set(names)) < len(names):
            raise InputError("policies: two have the same name")
        if self.baseline not in (*names, LOGGED):
            raise InputError(f"baseline = {self.baseline}: must be one of {', '.join((LOGGED, *names))}")
        if self.format == "open_bandit" and self.estimation.estimate_propensities:
            raise InputError("estimate_propensities: an Open Bandit log has its propensities")
        if self.format == "open_bandit" and self.estimation.segment is not None:
            raise InputError(f"segment = {self.estimation.segment}: an Open Bandit log has no such column")
        return self

    def runs(self) -> list[Run]:
        """One run."""
        return [self._evaluation]

    @property
    def _evaluation(self) -> EvaluateLog:
        fields = ("log", "format", "checksum", "candidates", "estimation", "sizes", "fold", "baseline")
        return EvaluateLog(**{name: getattr(self, name) for name in fields})

    def analyse(self, results: Results) -> Analysis:
        """Estimates, diagnostics, a claim of promotion for every policy, and pictures."""
        data = results[self._evaluation]
        notes = [note for note in data.attrs["notes"].split("\n") if note]
        notes += [
            f"{data.attrs['rows']:,} rows with a reward. Intervals are at 95 %: normal by the delta method; bootstrap "
            f"by percentiles of {self.estimation.replicates} Poisson replicates over {self.estimation.cluster}s; "
            "bernstein holds at every sample size where weights are bounded; anytime holds however often one looks. "
            "An estimator that has no such interval has no row. dm and clipped_ips are biased, by the model and by "
            "the clip: their intervals tell of sampling alone.",
            f"Differences are from {self.baseline}, paired on the same rows. A policy is worth promoting if the lower "
            "end of that by dr (snips without a reward model) is above 0 and its weights are supported by the log "
            "(verdict ok).",
        ]
        notes += [
            f"{policy}: {data['verdict'].sel(policy=policy).item()}: {reason}"
            for policy in data["policy"].values
            if (reason := data["reason"].sel(policy=policy).item())
        ]
        notes += [f"{c.name}: {SEEN}" for c in self.candidates if c.seen]
        if self.fold is not None:
            notes.append(
                "A policy was trained on this log without a third of its transactions: all policies are evaluated on "
                "that third alone."
            )
        claims = [self._promotion(data, c) for c in self.candidates if c.name != self.baseline]
        if self.estimation.estimate_propensities:
            notes.insert(0, ESTIMATED)
            claims = [replace(claim, holds=None, reason=f"{ESTIMATED} {claim.reason}") for claim in claims]
        method = self.estimation.deciding
        drawn = figures.of_evaluation(data, _deciding(data), method)
        return Analysis(_rows(data) + _segment_rows(data, method), claims, drawn, data, notes)

    def _promotion(self, data: xr.Dataset, candidate: Candidate) -> Claim:
        """Whether a policy is worth more than the baseline, decided by the interval that fits the rows."""
        name, policy = _deciding(data), candidate.name
        method = self.estimation.deciding
        at = data.sel(policy=policy, estimator=name, interval=method)
        mean, low, high = (float(BASIS_POINTS * x) for x in at["difference"].values)
        verdict = at["verdict"].item()
        rival = "the policy that logged" if self.baseline == LOGGED else self.baseline
        statement = f"{policy} is worth more than {rival}, and the log supports that (bps)"
        reason = f"{name}: {mean:.1f} [{low:.1f}, {high:.1f}] bps; verdict {verdict}"
        if at["reason"].item():
            reason += f" ({at['reason'].item()})"
        holds = None if verdict == "unsupported" else bool(low > 0 and verdict == "ok")
        if candidate.seen:
            holds, reason = None, f"{SEEN} {reason}"
        test = f"95 % {method} interval over {self.estimation.cluster}s, paired on the log"
        p, n = float(at["p"]), int(data.attrs["rows"])
        return Claim(f"promote_{policy}", statement, holds, reason, mean, low, high, n, p, test)


def evaluation_of(
    log: Path,
    candidates: Sequence[Candidate],
    format: Format = "payments",
    estimation: Estimation | None = None,
    actions: int | None = None,
    baseline: str = LOGGED,
) -> EvaluationStudy:
    """The study that evaluates policies on a log.

    Args:
        log: a joined log or the folder of a join; of format ``open_bandit`` a campaign's folder or CSV file.
        candidates: the policies.
        format: of the log.
        estimation: how; the defaults if None.
        actions: K of a joined log without its ``join.json``.
        baseline: what they are compared with: ``logged``, or the name of one of them.

    Raises:
        InputError: no log there, a policy that does not exist, or two of one name.
    """
    if format == "open_bandit":
        path, sizes = csv_of(log), Sizes()
        if not path.is_file():
            raise InputError(f"{path}: no such log of format open_bandit; --format payments reads a joined one")
        checksum = manifest.sha256(path)
    else:
        modelled = estimation is not None and estimation.estimate_propensities
        opened = PaymentsLog.open(log, actions, propensities=not modelled)
        path, sizes, checksum = opened.path, opened.sizes, opened.checksum()
    known = [_with_checksum(c, format, checksum) for c in candidates]
    values = {
        "study": "evaluation",
        "description": f"Policies on {path}",
        "log": str(path),
        "format": format,
        "checksum": checksum,
        "candidates": tuple(candidate for candidate, _ in known),
        "fold": HELD_OUT if any(held_out for _, held_out in known) else None,
        "baseline": baseline,
        "estimation": estimation or Estimation(),
        "sizes": sizes,
    }
    return from_options(EvaluationStudy, values, "evaluate")


def _with_checksum(candidate: Candidate, format: Format, log: str) -> tuple[Candidate, bool]:
    """The candidate as it lies there, and whether it was trained on this log with a fold left out."""
    if candidate.source == UNIFORM:
        return candidate, False
    source = Path(candidate.source)
    path = csv_of(source) if format == "open_bandit" else source / NAME
    if not path.is_file():
        raise InputError(f"--policy {candidate.source}: {path} does not exist")
    found = {"checksum": manifest.sha256(path), "seen": False}
    held_out = False
    if format == "payments":
        policy = files.read_json(path, KEYS)
        here = policy["learned_from"] == log
        held_out, found["seen"] = here and policy["held_out"], here and not policy["held_out"]
    return candidate.model_copy(update=found), held_out


def _deciding(data: xr.Dataset) -> str:
    return next(name for name in DECIDING if name in data["estimator"].values)


def _rows(data: xr.Dataset) -> list[Row]:
    n = int(data.attrs["rows"])
    low, mean, high = (float(data["logged"].sel(end=end)) for end in ("low", "mean", "high"))
    rows = [Row("log", "logged", "value (normal)", "share", mean, low, high, n)]
    for policy in data["policy"].values:
        at = data.sel(policy=policy)
        for estimator in data["estimator"].values:
            for method in METHODS:
                here = at.sel(estimator=estimator, interval=method)
                for label, variable, unit, scale in (
                    (f"value ({method})", "value", "share", 1.0),
                    (f"difference ({method})", "difference", "bps", BASIS_POINTS),
                ):
                    mean, low, high = (float(scale * x) for x in here[variable].values)
                    if np.isfinite(mean):
                        rows.append(Row(policy, str(estimator), label, unit, mean, low, high, n))
        mean, low, high = (float(x) for x in at["mean_weight"].values)
        rows.append(Row(policy, "weights", "mean weight (99 %)", "1", mean, low, high, n))
        rows.append(Row(policy, "weights", "ESS", "rows", float(at["ess"]), n=n))
        rows.append(Row(policy, "weights", "ESS share", "1", float(at["ess"]) / n, n=n))
        rows.append(Row(policy, "weights", "largest weight", "1", float(at["max_weight"]), n=n))
        if np.isfinite(at["missing_mass"]):
            rows.append(Row(policy, "weights", "missing mass", "1", float(at["missing_mass"]), n=n))
        if f"own_rate_{policy}" in data:
            mean, low, high = (float(x) for x in data[f"own_rate_{policy}"].values)
            rows.append(Row(policy, "on its own log", "value (Wilson)", "share", mean, low, high))
    return rows


def _segment_rows(data: xr.Dataset, method: str) -> list[Row]:
    """Differences by segment; p-values adjusted over segments by Benjamini and Hochberg decide what is called found."""
    if "segment" not in data.dims:
        return []
    rows = []
    for policy in data["policy"].values:
        at = data.sel(policy=policy, estimator=_deciding(data), interval=method)
        found = discoveries(at)
        for segment, star in zip(data["segment"].values, found, strict=True):
            here = at.sel(segment=segment)
            mean, low, high = (float(BASIS_POINTS * x) for x in here["segment_difference"].values)
            label = f"difference in {segment}{' (found)' if star else ''}"
            n = int(here["segment_rows"])
            rows.append(Row(f"{policy} by segment", str(segment), label, "bps", mean, low, high, n))
    return rows

"""The payments study: which rules of exploration are compared in which worlds, and what follows from the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar, Self

import xarray as xr
from pydantic import Field, model_validator

from apps.payments import figures
from apps.payments.claims import CLAIMS, ClaimId, Evidence, decide
from apps.payments.runs import Play, Tune
from apps.payments.scenario import Arm, Scenario
from apps.payments.table import MEASURES, rows_of
from core.errors import InputError, require
from core.study import Analysis, Config, Results, Row, Run, Study

PACKAGES = {
    "sklearn": ("sklearn", "payments"),
    "lightgbm": ("lightgbm", "gbdt"),
    "xgboost": ("xgboost", "gbdt"),
    "vw": ("vowpalwabbit", "vw"),
}
"""What an oracle or its backend imports, and the extra that brings it."""
FEWEST = 4
"""Generations of a comparison: after the first, which is uniform, one change and its reversal."""


class Worlds(Config):
    """Seeds of worlds."""

    first: int = Field(default=0, ge=0, lt=2**31)
    """The first seed."""
    count: int = Field(default=8, ge=2, le=10_000)
    """How many."""

    @property
    def seeds(self) -> range:
        """The seeds."""
        return range(self.first, self.first + self.count)


class Comparison(Scenario):
    """A scenario and the arms that are compared in it."""

    arms: tuple[Arm, ...] = Field(min_length=1)
    """What is compared."""
    baseline: str | None = None
    """The arm that the table's uplifts are over; the first if null."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.generations < FEWEST:
            raise InputError(f"scenario {self.name}: generations = {self.generations}: a study needs at least {FEWEST}")
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise InputError(f"scenario {self.name}: two arms have the same name")
        if self.baseline is not None and self.baseline not in names:
            raise InputError(f"scenario {self.name}: baseline {self.baseline} is none of {', '.join(names)}")
        return self

    @property
    def scenario(self) -> Scenario:
        """The worlds alone: runs that differ in the arms around them are the same runs."""
        return Scenario(**{name: getattr(self, name) for name in Scenario.model_fields})


class PaymentsStudy(Study):
    """Rules of exploration for contextual bandits on payments, retrained generation after generation on their own logs.

    After Vangara and Egg (2024), "Contextual bandits in payment processing", arXiv 2412.00569.
    """

    app: ClassVar[str] = "payments"
    headline: ClassVar[tuple[str, ...]] = ("online value", "uplift", "oscillation of the model error")

    worlds: Worlds = Worlds()
    """The worlds that are scored."""
    tuning: Worlds = Worlds(first=100, count=3)
    """The worlds on which arms are tuned."""
    scenarios: tuple[Comparison, ...] = Field(min_length=1)
    """The worlds and what is compared in them."""
    claims: tuple[ClaimId, ...] = CLAIMS
    """The claims to decide, on the first scenario."""
    permutations: int = Field(default=9999, ge=99, le=10**6)
    """Draws of the test of oscillation."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [s.name for s in self.scenarios]
        if len(set(names)) < len(names):
            raise InputError("scenarios: two have the same name")
        if set(self.worlds.seeds) & set(self.tuning.seeds):
            raise InputError("tuning: shares worlds with those that are scored; choose another first seed")
        return self

    def plays(self, comparison: Comparison, arm: Arm) -> list[Play]:
        """The runs of one arm, one a world."""
        tuned = self.tune(comparison, arm)
        return [Play(scenario=comparison.scenario, arm=arm, world=w, tuned=tuned) for w in self.worlds.seeds]

    def tune(self, comparison: Comparison, arm: Arm) -> Tune | None:
        """The run that chooses an arm's number; None where nothing is tuned."""
        if arm.tune is None:
            return None
        plays = [
            # Named by what is played alone: arms whose grids overlap share these runs.
            Play(scenario=comparison.scenario, arm=tried.model_copy(update={"name": "tuning"}), world=w, measure=False)
            for value in arm.tune.grid
            for tried in (arm.at(value),)
            for w in self.tuning.seeds
        ]
        return Tune(arm=arm, plays=tuple(plays))

    def runs(self) -> list[Run]:
        """Every arm in every world.

        Raises:
            MissingExtra: an oracle needs a package that is not installed.
        """
        for arm in (arm for s in self.scenarios for arm in s.arms):
            package = PACKAGES.get(getattr(arm.oracle, "backend", arm.oracle.kind))
            if package is not None:
                require(*package)
        return [play for s in self.scenarios for arm in s.arms for play in self.plays(s, arm)]

    def analyse(self, results: Results) -> Analysis:
        """Table, claims, figures and data of the study."""
        table: list[Row] = []
        drawn = []
        notes: list[str] = []
        groups: dict[str, xr.Dataset] = {}
        evidence: Evidence | None = None
        for s in self.scenarios:
            found = {arm.name: _worlds(results, self.plays(s, arm)) for arm in s.arms}
            tuned = {arm.name: results[t] for arm in s.arms if (t := self.tune(s, arm)) is not None}
            table += rows_of(s.name, found, tuned, s.baseline or s.arms[0].name)
            drawn += figures.of_scenario(s.name, found, tuned, s.baseline or s.arms[0].name)
            notes += _notes(s.name, found)
            groups[f"/{s.name}"] = _along("arm", list(found), list(found.values()))
            evidence = evidence or Evidence(found, {arm.name: arm for arm in s.arms}, self.permutations)
        assert evidence is not None
        claims = decide(evidence, self.claims)
        return Analysis(table, claims, drawn, xr.DataTree.from_dict(groups), [*notes, *MEASURES])


def _worlds(results: Results, plays: list[Play]) -> xr.Dataset:
    """The results of an arm along ``world``."""
    parts = [results[play] for play in plays]
    found = _along("world", [play.world for play in plays], parts)
    return found.assign_attrs(notes=[part.attrs["notes"] for part in parts])


def _along(dim: str, names: Sequence[object], parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """The parts side by side; the units and names of their series are kept, what says where each is from is not."""
    plain = [part.drop_attrs(deep=False) for part in parts]
    return xr.concat(plain, xr.Variable(dim, names), join="outer", combine_attrs="override")


def _notes(scenario: str, found: dict[str, xr.Dataset]) -> list[str]:
    """What did not go as usual."""
    told = []
    for arm, data in found.items():
        texts = data.attrs.pop("notes")
        for world, text in zip(data["world"].values, texts, strict=True):
            told += [f"{scenario}, {arm}, world {world}: {line}" for line in json.loads(text)]
    return told

"""The study of conversational recommendation: which policies are compared in which conversations."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, ClassVar, Self

import xarray as xr
from pydantic import Field, model_validator

from apps.crs import figures
from apps.crs.claims import CLAIMS, ClaimId, Roles, decide
from apps.crs.evidence import Evidence
from apps.crs.methods import AnyMethod
from apps.crs.problem import Problem
from apps.crs.products import PolicyProduct
from apps.crs.runs import Agreement, Play
from apps.crs.table import MEASURES, rows_of
from core.errors import InputError
from core.study import Analysis, Results, Run, Study

Seed = Annotated[int, Field(ge=0, lt=2**31)]


class CRSStudy(Study):
    """Policies that decide what to ask, what to recommend and when, on the same users, targets and openings.

    After Deng, Li, Sun, Ding and Lam (2021), "Unified conversational recommendation policy learning via graph-based
    reinforcement learning", SIGIR, arXiv 2105.09710.
    """

    app: ClassVar[str] = "crs"
    headline: ClassVar[tuple[str, ...]] = ("success", "AT", "hDCG", "return")

    problems: tuple[Problem, ...] = Field(default=(Problem(),), min_length=1)
    """The conversations; claims are about the first."""
    methods: tuple[AnyMethod, ...] = Field(min_length=1)
    """The policies."""
    seeds: Annotated[int, Field(ge=1, le=1000)] | Annotated[tuple[Seed, ...], Field(min_length=1)] = 3
    """How many trainings, or their seeds; the test dialogues are the same for all."""
    first_seed: int = Field(default=0, ge=0, lt=2**31)
    """The first seed, where ``seeds`` is a number."""
    trained_on_first: bool = False
    """Policies are trained on the first problem and only tested on the others; rules are tuned on each."""
    agreement: Agreement | None = None
    """Whether to compare active inference with pymdp; null for not."""
    roles: Roles = Roles()
    """Which methods the claims are about."""
    claims: tuple[ClaimId, ...] = CLAIMS
    """The claims to decide."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what, names in (
            ("methods", [method.name for method in self.methods]),
            ("problems", [problem.name for problem in self.problems]),
            ("seeds", [str(seed) for seed in self.every_seed]),
        ):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise InputError(f"{what}: {', '.join(sorted(twice))} stands there twice; names must differ")
        return self

    def cautions(self) -> list[str]:
        """What is left out."""
        if self.agreement is None or find_spec("pymdp") is not None:
            return []
        return ['pymdp is not installed: the claim about it is not decided; pip install "szilard[crs]" brings it']

    @property
    def every_seed(self) -> Sequence[int]:
        """The seeds."""
        if isinstance(self.seeds, int):
            return range(self.first_seed, self.first_seed + self.seeds)
        return self.seeds

    def seeds_of(self, method: AnyMethod) -> Sequence[int]:
        """The seeds on which a method is made; one where it neither learns nor draws."""
        return self.every_seed[: method.seeds if method.learns else 1]

    def play(self, problem: Problem, method: AnyMethod, seed: int) -> Play:
        """The run of a method on a problem."""
        made_for = self.problems[0] if self.trained_on_first and method.learns else problem
        return Play(policy=PolicyProduct(problem=made_for, method=method, seed=seed), problem=problem)

    def runs(self) -> list[Run]:
        """All runs, those that take long first."""
        slow = sorted(self.methods, key=lambda method: (not method.learns, method.kind != "unicorn"))
        found: list[Run] = [self.play(p, m, seed) for p in self.problems for m in slow for seed in self.seeds_of(m)]
        return found if self.agreement is None else [self.agreement, *found]

    def evidence(self, results: Results) -> Evidence:
        """The results by problem, method and seed."""
        played = {
            (problem.name, method.name): {
                seed: results[self.play(problem, method, seed)] for seed in self.seeds_of(method)
            }
            for problem in self.problems
            for method in self.methods
        }
        gap = None if self.agreement is None else results[self.agreement]
        return Evidence([p.name for p in self.problems], [m.name for m in self.methods], played, gap)

    def analyse(self, results: Results) -> Analysis:
        """Table, claims, figures and data of the study."""
        evidence = self.evidence(results)
        groups = {
            f"/{_plain(problem)}/{_plain(method)}/seed{seed}": data
            for (problem, method), seeds in evidence.played.items()
            for seed, data in seeds.items()
        }
        if evidence.gap is not None:
            groups["/pymdp"] = evidence.gap
        return Analysis(
            rows_of(evidence),
            decide(evidence, self.roles, self.claims),
            figures.of_study(evidence),
            xr.DataTree.from_dict(groups),
            list(MEASURES),
        )


def _plain(name: str) -> str:
    """A name of a group in a file."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)

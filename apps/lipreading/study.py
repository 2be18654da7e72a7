"""The study of lip-reading: which training objectives are compared from which reader, on which clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Self

import xarray as xr
from pydantic import Field, model_validator

from apps.lipreading import figures
from apps.lipreading.claims import CLAIMS, ClaimId, Roles, decide
from apps.lipreading.evidence import Evidence, rate
from apps.lipreading.gradients import Gradients
from apps.lipreading.methods import Method
from apps.lipreading.products import ReaderProduct
from apps.lipreading.reader import ReaderConfig
from apps.lipreading.runs import Fork, Transcribe
from apps.lipreading.sources import PackSource, Source, Split
from apps.lipreading.table import notes_of, rows_of
from apps.lipreading.training import TrainingSettings
from core.errors import InputError
from core.study import Analysis, Config, Results, Run, Study

Seed = Annotated[int, Field(ge=0, lt=2**31)]


class GradientSettings(Config):
    """Which estimators have their signal and noise compared; see ``Gradients``."""

    methods: tuple[Method, ...] = Field(min_length=2)
    """The last is the reference."""
    clips: int = Field(default=64, ge=2)
    """The same in all repeats."""
    samples: int = Field(default=4, ge=2)
    """Transcripts of each."""
    repeats: int = Field(default=120, ge=4)
    """Draws."""

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        names = [m.name for m in self.methods]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"methods: {', '.join(sorted(twice))} stands there twice; names must differ")
        if without := [m.name for m in self.methods if m.loss is None]:
            raise InputError(f"methods: {without[0]} has no loss, of which a gradient could be taken")
        return self


class Experiment(Config):
    """A reader, and what objectives make of it."""

    name: str = Field(min_length=1)
    """In tables and figures."""
    reader: ReaderConfig
    """Trained once; everything starts from it."""
    fork: TrainingSettings | None = None
    """Of all objectives alike."""
    fork_source: Source | None = None
    """Clips of which they learn and are judged on; null takes the reader's."""
    methods: tuple[Method, ...] = ()
    """The objectives."""
    looks: int = Field(default=5, ge=0)
    """At validation clips while an objective is at work."""
    gradients: GradientSettings | None = None
    """Null for none."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.methods and self.fork is None:
            raise InputError("fork: is required where there are methods")
        if isinstance(self.fork_source, PackSource) and self.fork_source.features is not None:
            raise InputError("fork_source.features: the reader's are fitted on its own clips; allowed: null")
        if self.gradients is not None and self.reader.model.name != "fast":
            raise InputError(f"gradients: are taken of the model fast; this is {self.reader.model.name}")
        return self

    @property
    def missing(self) -> str:
        """Why its clips cannot be read, empty if they can."""
        sources = (self.reader.source, self.fork_source)
        return "; ".join(dict.fromkeys(s.missing() for s in sources if isinstance(s, PackSource) and s.missing()))


class LipReadingStudy(Study):
    """Training objectives for lip-reading, each from the same weights and with as many updates.

    After Luo, Yang, Shan and Chen (2020), "Pseudo-convolutional policy gradient for sequence-to-sequence lip-reading",
    FG, arXiv 2003.03983.
    """

    app: ClassVar[str] = "lipreading"
    headline: ClassVar[tuple[str, ...]] = ("CER", "CER sampled", "WER", "exact")

    experiments: tuple[Experiment, ...] = Field(min_length=1)
    """What is done."""
    seeds: Annotated[int, Field(ge=1, le=1000)] | Annotated[tuple[Seed, ...], Field(min_length=1)] = 5
    """How many forks of each objective, or their seeds; reader and clips are the same for all."""
    first_seed: int = Field(default=0, ge=0, lt=2**31)
    """The first seed, where ``seeds`` is a number."""
    trial_seed: int = Field(default=100, ge=0, lt=2**31)
    """Of the forks on which weights are chosen; none of the seeds."""
    roles: Roles = Roles()
    """What the claims are about."""
    claims: tuple[ClaimId, ...] = CLAIMS
    """The claims to decide."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what, names in (
            ("experiments", [e.name for e in self.experiments]),
            *((f"methods of {e.name}", [m.name for m in e.methods]) for e in self.experiments),
            ("seeds", [str(seed) for seed in self.every_seed]),
        ):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise InputError(f"{what}: {', '.join(sorted(twice))} stands there twice; names must differ")
        if self.trial_seed in self.every_seed:
            raise InputError(f"trial_seed: {self.trial_seed} is one of the seeds; weights are chosen on another")
        return self

    @property
    def every_seed(self) -> Sequence[int]:
        """The seeds."""
        if isinstance(self.seeds, int):
            return range(self.first_seed, self.first_seed + self.seeds)
        return self.seeds

    def cautions(self) -> list[str]:
        """What is left out."""
        return [f"{e.name} is left out: {e.missing}" for e in self.experiments if e.missing]

    def shared_splits(self) -> list[str]:
        """Where a corpus is judged on the clips that it is looked at and chosen on."""
        return [
            f"{e.name}: the split {source.test} is also the one that was looked at while settings were found, for want "
            "of a third: its error rate is likely to be too small for new clips."
            for e in self.experiments
            if isinstance(source := e.fork_source or e.reader.source, PackSource)
            and source.validation == source.test
            and not e.missing
        ]

    def fork(self, experiment: Experiment, method: Method, seed: int) -> Fork:
        """The run of an objective."""
        assert experiment.fork is not None
        product = ReaderProduct(reader=experiment.reader)
        training = experiment.fork

        def made(
            seed: int, weight: float | None, looks: int, split: Split = "test", trials: tuple[Fork, ...] = ()
        ) -> Fork:
            return Fork(
                name=experiment.name,
                product=product,
                method=method,
                training=training,
                seed=seed,
                looks=looks,
                split=split,
                source=experiment.fork_source,
                weight=weight,
                trials=trials,
            )

        if method.loss is None or len(method.weights) == 1:
            return made(seed, 0.0 if method.loss is None else method.weights[0], experiment.looks)
        trials = tuple(made(self.trial_seed, weight, 0, "validation") for weight in method.weights)
        return made(seed, None, experiment.looks, trials=trials)

    def reading(self, experiment: Experiment) -> Transcribe:
        """The run of its reader."""
        product = ReaderProduct(reader=experiment.reader)
        return Transcribe(name=experiment.name, product=product, source=experiment.fork_source)

    def gradients(self, experiment: Experiment) -> Gradients:
        """The run of its estimators."""
        assert experiment.gradients is not None
        product = ReaderProduct(reader=experiment.reader)
        return Gradients(name=experiment.name, product=product, **dict(experiment.gradients))

    def runs(self) -> list[Run]:
        """All runs of the experiments whose clips are there; those that train a reader first."""
        there = [e for e in self.experiments if not e.missing]
        if not there:
            raise InputError(f"{self.study}: {'; '.join(self.cautions())}")
        found: list[Run] = [self.reading(e) for e in there]
        found += [self.fork(e, method, seed) for e in there for method in e.methods for seed in self.every_seed]
        return found + [self.gradients(e) for e in there if e.gradients is not None]

    def evidence(self, results: Results) -> Evidence:
        """The results by experiment, method and seed."""
        there = [e for e in self.experiments if not e.missing]
        forks = {
            (e.name, method.name): {seed: self.fork(e, method, seed) for seed in self.every_seed}
            for e in there
            for method in e.methods
        }
        trials = {
            key: {
                float(trial.weight or 0): rate(results[trial], "CER sampled")
                for trial in next(iter(runs.values())).trials
            }
            for key, runs in forks.items()
        }
        readings = {e.name: results[self.reading(e)] for e in there}
        return Evidence(
            [e.name for e in there],
            readings,
            {key: {seed: results[run] for seed, run in runs.items()} for key, runs in forks.items()},
            {key: found for key, found in trials.items() if found},
            {e.name: results[self.gradients(e)] for e in there if e.gradients is not None},
            {name: data.attrs["grammar"] or None for name, data in readings.items()},
            {e.name: e.missing for e in self.experiments if e.missing},
        )

    def analyse(self, results: Results) -> Analysis:
        """Table, claims, figures and data of the study."""
        evidence = self.evidence(results)
        groups = {f"/{_plain(name)}/reader": data for name, data in evidence.readings.items()}
        groups |= {
            f"/{_plain(name)}/{_plain(method)}/seed{seed}": data
            for (name, method), seeds in evidence.forks.items()
            for seed, data in seeds.items()
        }
        groups |= {f"/{_plain(name)}/gradients": data for name, data in evidence.gradients.items()}
        return Analysis(
            rows_of(evidence),
            decide(evidence, self.roles, self.claims),
            figures.of_study(evidence),
            xr.DataTree.from_dict(groups),
            notes_of(evidence) + self.shared_splits(),
        )


def _plain(name: str) -> str:
    """A name of a group in a file."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)

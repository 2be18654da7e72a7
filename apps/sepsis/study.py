"""The sepsis study: which rewards and learners are compared on which patients, and what follows from the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import xarray as xr
from pydantic import Field, model_validator

from apps.sepsis import figures
from apps.sepsis.arguments import LEARNED, DebaterKind
from apps.sepsis.claims import CLAIMS, ClaimId, decide
from apps.sepsis.estimates import EstimateSettings
from apps.sepsis.evidence import Evidence
from apps.sepsis.judge import JudgeSettings
from apps.sepsis.learned_debaters import ConfuserSettings, DebaterSettings
from apps.sepsis.model_card import WARNING
from apps.sepsis.preferences import How
from apps.sepsis.products import (
    ClinicianProduct,
    CohortProduct,
    ConfuserProduct,
    DebatersProduct,
    JudgeProduct,
    PaidDebates,
    PolicyProduct,
)
from apps.sepsis.runs import Debates, Prepare, Reference, Train
from apps.sepsis.settings import (
    Arm,
    ClinicianSettings,
    Learner,
    MechanisticPatients,
    PolicySettings,
    RecordedPatients,
    Source,
)
from apps.sepsis.table import LIMITS, MEASURES, doubts, rows_of
from core.errors import InputError
from core.study import Analysis, Config, Results, Run, Study, Summary
from simulators.sepsis.cohort import Cohort
from simulators.sepsis.features import STATE

Seed = Annotated[int, Field(ge=0, lt=2**31)]


class JudgesSettings(Config):
    """The judges."""

    few: JudgeSettings = JudgeSettings()
    """Shown a few features."""
    full: JudgeSettings = JudgeSettings(items=len(STATE))
    """Shown the whole state."""
    rejected: How = "random"
    """Which actions are held against the logged one."""


class DebatesSettings(Config):
    """Who debates."""

    debaters: DebaterKind = "first_order"
    """In the reward and in the comparison of policies."""
    learned: tuple[Literal["isolated", "precommit", "self_play", "maxmin"], ...] = ()
    """Debaters that are trained and whose accuracy is measured."""
    learned_seeds: int = Field(default=1, ge=1)
    """Seeds on which they are."""
    training: DebaterSettings = DebaterSettings()
    """How they are trained; the number of items is the judge's."""
    confuser: ConfuserSettings | None = None
    """A learned attacker for each of them, trained so; null for none, the one-step search attacks all anyway."""
    pairs: int = Field(default=3000, ge=2)
    """Test pairs of a seed at most."""


class SepsisStudy(Study):
    """Rewards that make treatment policies justifiable before a judge who sees a few features of the patient.

    After Sukovic and Radanovic (2024), "Reward Design for Justifiable Sequential Decision-Making", ICLR,
    arXiv 2402.15826.
    """

    app: ClassVar[str] = "sepsis"
    headline: ClassVar[tuple[str, ...]] = ("survival", "preferred to lambda 0 after a debate", "accuracy, refuted")

    patients: Source = MechanisticPatients()
    """Where patients come from."""
    seeds: Annotated[int, Field(ge=1, le=1000)] | Annotated[tuple[Seed, ...], Field(min_length=1)] = 3
    """How many, or which; each draws patients, judges and networks anew."""
    first_seed: int = Field(default=0, ge=0, lt=2**31)
    """The first seed, where ``seeds`` is a number."""
    judges: JudgesSettings = JudgesSettings()
    """The judges."""
    clinician: ClinicianSettings = ClinicianSettings()
    """The estimated behaviour policy."""
    debates: DebatesSettings = DebatesSettings()
    """The debates."""
    policy: PolicySettings = PolicySettings()
    """Training of every policy."""
    learners: tuple[Learner, ...] = Field(default=(Learner(name="plain"),), min_length=1)
    """Ways to learn from data."""
    arms: tuple[Arm, ...] = Field(min_length=1)
    """The policies; each learner needs one with lambda 0."""
    subjects: int = Field(default=3000, ge=2)
    """New patients that every policy treats, where there is a simulator."""
    estimates: EstimateSettings | None = None
    """Off-policy estimates from the test patients; null for none."""
    claims: tuple[ClaimId, ...] = CLAIMS
    """The claims to decide."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = [learner.name for learner in self.learners]
        if len(set(known)) < len(known):
            raise InputError("learners: two have the same name")
        if len(set(self.every_seed)) < len(self.every_seed):
            raise InputError(f"seeds: {self.seeds}: one stands there twice")
        names = [(arm.learner, arm.name) for arm in self.arms]
        if len(set(names)) < len(names):
            raise InputError("arms: one stands there twice")
        for arm in self.arms:
            if arm.learner not in known:
                raise InputError(f"arms: learner {arm.learner}: must be among {', '.join(known)}")
            if (arm.learner, "lambda 0") not in names:
                raise InputError(f"arms: learner {arm.learner} has no arm with lam 0 to hold others against")
        if self.judges.few.items % 2 or self.judges.few.items >= len(STATE):
            raise InputError(f"judges.few.items: {self.judges.few.items}; must be even and 2 to {len(STATE) - 2}")
        if self.judges.full.items != len(STATE):
            raise InputError(f"judges.full.items: {self.judges.full.items}; must be {len(STATE)}")
        return self

    @property
    def every_seed(self) -> Sequence[int]:
        """The seeds."""
        if isinstance(self.seeds, int):
            return range(self.first_seed, self.first_seed + self.seeds)
        return self.seeds

    def cautions(self) -> list[str]:
        """What a study of records cannot show."""
        if isinstance(self.patients, RecordedPatients):
            return ["records: survival under another policy is not known; claims about it are not decided"]
        return []

    def prepare(self, seed: int) -> Prepare:
        """The run of the judges of a seed."""
        cohort = CohortProduct(source=self.patients, seed=seed)
        few, full = (
            JudgeProduct(cohort=cohort, settings=settings, how=self.judges.rejected, seed=seed)
            for settings in (self.judges.few, self.judges.full)
        )
        clinician = ClinicianProduct(cohort=cohort, settings=self.clinician, seed=seed)
        return Prepare(judge=few, full=full, clinician=clinician, subjects=self.subjects, tuples=self.debates.pairs)

    def trained_debaters(self, seed: int, kind: str) -> DebatersProduct:
        """Debaters that learn before the judge of a seed."""
        judge = self.prepare(seed).judge
        settings = self.debates.training.model_copy(update={"items": judge.settings.items})
        half = None
        if kind == "precommit":
            few = judge.settings.model_copy(update={"items": settings.items // 2})
            half = judge.model_copy(update={"settings": few})
        return DebatersProduct(judge=judge, kind=kind, settings=settings, half=half, seed=seed)  # type: ignore[arg-type]

    def debate(self, seed: int) -> Debates:
        """The run of the debates of a seed."""
        takes_part = seed in self.every_seed[: self.debates.learned_seeds]
        kinds = self.debates.learned if takes_part else ()
        learned = tuple(self.trained_debaters(seed, kind) for kind in kinds)
        confusers: tuple[ConfuserProduct, ...] = ()
        if self.debates.confuser is not None:
            settings = self.debates.confuser.model_copy(update={"items": self.judges.few.items})
            confusers = tuple(ConfuserProduct(against=debaters, settings=settings) for debaters in learned)
        return Debates(prepared=self.prepare(seed), learned=learned, confusers=confusers)

    def train(self, seed: int, arm: Arm) -> Train:
        """The run of an arm with a seed."""
        prepared = self.prepare(seed)
        learner = next(x for x in self.learners if x.name == arm.learner)
        trained = self._debaters(seed)
        baseline, paid = None, None
        if arm.lam > 0:
            baseline = self.train(seed, next(a for a in self.arms if a.learner == arm.learner and a.lam == 0))
            judge = prepared.judge if arm.reward == "debate" else prepared.full
            held = trained if arm.reward == "debate" else None
            paid = PaidDebates(baseline=baseline.policy, judge=judge, debaters=self.debates.debaters, trained=held)
        policy = PolicyProduct(
            cohort=prepared.judge.cohort, arm=arm, learner=learner, settings=self.policy, paid=paid, seed=seed
        )
        return Train(
            policy=policy,
            prepared=prepared,
            baseline=baseline,
            debaters=self.debates.debaters,
            trained=trained,
            estimates=self.estimates,
        )

    def _debaters(self, seed: int) -> DebatersProduct | None:
        kind = self.debates.debaters
        return self.trained_debaters(seed, kind) if kind in LEARNED else None

    def reference(self, seed: int, learner: Learner) -> Reference:
        """The run that holds the clinician against a learner's policy of lambda 0."""
        arm = next(a for a in self.arms if a.learner == learner.name and a.lam == 0)
        return Reference(
            prepared=self.prepare(seed),
            baseline=self.train(seed, arm),
            debaters=self.debates.debaters,
            trained=self._debaters(seed),
        )

    def runs(self) -> list[Run]:
        """All runs, the long ones and those that others wait for first."""
        arms = sorted(self.arms, key=lambda arm: arm.lam > 0)
        found: list[Run] = [self.prepare(seed) for seed in self.every_seed]
        found += [self.debate(seed) for seed in self.every_seed]
        found += [self.train(seed, arm) for arm in arms for seed in self.every_seed]
        return found + [self.reference(seed, learner) for learner in self.used for seed in self.every_seed]

    def run(self, *given: Any, **options: Any) -> Summary:
        """As any study; records that are not there, or whose rewards cannot be shaped, are refused before it runs.

        Raises:
            InputError: no such file, no values in units for ``shaping: raw``, or as any study.
        """
        if isinstance(self.patients, RecordedPatients):
            path = self.patients.path
            if not path.is_file():
                raise InputError(f"patients.path: {path}: no such file; szilard sepsis ingest makes one")
            if self.policy.shaping == "raw" and Cohort.load(path).raw is None:
                raise InputError(
                    f"policy.shaping: raw, but {path} holds normalised values only; allowed: none, normalised"
                )
        return super().run(*given, **options)

    @property
    def used(self) -> list[Learner]:
        """The learners that have arms."""
        return [x for x in self.learners if any(arm.learner == x.name for arm in self.arms)]

    def evidence(self, results: Results) -> Evidence:
        """The results by seed."""
        seeds = self.every_seed
        return Evidence(
            prepared={s: results[self.prepare(s)] for s in seeds},
            debates={s: results[self.debate(s)] for s in seeds},
            trained={(a.learner, a.name): {s: results[self.train(s, a)] for s in seeds} for a in self.arms},
            reference={x.name: {s: results[self.reference(s, x)] for s in seeds} for x in self.used},
        )

    def analyse(self, results: Results) -> Analysis:
        """Table, claims, figures and data of the study."""
        evidence = self.evidence(results)
        groups: dict[str, xr.Dataset] = {}
        for name, held in (("prepared", evidence.prepared), ("debates", evidence.debates)):
            groups |= {f"/{name}/seed{seed}": data for seed, data in held.items()}
        for (learner, arm), of_arm in evidence.trained.items():
            groups |= {f"/{learner}/{arm.replace(' ', '_')}/seed{seed}": data for seed, data in of_arm.items()}
        for learner, of_learner in evidence.reference.items():
            groups |= {f"/{learner}/clinician/seed{seed}": data for seed, data in of_learner.items()}
        if isinstance(self.patients, RecordedPatients):
            groups = {name: _without_patients(data) for name, data in groups.items()}
        return Analysis(
            rows_of(evidence, tuple(x.name for x in self.used)),
            decide(evidence, self.claims),
            figures.of_study(evidence, tuple(x.name for x in self.used)),
            xr.DataTree.from_dict(groups),
            [WARNING, *self.cautions(), *doubts(evidence), *LIMITS, *MEASURES],
        )


def _without_patients(data: xr.Dataset) -> xr.Dataset:
    """What may leave the house with the report: nothing that has a row for each patient, step or pair of a record."""
    return data.drop_dims([dim for dim in ("step", "pair", "subject") if dim in data.dims])

"""What the runs of a study share: cohorts, judges, clinicians, debaters, debates and policies, each made once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor

from apps.sepsis.arguments import SIDES, Arguments, DebaterKind
from apps.sepsis.clinician import Clinician, train_clinician
from apps.sepsis.ingestion import write_report
from apps.sepsis.judge import Judge, JudgeSettings, train_judge
from apps.sepsis.learned_debaters import (
    ConfuserSettings,
    DebaterSettings,
    LearnedDebater,
    train_confuser,
    train_debaters,
)
from apps.sepsis.outcomes import is_simulated, true_survival
from apps.sepsis.policies import LearnedPolicy, train_policy
from apps.sepsis.policy_results import write_card
from apps.sepsis.preferences import How, Preferences, draw_preferences
from apps.sepsis.rewards import total_reward
from apps.sepsis.settings import (
    Arm,
    ClinicianSettings,
    Learner,
    MechanisticPatients,
    PolicySettings,
    RecordedPatients,
    Source,
    TabularPatients,
)
from core import files
from core.errors import InputError
from core.offline import BehaviourCloning
from core.rl.checkpoint import read_tensors
from core.seeds import stream
from core.study import Context, Product
from simulators.sepsis import Physician, Sepsis44, icusepsis, simulate_cohort
from simulators.sepsis.cohort import SPLITS, Cohort, Split
from simulators.sepsis.icusepsis import ICUSepsis44
from simulators.sepsis.report import describe

COHORT, CLINICIAN, DEBATES = "cohort.nc", "clinician", "debates.safetensors"
PAID = "paid debates"
"""Names the random numbers of the debates that a policy is paid for."""

LOOKS, WATCHED = 6, 1000
"""How often the survival under a policy is looked at while it is trained, and on how many new patients."""


class CohortProduct(Product):
    """Patients treated by the physician."""

    source: Source
    """Where they come from."""
    seed: int
    """Of the patients and their split; records are always the same."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"cohort {self.source.kind} seed {self.seed}"

    def make(self, directory: Path, context: Context) -> None:
        """Simulate and write them; records stay where they are."""
        if not isinstance(self.source, RecordedPatients):
            cohort = simulated(self.source, self.seed)
            cohort.save(directory / COHORT)
            write_report(directory, describe(cohort, measures=False))

    def open(self, context: Context) -> Cohort:
        """The cohort, on the device.

        Raises:
            InputError: as ``Cohort.load``, or fewer than two patients to learn from or to test on.
        """
        path = self.source.path if isinstance(self.source, RecordedPatients) else context.product(self) / COHORT
        cohort = Cohort.load(path).to(context.device)
        for number in (0, 2):
            if (found := int((cohort.split == number).sum())) < 2:
                raise InputError(f"{path}: {found} {SPLITS[number]} patients; at least 2")
        return cohort


def simulated(source: MechanisticPatients | TabularPatients, seed: int) -> Cohort:
    """Patients of a simulator under its physician."""
    if isinstance(source, TabularPatients):
        chain = ICUSepsis44(kappa=source.kappa)
        return icusepsis.simulate_cohort(chain, source.patients, seed, fractions=source.fractions)
    physician = Physician(source.temperature, source.bias)
    return simulate_cohort(Sepsis44(), source.patients, seed, physician=physician, fractions=source.fractions)


class JudgeProduct(Product):
    """A judge trained on the clinician's choices."""

    cohort: CohortProduct
    """Whose choices."""
    settings: JudgeSettings
    """Of its training."""
    how: How = "random"
    """Which actions are held against the logged one."""
    seed: int
    """Of pairs, evidence and network."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"judge of {self.settings.items} items, seed {self.seed}"

    def make(self, directory: Path, context: Context) -> None:
        """Train it on the training split."""
        cohort = self.cohort.open(context)
        train_judge(
            preferences_of(cohort, "train", self.how, self.seed),
            self.settings,
            stream(self.seed, f"judge {self.settings.items}"),
            device=context.device,
            checkpoint=context.checkpoint / "judge.safetensors",
            progress=context.progress,
        ).save(directory)

    def open(self, context: Context) -> Judge:
        """The judge, ready to score."""
        return Judge.load(context.product(self), items=self.settings.items).to(context.device)


def preferences_of(cohort: Cohort, split: Split, how: How, seed: int) -> Preferences:
    """The pairs of a split; equal seeds give equal pairs."""
    steps = cohort.steps(split)
    generator = torch.Generator(steps.action.device).manual_seed(stream(seed, f"{split} preferences"))
    return draw_preferences(steps, generator, how)


class ClinicianProduct(Product):
    """The estimated behaviour policy."""

    cohort: CohortProduct
    """Whose."""
    settings: ClinicianSettings
    """Of its training."""
    seed: int
    """Of the network."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"clinician by {self.settings.kind}, seed {self.seed}"

    def make(self, directory: Path, context: Context) -> None:
        """Train it on the training split; neighbours are found again each time."""
        clinician = self._fit(context)
        if isinstance(clinician, BehaviourCloning):
            clinician.save(directory / CLINICIAN)

    def open(self, context: Context) -> Clinician:
        """The policy, by its probabilities."""
        if self.settings.kind == "neighbours":
            return self._fit(context)
        return BehaviourCloning.load(context.product(self) / CLINICIAN, context.device)

    def _fit(self, context: Context) -> Clinician:
        return train_clinician(
            self.cohort.open(context),
            self.settings,
            stream(self.seed, "clinician"),
            device=context.device,
            checkpoint=context.checkpoint / "clinician.safetensors",
            progress=context.progress,
        )


class DebatersProduct(Product):
    """Debaters trained by reinforcement learning against a judge."""

    judge: JudgeProduct
    """Before whom."""
    kind: Literal["isolated", "precommit", "self_play", "maxmin"]
    """How they are trained."""
    half: JudgeProduct | None = None
    """A judge of half the items, before whom ``precommit`` learns, as published; None for the judge itself."""
    settings: DebaterSettings
    """Of the training."""
    seed: int
    """Of networks and games."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.kind} debaters, seed {self.seed}"

    def make(self, directory: Path, context: Context) -> None:
        """Train them on the training split's pairs."""
        for name, debater in zip(SIDES, self._train(context), strict=True):
            debater.save(directory / name)

    def _train(self, context: Context) -> tuple[LearnedDebater, LearnedDebater]:
        return train_debaters(
            self.kind,
            (self.half or self.judge).open(context),
            training_pairs(self.judge, context),
            self.settings,
            stream(self.seed, f"{self.kind} debaters"),
            device=context.device,
            checkpoint=context.checkpoint,
            progress=context.progress,
        )

    def open(self, context: Context) -> tuple[LearnedDebater, LearnedDebater]:
        """Who argues for an action, and who against it."""
        folder, items = context.product(self), self.settings.items
        one, two = (LearnedDebater.load(folder / name, items).to(context.device) for name in SIDES)
        return one, two


class ConfuserProduct(Product):
    """A debater for the rejected action, trained against finished debaters."""

    against: DebatersProduct
    """Whom it is trained to refute."""
    settings: ConfuserSettings
    """Of the training."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"confuser of the {self.against.kind} debaters, seed {self.against.seed}"

    def make(self, directory: Path, context: Context) -> None:
        """Train it on the training split's pairs."""
        judge = self.against.judge
        train_confuser(
            judge.open(context),
            training_pairs(judge, context),
            self.settings,
            stream(self.against.seed, f"{self.against.kind} confuser"),
            rival=self.against.open(context)[0],
            order="upfront" if self.against.kind == "precommit" else "alternating",
            device=context.device,
            checkpoint=context.checkpoint,
            progress=context.progress,
        ).save(directory)

    def open(self, context: Context) -> LearnedDebater:
        """The confuser."""
        return LearnedDebater.load(context.product(self), self.settings.items).to(context.device)


def training_pairs(judge: JudgeProduct, context: Context) -> Preferences:
    """The pairs that a judge was trained on."""
    return preferences_of(judge.cohort.open(context), "train", judge.how, judge.seed)


class PaidDebates(Product):
    """A debate at every logged step: the logged action against the baseline's, as the judge sees them after it."""

    baseline: PolicyProduct
    """Whose greedy actions are argued against."""
    judge: JudgeProduct
    """Who scores; a judge of all 44 features sees the state, without a debate."""
    debaters: DebaterKind = "first_order"
    """Who debates."""
    trained: DebatersProduct | None = None
    """The trained debaters, where they are."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"debates on the logged actions, {self.judge.settings.items} items"

    def make(self, directory: Path, context: Context) -> None:
        """Hold and score all of them."""
        cohort = self.baseline.cohort.open(context)
        steps = cohort.steps()
        rival = LearnedPolicy.load(context.product(self.baseline), context.device).greedy(steps.state)
        arguments = arguments_of(self.judge.open(context), self.debaters, self.trained, context)
        scores = arguments.scores(steps.state, steps.action, rival, stream(self.baseline.seed, PAID))
        content = safetensors.torch.save({name: x.cpu().contiguous() for name, x in scores.items()})
        files.write(directory / DEBATES, content)

    def open(self, context: Context) -> dict[str, Tensor]:
        """``score`` and ``rival`` ``(N,)`` of all steps of the cohort, and whether the actions differ."""
        found, _ = read_tensors(context.product(self) / DEBATES)
        return {name: x.to(context.device) for name, x in found.items()}


def arguments_of(judge: Judge, kind: DebaterKind, trained: DebatersProduct | None, context: Context) -> Arguments:
    """Who argues before a judge."""
    return Arguments(judge, kind, None if trained is None else trained.open(context))


class PolicyProduct(Product):
    """A policy learned from a cohort."""

    cohort: CohortProduct
    """The data."""
    arm: Arm
    """Learner and reward."""
    learner: Learner
    """The learner of that name."""
    settings: PolicySettings
    """Of the training."""
    paid: PaidDebates | None = None
    """The debates that it is paid for; none with lambda 0."""
    seed: int
    """Of the networks."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.learner.name} {self.arm.name} seed {self.seed}"

    def make(self, directory: Path, context: Context) -> None:
        """Train it on the training and validation split."""
        cohort = self.cohort.open(context)
        scores = None if self.paid is None else self.paid.open(context)
        settings = self.settings
        reward = total_reward(cohort, self.arm.lam, scores, shaping=settings.shaping, kind=settings.debate_reward)
        curve: list[dict[str, float]] = []

        def watch(policy: LearnedPolicy, updates: int) -> None:
            if is_simulated(cohort):
                lived = true_survival(cohort, policy.greedy, WATCHED, device=context.device)
                curve.append({"updates": updates, "survival": float(lived.mean())})

        policy, clipped = train_policy(
            cohort,
            reward,
            self.settings,
            self.learner,
            self.seed,
            lam=self.arm.lam,
            device=context.device,
            checkpoint=context.checkpoint,
            progress=context.progress,
            watch=watch,
            looks=LOOKS,
        )
        policy.save(directory)
        write_card(directory / "model_card.md", cohort.to("cpu"), self.arm, self.learner, self.settings, [], self.seed)
        files.write_json(directory / "training.json", {"clipped_share": clipped, "curve": curve})


PaidDebates.model_rebuild()

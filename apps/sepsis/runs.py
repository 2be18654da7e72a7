"""The runs of the sepsis study: judges, debates and policies of a seed, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from apps.sepsis.arguments import DebaterKind
from apps.sepsis.debate import Debate, Debater, compare, hold_debate, verdict
from apps.sepsis.debaters import FirstOrderDebater, LookaheadDebater, RandomDebater
from apps.sepsis.estimates import EstimateSettings, as_dataset, estimate, target_probabilities
from apps.sepsis.judge import Judge, calibration, judge_accuracy
from apps.sepsis.matches import SETTINGS, matches
from apps.sepsis.metrics import action_counts, dose_excess, evidence_counts
from apps.sepsis.outcomes import SEED, is_simulated, true_outcome, true_survival
from apps.sepsis.policies import LearnedPolicy
from apps.sepsis.preferences import Preferences
from apps.sepsis.products import (
    ClinicianProduct,
    ConfuserProduct,
    DebatersProduct,
    JudgeProduct,
    PolicyProduct,
    arguments_of,
    preferences_of,
)
from apps.sepsis.settings import MechanisticPatients, RecordedPatients, Source
from core.files import read_json
from core.seeds import stream
from core.study import Context, Run
from simulators.sepsis import Physician, Sepsis44, survival
from simulators.sepsis.cohort import Cohort
from simulators.sepsis.features import ACTIONS, STATE

UNTRAINED_JUDGE = ("untrained_lookahead", "untrained_precommit")
"""Strategies before a judge that has learned nothing: what the rules of the game do by themselves."""
RANDOM_DRAWS = 5
"""Draws of random evidence for each pair."""


class Prepare(Run):
    """The judges of a seed, and how good they are on the test pairs; how the physician does."""

    judge: JudgeProduct
    """Of a few items."""
    full: JudgeProduct
    """Of the whole state."""
    clinician: ClinicianProduct
    """The estimated behaviour policy."""
    subjects: int = Field(ge=2)
    """New patients whose survival is computed, where there is a simulator."""
    tuples: int = Field(ge=2)
    """Test pairs at most."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"judges, seed {self.judge.seed}"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """``random`` and ``full`` accuracy of each pair, calibration, and survival of physician and clinician."""
        cohort = self.judge.cohort.open(context)
        judge, full = self.judge.open(context), self.full.open(context)
        clinician = self.clinician.open(context)
        pairs = test_pairs(cohort, self.judge, self.tuples)
        generator = torch.Generator(pairs.state.device).manual_seed(stream(self.judge.seed, "random evidence"))
        every = torch.ones_like(pairs.state, dtype=torch.bool)
        seen = compare(full, pairs.state, every, pairs.preferred, pairs.rejected) > 0
        test = cohort.steps("test")
        likely = clinician.probabilities(test.state)
        reliability = calibration(judge, pairs, generator)
        data = {
            **{name: ("bin", _array(getattr(reliability, name))) for name in ("confidence", "accuracy", "count")},
            "random": ("pair", _array(judge_accuracy(judge, pairs, generator, RANDOM_DRAWS))),
            "full": ("pair", _array(seen.float())),
            "patient": ("pair", _array(pairs.patient)),
            "cloned": ("step", _array(likely.argmax(1) == test.action)),
            "step_patient": ("step", _array(test.patient)),
            "actions": ("action", _array(action_counts(test.action))),
        }
        found = xr.Dataset(data, attrs={"calibration_error": reliability.error})
        if cohort.behaviour is not None:
            true = cohort.flat(cohort.behaviour, "test")
            found["ceiling"] = ("pair", _array(_ceiling(true, test.patient, test.step, pairs)))
        source = self.judge.cohort.source
        lived = survival_of(
            source, cohort, lambda seen: clinician.probabilities(seen).argmax(1), self.subjects, context
        )
        if lived is not None:
            found["clinician_survival"] = ("subject", lived)
        if isinstance(source, MechanisticPatients):
            physician = Physician(source.temperature, source.bias)
            treated = survival(Sepsis44(), physician, self.subjects, SEED, device=context.device)
            found["physician_survival"] = ("subject", _array(treated))
        return found


class Debates(Run):
    """How often the judge sides with the logged action, by who argues, alone, against its like and refuted."""

    prepared: Prepare
    """The judges."""
    learned: tuple[DebatersProduct, ...] = ()
    """Trained debaters that take part."""
    confusers: tuple[ConfuserProduct, ...] = ()
    """Trained attackers, one for each of them."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"debates, seed {self.prepared.judge.seed}"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """``correct`` (strategy, setting, pair), 1 or 0, NaN where a setting makes no sense for a strategy.

        Settings: ``alone`` (all items by the one who argues for the logged action, half of them for ``precommit``),
        ``itself`` (against its like), ``refuted`` (by the one-step search for the rejected action),
        ``confused`` (by the attacker that was trained against the debater). ``overlap`` (strategy, pair) is the share
        of the items of a debate against its like that the one-step search lays down too; ``shown`` (feature, action)
        how often the latter does, by the logged action.
        """
        prepared = self.prepared
        cohort = prepared.judge.cohort.open(context)
        judge = prepared.judge.open(context)
        pairs = test_pairs(cohort, prepared.judge, prepared.tuples)
        players = _players(judge, self.learned, stream(prepared.judge.seed, "random debater"), context)
        held: dict[str, dict[str, Debate]] = {}
        attackers = {f"ppo_{product.against.kind}": product.open(context) for product in self.confusers}
        for i, (name, pair) in enumerate(players.items()):
            seed = stream(prepared.judge.seed, f"debates {name}")
            confuser, upfront = attackers.get(name), "precommit" in name
            held[name] = matches(judge, pairs, pair, seed, upfront=upfront, confuser=confuser)
            context.progress((i + 1) / len(players), name)
        held |= _controls(judge, pairs, prepared.judge.seed)
        correct = np.full((len(held), len(SETTINGS), len(pairs)), np.nan, np.float32)
        overlap = np.full((len(held), len(pairs)), np.nan, np.float32)
        shown = held["lookahead"]["itself"].evidence
        for i, (name, of_strategy) in enumerate(held.items()):
            arbiter = untrained(judge, prepared.judge.seed) if name in UNTRAINED_JUDGE else judge
            for setting, debate in of_strategy.items():
                correct[i, SETTINGS.index(setting)] = _array(verdict(arbiter, debate) > 0)
            if "itself" in of_strategy and arbiter is judge:
                overlap[i] = _array((of_strategy["itself"].evidence & shown).sum(1) / judge.items)
        return xr.Dataset(
            {
                "correct": (("strategy", "setting", "pair"), correct),
                "overlap": (("strategy", "pair"), overlap),
                "patient": ("pair", _array(pairs.patient)),
                "shown": (("feature", "action"), _array(evidence_counts(shown, pairs.preferred))),
            },
            {"strategy": list(held), "setting": list(SETTINGS), "feature": list(STATE), "action": np.arange(ACTIONS)},
        )


def _players(
    judge: Judge, learned: tuple[DebatersProduct, ...], seed: int, context: Context
) -> dict[str, tuple[Debater, Debater]]:
    """Who argues for the logged action, and who against it among its like."""
    search, cheap = LookaheadDebater(judge), FirstOrderDebater(judge)
    dice = RandomDebater(torch.Generator(context.device).manual_seed(seed))
    known: dict[str, tuple[Debater, Debater]] = {
        "random": (dice, dice),
        "first_order": (cheap, cheap),
        "precommit_first_order": (cheap, cheap),
        "lookahead": (search, search),
    }
    return known | {f"ppo_{product.kind}": product.open(context) for product in learned}


def _controls(judge: Judge, pairs: Preferences, seed: int) -> dict[str, dict[str, Debate]]:
    """What the order of the debate alone does: the advocate always first, and a judge that has learned nothing."""
    state, good, bad = pairs.state, pairs.preferred, pairs.rejected
    search, first = LookaheadDebater(judge), torch.ones_like(good)
    after = hold_debate(state, good, bad, search, search, judge.items, starter=first)
    blank = untrained(judge, seed)
    alternating, precommitted = UNTRAINED_JUDGE
    found = {"lookahead_first": {"itself": after}}
    for name, debater in ((alternating, LookaheadDebater(blank)), (precommitted, FirstOrderDebater(blank))):
        played = matches(blank, pairs, (debater, debater), stream(seed, name), upfront=name == precommitted)
        setting = "refuted" if name == precommitted else "itself"
        found[name] = {setting: played[setting]}
    return found


def untrained(judge: Judge, seed: int) -> Judge:
    """A judge of the same kind that has learned nothing."""
    with torch.random.fork_rng([]):
        torch.manual_seed(stream(seed, "untrained judge"))
        blank = Judge(judge.items, judge.hidden, judge.norm, judge.ties, judge.features)
    return blank.to(next(judge.parameters()).device).eval()


class Train(Run):
    """A policy: trained, its survival on common new patients, and what judges say of it and of the baseline."""

    policy: PolicyProduct
    """What is trained."""
    prepared: Prepare
    """The judges, and the size of the evaluation."""
    baseline: Train | None = None
    """The policy of lambda 0 of the same learner; None for that policy itself."""
    debaters: DebaterKind
    """Who debates the two policies' actions."""
    trained: DebatersProduct | None = None
    """The trained debaters, where they do."""
    estimates: EstimateSettings | None = None
    """Off-policy estimates from the test patients; None for none."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return self.policy.label

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """See ``judged`` for the comparison with the baseline; ``survival`` (subject) where there is a simulator."""
        folder = context.product(self.policy)
        policy, training = LearnedPolicy.load(folder, context.device), read_json(folder / "training.json")
        cohort = self.policy.cohort.open(context)
        test = cohort.steps("test")
        action = policy.greedy(test.state)
        pairs = test_pairs(cohort, self.prepared.judge, self.prepared.tuples)
        q = policy.q.q_values(pairs.state)
        ahead = q.gather(1, pairs.preferred[:, None]) >= q.gather(1, pairs.rejected[:, None])
        found = xr.Dataset(
            {
                "action": ("step", _array(action)),
                "patient": ("step", _array(test.patient)),
                "aligned": ("pair", _array(ahead[:, 0].float())),
                "pair_patient": ("pair", _array(pairs.patient)),
            },
            attrs={"clipped_share": training["clipped_share"]},
        )
        if curve := training["curve"]:
            found["updates"] = ("look", [point["updates"] for point in curve])
            found["survival_so_far"] = ("look", [point["survival"] for point in curve])
        rows = (cohort.split == 2).nonzero()[:, 0]
        found = found.merge(dose_excess(cohort, rows, cohort.padded(action, "test")))
        if self.baseline is not None:
            rival = torch.as_tensor(inputs["baseline"]["action"].values, device=context.device)
            found = found.merge(judged(cohort, action, rival, self, context))
        lived = survival_of(self.policy.cohort.source, cohort, policy.greedy, self.prepared.subjects, context)
        if lived is not None:
            found["survival"] = ("subject", lived)
        if self.estimates is not None:
            clinician = self.prepared.clinician.open(context)
            kept = context.checkpoint / "fitted_q.safetensors"
            told = estimate(cohort, policy, clinician, self.estimates, self.policy.seed, checkpoint=kept)
            found = found.merge(as_dataset(told))
            if is_simulated(cohort):
                target = target_probabilities(policy, self.estimates)
                gamma, device = self.estimates.gamma, context.device
                true = true_outcome(cohort, target, self.prepared.subjects, gamma, device=device)
                found["estimate_truth"] = ("subject", _array(true))
        return found


def judged(cohort: Cohort, action: Tensor, rival: Tensor, run: Train | Reference, context: Context) -> xr.Dataset:
    """``by_debate`` and ``by_full_judge`` (step): 1 ``action`` is preferred to ``rival``, -1 the reverse, 0 neither."""
    state = cohort.steps("test").state
    judge, full = run.prepared.judge.open(context), run.prepared.full.open(context)
    seed = stream(run.prepared.judge.seed, "debates of policies")
    shown = arguments_of(judge, run.debaters, run.trained, context).evidence(state, action, rival, seed)
    every = torch.ones_like(shown)
    return xr.Dataset(
        {
            "by_debate": ("step", _array(compare(judge, state, shown, action, rival))),
            "by_full_judge": ("step", _array(compare(full, state, every, action, rival))),
        }
    )


class Reference(Run):
    """What the judge says of the clinician's actions, logged and estimated, against the policy of lambda 0."""

    prepared: Prepare
    """The judges."""
    baseline: Train
    """The policy of lambda 0."""
    debaters: DebaterKind
    """Who debates."""
    trained: DebatersProduct | None = None
    """The trained debaters, where they do."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"clinician against {self.baseline.policy.learner.name} lambda 0, seed {self.prepared.judge.seed}"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """As ``judged``, along ``who``: ``clinician`` (greedy) and ``logged``."""
        cohort = self.prepared.judge.cohort.open(context)
        test = cohort.steps("test")
        rival = torch.as_tensor(inputs["baseline"]["action"].values, device=context.device)
        greedy = self.prepared.clinician.open(context).probabilities(test.state).argmax(1)
        parts = [judged(cohort, action, rival, self, context) for action in (greedy, test.action)]
        found = xr.concat(parts, xr.Variable("who", ["clinician", "logged"]))
        found["action"] = (("who", "step"), np.stack([_array(greedy), _array(test.action)]))
        return found.assign(patient=("step", _array(test.patient)))


def test_pairs(cohort: Cohort, judge: JudgeProduct, at_most: int) -> Preferences:
    """The test pairs of a seed, the same for every judge and debater."""
    pairs = preferences_of(cohort, "test", judge.how, judge.seed)
    generator = torch.Generator().manual_seed(stream(judge.seed, "test pairs"))
    chosen = torch.randperm(len(pairs), generator=generator)[:at_most].sort().values
    return pairs.take(chosen.to(pairs.state.device))


def _ceiling(behaviour: Tensor, patient: Tensor, step: Tensor, pairs: Preferences) -> Tensor:
    """Whether the true probabilities ``(N, 25)`` of the test steps order each pair as it is."""
    longest = int(step.max()) + 1
    row = torch.searchsorted(patient * longest + step, pairs.patient * longest + pairs.step)
    likely = behaviour[row]
    return likely.gather(1, pairs.preferred[:, None])[:, 0] > likely.gather(1, pairs.rejected[:, None])[:, 0]


def survival_of(
    source: Source, cohort: Cohort, greedy: Callable[[Tensor], Tensor], subjects: int, context: Context
) -> np.ndarray | None:
    """Survival of new patients ``(subjects,)`` treated by ``greedy``, from normalised states to actions.

    All policies and seeds meet the same patients and the same luck. None where there is no simulator.
    """
    if isinstance(source, RecordedPatients):
        return None
    return _array(true_survival(cohort, greedy, subjects, device=context.device))


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()


Train.model_rebuild()

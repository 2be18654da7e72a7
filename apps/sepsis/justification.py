"""Why a policy departs from another: debates at the steps where they differ, what was cited, and whether it bears.

Sukovic and Radanovic (ICLR 2024, arXiv 2402.15826), section 5: preference, the split of all steps, and the alignment
of attributions with the judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import xarray as xr
from torch import Tensor

from apps.sepsis.arguments import Arguments
from apps.sepsis.counterfactual import evidence_check, evidence_precision
from apps.sepsis.debate import Debate, argue_alone, compare, hold_debate, verdict
from apps.sepsis.debaters import FixedEvidence, LookaheadDebater
from apps.sepsis.evidence import share
from apps.sepsis.explanations import Probabilities, lime_order, shap_order
from apps.sepsis.judge import Judge, JudgeEnsemble
from apps.sepsis.metrics import evidence_counts
from apps.sepsis.policies import LearnedPolicy
from apps.sepsis.preferences import Preferences
from apps.sepsis.table import row_of
from apps.sepsis.transcripts import transcribe, write_transcripts
from core.errors import InputError
from core.seeds import stream
from core.simulation import tree
from core.study import Row
from simulators.sepsis import Sepsis44
from simulators.sepsis.cohort import Cohort
from simulators.sepsis.features import ACTIONS, STATE

BACKGROUND = 50
"""Training states from which SHAP takes the values of absent features."""
LIME_BACKGROUND = 2000
"""Training states of which LIME takes quartiles and spreads."""
MOST_CITED = 10


@dataclass(frozen=True)
class Justification:
    """Debates at the N test steps where two policies differ, the policy in question being player 1.

    Attributes:
        debate: N debates.
        utility: ``(N,)`` of the policy, 1 or -1; 0 undecided.
        pairs: the same as pairs of actions, with patient and step.
        patient: ``(M,)`` of all test steps.
        differs: ``(M,)`` bool, where the policies differ.
    """

    debate: Debate
    utility: Tensor
    pairs: Preferences
    patient: Tensor
    differs: Tensor

    def sample(self, at_most: int, seed: int) -> Justification:
        """A random part of the debates, in order."""
        generator = torch.Generator().manual_seed(stream(seed, "sample"))
        rows = torch.randperm(len(self.debate), generator=generator)[:at_most].sort().values
        rows = rows.to(self.utility.device)
        return replace(self, debate=self.debate.take(rows), utility=self.utility[rows], pairs=self.pairs.take(rows))

    def counts(self) -> Tensor:
        """``(44, 25)`` how often each feature is cited, by the policy's action."""
        return evidence_counts(self.debate.evidence, self.debate.first)

    def dataset(self) -> xr.Dataset:
        """``cited`` (feature, action) and ``utility`` (debate); no values of patients."""
        data = {"cited": (("feature", "action"), self.counts().cpu().numpy())}
        found = xr.Dataset(data, {"feature": list(STATE), "action": list(range(ACTIONS))})
        return found.assign(utility=("debate", self.utility.cpu().numpy()))


def justify(
    cohort: Cohort, arguments: Arguments, policy: LearnedPolicy, baseline: LearnedPolicy, seed: int
) -> Justification:
    """Debate the actions of two policies at every test step where they differ.

    Args:
        cohort: on the device of judge and policies.
        arguments: judge and debaters.
        policy: player 1.
        baseline: player 2.
        seed: of who begins.

    Raises:
        InputError: the policies agree at every test step, or the judge sees the whole state.
    """
    if arguments.judge.items == len(STATE):
        raise InputError(f"judge: sees all {len(STATE)} features, so nobody argues before it; needs one of fewer")
    test = cohort.steps("test")
    first, second = policy.greedy(test.state), baseline.greedy(test.state)
    differs = first != second
    rows = differs.nonzero()[:, 0]
    if not len(rows):
        raise InputError("policies: they agree at every test step, so there is nothing to debate")
    state, one, two = test.state[rows], first[rows], second[rows]
    debate = arguments.debate(state, one, two, stream(seed, "debates of policies"))
    label = torch.ones(len(rows), device=state.device)
    pairs = Preferences(state, one, two, test.patient[rows], test.step[rows], label)
    return Justification(debate, verdict(arguments.judge, debate), pairs, test.patient, differs)


def justification_rows(found: Justification) -> list[Row]:
    """Where the policies differ, what the judge says there, and what is cited most; patients resampled."""
    utility, patient, differing = found.utility, found.pairs.patient, found.differs.nonzero()[:, 0]
    rows = [("preferred to the baseline where they differ", "%", share((utility > 0).float(), patient))]
    for sign, metric in ((-1, "baseline preferred"), (0, "equal actions or undecided"), (1, "policy preferred")):
        chosen = torch.zeros_like(found.patient, dtype=torch.float32)
        chosen[differing] = (utility == sign).float()
        if sign == 0:
            chosen = chosen + (~found.differs).float()
        rows.append((metric, "% of steps", share(chosen, found.patient)))
    table = [row_of("verdicts", "policy", metric, unit, i, 100) for metric, unit, i in rows if i is not None]
    evidence = found.debate.evidence
    for item in evidence.sum(0).argsort(descending=True)[:MOST_CITED].tolist():
        if (cited := share(evidence[:, item].float(), patient)) is not None:
            table.append(row_of("features cited most", STATE[item], "share of the debates", "%", cited, 100))
    return table


def attribution_rows(
    found: Justification,
    arguments: Arguments,
    policy: LearnedPolicy,
    background: Tensor,
    kind: str,
    seed: int,
    progress: Callable[[float, str], object] | None = None,
) -> list[Row]:
    """How the judge takes what SHAP or LIME call important, and how much of it the debaters cite.

    Args:
        found: the debates looked at.
        arguments: judge and debaters.
        policy: softmax of its Q is explained.
        background: ``(M, 44)`` training states.
        kind: ``shap`` or ``lime``.
        seed: of the samples.
        progress: told the share done and a message.

    Returns:
        ``alignment``, the share of the steps at which the judge, shown the top features, does not prefer the
        baseline's action (ties count, as published), of the attribution and of the debate; the share of the steps at
        which the top L/2 features win, alone and ``refuted`` by a one-step search that answers with as many; and
        ``overlap``, the share of the top features that the policy's advocate or its rival cites.

    Raises:
        MissingExtra: the package is not installed.
    """
    state, first, second = found.debate.state, found.debate.first, found.debate.second
    function: Probabilities = policy.probabilities
    order = (shap_order if kind == "shap" else lime_order)(
        function, background, state, first, seed=seed, progress=progress
    )
    items, evidence = arguments.judge.items, found.debate.evidence
    shown = torch.zeros_like(evidence).scatter(1, order[:, :items], True)
    patient = found.pairs.patient
    name = kind.upper()
    half, listed = items // 2, FixedEvidence(order)
    alone = argue_alone(state, first, second, listed, half)
    refuted = hold_debate(state, first, second, listed, LookaheadDebater(arguments.judge), items, order="upfront")
    measured = [
        (f"top {items} of {name}", "alignment", compare(arguments.judge, state, shown, first, second) >= 0),
        ("debate", "alignment", found.utility >= 0),
        (f"top {half} of {name}", "preferred to the baseline, alone", verdict(arguments.judge, alone) > 0),
        (f"top {half} of {name}", "preferred to the baseline, refuted", verdict(arguments.judge, refuted) > 0),
        (f"top {items} of {name}", "overlap with the debate", (shown & evidence).sum(1) / items),
    ]
    rows = []
    for method, metric, value in measured:
        if (i := share(value.float(), patient)) is not None:
            rows.append(row_of(f"{name} of softmax Q", method, metric, "%", i, 100))
    return rows


def counterfactual_rows(
    found: Justification, cohort: Cohort, seed: int, progress: Callable[[float, str], object] | None = None
) -> tuple[list[Row], xr.Dataset]:
    """Share of the cited features that bear on the choice, by twins of simulated patients; see ``evidence_check``.

    Raises:
        InputError: the cohort is not of ``sepsis44`` with its latent states.
    """
    if cohort.origin.get("source") != "sepsis44":
        raise InputError(f"cohort: of {cohort.origin.get('source')}; counterfactual twins exist in sepsis44 alone")
    world = Sepsis44(horizon=int(cohort.origin["horizon"]))
    held, patients = tree.map_tensors(lambda x: x.cpu(), found), cohort.to("cpu")
    check = evidence_check(world, patients, held.pairs, held.debate, held.utility, seed, progress=progress)
    rows = []
    for cited, words in (("winner", "cited by the winner"), ("loser", "cited by the loser"), ("any", "any feature")):
        for by, metric in (("effect", "bears on survival"), ("need", "bears on the doses needed")):
            try:
                i = evidence_precision([check], cited, by)  # type: ignore[arg-type]
            except InputError:
                continue  # no debate was lost, or those of one patient alone
            rows.append(row_of("counterfactual twins", words, metric, "% of items", i, 100))
    return rows, check


def background(cohort: Cohort, kind: str, seed: int) -> Tensor:
    """``(M, 44)`` training states, of which ``shap`` takes few and ``lime`` many."""
    state = cohort.steps("train").state
    generator = torch.Generator().manual_seed(stream(seed, "background"))
    rows = torch.randperm(len(state), generator=generator)[: BACKGROUND if kind == "shap" else LIME_BACKGROUND]
    return state[rows.to(state.device)]


def write_cases(
    folder: Path, judge: Judge | JudgeEnsemble, cohort: Cohort, found: Justification, *, redact: bool
) -> Path:
    """Write the debates down; the page."""
    pairs = found.pairs
    told = transcribe(
        judge,
        found.debate,
        patient=pairs.patient,
        step=pairs.step,
        raw=None if cohort.raw is None else cohort.raw[pairs.patient, pairs.step],
        sides=("policy", "baseline"),
        features=cohort.features,
        redact=redact,
    )
    return write_transcripts(folder, told, "A policy against its baseline")[1]

"""The pictures of the sepsis study."""

from apps.sepsis.evidence import Evidence
from apps.sepsis.figures.debates import accuracies, judge_calibration, shown_features
from apps.sepsis.figures.policies import (
    action_maps,
    dose_excesses,
    learning_curves,
    preferences,
    survivals,
    verdicts,
)
from core.study import Figure


def of_study(evidence: Evidence, learners: tuple[str, ...]) -> list[Figure]:
    """Every picture that the results allow."""
    seeds = f"{len(evidence.prepared)} seeds, 95 % bootstrap intervals over seeds and patients"
    figures = []
    if any("survival" in data for of_arm in evidence.trained.values() for data in of_arm.values()):
        figures.append(
            Figure(
                "survival",
                f"Survival under each policy, on patients common to all ({seeds}); small dots are single seeds. Lines: "
                "the physician who treated the patients that were learned from, where a simulator has one.",
                lambda: survivals(evidence, learners),
            )
        )
        figures.append(
            Figure(
                "training",
                f"Survival under the greedy policy while it is trained; a thin line a seed ({len(evidence.prepared)}), "
                "thick their mean, on 1000 patients common to all.",
                lambda: learning_curves(evidence, learners),
            )
        )
    if any(name != "lambda 0" for _, name in evidence.trained):
        figures += [
            Figure(
                "preference",
                f"How often the judge prefers a policy's action to that of lambda 0 where they differ ({seeds}): after "
                "a debate, and seeing the whole state. The cloned clinician shows what imitation alone is worth.",
                lambda: preferences(evidence, learners),
            ),
            Figure(
                "verdicts",
                "All test steps: the judge prefers the baseline's action after a debate, both actions are the same, or "
                "it prefers the policy's. Mean over seeds.",
                lambda: verdicts(evidence, learners),
            ),
        ]
    figures += [
        Figure(
            "debate_accuracy",
            f"How often the judge sides with the logged action ({seeds}): features chosen by its advocate alone, "
            "against its like, and refuted by a one-step search, or by a debater trained against it. Trained debaters "
            "on the seeds where they were trained. Lines: random features and the whole state.",
            lambda: accuracies(evidence),
        ),
        Figure(
            "shown_features",
            "Which features are laid down in debates between one-step searches on the logged actions, by fluid and by "
            "vasopressor level, all seeds; the 20 features that are shown most.",
            lambda: shown_features(evidence),
        ),
        Figure(
            "calibration",
            "How often the judge is right where it is so sure, shown random features; all seeds. On the diagonal it is "
            "as sure as it should be.",
            lambda: judge_calibration(evidence),
        ),
        Figure(
            "actions",
            "How often each treatment is chosen at the test steps, by the clinician and by policies; all seeds.",
            lambda: action_maps(evidence, learners[0]),
        ),
        Figure(
            "dose_excess",
            "Observed mortality of test patients by how much more the clinician gave at their last step than the "
            "policy would have; 95 % Wilson intervals, all seeds. Mortality is lowest where both agree if doses are "
            "right, though not only then: the sick get more.",
            lambda: dose_excesses(evidence, learners[0]),
        ),
    ]
    return figures

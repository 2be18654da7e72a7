"""The judge: which of two treatments is the better justified by the few features of a patient that it is shown.

A network scores a treatment given evidence, and a logistic model of the difference of two scores (Bradley and Terry
1952) is fitted to preferences. After Sukovic and Radanovic (ICLR 2024, arXiv 2402.15826) and their code.

Example::

    pairs = draw_preferences(cohort.steps("train"), generator)
    judge = train_judge(pairs, JudgeSettings(epochs=15), seed=0)
    judge.score(state, mask, action)
"""

from apps.sepsis.judge.accuracy import Calibration, calibration, calibration_error, judge_accuracy, random_evidence
from apps.sepsis.judge.ensemble import JudgeEnsemble, load_judge, most_useful_pairs, train_ensemble
from apps.sepsis.judge.network import Judge, JudgeSettings
from apps.sepsis.judge.training import train_judge

__all__ = [
    "Calibration",
    "Judge",
    "JudgeEnsemble",
    "JudgeSettings",
    "calibration",
    "calibration_error",
    "judge_accuracy",
    "load_judge",
    "most_useful_pairs",
    "random_evidence",
    "train_ensemble",
    "train_judge",
]

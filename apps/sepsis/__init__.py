"""Treatment policies for sepsis that can be justified to a judge, and debates that test the judge.

After Sukovic and Radanovic (2024), "Reward Design for Justifiable Sequential Decision-Making", ICLR, arXiv 2402.15826.

Example: a judge of six features, a policy paid for survival alone, and one that must also convince the judge.

    cohort = simulated(MechanisticPatients(patients=1000), seed=0)
    judge = train_judge(logged_pairs(cohort, "train", "random", seed=0), JudgeSettings(epochs=15), seed=0)
    settings = PolicySettings(updates=1500, learning_rate=3e-4, tau=5e-3)
    plain, _ = train_policy(cohort, total_reward(cohort), settings, Learner(name="plain"), seed=0)
    steps = cohort.steps()
    scores = Arguments(judge, "first_order").scores(steps.state, steps.action, plain.greedy(steps.state), seed=0)
    reward = total_reward(cohort, 0.5, scores)
    justified, _ = train_policy(cohort, reward, settings, Learner(name="plain"), seed=0, lam=0.5)
    print(true_survival(cohort, justified.greedy, subjects=3000).mean())

Example: who can talk the judge round.

    players = train_players(judge, logged_pairs(cohort, "train", "random", seed=0), "lookahead", seed=0)
    trial = debate_trial(judge, players, logged_pairs(cohort, "test", "random", seed=0), seed=0)
    print({setting: float(won.float().mean()) for setting, won in trial.won.items()})

Example: the study of the configs.

    SepsisStudy.load("quick").run("runs/sepsis")
"""

from apps.sepsis.arguments import Arguments, arguments_by, load_debaters, save_debaters
from apps.sepsis.clinician import load_clinician, save_clinician, train_clinician
from apps.sepsis.counterfactual import evidence_check, evidence_precision
from apps.sepsis.debate import Debate, Debater, Position, Scorer, argue_alone, compare, hold_debate, verdict
from apps.sepsis.debaters import (
    FirstOrderDebater,
    FixedEvidence,
    LookaheadDebater,
    RandomDebater,
    first_order_evidence,
)
from apps.sepsis.debating import Players, Trial, debate_trial, train_players
from apps.sepsis.estimates import EstimateSettings, estimate
from apps.sepsis.exact import ExactDebater, best_reply, exploitability, game_value
from apps.sepsis.explanations import lime_order, shap_order
from apps.sepsis.game import DebateGame
from apps.sepsis.ingestion import ingest
from apps.sepsis.judge import (
    Judge,
    JudgeEnsemble,
    JudgeSettings,
    calibration_error,
    judge_accuracy,
    load_judge,
    most_useful_pairs,
    random_evidence,
    train_ensemble,
    train_judge,
)
from apps.sepsis.judging import labelled_pairs, logged_pairs, scored_pairs
from apps.sepsis.justification import Justification, justify
from apps.sepsis.learned_debaters import (
    ConfuserSettings,
    DebaterSettings,
    LearnedDebater,
    train_confuser,
    train_debaters,
)
from apps.sepsis.model_card import write_model_card
from apps.sepsis.off_policy import OffPolicyReport, compare_policies
from apps.sepsis.outcomes import true_outcome, true_survival
from apps.sepsis.policies import LearnedPolicy, train_policy
from apps.sepsis.preferences import (
    Preferences,
    draw_preferences,
    read_preferences,
    truth_preferences,
    write_preferences,
)
from apps.sepsis.products import simulated
from apps.sepsis.rewards import debate_reward, environment_reward, mixed_reward, total_reward
from apps.sepsis.settings import (
    Arm,
    ClinicianSettings,
    Learner,
    MechanisticPatients,
    PolicySettings,
    RecordedPatients,
    TabularPatients,
)
from apps.sepsis.study import SepsisStudy
from apps.sepsis.transcripts import transcribe, write_transcripts

__all__ = [
    "Arguments",
    "Arm",
    "ClinicianSettings",
    "ConfuserSettings",
    "Debate",
    "DebateGame",
    "Debater",
    "DebaterSettings",
    "EstimateSettings",
    "ExactDebater",
    "FirstOrderDebater",
    "FixedEvidence",
    "Judge",
    "JudgeEnsemble",
    "JudgeSettings",
    "Justification",
    "LearnedDebater",
    "LearnedPolicy",
    "Learner",
    "LookaheadDebater",
    "MechanisticPatients",
    "OffPolicyReport",
    "Players",
    "PolicySettings",
    "Position",
    "Preferences",
    "RandomDebater",
    "RecordedPatients",
    "Scorer",
    "SepsisStudy",
    "TabularPatients",
    "Trial",
    "argue_alone",
    "arguments_by",
    "best_reply",
    "calibration_error",
    "compare",
    "compare_policies",
    "debate_reward",
    "debate_trial",
    "draw_preferences",
    "environment_reward",
    "estimate",
    "evidence_check",
    "evidence_precision",
    "exploitability",
    "first_order_evidence",
    "game_value",
    "hold_debate",
    "ingest",
    "judge_accuracy",
    "justify",
    "labelled_pairs",
    "lime_order",
    "load_clinician",
    "load_debaters",
    "load_judge",
    "logged_pairs",
    "mixed_reward",
    "most_useful_pairs",
    "random_evidence",
    "read_preferences",
    "save_clinician",
    "save_debaters",
    "scored_pairs",
    "shap_order",
    "simulated",
    "total_reward",
    "train_clinician",
    "train_confuser",
    "train_debaters",
    "train_ensemble",
    "train_judge",
    "train_players",
    "train_policy",
    "transcribe",
    "true_outcome",
    "true_survival",
    "truth_preferences",
    "verdict",
    "write_model_card",
    "write_preferences",
    "write_transcripts",
]

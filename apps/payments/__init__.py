"""Contextual bandits for payments: exploration, generations of policies on their own logs, and proof from those logs.

Example: a rule of exploration in a world, and the approval rate of the policies that it leads to.

    scenario = Scenario(name="mine", generations=6)
    arm = Arm(name="igw", exploration=Exploration(rule="igw", gamma=3000), window=3)
    series = play(scenario, arm, seed=0)
    print(online_value(series).item())

Example: what a policy would have been worth on a joined log that another one left.

    evaluation = evaluation_of(Path("logs/joined"), [Candidate(name="next", source="policies/next")])
    evaluation.run("runs/next")
"""

from apps.payments.evaluation.runs import Candidate, Estimation
from apps.payments.evaluation.study import EvaluationStudy, evaluation_of
from apps.payments.exploration import Exploration, Learned
from apps.payments.generations import GenerationLoop, play
from apps.payments.oracles import ImbalanceSettings, Rows, fit_oracle, load_oracle
from apps.payments.policy import Decisions, Policy
from apps.payments.runs import online_value
from apps.payments.scenario import Arm, Scenario, Tuning
from apps.payments.study import PaymentsStudy
from apps.payments.training import train_policy

__all__ = [
    "Arm",
    "Candidate",
    "Decisions",
    "Estimation",
    "EvaluationStudy",
    "Exploration",
    "GenerationLoop",
    "ImbalanceSettings",
    "Learned",
    "PaymentsStudy",
    "Policy",
    "Rows",
    "Scenario",
    "Tuning",
    "evaluation_of",
    "fit_oracle",
    "load_oracle",
    "online_value",
    "play",
    "train_policy",
]

"""What to ask, what to recommend, and when, in dialogues about a catalogue.

After Deng, Li, Sun, Ding and Lam (2021), "Unified conversational recommendation policy learning via graph-based
reinforcement learning", SIGIR, arXiv 2105.09710.

Example: rules on a generated catalogue.

    catalogue = generate(PRESETS["small"], seed=0)
    embeddings = fit_embeddings(catalogue, EmbeddingSettings(), seed=0, device="cpu")
    world = Conversation(catalogue, embeddings, Rules())
    cases = Cases.of(world, catalogue.pairs("test"), seed=0)
    for policy in (AbsGreedy(world), MaxEntropy(world), Threshold(world, 100), ActiveInference(world)):
        played = evaluate(world, policy, cases)
        print(type(policy).__name__, {name: f"{values.mean():.3f}" for name, values in measures(played).items()})

Example: your own policy, which sees all but the target.

    class Mine(Policy):
        def __call__(self, observation, state=None):
            return self.recommend(observation)

Example: a gymnasium environment with masks, and one of 64 dialogues at once.

    env, envs = CRSEnv(world), CRSVectorEnv(world, 64)

Example: the study of the configs.

    CRSStudy.load("quick").run("runs/crs")
"""

from apps.crs.active_inference import ActiveInference, BeliefRanking, Preferences, calibrate_beta
from apps.crs.crm import CrmPolicy, CrmSettings
from apps.crs.ear import EarPolicy, EarSettings
from apps.crs.embedding import EmbeddingSettings, fit_embeddings
from apps.crs.environments import CRSEnv, CRSVectorEnv
from apps.crs.evaluation import Cases, evaluate
from apps.crs.grouping import GroupedChoice, GroupedPolicy, spherical_kmeans
from apps.crs.hopfield import HopfieldPolicy, HopfieldRanking, HopfieldScores, tune_beta
from apps.crs.learned import QPolicy
from apps.crs.metrics import hdcg, measures, success_by, success_curve
from apps.crs.policies import AbsGreedy, MaxEntropy, OracleAsk, Policy, RandomPolicy, Threshold
from apps.crs.problem import GeneratedSource, Problem, StoredSource
from apps.crs.scpr import ScprChoice
from apps.crs.study import CRSStudy
from apps.crs.training import QLearning, new_dqn, train
from apps.crs.unicorn import UnicornSettings, new_unicorn
from simulators.crs import Catalogue, Conversation, Embeddings, Rewards, Rules
from simulators.crs.belief import Belief
from simulators.crs.choice import CandidateChoice, EntropyRanking
from simulators.crs.features import CompactFeatures
from simulators.crs.generated import PRESETS, Generated, generate
from simulators.crs.readers import read

__all__ = [
    "PRESETS",
    "AbsGreedy",
    "ActiveInference",
    "Belief",
    "BeliefRanking",
    "CRSEnv",
    "CRSStudy",
    "CRSVectorEnv",
    "CandidateChoice",
    "Cases",
    "Catalogue",
    "CompactFeatures",
    "Conversation",
    "CrmPolicy",
    "CrmSettings",
    "EarPolicy",
    "EarSettings",
    "EmbeddingSettings",
    "Embeddings",
    "EntropyRanking",
    "Generated",
    "GeneratedSource",
    "GroupedChoice",
    "GroupedPolicy",
    "HopfieldPolicy",
    "HopfieldRanking",
    "HopfieldScores",
    "MaxEntropy",
    "OracleAsk",
    "Policy",
    "Preferences",
    "Problem",
    "QLearning",
    "QPolicy",
    "RandomPolicy",
    "Rewards",
    "Rules",
    "ScprChoice",
    "StoredSource",
    "Threshold",
    "UnicornSettings",
    "calibrate_beta",
    "evaluate",
    "fit_embeddings",
    "generate",
    "hdcg",
    "measures",
    "new_dqn",
    "new_unicorn",
    "read",
    "spherical_kmeans",
    "success_by",
    "success_curve",
    "train",
    "tune_beta",
]

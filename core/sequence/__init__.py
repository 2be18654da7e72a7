"""Policies over token sequences: objectives, sampling, search and training.

Example: policy optimisation of a toy policy on a task with verifiable answers.

    task = ModularChain(11)
    policy = task.policy()
    objective = Objective(policy=ClipCov(ratio=0.2, low=0.2, high=10), estimator=GroupRelative(), minibatches=4)
    trainer = SequencePolicyOptimization(policy, Rollouts(task, prompts=64, group=8), objective, learning_rate=5e-4)
    records = trainer.train(800)

A Hugging Face causal model takes the policy's place as ``CausalLMPolicy(model, eos)``.
"""

from core.sequence.advantages import (
    GroupRelative,
    LeaveOneOut,
    RewardToGo,
    SemanticEntropyScale,
    SemanticShare,
    StandardisedReturns,
    Voting,
    Whole,
    group_relative,
    leave_one_out,
)
from core.sequence.any_loss import AnyEstimator, AnyLoss
from core.sequence.batch import Estimator, Loss, LossResult, TokenBatch, TokenScores
from core.sequence.causal_lm import CausalLMPolicy, load_causal_lm
from core.sequence.edit_distance import edit_distances, prefix_edit_distances
from core.sequence.entropy import EntropyMonitor, entropy_change, fit_entropy_law
from core.sequence.expert_iteration import ExpertIteration
from core.sequence.losses import (
    CTC,
    GRPO,
    ClipCov,
    CrossEntropy,
    EntropyBonus,
    ForkingTokens,
    KLCov,
    MinimumRisk,
    Reinforce,
    clip_higher,
)
from core.sequence.objective import Objective
from core.sequence.offline import OREO
from core.sequence.policy import SequencePolicy, Stepwise, StepwisePolicy, sample_stepwise, scores_of
from core.sequence.preferences import CPL, DPO, PreferenceDegree, did_entropy, did_weights
from core.sequence.resets import DatasetReset
from core.sequence.rollouts import Prompts, Recorded, Rollouts, Supervised, Task
from core.sequence.scheduled import ScheduledSampling
from core.sequence.train import SequencePolicyOptimization
from core.sequence.windows import Windowed

__all__ = [
    "CPL",
    "CTC",
    "DPO",
    "GRPO",
    "OREO",
    "AnyEstimator",
    "AnyLoss",
    "CausalLMPolicy",
    "ClipCov",
    "CrossEntropy",
    "DatasetReset",
    "EntropyBonus",
    "EntropyMonitor",
    "Estimator",
    "ExpertIteration",
    "ForkingTokens",
    "GroupRelative",
    "KLCov",
    "LeaveOneOut",
    "Loss",
    "LossResult",
    "MinimumRisk",
    "Objective",
    "PreferenceDegree",
    "Prompts",
    "Recorded",
    "Reinforce",
    "RewardToGo",
    "Rollouts",
    "ScheduledSampling",
    "SemanticEntropyScale",
    "SemanticShare",
    "SequencePolicy",
    "SequencePolicyOptimization",
    "StandardisedReturns",
    "Stepwise",
    "StepwisePolicy",
    "Supervised",
    "Task",
    "TokenBatch",
    "TokenScores",
    "Voting",
    "Whole",
    "Windowed",
    "clip_higher",
    "did_entropy",
    "did_weights",
    "edit_distances",
    "entropy_change",
    "fit_entropy_law",
    "group_relative",
    "leave_one_out",
    "load_causal_lm",
    "prefix_edit_distances",
    "sample_stepwise",
    "scores_of",
]

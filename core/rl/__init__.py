"""Reinforcement learning on device tensors with the interface of Stable-Baselines3."""

from core.rl.algorithm import TrainingDiverged
from core.rl.demonstrations import DemonstrationDQN, Demonstrations
from core.rl.dqn import DQN
from core.rl.dual_clip import DualClipPPO
from core.rl.kl_penalty import KLPenaltyPPO
from core.rl.policy import LearnedPolicy
from core.rl.ppo import PPO, Minibatch
from core.rl.resume import ResumeCallback
from core.rl.subpo import SubPO
from core.rl.vracer import VRACER

__all__ = [
    "DQN",
    "PPO",
    "VRACER",
    "DemonstrationDQN",
    "Demonstrations",
    "DualClipPPO",
    "KLPenaltyPPO",
    "LearnedPolicy",
    "Minibatch",
    "ResumeCallback",
    "SubPO",
    "TrainingDiverged",
]

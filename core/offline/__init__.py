"""Learning and evaluation from logged data alone."""

from core.offline.cql import ConservativeDQN
from core.offline.dataset import OfflineDataset, Standardizer, TransitionBatch
from core.offline.dqn import MeanQ, OfflineDQN
from core.offline.evaluation import (
    Estimate,
    Trajectories,
    effective_sample_size,
    enough_overlap,
    evaluate_policy,
    softened,
)
from core.offline.fitted_q import FittedQEvaluation
from core.offline.imitation import BehaviourCloning, NearestNeighbourBehaviour
from core.offline.minari_files import from_minari, to_minari

__all__ = [
    "BehaviourCloning",
    "ConservativeDQN",
    "Estimate",
    "FittedQEvaluation",
    "MeanQ",
    "NearestNeighbourBehaviour",
    "OfflineDQN",
    "OfflineDataset",
    "Standardizer",
    "Trajectories",
    "TransitionBatch",
    "effective_sample_size",
    "enough_overlap",
    "evaluate_policy",
    "from_minari",
    "softened",
    "to_minari",
]

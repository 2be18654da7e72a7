"""Blocks that several learning algorithms share."""

from core.nn.homeostasis import DriveRate, HomeostaticRate, LearningRate, RandomRate, ScheduledRate, shuffled
from core.nn.hopfield import (
    hopfield_energy,
    hopfield_update,
    hopfield_weights,
    metastable_size,
    retrieve,
    separation,
)

__all__ = [
    "DriveRate",
    "HomeostaticRate",
    "LearningRate",
    "RandomRate",
    "ScheduledRate",
    "hopfield_energy",
    "hopfield_update",
    "hopfield_weights",
    "metastable_size",
    "retrieve",
    "separation",
    "shuffled",
]

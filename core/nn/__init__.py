"""Blocks that several learning algorithms share."""

from core.nn.homeostasis import DriveRate, HomeostaticRate, LearningRate, RandomRate, ScheduledRate, shuffled

__all__ = ["DriveRate", "HomeostaticRate", "LearningRate", "RandomRate", "ScheduledRate", "shuffled"]

"""Models from their settings."""

from __future__ import annotations

from apps.lipreading.models.fast import FastReader
from apps.lipreading.models.paper import PaperReader
from apps.lipreading.models.reader import LipReader
from apps.lipreading.models.settings import FastSettings, PaperSettings, StcnnSettings
from apps.lipreading.models.stcnn import StcnnReader
from simulators.lips import alphabet


def build(settings: FastSettings | PaperSettings | StcnnSettings, vocabulary: int = alphabet.SIZE) -> LipReader:
    """A model with fresh weights, drawn from PyTorch's own generator."""
    if isinstance(settings, FastSettings):
        return FastReader(settings, vocabulary)
    if isinstance(settings, PaperSettings):
        return PaperReader(settings, vocabulary)
    return StcnnReader(settings, vocabulary)

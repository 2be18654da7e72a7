"""Models that read lips: small and fast, the published one, and LipNet."""

from __future__ import annotations

from apps.lipreading.models.building import build
from apps.lipreading.models.fast import FastReader
from apps.lipreading.models.paper import PaperReader
from apps.lipreading.models.reader import LipReader
from apps.lipreading.models.saving import SavedModel, load_model, save_model
from apps.lipreading.models.settings import FastSettings, ModelSettings, PaperSettings, StcnnSettings
from apps.lipreading.models.stcnn import StcnnReader

__all__ = [
    "FastReader",
    "FastSettings",
    "LipReader",
    "ModelSettings",
    "PaperReader",
    "PaperSettings",
    "SavedModel",
    "StcnnReader",
    "StcnnSettings",
    "build",
    "load_model",
    "save_model",
]

"""Small clips, models and trainings of the lip-reading app."""

from __future__ import annotations

from apps.lipreading.methods import Method
from apps.lipreading.models import FastSettings, StcnnSettings
from apps.lipreading.reader import ReaderConfig
from apps.lipreading.sources import SimulatedSource
from apps.lipreading.training import TrainingSettings
from core.sequence.windows import Windowed

SOURCE = SimulatedSource(
    clips=40, validation_clips=16, test_clips=24, speakers=3, validation_speakers=2, test_speakers=2
)
MODEL = FastSettings(inputs=12, encoder=8, embedding=4, decoder=16, dropout=0.1)
PICTURES = SOURCE.model_copy(update={"mode": "frames", "noise": 0.03, "clips": 6, "height": 24, "width": 24})
LIPNET = StcnnSettings(channels=1, height=24, width=24, filters=(4, 4, 8), hidden=8, dropout=0.0)
CROSS_ENTROPY = Method(name="cross-entropy")
SCHEDULED = Method(name="scheduled sampling", replaced=(0.2, 0.6))
GROUP = Method(name="PCPG, group", loss=Windowed(baseline="group"), reward="dense", group=2, weights=(4.0,))


def training(updates: int = 6, batch: int = 8) -> TrainingSettings:
    """So many updates of so many clips."""
    return TrainingSettings(updates=updates, batch=batch)


def reader(**fields: object) -> ReaderConfig:
    """A reader of the small source."""
    return ReaderConfig(**{"source": SOURCE, "model": MODEL, "training": training(), **fields})  # type: ignore[arg-type]

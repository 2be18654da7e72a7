"""Silent clips of a mouth into text, and training objectives that act on the error rate itself.

After Luo, Yang, Shan and Chen (2020), "Pseudo-convolutional policy gradient for sequence-to-sequence lip-reading", FG,
arXiv 2003.03983. The losses are those of ``core.sequence``.

Example: a reader of the simulated talker, trained in half a minute and read with.

    config = ReaderConfig(
        source=SimulatedSource(),
        model=FastSettings(inputs=12, encoder=32, embedding=16, decoder=64),
        training=TrainingSettings(updates=1500),
    )
    make_reader(config, Path("runs/reader"), Path("runs/reader/checkpoint"))
    reader, corpus = open_reader(Path("runs/reader")), config.source.open()
    found = read(reader.model, corpus.batches("test"), reader.max_length, grammar=reader.grammar)
    for row in rates(found):
        print(row.metric, row.mean, row.low, row.high)

Example: the same weights, trained further on the error rate.

    method = Method(name="PCPG", loss=Windowed(baseline="group"), reward="dense", group=4, weights=(4,))
    train(reader.model, corpus, method, TrainingSettings(updates=250, learning_rate=Constant(rate=1e-3)), seed=0)

Example: the study of the configs.

    LipReadingStudy.load("quick").run("runs/lipreading")
"""

from apps.lipreading.calibration import abstention, calibration_error, reliability
from apps.lipreading.clips import Clips
from apps.lipreading.confusion import confusion, viseme_errors, word_confusion
from apps.lipreading.evaluation import Reading, rates, read, slot_rates
from apps.lipreading.features import EigenLips, EigenLipSettings
from apps.lipreading.methods import Method
from apps.lipreading.metrics import character_errors, corpus_rate, exact, utterance_mean, word_errors
from apps.lipreading.models import FastSettings, LipReader, PaperSettings, StcnnSettings, build
from apps.lipreading.models.saving import load_model, save_model
from apps.lipreading.reader import Reader, ReaderConfig, make_reader, open_reader
from apps.lipreading.rewards import reward
from apps.lipreading.simulation import simulate
from apps.lipreading.sources import Augmentation, PackSource, SimulatedSource
from apps.lipreading.study import LipReadingStudy
from apps.lipreading.training import Constant, Cosine, Decay, Drop, LipTask, TrainingSettings, train
from apps.lipreading.transcripts import transcripts
from core.sequence.windows import Windowed
from simulators.lips.pack import Pack, grid_s1_pack
from simulators.lips.readers.grid import read_grid
from simulators.lips.readers.lrw import read_lrw
from simulators.lips.readers.lrw1000 import read_lrw1000
from simulators.lips.talking_mouth import TalkingMouth
from simulators.lips.video import load_clip

__all__ = [
    "Augmentation",
    "Clips",
    "Constant",
    "Cosine",
    "Decay",
    "Drop",
    "EigenLipSettings",
    "EigenLips",
    "FastSettings",
    "LipReader",
    "LipReadingStudy",
    "LipTask",
    "Method",
    "Pack",
    "PackSource",
    "PaperSettings",
    "Reader",
    "ReaderConfig",
    "Reading",
    "SimulatedSource",
    "StcnnSettings",
    "TalkingMouth",
    "TrainingSettings",
    "Windowed",
    "abstention",
    "build",
    "calibration_error",
    "character_errors",
    "confusion",
    "corpus_rate",
    "exact",
    "grid_s1_pack",
    "load_clip",
    "load_model",
    "make_reader",
    "open_reader",
    "rates",
    "read",
    "read_grid",
    "read_lrw",
    "read_lrw1000",
    "reliability",
    "reward",
    "save_model",
    "simulate",
    "slot_rates",
    "train",
    "transcripts",
    "utterance_mean",
    "viseme_errors",
    "word_confusion",
    "word_errors",
]

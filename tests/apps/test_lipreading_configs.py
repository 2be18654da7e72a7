"""The packaged studies: what they say, and that those for a GPU start, go on and are forked at any shape."""

import json

import numpy as np
import pytest
import torch

from apps.lipreading.figures.confusion import reliability_of
from apps.lipreading.models import FastSettings, PaperSettings, StcnnSettings, build
from apps.lipreading.reader import CURVE, MODEL, fresh_model, make_reader, open_reader
from apps.lipreading.runs import TEMPERATURES, attention, tempered, transcripts
from apps.lipreading.sources import SimulatedSource
from apps.lipreading.study import LipReadingStudy
from core.configs import configs
from core.rl.checkpoint import read_tensors
from core.study import Context
from core.study.run import expand

PACKAGED = [name for name, _ in configs("lipreading")]
ROLES = {
    "pcpg_gradient_snr_at_least_double": (),
    "pcpg_beats_reinforce_sampled": ("pcpg", "reinforce"),
    "pcpg_beats_reinforce_greedy": ("pcpg", "reinforce"),
    "pcpg_group_beats_cross_entropy_sampled": ("group", "cross_entropy"),
    "grid_s1_cer_below_quarter": (),
}
"""Whose results each claim is about, among the objectives."""
PAPER = [("paper_grid", 0), ("paper_grid", 1), ("paper_grid", 2), ("paper_lrw", 0), ("paper_lrw1000", 0)]
"""Studies and which of their experiments."""
SHAPES = {"paper_grid": (75, 50, 100), "paper_lrw": (29, 50, 100), "paper_lrw1000": (30, 112, 112)}
"""Frames, and pixels of what is seen of them."""


@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_study_loads_and_comes_back(name):
    study = LipReadingStudy.load(name)
    assert study.study == name
    assert study.description
    assert study.takes
    assert LipReadingStudy.model_validate(study.model_dump()) == study
    assert LipReadingStudy.model_validate_json(study.model_dump_json()).hash == study.hash


@pytest.mark.parametrize("name", PACKAGED)
def test_every_claim_finds_what_it_is_about(name):
    study = LipReadingStudy.load(name)
    known = {experiment.name: experiment for experiment in study.experiments}
    roles = study.roles
    for claim in study.claims:
        if claim == "grid_s1_cer_below_quarter":
            assert roles.corpus in known
            continue
        experiment = known[roles.fork]
        methods = [method.name for method in experiment.methods]
        for role in ROLES[claim]:
            assert getattr(roles, role) in methods, claim
        if claim == "pcpg_gradient_snr_at_least_double":
            measured = [method.name for method in experiment.gradients.methods]
            assert {roles.pcpg_gradient, roles.reinforce_gradient} <= set(measured)
            assert measured[-1] == roles.rloo


@pytest.mark.parametrize("name", PACKAGED)
def test_objectives_of_an_experiment_share_reader_and_updates(name):
    study = LipReadingStudy.load(name)
    for experiment in study.experiments:
        forks = [study.fork(experiment, method, seed) for method in experiment.methods for seed in study.every_seed]
        runs = expand(forks).values()
        assert len({run.product.hash for run in runs}) <= 1
        assert len({run.training.hash for run in runs}) <= 1
        assert all(run.split == "validation" and run.seed == study.trial_seed for f in forks for run in f.trials)
        assert len(expand(forks)) == len(forks) + len({trial.hash for f in forks for trial in f.trials})


def test_quick_is_the_study_that_was_asked_for():
    study = LipReadingStudy.load("quick")
    mini, grid = study.experiments
    assert (study.seeds, study.trial_seed) == (5, 100)
    source = mini.reader.source
    assert (source.clips, source.test_clips, source.noise) == (4000, 4000, 0.25)
    assert source.validation_clips >= 500
    assert (source.speakers, source.test_speakers) == (20, 10)
    assert mini.reader.model == FastSettings(inputs=12, encoder=32, embedding=16, decoder=64)
    assert (mini.reader.training.updates, mini.fork.updates, mini.fork.learning_rate.rate) == (1500, 250, 1e-3)
    assert mini.gradients.repeats == 120
    assert (grid.reader.training.updates, grid.reader.training.batch) == (800, 48)
    assert grid.reader == LipReadingStudy.load("grid_s1").experiments[0].reader


def test_the_published_model_is_trained_as_published():
    for name, (_, *pixels) in SHAPES.items():
        experiment = LipReadingStudy.load(name).experiments[0]
        model, source = experiment.reader.model, experiment.reader.source
        assert model == PaperSettings()
        assert (model.hidden, model.layers, model.encoder_dropout, model.decoder_dropout) == (1024, 3, 0.5, 0.2)
        assert experiment.reader.training.weight_decay == 1e-6
        assert source.augmentation.flip == 0.5
        crop = source.augmentation.crop
        assert (list(crop) if crop else pixels) == pixels
    kernels = {
        (m.loss.kernel, m.loss.stride)
        for m in LipReadingStudy.load("paper_grid").experiments[0].methods
        if m.loss is not None and m.loss.name == "pcpg" and m.loss.baseline == "none"
    }
    assert len(kernels) >= 9


def started(name, which, frames, height, width, model=None):
    """An experiment of a study with simulated frames in place of its corpus, so large and for so long."""
    talker = f"kind: simulated, mode: frames, noise: 0.03, frames: {frames}, height: {height}, width: {width}"
    clips = "clips: 4, validation_clips: 2, test_clips: 2, speakers: 2, validation_speakers: 2, test_speakers: 2"
    grammar = "mini" if name != "paper_grid" else "grid"
    at = f"experiments.{which}"
    overrides = [
        f"{at}.reader.source={{{talker}, {clips}, grammar: {grammar}, first_frame: 0}}",
        f"{at}.reader.training.updates=2",
        f"{at}.reader.training.batch=2",
    ]
    overrides += [f"{at}.reader.model.{key}={value}" for key, value in (model or {}).items()]
    before = LipReadingStudy.load(name).experiments[which]
    if before.fork is not None:
        overrides += [f"{at}.fork.updates=2", f"{at}.fork.batch=2"]
    return LipReadingStudy.load(name, overrides)


def check(study, which, folder):
    """Train the reader and fork it by PCPG; each leaves a checkpoint from which nothing is left to do."""
    experiment = study.experiments[which]
    make_reader(experiment.reader, folder, folder / "checkpoint")
    assert int(read_tensors(folder / "checkpoint" / "state.safetensors")[0]["counts"][0]) == 2
    curve = [json.loads(line) for line in (folder / CURVE).read_text().splitlines()]
    assert [record["skipped"] for record in curve] == [0, 0]
    assert all(record["loss"] > 0 for record in curve)
    opened = open_reader(folder)
    assert [look.update for look in opened.looks] == [1, 2]
    fresh = fresh_model(experiment.reader).state_dict()
    assert any(not torch.equal(x, fresh[key]) for key, x in opened.model.state_dict().items())
    if not experiment.methods:
        return
    method = next(m for m in experiment.methods if m.name == study.roles.pcpg)
    assert method.loss.name == "pcpg"
    fork = study.fork(experiment, method, 0).trials[0]
    products = folder / "products"
    products.mkdir()
    (products / fork.product.hash).mkdir()
    (folder / MODEL).rename(products / fork.product.hash / MODEL)
    context = Context(folder, folder / "fork", torch.device("cpu"), folder, folder / "log.jsonl")
    found = fork.execute({}, context)
    assert int(read_tensors(folder / "fork" / "state.safetensors")[0]["counts"][0]) == 2
    assert found.sizes["utterance"] == 2
    assert bool(torch.isfinite(torch.from_numpy(found["loss"].values)).all())
    assert found.identical(fork.execute({}, context)), "it goes on from its end"


@pytest.mark.parametrize(("name", "which"), PAPER)
def test_a_published_setting_starts_on_small_simulated_frames(tmp_path, name, which):
    model = LipReadingStudy.load(name).experiments[which].reader.model
    frames, small = 10, {"hidden": 8, "layers": 2, "embedding": 4}
    if isinstance(model, StcnnSettings):
        # CTC needs a frame for each symbol of a sentence.
        frames, small = 48, {"height": 24, "width": 32, "hidden": 8}
    check(started(name, which, frames, 24, 32, small), which, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "which"), PAPER)
def test_a_published_setting_starts_at_its_full_shapes(tmp_path, name, which):
    check(started(name, which, *SHAPES[name]), which, tmp_path)


def test_attention_is_of_the_clips_whose_transcripts_are_kept():
    corpus = SimulatedSource(clips=4, validation_clips=2, test_clips=9, speakers=1, test_speakers=2).open()
    torch.manual_seed(0)
    model = build(FastSettings(inputs=12, encoder=8, embedding=4, decoder=16)).eval()
    found = attention(model, corpus, "test")
    kept = next(corpus.batches("test"))
    greedy = model.sample(kept.clips, 1, corpus.max_length + 4, 0.0)
    expected = model.attention(greedy)[:4, : found.sizes["written"], :]
    torch.testing.assert_close(torch.from_numpy(found["attention"].values), expected)
    read = transcripts(model, corpus, "test", seed=0)["greedy"].values[:4, : found.sizes["written"]]
    assert (found["written"].values == read).all()
    assert np.allclose(found["word_frames"], kept.words[:4], equal_nan=True)


def test_a_ctc_reader_is_read_without_attention_or_probabilities_of_symbols():
    source = SimulatedSource(
        mode="frames", height=24, width=32, clips=4, validation_clips=2, test_clips=3, speakers=1, test_speakers=1
    )
    model = build(StcnnSettings(height=24, width=32, filters=(2, 2, 2), hidden=4)).eval()
    corpus = source.open()
    found = transcripts(model, corpus, "test", seed=0)
    assert found.sizes["utterance"] == 3
    assert bool(found["confidence"].isnull().any(dim="symbol").all())
    assert not attention(model, corpus, "test").data_vars
    assert tempered(model, corpus, "test")["tempered_edits"].shape == (len(TEMPERATURES), 3)
    assert reliability_of(found) is None

"""Training goes on after a kill as if it had never stopped, survives bad numbers, and keeps its best weights."""

import copy
import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch

from apps.lipreading import looks, train_cli
from apps.lipreading.clips import Clips
from apps.lipreading.looks import Looks, evenly, look
from apps.lipreading.methods import Method
from apps.lipreading.products import ReaderProduct
from apps.lipreading.reader import MODEL, fresh_model, make_reader, open_reader
from apps.lipreading.rewards import characters, reward
from apps.lipreading.runs import Fork
from apps.lipreading.sources import Examples
from apps.lipreading.training import (
    Constant,
    Cosine,
    Decay,
    Drop,
    Guard,
    LipTask,
    TrainingSettings,
    method_reward,
    train,
    trainer,
)
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.study import Context
from core.study.commands import Device
from tests.apps.lipreading_cases import (
    CROSS_ENTROPY,
    GROUP,
    LIPNET,
    PICTURES,
    SCHEDULED,
    SOURCE,
    reader,
    training,
)

METHODS = {"cross-entropy": CROSS_ENTROPY, "scheduled": SCHEDULED, "group": GROUP}
CONFIG = """
source: {kind: simulated, clips: 40, validation_clips: 16, test_clips: 16, speakers: 3}
model: {name: fast, inputs: 12, encoder: 8, embedding: 4, decoder: 16, dropout: 0.1}
method: {name: scheduled sampling, replaced: [0.2, 0.6]}
training: {updates: 8, batch: 8}
looks: 4
best: true
"""
KILLED = """
import os, signal, sys
from core.checkpoint import Checkpoint
from core import files
Checkpoint.due = property(lambda kept: kept.path is not None)
write, looked = files.write, []

def write_and_die(path, content):
    write(path, content)
    looked.append(path.name)
    if looked.count("looks.json") == 2:
        os.kill(os.getpid(), signal.SIGKILL)

files.write = write_and_die
from apps.cli import main
sys.argv[0] = "szilard"
main()
"""


@pytest.fixture(scope="module")
def corpus():
    return SOURCE.open()


@pytest.fixture
def kept_at_once(monkeypatch):
    """Every update is saved."""
    monkeypatch.setattr(Checkpoint, "due", property(lambda kept: kept.path is not None))


def stop_at(share):
    def progress(done, message):
        if done > share:
            raise KeyboardInterrupt

    return progress


def numbers(records):
    """Records without the time they took, what is no number as None."""
    return [
        {name: None if math.isnan(value) else value for name, value in record.items() if name != "seconds"}
        for record in records
    ]


def same(one, other):
    return all(torch.equal(x, y) for x, y in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# ---- resumed


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_resumed_training_equals_one_that_was_not_interrupted(tmp_path, corpus, kept_at_once, method):
    models = [fresh_model(reader()) for _ in range(3)]
    options = {"run": "this", "checkpoint": tmp_path / "state"}
    whole = train(models[0], corpus, method, training(), 3)
    with pytest.raises(KeyboardInterrupt):
        train(fresh_model(reader()), corpus, method, training(), 3, progress=stop_at(0.4), **options)
    with pytest.raises(KeyboardInterrupt):
        # Its own weights are of no account: those of the checkpoint are.
        train(fresh_model(reader(seed=9)), corpus, method, training(), 3, progress=stop_at(0.8), **options)
    parts = train(models[1], corpus, method, training(), 3, **options)
    train(models[2], corpus, method, training(), 4)
    # An unnamed run draws as a named one does not: the name is part of the seed.
    named = train(again := fresh_model(reader()), corpus, method, training(), 3, run="this")
    assert same(models[1], again)
    assert numbers(parts) == numbers(named)
    assert len(whole) == len(parts) == 6
    assert not same(models[0], models[2])


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_resumed_reader_is_the_same_file(tmp_path, kept_at_once, method):
    config = reader(method=method, looks=3, best=True)
    for name, shares in (("whole", ()), ("parts", (0.15, 0.45, 0.9))):
        folder = tmp_path / name
        for share in shares:
            with pytest.raises(KeyboardInterrupt):
                make_reader(config, folder, folder / "checkpoint", progress=stop_at(share))
        make_reader(config, folder, folder / "checkpoint")
    one, other = (tmp_path / name / MODEL for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()
    assert [x.update for x in open_reader(tmp_path / "parts").looks] == [2, 4, 6]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_kill_in_a_look_changes_nothing(tmp_path, monkeypatch, kept_at_once, at):
    config, counted = reader(looks=3, best=True), []

    def dies(*arguments):
        counted.append(None)
        if len(counted) == at:
            raise KeyboardInterrupt
        return looked(*arguments)

    looked = looks.look
    make_reader(config, tmp_path / "whole", tmp_path / "whole" / "checkpoint")
    monkeypatch.setattr(looks, "look", dies)
    with pytest.raises(KeyboardInterrupt):
        make_reader(config, tmp_path / "parts", tmp_path / "parts" / "checkpoint")
    make_reader(config, tmp_path / "parts", tmp_path / "parts" / "checkpoint")
    one, other = (tmp_path / name / MODEL for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()


def test_a_resumed_fork_has_the_same_result(tmp_path, monkeypatch, kept_at_once):
    config = reader()
    make_reader(config, tmp_path / "reader", tmp_path / "kept")
    monkeypatch.setattr(ReaderProduct, "open", lambda product, context: open_reader(tmp_path / "reader"))
    fixed = {"name": "mini", "product": ReaderProduct(reader=config), "method": GROUP, "training": training()}
    run = Fork(**fixed, seed=1, looks=2, weight=2)

    def context(name, progress=None):
        made = Context(tmp_path, tmp_path / name, torch.device("cpu"), tmp_path, tmp_path / "log.jsonl")
        if progress is not None:
            made.progress = progress
        return made

    whole = run.execute({}, context("whole"))
    for share in (0.1, 0.5):
        with pytest.raises(KeyboardInterrupt):
            run.execute({}, context("parts", stop_at(share)))
    parts = run.execute({}, context("parts"))
    assert parts.identical(whole)
    assert parts["look_update"].values.tolist() == [0, 3, 6]
    assert (parts.attrs["weight"], parts.attrs["kernel"], parts.attrs["stride"]) == (2, 5, 2)


@pytest.mark.parametrize("fall", [1e-6, 1.0])
def test_a_training_that_its_guard_has_ended_does_not_go_on(tmp_path, fall):
    corpus = SOURCE.open()
    corpus.grammar = None  # of which an untrained reader writes no sentence
    method = Method.model_validate(
        {
            "name": "chance",
            "reward": "random",
            "supervised": 0,
            "guard": fall,
            "group": 4,
            "loss": {"name": "grpo"},
            "estimator": {"name": "group_relative"},
        }
    )
    found = []
    for _ in range(2):
        model = fresh_model(reader())
        records = train(model, corpus, method, training(40, 4), 0, run="this", checkpoint=tmp_path / "state")
        found.append((model, records))
    assert same(found[0][0], found[1][0])
    assert numbers(found[0][1]) == numbers(found[1][1])
    whole = train(model := fresh_model(reader()), corpus, method, training(40, 4), 0, run="this")
    assert same(found[0][0], model)
    assert numbers(whole) == numbers(found[0][1])
    assert (len(whole) == 40) == (fall == 1)


def test_a_guard_compares_whole_windows_with_the_best():
    guard = Guard(LipTask(None, CROSS_ENTROPY), 0.1)
    assert not guard.fallen([0.9] * 10 + [0.0] * 9)
    assert guard.fallen([0.9] * 10 + [0.0] * 10)
    assert not guard.fallen([0.9] * 10 + [0.81] * 10)
    assert not guard.fallen([0.1] * 10 + [0.9] * 10)
    assert not guard.fallen([float("nan")] * 10 + [0.9] * 10 + [float("nan")] * 10)
    assert not guard.fallen([])


def test_a_checkpoint_of_another_training_is_refused(tmp_path, corpus):
    path = tmp_path / "state"
    train(fresh_model(reader()), corpus, CROSS_ENTROPY, training(2), 3, run="this", checkpoint=path)
    for seed, run in ((4, "this"), (3, "that")):
        with pytest.raises(InputError, match="is the state of another training"):
            train(fresh_model(reader()), corpus, CROSS_ENTROPY, training(2), seed, run=run, checkpoint=path)


@pytest.fixture
def _one_thread():
    """As in the process that is killed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_a_killed_command_goes_on_to_the_same_file(tmp_path):
    config, killed, whole = (tmp_path / name for name in ("reader.yaml", "killed", "whole"))
    config.write_text(CONFIG)
    words = ["lipreading", "train", str(config), "--out", str(killed), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, "-c", KILLED, *words], env=environment, check=False)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / MODEL).exists()
    assert [x["update"] for x in json.loads((killed / "checkpoint" / Looks.RECORD).read_text())] == [2, 4]
    for out in (killed, whole):
        train_cli.train(config, out, device=Device.cpu)
    for name in (MODEL, "config.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert not (killed / "checkpoint").exists()


# ---- bad numbers and few clips


class Spoilt:
    """A corpus of which some looks at a clip hold no numbers."""

    def __init__(self, corpus, *spoilt):
        self.corpus, self.spoilt, self.seen = corpus, spoilt, 0

    def __getattr__(self, name):
        return getattr(self.corpus, name)

    def training(self, rows, generator):
        found = self.corpus.training(rows, generator)
        self.seen += 1
        if self.seen - 1 in self.spoilt:
            frames = found.clips.frames.clone()
            frames[0, 3] = torch.nan
            found = Examples(Clips(frames, found.clips.length), found.reference, found.speaker, found.words)
        return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_an_update_on_clips_that_hold_no_numbers_is_skipped(corpus, method):
    model, weights = fresh_model(reader()), []

    def keep(trainer, record):
        weights.append(copy.deepcopy(model.state_dict()))

    records = train(model, Spoilt(corpus, 1, 3), method, training(), 3, callbacks=[keep])
    assert [record["skipped"] for record in records] == [0, 1, 0, 1, 0, 0]
    for update in range(1, 6):
        moved = any(not torch.equal(x, weights[update - 1][name]) for name, x in weights[update].items())
        assert moved == (update not in (1, 3))
    assert all(bool(torch.isfinite(x).all()) for x in model.state_dict().values())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_corpus_smaller_than_a_batch_is_seen_whole(method):
    few = SOURCE.model_copy(update={"clips": 5}).open()
    model = fresh_model(reader())
    records = train(model, few, method, training(2, 16), 0)
    assert [record["skipped"] for record in records] == [0, 0]
    prompts = LipTask(few, method).prompts(16, 0, torch.Generator().manual_seed(0))
    said = {tuple(row) for row in prompts.reference.tokens.tolist()}
    assert len(prompts.context) == 5
    assert said == {tuple(row) for row in few.all("train").reference.tokens.tolist()}


def test_the_clips_of_an_update_are_all_different(corpus):
    task = LipTask(corpus, CROSS_ENTROPY)
    rows = []

    class Watched:
        size = corpus.size

        def training(self, chosen, generator):
            rows.append(chosen)
            return corpus.training(chosen, generator)

    task = LipTask(Watched(), CROSS_ENTROPY)
    prompts = task.prompts(30, 0, torch.Generator().manual_seed(0))
    assert len(set(rows[0].tolist())) == 30
    assert prompts.reference.context is prompts.context


def test_lipnet_learns_to_spell_by_ctc():
    pictures = PICTURES.open()
    config = reader(source=PICTURES, model=LIPNET)
    model = fresh_model(config)
    settings = TrainingSettings(updates=40, batch=4, learning_rate=Constant(rate=1e-2))
    records = train(model, pictures, CROSS_ENTROPY, settings, 0)
    first, last = ([record["loss"] for record in part] for part in (records[:5], records[-5:]))
    assert max(last) < min(first)
    assert all(record["skipped"] == 0 for record in records)
    found = look(model, pictures, "validation", 0)
    assert found.greedy < 2
    # Chosen among the frames' symbols: what it writes has neither start symbols nor padding inside.
    batch = model.sample(pictures.all("test").clips, 1, 20, 0.0)
    assert bool(((batch.tokens > 1) == batch.mask).all())


def test_lipnet_is_forked_by_whole_transcripts():
    pictures = PICTURES.open()
    model = fresh_model(reader(source=PICTURES, model=LIPNET))
    method = Method.model_validate(
        {"name": "RLOO", "loss": {"name": "reinforce"}, "estimator": {"name": "leave_one_out"}, "group": 2}
    )
    records = train(model, pictures, method, training(2, 3), 0)
    assert all(record["skipped"] == 0 for record in records)


def of_symbols(loss, estimator):
    return Method.model_validate(
        {"name": "x", "loss": {"name": loss}, "estimator": estimator, "reward": "dense", "group": 2}
    )


BY_SYMBOL = {
    "scheduled": SCHEDULED,
    "group": GROUP,
    "reward to go": of_symbols("reinforce", {"name": "reward_to_go"}),
    "standardised": of_symbols("reinforce", {"name": "standardised_returns"}),
    "scaled": of_symbols("reinforce", {"name": "semantic_entropy", "inner": {"name": "reward_to_go"}}),
    "Clip-Cov": of_symbols("clip_cov", {"name": "leave_one_out"}),
    "KL-Cov": of_symbols("kl_cov", {"name": "leave_one_out"}),
}


@pytest.mark.parametrize("method", BY_SYMBOL.values(), ids=BY_SYMBOL)
def test_lipnet_has_no_single_symbols_to_act_on(method):
    config = reader(source=PICTURES, model=LIPNET)
    with pytest.raises(InputError, match=f"method {method.name}: acts on single symbols"):
        train(fresh_model(config), PICTURES.open(), method, training(1, 2), 0)


# ---- what is asked for


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ({"loss": {"name": "dpo"}}, "loss"),
        ({"loss": {"name": "pcpg"}, "estimator": {"name": "whole"}}, "estimator: pcpg makes its own"),
        ({"loss": {"name": "reinforce"}}, "estimator: is required by reinforce"),
        ({"loss": {"name": "pcpg", "baseline": "group"}, "reward": "dense"}, "group: 1"),
        ({"loss": {"name": "minimum_risk"}}, "group: 1"),
        ({"loss": {"name": "reinforce"}, "estimator": {"name": "leave_one_out"}}, "group: 1"),
        ({"replaced": [0, 1.5]}, "replaced"),
        ({"loss": {"name": "pcpg"}, "reward": "dense", "replaced": [0, 0.5]}, "replaced"),
        ({"supervised": 0}, "supervised"),
        ({"weights": []}, "weights"),
        ({"weights": [-1]}, "weights"),
    ],
)
def test_a_method_that_cannot_be_is_refused(method, named):
    with pytest.raises(ValueError, match="(?s)" + named):
        Method.model_validate({"name": "x", **method})


def test_learning_rates_are_those_of_their_settings():
    assert [Constant(rate=0.5).schedule(10)(u) for u in (0, 9)] == [0.5, 0.5]
    assert [Drop(rate=2e-3, final=5e-4, share=0.3).schedule(800)(u) for u in (0, 559, 560)] == [2e-3, 2e-3, 5e-4]
    decay = Decay(rate=1.0, factor=0.5, every=10).schedule(30)
    assert [decay(u) for u in (0, 9, 10, 19, 20, 29, 30)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert Cosine(rate=1.0, final=0.0).schedule(10)(5) == pytest.approx(0.5)


def test_the_trainer_uses_the_rate_of_each_update(corpus):
    settings = TrainingSettings(updates=4, batch=4, learning_rate=Drop(rate=1e-3, final=1e-4, share=0.5))
    records = train(fresh_model(reader()), corpus, CROSS_ENTROPY, settings, 0)
    assert [record["rate"] for record in records] == [1e-3, 1e-3, 1e-4, 1e-4]


def test_decay_of_weights_is_a_part_of_the_gradient(corpus):
    made = trainer(fresh_model(reader()), LipTask(corpus, CROSS_ENTROPY), TrainingSettings(weight_decay=0.1), 0)
    assert [(o["weight_decay"], o["decoupled_weight_decay"]) for o in made.optimizers[0].param_groups] == [(0.1, False)]


def test_rewards_weigh_long_clips_no_more_than_short_ones(corpus):
    model = fresh_model(reader()).eval()
    seen = corpus.all("train")
    batch = model.sample(seen.clips, 2, corpus.max_length + 4, generator=torch.Generator().manual_seed(0))
    n = characters(seen.reference)[batch.group]

    def of(kind, loss, estimator=None):
        method = Method.model_validate({"name": "x", "loss": loss, "estimator": estimator, "reward": kind, "group": 2})
        return method_reward(method, batch, seen.reference)

    whole, dense = (reward(kind, batch, seen.reference) for kind in ("cer", "dense"))
    torch.testing.assert_close(of("cer", {"name": "reinforce"}, {"name": "whole"}), whole / n)
    torch.testing.assert_close(of("dense", {"name": "reinforce"}, {"name": "reward_to_go"}), dense / n[:, None])
    assert torch.equal(of("dense", {"name": "pcpg"}), dense)
    spread = of("cer", {"name": "pcpg"})
    assert spread.shape == batch.tokens.shape
    torch.testing.assert_close(spread.sum(1) / batch.length, whole / n)
    assert bool((spread[~batch.mask] == 0).all())
    assert torch.equal(of("cer", {"name": "grpo"}, {"name": "group_relative"}), whole)


def test_a_weight_of_nothing_is_cross_entropy(corpus):
    """The clips and their noise do not depend on the samples' weight."""
    weights = []
    for weight in (0.0, 0.0, 4.0):
        model = fresh_model(reader())
        train(model, corpus, GROUP, training(2), 3, weight=weight)
        weights.append(model)
    assert same(weights[0], weights[1])
    assert not same(weights[0], weights[2])
    model = fresh_model(reader())
    train(model, corpus, GROUP.model_copy(update={"weights": (0.0,)}), training(2), 3)
    assert same(model, weights[0])


# ---- looks


@pytest.mark.parametrize(
    ("updates", "count", "after"),
    [(8, 4, [2, 4, 6, 8]), (9, 5, [2, 4, 5, 7, 9]), (7, 2, [4, 7]), (2, 5, [1, 2]), (5, 0, [])],
)
def test_looks_are_as_many_as_asked_and_the_last_sees_the_last_weights(tmp_path, corpus, updates, count, after):
    made = Looks(fresh_model(reader()), corpus, evenly(updates, count), tmp_path, keep=False, seed=0)
    train(made.model, corpus, CROSS_ENTROPY, training(updates, 4), 0, callbacks=[made])
    assert [x.update for x in made.found] == after


def test_looks_lie_where_updates_are_a_multiple_at_equal_distances():
    assert evenly(1500, 5) == {300, 600, 900, 1200, 1500}
    for updates in range(1, 30):
        for count in range(1, 30):
            places = evenly(updates, count) - {0}
            assert (len(places), max(places)) == (min(updates, count), updates)


def test_a_reader_and_a_fork_are_looked_at_after_their_last_update(tmp_path, monkeypatch):
    config = reader(looks=4, best=True)
    make_reader(config, tmp_path / "reader", tmp_path / "kept")
    assert [x.update for x in open_reader(tmp_path / "reader").looks] == [2, 3, 4, 6]
    monkeypatch.setattr(ReaderProduct, "open", lambda product, context: open_reader(tmp_path / "reader"))
    fork = Fork(
        name="mini",
        product=ReaderProduct(reader=config),
        method=CROSS_ENTROPY,
        training=training(5),
        seed=1,
        looks=3,
        weight=0,
    )
    context = Context(tmp_path, tmp_path / "fork", torch.device("cpu"), tmp_path, tmp_path / "log.jsonl")
    assert fork.execute({}, context)["look_update"].values.tolist() == [0, 2, 3, 5]


def test_the_kept_weights_are_those_of_the_best_look(tmp_path):
    config = reader(
        looks=6, best=True, training=TrainingSettings(updates=12, batch=8, learning_rate=Constant(rate=0.05))
    )
    make_reader(config, tmp_path / "best", tmp_path / "best" / "checkpoint")
    make_reader(config.model_copy(update={"best": False}), tmp_path / "last", tmp_path / "last" / "checkpoint")
    best, last = (open_reader(tmp_path / name) for name in ("best", "last"))
    assert [x.update for x in best.looks] == [2, 4, 6, 8, 10, 12]
    assert min(x.greedy for x in best.looks) < best.looks[-1].greedy, "or the test says nothing"
    corpus = SOURCE.open()
    assert look(best.model, corpus, "validation", 0).greedy == min(x.greedy for x in best.looks)
    assert look(last.model, corpus, "validation", 0).greedy == last.looks[-1].greedy


def test_looks_change_nothing(tmp_path, corpus):
    models = [fresh_model(reader()) for _ in range(2)]
    seen = Looks(models[1], corpus, evenly(3, 3), tmp_path, keep=True, seed=0)
    for model, callbacks in zip(models, ([], [seen]), strict=True):
        train(model, corpus, GROUP, training(3), 0, callbacks=callbacks)
    assert same(*models)
    assert len(seen.found) == 3
    model = models[0].train()
    first = look(model, corpus, "validation", 0)
    assert model.training
    assert look(model, corpus, "validation", 0) == first


def test_best_weights_without_looks_are_refused():
    with pytest.raises(ValueError, match="best"):
        reader(best=True)


# ---- on a device


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_reader_learns_on_the_device(tmp_path, method):
    make_reader(reader(method=method, looks=2, best=True), tmp_path, tmp_path / "checkpoint", "cuda")
    opened = open_reader(tmp_path, "cuda")
    assert len(opened.looks) == 2
    assert next(opened.model.parameters()).is_cuda

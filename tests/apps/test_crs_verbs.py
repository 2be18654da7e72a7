"""Folders of policies and of evaluations, transcripts and speeds: what the verbs of ``szilard crs`` stand on."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import core.rl.training
from apps.crs.active_inference import ActiveInference
from apps.crs.embedding import EmbeddingSettings, fit_embeddings
from apps.crs.evaluation import Cases, evaluate
from apps.crs.evaluation_folder import Played, differences, open_played, rows_of, write_evaluation
from apps.crs.methods import ActiveInferenceMethod, DQNMethod, GreedyMethod, MaxEntropyMethod, ThresholdMethod
from apps.crs.policies import AbsGreedy, MaxEntropy, RandomPolicy
from apps.crs.policy_folder import CHECKPOINT, RECORD, clear, make_policy, open_policy
from apps.crs.problem import GeneratedSource, Problem
from apps.crs.products import PolicyProduct
from apps.crs.speed import measure, peak_memory
from apps.crs.transcripts import Names, read_transcripts, records, write_transcripts
from apps.crs.verb_inputs import METHODS
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.study import Context
from simulators.crs import Catalogue, storage
from simulators.crs.generated import PRESETS, generate
from tests.simulators.crs_cases import QUESTIONS, conversation

SETTINGS = EmbeddingSettings(dim=6, epochs=3)
PROBLEM = Problem(catalogue=GeneratedSource(kind="generated", preset="tiny"), embedding=SETTINGS)
LEARNING = {"steps": 640, "looks": 3, "envs": 32, "batch": 16, "learning_starts": 64, "updates": 1, "memory": 500}
DQN = DQNMethod.model_validate({"name": "DQN", "learning": LEARNING})


def product(method=DQN, seed=1, **changes):
    return PolicyProduct(problem=PROBLEM.model_copy(update=changes), method=method, seed=seed)


def contents(folder):
    """All files that decide how the policy plays."""
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    record = json.loads(found[folder.joinpath(RECORD).relative_to(folder)])
    kept = {name: record[name] for name in ("problem", "method", "seed", "catalogue", "embeddings")}
    return kept, {name: data for name, data in found.items() if len(name.parts) > 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A policy that was made without a break."""
    folder = tmp_path_factory.mktemp("whole") / "policy"
    assert make_policy(folder, product())
    return folder


# ---- policies


def test_a_policy_plays_like_the_one_of_a_study(whole, tmp_path):
    opened, policy, found = open_policy(whole)
    assert found == product()
    context = Context(tmp_path, tmp_path, torch.device("cpu"), tmp_path, tmp_path / "log.jsonl")
    inside = PROBLEM.open(context)
    theirs = product().open(inside.world, context)
    assert torch.equal(opened.world.embeddings.item, inside.world.embeddings.item)
    assert evaluate(opened.world, policy, opened.cases()).equals(evaluate(inside.world, theirs, inside.cases()))


@pytest.mark.parametrize("last", [3, 9, 17])
def test_a_training_that_was_stopped_goes_on_to_the_same_policy(whole, tmp_path, monkeypatch, last):
    monkeypatch.setattr(core.rl.training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(Checkpoint, "due", True)
    calls = []

    def interrupt(share, said):
        calls.append(share)
        if len(calls) == last:
            raise KeyboardInterrupt

    folder = tmp_path / "policy"
    with pytest.raises(KeyboardInterrupt):
        make_policy(folder, product(), progress=interrupt)
    assert (folder / CHECKPOINT).exists()
    with pytest.raises(InputError, match="not finished"):
        open_policy(folder)
    shares = []
    assert make_policy(folder, product(), progress=lambda share, said: shares.append(share))
    # It goes on from where it stopped; embeddings that were fitted are not fitted again.
    assert shares[0] >= calls[-1]
    assert contents(folder) == contents(whole)
    assert not (folder / CHECKPOINT).exists()
    assert not make_policy(folder, product())


LEARNT = {"settings": {"demonstrations": 20, "pretraining": 5, "updates": 2, "episodes": 8}}
SHORT = {**LEARNING, "steps": 128, "looks": 1}
QUICK = {
    "dqn": {"learning": SHORT},
    "grouped": {"learning": SHORT},
    "scpr": {"learning": SHORT},
    "unicorn": {"settings": {**SHORT, "hidden": 8, "feedforward": 8}},
    "ear": LEARNT,
    "crm": LEARNT,
}
"""Settings of methods that take long."""


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_is_made_and_played_from_its_folder(tmp_path, kind):
    method = METHODS[kind].model_validate({"name": kind, **QUICK.get(kind, {})})
    make_policy(tmp_path / "p", product(method))
    opened, policy, found = open_policy(tmp_path / "p")
    assert found.method == method
    cases = Cases.of(opened.world, opened.world.catalogue.pairs("test"), 0, 30)
    once, twice = (evaluate(opened.world, held, cases) for held in (policy, open_policy(tmp_path / "p")[1]))
    assert once.equals(twice)
    assert (once["rank"].values > 0).any()


@pytest.mark.parametrize("regulariser", ["margin", "kl"])
def test_a_network_that_is_shown_dialogues_differs_from_one_that_is_not(tmp_path, regulariser):
    shown = {"regulariser": regulariser, "dialogues": 10, "pretraining": 3}
    plain, taught = ({"name": "DQN", **QUICK["dqn"]} | extra for extra in ({}, {"shown": shown}))
    found = []
    for name, settings in (("plain", plain), ("taught", taught)):
        make_policy(tmp_path / name, product(METHODS["dqn"].model_validate(settings)))
        found.append((tmp_path / name / "method" / "q_network.safetensors").read_bytes())
    assert found[0] != found[1]


def test_a_clone_needs_pretraining():
    with pytest.raises(ValueError, match="pretraining: 0; must be at least 1 with regulariser kl"):
        METHODS["dqn"].model_validate({"name": "DQN", "shown": {"regulariser": "kl", "pretraining": 0}})


def test_progress_goes_from_nothing_to_all(tmp_path):
    shares = []
    make_policy(tmp_path / "p", product(), progress=lambda share, said: shares.append(share))
    assert shares == sorted(shares)
    assert shares[0] < 0.05
    assert shares[-1] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 2}, "seed = 1, now 2"),
        ({"method": GreedyMethod(name="DQN")}, 'method.kind = "dqn", now "abs_greedy"'),
        ({"rules": replace(PROBLEM.rules, max_turns=9)}, "problem.rules.max_turns = 15, now 9"),
        ({"catalogue": GeneratedSource(kind="generated", preset="tiny", seed=4)}, "catalogue = "),
    ],
)
def test_a_folder_with_other_work_is_refused_and_fresh_removes_it(whole, other, said):
    with pytest.raises(InputError, match=re.escape(said)):
        make_policy(whole, product(**other))


def test_fresh_starts_anew_and_touches_nothing_else(tmp_path):
    folder = tmp_path / "policy"
    make_policy(folder, product(GreedyMethod(name="greedy")))
    (folder / "notes.txt").write_text("mine")
    assert make_policy(folder, product(MaxEntropyMethod(name="entropy")), fresh=True)
    assert open_policy(folder)[2].method.kind == "max_entropy"
    clear(folder)
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == ["notes.txt"]
    with pytest.raises(InputError, match=r"notes.txt, which no training wrote"):
        make_policy(folder, product())


def test_what_is_refused_leaves_no_folder_in_the_way(tmp_path):
    with pytest.raises(InputError, match="list_length = 101"):
        make_policy(tmp_path / "p", product(rules=replace(PROBLEM.rules, list_length=101)))
    assert not (tmp_path / "p").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a folder"):
        make_policy(tmp_path / "file", product())


def test_a_folder_in_use_is_refused(tmp_path):
    folder, said = tmp_path / "p", []

    def again(share, message):
        with pytest.raises(InputError, match="at work"):
            make_policy(folder, product(ThresholdMethod(name="t", grid=(5,))))
        said.append(message)

    make_policy(folder, product(ThresholdMethod(name="t", grid=(5,))), progress=again)
    assert said


def test_another_catalogue_is_refused_with_both_hashes(whole):
    own, other = generate(PRESETS["tiny"], 0), generate(PRESETS["tiny"], 1)
    assert open_policy(whole, catalogue=own)[0].world.catalogue.hash == own.hash
    with pytest.raises(InputError, match=f"{own.hash}.*{other.hash}"):
        open_policy(whole, catalogue=other)


def test_a_catalogue_that_was_changed_inside_is_refused(tmp_path):
    folder = tmp_path / "p"
    make_policy(folder, product(GreedyMethod(name="greedy")))
    names = json.loads((folder / "catalogue" / "items.json").read_text())
    names[0]["name"] = "another name"
    (folder / "catalogue" / "items.json").write_text(json.dumps(names))
    with pytest.raises(InputError, match=r"catalogue: .*must be"):
        open_policy(folder)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("method", {"kind": "chess", "name": "x"}, "method.kind"),
        ("seed", -1.5, "seed = -1.5"),
        ("problem", {"gamma": 1}, "gamma: unknown key"),
    ],
)
def test_a_record_that_was_changed_is_refused_by_its_key(tmp_path, key, value, said):
    folder = tmp_path / "p"
    make_policy(folder, product(GreedyMethod(name="greedy")))
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, key: value}))
    with pytest.raises(InputError, match=re.escape(said)) as refused:
        open_policy(folder)
    assert str(folder / RECORD) in str(refused.value)


def test_embeddings_that_are_given_are_taken(tmp_path):
    catalogue = generate(PRESETS["tiny"], 0)
    points = fit_embeddings(catalogue, EmbeddingSettings(method="random", dim=5), 9, device="cpu")
    method = ActiveInferenceMethod(name="aif", beta="calibrated", grid=(0.0, 1.0))
    make_policy(tmp_path / "p", product(method), catalogue=catalogue, embeddings=points)
    opened, policy, _ = open_policy(tmp_path / "p")
    assert torch.equal(opened.world.embeddings.attribute, points.attribute)
    assert (
        policy.posterior(
            opened.world.observe(opened.world.reset_to(opened.cases().pairs, opened.cases().opening), None)
        )
        is not None
    )
    with pytest.raises(InputError, match="embeddings"):
        make_policy(tmp_path / "p", product(method), catalogue=catalogue)


# ---- transcripts


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("turns", ["paper", "official"])
def test_transcripts_hold_all_that_was_played(tmp_path, question, turns):
    world = conversation(question=question, turns=turns, max_turns=6, list_length=4, unknown_rate=0.2, answer_noise=0.1)
    names = Names(world.catalogue, question)
    played = evaluate(world, RandomPolicy(world, seed=3), Cases.of(world, world.catalogue.pairs("test"), 0, 60))
    assert 0 < (played["rank"].values > 0).mean() < 1
    write_transcripts(tmp_path / "t.jsonl", played, names)
    assert read_transcripts(tmp_path / "t.jsonl", names).identical(played.drop_attrs())


def test_a_transcript_has_the_names_and_the_turns():
    world = conversation(max_turns=6, list_length=4)
    catalogue: Catalogue = world.catalogue
    played = evaluate(world, MaxEntropy(world), Cases.of(world, catalogue.pairs("test"), 0, 40))
    for n, record in enumerate(records(played, Names(catalogue))):
        row = played.isel(dialogue=n)
        assert record["target"]["name"] == catalogue.item_names[int(row["target"])]
        assert record["opening"]["name"] == catalogue.label(int(row["opening"]))
        assert record["success"] == (int(row["rank"]) > 0)
        assert [exchange["turn"] for exchange in record["exchanges"]] == list(range(1, record["turns"] + 1))
        assert record["catalogue"] == catalogue.hash
        if record["success"]:
            last = record["exchanges"][-1]
            assert last["list"][record["rank"] - 1] == record["target"]
            assert last["answer"] == "accepted"
        for exchange in record["exchanges"]:
            assert ("asked" in exchange) != ("list" in exchange)
            if "asked" in exchange:
                has = [int(row["target"]), exchange["asked"]["id"]] in catalogue.edges.tolist()
                assert exchange["answer"] == ("yes" if has else "no")


def test_beliefs_travel_with_a_transcript(tmp_path):
    world = conversation(max_turns=5, list_length=4)
    played = evaluate(world, ActiveInference(world), Cases.of(world, world.catalogue.pairs("test"), 0, 30))
    assert np.isfinite(played["confidence"].values).any()
    write_transcripts(tmp_path / "t.jsonl", played, Names(world.catalogue))
    assert read_transcripts(tmp_path / "t.jsonl", Names(world.catalogue)).identical(played.drop_attrs())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(catalogue="0" * 16), "catalogue 0000000000000000; must be"),
        (lambda r: r["target"].update(name="another"), "another"),
        (lambda r: r["target"].update(id=10_000), "10000"),
        (lambda r: r["opening"].update(id=-1), "-1"),
        (lambda r: r["exchanges"][0].update(answer="maybe"), "maybe"),
        (lambda r: r["exchanges"][0].update(turn=7), "turn: 7; must be 1 to 6"),
        (lambda r: r.pop("user"), "not a record of a dialogue (KeyError: 'user')"),
        (lambda r: r.update(rank=1.5), "rank: 1.5; must be a whole number"),
        (lambda r: r.update(turns=2**40), "turns: 1099511627776"),
        (lambda r: r.update({"return": "much"}), "return: 'much'; must be a number"),
        (lambda r: r["exchanges"][0]["list"].append(r["target"]), "list: 5 items; must be at most 4"),
        (lambda r: r.update(exchanges=3), "not a record"),
        (lambda r: r.update(max_turns=7), "the same in all lines"),
    ],
)
def test_a_transcript_that_was_changed_is_refused(tmp_path, change, said):
    world = conversation(max_turns=6, list_length=4)
    names = Names(world.catalogue)
    played = evaluate(world, AbsGreedy(world), Cases.of(world, world.catalogue.pairs("test"), 0, 3))
    lines = list(records(played, names))
    change(lines[1])
    path = tmp_path / "t.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(InputError, match=re.escape(said)) as refused:
        read_transcripts(path, names)
    assert str(path) in str(refused.value)
    path.write_text("{")
    with pytest.raises(InputError, match="line 1: not a record"):
        read_transcripts(path, names)
    path.write_text("")
    with pytest.raises(InputError, match="no dialogue"):
        read_transcripts(path, names)


# ---- evaluations


def dialogues(world, policy, limit=40, seed=0):
    return evaluate(world, policy, Cases.of(world, world.catalogue.pairs("test"), seed, limit))


def test_a_policy_differs_from_itself_by_nothing():
    world = conversation(max_turns=6, list_length=4)
    one = Played("greedy", {0: dialogues(world, AbsGreedy(world))})
    assert all(row.mean == row.low == row.high == 0 for row in differences(one, one))


def test_differences_turn_round_with_their_sides():
    world = conversation(max_turns=6, list_length=4)
    one = Played("greedy", {0: dialogues(world, AbsGreedy(world))})
    many = Played("entropy", {s: dialogues(world, MaxEntropy(world, seed=s)) for s in range(3)})
    there, back = differences(one, many), differences(many, one)
    for first, second in zip(there, back, strict=True):
        assert first.mean == pytest.approx(-second.mean)
        assert first.low == pytest.approx(-second.high, abs=1e-9)
        assert first.n == 40
    assert {row.metric for row in there} == {"SR@5", "SR@6", "AT", "hDCG", "return"}


@pytest.mark.parametrize("name", ["user", "target", "opening"])
def test_dialogues_about_something_else_are_not_compared(name):
    world = conversation(max_turns=6, list_length=4)
    data = dialogues(world, AbsGreedy(world))
    values = data[name].values.copy()
    values[5] += 1
    other = data.assign({name: ("dialogue", values)})
    with pytest.raises(InputError, match=f"dialogue 5: {name}"):
        differences(Played("a", {0: data}), Played("b", {0: other}))
    with pytest.raises(InputError, match="catalogues x and y"):
        differences(Played("a", {0: data}, "x"), Played("b", {0: data}, "y"))


def test_an_evaluation_is_read_as_it_was_written(tmp_path):
    world = conversation(max_turns=6, list_length=4)
    data = dialogues(world, AbsGreedy(world))
    names, rows = Names(world.catalogue), rows_of(data, "by hand", "greedy")
    write_evaluation(tmp_path / "e", data, names, rows, {"seed": 0}, policy="greedy")
    found = open_played(str(tmp_path / "e"))
    assert (found.name, found.catalogue) == ("greedy", world.catalogue.hash)
    assert found.first.equals(data)
    xr.Dataset({"user": ("dialogue", np.arange(3))}).to_netcdf(tmp_path / "e" / "results.nc", engine="h5netcdf")
    with pytest.raises(InputError, match="holds no target, opening, turns"):
        open_played(str(tmp_path / "e"))


def test_one_dialogue_has_a_mean_and_no_interval():
    world = conversation(max_turns=6, list_length=4)
    rows = rows_of(dialogues(world, AbsGreedy(world), limit=1), "by hand", "greedy")
    assert all(row.n == 1 and row.low is None and row.mean is not None for row in rows)


# ---- speed


def test_speed_counts_every_turn_once():
    world = conversation(max_turns=6, list_length=4)
    cases = Cases.of(world, world.catalogue.pairs("test"), 0, 50)
    threads = torch.get_num_threads()
    found = measure(world, AbsGreedy(world), cases, batch=16)
    assert found.steps == int(dialogues(world, AbsGreedy(world), 50)["turns"].sum())
    assert found.dialogues == 50
    assert found.per_cpu_second == pytest.approx(found.steps / found.cpu)
    assert found.wall > 0
    assert torch.get_num_threads() == threads
    assert 50 < peak_memory(torch.device("cpu")) < 100_000


def test_a_saved_catalogue_is_the_same_whatever_it_was_made_from(tmp_path):
    catalogue = generate(PRESETS["tiny"], 5)
    storage.save(catalogue, tmp_path / "c")
    assert storage.load(tmp_path / "c").hash == catalogue.hash

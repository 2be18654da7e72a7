"""The verbs of ``szilard crs`` as a user types them, and one clear line for every mistake."""

import json
import re
import shutil
import socket
import sys
import threading
import urllib.request

import pytest
from rich.progress import Progress
from typer.main import get_group

import apps.crs.talk_cli
import core.rl.training
from apps.cli import main
from apps.crs.chat import create_server
from apps.crs.cli import app
from apps.crs.evaluation import OVER
from apps.crs.evaluation_folder import open_played
from apps.crs.metrics import measures
from apps.crs.study import CRSStudy
from apps.crs.transcripts import Names, read_transcripts
from apps.crs.verb_inputs import METHODS
from core.stats import clustered_difference, mean_interval, paired_difference
from core.study.store import Store
from core.study.task import Task, execute
from simulators.crs import Embeddings, storage
from simulators.crs.generated import PRESETS, generate
from simulators.crs.readers import read

FIT = ("--set", "epochs=2", "--set", "dim=8")
DQN = [
    f"--set=learning.{text}"
    for text in ("steps=512", "looks=2", "envs=32", "batch=16", "learning_starts=64", "updates=1", "memory=1000")
]
ITEMS = "name,colour,price\n" + "".join(
    f"item {i},{('red', 'blue', 'grün')[i % 3]}|{('plain', 'striped')[i % 2]},{i}\n" for i in range(24)
)


def call(*arguments):
    """The command in this process; its exit code."""
    sys.argv = ["szilard", "crs", *map(str, arguments)]
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.fixture
def szilard(monkeypatch, capsys):
    """Run the command; returns exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments):
        capsys.readouterr()
        code = call(*arguments)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A catalogue, embeddings, two policies and their evaluations, as the verbs write them."""
    folder, kept = tmp_path_factory.mktemp("made"), sys.argv
    shop, points = folder / "shop", folder / "points"
    for arguments in (
        ("data", "synth", shop, "--preset", "tiny", "--seed", 3),
        ("embed", shop, points, *FIT),
        ("train", "threshold", shop, "--out", folder / "rule", "--embedding", points, "--set", "grid=[5,20]"),
        ("train", "dqn", shop, "--out", folder / "dqn", "--embedding", points, *DQN),
        ("evaluate", folder / "rule", "--out", folder / "rule-test"),
        ("evaluate", folder / "dqn", "--out", folder / "dqn-test"),
    ):
        assert call(*arguments) == 0
    (folder / "items.csv").write_text(ITEMS, encoding="utf-8")
    sys.argv = kept
    return folder


def rows(folder):
    """The table that evaluate wrote, by metric."""
    return {row["metric"]: row for row in json.loads((folder / "summary.json").read_text())["table"]}


# ---- help


def verbs(group, names=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*names, name))
        else:
            yield (*names, name), command


def test_every_verb_has_help_with_an_example_that_names_it(szilard):
    found = dict(verbs(get_group(app)))
    assert {"run", "report", "embed", "train", "evaluate", "compare", "bench", "chat", "serve"} <= {
        n for n, *_ in found
    }
    assert {("data", "synth"), ("data", "import"), ("data", "check")} <= set(found)
    for names, command in found.items():
        assert f"Example: szilard crs {' '.join(names)} " in command.help, names
        assert all(option.help for option in command.params if option.name != "help"), names
    code, text, _ = szilard("train", "--help")
    assert code == 0
    assert all(kind in text for kind in METHODS)


# ---- catalogues


def test_a_generated_catalogue_is_that_of_its_seed_and_sizes(made, szilard, tmp_path):
    shop = storage.load(made / "shop")
    assert shop.hash == generate(PRESETS["tiny"], 3).hash
    code, text, err = szilard("data", "synth", tmp_path / "a", "--preset", "tiny", "--items", 60, "--per-user", 12)
    assert (code, err) == (0, "")
    assert text.splitlines()[-1] == str(tmp_path / "a")
    assert storage.load(tmp_path / "a").n_items == 60
    assert re.search(r"^items +60 *$", text, re.MULTILINE)
    # The same again is no mistake, another one is.
    assert szilard("data", "synth", made / "shop", "--preset", "tiny", "--seed", 3)[0] == 0
    code, _, err = szilard("data", "synth", made / "shop", "--preset", "tiny", "--seed", 4)
    assert code == 2
    assert shop.hash in err


def test_a_table_is_imported_and_checked(made, szilard, tmp_path):
    code, text, err = szilard("data", "import", made / "items.csv", tmp_path / "shop", "--bins", 3)
    assert (code, err) == (0, "")
    assert "warning: no interactions.csv" in text
    found, _ = read(made / "items.csv", bins=3)
    assert storage.load(tmp_path / "shop").hash == found.hash
    code, text, err = szilard("data", "check", tmp_path / "shop")
    assert (code, err) == (0, "")
    assert found.hash in text
    assert f"{len(found.edges) / found.n_items:.2f}" in text


def test_pairs_in_two_splits_are_refused_unless_they_are_allowed(made, szilard, tmp_path):
    shop = tmp_path / "shop"
    shutil.copytree(made / "shop", shop)
    train, test = (json.loads((shop / f"interactions_{split}.json").read_text()) for split in ("train", "test"))
    test["0"].append(train["0"][0])
    (shop / "interactions_test.json").write_text(json.dumps(test))
    assert szilard("data", "check", shop)[0] == 2
    code, text, _ = szilard("data", "check", shop, "--allow-overlap")
    assert code == 0
    assert "warning: train and test share 1 pairs" in text
    assert szilard("train", "abs_greedy", shop, "--out", tmp_path / "p")[0] == 2
    assert not (tmp_path / "p").exists()
    code, _, err = szilard("embed", shop, tmp_path / "points", "--allow-overlap", *FIT)
    assert code == 0
    assert "note: train and test share 1 pairs" in err
    arguments = ("train", "abs_greedy", shop, "--out", tmp_path / "p", "--allow-overlap")
    assert szilard(*arguments, "--embedding", tmp_path / "points")[0] == 0
    assert szilard("evaluate", tmp_path / "p", "--limit", 20)[0] == 0


def test_a_pickle_is_refused_with_what_to_give_in_its_place(szilard, tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "items.pkl").write_bytes(b"\x80\x04.")
    for path in (tmp_path / "shop", tmp_path / "shop" / "items.pkl"):
        code, _, err = szilard("data", "import", path, tmp_path / "out")
        assert code == 2
        assert "items.pkl" in err
        assert "JSON" in err
        assert "CSV" in err


def test_embeddings_are_of_their_catalogue(made, szilard, tmp_path):
    shop = storage.load(made / "shop")
    found = Embeddings.load(made / "points", shop)
    assert found.dim == 8
    code, text, _ = szilard("embed", "tiny", tmp_path / "other", *FIT)
    assert code == 0
    assert text.splitlines()[-1] == str(tmp_path / "other")
    assert [path.name for path in sorted((tmp_path / "other").iterdir())] == [
        "embeddings.json",
        "embeddings.safetensors",
    ]
    code, _, err = szilard(
        "train", "abs_greedy", made / "shop", "--out", tmp_path / "p", "--embedding", tmp_path / "other"
    )
    assert code == 2
    assert shop.hash in err


# ---- policies


def test_a_policy_folder_is_played_without_anything_beside_it(made, szilard, tmp_path):
    shutil.copytree(made / "dqn", tmp_path / "dqn")
    assert szilard("evaluate", tmp_path / "dqn", "--out", tmp_path / "test")[0] == 0
    before, after = open_played(str(made / "dqn-test")), open_played(str(tmp_path / "test"))
    assert after.first.equals(before.first)
    assert szilard("evaluate", tmp_path / "dqn", "--catalogue", made / "shop", "--limit", 10)[0] == 0


def test_a_finished_policy_is_not_made_again(made, szilard):
    written = (made / "dqn" / "policy.json").stat().st_mtime_ns
    code, text, err = szilard(
        "train", "dqn", made / "shop", "--out", made / "dqn", "--embedding", made / "points", *DQN
    )
    assert (code, text) == (0, f"{made / 'dqn'}\n")
    assert "finished before" in err
    assert (made / "dqn" / "policy.json").stat().st_mtime_ns == written


def test_ctrl_c_says_that_the_same_command_goes_on(made, szilard, tmp_path, monkeypatch):
    update, calls = Progress.update, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return update(self, *args, **kwargs)

    monkeypatch.setattr(core.rl.training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(Progress, "update", interrupted)
    arguments = ("train", "dqn", made / "shop", "--out", tmp_path / "p", "--embedding", made / "points", *DQN)
    code, out, err = szilard(*arguments)
    assert (code, out) == (130, "")
    assert "the same command goes on" in err
    code, _, err = szilard("evaluate", tmp_path / "p")
    assert code == 2
    assert "not finished" in err
    code, _, err = szilard(*arguments, "--seed", 1)
    assert code == 2
    assert "seed = 0, now 1" in err
    assert szilard(*arguments)[0] == 0
    weights = "method/q_network.safetensors"
    assert (tmp_path / "p" / weights).read_bytes() == (made / "dqn" / weights).read_bytes()
    assert szilard(*arguments, "--seed", 1, "--fresh")[0] == 0
    assert (tmp_path / "p" / weights).read_bytes() != (made / "dqn" / weights).read_bytes()


def test_evaluate_says_what_it_wrote(made, szilard):
    code, text, err = szilard("evaluate", made / "dqn", "--out", made / "dqn-test")
    assert (code, err) == (0, "")
    assert text.splitlines()[-1] == str(made / "dqn-test")
    played = open_played(str(made / "dqn-test")).first
    shop = storage.load(made / "shop")
    assert played.sizes["dialogue"] == len(shop.pairs("test"))
    table = rows(made / "dqn-test")
    for measure, values in measures(played).items():
        expected = mean_interval(values)
        assert table[measure]["mean"] == pytest.approx(expected.mean)
        assert (table[measure]["low"], table[measure]["high"]) == (expected.low, expected.high)
        assert measure in text
    written = read_transcripts(made / "dqn-test" / "transcripts.jsonl", Names(shop))
    assert written.equals(played.drop_attrs())
    assert played.attrs["policy"] == "dqn"
    assert played.attrs["catalogue"] == shop.hash


def test_evaluate_plays_what_it_is_asked_to(made, szilard, tmp_path):
    sizes = {}
    for split in ("train", "valid"):
        out = tmp_path / split
        assert szilard("evaluate", made / "rule", "--split", split, "--limit", 90, "--out", out)[0] == 0
        sizes[split] = open_played(str(out)).first
        pairs = {tuple(pair) for pair in storage.load(made / "shop").pairs(split).tolist()}
        pair = zip(sizes[split]["user"].values.tolist(), sizes[split]["target"].values.tolist(), strict=True)
        assert set(pair) <= pairs
        assert sizes[split].sizes["dialogue"] == 90
    out = tmp_path / "noisy"
    assert szilard("evaluate", made / "rule", "--out", out, "--rules", "max_turns=4", "--seed", 5, "--shortcut")[0] == 0
    played = open_played(str(out)).first
    assert played.sizes["turn"] == 4
    assert (played["turns"].values <= 4).all()
    # Where the candidates fit into a list, a list follows.
    left = played["candidates"].values[:, :-1] <= 10
    assert (played["action"].values[:, 1:][left & (played["action"].values[:, 1:] != OVER)] == 1).all()


def test_compare_gives_paired_differences(made, szilard, tmp_path):
    code, text, err = szilard("compare", made / "dqn-test", made / "rule-test", "--out", tmp_path / "table.json")
    assert (code, err) == (0, "")
    assert "dqn less threshold" in text
    one, other = (open_played(str(made / name)).first for name in ("dqn-test", "rule-test"))
    table = {row["metric"]: row for row in json.loads((tmp_path / "table.json").read_text())["table"]}
    for measure in ("SR@15", "AT", "hDCG", "return"):
        first, second = measures(one)[measure], measures(other)[measure]
        expected = paired_difference(first, second)
        assert table[measure]["mean"] == pytest.approx(expected.mean)
        assert table[measure]["low"] == pytest.approx(expected.low, abs=0.02)
        assert clustered_difference((first - second)[None]).low == table[measure]["low"]


def test_compare_refuses_other_dialogues(made, szilard, tmp_path):
    assert szilard("evaluate", made / "rule", "--seed", 1, "--out", tmp_path / "seed")[0] == 0
    assert szilard("evaluate", made / "rule", "--limit", 7, "--out", tmp_path / "few")[0] == 0
    for name, said in (("seed", "same users, targets and openings"), ("few", "250 and 7 dialogues")):
        code, _, err = szilard("compare", made / "dqn-test", tmp_path / name)
        assert code == 2
        assert said in err


def test_compare_refuses_other_counts_of_turns_and_names_other_rules(made, szilard, tmp_path):
    for rule in ("max_turns=5", "turns=official", "answer_noise=0.1"):
        assert szilard("evaluate", made / "rule", "--rules", rule, "--out", tmp_path / rule)[0] == 0
    for rule, said in (("max_turns=5", "max_turns 15 and 5"), ("turns=official", "turns paper and official")):
        code, _, err = szilard("compare", made / "dqn-test", tmp_path / rule)
        assert code == 2
        assert said in err
    code, _, err = szilard("compare", made / "dqn-test", tmp_path / "answer_noise=0.1")
    assert code == 0
    assert err == "note: A and B: answer_noise 0.0 and 0.1; the difference is of that too\n"


def test_compare_takes_methods_of_a_study(szilard, tmp_path):
    catalogue = {"kind": "generated", "preset": "tiny"}
    config = {
        "study": "few",
        "problems": [{"catalogue": catalogue, "embedding": {"epochs": 1, "dim": 4}, "limit": 60}],
        "seeds": 2,
        "methods": [{"kind": "random", "name": "R R"}, {"kind": "abs_greedy", "name": "Greedy"}],
    }
    study, out = CRSStudy.model_validate(config), tmp_path / "few"
    store = Store(out)
    with store.open(study.study, study.hash, study.to_yaml()):
        code, _, err = szilard("compare", f"{out}::R R", f"{out}::Greedy")
        assert code == 2
        assert "R R, seed 0: not finished" in err
        for run in study.runs():
            assert not execute(Task(out, study.hash, run, "cpu")).error
    code, text, _ = szilard("compare", f"{tmp_path / 'few'}::R R", f"{tmp_path / 'few'}::Greedy::default")
    assert code == 0
    assert "R R less Greedy" in text
    assert "n = 60 dialogues, 2 and 1 trainings" in text
    for name, said in (
        ("few::Oracle", "no method Oracle"),
        ("few::Greedy::x", "no problem x"),
        ("few", "holds a study"),
    ):
        code, _, err = szilard("compare", tmp_path / name, f"{tmp_path / 'few'}::Greedy")
        assert code == 2
        assert said in err


def test_bench_counts_the_turns(made, szilard):
    code, text, err = szilard("bench", "tiny", "--dialogues", 20, "--batch", 10)
    assert (code, err) == (0, "")
    for name in ("AbsGreedy", "MaxEntropy", "Threshold", "ActiveInference", "peak memory"):
        assert name in text
    code, text, _ = szilard("bench", "--policy", made / "dqn", "--dialogues", 20)
    assert code == 0
    assert "dqn" in text


# ---- people


def test_chat_ends_with_the_code_of_its_end(made, szilard, tmp_path):
    (tmp_path / "no.txt").write_text("\n" + "n\n" * 40)
    code, text, _ = szilard(
        "chat", "--policy", made / "rule", "--script", tmp_path / "no.txt", "--json", tmp_path / "t.json", "--user", 7
    )
    assert code == 3
    assert "turn 15 of 15" in text
    held = json.loads((tmp_path / "t.json").read_text())
    assert (held["exit_code"], held["user"], held["turns"], held["policy"]) == (3, 7, 15, "threshold")
    (tmp_path / "bad.txt").write_text("\nperhaps\n")
    code, text, _ = szilard("chat", "--policy", made / "rule", "--script", tmp_path / "bad.txt")
    assert code == 2
    assert text.splitlines()[-1].startswith("line 2: 'perhaps'")


def test_a_table_is_enough_for_a_chat(made, szilard, tmp_path):
    (tmp_path / "yes.txt").write_text("grün\n1\n")
    code, text, err = szilard("chat", "--catalogue", made / "items.csv", "--script", tmp_path / "yes.txt")
    assert code == 0
    assert "grün" in text
    assert "note: no interactions.csv" in err
    assert re.search(r"^Found: item \d+\.$", text.splitlines()[-1])
    code, text, _ = szilard(
        *("chat", "--catalogue", made / "items.csv", "--script", tmp_path / "yes.txt"),
        *("--method", "threshold", "--rules", "question=enumerated"),
    )
    assert code == 0


@pytest.fixture
def served(monkeypatch):
    """In place of a server that runs until Ctrl-C: one that answers a request, and what it said."""
    found = {}

    def serve(world, policies, host, port, *, ttl, say):
        with create_server(world, policies, host, port, ttl=ttl) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with urllib.request.urlopen(f"{server.url}api/catalogue", timeout=10) as answer:
                found.update(json.load(answer))
            server.shutdown()

    monkeypatch.setattr(apps.crs.talk_cli, "serve_pages", serve)
    return found


def test_serve_shows_policies_side_by_side(made, szilard, served):
    assert szilard("serve", made / "dqn", made / "rule", "--port", 0)[0] == 0
    assert served["policies"] == ["dqn", "threshold"]
    assert served["items"] == 100


def test_serve_takes_a_table(made, szilard, served):
    assert szilard("serve", "--catalogue", made / "items.csv", "--port", 0)[0] == 0
    assert served["policies"] == ["active_inference"]
    assert served["items"] == 24


def test_a_port_in_use_is_told(made, szilard):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        code, out, err = szilard("serve", made / "rule", "--port", port)
    assert (code, out) == (2, "")
    assert f"127.0.0.1 port {port}" in err


def test_side_by_side_stand_policies_of_one_conversation(made, szilard, tmp_path):
    out = tmp_path / "other"
    arguments = ("train", "abs_greedy", made / "shop", "--out", out, "--embedding", made / "points")
    assert szilard(*arguments, "--rules", "list_length=5")[0] == 0
    code, _, err = szilard("serve", made / "rule", out)
    assert code == 2
    assert "rules" in err
    assert szilard("serve", made / "rule", made / "rule", made / "rule")[0] == 2


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("train", "dqn", "shop", "--rules", "list_length=101"), ["list_length = 101", "at most 100"]),
        (("train", "dqn", "shop", "--rules", "max_turns=0"), ["--rules max_turns=0", "at least 1"]),
        (
            ("train", "dqn", "shop", "--rules", "max_turn=3"),
            ["--rules max_turn=3", "max_turn: unknown rule", "max_turns"],
        ),
        (("train", "dqn", "shop", "--rules", "question=oral"), ["oral", "binary"]),
        (("train", "dqn", "shop", "--set", "questions=0"), ["questions = 0", "greater than or equal to 1"]),
        (("train", "dqn", "shop", "--set", "learning.gamma=1.5"), ["learning.gamma = 1.5", "less than or equal to 1"]),
        (("train", "dqn", "shop", "--set", "learning.gamma=0"), ["learning.gamma = 0", "greater than 0"]),
        (("train", "dqn", "shop", "--set", "learning.gama=1"), ["learning.gama", "unknown key", "gamma"]),
        (("train", "threshold", "shop", "--set", "grid"), ["--set grid", "key=value"]),
        (("train", "chess", "shop"), ["chess: no such method", "dqn"]),
        (("train", "dqn", "nowhere"), ["nowhere: no such file or folder", "tiny"]),
        (("train", "dqn", "shop", "--embedding", "nowhere"), ["nowhere", "embeddings.json"]),
        (("train", "dqn", "shop", "--device", "tpu"), ["--device", "cpu"]),
        (("data", "synth", "new", "--preset", "huge"), ["preset", "huge", "tiny"]),
        (("data", "synth", "new", "--preset", "tiny", "--items", "0"), ["n_items = 0", "at least 1"]),
        (("data", "synth", "new", "--types", "3"), ["--types 3", "at least 4"]),
        (("data", "synth", "items.csv"), ["items.csv: is a file"]),
        (("data", "synth", "."), ["must be empty or new"]),
        (("data", "check", "nowhere"), ["nowhere: no such file or folder"]),
        (("data", "check", "points"), ["points: no layout recognised"]),
        (("data", "check", "shop", "--layout", "scpr"), ["Graph_generate_data"]),
        (("embed", "shop", "new", "--set", "dim=0"), ["dim = 0"]),
        (("embed", "shop", "rule"), ["must be empty or new"]),
        (("evaluate", "nowhere"), ["nowhere", "no policy"]),
        (("evaluate", "dqn", "--catalogue", "tiny"), ["dqn: a policy for catalogue", "--catalogue is"]),
        (("evaluate", "dqn", "--limit", "0"), ["--limit"]),
        (("evaluate", "dqn", "--split", "all"), ["--split", "valid"]),
        (("evaluate", "dqn", "--out", "rule"), ["which no evaluation wrote"]),
        (("evaluate", "dqn", "--out", "dqn-test", "--seed", "1"), ["seed = 0, now 1"]),
        (("evaluate", "dqn", "--rules", "question=enumerated"), ["made for binary questions"]),
        (("evaluate", "dqn", "--rules", "max_turns=9"), ["--rules max_turns=9", "trained for 15 turns"]),
        (("evaluate", "dqn", "--out", "/proc/none"), ["--out /proc/none"]),
        (("evaluate", "rule", "--out", "dqn-test"), ['method.name = "dqn", now "threshold"']),
        (("compare", "dqn-test", "rule"), ["rule: holds no evaluation"]),
        (("compare", "dqn-test", "shop::Greedy"), ["shop: holds no study"]),
        (("compare", "dqn-test", "a::b::c::d"), ["must read DIR"]),
        (("chat",), ["--catalogue"]),
        (("chat", "--policy", "rule", "--user", "50"), ["user = 50", "0 to 49"]),
        (("chat", "--policy", "rule", "--script", "nowhere.txt"), ["nowhere.txt"]),
        (("chat", "--policy", "rule", "--json", "nowhere/t.json"), ["nowhere"]),
        (("chat", "--policy", "rule", "--catalogue", "tiny"), ["a policy for catalogue"]),
        (("chat", "--catalogue", "tiny", "--method", "oracle"), ["oracle"]),
        (("chat", "--policy", "rule", "--method", "random"), ["--method random", "one or the other"]),
        (("serve",), ["--catalogue"]),
        (("serve", "rule", "./rule"), ["rule: stands there twice"]),
        (("serve", "rule", "--port", "70000"), ["--port"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(made, szilard, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(made)
    before = sorted(path.relative_to(made) for path in made.rglob("*"))
    if arguments[0] == "train":
        arguments = (*arguments, "--out", tmp_path / "new")
    code, _, err = szilard(*arguments)
    assert code == 2
    assert err.startswith("szilard: error: ")
    assert len(err.splitlines()) == 1
    for text in named:
        assert text in err
    assert sorted(path.relative_to(made) for path in made.rglob("*")) == before
    assert not (tmp_path / "new").exists()


def test_a_shop_with_fewer_items_than_a_list_gets_shorter_lists(szilard, tmp_path):
    (tmp_path / "items.csv").write_text("name,colour\n" + "".join(f"{name},red\n" for name in "abcde"))
    (tmp_path / "answers.txt").write_text("\n5\n")
    arguments = ("--catalogue", tmp_path / "items.csv", "--script", tmp_path / "answers.txt", "--method", "abs_greedy")
    code, text, _ = szilard("chat", *arguments)
    assert code == 0
    assert re.search(r"^Found: [a-e]\.$", text.splitlines()[-1])
    assert szilard("chat", *arguments, "--rules", "list_length=6")[0] == 2

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import InputError
from core.study import Config, Run, configs, find_config
from core.study.loading import load_values
from core.study.run import expand, inputs_of
from tests.core.toy_study import Options, Scale, Table, ToyStudy, Walk


def load(tmp_path: Path, text: str, *overrides: str) -> ToyStudy:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return ToyStudy.load(path, overrides)


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("study: a\nseeds: 0", (), "x.yaml: seeds = 0: must be greater than or equal to 1"),
        ("study: a\nseeds: five", (), 'x.yaml: seeds = "five": must be a valid integer'),
        ("study: a\nseedz: 5", (), "x.yaml: seedz: unknown key; known here: study, description, takes, seeds, steps"),
        ("study: a\noptions: {rat: 1}", (), "x.yaml: options.rat: unknown key; known here: rate, mode, low, high"),
        ("study: a\noptions: {rate: -1}", (), "x.yaml: options.rate = -1: must be greater than 0"),
        ("study: a\noptions: {rate: .nan}", (), "x.yaml: options.rate = NaN: must be a finite number"),
        ("study: a\noptions: {mode: odd}", (), "x.yaml: options.mode = \"odd\": must be 'fast' or 'slow'"),
        ("study: a\noptions: {low: 3}", (), "x.yaml: options: low 3 must be at most high 1"),
        ("seeds: 5", (), "x.yaml: study: is required"),
        ("study: A b", (), 'x.yaml: study = "A b": must match pattern'),
        ("study: a\nworlds: [{kind: tiny}]", (), "worlds.0.kind = \"tiny\": must be one of 'small', 'large'"),
        ("study: a\nworlds: [{width: 1}]", (), "x.yaml: worlds.0.kind: is required"),
        ("study: a\nworlds: [{kind: small, width: 0}]", (), "x.yaml: worlds.0.width = 0: must be greater than 0"),
        ("study: a\nworlds: [{kind: small}]", (), "x.yaml: worlds.0.width: is required"),
        ("study: a\nworlds: [{kind: large, width: 1}]", (), "worlds.0.width: unknown key; known here: kind, height"),
        ("study: a\nseeds: 1\n\nseeds: 2", (), 'x.yaml: line 4: duplicate key "seeds"'),
        ("study: a\noptions:\n  low: 0\n  low: 0", (), 'x.yaml: line 4: duplicate key "low"'),
        ("study: a\nseeds: [1", (), "x.yaml: line 2: "),
        ("study: \x07", (), "x.yaml: not YAML: "),
        ("", (), "x.yaml: must be a mapping of keys to values, not empty"),
        ("- 1", (), "x.yaml: must be a mapping of keys to values, not a list"),
        ("study: a", ("seeds=0",), "--set seeds=0: seeds = 0: must be greater than or equal to 1"),
        ("study: a", ("options.rat=1",), "--set options.rat=1: options.rat: unknown key; known here: rate,"),
        ("study: a", ("seedz.x=1",), "--set seedz.x=1: seedz: unknown key; known here: study,"),
        ("study: a", ("seeds",), "--set seeds: must read key=value"),
        ("study: a", ("options..low=1",), "--set options..low=1: must read key=value"),
        ("study: a\nseeds: 3", ("seeds.x=1",), "--set seeds.x=1: seeds = 3 has no keys in it"),
        (
            "study: a\nworlds: [{kind: large}]",
            ("worlds.1.height=2",),
            "worlds is a list of 1: the index must be 0 to 0",
        ),
        ("study: a", ("seeds=[1",), "--set seeds=[1: line 1: "),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, text: str, overrides: tuple[str, ...], expected: str) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path, text, *overrides)
    message = str(error.value)
    assert expected in message
    assert "\n" not in message
    assert message.startswith(("--set", str(tmp_path)))


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    for text, value in [("1e-3", 1e-3), ("1E5", 1e5), ("-2e+2", -2e2), (".5e1", 5.0), ("3", 3.0), ("0.25", 0.25)]:
        assert load(tmp_path, f"study: a\nthreshold: {text}").threshold == value
    # text that only looks like a number stays text
    assert load(tmp_path, "study: a\ntakes: 1e-3x").takes == "1e-3x"


def test_overrides_reach_nested_keys_and_list_items(tmp_path: Path) -> None:
    text = "study: a\nworlds: [{kind: small, width: 1}, {kind: large}]"
    study = load(tmp_path, text, "worlds.1.height=7", "options.rate=1e-2", "seeds=4", "options.mode=slow")
    assert (study.worlds[1].height, study.options.rate, study.seeds, study.options.mode) == (7, 1e-2, 4, "slow")


def test_values_without_a_file_are_the_defaults_and_the_overrides() -> None:
    assert load_values(Options, ["rate=1e-2", "mode=slow"]) == Options(rate=0.01, mode="slow")
    with pytest.raises(InputError, match=r"^--set rat=1: rat: unknown key; known here: rate, mode, low, high$"):
        load_values(Options, ["rat=1"])


def test_an_override_does_not_reach_through_an_alias(tmp_path: Path) -> None:
    text = "study: a\nworlds: [&w {kind: small, width: 1}, *w]"
    study = load(tmp_path, text, "worlds.0.width=9")
    assert [world.width for world in study.worlds] == [9, 1]


def test_yaml_round_trip_keeps_the_hash(tmp_path: Path) -> None:
    study = load(tmp_path, "study: a\nworlds: [{kind: large}]\noptions: {rate: 1e-7}\nthreshold: null")
    assert load(tmp_path, study.to_yaml()) == study
    assert load(tmp_path, study.to_yaml()).hash == study.hash


def test_hash_is_a_function_of_class_and_fields() -> None:
    walk = Walk(seed=1, scale=Scale())
    assert walk.hash == Walk(seed=1, scale=Scale(value=2)).hash
    assert walk.model_copy(update={"seed": 2}).hash == Walk(seed=2, scale=Scale()).hash
    others = [Walk(seed=2, scale=Scale()), Walk(seed=1), Walk(seed=1, scale=Scale(value=3.0)), walk]
    assert len({other.hash for other in others}) == 4

    class Other(Scale):
        pass

    assert Other().hash != Scale().hash

    class Unordered(Config):
        names: frozenset[str]
        weights: dict[str, int]

    forward = Unordered(names=frozenset("abcdef"), weights={"a": 1, "b": 2})
    assert forward.hash == Unordered(names=frozenset("fedcba"), weights={"b": 2, "a": 1}).hash


def test_hash_is_the_same_in_every_process() -> None:
    code = "from tests.core.toy_study import *; print(Walk(seed=1, table=Table(), scale=Scale()).hash)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert output == Walk(seed=1, table=Table(), scale=Scale()).hash
    assert len(output) == 16


def test_study_hash_ignores_what_does_not_decide_the_numbers() -> None:
    study = ToyStudy(study="a")
    assert study.hash == ToyStudy(study="a", description="x", takes="y").hash
    assert study.hash != ToyStudy(study="a", seeds=3).hash


class Group(Run):
    members: tuple[Walk, ...]
    first: Walk | None = None

    def execute(self, inputs, context):
        raise NotImplementedError


def test_fields_that_hold_runs_are_inputs_and_come_first_once() -> None:
    scale = Scale()
    walks = [Walk(seed=i, scale=scale) for i in range(2)]
    group = Group(members=tuple(walks), first=walks[0])
    assert list(inputs_of(group)) == ["members.0", "members.1", "first"]
    order = list(expand([group, walks[1], scale]).values())
    assert order == [scale, walks[0], walks[1], group]


def test_find_config_takes_a_path_or_a_packaged_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.configs.ROOT", tmp_path)
    (tmp_path / "configs" / "toy").mkdir(parents=True)
    quick = tmp_path / "configs" / "toy" / "quick.yaml"
    quick.write_text("study: quick")
    assert find_config("toy", "quick") == find_config("toy", "quick.yaml") == find_config("toy", quick) == quick
    assert configs("toy") == [("quick", quick)]
    with pytest.raises(InputError, match=r"nope: no such file; packaged studies of toy: quick$"):
        find_config("toy", "nope")
    # an installed wheel carries them beside the applications, and those come first
    packaged = tmp_path / "apps" / "configs" / "toy"
    packaged.mkdir(parents=True)
    (packaged / "paper.yaml").write_text("study: paper")
    assert configs("toy") == [("paper", packaged / "paper.yaml")]

"""Catalogues and the folder that keeps them: round trips, refusals, warnings."""

import json
from dataclasses import replace

import numpy as np
import pytest

from core.errors import InputError
from simulators.crs.catalogue import SPLITS, Catalogue, no_pairs
from simulators.crs.generated import PRESETS, Generated, generate
from simulators.crs.splits import overlaps
from simulators.crs.storage import check, load, save


def pairs(*rows):
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


@pytest.fixture
def small():
    """Three users, five items, four attributes of two types; named in several scripts."""
    return Catalogue(
        name="läden",
        item_names=("椅子", "ドア", "стол", "🪑 chair", "chair"),
        attribute_names=("rouge", "grün", "red | blue", "κόκκινο"),
        type_names=("größe", "色"),
        attribute_type=np.array([1, 0, 1, 0]),
        edges=pairs((4, 3), (0, 0), (0, 2), (1, 1), (2, 0), (3, 2)),
        n_users=3,
        interactions={
            "train": pairs((1, 3), (0, 1), (1, 0), (2, 2)),
            "valid": pairs((0, 0), (1, 1)),
            "test": pairs((2, 4)),
        },
        friends=pairs((2, 0), (0, 1)),
        likes=pairs((1, 3)),
        question="enumerated",
        licence="CC0-1.0",
        source="made up",
    )


def edit(path, change):
    data = json.loads(path.read_text(encoding="utf-8"))
    changed = change(data)
    path.write_text(json.dumps(data if changed is None else changed), encoding="utf-8")


def refused(folder, *said):
    with pytest.raises(InputError) as refusal:
        load(folder)
    for words in said:
        assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def same(a, b):
    for name in vars(a):
        if name in Catalogue.__dataclass_fields__ and name != "interactions":
            assert np.array_equal(getattr(a, name), getattr(b, name)), name
    for split in SPLITS:
        assert np.array_equal(a.interactions[split], b.interactions[split])
    assert a.hash == b.hash


# Catalogue


def test_tables_have_one_order(small):
    shuffled = replace(small, edges=small.edges[::-1], friends=small.friends[::-1])
    assert shuffled.hash == small.hash
    assert small.edges.tolist() == sorted(small.edges.tolist())
    assert small.interactions["train"].tolist() == [[0, 1], [1, 3], [1, 0], [2, 2]]


def test_hash_tells_catalogues_apart(small):
    others = [
        replace(small, item_names=(*small.item_names[:4], "stool")),
        replace(small, edges=small.edges[:-1]),
        replace(small, interactions={**small.interactions, "test": pairs((2, 3))}),
        replace(small, likes=no_pairs()),
        replace(small, n_users=4),
    ]
    assert len({small.hash, *(other.hash for other in others)}) == 6
    assert replace(small, licence="other").hash == small.hash


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"edges": pairs((5, 0))}, "item_attributes: entry 0: id 5; allowed: 0 to 4"),
        ({"edges": pairs((0, -1))}, "id -1"),
        ({"edges": pairs((0, 1), (0, 1))}, "stands there twice"),
        ({"edges": np.zeros((2, 2))}, "float64"),
        ({"edges": np.zeros((2, 3), dtype=np.int64)}, "(n, 2)"),
        ({"friends": pairs((0, 3))}, "friends"),
        ({"likes": pairs((0, 4))}, "user_likes"),
        ({"attribute_type": np.array([0, 1, 2, 0])}, "type"),
        ({"attribute_type": np.array([0, 1])}, "attribute_type"),
        ({"interactions": {"train": pairs((0, 0), (0, 0))}}, "interactions_train"),
        ({"interactions": {"valid": pairs((3, 0))}}, "interactions_valid"),
        ({"item_names": ()}, "0 items"),
        ({"n_users": 0}, "0 users"),
        ({"question": "open"}, "question"),
    ],
)
def test_tables_that_do_not_fit_are_refused(small, wrong, said):
    with pytest.raises(InputError) as refusal:
        replace(small, **wrong)
    assert said in str(refusal.value)


def test_pairs_leave_out_items_without_attributes(small):
    bare = replace(small, edges=small.edges[small.edges[:, 0] != 1])
    assert bare.pairs("train").tolist() == [[1, 3], [1, 0], [2, 2]]
    assert bare.described.tolist() == [True, False, True, True, True]


# Round trips


def test_round_trip(small, tmp_path):
    save(small, tmp_path)
    same(load(tmp_path), small)


@pytest.mark.parametrize("seed", range(3))
def test_round_trip_of_generated_ones(seed, tmp_path):
    generator = np.random.default_rng(seed)
    found = generate(replace(PRESETS["tiny"], names=bool(seed % 2)), seed)
    order = generator.permutation(found.n_types)
    found = replace(
        found,
        attribute_type=order[found.attribute_type],
        friends=np.unique(generator.integers(0, 50, (30, 2)), axis=0),
        edges=found.edges[generator.permutation(len(found.edges))],
    )
    save(found, tmp_path / "there")
    same(load(tmp_path / "there"), found)


def test_one_item_one_attribute(tmp_path):
    found = generate(Generated(n_users=40, n_items=1, n_types=1, n_values=1, per_user=1, least_types=1), 0)
    save(found, tmp_path)
    same(load(tmp_path), found)


def test_saving_over_another_catalogue_leaves_nothing_of_it(small, tmp_path):
    save(small, tmp_path)
    save(replace(small, friends=no_pairs(), likes=no_pairs()), tmp_path)
    assert not len(load(tmp_path).friends)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_a_type_without_attributes_survives(small, tmp_path):
    found = replace(small, type_names=("größe", "empty", "色"), attribute_type=np.array([2, 0, 2, 0]))
    save(found, tmp_path)
    same(load(tmp_path), found)


def test_types_in_order_of_appearance_where_meta_has_none(small, tmp_path):
    save(small, tmp_path)
    edit(tmp_path / "meta.json", lambda meta: meta.pop("types") and None)
    assert load(tmp_path).type_names == ("色", "größe")
    assert [load(tmp_path).label(a) for a in range(4)] == [small.label(a) for a in range(4)]


def test_interactions_without_a_split(tmp_path):
    found = generate(PRESETS["tiny"], 0)
    save(found, tmp_path)
    whole = {u: [v for s in SPLITS for k, v in found.interactions[s].tolist() if k == u] for u in range(50)}
    for split in SPLITS:
        (tmp_path / f"interactions_{split}.json").unlink()
    refused(tmp_path, "interactions.json")
    (tmp_path / "interactions.json").write_text(json.dumps(whole))
    split = load(tmp_path, seed=1)
    assert [len(split.interactions[s]) for s in SPLITS] == [1050, 200, 250]
    assert not overlaps(split.interactions)
    assert split.hash == load(tmp_path, seed=1).hash != load(tmp_path, seed=2).hash
    (tmp_path / "interactions.json").rename(tmp_path / "interactions_train.json")
    assert load(tmp_path, seed=1).hash == split.hash
    (tmp_path / "interactions_test.json").write_text("{}")
    refused(tmp_path, "interactions_valid.json", "absent")


# Refusals


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("interactions_train.json", lambda d: d["0"].append(5), ("0: id 5", "0 to 4")),
        ("interactions_train.json", lambda d: d["0"].append(-1), ("0: id -1",)),
        ("interactions_train.json", lambda d: d["0"].append(1.0), ("id 1.0",)),
        ("interactions_train.json", lambda d: d["0"].append(True), ("id True",)),
        ("interactions_train.json", lambda d: d["0"].append("1"), ("id '1'",)),
        ("interactions_train.json", lambda d: d["0"].append(1), ("0: id 1 stands there twice",)),
        ("interactions_train.json", lambda d: d["0"].append(10**30), ("allowed",)),
        ("interactions_train.json", lambda d: d.update({"3": [1]}), ("id 3", "0 to 2")),
        ("interactions_train.json", lambda d: d.update({"-1": [1]}), ("'-1'",)),
        ("interactions_train.json", lambda d: d.update({"01": [1]}), ("'01'",)),
        ("interactions_train.json", lambda d: d.update({"ann": [1]}), ("'ann'",)),
        ("interactions_train.json", lambda d: d.update({"0": 3}), ("0: a number", "list")),
        ("interactions_train.json", lambda d: [[0, 1]], ("a list", "object")),
        ("interactions_train.json", lambda d: {}, ("interactions_train", "is empty")),
        (
            "interactions_test.json",
            lambda d: d.update({"1": [3]}),
            ("train and test share 1 pairs", "user 1", "item 3"),
        ),
        ("interactions_valid.json", lambda d: d.update({"2": [2]}), ("train and valid",)),
        ("interactions_valid.json", lambda d: d.update({"2": [4]}), ("valid and test",)),
        ("item_attributes.json", lambda d: d[0].append(4), ("0: id 4",)),
        ("item_attributes.json", lambda d: d.pop() and None, ("4 lists", "5")),
        ("item_attributes.json", lambda d: [[], [], [], [], []], ("none of an item with attributes",)),
        ("items.json", lambda d: d[1].update(id=0), ("item id 0", "twice")),
        ("items.json", lambda d: d[1].update(id=7), ("item id 1 is absent",)),
        ("items.json", lambda d: d[1].update(id=1.0), ("entry 1", "1.0")),
        ("items.json", lambda d: d[1].update(name=""), ("item 1", "empty")),
        ("items.json", lambda d: d[1].update(name=" \t"), ("item 1", "empty")),
        ("items.json", lambda d: d[1].update(name="a\x07b"), ("item 1", "U+0007")),
        ("items.json", lambda d: d[1].update(name="a\u202eb"), ("item 1", "U+202E")),
        ("items.json", lambda d: d[1].update(name="\ud800"), ("item 1", "U+D800")),
        ("items.json", lambda d: d[1].update(name=3), ("item 1", "text")),
        ("items.json", lambda d: d[1].pop("name") and None, ("entry 1", "id and name")),
        ("items.json", lambda d: d.pop() and None, ("4 items", "5")),
        ("attributes.json", lambda d: d[2].pop("type") and None, ("attribute 2", "enumerated")),
        ("attributes.json", lambda d: d[2].update(type="new"), ("attribute 2", "'new'")),
        ("attributes.json", lambda d: d[2].update(name="rouge"), ("attribute 2", "'rouge' twice")),
        ("friends.json", lambda d: d.update({"0": [3]}), ("friends.json", "id 3")),
        ("user_likes.json", lambda d: d.update({"0": [4]}), ("user_likes.json", "id 4")),
        ("meta.json", lambda d: d.update(schema=2), ("schema: 2", "must be 1")),
        ("meta.json", lambda d: d.update(schema=True), ("schema: True",)),
        ("meta.json", lambda d: d.pop("schema") and None, ("schema: None",)),
        ("meta.json", lambda d: d.update(n_users=0), ("n_users: 0",)),
        ("meta.json", lambda d: d.update(n_types=3), ("n_types: 3", "2 types")),
        ("meta.json", lambda d: d.update(n_attributes=5), ("4 attributes", "5")),
        ("meta.json", lambda d: d.update(question="open"), ("'open'", "enumerated")),
        ("meta.json", lambda d: d.update(licence=3), ("licence: 3",)),
        ("meta.json", lambda d: d.update(name=""), ("name", "empty")),
        ("meta.json", lambda d: d.update(types=["色", "色"]), ("types", "different")),
    ],
)
def test_wrong_tables_are_refused(small, tmp_path, file, change, said):
    save(small, tmp_path)
    edit(tmp_path / file, change)
    refused(tmp_path, str(tmp_path), *said)


@pytest.mark.parametrize("file", ["meta.json", "items.json", "attributes.json", "item_attributes.json"])
def test_unreadable_files_are_refused(small, tmp_path, file):
    save(small, tmp_path)
    path = tmp_path / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    refused(tmp_path, file, "not JSON")
    path.write_bytes(b'["\xe4"]')
    refused(tmp_path, file, "row 1", "0xe4", "UTF-8")
    path.write_bytes(b"[" * 100_000)
    refused(tmp_path, file, "not JSON")
    path.unlink()
    refused(tmp_path, file, "no such file")


def test_a_key_that_stands_twice_is_refused(small, tmp_path):
    save(small, tmp_path)
    (tmp_path / "interactions_train.json").write_text('{"0": [1], "0": [2]}')
    refused(tmp_path, "interactions_train.json", "'0'", "twice")


@pytest.mark.parametrize("name", ["items.pkl", "deep/er/kg.PICKLE"])
def test_pickles_are_refused_unopened(small, tmp_path, name):
    save(small, tmp_path)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    refused(tmp_path, path.name, "JSON", "CSV")


def test_names_that_could_not_be_read_back_are_not_saved(small, tmp_path):
    for wrong in ({"item_names": (*small.item_names[:4], "a\nb")}, {"type_names": ("色", "色")}):
        with pytest.raises(InputError):
            save(replace(small, **wrong), tmp_path / "never")
    assert not (tmp_path / "never").exists()


# Warnings


def test_a_whole_catalogue_has_no_warnings():
    found = generate(replace(PRESETS["tiny"], n_items=400, values="zipf"), 0)
    assert check(found) == []


def test_overlap_warns_where_it_is_allowed(small, tmp_path):
    save(small, tmp_path)
    edit(tmp_path / "interactions_test.json", lambda d: d.update({"1": [3]}))
    found = load(tmp_path, allow_overlap=True)
    assert [line for line in check(found) if "share" in line] == ["train and test share 1 pairs"]


def test_warnings_count_what_they_name(small):
    bare = replace(small, edges=small.edges[(small.edges[:, 0] != 1) & (small.edges[:, 1] != 3)])
    said = check(bare)
    assert "2 attributes have no item, the first is 'größe: grün'" in said
    dropped = "pairs with them that are dropped: 1 of train, 1 of valid, 1 of test"
    assert f"2 items have no attribute, the first is 'ドア'; {dropped}" in said
    assert "2 of 3 users have no pair in valid" in said
    assert "3 of 3 users have no pair in test" in said

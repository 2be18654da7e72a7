"""Readers of the layouts of others: one catalogue written in each must come back from each."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.errors import InputError
from simulators.crs.catalogue import SPLITS
from simulators.crs.generated import PRESETS, generate
from simulators.crs.readers import read
from simulators.crs.storage import save

FOREIGN = ("scpr", "layered", "tcrs", "table")


def by_key(rows):
    found = {}
    for key, value in rows.tolist():
        found.setdefault(str(key), []).append(value)
    return found


def dump(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def tabulated(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [header, *rows]), encoding="utf-8")


def write_scpr(c, folder, layered=False):
    graph = folder / "Graph_generate_data"
    held = by_key(c.edges)
    tag = "second-layer_oringinal_tag_map.json" if layered else "original_tag_map.json"
    dump(graph / tag, {f"{c.label(a).replace(': ', ':', 1)}": a for a in range(c.n_attributes)})
    items = "item_dict-original_tag.json" if layered else "item_dict.json"
    dump(graph / items, {str(v): {"feature_index": held.get(str(v), [])} for v in range(c.n_items)})
    if layered:
        dump(graph / "first-layer_merged_tag_map.json", {name: g for g, name in enumerate(c.type_names)})
        leaves = {n: np.flatnonzero(c.attribute_type == g).tolist() for g, n in enumerate(c.type_names)}
        dump(graph / "2-layer taxonomy.json", leaves)
    friends, likes = by_key(c.friends), by_key(c.likes)
    users = {str(u): {"friends": friends.get(str(u), []), "like": likes.get(str(u), [])} for u in range(c.n_users)}
    dump(graph / "user_dict.json", users)
    dump(graph / "user_item.json", by_key(c.interactions["train"]))
    for split in SPLITS:
        dump(folder / "UI_Interaction_data" / f"review_dict_{split}.json", by_key(c.interactions[split]))


def write_tcrs(c, folder):
    names = {"users": [f"user_{u}" for u in range(c.n_users)], "items": c.item_names}
    names["attributes"] = [c.label(a) for a in range(c.n_attributes)]
    for table, listed in names.items():
        tabulated(folder / "entities" / f"{table}.csv", ("map_id", "name"), enumerate(listed))
    relations = {
        "item_attribute": (("item_id", "attribute_id"), c.edges),
        "user_item": (("user_id", "item_id"), c.interactions["train"]),
        "user_user": (("user_id", "user_id"), c.friends),
        "user_attribute": (("user_id", "attribute_id"), c.likes),
    }
    for table, (header, rows) in relations.items():
        tabulated(folder / "relations" / f"{table}.csv", header, rows.tolist())
    for split in SPLITS:
        dump(folder / "relation_dict" / f"user-item_dict_{split}.json", by_key(c.interactions[split]))


def write_table(c, folder):
    folder.mkdir(parents=True)
    rows = [["name", *c.type_names]]
    for item, name in enumerate(c.item_names):
        held = c.edges[c.edges[:, 0] == item, 1]
        kinds = c.attribute_type[held]
        rows.append([name, *("|".join(c.attribute_names[a] for a in held[kinds == g]) for g in range(c.n_types))])
    (folder / "items.csv").write_text("\n".join(map(",".join, rows)), encoding="utf-8")
    taken = [f"{u},{c.item_names[v]},{s}" for s in SPLITS for u, v in c.interactions[s].tolist()]
    (folder / "interactions.csv").write_text("\n".join(["user,item,split", *taken]), encoding="utf-8")


def write(c, folder, layout):
    if layout == "tcrs":
        write_tcrs(c, folder)
    elif layout == "table":
        write_table(c, folder)
    else:
        write_scpr(c, folder, layered=layout == "layered")
    return folder


def labels(c):
    """(item, name of the attribute with its type), however the layout tells the two apart."""
    names = [c.label(a).replace(": ", ":", 1) for a in range(c.n_attributes)]
    return sorted((v, names[a]) for v, a in c.edges.tolist())


def refused(path, *said, **options):
    with pytest.raises(InputError) as refusal:
        read(path, **options)
    for words in said:
        assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.fixture
def tiny():
    found = generate(PRESETS["tiny"], 0)
    generator = np.random.default_rng(0)
    friends, likes = (np.unique(generator.integers(0, n, (40, 2)), axis=0) for n in (50, 30))
    return replace(found, friends=friends, likes=likes, question="enumerated")


def shop(folder, items, interactions=None, encoding="utf-8"):
    (folder / "items.csv").write_bytes(items.encode(encoding))
    if interactions is not None:
        (folder / "interactions.csv").write_text(interactions, encoding="utf-8")
    return folder


# The same catalogue from each layout


@pytest.mark.parametrize("layout", FOREIGN)
def test_each_layout_is_recognised_and_read(tiny, tmp_path, layout):
    found, notes = read(write(tiny, tmp_path / "there", layout))
    assert found.n_users == tiny.n_users
    assert labels(found) == labels(tiny)
    for split in SPLITS:
        assert np.array_equal(found.interactions[split], tiny.interactions[split])
    if layout != "table":
        assert np.array_equal(found.edges, tiny.edges)
        assert np.array_equal(found.friends, tiny.friends)
        assert np.array_equal(found.likes, tiny.likes)
        idle = np.setdiff1d(np.arange(30), tiny.edges[:, 1])
        assert [note for note in notes if "no item" in note] == [note for note in notes if str(len(idle)) in note]
    if layout in ("layered", "table"):
        assert found.type_names == tiny.type_names
    else:
        assert found.type_names == ("attribute",)
    if layout in ("tcrs", "table"):
        assert found.item_names == tiny.item_names
    assert found.question == ("enumerated" if layout == "layered" else "binary")


def test_our_own_layout(tiny, tmp_path):
    save(tiny, tmp_path)
    assert read(tmp_path)[0].hash == read(tmp_path, "canonical")[0].hash == tiny.hash


def test_the_shared_catalogue_in_five_layouts():
    folder = Path(os.environ.get("SZILARD_DATA") or Path(__file__).parents[2].parent / "shared" / "data") / "crs"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: set SZILARD_DATA")
    ours, _ = read(folder / "canonical")
    assert (ours.n_users, ours.n_items, ours.n_attributes, ours.n_types) == (40, 80, 30, 6)
    for name in ("scpr_binary", "scpr_enumerated", "tcrs", "catalogue"):
        found, notes = read(folder / name)
        assert notes == []
        for split in SPLITS:
            assert np.array_equal(found.interactions[split], ours.interactions[split])
        if name == "catalogue":
            assert labels(found) == labels(ours)
        else:
            assert np.array_equal(found.edges, ours.edges)
        if name == "scpr_enumerated":
            assert found.hash == ours.hash


@pytest.mark.parametrize("layout", FOREIGN)
def test_interactions_without_a_split_are_split(tiny, tmp_path, layout):
    path = write(tiny, tmp_path / "there", layout)
    if layout == "table":
        rows = (path / "interactions.csv").read_text(encoding="utf-8").splitlines()
        (path / "interactions.csv").write_text("\n".join(row.rpartition(",")[0] for row in rows), encoding="utf-8")
    else:
        part = "relation_dict" if layout == "tcrs" else "UI_Interaction_data"
        for file in (path / part).iterdir():
            file.unlink()
    found, notes = read(path, seed=3)
    assert any("split 70 : 15 : 15 by user with seed 3" in note for note in notes)
    total = sum(len(found.interactions[split]) for split in SPLITS)
    assert total == (1500 if layout == "table" else 1050)
    assert len(found.interactions["train"]) == (1050 if layout == "table" else 50 * (21 * 70 // 100))
    assert found.hash == read(path, seed=3)[0].hash != read(path, seed=4)[0].hash


@pytest.mark.parametrize("layout", ["scpr", "tcrs"])
def test_friends_and_likes_may_be_absent(tiny, tmp_path, layout):
    path = write(tiny, tmp_path / "there", layout)
    if layout == "scpr":
        (path / "Graph_generate_data" / "user_dict.json").unlink()
    else:
        (path / "relations" / "user_user.csv").unlink()
        (path / "relations" / "user_attribute.csv").unlink()
    found, _ = read(path)
    assert len(found.friends) == len(found.likes) == 0
    assert found.n_users == 50


def test_overlap_is_refused_or_noted(tiny, tmp_path):
    path = write(tiny, tmp_path / "there", "scpr")
    file = path / "UI_Interaction_data" / "review_dict_test.json"
    item = int(tiny.interactions["train"][0, 1])
    dump(file, {**json.loads(file.read_text()), "0": [item]})
    refused(path, "train and test share 1 pairs", f"user 0 with item {item}")
    assert "train and test share 1 pairs" in read(path, allow_overlap=True)[1]


def test_repeated_pairs_of_others_are_dropped_with_a_note(tiny, tmp_path):
    path = write(tiny, tmp_path / "there", "tcrs")
    file = path / "relations" / "item_attribute.csv"
    item, attribute = tiny.edges[0]
    file.write_text(file.read_text() + f"{item}\t{attribute}\n")
    found, notes = read(path)
    assert np.array_equal(found.edges, tiny.edges)
    assert "item_attribute.csv: 1 repeated pairs dropped" in notes


@pytest.mark.parametrize(
    ("file", "data", "said"),
    [
        ("Graph_generate_data/item_dict.json", {"0": {"feature_index": [30]}}, ("0: id 30", "0 to 29")),
        ("Graph_generate_data/item_dict.json", {"1": {"feature_index": [3]}}, ("item id 0 is absent",)),
        ("Graph_generate_data/item_dict.json", {"0": {"feature": [3]}}, ("0: ", "feature_index")),
        ("Graph_generate_data/item_dict.json", {"0": {"feature_index": [2.0]}}, ("id 2.0",)),
        ("Graph_generate_data/original_tag_map.json", {"a": 0, "b": 2}, ("tag id 1 is absent",)),
        ("Graph_generate_data/original_tag_map.json", {"a": 0, "b": 0}, ("tag id 0", "twice")),
        ("Graph_generate_data/original_tag_map.json", {"a": "0"}, ("'a'", "id '0'")),
        ("Graph_generate_data/user_dict.json", {"0": {"friends": [1]}}, ("id 1", "0 to 0")),
        ("Graph_generate_data/user_dict.json", {"0": [1]}, ("0: [1]", "friends")),
        ("UI_Interaction_data/review_dict_test.json", {"50": [1]}, ("id 50", "0 to 49")),
        ("UI_Interaction_data/review_dict_test.json", {"4": [100]}, ("4: id 100", "0 to 99")),
        ("UI_Interaction_data/review_dict_test.json", {}, ("interactions_test", "is empty")),
    ],
)
def test_wrong_scpr_tables_are_refused(tiny, tmp_path, file, data, said):
    path = write(tiny, tmp_path / "there", "scpr")
    dump(path / file, data)
    refused(path, "there", *said)


def test_a_taxonomy_must_cover_the_leaves(tiny, tmp_path):
    path = write(tiny, tmp_path / "there", "layered")
    file = path / "Graph_generate_data" / "2-layer taxonomy.json"
    taxonomy = json.loads(file.read_text(encoding="utf-8"))
    dump(file, {**taxonomy, "material": taxonomy["material"][1:]})
    refused(path, "2-layer taxonomy.json", "leaf 5", "no type")
    dump(file, {**taxonomy, "other": []})
    refused(path, "2-layer taxonomy.json", "'other'")
    dump(file, {**taxonomy, "material": [*taxonomy["material"], 0]})
    found, notes = read(path)
    assert found.label(0) == tiny.label(0)
    assert any("second type" in note for note in notes)


def test_both_spellings_of_the_map_of_leaves(tiny, tmp_path):
    graph = write(tiny, tmp_path / "there", "layered") / "Graph_generate_data"
    first = read(tmp_path / "there")[0]
    (graph / "second-layer_oringinal_tag_map.json").rename(graph / "second-layer_original_tag_map.json")
    assert read(tmp_path / "there")[0].hash == first.hash


def test_of_two_maps_of_tags_the_one_that_fits(tiny, tmp_path):
    graph = write(tiny, tmp_path / "there", "scpr") / "Graph_generate_data"
    dump(graph / "merged_tag_map.json", {"few": 0, "tags": 1})
    assert read(tmp_path / "there")[0].n_attributes == 30
    (graph / "original_tag_map.json").unlink()
    refused(tmp_path / "there", "item_dict.json", "0 to 1")
    (graph / "merged_tag_map.json").unlink()
    refused(tmp_path / "there", "original_tag_map.json or merged_tag_map.json")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("entities/items.csv", "map_id\tname\n0\ta\n0\tb\n", ("items id 0", "twice")),
        ("entities/items.csv", "map_id\tname\n0\ta\n-1\tb\n", ("row 3", "'-1'")),
        ("entities/items.csv", "map_id\tname\n0\ta\tb\n", ("row 2", "3 cells")),
        ("entities/items.csv", "map_id,name\n0,a\n", ("map_id and name, tabulated",)),
        ("entities/items.csv", "map_id\tname\n", ("1 rows",)),
        ("entities/items.csv", "", ("0 rows",)),
        ("entities/users.csv", "map_id\tname\n0\t\n", ("row 2", "empty")),
        ("relations/item_attribute.csv", "item_id\tattribute_id\n0\t30\n", ("row 2", "id 30", "0 to 29")),
        ("relations/item_attribute.csv", "item_id\tattribute_id\n0\t1.0\n", ("row 2", "'1.0'")),
        ("relations/item_attribute.csv", "item_id,attribute_id\n0,1\n", ("1 columns", "2")),
        ("relations/user_user.csv", "user_id\tuser_id\n0\t50\n", ("row 2", "id 50")),
    ],
)
def test_wrong_tcrs_tables_are_refused(tiny, tmp_path, file, text, said):
    path = write(tiny, tmp_path / "there", "tcrs")
    (path / file).write_text(text, encoding="utf-8")
    refused(path, file, *said)


# A shop's own table


def test_a_shop_in_any_script_delimiter_and_line_end(tmp_path):
    text = "名前;色;größe\r\n椅子;赤|青;L\r\n\r\nдверь;;M | L |\r\n"
    path = shop(tmp_path, text.replace("名前", "Name"), encoding="utf-8-sig")
    found, notes = read(path)
    assert found.item_names == ("椅子", "дверь")
    assert labels(found) == [(0, "größe:L"), (0, "色:赤"), (0, "色:青"), (1, "größe:L"), (1, "größe:M")]
    assert found.n_users == 500
    assert "no interactions.csv: 500 users of 1 interactions each are drawn with seed 0" in notes
    assert found.hash == read(path)[0].hash != read(path, seed=1)[0].hash
    assert read(path / "items.csv")[0].hash == found.hash


def test_drawn_users_like_some_attributes_more(tmp_path):
    rows = "\n".join(f"thing {i},{'red' if i % 2 else 'blue'}" for i in range(200))
    found, _ = read(shop(tmp_path, f"name,colour\n{rows}\n"))
    train = found.interactions["train"]
    red = np.bincount(train[:, 0], weights=train[:, 1] % 2) / np.bincount(train[:, 0])
    assert red.std() > 1.15 * np.sqrt(0.25 / 21)


def test_users_keep_the_order_of_their_numbers(tmp_path):
    items = "name,colour\na,red\nb,blue\nc,red\n"
    taken = "user,item,split\n10,a,train\n9,b,train\n10,b,valid\n9,c,test\n10,a,train\n"
    found, notes = read(shop(tmp_path, items, taken))
    assert found.interactions["train"].tolist() == [[0, 1], [1, 0]]
    assert found.interactions["valid"].tolist() == [[1, 1]]
    assert "interactions.csv: 1 repeated pairs dropped" in notes
    assert "1 of 2 users have no pair in valid" in notes


def test_ids_tell_items_of_one_name_apart(tmp_path):
    items = "id,name,colour\nx1,chair,red\nx2,chair,blue\nx3,desk,red\n"
    taken = "user,item,split\n0,x2,train\n0,desk,valid\n0,x1,test\n"
    found, _ = read(shop(tmp_path, items, taken))
    assert found.item_names == ("chair (x1)", "chair (x2)", "desk")
    assert [found.interactions[split].tolist() for split in SPLITS] == [[[0, 1]], [[0, 2]], [[0, 0]]]


def test_items_without_any_name_are_numbered(tmp_path):
    assert read(shop(tmp_path, "colour,size\nred,L\nblue,M\n"))[0].item_names == ("item 0", "item 1")


def test_numbers_become_ranges_of_about_equally_many(tmp_path):
    price = np.random.default_rng(0).lognormal(3, 1, 300).round(2)
    rows = "\n".join(f"thing {i},{p}" for i, p in enumerate(price))
    found, _ = read(shop(tmp_path, f"name,price\n{rows}\n,\n"), bins=4)
    counts = np.bincount(found.edges[:, 1])
    assert counts.sum() == 300
    assert (np.abs(counts - 75) <= 1).all()
    for attribute in range(4):
        held = price[found.edges[found.edges[:, 1] == attribute, 0]]
        low, _, high = found.attribute_names[attribute].partition(" to ")
        assert abs(float(low) / held.min() - 1) < 0.01
        assert abs(float(high) / held.max() - 1) < 0.01


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["1", "2", "3", "4", "5"], {"1", "2", "3", "4", "5"}),
        (["0", "0", "0", "0", "0", "0", "1", "2", "3", "4", "5"], {"0", "1 to 2", "3 to 5"}),
        (["", "10", "20", "", "30", "40", "50", "60", "70"], {"10 to 20", "30", "40", "50", "60 to 70"}),
        (["1000001", "1000002", "1000003", "1000004", "1000005", "1000006"], None),
        (["-3", "-2.5", "1e2", ".5", "7.", "+8"], None),
        (["1|2", "3", "4", "5", "6", "7", "8"], {"1", "2", "3", "4", "5", "6", "7", "8"}),
        (["1", "2", "3", "4", "5", "6", "free"], {"1", "2", "3", "4", "5", "6", "free"}),
    ],
)
def test_columns_of_numbers(tmp_path, cells, names):
    rows = "\n".join(f"thing {i},{cell}" for i, cell in enumerate(cells))
    found, notes = read(shop(tmp_path, f"name,price\n{rows}\n"))
    if names is None:
        assert found.n_attributes == 5
        assert len(set(found.attribute_names)) == 5
    else:
        assert set(found.attribute_names) == names
    assert any("'free'" in note for note in notes) == ("free" in cells)
    assert found.described.tolist() == [bool(cell) for cell in cells]


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ("name,colour\na,red\nb,blue,L\n", ("row 3: 3 cells", "2")),
        ("name,colour\na,red\nb\n", ("row 3: 1 cells", "2")),
        ("name,colour\na,red\na,blue\n", ("row 3", "'a'", "row 2")),
        ("id,colour\n7,red\n8,red\n\n7,blue\n", ("row 5", "id '7'", "row 2")),
        ("name,colour\n,red\n", ("row 2: name", "empty")),
        ("name,colour\na,re\x07d\n", ("row 2: colour", "U+0007")),
        ("name,colour\na,\x00\n", ("items.csv",)),
        ("name,colour,Colour\na,red,blue\n", ("column 3", "twice")),
        ("name,colour,\na,red,\n", ("column 3", "empty")),
        ("name,colour\na,\nb,\n", ("no values",)),
        ("name\na\nb\n", ("no values",)),
        ("name,colour\n", ("1 rows",)),
        ("", ("0 rows",)),
        ('name,colour\na,"red\n', ("items.csv: row 2",)),
        ("name,price\n" + "".join(f"a{i},{i}\n" for i in range(9)) + "b,inf\n", ("row 11: price: 'inf'", "finite")),
        ("name,price\n" + "".join(f"a{i},{i}\n" for i in range(9)) + "b,1e999\n", ("row 11: price: '1e999'", "finite")),
    ],
)
def test_wrong_tables_of_items_are_refused(tmp_path, items, said):
    refused(shop(tmp_path, items), "items.csv", *said)


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        ("user,item\n0,a\n0,z\n", ("row 3", "'z'", "items.csv")),
        ("user,item,split\n0,a,dev\n", ("row 2", "'dev'", "train, valid, test")),
        ("user,item,split\n0,a\n", ("row 2", "2 cells")),
        ("user,thing\n0,a\n", ("user, thing", "user, item and perhaps split")),
        ("user,item,split\n,a,train\n", ("row 2: user", "empty")),
        ("user,item,split\n0,a,train\n0,b,valid\n", ("interactions_test", "is empty")),
        ("user,item,split\n0,a,train\n0,b,valid\n0,a,test\n", ("train and test share 1 pairs",)),
    ],
)
def test_wrong_tables_of_interactions_are_refused(tmp_path, taken, said):
    refused(shop(tmp_path, "name,colour\na,red\nb,blue\n", taken), *said)


def test_another_encoding_is_refused_with_its_row(tmp_path):
    refused(shop(tmp_path, "name,colour\na,red\nb,grün\n", encoding="latin-1"), "items.csv: row 3", "0xfc", "UTF-8")
    refused(shop(tmp_path, "name,colour\na,red\n", encoding="utf-16"), "items.csv: row 1", "UTF-8")


def test_columns_that_say_little_are_noted(tmp_path):
    rows = "\n".join(f"thing {i},red,text {i},," for i in range(20))
    found, notes = read(shop(tmp_path, f"name,colour,story,empty,void\n{rows}\n"))
    assert found.type_names == ("colour", "story")
    assert any("'story': no two items share a value" in note for note in notes)
    assert "column 'empty' is empty and left out" in notes


def test_one_item_and_one_attribute(tmp_path):
    found, _ = read(shop(tmp_path, "name,colour\nchair,red\n"))
    assert found.edges.tolist() == [[0, 0]]
    assert all(len(found.pairs(split)) for split in SPLITS)


@pytest.mark.parametrize("seed", range(4))
def test_a_random_table_comes_back(tmp_path, seed):
    generator = np.random.default_rng(seed)
    words = ["a", "B", "ü", "日", "x y", "1", "-", "#"]
    cells = [[[w for w in words if generator.random() < 0.2] for _ in range(3)] for _ in range(30)]
    cells[0] = [["a", "B"], ["ü"], ["日"]]
    lines = ["name,p,q,r", *(f"n{i}," + ",".join("|".join(cell) for cell in row) for i, row in enumerate(cells))]
    found, _ = read(shop(tmp_path, "\n".join(lines)))
    expected = sorted(
        (i, f"{t}:{w}") for i, row in enumerate(cells) for t, cell in zip("pqr", row, strict=True) for w in cell
    )
    assert labels(found) == expected


# What is refused of any layout


def test_folders_that_are_none_of_these(tmp_path):
    refused(tmp_path, "no layout recognised", "meta.json", "items.csv")
    refused(tmp_path / "none", "no such file")
    refused(tmp_path, "layout: 'zip'", "canonical", layout="zip")
    refused(shop(tmp_path, "name,c\na,b\n"), "meta.json", layout="canonical")
    refused(tmp_path, "bins = 1", bins=1)
    refused(tmp_path, "seed = -1", seed=-1)


@pytest.mark.parametrize("layout", [*FOREIGN, "canonical"])
def test_pickles_are_refused_unopened(tiny, tmp_path, layout):
    path = tmp_path / "there"
    if layout == "canonical":
        save(tiny, path)
    else:
        write(tiny, path, layout)
    (path / "sub").mkdir()
    (path / "sub" / "kg.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    refused(path, "kg.pkl", "JSON", "CSV")
    refused(path / "sub" / "kg.pkl", "kg.pkl", "JSON")

"""Generated catalogues: the laws of their draws."""

from dataclasses import replace

import numpy as np
import pytest

from core.errors import InputError
from simulators.crs import word_lists
from simulators.crs.catalogue import SPLITS
from simulators.crs.generated import PRESETS, Generated, draw_interactions, generate
from simulators.crs.splits import overlaps, split_by_user, split_ends
from simulators.crs.storage import check_names, check_playable


def taken(catalogue):
    """(user, item) of all splits."""
    return np.concatenate([catalogue.interactions[split] for split in SPLITS])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_their_counts(name):
    parameters = PRESETS[name]
    found = generate(parameters, 0)
    assert found.name == name
    assert found.n_items == parameters.n_items
    assert found.n_attributes == parameters.n_types * parameters.n_values
    assert found.n_users == parameters.n_users
    assert len(taken(found)) == parameters.n_users * parameters.per_user
    assert found.described.all()
    assert not overlaps(found.interactions)
    check_playable(found, name)


@pytest.mark.parametrize(
    ("name", "mean"),
    [("small", 6 * 1.3), ("hard", 6 * 1.3), ("lastfm-like", 10 * 1.27), ("lastfm-star-sized", 10 * 1.27)],
)
def test_attributes_of_an_item(name, mean):
    """The mean is that of the number of types times 1 + two_values, within four standard errors."""
    parameters = PRESETS[name]
    counts = np.bincount(generate(parameters, 3).edges[:, 0], minlength=parameters.n_items)
    assert abs(counts.mean() - mean) < 4 * counts.std() / np.sqrt(len(counts))
    assert counts.min() >= parameters.least_types
    assert counts.max() <= 2 * parameters.most_types


def test_sizes_of_the_published_data():
    assert abs(len(generate(PRESETS["lastfm-like"], 0).edges) / 94_446 - 1) < 0.03
    star = generate(PRESETS["lastfm-star-sized"], 0)
    assert (star.n_items, star.n_attributes, star.n_users) == (7_432, 8_438, 1_801)
    assert abs(len(star.edges) / 94_446 - 1) < 0.03
    degree = np.sort(np.bincount(star.edges[:, 1], minlength=star.n_attributes))[::-1]
    assert degree[0] > 100 * np.median(degree)


def test_types_and_values_of_an_item():
    found = generate(replace(PRESETS["small"], two_values=1.0), 1)
    kind = found.attribute_type[found.edges[:, 1]]
    pairs, counts = np.unique(found.edges[:, 0] * found.n_types + kind, return_counts=True)
    assert (counts == 2).all()
    types = np.bincount(pairs // found.n_types)
    assert set(types.tolist()) == {4, 5, 6, 7, 8}
    single = generate(replace(PRESETS["small"], two_values=0.0), 1)
    kind = single.attribute_type[single.edges[:, 1]]
    assert len(np.unique(single.edges[:, 0] * single.n_types + kind)) == len(single.edges)


def test_zipf_values_are_taken_as_one_over_their_rank():
    found = generate(
        Generated(n_items=20_000, n_users=1, n_types=1, n_values=5, least_types=1, two_values=0, values="zipf"), 0
    )
    share = np.sort(np.bincount(found.edges[:, 1], minlength=5))[::-1] / 20_000
    expected = 1 / np.arange(1, 6)
    assert np.abs(share - expected / expected.sum()).max() < 0.015


def test_same_seed_same_catalogue():
    assert generate(PRESETS["tiny"], 5).hash == generate(PRESETS["tiny"], 5).hash
    assert generate(PRESETS["tiny"], 5).hash != generate(PRESETS["tiny"], 6).hash


def test_splits_of_each_user():
    found = generate(PRESETS["small"], 0)
    for split, count in zip(SPLITS, (21, 4, 5), strict=True):
        assert (np.bincount(found.interactions[split][:, 0]) == count).all()


def test_users_take_what_they_like():
    """Items of one user have more values in common than any two items have."""
    found = generate(replace(PRESETS["small"], tau=0.2, item_noise=0.0), 0)
    has = np.zeros((found.n_items, found.n_attributes))
    has[found.edges[:, 0], found.edges[:, 1]] = 1
    common = has @ has.T
    apart = common[~np.eye(len(common), dtype=bool)].mean()
    train, test = found.interactions["train"], found.interactions["test"]
    within = np.mean([common[np.ix_(train[train[:, 0] == u, 1], test[test[:, 0] == u, 1])].mean() for u in range(100)])
    assert within > 1.3 * apart


def test_temperature_makes_choice_random():
    hot = generate(replace(PRESETS["small"], tau=1e9, n_users=4_000), 0)
    counts = np.bincount(taken(hot)[:, 1], minlength=hot.n_items)
    expected = 4_000 * 30 / hot.n_items
    assert abs(counts.std() / np.sqrt(expected * (1 - 30 / hot.n_items)) - 1) < 0.1


def test_drift_changes_what_comes_later_only():
    parameters = replace(PRESETS["small"], tau=0.2)
    still, drifted = generate(parameters, 2), generate(replace(parameters, taste_drift=1.0), 2)
    assert np.array_equal(still.edges, drifted.edges)
    assert np.array_equal(still.interactions["train"], drifted.interactions["train"])
    assert not overlaps(drifted.interactions)

    def kept(other):
        keys = [set(map(tuple, c.interactions["test"].tolist())) for c in (still, other)]
        return len(keys[0] & keys[1]) / len(keys[0])

    slight = generate(replace(parameters, taste_drift=0.3), 2)
    assert kept(drifted) < kept(slight) < 1


def test_names_change_nothing_else():
    worded, plain = generate(PRESETS["tiny"], 0), generate(replace(PRESETS["tiny"], names=False), 0)
    assert plain.item_names[12] == "item 12"
    assert plain.label(5) == "type 1: value 0"
    assert worded.label(0) == "colour: red"
    assert np.array_equal(worded.edges, plain.edges)
    for split in SPLITS:
        assert np.array_equal(worded.interactions[split], plain.interactions[split])


def test_item_names_agree_with_attributes():
    found = generate(PRESETS["small"], 0)
    material = {
        found.attribute_names[a]
        for a in range(found.n_attributes)
        if found.type_names[found.attribute_type[a]] == "material"
    }
    for item, name in enumerate(found.item_names):
        first = name.split()[0]
        if first in material:
            assert first in {found.attribute_names[a] for _, a in found.edges[found.edges[:, 0] == item]}
    assert sum(name.split()[0] in material for name in found.item_names) > 300
    assert len(set(found.item_names)) == found.n_items


def test_words_are_unique_within_a_type_however_many():
    for kind in range(25):
        assert len(set(word_lists.value_names(kind, 40))) == 40
    assert len(set(word_lists.type_names(500))) == 500
    assert {len(words) for words in word_lists.TYPES.values()} == {12}
    check_names(generate(PRESETS["lastfm-like"], 0), "words")


def test_one_item_and_one_attribute():
    found = generate(Generated(n_users=40, n_items=1, n_types=1, n_values=1, per_user=1, least_types=1), 0)
    assert found.edges.tolist() == [[0, 0]]
    check_playable(found, "one")


@pytest.mark.parametrize("per_user", [1, 2, 3, 4, 7, 30, 100])
def test_interactions_of_given_items(per_user):
    edges = generate(PRESETS["tiny"], 0).edges
    parameters = replace(PRESETS["tiny"], per_user=per_user, n_users=200)
    found = draw_interactions(edges, 30, parameters, 4)
    rows = np.concatenate([found[split] for split in SPLITS])
    assert len(np.unique(rows, axis=0)) == len(rows) == 200 * per_user
    assert all(len(found[split]) for split in SPLITS)


@pytest.mark.parametrize("seed", range(5))
def test_split_by_user_divides_what_is_there(seed):
    generator = np.random.default_rng(seed)
    pairs = np.unique(generator.integers(0, 40, (600, 2)), axis=0)
    found = split_by_user(pairs, seed)
    together = np.concatenate([found[split] for split in SPLITS])
    assert np.array_equal(np.unique(together, axis=0), pairs)
    assert len(together) == len(pairs)
    per_user = [np.bincount(found[split][:, 0], minlength=40) for split in SPLITS]
    counts = np.bincount(pairs[:, 0], minlength=40)
    assert np.array_equal(per_user[0], np.where(counts >= 4, 70 * counts // 100, per_user[0]))
    assert all((part[counts >= 4] > 0).all() for part in per_user)
    assert np.array_equal(found["test"], split_by_user(pairs, seed)["test"])


def test_few_interactions_are_split_right_on_average():
    counts = np.ones(20_000, dtype=np.int64)
    train, valid = split_ends(counts, np.random.default_rng(0))
    assert abs(train.mean() - 0.70) < 0.02
    assert abs(valid.mean() - 0.85) < 0.02
    assert (train <= valid).all()
    assert (valid <= counts).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_users": 0}, "n_users"),
        ({"n_items": 10.0}, "n_items"),
        ({"n_items": True}, "n_items"),
        ({"tau": 0.0}, "tau"),
        ({"tau": float("inf")}, "tau"),
        ({"item_noise": -1.0}, "item_noise"),
        ({"item_noise": float("nan")}, "item_noise"),
        ({"two_values": 1.1}, "two_values"),
        ({"taste_drift": -0.1}, "taste_drift"),
        ({"taste_drift": "much"}, "taste_drift"),
        ({"n_items": 20}, "per_user"),
        ({"least_types": 9}, "least_types"),
        ({"n_types": 3}, "least_types"),
        ({"values": "normal"}, "dirichlet, zipf"),
        ({"types": "normal"}, "uniform, zipf"),
        ({"question": "open"}, "binary"),
    ],
)
def test_impossible_parameters_are_refused(wrong, said):
    with pytest.raises(InputError, match=said) as refusal:
        Generated(**wrong)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("seed", [-1, 0.5])
def test_impossible_seeds_are_refused(seed):
    with pytest.raises(InputError, match="seed"):
        generate(PRESETS["tiny"], seed)

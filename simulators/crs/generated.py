"""Generated catalogues: items that draw values from types, and users with a taste for the values.

Latents of dimension d: a value is ``a ~ N(0, I / d)``, an item is half the sum of its values and noise, a user is
``u ~ N(0, I)``. A user takes the items with the highest ``u.v / tau`` + Gumbel noise, that is, a sample without
replacement from the softmax of ``u.v / tau``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from core.errors import InputError
from simulators.crs import word_lists
from simulators.crs.catalogue import SPLITS, Catalogue, Ids, Split
from simulators.crs.rules import Question
from simulators.crs.splits import split_ends

Types = Literal["uniform", "zipf"]
Values = Literal["dirichlet", "zipf"]
Numbers = NDArray[np.floating[Any]]

_BLOCK = 4_000_000
"""Numbers that are drawn at a time, which bounds the memory."""


@dataclass(frozen=True)
class Generated:
    """What a generated catalogue is like.

    Attributes:
        n_users: U.
        n_items: V.
        n_types: G.
        n_values: of each type, so that P = G times this; some attributes may be those of no item.
        dim: d of the latents.
        per_user: interactions of a user, 70 % for training, 15 for validation, the rest for tests.
        tau: temperature of the taste.
        least_types: fewest types of which an item has values; their number is uniform up to ``most_types``.
        most_types: most; at most G whatever this says.
        two_values: probability that an item has two values of a type that it has, and not one.
        item_noise: standard deviation of each number of an item's latent that its values do not explain.
        taste_drift: delta in [0, 1]; behind validation and tests stands sqrt(1 - delta^2) u + delta u', u' fresh.
        types: how likely each type is, equally (``uniform``) or as 1 / rank (``zipf``).
        values: how likely each value of a type is, from Dirichlet(1, ..., 1) or as 1 / rank (``zipf``).
        names: words that read well, or numbers.
        question: see ``Catalogue``.

    Raises:
        InputError: a value out of range, or values that do not fit each other.
    """

    n_users: int = 500
    n_items: int = 1_000
    n_types: int = 12
    n_values: int = 8
    dim: int = 16
    per_user: int = 30
    tau: float = 1.0
    least_types: int = 4
    most_types: int = 8
    two_values: float = 0.3
    item_noise: float = 0.3
    taste_drift: float = 0.0
    types: Types = "uniform"
    values: Values = "dirichlet"
    names: bool = True
    question: Question = "binary"

    def __post_init__(self) -> None:
        for name in ("n_users", "n_items", "n_types", "n_values", "dim", "per_user", "least_types", "most_types"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"generated.{name} = {value!r}: must be a whole number of at least 1")
        for name, high in (("tau", math.inf), ("item_noise", math.inf), ("two_values", 1.0), ("taste_drift", 1.0)):
            value = getattr(self, name)
            number = type(value) in (int, float) and math.isfinite(value)
            if not number or not 0 <= value <= high or (name == "tau" and value == 0):
                allowed = "between 0 and 1" if high == 1 else "finite and at least 0"
                raise InputError(f"generated.{name} = {value!r}: must be {'above 0' if name == 'tau' else allowed}")
        if self.per_user > self.n_items:
            raise InputError(f"generated.per_user = {self.per_user}: must be at most n_items = {self.n_items}")
        if self.least_types > min(self.most_types, self.n_types):
            raise InputError(
                f"generated.least_types = {self.least_types}: must be at most most_types = {self.most_types} and "
                f"n_types = {self.n_types}"
            )
        for name, kind in (("types", Types), ("values", Values), ("question", Question)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(
                    f"generated.{name} = {getattr(self, name)!r}: must be one of {', '.join(get_args(kind))}"
                )


PRESETS: dict[str, Generated] = {
    "tiny": Generated(n_users=50, n_items=100, n_types=6, n_values=5),
    "small": Generated(),
    "hard": Generated(n_items=5_000, n_types=20, n_values=12),
    "lastfm-like": Generated(
        n_users=1_800,
        n_items=7_400,
        n_types=400,
        n_values=20,
        per_user=43,
        most_types=16,
        two_values=0.27,
        values="zipf",
    ),
    "lastfm-star-sized": Generated(
        n_users=1_801,
        n_items=7_432,
        n_types=4_219,
        n_values=2,
        per_user=43,
        most_types=16,
        two_values=0.27,
        types="zipf",
        values="zipf",
        names=False,
    ),
}
"""Parameters by name.

- ``tiny``: for unit tests; 50 users, 100 items, 6 types of 5 values.
- ``small``: the default; 500 users, 1,000 items, 12 types of 8 values, 7.8 attributes an item.
- ``hard``: 5,000 items, 20 types of 12 values.
- ``lastfm-like``: 1,800 users, 7,400 items, 400 types of 20 values with Zipf popularity, 12.7 attributes an item.
- ``lastfm-star-sized``: the counts of LastFM* for measurements of speed: 1,801 users, 7,432 items, 8,438 attributes (as
  4,219 pairs; types of Zipf popularity make a few attributes common and most of them rare, as tags are) and about
  94,400 pairs of item and attribute; asked in binary questions.
"""


def generate(parameters: Generated, seed: int) -> Catalogue:
    """A catalogue; the same parameters and seed give the same one.

    ``taste_drift`` and ``names`` change what they say and leave the other draws as they are.

    Raises:
        InputError: a seed below 0.
    """
    if type(seed) is not int or seed < 0:
        raise InputError(f"seed = {seed!r}: must be a whole number of at least 0")
    items, users, words = (np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(3))
    edges = _edges(parameters, items)
    interactions = _interactions(edges, parameters.n_types * parameters.n_values, parameters, users)
    item_names, attribute_names, type_names = _names(parameters, edges, words)
    known = [name for name, preset in PRESETS.items() if preset == parameters]
    return Catalogue(
        name=known[0] if known else "generated",
        item_names=item_names,
        attribute_names=attribute_names,
        type_names=type_names,
        attribute_type=np.repeat(np.arange(parameters.n_types), parameters.n_values),
        edges=edges,
        n_users=parameters.n_users,
        interactions=interactions,
        question=parameters.question,
        licence="CC0-1.0 (generated)",
        source=f"generated, seed {seed}",
    )


def draw_interactions(edges: Ids, n_attributes: int, parameters: Generated, seed: int) -> dict[Split, Ids]:
    """Users with a taste, and what they take of given items.

    Args:
        edges: ``(E, 2)`` (item, attribute) of ``parameters.n_items`` items.
        n_attributes: P.
        parameters: of which those of users, items' number and latents are used.
        seed: of all draws.
    """
    return _interactions(edges, n_attributes, parameters, np.random.default_rng(seed))


def _edges(parameters: Generated, generator: np.random.Generator) -> Ids:
    """``(E, 2)``: types without replacement by their popularity, and in each one value or two, likewise."""
    most = min(parameters.most_types, parameters.n_types)
    kinds, values = parameters.n_types, parameters.n_values
    likely = _zipf(1, kinds, generator)[0] if parameters.types == "zipf" else np.full(kinds, 1 / kinds)
    if parameters.values == "zipf":
        popular = _zipf(kinds, values, generator)
    else:
        popular = generator.dirichlet(np.ones(values), size=kinds)
    count = generator.integers(parameters.least_types, most, size=parameters.n_items, endpoint=True)
    drawn = []
    for block in _blocks(parameters.n_items, kinds):
        draws = generator.standard_exponential((len(block), kinds), dtype=np.float32)
        drawn.append(_smallest(draws / likely.astype(np.float32), most))
    item, place = np.nonzero(np.arange(most) < count[:, None])
    kind = np.concatenate(drawn)[item, place]
    found = []
    for block in _blocks(len(kind), values):
        keys = generator.standard_exponential((len(block), values)) / np.maximum(popular[kind[block]], 1e-300)
        found.append(_smallest(keys, min(2, values)))
    value = np.concatenate(found)
    taken = np.ones(value.shape, dtype=bool)
    taken[:, 1:] = generator.random((len(value), 1)) < parameters.two_values
    slot, which = np.nonzero(taken)
    return np.stack([item[slot], kind[slot] * values + value[slot, which]], axis=1)


def _interactions(
    edges: Ids, n_attributes: int, parameters: Generated, generator: np.random.Generator
) -> dict[Split, Ids]:
    dim, take, drift = parameters.dim, parameters.per_user, parameters.taste_drift
    tastes = generator.standard_normal((n_attributes, dim)) / math.sqrt(dim)
    shape = (parameters.n_items, n_attributes)
    has = scipy.sparse.csr_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=shape)
    items = has @ tastes / 2 + parameters.item_noise * generator.standard_normal((parameters.n_items, dim))
    users, fresh = generator.standard_normal((2, parameters.n_users, dim))
    later = math.sqrt(1 - drift**2) * users + drift * fresh
    train_end, valid_end = split_ends(np.full(parameters.n_users, take), generator)
    parts: dict[Split, list[Ids]] = {split: [] for split in SPLITS}
    for block in _blocks(parameters.n_users, parameters.n_items):
        # Both tastes see the same Gumbel noise: without drift the later choice is the rest of the earlier one.
        noise = np.log(generator.standard_exponential((len(block), parameters.n_items)))
        place, end = np.arange(take), train_end[block][:, None]
        first = _shuffled(_smallest(noise - users[block] @ items.T / parameters.tau, take), take, generator)
        later_cost = noise - later[block] @ items.T / parameters.tau
        row, column = np.nonzero(place < end)
        later_cost[row, first[row, column]] = math.inf
        rest = _shuffled(_smallest(later_cost, take), take - end, generator)
        test = valid_end[block][:, None] - end
        cells: dict[Split, tuple[Ids, NDArray[np.bool_]]] = {
            "train": (first, place < end),
            "valid": (rest, place < test),
            "test": (rest, (place >= test) & (place < take - end)),
        }
        for split, (chosen, taken) in cells.items():
            row, column = np.nonzero(taken)
            parts[split].append(np.stack([block[row], chosen[row, column]], axis=1))
    return {split: np.concatenate(found) for split, found in parts.items()}


def _names(
    parameters: Generated, edges: Ids, generator: np.random.Generator
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Of items, attributes and types."""
    kinds, values = range(parameters.n_types), parameters.n_values
    if not parameters.names:
        items = tuple(f"item {item}" for item in range(parameters.n_items))
        return items, tuple(f"value {v}" for _ in kinds for v in range(values)), tuple(f"type {g}" for g in kinds)
    types = word_lists.type_names(parameters.n_types)
    attributes = tuple(name for kind in kinds for name in word_lists.value_names(kind, values))
    adjective = [""] * parameters.n_items
    # Written from the least to the most wanted, so that the first value of the first type stays.
    for kind in (types.index(name) for name in reversed(word_lists.ADJECTIVES) if name in types):
        for item, attribute in edges[edges[:, 1] // values == kind][::-1]:
            adjective[item] = f"{attributes[attribute]} "
    nouns = generator.integers(len(word_lists.KINDS), size=parameters.n_items)
    items = tuple(f"{adjective[item]}{word_lists.KINDS[noun]} {item}" for item, noun in enumerate(nouns))
    return items, attributes, types


def _zipf(rows: int, count: int, generator: np.random.Generator) -> Numbers:
    """``(rows, count)`` probabilities in proportion to 1 / rank, each row in an order of its own."""
    weight = 1 / np.arange(1, count + 1)
    return generator.permuted(np.tile(weight / weight.sum(), (rows, 1)), axis=1)


def _blocks(rows: int, columns: int) -> Iterator[Ids]:
    """The indices of rows, in pieces that bound the numbers drawn at a time."""
    size = max(1, _BLOCK // columns)
    for start in range(0, rows, size):
        yield np.arange(start, min(start + size, rows))


def _smallest(keys: Numbers, count: int) -> Ids:
    """``(rows, count)`` the columns of the smallest keys of each row, ascending.

    Exponential draws divided by weights make it a sample without replacement by the weights.
    """
    if count < keys.shape[1]:
        found = np.argpartition(keys, count - 1, axis=1)[:, :count]
    else:
        found = np.broadcast_to(np.arange(count), keys.shape)
    order = np.take_along_axis(keys, found, axis=1).argsort(axis=1)
    return np.take_along_axis(found, order, axis=1)


def _shuffled(rows: Ids, count: Ids | int, generator: np.random.Generator) -> Ids:
    """The first ``count`` entries of each row in random order; those after them follow."""
    key = generator.random(rows.shape) + (np.arange(rows.shape[1]) >= count)
    return np.take_along_axis(rows, key.argsort(axis=1), axis=1)

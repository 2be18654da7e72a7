"""Entry point of the gymnasium registry: ``gymnasium.make("CRS-v0", preset="small", seed=3)``.

An environment needs embeddings. Where none are given they come from the catalogue alone: the table of users and
attributes by items, 1 for a training interaction and for an attribute that an item has, each entry over the square root
of its row's and its column's sum, is factorised by a truncated singular value decomposition. Then e_u.e_v tells how
well an item suits a user and e_p.e_v how well it goes with an attribute; all embeddings have norm 1, as those of
TransE have.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from numpy.typing import NDArray

from core.errors import InputError
from core.simulation import GymEnv
from simulators.crs.belief import Belief
from simulators.crs.catalogue import Catalogue
from simulators.crs.choice import CandidateChoice
from simulators.crs.conversation import Conversation
from simulators.crs.embeddings import Embeddings
from simulators.crs.features import CompactFeatures
from simulators.crs.generated import PRESETS, generate
from simulators.crs.rules import Rules

DIM = 16
"""Of the factorisation."""


def make(
    *,
    preset: str = "small",
    seed: int = 0,
    catalogue: Catalogue | None = None,
    embeddings: Embeddings | None = None,
    questions: int = 10,
    items: int = 0,
    belief: Belief | None = None,
    scaled: bool = False,
    **rules: Any,
) -> GymEnv:
    """One dialogue at a time: pick a question or recommend, until the user accepts an item or leaves.

    Args:
        preset: name of a generated catalogue.
        seed: of its generation.
        catalogue: instead of a generated one.
        embeddings: of the catalogue; see the module for what stands in for them.
        questions: K_p, questions to choose from.
        items: K_v, items to choose from; 0 for one action that recommends the best list.
        belief: adds its features; see ``CompactFeatures``.
        scaled: observations divided by their bounds; as they are, they are about 1 in size.
        **rules: fields of ``Rules``; the kind of question is the catalogue's by default.

    Raises:
        InputError: an unknown preset, or what ``Rules``, ``Conversation`` and ``CandidateChoice`` refuse.
    """
    if catalogue is None:
        if preset not in PRESETS:
            raise InputError(f"preset = {preset!r}: must be one of {', '.join(PRESETS)}")
        catalogue = generate(PRESETS[preset], seed)
    embeddings = factorised(catalogue) if embeddings is None else embeddings
    world = Conversation(catalogue, embeddings, Rules(**{"question": catalogue.question, **rules}))
    features = CompactFeatures(belief)
    return GymEnv(CandidateChoice(world, features, questions=questions, items=items), scaled=scaled)


def factorised(catalogue: Catalogue, dim: int = DIM) -> Embeddings:
    """Embeddings of a catalogue by the factorisation of the module, of a smaller dimension if it has a smaller rank."""
    edges, taken = catalogue.edges, catalogue.interactions.get("train", np.empty((0, 2), dtype=np.int64))
    row = np.concatenate([taken[:, 0], catalogue.n_users + edges[:, 1]])
    column = np.concatenate([taken[:, 1], edges[:, 0]])
    shape = (catalogue.n_users + catalogue.n_attributes, catalogue.n_items)
    ones = np.ones(len(row))
    of_row, of_column = np.bincount(row, minlength=shape[0]), np.bincount(column, minlength=shape[1])
    entries = ones / np.sqrt(of_row[row] * of_column[column])
    table = scipy.sparse.csr_array((entries, (row, column)), shape=shape)
    rank = min(dim, *shape)
    if rank < min(shape):
        left, values, right = scipy.sparse.linalg.svds(table, k=rank, v0=np.ones(min(shape)))
    else:
        left, values, right = np.linalg.svd(table.toarray(), full_matrices=False)
        left, values, right = left[:, :rank], values[:rank], right[:rank]
    root = np.sqrt(np.maximum(values, 0.0))
    rows, columns = left * root, right.T * root
    parts = (rows[: catalogue.n_users], columns, rows[catalogue.n_users :])
    return Embeddings(*(torch.as_tensor(_unit(part), dtype=torch.float32) for part in parts))


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of norm 1; one of zeros stays."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 1e-12)

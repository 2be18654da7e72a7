"""Embeddings: the losses by hand, what is corrupted, what the fit may not see, and resuming."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from apps.crs.embedding import EmbeddingSettings, fit_embeddings
from apps.crs.factorisation import Factorisation, ranking_loss
from apps.crs.row_adam import RowAdam
from apps.crs.transe import translation_loss
from apps.crs.triples import BELONGS, FRIEND, INTERACTS, LIKES, Triples
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.rl import TrainingDiverged
from simulators.crs.catalogue import Catalogue
from simulators.crs.embeddings import Embeddings

USERS, ITEMS, ATTRIBUTES, GROUPS = 40, 60, 12, 4
QUICK = EmbeddingSettings(dim=16, epochs=10, batch=128)
METHODS = ["transe", "mf"]


def shop() -> Catalogue:
    """4 groups of items with 3 attributes of their own, each user takes items of one group alone."""
    item, attribute, user = np.arange(ITEMS), np.arange(ATTRIBUTES), np.arange(USERS)
    rng = np.random.default_rng(0)
    edges = np.argwhere((item[:, None] % GROUPS == attribute % GROUPS) & (rng.random((ITEMS, ATTRIBUTES)) < 0.8))
    taken = rng.permutation(np.argwhere(user[:, None] % GROUPS == item % GROUPS))
    return Catalogue(
        name="shop",
        item_names=tuple(f"item {i}" for i in item),
        attribute_names=tuple(f"attribute {i}" for i in attribute),
        type_names=("type",),
        attribute_type=np.zeros(ATTRIBUTES, dtype=np.int64),
        edges=edges,
        n_users=USERS,
        interactions={"train": taken[:400], "valid": taken[400:500], "test": taken[500:]},
        friends=np.stack([user, (user + GROUPS) % USERS], axis=1),
        likes=np.stack([user, user % GROUPS], axis=1),
    )


SHOP = shop()


def fit(catalogue=SHOP, settings=QUICK, seed=0, **further):
    return fit_embeddings(catalogue, settings, seed, device="cpu", **further)


def without_friends() -> Catalogue:
    return replace(SHOP, friends=SHOP.friends[:0])


def equal(a: Embeddings, b: Embeddings) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("user", "item", "attribute"))


def test_translation_loss_by_hand():
    head, relation, tail = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, -1.0]])
    other = torch.tensor([[3.0, 4.0]])
    # |h + r - t| = |(1, 2)|; another head: |(3, 6)|; another tail: |(-2, -3)|
    at_head = translation_loss(head, relation, tail, other, torch.tensor([True]), margin=5)
    at_tail = translation_loss(head, relation, tail, other, torch.tensor([False]), margin=5)
    assert at_head.item() == pytest.approx(5 + 5**0.5 - 45**0.5)
    assert at_tail.item() == pytest.approx(5 + 5**0.5 - 13**0.5)
    assert translation_loss(head, relation, tail, other, torch.tensor([True]), margin=1).item() == 0


def test_ranking_loss_by_hand():
    anchor, positive, negative = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 1.0]]), torch.tensor([[1.0, 0.0]])
    assert ranking_loss(anchor, positive, negative).item() == pytest.approx(np.log(1 + np.exp(-1.5)))


@pytest.mark.parametrize("replaces_head", [None, [False, True, False, False]])
def test_what_replaces_a_head_or_tail_is_of_its_type(replaces_head):
    triples = Triples(SHOP, friends=True, likes=True)
    generator = torch.Generator().manual_seed(1)
    ends = None if replaces_head is None else torch.tensor(replaces_head)
    drawn = triples.epoch(generator, ends)
    known = set(zip(triples.head.tolist(), triples.relation.tolist(), triples.tail.tolist(), strict=True))
    assert set(zip(drawn.head.tolist(), drawn.relation.tolist(), drawn.tail.tolist(), strict=True)) == known
    starts = torch.tensor([0, USERS, USERS + ITEMS])

    def kind(entity):
        return torch.searchsorted(starts, entity, right=True) - 1

    replaced = torch.where(drawn.replaces_head, drawn.head, drawn.tail)
    assert torch.equal(kind(drawn.other), kind(replaced))
    kept = (drawn.other == replaced).double().mean()
    assert kept < 0.1
    wanted = {INTERACTS: (0, 1), BELONGS: (1, 2), FRIEND: (0, 0), LIKES: (0, 2)}
    for relation, kinds in wanted.items():
        own = drawn.relation == relation
        assert set(kind(drawn.head[own]).tolist()) == {kinds[0]}
        assert set(kind(drawn.tail[own]).tolist()) == {kinds[1]}
        if ends is None:
            # a fair coin: 5 standard deviations
            assert abs(drawn.replaces_head[own].double().mean() - 0.5) < 5 * 0.5 / own.sum().sqrt()
        else:
            assert bool((drawn.replaces_head[own] == ends[relation]).all())


def test_every_entity_of_a_type_is_drawn():
    triples = Triples(SHOP)
    generator = torch.Generator().manual_seed(2)
    drawn = torch.cat([triples.epoch(generator).other for _ in range(20)])
    assert drawn.unique().tolist() == list(range(USERS + ITEMS + ATTRIBUTES))


def test_a_corrupted_triple_that_is_true_is_recognised():
    triples = Triples(SHOP, friends=True, likes=True)
    known = set(zip(triples.head.tolist(), triples.relation.tolist(), triples.tail.tolist(), strict=True))
    drawn = triples.epoch(torch.Generator().manual_seed(3))
    head = torch.where(drawn.replaces_head, drawn.other, drawn.head).tolist()
    tail = torch.where(drawn.replaces_head, drawn.tail, drawn.other).tolist()
    wanted = [triple in known for triple in zip(head, drawn.relation.tolist(), tail, strict=True)]
    assert triples.holds(drawn).tolist() == wanted
    assert 0 < sum(wanted) < len(wanted)
    model = Factorisation(triples, 0.0)
    drawn = model.epoch(torch.Generator().manual_seed(3))
    assert not bool(triples.holds(drawn).any())
    assert set(drawn.relation.tolist()) == {INTERACTS, BELONGS, FRIEND, LIKES}


def test_row_adam_takes_the_steps_of_sparse_adam():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(30, 4, generator=generator)
    wanted = table.clone().requires_grad_()
    ours, theirs = RowAdam(table, 0.05), torch.optim.SparseAdam([wanted], lr=0.05)
    target = torch.randn(8, 4, generator=generator)

    def loss(points):
        return (points - target).square().sum()

    for _ in range(20):
        ids = torch.randint(25, (8,), generator=generator)
        theirs.zero_grad()
        loss(torch.nn.functional.embedding(ids, wanted, sparse=True)).backward()
        theirs.step()
        ours.step(ids, loss)
    assert torch.allclose(table, wanted, atol=1e-5)


@pytest.mark.parametrize("method", [*METHODS, "random"])
def test_shapes_norms_and_seeds(method):
    settings = QUICK.model_copy(update={"method": method})
    found = fit(settings=settings)
    found.check(SHOP)
    assert found.dim == 16
    if method != "mf":
        for points in (found.user, found.item, found.attribute):
            assert torch.allclose(points.norm(dim=1), torch.ones(len(points)), atol=1e-6)
    assert equal(found, fit(settings=settings))
    assert not equal(found, fit(settings=settings, seed=1))


@pytest.mark.parametrize("method", METHODS)
def test_held_out_items_rank_above_the_others(method):
    settings = QUICK.model_copy(update={"method": method, "epochs": 60})

    def share(found):
        """How often a test item scores above an item of another group, by user and by attribute."""
        score = found.user @ found.item.T
        user, item = torch.as_tensor(SHOP.pairs("test")).unbind(1)
        above = score[user, item][:, None] > score[user]
        strange = user[:, None] % GROUPS != torch.arange(ITEMS) % GROUPS
        by_attribute = found.attribute @ found.item.T
        has = torch.arange(ATTRIBUTES)[:, None] % GROUPS == torch.arange(ITEMS) % GROUPS
        closer = by_attribute[has].mean() - by_attribute[~has].mean()
        return above[strange].double().mean().item(), closer.item()

    fitted, random = (
        share(fit(settings=settings)),
        share(fit(settings=settings.model_copy(update={"method": "random"}))),
    )
    assert fitted[0] > 0.9
    assert fitted[1] > 0.2
    assert abs(random[0] - 0.5) < 0.1
    assert abs(random[1]) < 0.1


def test_the_loss_falls():
    said = []
    fit(settings=QUICK.model_copy(update={"epochs": 40}), progress=lambda share, message: said.append((share, message)))
    shares, losses = [share for share, _ in said], [float(message.split()[-1]) for _, message in said]
    assert shares == pytest.approx([(i + 1) / 40 for i in range(40)])
    assert 0.9 < losses[0] < 1.1  # random points: the margin
    assert losses[-1] < 0.6


@pytest.mark.parametrize("method", METHODS)
def test_valid_and_test_pairs_are_not_seen(method):
    settings = QUICK.model_copy(update={"method": method})
    test = SHOP.interactions["test"]
    moved = test.copy()
    moved[:, 1] = (test[:, 1] + 1) % ITEMS
    for held_out in (test[::-1], moved, test[:1]):
        other = replace(SHOP, interactions={**SHOP.interactions, "test": held_out, "valid": held_out})
        assert equal(fit(settings=settings), fit(other, settings))
    train = SHOP.interactions["train"]
    assert not equal(fit(settings=settings), fit(replace(SHOP, interactions={"train": train[:-1]}), settings))


def test_friends_and_likes_count_only_when_asked_for():
    bare = replace(SHOP, friends=SHOP.friends[:0], likes=SHOP.likes[:0])
    assert equal(fit(), fit(bare))
    for table in ("use_friends", "use_likes"):
        assert not equal(fit(), fit(settings=QUICK.model_copy(update={table: True})))


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_that_was_stopped_equals_one_that_was_not(tmp_path, monkeypatch, method):
    settings = QUICK.model_copy(update={"method": method})
    path = tmp_path / "state.safetensors"
    monkeypatch.setattr(Checkpoint, "due", True)

    def stop(share, message):
        if share > 0.55:
            raise Killed

    with pytest.raises(Killed):
        fit(settings=settings, checkpoint=path, progress=stop)
    said = []
    resumed = fit(settings=settings, checkpoint=path, progress=lambda share, message: said.append(share))
    assert len(said) == 4
    assert equal(resumed, fit(settings=settings))
    for wrong in ({"seed": 1}, {"settings": settings.model_copy(update={"dim": 8})}, {"catalogue": without_friends()}):
        with pytest.raises(InputError, match=r"state\.safetensors: is the state of another fit; allowed: "):
            fit(**{"settings": settings, "checkpoint": path, **wrong})


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_that_diverges_is_refused(method):
    with pytest.raises(TrainingDiverged, match="not finite"):
        fit(settings=QUICK.model_copy(update={"method": method, "learning_rate": 1e30}))


def test_empty_tables_are_refused():
    with pytest.raises(InputError, match="shop: interactions_train: is empty; needs at least one pair"):
        fit(replace(SHOP, interactions={"test": SHOP.interactions["test"]}))
    with pytest.raises(InputError, match="shop: friends: is empty"):
        fit(without_friends(), QUICK.model_copy(update={"use_friends": True}))
    with pytest.raises(InputError, match="shop: user_likes: is empty"):
        fit(replace(SHOP, likes=SHOP.likes[:0]), QUICK.model_copy(update={"use_likes": True}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "svd"},
        {"dim": 0},
        {"epochs": 0},
        {"margin": 0.0},
        {"penalty": -0.1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"batch": 0},
        {"friends": True},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        EmbeddingSettings(**wrong)

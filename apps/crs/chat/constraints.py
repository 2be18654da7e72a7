"""What a person wants, as the conditions that the candidates meet; it can be volunteered and taken back at any time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simulators.crs.conversation import Conversation
from simulators.crs.dialogue import NONE, Dialogue


@dataclass(frozen=True)
class Constraint:
    """Attributes that were accepted at once.

    Attributes:
        attributes: ids.
        any_of: whether one of them is enough; else an item must have all.
    """

    attributes: tuple[int, ...]
    any_of: bool = False


def constrained(
    world: Conversation, state: Dialogue, constraints: Sequence[Constraint], rejected: Sequence[int]
) -> Dialogue:
    """One dialogue ``(1, ...)`` with these constraints and rejected attributes in place of its own.

    What was asked about stays asked, what was recommended stays recommended, and no turn passes. Candidates are all
    other items that meet the constraints; rejected attributes only lower scores (``Conversation.scores``).
    """
    told = list(dict.fromkeys(p for constraint in constraints for p in constraint.attributes))
    accepted = _marks(state.accepted, told)
    refused = _marks(state.accepted, [p for p in rejected if p not in told])
    candidate = ~state.recommended
    for constraint in constraints:
        candidate = candidate & meeting(world, constraint)
    order = torch.full_like(state.order, NONE)
    kept = told[: order.shape[1]]
    order[0, : len(kept)] = order.new_tensor(kept)
    after = replace(
        state,
        asked=state.asked | accepted | refused,
        accepted=accepted,
        rejected=refused,
        order=order,
        candidate=candidate,
    )
    return replace(after, score=world.scores(after))


def meeting(world: Conversation, constraint: Constraint) -> Tensor:
    """``(1, V)`` bool, which items meet it."""
    ids = torch.tensor(constraint.attributes, dtype=torch.int64, device=world.device)
    _, item = world.relation.items_of(ids)
    hits = torch.bincount(item, minlength=world.catalogue.n_items)
    return (hits >= (1 if constraint.any_of else len(ids))).unsqueeze(0)


def _marks(like: Tensor, ids: Sequence[int]) -> Tensor:
    marked = torch.zeros_like(like)
    marked[0, list(ids)] = True
    return marked

"""What is said in a turn, as plain data: for a terminal, a page and a transcript alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from apps.crs.chat.constraints import Constraint
from simulators.crs import selection
from simulators.crs.conversation import Conversation
from simulators.crs.dialogue import Dialogue
from simulators.crs.features import SHARPNESS
from simulators.crs.storage import UNTYPED

Kind = Literal["ask", "list", "relax", "accepted", "not_found"]
BELIEVED = 5
"""Items of which ``Why`` tells the belief."""


@dataclass(frozen=True)
class Option:
    """An attribute."""

    id: int
    type: str
    value: str

    @property
    def text(self) -> str:
        """As people read it."""
        return self.value if self.type == UNTYPED else f"{self.type}: {self.value}"


@dataclass(frozen=True)
class Item:
    """A recommended item.

    Attributes:
        id: of the item.
        name: of the item.
        matched: its attributes that were accepted.
        against: its attributes that were rejected.
        others: the rest of its attributes.
        lacking: what was accepted and it has not, for which it is no candidate; a policy that thinks an answer may be
            wrong fills its list with such items.
    """

    id: int
    name: str
    matched: tuple[Option, ...]
    against: tuple[Option, ...]
    others: tuple[Option, ...]
    lacking: tuple[Option, ...] = ()


@dataclass(frozen=True)
class Turn:
    """What the system says.

    Attributes:
        kind: a question, a list, the offer to drop the last constraint, or one of the two ends.
        number: system actions with this one; at an end, those there were.
        limit: most system actions.
        text: of the question.
        several: whether the question is answered by a choice among the options, else by yes or no.
        options: attributes that are asked about.
        items: of the list; at the end the accepted one.
        candidates: items that are still possible.
    """

    kind: Kind
    number: int
    limit: int
    text: str
    several: bool = False
    options: tuple[Option, ...] = ()
    items: tuple[Item, ...] = ()
    candidates: int = 0

    @property
    def over(self) -> bool:
        """Whether the dialogue has ended."""
        return self.kind in ("accepted", "not_found")

    def json(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What an answer would do.

    Attributes:
        answer: the answer.
        left: candidates after it.
        ruled_out: candidates that it would rule out.
        lowered: candidates that it would only rank lower.
    """

    answer: str
    left: int
    ruled_out: int
    lowered: int = 0


@dataclass(frozen=True)
class Why:
    """Why the system asks or recommends this.

    Attributes:
        entropy: of the answer in bits, summed over the attributes of the question, under the candidates' weights; None
            for a list.
        belief: name and probability of the items that are thought the likeliest.
        believed_by: ``posterior``, or ``scores`` where the policy has no belief: softmax(4 score) of the candidates.
        of_list: probability that the list holds the item; None for a question.
        outcomes: of each answer.
    """

    entropy: float | None
    belief: tuple[tuple[str, float], ...]
    believed_by: Literal["posterior", "scores"]
    of_list: float | None
    outcomes: tuple[Outcome, ...]

    def json(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        found = []
        if self.entropy is not None:
            found.append(f"The answer is worth {self.entropy:.2f} bits.")
        if self.of_list is not None:
            found.append(f"The list holds your item with probability {self.of_list:.2f}.")
        source = "the policy's belief" if self.believed_by == "posterior" else "the scores"
        likeliest = ", ".join(f"{name} ({share:.2f})" for name, share in self.belief)
        found.append(f"Likeliest by {source}: {likeliest}.")
        for outcome in self.outcomes:
            lowered = f", ranks {outcome.lowered} lower" if outcome.lowered else ""
            found.append(f"{outcome.answer}: leaves {outcome.left}, rules out {outcome.ruled_out}{lowered}.")
        return found


def option(world: Conversation, attribute: int) -> Option:
    """An attribute by its id."""
    catalogue = world.catalogue
    kind = int(catalogue.attribute_type[attribute])
    return Option(attribute, catalogue.type_names[kind], catalogue.attribute_names[attribute])


def item(world: Conversation, state: Dialogue, which: int) -> Item:
    """An item by its id, with what one dialogue ``(1, ...)`` says about its attributes."""
    start = world.relation.item_start
    held = world.relation.item_attributes[start[which] : start[which + 1]].tolist()
    accepted, rejected = state.accepted[0].tolist(), state.rejected[0].tolist()

    def told(chosen: list[int]) -> tuple[Option, ...]:
        return tuple(option(world, p) for p in chosen)

    return Item(
        which,
        world.catalogue.item_names[which],
        told([p for p in held if accepted[p]]),
        told([p for p in held if rejected[p]]),
        told([p for p in held if not accepted[p] and not rejected[p]]),
        told([p for p, wanted in enumerate(accepted) if wanted and p not in held and not state.candidate[0, which]]),
    )


def spoken(world: Conversation, state: Dialogue, action: Tensor) -> Turn:
    """The action ``(1, A)`` of the system in words."""
    number, limit = int(state.turn) + 1, world.rules.actions
    left = int(state.candidate.sum())
    if int(action[0, 0]) < 0:
        shown = tuple(item(world, state, v) for v in action[0, 1:].tolist() if v >= 0)
        text = "How about this?" if len(shown) == 1 else "How about one of these?"
        return Turn("list", number, limit, text, items=shown, candidates=left)
    leaf = world.leaves_of(action)[0]
    fresh = leaf[(leaf >= 0) & ~state.asked[0, leaf.clamp(min=0)]].tolist()
    options = tuple(option(world, p) for p in fresh)
    several = world.rules.question != "binary"
    return Turn("ask", number, limit, _question(world, options), several, options, candidates=left)


def _question(world: Conversation, options: tuple[Option, ...]) -> str:
    kind = options[0].type
    if world.rules.question == "enumerated":
        return f"Which {kind} must it have? It will have all that you choose."
    if world.rules.question == "multi_choice":
        return f"Which {kind} would do? It will have at least one that you choose."
    return f"Do you want {options[0].text}?"


def relaxation(world: Conversation, state: Dialogue, constraints: Sequence[Constraint]) -> Turn:
    """The offer to drop the last constraint."""
    last = tuple(option(world, p) for p in constraints[-1].attributes)
    dropped = (" or " if constraints[-1].any_of else " and ").join(o.text for o in last)
    text = f"Nothing that is left has all you asked for. Shall I drop {dropped}?"
    return Turn("relax", int(state.turn) + 1, world.rules.actions, text, options=last)


def ended(world: Conversation, state: Dialogue, accepted: int | None) -> Turn:
    """The end, with the accepted item or without."""
    number, limit, left = int(state.turn), world.rules.actions, int(state.candidate.sum())
    if accepted is not None:
        found = item(world, state, accepted)
        return Turn("accepted", number, limit, f"Found: {found.name}.", items=(found,), candidates=left)
    reason = f"Not found in {number} turns." if left else "Not found: nothing is left."
    return Turn("not_found", number, limit, reason, candidates=left)


def why(world: Conversation, state: Dialogue, turn: Turn, posterior: Tensor | None) -> Why:
    """Why one dialogue ``(1, ...)`` goes on with this question or list.

    Args:
        world: of the dialogue.
        state: before the turn.
        turn: the question or list.
        posterior: ``(1, V)`` belief of the policy, if it has one.
    """
    known = world.observe(state, None)
    q = posterior
    if q is None:
        q = torch.nan_to_num((SHARPNESS * state.score).masked_fill(~state.candidate, -math.inf).softmax(1))
    best = q[0].topk(min(BELIEVED, q.shape[1]))
    names = world.catalogue.item_names
    belief = tuple((names[v], p) for p, v in zip(best.values.tolist(), best.indices.tolist(), strict=True) if p > 0)
    entropy, of_list = None, None
    if turn.kind == "ask":
        share = selection.shares(world, known)[0, [o.id for o in turn.options]]
        entropy = float(selection.binary_entropy(share).sum())
    else:
        of_list = float(q[0, [i.id for i in turn.items]].sum())
    return Why(entropy, belief, "scores" if posterior is None else "posterior", of_list, _outcomes(world, state, turn))


def _outcomes(world: Conversation, state: Dialogue, turn: Turn) -> tuple[Outcome, ...]:
    left = int(state.candidate.sum())
    if turn.kind == "list":
        listed = sum(bool(state.candidate[0, i.id]) for i in turn.items)
        return (Outcome("none of these", left - listed, listed),)
    having = [state.candidate & world_has for world_has in (_items_with(world, o.id) for o in turn.options)]
    counts = [int(h.sum()) for h in having]
    any_of = int(torch.cat(having).any(0).sum())
    answers = [o.value for o in turn.options] if turn.several else ["yes"]
    found = [Outcome(answer, n, left - n) for answer, n in zip(answers, counts, strict=True)]
    return (*found, Outcome("none" if turn.several else "no", left, 0, any_of), Outcome("don't care", left, 0))


def _items_with(world: Conversation, attribute: int) -> Tensor:
    found = torch.zeros(1, world.catalogue.n_items, dtype=torch.bool, device=world.device)
    start = world.relation.attribute_start
    found[0, world.relation.attribute_items[start[attribute] : start[attribute + 1]]] = True
    return found

"""A dialogue with a person: the world's own state, with answers that are typed or clicked instead of simulated."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from apps.crs.chat import turns
from apps.crs.chat.constraints import Constraint, constrained
from apps.crs.chat.turns import Turn, Why
from apps.crs.policies import Policy
from core.errors import InputError
from simulators.crs import selection
from simulators.crs.conversation import Conversation
from simulators.crs.dialogue import NONE, Dialogue, Reply

SAYS = {
    ("ask", False): ("yes", "no", "unknown"),
    ("ask", True): ("values", "no", "unknown"),
    ("list", False): ("item", "no"),
    ("relax", False): ("yes", "no"),
}
"""What can be said to a turn, by its kind and whether several values can be chosen."""
MENTIONS = 64
"""Most attributes that can be volunteered at once."""


@dataclass(frozen=True)
class Exchange:
    """A turn and what was said to it.

    Attributes:
        turn: of the system.
        said: ``say`` and what belongs to it: ``values``, ``item``, or ``accepted`` and ``rejected``.
        text: the same in words.
    """

    turn: Turn
    said: dict[str, Any]
    text: str

    def json(self) -> dict[str, Any]:
        """For JSON."""
        return {"turn": self.turn.json(), "said": self.said, "text": self.text}


@dataclass(frozen=True)
class Moment:
    """All there is to know about a dialogue before a reply.

    Attributes:
        state: ``(1, ...)``.
        constraints: what was accepted, in order.
        action: ``(1, A)`` of the system.
        turn: the action in words.
        said: what was exchanged before.
    """

    state: Dialogue
    constraints: tuple[Constraint, ...]
    action: Tensor
    turn: Turn
    said: tuple[Exchange, ...]


class ChatSession:
    """One dialogue with a person.

    The person's answers go into ``Conversation.told``, so the policy sees what it sees in training. Beside that the
    person may volunteer attributes, undo turns, ask for a list or for reasons, and give up a constraint when no
    candidate is left; none of it takes a turn. With one turn to go the policy has to recommend.

    Args:
        world: the conversation; its users' errors do not matter here.
        policy: who asks and recommends; it is copied, so that dialogues share nothing but its weights.
        user: id of a known user; None is somebody unknown, who has the mean embedding.
        name: of the policy in transcripts.

    Raises:
        InputError: a user that is not in the catalogue.
    """

    def __init__(
        self, world: Conversation, policy: Policy, *, user: int | None = None, name: str | None = None
    ) -> None:
        users = world.catalogue.n_users
        if user is not None and not 0 <= user < users:
            raise InputError(f"user = {user}: must be 0 to {users - 1}")
        self.world = world.with_rules(on_empty="quit", targets=1)
        self.policy = copy.copy(policy)
        self.policy.reset(1)
        self.user, self.name = user, name or type(policy).__name__
        self.undone = 0
        self._moments: list[Moment] = []

    # ---- what the system says

    @property
    def started(self) -> bool:
        """Whether the dialogue has been opened."""
        return bool(self._moments)

    @property
    def moment(self) -> Moment:
        """Where the dialogue stands; one that was not opened opens without a word."""
        if not self._moments:
            self.start()
        return self._moments[-1]

    def turn(self) -> Turn:
        """What the system says now; the same until something is said."""
        return self.moment.turn

    @torch.no_grad()
    def why(self) -> Why:
        """Why it says that.

        Raises:
            InputError: it neither asks nor recommends.
        """
        now = self.moment
        if now.turn.kind not in ("ask", "list"):
            raise InputError(f"why: the dialogue is at {now.turn.kind!r}; only a question or a list has reasons")
        posterior = self.policy.posterior(self.world.observe(now.state, None))
        return turns.why(self.world, now.state, now.turn, posterior)

    # ---- what the person says

    def start(self, accepted: Sequence[Sequence[int]] = (), rejected: Sequence[int] = ()) -> Turn:
        """Open the dialogue.

        Args:
            accepted: groups of attributes that are wanted, any one of each group.
            rejected: attributes that are not.

        Raises:
            InputError: an attribute out of range, or the dialogue is open already.
        """
        if self._moments:
            raise InputError("start: the dialogue is open already")
        groups, unwanted = self._mentioned(accepted, rejected)
        nobody = torch.full((1,), NONE, device=self.world.device)
        pair = torch.tensor([[NONE if self.user is None else self.user, NONE]], device=self.world.device)
        state = constrained(self.world, self.world.reset_to(pair, nobody), groups, unwanted)
        self._moments.append(self._next(state, groups, ()))
        return self.turn()

    def answer(self, say: str, *, values: Sequence[int] = (), item: int | None = None) -> Turn:
        """Answer the question, the list or the offer, and hear what follows.

        Args:
            say: to a question ``yes``, ``no`` or ``unknown``, and if there are several options ``values`` in place of
                ``yes``; to a list ``item`` or ``no``; to the offer to drop a constraint ``yes`` or ``no``.
            values: ids of the chosen options, for ``values``; none is the same as ``no``.
            item: id of the chosen item, for ``item``.

        Raises:
            InputError: the dialogue is over, or this cannot be said to the turn.
        """
        now = self.moment
        if now.turn.over:
            raise InputError("answer: the dialogue is over")
        allowed = SAYS[now.turn.kind, now.turn.several]
        if say not in allowed:
            raise InputError(f"say = {say!r}: must be one of {', '.join(allowed)}")
        chosen = self._chosen(now.turn, say, values, item)
        if now.turn.kind == "relax":
            following = self._relaxed(now, say == "yes")
        else:
            following = self._told(now, say, chosen, item)
        self._moments.append(following)
        return self.turn()

    def mention(self, accepted: Sequence[Sequence[int]] = (), rejected: Sequence[int] = ()) -> Turn:
        """Volunteer attributes, see ``start``; what was said about them before is forgotten. No turn passes.

        Raises:
            InputError: the dialogue is over, or an attribute is out of range.
        """
        now = self.moment
        if now.turn.over:
            raise InputError("mention: the dialogue is over")
        groups, unwanted = self._mentioned(accepted, rejected)
        if not groups and not unwanted:
            return now.turn
        news = {p for group in groups for p in group.attributes} | set(unwanted)
        constraints = (*_without(now.constraints, news), *groups)
        before = [p for p in now.state.rejected[0].nonzero().squeeze(1).tolist() if p not in news]
        state = constrained(self.world, now.state, constraints, [*before, *unwanted])
        said = {"say": "mention", "accepted": [list(g.attributes) for g in groups], "rejected": list(unwanted)}
        exchange = Exchange(now.turn, said, self._volunteered(groups, unwanted))
        self._moments.append(self._next(state, constraints, (*now.said, exchange)))
        return self.turn()

    @torch.no_grad()
    def recommend(self) -> Turn:
        """Have a list now, in place of the question.

        Raises:
            InputError: there is no question.
        """
        now = self.moment
        if now.turn.kind != "ask":
            raise InputError(f"list: the dialogue is at {now.turn.kind!r}; a list takes the place of a question")
        exchange = Exchange(now.turn, {"say": "list"}, "Show me a list")
        action = self._recommended(now.state)
        turn = turns.spoken(self.world, now.state, action)
        self._moments.append(replace(now, action=action, turn=turn, said=(*now.said, exchange)))
        return turn

    def back(self) -> bool:
        """Undo what was said last; False at the beginning."""
        if len(self._moments) < 2:
            return False
        self._moments.pop()
        self.undone += 1
        return True

    # ---- records

    def json(self) -> dict[str, Any]:
        """Where the dialogue stands, for JSON."""
        now, first = self.moment, self._moments[0]
        return {
            "policy": self.name,
            "user": self.user,
            "opening": self._volunteered(first.constraints, _ids(first.state.rejected)),
            "turn": now.turn.json(),
            "said": [exchange.json() for exchange in now.said],
            "candidates": [*(exchange.turn.candidates for exchange in now.said), now.turn.candidates],
            "accepted": [_json(turns.option(self.world, p)) for c in now.constraints for p in c.attributes],
            "rejected": [_json(turns.option(self.world, p)) for p in _ids(now.state.rejected)],
            "can_go_back": len(self._moments) > 1,
        }

    def transcript(self) -> dict[str, Any]:
        """The dialogue with the opening, for a file."""
        first, now = self._moments[0] if self._moments else self.moment, self.moment
        catalogue = self.world.catalogue
        return {
            "schema": 1,
            "catalogue": {"name": catalogue.name, "hash": catalogue.hash},
            "policy": self.name,
            "user": self.user,
            "opening": {
                "accepted": [list(c.attributes) for c in first.constraints],
                "rejected": _ids(first.state.rejected),
            },
            "exchanges": [exchange.json() for exchange in now.said],
            "last": now.turn.json(),
            "turns": int(now.state.turn),
            "undone": self.undone,
            "outcome": now.turn.kind if now.turn.over else "open",
            "item": now.turn.items[0].id if now.turn.kind == "accepted" else None,
        }

    # ---- its parts

    @torch.no_grad()
    def _next(self, state: Dialogue, constraints: tuple[Constraint, ...], said: tuple[Exchange, ...]) -> Moment:
        """What follows in this state."""
        nothing = torch.full((1, self.world.columns), NONE, device=self.world.device)
        if int(state.turn) >= self.world.rules.actions:
            return Moment(state, constraints, nothing, turns.ended(self.world, state, None), said)
        if not bool(state.candidate.any()):
            can_relax = len(constraints) > 0
            turn = (
                turns.relaxation(self.world, state, constraints) if can_relax else turns.ended(self.world, state, None)
            )
            return Moment(state, constraints, nothing, turn, said)
        action = self.policy(self.world.observe(state, None), state)
        leaf = self.world.leaves_of(action)[0]
        fresh = (leaf >= 0) & ~state.asked[0, leaf.clamp(min=0)]
        last = int(state.turn) + 1 >= self.world.rules.actions
        recommends = bool(action[0, 0] < 0) and bool((action[0, 1:] >= 0).any())
        if not recommends and (last or not bool(fresh.any())):
            action = self._recommended(state)
        return Moment(state, constraints, action, turns.spoken(self.world, state, action), said)

    def _recommended(self, state: Dialogue) -> Tensor:
        """``(1, A)`` the policy's list; that of the largest scores if the policy has none."""
        action = self.policy.recommend(self.world.observe(state, None))
        if bool((action[0, 1:] >= 0).any()):
            return action
        items = selection.top_items(state.score, state.candidate, self.world.rules.list_length)
        return selection.recommend(self.world, items)

    def _chosen(self, turn: Turn, say: str, values: Sequence[int], item: int | None) -> list[int]:
        """Ids of the options that were accepted.

        Raises:
            InputError: values or an item that the turn does not have.
        """
        ids = [o.id for o in turn.options]
        wrong = [v for v in values if v not in ids]
        if wrong or (values and say != "values"):
            raise InputError(f"values = {list(values)}: must be among {ids}, and only with say = 'values'")
        if (item is not None) != (say == "item") or (item is not None and item not in [i.id for i in turn.items]):
            listed = [i.id for i in turn.items]
            raise InputError(f"item = {item}: must be one of {listed}, and only with say = 'item'")
        if say == "values":
            return [v for v in ids if v in values]
        return ids if say == "yes" and turn.kind == "ask" else []

    def _told(self, now: Moment, say: str, chosen: list[int], item: int | None) -> Moment:
        """After an answer to a question or a list."""
        world, device = self.world, self.world.device
        leaf, listed = world.leaves_of(now.action), now.action[:, 1 : 1 + world.rules.list_length]
        reply = Reply(
            yes=torch.isin(leaf, torch.tensor(chosen, dtype=torch.int64, device=device)),
            unknown=torch.tensor([say == "unknown"], device=device),
            found=(listed == item) if item is not None else torch.zeros_like(listed, dtype=torch.bool),
        )
        after = world.told(now.state, now.action, reply).state
        said: dict[str, Any] = {"say": say}
        if now.turn.several and say == "values":
            said["values"] = chosen
        if item is not None:
            said["item"] = item
        exchanges = (*now.said, Exchange(now.turn, said, self._words(now.turn, say, chosen, item)))
        if item is not None:
            nothing = torch.full_like(now.action, NONE)
            return Moment(after, now.constraints, nothing, turns.ended(world, after, item), exchanges)
        constraints = now.constraints
        if chosen:
            any_of = world.rules.question == "multi_choice" and len(chosen) > 1
            constraints = (*constraints, Constraint(tuple(chosen), any_of))
        return self._next(after, constraints, exchanges)

    def _volunteered(self, groups: Sequence[Constraint], unwanted: Sequence[int]) -> str:
        wanted = [" or ".join(turns.option(self.world, p).text for p in g.attributes) for g in groups]
        return "; ".join([*wanted, *(f"not {turns.option(self.world, p).text}" for p in unwanted)])

    def _words(self, turn: Turn, say: str, chosen: list[int], item: int | None) -> str:
        if item is not None:
            return self.world.catalogue.item_names[item]
        if say == "values" and chosen:
            return ", ".join(o.value for o in turn.options if o.id in chosen)
        none = "None of these" if turn.several or turn.kind == "list" else "No"
        return {"yes": "Yes", "unknown": "I don't care"}.get(say, none)

    def _relaxed(self, now: Moment, agreed: bool) -> Moment:
        """Without the last constraint; or the end."""
        exchanges = (*now.said, Exchange(now.turn, {"say": "yes" if agreed else "no"}, "Yes" if agreed else "No"))
        if not agreed:
            return Moment(now.state, now.constraints, now.action, turns.ended(self.world, now.state, None), exchanges)
        constraints = now.constraints[:-1]
        state = constrained(self.world, now.state, constraints, _ids(now.state.rejected))
        return self._next(state, constraints, exchanges)

    def _mentioned(
        self, accepted: Sequence[Sequence[int]], rejected: Sequence[int]
    ) -> tuple[tuple[Constraint, ...], tuple[int, ...]]:
        """Constraints and rejected attributes, checked.

        Raises:
            InputError: too many, an id out of range, or one that is both accepted and rejected.
        """
        groups = tuple(tuple(dict.fromkeys(group)) for group in accepted if group)
        wanted, unwanted = [p for group in groups for p in group], tuple(dict.fromkeys(rejected))
        count = self.world.catalogue.n_attributes
        for p in (*wanted, *unwanted):
            if not 0 <= p < count:
                raise InputError(f"attribute {p}: must be 0 to {count - 1}")
        if len(wanted) + len(unwanted) > MENTIONS:
            raise InputError(f"attributes: {len(wanted) + len(unwanted)} at once; must be at most {MENTIONS}")
        both = set(wanted) & set(unwanted)
        if both:
            raise InputError(f"attribute {min(both)}: is both accepted and rejected")
        return tuple(Constraint(group, any_of=len(group) > 1) for group in groups), unwanted


def _without(constraints: Sequence[Constraint], attributes: set[int]) -> tuple[Constraint, ...]:
    """Constraints that do not speak of these attributes any more."""
    kept = [Constraint(tuple(p for p in c.attributes if p not in attributes), c.any_of) for c in constraints]
    return tuple(c for c in kept if c.attributes)


def _ids(mask: Tensor) -> list[int]:
    """Ids that are marked in ``(1, n)``."""
    found: list[int] = mask[0].nonzero().squeeze(1).tolist()
    return found


def _json(option: turns.Option) -> dict[str, Any]:
    return {"id": option.id, "type": option.type, "value": option.value}

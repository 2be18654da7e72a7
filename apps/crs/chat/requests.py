"""What a browser may ask of the chat service, and what it is told: JSON objects both ways."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from apps.crs.chat import turns
from apps.crs.chat.dialogues import Dialogues
from apps.crs.chat.matching import Matcher, Matches
from apps.crs.chat.session import ChatSession
from apps.crs.policies import Policy
from core.errors import InputError
from simulators.crs.conversation import Conversation

Data = dict[str, Any]
START = {"user", "text", "accepted", "rejected"}
ANSWER = {"id", "say", "values", "item", "text", "accepted", "rejected"}


class Requests:
    """Answers requests about dialogues of one world with each of some policies.

    Args:
        world: the conversation.
        policies: by the names that are shown.
        dialogues: where they are kept.

    Raises:
        InputError: no policy.
    """

    def __init__(self, world: Conversation, policies: Mapping[str, Policy], dialogues: Dialogues) -> None:
        if not policies:
            raise InputError("policies: none; needs at least one")
        self.world, self.policies, self.dialogues = world, dict(policies), dialogues
        self._matcher = Matcher(world.catalogue)
        # One dialogue at a time: policies may share their networks, and torch has threads of its own.
        self._lock = threading.Lock()

    def catalogue(self) -> Data:
        """What is talked about, with all attributes, and who talks."""
        catalogue = self.world.catalogue
        attributes = [_option(turns.option(self.world, p)) for p in range(catalogue.n_attributes)]
        return {
            "name": catalogue.name,
            "items": catalogue.n_items,
            "users": catalogue.n_users,
            "policies": list(self.policies),
            "attributes": attributes,
        }

    def start(self, data: Data) -> Data:
        """Open a dialogue with each policy: ``user`` (id or null), and an opening as ``text`` or as ids.

        Raises:
            InputError: a key or value that is refused.
        """
        _known(data, START)
        user = data.get("user")
        if user is not None and type(user) is not int:
            raise InputError(f"user = {_short(user)}: must be a whole number, or null for somebody unknown")
        found = self._mentioned(data)
        with self._lock:
            opened = []
            for name, policy in self.policies.items():
                session = ChatSession(self.world, policy, user=user, name=name)
                session.start(found.accepted, found.rejected)
                opened.append({"id": self.dialogues.add(session), **session.json()})
        return {"dialogues": opened, **self._left_open(data, found)}

    def answer(self, data: Data) -> Data:
        """Say something: ``say`` and what belongs to it, see ``ChatSession.answer``; ``list``, ``back``, ``why``; or
        ``mention`` with ``text``, or ``accepted`` and ``rejected`` as ids.

        Raises:
            InputError: a key or value that is refused.
            UnknownDialogue: no dialogue of this id.
        """
        _known(data, ANSWER)
        say = data.get("say")
        if not isinstance(say, str):
            raise InputError(f"say = {_short(say)}: must be a word")
        with self._lock:
            session = self._session(data.get("id"))
            more: Data = {}
            if say == "back":
                more["undone"] = session.back()
            elif say == "list":
                session.recommend()
            elif say == "why":
                more["why"] = session.why().json()
            elif say == "mention":
                found = self._mentioned(data)
                session.mention(found.accepted, found.rejected)
                more = self._left_open(data, found)
            else:
                item = data.get("item")
                if item is not None and type(item) is not int:
                    raise InputError(f"item = {_short(item)}: must be a whole number")
                session.answer(say, values=_ids("values", data.get("values", [])), item=item)
            return {"id": data["id"], **session.json(), **more}

    def state(self, name: str) -> Data:
        """Where a dialogue stands.

        Raises:
            UnknownDialogue: no dialogue of this id.
        """
        with self._lock:
            return {"id": name, **self._session(name).json()}

    def _session(self, name: Any) -> ChatSession:
        if not isinstance(name, str):
            raise InputError(f"id = {_short(name)}: must be the id of a dialogue")
        return self.dialogues.get(name)

    def _mentioned(self, data: Data) -> Matches:
        """Attributes by text or ids."""
        text = data.get("text") or ""
        if not isinstance(text, str):
            raise InputError(f"text = {_short(text)}: must be a text")
        groups = data.get("accepted", [])
        if not isinstance(groups, list):
            raise InputError(f"accepted = {_short(groups)}: must be a list of lists of ids")
        accepted = tuple(tuple(_ids("accepted", group)) for group in groups)
        found = self._matcher(text)
        rejected = (*found.rejected, *_ids("rejected", data.get("rejected", [])))
        return Matches((*found.accepted, *accepted), rejected, found.unsure)

    def _left_open(self, data: Data, found: Matches) -> Data:
        """What a text may have meant, to be confirmed by a ``mention`` with ids; and whether it said anything."""
        guesses = [
            {
                "words": guess.words,
                "negated": guess.negated,
                "options": [_option(turns.option(self.world, p)) for p in guess.attributes],
            }
            for guess in found.unsure
        ]
        return {"unsure": guesses, "understood": bool(found) or not (data.get("text") or "").strip()}


def _option(option: turns.Option) -> Data:
    return {"id": option.id, "type": option.type, "value": option.value}


def _known(data: Data, allowed: set[str]) -> None:
    wrong = sorted(set(data) - allowed)
    if wrong:
        raise InputError(f"{_short(wrong[0])}: no such key; allowed: {', '.join(sorted(allowed))}")


def _ids(name: str, value: Any) -> list[int]:
    if not isinstance(value, list) or any(type(v) is not int for v in value):
        raise InputError(f"{name} = {_short(value)}: must be a list of ids")
    return value


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."

"""The open dialogues of a service, in memory: the oldest give way, and those that nobody goes on with are forgotten."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from apps.crs.chat.session import ChatSession
from core.errors import InputError


class UnknownDialogue(LookupError):
    """There is no dialogue of this id, or not any more."""


@dataclass
class _Held:
    session: ChatSession
    used: float


class Dialogues:
    """Dialogues by id.

    Args:
        cap: most of them; one more drops the one that was not used for the longest time.
        ttl: seconds after the last use.
        clock: monotonic time in seconds.

    Raises:
        InputError: a cap below 1, or a time that is not above 0.
    """

    def __init__(self, cap: int, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        if cap < 1:
            raise InputError(f"cap = {cap}: must be at least 1")
        if not ttl > 0:
            raise InputError(f"ttl = {ttl}: must be above 0")
        self._cap, self._ttl, self._clock = cap, ttl, clock
        self._held: OrderedDict[str, _Held] = OrderedDict()

    def __len__(self) -> int:
        self._forget()
        return len(self._held)

    def add(self, session: ChatSession) -> str:
        """Keep a dialogue and give it an id that cannot be guessed."""
        self._forget()
        while len(self._held) >= self._cap:
            self._held.popitem(last=False)
        name = secrets.token_urlsafe(16)
        self._held[name] = _Held(session, self._clock())
        return name

    def get(self, name: str) -> ChatSession:
        """The dialogue of an id.

        Raises:
            UnknownDialogue: there is none.
        """
        self._forget()
        if name not in self._held:
            raise UnknownDialogue("id: no such dialogue; it was never opened, or is closed by now")
        held = self._held[name]
        held.used = self._clock()
        self._held.move_to_end(name)
        return held.session

    def _forget(self) -> None:
        """Those whose time is over stand first."""
        now = self._clock()
        while self._held and now - next(iter(self._held.values())).used > self._ttl:
            self._held.popitem(last=False)

"""A dialogue in a terminal, typed or from a script."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from apps.crs.chat import turns
from apps.crs.chat.matching import Guess, Matcher
from apps.crs.chat.session import ChatSession
from apps.crs.chat.turns import Item, Turn
from core import files
from core.errors import InputError

ACCEPTED, BAD_INPUT, NOT_FOUND = 0, 2, 3
"""Exit codes."""
STEERING = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")
"""Control characters and those that turn the direction of what follows."""
LONGEST_NUMBERS = 200
"""Characters in which numbers are sought."""
OPENING = "What are you looking for? [such as: {example}; nothing to be asked; quit]"
YES, NO = frozenset(["y", "yes"]), frozenset(["n", "no", "none"])
UNKNOWN = frozenset(["?", "dc", "don't care", "dont care"])


class _Ended(Exception):
    """The person has left, or the script is at its end."""


class _BadLine(InputError):
    """A line that says nothing here."""


def chat(
    session: ChatSession,
    *,
    lines: Iterable[str] | None = None,
    say: Callable[[str], None] = print,
    json_path: Path | None = None,
    matcher: Matcher | None = None,
) -> int:
    """Hold a dialogue until it ends, the person quits, or the input does.

    Unless the session was started, the first line is the opening. A typed line that says nothing is asked for again;
    in a script it ends the dialogue. Lines of a script that begin with ``#`` are comments.

    Args:
        session: the dialogue.
        lines: of a script; None reads the terminal.
        say: receives the lines for the person.
        json_path: file for the transcript.
        matcher: of the catalogue, made here by default.

    Returns:
        0 if an item was accepted, 3 if not, 2 after a line of a script that cannot be understood.

    Raises:
        InputError: the transcript cannot be written.
    """
    terminal = _Terminal(session, matcher or Matcher(session.world.catalogue), lines, say)
    code = NOT_FOUND
    try:
        terminal.hold()
    except (_Ended, KeyboardInterrupt):
        say("Goodbye.")
    except _BadLine as error:
        say(f"line {terminal.number}: {error}")
        code = BAD_INPUT
    if code != BAD_INPUT and session.started and session.turn().kind == "accepted":
        code = ACCEPTED
    if json_path is not None:
        try:
            files.write_json(json_path, {**session.transcript(), "exit_code": code})
        except OSError as error:
            raise InputError(f"{json_path}: {(error.strerror or str(error)).lower()}") from error
    return code


class _Terminal:
    """What is asked in a terminal and how its lines are understood."""

    def __init__(
        self, session: ChatSession, matcher: Matcher, lines: Iterable[str] | None, say: Callable[[str], None]
    ) -> None:
        self.session, self.matcher, self.scripted = session, matcher, lines is not None
        self._lines, self._say, self.number = None if lines is None else iter(lines), say, 0

    def say(self, text: str) -> None:
        """A name may hold what steers a terminal."""
        self._say(STEERING.sub("\ufffd", text))

    def hold(self) -> None:
        """The dialogue to its end."""
        if not self.session.started:
            self._open()
        shown: Turn | None = None
        while True:
            turn = self.session.turn()
            if turn is not shown:
                self._show(turn)
                shown = turn
            if turn.over:
                return
            line = self._line()
            if line and self._understood(self._reply, line) and self.session.turn() is turn:
                shown = None

    def _open(self) -> None:
        world = self.session.world
        examples = [turns.option(world, p).value for p in dict.fromkeys((0, world.catalogue.n_attributes - 1))]
        while not self.session.started:
            self.say(OPENING.format(example=", ".join(examples)))
            line = self._line()
            if line.lower() == "quit":
                raise _Ended
            if not line:
                self.session.start()
            else:
                self._understood(self._free_text, line)

    def _line(self) -> str:
        """The next line, without spaces around it.

        Raises:
            _Ended: there is none.
        """
        if self._lines is None:
            try:
                return input("> ").strip()
            except EOFError:
                raise _Ended from None
        for line in self._lines:
            self.number += 1
            if not line.lstrip().startswith("#"):
                self.say(f"> {line.strip()}")
                return line.strip()
        raise _Ended

    def _understood(self, act: Callable[[str], None], line: str) -> bool:
        """Do what a line says, or say why not; a script ends there."""
        try:
            act(line)
        except _BadLine as error:
            if self.scripted:
                raise
            self.say(str(error))
            return False
        return True

    # ---- what is shown

    def _show(self, turn: Turn) -> None:
        if turn.over:
            self.say(turn.text)
            return
        self.say(f"turn {turn.number} of {turn.limit}, {turn.candidates} left")
        if turn.kind == "relax":
            self.say(f"{turn.text} [y/n/back/quit]")
        elif turn.kind == "list":
            self.say(f"{turn.text} [number/n/why/back/quit]")
            for number, item in enumerate(turn.items, 1):
                self.say(f"{number:3} {_described(item)}")
        elif turn.several:
            self.say(f"{turn.text} [numbers such as 1,3/0 for none/?/why/back/list/quit]")
            for number, option in enumerate(turn.options, 1):
                self.say(f"{number:3} {option.value}")
        else:
            self.say(f"{turn.text} [y/n/?/why/back/list/quit]")

    # ---- what is said

    def _reply(self, line: str) -> None:
        """Act on a line.

        Raises:
            _BadLine: it says nothing here.
        """
        turn, word = self.session.turn(), line.lower()
        if word in ("quit", "q", "exit"):
            raise _Ended
        if word == "back":
            if not self.session.back():
                self.say("There is nothing to undo.")
        elif word in ("why", "list"):
            self._asked(word)
        elif word in YES | NO | UNKNOWN:
            self._answer(turn, word)
        elif _is_numbers(word) and (turn.kind == "list" or turn.several):
            self._numbers(turn, [int(n) for n in word.replace(",", " ").split()])
        else:
            self._free_text(line)

    def _asked(self, word: str) -> None:
        try:
            if word == "list":
                self.session.recommend()
                return
            found = self.session.why().lines()
        except InputError as error:
            raise _BadLine(str(error)) from error
        for text in found:
            self.say(f"    {text}")

    def _answer(self, turn: Turn, word: str) -> None:
        """A yes, a no or a shrug."""
        shown = turn.items if turn.kind == "list" else turn.options
        only = len(shown) == 1
        if word in YES and not only and (turn.kind == "list" or turn.several):
            raise _BadLine(f"{word!r}: which? must be a number from 1 to {len(shown)}, or n for none")
        try:
            if word in YES and turn.kind == "list" and only:
                self.session.answer("item", item=turn.items[0].id)
            elif word in YES and turn.several and only:
                self.session.answer("values", values=[turn.options[0].id])
            else:
                self.session.answer("yes" if word in YES else "no" if word in NO else "unknown")
        except InputError as error:
            raise _BadLine(str(error)) from error

    def _numbers(self, turn: Turn, numbers: list[int]) -> None:
        """A choice among what is listed."""
        shown = turn.items if turn.kind == "list" else turn.options
        if numbers == [0]:
            self.session.answer("no")
            return
        wrong = [n for n in numbers if not 1 <= n <= len(shown)]
        if wrong or (turn.kind == "list" and len(numbers) > 1):
            allowed = f"one of 1 to {len(shown)}" if turn.kind == "list" else f"of 1 to {len(shown)}, or 0 for none"
            raise _BadLine(f"{wrong[0] if wrong else ', '.join(map(str, numbers))}: must be {allowed}")
        ids = [shown[n - 1].id for n in numbers]
        if turn.kind == "list":
            self.session.answer("item", item=ids[0])
        else:
            self.session.answer("values", values=ids)

    def _free_text(self, line: str) -> None:
        """Attributes in the person's own words; what is unsure has to be confirmed."""
        found = self.matcher(line)
        if not found:
            raise _BadLine(f"{line!r}: names no attribute of {self.session.world.catalogue.name}")
        accepted, rejected = list(found.accepted), list(found.rejected)
        for guess in found.unsure:
            meant = self._meant(guess)
            if meant is not None and guess.negated:
                rejected.append(meant)
            elif meant is not None:
                accepted.append((meant,))
        told = {p for group in accepted for p in group}
        rejected = [p for p in rejected if p not in told]
        say = self.session.mention if self.session.started else self.session.start
        try:
            say(accepted, rejected)
        except InputError as error:
            raise _BadLine(str(error)) from error

    def _meant(self, guess: Guess) -> int | None:
        """Which attribute is meant."""
        options = [turns.option(self.session.world, p) for p in guess.attributes]
        negated = "not " if guess.negated else ""
        if len(options) == 1:
            self.say(f"By {guess.words!r}, do you mean {negated}{options[0].text}? [y/n]")
        else:
            self.say(f"By {guess.words!r}, which do you mean? [number/n]")
            for number, option in enumerate(options, 1):
                self.say(f"{number:3} {negated}{option.text}")
        while True:
            word = self._line().lower()
            if word in NO | {"0"}:
                return None
            if word in YES and len(options) == 1:
                return options[0].id
            if word.isdecimal() and 1 <= int(word) <= len(options):
                return options[int(word) - 1].id
            if word == "quit":
                raise _Ended
            wrong = _BadLine(f"{word!r}: must be a number up to {len(options)}, or n")
            if self.scripted:
                raise wrong
            self.say(str(wrong))


def _is_numbers(word: str) -> bool:
    return len(word) <= LONGEST_NUMBERS and word.replace(",", "").replace(" ", "").isdecimal()


def _described(item: Item) -> str:
    """An item in a list, with what it has of what was said."""
    matched = ", ".join(option.text for option in item.matched)
    against = [option.text for option in item.against] + [f"not {option.text}" for option in item.lacking]
    reservation = f", but {', '.join(against)}" if against else ""
    return f"{item.name}{f' ({matched})' if matched else ''}{reservation}"


def script(path: Path) -> Iterator[str]:
    """The lines of a script.

    Raises:
        InputError: no such file, or it is not UTF-8.
    """
    try:
        return iter(path.read_text(encoding="utf-8").splitlines())
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error

"""What is seen while a study runs: live bars on a terminal, a line now and then elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from core.study import journal
from core.study.run import Run
from core.study.store import Store

STATUS_SECONDS = 15.0


@dataclass
class Activity:
    """One run under way, as its journal tells it."""

    label: str
    offset: int
    since: float | None = None
    fraction: float = 0.0
    message: str = ""


class Watch:
    """Follows the journals of the runs that were handed to the engine."""

    def __init__(self, store: Store, total: int, done: int) -> None:
        self.total = total
        self.done = done
        self.submitted: dict[str, Activity] = {}
        self._store = store

    def add(self, key: str, run: Run) -> None:
        """Follow a run from now on."""
        log = self._store.journal(key)
        self.submitted[key] = Activity(run.label, log.stat().st_size if log.exists() else 0)

    def remove(self, key: str) -> Activity:
        """A run has ended."""
        return self.submitted.pop(key)

    def poll(self) -> dict[str, Activity]:
        """The runs that have started, with how far they are."""
        for key, activity in self.submitted.items():
            log = self._store.journal(key)
            size = log.stat().st_size if log.exists() else 0
            for entry in journal.read(log, activity.offset) if size > activity.offset else ():
                if entry.get("event") == "started":
                    activity.since = entry["time"]
                activity.fraction = entry.get("progress", activity.fraction)
                activity.message = entry.get("message", activity.message)
            activity.offset = max(size, activity.offset)
        return {key: activity for key, activity in self.submitted.items() if activity.since is not None}

    def fraction(self) -> float:
        """Share of the study that is done."""
        return (self.done + sum(a.fraction for a in self.submitted.values())) / max(self.total, 1)


class Display(Protocol):
    """What the runner tells, and how it is shown."""

    def note(self, text: str) -> None:
        """Print a line."""
        ...

    def finished(self, text: str) -> None:
        """A run has finished."""
        ...

    def show(self, watch: Watch) -> None:
        """Called about twice a second."""
        ...

    def close(self) -> None:
        """The runs are over."""
        ...


class Silent:
    """Shows nothing."""

    def note(self, text: str) -> None:
        """Print nothing."""

    def finished(self, text: str) -> None:
        """Print nothing."""

    def show(self, watch: Watch) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing to close."""


class Lines:
    """Plain lines, for a log file or a pipe: each start and end of a run, and the state every 15 s."""

    def __init__(self) -> None:
        self._next = time.monotonic() + STATUS_SECONDS
        self._started: set[str] = set()

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)

    def finished(self, text: str) -> None:
        """Print a line."""
        self.note(text)

    def show(self, watch: Watch) -> None:
        """Print what has started, and every 15 s how far everything is."""
        active = watch.poll()
        for key in active.keys() - self._started:
            self.note(f"started  {active[key].label} [{key}]")
        self._started |= active.keys()
        if active and time.monotonic() >= self._next:
            self._next = time.monotonic() + STATUS_SECONDS
            runs = ", ".join(f"{a.label} {a.fraction:.0%}" for a in active.values())
            self.note(f"{watch.fraction():4.0%}  {watch.done} of {watch.total} runs done; {runs}")

    def close(self) -> None:
        """Nothing to close."""


class Bars:
    """Live bars: the study, and each run under way."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[message]}"),
            console=console,
            transient=True,
        )
        self._study = self._progress.add_task("study", total=1.0, message="")
        self._runs: dict[str, TaskID] = {}
        self._progress.start()

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(escape(text), highlight=False)

    def finished(self, text: str) -> None:
        """Print nothing: the bar has moved."""

    def show(self, watch: Watch) -> None:
        """Move the bars."""
        active = watch.poll()
        for key in active.keys() - self._runs.keys():
            self._runs[key] = self._progress.add_task(escape(active[key].label), total=1.0, message="")
        for key in self._runs.keys() - active.keys():
            self._progress.remove_task(self._runs.pop(key))
        for key, task in self._runs.items():
            self._progress.update(task, completed=active[key].fraction, message=escape(active[key].message))
        state = f"{watch.done} of {watch.total} runs"
        self._progress.update(self._study, completed=watch.fraction(), message=state)

    def close(self) -> None:
        """Take the bars away."""
        self._progress.stop()


def make_display(quiet: bool) -> Display:
    """Bars on a terminal, lines elsewhere, nothing if ``quiet``."""
    if quiet:
        return Silent()
    console = Console(stderr=True)
    return Bars(console) if console.is_terminal else Lines()

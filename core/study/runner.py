"""Does the runs of a study in the order in which they need each other."""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait

from core.errors import InputError
from core.study.analysis import StudyError
from core.study.engines import Engine
from core.study.progress import Display, Watch
from core.study.run import Run, inputs_of
from core.study.store import Store
from core.study.task import Outcome, Task, execute

POLL_SECONDS = 0.5
KEEP_SECONDS = 15.0


def resolve_device(device: str, has_gpu: bool) -> str:
    """``cpu`` or ``cuda``, where ``auto`` takes a GPU if there is one.

    Raises:
        InputError: an unknown device, or ``cuda`` without a GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {device}: must be auto, cpu or cuda")
    if device == "cpu":
        return device
    if has_gpu:
        return "cuda"
    if device == "cuda":
        raise InputError("--device cuda: there is no CUDA device; allowed here: auto, cpu")
    return "cpu"


class Runner:
    """Hands each run to the engine as soon as its inputs are there; runs that are finished are not done again."""

    def __init__(self, store: Store, runs: dict[str, Run], engine: Engine, device: str, display: Display) -> None:
        self._store = store
        self._runs = runs
        self._engine = engine
        self._device = device
        self._display = display
        self._needs = {key: {source.hash for source in inputs_of(run).values()} for key, run in runs.items()}
        self._config_hash = store.manifest()["config_hash"]
        self._waiting = [key for key in runs if not store.finished(key)]
        self._failed: dict[str, str] = {}
        self._suspects: set[str] = set()
        self._watch = Watch(store, len(runs), len(runs) - len(self._waiting))
        self._futures: dict[Future[Outcome], str] = {}

    def run(self) -> None:
        """Do all runs that are not finished.

        Raises:
            StudyError: runs failed; those that did not need them were done nevertheless.
        """
        if self._watch.done:
            self._display.note(f"{self._watch.done} of {self._watch.total} runs were finished before")
        if not self._waiting:
            return
        self._clock = time.monotonic()
        try:
            self._submit()
            while self._futures:
                finished, _ = wait(self._futures, POLL_SECONDS, FIRST_COMPLETED)
                self._display.show(self._watch)
                for future in finished:
                    self._end(self._futures.pop(future), future)
                if finished or time.monotonic() - self._clock > KEEP_SECONDS:
                    self._keep_time()
                if finished:
                    self._submit()
        finally:
            self._keep_time()
        if self._failed:
            raise StudyError(self._failures())

    def _keep_time(self) -> None:
        now = time.monotonic()
        self._store.update(seconds=self._store.manifest()["seconds"] + now - self._clock)
        self._clock = now

    def _submit(self) -> None:
        ready = [key for key in self._waiting if all(map(self._store.finished, self._needs[key]))]
        unsuspected = [key for key in ready if key not in self._suspects]
        chosen = unsuspected[: self._engine.slots - len(self._futures)]
        # What was under way when a worker died is done once more, alone: then it is known which run is at fault.
        if not unsuspected and not self._futures:
            chosen = ready[:1]
        for key in chosen:
            self._waiting.remove(key)
            self._watch.add(key, self._runs[key])
            task = Task(self._store.root.absolute(), self._config_hash, self._runs[key], self._device)
            self._futures[self._engine.submit(execute, task)] = key

    def _end(self, key: str, future: Future[Outcome]) -> None:
        run = self._runs[key]
        try:
            outcome = future.result()
        except BrokenExecutor:
            if key not in self._suspects:
                self._watch.remove(key)
                self._suspects.add(key)
                self._waiting.append(key)
                return
            reason = "a worker process died (out of memory, killed, or a script without a main guard)"
            outcome = Outcome(0.0, reason)
        except Exception as error:  # of the engine: every error of the run itself is in its outcome
            outcome = Outcome(0.0, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
        self._watch.remove(key)
        if outcome.error:
            self._failed[key] = f"{run.label} [{key}]: {outcome.error}"
            self._display.note(f"failed   {self._failed[key]}")
        else:
            self._watch.done += 1
            self._display.finished(f"finished {run.label} [{key}] in {outcome.seconds:.1f} s")

    def _failures(self) -> str:
        lines = [f"{len(self._failed)} of {len(self._runs)} runs failed", *self._failed.values()]
        if self._waiting:
            lines.append(f"{len(self._waiting)} more need their results and were not started")
        return "\n".join(lines)

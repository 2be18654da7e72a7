"""Where runs are done: in processes of this machine, in this process, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import Any, Protocol

import torch

from core.allocator import keep_freed_memory
from core.errors import InputError, require

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Engine(Protocol):
    """Does functions somewhere else; ``shutdown(cancel=True)`` abandons what is under way.

    Attributes:
        slots: how many functions may be under way at once.
    """

    slots: int

    def has_gpu(self) -> bool:
        """Whether there is a CUDA device where the functions run."""
        ...

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have ``function(*arguments)`` done."""
        ...

    def shutdown(self, cancel: bool = False) -> None:
        """Give back what the engine holds."""
        ...


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def open_engine(name: str, address: str | None, workers: int | None, runs: int, device: str) -> Iterator[Engine]:
    """The engine ``local`` or ``ray``, shut down at the end; what is under way is abandoned on an error.

    Args:
        name: ``local`` or ``ray``.
        address: of a running Ray cluster; without one, Ray is started here.
        workers: how many runs at once; 0 does them in this process; default one a core, at most ``runs``.
        runs: how many runs there are.
        device: ``auto``, ``cpu`` or ``cuda``; on Ray with a GPU every run takes one.

    Raises:
        InputError: an unknown engine, a negative number of workers, or an address that does not answer.
        MissingExtra: Ray is not installed.
    """
    engine = _make_engine(name, address, workers, runs, device)
    complete = False
    try:
        yield engine
        complete = True
    finally:
        engine.shutdown(cancel=not complete)


def _make_engine(name: str, address: str | None, workers: int | None, runs: int, device: str) -> Engine:
    if workers is not None and workers < 0:
        raise InputError(f"--workers {workers}: must be at least 0")
    if name == "ray":
        return RayEngine(address, workers, device)
    if name != "local":
        raise InputError(f"--engine {name}: must be local or ray")
    if address is not None:
        raise InputError(f"--address {address}: needs --engine ray")
    if workers == 0:
        return InlineEngine()
    return LocalEngine(workers or min(usable_cores(), max(runs, 1)))


class InlineEngine:
    """One run after the other in this process: for debugging and tests."""

    slots = 1

    def has_gpu(self) -> bool:
        """Whether this process sees a CUDA device."""
        return torch.cuda.is_available()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Do it now."""
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, cancel: bool = False) -> None:
        """Nothing is held."""


class LocalEngine:
    """Processes of this machine with one thread each, which end by themselves when this process is gone."""

    def __init__(self, workers: int) -> None:
        self.slots = workers
        self._processes = multiprocessing.get_context("spawn")
        # The workers read these when they load their libraries, which is before any code of ours runs there.
        self._environment = {name: os.environ.get(name) for name in THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
        self._start()

    def _start(self) -> None:
        self._stop = self._processes.Event()
        self._pool = ProcessPoolExecutor(
            self.slots, self._processes, initializer=_start_worker, initargs=(os.getpid(), self._stop)
        )

    def has_gpu(self) -> bool:
        """Whether this machine has a CUDA device."""
        return torch.cuda.is_available()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have it done by the next free process; processes that died are replaced."""
        try:
            return self._pool.submit(function, *arguments)
        except BrokenExecutor:
            self._pool.shutdown()
            self._start()
            return self._pool.submit(function, *arguments)

    def shutdown(self, cancel: bool = False) -> None:
        """End the processes, at once if ``cancel``."""
        if cancel:
            self._stop.set()
        self._pool.shutdown(cancel_futures=cancel)
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start_worker(parent: int, stop: Event) -> None:
    """Leave Ctrl-C to the parent, and end when it is gone or says so, whatever the run is doing."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent and not stop.is_set():
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class RayEngine:
    """A Ray cluster, one task a run; without an address, a Ray of this machine's own, bound to the loopback."""

    slots = sys.maxsize  # Ray itself queues what its cores cannot take yet

    def __init__(self, address: str | None, workers: int | None, device: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address is None:
            # Despite its name the only way, on Linux too, to keep Ray from listening on every network interface;
            # Ray reads it when it is imported, and ignores _node_ip_address="127.0.0.1".
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            if address is not None:
                _knock(address)
            self._ray = require("ray", "ray")
            self._owned = not self._ray.is_initialized()
            if self._owned:
                self._start(address, workers or usable_cores())
        except (OSError, ValueError, RuntimeError) as error:
            if address is None:
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"--address {address}: no Ray cluster there: {reason}") from error
        gpus = 1 if device != "cpu" and self.has_gpu() else 0
        self._task = self._ray.remote(num_cpus=1, num_gpus=gpus)(_call)
        self._references: list[Any] = []

    def _start(self, address: str | None, cores: int) -> None:
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        if address is None:
            memory = 100 * 2**20  # results travel as files
            self._ray.init("local", num_cpus=cores, object_store_memory=memory, **quiet)
        else:
            self._ray.init(address, **quiet)

    def has_gpu(self) -> bool:
        """Whether the cluster has a GPU."""
        return bool(self._ray.cluster_resources().get("GPU", 0))

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have it done by a task of one CPU core, and one GPU where the study uses them."""
        reference = self._task.remote(function, *arguments)
        self._references.append(reference)
        future: Future[Any] = reference.future()
        return future

    def shutdown(self, cancel: bool = False) -> None:
        """Cancel what is under way if ``cancel``; leave a cluster that was there before running."""
        for reference in self._references if cancel else ():
            self._ray.cancel(reference, force=True)
        if self._owned:
            self._ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError unless something listens at ``host:port``: Ray itself would try for minutes without a word."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    keep_freed_memory()
    return function(*arguments)

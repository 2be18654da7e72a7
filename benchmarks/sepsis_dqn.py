"""Updates of the offline Q-networks of sepsis, against d3rlpy's DoubleDQN on equal nets, batches and replay."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from benchmarks.clock import Clock, spread
from benchmarks.turns import ratio
from core.offline import ConservativeDQN, OfflineDataset, OfflineDQN

SIZE = {"episodes": 2000, "length": 15, "features": 44, "actions": 25, "hidden": [64, 64], "batch": 256}
"""About as many steps as the quick study trains on."""
PEER = "d3rlpy==2.8.1"
FOLDER = Path(__file__).parents[1] / "build" / "peers" / "d3rlpy"
REPEATS, UPDATES = 7, 300
INSTALL_SECONDS = 900


class Absent(Exception):
    """The peer cannot be had; the message says why."""


def main() -> None:
    """Print the figures beside their targets."""
    began = time.perf_counter()
    works = {name: ours(model) for name, model in models().items()}
    peer = None
    try:
        peer = Peer()
        works |= {"d3rlpy, fit": peer.work("fit"), "d3rlpy, update alone": peer.work("update")}
    except Absent as absent:
        print(f"  d3rlpy is left out: {absent}")
    took: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(REPEATS + 1):
        # In turns, so that whatever else the machine does slows all of them alike.
        for name in list(works)[:: 1 if turn % 2 else -1]:
            found = 1000 * works[name]() / UPDATES
            if turn:
                took[name].append(found)
    if peer is not None:
        peer.close()
    print(f"  {SIZE['episodes'] * SIZE['length']} steps, 44-64-64-25, batch 256, one thread: ms an update")
    for name, values in took.items():
        print(f"    {name:<44} {spread(values)}")
    for name in took:
        if name.startswith("d3rlpy"):
            target = " (target 1.5)" if name.endswith("fit") else ""
            print(f"  {name} / ours, plain: {ratio(took[name], took['plain'])}{target}")
    print(f"  {time.perf_counter() - began:.0f} s")


def models() -> dict[str, OfflineDQN]:
    """The plain one, which is what d3rlpy has, and what sepsis uses."""
    data = dataset()
    plain = {"n_steps": 1, "q_bound": None, "policy_kwargs": {"net_arch": SIZE["hidden"]}}
    dueling = {"net_arch": SIZE["hidden"], "dueling": True, "head_arch": [32]}
    published = {
        **{"net_arch": [128, 128], "dueling": True, "head_arch": [64], "batch_norm": True, "xavier": True},
        "activation_fn": nn.LeakyReLU,
    }
    return {
        "plain": OfflineDQN(data, **plain),
        "prioritised": OfflineDQN(data, prioritized=True, **plain),
        "dueling, 6-step, bounded": OfflineDQN(data, policy_kwargs=dueling),
        "the same, prioritised": OfflineDQN(data, prioritized=True, policy_kwargs=dueling),
        "the same, conservative": ConservativeDQN(data, policy_kwargs=dueling),
        "44-128-128, batch norm, prioritised (published)": OfflineDQN(data, prioritized=True, policy_kwargs=published),
    }


def dataset() -> OfflineDataset:
    """Random steps of the size of the quick study, as the peer draws them."""
    generator = np.random.default_rng(0)
    episodes, length = SIZE["episodes"], SIZE["length"]
    steps = episodes * length
    place = np.arange(steps) % length
    observations = torch.from_numpy(generator.normal(size=(steps, SIZE["features"])).astype(np.float32))
    actions = torch.from_numpy(generator.integers(SIZE["actions"], size=steps))
    ends = torch.from_numpy(place == length - 1)
    return OfflineDataset(
        observations=observations,
        actions=actions,
        rewards=torch.from_numpy(generator.choice([-15.0, 15.0], steps).astype(np.float32)) * ends,
        next_observations=observations.roll(-1, 0),
        terminated=ends,
        truncated=torch.zeros(steps, dtype=torch.bool),
        episode=torch.arange(steps) // length,
        step=torch.from_numpy(place),
        observation_space=spaces.Box(-np.inf, np.inf, (SIZE["features"],)),
        action_space=spaces.Discrete(SIZE["actions"]),
    )


def ours(model: OfflineDQN) -> Callable[[], float]:
    """CPU seconds of some updates."""

    def work() -> float:
        clock = Clock()
        model.fit(UPDATES)
        return clock.seconds

    return work


class Peer:
    """d3rlpy in a process of its own, because it holds gymnasium at another version than we use.

    Raises:
        Absent: it could not be installed or does not start.
    """

    def __init__(self) -> None:
        script = Path(__file__).with_name("d3rlpy_double_dqn.py")
        command = [str(_python()), str(script), json.dumps(SIZE)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, cwd=FOLDER, **pipes)
        self._until("ready")

    def work(self, kind: str) -> Callable[[], float]:
        """CPU seconds of some updates; ``fit`` or ``update``."""

        def ask() -> float:
            self.process.stdin.write(f"{kind} {UPDATES}\n")
            self.process.stdin.flush()
            return float(self._until())

        return ask

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()

    def _until(self, word: str | None = None) -> str:
        """The next line that is a number, or this word; d3rlpy logs between them."""
        for line in self.process.stdout:
            if line.strip() == word or (word is None and line.strip().replace(".", "", 1).isdigit()):
                return line
        raise Absent(_last(self.process.stderr.read()))


def _python() -> Path:
    """The interpreter of an environment with the peer, which is made if it is not there."""
    python = FOLDER / "bin" / "python"
    if not (FOLDER / "complete").exists():
        # The build of torch that we have: the registry's own may bring gigabytes for GPUs.
        wanted = [f"torch=={torch.__version__}", f"numpy=={np.__version__}", PEER]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(FOLDER)],
            [str(python), "-m", "pip", "install", "--quiet", *wanted],
        ):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Absent(f"{PEER} could not be installed ({error})") from error
            if done.returncode:
                raise Absent(f"{PEER} could not be installed ({_last(done.stderr)})")
        (FOLDER / "complete").touch()
    return python


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

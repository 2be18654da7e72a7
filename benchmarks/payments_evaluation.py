"""Off-policy evaluation of dense rows against obp's estimators: rows a second, one core each, and the same values.

obp 0.5.7 asks for Python below 3.11 and an old torch, so it has an environment of its own:

    python3 -m venv obp_env
    obp_env/bin/pip install --no-deps --ignore-requires-python obp==0.5.7 pyieoe
    obp_env/bin/pip install "pandas<3" numpy scipy scikit-learn torch matplotlib seaborn tqdm pyyaml
    export SZILARD_OBP_PYTHON=$PWD/obp_env/bin/python
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clock import Clock, spread
from benchmarks.turns import ratio
from core.bandits.off_policy import Sums, evaluate, logged_rows
from core.bandits.off_policy_intervals import Percentile
from core.bandits.poisson_bootstrap import PoissonBootstrap

ROWS, ACTIONS, LIMIT = 1_000_000, 10, 5.0
BOOTSTRAP_ROWS, REPLICATES = 100_000, 1000
NAMES = ("ips", "snips", "dm", "dr", "sndr", "switch_dr", "dros")

Log = dict[str, np.ndarray]


def seeded_log(n: int, actions: int) -> Log:
    """A log of a random softmax policy, with a noisy reward model and another softmax policy in question."""
    rng = np.random.default_rng(0)
    logging, target = (np.exp(rng.normal(size=(n, actions))) for _ in range(2))
    logging /= logging.sum(1, keepdims=True)
    target /= target.sum(1, keepdims=True)
    action = (logging.cumsum(1) < rng.random((n, 1))).sum(1).clip(max=actions - 1)
    truth = rng.uniform(0.7, 1.0, (n, actions))
    at = np.arange(n), action
    reward = (rng.random(n) < truth[at]).astype(np.float64)
    qhat = np.clip(truth + rng.normal(0, 0.05, truth.shape), 0, 1)
    return {"action": action, "reward": reward, "propensity": logging[at], "target": target, "qhat": qhat}


@contextmanager
def obp(python: str, log: Log) -> Iterator[Callable[[str], dict[str, Any]]]:
    """A process with obp and the log in it: from a task to its answer."""
    with tempfile.TemporaryDirectory() as folder:
        for name, column in log.items():
            np.save(Path(folder) / f"{name}.npy", column)
        command = [python, "-I", str(Path(__file__).with_name("obp_estimators.py")), folder]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            send, receive = process.stdin, process.stdout

            def ask(task: str) -> dict[str, Any]:
                print(task, file=send, flush=True)
                answer: dict[str, Any] = json.loads(receive.readline())
                return answer

            yield ask
            send.close()


def values(log: Log) -> dict[str, float]:
    """Our estimates, from rows that are checked."""
    rows = logged_rows(log["action"], log["reward"], log["propensity"], log["target"], log["qhat"])
    table = evaluate(Sums.of(rows, switch=LIMIT, shrink=LIMIT))
    return {name: table[name].mean for name in NAMES}


def intervals(log: Log) -> None:
    """Our bootstrap intervals of all estimates."""
    rows = logged_rows(log["action"], log["reward"], log["propensity"], log["target"], log["qhat"])
    bootstrap = PoissonBootstrap(REPLICATES)
    sums = Sums.of(rows, switch=LIMIT, shrink=LIMIT, bootstrap=bootstrap, ids=np.arange(len(rows)))
    evaluate(sums, interval=Percentile())


def compare(title: str, ours: Callable[[], object], theirs: Callable[[], float], rows: int, repeats: int) -> None:
    """Print both rates, taken in turns, and their ratio."""
    mine, peers = [], []
    for turn in range(repeats + 1):
        clock = Clock()
        ours()
        seconds, peer = clock.seconds, theirs()
        if turn:
            mine.append(seconds)
            peers.append(peer)
    print(f"{title}, rows a CPU second")
    print(f"  ours  {spread([rows / s for s in mine])}")
    print(f"  obp   {spread([rows / s for s in peers])}")
    print(f"  obp's time over ours: {ratio(peers, mine)}")


def main() -> None:
    python = os.environ.get("SZILARD_OBP_PYTHON")
    if not python:
        print("obp is not there: set SZILARD_OBP_PYTHON to the Python of an environment that has it.")
        print(__doc__.split("\n\n", 1)[1])
        return
    log = seeded_log(ROWS, ACTIONS)
    few = {name: column[:BOOTSTRAP_ROWS] for name, column in log.items()}
    with obp(python, log) as ask:
        task, bootstrap = f"values {ROWS}", f"intervals {BOOTSTRAP_ROWS} {REPLICATES}"
        title = f"{len(NAMES)} estimators with input checks, {ROWS:,} x {ACTIONS}"
        compare(title, lambda: values(log), lambda: ask(task)["seconds"], ROWS, 5)
        title = f"their bootstrap intervals, {BOOTSTRAP_ROWS:,} x {ACTIONS}, {REPLICATES} replicates"
        compare(title, lambda: intervals(few), lambda: ask(bootstrap)["seconds"], BOOTSTRAP_ROWS, 1)
        theirs = ask(task)["found"]
    mine = values(log)
    apart = max(abs(mine[name] - theirs[name]) for name in NAMES)
    print(f"largest absolute difference of the {len(NAMES)} values: {apart:.1e} (at most 1e-9 is asked for)")


if __name__ == "__main__":
    main()

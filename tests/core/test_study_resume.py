from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import xarray as xr

from tests.core.toy_study import ToyStudy

CODE = """
import sys
from tests.core.toy_study import ToyStudy
ToyStudy(study="toy", seeds=3, steps=30).run(sys.argv[1], workers=2)
"""


def start(out: Path, delay: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CODE, str(out)]
    environment = os.environ | {"TOY_DELAY": str(delay)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def entries(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for path in out.glob("runs/*/log.jsonl") for line in path.read_text().splitlines()]


def steps_kept(out: Path) -> list[int]:
    states = list(out.glob("runs/*/checkpoint/state.json"))
    return [len(json.loads(path.read_text())["path"]) for path in states]


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    study = ToyStudy(study="toy", seeds=3, steps=30)
    process = start(tmp_path / "killed", 0.1)
    assert wait_for(lambda: len(steps_kept(tmp_path / "killed")) == 2 and min(steps_kept(tmp_path / "killed")) > 5)
    workers = workers_of(process)
    assert len(workers) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # workers whose parent is gone end by themselves
    assert wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), 4.0)
    assert not list(tmp_path.glob("killed/runs/*/result.nc"))

    study.run(tmp_path / "killed", workers=1, quiet=True)
    resumed = [entry["step"] for entry in entries(tmp_path / "killed") if entry.get("event") == "resumed"]
    assert len(resumed) == 2
    assert min(resumed) > 3  # type: ignore[type-var,operator]
    study.run(tmp_path / "whole", workers=0, quiet=True)
    for walk in study.walks():
        one, two = (xr.load_dataset(tmp_path / name / "runs" / walk.hash / "result.nc") for name in ("killed", "whole"))
        assert one.equals(two)
    killed, whole = (xr.load_dataset(tmp_path / name / "results.nc") for name in ("killed", "whole"))
    assert killed.identical(whole)


def test_interrupt_stops_at_once_says_how_to_go_on_and_leaves_no_worker(tmp_path: Path) -> None:
    process = start(tmp_path / "out", 1.0)
    assert wait_for(lambda: len(steps_kept(tmp_path / "out")) == 2)
    workers = workers_of(process)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode != 0
    assert "interrupted; the same command goes on from here" in errors
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)

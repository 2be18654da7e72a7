from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from core.errors import InputError, MissingExtra
from core.study import StudyError
from core.study.engines import open_engine
from core.study.store import Store
from core.study.task import Task, execute
from tests.core.toy_study import ToyStudy, Walk

FROM_ELSEWHERE = """
import sys
from tests.core.toy_study import ToyStudy
study = ToyStudy(study="toy", seeds=3, share=True)
study.run(sys.argv[1], engine="ray", address=sys.argv[2], device="cpu", quiet=True)
"""

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@needs_ray
def test_ray_gives_exactly_what_one_process_gives(tmp_path: Path) -> None:
    study = ToyStudy(study="toy", seeds=3, share=True)
    study.run(tmp_path / "inline", workers=0, quiet=True)
    with open_engine("ray", None, 2, 3, "cpu"):
        import ray

        address = ray.get_runtime_context().gcs_address
        assert address.startswith("127.0.0.1:")
        # this process has a cluster already, which is used and left running
        study.run(tmp_path / "here", engine="ray", device="cpu", quiet=True)
        with pytest.raises(StudyError, match=r"^1 of 2 runs failed\nwalk 1 .*ValueError: seed 1 is unlucky"):
            ToyStudy(study="toy", fault="raise").run(tmp_path / "fails", engine="ray", device="cpu", quiet=True)
        assert len(list(tmp_path.glob("fails/runs/*/result.nc"))) == 1
        command = [sys.executable, "-c", FROM_ELSEWHERE, str(tmp_path / "elsewhere"), address]
        subprocess.run(command, check=True)
        assert ray.is_initialized()
    assert not ray.is_initialized()
    for walk in study.walks():
        results = [tmp_path / name / "runs" / walk.hash / "result.nc" for name in ("inline", "here", "elsewhere")]
        one, two, three = (xr.load_dataset(path)["position"] for path in results)
        assert np.array_equal(one, two)
        assert np.array_equal(one, three)


@needs_ray
def test_a_cluster_that_does_not_answer_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--address 127.0.0.1:1: no Ray cluster there: [^\n]*$"):
        ToyStudy(study="toy").run(tmp_path / "out", engine="ray", address="127.0.0.1:1", quiet=True)
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("core.errors.importlib.import_module", absent)
    with pytest.raises(MissingExtra, match=r'pip install "szilard\[ray\]"'):
        ToyStudy(study="toy").run(tmp_path / "out", engine="ray", quiet=True)


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    outcome = execute(Task(tmp_path / "out", "0" * 16, Walk(seed=0), "cpu"))
    assert f"does not see {tmp_path / 'out'}: use a shared file system" in outcome.error
    with Store(tmp_path / "out").open("toy", "1" * 16, ""):
        assert "does not see" in execute(Task(tmp_path / "out", "0" * 16, Walk(seed=0), "cpu")).error
    assert list((tmp_path / "out" / "runs").iterdir()) == []

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core import files
from core.errors import InputError
from core.study.store import Store
from tests.core.toy_study import ToyStudy


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        files.write(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_holds_no_number_that_json_lacks() -> None:
    import numpy as np
    import torch

    data = {"a": float("nan"), "b": np.float32(0.5), "c": torch.tensor(3), "d": np.bool_(True), "e": (1, -np.inf)}
    assert files.jsonable(data) == {"a": None, "b": 0.5, "c": 3, "d": True, "e": [1, None]}


def test_another_study_is_refused_and_fresh_removes_only_what_a_study_wrote(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second = ToyStudy(study="toy"), ToyStudy(study="toy", seeds=1)
    first.run(out, workers=0, quiet=True)
    message = rf"^{out} holds study toy with config hash {first.hash}, this is toy with {second.hash}: choose"
    with pytest.raises(InputError, match=message):
        second.run(out, workers=0, quiet=True)
    assert (out / "summary.json").exists()
    mine = [out / "notes.txt", out / "figures" / "mine.svg", out / "runs" / "mine" / "a.txt"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("keep")
    second.run(out, workers=0, quiet=True, fresh=True)
    assert all(path.read_text() == "keep" for path in mine)
    assert len(list(out.glob("runs/*/result.nc"))) == 1


def test_a_folder_that_is_no_study_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / "runs").mkdir()
    study = ToyStudy(study="toy")
    for fresh in (False, True):
        with pytest.raises(InputError, match=r"holds runs, which no study wrote"):
            study.run(tmp_path, workers=0, quiet=True, fresh=fresh)
    with pytest.raises(InputError, match=r"thesis.tex: not a folder"):
        study.run(tmp_path / "thesis.tex", workers=0, quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "thesis.tex"]
    with pytest.raises(InputError, match="holds no study toy"):
        study.report(tmp_path)


def test_clearing_leaves_what_is_not_ours_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    ToyStudy(study="toy").run(out, workers=0, quiet=True)
    mine = [out / "figures" / "mine.png", out / "runs" / "0123456789abcdef-copy" / "notes.txt"]
    mine[1].parent.mkdir()
    for path in mine:
        path.write_text("mine")

    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        ToyStudy(study="toy").run(out, workers=0, quiet=True, fresh=True)
    monkeypatch.undo()
    ToyStudy(study="other").run(out, workers=0, quiet=True, fresh=True)
    assert all(path.read_text() == "mine" for path in mine)


def test_a_second_process_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from tests.core.toy_study import ToyStudy\n"
        "try: ToyStudy(study='toy').run(sys.argv[1], workers=0, quiet=True)\n"
        "except Exception as error: print(f'{type(error).__name__}: {error}')"
    )
    with Store(tmp_path / "out").lock():
        output = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True)
    assert output.stdout == f"InputError: {tmp_path / 'out'}: another szilard process is at work in this folder\n"
    ToyStudy(study="toy").run(tmp_path / "out", workers=0, quiet=True)

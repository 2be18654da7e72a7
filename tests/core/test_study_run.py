from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from core.errors import InputError
from core.study import Results, StudyError
from core.study.store import Store
from tests.core.toy_study import Scale, ToyStudy


def positions(out: Path) -> dict[int, np.ndarray]:
    results = [xr.load_dataset(path) for path in out.glob("runs/*/result.nc")]
    return {int(r.attrs["seed"]): r["position"].values for r in results if "position" in r}


def journal(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for path in out.glob("runs/*/log.jsonl") for line in path.read_text().splitlines()]


def test_processes_give_exactly_what_one_process_gives(tmp_path: Path) -> None:
    study = ToyStudy(study="toy", seeds=3, share=True)
    study.run(tmp_path / "inline", workers=0, quiet=True)
    study.run(tmp_path / "local", workers=2, quiet=True)
    inline, local = positions(tmp_path / "inline"), positions(tmp_path / "local")
    assert inline.keys() == local.keys() == {0, 1, 2}
    assert all(np.array_equal(inline[seed], local[seed]) for seed in inline)
    # one shared input, done once; one product, made once although two processes wanted it at the same time
    assert len(list(tmp_path.glob("local/runs/*/result.nc"))) == 4
    (attempts,) = tmp_path.glob("local/products/*/attempts.txt")
    assert attempts.read_text() == "x"
    assert not list(tmp_path.glob("local/products/*.making"))


def test_inputs_come_first_and_reach_the_run_under_the_name_of_their_field(tmp_path: Path) -> None:
    plain, shared = ToyStudy(study="plain"), ToyStudy(study="shared", share=True)
    plain.run(tmp_path / "plain", workers=0, quiet=True)
    shared.run(tmp_path / "shared", workers=0, quiet=True)
    one, two = positions(tmp_path / "plain"), positions(tmp_path / "shared")
    assert all(np.allclose(two[seed], Scale().value * one[seed], rtol=1e-15) for seed in one)


def test_result_carries_its_provenance(tmp_path: Path) -> None:
    study = ToyStudy(study="toy", seeds=1, share=True)
    study.run(tmp_path / "out", workers=0, quiet=True)
    (walk,) = study.walks()
    assert walk.table is not None
    results = Results(tmp_path / "out", study.runs())
    result = results[walk]
    attributes = result.attrs
    assert attributes["config_hash"] == walk.hash
    assert json.loads(attributes["config"])["class"] == "tests.core.toy_study:Walk"
    assert attributes["products"] == walk.table.hash
    assert results.product(walk.table) == tmp_path / "out" / "products" / walk.table.hash
    assert attributes["threads"] == 1
    assert {"version", "commit", "device", "python", "torch", "numpy", "xarray", "started", "seconds"} <= set(
        attributes
    )
    assert result["position"].encoding["zlib"]
    # a unit of time stays a unit
    assert result["position"].attrs["units"] == "m"
    assert walk.scale is not None
    assert results[walk.scale]["scale"].dtype == np.float64
    assert results[walk.scale]["scale"].attrs["units"] == "days"
    assert not (tmp_path / "out" / "runs" / walk.hash / "checkpoint").exists()
    assert len(results) == 2
    with pytest.raises(KeyError):
        results[walk.model_copy(update={"seed": 99})]


def test_finished_runs_are_kept_and_seconds_add_up(tmp_path: Path) -> None:
    study = ToyStudy(study="toy")
    first = study.run(tmp_path / "out", workers=0, quiet=True)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/runs/*/result.nc")}
    kept = Store(tmp_path / "out").manifest()["seconds"]
    again = study.run(tmp_path / "out", workers=0, quiet=True)
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/runs/*/result.nc")}
    assert Store(tmp_path / "out").manifest()["seconds"] == kept > 0
    assert first.table[0] == again.table[0]
    fresh = study.run(tmp_path / "out", workers=0, quiet=True, fresh=True)
    assert not stamps.items() & {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/runs/*/result.nc")}.items()
    assert fresh.table[0] == first.table[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_raises_does_not_stop_the_others(tmp_path: Path, workers: int) -> None:
    study = ToyStudy(study="toy", seeds=3, fault="raise")
    with pytest.raises(StudyError) as error:
        study.run(tmp_path / "out", workers=workers, quiet=True)
    head, line = str(error.value).splitlines()
    key = study.walks()[-1].hash
    assert head == "1 of 3 runs failed"
    assert line.startswith(f"walk 2 [{key}]: ValueError: seed 2 is unlucky; see ")
    assert "Traceback" in (tmp_path / "out" / "runs" / key / "error.txt").read_text()
    assert positions(tmp_path / "out").keys() == {0, 1}
    assert not (tmp_path / "out" / "summary.json").exists()
    with pytest.raises(InputError, match=rf"not finished: walk 2 \[{key}\]"):
        study.report(tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_takes_only_its_own_run_along(tmp_path: Path, workers: int) -> None:
    study = ToyStudy(study="toy", seeds=3, fault="exit")
    with pytest.raises(StudyError, match=r"walk 2 .*a worker process died"):
        study.run(tmp_path / "out", workers=workers, quiet=True)
    assert positions(tmp_path / "out").keys() == {0, 1}


def test_an_option_that_cannot_be_leaves_nothing_behind(tmp_path: Path) -> None:
    study = ToyStudy(study="toy")
    for options in ({"device": "tpu"}, {"engine": "slurm"}, {"workers": -1}, {"address": "127.0.0.1:1"}):
        with pytest.raises(InputError, match=rf"^--{next(iter(options))} "):
            study.run(tmp_path / "out", quiet=True, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_plain_progress_tells_each_start_and_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ToyStudy(study="toy", seeds=2).run(tmp_path / "out", workers=0)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert [line.split(" [")[0] for line in lines] == [
        "started  walk 0",
        "finished walk 0",
        "started  walk 1",
        "finished walk 1",
    ]
    assert captured.out == ""


def test_progress_is_kept_at_most_twice_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_DELAY", "0.02")
    started = time.monotonic()
    ToyStudy(study="toy", seeds=1, steps=60).run(tmp_path / "out", workers=0, quiet=True)
    elapsed = time.monotonic() - started
    fractions = [entry["progress"] for entry in journal(tmp_path / "out") if "progress" in entry]
    assert 2 <= len(fractions) <= 2 * elapsed + 2
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1

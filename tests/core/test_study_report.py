from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import xarray as xr

from core.study import numbers
from core.study.analysis import Row, Summary, side_by_side
from core.study.terminal import print_summary
from tests.core.toy_study import ToyStudy


def test_summary_has_exactly_the_keys_of_the_contract(tmp_path: Path) -> None:
    summary = ToyStudy(study="toy").run(tmp_path, workers=0, quiet=True)
    data = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert list(data) == ["study", "config_hash", "version", "seconds", "claims", "table"]
    claim = ["id", "statement", "holds", "reason", "difference", "low", "high", "n", "p", "test"]
    assert list(data["claims"][0]) == claim
    assert list(data["table"][0]) == ["scenario", "method", "metric", "unit", "mean", "low", "high", "n"]
    # numbers that are none become null
    assert [data["table"][1][key] for key in ("mean", "low", "high", "n")] == [None] * 4
    assert data["claims"][0]["holds"] is True
    assert data["config_hash"] == summary.config_hash == ToyStudy(study="toy").hash
    assert data["seconds"] > 0
    assert xr.load_dataset(tmp_path / "results.nc")["end"].shape == (2,)


@pytest.mark.parametrize(("threshold", "holds"), [(-1e6, True), (1e6, False), (None, False)])
def test_only_a_claim_that_is_decided_and_holds_counts(tmp_path: Path, threshold: float | None, holds: bool) -> None:
    study = ToyStudy(study="toy", threshold=threshold)
    assert study.run(tmp_path, workers=0, quiet=True).all_hold is holds


def test_report_is_one_safe_page_with_everything_on_it(tmp_path: Path) -> None:
    study = ToyStudy(study="toy", description="Walks & <b>more</b>.", share=True, threshold=None)
    summary = study.run(tmp_path, workers=0, quiet=True)
    page = summary.report.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "http" not in page
    # text of users is text, not markup
    assert "<b>more" not in page
    assert "Walks &amp; &lt;b&gt;more" in page
    assert "The walk ends &amp; stays &lt;far&gt;." in page
    assert "Not decided" in page
    assert "A note." in page
    assert "Where walks end." in page
    assert study.hash in page
    assert all(f"<code>{walk.hash}</code>" in page for walk in study.walks())
    assert "data:image/png;base64,iVBOR" in page
    assert (tmp_path / "figures" / "ends.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figures" / "ends.pdf").read_bytes().startswith(b"%PDF")


def test_report_comes_again_from_the_stored_results_alone(tmp_path: Path) -> None:
    study = ToyStudy(study="toy")
    first = study.run(tmp_path, workers=0, quiet=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*")}
    (tmp_path / "figures" / "old.png").write_bytes(b"")
    (tmp_path / "report.html").unlink()
    again = study.report(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*")}
    assert again.content()["table"] == first.content()["table"]
    assert again.report.exists()
    with (tmp_path / "table.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["method"] for row in rows] == [row.method for row in first.table]
    assert float(rows[0]["mean"]) == first.table[0].mean
    assert rows[1]["mean"] == ""  # not a number
    assert (tmp_path / "figures" / "old.png").exists()  # not ours, not removed


def test_terminal_shows_table_claims_and_last_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_summary(ToyStudy(study="toy", threshold=1e6).run(tmp_path, workers=0, quiet=True))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 or lines[-1] == str(tmp_path / "report.html")
    assert "estimate [low, high]" in lines[0]
    assert "line <1>" in lines[0]
    assert any(line.startswith("does not hold  far: The walk ends & stays <far>.") for line in lines)
    assert "0 of 1 claims hold." in lines
    assert lines[-1] == str(tmp_path / "report.html")


def test_a_headline_puts_metrics_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = ("catch", "other", "risk")
    rows = [Row("A", m, metric, "t", i, i - 1, i + 1, 9) for i, m in enumerate("xy") for metric in metrics]
    print_summary(Summary("s", "0", "0", 1.0, [], rows, tmp_path), ("catch", "risk"))
    header, units, x, y, note, *_ = capsys.readouterr().out.splitlines()
    assert (header.split(), units.split()) == (["catch", "risk"], ["A", "(t)", "(t)"])
    assert (x.split()[0], y.split()[0]) == ("x", "y")
    assert x.count("[-1.0, 1.0]") == 2
    assert "n = 9" in note


def test_a_narrow_terminal_has_the_headline_one_below_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = ("catch", "other", "risk", "cost")
    rows = [Row("A", m, metric, "t", i, i - 1, i + 1, 9) for i, m in enumerate("xy") for metric in metrics]
    monkeypatch.setenv("COLUMNS", "45")
    print_summary(Summary("s", "0", "0", 1.0, [], rows, tmp_path), metrics[::-1])
    header, *lines = (" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[:-1])
    values = ["x 0.0 [-1.0, 1.0] 9", "y 1.0 [0.0, 2.0] 9"]
    assert header == "A estimate [low, high] n"
    assert lines == [line for metric in metrics[::-1] for line in (f"{metric} (t)", *values)]


def test_rows_that_are_compared_stand_together() -> None:
    rows = [Row(s, m, metric, "t", 1.0) for s in "AB" for m in ("x", "y") for metric in ("catch", "risk")]
    groups = side_by_side(rows)
    assert list(groups) == ["A", "B"]
    assert list(groups["A"]) == ["catch (t)", "risk (t)"]
    assert [row.method for row in groups["B"]["risk (t)"]] == ["x", "y"]


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (66.7123, 66.301, 67.107, "66.71 [66.30, 67.11]"),
        (19431.2, 18223.1, 20567.9, "19,431 [18,223, 20,568]"),
        (0.9104, 0.8971, 0.9222, "0.910 [0.897, 0.922]"),
        (-0.0004, -0.031, 0.027, "0.000 [-0.031, 0.027]"),
        (0.25, None, None, "0.2500"),
        (5.0, 5.0, 5.0, "5 [5, 5]"),
        (1.2345e-9, 1.1e-9, 1.3e-9, "1.23e-09 [1.1e-09, 1.3e-09]"),
        (None, None, None, "–"),
    ],
)
def test_numbers_have_the_digits_that_their_interval_bears(
    value: float | None, low: float | None, high: float | None, text: str
) -> None:
    assert numbers.estimate(value, low, high) == text

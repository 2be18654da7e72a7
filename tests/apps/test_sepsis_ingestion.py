"""Ingestion: a user's records become a cohort file, a report and a page, none of which names a patient."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from apps.sepsis.cohort_page import cohort_page
from apps.sepsis.ingestion import ingest
from apps.sepsis.model_card import WARNING, model_card, write_model_card
from core.errors import InputError
from core.study import Claim, Row
from simulators.sepsis import (
    FLUID_ML,
    STATE,
    VASOPRESSOR,
    Cohort,
    Sepsis44,
    fluid_level,
    simulate_cohort,
    vasopressor_level,
)
from simulators.sepsis.report import describe


@pytest.fixture(scope="module")
def simulated() -> Cohort:
    return simulate_cohort(Sepsis44(), 120, seed=3)


def exported(cohort: Cohort, path: Path) -> Path:
    """The cohort as the AI Clinician's table, doses those of its levels."""
    assert cohort.raw is not None
    steps = cohort.steps()
    table = pd.DataFrame(cohort.flat(cohort.raw).double().numpy(), columns=list(STATE))
    table.insert(0, "bloc", (steps.step + 1).numpy())
    table.insert(1, "icustayid", (steps.patient + 777_000).numpy())
    table["input_4hourly"] = np.array(FLUID_ML)[fluid_level(steps.action).numpy()]
    table["max_dose_vaso"] = np.array(VASOPRESSOR)[vasopressor_level(steps.action).numpy()]
    table["died_within_48h_of_out_time"] = (cohort.outcome[steps.patient] < 0).int().numpy()
    table.to_csv(path, index=False)
    return path


class Tags(HTMLParser):
    """Opened and not closed tags, and addresses that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag


def test_simulated_records_survive_the_way_through_a_file(simulated: Cohort, tmp_path: Path) -> None:
    path = exported(simulated, tmp_path / "MIMICtable.csv")
    report = ingest(path, tmp_path / "out", measures=False)
    found = Cohort.load(tmp_path / "out" / "cohort.nc")
    longer = simulated.lengths > 1
    expected = simulated.take(longer.nonzero()[:, 0])
    assert torch.equal(found.outcome, expected.outcome)
    assert torch.equal(found.mask, expected.mask)
    assert found.raw is not None
    assert expected.raw is not None
    assert torch.allclose(found.raw, expected.raw, rtol=1e-5)
    # SOFA here sees the dose before the step, a table's the dose of the step.
    assert next(check for check in report.scores if check.name == "SIRS").differs == 0.0
    assert sum(report.actions) == int(found.mask.sum())


def test_reports_name_no_patient_and_load_nothing(simulated: Cohort, tmp_path: Path) -> None:
    path = exported(simulated, tmp_path / "MIMICtable.csv")
    ingest(path, tmp_path / "out", measures=False)
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["source"] == "ai_clinician"
    assert sum(split["trajectories"] for split in content["splits"]) == content["flow"][-1]["trajectories"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert WARNING in page
    for name in ("report.json", "report.html"):
        assert "777" not in (tmp_path / "out" / name).read_text().replace("0.777", "")
    tags = Tags()
    tags.feed(page)
    assert not tags.opened
    assert not tags.loads


def test_page_escapes_what_a_file_brings(simulated: Cohort) -> None:
    report = describe(simulated, warnings=["<script>alert(1)</script>"], measures=False)
    assert "<script>" not in cohort_page(report)
    assert "<script>" not in model_card("<script>", report, {"a": "<script>"})


def test_refused_records_leave_nothing(simulated: Cohort, tmp_path: Path) -> None:
    path = exported(simulated, tmp_path / "MIMICtable.csv")
    text = path.read_text().splitlines()
    text[2] = text[2].replace(text[2].split(",")[10], "nan", 1)
    path.write_text("\n".join(text))
    with pytest.raises(InputError, match="row 1: "):
        ingest(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="file"):
        ingest(exported(simulated, path), blocked / "out", measures=False)


def test_model_card_warns_and_keeps_its_tables(simulated: Cohort, tmp_path: Path) -> None:
    report = describe(simulated, measures=False)
    write_model_card(
        tmp_path / "card.md",
        "Policy | half debate",
        report,
        {"lambda": 0.5, "net": "64|64"},
        table=[Row("sepsis44", "debate 0.5", "survival", "1", 0.87, 0.86, 0.88, 3000)],
        claims=[Claim("no_worse", "It survives no worse", None, "one seed")],
        provenance={"version": "1"},
    )
    card = (tmp_path / "card.md").read_text()
    assert WARNING in card
    assert "- not decided: It survives no worse one seed" in card
    for block in card.split("\n\n"):
        if block.startswith("|"):
            bars = {line.replace("\\|", "").count("|") for line in block.splitlines()}
            assert len(bars) == 1

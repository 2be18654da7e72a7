"""Readers of cohorts: every layout gives the same cohort, and what is wrong is named by file, column and row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from core.errors import InputError
from simulators.sepsis import INDEX, STATE, Cohort, sirs, sofa
from simulators.sepsis.features import CENTRED, COHORT_COLUMNS, LOG_SCALED
from simulators.sepsis.measures import dataset_measures
from simulators.sepsis.readers import DoseBins, read_cohort
from simulators.sepsis.readers.units import MEDIANS

KEYS = ("traj", "step", "m:presumed_onset", "m:charttime", "m:icustayid")


def records(patients: int = 60, seed: int = 0) -> pd.DataFrame:
    """Made-up records in units, with the columns of the RAW file of microsoft/mimic_sepsis."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, 9, patients)
    traj = np.repeat(np.arange(patients), lengths)
    n = len(traj)
    table = {name: np.round(random.uniform(*MEDIANS.get(name, (0.0, 5000.0)), n), 3) for name in COHORT_COLUMNS}
    table |= {"HR": random.normal(90, 15, n).round(), "GCS": random.integers(3, 16, n)}
    table |= {name: np.repeat(random.integers(0, 2, patients), lengths) for name in ("gender", "re_admission")}
    table |= {"mechvent": random.integers(0, 2, n), "output_4hourly": random.integers(0, 800, n)}
    for name, scale in (("input_4hourly", 300.0), ("max_dose_vaso", 0.2)):
        table[name] = np.round(random.exponential(scale, n), 3) * (random.uniform(size=n) < 0.6)
    cells = {name: torch.tensor(np.asarray(values, dtype=np.float64)) for name, values in table.items()}
    table["SOFA"] = sofa(
        *(cells[name] for name in ("PaO2_FiO2", "Platelets_count", "Total_bili", "MeanBP", "max_dose_vaso")),
        *(cells[name] for name in ("GCS", "Creatinine", "output_4hourly")),
    ).numpy()
    table["SIRS"] = sirs(*(cells[name] for name in ("Temp_C", "HR", "RR", "paCO2", "WBC_count"))).numpy()
    last = np.append(np.diff(traj) != 0, True)
    outcome = np.where(np.arange(patients) % 4 == 0, -1, 1)
    step = np.arange(n) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return pd.DataFrame(
        {
            **{
                "traj": traj,
                "step": step,
                "m:presumed_onset": 7,
                "m:charttime": 7 + step,
                "m:icustayid": 200_000 + traj,
            },
            **{f"o:{name}": table[name] for name in COHORT_COLUMNS},
            **{"a:action": random.integers(0, 25, n), "r:reward": np.where(last, outcome[traj], 0)},
        }
    )


def normalised(table: pd.DataFrame) -> pd.DataFrame:
    """The same as the extraction writes it normalised."""
    table = table.copy()
    for name in COHORT_COLUMNS:
        values = table[f"o:{name}"].astype(float)
        if name in (*CENTRED, "re_admission"):
            table[f"o:{name}"] = values - 0.5
        else:
            values = np.log(0.1 + values) if name in (*LOG_SCALED, "input_4hourly") else values
            table[f"o:{name}"] = (values - values.mean()) / values.std()
    return table


def ai_clinician(table: pd.DataFrame) -> pd.DataFrame:
    """The same in the AI Clinician's layout."""
    died = (table.groupby("traj")["r:reward"].transform("sum") < 0).astype(int)
    out = table.rename(columns=lambda name: name.split(":")[-1]).drop(columns=["traj", "action", "reward"])
    out = out.rename(columns={"step": "bloc"}).assign(bloc=table["step"] + 1, died_within_48h_of_out_time=died)
    return out.assign(mortality_90d=1 - died, age=out["age"] * 365.25)


def written(table: pd.DataFrame, path: Path) -> Path:
    table.to_csv(path, index=False)
    return path


def same(a: Cohort, b: Cohort) -> bool:
    names = ("state", "action", "mask", "outcome", "split")
    return all(torch.allclose(getattr(a, name).double(), getattr(b, name).double(), atol=1e-4) for name in names)


def refusal(table: pd.DataFrame, folder: Path, **options: object) -> str:
    with pytest.raises(InputError) as error:
        read_cohort(written(table, folder / "cohort.csv"), measures=False, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value).replace(f"{folder}/", "")


def test_every_layout_gives_the_same_cohort(tmp_path: Path) -> None:
    table = records()
    first, report = read_cohort(written(table, tmp_path / "raw.csv"), measures=False)
    shuffled = ai_clinician(table).sample(frac=1.0, random_state=1)
    # Which trajectory comes first decides the order of patients, so keep their first rows in order.
    shuffled = shuffled.sort_values("icustayid", kind="stable")
    second, _ = read_cohort(written(shuffled, tmp_path / "table.csv.gz"), measures=False)
    mimic_iv = ai_clinician(table).rename(columns={"icustayid": "stay_id", "HR": "heart_rate"})
    (tmp_path / "map.yaml").write_text("HR: heart_rate\n")
    third, _ = read_cohort(
        written(mimic_iv, tmp_path / "iv.csv"), column_map=tmp_path / "map.yaml", layout="ai_clinician", measures=False
    )
    fourth, _ = read_cohort(
        written(normalised(table), tmp_path / "normalised.csv"), raw=tmp_path / "raw.csv", measures=False
    )
    assert same(first, second)
    assert same(first, third)
    assert same(first, fourth)
    steps = first.steps("train")
    assert steps.state[:, INDEX["Creatinine"]].mean().abs() < 1e-4
    assert (steps.state[:, INDEX["Creatinine"]].std() - 1).abs() < 1e-4
    assert torch.equal(first.flat(first.raw)[:, INDEX["HR"]], torch.tensor(table["o:HR"].to_numpy()).float())  # type: ignore[arg-type]
    assert report.flow[0].steps == len(table)
    assert report.flow[-1].trajectories == 60
    assert sum(report.actions) == len(table)


def test_parquet_equals_csv(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    table = records()
    table.to_parquet(tmp_path / "raw.parquet")
    first, _ = read_cohort(tmp_path / "raw.parquet", measures=False)
    second, _ = read_cohort(written(table, tmp_path / "raw.csv"), measures=False)
    assert same(first, second)


def test_normalised_file_keeps_its_values_and_says_so(tmp_path: Path) -> None:
    table = normalised(records())
    table["o:input_total"] *= 2
    cohort, report = read_cohort(written(table, tmp_path / "n.csv"), measures=False)
    assert cohort.raw is None
    assert cohort.normalisation is None
    expected = torch.tensor(table[[f"o:{name}" for name in STATE]].to_numpy()).float()
    assert torch.equal(cohort.steps().state, expected)
    assert cohort.steps().action.tolist() == table["a:action"].tolist()
    assert any("own normalisation" in line for line in report.warnings)
    assert any("doubled" in line for line in report.warnings)


def test_cohort_survives_its_file_without_ids(tmp_path: Path) -> None:
    table = records()
    table["m:icustayid"] += 987_000_000
    cohort, report = read_cohort(written(table, tmp_path / "raw.csv"), measures=False)
    cohort.save(tmp_path / "cohort.nc")
    assert same(cohort, Cohort.load(tmp_path / "cohort.nc"))
    told = report.to_json() + json.dumps(dict(cohort.origin))
    assert "98720" not in told
    assert str(tmp_path) not in told


def test_dose_levels_are_the_quarters_of_average_ranks() -> None:
    doses = np.round(np.random.default_rng(0).exponential(1.0, 500), 1)
    given = doses > 0
    rank = pd.Series(doses[given]).rank(method="average").to_numpy() / given.sum()
    expected = np.zeros(500)
    expected[given] = np.floor(4 * (rank + 0.25 - 1e-10))
    found = DoseBins.fit(doses, "dose")
    assert np.array_equal(found.level(doses), expected)
    assert found.medians[0] == 0.0
    with pytest.raises(InputError, match="vaso: its doses"):
        DoseBins.fit(np.zeros(3), "vaso")


def test_bins_come_of_the_training_split(tmp_path: Path) -> None:
    table = records()
    cohort, report = read_cohort(written(table, tmp_path / "raw.csv"), measures=False)
    split = cohort.split.repeat_interleave(cohort.lengths).numpy()
    bins = [DoseBins.fit(table[f"o:{n}"].to_numpy()[split == 0], n) for n in ("input_4hourly", "max_dose_vaso")]
    fluid, vasopressor = (
        b.level(table[f"o:{n}"].to_numpy()) for b, n in zip(bins, report.origin["doses"], strict=True)
    )
    assert cohort.steps().action.tolist() == (5 * fluid + vasopressor).tolist()
    assert report.origin["doses"]["max_dose_vaso"]["cuts"] == bins[1].cuts
    own, _ = read_cohort(tmp_path / "raw.csv", actions="file", measures=False)
    assert own.steps().action.tolist() == table["a:action"].tolist()


def test_short_trajectories_are_dropped_and_long_ones_are_not_cut_unless_asked(tmp_path: Path) -> None:
    table = records()
    alone = table["traj"] == 3
    table = table[~alone | (table["step"] == 0)]
    table.loc[alone, "r:reward"] = 1
    long = pd.concat([table[table["traj"] == 5].iloc[:1]] * 40).assign(step=range(40))
    long["r:reward"] = [0] * 39 + [-1]
    table = pd.concat([table[table["traj"] != 5], long])
    cohort, report = read_cohort(written(table, tmp_path / "raw.csv"), measures=False)
    assert cohort.mask.shape == (59, 40)
    assert report.lengths[2] == 40
    assert report.flow[0].trajectories - report.flow[1].trajectories == 1
    cut, _ = read_cohort(tmp_path / "raw.csv", horizon=21, measures=False)
    assert cut.mask.shape == (59, 21)
    assert torch.equal(cut.outcome, cohort.outcome)


def test_stays_of_one_patient_share_a_split(tmp_path: Path) -> None:
    table = records(200)
    table["m:subject_id"] = table["traj"] // 4
    cohort, _ = read_cohort(written(table, tmp_path / "raw.csv"), measures=False)
    assert bool((cohort.split.view(-1, 4) == cohort.split[::4, None]).all())
    assert len(torch.unique(cohort.split)) == 3


def test_own_split_is_kept(tmp_path: Path) -> None:
    table = records()
    table["split"] = np.where(table["traj"] % 3 == 0, "test", "train")
    cohort, report = read_cohort(written(table, tmp_path / "raw.csv"), measures=False)
    assert torch.equal(cohort.split == 2, torch.arange(60) % 3 == 0)
    assert report.splits[1].trajectories == 0


def test_scores_are_recomputed_and_lost_terms_are_told(tmp_path: Path) -> None:
    table = records()
    clean, report = read_cohort(written(table, tmp_path / "raw.csv"), measures=False)
    assert [check.differs for check in report.scores] == [0.0, 0.0]
    table["o:SOFA"] = np.minimum(table["o:SOFA"], 12)
    table["o:SIRS"] = (table["o:Temp_C"] >= 38) | (table["o:Temp_C"] <= 36)
    table["o:SIRS"] = table["o:SIRS"].astype(int)
    cohort, report = read_cohort(written(table, tmp_path / "raw.csv"), measures=False)
    assert any("SOFA" in line and "coma and kidney" in line for line in report.warnings)
    assert any("SIRS" in line and "temperature" in line for line in report.warnings)
    again, _ = read_cohort(tmp_path / "raw.csv", recompute_scores=True, measures=False)
    assert same(again, clean)
    assert not same(again, cohort)


def test_scores_at_their_bounds() -> None:
    def one(*values: float) -> list[torch.Tensor]:
        return [torch.tensor([value]) for value in values]

    healthy = (400.0, 150.0, 1.1, 70.0, 0.0, 15.0, 1.1, 84.0)
    assert sofa(*one(*healthy)).item() == 0
    assert sofa(*one(99.0, 19.0, 12.0, 50.0, 0.2, 5.0, 5.0, 10.0)).item() == 24
    worse = {0: 399.0, 1: 149.0, 2: 1.2, 3: 69.0, 5: 14.0, 6: 1.2}
    for place, value in worse.items():
        assert sofa(*one(*(value if i == place else x for i, x in enumerate(healthy)))).item() == 1
    assert sofa(*one(*healthy[:4], 0.1, *healthy[5:])).item() == 3
    assert sofa(*one(*healthy[:7], 33.0)).item() == 4
    assert sirs(*one(37.0, 90.0, 19.0, 33.0, 11.9)).item() == 0
    assert sirs(*one(36.0, 91.0, 10.0, 32.0, 3.9)).item() == 4


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("a:action", 7, 25, "row 7: a:action is 25, must be a whole number from 0 to 24"),
        ("a:action", 7, 2.5, "row 7: a:action is 2.5, must be a whole number from 0 to 24"),
        ("o:HR", 9, np.nan, "row 9: o:HR is empty or NaN, must be a finite number"),
        ("o:HR", 9, np.inf, "row 9: o:HR is infinite, must be a finite number"),
        ("o:HR", 9, "high", "row 9: o:HR is not a number, must be a finite number"),
        ("o:SGPT", 2, -1.0, "row 2: o:SGPT must be at least 0 (U/L)"),
        ("o:gender", 4, 2, "row 4: o:gender must be 0 or 1"),
        ("o:input_4hourly", 4, -3, "row 4: o:input_4hourly must be at least 0, a dose"),
        ("r:reward", 0, 0.5, "row 0: r:reward is 0.5, must be 1 (survived), -1 (died) or 0"),
        ("m:icustayid", 1, 5, "row 1: m:icustayid must be the same in all rows of a trajectory"),
        ("step", 1, 0, "row 1: step 0 of this traj stands in row 0 too, must be there once"),
        ("step", 1, 77, "must be 1 after 0; gaps = close joins what is there"),
        ("traj", 3, np.nan, "row 3: traj must be an id, not empty"),
    ],
)
def test_wrong_cell_is_named(tmp_path: Path, column: str, row: int, value: object, message: str) -> None:
    table = records()
    table[column] = table[column].astype(object)
    table.loc[row, column] = value
    assert message in refusal(table, tmp_path)


def test_wrong_trajectories_are_named(tmp_path: Path) -> None:
    table = records()
    end = int((table["traj"] == 1).to_numpy().nonzero()[0][-1])
    early, both, unknown = table.copy(), table.copy(), table.copy()
    early.loc[end - 1, "r:reward"] = 1
    both.loc[end - 1, "r:reward"] = -1
    unknown.loc[end, "r:reward"] = 0
    assert f"row {end - 1}: r:reward must be 0 before the last step" in refusal(early, tmp_path)
    assert f"row {end - 1}: r:reward must be of one sign: this trajectory has both 1 and -1" in refusal(both, tmp_path)
    assert f"row {end}: r:reward must be 1 (survived) or -1 (died) at the last step" in refusal(unknown, tmp_path)
    gap = table[(table["traj"] != 2) | (table["step"] != 1)]
    gap = gap[gap["traj"].map(gap.groupby("traj").size()) > 1]
    assert "gaps = close" in refusal(gap, tmp_path)
    _, report = read_cohort(tmp_path / "cohort.csv", gaps="close", measures=False)
    assert any("closed up in 1 of 60 trajectories" in line for line in report.warnings)
    table["split"] = "train"
    table.loc[end, "split"] = "test"
    start = int((table["traj"] == 1).to_numpy().nonzero()[0][0])
    assert f"row {end}: split is test, but the same patient is in train in row {start}" in refusal(table, tmp_path)
    clinician = ai_clinician(records())
    clinician.loc[end, "died_within_48h_of_out_time"] ^= 1
    assert f"row {end}: died_within_48h_of_out_time must be the same in all rows" in refusal(clinician, tmp_path)


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    table = records()
    assert "column SOFA is missing" in refusal(table.drop(columns="o:SOFA"), tmp_path)
    assert "columns SOFA, SIRS are missing" in refusal(table.drop(columns=["o:SOFA", "o:SIRS"]), tmp_path)
    assert "its layout is unknown" in refusal(table.drop(columns="traj"), tmp_path)
    assert "must be auto" in refusal(table, tmp_path, layout="eicu")
    assert "gaps = skip: must be one of refuse, close" in refusal(table, tmp_path, gaps="skip")
    assert "horizon = 1: must be at least 2" in refusal(table, tmp_path, horizon=1)
    assert "mortality = died: must be one of" in refusal(table, tmp_path, mortality="died")
    assert "these are normalised values, must be in units" in refusal(normalised(table), tmp_path, values="raw")
    assert "these are values in units, must be normalised" in refusal(table, tmp_path, values="normalised")
    assert "values in units, must be normalised" in refusal(table, tmp_path, raw=tmp_path / "cohort.csv")
    odd = table.assign(**{"o:HR": 3.0 + np.arange(len(table)) % 2})
    assert "must be in units (40 to 180 per minute on average) or normalised" in refusal(odd, tmp_path)
    warm = table.assign(**{"o:Temp_C": 98.0})
    assert "o:Temp_C has median 98, must be within 32 to 42 degC: is it in another unit?" in refusal(warm, tmp_path)
    alive = table.assign(**{"r:reward": table["r:reward"].abs()})
    assert "needs survivors and deaths" in refusal(alive, tmp_path)
    alike = normalised(table).assign(**{"a:action": 3})
    assert "needs at least 2 different ones" in refusal(alike, tmp_path)
    blind = normalised(table).drop(columns="a:action")
    assert "column action is missing" in refusal(blind, tmp_path)
    both = table.assign(HR=1)
    assert "columns o:HR and HR both stand for HR" in refusal(both, tmp_path)
    single = table[table["step"] == 0].assign(**{"r:reward": 1})
    assert "every trajectory has one step" in refusal(single, tmp_path)
    assert "has no rows" in refusal(table.iloc[:0], tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_cohort(tmp_path / "absent.csv")
    (tmp_path / "twice.csv").write_text("traj,step,step\n1,2,3\n")
    with pytest.raises(InputError, match="column step stands there twice"):
        read_cohort(tmp_path / "twice.csv")
    lines = written(table, tmp_path / "long.csv").read_text().splitlines()
    (tmp_path / "long.csv").write_text("\n".join([lines[0], *(line + ",1" for line in lines[1:])]))
    with pytest.raises(InputError, match="more cells than its header has columns"):
        read_cohort(tmp_path / "long.csv")
    (tmp_path / "comma.csv").write_text("\n".join([*lines[:9], lines[9] + ",1", *lines[10:]]))
    with pytest.raises(InputError, match=r"cannot be read as a CSV file: .* in line 10"):
        read_cohort(tmp_path / "comma.csv")


def test_raw_file_must_belong_to_the_normalised_one(tmp_path: Path) -> None:
    table = records()
    whole = written(normalised(table), tmp_path / "n.csv")
    parts = {
        "must have the same trajectories": table[table["traj"] != 4],
        "another outcome": table.assign(**{"r:reward": -table["r:reward"]}),
        "normalised values, must be in units": normalised(table),
    }
    for message, part in parts.items():
        with pytest.raises(InputError, match=message):
            read_cohort(whole, raw=written(part, tmp_path / "raw.csv"), measures=False)
    bare = table.drop(columns=["a:action", "r:reward"])
    cohort, _ = read_cohort(whole, raw=written(bare, tmp_path / "raw.csv"), measures=False)
    assert cohort.raw is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("HR: pulse\n", "column pulse, which the column map gives for HR, is missing"),
        ("Heart: o:HR\n", "Heart: no column that is read has this name; must be one of"),
        ("Creatinin: o:HR\n", "did you mean Creatinine?"),
        ("HR: 3\n", "HR: is 3, must be the name of a column"),
        ("HR: a\nRR: a\n", "RR: the column a is already given to another name"),
        ("- HR\n", "must be a mapping"),
    ],
)
def test_wrong_column_map_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "map.yaml").write_text(text)
    assert message in refusal(records(), tmp_path, column_map=tmp_path / "map.yaml")


def test_measures_of_a_cohort(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    cohort, report = read_cohort(written(records(), tmp_path / "raw.csv"))
    assert report.measures is not None
    survived = float((cohort.subset("train").outcome > 0).float().mean())
    assert report.measures.trajectory_quality == pytest.approx(survived)
    assert 0 < report.measures.coverage <= 1
    assert dataset_measures(cohort, reference=cohort).coverage == 1.0
    some = cohort.take(torch.arange(20))
    assert dataset_measures(some, None, reference=cohort).coverage < 1.0


def test_impossible_values_are_counted_and_kept(tmp_path):
    table = records()
    assert not any("far beyond" in line for line in read_cohort(written(table, tmp_path / "a.csv"))[1].warnings)
    table.loc[[3, 8], "o:HR"] = 9999.0
    cohort, report = read_cohort(written(table, tmp_path / "b.csv"))
    assert [line for line in report.warnings if "far beyond" in line] == [
        "HR: 2 values far beyond 10 to 250 1/min; they are kept"
    ]
    assert int((cohort.raw[..., INDEX["HR"]] > 9000).sum()) == 2


def test_a_file_that_does_not_say_who_came_twice_is_doubted(tmp_path):
    table = records()
    told = read_cohort(written(table.drop(columns=["subject_id"], errors="ignore"), tmp_path / "a.csv"))[1].warnings
    assert any("no column subject_id" in line for line in told)

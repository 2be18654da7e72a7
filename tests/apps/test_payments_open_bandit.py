from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.payments.log.open_bandit import OpenBanditLog, read_open_bandit
from core.bandits.off_policy import Sums, evaluate
from core.errors import InputError

HEADER = ",timestamp,item_id,position,click,propensity_score,user_feature_0\n"
ROWS = (
    "0,2019-11-24 00:02:00.5+00:00,2,3,1,0.25,a\n",
    "1,2019-11-24 00:01:00+00:00,0,1,0,0.5,b\n",
    "2,2019-11-24T02:03:00+02:00,1,2,0,0.125,a\n",
)


@pytest.fixture(scope="module")
def logs() -> dict[str, OpenBanditLog]:
    """The two logs of the men's campaign, 10,000 impressions each."""
    folder = Path(os.environ.get("SZILARD_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
    root = folder / "payments" / "open_bandit_small"
    if not root.is_dir():
        pytest.skip(f"{root} is not there: set SZILARD_DATA")
    return {logger: read_open_bandit(root / logger / "men") for logger in ("random", "bts")}


def written(folder: Path, *rows: str, header: str = HEADER, items: int = 3) -> Path:
    """A campaign's folder with these rows."""
    campaign = folder / "men"
    campaign.mkdir(exist_ok=True)
    (campaign / "men.csv").write_text(header + "".join(rows))
    (campaign / "item_context.csv").write_text(",item_id\n" + "".join(f"{i},{i}\n" for i in range(items)))
    return campaign


# ---- the real logs, against obp 0.5.7's values

FORWARD = {
    "ips": 0.00565627,
    "snips": 0.00573986,
    "dm": 0.00558671,
    "dr": 0.00568611,
    "sndr": 0.00568757,
    "switch_dr": 0.00570780,
    "dros": 0.00559773,
}
BACKWARD = {"ips": 0.00300863, "snips": 0.00318942, "dm": 0.00504223, "dr": 0.00274919}


def test_the_random_log_values_the_bts_items(logs):
    sums = Sums.of(logs["random"].rows(logs["bts"].item_frequencies()), switch=5, shrink=5)
    table, found = evaluate(sums), sums.diagnostics()
    for name, value in FORWARD.items():
        assert table[name].mean == pytest.approx(value, abs=1e-8)
    assert found.ess == pytest.approx(2869.28, abs=0.005)
    assert found.max_weight == pytest.approx(7.4843, abs=5e-5)
    assert found.mean_weight.mean == pytest.approx(0.985436, abs=5e-7)
    assert found.verdict == "ok"
    # What bts earned when it did run is within each estimate's interval, but for the model's own bias.
    earned = logs["bts"].click_rate
    assert earned.mean == 0.0069
    assert 0.0054 < earned.low < 0.0055
    assert 0.0087 < earned.high < 0.0088
    for name in ("ips", "snips", "dr", "sndr", "switch_dr"):
        assert table[name].low < earned.mean < table[name].high


def test_the_bts_log_values_the_uniform_policy(logs):
    sums = Sums.of(logs["bts"].rows(torch.full((3, 34), 1 / 34, dtype=torch.float64)), switch=5, shrink=5)
    table, found = evaluate(sums), sums.diagnostics()
    for name, value in BACKWARD.items():
        assert table[name].mean == pytest.approx(value, abs=1e-8)
    assert found.ess == pytest.approx(655.71, abs=0.005)
    assert found.max_weight == pytest.approx(178.2531, abs=5e-5)


def test_the_real_logs_are_what_their_page_says(logs):
    assert logs["random"].click_rate.mean == 0.0046
    for log in logs.values():
        assert (len(log), log.items) == (10_000, 34)
        assert np.all(np.diff(log.timestamp) >= np.timedelta64(0))
        assert log.position.unique().tolist() == [0, 1, 2]
    assert torch.all(logs["random"].propensity == 1 / 34)
    assert float(logs["bts"].propensity.max()) == pytest.approx(0.72529)


# ---- small logs


def test_rows_are_sorted_by_time_and_positions_count_from_zero(tmp_path):
    log = read_open_bandit(written(tmp_path, *ROWS))
    assert log.item.tolist() == [0, 2, 1]
    assert log.position.tolist() == [0, 2, 1]
    assert log.click.tolist() == [0, 1, 0]
    assert log.propensity.tolist() == [0.5, 0.25, 0.125]
    assert log.timestamp[2] == np.datetime64("2019-11-24T00:03:00")
    assert log.items == 3
    assert read_open_bandit(tmp_path / "men" / "men.csv", items=7).items == 7


def test_a_probability_is_read_to_its_last_digit(tmp_path):
    probabilities = [1 / 34, 1 / 7, 1 / 3, 1e-300]
    rows = [f"{i},2019-11-24 00:0{i}:00Z,0,1,0,{value!r},a\n" for i, value in enumerate(probabilities)]
    assert read_open_bandit(written(tmp_path, *rows)).propensity.tolist() == probabilities


def test_frequencies_and_click_rates_are_counted_at_each_position(tmp_path):
    log = read_open_bandit(written(tmp_path, *ROWS, "3,2019-11-24 00:09:00Z,1,3,0,0.25,a\n"))
    assert log.item_frequencies().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0.5, 0.5]]
    expected = np.full((3, 3), 0.25)
    expected[0, 0], expected[1, 1], expected[2, 1], expected[2, 2] = 2.5 / 11, 2.5 / 11, 2.5 / 11, 3.5 / 11
    np.testing.assert_allclose(log.click_rates(), expected)
    assert log.rows(log.item_frequencies()).target.tolist() == [1, 0.5, 1, 0.5]
    assert log.rows(log.item_frequencies()).value.tolist() == pytest.approx([2.5 / 11, 3 / 11, 2.5 / 11, 3 / 11])


def test_a_position_without_impressions_has_no_frequencies(tmp_path):
    log = read_open_bandit(written(tmp_path, ROWS[0]))
    with pytest.raises(InputError, match=r"^position: 1 has no impressions, its frequencies are undefined$"):
        log.item_frequencies()
    with pytest.raises(InputError, match=r"^policy: has shape \(3, 2\), expected \(3, 3\)$"):
        log.rows(torch.ones(3, 2))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,2019-11-24 00:01:00+00:00,3,1,0,0.5,b\n", r"row 1: item_id is 3, must be a whole number in \[0, 2\]"),
        ("1,2019-11-24 00:01:00+00:00,0.5,1,0,0.5,b\n", r"row 1: item_id is 0\.5, must be a whole number in \[0, 2\]"),
        ("1,2019-11-24 00:01:00+00:00,x,1,0,0.5,b\n", r"row 1: item_id is x, must be .*"),
        ("1,2019-11-24 00:01:00+00:00,0,0,0,0.5,b\n", r"row 1: position is 0, must be 1 to 3"),
        ("1,2019-11-24 00:01:00+00:00,0,,0,0.5,b\n", r"row 1: position is nan, must be 1 to 3"),
        ("1,2019-11-24 00:01:00+00:00,0,1,2,0.5,b\n", r"row 1: click is 2, must be 0 or 1"),
        ("1,2019-11-24 00:01:00+00:00,0,1,0,0,b\n", r"row 1: propensity_score is 0.*, must be in \(0, 1\]"),
        ("1,2019-11-24 00:01:00+00:00,0,1,0,1.01,b\n", r"row 1: propensity_score is 1\.01, must be in \(0, 1\]"),
        ("1,2019-11-24 00:01:00,0,1,0,0.5,b\n", r"row 1: timestamp is .*, must be an ISO time with its time zone"),
        ("1,yesterday,0,1,0,0.5,b\n", r"row 1: timestamp is yesterday, must be an ISO time with its time zone"),
        ("1,,0,1,0,0.5,b\n", r"row 1: timestamp is nan, must be an ISO time with its time zone"),
    ],
)
def test_a_bad_cell_is_named_by_file_row_and_column(tmp_path, row, message):
    folder = written(tmp_path, ROWS[0], row)
    with pytest.raises(InputError, match=rf"^{folder}/men\.csv: {message}$"):
        read_open_bandit(folder)


def test_files_that_are_no_such_log_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.csv: no such file or directory$"):
        read_open_bandit(tmp_path / "nothing.csv", items=3)
    folder = written(tmp_path, "0,2019-11-24 00:02:00Z,2,3,1\n", header=",timestamp,item_id,position,click\n")
    with pytest.raises(InputError, match=r"men\.csv: column propensity_score is missing, expected timestamp, item_id"):
        read_open_bandit(folder)
    with pytest.raises(InputError, match=r"men\.csv: has no rows$"):
        read_open_bandit(written(tmp_path))
    (folder / "men.csv").write_text("")
    with pytest.raises(InputError, match=r"men\.csv: cannot be read as a CSV file: "):
        read_open_bandit(folder)
    (folder / "men.csv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(InputError, match=r"men\.csv: cannot be read as a CSV file: "):
        read_open_bandit(folder)
    (folder / "item_context.csv").unlink()
    with pytest.raises(InputError, match=r"item_context\.csv: no such file or directory$"):
        read_open_bandit(folder)

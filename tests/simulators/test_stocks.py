from pathlib import Path

import numpy as np
import pytest

import simulators.fishery.stocks as stocks
from core.errors import InputError
from simulators.fishery.stocks import read_stock, shipped_stocks

GOOD = ["year,catch,index", "2000,5,1.5", "2001,6,1.4", "2002,0,1.3", "2003,7,1.2", "2004,8,1.1"]


def written(tmp_path, lines, encoding="utf-8"):
    path = tmp_path / "stock.csv"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


@pytest.mark.parametrize(
    ("name", "first", "years"),
    [("south_atlantic_albacore", 1967, 23), ("namibian_hake", 1965, 24), ("nz_rock_lobster", 1945, 46)],
)
def test_shipped_stocks_have_the_years_and_units_of_their_readme(name, first, years):
    stock = read_stock(name)
    assert stock.year.tolist() == list(range(first, first + years))
    assert stock.catch.shape == stock.index.shape == (years,)
    readme = (Path(stocks.__file__).parent / "data" / "README.md").read_text()
    row = next(line for line in readme.splitlines() if f"| {name}.csv |" in line)
    assert f"| {stock.catch_unit} |" in row
    assert f"({stock.index_unit})" in row
    assert "unconfirmed" in stock.source
    assert "Polacheck" in stock.source


def test_every_shipped_file_is_listed():
    files = (Path(stocks.__file__).parent / "data").glob("*.csv")
    assert shipped_stocks() == sorted(f.stem for f in files)


def test_a_users_file_is_read_with_gaps_in_the_index(tmp_path):
    lines = [*GOOD, "2005,9,", "2006,9.5,NaN", "2007,1e1,NA", ""]
    stock = read_stock(written(tmp_path, lines), catch_unit="t")
    assert stock.year.tolist() == list(range(2000, 2008))
    assert stock.catch.tolist() == [5, 6, 0, 7, 8, 9, 9.5, 10]
    np.testing.assert_array_equal(stock.index, [1.5, 1.4, 1.3, 1.2, 1.1, np.nan, np.nan, np.nan])
    assert (stock.name, stock.catch_unit, stock.index_unit) == ("stock", "t", "index unit")
    assert read_stock(str(written(tmp_path, lines))).catch_unit == "catch unit"


def test_a_spreadsheets_byte_order_mark_and_line_ends_are_no_part_of_the_data(tmp_path):
    path = written(tmp_path, [line + "\r" for line in GOOD], encoding="utf-8-sig")
    assert read_stock(path).catch.tolist() == [5, 6, 0, 7, 8]


def replaced(line, text):
    return [*GOOD[: line - 1], text, *GOOD[line:]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (replaced(1, "year,landings,index"), "line 1 is 'year,landings,index'"),
        (GOOD[1:], "header must be 'year,catch,index'"),
        ([], "file is empty|header"),
        (replaced(3, "2001,6"), r"line 3: has 2 cell\(s\)"),
        (replaced(3, "2001,6,1.4,0"), r"line 3: has 4 cell\(s\)"),
        (replaced(3, ",6,1.4"), "line 3: year is ''"),
        (replaced(3, "2001.5,6,1.4"), "line 3: year is '2001.5'"),
        (replaced(4, "2001,6,1.4"), "line 4: year 2001 is given twice"),
        (replaced(4, "1999,6,1.4"), "line 4: year 1999 stands after 2001"),
        (replaced(4, "2003,6,1.4"), "line 4: year 2003 follows 2001: years must not have gaps"),
        (replaced(5, "2003,-1,1.2"), "line 5: catch is '-1'.*at least 0"),
        (replaced(5, "2003,,1.2"), "line 5: catch is ''"),
        (replaced(5, "2003,nan,1.2"), "line 5: catch is 'nan'"),
        (replaced(5, "2003,inf,1.2"), "line 5: catch is 'inf'"),
        (replaced(5, "2003,many,1.2"), "line 5: catch is 'many'"),
        (replaced(5, "2003,7,high"), "line 5: index is 'high'"),
        (replaced(5, "2003,7,0"), "line 5: index is '0'.*above 0"),
        (replaced(5, "2003,7,-2"), "line 5: index is '-2'"),
        (replaced(5, "2003,7,-inf"), "line 5: index is '-inf'"),
        (replaced(5, "2003,7,"), r"index has 4 value\(s\), at least 5"),
        ([GOOD[0], *(f"{y},1," for y in range(2000, 2009))], r"index has 0 value\(s\)"),
        (GOOD[:1], r"index has 0 value\(s\)"),
        ([GOOD[0], *(f"{y},0,1" for y in range(2000, 2009))], "catch is 0 in every year"),
        (replaced(5, '2003,"7,1.2'), "cannot be read as a CSV file|has .* cell"),
    ],
)
def test_a_file_that_is_not_a_series_is_refused_by_line_and_field(tmp_path, lines, message):
    path = written(tmp_path, lines)
    with pytest.raises(InputError, match=message) as refusal:
        read_stock(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_is_no_text_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent\.csv: no such file.*namibian_hake"):
        read_stock(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="no such file"):
        read_stock(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\x93NUMPY\x00\xff")
    with pytest.raises(InputError, match="cannot be read"):
        read_stock(tmp_path / "binary.csv")

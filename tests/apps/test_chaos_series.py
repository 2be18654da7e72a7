"""Users' series: what is read is what was written, and what is not allowed is told with its place."""

import gzip
import os
import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from apps.chaos.series import Series, read_series
from apps.chaos.series_writing import write_series
from core.errors import InputError

PACKAGES = {".csv": None, ".nc": None, ".zarr": "zarr", ".parquet": "pyarrow"}


def spiral(n=50, dt=0.25):
    time = 3 + dt * np.arange(n)
    values = np.stack([np.sin(time), np.exp(-time) * np.cos(7 * time), time**2 + 1e-9], axis=1)
    return Series(values, time, dt, ("x", "y", "z"), ("mV", "", "K"), "made", "seconds")


def table(path, text):
    path.write_text(text)
    return path


def rows(time, values, header="time,x"):
    lines = [header] if header else []
    return "\n".join([*lines, *(f"{t},{v}" for t, v in zip(time, values, strict=True))]) + "\n"


# ---- round trips


@pytest.mark.parametrize("suffix", PACKAGES)
def test_what_is_written_is_read_bit_for_bit(tmp_path, suffix):
    if PACKAGES[suffix]:
        pytest.importorskip(PACKAGES[suffix])
    series, path = spiral(), tmp_path / f"a{suffix}"
    for _ in range(2):  # the second time it replaces what is there
        write_series(path, series)
        back = read_series(path)
        np.testing.assert_array_equal(back.values, series.values)
        np.testing.assert_array_equal(back.time, series.time)
        assert back.dt == pytest.approx(series.dt, rel=1e-12)
        assert (back.channels, back.units, back.time_unit) == (series.channels, series.units, series.time_unit)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", PACKAGES)
def test_one_of_several_trajectories_is_chosen(tmp_path, suffix):
    if PACKAGES[suffix]:
        pytest.importorskip(PACKAGES[suffix])
    one = spiral()
    values = np.stack([one.values, one.values[::-1], 2 * one.values])
    data = xr.Dataset(
        {"states": (("trajectory", "time", "channel"), values)},
        {"time": one.time, "channel": list(one.channels)},
    )
    path = tmp_path / f"many{suffix}"
    write_series(path, data)
    with pytest.raises(InputError, match="--select trajectory=0"):
        read_series(path)
    for i in range(3):
        np.testing.assert_array_equal(read_series(path, select={"trajectory": str(i)}).values, values[i])
    with pytest.raises(InputError, match="select trajectory=3: "):
        read_series(path, select={"trajectory": "3"})


def test_a_dataset_has_named_dimensions_and_units():
    data = spiral().dataset()
    assert data["series"].dims == ("time", "channel")
    assert data["unit"].values.tolist() == ["mV", "", "K"]
    assert data.attrs["dt"] == 0.25


def test_a_store_cannot_replace_what_is_no_store(tmp_path):
    pytest.importorskip("zarr")
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="exists and is not a Zarr store"):
        write_series(tmp_path / "a.zarr", spiral())
    with pytest.raises(InputError, match=r"ends in \.txt: must end in one of"):
        write_series(tmp_path / "a.txt", spiral())


# ---- text


@pytest.mark.parametrize("separator", [",", ";", "\t", "  "])
@pytest.mark.parametrize("header", [True, False])
def test_text_is_read_with_any_separator_with_or_without_a_header(tmp_path, separator, header):
    series = spiral()
    lines = [separator.join(("time", "x", "y", "z"))] if header else ["# measured in May"]
    lines += [separator.join(map(repr, map(float, row))) for row in np.column_stack([series.time, series.values])]
    back = read_series(table(tmp_path / "a.txt", "\n".join(lines) + "\n\n"))
    np.testing.assert_array_equal(back.values, series.values)
    np.testing.assert_array_equal(back.time, series.time)
    assert back.channels == (("x", "y", "z") if header else ("c1", "c2", "c3"))


def test_plain_columns_have_no_time(tmp_path):
    # As the csv files of the dataset williamgilpin/dysts: channels alone, or numbered rows before them.
    x, y = np.cos(np.arange(30.0)), np.sin(np.arange(30.0))
    frame = pd.DataFrame({"x": x, "y": y})
    for path, index in ((tmp_path / "plain.csv", False), (tmp_path / "numbered.csv", True)):
        frame.to_csv(path, index=index)
        back = read_series(path)
        assert back.channels == ("x", "y")
        np.testing.assert_array_equal(back.values, frame.to_numpy())
        assert (back.dt, back.time_unit) == (1.0, "samples")
    assert read_series(tmp_path / "plain.csv", dt=0.1).time[-1] == pytest.approx(2.9)
    np.savetxt(tmp_path / "scalar.txt", x)
    np.testing.assert_array_equal(read_series(tmp_path / "scalar.txt").values[:, 0], x)


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "index"])
@pytest.mark.parametrize("header", ["time,x", "x"])
def test_the_index_that_pandas_writes_is_no_channel(tmp_path, name, header):
    cells = (f"{i},{0.5 * i},{i * i % 7}" if header == "time,x" else f"{i},{i * i % 7}" for i in range(20))
    path = table(tmp_path / "a.csv", "\n".join([f"{name},{header}", *cells]))
    found = read_series(str(path))
    assert found.channels == ("x",)
    assert found.dt == (0.5 if header == "time,x" else 1.0)
    # Who names it has it.
    if name:
        assert read_series(path, time=name).channels[-1] == "x"


def test_packed_text_is_read(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(rows(range(20), np.sin(range(20))).encode()))
    assert len(read_series(path)) == 20


def test_channels_are_chosen_by_name_in_their_order(tmp_path):
    path = table(
        tmp_path / "a.csv", "t,place,x [V],y (mV)\n" + "".join(f"{i},Oslo,{i % 3},{i % 5}\n" for i in range(20))
    )
    series = read_series(path, channels=["y (mV)", "x"])
    assert (series.channels, series.units) == (("y", "x"), ("mV", "V"))
    with pytest.raises(InputError, match=r"line 2, column place: 'Oslo': must be a number"):
        read_series(path)
    with pytest.raises(InputError, match="channel w: no such channel; there are: place, x, y"):
        read_series(path, channels=["w"])


@pytest.mark.parametrize(
    ("start", "step", "unit", "dt"),
    [
        ("2001-01-01", "MS", "months", 1),
        ("2001-01-31", "ME", "months", 1),
        ("2001-01-01", "QS", "months", 3),
        ("1950-01-01", "YS", "years", 1),
        ("2024-02-20", "D", "days", 1),
        ("2024-02-20T06:00", "6h", "hours", 6),
        ("2024-02-20T06:00", "250ms", "seconds", 0.25),
    ],
)
def test_dates_are_even_in_the_calendar(tmp_path, start, step, unit, dt):
    when = pd.date_range(start, periods=30, freq=step)
    path = tmp_path / "a.csv"
    pd.DataFrame({"when": when.map(lambda d: d.isoformat()), "x": np.arange(30) % 7}).to_csv(path, index=False)
    series = read_series(path)
    assert series.time_unit == unit
    assert series.dt == pytest.approx(dt, rel=1e-12)
    pd.DataFrame({"date": when, "x": np.arange(30) % 7}).set_index("date").to_xarray().to_netcdf(
        tmp_path / "a.nc", engine="h5netcdf"
    )
    back = read_series(tmp_path / "a.nc")
    assert (back.time_unit, back.dt) == (unit, pytest.approx(dt, rel=1e-12))


# ---- gaps and uneven times


def test_the_longest_part_without_gaps_is_kept(tmp_path):
    time, x = np.arange(60.0), np.sin(np.arange(60.0))
    text = [repr(float(v)) for v in x]
    text[10], text[11], text[50] = "", "NaN", "inf"
    path = table(tmp_path / "a.csv", rows(time, text))
    with pytest.raises(InputError, match=r"line 12, column x: blank or NaN: .*--drop-gaps keeps .* 38 of 60 rows"):
        read_series(path)
    series = read_series(path, drop_gaps=True)
    np.testing.assert_array_equal(series.values[:, 0], x[12:50])
    np.testing.assert_array_equal(series.time, time[12:50])
    with pytest.raises(
        InputError, match=r"38 samples in the longest part without gaps, lines 14 to 51: .* at least 40"
    ):
        read_series(path, drop_gaps=True, shortest=40)


def test_missing_rows_are_gaps(tmp_path):
    kept = np.delete(np.arange(60), [20, 21])
    path = table(tmp_path / "a.csv", rows(0.1 * kept, np.sin(kept)))
    with pytest.raises(InputError, match=r"line 22, column time: a step of 0\.3, the usual one is 0\.1: .*--resample"):
        read_series(path)
    np.testing.assert_array_equal(read_series(path, drop_gaps=True).values[:, 0], np.sin(kept)[20:])


@pytest.mark.parametrize("how", ["cubic", "linear"])
def test_resampling_reproduces_lines_exactly_and_goes_through_even_samples(tmp_path, how):
    rng = np.random.default_rng(3)
    time = np.arange(80.0) + rng.uniform(-0.3, 0.3, 80)
    path = table(tmp_path / "a.csv", rows(time, 2 * time - 5))
    with pytest.raises(InputError, match="sampling must be even within 1e-06"):
        read_series(path)
    series = read_series(path, resample=how)
    np.testing.assert_allclose(series.values[:, 0], 2 * series.time - 5, rtol=1e-12)
    np.testing.assert_allclose(np.diff(series.time), series.dt, rtol=1e-9)
    assert series.time[-1] <= time[-1] < series.time[-1] + series.dt * (1 + 1e-9)
    finer = read_series(path, resample=how, dt=0.125)
    assert finer.dt == 0.125
    np.testing.assert_allclose(finer.values[:, 0], 2 * finer.time - 5, rtol=1e-12)
    even = np.arange(40.0)
    path = table(tmp_path / "b.csv", rows(even, np.sin(even)))
    np.testing.assert_allclose(read_series(path, resample=how).values[:, 0], np.sin(even), rtol=1e-14)


def test_monotone_cubics_do_not_overshoot(tmp_path):
    time = np.arange(30.0) + 0.2 * (np.arange(30) % 2)
    steps = np.where(time < 15, 0.0, 1.0)
    series = read_series(table(tmp_path / "a.csv", rows(time, steps)), resample="cubic", dt=0.1)
    assert series.values.min() >= 0
    assert series.values.max() <= 1


def test_rounding_of_large_times_is_not_uneven(tmp_path):
    time = 1.7e9 + 0.01 * np.arange(100)
    assert read_series(table(tmp_path / "a.csv", rows(time, np.sin(time)))).dt == pytest.approx(0.01)
    time[50] += 1e-4
    with pytest.raises(InputError, match="line 52"):
        read_series(table(tmp_path / "b.csv", rows(time, np.sin(time))))


# ---- refusals

N = range(20)
REFUSALS = {
    "empty.csv": ("", "empty, must hold one row a sample"),
    "blank.csv": ("\n\n", "empty, must hold one row a sample"),
    "header.csv": ("t,x\n", "has a header but no row of numbers"),
    "short.csv": (rows(range(5), range(5)), "5 samples: must be at least 12"),
    "word.csv": (rows(N, ["1"] * 7 + ["high"] + ["2"] * 12), "line 9, column x: 'high': must be a number"),
    "comma.csv": (
        "t;x\n" + "".join(f"{i};{i},5\n" for i in N),
        "line 2, column x: '0,5': must be a number with a decimal point",
    ),
    "infinite.csv": (rows(N, ["1", "-inf"] * 10), "line 3, column x: -inf: must be a finite number"),
    "huge.csv": (rows(N, ["1", "1e200"] * 10), "line 3, column x: 1e+200: must be a finite number of at most 1e+100"),
    "tiny.csv": (rows(N, ["1e-290", "2e-290"] * 10), "column x: varies by 1e-290: must vary by at least 1e-100"),
    "hopeless.csv": (rows(N, ["1e200"] * 20), "must be a finite number of at most 1e+100 in size"),
    "constant.csv": (rows(N, ["7"] * 20), "column x: constant, 7: must vary"),
    "twice.csv": (rows([*range(10), 9, *range(10, 19)], N), "line 12, column time: 9 is the time of the row before"),
    "back.csv": (
        rows([*range(10), 4, *range(11, 20)], N),
        "line 12, column time: 4 comes after 9: times must increase",
    ),
    "untimed.csv": (rows([*range(10), "", *range(11, 20)], N), "line 12, column time: no time"),
    "noon.csv": (rows([*range(10), "noon", *range(11, 20)], N), "line 12, column time: 'noon': must be a number or a"),
    "ragged.csv": ("t,x\n1,2\n3\n", "line 3: 1 values, must be 2 as in line 1"),
    "double.csv": ("t,x,x\n1,2,3\n", "column 'x' appears twice"),
    "alone.csv": ("time\n" + "\n".join(map(str, N)), "no channel besides the time time"),
    "binary.csv": ("\xff\xfe\x00", "not text in UTF-8"),
    "letter.doc": ("x", "ends in .doc: must end in one of .csv,"),
    "bare": ("x", "ends in no suffix: must end in one of .csv,"),
    "fake.nc": ("t,x\n1,2\n", "not a NetCDF file"),
    "torn.nc": ("\x89HDF\r\n\x1a\n and no more", "cannot be read"),
    "file.zarr": ("x", "is a file: only a Zarr store is a folder"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_file_that_cannot_be_used_is_refused_with_its_place(tmp_path, name):
    text, message = REFUSALS[name]
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as refusal:
        read_series(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    # Nothing is offered that would leave nothing.
    assert ", 0 of " not in str(refusal.value)


def test_folders_and_absent_files_are_refused(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "b.csv").mkdir()
    for name, message in (
        ("a.zarr", "a folder that is not a Zarr store"),
        ("b.csv", "is a folder"),
        ("none.csv", "no such file"),
    ):
        with pytest.raises(InputError, match=re.escape(f"{tmp_path / name}: {message}")):
            read_series(tmp_path / name)


def test_options_that_do_not_fit_are_refused(tmp_path):
    timed = table(tmp_path / "timed.csv", rows(range(20), np.sin(range(20))))
    plain = table(tmp_path / "plain.csv", "x\n" + "\n".join(map(str, np.sin(range(20)))))
    for path, options, message in (
        (timed, {"dt": 0.1}, "has its own times, time"),
        (plain, {"dt": -0.1}, "dt = -0.1: must be a positive number"),
        (plain, {"resample": "cubic"}, "has no times"),
        (timed, {"resample": "quintic"}, "resample = quintic: must be cubic or linear"),
        (timed, {"resample": "cubic", "dt": 1e-9}, "must make 2 to 2000"),
        (timed, {"time": "when"}, "time when: no such column; there are: time, x, or none"),
        (timed, {"select": {"run": "1"}}, "select run: no such column"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            read_series(path, **options)
    assert read_series(timed, time="none").channels == ("time", "x")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([{"a": 1}] * 20, "text or objects"),
        ([str(i) for i in range(20)], "text or objects"),
        ([True, False] * 10, "truth values"),
    ],
)
def test_parquet_columns_that_are_no_numbers_are_refused(tmp_path, values, said):
    pytest.importorskip("pyarrow")
    pd.DataFrame({"t": np.arange(20), "x": values}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=f"column x: holds {said}: must be real numbers"):
        read_series(tmp_path / "a.parquet")


def test_parquet_counts_its_rows_and_knows_missing_values(tmp_path):
    pytest.importorskip("pyarrow")
    numbers = pd.array([1, 2, None, *range(20)], dtype="Int64")
    pd.DataFrame({"x": numbers}, index=pd.Index(np.arange(23.0), name="time")).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="row 3, column x: blank or NaN"):
        read_series(tmp_path / "a.parquet")
    series = read_series(tmp_path / "a.parquet", drop_gaps=True)
    np.testing.assert_array_equal(series.values[:, 0], range(20))
    assert series.time[0] == 3


# ---- variables


def test_variables_along_time_are_channels(tmp_path):
    time = np.arange(30.0)
    data = xr.Dataset(
        {"u": ("time", np.sin(time), {"units": "m/s"}), "v": ("time", np.cos(time)), "height": ("level", [1.0, 2.0])},
        {"time": ("time", time, {"units": "s"})},
    )
    data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    series = read_series(tmp_path / "a.nc")
    assert (series.channels, series.units, series.time_unit) == (("u", "v"), ("m/s", ""), "s")
    assert read_series(tmp_path / "a.nc", channels=["v"]).values[3, 0] == np.cos(3.0)
    with pytest.raises(InputError, match="channel w: no such channel; there are: u, v"):
        read_series(tmp_path / "a.nc", channels=["w"])
    assert read_series(tmp_path / "a.nc", time="none", dt=2.0).dt == 2.0


def test_a_file_that_does_not_tell_what_is_meant_is_refused(tmp_path):
    time = np.arange(30.0)
    field = np.random.default_rng(0).normal(size=(30, 4, 5))
    xr.Dataset({"u": (("a", "b"), field[:, :, 0])}).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(InputError, match="dimensions a, b: choose that of time with --time NAME"):
        read_series(tmp_path / "a.nc")
    assert read_series(tmp_path / "a.nc", time="a").channels == ("u_0", "u_1", "u_2", "u_3")
    data = xr.Dataset({"u": (("time", "y", "x"), field), "m": ("time", np.sin(time))}, {"time": time})
    data.to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with pytest.raises(InputError, match=r"variables u, m, of which u .*: choose with --channel VARIABLE"):
        read_series(tmp_path / "b.nc")
    with pytest.raises(InputError, match="u has the dimensions y, x besides time: choose with --select y=0"):
        read_series(tmp_path / "b.nc", channels=["u"])
    np.testing.assert_array_equal(read_series(tmp_path / "b.nc", channels=["u"], select={"y": "2"}).values, field[:, 2])
    with pytest.raises(InputError, match="select y=4: must be an index from 0 to 3"):
        read_series(tmp_path / "b.nc", channels=["u"], select={"y": "4"})


def test_complex_variables_are_refused(tmp_path):
    pytest.importorskip("zarr")
    data = xr.Dataset({"u": ("time", np.exp(1j * np.arange(30.0)))}, {"time": np.arange(30.0)})
    data.to_zarr(tmp_path / "a.zarr", consolidated=False)
    with pytest.raises(InputError, match="column u: holds complex numbers: must be real numbers"):
        read_series(tmp_path / "a.zarr")


def test_old_netcdf_is_read(tmp_path):
    data = xr.Dataset({"u": ("time", np.sin(np.arange(30.0)))}, {"time": np.arange(30.0)})
    data.to_netcdf(tmp_path / "a.nc", engine="scipy")
    np.testing.assert_array_equal(read_series(tmp_path / "a.nc").values[:, 0], data["u"].values)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path):
    path = table(tmp_path / "a.csv", rows(range(20), range(20)))
    path.chmod(0)
    with pytest.raises(InputError, match="permission denied"):
        read_series(path)

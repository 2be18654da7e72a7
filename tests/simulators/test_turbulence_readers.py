"""Readers of turbulence: round trips, agreement with the definitions of the diagnostics, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.io import loadmat, savemat
from scipy.stats import norm

from core.errors import InputError
from simulators.turbulence.diagnostics.spectra import angle_averaged, energy_spectrum, enstrophy_spectrum
from simulators.turbulence.flow import Flow
from simulators.turbulence.grid import Grid
from simulators.turbulence.readers import load_py2d_ic, read_density, read_fields, read_spectrum


def field(n=16, count=3, seed=0):
    """Random vorticity (count, n, n) without mean or Nyquist modes."""
    grid = Grid(n)
    noise = np.random.default_rng(seed).standard_normal((count, n, n))
    spectrum = grid.to_spectral(torch.from_numpy(noise)) * grid.resolved
    spectrum[:, 0, 0] = 0
    return grid.to_physical(spectrum).numpy()


def points(n):
    return np.arange(n) * 2 * np.pi / n


def dataset(omega=None, dims=("time", "x", "y"), **coords):
    omega = field() if omega is None else omega
    n = omega.shape[-1]
    coords = {"x": points(n), "y": points(n)} | coords
    held = {name: (name, values) for name, values in coords.items() if values is not None and name in dims}
    return xr.Dataset({"omega": (dims, omega)}, held)


def refused(call, *words):
    """One line that names all of these."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


# MATLAB


def test_a_matlab_file_holds_omega_or_w1_or_what_is_asked_for(tmp_path):
    omega = field(count=2)
    savemat(tmp_path / "both.mat", {"w1": omega[0], "Omega": omega[1]})
    savemat(tmp_path / "w1.mat", {"w1": omega[0], "time": 3.0})
    assert np.array_equal(load_py2d_ic(tmp_path / "both.mat"), omega[1:])
    assert np.array_equal(load_py2d_ic(tmp_path / "both.mat", "w1"), omega[:1])
    assert np.array_equal(load_py2d_ic(tmp_path / "w1.mat"), omega[:1])
    refused(lambda: load_py2d_ic(tmp_path / "w1.mat", "psi"), "w1.mat", "no variable psi", "w1, time")
    savemat(tmp_path / "other.mat", {"psi": omega[0]})
    refused(lambda: load_py2d_ic(tmp_path / "other.mat"), "no variable Omega or w1", "the file has psi")


@pytest.mark.parametrize("name", ["{}.mat", "iniWor_Re20kf4_16_{}.mat"])
def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path, name):
    omega = field(count=11)
    for i in range(11):
        savemat(tmp_path / name.format(i + 1), {"Omega": omega[i]})
    assert np.array_equal(load_py2d_ic(tmp_path), omega)
    (tmp_path / name.format(4)).unlink()
    refused(lambda: load_py2d_ic(tmp_path), "without a gap")


def test_a_folder_that_is_not_one_series_is_refused(tmp_path):
    refused(lambda: load_py2d_ic(tmp_path), tmp_path, "no MATLAB file")
    savemat(tmp_path / "1.mat", {"Omega": field(16)[0]})
    savemat(tmp_path / "2.mat", {"Omega": field(8)[0]})
    refused(lambda: load_py2d_ic(tmp_path), "field 2 has shape (8, 8)")
    savemat(tmp_path / "a_2.mat", {"Omega": field(16)[0]})
    refused(lambda: load_py2d_ic(tmp_path), "2.mat and a_2.mat have the same number")
    (tmp_path / "2.mat").rename(tmp_path / "a_b.mat")
    refused(lambda: load_py2d_ic(tmp_path), "a_b.mat", "must end in a number")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (field()[0][:, :12], ["shape (16, 12)", "square"]),
        (field(), ["shape (3, 16, 16)", "(N, N)"]),
        (field()[0][:15, :15], ["15 points", "even"]),
        (field()[0][:6, :6], ["6 points", "at least 8"]),
        (np.ones((16, 16), np.int32), ["int32", "floating-point"]),
        (field()[0] + 1j, ["complex128", "real"]),
        (np.where(field()[0] > 1, np.nan, 0.0), ["NaN"]),
        (np.where(field()[0] > 9, 0.0, np.inf), ["256 values", "infinite"]),
        (np.array([["a", "b"]]), ["square"]),
        (np.cos(np.add.outer(*2 * [np.linspace(0, 2 * np.pi, 16)])).round(9), ["repeat the first"]),
    ],
)
def test_a_field_that_the_solver_cannot_take_is_refused(tmp_path, values, words):
    savemat(tmp_path / "1.mat", {"Omega": values})
    refused(lambda: load_py2d_ic(tmp_path / "1.mat"), "1.mat: Omega", *words)


def test_single_precision_is_read_and_other_files_are_refused(tmp_path):
    savemat(tmp_path / "1.mat", {"Omega": field()[0].astype(np.float32)})
    assert load_py2d_ic(tmp_path / "1.mat").dtype == np.float64
    refused(lambda: load_py2d_ic(tmp_path / "2.mat"), "2.mat", "no such file")
    whole = (tmp_path / "1.mat").read_bytes()
    hdf5 = b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM" + bytes(400)
    for content, word in ((whole[:700], "not a whole"), (b"omega", "not a whole"), (b"", "not a whole"), (hdf5, "7.3")):
        (tmp_path / "2.mat").write_bytes(content)
        refused(lambda: load_py2d_ic(tmp_path / "2.mat"), "2.mat", word)


# NetCDF and Zarr


def stored(data, path, kind):
    if kind == "zarr":
        pytest.importorskip("zarr", reason="zarr is not installed")
        data.to_zarr(path, consolidated=False)
    else:
        data.to_netcdf(path, engine={"netcdf4": "h5netcdf", "netcdf3": "scipy"}[kind])
    return path


@pytest.mark.parametrize("kind", ["netcdf4", "netcdf3", "zarr"])
def test_fields_come_back_from_every_format(tmp_path, kind):
    omega = field()
    data = dataset(omega).assign_coords(time=("time", [0.0, 1.0, 2.0], {"units": "turnovers since now"}))
    assert np.array_equal(read_fields(stored(data, tmp_path / "a", kind), beta=20.0), omega)


@pytest.mark.parametrize("dims", [("y", "time", "x"), ("x", "y"), ("y", "x"), ("x", "y", "snapshot")])
def test_dimensions_are_put_in_order_by_name(tmp_path, dims):
    omega = field()
    wanted = tuple(sorted(dims, key=lambda name: {"x": 1, "y": 2}.get(name, 0)))
    given = xr.DataArray(omega if len(dims) == 3 else omega[0], dims=wanted).transpose(*dims)
    found = read_fields(stored(given.to_dataset(name="omega"), tmp_path / "a.nc", "netcdf4"), beta=1.0)
    assert np.array_equal(found, omega if len(dims) == 3 else omega[:1])


def test_unknown_axes_are_refused_where_they_matter(tmp_path):
    omega = field()
    path = stored(dataset(omega, ("t", "dim_0", "dim_1")), tmp_path / "a.nc", "netcdf4")
    assert np.array_equal(read_fields(path), omega)
    refused(lambda: read_fields(path, beta=20.0), "a.nc: omega", "('t', 'dim_0', 'dim_1')", "x and y", "beta = 20")
    path = stored(dataset(omega, ("t", "x", "dim_1")), tmp_path / "b.nc", "netcdf4")
    refused(lambda: read_fields(path), "must be named x and y")
    path = stored(dataset(omega[None], ("seed", "time", "x", "y")), tmp_path / "c.nc", "netcdf4")
    refused(lambda: read_fields(path), "('seed', 'time', 'x', 'y')", "at most one more")


def velocities(omega):
    u, v = Flow(Grid(16), torch.fft.rfft2(torch.from_numpy(omega))).velocity
    return xr.Dataset({"u": (("time", "x", "y"), u.numpy()), "v": (("time", "x", "y"), v.numpy())})


def test_the_curl_of_velocities_is_the_vorticity(tmp_path):
    omega = field()
    data = velocities(omega)
    np.testing.assert_allclose(read_fields(stored(data, tmp_path / "a.nc", "netcdf4")), omega, atol=1e-12)
    turned = data.transpose("y", "time", "x")
    np.testing.assert_allclose(read_fields(stored(turned, tmp_path / "b.nc", "netcdf4")), omega, atol=1e-12)
    exchanged = data.rename(x="y", y="x").transpose("time", "x", "y")
    refused(lambda: read_fields(stored(exchanged, tmp_path / "c.nc", "netcdf4")), "u and v", "divergence")
    unnamed = data.rename(x="i", y="j")
    refused(lambda: read_fields(stored(unnamed, tmp_path / "d.nc", "netcdf4")), "d.nc: u", "must be named x and y")
    refused(lambda: read_fields(stored(data[["u"]], tmp_path / "e.nc", "netcdf4")), "not both of u and v", "has u")


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (points(16) + 0.1, None),
        (points(16).astype(np.float32), None),
        (np.linspace(0, 2 * np.pi, 16), ["coordinate x", "leave it out"]),
        (points(16) / (2 * np.pi), ["coordinate x", "16 steps make 1", "2 pi", "scale it"]),
        (points(16)[::-1].copy(), ["coordinate x", "rise"]),
        (points(16) ** 2, ["coordinate x", "not uniform"]),
        (np.where(points(16) > 5.8, np.nan, points(16)), ["coordinate x", "finite"]),
        (np.array([f"p{i}" for i in range(16)]), ["coordinate x", "numbers"]),
    ],
)
def test_the_grid_must_be_the_periodic_box(tmp_path, x, words):
    path = stored(dataset(x=x), tmp_path / "a.nc", "netcdf4")
    if words is None:
        assert np.array_equal(read_fields(path), field())
    else:
        refused(lambda: read_fields(path), "a.nc", *words)


def test_a_large_grid_in_single_precision_is_uniform_and_its_repeated_end_is_seen(tmp_path):
    n = 1024
    omega = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
    for x, good in ((points(n).astype(np.float32), True), (np.linspace(0, 2 * np.pi, n), False)):
        path = stored(dataset(omega, ("x", "y"), x=x), tmp_path / f"{good}.nc", "netcdf4")
        if good:
            assert read_fields(path).shape == (1, n, n)
        else:
            refused(lambda path=path: read_fields(path), "leave it out")


def test_files_that_are_no_fields_are_refused(tmp_path):
    refused(lambda: read_fields(tmp_path / "none.nc"), "none.nc", "no such file")
    refused(lambda: read_fields(tmp_path), "no zarr.json")
    path = stored(dataset().rename(omega="vor"), tmp_path / "a.nc", "netcdf4")
    refused(lambda: read_fields(path), "a.nc", "no variable omega", "the file has vor")
    path = stored(dataset(field()[:, :, :12], x=None, y=None), tmp_path / "b.nc", "netcdf4")
    refused(lambda: read_fields(path), "b.nc: omega", "square")
    path = stored(dataset(np.where(field() > 2, np.nan, 0.0)), tmp_path / "c.nc", "netcdf4")
    refused(lambda: read_fields(path), "c.nc: omega", "NaN")
    for content in (b"", b"omega", b"CDF\x01" + bytes(40), b"\x89HDF\r\n\x1a\n" + bytes(40)):
        (tmp_path / "d.nc").write_bytes(content)
        refused(lambda: read_fields(tmp_path / "d.nc"), "d.nc")


# Spectra and densities in text


def written(path, table, header="# k value\n", separator=" "):
    path.write_text(header + "\n".join(separator.join(f"{cell:.17g}" for cell in row) for row in table) + "\n")
    return path


@pytest.mark.parametrize("kind", ["enstrophy", "energy"])
@pytest.mark.parametrize(("named", "axis"), [("xy", "both"), ("x", "x"), ("y", "y"), ("circle", "angle")])
def test_spectra_add_up_to_what_they_are_spectra_of(tmp_path, kind, named, axis):
    grid = Grid(32)
    omega = grid.to_spectral(torch.from_numpy(field(32, 1)[0])) * (grid.k2 < 14**2)
    one_dimensional = {"enstrophy": enstrophy_spectrum, "energy": energy_spectrum}[kind]
    value = (angle_averaged(omega, kind) if axis == "angle" else one_dimensional(omega, axis)).numpy()
    value = np.where(value > 0, value, 1e-30) * (np.arange(16) > 0 if axis == "angle" else 1)
    path = written(tmp_path / f"{kind}_spectrum_Re20kf4_DNS1024_{named}.dat", zip(range(16), value, strict=True))
    total = float(getattr(Flow(grid, omega), kind))
    spectrum = read_spectrum(path, n_les=32, total=total)
    assert (spectrum.kind, spectrum.axis) == (kind, axis)
    assert spectrum.total == pytest.approx(total, rel=1e-12)
    assert np.array_equal(spectrum.value, value)
    assert spectrum.k.tolist() == list(range(16))
    assert spectrum.low is spectrum.high is None
    refused(lambda: read_spectrum(path, total=3 * total), path.name, "factor 2", "normalisation")
    refused(lambda: read_spectrum(path, n_les=64), path.name, "ends at k = 15", "= 31")
    other = "energy" if kind == "enstrophy" else "enstrophy"
    refused(lambda: read_spectrum(path, kind=other), f"kind is {kind} by its name, must be {other}")
    refused(lambda: read_spectrum(path, axis="y" if axis == "x" else "x"), f"axis is {axis} by its name")


def test_bounds_are_read_and_other_names_need_a_definition(tmp_path):
    table = np.array([(1, 2.0, 1.5, 2.5), (2, 1.0, 0.5, 1.0)])
    path = written(tmp_path / "mine.csv", table, header="% k, value, low, high\n\n", separator=", ")
    spectrum = read_spectrum(path, kind="energy", axis="angle")
    assert np.array_equal(np.stack([spectrum.k, spectrum.value, spectrum.low, spectrum.high], 1), table)
    refused(lambda: read_spectrum(path, kind="energy"), "mine.csv", "its name does not say")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("0 1\n1 0\n", ["column value", "0 at k = 1"]),
        ("0 -1\n1 1\n", ["-1 at k = 0"]),
        ("0 1\n1 nan\n", ["line 2", "finite"]),
        ("0 1\n1 inf\n", ["line 2", "finite"]),
        ("0 1\n1 one\n", ["line 2", "1 one"]),
        ("0 1\n\n1 1 2\n", ["line 3"]),
        ("0 1 2\n", ["line 1", "k, value, low, high"]),
        ("0 1\n2 1\n", ["column k"]),
        ("2 1\n3 1\n", ["column k", "from 0 or 1"]),
        ("0.5 1\n1.5 1\n", ["column k"]),
        ("0 1 2 3\n", ["low and high", "k = 0"]),
        ("# k value\n", ["no row"]),
        ("", ["no row"]),
    ],
)
def test_a_table_that_is_no_spectrum_is_refused(tmp_path, rows, words):
    path = tmp_path / "enstrophy_spectrum_case1_DNS1024_xy.dat"
    path.write_text(rows)
    refused(lambda: read_spectrum(path), path.name, *words)


def test_a_density_integrates_to_one_and_has_its_unit(tmp_path):
    omega = np.linspace(-30, 30, 241)
    path = written(tmp_path / "pdf.dat", np.stack([omega, norm.pdf(omega, 0.5, 6.0)], 1))
    density = read_density(path, sigma=6.0)
    assert density.sigma == pytest.approx(6.0, rel=1e-3)
    assert np.array_equal(density.omega, omega)
    refused(lambda: read_density(path, sigma=1.0), "pdf.dat", "standard deviation 6", "unit")
    pdf = norm.pdf(omega, 0, 6.0)
    for table, word in (
        (np.stack([omega, 2 * pdf], 1), "integrates to 2"),
        (np.stack([omega[::-1], pdf], 1), "column omega"),
        (np.stack([omega, pdf - 1e-3], 1), "below 0"),
        (np.stack([omega, pdf], 1)[:5], "5 rows"),
    ):
        path = written(tmp_path / "other.dat", table)
        refused(lambda path=path: read_density(path), "other.dat", word)
    refused(lambda: read_density(tmp_path / "none.dat"), "none.dat", "no such file")


# Real data


def test_the_files_of_the_source():
    folder = Path(os.environ.get("SZILARD_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
    root = folder / "turbulence" / "ICs"
    if not root.is_dir():
        pytest.skip(f"{root} is not there: set SZILARD_DATA")
    fields = load_py2d_ic(root / "NX32")
    assert fields.shape == (20, 32, 32)
    assert np.array_equal(fields[10], loadmat(root / "NX32" / "11.mat")["Omega"])
    refused(lambda: load_py2d_ic(root / "NX32" / "1.mat", "w1"), "1.mat", "the file has Omega")

"""Resolved snapshots: shipped, simulated here and after a kill, read from files, and what each is refused for."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.io import savemat

from apps.turbulence import snapshots as module
from apps.turbulence.scenario import DirectSimulation, Discretisation, FieldFiles, FlowSettings, Scenario, Shipped
from apps.turbulence.snapshots import (
    START_STD,
    Snapshots,
    given,
    numbered,
    random_start,
    read_snapshots,
    simulate_directly,
    snapshots_of,
    truncated,
    write_snapshots,
)
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.study import Context
from simulators.turbulence.diagnostics import enstrophy_spectrum
from simulators.turbulence.filters import Filter
from simulators.turbulence.grid import Grid
from simulators.turbulence.snapshots import initial_fields
from simulators.turbulence.snapshots import snapshots as shipped

N, DT = 16, 0.02
FLOW = FlowSettings(reynolds=200)


def tiny(**changes):
    grid = {"n": N, "dt": DT} | changes.pop("grid", {})
    options = {"keep": N, "spin_up": 1.0, "spacing": 0.5, "count": 4} | changes
    return DirectSimulation(grid=Discretisation(**grid), **options)


def fields(number=3, n=N, seed=0):
    noise = torch.randn(number, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    grid = Grid(n)
    spectrum = grid.to_spectral(noise) * torch.exp(-grid.k2 / 16) * grid.resolved
    return grid.to_physical(spectrum).numpy()


def context(folder):
    return Context(folder, folder / "checkpoint", torch.device("cpu"), folder, folder / "log.jsonl")


# ---- shipped


def test_the_shipped_snapshots_are_the_direct_simulation_with_its_filter_undone():
    omega = given(FlowSettings(), Shipped())
    assert (omega.shape, omega.dtype) == ((20, 128, 128), np.float32)
    for n in (16, 32):
        np.testing.assert_allclose(truncated(omega, n), initial_fields(range(1, 21), n), atol=2e-5)
    assert omega.std() > 1.001 * shipped().std()  # the filter had taken something


def test_truncation_keeps_the_modes_of_the_coarse_grid_exactly_and_no_other():
    omega = fields(n=32)
    coarse = truncated(omega, N, torch.float64)
    np.testing.assert_allclose(truncated(coarse.numpy(), 32, torch.float64)[:, ::2, ::2], coarse, atol=1e-12)
    full, kept = (enstrophy_spectrum(torch.fft.rfft2(torch.as_tensor(x)), "stacked") for x in (omega, coarse))
    assert (kept <= full[..., : N // 2] * (1 + 1e-12)).all()
    assert truncated(omega, N).dtype == torch.float32


def test_the_product_of_a_scenario_depends_on_flow_and_source_alone(tmp_path):
    plain = Scenario()
    other = Scenario(grid=Discretisation(n=64, dt=2.5e-3), reference=(1, 2), training=(3, 4), evaluation=(5, 6))
    assert snapshots_of(plain).hash == snapshots_of(other).hash
    assert snapshots_of(Scenario(flow=FLOW)).hash != snapshots_of(plain).hash
    loaded = snapshots_of(plain).load(context(tmp_path))
    np.testing.assert_array_equal(loaded, given(FlowSettings(), Shipped()))


# ---- numbers


def test_snapshots_are_numbered_from_1_in_the_order_asked_for():
    omega = np.arange(5)[:, None, None] * np.ones((1, 2, 2))
    assert numbered(omega, (5, 1, 2))[:, 0, 0].tolist() == [4, 0, 1]
    with pytest.raises(InputError, match="snapshot 6: there are 5, numbered from 1"):
        numbered(omega, (1, 6))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reference": (0, 1)}, r"reference = \[0, 1\]: must be two or more different numbers of at least 1"),
        ({"training": (11,)}, r"training = \[11\]: must be two or more"),
        ({"evaluation": (16, 16)}, r"evaluation = \[16, 16\]: must be two or more different"),
        ({"evaluation": (10, 16)}, "evaluation: shares snapshots with reference or training"),
        ({"evaluation": (15, 16)}, "evaluation: shares snapshots with reference or training"),
        ({"evaluation": (20, 21)}, "snapshot 21: there are 20, numbered from 1"),
        ({"snapshots": tiny(count=19)}, "snapshot 20: there are 19, numbered from 1"),
        ({"flow": {"case": "case1"}}, "snapshots: the shipped ones are of case kolmogorov4, not of case1"),
        ({"flow": {"case": "case4"}, "snapshots": tiny(count=20)}, "fkx = 25: a grid of 32 points represents"),
        ({"flow": {"fkx": 16}}, "fkx = 16: a grid of 32 points represents forcing up to 15"),
        ({"flow": {"fky": 11}, "grid": {"dealias": "two_thirds"}}, "fky = 11: a grid of 32 points represents"),
        ({"grid": {"n": 33}}, "multiple of 2"),
        ({"grid": {"n": 6}}, "greater than or equal to 8"),
        ({"grid": {"dt": 0.0}}, "greater than 0"),
        ({"flow": {"reynolds": -1.0}}, "greater than 0"),
        ({"snapshots": {"kind": "dns", "grid": {"n": 64}, "keep": 128}}, "keep = 128: must be at most grid.n = 64"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Scenario(**given)


def test_reference_and_training_may_share_snapshots():
    assert Scenario(reference=(1, 2), training=(2, 3), evaluation=(4, 20)).last == 20


# ---- simulated here


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_direct_simulation_keeps_the_flow_at_its_times(dtype):
    source = tiny(grid={"dtype": dtype}, seed=3)
    omega = simulate_directly(FLOW, source)
    assert (omega.shape, omega.dtype) == ((4, N, N), np.float32)
    solver = source.grid.solver(FLOW)
    state = random_start(solver, 3)
    for snapshot, steps in zip(omega, (50, 25, 25, 25), strict=True):
        for _ in range(steps):
            state = solver.step(state)
        np.testing.assert_allclose(snapshot, solver.flow(state).vorticity[0], atol=1e-5)


def test_the_start_is_random_smooth_and_its_seed_s():
    solver = tiny(grid={"n": 64}).grid.solver(FLOW)
    first, again, other = (solver.flow(random_start(solver, seed)).vorticity for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert abs(float(torch.corrcoef(torch.stack((first, other)).flatten(1))[0, 1])) < 0.3
    assert float(first.std()) == pytest.approx(START_STD, rel=1e-3)
    assert abs(float(first.mean())) < 1e-5
    spectrum = enstrophy_spectrum(torch.fft.rfft2(first.double()))[0]
    assert spectrum[25:].max() < 1e-3 * spectrum[:10].max()


def test_a_coarse_snapshot_is_the_fine_one_truncated():
    fine, coarse = (simulate_directly(FLOW, tiny(grid={"n": 32, "dt": 0.01}, keep=n, count=2)) for n in (32, N))
    np.testing.assert_allclose(coarse, truncated(fine, N), atol=1e-5)


class Killed(Exception):
    pass


@pytest.fixture
def saved_always(monkeypatch):
    """A checkpoint after every chunk, which need not survive a loss of power."""
    monkeypatch.setattr(module, "Checkpoint", lambda path: Checkpoint(path, every_seconds=0))
    monkeypatch.setattr("core.files.sync", lambda path: None)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("after", [3, 80])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, saved_always, dtype, after):
    flow, source, path = FlowSettings(reynolds=200, beta=5), tiny(grid={"dtype": dtype}), tmp_path / "dns.safetensors"
    whole, shares = simulate_directly(flow, source), []

    def kill(share, message):
        shares.append(share)
        if len(shares) == after:
            raise Killed

    with pytest.raises(Killed):
        simulate_directly(flow, source, checkpoint=path, progress=kill)
    resumed = simulate_directly(flow, source, checkpoint=path, progress=lambda share, _: shares.append(share))
    # What was under way is done again, and nothing before it.
    assert shares[after] == shares[after - 1] == pytest.approx(after / 125)
    np.testing.assert_array_equal(resumed, whole)


def test_a_product_that_was_killed_goes_on_from_its_checkpoint(tmp_path, saved_always, monkeypatch):
    product = Snapshots(flow=FLOW, source=tiny())
    here = context(tmp_path)
    advance, steps = module._stepper, []

    def dying(solver, source):
        def step(state, count):
            steps.append(count)
            if len(steps) == 100:
                raise Killed
            return advance(solver, source)(state, count)

        return step

    monkeypatch.setattr(module, "_stepper", dying)
    with pytest.raises(Killed):
        product.load(here)
    assert not (tmp_path / "products" / product.hash).exists()
    loaded = product.load(here)
    assert sum(steps) == 125 + 1  # one step was under way
    np.testing.assert_array_equal(loaded, simulate_directly(FLOW, tiny()))
    assert json.loads((tmp_path / "products" / product.hash / "product.json").read_text())["label"] == product.label
    assert list((tmp_path / "products" / product.hash).glob("*.safetensors")) == []


def test_a_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "dns.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"dns\.safetensors: not a complete safetensors file"):
        simulate_directly(FLOW, tiny(), checkpoint=tmp_path / "dns.safetensors")


def test_a_simulation_that_cannot_go_on_is_refused(monkeypatch):
    with pytest.raises(InputError, match=r"dt = 0\.5: CFL number"):
        simulate_directly(FLOW, tiny(grid={"dt": 0.5}))
    broken = module._stepper

    def stepper(solver, source):
        def step(state, steps):
            state = broken(solver, source)(state, steps)
            return type(state)(state.vorticity_hat * torch.nan, state.advection)

        return step

    monkeypatch.setattr(module, "_stepper", stepper)
    with pytest.raises(InputError, match=r"dns: the simulation blew up; dt = 0\.02 is too large or n too small"):
        simulate_directly(FLOW, tiny())


def test_jax_cfd_gives_the_same_flow():
    pytest.importorskip("jax_cfd")
    # Both cut at two thirds, jax-cfd not symmetrically: hardly anything is there in a well resolved flow.
    flow = FlowSettings(reynolds=20, fkx=3, fky=5, beta=3, drag=0.5)
    grid = {"n": 64, "dt": 0.005, "dtype": "float64", "dealias": "two_thirds", "integrator": "rk4cn"}
    ours, theirs = (
        simulate_directly(flow, tiny(grid=grid, spin_up=0.1, spacing=0.2, count=2, backend=backend))
        for backend in ("torch", "jax_cfd")
    )
    for a, b in zip(ours, theirs, strict=True):
        assert np.linalg.norm(a - b) < 2e-3 * np.linalg.norm(a)
    assert np.linalg.norm(ours[0] - ours[1]) > 0.1 * np.linalg.norm(ours[0])


# ---- from files


def test_what_is_written_is_read_and_serves_as_a_source(tmp_path):
    omega, path = fields(5), tmp_path / "snapshots.nc"
    write_snapshots(path, omega, "five", FlowSettings(), time=np.arange(5) * 0.5)
    np.testing.assert_array_equal(read_snapshots(path), omega.astype(np.float32))
    with xr.open_dataset(path) as data:
        assert data["omega"].dims == ("snapshot", "x", "y")
        assert data["snapshot"].values.tolist() == [1, 2, 3, 4, 5]
        assert data["time"].values.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
        assert data.attrs["description"] == "five"
    np.testing.assert_allclose(given(FlowSettings(), FieldFiles(data=str(path))), omega, atol=1e-6)


def test_snapshots_of_another_flow_are_refused_where_the_file_says_so(tmp_path):
    omega, path = fields(2), tmp_path / "snapshots.nc"
    write_snapshots(path, omega, "", FlowSettings(case="case2"))
    same = FlowSettings(fky=4, beta=20)  # what counts are the numbers
    np.testing.assert_allclose(given(same, FieldFiles(data=str(path))), omega, atol=1e-6)
    with pytest.raises(
        InputError, match=r"is of another flow: reynolds = 20000, fkx = 4, fky = 4, beta = 20, drag = 0\.1"
    ):
        given(FLOW, FieldFiles(data=str(path)))
    # Files of others, old NetCDF too, do not say.
    data = xr.Dataset({"omega": (("time", "x", "y"), omega)}, {"time": ("time", [0, 1], {"units": "eddies"})})
    for engine in ("scipy", "h5netcdf"):
        data.to_netcdf(path, engine=engine)
        np.testing.assert_allclose(given(FLOW, FieldFiles(data=str(path))), omega, atol=1e-6)


def test_a_folder_of_matlab_files_is_a_source_in_the_order_of_its_numbers(tmp_path):
    omega = fields(11)
    for i, field in enumerate(omega, 1):
        savemat(tmp_path / f"{i}.mat", {"Omega": field})
    np.testing.assert_allclose(given(FLOW, FieldFiles(data=str(tmp_path))), omega, atol=1e-6)
    np.testing.assert_allclose(given(FLOW, FieldFiles(data=str(tmp_path / "7.mat"))), omega[6:7], atol=1e-6)
    (tmp_path / "3.mat").unlink()
    with pytest.raises(InputError, match="without a gap"):
        given(FLOW, FieldFiles(data=str(tmp_path)))


def test_a_filter_is_undone(tmp_path):
    omega, path, width = fields(2), tmp_path / "filtered.nc", 0.8
    grid = Grid(N)
    filtered = grid.to_physical(torch.fft.rfft2(torch.from_numpy(omega)) * Filter("gaussian", width).transfer(grid))
    write_snapshots(path, filtered.numpy(), "filtered", FLOW)
    np.testing.assert_allclose(given(FLOW, FieldFiles(data=str(path), filter_width=width)), omega, atol=1e-5)
    assert np.abs(given(FLOW, FieldFiles(data=str(path))) - omega).max() > 0.1 * omega.std()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_text("text"), "neither a NetCDF file nor a Zarr store"),
        (lambda path: path.mkdir(), "a folder that is not a Zarr store"),
        (lambda path: xr.Dataset({"q": ("x", [1.0])}).to_netcdf(path), "no variable omega, .*; the file has q"),
        (
            lambda path: write_snapshots(path, np.full((2, N, N), np.nan), "", FLOW),
            "values are NaN or infinite",
        ),
        (
            lambda path: write_snapshots(path, fields()[:, :9, :9], "", FLOW),
            "9 points a side, must be an even number",
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_one_line(tmp_path, write, message):
    path = tmp_path / "data.nc"
    write(path)
    with pytest.raises(InputError, match=message) as refused:
        given(FLOW, FieldFiles(data=str(path)))
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)

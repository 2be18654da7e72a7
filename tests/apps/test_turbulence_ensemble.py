"""Ensembles and their statistics: equal to a direct loop, deaf to what blows up, and the same after a kill."""

import math
from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr

from apps.turbulence import ensemble
from apps.turbulence.ensemble import NAMES, Sampling, simulate
from core.checkpoint import Checkpoint
from core.errors import InputError
from simulators.turbulence.cases import case
from simulators.turbulence.closures import Leith, NoClosure, Smagorinsky, Term, subgrid_term
from simulators.turbulence.diagnostics import energy_spectrum, enstrophy_spectrum
from simulators.turbulence.diagnostics.transfers import backscatter_fraction, enstrophy_transfer, transfer_spectra
from simulators.turbulence.flow import Flow
from simulators.turbulence.grid import Grid, resample
from simulators.turbulence.solver import Solver

N, DT, SIGMA = 16, 0.02, 2.0
SAMPLING = Sampling(duration=2.0, discard=0.5, every=0.2, until=1.6)
STRIDE = 10


def starts(number=3, n=N, seed=0):
    noise = torch.randn(number, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    grid = Grid(n)
    omega = grid.to_physical(grid.to_spectral(noise) * torch.exp(-grid.k2 / 16))
    return 4 * omega / omega.std()


def solver(name="kolmogorov4", n=N, dt=DT, dtype=torch.float64, closure=None, **more):
    return Solver(case(name, **({"reynolds": 200.0} | more)), n, dt, closure=closure, dtype=dtype)


# ---- against a direct loop


@cache
def looped():
    """The samples of a loop, with their times: (t, flow)."""
    made = solver(closure=Smagorinsky(0.2, local=True))
    state, found = made.start(starts()), []
    with torch.no_grad():
        for i in range(10):
            for _ in range(STRIDE):
                state = made.step(state)
            found.append(((i + 1) * STRIDE * DT, made.flow(state)))
    return found


@cache
def measured():
    return simulate(solver(closure=Smagorinsky(0.2, local=True)), starts(), SAMPLING, SIGMA)


def test_series_are_those_of_a_direct_loop_at_every_sample():
    found = measured()
    np.testing.assert_allclose(found["time"], [t for t, _ in looped()], rtol=1e-12)
    for i, (_, flow) in enumerate(looped()):
        expected = {
            "energy": flow.energy,
            "enstrophy": (flow.vorticity**2).mean((-2, -1)) / 2,
            "largest": flow.vorticity.abs().amax((-2, -1)),
            "Z": enstrophy_spectrum(flow.vorticity_hat, axis="stacked"),
            "E": energy_spectrum(flow.vorticity_hat, axis="stacked"),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(found[name].isel(time=i), values, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(found["final"], looped()[-1][1].vorticity, rtol=1e-5, atol=1e-6)


def test_counts_and_transfers_are_sums_over_the_window_alone():
    inside = [flow for t, flow in looped() if 0.5 < t < 1.61]
    assert len(inside) == 6
    found = measured()
    omega = torch.stack([flow.vorticity for flow in inside], 1).flatten(1).numpy() / SIGMA
    edges = np.linspace(-10, 10, 201)
    for copy, values in enumerate(omega):
        np.testing.assert_array_equal(found["counts"][copy], np.histogram(values, edges)[0])
        assert found["points"][copy] == values.size == 6 * N * N
        np.testing.assert_array_equal(found["exceeded"][copy], [(abs(values) > q).sum() for q in (2, 3, 4)])
    np.testing.assert_allclose(found["std"], SIGMA * omega.std(1), rtol=1e-6)
    centred = omega - omega.mean(1, keepdims=True)
    np.testing.assert_allclose(found["kurtosis"], (centred**4).mean(1) / (centred**2).mean(1) ** 2, rtol=1e-6)
    closure = Smagorinsky(0.2, local=True)
    terms = [subgrid_term(flow, closure(flow)) for flow in inside]
    spectra = [transfer_spectra(flow, term) for flow, term in zip(inside, terms, strict=True)]
    for name, place in (("energy_transfer", 0), ("enstrophy_transfer", 1)):
        expected = torch.stack([s[place] for s in spectra]).mean(0)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-8)
    shares = [backscatter_fraction(enstrophy_transfer(flow, closure.stress(flow))) for flow in inside]
    np.testing.assert_allclose(found["backscatter"], torch.stack(shares).mean(0), rtol=1e-6)
    taken = [
        (flow.vorticity * flow.grid.to_physical(term)).mean((-2, -1)) for flow, term in zip(inside, terms, strict=True)
    ]
    np.testing.assert_allclose(found["dissipation"], torch.stack(taken).mean(0), rtol=1e-5)
    assert (found["dissipation"] > 0).all()


def test_what_is_kept_has_named_dims_and_says_how_it_was_measured():
    found = measured()
    for name, variable in found.data_vars.items():
        assert variable.dims == ("copy", *NAMES[name][0])
        assert variable.attrs["long_name"]
    assert "zonal" not in found
    told = {"n": N, "dt": DT, "sigma": SIGMA, "delta": 2 * math.pi / N, "discard": 0.5, "until": 1.6}
    assert {name: found.attrs[name] for name in told} == pytest.approx(told)
    assert found.attrs["delta_convention"] == "2 pi / N"


def test_a_longer_simulation_with_the_same_window_changes_the_series_alone():
    longer = simulate(solver(closure=Smagorinsky(0.2, local=True)), starts(), Sampling(3.0, 0.5, 0.2, 1.6), SIGMA)
    assert longer.sizes["time"] == 15
    for name, (dims, _) in NAMES.items():
        if name in longer and name != "final":
            part = longer[name].isel(time=slice(0, 10)) if "time" in dims else longer[name]
            np.testing.assert_array_equal(part, measured()[name], err_msg=name)


def test_the_window_ends_with_the_simulation_unless_it_is_told_when():
    found = simulate(solver(), starts(1), Sampling(1.0, 0.2, 0.2), SIGMA)
    assert found["points"] == 4 * N * N  # 0.4, 0.6, 0.8, 1.0: what is at the end of the discarded time is left out
    assert found.attrs["until"] == pytest.approx(1.0)
    # 0.35 = 35 dt, and 35 * 0.01 is a little more.
    found = simulate(solver(dt=0.01), starts(1), Sampling(0.7, 0.35, 0.05), SIGMA)
    assert found["points"] == 7 * N * N


def test_without_a_closure_nothing_is_transferred():
    found = simulate(solver(), starts(1), Sampling(0.4, 0.0, 0.2), SIGMA)
    for name in ("energy_transfer", "enstrophy_transfer", "backscatter", "dissipation"):
        assert not found[name].any()


def test_zonal_velocities_are_kept_where_there_is_beta():
    found = simulate(solver("case2"), starts(2), Sampling(0.4, 0.0, 0.2), SIGMA)
    made = solver("case2")
    flow = made.flow(made.advance(made.start(starts(2)), 2 * STRIDE))
    np.testing.assert_allclose(found["zonal"].isel(time=1), flow.velocity[0].mean(-2), rtol=1e-5, atol=1e-6)


def test_what_is_seen_on_a_coarse_grid_is_the_truncated_flow():
    made, fine = solver(n=32, dt=DT / 2), starts(2, 32)
    found = simulate(made, fine, Sampling(0.4, 0.0, 0.2), SIGMA, seen_on=N)
    assert found.sizes["k"] == N // 2
    assert (found.attrs["n"], found.attrs["delta"]) == (N, pytest.approx(2 * math.pi / N))
    state = made.advance(made.start(fine), 4 * STRIDE)
    coarse = Flow(Grid(N), resample(state.vorticity_hat, N))
    np.testing.assert_allclose(found["final"], coarse.vorticity, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found["Z"][:, -1], enstrophy_spectrum(coarse.vorticity_hat, "stacked"), rtol=1e-6)
    whole = made.flow(state)
    assert (found["enstrophy"].values[:, -1] < whole.enstrophy.numpy()).all()


def test_another_closure_and_another_way_to_step_may_be_given():
    made = solver()
    calls = []

    def advance(state, steps):
        calls.append(steps)
        return made.advance(state, steps)

    found = simulate(made, starts(1), Sampling(0.6, 0.0, 0.2), SIGMA, closure=Leith(0.3), advance=advance)
    assert calls == [STRIDE] * 3
    plain = simulate(made, starts(1), Sampling(0.6, 0.0, 0.2), SIGMA)
    np.testing.assert_array_equal(found["final"], plain["final"])  # what is measured does not act
    assert (found["dissipation"] > 0).all()
    assert not plain["dissipation"].any()


# ---- what blows up


class Bomb(NoClosure):
    """Negative viscosity in the second copy."""

    def __call__(self, flow):
        viscosity = torch.zeros(len(flow.vorticity_hat), 1, 1, dtype=flow.grid.dtype)
        viscosity[1] = -2.0
        return Term(viscosity=viscosity)


def test_a_copy_that_blows_up_leaves_nan_and_the_others_are_the_same_to_the_bit():
    class Calm(Bomb):
        def __call__(self, flow):
            return Term(viscosity=0 * super().__call__(flow).viscosity)

    made, calm = (solver(dtype=torch.float32, closure=c) for c in (Bomb(), Calm()))
    lost, whole = (simulate(s, starts(), Sampling(4.0, 0.5, 0.2), SIGMA) for s in (made, calm))
    assert np.isfinite(whole["energy"]).all()
    others = [0, 2]
    for name in whole.data_vars:
        np.testing.assert_array_equal(lost[name].isel(copy=others), whole[name].isel(copy=others), err_msg=name)
    for name in ("Z", "energy", "enstrophy", "largest"):
        series = np.isfinite(lost[name].isel(copy=1).values.reshape(20, -1)).all(1)
        assert not series[-1]
        assert not (np.diff(series.astype(int)) > 0).any()  # once lost, lost
    # Fields that are not finite are not counted.
    assert 0 <= lost["points"][1] < lost["points"][0] == 18 * N * N


# ---- a kill


class Killed(Exception):
    pass


@pytest.fixture
def saved_always(monkeypatch):
    """A checkpoint after every sample, which need not survive a loss of power."""
    monkeypatch.setattr(ensemble, "Checkpoint", lambda path: Checkpoint(path, every_seconds=0))
    monkeypatch.setattr("core.files.sync", lambda path: None)


SETUPS = {
    "float32": {"dtype": torch.float32, "closure": Leith(0.3)},
    "float64": {"dtype": torch.float64, "closure": Leith(0.3)},
    "beta": {"name": "case2", "dtype": torch.float32, "closure": Smagorinsky(0.2, local=True)},
}


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("after", [2, 6])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, saved_always, setup, after):
    path = tmp_path / "deep" / "state.safetensors"
    whole = simulate(solver(**SETUPS[setup]), starts(), SAMPLING, SIGMA)
    seen = []

    def kill(share, message):
        seen.append(share)
        if len(seen) == after:
            raise Killed

    with pytest.raises(Killed):
        simulate(solver(**SETUPS[setup]), starts(), SAMPLING, SIGMA, checkpoint=path, progress=kill)
    assert path.exists()
    told = []
    resumed = simulate(
        solver(**SETUPS[setup]), starts(), SAMPLING, SIGMA, checkpoint=path, progress=lambda s, m: told.append((s, m))
    )
    # The sample that was under way is done again, and no other.
    assert [share for share, _ in told] == pytest.approx([i / 10 for i in range(after, 11)])
    assert told[-1][1] == "t = 2.0"
    xr.testing.assert_identical(resumed, whole)
    # And once more from the end.
    xr.testing.assert_identical(simulate(solver(**SETUPS[setup]), starts(), SAMPLING, SIGMA, checkpoint=path), whole)


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, saved_always):
    path = tmp_path / "state.safetensors"
    simulate(solver(), starts(1), Sampling(0.4, 0.0, 0.2), SIGMA, checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="not a complete safetensors file") as refused:
        simulate(solver(), starts(1), Sampling(0.4, 0.0, 0.2), SIGMA, checkpoint=path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_keeps_complex_numbers_of_both_precisions_and_is_due_after_its_pause(tmp_path):
    generator = torch.Generator().manual_seed(0)
    kept = {str(t): torch.randn(3, 5, dtype=t, generator=generator) for t in (torch.complex64, torch.complex128)}
    kept |= {"odd": torch.arange(3, dtype=torch.uint8), "real": torch.tensor(1.5), "turned": kept["torch.complex64"].T}
    file = Checkpoint(tmp_path / "state", every_seconds=1e6)
    assert file.load() is None
    file.save(kept)
    found = file.load()
    assert found.keys() == kept.keys()
    for name, x in kept.items():
        assert found[name].dtype == x.dtype
        assert torch.equal(found[name], x)
    assert not file.due
    assert Checkpoint(tmp_path / "state", every_seconds=0).due
    nowhere = Checkpoint(None, every_seconds=0)
    nowhere.save(kept)
    assert (nowhere.due, nowhere.load()) == (False, None)


# ---- refusals


@pytest.mark.parametrize(
    "given",
    [
        {"discard": 2.0},
        {"discard": -1.0},
        {"discard": 1.5, "until": 1.5},
        {"every": 0.0},
        {"duration": 0.0},
        {"duration": math.nan},
        {"discard": math.nan},
    ],
)
def test_an_impossible_sampling_is_refused(given):
    with pytest.raises(InputError, match="discard must be below duration and until, every above 0"):
        Sampling(**({"duration": 2.0, "discard": 0.5, "every": 0.2} | given))


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(0.1, 0.0, 0.2), "duration = 0.1: holds no sample of every = 0.2"),
        (Sampling(0.5, 0.45, 0.2), "discard = 0.45: leaves no sample of every = 0.2 up to 0.5"),
        (Sampling(9.0, 0.25, 0.2, 0.35), "discard = 0.25: leaves no sample of every = 0.2 up to 0.35"),
    ],
)
def test_a_sampling_without_samples_is_refused(sampling, message):
    with pytest.raises(InputError, match=message):
        simulate(solver(), starts(1), sampling, SIGMA)


def test_a_time_step_too_large_for_the_start_is_refused():
    with pytest.raises(InputError, match="CFL number"):
        simulate(solver(dt=0.2), 5 * starts(1), Sampling(2.0, 0.0, 0.2), SIGMA)


def test_an_explicit_closure_is_refused_if_no_copy_can_stand_it():
    sampling = Sampling(0.4, 0.0, 0.2)
    for constant in (5.0, torch.tensor([5.0, 6.0], dtype=torch.float64)):
        with pytest.raises(InputError, match="the explicit closure is stable below"):
            simulate(solver(closure=Leith(constant, local=True)), starts(2), sampling, SIGMA)
    # Of several constants one that blows up is a result; a viscosity that is constant in space is implicit.
    mixed = torch.tensor([0.2, 5.0], dtype=torch.float64)
    found = simulate(solver(closure=Leith(mixed, local=True)), starts(2), sampling, SIGMA)
    assert np.isfinite(found["energy"]).all("time").values.tolist() == [True, False]
    assert np.isfinite(simulate(solver(closure=Leith(5.0)), starts(2), sampling, SIGMA)["energy"]).all()

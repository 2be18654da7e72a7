import io
import sys
from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError
from rich.console import Console

from apps.turbulence import calibration
from apps.turbulence.calibration import (
    CMAES,
    EKI,
    PARAMETERS,
    Calibration,
    CalibrationSettings,
    GridSearch,
    calibrate,
    calibrated_closure,
    kalman_update,
    print_calibration,
)
from apps.turbulence.scenario import Discretisation, FieldFiles, Scenario
from core.checkpoint import Checkpoint
from core.errors import InputError, MissingExtra
from core.study import Context
from simulators.turbulence.closures import Backscatter, Leith

TRUTH = 0.3
DT, DURATION, DISCARD, EVERY = 0.02, 4.0, 1.0, 0.25
STARTS = (1, 2, 3)
REFERENCE = tuple(range(4, 4 + len(STARTS) * round((DURATION - DISCARD) / EVERY)))
SCENARIO = Scenario(
    grid=Discretisation(n=16, dt=DT),
    snapshots=FieldFiles(data="twin.nc"),
    reference=REFERENCE,
    training=STARTS,
    evaluation=(REFERENCE[-1] + 1, REFERENCE[-1] + 2),
)
SHORT = {"duration": DURATION, "discard": DISCARD, "every": EVERY}


@cache
def twin() -> np.ndarray:
    """Three starts, what Leith's closure with the constant TRUTH makes of them, and two fields nobody may look at."""
    solver = SCENARIO.grid.solver(SCENARIO.flow, Leith(TRUTH))
    noise = torch.randn(len(STARTS), 16, 16, generator=torch.Generator().manual_seed(1))
    smooth = solver.grid.to_physical(solver.grid.to_spectral(noise) * torch.exp(-solver.grid.k2 / 16))
    with torch.no_grad():
        spun_up = solver.advance(solver.start(4 * smooth / smooth.std()), 500)
        starts = solver.flow(spun_up).vorticity
        state, fields = solver.start(starts), []
        stride = round(EVERY / DT)
        for i in range(round(DURATION / EVERY)):
            state = solver.advance(state, stride)
            if (i + 1) * EVERY > DISCARD:
                fields.append(solver.flow(state).vorticity)
    unseen = torch.full((2, 16, 16), torch.nan)
    return torch.cat((starts, *fields, unseen)).numpy()


def settings(method, **changes):
    return CalibrationSettings(method=method, **{**SHORT, **changes})


GRID = GridSearch(values=(0.15, 0.3, 0.45))


def test_the_grid_chooses_the_minimum_of_its_own_table():
    found = calibrate(SCENARIO, settings(GRID), twin())
    assert found["value"].values[:, 0].tolist() == [0.15, 0.3, 0.45]
    mean = found["error"].mean("start").values
    assert found["chosen"].item() == found["value"].values[mean.argmin(), 0] == TRUTH
    assert np.array_equal(found["chosen_error"], found["error"][mean.argmin()])
    assert found["start"].values.tolist() == list(STARTS)
    assert found["blown"] == 0


def test_the_constant_that_made_the_reference_reproduces_it():
    found = calibrate(SCENARIO, settings(GRID), twin())
    ensemble_mean = found["Z"].isel(point=1).mean("start")
    assert np.allclose(ensemble_mean, found["Z_reference"], rtol=1e-4)


@pytest.mark.parametrize("method", [EKI(members=8, rounds=3, seed=1), CMAES(population=8, generations=8)])
def test_a_known_constant_is_recovered_from_the_spectrum_it_made(method):
    if isinstance(method, CMAES):
        pytest.importorskip("cma")
    found = calibrate(SCENARIO, settings(method), twin())
    assert found["chosen"].item() == pytest.approx(TRUTH, rel=0.15)
    first = found["error"].where(found["round"] == 0, drop=True).mean()
    assert found["chosen_error"].mean() < 0.5 * first
    assert np.array_equal(found["chosen_error"], found["error"].isel(point=-1))


def test_the_ensemble_of_every_update_is_kept():
    found = calibrate(SCENARIO, settings(EKI(members=6, rounds=2)), twin())
    assert dict(found["ensemble"].sizes) == {"update": 3, "member": 6, "parameter": 1}
    for update in range(2):
        inside = found["round"].values == update
        assert np.array_equal(found["ensemble"].values[update], found["value"].values[inside])
    assert np.exp(np.log(found["ensemble"].values[-1]).mean()) == pytest.approx(found["chosen"].item())


def test_two_constants_are_calibrated_together():
    sizes = (GridSearch(values=(0.3, 0.4), shares=(0.2, 0.6)), EKI(members=5, rounds=1), CMAES(generations=1))
    for method, points in zip(sizes, (4, 6, 9), strict=True):
        found = calibrate(SCENARIO, settings(method, closure="backscatter"), twin())
        assert found["value"].shape == (points, 2)
        assert isinstance(calibrated_closure(found), Backscatter)


class Killed(Exception):
    pass


def run_until_killed(method, folder, monkeypatch, reports):
    """Kill a calibration at its n-th report of progress, with everything saved at once."""
    monkeypatch.setattr(Checkpoint, "due", property(lambda self: self.path is not None))
    seen = []

    def progress(share, message):
        seen.append(share)
        if len(seen) == reports:
            raise Killed

    with pytest.raises(Killed):
        calibrate(SCENARIO, settings(method), twin(), checkpoint=folder, progress=progress)
    return seen


@pytest.mark.parametrize("reports", [5, 16, 40])
@pytest.mark.parametrize("method", [EKI(members=4, rounds=2), CMAES(population=4, generations=2)])
def test_a_killed_calibration_ends_as_one_that_was_not(method, reports, tmp_path, monkeypatch):
    whole = calibrate(SCENARIO, settings(method), twin())
    seen = run_until_killed(method, tmp_path, monkeypatch, reports)
    shares = []
    resumed = calibrate(
        SCENARIO, settings(method), twin(), checkpoint=tmp_path, progress=lambda share, _: shares.append(share)
    )
    assert resumed.identical(whole)
    assert shares[0] >= seen[-2]
    assert shares[-1] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rounds.safetensors"]


def test_another_calibration_does_not_go_on_from_a_checkpoint(tmp_path):
    calibrate(SCENARIO, settings(GRID), twin(), checkpoint=tmp_path)
    with pytest.raises(InputError, match="belongs to another calibration"):
        calibrate(SCENARIO, settings(GridSearch(values=(0.1, 0.3, 0.45))), twin(), checkpoint=tmp_path)


def test_only_reference_and_training_snapshots_are_looked_at():
    # The twin's evaluation snapshots are NaN already; here other ones come after them.
    more = np.concatenate((twin(), np.full((3, 16, 16), np.inf, np.float32)))
    assert calibrate(SCENARIO, settings(GRID), more).identical(calibrate(SCENARIO, settings(GRID), twin()))


def test_the_seed_decides():
    def values(seed):
        return calibrate(SCENARIO, settings(CMAES(population=4, generations=1, seed=seed)), twin())["value"].values

    np.random.seed(0)  # noqa: NPY002
    untouched = np.random.RandomState(0).rand()
    assert np.array_equal(values(0), values(0))
    assert not np.array_equal(values(0), values(1))
    assert np.random.rand() == untouched  # noqa: NPY002


def test_a_constant_that_blows_up_is_counted_and_not_chosen():
    # The explicit local closure is unstable with so large a constant.
    grid = settings(GridSearch(values=(0.3, 4.0)), closure="leith_local")
    found = calibrate(SCENARIO, grid, twin())
    assert found["blown"] == len(STARTS)
    assert np.isnan(found["error"].values[1]).all()
    assert found["chosen"].item() == 0.3
    with pytest.raises(InputError, match="the explicit closure is stable below"):
        calibrate(SCENARIO, settings(GridSearch(values=(4.0, 5.0)), closure="leith_local"), twin())


def test_members_that_blow_up_are_drawn_anew():
    method = EKI(members=12, rounds=3, bounds=(0.1, 10.0))
    found = calibrate(SCENARIO, settings(method, closure="leith_local"), twin())
    blown = np.isnan(found["error"].values).any(1)
    assert blown[found["round"].values == 0].any()
    assert not blown[-1]
    assert np.isfinite(found["ensemble"]).all()
    assert found["chosen"].item() < 1


def test_an_update_of_many_members_is_that_of_kalman():
    generator = np.random.default_rng(0)
    operator, noise = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]), np.array([0.5, 0.2, 0.4])
    target, prior = np.array([1.0, 2.0, -0.5]), np.diag([1.0, 0.25])
    members = generator.standard_normal((200_000, 2)) * np.sqrt(np.diag(prior))
    updated = kalman_update(members, members @ operator, target, noise, generator)
    gain = prior @ operator @ np.linalg.inv(operator.T @ prior @ operator + np.diag(noise))
    assert updated.mean(0) == pytest.approx(gain @ target, abs=0.01)
    assert np.cov(updated.T) == pytest.approx(prior - gain @ operator.T @ prior, abs=0.01)


def test_lost_members_follow_the_others():
    generator = np.random.default_rng(0)
    members = generator.standard_normal((4000, 1))
    seen = np.repeat(members, 2, 1)
    seen[::2] = np.nan
    updated = kalman_update(members, seen, np.ones(2), np.full(2, 0.5), generator)
    assert updated[::2].mean() == pytest.approx(updated[1::2].mean(), abs=0.05)
    assert updated[::2].std() == pytest.approx(updated[1::2].std(), rel=0.1)
    with pytest.raises(InputError, match="3 of 4 members blew up"):
        kalman_update(
            members[:4], np.where(np.arange(4)[:, None] > 0, np.nan, seen[1]), np.ones(2), np.ones(2), generator
        )


class Given:
    """Snapshots that are there."""

    def load(self, context):
        return twin()


def test_a_run_finds_what_the_function_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "snapshots_of", lambda scenario: Given())
    run = Calibration(scenario=SCENARIO, settings=settings(GRID))
    context = Context(tmp_path, tmp_path / "checkpoint", torch.device("cpu"), tmp_path, tmp_path / "log.jsonl")
    assert run.execute({}, context).identical(calibrate(SCENARIO, settings(GRID), twin()))
    assert run.label == "kolmogorov4 calibrate leith (grid)"


def test_what_is_found_survives_a_file(tmp_path):
    found = calibrate(SCENARIO, settings(EKI(members=4, rounds=1)), twin())
    found.to_netcdf(tmp_path / "found.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "found.nc", engine="h5netcdf") as read:
        closure = calibrated_closure(read)
    assert closure.constant == found["chosen"].item()


def printed(data):
    console = Console(file=io.StringIO(), width=100)
    print_calibration(data, console)
    return console.file.getvalue()


def test_the_table_ends_with_the_chosen_constant():
    found = calibrate(SCENARIO, settings(GridSearch(values=(0.3, 4.0)), closure="leith_local"), twin())
    text = printed(found)
    lines = [line.split() for line in text.splitlines()]
    assert lines[1][:2] == ["round", "Cl"]
    assert lines[2][1] == "0.3000"
    assert "blew up from 3 of 3" in text
    assert lines[4] == ["chosen", *lines[2][1:]]
    assert "over 3 starts" in text
    assert "3 copies blew up" in text
    assert "Cl: at the edge of the grid" in text
    assert "edge" not in printed(calibrate(SCENARIO, settings(GRID), twin()))


def test_of_many_constants_the_best_of_each_round_is_printed():
    found = calibrate(SCENARIO, settings(EKI(members=12, rounds=1)), twin())
    found = found.isel(point=np.r_[0:12, 0:12]).assign(round=("point", np.repeat([0, 1], 12)))
    rows = [line.split() for line in printed(found).splitlines() if line.strip()[:1].isdigit()]
    best = found["value"].values[found["error"].mean("start").values.argmin(), 0]
    assert [row[0] for row in rows] == ["1", "2"]
    assert all(float(row[1]) == pytest.approx(best, abs=1e-3) for row in rows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": {"kind": "grid", "values": [0.1]}}, "different values, two or more"),
        ({"method": {"kind": "grid", "values": [0.1, 0.1]}}, "different values, two or more"),
        ({"method": {"kind": "grid", "values": [-0.1, 0.1]}}, "at least 0"),
        ({"method": {"kind": "grid", "shares": [0.5]}}, "only backscatter"),
        ({"closure": "backscatter", "method": {"kind": "grid", "shares": [1.5]}}, "below 1"),
        ({"closure": "backscatter", "method": {"kind": "eki", "share_bounds": [0.5, 1.0]}}, "below 1"),
        ({"method": {"kind": "eki", "bounds": [0.0, 0.3]}}, "smallest < largest"),
        ({"method": {"kind": "cmaes", "bounds": [0.3, 0.2]}}, "smallest < largest"),
        ({"method": {"kind": "eki", "members": 1}}, "members"),
        ({"method": {"kind": "annealing"}}, "kind"),
        ({"closure": "dleith"}, "closure"),
        ({"duration": 10.0, "discard": 10.0}, "discard"),
        ({"duration": 10.1, "discard": 10.0}, "holds no sample"),
    ],
)
def test_impossible_settings_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        CalibrationSettings.model_validate(given)


@pytest.mark.parametrize("closure", PARAMETERS)
def test_every_closure_has_working_defaults(closure):
    for method in (GridSearch(), EKI(), CMAES()):
        assert len(CalibrationSettings(closure=closure, method=method).ranges) == len(PARAMETERS[closure])


def test_impossible_snapshots_are_refused():
    with pytest.raises(InputError, match="there are 5"):
        calibrate(SCENARIO, settings(GRID), twin()[:5])
    same = np.repeat(twin()[:1], len(twin()), 0)
    with pytest.raises(InputError, match="equal at some wavenumber"):
        calibrate(SCENARIO, settings(GRID), same)
    with pytest.raises(InputError, match="reference spectrum"):
        calibrate(SCENARIO, settings(GRID), np.full_like(twin(), np.nan))


def test_the_package_of_cma_es_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(MissingExtra, match="turbulence"):
        calibrate(SCENARIO, settings(CMAES()), twin())

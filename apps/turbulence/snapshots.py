"""Resolved snapshots of a flow: shipped, simulated here, or read from a user's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from apps.turbulence.ensemble import Advance, Progress
from apps.turbulence.scenario import DirectSimulation, FieldFiles, FlowSettings, Scenario, Shipped, SnapshotSource
from core import files
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.seeds import stream
from core.study import Context, Product
from simulators.turbulence.diagnostics import snapshot_spectra
from simulators.turbulence.filters import defilter
from simulators.turbulence.grid import Grid, resample
from simulators.turbulence.readers import load_py2d_ic, read_fields, read_spectrum
from simulators.turbulence.snapshots import FILTER_WIDTH
from simulators.turbulence.snapshots import snapshots as shipped_snapshots
from simulators.turbulence.solver import FlowState, Solver

START_PEAK = 10.0
"""Wavenumber beyond which the spectrum of a random start falls off."""
START_STD = 5.0
"""Standard deviation of its vorticity."""


class Snapshots(Product):
    """The vorticity of resolved snapshots, numbered from 1, in ``snapshots.nc``."""

    flow: FlowSettings
    """The flow."""
    source: SnapshotSource
    """Where they come from."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.flow.title} snapshots ({self.source.kind})"

    def make(self, directory: Path, context: Context) -> None:
        """Write ``snapshots.nc``."""
        if isinstance(self.source, DirectSimulation):
            omega = simulate_directly(
                self.flow,
                self.source,
                device=context.device,
                checkpoint=context.checkpoint / "dns.safetensors",
                progress=context.progress,
            )
        else:
            omega = given(self.flow, self.source)
        write_snapshots(directory / "snapshots.nc", omega, self.label, self.flow)

    def load(self, context: Context) -> np.ndarray:
        """``(S, N, N)`` float32."""
        return read_snapshots(context.product(self) / "snapshots.nc")


def snapshots_of(scenario: Scenario) -> Snapshots:
    """The product of a scenario."""
    return Snapshots(flow=scenario.flow, source=scenario.snapshots)


def numbered(omega: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """The snapshots of those numbers.

    Raises:
        InputError: there are fewer.
    """
    if max(numbers) > len(omega):
        raise InputError(
            f"snapshot {max(numbers)}: there are {len(omega)}, numbered from 1; choose reference, training and "
            "evaluation among them, such as --set evaluation=[1,2]"
        )
    return omega[[number - 1 for number in numbers]]


def reference_spectra(
    scenario: Scenario,
    snapshots: np.ndarray,
    kind: Literal["enstrophy", "energy"] = "enstrophy",
    band: Literal["full", "les"] | None = None,
) -> Tensor:
    """Spectra along x and y of every reference snapshot, ``(S, 2, N/2)``; the same for all if a file gives them.

    Args:
        scenario: flow, grid and the roles of the snapshots.
        snapshots: ``(S, N, N)`` resolved vorticity.
        kind: what they are of.
        band: in place of the scenario's.

    Raises:
        InputError: snapshots that are missing, or a file that cannot be used.
    """
    n = scenario.grid.n
    resolved = torch.from_numpy(numbered(snapshots, scenario.reference).astype(np.float64))
    spectra = snapshot_spectra(resolved, n, band or scenario.band, "stacked", kind)
    if scenario.spectrum is None:
        return spectra
    if kind == "energy":
        raise InputError(
            f"spectrum: {scenario.spectrum} is of enstrophy: rewards of the energy spectrum need snapshots"
        )
    half_mean_square = float((resolved**2).mean() / 2)
    file = read_spectrum(scenario.spectrum, kind="enstrophy", axis="both", n_les=n, total=half_mean_square)
    spectra = spectra.mean((0, 1)).expand_as(spectra).clone()
    spectra[..., int(file.k[0]) :] = torch.from_numpy(file.value[: n // 2 - int(file.k[0])])
    return spectra


def truncated(omega: np.ndarray, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Snapshots ``(S, N, N)`` on a coarser grid of n points, sharply truncated: ``(S, n, n)``."""
    full = torch.from_numpy(omega.astype(np.float64))
    return Grid(n).to_physical(resample(torch.fft.rfft2(full), n)).to(dtype)


def write_snapshots(
    path: Path, omega: np.ndarray, description: str, flow: FlowSettings, time: np.ndarray | None = None
) -> None:
    """Write ``(S, N, N)`` as NetCDF with its coordinates and the flow that it is of."""
    n = omega.shape[-1]
    x = np.arange(n) * 2 * np.pi / n
    coords = {"snapshot": np.arange(1, len(omega) + 1), "x": x, "y": x}
    data = xr.Dataset(
        {"omega": (("snapshot", "x", "y"), omega.astype(np.float32), {"units": "1", "long_name": "vorticity"})},
        coords,
        {"description": description, "flow": _flow_text(flow)},
    )
    if time is not None:
        data = data.assign_coords(time=("snapshot", time, {"units": "1", "long_name": "time"}))
    files.write(path, lambda temporary: data.to_netcdf(temporary, engine="h5netcdf"))


def _flow_text(flow: FlowSettings) -> str:
    """The parameters of a flow, in an attribute."""
    built = flow.built()
    names = ("reynolds", "fkx", "fky", "beta", "drag")
    return ", ".join(f"{name} = {getattr(built, name):g}" for name in names)


def _check_flow(path: Path, flow: FlowSettings) -> None:
    """Refuse snapshots of another flow, where the file says which it is of (``write_snapshots``)."""
    if path.suffix != ".nc" or not path.is_file():
        return
    with xr.open_dataset(path, decode_times=False) as data:
        held = data.attrs.get("flow")
    if held is not None and held != _flow_text(flow):
        raise InputError(f"{path}: is of another flow: {held}; the scenario's: {_flow_text(flow)} (set flow.case)")


def read_snapshots(path: Path) -> np.ndarray:
    """``(S, N, N)`` float32 of a file that ``write_snapshots`` wrote."""
    with xr.open_dataset(path, engine="h5netcdf") as data:
        return np.asarray(data["omega"].values, dtype=np.float32)


def given(flow: FlowSettings, source: Shipped | FieldFiles) -> np.ndarray:
    """Snapshots that exist, with their filter undone.

    Raises:
        InputError: files that cannot be used.
    """
    omega: np.ndarray
    width: float | None
    if isinstance(source, Shipped):
        omega, width = shipped_snapshots(), FILTER_WIDTH
    else:
        path = Path(source.data)
        mat = path.suffix == ".mat" or (path.is_dir() and any(path.glob("*.mat")))
        omega = load_py2d_ic(path) if mat else read_fields(path, beta=flow.built().beta)
        _check_flow(path, flow)
        width = source.filter_width
    spectrum = torch.fft.rfft2(torch.from_numpy(np.asarray(omega, dtype=np.float64)))
    if width is not None:
        spectrum = defilter(spectrum, width)
    n = omega.shape[-1]
    return Grid(n).to_physical(resample(spectrum, n)).numpy().astype(np.float32)


def random_start(solver: Solver, seed: int) -> FlowState:
    """A random, smooth vorticity."""
    grid = solver.grid
    noise = torch.randn(1, grid.n, grid.n, generator=torch.Generator().manual_seed(stream(seed, "start")))
    spectrum = grid.to_spectral(noise.to(grid.device, grid.dtype)) * torch.exp(-grid.k2 / START_PEAK**2)
    spectrum[:, 0, 0] = 0
    omega = grid.to_physical(spectrum)
    return solver.start(START_STD * omega / omega.std())


@torch.no_grad()
def simulate_directly(
    flow: FlowSettings,
    source: DirectSimulation,
    *,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """The snapshots ``(count, keep, keep)`` of a direct simulation from a random start.

    Args:
        flow: the flow.
        source: grid, times and seed.
        device: where to compute.
        checkpoint: file from which an interrupted simulation goes on, bit for bit.
        progress: told the share done and a message.

    Raises:
        InputError: the simulation blew up, or its time step is too large.
    """
    solver = source.grid.solver(flow, device=device)
    file = Checkpoint(checkpoint)
    steps = [round(source.spin_up / source.grid.dt)] + [round(source.spacing / source.grid.dt)] * (source.count - 1)
    held = file.load()
    if held is None:
        state, kept, leg, done = random_start(solver, source.seed), [], 0, 0
    else:
        state = FlowState(held["vorticity_hat"].to(solver.grid.device), held["advection"].to(solver.grid.device))
        kept, leg, done = list(held["kept"]), int(held["leg"]), int(held["done"])
    total, advance = sum(steps), _stepper(solver, source)
    chunk = max(1, min(500, total // 200))
    while leg < source.count:
        while done < steps[leg]:
            now = min(chunk, steps[leg] - done)
            state = advance(state, now)
            done += now
            solver.check_cfl(state, warn=leg == 0 and done == now)
            if not bool(torch.isfinite(state.vorticity_hat).all()):
                raise InputError(f"dns: the simulation blew up; dt = {source.grid.dt} is too large or n too small")
            so_far = sum(steps[:leg]) + done
            if progress is not None:
                progress(so_far / total, f"t = {so_far * source.grid.dt:.1f}")
            if file.due:
                file.save(_record(state, kept, leg, done))
        kept.append(Grid(source.keep).to_physical(resample(state.vorticity_hat[0].cpu(), source.keep)).float())
        leg, done = leg + 1, 0
    return torch.stack(kept).numpy()


def _record(state: FlowState, kept: list[Tensor], leg: int, done: int) -> dict[str, Tensor]:
    fields = torch.stack(kept) if kept else torch.zeros(0)
    progress = {"leg": torch.tensor(leg), "done": torch.tensor(done)}
    return {"vorticity_hat": state.vorticity_hat, "advection": state.advection, "kept": fields, **progress}


def _stepper(solver: Solver, source: DirectSimulation) -> Advance:
    if source.backend == "torch":
        return solver.advance
    from simulators.turbulence.jaxcfd_backend import advance

    def step(state: FlowState, steps: int) -> FlowState:
        omega = advance(state.vorticity_hat, solver.case, source.grid.dt, steps)
        return FlowState(omega, state.advection)

    return step

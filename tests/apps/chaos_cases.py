"""Series, results and studies for the tests of the chaos benchmark, made without integrating anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import xarray as xr

from apps.chaos.evidence import Evidence
from apps.chaos.metrics import METRICS
from apps.chaos.runs import Forecasts, SystemSeries, Tune
from core.study import Context

TINY = """
study: tiny
systems: [Lorenz, Rossler, HenonHeiles]
reference: linear
protocol: {points: 30, context: 120, horizon: 60, short: 50, validation: 40, replicates: 2, burn_in: 30,
           tolerance: 1.0e-6, lyapunov: stored}
methods:
  - {name: linear, forecaster: {kind: linear, lags: 5}, grid: {lags: [3, 5]}}
  - {name: esn, forecaster: {kind: esn, neurons: 30}, grid: {}}
  - {name: naive_mean, forecaster: {kind: naive_mean}}
claims: [nbeats_beats_linear, published_smape_reproduced]
scenarios:
  - {name: whole}
  - {name: half, train_length: 60, methods: [linear, esn]}
"""


def context_in(folder: Path) -> Context:
    """The surroundings of a run that is done by hand."""
    (folder / "checkpoint").mkdir(parents=True)
    return Context(folder, folder / "checkpoint", torch.device("cpu"), folder, folder / "log.jsonl")


def attributes(system: str, lyapunov: float = 0.9, dt: float = 0.1) -> dict[str, object]:
    """What is stored beside the series of a system."""
    known = {
        "lyapunov_stored": lyapunov,
        "lyapunov_estimated": lyapunov,
        "integrator": "torch",
        "tolerance": 1e-10,
        "versions": "dysts 0.96",
    }
    return {"system": system, "dt": dt, "period": 10 * dt, "dimension": 3, **known}


def ramps(system="A", channels=2, tuning=300, samples=300, replicates=2) -> xr.Dataset:
    """Series that tell their time: test series r is 1000 r + t, the tuning series -1000 + t, channel d adds d / 10."""
    channel = np.arange(channels) / 10
    test = 1000.0 * np.arange(replicates)[:, None, None] + np.arange(samples)[:, None] + channel
    train = -1000.0 + np.arange(tuning)[:, None] + channel
    return _series(system, train, test)


def waves(system="A", channels=2, tuning=300, samples=300, replicates=2, seed=0) -> xr.Dataset:
    """Sums of two sines with phases of their own, and a mean far from zero."""
    generator = np.random.default_rng(seed)
    phase = generator.uniform(0, 6, (1 + replicates, channels, 2))
    time = np.arange(max(tuning, samples))[:, None]
    values = 5 + np.sin(0.21 * time + phase[:, None, :, 0]) + 0.4 * np.sin(0.53 * time + phase[:, None, :, 1])
    return _series(system, values[0, :tuning], values[1:, :samples])


def _series(system: str, train: np.ndarray, test: np.ndarray) -> xr.Dataset:
    variables = {
        "train": (("tuning_sample", "channel"), train),
        "test": (("replicate", "sample", "channel"), test),
    }
    return xr.Dataset(variables, attrs=attributes(system))


def tune(folder: Path, series, method, scenario, protocol) -> xr.Dataset:
    """The choice of hyper-parameters on given series."""
    runs = tuple(SystemSeries(system=data.attrs["system"], protocol=protocol) for data in series)
    run = Tune(method=method, scenario=scenario, protocol=protocol, series=runs)
    return run.execute({f"series.{i}": data for i, data in enumerate(series)}, context_in(folder))


def forecasts(folder: Path, series, method, scenario, protocol, tuned: xr.Dataset | None = None) -> xr.Dataset:
    """The scores of a method on given series."""
    runs = tuple(SystemSeries(system=data.attrs["system"], protocol=protocol) for data in series)
    inputs = {f"series.{i}": data for i, data in enumerate(series)}
    choice = None
    if tuned is not None:
        choice = Tune(method=method, scenario=scenario, protocol=protocol, series=runs)
        inputs["tuned"] = tuned
    run = Forecasts(method=method, scenario=scenario, protocol=protocol, series=runs, tuned=choice)
    return run.execute(inputs, context_in(folder))


def evidence(valid: dict[str, np.ndarray], lyapunov, dt=0.1, horizon=400, name="whole") -> Evidence:
    """Results with these valid times V1 in samples, ``(systems, replicates)`` by method; errors grow with the lead."""
    systems = xr.Dataset(
        {
            "lyapunov": ("system", np.asarray(lyapunov, float)),
            "dt": ("system", np.full(len(lyapunov), dt)),
            "period": ("system", np.full(len(lyapunov), 10 * dt)),
        },
        {"system": [f"S{i:02}" for i in range(len(lyapunov))]},
    )
    return Evidence(name, systems, {m: _scores(v, systems, horizon) for m, v in valid.items()})


def _scores(valid: np.ndarray, systems: xr.Dataset, horizon: int) -> xr.Dataset:
    valid = np.asarray(valid, float)
    lead = np.unique(np.geomspace(1, horizon, 40).round().astype(int))
    growth = 1 - np.exp(-lead / (1 + np.nan_to_num(valid[..., None])))
    time = np.arange(horizon)
    forecast = np.sin(0.2 * time[:, None] + np.arange(3) + valid[..., None, None])
    over = ("system", "replicate")
    censored = np.repeat((valid >= horizon)[..., None], 3, -1).astype(float)
    return xr.Dataset(
        {
            "forecast": ((*over, "sample", "channel"), forecast),
            "valid_samples": ((*over, "definition"), np.stack([valid, valid / 2, valid * 2], -1)),
            "censored": ((*over, "definition"), censored),
            "short": ((*over, "metric"), np.repeat(100 * growth[..., :1], len(METRICS), -1)),
            "smape": ((*over, "lead"), 150 * growth),
            "nrmse": ((*over, "lead"), growth),
            "diverged": (over, np.zeros(valid.shape)),
            "fit_seconds": (over, np.full(valid.shape, 0.5)),
            "forecast_seconds": (over, np.full(valid.shape, 0.1)),
        },
        {"system": systems["system"], "definition": ["V1", "V2", "V3"], "metric": list(METRICS), "lead": lead},
    )

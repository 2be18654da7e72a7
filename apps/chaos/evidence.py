"""The results of a scenario as the table, the claims and the figures read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from apps.chaos.protocol import LyapunovSource

NOT_CHAOTIC = 0.01
"""Largest exponent that the catalogue states, 1 / time units, up to which a system has no Lyapunov time (six)."""


def describe_systems(series: list[xr.Dataset], source: LyapunovSource) -> xr.Dataset:
    """What is known of each system: ``dt``, ``period``, the exponent in use (``lyapunov``) and where it is from.

    The exponent is NaN for systems that are not chaotic: the catalogue states at most 0.01, or ours is not told from
    zero. One that our table lacks is the catalogue's. ``integrator``
    and relative ``tolerance`` say how the series were made, the attribute ``versions`` by what.
    """
    rows = []
    for data in series:
        known = {name: float(data.attrs[f"lyapunov_{name}"]) for name in ("estimated", "stored")}
        used = source if np.isfinite(known[source]) else "stored"
        value = known[used] if known[used] > 0 and known["stored"] > NOT_CHAOTIC else np.nan
        rows.append((float(data.attrs["dt"]), float(data.attrs["period"]), value, used))
    dt, period, exponent, used_names = zip(*rows, strict=True)
    return xr.Dataset(
        {
            "dt": ("system", list(dt), {"units": "time units"}),
            "period": ("system", list(period), {"units": "time units"}),
            "lyapunov": ("system", list(exponent), {"units": "1 / time units", "long_name": "largest exponent"}),
            "lyapunov_source": ("system", list(used_names)),
            "integrator": ("system", [str(data.attrs["integrator"]) for data in series]),
            "tolerance": ("system", [float(data.attrs["tolerance"]) for data in series]),
        },
        {"system": [str(data.attrs["system"]) for data in series]},
        {"versions": "; ".join(sorted({str(data.attrs["versions"]) for data in series}))},
    )


@dataclass(frozen=True)
class Evidence:
    """Results of one scenario.

    Attributes:
        name: of the scenario.
        systems: what is known of each, see ``describe_systems``.
        methods: forecasts and scores, with the dims ``system`` and ``replicate``.
        scaling: how methods see the series: ``standardised``, ``raw``, or ``standardised or raw``.
        everyone: the methods of all scenarios, so that one has one colour in all of them; those of this one if empty.
    """

    name: str
    systems: xr.Dataset
    methods: Mapping[str, xr.Dataset]
    scaling: str = "standardised"
    everyone: tuple[str, ...] = ()

    @property
    def rate(self) -> xr.DataArray:
        """Lyapunov times a sample, of each system."""
        return self.systems["lyapunov"] * self.systems["dt"]

    def valid_time(self, method: str, definition: str = "V1") -> xr.DataArray:
        """Valid time in Lyapunov times (system, replicate); a forecast that holds to its end counts with its length."""
        return self.methods[method]["valid_samples"].sel(definition=definition, drop=True) * self.rate

    def by_system(self, method: str, definition: str = "V1") -> NDArray[np.float64]:
        """Mean valid time over replicates, of each system; NaN where there is none."""
        return self.valid_time(method, definition).mean("replicate").values

    def median(self, method: str) -> float:
        """Median over systems of the valid time V1; NaN where there is none."""
        values = self.by_system(method)
        known = values[np.isfinite(values)]
        return float(np.median(known)) if len(known) else float("nan")

    def curve(self, method: str, name: str, horizon: NDArray[np.float64]) -> NDArray[np.float64]:
        """Error of each system at horizons in Lyapunov times (system, horizon), mean over replicates.

        Interpolated linearly between the leads; NaN beyond the last.
        """
        errors = self.methods[method][name].mean("replicate")
        at = errors["lead"].values.astype(float)
        return np.stack(
            [
                np.interp(horizon / rate, at, row, left=np.nan, right=np.nan) if np.isfinite(rate) else horizon * np.nan
                for rate, row in zip(self.rate.values, errors.values, strict=True)
            ]
        )


def pairs(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The systems for which both have a number."""
    both = np.isfinite(a) & np.isfinite(b)
    return a[both], b[both]

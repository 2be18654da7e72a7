"""Tuning of the harvest rules by batched grid search: every grid point meets the same replicates.

Source: Montealegre-Mora et al. (2023), section 3: the grid point with the largest mean return over the replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from apps.fishery.policies import ConstantEscapement, ConstantMortality, PrecautionaryRamp
from core.errors import InputError
from core.seeds import stream
from core.simulation import Draws, Policy, draw, episode_totals
from simulators.fishery import YEARS, Fishery

COPIES = 32_768
"""Copies simulated at once: large enough to amortise the overhead of an operation, small enough for the cache."""


@dataclass(frozen=True)
class Grid:
    """Mean return over the replicates of every point of a rectangular grid.

    Attributes:
        axes: values along each axis, by the parameter's name.
        mean: mean return, ``(len(axis_0), ...)``; NaN where the point is not allowed.
        best: the parameters of the best point.
        best_mean: its mean return over the replicates that chose it (optimistic: the winner's curse).
    """

    axes: Mapping[str, np.ndarray]
    mean: np.ndarray
    best: dict[str, float]
    best_mean: float


def search(
    simulator: Fishery,
    rule: Callable[[Tensor], Policy],
    axes: Mapping[str, np.ndarray],
    draws: Draws,
    caution: Callable[[np.ndarray], np.ndarray],
    allowed: Callable[[np.ndarray], np.ndarray] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Grid:
    """Evaluate ``rule`` on every grid point with common noise.

    Args:
        simulator: the world.
        rule: from points ``(B, n)``, one for each copy, to the policy of the batch.
        axes: n axes, each with at least 2 values.
        draws: the replicates' randomness, the same for every point.
        caution: from points ``(G, n)`` to a number that breaks ties: the larger wins.
        allowed: from points ``(G, n)`` to the mask of those that are rules at all.
        progress: told the share done.

    Raises:
        InputError: an axis of fewer than 2 points.
    """
    for name, values in axes.items():
        if len(values) < 2:
            raise InputError(f"grid.{name} = {len(values)} points: must be at least 2")
    points = np.array(list(product(*axes.values())))
    keep = np.ones(len(points), bool) if allowed is None else allowed(points)
    start = draws.start.population
    replicates, block = len(start), max(1, COPIES // len(start))
    repeated = draws.repeat(min(block, int(keep.sum())))
    chosen = torch.as_tensor(points[keep], dtype=start.dtype, device=start.device)
    means = []
    for offset in range(0, len(chosen), block):
        part = chosen[offset : offset + block]
        batch = repeated if len(part) * replicates == len(repeated.start.population) else draws.repeat(len(part))
        totals = episode_totals(simulator, rule(part.repeat_interleave(replicates, 0)), batch)
        means.append(totals.reward.reshape(len(part), replicates).double().mean(1).cpu())
        if progress is not None:
            progress(min(1.0, (offset + block) / len(chosen)))
    mean = np.full(len(points), np.nan)
    mean[keep] = torch.cat(means).numpy()
    ties = np.flatnonzero(mean == np.nanmax(mean))
    best = ties[np.argmax(caution(points[ties]))]
    return Grid(
        dict(axes),
        mean.reshape([len(a) for a in axes.values()]),
        dict(zip(axes, points[best].tolist(), strict=True)),
        float(mean[best]),
    )


def _names(parameter: str, simulator: Fishery) -> list[str]:
    return [f"{parameter}_{species}" for species in simulator.species[: simulator.harvested]]


def _axes(names: list[str], high: float, points: int | None) -> dict[str, np.ndarray]:
    count = points if points is not None else (101 if len(names) == 1 else 51)
    return {name: np.linspace(0, high, count) for name in names}


def tune(
    simulator: Fishery,
    rule: str,
    *,
    replicates: int = 100,
    points: int | None = None,
    seed: int = 0,
    horizon: int = YEARS,
    device: str | torch.device = "cpu",
    draws: Draws | None = None,
    progress: Callable[[float], None] | None = None,
) -> xr.Dataset:
    """Tune a harvest rule on the paper's grid.

    Args:
        simulator: the world, at best in float32.
        rule: ``constant_mortality`` (M on [0, 0.5]), ``constant_escapement`` (S on [0, 1]) or ``precautionary_ramp``
            (two rounds of alternating grids, y2 on [0, 1] then x1 < x2 on [0, 1], from x1 = 0 and x2 = 0.05).
        replicates: episodes for each grid point, the same for all points.
        points: points on each axis; 101 for one harvested species and 51 for two if not given.
        seed: of the replicates.
        horizon: years.
        device: where to compute.
        draws: explicit randomness in place of replicates, seed, horizon and device.
        progress: told the share done.

    Returns:
        Dataset: ``mean_return`` over the last grid (dims named by the parameters) and one scalar for each tuned
        parameter; attrs ``rule``, ``in_sample`` (mean return of the best point on its own replicates).

    Raises:
        InputError: unknown rule, fewer than 2 points or 1 replicate.
    """
    if rule not in _TUNERS:
        raise InputError(f"rule = {rule!r}: must be one of {', '.join(_TUNERS)}")
    if draws is None:
        if replicates < 1:
            raise InputError(f"replicates = {replicates}: must be at least 1")
        draws = draw(simulator, horizon, replicates, stream(seed, "tuning"), device)
    grid, best = _TUNERS[rule](simulator, draws, points, progress or (lambda share: None))
    # A dim may not have the name of a scalar: the axis of a parameter that was tuned on it is told apart.
    dims = [f"{name}_axis" for name in grid.axes]
    mean = (dims, grid.mean, {"units": "K", "long_name": "mean return over the replicates"})
    tuned = {name: ((), value, {"long_name": f"tuned {name}"}) for name, value in best.items()}
    axes = dict(zip(dims, grid.axes.values(), strict=True))
    return xr.Dataset({"mean_return": mean, **tuned}, axes, {"rule": rule, "in_sample": grid.best_mean})


_Report = Callable[[float], None]
_Tuned = tuple[Grid, dict[str, float]]


def _tune_mortality(simulator: Fishery, draws: Draws, points: int | None, report: _Report) -> _Tuned:
    axes = _axes(_names("mortality", simulator), 0.5, points)
    grid = search(simulator, ConstantMortality, axes, draws, lambda p: -p.sum(1), progress=report)
    return grid, grid.best


def _tune_escapement(simulator: Fishery, draws: Draws, points: int | None, report: _Report) -> _Tuned:
    axes = _axes(_names("escapement", simulator), 1.0, points)
    grid = search(simulator, ConstantEscapement, axes, draws, lambda p: p.sum(1), progress=report)
    return grid, grid.best


def _tune_ramp(simulator: Fishery, draws: Draws, points: int | None, report: _Report) -> _Tuned:
    rounds, stages = 2, 4

    def stage(number: int) -> _Report:
        return lambda share: report((number + share) / stages)

    # The first grid is over y2 alone, so the search starts from x1 and x2.
    x1, x2 = 0.0, 0.05
    y2_axes = _axes(_names("y2", simulator), 1.0, points)
    x_axes = _axes(["x1", "x2"], 1.0, points)
    for k in range(rounds):
        low, high = x1, x2
        grid = search(
            simulator,
            lambda p: PrecautionaryRamp(low, high, p),  # noqa: B023 - called before the next round
            y2_axes,
            draws,
            lambda p: -p.sum(1),
            progress=stage(2 * k),
        )
        y2 = list(grid.best.values())
        grid = search(
            simulator,
            lambda p: PrecautionaryRamp(p[:, :1], p[:, 1:], y2),  # noqa: B023 - called before the next round
            x_axes,
            draws,
            lambda p: p.sum(1),
            allowed=lambda p: p[:, 0] < p[:, 1],
            progress=stage(1 + 2 * k),
        )
        x1, x2 = grid.best["x1"], grid.best["x2"]
    return grid, {**grid.best, **dict(zip(y2_axes, y2, strict=True))}


_TUNERS: dict[str, Callable[[Fishery, Draws, int | None, _Report], _Tuned]] = {
    "constant_mortality": _tune_mortality,
    "constant_escapement": _tune_escapement,
    "precautionary_ramp": _tune_ramp,
}
RULES = tuple(_TUNERS)
"""The harvest rules that can be tuned."""


def tuned_rule(tuned: xr.Dataset, fraction: float = 1.0) -> Policy:
    """The rule with the parameters that ``tune`` found.

    Args:
        tuned: the result of ``tune``.
        fraction: factor on the mortality (constant mortality only): the paper's cautious fractions.
    """

    def values(prefix: str) -> list[float]:
        return [float(tuned[name]) for name in tuned.data_vars if str(name).startswith(prefix)]

    rule = tuned.attrs["rule"]
    if rule == "constant_mortality":
        return ConstantMortality([fraction * m for m in values("mortality_")])
    if fraction != 1:
        raise InputError(f"fraction = {fraction}: only constant_mortality has fractions")
    if rule == "constant_escapement":
        return ConstantEscapement(values("escapement_"))
    return PrecautionaryRamp(float(tuned["x1"]), float(tuned["x2"]), values("y2_"))

"""What a harvest rule earns and risks, episode by episode."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import xarray as xr

from core.seeds import stream
from core.simulation import Draws, Policy, draw, rollout
from simulators.fishery import YEARS, Fishery, FisheryState

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
OTHER_PREY = 0.45
PREDATORS = (0.6, 1.0, 1.4)
"""Where the slices of a three-species policy lie: near the middle and the 5-95 % range of what is visited."""


def evaluate(
    simulator: Fishery,
    policy: Policy,
    *,
    replicates: int = 2000,
    seed: int = 0,
    horizon: int = YEARS,
    device: str | torch.device = "cpu",
    draws: Draws | None = None,
) -> xr.Dataset:
    """Play fresh episodes of a rule; equal seeds give every rule the same luck.

    Args:
        simulator: the world, at best in float64.
        policy: from populations to mortalities.
        replicates: number of episodes.
        seed: of the episodes; their stream is none of those of tuning and training.
        horizon: years of an episode.
        device: where to compute.
        draws: explicit randomness in place of replicates, seed and horizon.

    Returns:
        The roll-out's Dataset (dims ``rep``, ``time``, ``species``, ``harvested``) with, for each episode: ``return``
        (all rewards), ``return_paper`` (without the last step, as the paper's published tables), ``survived`` (no
        extinction in any year), ``frac_full`` (reached the last year, an extinction in it included: the paper's
        survival), ``annual_catch`` (harvest summed over the species, mean over all years of the horizon).
    """
    draws = draw(simulator, horizon, replicates, stream(seed, "evaluation"), device) if draws is None else draws
    data = rollout(simulator, policy, seed=seed, draws=draws)
    earned = data["reward"].sum("time")
    last = data["reward"].isel(time=data["length"].astype(int) - 1)
    years = data.sizes["time"]
    return data.assign(
        {
            "return": earned.assign_attrs(units="K", long_name="return: sum of rewards over the episode"),
            "return_paper": (earned - last).assign_attrs(units="K", long_name="return without the last step"),
            "survived": (~(data["terminated"] | data["nonfinite"])).assign_attrs(long_name="no extinction"),
            "frac_full": (data["length"] == years).assign_attrs(long_name="reached the last year"),
            "annual_catch": (data["harvest"].sum("harvested").sum("time") / years).assign_attrs(
                units="K/year", long_name="mean annual catch over the horizon"
            ),
        }
    )


def tidy(data: xr.Dataset) -> pd.DataFrame:
    """A roll-out as a table: one line a replicate, year and species; what is not fished has mortality and harvest 0."""
    series = data[[name for name in data.data_vars if "time" in data[name].dims]]
    fished = (
        series[["mortality", "harvest"]].rename(harvested="species").reindex(species=data["species"], fill_value=0.0)
    )
    return series.drop_dims("harvested").merge(fished).to_dataframe().reset_index()


def digest(data: xr.Dataset, record: int) -> xr.Dataset:
    """What a study keeps of an evaluation: every episode's sums, quantiles over the episodes, some whole episodes.

    Args:
        data: from ``evaluate``.
        record: number of episodes to keep whole, along the dim ``trace`` (their replicate is its coordinate).

    Returns:
        Dataset: the per-episode variables along ``rep``; ``population_quantile`` and ``mortality_quantile`` over the
        episodes still alive (NaN when none is); the roll-out's variables along ``trace``.
    """
    series = [name for name in data.data_vars if "time" in data[name].dims]
    kept = data.drop_vars(series)
    alive = data["alive"]
    for name in ("population", "mortality"):
        living = data[name].where(alive).values
        levels = np.full((len(QUANTILES), *living.shape[1:]), np.nan)
        some = alive.any("rep").values
        levels[:, some] = np.nanquantile(living[:, some], QUANTILES, axis=0)
        attrs = {"units": data[name].attrs["units"], "long_name": f"quantiles of the {data[name].attrs['long_name']}"}
        kept[f"{name}_quantile"] = (("quantile", *data[name].dims[1:]), levels, attrs)
    traces = data[series].isel(rep=slice(record)).rename(rep="trace")
    kept = kept.assign_coords(quantile=list(QUANTILES), time=data["time"])
    return kept.merge(traces.map(lambda x: x if x.dtype == bool else x.astype(np.float32), keep_attrs=True))


def policy_slices(simulator: Fishery, policy: Policy, points: int = 61) -> xr.Dataset:
    """The mortality that a rule sets along the population of each harvested species.

    Returns:
        Dataset with ``slice_mortality`` (harvested, slice_population, slice_predator): in a three-species world the
        other prey stands at 0.45 and the predator at 0.6, 1.0 and 1.4; in a one-species world there is one slice.
    """
    axis = torch.linspace(simulator.threshold, 1.2, points, dtype=simulator.dtype)
    species, fleet = simulator.species, simulator.species[: simulator.harvested]
    predators = PREDATORS if len(species) == 3 else (float("nan"),)
    values = np.empty((len(fleet), points, len(predators)))
    for k, z in enumerate(predators):
        for i in range(len(fleet)):
            population = torch.tensor([OTHER_PREY, OTHER_PREY, z][: len(species)], dtype=simulator.dtype).repeat(
                points, 1
            )
            population[:, i] = axis
            state = FisheryState(population, torch.full((points,), YEARS / 2, dtype=simulator.dtype))
            with torch.no_grad():
                values[i, :, k] = policy(simulator.observe(state), state)[:, i].cpu().numpy()
    attrs = {"units": "1/year", "long_name": "fishing mortality (share harvested)"}
    return xr.Dataset(
        {"slice_mortality": (("harvested", "slice_population", "slice_predator"), values, attrs)},
        {
            "harvested": list(fleet),
            "slice_population": ("slice_population", axis.numpy(), {"units": "K", "long_name": "population"}),
            "slice_predator": ("slice_predator", list(predators), {"units": "K", "long_name": "predator Z"}),
        },
    )

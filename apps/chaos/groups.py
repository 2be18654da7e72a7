"""Series of many systems side by side, as a forecaster meets them and as its forecasts are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from apps.chaos.forecasters import Forecaster
from apps.chaos.forecasters.equations import hidden_state
from apps.chaos.protocol import Protocol, Scenario
from core.seeds import stream
from simulators.chaos import DelayFlow, Flow, delay_embedding, embedding_delay, load, with_noise


@dataclass(frozen=True)
class Group:
    """G series of equal length and equally many channels.

    Attributes:
        members: system and replicate of each series, as positions in the study.
        names: of the systems.
        train: ``(G, T, D)`` what is fitted, in raw units, with noise if the scenario has it.
        truth: ``(G, H, D)`` what follows, without noise.
        dt: time between two samples.
        seeds: for initial weights, one for each series.
        scored: leading channels that are scored; the others are lags of them.
    """

    members: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    train: Tensor
    truth: Tensor
    dt: tuple[float, ...]
    seeds: tuple[int, ...]
    scored: int

    def __len__(self) -> int:
        return len(self.members)

    def pick(self, rows: Sequence[int]) -> Group:
        """Some of the series."""
        index = list(rows)
        return replace(
            self,
            members=tuple(self.members[i] for i in index),
            names=tuple(self.names[i] for i in index),
            train=self.train[index],
            truth=self.truth[index],
            dt=tuple(self.dt[i] for i in index),
            seeds=tuple(self.seeds[i] for i in index),
        )

    def served_by(self, forecaster: Forecaster) -> Group:
        """The series that a forecaster can be fitted to: all, unless it needs equations, whose state must be seen."""
        if not forecaster.physical:
            return self
        seen = {name: hidden_state(load(name), self.train.shape[2]) is None for name in set(self.names)}
        return self.pick([i for i, name in enumerate(self.names) if seen[name]])

    def flows(self, forecaster: Forecaster) -> tuple[Flow | DelayFlow, ...] | None:
        """The equations of each series, if the forecaster uses them."""
        if not forecaster.physical:
            return None
        known = {name: load(name) for name in set(self.names)}
        return tuple(known[name] for name in self.names)


def forecast_groups(series: Sequence[xr.Dataset], scenario: Scenario, protocol: Protocol) -> list[Group]:
    """What is fitted and forecast in a scenario: the test series, grouped by their number of channels."""
    length = scenario.train_length or protocol.context
    found = []
    for place, data in enumerate(series):
        values = torch.from_numpy(data["test"].values)
        seen = values[:, protocol.context - length : protocol.context]
        truth = values[:, protocol.context : protocol.context + protocol.horizon]
        members = tuple((place, r) for r in range(len(values)))
        found.append(_posed(data, seen, truth, members, scenario, protocol, "training"))
    return _together(found)


def tuning_groups(series: Sequence[xr.Dataset], scenario: Scenario, protocol: Protocol, fold: int) -> list[Group]:
    """What is fitted and forecast for tuning; fold 0 is the latest block."""
    length = scenario.train_length if scenario.retune else None
    found = []
    for place, data in enumerate(series):
        own = protocol.tuning == "series"
        values = torch.from_numpy(data["train"].values[None] if own else data["test"].values[:, : protocol.context])
        end = values.shape[1] - (fold + 1) * protocol.validation
        seen = values[:, max(0, end - (length or end)) : end]
        truth = values[:, end : end + protocol.validation]
        members = tuple((place, r) for r in range(len(values)))
        found.append(_posed(data, seen, truth, members, scenario, protocol, "tuning"))
    return _together(found)


def _posed(
    data: xr.Dataset,
    seen: Tensor,
    truth: Tensor,
    members: tuple[tuple[int, int], ...],
    scenario: Scenario,
    protocol: Protocol,
    purpose: str,
) -> Group:
    """The series of one system as the scenario shows them."""
    name = str(data.attrs["system"])
    seen, truth = seen[..., : scenario.observe], truth[..., : scenario.observe]
    if scenario.noise:
        generator = torch.Generator().manual_seed(stream(protocol.seed, f"{name} {purpose} noise"))
        # Who tunes has noisy samples alone, also of the validation block; forecasts are scored against the truth.
        shown = torch.cat([seen, truth], 1) if purpose == "tuning" else seen
        noisy = with_noise(shown, scenario.noise, generator)
        seen = noisy[:, : seen.shape[1]]
        truth = noisy[:, seen.shape[1] :] if purpose == "tuning" else truth
    scored = seen.shape[-1]
    if scenario.embedding > 1:
        first = data["train"].values[:, 0]
        delay = embedding_delay(first) if np.isfinite(first).all() else 1
        lags = delay_embedding(torch.cat([seen, truth], 1), delay, scenario.embedding)
        # The latest copy first: it is the one that is scored.
        lags = lags.unflatten(-1, (scenario.embedding, scored)).flip(-2).flatten(-2)
        seen, truth = lags[:, : -truth.shape[1]], lags[:, -truth.shape[1] :]
    seeds = tuple(stream(protocol.seed, f"{name} {purpose} weights {r}") for _, r in members)
    dt = (float(data.attrs["dt"]),) * len(members)
    return Group(members, (name,) * len(members), seen, truth, dt, seeds, scored)


def _together(groups: Sequence[Group]) -> list[Group]:
    """Groups of equal shape joined; series that could not be integrated are left out."""
    shapes: dict[tuple[int, ...], list[Group]] = {}
    for group in groups:
        whole = (group.train.isfinite().flatten(1).all(1) & group.truth.isfinite().flatten(1).all(1)).tolist()
        kept = group.pick(np.flatnonzero(whole).tolist())
        if len(kept):
            shapes.setdefault((*kept.train.shape[1:], kept.scored), []).append(kept)
    return [
        Group(
            members=tuple(m for g in alike for m in g.members),
            names=tuple(n for g in alike for n in g.names),
            train=torch.cat([g.train for g in alike]),
            truth=torch.cat([g.truth for g in alike]),
            dt=tuple(d for g in alike for d in g.dt),
            seeds=tuple(s for g in alike for s in g.seeds),
            scored=alike[0].scored,
        )
        for alike in shapes.values()
    ]

"""The known equations of a group of series, exact or with parameters that are off, in the units of the series."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apps.chaos.forecasters.forecaster import Fitting
from core.errors import InputError
from core.seeds import stream
from simulators.chaos.catalogue import load, names, stored
from simulators.chaos.flow import DelayFlow, Flow
from simulators.chaos.integrate import integrate


@dataclass(frozen=True)
class Equations:
    """Flows of G series, one each.

    Attributes:
        flows: G of them.
        dt: time between two samples of each series.
        offset: ``(G, D)``; states of the flows are ``offset + scale * series``.
        scale: ``(G, D)``.
    """

    flows: tuple[Flow, ...]
    dt: tuple[float, ...]
    offset: Tensor
    scale: Tensor

    def path(self, states: Tensor, samples: int) -> Tensor:
        """The next ``samples`` samples from states ``(G, N, D)``, ``(G, N, samples, D)``.

        Each system is a call of ``integrate`` of all its states, on the CPU: a few states of each are no work for
        another device. What escapes or is not finite is NaN from there on.
        """
        raw = (self.offset[:, None] + self.scale[:, None] * states).cpu()
        times = torch.arange(samples + 1, dtype=torch.float64)
        found = [integrate(f, y, dt * times).states[:, 1:] for f, y, dt in zip(self.flows, raw, self.dt, strict=True)]
        return (torch.stack(found).to(states) - self.offset[:, None, None]) / self.scale[:, None, None]


def known_equations(kind: str, train: Tensor, fitting: Fitting, parameter_error: float) -> Equations:
    """The equations of the series, every parameter p being p (1 + error) or p (1 - error) by the seed of its series.

    Args:
        kind: of the forecaster, for messages.
        train: ``(G, T, D)``.
        fitting: with flows, dt, and units.
        parameter_error: relative; 0 for the equations as they are.

    Raises:
        InputError: no equations, ones whose state the series do not show in full and as it is, ones that depend on
            time or on a delay, or, with an error, ones that are not of the catalogue.
    """
    if fitting.flows is None:
        raise InputError(f"{kind}: needs the equations of every series, which have none")
    flows = tuple(_checked(kind, flow, train.shape[2], fitting.observed) for flow in fitting.flows)
    if parameter_error:
        signed = zip(flows, fitting.seeds, strict=True)
        flows = tuple(imperfect(flow, parameter_error, stream(seed, "parameter error")) for flow, seed in signed)
    zeros, ones = torch.zeros_like(train[:, 0]), torch.ones_like(train[:, 0])
    offset = zeros if fitting.offset is None else fitting.offset.to(train)
    scale = ones if fitting.scale is None else fitting.scale.to(train)
    return Equations(flows, fitting.dt, offset, scale)


def _checked(kind: str, flow: Flow | DelayFlow, channels: int, observed: tuple[int, ...] | None) -> Flow:
    if (reason := hidden_state(flow, channels, observed)) is not None:
        raise InputError(f"{kind}: {reason}")
    assert isinstance(flow, Flow)
    return flow


def hidden_state(flow: Flow | DelayFlow, channels: int, observed: tuple[int, ...] | None = None) -> str | None:
    """Why a sample of ``channels`` values is not the state of the equations; None where it is."""
    if isinstance(flow, DelayFlow):
        return f"{flow.name} is a delay system; allowed are ordinary differential equations"
    if flow.coordinates is not None:
        return f"the series of {flow.name} show a map of its state; allowed are states themselves"
    if channels != flow.dimension or (observed is not None and observed != tuple(range(flow.dimension))):
        shown = channels if observed is None else list(observed)
        return f"the series show {shown} of {flow.dimension} channels of {flow.name}; needs all"
    if not flow.autonomous:
        return f"{flow.name} depends on time, and a series does not tell it; allowed is autonomous"
    if flow.rows is not None:
        return f"{flow.name} has parameters of {flow.rows} rows; allowed is one system a series"
    return None


def imperfect(flow: Flow, error: float, seed: int) -> Flow:
    """A flow of the catalogue, every parameter larger or smaller by ``error`` of its value.

    Raises:
        InputError: a flow that is not of the catalogue.
        MissingExtra: dysts is not installed.
    """
    if flow.name not in names("ode"):
        raise InputError(f"parameter_error: {error}, {flow.name} is not of the catalogue; allowed is 0")
    generator = torch.Generator().manual_seed(seed)
    wrong: dict[str, float | Tensor] = {}
    for name, catalogued in sorted(stored(flow.name).parameters.items()):
        value = torch.as_tensor(flow.parameters.get(name, catalogued), dtype=torch.float64)
        sign = 2.0 * torch.randint(2, value.shape, generator=generator, dtype=torch.float64) - 1
        wrong[name] = value * (1 + error * sign)
    changed = load(flow.name, wrong)
    assert isinstance(changed, Flow)
    return changed

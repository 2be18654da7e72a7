"""The catalogue of dysts: 129 ordinary and 6 delay differential equations with their metadata."""

from __future__ import annotations

import difflib
import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError, require
from simulators.chaos.flow import DelayFlow, Flow, SerialRhs
from simulators.chaos.torch_equations import (
    Parameter,
    bounded_coordinates,
    cloned,
    delayed_right_hand_side,
    of_one_state,
    right_hand_side,
)

Kind = Literal["ode", "delay", "all"]


@dataclass(frozen=True)
class Stored:
    """What dysts stores about a system; its exponents come from one estimate each and carry no errors.

    Attributes:
        name: of the system.
        dimension: of the state; of the embedding for a delay system.
        delay: whether it is a delay system.
        dt: integration step in time units that dysts suggests.
        period: dominant period in time units.
        maximum_lyapunov: largest Lyapunov exponent, 1 / time units.
        lyapunov_spectrum: all exponents, 1 / time units; None where it has none.
        kaplan_yorke: dimension from the spectrum.
        correlation_dimension: of the attractor.
        parameters: by name.
        initial: state on or near the attractor.
        mean: of the observed channels.
        std: of the observed channels.
        postprocessed: whether observed channels differ from states (angles and phases are mapped).
        nonautonomous: whether it is driven, by a phase among its states or by the time.
        hamiltonian: whether it conserves energy.
        citation: of the system.
    """

    name: str
    dimension: int
    delay: bool
    dt: float
    period: float
    maximum_lyapunov: float
    lyapunov_spectrum: tuple[float, ...] | None
    kaplan_yorke: float
    correlation_dimension: float
    parameters: Mapping[str, Any]
    initial: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    postprocessed: bool
    nonautonomous: bool
    hamiltonian: bool
    citation: str


@cache
def _flows() -> ModuleType:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numba not installed")
        return require("dysts.flows", "chaos")


@cache
def _metadata() -> dict[str, dict[str, Any]]:
    with open(_flows().DynSys.__init__.__globals__["DATAPATH_CONTINUOUS"], encoding="utf-8") as file:
        return json.load(file)


@cache
def names(kind: Kind = "all") -> tuple[str, ...]:
    """Names of the catalogue in alphabetical order.

    Args:
        kind: ``ode``, ``delay`` or ``all``.

    Raises:
        InputError: of an unknown kind.
        MissingExtra: dysts is not installed.
    """
    if kind not in ("ode", "delay", "all"):
        raise InputError(f"kind = {kind!r}; allowed are ode, delay and all")
    flows, known = _flows(), _metadata()
    found = (
        name
        for name, member in inspect.getmembers(flows, inspect.isclass)
        if issubclass(member, (flows.DynSys, flows.DynSysDelay)) and member.__module__ == flows.__name__
    )
    return tuple(sorted(name for name in found if kind == "all" or known[name]["delay"] == (kind == "delay")))


def _check(name: str) -> None:
    if name not in names():
        lower = {known.lower(): known for known in names()}
        near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
        hint = f"the nearest are {', '.join(near)}" if near else f"there are {len(names())}, see names()"
        raise InputError(f"system = {name!r} is not in the catalogue; {hint}")


def stored(name: str) -> Stored:
    """Metadata of a system.

    Raises:
        InputError: the catalogue has no such system.
        MissingExtra: dysts is not installed.
    """
    _check(name)
    entry = _metadata()[name]
    return Stored(
        name=name,
        dimension=entry["embedding_dimension"],
        delay=entry["delay"],
        dt=entry["dt"],
        period=entry["period"],
        maximum_lyapunov=entry["maximum_lyapunov_estimated"],
        lyapunov_spectrum=tuple(spectrum) if (spectrum := entry["lyapunov_spectrum_estimated"]) else None,
        kaplan_yorke=entry["kaplan_yorke_dimension"],
        correlation_dimension=entry["correlation_dimension"],
        parameters=entry["parameters"],
        initial=tuple(entry["initial_conditions"]),
        mean=tuple(entry["mean"]),
        std=tuple(entry["std"]),
        postprocessed=hasattr(getattr(_flows(), name), "_postprocessing"),
        nonautonomous=entry["nonautonomous"],
        hamiltonian=entry["hamiltonian"],
        citation=entry["citation"],
    )


def _parameters(name: str, replaced: Mapping[str, float | Tensor]) -> dict[str, Parameter]:
    """Every parameter: numbers, arrays, and ``(B,)`` tensors.

    Raises:
        InputError: an unknown parameter, a wrong shape, or a value that is not finite.
    """
    values: dict[str, Parameter] = {}
    for key, value in _metadata()[name]["parameters"].items():
        values[key] = float(value) if np.ndim(value) == 0 else np.asarray(value, dtype=float)
    rows = None
    for key, value in replaced.items():
        if key not in values:
            raise InputError(f"parameter {key!r} of {name} is unknown; there are {', '.join(values) or 'none'}")
        own = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
        if not bool(own.isfinite().all()):
            raise InputError(f"parameter {key} of {name} is not finite")
        shape = np.shape(values[key])
        if tuple(own.shape) == shape:
            values[key] = own.double().cpu().numpy() if shape else float(own)
        elif own.ndim == 1 and not shape and rows in (None, len(own)):
            values[key], rows = own, len(own)
        else:
            allowed = f"{shape}" if shape else f"a number or ({'B' if rows is None else rows},)"
            raise InputError(f"parameter {key} of {name} has shape {tuple(own.shape)}; allowed is {allowed}")
    return values


def load(name: str, parameters: Mapping[str, float | Tensor] | None = None) -> Flow | DelayFlow:
    """A system of the catalogue as a batched flow.

    Args:
        name: of the system.
        parameters: values that replace the catalogue's; ``(B,)`` tensors give every row its own.

    Raises:
        InputError: the catalogue has no such system (the nearest names are given) or no such parameter.
        MissingExtra: dysts is not installed.
    """
    entry = stored(name)
    values = _parameters(name, parameters or {})
    system = getattr(_flows(), name)
    public = {key: value for key, value in values.items() if not isinstance(value, np.ndarray)}
    scale = max(*entry.std, *(abs(x) for x in entry.initial))
    if entry.delay:
        tau = values["tau"]
        if not bool((torch.as_tensor(tau) > 0).all()):
            raise InputError(f"parameter tau of {name} is a delay and must be > 0")
        return DelayFlow(
            name=name,
            dimension=entry.dimension,
            right_hand_side=delayed_right_hand_side(system, values),
            initial=torch.tensor(entry.initial[:1], dtype=torch.float64),
            delay=tau if isinstance(tau, Tensor) else float(tau),
            period=entry.period,
            parameters=public,
            channels=tuple(f"x{k}" for k in range(entry.dimension)),
            stored_lyapunov=entry.maximum_lyapunov,
            scale=scale,
        )
    initial = torch.tensor(entry.initial, dtype=torch.float64)

    def serial(row: int) -> SerialRhs:
        return of_one_state(system, values, row)

    early, late = (np.asarray(serial(0)(initial.numpy(), t), dtype=float) for t in (0.0, 0.3 * entry.period))
    # Phases have no bound; they grow by this much in a period.
    scale = max(scale, entry.period * float(np.abs(early).max()))
    return Flow(
        name=name,
        dimension=entry.dimension,
        right_hand_side=right_hand_side(system, values, initial),
        initial=initial,
        period=entry.period,
        parameters=public,
        channels=_channels(system, entry.dimension),
        coordinates=bounded_coordinates(system, values) if entry.postprocessed else None,
        autonomous=bool(np.array_equal(early, late)),
        stored_lyapunov=entry.maximum_lyapunov,
        scale=scale,
        serial=serial,
    )


def _channels(system: type, dimension: int) -> tuple[str, ...]:
    """Names of the coordinates: those that dysts' function of the columns uses, where there is one."""
    clone = cloned(system, "numpy")
    if hasattr(clone, "rhs"):
        return tuple(f"x{k}" for k in range(dimension))
    return tuple(inspect.signature(vars(clone)["_rhs"].__func__).parameters)[:dimension]

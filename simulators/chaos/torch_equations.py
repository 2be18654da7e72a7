"""The right-hand sides of dysts, which are written for numpy and one state, as functions of batches of tensors.

No equation is written again: every function of a system's class is cloned with globals in which ``np`` is a small
namespace on tensors. States then come as columns, ``x`` being ``(B,)``; array parameters get a trailing axis, so that
they broadcast against columns. A class whose functions do not survive that goes through ``torch.func.vmap`` of the
function of one state, and ``right_hand_side`` finds out which by one comparison with dysts.
"""

from __future__ import annotations

import builtins
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from simulators.chaos.flow import Rhs, SerialRhs

Parameter = float | np.ndarray | Tensor
"""A number, an array that belongs to the system, or ``(B,)`` numbers, one a row."""


def _unary(name: str) -> Callable[[Any], Any]:
    on_tensors, on_numbers = getattr(torch, name), getattr(np, name)
    return lambda x: on_tensors(x) if isinstance(x, Tensor) else float(on_numbers(x))


def _heaviside(x: Any, at_zero: float) -> Any:
    if not isinstance(x, Tensor):
        return float(np.heaviside(x, at_zero))
    return (x > 0).to(x.dtype) + at_zero * (x == 0).to(x.dtype)


def _minimum(x: Any, axis: int | None = None) -> Any:
    return x.min() if axis is None else x.amin(axis)


def _maximum_of(*values: Any) -> Any:
    tensors = [v for v in values if isinstance(v, Tensor)]
    if not tensors:
        return builtins.max(*values)
    largest = torch.as_tensor(values[0]).to(tensors[0])
    for value in values[1:]:
        largest = torch.maximum(largest, torch.as_tensor(value).to(tensors[0]))
    return largest


def _namespace(columns: bool) -> types.SimpleNamespace:
    """What dysts' functions use of numpy; sums and products go over the first axis, that of an array parameter."""
    names = ["sin", "cos", "tan", "tanh", "sinh", "cosh", "exp", "log", "sqrt", "abs", "sign"]
    return types.SimpleNamespace(
        **{name: _unary(name) for name in names},
        pi=np.pi,
        heaviside=_heaviside,
        min=_minimum,
        matmul=torch.matmul,
        dot=lambda a, b: (a * b).sum(0),
        sum=lambda x: x.sum(0),
        copy=torch.clone,
        zeros_like=torch.zeros_like,
        hstack=lambda parts: torch.cat(tuple(parts)),
        arange=lambda *limits: torch.arange(*limits)[:, None] if columns else torch.arange(*limits),
    )


Form = Literal["columns", "one", "numpy"]
_GLOBALS: dict[Form, dict[str, Any]] = {
    "columns": {"np": _namespace(columns=True), "max": _maximum_of},
    "one": {"np": _namespace(columns=False), "max": _maximum_of},
    "numpy": {},
}


def cloned(system: type, form: Form) -> type:
    """A class with the functions of a dysts class, its bases' below dysts' own among them, never compiled.

    Args:
        system: subclass of dysts' ``DynSys`` or ``DynSysDelay``.
        form: whether its functions get ``(B,)`` columns, the tensors of one state, or one state in numpy, as in dysts.
    """
    members: dict[str, Any] = {}
    for base in reversed(system.__mro__):
        if base.__module__ != system.__module__:
            continue
        for name, member in vars(base).items():
            static = isinstance(member, staticmethod)
            while isinstance(member, staticmethod):
                member = member.__func__
            member = getattr(member, "py_func", member)
            if not isinstance(member, types.FunctionType):
                continue
            clone = types.FunctionType(
                member.__code__, {**member.__globals__, **_GLOBALS[form]}, name, member.__defaults__
            )
            members[name] = staticmethod(clone) if static else clone
    return type(system.__name__, (), members)


class _Bound:
    """Instances of a cloned class with their parameters, one for each dtype and device that comes along."""

    def __init__(self, system: type, parameters: Mapping[str, Parameter], form: Form) -> None:
        self._class, self._parameters, self._form = cloned(system, form), parameters, form
        self._instances: dict[tuple[torch.dtype, torch.device], Any] = {}

    def at(self, like: Tensor) -> tuple[Any, list[Any]]:
        """An instance and its parameters in the order of their names, as dysts passes them."""
        key = like.dtype, like.device
        if key not in self._instances:
            values = {name: self._on(value, like) for name, value in sorted(self._parameters.items())}
            self._instances[key] = self.instance(values)
        instance = self._instances[key]
        return instance, instance.ordered

    def instance(self, values: dict[str, Any]) -> Any:
        """An instance with these parameters, which are sorted by name."""
        instance = self._class()
        instance.__dict__.update(values, ordered=list(values.values()))
        return instance

    def _on(self, value: Parameter, like: Tensor) -> float | Tensor:
        if isinstance(value, Tensor):
            return value.to(like)
        if isinstance(value, np.ndarray):
            array = torch.as_tensor(value).to(like)
            return array[:, None] if self._form == "columns" and array.ndim == 1 else array
        return float(value)


def _stacked(parts: Tensor | Sequence[Any], like: Tensor) -> Tensor:
    """Components ``(..)``, numbers among them, stacked on the first axis in the shape of ``like``."""
    if isinstance(parts, Tensor):
        return parts
    rows = [part if isinstance(part, Tensor) else like.new_full((), part) for part in parts]
    if any(row.shape != like.shape for row in rows):
        rows = [(row[0] if row.ndim > like.ndim else row).expand(like.shape) for row in rows]
    return torch.stack(rows)


def _evaluated(instance: Any, ordered: list[Any], t: Any, state: Tensor) -> Tensor:
    """Evaluates f of ``(D, B)`` columns, or of ``(D,)``."""
    if hasattr(instance, "rhs"):
        return _stacked(instance.rhs(state, t), state[0])
    return _stacked(instance._rhs(*state.unbind(0), t, *ordered), state[0])


def of_columns(system: type, parameters: Mapping[str, Parameter]) -> Rhs:
    """Evaluates f on columns: as many kernels as the equations have operations. The result is a view of ``(D, B)``."""
    bound = _Bound(system, parameters, "columns")

    def right_hand_side(t: Tensor, y: Tensor) -> Tensor:
        instance, ordered = bound.at(y)
        return _evaluated(instance, ordered, t, y.mT).mT

    return right_hand_side


def of_rows(system: type, parameters: Mapping[str, Parameter]) -> Rhs:
    """Evaluates f by vmap of the function of one state."""
    bound = _Bound(system, parameters, "one")
    varied = [name for name, value in parameters.items() if isinstance(value, Tensor)]

    def of_one(t: Tensor, y: Tensor, own: dict[str, Tensor]) -> Tensor:
        instance, ordered = bound.at(y)
        if own:
            values = {name: own.get(name, value) for name, value in zip(sorted(parameters), ordered, strict=True)}
            instance, ordered = bound.instance(values), list(values.values())
        return _evaluated(instance, ordered, t, y)

    def right_hand_side(t: Tensor, y: Tensor) -> Tensor:
        own = {name: torch.as_tensor(parameters[name]).to(y) for name in varied}
        return torch.func.vmap(of_one)(t, y, own)

    return right_hand_side


def of_one_state(system: type, parameters: Mapping[str, Parameter], row: int) -> SerialRhs:
    """Evaluates f of one state and the parameters of one row, by numpy, as dysts evaluates it."""
    values: dict[str, Any] = {
        name: float(value[row]) if isinstance(value, Tensor) else value for name, value in sorted(parameters.items())
    }
    instance = _Bound(system, {}, "numpy").instance(values)
    if hasattr(instance, "rhs"):
        return instance.rhs
    return lambda y, t: instance._rhs(*y, t, *instance.ordered)


def right_hand_side(system: type, parameters: Mapping[str, Parameter], initial: Tensor) -> Rhs:
    """Evaluates f on columns if that agrees with dysts at two states, else by vmap.

    Args:
        system: class of dysts.
        parameters: by name; all of them.
        initial: ``(D,)``, near which the comparison is made.
    """
    y = torch.stack([initial, initial * 1.01 + 0.01])
    first = {name: float(value[0]) if isinstance(value, Tensor) else value for name, value in parameters.items()}
    reference = of_one_state(system, first, 0)
    expected = np.stack([np.asarray(reference(row, 0.5), dtype=float) for row in y.numpy()])
    try:
        found = of_columns(system, first)(torch.full((2,), 0.5, dtype=y.dtype), y)
    except (RuntimeError, TypeError, IndexError, ValueError):
        return of_rows(system, parameters)
    agree = found.shape == y.shape and np.allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12, equal_nan=True)
    return (of_columns if agree else of_rows)(system, parameters)


def delayed_right_hand_side(
    system: type, parameters: Mapping[str, Parameter]
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """f(t, x, x(t - tau)) of a delay system, each ``(B,)``."""
    bound = _Bound(system, parameters, "columns")

    def right_hand_side(t: Tensor, x: Tensor, delayed: Tensor) -> Tensor:
        instance, ordered = bound.at(x)
        return instance._rhs(x, delayed, t, *ordered)

    return right_hand_side


def bounded_coordinates(system: type, parameters: Mapping[str, Parameter]) -> Callable[[Tensor], Tensor]:
    """The map of states ``(..., D)`` to coordinates without unbounded angles; rows first where parameters vary."""
    bound = _Bound(system, parameters, "columns")
    ensemble = any(isinstance(value, Tensor) for value in parameters.values())

    def coordinates(states: Tensor) -> Tensor:
        rows_last = ensemble and states.ndim > 2
        columns = (states.movedim(0, -2) if rows_last else states).unbind(-1)
        mapped = _stacked(bound.at(states)[0]._postprocessing(*columns), columns[0]).movedim(0, -1)
        return mapped.movedim(-2, 0) if rows_last else mapped

    return coordinates

"""What a policy has learned: what its coefficient depends on, how often it is negative, and a formula for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from core.errors import InputError
from simulators.turbulence.agents import ClosureAgents, PolicyClosure
from simulators.turbulence.agents.rewards import SMALLEST
from simulators.turbulence.agents.world import AgentsState

LEVELS = 25
"""Values of a number of the state at which the partial dependence is taken."""
SHUFFLES = 10
"""Permutations over which an importance is averaged."""
FOLDS = 5
"""Of the cross-validation, at most; whole flows stand together."""
LARGEST = 10
"""Terms of a formula at most, its constant left out."""
EXACT = 1e-12
"""Share of a sum of squares that counts as nothing."""
SPECTRUM_ERROR = "spectrum error"
"""Name of the mean over k >= 1 of log10 Z/Z_ref of a flow, in formulas."""

Numbers = NDArray[np.float64]


def interpret(closure: PolicyClosure, vorticity: Tensor, *, seed: int = 0) -> xr.Dataset:
    """Describe a policy by what it does in given flows.

    A partial dependence replaces one number of every state by a common value and averages the coefficients
    (Friedman 2001). An importance shuffles one number among the states: it is the mean square of the change over twice
    the variance, the total share of the variance if the numbers were independent (Jansen 1999). Both leave the states
    that occur where numbers are correlated. The formula is that of ``fitted``, in the standardised numbers of the
    agent's place and, if agents see the spectrum, the mean over k >= 1 of log10 Z/Z_ref of their flow.

    Args:
        closure: the policy in its world.
        vorticity: ``(B, N, N)`` of typical flows; 3 or more of them.
        seed: of shuffles and folds.

    Returns:
        Dims ``state`` (its numbers), ``level``, ``group`` (``place``, ``spectrum``), ``term``: ``value`` (domain's
        units), ``dependence`` and its 95 % band over states ``low``, ``high``; ``importance`` of each number and
        ``group_importance``; ``backscatter_agents``, ``backscatter_points`` (shares with c < 0); ``mean``, ``std`` of
        c; ``state_mean``, ``state_std`` of the standardisation; ``coefficient`` of each term, ``degree``, ``r2``
        (cross-validated) and ``error`` (root mean square) of the formula, which stands in the attribute ``formula``.

    Raises:
        InputError: too few flows, or flows of another shape.
    """
    if len(vorticity) < 3:
        raise InputError(
            f"vorticity of {len(vorticity)} flows: must be 3 or more, for whole flows are left out in turn"
        )
    world = closure.world
    flow = world.solver.start(vorticity)
    zero = flow.vorticity_hat.real.new_zeros(len(vorticity))
    state = AgentsState(flow, zero, zero)
    with torch.no_grad():
        seen = world.observe(state)
        field = world.coefficient_field(closure.policy(seen, state))

    def act(observation: Tensor) -> Tensor:
        return _coefficients(closure, observation, state)

    now = act(seen)
    importance = _importance(world, act, seen, now, np.random.default_rng(seed))
    data = {**_dependence(world, act, seen), **importance}
    data["backscatter_agents"] = ((), float((now < 0).double().mean()), _named("share of agents with c < 0"))
    data["backscatter_points"] = ((), float((field < 0).double().mean()), _named("share of points with c < 0"))
    data["mean"] = ((), float(now.mean()), _named("mean coefficient"))
    data["std"] = ((), float(now.double().std(correction=0)), _named("standard deviation of the coefficient"))
    mean, std = standardisation(world)
    data["state_mean"] = ("state", mean, _named("mean that standardises the state"))
    data["state_std"] = ("state", std, _named("standard deviation that standardises the state"))
    described = xr.Dataset(data, {"state": world.state_names, "group": list(_groups(world))})
    features, names = _features(world, seen, state)
    number = np.repeat(np.arange(len(seen)), world.agents)
    formula = fitted(features, names, now.double().cpu().numpy().ravel(), number, seed=seed)
    attrs = {
        "action": "Cl^3" if world.action == "leith" else "Cs^2",
        "delta_convention": "2 pi / N",
        "states": now.numel(),
        "formula": formula.text,
    }
    return described.merge(formula.dataset()).assign_attrs(attrs)


def _named(long_name: str) -> dict[str, str]:
    return {"units": "1", "long_name": long_name}


def standardisation(world: ClosureAgents) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation by which a world standardises its states, ``(S,)`` each."""
    fixed = world.moved(world.solver)
    assert fixed.mean is not None
    assert fixed.std is not None
    return fixed.mean.double().cpu().numpy(), fixed.std.double().cpu().numpy()


@torch.no_grad()
def _coefficients(closure: PolicyClosure, observation: Tensor, state: AgentsState) -> Tensor:
    """What agents with these observations ``(B, agents, S)`` set, ``(B, agents)``, made positive if the world does."""
    world = closure.world
    # Every interpolation gives the agents' own values at their places.
    field = world.coefficient_field(closure.policy(observation, state))
    stride = world.solver.grid.n // world.agents_per_side
    return field[:, ::stride, ::stride].flatten(1)


def _groups(world: ClosureAgents) -> dict[str, list[int]]:
    """The numbers of a state that belong to the agent's place, and those of the whole flow's spectrum."""
    spectral = [i for i, name in enumerate(world.state_names) if name.startswith("log ")]
    place = [i for i in range(len(world.state_names)) if i not in spectral]
    return {name: numbers for name, numbers in (("place", place), ("spectrum", spectral)) if numbers}


def _dependence(world: ClosureAgents, act: Callable[[Tensor], Tensor], seen: Tensor) -> dict[str, Any]:
    mean, std = standardisation(world)
    size = seen.shape[-1]
    values, found = np.zeros((size, LEVELS)), np.zeros((3, size, LEVELS))
    for i in range(size):
        low, high = np.quantile(seen[..., i].double().cpu().numpy(), (0.01, 0.99))
        levels = np.linspace(low, high, LEVELS)
        values[i] = mean[i] + std[i] * levels
        for j, level in enumerate(levels):
            replaced = seen.clone()
            replaced[..., i] = level
            c = act(replaced).double().cpu().numpy()
            found[:, i, j] = c.mean(), *np.quantile(c, (0.025, 0.975))
    dims = ("state", "level")
    return {
        "value": (dims, values, _named("value of the number, from its 1 % to its 99 % quantile")),
        "dependence": (dims, found[0], _named("mean coefficient at this value")),
        "low": (dims, found[1], _named("2.5 % quantile over states")),
        "high": (dims, found[2], _named("97.5 % quantile over states")),
    }


def _importance(
    world: ClosureAgents, act: Callable[[Tensor], Tensor], seen: Tensor, now: Tensor, rng: np.random.Generator
) -> dict[str, Any]:
    """Jansen's estimate of the total share of the variance, for each number and each group."""
    flat = seen.flatten(0, 1)
    orders = [torch.from_numpy(rng.permutation(len(flat))).to(flat.device) for _ in range(SHUFFLES)]
    variance = float(now.double().var(correction=0))

    def share(numbers: list[int]) -> float:
        changes = []
        for order in orders:
            shuffled = flat.clone()
            shuffled[:, numbers] = flat[order][:, numbers]
            changes.append(float((act(shuffled.view_as(seen)) - now).double().square().mean()))
        # A policy of one constant depends on nothing.
        return float(np.mean(changes)) / (2 * variance) if variance > SMALLEST else 0.0

    single = [share([i]) for i in range(seen.shape[-1])]
    groups = [share(numbers) for numbers in _groups(world).values()]
    what = "mean square change over twice the variance when shuffled among states"
    return {
        "importance": ("state", single, _named(what)),
        "group_importance": ("group", groups, _named(what)),
    }


def _features(world: ClosureAgents, seen: Tensor, state: AgentsState) -> tuple[Numbers, list[str]]:
    """``(states, F)`` and the names of what a formula may use."""
    groups = _groups(world)
    place = groups.get("place", [])
    columns = [seen[..., i] for i in place]
    names = [f"z({world.state_names[i]})" for i in place]
    if "spectrum" in groups:
        spectrum = world.spectrum(state.flow.vorticity_hat)
        ratio = spectrum.clamp(min=SMALLEST) / world.reference.to(spectrum)
        error = ratio[..., 1:].log10().flatten(1).mean(1)
        columns.append(error.unsqueeze(1).expand(-1, world.agents))
        names.append(SPECTRUM_ERROR)
    return torch.stack(columns, -1).flatten(0, 1).double().cpu().numpy(), names


@dataclass(frozen=True)
class Formula:
    """A polynomial with few terms.

    Attributes:
        terms: names of the terms, the constant ``1`` first.
        coefficients: of the terms.
        degree: 1 or 2.
        r2: cross-validated share of the variance that it explains; below 0 if it is worse than the mean.
        error: cross-validated root mean square error.
    """

    terms: tuple[str, ...]
    coefficients: Numbers
    degree: int
    r2: float
    error: float

    @property
    def text(self) -> str:
        """The formula, ``c = ...``."""
        parts = [f"{self.coefficients[0]:.4g}"]
        for name, value in zip(self.terms[1:], self.coefficients[1:], strict=True):
            parts.append(f"{'-' if value < 0 else '+'} {abs(value):.4g} {name}")
        return "c = " + " ".join(parts)

    def dataset(self) -> xr.Dataset:
        """``coefficient`` along ``term``; ``degree``, ``r2``, ``error``."""
        return xr.Dataset(
            {
                "coefficient": ("term", self.coefficients, _named("coefficient in the formula")),
                "degree": ((), self.degree, _named("degree of the formula")),
                "r2": ((), self.r2, _named("cross-validated R^2 of the formula")),
                "error": ((), self.error, _named("cross-validated root mean square error of the formula")),
            },
            {"term": list(self.terms)},
        )


def fitted(features: Numbers, names: list[str], target: Numbers, group: NDArray[np.int64], *, seed: int = 0) -> Formula:
    """The linear or quadratic formula of least cross-validated error, with the fewest terms that come near it.

    Terms enter one by one, each time the one that lowers the squared error most, and leave when others have made them
    needless (adaptive forward-backward selection, Zhang 2011). Groups are left out together. Of all degrees and
    numbers of terms, the simplest within one standard error of the best is taken (Breiman et al. 1984), and fitted to
    everything.

    Args:
        features: ``(M, F)``.
        names: of the features.
        target: ``(M,)``.
        group: ``(M,)`` number of the group of each row, 2 groups or more.
        seed: of the folds.

    Raises:
        InputError: fewer than 2 groups.
    """
    members = np.random.default_rng(seed).permutation(np.unique(group))
    if len(members) < 2:
        raise InputError(f"group: {len(members)} group; must be 2 or more")
    folds = [np.isin(group, fold) for fold in np.array_split(members, min(FOLDS, len(members)))]
    best: dict[tuple[int, int], tuple[float, float]] = {}
    for degree in (1, 2):
        columns = _terms(features, names, degree)[0]
        errors = np.stack([_held_out(columns, target, fold) for fold in folds])
        for size in range(errors.shape[1]):
            spread = errors[:, size].std(ddof=1) / np.sqrt(len(folds))
            best[degree, size] = float(errors[:, size].mean()), float(spread)
    least, spread = min(best.values())
    size, degree = min((size, degree) for (degree, size), (error, _) in best.items() if error <= least + spread)
    columns, terms = _terms(features, names, degree)
    chosen, coefficients = _selected(columns, target, size)[-1]
    error, variance = best[degree, size][0], float(target.var())
    r2 = 1 - error / variance if variance > 0 else 1.0
    return Formula(("1", *(terms[i] for i in chosen)), coefficients, degree, r2, float(np.sqrt(error)))


def _terms(features: Numbers, names: list[str], degree: int) -> tuple[Numbers, list[str]]:
    """All products of ``degree`` features at most, the constant left out."""
    columns, terms = list(features.T), list(names)
    if degree == 2:
        for i, j in itertools.combinations_with_replacement(range(len(names)), 2):
            columns.append(features[:, i] * features[:, j])
            terms.append(f"{names[i]}^2" if i == j else f"{names[i]} {names[j]}")
    return np.stack(columns, 1), terms


def _held_out(columns: Numbers, target: Numbers, fold: NDArray[np.bool_]) -> Numbers:
    """Mean squared error in the fold of the formulas of 0, 1, ... terms that the rest selects."""
    errors = []
    for chosen, coefficients in _selected(columns[~fold], target[~fold], LARGEST):
        predicted = coefficients[0] + columns[fold][:, chosen] @ coefficients[1:]
        errors.append(np.mean((target[fold] - predicted) ** 2))
    return np.array(errors)


def _selected(columns: Numbers, target: Numbers, size: int) -> list[tuple[list[int], Numbers]]:
    """Forward-backward selection: for 0, 1, ... ``size`` terms, which, and the coefficients with the constant first."""
    centre = columns.mean(0)
    basis, y = columns - centre, target - target.mean()
    norm = np.maximum((basis**2).sum(0), SMALLEST)
    negligible = EXACT * float(y @ y)

    def rest(chosen: list[int], x: Numbers) -> Numbers:
        """What the chosen terms leave of x."""
        q = np.linalg.qr(basis[:, chosen])[0]
        return x - q @ (q.T @ x)

    found: list[list[int]] = [[]]
    chosen: list[int] = []
    gains: list[float] = []
    while len(chosen) < size:
        residual, remaining = rest(chosen, y), rest(chosen, basis)
        square = (remaining**2).sum(0)
        # A column that the chosen ones already span explains nothing new.
        gain = np.where(square > EXACT * norm, (remaining.T @ residual) ** 2 / np.maximum(square, SMALLEST), 0)
        if gain.max() <= negligible:
            break
        chosen = [*chosen, int(gain.argmax())]
        gains.append(float(gain.max()))
        found[len(chosen) :] = [chosen]
        # A term that only stood for better ones goes again, if that costs less than half of what the last one gave.
        while len(chosen) > 1:
            fewer = [[i for i in chosen if i != j] for j in chosen]
            errors = [float((rest(terms, y) ** 2).sum()) for terms in fewer]
            if min(errors) - float((rest(chosen, y) ** 2).sum()) >= gains[-1] / 2:
                break
            chosen = fewer[int(np.argmin(errors))]
            gains.pop()
            found[len(chosen) :] = [chosen]
    found += [found[-1]] * (size + 1 - len(found))
    fits = [np.linalg.lstsq(basis[:, terms], y, rcond=None)[0] if terms else np.zeros(0) for terms in found]
    return [(t, np.array([target.mean() - centre[t] @ b, *b])) for t, b in zip(found, fits, strict=True)]

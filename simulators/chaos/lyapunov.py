"""Lyapunov spectra of flows, with standard errors: the tangent flow of many trajectories at once, re-orthonormalised.

Benettin, Galgani, Giorgilli and Strelcyn (1980), Meccanica 15, 9-20; Eckmann and Ruelle (1985), Reviews of Modern
Physics 57, 617, section 5. State and tangent vectors pass through the same stages of one 8th-order step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InputError
from core.stats import Interval, t_interval
from simulators.chaos.flow import Flow
from simulators.chaos.integrate import integrate
from simulators.chaos.tangent import Field, TangentStepper, orthonormalised, packed, tangent_field, unpacked

INTERVALS = 10
"""Orthonormalisations a period."""
STEP_ERROR = 1e-6
"""Largest median error of one interval, relative to the spread of the states and to the tangents."""
MEAN_STEP_ERROR = 1e-5
"""Largest mean of the same, above the median where bursts are fast."""
MEAN_KINK_ERROR = 5e-3
"""That of a right-hand side with kinks, whose errors in the tangents are large, rare and of either sign."""
MOST_STEPS, MOST_KINK_STEPS = 400, 50
"""Steps of one interval above which a flow counts as too stiff for explicit steps, with a smooth f and without."""
FINE = 50
"""Steps of an interval in which jumps of a right-hand side are looked for."""
JUMP = 0.95
"""Largest change of f in one step over that in two; about one half where f is smooth."""
MOVED = 1e-2
"""Distance of the initial states from the orbit, in standard deviations of each coordinate."""
ESCAPE = 1e6
"""Distances from the mean, in spreads of the initial states, at which a trajectory has failed."""


@dataclass(frozen=True)
class LyapunovSpectrum:
    """The exponents of a flow, 1 / time units.

    Attributes:
        each: ``(n, D)``, finite-time exponents of the trajectories that did not fail, over ``time`` each.
        divergence: ``(n,)``, mean trace of the Jacobian along each trajectory, sampled once an interval; the sum of a
            trajectory's exponents is the integral of the same trace.
        failed: trajectories left out.
        time: time units that each trajectory was followed after the transient.
        periods: the same in periods of the flow.
        steps_per_period: of the 8th-order stepper.
    """

    each: Tensor
    divergence: Tensor
    failed: int
    time: float
    periods: float
    steps_per_period: int

    @property
    def trajectories(self) -> int:
        """Trajectories behind the means."""
        return len(self.each)

    @property
    def values(self) -> Tensor:
        """``(D,)``, means over the trajectories, largest first."""
        return self.each.mean(0)

    @property
    def standard_errors(self) -> Tensor:
        """``(D,)``, of ``values``."""
        return self.each.std(0) / math.sqrt(self.trajectories)

    def interval(self, index: int = 0, *, level: float = 0.95) -> Interval:
        """Student's t interval of one exponent, by default of the largest."""
        return t_interval(self.each[:, index], level=level)

    def sum_error(self, *, level: float = 0.95) -> Interval:
        """Sum of the exponents less the mean divergence: contains zero where the steps were small enough."""
        return t_interval(self.each.sum(1) - self.divergence, level=level)

    def kaplan_yorke(self, *, level: float = 0.95) -> Interval:
        """Kaplan-Yorke dimension of the mean spectrum, with a jackknife t interval."""
        return self._jackknife(kaplan_yorke_dimension, level)

    def entropy(self, *, level: float = 0.95) -> Interval:
        """Sum of the positive exponents, which bounds the metric entropy (Pesin), with a jackknife t interval."""
        return self._jackknife(lambda exponents: exponents.clamp(min=0.0).sum(-1), level)

    def _jackknife(self, statistic: Callable[[Tensor], Tensor], level: float) -> Interval:
        n = self.trajectories
        without_one = (self.each.sum(0) - self.each) / (n - 1)
        # Tukey's pseudo-values, whose spread is the jackknife's (Efron and Tibshirani 1993, equation 11.15).
        whole = statistic(self.values)
        pseudo = n * whole - (n - 1) * statistic(without_one)
        found = t_interval(pseudo, level=level)
        half = (found.high - found.low) / 2
        return Interval(float(whole), float(whole) - half, float(whole) + half, n, level)


def kaplan_yorke_dimension(exponents: Tensor) -> Tensor:
    """Kaplan-Yorke dimension ``(...)`` of spectra ``(..., D)`` in any order: j + (l_1 + ... + l_j) / |l_{j+1}|.

    0 where all exponents are negative, D where no sum is, NaN where an exponent is.
    """
    ordered = exponents.sort(-1, descending=True).values
    sums = ordered.cumsum(-1)
    j = (sums >= 0).to(sums.dtype).cumprod(-1).sum(-1).long()
    dimension = exponents.shape[-1]
    below = sums.gather(-1, (j - 1).clamp(min=0)[..., None])[..., 0]
    following = ordered.gather(-1, j.clamp(max=dimension - 1)[..., None])[..., 0]
    fraction = torch.where((j == 0) | (j == dimension), 0.0, below / following.abs())
    return (j + fraction).where(~exponents.isnan().any(-1), torch.nan)


def lyapunov_spectrum(
    flow: Flow,
    *,
    trajectories: int = 64,
    periods: float = 30,
    transient: float = 15,
    steps_per_period: int | None = None,
    generator: torch.Generator | None = None,
    initial: Tensor | None = None,
) -> LyapunovSpectrum:
    """All D exponents of a flow, as means over many trajectories.

    Args:
        flow: with numbers as parameters.
        trajectories: how many, from an orbit on the attractor; with ``initial`` as many as that has rows.
        periods: that each is followed.
        transient: periods before, in which states settle on the attractor and tangent vectors along it.
        steps_per_period: of the 8th-order stepper; None takes as many as keep the error of an interval below 1e-6.
        generator: chooses the initial states; None is seeded with 0.
        initial: states ``(n, D)`` to start from; on their device everything is computed.

    Raises:
        InputError: a delay flow, parameters that differ between copies, fewer than two trajectories, times that are not
            positive, a flow too stiff for explicit steps or with a right-hand side that jumps (the tangent flow misses
            what a jump does to the tangents), or fewer than two trajectories that did not fail.
    """
    _check(flow, trajectories, periods, transient, steps_per_period)
    if initial is None:
        generator = generator or torch.Generator().manual_seed(0)
        initial = near_the_attractor(flow, trajectories, generator)
    states = initial.double()
    if states.ndim != 2 or states.shape[1] != flow.dimension or len(states) < 2:
        raise InputError(f"initial: has shape {tuple(states.shape)}, expected (n, {flow.dimension}) with n >= 2")
    finite = states.isfinite().all(1)
    if int(finite.sum()) < 2:
        raise InputError(f"initial: {int(finite.sum())} of {len(states)} states are finite, 2 are needed")
    interval, sound = flow.period / INTERVALS, states[finite]
    field = tangent_field(flow.right_hand_side, torch.zeros(len(sound), device=states.device), sound)
    if field is not flow.right_hand_side:
        _refuse_jumps(flow, field, sound, interval)
    if steps_per_period is None:
        steps = _steps(flow, field, sound, interval)
    else:
        steps = max(1, math.ceil(steps_per_period / INTERVALS))
    return _average(flow, field, states, interval, steps, round(transient * INTERVALS), round(periods * INTERVALS))


def _check(flow: object, trajectories: int, periods: float, transient: float, steps_per_period: int | None) -> None:
    if not isinstance(flow, Flow):
        name = getattr(flow, "name", flow)
        raise InputError(f"flow: {name} is not an ordinary differential equation; a delay flow has endless exponents")
    if flow.rows is not None:
        raise InputError(f"flow: parameters of {flow.name} differ from row to row; the mean needs one flow")
    if trajectories < 2:
        raise InputError(f"trajectories: {trajectories} is below 2")
    if not periods * INTERVALS >= 1 or not math.isfinite(periods):
        raise InputError(f"periods: {periods} is below {1 / INTERVALS}")
    if not 0 <= transient < math.inf:
        raise InputError(f"transient: {transient} is negative or not finite")
    if steps_per_period is not None and steps_per_period < 1:
        raise InputError(f"steps_per_period: {steps_per_period} is below 1")


def _spread(states: Tensor) -> Tensor:
    """Root mean square distance of states from their mean, all channels together, not zero."""
    spread = (states - states.mean(0)).square().sum(1).mean().sqrt()
    return torch.where(spread > 0, spread, states.abs().mean() + 1.0)


def _steps(flow: Flow, field: Field, states: Tensor, interval: float) -> int:
    """Steps of an interval: the fewest of 1, 2, 3, 4, 6, 9, ... whose result half the step does not change.

    Raises:
        InputError: too many would be needed.
    """
    dimension = states.shape[1]
    start = packed(states, _identity(states))
    scale = _spread(states)
    smooth = field is flow.right_hand_side
    mean, most = (MEAN_STEP_ERROR, MOST_STEPS) if smooth else (MEAN_KINK_ERROR, MOST_KINK_STEPS)
    steps = 1
    while steps <= most:
        coarse, fine = (
            unpacked(TangentStepper(field, flow.autonomous, start, interval, count)(start, 0.0), dimension)
            for count in (steps, 2 * steps)
        )
        moved = (coarse[0] - fine[0]).norm(dim=1) / scale
        turned = (coarse[1] - fine[1]).flatten(1).norm(dim=1) / fine[1].flatten(1).norm(dim=1)
        error = torch.maximum(moved, turned)
        error = error[fine[0].isfinite().all(1)].nan_to_num(torch.inf, torch.inf)
        if len(error) and error.median() <= STEP_ERROR and error.mean() <= mean:
            return steps
        steps = math.ceil(1.5 * steps)
    raise InputError(f"flow: {flow.name} is too stiff for explicit steps of a {most * INTERVALS}th of its period")


def _refuse_jumps(flow: Flow, field: Field, states: Tensor, interval: float) -> None:
    """Look along half a period in fine steps: where f jumps, it changes as much in one step as in two.

    Raises:
        InputError: the right-hand side jumps on one orbit in twenty or more.
    """
    rows = packed(states, torch.zeros_like(states[:, None]))
    h = interval / FINE
    advance = TangentStepper(field, flow.autonomous, rows, h, 1)
    slopes = []
    for i in range(INTERVALS // 2 * FINE):
        slopes.append(advance.slope(rows, i * h).real)
        rows = advance(rows, i * h)
    along = torch.stack(slopes)
    along = along / along.flatten(0, 1).std(0).clamp(min=torch.finfo(along.dtype).tiny)
    once, twice = ((along[k:] - along[:-k]).norm(dim=-1).amax(0) for k in (1, 2))
    jumps = (once > JUMP * twice).double().mean()
    if bool(jumps >= 0.05):
        raise InputError(f"flow: the right-hand side of {flow.name} jumps; its tangent flow misses what a jump does")


def _average(
    flow: Flow, field: Field, states: Tensor, interval: float, steps: int, transient: int, counted: int
) -> LyapunovSpectrum:
    """The mean growth of the tangent vectors over ``counted`` intervals after ``transient`` ones."""
    n, dimension = states.shape
    failed = ~states.isfinite().all(1)
    sound = states[~failed]
    centre, scale = sound.mean(0), _spread(sound)
    tangents = identity = _identity(states)
    growth, divergence = torch.zeros_like(states), torch.zeros_like(states[:, 0])
    advance = TangentStepper(field, flow.autonomous, packed(states, tangents), interval, steps)
    for i in range(transient + counted):
        # What has failed rests at a sound state: arithmetic on numbers that are not finite is slow.
        states = torch.where(failed[:, None], sound[0], states)
        tangents = torch.where(failed[:, None, None], identity, tangents)
        rows, start = packed(states, tangents), i * interval
        if i >= transient:
            slope = unpacked(advance.slope(rows, start), dimension)[1]
            divergence += (slope * tangents).sum((1, 2))
        states, tangents = unpacked(advance(rows, start), dimension)
        tangents, logarithms = orthonormalised(tangents)
        if i >= transient:
            growth += logarithms
        failed |= ~((states - centre).norm(dim=1) < ESCAPE * scale) | ~logarithms.isfinite().all(1)
    if int((~failed).sum()) < 2:
        raise InputError(f"flow: {int(failed.sum())} of {n} trajectories of {flow.name} failed, 2 are needed")
    time = counted * interval
    each = growth[~failed] / time
    return LyapunovSpectrum(
        each[:, each.mean(0).argsort(descending=True)],
        divergence[~failed] / counted,
        int(failed.sum()),
        time,
        counted / INTERVALS,
        steps * INTERVALS,
    )


def _identity(states: Tensor) -> Tensor:
    return torch.eye(states.shape[1], dtype=states.dtype, device=states.device).repeat(len(states), 1, 1)


def near_the_attractor(flow: Flow, count: int, generator: torch.Generator) -> Tensor:
    """States ``(count, D)`` near an orbit of 100 periods from ``flow.initial``, one hundredth of its spread away.

    Unmoved they would follow each other along one orbit, and their mean would be that of its few periods.

    Raises:
        InputError: the orbit escapes.
    """
    times = flow.period / 10 * torch.arange(1000, dtype=torch.float64)
    orbit = integrate(flow, flow.initial[None], times, rtol=1e-8, atol=1e-8)
    if bool(orbit.failed):
        raise InputError(f"initial: the orbit of {flow.name} from its initial state escapes; give another")
    points = orbit.states[0]
    chosen = torch.randint(len(points), (count,), generator=generator)
    moved = torch.randn(count, flow.dimension, dtype=torch.float64, generator=generator)
    return points[chosen] + MOVED * points.std(0) * moved

"""Estimates the Lyapunov exponents of the catalogue, with their standard errors.

    python -m simulators.chaos.estimation OUT.csv

makes the table of ``simulators.chaos.exponents`` and goes on where it was interrupted: systems that OUT.csv has are
left as they are. Systems can be named, and the numbers of trajectories and periods given; the table says what each had.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from core.errors import InputError
from core.files import write
from core.seeds import stream
from core.stats import t_interval
from simulators.chaos.catalogue import load, names, stored
from simulators.chaos.exponents import Estimated, read, written
from simulators.chaos.flow import DelayFlow, Flow
from simulators.chaos.integrate import integrate
from simulators.chaos.lyapunov import LyapunovSpectrum, lyapunov_spectrum

SLOW = frozenset({"BelousovZhabotinsky", "InteriorSquirmer", "MultiChua"})
"""Systems that were not done after some minutes of a CPU core, estimated only where they are named."""
SEPARATED = 32
"""Trajectories of a conservative flow, which have to be pieces of one orbit: another orbit has other exponents."""
DISAGREEMENT = 0.02
"""Largest difference between the sum of the exponents and the mean divergence, over the sum of their sizes."""
IMPRECISE = 0.1
"""Relative standard error of the largest exponent above which a flow is followed longer."""
AFFORDABLE = 100
"""Most steps a period of a flow that is followed longer for the sake of precision."""


def estimate(name: str, trajectories: int = 64, periods: float = 60, transient: float = 20) -> Estimated:
    """Exponents of a system, or the reason why it has none.

    A flow whose exponents are imprecise or not settled, because its orbit takes many of the catalogue's periods to come
    round, is followed eight times as long. A flow that conserves volume is followed along one orbit.
    """
    try:
        flow = load(name)
        if isinstance(flow, DelayFlow):
            raise InputError(f"flow: {name} is a delay system")
        initial = _along_one_orbit(flow, periods) if stored(name).hamiltonian else None
        for factor in (1, 8):
            found = _spectrum(flow, trajectories, factor * periods, factor * transient, initial)
            if initial is None and _conserves_volume(found):
                initial = _along_one_orbit(flow, periods)
                found = _spectrum(flow, trajectories, factor * periods, factor * transient, initial)
            precise = float(found.standard_errors[0]) < IMPRECISE * float(found.values[0])
            if _settled(flow, found) and (precise or found.steps_per_period > AFFORDABLE):
                break
        return _accepted(flow, found)
    except InputError as refused:
        return Estimated(name, reason=str(refused))


def _spectrum(
    flow: Flow, trajectories: int, periods: float, transient: float, initial: Tensor | None
) -> LyapunovSpectrum:
    generator = torch.Generator().manual_seed(stream(0, flow.name))
    return lyapunov_spectrum(
        flow, trajectories=trajectories, periods=periods, transient=transient, generator=generator, initial=initial
    )


def _conserves_volume(found: LyapunovSpectrum) -> bool:
    """Whether volumes stay on average: different orbits then have different exponents for good."""
    total = t_interval(found.each.sum(1), level=0.999)
    return total.low <= 0 <= total.high or abs(total.mean) < 0.01 * float(found.values.abs().sum())


def _settled(flow: Flow, found: LyapunovSpectrum) -> bool:
    """Whether the flow has the zero exponent of its own direction, as every one has that does not come to rest.

    On a torus of a conservative flow all exponents tend to zero, but slowly and together.
    """
    sizes = found.values.abs()
    # The error of the largest exponent, because a mixture of attractors makes the others' large.
    if not flow.autonomous or _conserves_volume(found):
        return True
    return bool(sizes.min() < max(4 * found.standard_errors[0], 0.01 * sizes.max()))


def _along_one_orbit(flow: Flow, periods: float) -> Tensor:
    """States of a conservative flow, one every ``periods``."""
    times = flow.period * periods * torch.arange(1, SEPARATED + 1, dtype=torch.float64)
    times = torch.cat([times.new_zeros(1), times])
    orbit = integrate(flow, flow.initial[None], times, rtol=1e-9, atol=1e-9)
    if bool(orbit.failed):
        raise InputError(f"initial: the orbit of {flow.name} escapes")
    return orbit.states[0, 1:]


def _accepted(flow: Flow, found: LyapunovSpectrum) -> Estimated:
    error = found.sum_error(level=0.999)
    if found.failed > found.trajectories:
        raise InputError(f"flow: {found.failed} trajectories failed, {found.trajectories} did not")
    size = float(found.values.abs().sum())
    # What may be zero but for chance is let pass up to five times as much: sampling misses or meets the spikes of the
    # divergence.
    tolerance = DISAGREEMENT * size * (5 if error.low < 0 < error.high else 1)
    if abs(error.mean) > tolerance:
        raise InputError(f"flow: the exponents add up to {error.mean:.3g} more than the mean divergence")
    total = t_interval(found.each.sum(1), level=0.999)
    if total.low > 0 and total.mean > DISAGREEMENT * size:
        raise InputError("flow: volumes grow along bounded orbits, so that they shrink where the right-hand side jumps")
    if not _settled(flow, found):
        raise InputError("flow: no exponent is zero within its error: orbits come to rest, or to different attractors")
    dimension = found.kaplan_yorke(level=0.6827)
    return Estimated(
        flow.name,
        tuple(found.values.tolist()),
        tuple(found.standard_errors.tolist()),
        dimension.mean,
        (dimension.high - dimension.low) / 2,
        error.mean,
        found.trajectories,
        found.failed,
        found.periods,
        found.steps_per_period,
    )


def main() -> None:
    """Estimate the systems that a table lacks, one after the other, and keep each at once."""
    parser = argparse.ArgumentParser(description="Lyapunov exponents of the catalogue, with standard errors")
    parser.add_argument("table", type=Path, help="CSV file; systems that it has are left as they are")
    parser.add_argument("systems", nargs="*", help="of the catalogue; all by default")
    parser.add_argument("--trajectories", type=int, default=64)
    parser.add_argument("--periods", type=float, default=60)
    chosen = parser.parse_args()
    entries = read(chosen.table)
    for name in chosen.systems or names("ode"):
        if name in entries:
            continue
        began = time.perf_counter()
        if name in SLOW and name not in chosen.systems:
            entries[name] = Estimated(name, reason="flow: not estimated, its spectrum takes minutes of a CPU core")
        else:
            entries[name] = estimate(name, chosen.trajectories, chosen.periods)
        write(chosen.table, written(entries))
        values = ", ".join(f"{x:.4g}" for x in entries[name].values)
        print(f"{name}: {values or entries[name].reason} ({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()

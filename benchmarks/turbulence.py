"""Turbulence: the solver against jax-cfd's spectral stepper, and what agents, closures, batches and the heap cost.

One thread and single precision unless named otherwise; CPU time, everything in turns, so that another process slows all
of it alike. jax-cfd steps by Crank-Nicolson and second-order Runge-Kutta, which evaluates the right-hand side twice a
step, ours by Crank-Nicolson and Adams-Bashforth, which does so once: both ratios are printed.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from benchmarks.clock import Clock, spread
from benchmarks.turns import milliseconds
from core.allocator import keep_freed_memory
from core.errors import MissingExtra
from simulators.turbulence import jaxcfd_backend
from simulators.turbulence.agents import ClosureAgents
from simulators.turbulence.agents.world import ActionKind, AgentsState
from simulators.turbulence.cases import CASES
from simulators.turbulence.closures import Closure, DynamicLeith, DynamicSmagorinsky, TensorDynamicSmagorinsky
from simulators.turbulence.diagnostics import reference_spectrum
from simulators.turbulence.grid import Grid, resample
from simulators.turbulence.snapshots import POINTS, initial_fields
from simulators.turbulence.solver import FlowState, Solver

# XLA looks at them when jax is first asked for a device.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
os.environ["NPROC"] = "1"

CASE, DT = CASES["kolmogorov4"], 1e-3
ROUNDS, TURN = 7, 0.08
"""Rounds that count, and about how many CPU seconds one work takes in each."""
AGAINST_JAX = {
    (32, 1): (0.8, None),
    (64, 1): (1.1, 0.5),
    (128, 1): (1.7, 0.8),
    (256, 1): (2.0, 1.0),
    (32, 16): (1.7, 0.8),
    (64, 16): (2.0, 1.0),
}
"""Points a side and copies, with the targets for steps and for right-hand sides."""
HELD = 10
"""Steps between two actions of the agents."""
Works = Mapping[str, Callable[[], object]]


def fields(n: int, copies: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Shipped snapshots at any resolution, ``(copies, n, n)``."""
    chosen = torch.from_numpy(initial_fields([1 + i % 20 for i in range(min(copies, 20))], POINTS))
    spectra = resample(torch.fft.rfft2(chosen), n)[torch.arange(copies) % 20]
    return Grid(n).to_physical(spectra).to(device, dtype)


def calls(work: Callable[[], object]) -> int:
    """How often a turn should do a work."""
    work()
    clock = Clock()
    work()
    return max(1, math.ceil(TURN / max(clock.seconds, 1e-6)))


def over(a: list[float], b: list[float], factor: float = 1.0) -> str:
    """Median and range of the ratios of two works, round by round."""
    return spread([factor * x / y for x, y in zip(a, b, strict=True)])


def against_jax() -> None:
    """Steps and right-hand sides a second, with the mask of jax-cfd on both sides, and our de-aliased default."""
    print("  against jax-cfd (RK2-CN, vmap over copies), 2/3 mask on both sides, freed memory kept on both sides")
    print("  us a step of all copies: ours, jax-cfd, ours padded; times faster in steps | in right-hand sides")
    for (n, copies), (steps_target, sides_target) in AGAINST_JAX.items():
        mask = jaxcfd_backend.two_thirds_mask(n)
        masked, padded = (Solver(CASE, n, DT, dealias=dealias) for dealias in (mask, "padded"))
        start = masked.start(fields(n, copies))
        whole = padded.start(fields(n, copies))
        steps = calls(partial(masked.step, start))
        theirs = partial(jaxcfd_backend.advance, stepper="crank_nicolson_rk2", mask=mask)
        works: Works = {
            "ours": partial(masked.advance, start, steps),
            "theirs": partial(theirs, start.vorticity_hat, CASE, DT, steps),
            "padded": partial(padded.advance, whole, steps),
        }
        took = milliseconds(works, ROUNDS)
        ours, jax, default = (f"{1000 * statistics.median(ms) / steps:6.0f}" for ms in took.values())
        sides = "" if sides_target is None else f" (target {sides_target})"
        print(
            f"    N {n:3}, B {copies:2}: {ours} {jax} {default}"
            f"   {over(took['theirs'], took['ours'])} (target {steps_target})"
            f" | {over(took['theirs'], took['ours'], 0.5)}{sides};"
            f" padded in steps {over(took['theirs'], took['padded'])}",
            flush=True,
        )


def world(copies: int, action: ActionKind = "leith", device: str = "cpu") -> tuple[ClosureAgents, AgentsState, Tensor]:
    """Agents at N = 32 as they are trained, flows with which they begin, and actions."""
    resolved = torch.from_numpy(initial_fields(range(1, 11), POINTS))
    solver = Solver(CASE, 32, 5e-3, device=device)
    starts = fields(32, 20)
    agents = ClosureAgents(solver, reference_spectrum(resolved, 32), starts, action=action, steps_per_action=HELD)
    generator = torch.Generator(device).manual_seed(0)
    state = agents.reset(copies, generator)
    actions = 0.01 * torch.rand(copies, agents.agents, 1, generator=generator, device=device)
    return agents, state, actions


def episode(agents: ClosureAgents, state: AgentsState, actions: Tensor, length: int) -> AgentsState:
    """Observe and act, as a roll-out does; the policy itself left out."""
    for _ in range(length):
        agents.observe(state)
        state = agents.step(state, actions).state
    return state


def environment() -> None:
    """Steps of the agents' world against as many steps of the bare solver."""
    print(f"  environment step (state, interpolation, {HELD} steps with the closure, reward), N 32, B 16, padded")
    for action in get_args(ActionKind):
        agents, state, actions = world(16, action)
        works: Works = {
            "bare": partial(agents.solver.advance, state.flow, 10 * HELD),
            "agents": partial(episode, agents, state, actions, 10),
        }
        took = milliseconds(works, 2 * ROUNDS)
        bare, full = (100 * statistics.median(ms) for ms in took.values())
        seen = 1000 * statistics.median(
            milliseconds({"observe": partial(agents.observe, state)}, ROUNDS, calls=50)["observe"]
        )
        speed = 16e6 / full
        print(
            f"    {action:<12} {full:5.0f} us, {seen:3.0f} of them for the state, bare {bare:5.0f}; {speed:,.0f} of one"
            f" copy a second; speed over the bare solver's {over(took['bare'], took['agents'])} (target 0.5)",
            flush=True,
        )


def evaluate(closure: Closure, solver: Solver, state: FlowState) -> None:
    """A closure for a flow of which only the vorticity is known."""
    closure(solver.flow(state))


def closures() -> None:
    """One evaluation of a dynamic closure in bare steps."""
    print("  one evaluation of a closure in bare padded steps: DLEITH (target 2.5), DSMAG, DSMAG of stresses")
    for n, copies in ((32, 1), (32, 16), (64, 1), (64, 16), (128, 1), (256, 1)):
        solver = Solver(CASE, n, DT)
        state = solver.start(fields(n, copies))
        works: dict[str, Callable[[], object]] = {"bare": partial(solver.step, state)}
        for closure in (DynamicLeith(), DynamicSmagorinsky(), TensorDynamicSmagorinsky()):
            works[type(closure).__name__] = partial(evaluate, closure, solver, state)
        took = milliseconds(works, ROUNDS, calls=calls(works["bare"]))
        print(f"    N {n:3}, B {copies:2}: {', '.join(over(took[name], took['bare']) for name in list(works)[1:])}")


def one_after_the_other(solver: Solver, parts: list[FlowState]) -> None:
    """Four steps of each part."""
    for part in parts:
        solver.advance(part, 4)


def chunks() -> None:
    """A step of 16 copies at once, or a few at a time."""
    print("  a padded step of 16 copies, us a copy: 16, 4, 1 at a time; the first over the last")
    for n in (64, 128):
        for dtype in (torch.float32, torch.float64):
            solver = Solver(CASE, n, DT, dtype=dtype)
            whole = solver.start(fields(n, 16, dtype))
            works: dict[str, Callable[[], object]] = {}
            for size in (16, 4, 1):
                parts = [
                    FlowState(whole.vorticity_hat[i : i + size].clone(), whole.advection[i : i + size].clone())
                    for i in range(0, 16, size)
                ]
                works[str(size)] = partial(one_after_the_other, solver, parts)
            took = milliseconds(works, ROUNDS, calls=calls(works["16"]))
            each = ", ".join(f"{1000 * statistics.median(ms) / 64:.0f}" for ms in took.values())
            print(f"    N {n:3}, {str(dtype)[6:]}: {each}; {over(took['16'], took['1'])}", flush=True)


def step_milliseconds(n: int, dtype: torch.dtype, closure: Closure | None) -> float:
    """Milliseconds of a padded step of one copy."""
    torch.set_num_threads(1)
    solver = Solver(CASE, n, DT / 10, closure=closure, dtype=dtype)
    # White noise, because making anything else frees large blocks.
    state = solver.advance(solver.start(torch.randn(1, n, n, dtype=dtype)), 3)
    steps = max(3, 2 * 10**6 // n**2)
    clock = Clock()
    solver.advance(state, steps)
    return 1000 * clock.seconds / steps


def heap() -> None:
    """What it saves that freed memory is kept, in new processes: one that has freed large blocks keeps more."""
    print("  ms a padded step of one copy, freed memory given back as by default, and kept; times faster")
    for closure, sizes in ((None, (128, 256, 512)), (DynamicLeith(), (512,))):
        for n in sizes:
            for dtype in (torch.float32, torch.float64):
                with a_process() as default, a_process(keep_freed_memory) as keeping:
                    pairs = [
                        [pool.submit(step_milliseconds, n, dtype, closure).result() for pool in (default, keeping)]
                        for _ in range(3)
                    ]
                given, kept = (list(each) for each in zip(*pairs, strict=True))
                name = "DLEITH in every step" if closure else "no closure"
                print(
                    f"    N {n}, {str(dtype)[6:]}, {name}: {spread(given)}, {spread(kept)}; {over(given, kept)}",
                    flush=True,
                )


def a_process(prepare: Callable[[], object] | None = None) -> ProcessPoolExecutor:
    """One process, which begins with ``prepare``."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=prepare)


def gpu() -> None:
    """Environment steps against one CPU core, a direct simulation, and what is copied inside an episode."""
    agents, state, actions = world(256, device="cuda")
    on_gpu = milliseconds({"GPU": partial(episode, agents, state, actions, 10)}, ROUNDS, device="cuda")["GPU"]
    on_core = milliseconds({"core": partial(episode, *world(256), 1)}, 3)["core"]
    speed, core = 2560e3 / statistics.median(on_gpu), 256e3 / statistics.median(on_core)
    print(f"  {torch.cuda.get_device_name()}")
    print(f"    environment steps of one copy a second, N 32, B 256: {speed:,.0f}; one CPU core {core:,.0f}")
    print(f"    ratio {speed / core:.3g} (target 20)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # single precision is what is asked for here
        solver = Solver(CASE, 1024, DT / 2, device="cuda")
    start = solver.start(fields(1024, 1, device="cuda"))
    took = milliseconds({"DNS": partial(solver.advance, start, 100)}, ROUNDS, device="cuda")["DNS"]
    print(f"    direct simulation, N 1024, float32, padded: {spread([1e5 / ms for ms in took])} steps/s (target 200)")
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        episode(agents, state, actions, 10)
        torch.cuda.synchronize()
    copies = [e for e in profile.key_averages() if "Memcpy" in e.key and ("HtoD" in e.key or "DtoH" in e.key)]
    told = ", ".join(f"{e.count} {e.key}" for e in copies) or "none"
    print(f"    copies between host and device in an episode of 10 actions: {told} (target none)")


def main() -> None:
    """Print the figures beside their targets."""
    began = time.perf_counter()
    keep_freed_memory()
    try:
        against_jax()
    except MissingExtra as missing:
        print(missing)
    environment()
    closures()
    chunks()
    if keep_freed_memory():
        heap()
    if torch.cuda.is_available():
        gpu()
    print(f"  {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

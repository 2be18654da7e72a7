"""Forced two-dimensional turbulence: a batched solver, sub-grid closures, diagnostics, and agents that learn a closure.

A large-eddy simulation of the flow whose direct simulation is shipped, with Leith's closure, five starts at once:

>>> import torch
>>> solver = Solver(case("kolmogorov4"), n=32, dt=5e-3, closure=Leith(0.19))
>>> state = solver.start(torch.from_numpy(initial_fields(range(16, 21), n=32)))
>>> state = solver.advance(state, steps=200)
>>> flow = solver.flow(state)
>>> flow.vorticity.shape, bool((flow.enstrophy > 5).all())
(torch.Size([5, 32, 32]), True)

Its enstrophy spectrum against that of ten other snapshots, in decades:

>>> reference = reference_spectrum(torch.from_numpy(initial_fields(range(1, 11), n=128)), n_les=32)
>>> error = log_spectrum_error(enstrophy_spectrum(flow.vorticity_hat).mean(0), reference.float())
>>> bool(error < 0.3)
True

``simulators.turbulence.environment`` has the agents' world for PettingZoo, ``simulators.turbulence.jaxcfd_backend`` the
same flows by jax-cfd; both need the extra ``turbulence`` and are imported by those who use them.
"""

from simulators.turbulence.agents import ClosureAgents, PolicyClosure, interpolation_matrix, observed, spectral_reward
from simulators.turbulence.cases import CASES, Case, case
from simulators.turbulence.closures import (
    CLOSURES,
    Backscatter,
    Closure,
    DynamicLeith,
    DynamicSmagorinsky,
    FunctionClosure,
    GradientModel,
    Leith,
    NoClosure,
    Smagorinsky,
    TensorDynamicSmagorinsky,
    Term,
    closure,
)
from simulators.turbulence.diagnostics import (
    energy_spectrum,
    enstrophy_spectrum,
    log_spectrum_error,
    reference_spectrum,
)
from simulators.turbulence.flow import Flow
from simulators.turbulence.grid import Grid, resample
from simulators.turbulence.readers import load_py2d_ic, read_density, read_fields, read_spectrum
from simulators.turbulence.snapshots import initial_fields, snapshots
from simulators.turbulence.solver import FlowState, Solver

__all__ = [
    "CASES",
    "CLOSURES",
    "Backscatter",
    "Case",
    "Closure",
    "ClosureAgents",
    "DynamicLeith",
    "DynamicSmagorinsky",
    "Flow",
    "FlowState",
    "FunctionClosure",
    "GradientModel",
    "Grid",
    "Leith",
    "NoClosure",
    "PolicyClosure",
    "Smagorinsky",
    "Solver",
    "TensorDynamicSmagorinsky",
    "Term",
    "case",
    "closure",
    "energy_spectrum",
    "enstrophy_spectrum",
    "initial_fields",
    "interpolation_matrix",
    "load_py2d_ic",
    "log_spectrum_error",
    "observed",
    "read_density",
    "read_fields",
    "read_spectrum",
    "reference_spectrum",
    "resample",
    "snapshots",
    "spectral_reward",
]

"""Chaotic systems: a catalogue of 135 flows, batched integration, sampled trajectories, and the invariants of both.

Three trajectories of the Lorenz system, 100 samples a period:

>>> import torch
>>> flow = load("Lorenz")
>>> found = sample(flow, 3, torch.Generator().manual_seed(0), Sampling(samples=500))
>>> found.states.shape, found.engine, round(found.dt, 6)
(torch.Size([3, 500, 3]), 'odeint', 0.015008)

A flow of one's own needs no catalogue, and parameters may differ from row to row:

>>> rho = torch.linspace(20.0, 28.0, 100)
>>> integrate(load("Lorenz", {"rho": rho}), flow.initial.repeat(100, 1), torch.linspace(0, 5, 300)).states.shape
torch.Size([100, 300, 3])
"""

# Flows, integration and sampling.
from simulators.chaos.catalogue import Stored, load, names, stored
from simulators.chaos.delay import DelaySolution, History, integrate_delay

# Invariants of flows and of series.
from simulators.chaos.dimension import CorrelationDimension, correlation_dimension
from simulators.chaos.embedding import delay_embedding, embedding_delay, embedding_dimension
from simulators.chaos.exponents import Estimated, estimated, exponent
from simulators.chaos.flow import DelayFlow, Flow, jacobian
from simulators.chaos.integrate import Solution, integrate
from simulators.chaos.invariants import invariant_differences, series_invariants
from simulators.chaos.lyapunov import LyapunovSpectrum, kaplan_yorke_dimension, lyapunov_spectrum
from simulators.chaos.neighbours import largest_exponent_of_series
from simulators.chaos.spectrum import dominant_period
from simulators.chaos.trajectories import Sampling, Trajectories, sample, with_noise

__all__ = [
    "CorrelationDimension",
    "DelayFlow",
    "DelaySolution",
    "Estimated",
    "Flow",
    "History",
    "LyapunovSpectrum",
    "Sampling",
    "Solution",
    "Stored",
    "Trajectories",
    "correlation_dimension",
    "delay_embedding",
    "dominant_period",
    "embedding_delay",
    "embedding_dimension",
    "estimated",
    "exponent",
    "integrate",
    "integrate_delay",
    "invariant_differences",
    "jacobian",
    "kaplan_yorke_dimension",
    "largest_exponent_of_series",
    "load",
    "lyapunov_spectrum",
    "names",
    "sample",
    "series_invariants",
    "stored",
    "with_noise",
]

"""Closures of two-dimensional turbulence: of the literature, tuned, and learned by agents on the grid.

Example: the error of a closure's spectrum, with the shipped snapshots as reference and starts.

    study = evaluation_of([ClosureSettings(name="leith", closure="leith", constants=(0.19,))])
    summary = study.run("runs/leith")
    print([row.mean for row in summary.table if row.metric == "spectrum error"])

Example: agents that learn from the spectrum of ten snapshots, and their closure in one's own loop.

    training = Training(seed=0)
    snapshots = given(training.scenario.flow, training.scenario.snapshots)
    world = training.agents.world(training.scenario, snapshots)
    closure = closure_of(train(world, training.learner, seed=0), world)
    state = closure.advance(world.solver.start(world.starts), 1000)
"""

from apps.turbulence.calibration import Calibration, CalibrationSettings, calibrate, calibrated_closure
from apps.turbulence.ensemble import Sampling, simulate
from apps.turbulence.export import export_policy
from apps.turbulence.interpretation import interpret
from apps.turbulence.learning import (
    Agents,
    PPOSettings,
    StoredPolicy,
    TrainedPolicy,
    Training,
    VRACERSettings,
    closure_of,
    load_policy,
    train,
)
from apps.turbulence.metrics import spectrum_errors
from apps.turbulence.runs import ClosureSettings
from apps.turbulence.scenario import Discretisation, FlowSettings, Scenario
from apps.turbulence.snapshots import given, simulate_directly, truncated
from apps.turbulence.study import Arm, Comparison, TurbulenceStudy, evaluation_of

__all__ = [
    "Agents",
    "Arm",
    "Calibration",
    "CalibrationSettings",
    "ClosureSettings",
    "Comparison",
    "Discretisation",
    "FlowSettings",
    "PPOSettings",
    "Sampling",
    "Scenario",
    "StoredPolicy",
    "TrainedPolicy",
    "Training",
    "TurbulenceStudy",
    "VRACERSettings",
    "calibrate",
    "calibrated_closure",
    "closure_of",
    "evaluation_of",
    "export_policy",
    "given",
    "interpret",
    "load_policy",
    "simulate",
    "simulate_directly",
    "spectrum_errors",
    "train",
    "truncated",
]

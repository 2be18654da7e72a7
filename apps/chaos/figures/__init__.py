"""The figures of the chaos study."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from apps.chaos.evidence import Evidence
from core.study import Figure

if TYPE_CHECKING:
    from apps.chaos.study import ChaosStudy


def of_study(collected: Sequence[Evidence], series: Sequence[xr.Dataset], study: ChaosStudy) -> list[Figure]:
    """All figures that the results allow."""
    found = [figure for evidence in collected for figure in _of_scenario(evidence, series, study)]
    scenarios = dict(zip((e.name for e in collected), study.scenarios, strict=True))
    plain = [e for e in collected if scenarios[e.name].plain]
    lengths = [scenarios[e.name].train_length or study.protocol.context for e in plain]
    if len(set(lengths)) > 1 and _chaotic(plain[0]) > 1 and all(e.methods for e in plain):
        from apps.chaos.figures.valid_times import training_length

        caption = (
            f"Valid time against training length; bands: 95 % intervals of the median over {_systems(plain[0])}. "
            "Hyper-parameters are those of the whole context, unless a scenario tunes again."
        )
        found.append(Figure("training-length", caption, partial(training_length, plain, lengths)))
    return found


def _chaotic(evidence: Evidence) -> int:
    return int(np.isfinite(evidence.systems["lyapunov"]).sum())


def _systems(evidence: Evidence) -> str:
    return f"{_chaotic(evidence)} systems"


def _of_scenario(evidence: Evidence, series: Sequence[xr.Dataset], study: ChaosStudy) -> list[Figure]:
    # Matplotlib is slow to import, and a study is also loaded to be run.
    from apps.chaos.figures import ensembles, errors, traces, valid_times

    known = _chaotic(evidence)
    if known < 2 or not evidence.methods:
        return []
    n, name = _systems(evidence), evidence.name
    drawings = [
        (
            "valid-times",
            f"Valid time of {n} (dots, means over replicates), medians with 95 % intervals.",
            partial(valid_times.swarm, evidence),
        ),
        (
            "cost",
            f"Valid time against cost of training; medians over {n} with 95 % intervals.",
            partial(valid_times.cost, evidence),
        ),
        (
            "errors",
            f"Error against horizon; means and standard errors (bands) over those of the {n} that have a sample there: "
            "the fastest are missing at the shortest horizons, the slowest at the longest.",
            partial(errors.error_curves, evidence),
        ),
    ]
    if known >= errors.FEWEST:
        text = (
            f"Does chaos make forecasting hard? Correlation over those of the {n} that have a sample at the horizon; "
            "band: 95 % interval of the first method, at each horizon by itself."
        )
        drawings.append(("correlation", text, partial(errors.correlation_curves, evidence)))
    if len(evidence.methods) > 1:
        text = (
            "Mean ranks; a grey bar is the critical difference (Nemenyi, 5 %): methods left of the dashed line are "
            "not told apart from the best."
        )
        drawings.append(("ranks", text, partial(valid_times.critical_difference, evidence)))
    context = study.protocol.context
    text = (
        "Forecasts of the methods with the longest valid times, for systems at the quartiles of the best one's (first "
        "replicate); a line ends where it leaves the picture."
    )
    drawings.append(("traces", text, partial(traces.traces, evidence, series, context)))
    text = "The same forecasts to their end in state space, and power spectra."
    drawings.append(("attractors", text, partial(traces.attractors, evidence, series, context)))
    members = {
        m.name: m.members for m in study.methods if m.name in evidence.methods and "rank" in evidence.methods[m.name]
    }
    if members:
        text = f"Ensembles: rank of the truth (dashed: calibrated) and growth of spread and error, medians over {n}."
        drawings.append(("calibration", text, partial(ensembles.calibration, evidence, members)))
    return [Figure(f"{name}-{key}", f"{name}: {text}", draw) for key, text, draw in drawings]

"""Which forecaster to trust on a series: forecasters ranked by forecasts from past origins of that very series."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from apps.chaos import metrics
from apps.chaos.fitting import Normalisation
from apps.chaos.forecast import Progress, check_length
from apps.chaos.forecast_table import mean_row
from apps.chaos.forecasters.deep.nbeats import NBeats
from apps.chaos.forecasters.esn import ESN
from apps.chaos.forecasters.forecaster import Forecaster
from apps.chaos.forecasters.hopfield import Hopfield
from apps.chaos.forecasters.linear import Linear
from apps.chaos.forecasters.naive import NaiveMean, NaiveSeasonal
from apps.chaos.forecasters.nvar import NGRC, NVAR
from apps.chaos.forecasters.statistical import Theta
from apps.chaos.rolling import Origins, Rolled, origins_of, rolled
from apps.chaos.series import Series
from apps.chaos.series_scales import scales_of
from core.errors import InputError, MissingExtra
from core.stats import paired_difference
from core.study.analysis import Row

ORIGINS = 20
"""That rank, by default."""
TUNING_ORIGINS = 8
"""That choose the settings of a method."""
SMALLEST, LARGEST = 1e-6, 10.0
"""Standard deviations between which an error counts when settings are chosen."""


@dataclass(frozen=True)
class Candidate:
    """A forecaster with what is tuned.

    Attributes:
        name: in the table.
        base: its settings.
        grid: values to try, by field.
    """

    name: str
    base: Forecaster
    grid: Mapping[str, Sequence[Any]]

    def settings(self) -> Iterator[Forecaster]:
        """The forecaster with every combination of the grid."""
        for values in product(*self.grid.values()):
            yield type(self.base).model_validate(self.base.model_dump() | dict(zip(self.grid, values, strict=True)))


@dataclass(frozen=True)
class Recommendation:
    """Forecasters in order, the best first.

    Attributes:
        table: ``valid_samples``, ``valid_censored``, ``nrmse``, ``smape`` (method, origin) and ``seconds`` (method).
        forecasters: with the settings that were chosen.
        skipped: why other methods took no part, by name.
    """

    table: xr.Dataset
    forecasters: tuple[Forecaster, ...]
    skipped: Mapping[str, str]

    @property
    def best(self) -> Forecaster:
        """The first."""
        return self.forecasters[0]

    def rows(self) -> list[Row]:
        """The table, in order, with 95 % intervals over origins."""
        table, title = self.table, Path(str(self.table.attrs["source"])).name
        rows = []
        for i, name in enumerate(table["method"].values.tolist()):
            label = f"{i + 1}. {name} {table['settings'].values[i]}".strip()
            one = table.isel(method=i)
            valid = one["valid_samples"].values.astype(np.float64)
            rows.append(mean_row(title, label, "valid time", "samples", valid))
            rows.append(mean_row(title, label, "nrmse", "", one["nrmse"].values))
            rows.append(mean_row(title, label, "sMAPE", "%", one["smape"].values))
            rows.append(Row(title, label, "fit", "s", float(one["seconds"]), n=len(valid)))
        return rows


def candidates(period: float, channels: int) -> tuple[Candidate, ...]:
    """The methods that are tried by default, with small grids.

    Args:
        period: dominant period in samples; NaN if there is none.
        channels: of the series.
    """
    seasons = [1, round(period)] if np.isfinite(period) and period >= 1.5 else [1]
    ridges = (1e-8, 1e-6, 1e-4, 1e-2)
    # A single channel shows its state only through its past.
    delays = (1, 2, 4, 8) if channels == 1 else (1, 2)
    small = NBeats.model_validate({"stacks": 4, "width": 64, "epochs": 20, "batch": 64})
    return (
        Candidate("naive_mean", NaiveMean(), {}),
        Candidate("naive_seasonal", NaiveSeasonal(), {"season": seasons}),
        Candidate("theta", Theta(), Theta.grid),
        Candidate("linear", Linear(), {"lags": (1, 2, *Linear.grid["lags"])}),
        Candidate("nvar", NVAR(), {"delay": (2, 5, 15, 30, 60)}),
        Candidate("ngrc", NGRC(), {"order": (2, 3), "delay": delays, "ridge": ridges}),
        Candidate("esn", ESN(neurons=300), {"leak": (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)}),
        Candidate("hopfield", Hopfield(), {"beta": (10.0, 30.0, 100.0, 300.0, 1000.0), "delay": (1, 2, 3, 5)}),
        Candidate("nbeats", small, {"look_back": (10, 25)}),
    )


def recommend(
    series: Series,
    horizon: int,
    *,
    methods: Sequence[str] = (),
    origins: int = ORIGINS,
    seed: int = 0,
    normalize: Normalisation = "train_zscore",
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Recommendation:
    """Rank forecasters by their forecasts from origins in the last third of a series.

    The settings of each are chosen on a block before that third: by the least mean logarithm of the error, which sees
    the early growth of small errors as well as the late level. In the ranking, those whose mean valid time (V1) is not
    shown to be below the longest by the paired bootstrap over origins come first, by their nrmse; the others follow
    by their valid time.

    Args:
        series: to be forecast.
        horizon: samples to forecast.
        methods: names of the methods to try; empty for all of ``candidates``.
        origins: at most.
        seed: of initial weights.
        normalize: how what is fitted is scaled.
        device: where to compute.
        checkpoint: folder from which an interrupted ranking goes on.
        progress: told the share done and a message.

    Raises:
        InputError: an unknown method, a series that is too short for all, or an option out of range.
    """
    chosen = chosen_candidates(series, horizon, methods, origins)
    values = torch.from_numpy(series.values)
    places = origins_of(len(series), horizon, origins, 0)
    block = min(horizon, places.length // 6)
    tuning = origins_of(places.length, block, TUNING_ORIGINS, 0, last=max(4, 2 * block))

    def fit(forecaster: Forecaster, data: Tensor, where: Origins, share: Callable[[float, str], None]) -> Rolled:
        stage = "tuning" if where is tuning else "ranking"
        folder = None if checkpoint is None else checkpoint / stage / f"{forecaster.kind}-{forecaster.hash}"
        return rolled(
            forecaster,
            data,
            where,
            dt=series.dt,
            seed=seed,
            normalize=normalize,
            device=device,
            checkpoint=folder,
            progress=share,
        )

    found: list[tuple[str, Forecaster, Rolled]] = []
    skipped: dict[str, str] = {}
    for place, candidate in enumerate(chosen):

        def told(share: float, text: str, place: int = place, name: str = candidate.name) -> None:
            if progress is not None:
                progress((place + share) / len(chosen), f"{name} {text}".strip())

        try:
            settings = list(candidate.settings())
            if len(settings) > 1:
                settings = [_tuned(settings, values[: places.length], tuning, fit, told)]
            told(0.5, "forecasts")
            past = fit(settings[0], values, places, lambda s, text: told(0.5 + s / 2, text))
        except (InputError, MissingExtra) as error:
            skipped[candidate.name] = str(error)
            continue
        found.append((candidate.name, settings[0], past))
    if not found:
        raise InputError(f"{series.source}: no method can forecast it: {'; '.join(skipped.values())}")
    table = _scored(found, places.scored, {c.name: c for c in chosen})
    order = ranked(table["valid_samples"].values.astype(np.float64), table["nrmse"].values)
    table = table.isel(method=list(order))
    table.attrs |= {"source": series.source, "horizon": horizon, "scored_leads": places.scored, "seed": seed}
    table.attrs["skipped"] = "\n".join(f"{name}: {reason}" for name, reason in skipped.items())
    return Recommendation(table, tuple(found[i][1] for i in order), skipped)


def chosen_candidates(series: Series, horizon: int, methods: Sequence[str], origins: int) -> list[Candidate]:
    """The methods that ``recommend`` will try.

    Raises:
        InputError: an unknown method, a series that is too short for all, or an option out of range.
    """
    if horizon < 1:
        raise InputError(f"horizon = {horizon}: must be at least 1 sample")
    if origins < 2:
        raise InputError(f"origins = {origins}: must be at least 2")
    check_length(series)
    period = scales_of(series, None, exponent=False).period / series.dt
    known = {c.name: c for c in candidates(period, series.values.shape[1])}
    if unknown := [name for name in methods if name not in known]:
        raise InputError(f"method {unknown[0]}: must be among {', '.join(known)}")
    return [known[name] for name in methods or known]


def ranked(valid: NDArray[np.float64], error: NDArray[np.float64]) -> list[int]:
    """The order of M methods, the best first.

    Args:
        valid: ``(M, K)`` valid times from K origins.
        error: ``(M, K)``; what is not finite is the worst.
    """
    means = valid.mean(1)
    size = np.where(np.isfinite(error), error, np.inf).mean(1)
    top = int(np.lexsort((size, -means))[0])
    alike = [bool(np.array_equal(v, valid[top]) or paired_difference(valid[top], v).low <= 0) for v in valid]
    keys = [(0, size[i], -means[i]) if alike[i] else (1, -means[i], size[i]) for i in range(len(valid))]
    return sorted(range(len(valid)), key=lambda i: keys[i])


def _tuned(
    settings: Sequence[Forecaster],
    values: Tensor,
    tuning: Origins,
    fit: Callable[[Forecaster, Tensor, Origins, Progress], Rolled],
    told: Progress,
) -> Forecaster:
    """The settings of least mean logarithm of the error; those that the series is too short for are left out."""
    scores: list[tuple[float, Forecaster]] = []
    refusal: InputError | None = None
    for i, forecaster in enumerate(settings):
        told(0.5 * i / len(settings), f"settings {i + 1} of {len(settings)}")
        try:
            past = fit(forecaster, values, tuning, lambda *_: None)
        except InputError as error:
            refusal = refusal or error
            continue
        relative = (past.errors / past.spread[:, None]).square().mean(-1).sqrt()[:, : tuning.scored]
        scores.append((float(relative.clamp(SMALLEST, LARGEST).log().mean()), forecaster))
    if not scores:
        assert refusal is not None
        raise refusal
    return min(scores, key=lambda pair: pair[0])[1]


def _scored(
    found: Sequence[tuple[str, Forecaster, Rolled]], scored: int, chosen: Mapping[str, Candidate]
) -> xr.Dataset:
    both = ("method", "origin")
    valid = [past.valid_time() for _, _, past in found]
    pairs = [(past.truth[:, :scored], past.forecast[:, :scored], past.spread) for _, _, past in found]
    settings = [_shown(made, chosen[name].grid) for name, made, _ in found]
    samples = np.stack([np.asarray(v.samples) for v in valid])
    seconds = [past.seconds for _, _, past in found]
    return xr.Dataset(
        {
            "valid_samples": (both, samples, {"long_name": "valid samples (V1)"}),
            "valid_censored": (both, np.stack([np.asarray(v.censored) for v in valid])),
            "nrmse": (both, np.stack([np.asarray(metrics.nrmse(y, p, std=s)) for y, p, s in pairs])),
            "smape": (both, np.stack([np.asarray(metrics.smape(y, p)) for y, p, _ in pairs]), {"units": "%"}),
            "seconds": ("method", seconds, {"long_name": "fit of all origins", "units": "s"}),
        },
        {
            "method": [name for name, _, _ in found],
            "settings": ("method", settings),
            "config": ("method", [made.model_dump_json() for _, made, _ in found]),
        },
    )


def _shown(forecaster: Forecaster, fields: Mapping[str, Sequence[Any]]) -> str:
    values = [(name, getattr(forecaster, name)) for name in fields]
    return " ".join(
        f"{name}={value:g}" if isinstance(value, int | float) else f"{name}={value}" for name, value in values
    )

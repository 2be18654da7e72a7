"""Readers of the published results: those that come with the project, and others in a folder of the user's.

See ``data/README.md`` beside this file for sources, licence and caveats.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core import files
from core.errors import InputError

SHIPPED = Path(__file__).parent / "data"
SWEEP = "published_smape_by_train_length.csv.gz"
TRUTH = "true"
Forecasts = dict[str, dict[str, NDArray[np.float64]]]

_TEXT = ("system", "method", "model", "quantity", "unit", "certainty")


def data_folder(folder: Path | None = None) -> Path | None:
    """Where further tables lie: ``folder``, else $SZILARD_DATA/chaos, else None."""
    if folder is not None:
        return folder
    root = os.environ.get("SZILARD_DATA")
    return Path(root) / "chaos" if root else None


def available(name: str, folder: Path | None = None) -> bool:
    """Whether a file of that name is in the data folder."""
    found = data_folder(folder)
    return found is not None and (found / name).is_file()


def forecasts_200() -> Forecasts:
    """Truth (``true``) and forecasts (``esn``, ``nvar``, ``node``) of 200 samples, ``(200, D)``, by system and method.

    Raises:
        InputError: the file is not what it should be.
    """
    path = SHIPPED / "published_forecasts_200step.npz"
    found: Forecasts = {}
    for key, values in _arrays(path).items():
        system, _, method = key.partition("/")
        found.setdefault(system, {})[method] = values
    for system, by_method in found.items():
        _check_shapes(path, system, by_method, 200)
    return found


def lorenz_500(folder: Path | None = None) -> dict[str, NDArray[np.float64]]:
    """Truth (``true``) and forecasts (``nbeats``, ``lstm``, ``transformer``) of Lorenz, ``(500, 3)``.

    Raises:
        InputError: the file is absent or not what it should be.
    """
    path = _find("published_lorenz_500step.npz", folder)
    found = {{"lstm_or_rnn": "lstm"}.get(key, key): values for key, values in _arrays(path).items()}
    _check_shapes(path, "Lorenz", found, 500)
    return found


def smape_200() -> pd.DataFrame:
    """``system, method, tuned_hyperparameter, smape`` of the forecasts of ``forecasts_200``.

    Raises:
        InputError: the file is not what it should be.
    """
    path = SHIPPED / "published_smape_200step.csv"
    return _table(path, {"tuned_hyperparameter": (0, np.inf), "smape": (0, 200)}, ["system", "method"])


def smape_by_train_length(folder: Path | None = None) -> pd.DataFrame:
    """``system, method, repeat, train_length, smape`` of 15 methods and 25 lengths; NaN where a forecast failed.

    The hyper-parameters of ``esn``, ``nvar`` and ``node`` were chosen there on the segment that is scored.

    Raises:
        InputError: the file is absent or not what it should be.
    """
    path = _find(SWEEP, folder)
    ranges = {"repeat": (0, np.inf), "train_length": (1, np.inf), "smape": (0, 200)}
    return _table(path, ranges, ["system", "method", "repeat", "train_length"], gaps=("smape",))


def timing(folder: Path | None = None) -> pd.DataFrame:
    """``system, method, train_s, inference_s``: seconds of one series on a CPU.

    Raises:
        InputError: the file is absent or not what it should be.
    """
    path = _find("published_timing_cpu.csv", folder)
    return _table(path, {"train_s": (0, np.inf), "inference_s": (0, np.inf)}, ["system", "method"])


def look_backs(folder: Path | None = None) -> dict[str, dict[str, int]]:
    """The tuned look-back in samples, by system and method.

    Raises:
        InputError: the file is absent or not what it should be.
    """
    path = _find("published_lookback.json", folder)
    found = files.read_json(path)
    for system, by_method in found.items():
        for method, value in by_method.items() if isinstance(by_method, dict) else [("", by_method)]:
            if type(value) is not int or value < 1:
                raise InputError(f"{path}: {system} {method}: {value!r} is not a whole number of samples")
    return found


def univariate_2021(folder: Path | None = None) -> pd.DataFrame:
    """The univariate benchmark of 2021: 16 models by ``system, model, pts_per_period, noise``, with 8 metrics.

    Raises:
        InputError: the file is absent or not what it should be.
    """
    path = _find("published_univariate_2021.csv.gz", folder)
    anything, positive = (-np.inf, np.inf), (0, np.inf)
    ranges = {"pts_per_period": (1, np.inf), "noise": (0, 1), "coefficient_of_variation": anything, "mape": anything}
    ranges |= {"r2_score": (-np.inf, 1), "smape": (0, 200)} | dict.fromkeys(("mae", "marre", "mse", "rmse"), positive)
    return _table(path, ranges, ["system", "model", "pts_per_period", "noise"], gaps=tuple(ranges)[2:])


def summary() -> pd.DataFrame:
    """``method, quantity, value, unit, certainty``: one number a method, printed in the source or read from figures.

    Raises:
        InputError: the file is not what it should be.
    """
    return _table(SHIPPED / "published_summary.csv", {"value": (0, np.inf)}, ["method", "quantity"])


def _find(name: str, folder: Path | None) -> Path:
    found = data_folder(folder)
    if found is None:
        raise InputError(f"{name}: no folder given: name one or set $SZILARD_DATA")
    if not (found / name).is_file():
        raise InputError(f"{found / name}: no such file")
    return found / name


def _arrays(path: Path) -> dict[str, NDArray[np.float64]]:
    try:
        with np.load(path, allow_pickle=False) as data:
            return {key: np.asarray(data[key], dtype=np.float64) for key in data.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable npz file ({error})") from error


def _check_shapes(path: Path, system: str, by_method: Mapping[str, NDArray[np.float64]], samples: int) -> None:
    truth = by_method.get(TRUTH)
    if truth is None or truth.ndim != 2 or len(truth) != samples or not np.isfinite(truth).all():
        raise InputError(f"{path}: {system}/{TRUTH}: expected finite values ({samples}, channels)")
    for method, values in by_method.items():
        if values.shape != truth.shape:
            raise InputError(f"{path}: {system}/{method}: has shape {values.shape}, the truth {truth.shape}")


def _table(
    path: Path, ranges: Mapping[str, tuple[float, float]], keys: Sequence[str], *, gaps: Sequence[str] = ()
) -> pd.DataFrame:
    """A csv file whose columns of numbers lie in ranges, with one row a key; NaN in ``gaps`` alone."""
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, "str"), float_precision="round_trip")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a readable csv file ({error})") from error
    absent = [column for column in [*keys, *ranges] if column not in table]
    if absent:
        raise InputError(f"{path}: has no column {', '.join(absent)}")
    for column, (low, high) in ranges.items():
        values = pd.to_numeric(table[column], errors="coerce")
        # What was empty is a gap; what was text is not.
        wrong = ~values.between(low, high) & ~(table[column].isna() if column in gaps else False)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InputError(
                f"{path}: row {row + 2}: {column} is {table[column].iloc[row]}, allowed is [{low:g}, {high:g}]"
            )
        table[column] = values
    twice = np.flatnonzero(table.duplicated(list(keys)))
    if twice.size:
        named = ", ".join(str(table[key].iloc[twice[0]]) for key in keys)
        raise InputError(f"{path}: row {twice[0] + 2}: {named} is there twice")
    return table

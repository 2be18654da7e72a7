"""Vorticity in MATLAB files, as py2d and the code of Mojgani et al. (2023) keep their initial fields."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat, whosmat

from core.errors import InputError
from simulators.turbulence.readers.fields import vorticity_fields

NAMES = ("Omega", "w1")
"""The variable of ``<i>.mat`` of py2d, and of ``iniWor_<case>_<N>_<i>.mat`` of Mojgani et al. (2023)."""

_NUMBERED = re.compile(r"(?:^|_)(\d+)$")


def load_py2d_ic(path: str | Path, variable: str | None = None) -> NDArray[np.float64]:
    """Vorticity of a MATLAB file (version 5), or of a folder of files numbered from 1, ``..._<i>.mat`` or ``<i>.mat``.

    Values as stored, x on the first axis and y on the second. The code of Mojgani et al. (2023) takes
    psi_hat = -omega_hat/k^2 with u = dpsi/dy: its ``w1`` is minus the vorticity of this package, which matters where
    flows are compared point by point, and not for spectra.

    Args:
        path: a file, or a folder.
        variable: its name; by default ``Omega``, else ``w1``.

    Returns:
        ``(n, N, N)``, n = 1 for a file; field i of a folder at index i - 1.

    Raises:
        InputError: no such file, no MATLAB file of version 5, no such variable, a field that is not ``(N, N)``, square
            and as ``vorticity_fields`` asks; in a folder, other names, numbers with gaps, or several sizes.
    """
    path = Path(path)
    if not path.is_dir():
        return _field(path, variable)[None]
    fields = [_field(file, variable) for file in _numbered(path)]
    for number, field in enumerate(fields, 1):
        if field.shape != fields[0].shape:
            raise InputError(f"{path}: field {number} has shape {field.shape} and field 1 {fields[0].shape}")
    return np.stack(fields)


def _numbered(folder: Path) -> list[Path]:
    """The MATLAB files of a folder in the order of their numbers, which say what is a snapshot's name elsewhere."""
    files: dict[int, Path] = {}
    for file in sorted(folder.glob("*.mat")):
        match = _NUMBERED.search(file.stem)
        if match is None:
            raise InputError(f"{file}: must end in a number, <i>.mat or ..._<i>.mat")
        number = int(match[1])
        if number in files:
            raise InputError(f"{folder}: {files[number].name} and {file.name} have the same number")
        files[number] = file
    if not files:
        raise InputError(f"{folder}: no MATLAB file (*.mat) in it")
    absent = sorted(set(range(1, max(files) + 1)) - set(files))
    if absent or 0 in files:
        raise InputError(f"{folder}: files are numbered {sorted(files)}, must be 1, 2, ... without a gap")
    return [files[number] for number in sorted(files)]


def _field(path: Path, variable: str | None) -> NDArray[np.float64]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        present = [name for name, _, _ in whosmat(path, appendmat=False)]
        wanted = (variable,) if variable is not None else NAMES
        name = next((name for name in wanted if name in present), None)
        if name is not None:
            values = loadmat(path, appendmat=False, variable_names=[name])[name]
    except NotImplementedError as error:
        raise InputError(f"{path}: a MATLAB file of version 7.3, must be of version 5: save(..., '-v7')") from error
    except Exception as error:  # a damaged file makes the reader fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a whole MATLAB file of version 5 ({reason})") from error
    if name is None:
        raise InputError(f"{path}: no variable {' or '.join(wanted)}; the file has {', '.join(present) or 'nothing'}")
    where = f"{path}: {name}"
    if values.ndim != 2:
        raise InputError(f"{where}: shape {values.shape}, must be (N, N)")
    return vorticity_fields(values, where)[0]

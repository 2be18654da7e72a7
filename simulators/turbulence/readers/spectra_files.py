"""Reference spectra and densities in text files, as the code of Mojgani et al. (2023) keeps them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError

SpectrumKind = Literal["enstrophy", "energy"]
SpectrumAxis = Literal["both", "x", "y", "angle"]

_NAME = re.compile(r"(?P<kind>enstrophy|energy)_spectrum_(?P<case>.+)_DNS(?P<n>\d+)_(?P<axis>xy|x|y|circle)\.dat")
_AXES: dict[str, SpectrumAxis] = {"xy": "both", "x": "x", "y": "y", "circle": "angle"}
_FEWEST_BINS = 8


@dataclass(frozen=True)
class SpectrumFile:
    """A spectrum, with what it is a spectrum of.

    Attributes:
        kind: ``enstrophy`` or ``energy``.
        axis: ``x`` or ``y`` for the one-dimensional spectrum along it (one-sided, not doubled), ``both`` for the mean
            of the two, ``angle`` for the sum over shells of the wavenumber's length.
        k: ``(K,)`` wavenumbers, each one more than the last, from 0 or 1.
        value: ``(K,)``, above 0 but for k = 0.
        low: ``(K,)`` lower bound, or None.
        high: ``(K,)`` upper bound, or None.
    """

    kind: SpectrumKind
    axis: SpectrumAxis
    k: NDArray[np.int64]
    value: NDArray[np.float64]
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None

    @property
    def total(self) -> float:
        """The enstrophy <omega^2>/2 or the energy <u^2 + v^2>/2 that the spectrum adds up to."""
        if self.axis == "angle":
            return float(self.value.sum())
        # One-sided and not doubled; and the one-dimensional energy spectrum is defined without the half.
        doubled = float((np.where(self.k == 0, 1, 2) * self.value).sum())
        return doubled / 2 if self.kind == "energy" else doubled


@dataclass(frozen=True)
class DensityFile:
    """A probability density of the vorticity.

    Attributes:
        omega: ``(K,)`` rising.
        density: ``(K,)``, at least 0; its integral is near 1.
    """

    omega: NDArray[np.float64]
    density: NDArray[np.float64]

    @property
    def sigma(self) -> float:
        """Standard deviation of the vorticity."""
        mass = np.trapezoid(self.density, self.omega)
        mean = np.trapezoid(self.omega * self.density, self.omega) / mass
        return float(np.sqrt(np.trapezoid((self.omega - mean) ** 2 * self.density, self.omega) / mass))


def read_spectrum(
    path: str | Path,
    *,
    kind: SpectrumKind | None = None,
    axis: SpectrumAxis | None = None,
    n_les: int | None = None,
    total: float | None = None,
) -> SpectrumFile:
    """A spectrum from a text file with the columns k, value, or k, value, low, high.

    The name ``<energy|enstrophy>_spectrum_<case>_DNS<N>_<xy|x|y|circle>.dat`` says what the spectrum is; for a file of
    another name the arguments must.

    Args:
        path: the file; cells are separated by blanks or commas, lines that begin with # or % are skipped.
        kind: what it must be a spectrum of.
        axis: its definition, see ``SpectrumFile``.
        n_les: points of the grid that it must serve, hence k up to n_les/2 - 1.
        total: enstrophy <omega^2>/2, or energy <u^2 + v^2>/2, of the flow that it must belong to.

    Raises:
        InputError: no such file; a row that is not numbers or has another length; wavenumbers that do not rise by one
            from 0 or 1; a value that is not finite or, but for k = 0, not above 0; bounds that do not enclose it; too
            few wavenumbers; another kind or definition than asked for; a sum more than a factor 2 from ``total``, the
            sign of another normalisation.
    """
    path = Path(path)
    kind, axis = _definition(path, kind, axis)
    table = _table(path, (2, 4), "k, value or k, value, low, high")
    k, value = table[:, 0], table[:, 1]
    if k[0] not in (0, 1) or not np.array_equal(k, k[0] + np.arange(len(k))):
        raise InputError(f"{path}: column k: must rise by one from 0 or 1")
    refused = ~((value > 0) | (k == 0) & (value == 0))
    if refused.any():
        row = int(refused.argmax())
        raise InputError(f"{path}: column value: {value[row]:g} at k = {k[row]:g}, must be above 0")
    if n_les is not None and k[-1] < n_les // 2 - 1:
        raise InputError(f"{path}: ends at k = {k[-1]:g}, must reach n_les/2 - 1 = {n_les // 2 - 1}")
    low, high = (table[:, 2], table[:, 3]) if table.shape[1] == 4 else (None, None)
    if low is not None and high is not None:
        outside = ~((low <= value) & (value <= high))
        if outside.any():
            raise InputError(f"{path}: columns low and high: must enclose the value at k = {k[outside][0]:g}")
    spectrum = SpectrumFile(kind, axis, k.astype(np.int64), value, low, high)
    if total is not None and not total / 2 <= spectrum.total <= 2 * total:
        raise InputError(
            f"{path}: adds up to the {kind} {spectrum.total:.4g}, must be within a factor 2 of {total:.4g}; it may "
            "have another definition or normalisation"
        )
    return spectrum


def read_density(path: str | Path, *, sigma: float | None = None) -> DensityFile:
    """The density of the vorticity from a text file with the columns omega, density.

    Args:
        path: as for ``read_spectrum``.
        sigma: standard deviation of the vorticity of the flow that it must belong to.

    Raises:
        InputError: no such file; a row that is not two numbers; fewer than 8 rows; omega that does not rise; a density
            below 0; an integral more than 10 % from 1; a standard deviation more than a factor 2 from ``sigma``, the
            sign of another unit.
    """
    path = Path(path)
    table = _table(path, (2,), "omega, density")
    omega, density = table.T
    if len(table) < _FEWEST_BINS:
        raise InputError(f"{path}: {len(table)} rows, must be at least {_FEWEST_BINS}")
    if not (np.diff(omega) > 0).all():
        raise InputError(f"{path}: column omega: must rise")
    if (density < 0).any():
        raise InputError(f"{path}: column density: {density.min():g} at omega = {omega[density.argmin()]:g}, below 0")
    integral = np.trapezoid(density, omega)
    if not 0.9 <= integral <= 1.1:
        raise InputError(f"{path}: column density: integrates to {integral:.4g}, must be 1 within 10 %")
    found = DensityFile(omega, density)
    if sigma is not None and not sigma / 2 <= found.sigma <= 2 * sigma:
        raise InputError(
            f"{path}: standard deviation {found.sigma:.4g}, must be within a factor 2 of {sigma:.4g}; omega may have "
            "another unit"
        )
    return found


def _definition(path: Path, kind: SpectrumKind | None, axis: SpectrumAxis | None) -> tuple[SpectrumKind, SpectrumAxis]:
    """What the name says, which must be what the arguments say."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        if kind is None or axis is None:
            raise InputError(
                f"{path}: its name does not say what it is, must be <energy|enstrophy>_spectrum_<case>_DNS<N>_"
                "<xy|x|y|circle>.dat, or kind and axis given"
            )
        return kind, axis
    named_kind: SpectrumKind = "energy" if match["kind"] == "energy" else "enstrophy"
    named_axis = _AXES[match["axis"]]
    for name, asked, found in (("kind", kind, named_kind), ("axis", axis, named_axis)):
        if asked not in (None, found):
            raise InputError(f"{path}: {name} is {found} by its name, must be {asked}")
    return named_kind, named_axis


def _table(path: Path, widths: Sequence[int], columns: str) -> NDArray[np.float64]:
    """The rows of numbers of a text file, all of one length and finite."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error
    rows: list[list[float]] = []
    for number, line in enumerate(lines, 1):
        cells = line.replace(",", " ").split()
        if not cells or cells[0][0] in "#%":
            continue
        try:
            row = [float(cell) for cell in cells]
        except ValueError:
            row = []
        if len(row) not in (widths if not rows else (len(rows[0]),)) or not np.isfinite(row).all():
            raise InputError(f"{path}: line {number}: {line.strip()[:80]!r}, must be finite numbers {columns}")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: no row of numbers, must be {columns}")
    return np.array(rows)

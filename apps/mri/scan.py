"""One scan from a file: what can be acquired of it, and what is known of the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from apps.mri.masks import MaskProblem
from apps.mri.problem import scale_warning
from core.diffusion.mixture import GaussianMixturePrior
from core.diffusion.prior import Prior
from core.errors import InputError
from simulators.mri import readers
from simulators.mri.coils import combine, estimate_maps
from simulators.mri.operators import (
    KSpaceLines,
    MulticoilLines,
    Operator,
    Pixels,
    fft2c,
    ifft2c,
    to_channels,
    to_complex,
)
from simulators.mri.readers import KSpace, fit_kspace
from simulators.mri.readers.kspace import WHOLE
from simulators.mri.scanner import Instrument, RecordedScanner, Scanner

CALIBRATION_LINES = 16
"""Central lines from which coil maps are estimated, at least."""


@dataclass(frozen=True)
class Scan:
    """A subject that can be scanned.

    Attributes:
        scanner: answers requests, and only those.
        operator: the measurement as the reconstruction knows it.
        initial: ``(1, A)`` actions held from the start.
        target: ``(1, C, H, W)`` the true image, or ``(1, 1, H, W)`` its magnitude; None where it is not known.
        variance: ``(A,)`` of the prior's images in each action's samples: the order of actions that score alike.
        scale: factor by which the file's numbers were multiplied.
        size: rows and columns in the file; where they are not the operator's, k-space was cropped or padded.
        warning: what a careful user should know; empty if nothing.
    """

    scanner: Instrument
    operator: Operator
    initial: Tensor
    target: Tensor | None
    variance: Tensor
    scale: float
    size: tuple[int, int]
    warning: str = ""


def open_scan(
    path: str | Path,
    prior: Prior,
    *,
    kind: str | None = None,
    number: int = 0,
    scale: float | None = None,
    initial: int | None = None,
    device: torch.device | str = "cpu",
) -> Scan:
    """Slice ``number`` of a file, on the grid of the prior.

    K-space, or the k-space of complex images, is cropped or padded to the prior's size. Fully sampled data are scanned
    as if they were not known; of undersampled data only the recorded lines can be chosen.

    Args:
        path: a file that ``simulators.mri.readers.read`` reads.
        prior: whose shape and scale the data must have.
        kind: ``image`` or ``kspace``, where the format does not say.
        number: of the slice.
        scale: factor for the file's numbers; None brings the norm of the initial lines to the one they
            have in images of the prior; 1 without initial lines.
        initial: central lines held from the start; one, or 16 with several coils, if None.
        device: where the scan is done.

    Raises:
        InputError: what the reader refuses; no such slice, or one of zeros; data that the prior cannot take; lines with
            samples missing; an impossible scale or number of initial lines.
    """
    found = readers.read(path, kind)
    count = len(found.kspace) if isinstance(found, KSpace) else len(found)
    if not 0 <= number < count:
        raise InputError(f"{path}: slice {number}, must be between 0 and {count - 1}")
    if scale is not None and not 0 < scale < math.inf:
        raise InputError(f"scale: {scale}, must be greater than 0 and finite")
    if isinstance(found, KSpace):
        return _from_kspace(found, number, prior, scale, initial, str(path), device)
    image = found[number : number + 1]
    _not_empty(image, number, path)
    size = (int(image.shape[2]), int(image.shape[3]))
    if image.shape[1] == 2 and prior.shape[0] == 1:
        raise InputError(f"{path}: complex images, but the prior is of real ones")
    if prior.shape[0] == 1:
        if tuple(image.shape[1:]) != tuple(prior.shape):
            raise InputError(
                f"{path}: images of shape {tuple(image.shape[1:])}, but the prior is of real ones of shape "
                f"{tuple(prior.shape)}, which are scanned pixel by pixel; k-space lines need a prior of complex images"
            )
        pixels = Pixels(prior.shape)
        start, usual = _central(pixels, initial).to(device), _usual(pixels, prior, device)
        return _simulated(pixels, image, prior, 1.0 if scale is None else scale, size, start, usual)
    complex_image = to_complex(image) if image.shape[1] == 2 else image[:, 0].to(torch.complex64)
    fitted = to_channels(ifft2c(fit_kspace(fft2c(complex_image), prior.shape[1:])))
    operator = KSpaceLines(prior.shape)
    start, usual = _central(operator, initial).to(device), _usual(operator, prior, device)
    factor = _factor(scale, operator.forward(fitted.to(device)), start, usual)
    return _simulated(operator, fitted, prior, factor, size, start, usual)


def _from_kspace(
    found: KSpace,
    number: int,
    prior: Prior,
    scale: float | None,
    initial: int | None,
    path: str,
    device: torch.device | str,
) -> Scan:
    if prior.shape[0] != 2:
        raise InputError(f"{path}: k-space is complex, but the prior is of real images")
    full = found.fully_sampled
    fitted = found.fit((prior.shape[1], prior.shape[2]))
    kspace = fitted.kspace[number : number + 1]
    _not_empty(kspace, number, path)
    available, coils = _whole_lines(fitted, number, path), kspace.shape[1]
    start = _central(KSpaceLines(prior.shape), initial, coils)
    if absent := int((start & ~available).sum()):
        raise InputError(f"{path}: of the {int(start.sum())} central lines {absent} were not recorded")
    if coils == 1:
        operator: Operator = KSpaceLines(prior.shape)
        image = to_channels(ifft2c(kspace[:, 0]))
        target = image if full else None
    else:
        maps = estimate_maps(kspace, start)[0]
        operator = MulticoilLines(prior.shape, maps.to(device))
        image = to_channels(combine(kspace, maps))
        target = combine(kspace)[:, None] if full else None
    lines = kspace.movedim(-1, 1)
    components = operator.components(lines[:, :, 0] if coils == 1 else lines).to(device)
    usual = _usual(operator, prior, device)
    factor = _factor(scale, components, start.to(device), usual)
    scanner = RecordedScanner(operator, factor * components, available[None].to(device))
    return Scan(
        scanner,
        operator,
        start[None].to(device),
        None if target is None else (factor * target).to(device),
        usual.var(0).sum(-1),
        factor,
        found.size,
        _warning(factor * image, prior),
    )


def _whole_lines(fitted: KSpace, number: int, path: str) -> Tensor:
    """The lines (W,) that can be asked for: recorded, whole, and within the protocol's padding."""
    available = fitted.sampled[number].clone()
    left, right = fitted.padding
    available[:left] = False
    available[right:] = False
    if (share := fitted.filled(number)) < WHOLE:
        raise InputError(
            f"{path}: its lines hold {share:.0%} of their samples: points, not lines, were left out, and a line "
            "cannot be acquired from it"
        )
    return available


def _simulated(
    operator: Operator,
    target: Tensor,
    prior: Prior,
    factor: float,
    size: tuple[int, int],
    start: Tensor,
    usual: Tensor,
) -> Scan:
    target = factor * target.to(usual.device)
    scanner, variance = Scanner(operator, target), usual.var(0).sum(-1)
    return Scan(scanner, operator, start[None], target, variance, factor, size, _warning(target, prior))


def _central(operator: Operator, initial: int | None, coils: int = 1) -> Tensor:
    """The central actions (A,) that are held from the start."""
    none = torch.zeros(operator.actions, dtype=torch.bool)
    usual = CALIBRATION_LINES if coils > 1 else int(operator.center is not None)
    held = min(usual, operator.actions) if initial is None else initial
    least = min(CALIBRATION_LINES, operator.actions) if coils > 1 else 0
    most = 0 if operator.center is None else operator.actions
    if not least <= held <= most:
        why = "coil maps need them" if held < least else "pixels have no centre" if most == 0 else "there are no more"
        raise InputError(f"initial: {held}, must be between {least} and {most}: {why}")
    return MaskProblem(operator.actions, operator.actions, none, operator.center).nearest(held) if held else none


def _not_empty(values: Tensor, number: int, path: str | Path) -> None:
    if not bool(values.any()):
        raise InputError(f"{path}: slice {number} holds nothing but zeros")


def _usual(operator: Operator, prior: Prior, device: torch.device | str) -> Tensor:
    """Samples (N, A, R) of images that the prior knows."""
    generator = torch.Generator(device).manual_seed(0)
    if isinstance(prior, GaussianMixturePrior):
        return operator.forward(prior.draw(256, generator))
    return operator.forward(prior.sample(16, steps=20, generator=generator))


def _factor(scale: float | None, samples: Tensor, start: Tensor, usual: Tensor) -> float:
    """The factor that brings the initial actions of ``samples`` (1, A, R) to the norm that they have in the prior.

    Nothing but the initial actions is looked at: what is not acquired must not decide how the data are scaled.
    """
    if scale is not None:
        return scale
    if not bool(start.any()):
        return 1.0
    return float(usual[:, start].square().sum((1, 2)).mean().sqrt() / samples[:, start].norm())


def _warning(image: Tensor, prior: Prior) -> str:
    said = scale_warning(image, prior)
    return f"{said}: give --scale, or leave it to the tool" if said else ""

"""What a file or a prior holds, in the words of the field."""

from __future__ import annotations

from pathlib import Path

from core.diffusion.loading import load_prior
from core.diffusion.mixture import GaussianMixturePrior
from simulators.mri import readers
from simulators.mri.readers import KSpace
from simulators.mri.readers.kspace import WHOLE


def describe(path: str | Path, kind: str | None = None) -> dict[str, str]:
    """Names and values, in the order in which they are read.

    Raises:
        InputError: neither a file that can be read nor the folder of a prior.
    """
    path = Path(path)
    if path.is_dir():
        return _prior(path)
    found = readers.read(path, kind)
    if isinstance(found, KSpace):
        return _kspace(found)
    count, channels, height, width = found.shape
    return {
        "holds": f"{count} {'complex' if channels == 2 else 'real'} images of {height} x {width}",
        "range": f"{float(found.min()):.4g} to {float(found.max()):.4g}",
        "mean norm": f"{float(found.flatten(1).norm(dim=1).mean()):.4g}",
    }


def _kspace(found: KSpace) -> dict[str, str]:
    slices, coils, height, width = found.kspace.shape
    left, right = found.padding
    lines = int(found.sampled[0].sum())
    said = {
        "holds": f"k-space of {slices} slice{'s' if slices > 1 else ''}, {coils} coil{'s' if coils > 1 else ''}",
        "readout x phase": f"{height} x {width}",
        "sampled": "fully" if found.fully_sampled else f"{found.fraction:.2%} of all positions",
        "lines with samples": f"{lines} of {width} in slice 0 ({width / max(lines, 1):.2f}-fold)",
        "adaptive acquisition": "line by line" if found.filled(0) >= WHOLE else "no: points, not lines, were left out",
        "protocol's lines": f"{left} to {right - 1}" if (left, right) != (0, width) else "all",
        "serves as ground truth": "yes" if found.fully_sampled else "no",
        "largest sample": f"{float(found.kspace.abs().max()):.4g}",
        "mean norm of the image": f"{float(found.kspace.flatten(1).norm(dim=1).mean()):.4g}",
        "own reconstruction": "none" if found.target is None else " x ".join(map(str, found.target.shape[1:])),
    }
    return said | {name: str(value) for name, value in found.attrs.items()}


def _prior(path: Path) -> dict[str, str]:
    prior = load_prior(path)
    said = {
        "holds": f"a prior: {type(prior).__name__}",
        "images": " x ".join(map(str, prior.shape)) + (" (real and imaginary part)" if prior.shape[0] == 2 else ""),
        "mean norm of its images": "unknown" if prior.training_norm is None else f"{prior.training_norm:.4g}",
        "schedule": str(prior.schedule),
    }
    if isinstance(prior, GaussianMixturePrior):
        count, _, rank = prior.basis.shape
        return said | {"components": str(count), "rank": str(rank)}
    return said | {"weights": f"{sum(p.numel() for p in prior.parameters()):,}"}

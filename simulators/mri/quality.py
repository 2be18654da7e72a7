"""How far an image is from the truth: NMSE, PSNR, SSIM and MAE, for every image of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from core.errors import InputError

WINDOW = 7
"""Side of the uniform window of SSIM, pixels."""


def magnitude(x: Tensor) -> Tensor:
    """Images (..., H, W) to compare: the modulus of two channels (real and imaginary part), a single channel itself.

    Raises:
        InputError: another number of channels.
    """
    if x.shape[-3] == 1:
        return x.squeeze(-3)
    if x.shape[-3] != 2:
        raise InputError(f"images of shape {tuple(x.shape)}: must have 1 or 2 channels")
    # torch's vector_norm over a middle axis is several times slower; the floor gives the root a gradient at zero.
    return x.square().sum(-3).clamp(min=1e-24).sqrt()


def mae(target: Tensor, estimate: Tensor) -> Tensor:
    """Mean absolute error (...) of images (..., H, W), in their unit."""
    return (target - estimate).abs().mean((-2, -1))


def nmse(target: Tensor, estimate: Tensor) -> Tensor:
    """||target - estimate||^2 / ||target||^2 of images (..., H, W)."""
    return (target - estimate).square().sum((-2, -1)) / target.square().sum((-2, -1))


def psnr(target: Tensor, estimate: Tensor) -> Tensor:
    """10 log10(max(target)^2 / mean squared error) of images (..., H, W), in dB.

    Errors below the rounding of the target's largest value are not told from none: equal images have 138.5 dB in
    float32.
    """
    power = target.amax((-2, -1)).square()
    error = (target - estimate).square().mean((-2, -1)).clamp(min=power * torch.finfo(target.dtype).eps ** 2)
    return 10 * torch.log10(power / error)


def ssim(target: Tensor, estimate: Tensor) -> Tensor:
    """Structural similarity (...) of images (..., H, W) (Wang et al. 2004), as fastMRI's leaderboard has it.

    Uniform 7 x 7 window, K1 = 0.01, K2 = 0.03, sample covariances, the largest value of each target as its range, and
    the mean over the windows that lie inside the image.

    Raises:
        InputError: an image smaller than the window.
    """
    if min(target.shape[-2:]) < WINDOW:
        raise InputError(f"images of {target.shape[-2]} x {target.shape[-1]}: SSIM needs at least {WINDOW} x {WINDOW}")
    target, estimate = torch.broadcast_tensors(target, estimate)
    x, y = (image.reshape(-1, 1, *image.shape[-2:]) for image in (target, estimate))
    span = x.amax((-2, -1), keepdim=True)
    # Moments about the target's mean: the same covariances, without the cancellation of large squares.
    centre = x.mean((-2, -1), keepdim=True)
    a, b = x - centre, y - centre
    mean_a, mean_b, aa, bb, ab = (functional.avg_pool2d(z, WINDOW, 1) for z in (a, b, a * a, b * b, a * b))
    sample = WINDOW**2 / (WINDOW**2 - 1)
    var_a, var_b = sample * (aa - mean_a**2), sample * (bb - mean_b**2)
    covariance = sample * (ab - mean_a * mean_b)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    mean_x, mean_y = mean_a + centre, mean_b + centre
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (light * structure).mean((-3, -2, -1)).reshape(target.shape[:-2])

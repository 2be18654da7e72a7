"""Grey pictures of a mouth: lips between four curves, teeth, tongue, light, blur, noise, now and then a hand before it.

Lengths are in units of half the picture's height; x is to the right, y down, the mouth's middle near 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.simulation import tree
from simulators.lips.draws import normal, uniform
from simulators.lips.speakers import Appearance

EDGE = 0.035
"""Softness of every edge."""
ROTATION, SHIFT, DRIFT, LIGHT = 0.06, 0.05, 0.02, 0.05
"""Standard deviations of the angle in radians, of the place, of its drift within a clip, of the skin's gradients."""
FLICKER, MEMORY = 0.05, 0.95
"""Standard deviation of the brightness in time, and correlation of it and of the drift from frame to frame."""
BLUR = 0.8
"""Largest standard deviation of the blur in pixels."""
HIDDEN, COVER, COVERED = 0.1, (0.2, 0.5), (5, 25)
"""Share of clips with an opaque rectangle, its sides as shares of the picture's, and for how many frames."""
_PIECE = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Pixels that are drawn at a time, so that what is computed on the way stays in the cache or the memory."""


@dataclass(frozen=True)
class Pose:
    """Where the mouth is in the picture.

    Attributes:
        angle: ``(B,)`` radians.
        scale: ``(B,)``.
        x: ``(B, T)``.
        y: ``(B, T)``.
    """

    angle: Tensor
    scale: Tensor
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Shape:
    """The six parameters as the curves need them; all broadcast against the points."""

    half_width: Tensor
    opening: Tensor
    fullness: Tensor
    tuck: Tensor
    teeth: Tensor
    tongue: Tensor

    @classmethod
    def of(cls, articulation: Tensor) -> Shape:
        """Of mouth shapes ``(..., 6)``; what a speaker's bias makes negative and cannot be so counts as 0."""
        a, w, p, t, f, g = articulation.unbind(-1)
        a, t, f, g = (x.clamp(min=0.0) for x in (a, t, f, g))
        return cls(
            half_width=(0.80 * (1 + 0.25 * w - 0.30 * p)).clamp(min=0.1),
            opening=0.02 + 0.62 * a * (1 - 0.25 * p),
            fullness=(1 + 0.5 * p) * (1 - 0.35 * w.clamp(min=0.0)),
            tuck=f.clamp(max=1.5),
            teeth=torch.maximum(t, 0.8 * f).clamp(max=1.2),
            tongue=g.clamp(max=1.2),
        )


def curves(x: Tensor, shape: Shape, upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Heights at x: the upper lip's outer edge, the two inner edges, the lower lip's outer edge."""
    q = (1.0 - (x / shape.half_width).square_()).clamp_(min=1e-4)
    outer, inner = q.sqrt(), q**0.7
    inner_top = -0.45 * shape.opening * inner
    inner_bottom = (0.55 * shape.opening - 0.08 * shape.tuck) * inner
    bow = torch.exp(-((x / 0.12) ** 2)).mul_(-0.25).add_(1.0)
    outer_top = inner_top - bow.mul_(outer).mul_(upper * shape.fullness)
    outer_bottom = inner_bottom + outer.mul_(lower * shape.fullness * (1.0 - 0.6 * shape.tuck))
    return outer_top, inner_top, inner_bottom, outer_bottom


def draw_pose(frames: int, scale: Tensor, generator: torch.Generator) -> Pose:
    """Angles and places of clips of speakers whose mouths have the sizes ``scale`` ``(B,)``."""
    n = len(scale)
    drawn = normal((n, 3), scale, generator)
    drift = DRIFT * autoregressive(2 * n, frames, scale, generator).view(2, n, frames)
    place = SHIFT * drawn[:, 1:].T[:, :, None] + drift
    return Pose(ROTATION * drawn[:, 0], scale, place[0], place[1])


def autoregressive(n: int, frames: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """``(n, frames)`` stationary AR(1) sequences of variance 1, of the type and device of ``like``."""
    t = torch.arange(frames, device=like.device, dtype=like.dtype)
    weight = torch.tril(MEMORY ** (t[:, None] - t).clamp(min=0.0))
    weight[:, 1:] *= (1 - MEMORY**2) ** 0.5
    return normal((n, frames), like, generator) @ weight.T


@dataclass(frozen=True)
class _Camera:
    """All that is random in B pictures of T frames but the pixels' noise."""

    pose: Pose
    light: Tensor
    """``(B, 2)`` gradients of the skin."""
    brightness: Tensor
    """``(B, T)``."""
    blur: Tensor
    """``(B,)`` pixels."""
    cover: Tensor
    """``(B, 8)`` uniform: whether, width, height, left, top, when, grey, for how long."""


@torch.no_grad()
def render(
    articulation: Tensor, appearance: Appearance, height: int, width: int, generator: torch.Generator, noise: float
) -> Tensor:
    """``(B, T, height, width)`` grey levels in [0, 1].

    Args:
        articulation: ``(B, T, 6)`` mouth shapes.
        appearance: ``(B,)`` each.
        height: pixels.
        width: pixels; they are square.
        generator: of pose, light, blur, hands and noise.
        noise: standard deviation of the pixels.
    """
    batch, frames = articulation.shape[:2]
    like = articulation
    camera = _Camera(
        draw_pose(frames, appearance.scale, generator),
        LIGHT * normal((batch, 2), like, generator),
        1.0 + FLICKER * autoregressive(batch, frames, like, generator),
        BLUR * uniform((batch,), like, generator),
        uniform((batch, 8), like, generator),
    )
    found = torch.empty(batch, frames, height, width, dtype=like.dtype, device=like.device)
    piece = max(1, _PIECE.get(like.device.type, _PIECE["cuda"]) // (frames * height * width))
    for first in range(0, batch, piece):
        rows = slice(first, first + piece)
        parts = tree.take(camera, rows)
        drawn = _mouths(articulation[rows], tree.take(appearance, rows), parts, height, width)
        drawn *= parts.brightness[:, :, None, None]
        drawn = _blur(height, parts.blur) @ drawn @ _blur(width, parts.blur).mT
        found[rows] = drawn
    found += noise * normal(found.shape, like, generator)
    return _cover(found, camera.cover).clamp_(0.0, 1.0)


def _mouths(articulation: Tensor, look: Appearance, camera: _Camera, height: int, width: int) -> Tensor:
    """Pictures ``(B, T, H, W)`` without the camera's faults."""
    across, down = pixel_grid(height, width, articulation)
    x, y = _into_mouth(across, down, camera.pose)
    shape = tree.map_tensors(lambda v: v[:, :, None, None], Shape.of(articulation))
    look = tree.map_tensors(lambda v: v[:, None, None, None], look)
    outer_top, inner_top, inner_bottom, outer_bottom = curves(
        x.clamp(-shape.half_width, shape.half_width), shape, look.upper, look.lower
    )
    side = _soft(shape.half_width - x.abs())
    lip = _soft(y - outer_top).mul_(_soft(outer_bottom - y)).mul_(side)
    opening = _soft(y - inner_top).mul_(_soft(inner_bottom - y)).mul_(side)
    inside = _soft(inner_top + 0.17 - y).mul_(0.68 * shape.teeth).add_(0.10)
    far = (x / (0.45 * shape.half_width)).square_() + ((y - inner_bottom + 0.08) / 0.15).square_()
    tongue = torch.sigmoid((1.0 - far) / 0.3).mul_(shape.tongue)
    inside += (0.45 - inside) * tongue
    light = camera.light[:, :, None, None]
    skin = look.skin + (light[:, :1] * across + light[:, 1:] * down[:, None])
    picture = skin + (look.lip - skin) * lip
    picture += (inside - picture) * opening
    return picture


def pixel_grid(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Middles of the pixels, x ``(width,)`` and y ``(height,)``."""
    across = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5 - width / 2) * (2 / height)
    down = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5 - height / 2) * (2 / height)
    return across, down


def _into_mouth(across: Tensor, down: Tensor, pose: Pose) -> tuple[Tensor, Tensor]:
    """Where the pixels are in the mouth's own axes, ``(B, T, H, W)`` each."""
    cos, sin = (pose.angle.cos() / pose.scale)[:, None], (pose.angle.sin() / pose.scale)[:, None]
    wide = [v[:, :, None, None] for v in (cos, sin, cos * pose.x + sin * pose.y, cos * pose.y - sin * pose.x)]
    down = down[:, None]
    return wide[0] * across + wide[1] * down - wide[2], wide[0] * down - wide[1] * across - wide[3]


def into_picture(x: Tensor, y: Tensor, pose: Pose) -> tuple[Tensor, Tensor]:
    """Where points ``(B, T, K)`` of the mouth are in the picture."""
    cos, sin = (pose.angle.cos() * pose.scale)[:, None, None], (pose.angle.sin() * pose.scale)[:, None, None]
    return cos * x - sin * y + pose.x[..., None], sin * x + cos * y + pose.y[..., None]


def _soft(distance: Tensor) -> Tensor:
    """About 1 where the distance is positive, 0 where negative."""
    return distance.div_(EDGE).sigmoid_()


def _blur(size: int, deviation: Tensor) -> Tensor:
    """``(B, 1, size, size)`` matrices that blur one axis; rows sum to 1, at the borders too."""
    t = torch.arange(size, device=deviation.device, dtype=deviation.dtype)
    width = deviation.clamp(min=1e-3)[:, None, None, None]
    return torch.softmax(-0.5 * ((t[:, None] - t) / width) ** 2, -1)


def _cover(pictures: Tensor, drawn: Tensor) -> Tensor:
    """Put rectangles before some of the mouths for a while."""
    _, frames, height, width = pictures.shape
    there, wide, high, left, top, since, grey, lasts = drawn.unbind(1)
    share = COVER[0] + (COVER[1] - COVER[0]) * torch.stack([wide, high])
    during = COVERED[0] + ((COVERED[1] - COVERED[0] + 1) * lasts).floor()
    hidden = _between(since * (frames - during).clamp(min=0.0), during, frames)[:, :, None, None]
    hidden = hidden & _between(top * height * (1 - share[1]), share[1] * height, height)[:, None, :, None]
    hidden = hidden & _between(left * width * (1 - share[0]), share[0] * width, width)[:, None, None, :]
    hidden &= (there < HIDDEN)[:, None, None, None]
    return torch.where(hidden, grey[:, None, None, None], pictures)


def _between(first: Tensor, length: Tensor, size: int) -> Tensor:
    """``(B, size)`` bool: places from ``first`` on, ``length`` of them."""
    place = torch.arange(size, device=first.device) - first[:, None].floor()
    return (place >= 0) & (place < length[:, None])

"""Points on the edges of the lips, as a face tracker reports them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.simulation import tree
from simulators.lips.draws import normal
from simulators.lips.renderer import Shape, curves, draw_pose, into_picture
from simulators.lips.speakers import Appearance

OUTER, INNER = 12, 8
POINTS = OUTER + INNER
"""Of the outer edge, then of the inner one; each clockwise from the picture's right, by equal angles."""


@torch.no_grad()
def landmarks(
    articulation: Tensor, appearance: Appearance, height: int, width: int, generator: torch.Generator, noise: float
) -> Tensor:
    """``(B, T, 40)`` places in pixels, x and y of one point after the other; (0, 0) is the middle of the first pixel.

    Args:
        articulation: ``(B, T, 6)`` mouth shapes.
        appearance: ``(B,)`` each.
        height: of the picture in pixels.
        width: likewise.
        generator: of pose and noise.
        noise: standard deviation in pixels.
    """
    pose = draw_pose(articulation.shape[1], appearance.scale, generator)
    angle = torch.cat([torch.arange(n) * (2 * math.pi / n) for n in (OUTER, INNER)]).to(articulation)
    lower = angle.sin() >= -1e-6  # y is down, so the lower lip comes first
    outer = torch.arange(POINTS, device=angle.device) < OUTER
    shape = tree.map_tensors(lambda v: v[:, :, None], Shape.of(articulation))
    x = shape.half_width * angle.cos()
    thick = (appearance.upper[:, None, None], appearance.lower[:, None, None])
    outer_top, inner_top, inner_bottom, outer_bottom = curves(x, shape, *thick)
    y = torch.where(lower, torch.where(outer, outer_bottom, inner_bottom), torch.where(outer, outer_top, inner_top))
    x, y = into_picture(x, y, pose)
    seen = torch.stack([x * (height / 2) + (width - 1) / 2, y * (height / 2) + (height - 1) / 2], -1).flatten(2)
    return seen + noise * normal(seen.shape, seen, generator)

"""The front end of the published model: a spatio-temporal convolution and a ResNet-18 trunk on every frame."""

from __future__ import annotations

import math

from torch import Tensor, nn

from apps.lipreading.clips import Clips

WIDTHS = (64, 128, 256, 512)
"""Filters of the four stages, two blocks each."""


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016, the basic block).

    Args:
        inputs: filters it reads.
        outputs: filters it has.
        stride: of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)),
            *(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, outputs, H / stride, W / stride)``."""
        return (self.layers(x) + self.shortcut(x)).relu_()


class ResNetFrontEnd(nn.Module):
    """512 features of each frame, from the frame and its two neighbours on either side.

    Frames after a clip's end count as black for its last frames and are left out otherwise, so they enter no statistics
    of the normalisation.

    Args:
        channels: of a frame.
    """

    outputs = WIDTHS[-1]

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.stem = nn.Conv3d(channels, WIDTHS[0], (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False)
        self.pool = nn.Sequential(nn.BatchNorm2d(WIDTHS[0]), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        blocks = []
        for before, width in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False):
            blocks += [Block(before, width, 1 if width == WIDTHS[0] else 2), Block(width, width, 1)]
        self.trunk = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                fan = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan))

    def forward(self, clips: Clips) -> Tensor:
        """``(P, T, 512)``, zero after each end."""
        valid = clips.valid
        frames = self.stem(clips.images(self.channels)).transpose(1, 2)[valid]
        features = self.trunk(self.pool(frames))
        out = features.new_zeros(*valid.shape, self.outputs)
        return out.masked_scatter(valid.unsqueeze(-1), features)

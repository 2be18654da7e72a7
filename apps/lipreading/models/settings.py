"""What models there are and their sizes, as pieces of configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.study import Config


class FastSettings(Config):
    """A small model whose decoder scores all steps of a sequence in three fused calls."""

    name: Literal["fast"] = "fast"
    front_end: Literal["features", "frames"] = "features"
    """What a clip is made of: features of each frame, or grey frames."""
    inputs: int = Field(default=12, ge=1)
    """Features of a frame; of no account with frames."""
    kernel: int = Field(default=7, ge=1)
    """Frames that the stem's convolution reads."""
    stride: int = Field(default=3, ge=1)
    """Frames a step of the memory."""
    encoder: int = Field(default=48, ge=1)
    """Width of the stem, and of the encoder's GRU in each direction."""
    embedding: int = Field(default=24, ge=1)
    """Width of a symbol."""
    decoder: int = Field(default=96, ge=1)
    """Width of both GRUs of the decoder."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the stem, the memory, the symbols and the last layer's input, in training mode."""
    value_head: bool = False
    """Whether it also estimates the value of each state."""


class PaperSettings(Config):
    """The model of Luo et al. (2020): ResNet-18 on each frame, and a GRU decoder with additive attention."""

    name: Literal["paper"] = "paper"
    channels: Literal[1, 3] = 3
    """Of a frame; grey frames are repeated for three."""
    hidden: int = Field(default=1024, ge=1)
    """Width of all GRUs."""
    layers: int = Field(default=3, ge=1)
    """Of the encoder and of the decoder."""
    embedding: int = Field(default=256, ge=1)
    """Width of a symbol."""
    encoder_dropout: float = Field(default=0.5, ge=0, lt=1)
    """Of the frames' features and between the layers of the encoder."""
    decoder_dropout: float = Field(default=0.2, ge=0, lt=1)
    """Of the symbols and between the layers of the decoder."""
    init: Literal["paper", "zeros"] = "paper"
    """Where the decoder starts: the first of the encoder's final states in the order of layers, or zeros."""
    value_head: bool = False
    """Whether it also estimates the value of each state."""


class StcnnSettings(Config):
    """LipNet: three spatio-temporal convolutions, two bidirectional GRUs and CTC."""

    name: Literal["stcnn"] = "stcnn"
    channels: Literal[1, 3] = 3
    """Of a frame; grey frames are repeated for three."""
    height: int = Field(default=64, ge=24)
    """Pixels of a frame."""
    width: int = Field(default=128, ge=24)
    """Pixels of a frame."""
    filters: tuple[int, int, int] = (32, 64, 96)
    """Of the convolutions."""
    hidden: int = Field(default=256, ge=1)
    """Width of the GRUs in each direction."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Of whole filters after each convolution, and between the layers of the GRU."""


ModelSettings = Annotated[FastSettings | PaperSettings | StcnnSettings, Field(discriminator="name")]
"""Any of them, told apart by ``name``."""

"""An encoder-decoder transformer (Vaswani et al. 2017), as darts builds it for one step ahead."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from apps.chaos.forecasters.deep.training import DeepForecaster, Network
from core.nn.grouped import Dropout, GroupedLayerNorm, GroupedLinear, Initial, keep_all


class Transformer(DeepForecaster):
    """The encoder reads the window; the decoder starts from its last sample and predicts the next."""

    kind: Literal["transformer"] = "transformer"
    width: int = Field(default=64, ge=2, multiple_of=2)
    """Features of a sample."""
    heads: int = Field(default=4, ge=1)
    """Of each attention; they divide the width."""
    layers: int = Field(default=3, ge=1)
    """Of the encoder, and of the decoder."""
    feed_forward: int = Field(default=512, ge=1)
    """Units between two attentions."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the values that are dropped in training."""

    @model_validator(mode="after")
    def _divided(self) -> Transformer:
        if self.width % self.heads:
            raise ValueError(f"width: {self.width} is no multiple of the {self.heads} heads")
        return self

    @property
    def dropped(self) -> float:
        """Share of the values that the network drops in training."""
        return self.dropout

    def network(self, channels: int, initial: Initial) -> Network:
        """Untrained networks, one for each generator."""
        return TransformerNetwork(self, channels, initial)


class TransformerNetwork(Network):
    """See ``Transformer``."""

    positions: Tensor

    def __init__(self, settings: Transformer, channels: int, initial: Initial) -> None:
        super().__init__()
        groups, width = len(initial.generators), settings.width
        self.register_buffer("positions", sinusoids(settings.look_back, width).to(initial.dtype))
        self.embedding = GroupedLinear(initial, channels, width)
        self.encoder = nn.ModuleList(EncoderLayer(settings, initial) for _ in range(settings.layers))
        self.decoder = nn.ModuleList(DecoderLayer(settings, initial) for _ in range(settings.layers))
        self.encoded = GroupedLayerNorm(groups, width, initial.dtype)
        self.decoded = GroupedLayerNorm(groups, width, initial.dtype)
        self.out = GroupedLinear(initial, width, channels)

    def forward(self, windows: Tensor, dropout: Dropout = keep_all) -> Tensor:
        """The sample ``(G, B, 1, D)`` after each window ``(G, B, L, D)``."""
        embedded = self.embedding.rows(windows)
        memory = dropout(embedded + self.positions)
        for layer in self.encoder:
            memory = layer(memory, dropout)
        memory = self.encoded(memory)
        x = dropout(embedded[:, :, -1:] + self.positions[:1])
        for layer in self.decoder:
            x = layer(x, memory, dropout)
        return self.out.rows(self.decoded(x))


class EncoderLayer(nn.Module):
    """Attention of the samples to one another, then a feed-forward network; each is normalised after its addition."""

    def __init__(self, settings: Transformer, initial: Initial) -> None:
        super().__init__()
        groups, width = len(initial.generators), settings.width
        self.attention = Attention(settings, initial)
        self.feed_forward = FeedForward(settings, initial)
        self.norms = nn.ModuleList(GroupedLayerNorm(groups, width, initial.dtype) for _ in range(2))

    def forward(self, x: Tensor, dropout: Dropout) -> Tensor:
        """``(G, B, L, width)`` to the same shape."""
        x = self.norms[0](x + dropout(self.attention(x, x, dropout)))
        return self.norms[1](x + dropout(self.feed_forward(x, dropout)))


class DecoderLayer(nn.Module):
    """Attention of the start token to itself, then to the window, then a feed-forward network."""

    def __init__(self, settings: Transformer, initial: Initial) -> None:
        super().__init__()
        groups, width = len(initial.generators), settings.width
        self.own = OwnAttention(settings, initial)
        self.attention = Attention(settings, initial)
        self.feed_forward = FeedForward(settings, initial)
        self.norms = nn.ModuleList(GroupedLayerNorm(groups, width, initial.dtype) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor, dropout: Dropout) -> Tensor:
        """``(G, B, 1, width)`` to the same shape, given ``memory`` (G, B, L, width)."""
        x = self.norms[0](x + dropout(self.own(x, dropout)))
        x = self.norms[1](x + dropout(self.attention(x, memory, dropout)))
        return self.norms[2](x + dropout(self.feed_forward(x, dropout)))


class Attention(nn.Module):
    """Attention with several heads, as in ``torch.nn.MultiheadAttention``."""

    def __init__(self, settings: Transformer, initial: Initial) -> None:
        super().__init__()
        self.heads, width = settings.heads, settings.width
        bound = math.sqrt(6 / (4 * width))  # Glorot's of one matrix for queries, keys and values, as in torch
        self.query = GroupedLinear(initial, width, width, bound=bound, bias_bound=0)
        self.key_value = GroupedLinear(initial, width, 2 * width, bound=bound, bias_bound=0)
        self.out = GroupedLinear(initial, width, width, bound=math.sqrt(3 / width), bias_bound=0)

    def forward(self, x: Tensor, memory: Tensor, dropout: Dropout) -> Tensor:
        """What ``x`` (G, B, Q, width) finds in ``memory`` (G, B, L, width), ``(G, B, Q, width)``."""
        query = self._split(self.query.rows(x))
        key, value = (self._split(part) for part in self.key_value.rows(memory).chunk(2, -1))
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        return self.out.rows((dropout(weights) @ value).transpose(2, 3).flatten(3))

    def _split(self, x: Tensor) -> Tensor:
        """``(G, B, L, width)`` to ``(G, B, heads, L, width / heads)``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(2, 3)


class OwnAttention(nn.Module):
    """Attention of a single token to itself: its weight is 1 whatever query and key are, which are left out."""

    def __init__(self, settings: Transformer, initial: Initial) -> None:
        super().__init__()
        self.heads, width = settings.heads, settings.width
        self.value = GroupedLinear(initial, width, width, bound=math.sqrt(6 / (4 * width)), bias_bound=0)
        self.out = GroupedLinear(initial, width, width, bound=math.sqrt(3 / width), bias_bound=0)

    def forward(self, x: Tensor, dropout: Dropout) -> Tensor:
        """``(G, B, 1, width)`` to the same shape."""
        value = self.value.rows(x).unflatten(-1, (self.heads, -1))
        return self.out.rows((value * dropout(torch.ones_like(value[..., :1]))).flatten(3))


class FeedForward(nn.Module):
    """Two maps with a ReLU between them."""

    def __init__(self, settings: Transformer, initial: Initial) -> None:
        super().__init__()
        width, units = settings.width, settings.feed_forward
        bound = math.sqrt(6 / (width + units))
        self.first = GroupedLinear(initial, width, units, bound=bound, bias_bound=width**-0.5)
        self.second = GroupedLinear(initial, units, width, bound=bound, bias_bound=units**-0.5)

    def forward(self, x: Tensor, dropout: Dropout) -> Tensor:
        """``(G, B, L, width)`` to the same shape."""
        return self.second.rows(dropout(self.first.rows(x).relu()))


def sinusoids(length: int, width: int) -> Tensor:
    """Encodings ``(length, width)`` of positions (Vaswani et al. 2017, section 3.5)."""
    angle = torch.arange(length)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack((angle.sin(), angle.cos()), 2).flatten(1)

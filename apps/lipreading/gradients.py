"""Credit assignment: how much signal and how much noise the gradient of each estimator has, at the same model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from apps.lipreading.methods import Method
from apps.lipreading.products import ReaderProduct
from apps.lipreading.training import method_reward
from core.seeds import stream
from core.sequence.batch import TokenBatch
from core.study import Context, Run

Array = NDArray[np.float64]


class Gradients(Run):
    """Gradients of many draws of transcripts of the same clips, for each estimator on the same draws.

    Of the weights of the output layer and the recurrent ones of the layer before it: a gradient of all would need a
    graph through the encoder for every estimator and repeat.
    """

    name: str
    """Of the experiment."""
    product: ReaderProduct
    """At which model."""
    methods: tuple[Method, ...] = Field(min_length=1)
    """The estimators; the last is the reference, unbiased and of little noise."""
    clips: int = Field(default=64, ge=2)
    """The same in all repeats."""
    samples: int = Field(default=4, ge=2)
    """Transcripts of each."""
    repeats: int = Field(default=120, ge=4)
    """Draws of all transcripts."""
    seed: int = 0
    """Of the clips and the draws."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.name}: gradients of {len(self.methods)} estimators"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """``own`` and ``shared`` ``(method, repeat, repeat)``: inner products of an estimator's gradients in two
        repeats, and of its with the reference's.
        """
        reader = self.product.open(context)
        corpus = self.product.reader.source.open(context.device)
        generator = torch.Generator(context.device).manual_seed(stream(self.seed, "gradients: clips"))
        order = torch.randperm(corpus.size, generator=generator, device=context.device)
        seen = corpus.training(order[: self.clips].cpu(), generator)
        model, weights = reader.model.eval(), last_weights(reader.model)
        draws = torch.Generator(context.device).manual_seed(stream(self.seed, "gradients: transcripts"))
        found: list[Tensor] = []
        for repeat in range(self.repeats):
            batch = model.sample(seen.clips, self.samples, corpus.max_length + 4, generator=draws)
            found.append(gradients(model, weights, batch, seen.reference, self.methods))
            context.progress((repeat + 1) / self.repeats, f"repeat {repeat + 1} of {self.repeats}")
        g = torch.stack(found, 1).double().cpu()
        own, shared = g @ g.mT, g @ g[-1].mT
        dims = ("method", "repeat", "other")
        return xr.Dataset(
            {"own": (dims, own.numpy()), "shared": (dims, shared.numpy())},
            coords={"method": [m.name for m in self.methods]},
            attrs={"grouped": "; ".join(m.name for m in self.methods if m.compares)},
        )


def last_weights(model: nn.Module) -> list[nn.Parameter]:
    """Weights of the output layer and the recurrent ones of the decoder's upper layer, of the model ``fast``."""
    names = ("output.weight", "output.bias", "second.weight_hh_l0")
    held = dict(model.named_parameters())
    return [held[name] for name in names]


def gradients(
    model: nn.Module,
    weights: Sequence[nn.Parameter],
    batch: TokenBatch,
    reference: TokenBatch,
    methods: Sequence[Method],
) -> Tensor:
    """``(M, P)`` the gradient of each method's loss for the same transcripts, negated: the direction it would go."""
    for weight in model.parameters():
        weight.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    scores = model.score(batch)  # type: ignore[operator]
    found = []
    for method in methods:
        assert method.loss is not None
        rewarded = batch.with_(reward=method_reward(method, batch, reference))
        if method.estimator is not None:
            rewarded = method.estimator(rewarded)
        loss = method.loss(scores, rewarded).value
        parts = torch.autograd.grad(loss, list(weights), retain_graph=True)
        found.append(-torch.cat([x.flatten() for x in parts]))
    return torch.stack(found)


@dataclass(frozen=True)
class Signal:
    """What the gradients of an estimator hold.

    Attributes:
        snr: |true mean|^2 over the variance, of one repeat; NaN where the repeats do not differ.
        cosine: of the true mean with the reference's.
        one_repeat: cosine of one repeat's gradient with the true mean of the reference, expected.
    """

    snr: float
    cosine: float
    one_repeat: float


def signal(own: Array, shared: Array, reference: Array) -> Signal:
    """Estimates from inner products ``(R, R)`` without the bias of squared noise.

    U_aa, the mean over pairs of different repeats of g_i . g_j, is an unbiased estimate of the true mean's squared
    length; a repeat with itself would add its own noise. U_ab with the reference uses different repeats too, because
    both are of the same draws.

    Args:
        own: of the estimator's gradients.
        shared: of the estimator's gradients with the reference's.
        reference: of the reference's.
    """
    squared, trace = apart(own), float(np.trace(own)) / len(own)
    noise = trace - squared
    # No variance where an estimator's gradient is 0 in all repeats, as of rewards that are all the same.
    snr = squared / noise if noise > 0 else math.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = apart(shared) / np.sqrt(squared * apart(reference))
        return Signal(snr, float(cosine), float(cosine * np.sqrt(snr / (1 + snr))))


def apart(products: Array) -> float:
    """Mean of the products of different repeats."""
    n = len(products)
    return float((products.sum() - np.trace(products)) / (n * (n - 1)))


def jackknife(data: xr.Dataset, method: str) -> tuple[Signal, list[Signal]]:
    """The estimates of all repeats, and those that leave out each of them."""
    own, shared = (data[name].sel({"method": method}).values for name in ("own", "shared"))
    reference = data["own"].isel(method=-1).values
    n = len(own)
    left = []
    for out in range(n):
        kept = np.delete(np.arange(n), out)
        cut = np.ix_(kept, kept)
        left.append(signal(own[cut], shared[cut], reference[cut]))
    return signal(own, shared, reference), left


def standard_error(left: Sequence[float]) -> float:
    """Of an estimate, from its values with each repeat left out (Efron and Tibshirani 1993, chapter 11)."""
    values = np.asarray(left)
    n = len(values)
    return float(np.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum()))

"""Who pays through whom: the issuers, merchants and countries of one world, drawn from its seed."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from simulators.payments.context import Sizes

ROUTE_SHARE = 0.6
SCA_SHARE = 0.4
FLAG_SCALES = (1.0, 0.8, 0.7, 0.9, 0.9)
FLAG_MEANS = (-0.1, 0.35, 0.5, -0.1, 0.0)
EXTRA_SCALE = 0.9
"""Of interventions beyond the first five, whose mean is 0; a merchant offers each with probability ``ROUTE_SHARE``."""


@dataclass(frozen=True)
class Portfolio:
    """The parameters of a world; I issuers, M merchants, C countries, F interventions, K = 2^F actions.

    Attributes:
        issuer_cdf: ``(I,)`` cumulative popularity, proportional to rank^-0.9.
        merchant_cdf: ``(M,)`` likewise.
        issuer_country: ``(I,)``.
        merchant_country: ``(M,)``.
        sca: ``(C,)`` bool, strong customer authentication is law.
        issuer: ``(I,)`` logit of the issuer, u_i ~ N(0, 0.6).
        merchant: ``(M,)`` logit of the merchant, w_m ~ N(0, 0.35).
        log_amount: ``(M,)`` mean of the log amount, mu_m ~ N(3.6, 0.7).
        issuer_flag: ``(I, F)`` effect d of an intervention at an issuer, logits.
        merchant_flag: ``(M, F)`` at a merchant.
        pair: ``(K,)`` sum of the pairwise interactions of an action.
        challenge: ``(C,)`` q_c ~ N(0, 0.7), logit of completing a 3-D Secure challenge.
        technical: ``(I, 2)`` logits of technical success with the message format and with the other route.
        route: ``(M, C)`` bool, another acquirer exists for cards of that country.
        offers: ``(M, F)`` bool, the merchant has the intervention beyond the first five; True for those.
        phase: ``(I,)`` of the season.
        fraud: ``(I,)`` standard normals of the issuer's chargebacks.
    """

    issuer_cdf: Tensor
    merchant_cdf: Tensor
    issuer_country: Tensor
    merchant_country: Tensor
    sca: Tensor
    issuer: Tensor
    merchant: Tensor
    log_amount: Tensor
    issuer_flag: Tensor
    merchant_flag: Tensor
    pair: Tensor
    challenge: Tensor
    technical: Tensor
    route: Tensor
    offers: Tensor
    phase: Tensor
    fraud: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Portfolio:
        """The same world on another device, its numbers in another precision."""
        moved = {}
        for f in fields(self):
            value: Tensor = getattr(self, f.name)
            moved[f.name] = value.to(device=device, dtype=dtype if value.is_floating_point() else value.dtype)
        return Portfolio(**moved)

    def with_effects(self, issuer: Tensor, issuer_flag: Tensor) -> Portfolio:
        """The same world whose issuers have changed."""
        return replace(self, issuer=issuer, issuer_flag=issuer_flag)


def draw_issuer_flag(count: int, sizes: Sizes, heterogeneity: float, generator: torch.Generator) -> Tensor:
    """``(count, F)`` effects of the interventions at issuers: heterogeneity * s_f * N(0, 1) + o_f."""
    extra = sizes.flags - len(FLAG_SCALES)
    scale = torch.tensor((*FLAG_SCALES, *(EXTRA_SCALE,) * extra), dtype=torch.float64)
    mean = torch.tensor((*FLAG_MEANS, *(0.0,) * extra), dtype=torch.float64)
    normal = torch.randn(count, sizes.flags, generator=generator, dtype=torch.float64)
    return heterogeneity * scale * normal + mean


def draw_portfolio(seed: int, sizes: Sizes, heterogeneity: float) -> Portfolio:
    """The world of a seed, in float64 on the CPU."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    i, m, c, f = sizes.issuers, sizes.merchants, sizes.countries, sizes.flags
    pairs = torch.triu(heterogeneity * 0.45 * normal(f, f), diagonal=1)
    bits = (torch.arange(2**f)[:, None] >> torch.arange(f) & 1).double()
    offers = uniform(m, f) < ROUTE_SHARE
    offers[:, : len(FLAG_SCALES)] = True
    return Portfolio(
        issuer_cdf=_popularity(i),
        merchant_cdf=_popularity(m),
        issuer_country=torch.randint(c, (i,), generator=generator),
        merchant_country=torch.randint(c, (m,), generator=generator),
        sca=uniform(c) < SCA_SHARE,
        issuer=0.6 * normal(i),
        merchant=0.35 * normal(m),
        log_amount=3.6 + 0.7 * normal(m),
        issuer_flag=draw_issuer_flag(i, sizes, heterogeneity, generator),
        merchant_flag=heterogeneity * 0.35 * normal(m, f),
        pair=torch.einsum("kf,fg,kg->k", bits, pairs, bits),
        challenge=0.7 * normal(c),
        technical=0.8 * normal(i, 2),
        route=uniform(m, c) < ROUTE_SHARE,
        offers=offers,
        phase=2 * torch.pi * uniform(i),
        fraud=normal(i),
    )


def _popularity(count: int) -> Tensor:
    weights = torch.arange(1, count + 1, dtype=torch.float64) ** -0.9
    return weights.cumsum(0) / weights.sum()

"""A-priori test: a closure's term, from the filtered flow alone, against the exact one."""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor

from simulators.turbulence.closures import Closure, subgrid_term
from simulators.turbulence.diagnostics.records import as_numbers, described, runs
from simulators.turbulence.diagnostics.transfers import (
    backscatter_fraction,
    energy_transfer,
    enstrophy_transfer,
    least_stress,
)
from simulators.turbulence.subgrid import Subgrid


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of two fields ``(..., N, N)`` over their points, ``(...)``.

    NaN where one is constant, or varies no more than the round-off of the other: the gradient model of order 2 has no
    local energy transfer at all in two dimensions.
    """
    a, b = (field - field.mean((-2, -1), keepdim=True) for field in (a, b))
    covariance, of_a, of_b = (product.mean((-2, -1)) for product in (a * b, a * a, b * b))
    noise = (100 * torch.finfo(a.dtype).eps) ** 2 * torch.maximum(of_a, of_b)
    return torch.where(torch.minimum(of_a, of_b) > noise, covariance / (of_a * of_b).sqrt(), torch.nan)


def apriori(closure: Closure, truth: Subgrid) -> xr.Dataset:
    """Correlation of modelled and exact Pi and transfers, and the ratio of what they dissipate in all.

    The local transfers of a closure are those of its ``stress(flow)``, where it has one, else of the smallest stress
    that gives its Pi.

    Args:
        closure: to be tested.
        truth: what ``subgrid`` returned for B resolved flows.

    Returns:
        Dim ``start``; the width D, the filter and the grid are attributes.
    """
    flow, grid = truth.flow, truth.flow.grid
    pi_hat = subgrid_term(flow, closure(flow)) * grid.resolved
    stress_of = getattr(closure, "stress", None)
    stress = least_stress(grid, pi_hat) if stress_of is None else stress_of(flow)
    variables = {
        "correlation_Pi": (
            "start",
            as_numbers(correlation(grid.to_physical(pi_hat), truth.pi)),
            described("correlation of modelled and exact Pi"),
        )
    }
    for symbol, name, transfer in (
        ("P_tau", "energy", energy_transfer),
        ("P_Z", "enstrophy", enstrophy_transfer),
    ):
        modelled, exact = transfer(flow, stress), transfer(flow, truth.stress)
        results = {
            f"correlation_{symbol}": (
                correlation(modelled, exact),
                f"correlation of modelled and exact {name} transfer",
            ),
            f"dissipation_{symbol}": (
                modelled.mean((-2, -1)) / exact.mean((-2, -1)),
                f"modelled over exact dissipation of {name}",
            ),
            f"backscatter_{symbol}": (backscatter_fraction(modelled), f"modelled share of points that gain {name}"),
            f"backscatter_{symbol}_exact": (backscatter_fraction(exact), f"exact share of points that gain {name}"),
        }
        variables |= {key: ("start", as_numbers(values), described(text)) for key, (values, text) in results.items()}
    return xr.Dataset(
        variables,
        coords={"start": runs(flow.vorticity_hat.shape[0])},
        attrs={"closure": type(closure).__name__, "n": grid.n, "filter": truth.filter.kind, "D": truth.filter.width},
    )

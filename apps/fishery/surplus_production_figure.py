"""The picture of a surplus-production fit: index, biomass, residuals and catch, each with its unit."""

from __future__ import annotations

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apps.fishery.surplus_production import SurplusProductionFit
from simulators.fishery.stocks import Stock

_DATA, _FIT, _REFERENCE = "0.35", "tab:blue", "tab:orange"


def plot_fit(stock: Stock, fit: SurplusProductionFit) -> Figure:
    """Four panels: observed and fitted index, biomass over K, log residuals, catch against the MSY.

    Where the fit is not identified its reference levels (K, MSY and what follows from them) are not drawn, and the
    title says so.
    """
    figure = Figure(figsize=(10, 7.2), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    _plot_index(panels[0, 0], stock, fit)
    _plot_biomass(panels[0, 1], stock, fit)
    _plot_residuals(panels[1, 0], stock, fit)
    _plot_catch(panels[1, 1], stock, fit)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    for panel in panels[1]:
        panel.set_xlabel("year")
    # Names and units are the user's: a dollar sign in them is no mathematics.
    figure.suptitle(_title(stock, fit), fontsize=11, parse_math=False)
    figure.supxlabel(f"Source: {stock.source}", fontsize=7, color="0.4", wrap=True, parse_math=False)
    return figure


def _title(stock: Stock, fit: SurplusProductionFit) -> str:
    name = stock.name.replace("_", " ")
    model = "Schaefer" if fit.exponent == 1 else f"Pella-Tomlinson, p = {fit.exponent:g}"
    start = "B₁ = K" if fit.initial == "virgin" else "free B₁"
    if not fit.identified:
        parameters = ", ".join(p.replace("_", " ") for p in fit.at_bound)
        return f"{name} ({model}, {start})\nnot identified: {parameters} at a bound"
    values = f"r = {fit.r:.3g}/year, K = {_number(fit.K)} {stock.catch_unit}, sigma = {fit.sigma:.3f}"
    return f"{name} ({model}, {start})\n{values}"


def _plot_index(panel: Axes, stock: Stock, fit: SurplusProductionFit) -> None:
    spread = np.exp(1.96 * fit.sigma)
    panel.fill_between(
        stock.year,
        fit.predicted_index / spread,
        fit.predicted_index * spread,
        color=_FIT,
        alpha=0.15,
        lw=0,
        label="95 % of observations",
    )
    panel.plot(stock.year, fit.predicted_index, color=_FIT, label="fitted")
    panel.plot(stock.year, stock.index, "o", color=_DATA, ms=4, label="observed")
    panel.set(title="Abundance index", ylim=(0, None))
    panel.set_ylabel(stock.index_unit, parse_math=False)
    panel.legend(frameon=False, fontsize=8)


def _plot_biomass(panel: Axes, stock: Stock, fit: SurplusProductionFit) -> None:
    panel.set(title="Biomass at the start of the year", ylabel="B / K")
    if not fit.identified:
        panel.text(0.5, 0.5, "not identified", transform=panel.transAxes, ha="center", color=_REFERENCE, fontsize=12)
        panel.set_yticks([])
        return
    years = np.append(stock.year, stock.year[-1] + 1)
    panel.plot(years, np.append(fit.biomass, fit.biomass_next) / fit.K, color=_FIT)
    level = fit.biomass_at_msy / fit.K
    panel.axhline(level, color=_REFERENCE, ls="--", label=f"$B_{{MSY}}$ = {level:.2f} K")
    panel.axhline(1.0, color="0.6", ls=":", label="K")
    panel.set_ylim(0, None)
    panel.legend(frameon=False, fontsize=8)


def _plot_residuals(panel: Axes, stock: Stock, fit: SurplusProductionFit) -> None:
    panel.axhspan(-1.96 * fit.sigma, 1.96 * fit.sigma, color=_FIT, alpha=0.15, lw=0)
    panel.axhline(0.0, color="0.6", lw=0.8)
    panel.vlines(stock.year, 0.0, fit.residuals, color=_DATA, lw=1)
    panel.plot(stock.year, fit.residuals, "o", color=_DATA, ms=4)
    panel.set(ylabel="log(observed / fitted)", title="Residuals of the index")


def _plot_catch(panel: Axes, stock: Stock, fit: SurplusProductionFit) -> None:
    panel.bar(stock.year, stock.catch, color="0.75", width=0.8)
    if fit.identified:
        label = f"MSY = {_number(fit.msy)}"
        ends = fit.intervals.get("msy")
        if ends:
            low = _number(ends.low) + " (open)" * ends.low_open
            high = _number(ends.high) + " (open)" * ends.high_open
            label += f", 95 % interval {low} to {high}"
            panel.axhspan(ends.low, ends.high, color=_REFERENCE, alpha=0.25, lw=0)
        panel.axhline(fit.msy, color=_REFERENCE, label=label)
        panel.set_ylim(0, 1.18 * max(stock.catch.max(), fit.msy))
        panel.legend(frameon=False, fontsize=8, loc="upper right")
    panel.set_title("Catch")
    panel.set_ylabel(f"{stock.catch_unit} / year", parse_math=False)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1e4 else f"{value:.4g}"

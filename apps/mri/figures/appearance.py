"""How methods look in every figure, and which of many are shown where not all fit."""

from __future__ import annotations

from collections.abc import Mapping

import xarray as xr

from apps.mri.methods import NAMES, RECONSTRUCTIONS

COLOURS = {
    "ads": "#d55e00",
    "ads_exact": "#8f3f00",
    "ads_stop": "#e69f00",
    "ads_roi": "#f0b98d",
    "greedy_variance": "#cc79a7",
    "bhattacharyya": "#b5854b",
    "reference_positive": "#a6761d",
    "kl_pixelwise": "#d8a47f",
    "noise_aware": "#7a4a1e",
    "random": "#56b4e9",
    "equispaced": "#3b93c9",
    "uniform": "#0072b2",
    "fastmri": "#08306b",
    "vds": "#6a8fc7",
    "vds_gaussian": "#9ecae1",
    "lowpass": "#c9b800",
    "data_variance": "#009e73",
    "data_variance_top": "#7fc97f",
    "greedy_fixed": "#000000",
    "loupe": "#5e3c99",
    "loupe_unet": "#9e8ac8",
    "pg": "#810f7c",
    "subpo": "#dd3497",
    "zero_filled": "#bdbdbd",
    "wavelet": "#969696",
    "tv": "#737373",
    "unet": "#525252",
}
"""Around Okabe and Ito's colours, which any colour vision tells apart; ADS is vermilion, a family shares a hue."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")


def marker(method: str) -> str:
    """The mark of a method, so that colour never tells it alone."""
    return _MARKERS[list(NAMES).index(method) % len(_MARKERS)]


def main_metric(operator: str) -> str:
    """What methods are ranked by: MAE of images that are sampled directly, PSNR of those from k-space."""
    return "mae" if operator in ("pixels", "columns") else "psnr"


def ranked(found: Mapping[str, xr.Dataset], operator: str) -> list[str]:
    """The methods, best mean of the main metric first."""
    metric = main_metric(operator)
    sign = 1 if metric == "mae" else -1
    return sorted(found, key=lambda m: sign * float(found[m][metric].mean()))


def most_telling(found: Mapping[str, xr.Dataset], operator: str, most: int) -> list[str]:
    """ADS and its most telling rivals: the strongest with the same sampler, common practice, then the strongest left.

    Other forms of ADS are left out, and another reconstruction takes one place at most.
    """
    first = "ads" if "ads" in found else next(iter(found))
    rivals = [m for m in ranked(found, operator) if m != first and not NAMES[m].startswith("ADS")]
    sampled = [m for m in rivals if m not in RECONSTRUCTIONS]
    others = [m for m in rivals if m in RECONSTRUCTIONS]
    practice = [m for m in ("fastmri", "vds", "random") if m in sampled]
    queue = [*sampled[:1], *practice[:1], *others[:1], *sampled]
    return [first, *dict.fromkeys(queue)][:most]

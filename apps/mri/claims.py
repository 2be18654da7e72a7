"""The claims of the MRI studies: what is compared with what, and the interval that decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from core.stats import Interval, paired_difference
from core.study import Claim

ClaimId = Literal[
    "ads_beats_random_pixels",
    "ads_beats_data_variance_pixels",
    "ads_beats_fastmri_lines",
    "ads_beats_vds_lines_ssim",
    "ads_beats_every_fixed_mask_adaptivity",
    "ads_gains_published_ssim",
    "ads_reaches_published_ssim",
]
QUICK: tuple[ClaimId, ...] = get_args(ClaimId)[:5]
LEVEL = 0.98
TEST = "paired bootstrap over subjects, 98 % interval (one-sided 0.01), 10 000 resamples"
PUBLISHED_SSIM = 0.9126
"""SSIM of ADS on fastMRI's knee slices at fourfold acceleration (Nolan et al. 2025; authors' project page)."""
_FIXED = (
    "random", "uniform", "fastmri", "vds", "lowpass", "data_variance", "data_variance_top", "greedy_fixed",
)  # fmt: skip

Metrics = Mapping[str, np.ndarray]
"""A metric's name and its values (n,) of the subjects, in the same order for every method."""


@dataclass(frozen=True)
class Evidence:
    """What was measured: metrics of scenario and method, and why a scenario is absent.

    Attributes:
        metrics: keyed by (scenario, method).
        absent: reasons, keyed by scenario.
        subjects: number of the first test image, and how many, keyed by scenario.
    """

    metrics: Mapping[tuple[str, str], Metrics]
    absent: Mapping[str, str]
    subjects: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def gain(self, scenario: str, rival: str, metric: str) -> np.ndarray:
        """By how much ADS is better than the rival, subject by subject (n,).

        Raises:
            KeyError: the study does not have one of them.
        """
        ours, theirs = self.metrics[scenario, "ads"][metric], self.metrics[scenario, rival][metric]
        return theirs - ours if metric in ("mae", "nmse") else ours - theirs

    def scenarios(self, prefix: str) -> list[str]:
        """The scenarios whose name begins so.

        Raises:
            KeyError: there is none.
        """
        found = list(dict.fromkeys(s for s, _ in self.metrics if s.startswith(prefix)))
        if not found:
            raise KeyError(prefix)
        return found


def decide(evidence: Evidence, claims: tuple[ClaimId, ...]) -> list[Claim]:
    """The claims, each decided or with the reason why it is not."""
    decided = []
    for name in claims:
        statement, compare = _CLAIMS[name]
        try:
            intervals = compare(evidence)
        except KeyError as error:
            decided.append(Claim(name, statement, None, _reason(evidence, str(error.args[0])), test=TEST))
            continue
        worst = min(intervals, key=lambda pair: pair[1].low)
        label, interval = worst
        reason = label if len(intervals) == 1 else f"least certain of {len(intervals)} comparisons: {label}"
        decided.append(
            Claim(
                name,
                statement,
                interval.low > 0,
                reason,
                interval.mean,
                interval.low,
                interval.high,
                interval.n,
                interval.p,
                TEST,
            )
        )
    return decided


def _reason(evidence: Evidence, missing: str) -> str:
    reasons = [why for scenario, why in evidence.absent.items() if scenario in missing or missing in scenario]
    return reasons[0] if reasons else f"the study does not have {missing}"


def _difference(values: np.ndarray, other: np.ndarray | float = 0.0) -> Interval:
    return paired_difference(values, np.broadcast_to(other, values.shape), level=LEVEL)


def _random(evidence: Evidence) -> list[tuple[str, Interval]]:
    return [
        (f"MAE, {scenario}", _difference(evidence.gain(scenario, "random", "mae")))
        for scenario in evidence.scenarios("pixels")
    ]


def _data_variance(evidence: Evidence) -> list[tuple[str, Interval]]:
    scenarios = evidence.scenarios("pixels")
    if len({(len(evidence.metrics[s, "ads"]["mae"]), evidence.subjects.get(s)) for s in scenarios}) > 1:
        raise KeyError("the same subjects in every scenario of pixels")
    gains = np.mean([evidence.gain(s, "data_variance", "mae") for s in scenarios], axis=0)
    return [(f"MAE, mean of {len(scenarios)} budgets for each image", _difference(gains))]


def _fastmri(evidence: Evidence) -> list[tuple[str, Interval]]:
    return [
        (f"{metric.upper()} against {rival}", _difference(evidence.gain("lines_atlas", rival, metric)))
        for rival in ("random", "uniform", "fastmri", *_if_there(evidence, "lines_atlas", "equispaced"))
        for metric in ("psnr", "ssim")
    ]


def _if_there(evidence: Evidence, scenario: str, *rules: str) -> list[str]:
    """Further fixed masks, which a study may or may not compare."""
    return [rule for rule in rules if (scenario, rule) in evidence.metrics]


def _vds(evidence: Evidence) -> list[tuple[str, Interval]]:
    return [("SSIM against vds", _difference(evidence.gain("lines_atlas", "vds", "ssim")))]


def _adaptivity(evidence: Evidence) -> list[tuple[str, Interval]]:
    return [
        (f"PSNR against {rival}", _difference(evidence.gain("lines_adaptivity", rival, "psnr")))
        for rival in (*_FIXED, *_if_there(evidence, "lines_adaptivity", "equispaced", "vds_gaussian"))
    ]


def _published_gain(evidence: Evidence) -> list[tuple[str, Interval]]:
    return [("SSIM against fastmri, less 0.008", _difference(evidence.gain("lines_fastmri", "fastmri", "ssim"), 0.008))]


def _published_ssim(evidence: Evidence) -> list[tuple[str, Interval]]:
    ours = evidence.metrics["lines_fastmri", "ads"]["ssim"]
    return [
        ("SSIM less 0.8976", _difference(ours, PUBLISHED_SSIM - 0.015)),
        ("0.9276 less SSIM", _difference(-ours, -(PUBLISHED_SSIM + 0.015))),
    ]


_CLAIMS: dict[ClaimId, tuple[str, Callable[[Evidence], list[tuple[str, Interval]]]]] = {
    "ads_beats_random_pixels": ("On digits, ADS has a smaller MAE than random pixels at every budget.", _random),
    "ads_beats_data_variance_pixels": (
        "On digits, ADS has a smaller MAE than pixels drawn by data variance, in the mean over the budgets.",
        _data_variance,
    ),
    "ads_beats_fastmri_lines": (
        "On atlas slices, ADS has a higher PSNR and SSIM than random, equispaced and fastMRI masks.",
        _fastmri,
    ),
    "ads_beats_vds_lines_ssim": ("On atlas slices, ADS has a higher SSIM than variable-density masks.", _vds),
    "ads_beats_every_fixed_mask_adaptivity": (
        "Where subjects differ in k-space, ADS has a higher PSNR than every fixed mask, the searched one included.",
        _adaptivity,
    ),
    "ads_gains_published_ssim": (
        "On fastMRI knees at 4x, ADS gains at least 0.008 SSIM on fixed-mask posterior sampling (published: 0.0113).",
        _published_gain,
    ),
    "ads_reaches_published_ssim": (
        "On fastMRI knees at 4x, the SSIM of ADS is within 0.015 of the published 0.9126.",
        _published_ssim,
    ),
}

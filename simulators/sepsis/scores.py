"""The two bedside scores of a cohort, from values in units: organ failure (SOFA) and inflammation (SIRS).

Vincent et al. (1996), Intensive Care Medicine 22, 707-710; Bone et al. (1992), Chest 101, 1644-1655. Urine is
counted in 4 h as in Komorowski et al. (2018): 84 and 34 mL are a sixth of the daily 500 and 200.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

SOFA_MAXIMUM = 24
SIRS_MAXIMUM = 4


def sofa(
    pf: Tensor,
    platelets: Tensor,
    bilirubin: Tensor,
    mean_bp: Tensor,
    vasopressor_dose: Tensor,
    gcs: Tensor,
    creatinine: Tensor,
    urine_4h: Tensor,
) -> Tensor:
    """Sequential organ failure assessment, the sum of six organs from 0 to 4 each.

    All arguments have one shape, which is that of the result; none may be NaN.

    Args:
        pf: PaO2 / FiO2, mmHg; 1 to 4 below 400, 300, 200, 100.
        platelets: 10^9/L; below 150, 100, 50, 20.
        bilirubin: mg/dL; from 1.2, 2, 6, 12.
        mean_bp: mean arterial pressure, mmHg; 1 below 70.
        vasopressor_dose: micrograms of noradrenaline equivalent per kg and minute; 3 above 0, 4 above 0.1.
        gcs: Glasgow coma scale; below 15, 13, 10, 6.
        creatinine: mg/dL; from 1.2, 2, 3.5, 5.
        urine_4h: mL in 4 h; 3 below 84, 4 below 34, beside creatinine.

    Returns:
        0 to 24, whole numbers in the dtype of ``pf``.
    """
    circulation = torch.maximum(3 * _above(vasopressor_dose, 0) + _above(vasopressor_dose, 0.1), _below(mean_bp, 70))
    anuric = 3 * _below(urine_4h, 84) + _below(urine_4h, 34)
    organs = (
        _below(pf, 400, 300, 200, 100),
        _below(platelets, 150, 100, 50, 20),
        _reached(bilirubin, 1.2, 2, 6, 12),
        circulation,
        _below(gcs, 15, 13, 10, 6),
        torch.maximum(_reached(creatinine, 1.2, 2, 3.5, 5), anuric),
    )
    return _count(organs).to(pf.dtype)


def sirs(temperature: Tensor, heart_rate: Tensor, respiratory_rate: Tensor, paco2: Tensor, wbc: Tensor) -> Tensor:
    """Systemic inflammatory response syndrome: how many of its four criteria are met.

    All arguments have one shape, which is that of the result; none may be NaN.

    Args:
        temperature: degrees C; from 38 or up to 36.
        heart_rate: 1/min; above 90.
        respiratory_rate: 1/min; from 20, or ``paco2`` up to 32.
        paco2: arterial carbon dioxide pressure, mmHg.
        wbc: white cells, 10^9/L; from 12 or below 4.

    Returns:
        0 to 4, whole numbers in the dtype of ``temperature``.
    """
    criteria = (
        (temperature >= 38) | (temperature <= 36),
        heart_rate > 90,
        (respiratory_rate >= 20) | (paco2 <= 32),
        (wbc >= 12) | (wbc < 4),
    )
    return _count(criteria).to(temperature.dtype)


def _below(values: Tensor, *bounds: float) -> Tensor:
    """Below how many of the bounds; int8, whose sums cost half of those of int64."""
    return _count(values < bound for bound in bounds)


def _above(values: Tensor, *bounds: float) -> Tensor:
    return _count(values > bound for bound in bounds)


def _reached(values: Tensor, *bounds: float) -> Tensor:
    return _count(values >= bound for bound in bounds)


def _count(criteria: Iterable[Tensor]) -> Tensor:
    first, *others = criteria
    count = first.to(torch.int8)
    for criterion in others:
        count += criterion
    return count

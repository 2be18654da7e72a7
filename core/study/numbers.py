"""How numbers are printed: with as many digits as their interval bears."""

from __future__ import annotations

import math


def decimals(low: float | None, high: float | None) -> int | None:
    """Decimals at which half the width of the interval has two significant digits; None without an interval."""
    if low is None or high is None or not math.isfinite(high - low) or high <= low:
        return None
    return max(0, 1 - math.floor(math.log10((high - low) / 2)))


def number(value: float | None, digits: int | None = None) -> str:
    """A number with ``digits`` decimals (four significant ones by default); a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if digits is None:
        digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
        digits = 0 if float(value).is_integer() else digits
    if digits > 6 or abs(value) >= 1e9:
        return f"{value:.3g}"
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def interval(low: float | None, high: float | None) -> str:
    """``[low, high]``; empty where there is none."""
    if low is None or high is None:
        return ""
    digits = decimals(low, high)
    return f"[{number(low, digits)}, {number(high, digits)}]"


def estimate(value: float | None, low: float | None, high: float | None) -> str:
    """``value [low, high]``, rounded to what the interval bears."""
    return f"{number(value, decimals(low, high))} {interval(low, high)}".strip()


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

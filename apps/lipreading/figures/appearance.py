"""Colours that all figures share."""

from __future__ import annotations

from collections.abc import Sequence

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b", "#000000", "#a0a000")
"""Told apart with any colour vision (Okabe and Ito 2008), and three more."""
GREY = "#666666"


def colours(methods: Sequence[str]) -> dict[str, str]:
    """Of each method."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(methods)}

"""Figures (being drawn)."""
from __future__ import annotations
from core.study import Figure
def of_scenario(name, operator, found) -> list[Figure]:  # type: ignore
    return []
def of_budgets(comparisons, found) -> list[Figure]:  # type: ignore
    return []

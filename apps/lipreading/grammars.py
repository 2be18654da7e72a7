"""The grammars of sentences by the names that configs and files use."""

from __future__ import annotations

from simulators.lips.grammar import GRID, MINI, Grammar

GRAMMARS: dict[str, Grammar] = {"grid": GRID, "mini": MINI}

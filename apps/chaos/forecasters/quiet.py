"""Libraries that warn and log about every series, kept silent."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without Python's and numpy's warnings, and without the messages of some loggers.

    Args:
        loggers: their names; import what sets their level before.
    """
    held = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in held]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            for logger in held:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(held, levels, strict=True):
                logger.setLevel(level)

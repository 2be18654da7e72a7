"""The layout of the AI Clinician's ``MIMICtable`` (Komorowski et al. 2018, Nature Medicine 24, 1716-1720).

A row a block of 4 h, without prefixes, in units: ``bloc`` counts from 1 within a stay (``icustayid``), doses are
``input_4hourly`` and ``max_dose_vaso``, and every row says who died.
"""

from __future__ import annotations

from core.errors import InputError
from simulators.sepsis.readers.column_map import MORTALITIES
from simulators.sepsis.readers.records import Layout, mortality


def ai_clinician(died: str = MORTALITIES[0]) -> Layout:
    """The layout, with the outcome that a column of mortality gives.

    Raises:
        InputError: an unknown column.
    """
    if died not in MORTALITIES:
        raise InputError(f"mortality = {died}: must be one of {', '.join(MORTALITIES)}")
    return Layout("ai_clinician", trajectory="icustayid", step="bloc", first=1, outcome=died, outcomes=mortality(died))

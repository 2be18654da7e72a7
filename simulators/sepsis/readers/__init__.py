"""Readers of cohorts that users extracted from MIMIC."""

from simulators.sepsis.readers.column_map import MORTALITIES, read_column_map
from simulators.sepsis.readers.doses import DoseBins
from simulators.sepsis.readers.reading import SPLIT_SEED, read_cohort

__all__ = ["MORTALITIES", "SPLIT_SEED", "DoseBins", "read_cohort", "read_column_map"]

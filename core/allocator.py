"""The C library's heap, told to keep what is freed."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of glibc's ``malloc.h``."""
KEPT = 10**9
"""Bytes; larger blocks still go back to the kernel."""


def keep_freed_memory() -> bool:
    """Let this process keep freed blocks of up to a gigabyte for its next allocation.

    By default glibc gives large blocks back to the kernel when they are freed, so that the temporary arrays of every
    transform are mapped and cleared page by page each time, which can take longer than the transform. The price is that
    a process stays as large as it once was. The effect is that of the environment variables MALLOC_TRIM_THRESHOLD_ and
    MALLOC_MMAP_THRESHOLD_, which would have to be set before the process starts.

    Returns:
        Whether the C library took the setting; without glibc nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(threshold, KEPT) == 1 for threshold in (TRIM_THRESHOLD, MMAP_THRESHOLD))

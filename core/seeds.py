"""Disjoint streams of random numbers from one seed of a study."""

from __future__ import annotations

import hashlib


def stream(seed: int, purpose: str) -> int:
    """A seed for one purpose (``tuning``, ``training``, ``evaluation``): different purposes share no stream.

    Args:
        seed: the study's or the replicate's seed.
        purpose: any text; equal text and seed give the same stream.
    """
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:4], "big")

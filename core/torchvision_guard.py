"""A torchvision that cannot load is treated as absent.

diffusers and transformers import torchvision when they merely find it. A torchvision built for CUDA fails beside a
CPU-only torch and would take them down with it, though nothing here needs it.
"""

from __future__ import annotations

import importlib
import sys


def shield() -> None:
    """Call before every import of diffusers, transformers or fastmri; a torchvision that loads stays as it is."""
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except Exception:  # whatever a broken installation raises
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        # An entry of None makes importlib's look-ups answer "no such module".
        sys.modules["torchvision"] = None  # type: ignore[assignment]

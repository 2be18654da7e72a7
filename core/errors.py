"""The two errors that a user can cause; the command line prints each in one line and exits with code 2."""

from __future__ import annotations

import importlib
from types import ModuleType


class InputError(ValueError):
    """Input that is refused at the edge.

    The message is one line that names what was given (file, row, field or key), the value, and what is allowed.
    """


class MissingExtra(ImportError):
    """An optional dependency that is not installed; the message says which extra brings it."""


def require(module: str, extra: str) -> ModuleType:
    """Import ``module`` or say which extra brings it.

    Raises:
        MissingExtra: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise MissingExtra(f'{error.name} is not installed: pip install "szilard[{extra}]"') from error

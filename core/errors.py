"""The errors that a user can cause or must mend; the command line prints each in one line and exits with code 2."""

from __future__ import annotations

import importlib
from types import ModuleType


class InputError(ValueError):
    """Input that is refused at the edge.

    The message is one line that names what was given (file, row, field or key), the value, and what is allowed.
    """


class NotWritten(OSError):
    """A file that could not be written: a folder that takes none, or a full disk.

    Its ``filename`` is the file that was meant. No ``InputError``, of which callers conclude that nothing was begun and
    remove what is there: a disk that is full after hours must leave the checkpoint.
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

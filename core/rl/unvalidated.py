"""Distributions without checks of their arguments, which cost time and make the host wait for the device."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributions import Distribution


@contextmanager
def unvalidated() -> Iterator[None]:
    """Switch the argument checks of ``torch.distributions`` off; also usable as a decorator.

    The learners look for numbers that are not finite themselves, once an update.
    """
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)

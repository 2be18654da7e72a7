"""What every method is: settings from which a policy is made in a folder and opened from it again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from apps.crs.policies import Policy
from apps.crs.problem import NAME, Opened
from core.study import Config
from simulators.crs import Conversation


@dataclass(frozen=True)
class Workbench:
    """With what a method is made.

    Attributes:
        opened: the problem.
        directory: for what is made.
        checkpoint: folder that survives a kill.
        progress: told the share done and a message.
    """

    opened: Opened
    directory: Path
    checkpoint: Path
    progress: Callable[[float, str], None]

    @property
    def device(self) -> str:
        """Where tensors are."""
        return str(self.opened.world.device)


class Method(Config):
    """A policy, and how it comes about."""

    name: str = Field(pattern=NAME)
    """Name in the report."""
    seeds: int | None = Field(default=None, ge=1)
    """On how many of the study's seeds it is made; on all if not given."""

    learns: ClassVar[bool] = False
    """Whether seeds give different policies."""

    def make(self, bench: Workbench, seed: int) -> None:
        """Tune or train it, and write what ``open`` needs."""

    @abstractmethod
    def open(self, world: Conversation, directory: Path, seed: int) -> Policy:
        """The policy in ``world``, from what ``make`` wrote."""

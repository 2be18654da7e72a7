"""Embeddings of users, items and attributes, and the file that keeps them beside what they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from torch import Tensor

from core import files
from core.errors import InputError
from core.rl.checkpoint import read_tensors
from simulators.crs.catalogue import Catalogue

TENSORS, RECORD = "embeddings.safetensors", "embeddings.json"


@dataclass(frozen=True)
class Embeddings:
    """Points of one space, pure numbers.

    Attributes:
        user: ``(U, d)`` float32.
        item: ``(V, d)``.
        attribute: ``(P, d)``.
    """

    user: Tensor
    item: Tensor
    attribute: Tensor

    @property
    def dim(self) -> int:
        """Dimension d of the space."""
        return self.item.shape[1]

    def to(self, device: torch.device | str) -> Embeddings:
        """The same on a device."""
        return Embeddings(self.user.to(device), self.item.to(device), self.attribute.to(device))

    def check(self, catalogue: Catalogue, source: str = "embeddings") -> None:
        """Refuse embeddings that are not those of a catalogue.

        Raises:
            InputError: a shape that does not fit, or a number that is not finite.
        """
        counts = {"user": catalogue.n_users, "item": catalogue.n_items, "attribute": catalogue.n_attributes}
        for name, count in counts.items():
            found = getattr(self, name)
            if found.dim() != 2 or found.shape != (count, self.dim):
                raise InputError(f"{source}: {name}: shape {tuple(found.shape)}; must be {(count, self.dim)}")
            if not bool(torch.isfinite(found).all()):
                raise InputError(f"{source}: {name}: holds a number that is not finite")

    def save(self, folder: Path, catalogue: Catalogue, settings: Mapping[str, Any]) -> None:
        """Write the tensors, and beside them the settings and the hash of the catalogue."""
        folder.mkdir(parents=True, exist_ok=True)
        held = {name: getattr(self, name).detach().cpu().contiguous() for name in ("user", "item", "attribute")}
        files.write(folder / TENSORS, safetensors.torch.save(held))
        files.write_json(folder / RECORD, {"catalogue": catalogue.hash, "settings": dict(settings)})

    @classmethod
    def load(cls, folder: Path, catalogue: Catalogue) -> Self:
        """What ``save`` wrote.

        Raises:
            InputError: a file is absent or damaged, or the embeddings are those of another catalogue.
        """
        record = files.read_json(folder / RECORD, ("catalogue", "settings"))
        if record["catalogue"] != catalogue.hash:
            raise InputError(
                f"{folder / RECORD}: catalogue {record['catalogue']}; must be {catalogue.hash}, the hash of "
                f"{catalogue.name}"
            )
        tensors, _ = read_tensors(folder / TENSORS)
        absent = {"user", "item", "attribute"} - set(tensors)
        if absent:
            raise InputError(f"{folder / TENSORS}: {', '.join(sorted(absent))}: absent")
        found = cls(tensors["user"].float(), tensors["item"].float(), tensors["attribute"].float())
        found.check(catalogue, str(folder / TENSORS))
        return found

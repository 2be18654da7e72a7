"""The learner's scaling: finite boxes are seen as [-1, 1] in float32, every other space as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from core.errors import InputError
from core.simulation.simulator import Observation


def torch_dtype(space: spaces.Space[Any]) -> torch.dtype:
    """The tensor type that corresponds to the space's NumPy type."""
    return torch.from_numpy(np.empty(0, space.dtype)).dtype


class Scaling:
    """The map between a space in the domain's units and the space that a learner sees.

    With ``scaled`` a Box (alone or inside a Dict) becomes ``view_range`` in float32; without, it keeps its units and
    type. Both directions clip, so what leaves is always inside its space. Discrete, MultiDiscrete and MultiBinary
    spaces pass through in their own type.

    Args:
        space: the world's space.
        scaled: see above.
        view_range: what the bounds of a Box become.
        device: of the tensors to map.
        name: of the space in error messages.

    Attributes:
        domain: the world's space.
        view: the learner's space.

    Raises:
        InputError: a Box has an infinite bound, or the space is of a kind that learners cannot use.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        *,
        scaled: bool = True,
        view_range: tuple[float, float] = (-1.0, 1.0),
        device: torch.device | str = "cpu",
        name: str = "observation_space",
    ) -> None:
        self.domain = space
        self.view: spaces.Space[Any] = space
        self.scaled, self.view_range = scaled, view_range
        self._parts: dict[str, Scaling] = {}
        self._box = isinstance(space, spaces.Box)
        if isinstance(space, spaces.Dict):
            self._parts = {
                key: Scaling(part, scaled=scaled, view_range=view_range, device=device, name=f"{name}[{key!r}]")
                for key, part in space.items()
            }
            self.view = spaces.Dict({key: part.view for key, part in self._parts.items()})
        elif isinstance(space, spaces.Box):
            self._set_bounds(space, device, name)
        elif not isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            raise InputError(
                f"{name}: {type(space).__name__}; allowed: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them"
            )
        if not self._parts:
            self._domain_dtype, self._view_dtype = torch_dtype(space), torch_dtype(self.view)

    def _set_bounds(self, space: spaces.Box, device: torch.device | str, name: str) -> None:
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise InputError(f"{name}: a Box with an infinite bound; give finite bounds in the domain's units")
        self._low = torch.as_tensor(space.low, device=device)
        self._high = torch.as_tensor(space.high, device=device)
        if self.scaled:
            first, last = self.view_range
            self.view = spaces.Box(first, last, space.shape, np.float32)
            width = torch.as_tensor(space.high.astype(np.float64) - space.low, device=device)
            width = torch.where(width > 0, width, 1.0)
            dtype = self._low.dtype if self._low.is_floating_point() else torch.float32
            self._inverse_slope = (width / (last - first)).to(dtype)
            self._slope = ((last - first) / width).to(dtype)
            self._offset = (first - self._low * (last - first) / width).to(dtype)

    def to_view(self, value: Observation) -> Observation:
        """The learner's numbers for ``value`` in the domain's units, row-major; leading batch axes are free."""
        if isinstance(value, dict):
            return {key: part.to_view(value[key]) for key, part in self._parts.items()}  # type: ignore[misc]
        if not self._box:
            return value.to(self._view_dtype)
        if self.scaled:
            value = torch.clamp(value * self._slope + self._offset, *self.view_range)
        else:
            value = torch.clamp(value, self._low, self._high)
        # A matrix product may round differently for another memory layout, and a NumPy copy is always row-major.
        return value.to(self._view_dtype).contiguous()

    def to_domain(self, value: Tensor) -> Tensor:
        """The domain's units for the learner's ``value``, in the space's own type."""
        if not self._box:
            return value.to(self._domain_dtype)
        if self.scaled:
            value = (value.to(self._slope.dtype) - self.view_range[0]) * self._inverse_slope + self._low
        return torch.clamp(value.to(self._domain_dtype), self._low, self._high)

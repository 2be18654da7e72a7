"""Networks made for one measurement: drawn from a seed, saved as weights beside their settings, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import nn

from core import files
from core.errors import InputError
from core.rl.checkpoint import read_tensors
from core.seeds import stream
from core.study import Config
from simulators.mri.operators import Operator


class OperatorNetwork(nn.Module):
    """A network that is built from an operator and its settings.

    Args:
        operator: the measurement it is for.
        settings: of the class ``settings_class``.
    """

    settings_class: ClassVar[type[Config]]

    def __init__(self, operator: Operator, settings: Any) -> None:
        super().__init__()
        self.operator, self.settings = operator, settings

    @classmethod
    def drawn(cls, operator: Operator, settings: Config, seed: int) -> Self:
        """A network whose first weights depend on ``seed`` alone; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(seed, f"first weights {cls.__name__}"))
            return cls(operator, settings)

    def save(self, path: Path) -> None:
        """Write ``<path>.safetensors`` and ``<path>.json`` (class, settings, image and number of actions)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().clone().contiguous() for name, value in self.state_dict().items()}
        files.write(path.with_name(f"{path.name}.safetensors"), safetensors.torch.save(weights))
        record = {"class": type(self).__name__, **_made_for(self.operator), "settings": self.settings.model_dump()}
        files.write_json(path.with_name(f"{path.name}.json"), record)

    @classmethod
    def load(cls, path: Path, operator: Operator) -> Self:
        """The network in ``<path>.safetensors`` and ``<path>.json``, on the CPU.

        Raises:
            InputError: missing or damaged files, another class of network, or one for other images or actions.
        """
        source = path.with_name(f"{path.name}.json")
        record = files.read_json(source, ("class", "shape", "actions", "settings"))
        for key, expected in {"class": cls.__name__, **_made_for(operator)}.items():
            if record[key] != expected:
                raise InputError(f"{source}: {key} is {record[key]}; needed here: {expected}")
        try:
            network = cls(operator, cls.settings_class.model_validate(record["settings"]))
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            raise InputError(f"{source}: settings.{field}: {problem['msg'].lower()}") from error
        weights = path.with_name(f"{path.name}.safetensors")
        try:
            network.load_state_dict(read_tensors(weights)[0])
        except RuntimeError as error:
            raise InputError(f"{weights}: {' '.join(str(error).split())}") from error
        return network.eval()


def _made_for(operator: Operator) -> dict[str, Any]:
    return {"shape": list(operator.shape), "actions": operator.actions}

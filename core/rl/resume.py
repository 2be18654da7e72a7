"""Training that goes on after a kill as if nothing had happened: one atomic file with everything that it depends on."""

from __future__ import annotations

import json
import math
import random
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from core import files
from core.errors import InputError
from core.rl import checkpoint
from core.simulation.sb3_vec_env import SB3VecEnv

if TYPE_CHECKING:
    from core.rl.algorithm import DeviceAlgorithm


_MEMORY = "replay."


class ResumeCallback(BaseCallback):
    """Saves the exact state between two iterations, at most once in ``every_seconds``, in a tenth of the time at most.

    Args:
        path: the file; replaced atomically.
        every_seconds: pause between two saves; 0 saves before every iteration, however long it takes.
    """

    def __init__(self, path: str | Path, every_seconds: float = 60.0) -> None:
        super().__init__()
        self.path = Path(path)
        self.every_seconds = every_seconds
        self._took = 0.0

    def _on_training_start(self) -> None:
        # Where nothing was saved yet, the first roll-out is preceded by a save: there is always a state to go back to.
        self._saved_at = time.monotonic() if self.path.exists() else -math.inf

    def _on_rollout_start(self) -> None:
        started = time.monotonic()
        # A state with a large memory takes seconds to write: nine tenths of the time are for the training.
        pause = max(self.every_seconds, 9 * self._took) if self.every_seconds else 0.0
        if started - self._saved_at >= pause:
            self.model.save_state(self.path)  # type: ignore[attr-defined]
            self._saved_at = time.monotonic()
            self._took = self._saved_at - started

    def _on_step(self) -> bool:
        return True


def save_state(model: DeviceAlgorithm, path: str | Path) -> None:
    """Write the exact state; see ``DeviceAlgorithm.save_state``."""
    tensors = checkpoint.parameters(model)
    tensors |= {f"env.{name}": value for name, value in _env(model).episodes.state_tensors().items()}
    tensors |= _torch_generators(model.device)
    tensors |= {f"{_MEMORY}{name}": value for name, value in model.memory_tensors().items()}
    for name in ("_last_obs", "_last_episode_starts"):
        value = getattr(model, name)
        parts = {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        tensors |= {key: torch.as_tensor(part) for key, part in parts.items() if part is not None}
    record = {
        **_identity(model),
        "attributes": {name: getattr(model, name) for name in model.resumed_attributes},
        "episodes": list(model.ep_info_buffer or ()),
        "successes": list(model.ep_success_buffer or ()),
        "python_generator": random.getstate(),
        "numpy_generator": _numpy_generator(),
    }
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write(target, safetensors.torch.save(tensors, {"state": json.dumps(record)}))


def restore_state(model: DeviceAlgorithm, path: str | Path) -> None:
    """Read the exact state; see ``DeviceAlgorithm.restore_state``."""
    tensors, metadata = checkpoint.read_tensors(Path(path))
    if "state" not in metadata:
        raise InputError(f"{path}: holds weights only; allowed: a file written by save_state")
    record = json.loads(metadata["state"])
    for name, value in _identity(model).items():
        if record[name] != value:
            raise InputError(f"{path}: {name} {record[name]!r}; allowed: {value!r}, as the model has")
    checkpoint.load_parameters(model, tensors, str(path))
    world = {name.removeprefix("env."): x for name, x in tensors.items() if name.startswith("env.")}
    _env(model).episodes.load_state_tensors(world)
    for name in ("_last_obs", "_last_episode_starts"):
        parts = {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")}
        held = {key: part.to(model.device) for key, part in parts.items()} or None
        setattr(model, name, tensors[name].to(model.device) if name in tensors else held)
    memory = {name.removeprefix(_MEMORY): x for name, x in tensors.items() if name.startswith(_MEMORY)}
    model.load_memory_tensors(memory)
    for name in model.resumed_attributes:
        setattr(model, name, record["attributes"][name])
    model.ep_info_buffer = deque(record["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(record["successes"], maxlen=model._stats_window_size)
    version, internal, gauss = record["python_generator"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(record["numpy_generator"]))  # noqa: NPY002 (SB3 and gymnasium draw from it)
    torch.set_rng_state(tensors["torch_cpu"])
    if "torch_cuda" in tensors and model.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["torch_cuda"], model.device)


def _env(model: DeviceAlgorithm) -> SB3VecEnv:
    if not isinstance(model.env, SB3VecEnv):
        raise InputError(f"env: {type(model.env).__name__}; allowed: SB3VecEnv, whose state can be kept exactly")
    return model.env


def _identity(model: DeviceAlgorithm) -> dict[str, Any]:
    """What must be equal for a state to be that of this model (shapes are checked where they are loaded)."""
    return {"algorithm": type(model).__name__, "n_envs": model.n_envs}


def _torch_generators(device: torch.device) -> dict[str, Tensor]:
    generators = {"torch_cpu": torch.get_rng_state()}
    if device.type == "cuda":
        generators["torch_cuda"] = torch.cuda.get_rng_state(device)
    return generators


def _numpy_generator() -> list[Any]:
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return [name, np.asarray(keys).tolist(), *rest]

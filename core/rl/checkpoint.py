"""Trained models as files: weights in safetensors beside a JSON of all that is needed to rebuild the model."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule, check_for_correct_spaces
from torch import Tensor

from core import files
from core.errors import InputError

if TYPE_CHECKING:
    from core.rl.algorithm import DeviceAlgorithm

REGISTERED: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(torch.nn.Tanh, torch.nn.ReLU, torch.nn.ELU, torch.nn.GELU, torch.nn.SiLU, torch.nn.LeakyReLU),
        *(torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD),
        *(FlattenExtractor, NatureCNN, CombinedExtractor),
    )
}
"""Classes that may stand in ``policy_kwargs`` of a saved model; add your own before saving and loading."""

RECORD = ("algorithm", "policy", "observation_space", "action_space", "n_envs", "arguments", "counters")


def save(model: DeviceAlgorithm, path: str | Path) -> None:
    """Write ``<path>.safetensors`` and ``<path>.json``, each atomically; see ``DeviceAlgorithm.save``."""
    stem = _stem(path)
    record = {
        "algorithm": type(model).__name__,
        "policy": _policy_name(model),
        "observation_space": _space_to_json(model.observation_space),
        "action_space": _space_to_json(model.action_space),
        "n_envs": model.n_envs,
        "arguments": {name: _to_json(name, _argument(model, name)) for name in model.saved_arguments},
        "counters": {name: getattr(model, name) for name in model.resumed_attributes},
    }
    text = json.dumps(record, indent=2)
    Path(stem).parent.mkdir(parents=True, exist_ok=True)
    files.write(Path(f"{stem}.safetensors"), safetensors.torch.save(parameters(model)))
    files.write(Path(f"{stem}.json"), text + "\n")


def load(cls: type[Any], path: str | Path, env: Any, device: torch.device | str, replaced: dict[str, Any]) -> Any:
    """Rebuild a model; see ``DeviceAlgorithm.load``."""
    stem = _stem(path)
    record = files.read_json(Path(f"{stem}.json"), RECORD)
    kind = _algorithm(cls, record["algorithm"], f"{stem}.json")
    arguments = {name: _from_json(record["arguments"][name]) for name in kind.saved_arguments} | replaced
    # The saved seed is kept but not applied: loading a model must not reset the generators of the process.
    seed = arguments.pop("seed")
    model = kind.unbuilt(record["policy"], env, device, arguments)
    observation_space = _space_from_json(record["observation_space"])
    action_space = _space_from_json(record["action_space"])
    if env is None:
        model.observation_space, model.action_space = observation_space, action_space
        model.n_envs = record["n_envs"]
    else:
        try:
            check_for_correct_spaces(model.env, observation_space, action_space)
        except ValueError as error:
            raise InputError(f"{stem}.json: {error}") from error
    model._setup_model()
    model.seed = seed
    if "seed" in replaced:
        model.set_random_seed(seed)
    for name in kind.resumed_attributes:
        setattr(model, name, record["counters"][name])
    load_parameters(model, read_tensors(Path(f"{stem}.safetensors"))[0], f"{stem}.safetensors")
    return model


def parameters(model: DeviceAlgorithm) -> dict[str, Tensor]:
    """Weights and optimiser of the policy by dotted name, each in memory of its own on the CPU."""
    policy: Any = model.policy
    named = {f"policy.{name}": value for name, value in policy.state_dict().items()}
    named |= optimizer_tensors(policy.optimizer)
    return {name: value.detach().cpu().clone().contiguous() for name, value in named.items()}


def load_parameters(model: DeviceAlgorithm, tensors: dict[str, Tensor], source: str) -> None:
    """The inverse of ``parameters``; further tensors are ignored.

    Raises:
        InputError: the tensors are those of another network; the message names ``source``.
    """
    policy: Any = model.policy
    weights = {name.removeprefix("policy."): x for name, x in tensors.items() if name.startswith("policy.")}
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from error
    load_optimizer(policy.optimizer, tensors)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers of each parameter, by dotted names under ``optimizer``."""
    states = optimizer.state_dict()["state"].items()
    return {f"optimizer.{i}.{name}": x for i, state in states for name, x in state.items() if x is not None}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of ``optimizer_tensors``; further tensors are ignored."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            # Copied, because what stands in the file is not aligned: sums over it may come out differently in the last
            # bit, and complex numbers cannot be there at all.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except SafetensorError as error:
        raise InputError(f"{path}: not a complete safetensors file ({error})") from error


def _algorithm(cls: type[Any], name: str, source: str) -> type[Any]:
    """The class of that name: ``cls`` or one derived from it."""
    kinds = [cls]
    for kind in kinds:
        if kind.__name__ == name:
            return kind
        kinds += kind.__subclasses__()
    raise InputError(f"{source}: algorithm {name!r}; allowed: {cls.__name__} and its variants")


def _stem(path: str | Path) -> str:
    return str(path).removesuffix(".safetensors").removesuffix(".json")


def _policy_name(model: DeviceAlgorithm) -> str:
    for name, kind in model.policy_aliases.items():
        if kind is model.policy_class:
            return name
    raise InputError(
        f"policy: {model.policy_class.__name__}; allowed: {', '.join(model.policy_aliases)} (or save with format='sb3')"
    )


def _argument(model: DeviceAlgorithm, name: str) -> Any:
    return getattr(model, "_stats_window_size" if name == "stats_window_size" else name)


def _to_json(name: str, value: Any) -> Any:
    """An argument as JSON data: schedules by their numbers, classes by their registered name."""
    if isinstance(value, FloatSchedule):
        value = value.value_schedule
    if isinstance(value, ConstantSchedule):
        return value.val
    if isinstance(value, LinearSchedule):
        return {"linear": [value.start, value.end, value.end_fraction]}
    if isinstance(value, dict):
        return {key: _to_json(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_to_json(name, item) for item in value]
    if isinstance(value, type) and REGISTERED.get(value.__name__) is value:
        return {"registered": value.__name__}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(
        f"{name}: {value!r} cannot be saved as JSON; allowed: plain data, LinearSchedule, "
        f"classes in core.rl.checkpoint.REGISTERED (or format='sb3')"
    )


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"linear"}:
            return LinearSchedule(*value["linear"])
        if value.keys() == {"registered"}:
            if value["registered"] not in REGISTERED:
                raise InputError(f"{value['registered']}: add it to core.rl.checkpoint.REGISTERED before loading")
            return REGISTERED[value["registered"]]
        return {key: _from_json(item) for key, item in value.items()}
    return [_from_json(item) for item in value] if isinstance(value, list) else value


def _space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    if isinstance(space, spaces.Dict):
        return {"Dict": {key: _space_to_json(part) for key, part in space.items()}}
    if isinstance(space, spaces.Box):
        bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
        return {"Box": {**bounds, "shape": space.shape, "dtype": np.dtype(space.dtype).name}}
    if isinstance(space, spaces.Discrete):
        return {"Discrete": {"n": int(space.n), "start": int(space.start)}}
    if isinstance(space, spaces.MultiDiscrete):
        return {"MultiDiscrete": {"nvec": space.nvec.tolist()}}
    if isinstance(space, spaces.MultiBinary):
        return {"MultiBinary": {"n": space.shape}}
    raise InputError(f"space: {space}; allowed: Box, Discrete, MultiDiscrete, MultiBinary, Dict (or format='sb3')")


def _space_from_json(record: dict[str, Any]) -> spaces.Space[Any]:
    ((kind, fields),) = record.items()
    if kind == "Dict":
        return spaces.Dict({key: _space_from_json(part) for key, part in fields.items()})
    if kind == "Box":
        low, high = (np.array(fields[bound], fields["dtype"]) for bound in ("low", "high"))
        return spaces.Box(low, high, tuple(fields["shape"]), np.dtype(fields["dtype"]).type)
    if kind == "MultiBinary" and len(fields["n"]) == 1:
        return spaces.MultiBinary(fields["n"][0])
    return {"Discrete": spaces.Discrete, "MultiDiscrete": spaces.MultiDiscrete}[kind](**fields)

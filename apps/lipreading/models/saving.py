"""Trained models as one file each: weights, and in its header the JSON record of all that is needed to rebuild them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from apps.lipreading.models.building import build
from apps.lipreading.models.reader import LipReader
from apps.lipreading.models.settings import ModelSettings
from core import files
from core.errors import InputError
from core.rl.checkpoint import read_tensors
from simulators.lips import alphabet

RECORD = "lipreading"
"""Key of the record in the header."""
EXTRA = "extra."
"""Begins the names of tensors that are not the model's."""
SYMBOLS = ["<pad>", "<start>", "<end>", *alphabet.CHARACTERS]


@dataclass(frozen=True)
class SavedModel:
    """What a file holds.

    Attributes:
        model: in evaluation mode.
        extra: JSON data that were saved beside it.
        tensors: further tensors, such as those of the features that it reads.
    """

    model: LipReader
    extra: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


def save_model(
    path: Path,
    model: LipReader,
    extra: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model atomically.

    Args:
        path: of the ``.safetensors`` file; its folder is made if need be.
        model: whose settings go along.
        extra: JSON data that belong to it.
        tensors: that belong to it.

    Raises:
        InputError: the model's symbols are not those of the alphabet.
    """
    if model.vocabulary != len(SYMBOLS):
        raise InputError(f"model: has {model.vocabulary} symbols; the alphabet has {len(SYMBOLS)}")
    record = {"model": model.settings.model_dump(mode="json"), "alphabet": SYMBOLS, "extra": dict(extra or {})}
    held = {**model.state_dict(), **{f"{EXTRA}{name}": x for name, x in (tensors or {}).items()}}
    held = {name: x.detach().cpu().clone().contiguous() for name, x in held.items()}
    header = {RECORD: json.dumps(files.jsonable(record), ensure_ascii=False, allow_nan=False)}
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, safetensors.torch.save(held, header))


def load_model(path: Path, device: torch.device | str = "cpu") -> SavedModel:
    """The inverse of ``save_model``.

    Raises:
        InputError: the file is absent, damaged or something else, its alphabet is another, its settings are not those
            of a model here, or its weights do not fit them or are not finite.
    """
    tensors, header = read_tensors(path)
    if RECORD not in header:
        raise InputError(f"{path}: is no saved lip-reading model (its header has no {RECORD!r})")
    try:
        record = json.loads(header[RECORD])
        settings, symbols, extra = record["model"], record["alphabet"], record["extra"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: the record in the header is damaged ({error})") from error
    if symbols != SYMBOLS:
        raise InputError(f"{path}: alphabet: {_difference(symbols)}; needed here: {' '.join(SYMBOLS)}")
    try:
        # The weights that are drawn here are replaced: loading must not move the generator of the process.
        with torch.random.fork_rng(devices=[]):
            model = build(TypeAdapter(ModelSettings).validate_python(settings))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in ("model", *problem["loc"]))
        raise InputError(f"{path}: {where}: {problem['msg'].lower()}") from error
    weights = {name: x for name, x in tensors.items() if not name.startswith(EXTRA)}
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{path}: {name}: holds a number that is not finite")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    further = {name.removeprefix(EXTRA): x.to(device) for name, x in tensors.items() if name.startswith(EXTRA)}
    return SavedModel(model.to(device).eval(), extra, further)


def _difference(symbols: Any) -> str:
    """What is wrong with an alphabet, in a few words."""
    if not isinstance(symbols, list) or len(symbols) != len(SYMBOLS):
        return f"{len(symbols) if isinstance(symbols, list) else symbols!r} symbols, not {len(SYMBOLS)}"
    place = next(i for i, (a, b) in enumerate(zip(symbols, SYMBOLS, strict=True)) if a != b)
    return f"symbol {place} is {symbols[place]!r}"

"""From a YAML file and ``key=value`` overrides to a validated config, every mistake told in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from core.errors import InputError
from core.study import yaml_file
from core.study.config import Config

C = TypeVar("C", bound=Config)
Keys = tuple[str | int, ...]


def load(model: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """The config in ``path`` with each override ``a.b=value`` applied; list items are addressed by index.

    Raises:
        InputError: a file that cannot be read, malformed YAML, an unknown key or an impossible value, with file or
            override, the path of the key, the value, and what is allowed.
    """
    return _validated(model, yaml_file.read(path), overrides, str(path))


def load_values(model: type[C], overrides: Sequence[str] = ()) -> C:
    """A config of its defaults with each override applied, for verbs that take ``--set`` but no file.

    Raises:
        InputError: as ``load``.
    """
    return _validated(model, {}, overrides, "--set")


def from_options(model: type[C], values: dict[str, Any], verb: str, overrides: Sequence[str] = ()) -> C:
    """A config of the values that the options of a verb gave, with each override applied.

    Raises:
        InputError: an impossible value, with the verb, the key, the value, and what is allowed.
    """
    return _validated(model, dict(values), overrides, verb)


def _validated(model: type[C], data: dict[str, Any], overrides: Sequence[str], file: str) -> C:
    origins: dict[Keys, str] = {}
    for override in overrides:
        origins[_apply(data, override)] = f"--set {override}"
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(model, data, error.errors(include_url=False), file, origins)) from error


def _apply(data: dict[str, Any], override: str) -> Keys:
    """Apply one override to the data in place and return the path of its key."""
    keys, equals, text = override.partition("=")
    origin = f"--set {override}"
    if not equals or not all(keys.split(".")):
        raise InputError(f"{origin}: must read key=value, such as --set seeds=5 or --set ppo.learning_rate=1e-3")
    value = yaml_file.parse(text, origin)
    node: Any = data
    key: Any
    path: list[str | int] = []
    *parents, last = keys.split(".")
    for name in parents:
        key = _index(node, name, path, origin)
        child = node.get(key) if isinstance(node, dict) else node[key]
        # Copied, because a YAML alias makes two keys share one mapping.
        node[key] = {} if child is None else copy(child)
        node = node[key]
        path.append(key)
    key = _index(node, last, path, origin)
    node[key] = value
    path.append(key)
    return tuple(path)


def _index(node: Any, name: str, path: Sequence[str | int], origin: str) -> str | int:
    """``name`` as the index of a list or the key of a mapping."""
    if isinstance(node, dict):
        return name
    here = ".".join(map(str, path))
    if not isinstance(node, list):
        raise InputError(f"{origin}: {here} = {_shown(node)} has no keys in it")
    if not name.isdigit() or int(name) >= len(node):
        raise InputError(f"{origin}: {here} is a list of {len(node)}: the index must be 0 to {len(node) - 1}")
    return int(name)


def _explain(
    model: type[Config], data: dict[str, Any], errors: list[ErrorDetails], file: str, origins: dict[Keys, str]
) -> str:
    """The first mistake in one line; what several members of a union say about the same key is joined."""
    errors = [_without_tag(e) for e in errors]
    path = _key_path(data, errors[0])
    same = [e for e in errors if _key_path(data, e) == path]
    origin = next((o for p, o in origins.items() if p == path[: len(p)] or path == p[: len(path)] != ()), file)
    where = ".".join(map(str, path))
    if any(e["type"] == "missing" for e in same):
        return f"{origin}: {where}: is required"
    if all(e["type"] == "extra_forbidden" for e in same):
        known = ", ".join(_known_keys(model, errors[0]["loc"]))
        return f"{origin}: {where}: unknown key; known here: {known}"
    value = same[0]["input"]
    if where and not isinstance(value, dict | list | Config):
        where = f"{where} = {_shown(value)}"
    message = " or ".join(dict.fromkeys(_message(e) for e in same if e["type"] != "extra_forbidden"))
    return f"{origin}: {where}: {message}" if where else f"{origin}: {message}"


def _without_tag(error: ErrorDetails) -> ErrorDetails:
    """An error about the key that tells the members of a union apart, told as an error of that key."""
    context = error.get("ctx", {})
    if error["type"] not in ("union_tag_invalid", "union_tag_not_found"):
        return error
    location = (*error["loc"], context["discriminator"].strip("'"))
    if error["type"] == "union_tag_not_found":
        return {**error, "loc": location, "type": "missing"}
    message = f"Input should be one of {context['expected_tags']}"
    return {**error, "loc": location, "type": "literal_error", "input": context["tag"], "msg": message}


def _message(error: ErrorDetails) -> str:
    text = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return re.sub(r"^\w+ should", "must", text).replace("\n", " ")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _key_path(data: Any, error: ErrorDetails) -> Keys:
    """The location of an error as a path of keys: pydantic also puts the members of unions into it, which are none."""
    path: list[str | int] = []
    for position, name in enumerate(error["loc"]):
        last = position == len(error["loc"]) - 1
        held = range(len(data)) if isinstance(data, list) else data if isinstance(data, dict) else ()
        if name in held:
            data = data[name]
        elif not (last and error["type"] == "missing"):
            continue
        path.append(name)
    return tuple(path)


def _known_keys(model: type[Config], location: Keys) -> list[str]:
    """The keys allowed beside the last one of ``location``."""
    candidates = [model]
    for name in location[:-1]:
        inner = [c for m in candidates if name in m.model_fields for c in _models(m.model_fields[str(name)].annotation)]
        tagged = [m for m in candidates if name == m.__name__ or _has_tag(m, name)]
        candidates = inner or tagged or candidates
    return list(dict.fromkeys(key for m in candidates for key in m.model_fields))


def _models(annotation: Any) -> Iterator[type[Config]]:
    """The config classes that an annotation speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _has_tag(model: type[Config], tag: str | int) -> bool:
    return any(tag in get_args(field.annotation) for field in model.model_fields.values())

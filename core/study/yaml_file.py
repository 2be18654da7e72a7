"""YAML as people write it: numbers such as 1e-3 are numbers, a key given twice is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from core.errors import InputError


class _Loader(yaml.SafeLoader):
    """YAML's safe subset; floats as in YAML 1.2 (PyYAML's 1.1 reads ``1e-3`` as text); unique keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            # A merge key (<<) may come twice, and what it brings may be overridden on purpose.
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f'duplicate key "{key.value}"', key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse(text: str, origin: str) -> Any:
    """The data in ``text``; ``origin`` names it in errors.

    Raises:
        InputError: malformed YAML or a duplicate key, with its line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{origin}: {line}{error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise InputError(f"{origin}: not YAML: {str(error).splitlines()[0]}") from error


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: the file cannot be read, is malformed, or holds no mapping of keys to values.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from error
    data = parse(text, str(path))
    if not isinstance(data, dict):
        raise InputError(f"{path}: must be a mapping of keys to values, not {_kind(data)}")
    return data


def _kind(data: Any) -> str:
    if data is None:
        return "empty"
    return "a list" if isinstance(data, list) else f"{type(data).__name__} {data!r:.40}"

"""Configuration as frozen data with a hash: what a run, a product and a study have in common."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_jsonable_python


class Config(BaseModel):
    """A frozen piece of configuration that refuses unknown keys, NaN and infinity.

    The docstrings of its attributes become the descriptions of its JSON Schema.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON of class and fields."""
        # Not cached on the instance: pydantic's model_copy(update=...) would carry the old hash along.
        return digest(canonical(self))


def canonical(value: Any) -> Any:
    """``value`` as JSON data that names the class of every config in it.

    A config becomes ``{"class": "module:Class", **fields}``; the keyword ``class`` cannot be the name of a field.
    """
    if isinstance(value, Config):
        fields = {name: canonical(getattr(value, name)) for name in type(value).model_fields}
        return {"class": f"{type(value).__module__}:{type(value).__qualname__}", **fields}
    if isinstance(value, dict):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((canonical(item) for item in value), key=json.dumps)
    return to_jsonable_python(value)


def digest(data: Any) -> str:
    """First 16 hex digits of the SHA-256 of JSON data with sorted keys."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

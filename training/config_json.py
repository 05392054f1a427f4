"""Configurations as JSON, and back, strictly.

A field with the metadata `parts`, a function that returns dataclasses, holds an instance of each. In JSON their fields
stand among those of the configuration.
"""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from kinema.errors import KinemaError
from kinema.files import atomic_path

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as JSON values."""
    own, parts = _split_fields(config)
    values = {f.name: _to_json(getattr(config, f.name)) for f in own}
    for field in parts:
        for part in getattr(config, field.name):
            values |= to_dict(part)
    return values


def default_values(config: Any) -> dict[str, Any]:
    """The settings of the configuration that have a default, and the defaults as JSON values."""
    own, parts = _split_fields(config)
    values = {f.name: _to_json(f.default) for f in own if f.default is not dataclasses.MISSING}
    for field in parts:
        for part in field.metadata["parts"]():
            values |= default_values(part)
    return values


def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
        KinemaError: a key is unknown or a value has the wrong type.
    """
    own, parts = _split_fields(cls)
    classes = {field.name: field.metadata["parts"]() for field in parts}
    known = [f.name for f in own]
    known += [f.name for some in classes.values() for part in some for f in dataclasses.fields(part)]
    for name in values:
        if name not in known:
            raise KinemaError(f"`{name}` (={values[name]!r}) must be one of the settings {', '.join(known)}")
    arguments = {name: tuple(_from_values(part, values) for part in some) for name, some in classes.items()}
    return _from_values(cls, values, **arguments)


def _from_values(cls: type[Config], values: dict[str, Any], **others: Any) -> Config:
    """A dataclass from those of the values that are its fields, and others as they are.

    Raises:
        KinemaError: a value has the wrong type.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in _split_fields(cls)[0] if field.name in values]
    return cls(**{name: _from_json(name, values[name], hints[name]) for name in names}, **others)


def save_config(config: Any, path: Path) -> None:
    """Writes the configuration as JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n")


def _split_fields(config: Any) -> tuple[list[Any], list[Any]]:
    """Its fields without parts, and those with parts."""
    fields = dataclasses.fields(config)
    return [f for f in fields if "parts" not in f.metadata], [f for f in fields if "parts" in f.metadata]


def _to_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_to_json(v) for v in value]
    return value


def _from_json(name: str, value: Any, hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _from_json(name, value, next(a for a in args if a is not type(None)))
    if origin is Literal and value in args:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        if args[-1] is Ellipsis:
            return tuple(_from_json(name, v, args[0]) for v in value)
        if len(args) == len(value):
            return tuple(_from_json(name, v, a) for v, a in zip(value, args, strict=True))
    if origin is dict and isinstance(value, dict):
        return {_from_json(name, key, args[0]): _from_json(name, v, args[1]) for key, v in value.items()}
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise KinemaError(f"`{name}` (={value!r}) must be of type {hint}")

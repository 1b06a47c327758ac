"""`Spec`: frozen dataclasses that round-trip through JSON, and check every field of data from a stranger.

Parsing goes by the type hints of the fields: str, int, bool, float, Literal, X | None, tuple, dict, Any (any JSON
value) and other specs. Every error says where in the data it is, what was expected and what was found.
"""

import dataclasses
import math
import reprlib
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar

from logitcache.errors import FormatError


class Spec:
    """Base of frozen dataclasses: `to_dict` returns JSON values, `from_dict` checks and parses them."""

    def to_dict(self) -> dict[str, Any]:
        """Return this spec as JSON values; ``from_dict`` restores an equal one, but for NaN and infinity: null."""
        return typing.cast("dict[str, Any]", jsonable(self))

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Parse JSON values.

        Raises:
            FormatError: a field is missing, unknown or of the wrong type, or a value is out of range.
        """
        return _parse_spec(cls, data, cls.__name__)


def absent_if_none() -> Any:
    """Make a field of None by default, which JSON values leave out where it is None, as they did before it came."""
    return dataclasses.field(default=None, metadata={_ABSENT: True})


_ABSENT = "absent where None"


def require(condition: bool, problem: str) -> None:
    """Check a condition on a spec's fields.

    Raises:
        FormatError: it does not hold.
    """
    if not condition:
        raise FormatError(problem)


_S = TypeVar("_S", bound=Spec)


def jsonable(value: object) -> Any:
    """Return specs, lists, mappings and plain values as JSON values; NaN and infinity, which JSON lacks, as null."""
    if isinstance(value, Spec):
        fields = dataclasses.fields(typing.cast(Any, value))
        values = {f.name: getattr(value, f.name) for f in fields}
        absent = {f.name for f in fields if f.metadata.get(_ABSENT) and values[f.name] is None}
        return {name: jsonable(each) for name, each in values.items() if name not in absent}
    if isinstance(value, tuple | list):
        return [jsonable(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def parse_json(value: object, where: str, depth: int = 0) -> Any:
    """Check that a value is JSON: no NaN, no date (TOML has those), no NumPy number, nested at most 32 deep.

    Raises:
        FormatError: it isn't; `where` says which value.
    """
    if depth > _DEEPEST:
        raise FormatError(f"{where}: nested more than {_DEEPEST} deep")
    if isinstance(value, list | tuple):
        return [parse_json(v, where, depth + 1) for v in value]
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {k: parse_json(v, where, depth + 1) for k, v in value.items()}
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise FormatError(f"{where}: expected a JSON value, found {_short(value)}")


def _parse_spec(cls: type[_S], data: object, where: str) -> _S:
    if not isinstance(data, Mapping):
        raise FormatError(f"{where}: expected an object, found {_short(data)}")
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    hints = typing.get_type_hints(cls)
    if unknown := sorted(set(map(str, data)) - set(fields)):
        raise FormatError(f"{where}: unknown field {unknown[0]!r}; expected {', '.join(fields)}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _parse(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise FormatError(f"{where}: field {name!r} is missing")
    return cls(**values)


def _parse(hint: Any, value: object, where: str) -> Any:
    """Check one JSON value against a type hint and convert it (lists to tuples, objects to specs)."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return parse_json(value, where)
    if isinstance(hint, type) and issubclass(hint, Spec):
        return _parse_spec(hint, value, where)
    if origin is Literal and value in args:
        return value
    if origin is types.UnionType:
        inner = next(a for a in args if a is not type(None))
        return None if value is None else _parse(inner, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        if args[-1] is Ellipsis:
            return tuple(_parse(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(args) == len(value):
            return tuple(_parse(a, v, where) for a, v in zip(args, value, strict=True))
    if origin is dict and isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {k: _parse(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:  # neither NaN nor infinity, nor an integer beyond floats
            return float(value)
    elif hint in (bool, int, str) and type(value) is hint:
        return value
    expected = " or ".join(map(repr, args)) if origin is Literal else getattr(hint, "__name__", str(hint))
    expected = f"finite {expected}" if isinstance(value, float) and not math.isfinite(value) else expected
    raise FormatError(f"{where}: expected {expected}, found {_short(value)}")


_DEEPEST = 32
_BRIEF = reprlib.Repr()  # unlike repr() it copes with any depth
_BRIEF.maxstring = _BRIEF.maxlong = _BRIEF.maxother = 60


def _short(value: object) -> str:
    text = _BRIEF.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"

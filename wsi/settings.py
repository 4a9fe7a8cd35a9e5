"""Read TOML and `section.key=value` strings into frozen dataclasses, and write them back."""

import dataclasses
import reprlib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.metadata import read_regular_file
from simtriplet.wsi.registry import nearest_name

T = TypeVar("T")
_MOST_TOLD = 200
_BRIEF = reprlib.Repr()
"""A checkpoint may hold one list many times over in itself, which written out whole would never end."""

_BRIEF.maxlevel, _BRIEF.maxlist, _BRIEF.maxtuple, _BRIEF.maxdict = 5, 8, 8, 8
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 2 * _MOST_TOLD
_MOST_BYTES = 1 << 22
"""A thousand times what people write; the parser takes a second for each."""
Values = dict[str, Any]


def read_toml(path: Path) -> Values:
    """Parse a TOML file.

    Raises:
        SettingsError: if it cannot be read or parsed.
    """
    try:
        text = read_regular_file(path, most_bytes=_MOST_BYTES).decode("utf-8-sig")
        return tomllib.loads(text.replace("\r\n", "\n"))
    # a number of more digits than Python reads is a ValueError, values nested too deeply a RecursionError
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)[:160]
        raise SettingsError(f"settings file '{path}': cannot be read ({reason}); correct it") from error


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """Return `base` with `changes` laid over it, section by section."""
    merged: Values = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(cast(Mapping[str, Any], old), value) if both else value
    return merged


def parse_assignments(assignments: Iterable[str]) -> Values:
    """Turn `section.key=value` strings into nested values; a value is TOML, or else a plain string.

    Raises:
        SettingsError: if one has no `=` or an empty key.
    """
    values: Values = {}
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        keys = [key.strip() for key in dotted.split(".")]
        if not equals or not all(keys):
            raise SettingsError(f"setting {assignment!r}: is not of the form section.key=value; correct it")
        nested: Values = {keys[-1]: _parse_value(text.strip())}
        for key in reversed(keys[:-1]):
            nested = {key: nested}
        values = merge(values, nested)
    return values


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def build(cls: type[T], values: Mapping[str, Any], *, source: str) -> T:
    """Make a (nested) frozen dataclass from plain values.

    Args:
        cls: the dataclass; its fields may be int, float, str, bool, Path, Literal, tuples, dataclasses, or these or None.
        values: key to value, sections as nested mappings.
        source: where the values come from, for error messages.

    Raises:
        SettingsError: on an unknown key (the message names the nearest known one), a wrong type or an invalid value.
    """
    return _build(cls, values, source=source, prefix="")


def _build(cls: type[T], values: Mapping[str, Any], *, source: str, prefix: str) -> T:
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cast(Any, cls))]
    made: Values = {}
    for key, value in values.items():
        if key not in names:
            hint = nearest_name(key, names) or f"; known are {', '.join(names)}"
            raise SettingsError(f"{source}: setting '{prefix}{key}' is not known{hint}")
        made[key] = _convert(hints[key], value, source=source, name=f"{prefix}{key}")
    try:
        return cls(**made)
    except TypeError as error:
        missing = [f.name for f in dataclasses.fields(cast(Any, cls)) if f.name not in made and _required(f)]
        needed = ", ".join(prefix + name for name in missing) or str(error)
        raise SettingsError(f"{source}: settings missing: {needed}; add them") from error
    except SettingsError as error:
        raise SettingsError(f"{source}: {error}") from error


def _required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, *, source: str, name: str) -> Any:
    wrong = SettingsError(f"{source}: setting '{name}' is {_tell(value)}: must be {_describe(hint)}; correct it")
    origin = get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in get_args(hint):
            return None
        options = [option for option in get_args(hint) if option is not type(None)]
        for option in options[:-1]:
            try:
                return _convert(option, value, source=source, name=name)
            except SettingsError:
                continue
        return _convert(options[-1], value, source=source, name=name)
    if origin is Literal:
        if value not in get_args(hint):
            raise wrong
        return value
    if origin is tuple:
        return _convert_tuple(hint, value, source=source, name=name, wrong=wrong)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise wrong
        return _build(cast(type[Any], hint), value, source=source, prefix=f"{name}.")
    return _convert_plain(hint, value, wrong)


def _tell(value: Any) -> str:
    try:
        told = " ".join(_BRIEF.repr(value).split())  # a tensor takes several lines
    except (ValueError, RecursionError):  # more digits, or deeper lists, than Python writes
        return f"a {type(value).__name__}"
    return told if len(told) <= _MOST_TOLD else f"{told[:_MOST_TOLD]}..."


def _convert_plain(hint: Any, value: Any, wrong: SettingsError) -> Any:
    if hint is Any:
        return value
    if hint is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise wrong from None
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise wrong
    return value


def _convert_tuple(hint: Any, value: Any, *, source: str, name: str, wrong: SettingsError) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise wrong
    items = get_args(hint)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise wrong
    return tuple(_convert(item, part, source=source, name=name) for item, part in zip(items, value, strict=True))


def _describe(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in get_args(hint))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(option) for option in get_args(hint) if option is not type(None))
    if origin is tuple:
        return "a list of " + ", ".join(_describe(item) for item in get_args(hint) if item is not Ellipsis)
    if dataclasses.is_dataclass(hint):
        return "a section"
    return {"int": "an integer", "float": "a number", "str": "a string", "bool": "true or false", "Path": "a path"}.get(
        getattr(hint, "__name__", ""), str(hint)
    )


def to_values(settings: Any) -> Values:
    """Return a dataclass as plain nested values; None is left out, as TOML has no null."""
    return cast(Values, _plain(dataclasses.asdict(settings)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def to_toml(settings: Any) -> str:
    """Write a dataclass as TOML that `build` reads back to an equal object."""
    import tomli_w

    return tomli_w.dumps(to_values(settings))

"""What a store says of itself in its root attribute `simtriplet`: read, compared with its checksum, and checked value by value."""

import errno
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

from simtriplet.wsi.errors import StoreError, StoreVersionError
from simtriplet.wsi.metadata import metadata_is_signed, read_regular_file

__all__ = ["FORMAT_VERSION", "PARTIAL_SUFFIX", "SAFE_ID", "SCHEMA", "read_attributes"]

SCHEMA = "simtriplet.tiles"
FORMAT_VERSION = "1.2"
PARTIAL_SUFFIX = ".partial"

SAFE_ID = re.compile(r"[\w][\w .()+-]{0,199}")
"""Slide ids become names of files, which must not lead out of a folder."""

_MOST_BYTES = 1 << 26
_MOST_TILES = 2**31 - 1
_MOST_PX, _MOST_STRIDE_PX = 8192, 65_500
"""No larger tiles are made; each takes 192 MiB decoded."""


_OTHER_THINGS = (errno.EINVAL, errno.EFBIG, errno.ENOTDIR)
"""What reading says where no store is, but a file, a folder or a pipe."""


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    words: str


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _or_none(rule: _Rule) -> _Rule:
    return _Rule(lambda value: value is None or rule.holds(value), f"{rule.words}, or null")


_TEXT = _Rule(lambda value: isinstance(value, str), "be text")
_POSITIVE = _Rule(_is_positive, "be a positive number")
_SIDE = _Rule(lambda value: _is_whole(value, 1, _MOST_PX), f"be a whole number from 1 to {_MOST_PX}")
_STRIDE = _Rule(lambda value: _is_whole(value, 1, _MOST_STRIDE_PX), f"be a whole number from 1 to {_MOST_STRIDE_PX}")
_EXTENT = _Rule(lambda value: _is_whole(value, 1, 2**40), "be a positive whole number")
_SECTION = _Rule(lambda value: isinstance(value, dict), "be an object")
_ID = _Rule(
    lambda value: isinstance(value, str) and SAFE_ID.fullmatch(value) is not None and len(value.encode()) <= 200,
    "be letters, digits, blanks and ._()+- and start with a letter or digit",
)
_RESOLUTIONS = _Rule(
    lambda value: isinstance(value, list) and all(map(_is_positive, value)), "be a list of positive numbers"
)

_REQUIRED = {
    "n_tiles": _Rule(lambda value: _is_whole(value, 0, _MOST_TILES), f"be a whole number from 0 to {_MOST_TILES}"),
    "tiles_id": _TEXT,
    "slide": _SECTION,
    "slide.id": _ID,
    "slide.mpp": _POSITIVE,
    "tiling": _SECTION,
    "tiling.mpp": _POSITIVE,
    "tiling.size_px": _SIDE,
    "tiling.stride_px": _STRIDE,
}
_OPTIONAL = {
    "slide.patient_id": _or_none(_TEXT),
    "slide.label": _or_none(_TEXT),
    "slide.fingerprint": _or_none(_TEXT),
    "slide.width": _or_none(_EXTENT),
    "slide.height": _or_none(_EXTENT),
    "tiling.context_mpp": _RESOLUTIONS,
    "tiling.asked": _SECTION,
    "thumbnail": _SECTION,
    "thumbnail.downsample": _POSITIVE,
}


def read_attributes(path: Path) -> dict[str, Any]:
    """Return the root attribute of a complete store.

    Raises:
        StoreError: if it is no store, not complete, was changed after it was written, or holds an impossible value.
        StoreVersionError: if another major version wrote it.
    """
    if path.name.endswith(PARTIAL_SUFFIX):
        raise StoreError(f"store '{path.name}': is half written; tile the slide again")
    try:
        data = read_regular_file(path / "zarr.json", most_bytes=_MOST_BYTES)
        attributes = json.loads(data)["attributes"]["simtriplet"]
        schema, version, state = attributes["schema"], str(attributes["version"]), attributes["state"]
    except FileNotFoundError as error:
        raise StoreError(f"store '{path}': does not exist or is no Zarr v3 group; run simtriplet tile first") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno not in _OTHER_THINGS:
            raise StoreError(
                f"store '{path}': cannot be read ({error.strerror}); check its path, its rights and its disk"
            ) from error
        raise StoreError(f"store '{path}': is not a simtriplet tile store; make one with simtriplet tile") from error
    if schema != SCHEMA:
        raise StoreError(f"store '{path}': is a {str(schema)[:40]!r}, not {SCHEMA!r}; make one with simtriplet tile")
    if version.partition(".")[0] != FORMAT_VERSION.partition(".")[0]:
        raise StoreVersionError(
            f"store '{path}': has format version {version[:40]}, this program reads {FORMAT_VERSION}; "
            "tile the slide again or install the simtriplet that wrote it"
        )
    if state != "complete":
        raise StoreError(
            f"store '{path}': is {str(state)[:40]}, not complete; tile the slide again with --existing replace"
        )
    try:
        metadata_is_signed(data)
    except ValueError as error:
        raise StoreError(f"store '{path}': zarr.json {error}; tile the slide again with --existing replace") from error
    _check_values(path, attributes)
    return cast("dict[str, Any]", attributes)


def _check_values(path: Path, attributes: dict[str, Any]) -> None:
    for place, rule in (_REQUIRED | _OPTIONAL).items():
        value: Any = attributes
        for key in place.split("."):
            found = isinstance(value, dict) and key in value
            if not found:
                break
            value = value[key]
        if not found and place in _OPTIONAL:
            continue
        if not found or not rule.holds(value):
            told = f"is {str(value)[:60]!r}" if found else "is missing"
            raise StoreError(
                f"store '{path}': attribute {place} {told}: must {rule.words}; tile the slide again with --existing replace"
            )

"""zarr.json files with a checksum of their own, so that a changed byte of metadata is found like one of an array.

The last attribute of a node, `simtriplet_checksum`, is the CRC-32C of the file's own bytes with eight zeros in its place. File
and checksum are one file: whoever adds a node writes both at once, and no process that dies in between can part them. A node
without that attribute, of an older version or another program, is read as it is.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simtriplet.wsi.checksum import crc32c

__all__ = [
    "CHECKSUM",
    "DAMAGE",
    "check_signed_json",
    "metadata_bytes",
    "metadata_is_signed",
    "read_metadata",
    "read_regular_file",
    "signed_json",
]

CHECKSUM = "simtriplet_checksum"

DAMAGE: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What zarr and its codecs raise on metadata and chunks that were not written by them; RecursionError is a RuntimeError."""

_KIND = "crc32c:"
_ZEROS = f"{_KIND}{0:08x}".encode()
_TAIL = re.compile(rb'"' + CHECKSUM.encode() + rb'": "(crc32c:[0-9a-f]{8})"\s*\}\s*\}\s*\Z')
_JSON_TAIL = re.compile(rb'"' + CHECKSUM.encode() + rb'": "(crc32c:[0-9a-f]{8})"\s*\}\s*\Z')
_MARKS = (CHECKSUM.encode(), b'"' + _KIND.encode())
_MOST_METADATA_BYTES = 1 << 26
_MOST_CHUNK_BYTES = 1 << 32


def metadata_bytes(document: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    """Return the bytes of a zarr.json, with its checksum as the last attribute.

    Raises:
        ValueError: if a number is not finite.
    """
    attributes = {key: value for key, value in document.get("attributes", {}).items() if key != CHECKSUM}
    others = {key: value for key, value in document.items() if key != "attributes"}
    whole = {**others, "attributes": {**attributes, CHECKSUM: _ZEROS.decode()}}
    text = json.dumps(whole, allow_nan=False, indent=indent).encode()
    before, _, after = text.rpartition(_ZEROS)
    return before + f"{_KIND}{crc32c(text):08x}".encode() + after


def metadata_is_signed(data: bytes) -> bool:
    """Tell whether metadata carry a checksum, which then is right.

    Raises:
        ValueError: if they carry one that is not, or one that cannot be made out.
    """
    found = _TAIL.search(data)
    if found is None:
        # one changed byte can hide the name of the checksum or its kind, not both
        if any(mark in data for mark in _MARKS):
            raise ValueError("was changed after it was written")
        return False
    start, stop = found.span(1)
    if found[1] != f"{_KIND}{crc32c(data[:start] + _ZEROS + data[stop:]):08x}".encode():
        raise ValueError("was changed after it was written")
    return True


def signed_json(values: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Return a JSON object whose last value is its own checksum, as that of a zarr.json; it ends in a newline."""
    text = json.dumps({**values, CHECKSUM: _ZEROS.decode()}, indent=indent, allow_nan=False) + "\n"
    before, zeros, after = text.rpartition(_ZEROS.decode())
    return before + zeros[: -len("00000000")] + f"{crc32c(text.encode()):08x}" + after


def check_signed_json(data: bytes) -> dict[str, Any]:
    """Read what signed_json wrote, without the checksum; a file of before, which has none, is read as it is.

    Raises:
        ValueError: if it is no JSON object, or was changed.
    """
    try:
        values = json.loads(data)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("is no JSON object")
    found = _JSON_TAIL.search(data)
    if found is None and any(mark in data for mark in _MARKS):
        raise ValueError("was changed after it was written")
    if found is not None:
        start, stop = found.span(1)
        if found[1] != f"{_KIND}{crc32c(data[:start] + _ZEROS + data[stop:]):08x}".encode():
            raise ValueError("was changed after it was written")
        del values[CHECKSUM]
    return values


def read_metadata(path: Path) -> dict[str, Any]:
    """Read a zarr.json; its checksum is not looked at.

    Raises:
        FileNotFoundError: if there is none.
        OSError: if it cannot be read, or is no file.
        ValueError: if it is no JSON object.
    """
    try:
        document = json.loads(read_regular_file(path, most_bytes=_MOST_METADATA_BYTES))
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("is no JSON object")
    return document


def read_regular_file(path: Path, *, most_bytes: int = _MOST_CHUNK_BYTES, n_bytes: int = -1) -> bytes:
    """Read a file whole; a pipe or device, of which reading might never end, is refused.

    Args:
        path: of the file.
        most_bytes: that it may have.
        n_bytes: read so many only.

    Raises:
        FileNotFoundError: if there is none.
        OSError: if it cannot be read, is no file or is larger; `strerror` says which.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "its name holds a zero byte")
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(about.st_mode) else "it is no file")
        if about.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"it is larger than {most_bytes >> 20} MiB")
        with os.fdopen(file, "rb", buffering=0, closefd=False) as opened:
            return opened.readall() if n_bytes < 0 else opened.read(n_bytes)
    finally:
        os.close(file)

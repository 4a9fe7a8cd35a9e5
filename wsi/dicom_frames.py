"""Check where a DICOM file says its frames lie, which the library behind OpenSlide believes: a lie ends the process."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from simtriplet.wsi.dicom_head import read_dicom_head
from simtriplet.wsi.errors import SlideDamagedError

__all__ = ["refuse_lying_frames"]

_PIXEL_DATA, _UNDEFINED = b"\xe0\x7f\x10\x00", 0xFFFFFFFF
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


def refuse_lying_frames(path: Path) -> None:
    """Walk over the frames of a DICOM file, reading eight bytes of each.

    Raises:
        SlideDamagedError: if they do not follow each other to the end, or the table of their offsets says otherwise.
    """
    with path.open("rb") as file:
        try:
            found = read_dicom_head(file, ["NumberOfFrames", "ExtendedOffsetTable"])
            frames = int(found["NumberOfFrames"] or 1)
            offsets, starts = _frame_places(file, frames)
        except (ValueError, TypeError, OSError, struct.error) as error:
            raise _damaged(path, str(error)) from error
    told = found["ExtendedOffsetTable"] or b""
    if not isinstance(told, bytes) or len(told) not in (0, 8 * frames):
        raise _damaged(path, f"its table of offsets is not of {frames} frames")
    extended = _numbers(told, "Q")
    for table in (offsets, extended):
        if table and not (set(table) <= starts and list(table) == sorted(set(table))):
            raise _damaged(path, "its table of offsets does not lead to its frames")
    if starts and len(starts) < frames:
        raise _damaged(path, f"it announces {frames} frames and holds {len(starts)}")


def _frame_places(file: BinaryIO, frames: int) -> tuple[Sequence[int], set[int]]:
    """Return the table of offsets and the offsets at which items lie; none of both where the pixels are not encapsulated.

    Raises:
        ValueError: if the items are broken, or the table is not of so many frames.
    """
    head = file.read(12)
    if head[:4] != _PIXEL_DATA:
        raise ValueError("it holds no pixels")
    if struct.unpack("<I", head[8:])[0] != _UNDEFINED:
        return (), set()
    length = _item_bytes(file)
    if length not in (0, 4 * frames):  # told before anything is read that is as long as a damaged file says
        raise ValueError(f"its table of offsets is not of {frames} frames")
    table = _numbers(file.read(length), "I")
    start = file.tell()
    starts: set[int] = set()
    size = file.seek(0, 2)
    place = start
    while place < size:
        file.seek(place)
        length = _item_bytes(file)
        if length < 0:
            return table, starts
        starts.add(place - start)
        place += 8 + length
    raise ValueError("its frames reach beyond its end")


def _item_bytes(file: BinaryIO) -> int:
    """Return the length of the item that begins here, -1 at the end of all."""
    head = file.read(8)
    if head[:4] == _END:
        return -1
    if len(head) < 8 or head[:4] != _ITEM:
        raise ValueError("its frames do not follow each other")
    return int(struct.unpack("<I", head[4:])[0])


def _numbers(data: Any, form: str) -> tuple[int, ...]:
    return tuple(number for (number,) in struct.iter_unpack(f"<{form}", data))


def _damaged(path: Path, what: str) -> SlideDamagedError:
    return SlideDamagedError(f"slide '{path}': is a damaged DICOM file: {' '.join(what.split())}; copy it again")

"""Check where a DICOM file says its frames lie, which the library behind OpenSlide believes: a lie ends the process."""

import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO

from simtriplet.wsi.errors import SlideDamagedError

__all__ = ["refuse_lying_frames"]

_PIXEL_DATA, _UNDEFINED = b"\xe0\x7f\x10\x00", 0xFFFFFFFF
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


def refuse_lying_frames(path: Path) -> None:
    """Walk over the frames of a DICOM file, reading eight bytes of each.

    Raises:
        SlideDamagedError: if they do not follow each other to the end, or the table of their offsets says otherwise.
    """
    import pydicom  # slow to import

    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydicom, about oddities that do not keep a slide from being read
        try:
            found = pydicom.dcmread(
                file, stop_before_pixels=True, specific_tags=["NumberOfFrames", "ExtendedOffsetTable"]
            )
            frames = int(found.get("NumberOfFrames", 1) or 1)
            told = found.get("ExtendedOffsetTable")
            offsets, starts = _frame_places(file)
        except Exception as error:  # pydicom lets through many types on a damaged file
            raise _damaged(path, str(error) or type(error).__name__) from error
    extended = None if told is None else tuple(_numbers(told, "Q"))
    for table in (offsets, extended):
        if table and not (len(table) == frames and set(table) <= starts and list(table) == sorted(set(table))):
            raise _damaged(path, "its table of offsets does not lead to its frames")
    if starts and len(starts) < frames:
        raise _damaged(path, f"it announces {frames} frames and holds {len(starts)}")


def _frame_places(file: BinaryIO) -> tuple[tuple[int, ...], set[int]]:
    """Return the table of offsets and the offsets at which items lie; none of both where the pixels are not encapsulated.

    Raises:
        ValueError: if the items are broken.
    """
    head = file.read(12)
    if head[:4] != _PIXEL_DATA:
        raise ValueError("it holds no pixels")
    if struct.unpack("<I", head[8:])[0] != _UNDEFINED:
        return (), set()
    table = tuple(_numbers(file.read(_item_bytes(file)), "I"))
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

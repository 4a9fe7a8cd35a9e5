"""Tell a TIFF that was cut short or tampered with: its chain of directories leads beyond the end of the file, or back."""

import struct
from pathlib import Path

from simtriplet.wsi.errors import SlideDamagedError

__all__ = ["is_tiff", "refuse_truncated"]

_ORDERS = {b"II": "<", b"MM": ">"}
_MAX_PAGES = 10_000


def is_tiff(path: Path) -> bool:
    """Tell whether the file starts as a TIFF or BigTIFF does."""
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    except OSError:
        return False


def refuse_truncated(path: Path) -> None:
    """Walk through the directories of a TIFF or BigTIFF.

    Raises:
        SlideDamagedError: if one lies beyond the end of the file, or the chain has no end.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        order = _ORDERS[head[:2]]
        big = head[2:4] in (b"+\0", b"\0+")
        count_form, entry_bytes, link_form = ("Q", 20, "Q") if big else ("H", 12, "I")
        (place,) = struct.unpack_from(order + link_form, head.ljust(16, b"\0"), 8 if big else 4)
        seen: set[int] = set()
        while place:
            if place in seen or len(seen) == _MAX_PAGES:
                what = "leads back to itself" if place in seen else f"holds more than {_MAX_PAGES}"
                raise SlideDamagedError(
                    f"slide '{path}': its chain of directories {what}; the file is damaged, copy it again"
                )
            seen.add(place)
            file.seek(place)
            raw = file.read(struct.calcsize(order + count_form))
            end = place + len(raw)
            if place < size and len(raw) == struct.calcsize(order + count_form):
                end += struct.unpack(order + count_form, raw)[0] * entry_bytes
                file.seek(end)
                link = file.read(struct.calcsize(order + link_form))
                if len(link) == struct.calcsize(order + link_form):
                    (place,) = struct.unpack(order + link_form, link)
                    continue
            raise SlideDamagedError(
                f"slide '{path}': is cut short: one of its directories lies at byte {max(place, end)}, beyond its end at "
                f"{size}; copy it again"
            )

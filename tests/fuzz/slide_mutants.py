"""Damaged copies of a slide file: bytes, tags and links of its directories, and its compressed pixels."""

import random
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tifffile

LENGTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 16: 8}
"""Bytes of a value, by TIFF type."""

TILE_TAGS = (324, 325)
LAYOUT_TAGS = (
    254,
    256,
    257,
    258,
    259,
    262,
    270,
    273,
    277,
    278,
    279,
    282,
    284,
    296,
    317,
    322,
    323,
    324,
    325,
    338,
    347,
    530,
)
CODECS = (1, 2, 5, 6, 7, 8, 32773, 32946, 33003, 33005, 34712, 34925, 50000, 50001, 60001)


@dataclass(frozen=True)
class Mutant:
    """A damaged file.

    Attributes:
        data: its bytes.
        what: was done to it.
        tiles: (level page, tile) whose compressed bytes were changed, where nothing else was; None where more was.
    """

    data: bytes
    what: str
    tiles: frozenset[tuple[int, int]] | None = None


@dataclass
class Original:
    """An undamaged file and where its parts lie; a file that is no TIFF is bytes alone.

    Attributes:
        path: the file.
    """

    path: Path
    data: bytes = b""
    big: bool = False
    tags: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    """Code, type, count, position of the entry and of the value of each tag."""
    links: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    tiles: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Page, number, offset and size of every native tile."""

    def __post_init__(self) -> None:
        self.data = self.path.read_bytes()
        if self.data[:2] not in (b"II", b"MM"):
            return
        with tifffile.TiffFile(self.path) as tiff:
            self.big = tiff.is_bigtiff
            self.links.append(8 if self.big else 4)
            for page in tiff.pages:
                self._add(page)

    def _add(self, page: Any) -> None:
        entry_bytes, head = (20, 8) if self.big else (12, 2)
        self.pages.append(page.offset)
        self.links.append(page.offset + head + entry_bytes * len(page.tags))
        for tag in page.tags:
            self.tags.append((tag.code, int(tag.dtype), tag.count, tag.offset, tag.valueoffset))
        if page.is_tiled:
            places = zip(page.dataoffsets, page.databytecounts, strict=True)
            self.tiles += [(page.index, number, at, size) for number, (at, size) in enumerate(places) if size > 16]


def make_mutant(original: Original, number: int) -> Mutant:
    """Return one of the damaged copies; the same number gives the same copy."""
    rng = random.Random(f"{original.path.name} {number}")
    kinds: tuple[Any, ...] = (_cut, _flip, _overwrite, _move, _insert)
    if original.tags:
        kinds += (_tag, _tag, _tag, _tag, _link, _number, _damage_tiles, _damage_tiles, _damage_tiles, _directory)
    else:
        kinds += (_head, _head, _head)
    made: Mutant = rng.choice(kinds)(original, rng)
    return made


def _cut(original: Original, rng: random.Random) -> Mutant:
    end = rng.randrange(len(original.data))
    return Mutant(original.data[:end], f"cut at byte {end}")


def _flip(original: Original, rng: random.Random, n: int | None = None, limit: int | None = None) -> Mutant:
    data = bytearray(original.data)
    places = [rng.randrange(limit or len(data)) for _ in range(n or rng.choice((1, 1, 4, 32)))]
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    return Mutant(bytes(data), f"bits flipped in bytes {places}")


def _head(original: Original, rng: random.Random) -> Mutant:
    return _flip(original, rng, rng.randint(1, 4), min(len(original.data), 800))


def _overwrite(original: Original, rng: random.Random) -> Mutant:
    data, start = bytearray(original.data), rng.randrange(len(original.data))
    length = min(len(data) - start, rng.choice((1, 4, 64, 512, 4096)))
    data[start : start + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))
    return Mutant(bytes(data), f"{length} bytes from {start} overwritten")


def _move(original: Original, rng: random.Random) -> Mutant:
    data, length = bytearray(original.data), 512
    source, target = (rng.randrange(max(1, len(data) - length)) for _ in range(2))
    data[target : target + length] = original.data[source : source + length]
    return Mutant(bytes(data[: len(original.data)]), f"block {source} over {target}")


def _insert(original: Original, rng: random.Random) -> Mutant:
    start, length = rng.randrange(len(original.data)), rng.choice((1, 2, 16))
    if rng.random() < 0.5:
        return Mutant(original.data[:start] + original.data[start + length :], f"{length} bytes lost at {start}")
    return Mutant(
        original.data[:start] + rng.randbytes(length) + original.data[start:], f"{length} bytes more at {start}"
    )


def _directory(original: Original, rng: random.Random) -> Mutant:
    data, page = bytearray(original.data), rng.choice(original.pages)
    for _ in range(rng.randint(1, 6)):
        data[min(len(data) - 1, page + rng.randrange(240))] = rng.randrange(256)
    return Mutant(bytes(data), f"bytes of the directory at {page} replaced")


def _link(original: Original, rng: random.Random) -> Mutant:
    data, form = bytearray(original.data), "<Q" if original.big else "<I"
    place = rng.choice(original.links)
    target = rng.choice([*original.pages, *original.pages, 0, 1, len(data), len(data) - 3, rng.randrange(2**32)])
    struct.pack_into(form, data, place, target)
    return Mutant(bytes(data), f"the link at {place} leads to {target}")


def _tag(original: Original, rng: random.Random) -> Mutant:
    """Change an entry: its value (one element of it), or its code, type or count."""
    data = bytearray(original.data)
    known = [tag for tag in original.tags if tag[0] in LAYOUT_TAGS] or original.tags
    code, kind, count, entry, value = rng.choice(known)
    field_name = rng.choice(("value", "value", "value", "value", "type", "count", "code"))
    if field_name == "code":
        struct.pack_into("<H", data, entry, new := rng.choice(LAYOUT_TAGS))
    elif field_name == "type":
        struct.pack_into("<H", data, entry + 2, new := rng.choice((0, 1, 2, 3, 4, 5, 7, 11, 12, 13, 16, 99)))
    elif field_name == "count":
        new = rng.choice((0, 1, 2, 3, 255, 65_536, 2**31 - 1, 2**32 - 1, max(0, count - 1), count + 1))
        struct.pack_into("<Q" if original.big else "<I", data, entry + 4, new)
    else:
        size = LENGTHS.get(kind, 1)
        new = _lie(code, size, len(data), rng)
        place = value + size * rng.randrange(max(1, count))
        data[place : place + size] = new.to_bytes(size, "little")
    return Mutant(bytes(data), f"tag {code} (type {kind}, count {count}): {field_name} becomes {new}")


def _lie(code: int, size: int, file_bytes: int, rng: random.Random) -> int:
    if code == 259 and rng.random() < 0.7:
        return rng.choice(CODECS)
    plain = (0, 1, 2, 3, 4, 5, 6, 8, 15, 16, 17, 32, 48, 100, 240, 255)
    large = (4096, 8192, 32_768, 65_000, 65_535, 100_000, 1_000_000, 2**31 - 1, 2**31, 2**32 - 1, file_bytes, 2**63)
    value = rng.choice(plain + large) if rng.random() < 0.8 else rng.randrange(2 ** (8 * size))
    return int(value % 2 ** (8 * size))


def _number(original: Original, rng: random.Random) -> Mutant:
    """Give a tile another offset or size."""
    data = bytearray(original.data)
    tables = [tag for tag in original.tags if tag[0] in TILE_TAGS] or original.tags
    code, kind, count, _, value = rng.choice(tables)
    size = LENGTHS.get(kind, 1)
    place = value + size * rng.randrange(max(1, count))
    new = rng.choice((0, 1, 4, len(data) - 1, len(data), 2**32 - 1, rng.randrange(len(data)))) % 2 ** (8 * size)
    data[place : place + size] = new.to_bytes(size, "little")
    return Mutant(bytes(data), f"an element of tag {code} becomes {new}")


def _damage_tiles(original: Original, rng: random.Random) -> Mutant:
    """Change nothing but the compressed bytes of one or two tiles."""
    if not original.tiles:
        return _flip(original, rng)
    data = bytearray(original.data)
    chosen = rng.sample(original.tiles, min(len(original.tiles), rng.choice((1, 1, 2))))
    how = rng.choice(("flip", "flip", "zeros", "noise", "tail"))
    for _, _, start, size in chosen:
        first = rng.randrange(size)
        length = min(size - first, rng.choice((4, 64, 512)))
        if how == "flip":
            data[start + first] ^= 1 << rng.randrange(8)
        elif how == "tail":  # what a copy leaves that ended too soon
            data[start + first : start + size] = bytes(size - first)
        else:
            data[start + first : start + first + length] = bytes(length) if how == "zeros" else rng.randbytes(length)
    tiles = frozenset((page, number) for page, number, _, _ in chosen)
    return Mutant(bytes(data), f"{how} in tiles {sorted(tiles)}", tiles)

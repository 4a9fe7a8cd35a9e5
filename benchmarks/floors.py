"""What no tiler can beat on this machine: a bare loop over just the native tiles that the job needs.

decode  read the JPEG bytes and decode them, each native tile once; nothing is kept
cut     the same, and cut the job's tiles out of the decoded ones, band by band
copy    read the JPEG bytes and write them to a file, undecoded
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from driver import Job, read_job, report

from simtriplet.wsi.store import TileStore

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class NativeTiles:
    """Level 0 of a slide as it lies in the file.

    Attributes:
        file: file descriptor.
        side: of a native tile, pixels.
        n_cols: native tiles in a row.
        offsets, sizes: of each native tile, bytes.
        tables: JPEG tables that the tiles share, None where each has its own.
    """

    file: int
    side: int
    n_cols: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    tables: bytes | None

    def read(self, number: int) -> bytes:
        """Return the bytes of a native tile."""
        return os.pread(self.file, self.sizes[number], self.offsets[number])

    def decode(self, number: int) -> Pixels:
        """Return the (side, side, 3) pixels of a native tile."""
        pixels: Pixels = imagecodecs.jpeg8_decode(self.read(number), tables=self.tables)
        return pixels

    def under(self, tiles: npt.NDArray[np.int64], span: int) -> list[int]:
        """Return the numbers of the native tiles that tiles of `span` pixels touch, in file order."""
        first, last = tiles // self.side, (tiles + span - 1) // self.side
        steps = range(int((last - first).max()) + 1)
        touched = [
            (row * self.n_cols + col)[(row <= last[:, 1]) & (col <= last[:, 0])]
            for row, col in ((first[:, 1] + down, first[:, 0] + right) for down in steps for right in steps)
        ]
        return [int(number) for number in np.unique(np.concatenate(touched))]


def open_native(path: Path) -> NativeTiles:
    """Open level 0, and make sure that the bare decoder gives the pixels that tifffile gives."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        native = NativeTiles(
            file=os.open(path, os.O_RDONLY),
            side=page.tilewidth,
            n_cols=-(-page.imagewidth // page.tilewidth),
            offsets=tuple(page.dataoffsets),
            sizes=tuple(page.databytecounts),
            tables=page.jpegtables,
        )
        middle = len(native.offsets) // 2
        expected = page.decode(native.read(middle), middle, jpegtables=page.jpegtables)[0]
        if expected is None or not np.array_equal(native.decode(middle), np.squeeze(expected, axis=0)):
            sys.exit("the bare decoder gives other pixels than tifffile; this floor does not hold for such a slide")
    return native


def decode_all(native: NativeTiles, numbers: Iterable[int]) -> None:
    """Decode native tiles and drop the pixels."""
    for number in numbers:
        native.decode(number)


def cut_all(native: NativeTiles, tiles: npt.NDArray[np.int64], span: int) -> None:
    """Cut tiles out of native ones, each decoded once in a band of tiles and kept while the next bands need it."""
    side = native.side
    decoded: dict[tuple[int, int], Pixels] = {}
    for top in np.unique(tiles[:, 1]).tolist():
        decoded = {place: pixels for place, pixels in decoded.items() if place[1] >= top // side}
        for left in tiles[tiles[:, 1] == top, 0].tolist():
            tile = np.empty((span, span, 3), np.uint8)
            for row in range(top // side, (top + span - 1) // side + 1):
                for col in range(left // side, (left + span - 1) // side + 1):
                    if (col, row) not in decoded:
                        decoded[col, row] = native.decode(row * native.n_cols + col)
                    _paste(tile, decoded[col, row], left - col * side, top - row * side)


def _paste(tile: Pixels, source: Pixels, x: int, y: int) -> None:
    """Copy what `tile`, whose corner lies at (x, y) of `source`, has of it."""
    x0, y0 = max(x, 0), max(y, 0)
    part = source[y0 : y + tile.shape[0], x0 : x + tile.shape[1]]
    tile[y0 - y : y0 - y + part.shape[0], x0 - x : x0 - x + part.shape[1]] = part


def copy_all(native: NativeTiles, numbers: Iterable[int], target: Path) -> None:
    """Copy the bytes of native tiles to a file."""
    with target.open("wb", buffering=0) as file:
        for number in numbers:
            file.write(native.read(number))


def measure(kind: str, native: NativeTiles, tiles: npt.NDArray[np.int64], span: int, job: Job) -> float:
    """Return the seconds that `kind` takes on `job.workers` threads, each with a contiguous part of the work."""
    start = time.perf_counter()
    numbers = native.under(tiles, span)
    with ThreadPoolExecutor(job.workers) as pool:
        if kind == "cut":
            bands = np.array_split(np.unique(tiles[:, 1]), job.workers)
            parts = [tiles[np.isin(tiles[:, 1], band)] for band in bands]
            done = [pool.submit(cut_all, native, part, span) for part in parts]
        else:
            shares = [[int(n) for n in share] for share in np.array_split(numbers, job.workers)]
            targets = [job.out / f"copy-{place}" for place in range(len(shares))]
            done = [
                pool.submit(decode_all, native, share)
                if kind == "decode"
                else pool.submit(copy_all, native, share, target)
                for share, target in zip(shares, targets, strict=True)
            ]
        for future in done:
            future.result()
    return time.perf_counter() - start


def main() -> None:
    """Run one floor: `--kind decode|cut|copy --store STORE`, a store that the job left."""
    job, others = read_job()
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=("decode", "cut", "copy"), required=True)
    parser.add_argument("--store", type=Path, required=True)
    asked = parser.parse_args(others)
    store = TileStore(asked.store)
    tiles, span = store.base_xy(), round(store.base_size_px)
    native = open_native(job.slide)
    seconds = measure(asked.kind, native, tiles, span, job)
    report(len(tiles), seconds, f"{len(native.under(tiles, span))} native tiles of {native.side} px")


if __name__ == "__main__":
    main()

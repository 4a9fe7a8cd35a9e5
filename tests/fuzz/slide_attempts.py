"""Read damaged copies of one slide, each in a child process; prints what came of them as JSON.

python slide_attempts.py SLIDE FOLDER FIRST COUNT READER
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import tifffile
from contained import Report, as_the_program_logs, run_contained
from slide_mutants import Mutant, Original, make_mutant

import simtriplet.wsi.readers  # noqa: F401  (imported once, before the children)
from simtriplet.wsi.errors import SlideOpenError, SlideReadError, TissueError
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.overview import read_overview
from simtriplet.wsi.slide import SlideReader, open_slide
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.survey import survey_slide
from simtriplet.wsi.tiling import SlideJob, TileRequest, tile_slide
from simtriplet.wsi.tissue import TissueSpec

MAX_WINDOWS = 48
WHOLE_JOB_EVERY = 50
EVERYWHERE = TissueSpec(detector="all")


class Attempts:
    """Damaged copies of one slide.

    Args:
        slide: the undamaged file.
        folder: for the damaged ones.
        asked: the reader to use, or "auto".
    """

    def __init__(self, slide: Path, folder: Path, asked: str) -> None:
        self.asked = asked
        self.request = TileRequest(tiling=TilingSpec(size_px=32, mpp=0.5), tissue=EVERYWHERE, reader=asked)
        self.original = Original(slide)
        self.path = folder / f"mutant{slide.suffix}"
        self.out = folder / "out"
        self.levels: list[np.ndarray] = []
        self.boxes: dict[tuple[int, int], tuple[int, int, int, int, int]] = {}
        try:
            with open_slide(slide, reader=asked) as reader:
                self.reader = reader.name
                sizes = reader.info.level_sizes
                self.levels = [reader.read(level, (0, 0), size) for level, size in enumerate(sizes)]
                self._find_boxes(slide, sizes)
        except SlideOpenError:
            self.reader = "none"  # a plain picture: every copy is refused, too

    def _find_boxes(self, slide: Path, sizes: tuple[tuple[int, int], ...]) -> None:
        """Note level, left, top, width and height of every native tile."""
        if not self.original.tiles:
            return
        with tifffile.TiffFile(slide) as tiff:
            pages = {page.index: page for page in tiff.pages if page.is_tiled}
        for index, page in pages.items():
            level = sizes.index((page.imagewidth, page.imagelength))
            for number in range(len(page.dataoffsets)):
                row, col = divmod(number, -(-page.imagewidth // page.tilewidth))
                left, top = col * page.tilewidth, row * page.tilelength
                width = min(page.tilewidth, page.imagewidth - left)
                height = min(page.tilelength, page.imagelength - top)
                self.boxes[index, number] = (level, left, top, width, height)

    def __call__(self, number: int) -> str:
        mutant = make_mutant(self.original, number)
        self.path.write_bytes(mutant.data)
        os.utime(self.path, (number, number))
        found = self._whole_job() if number % WHOLE_JOB_EVERY == 0 else self._read(mutant)
        return f"{found} {mutant.what}" if found.startswith("!") else found

    def _read(self, mutant: Mutant) -> str:
        outcome = ["opened"]
        with open_slide(self.path, reader=self.asked) as reader:
            if mutant.tiles is not None:
                return self._compare(reader, mutant.tiles)
            try:
                read_overview(reader, downsample=4, max_px=256)
                survey_slide(reader, SlideJob(self.path, "mutant", slide_mpp=0.5), self.request)
                outcome.append("surveyed")
            except SlideReadError:
                outcome.append("unreadable-overview")
            except TissueError:
                outcome.append("no-tissue")
            outcome += [self._read_windows(reader, level) for level in range(len(reader.info.level_sizes))]
        return " ".join(outcome)

    def _read_windows(self, reader: SlideReader, level: int) -> str:
        width, height = reader.info.level_sizes[level]
        places = [(x, y) for y in range(0, height, 64) for x in range(0, width, 64)][:MAX_WINDOWS]
        refused = 0
        for place in places:
            try:
                window = reader.read_windows(level, np.array([place]), (64, 64))
            except SlideReadError:
                refused += 1
                continue
            if window.shape != (1, 64, 64, 3) or window.dtype != np.uint8:
                return f"!a window of {window.shape} {window.dtype}"
        return "read-in-part" if refused else "read"

    def _compare(self, reader: SlideReader, damaged: frozenset[tuple[int, int]]) -> str:
        """Read every native tile: what was not damaged is as it was."""
        outcome = []
        for place, (level, left, top, width, height) in self.boxes.items():
            expected = self.levels[level][top : top + height, left : left + width]
            try:
                found = reader.read(level, (left, top), (width, height))
            except SlideReadError as error:
                if place not in damaged:
                    return f"!the undamaged tile {place} is refused: {error}"
                outcome.append("tile-refused")
                continue
            same = np.array_equal(found, expected)
            if place in damaged:
                outcome.append("tile-same" if same else "tile-unseen")
            elif not same:
                return f"!the undamaged tile {place} differs"
        return " ".join(outcome)

    def _whole_job(self) -> str:
        """Tile it: a whole store, or a refusal and none."""
        final = self.out / "mutant.tiles.zarr"
        try:
            job = SlideJob(self.path, "mutant", slide_mpp=0.5)
            tile_slide(job, self.out, self.request, existing="replace", threads=1)
        finally:
            left = sorted(entry.name for entry in self.out.iterdir()) if self.out.exists() else []
            if any(name.endswith(".partial") for name in left):
                raise AssertionError(f"left behind: {left}")
        if not len(TileStore(final)):
            return "!an empty store"
        return "tiled"


def main() -> None:
    slide, folder, first, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    as_the_program_logs()
    attempts = Attempts(slide, folder, sys.argv[5])
    report: Report = run_contained(attempts, range(first, first + count))
    sys.stdout.write(json.dumps({"reader": attempts.reader, **dataclasses.asdict(report)}) + "\n")


if __name__ == "__main__":
    main()

"""Tile one slide with every reader, each in a child of little memory; prints what came of it as JSON.

python bomb_attempts.py SLIDE FOLDER
"""

import dataclasses
import json
import sys
from pathlib import Path

from contained import as_the_program_logs, run_contained

import simtriplet.wsi.readers  # noqa: F401  (imported once, before the children)
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.tiling import SlideJob, TileRequest, tile_slide
from simtriplet.wsi.tissue import TissueSpec

READERS = ("auto", "openslide", "tiffslide")
MEMORY_BYTES = 512 << 20


def main() -> None:
    slide, folder = Path(sys.argv[1]), Path(sys.argv[2])
    as_the_program_logs()

    def attempt(number: int) -> str:
        request = TileRequest(tiling=TilingSpec(size_px=32), tissue=TissueSpec(detector="all"), reader=READERS[number])
        job = SlideJob(slide, f"s{number}", slide_mpp=0.5)
        return tile_slide(job, folder, request, threads=1).status.replace("ok", "tiled")

    report = run_contained(attempt, range(len(READERS)), memory_bytes=MEMORY_BYTES, seconds=20, batch=1)
    sys.stdout.write(json.dumps(dataclasses.asdict(report)) + "\n")


if __name__ == "__main__":
    main()

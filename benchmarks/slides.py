"""Draw one benchmark slide: real tissue texture where it is at hand, else painted.

The texture is CMU-1-Small-Region.svs (OpenSlide's test data, CC0), repeated mirrored within the outlines of the tissue.
"""

import argparse
import logging
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from simtriplet.wsi.synthetic import SyntheticSlideSpec, draw_slide

TEXTURE = "CMU-1-Small-Region.svs"
TISSUE = (slice(816, 2960), slice(864, 1520))
"""Rows and columns of the largest box of the texture that is 95 % tissue; two thirds of the whole region are glass."""


def texture_path() -> Path | None:
    """Return where the real texture lies: in $SIMTRIPLET_DATA/slides, or beside the checkout in shared/data/slides."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("SIMTRIPLET_DATA", beside)) / "slides" / TEXTURE
    return path if path.is_file() else None


def draw(path: Path, *, width_px: int, height_px: int, native_tile_px: int) -> None:
    """Draw the slide: 0.5 um per pixel, levels 1/4/16, JPEG quality 80 4:2:0, 35 % tissue."""
    texture = texture_path()
    canvas: dict[str, npt.NDArray[np.uint8]] = {}
    classes = SyntheticSlideSpec().classes
    if texture is not None:
        # the texture's JPEG tiles cost as much to decode as those of a scan, which painted ones need not
        canvas, classes = {"tissue": tifffile.imread(texture, key=0)[TISSUE]}, ("tissue",)
    spec = SyntheticSlideSpec(
        width_px=width_px, height_px=height_px, native_tile_px=native_tile_px, mpp=0.5, classes=classes
    )
    draw_slide(path, spec, canvas=canvas)


def main() -> None:
    """Draw the slide that the command line asks for, unless it is there, and print its path as the last line."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--height", type=int, required=True)
    parser.add_argument("--native", type=int, required=True, help="side of the file's own tiles, pixels")
    asked = parser.parse_args()
    texture = "painted" if texture_path() is None else "real"
    path = asked.folder / f"{texture}-{asked.width}x{asked.height}-native{asked.native}.svs"
    if not path.exists():
        draw(path, width_px=asked.width, height_px=asked.height, native_tile_px=asked.native)
    print(path)


if __name__ == "__main__":
    main()

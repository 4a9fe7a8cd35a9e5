"""Fixtures of the slide and store tests: pictures with detail at every scale, and tiled TIFF files written by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import tifffile

Pixels = npt.NDArray[np.uint8]
SlideWriter = Callable[..., Path]


def draw_picture(width: int, height: int, seed: int = 0) -> Pixels:
    """Return (height, width, 3) colours that change smoothly, no two places alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def draw_tissue(width: int, height: int, seed: int = 0) -> Pixels:
    """Return (height, width, 3) between the purple of nuclei and the pink of stroma."""
    share = draw_picture(width, height, seed)[..., :1] / 255.0
    return np.rint(share * (228, 150, 196) + (1 - share) * (120, 66, 140)).astype(np.uint8)


def halve(pixels: Pixels) -> Pixels:
    """Return the next level: 2 x 2 means, a last odd row or column left out."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    blocks = pixels[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1).astype(np.float64)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Pixels]:
    """Draw (height, width, 3) uint8 pictures."""
    return draw_picture


@pytest.fixture(scope="session")
def tissue_picture() -> Callable[..., Pixels]:
    """Draw (height, width, 3) uint8 pictures that look stained."""
    return draw_tissue


@pytest.fixture(scope="session")
def write_slide() -> SlideWriter:
    """Write the levels of a picture as a tiled TIFF; one array stands for itself and its halves."""

    def write(
        path: Path,
        pixels: Pixels | Sequence[Pixels],
        *,
        n_levels: int = 1,
        tile: int = 256,
        compression: Any = "deflate",
        mpp: float | tuple[float, float] | None = 0.5,
        unit: str = "CENTIMETER",
        aperio: str | None = None,
        **options: Any,
    ) -> Path:
        levels = [pixels] if isinstance(pixels, np.ndarray) else list(pixels)
        while len(levels) < n_levels:
            levels.append(halve(levels[-1]))
        mpp_xy = mpp if isinstance(mpp, tuple) else (mpp, mpp)
        um = {"CENTIMETER": 10_000.0, "INCH": 25_400.0, "NONE": 1.0}[unit]
        if mpp is not None:
            options |= {"resolution": tuple(um / axis for axis in mpp_xy), "resolutionunit": unit}
        options.setdefault("photometric", "rgb" if levels[0].ndim == 3 else "minisblack")
        with tifffile.TiffWriter(path) as tiff:
            for number, level in enumerate(levels):
                tiff.write(
                    level,
                    tile=(tile, tile),
                    compression=compression,
                    subfiletype=int(number > 0 and aperio is None),
                    description=aperio,
                    metadata=None,
                    **options,
                )
                if aperio and number == 0:  # the second page of an Aperio file is its thumbnail, in strips
                    tiff.write(level[::4, ::4].copy(), photometric="rgb", description=aperio, metadata=None)
        return path

    return write


@pytest.fixture
def flat_slide(tmp_path: Path, write_slide: SlideWriter) -> Path:
    """A slide of 1000 x 700 pixels at 0.5 um, tissue everywhere, without loss."""
    return write_slide(tmp_path / "flat.tif", draw_tissue(1000, 700))

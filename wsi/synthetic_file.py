"""How a synthetic slide becomes a file: a pyramid of encoded tiles, written row by row."""

import contextlib
import itertools
import math
import os
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile

from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.synthetic_scene import Scene, make_scene
from simtriplet.wsi.synthetic_spec import (
    APERIO_COMPRESSION,
    TIFF_COMPRESSION,
    SyntheticRegion,
    SyntheticSlide,
    SyntheticSlideSpec,
)
from simtriplet.wsi.synthetic_texture import Pixels, Texture

__all__ = ["draw_file", "replacing"]

_SOFTWARE = "SimTriplet"
"""By which a drawn slide is known."""

_THUMBNAIL_BOX_PX = (1024, 768)
_Encode = Callable[[Pixels], bytes]
_Tile = tuple[Pixels, bytes]


def _encode_jpeg(pixels: Pixels, quality: int, subsampling: str) -> bytes:
    return bytes(
        imagecodecs.jpeg8_encode(pixels, quality, colorspace="RGB", outcolorspace="YCBCR", subsampling=subsampling)
    )


def _encoder(spec: SyntheticSlideSpec) -> _Encode:
    """Return the function that compresses one tile as the spec asks."""
    encoders: dict[str, _Encode] = {
        "jpeg": lambda pixels: _encode_jpeg(pixels, spec.jpeg_quality, spec.subsampling),
        "jpeg2000": lambda pixels: bytes(imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="j2k")),
        "deflate": lambda pixels: zlib.compress(pixels.tobytes(), 6),
        "none": lambda pixels: pixels.tobytes(),
    }
    return encoders[spec.compression]


@dataclass(slots=True)
class _AreaAverage:
    """Shrink rows that arrive in portions: each result pixel is the mean of factor x factor pixels."""

    factor: int
    _waiting: list[Pixels] = field(default_factory=list)

    def add(self, rows: Pixels) -> Pixels:
        """Take (n, w, 3) rows in and return those that are complete, (m, w // factor, 3)."""
        joined = np.concatenate([*self._waiting, rows])
        height, width = joined.shape[0] // self.factor, joined.shape[1] // self.factor
        self._waiting = [joined[height * self.factor :]]
        if height == 0:
            return np.empty((0, width, 3), np.uint8)
        whole = joined[: height * self.factor, : width * self.factor]
        return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


@dataclass(slots=True)
class _CoarseLevel:
    """Collect a coarser level as compressed tiles, row by row of tiles."""

    average: _AreaAverage
    tile_px: int
    encode: _Encode
    tiles: list[bytes] = field(default_factory=list)
    _rows: list[Pixels] = field(default_factory=list)

    def add(self, finer_rows: Pixels) -> Pixels:
        """Take rows of the finer level in and return the rows of this level that they complete."""
        rows = self.average.add(finer_rows)
        self._rows = [np.concatenate([*self._rows, rows])]
        while len(self._rows[0]) >= self.tile_px:
            self._cut(self._rows[0][: self.tile_px])
            self._rows = [self._rows[0][self.tile_px :]]
        return rows

    def finish(self) -> list[bytes]:
        """Return all tiles, with what is left at the bottom continued downwards to whole tiles."""
        if self._rows and len(self._rows[0]):
            self._cut(self._rows[0])
            self._rows = []
        return self.tiles

    def _cut(self, rows: Pixels) -> None:
        height, width = rows.shape[:2]
        padded = np.pad(rows, ((0, self.tile_px - height), (0, -width % self.tile_px), (0, 0)), mode="edge")
        for x in range(0, width, self.tile_px):
            self.tiles.append(self.encode(np.ascontiguousarray(padded[:, x : x + self.tile_px])))


def _finest_rows(scene: Scene, encode: _Encode) -> Iterator[list[_Tile]]:
    """Yield the rows of tiles of level 0, as pixels and as bytes, while threads paint the next two."""
    glass = [(tile, encode(tile)) for tile in scene.glass]

    def make(tile: tuple[int, int]) -> _Tile:
        pixels = scene.paint(tile)
        return pixels, encode(pixels)

    def start(pool: ThreadPoolExecutor, row: int) -> list[Future[_Tile] | _Tile]:
        tiles = [(column, row) for column in range(scene.grid[0])]
        return [pool.submit(make, t) if t in scene.touched else glass[scene.glass_variant(t)] for t in tiles]

    def collect(started: list[Future[_Tile] | _Tile]) -> list[_Tile]:
        return [item.result() if isinstance(item, Future) else item for item in started]

    with ThreadPoolExecutor(_thread_count()) as pool:
        pending: deque[list[Future[_Tile] | _Tile]] = deque()
        for row in range(scene.grid[1]):
            pending.append(start(pool, row))
            if len(pending) > 2:
                yield collect(pending.popleft())
        while pending:
            yield collect(pending.popleft())


def draw_file(
    path: Path, spec: SyntheticSlideSpec, regions: tuple[SyntheticRegion, ...], textures: Mapping[str, Texture]
) -> SyntheticSlide:
    """Paint, encode and write a slide; it gets its name when it is whole."""
    encode = _encoder(spec)
    scene = make_scene(
        regions,
        textures,
        size_px=(spec.width_px, spec.height_px),
        tile_px=spec.native_tile_px,
        mpp=spec.mpp,
        seed=spec.seed,
    )
    steps = spec.level_downsamples
    coarse = [_CoarseLevel(_AreaAverage(b // a), spec.native_tile_px, encode) for a, b in itertools.pairwise(steps)]
    box_width, box_height = _THUMBNAIL_BOX_PX
    shrink = _AreaAverage(max(1, math.ceil(spec.width_px / box_width), math.ceil(spec.height_px / box_height)))
    thumbnail: list[Pixels] = []

    def finest_tiles() -> Generator[bytes, None, None]:
        for row, tiles in enumerate(_finest_rows(scene, encode)):
            band = np.concatenate([pixels for pixels, _ in tiles], axis=1)
            band = band[: spec.height_px - row * spec.native_tile_px, : spec.width_px]
            thumbnail.append(shrink.add(band))
            for level in coarse:
                band = level.add(band)
            yield from (encoded for _, encoded in tiles)

    _refuse_other_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A classic TIFF ends at 4 GiB; JPEG stays below a third of the pixels up to quality 95.
    small = spec.compression == "jpeg" and spec.jpeg_quality <= 95
    bound = 1.4 * 3 * spec.width_px * spec.height_px / (3 if small else 1)
    with replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=bound > 2**32 - 2**25) as tiff:
        with contextlib.closing(finest_tiles()) as tiles:
            _write_level(tiff, spec, 0, tiles)
        _write_thumbnail(tiff, spec, np.concatenate(thumbnail))
        for number, level in enumerate(coarse, 1):
            _write_level(tiff, spec, number, iter(level.finish()))
    return SyntheticSlide(path, spec, regions)


def _refuse_other_file(path: Path) -> None:
    """A drawing takes the place of a drawing and of nothing else: the path may be that of somebody's slide."""
    if not path.exists():
        return
    try:
        with tifffile.TiffFile(path) as found:
            is_drawn = found.pages.first.software == _SOFTWARE
    except (OSError, ValueError, LookupError, tifffile.TiffFileError):
        is_drawn = False
    if not is_drawn:
        raise SettingsError(f"slide '{path}': is there and was not drawn by this program; draw to another path")


def _write_level(tiff: tifffile.TiffWriter, spec: SyntheticSlideSpec, level: int, tiles: Iterator[bytes]) -> None:
    width, height = spec.level_sizes_px[level]
    jpeg = spec.compression == "jpeg"
    _write_page(
        tiff,
        tiles,
        (height, width, 3),
        description=_describe_level(spec, level),
        tile=(spec.native_tile_px, spec.native_tile_px),
        compression=TIFF_COMPRESSION[spec.compression],
        subsampling=((2, 2) if spec.subsampling == "420" else (1, 1)) if jpeg else None,
    )


def _write_thumbnail(tiff: tifffile.TiffWriter, spec: SyntheticSlideSpec, pixels: Pixels) -> None:
    height, width = pixels.shape[:2]
    strips = (_encode_jpeg(pixels[y : y + 16], spec.jpeg_quality, "420") for y in range(0, height, 16))
    about = f"Aperio Image Library v12.0.0\r\n{spec.width_px}x{spec.height_px} -> {width}x{height} - "
    _write_page(tiff, strips, pixels.shape, description=about, rowsperstrip=16, compression=7, subsampling=(2, 2))


def _write_page(
    tiff: tifffile.TiffWriter, chunks: Iterator[bytes], shape: tuple[int, ...], *, description: str, **layout: Any
) -> None:
    tiff.write(
        chunks,
        shape=shape,
        dtype=np.uint8,
        photometric="rgb",
        description=description,
        metadata=None,
        software=_SOFTWARE,
        **layout,
    )


def _describe_level(spec: SyntheticSlideSpec, level: int) -> str:
    """Return the ImageDescription that makes a reader take the file for a scan from an Aperio scanner."""
    (base_width, base_height), (width, height) = spec.level_sizes_px[0], spec.level_sizes_px[level]
    area = f"{base_width}x{base_height} [0,0 {base_width}x{base_height}] ({spec.native_tile_px}x{spec.native_tile_px})"
    scaled = f" -> {width}x{height}" if level else ""
    codec = APERIO_COMPRESSION[spec.compression].format(quality=spec.jpeg_quality)
    text = f"Aperio Image Library v12.0.0\r\n{area}{scaled} {codec}"
    if level or not spec.description_mpp:
        return text
    rounded = f"{spec.mpp:.4f}"
    mpp = rounded if float(rounded) == spec.mpp else repr(spec.mpp)
    return f"{text}|AppMag = {max(1, round(10 / spec.mpp))}|MPP = {mpp}|Filtered = 5"


def _thread_count() -> int:
    return min(8, len(os.sched_getaffinity(0)))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` that becomes `path` on success and is removed on failure."""
    temporary = path.with_name(f"{path.name}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

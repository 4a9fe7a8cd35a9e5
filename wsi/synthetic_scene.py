"""The picture of a synthetic slide, block by block: which texture lies where, and glass around it."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from simtriplet.wsi.synthetic_texture import GLASS_GREY, Pixels, Placement, Texture

__all__ = ["Scene", "make_scene"]

_GLASS_VARIANTS = 8
_BORDER_BLUR_UM = 1.5


@dataclass(frozen=True, slots=True)
class Scene:
    """Hold what is needed to paint any tile of level 0 on its own.

    Args:
        tile_px: side of a tile.
        grid: (columns, rows) of tiles.
        border_px: standard deviation of the soft border between regions.
        rings: for each region its rings, (n, 2) int64 level-0 pixels.
        textures, placements: for each region.
        touched: tile (column, row) to the regions it meets.
        filled: tiles that lie within one region.
        glass: variants of an empty tile.
    """

    tile_px: int
    grid: tuple[int, int]
    border_px: float
    rings: list[list[npt.NDArray[np.int64]]]
    textures: list[Texture]
    placements: list[Placement]
    touched: dict[tuple[int, int], list[int]]
    filled: set[tuple[int, int]]
    glass: list[Pixels]

    def glass_variant(self, tile: tuple[int, int]) -> int:
        """Return which empty tile to show at `tile`, in no visible order."""
        return zlib.crc32(repr(tile).encode()) % len(self.glass)

    def paint(self, tile: tuple[int, int]) -> Pixels:
        """Return the (tile_px, tile_px, 3) pixels of a tile that meets tissue."""
        size, found = self.tile_px, self.touched[tile]
        base = (tile[0] * size, tile[1] * size)
        if tile in self.filled:
            return self.textures[found[0]].window(base, (size, size), self.placements[found[0]])
        margin = math.ceil(3 * self.border_px)
        origin = np.array(base) - margin
        labels = np.zeros((size + 2 * margin, size + 2 * margin), np.int32)
        for label, index in enumerate(found, 1):
            # Ours count from pixel corners, cv2's from pixel centres; with shift=1 its last bit is half a pixel.
            corners = [((ring - origin) * 2 - 1).astype(np.int32) for ring in self.rings[index]]
            cv2.fillPoly(labels, corners, label, shift=1)
        blended = np.zeros((size, size, 3), np.float32)
        for label in np.flatnonzero(np.bincount(labels.ravel())).tolist():
            weight = cv2.GaussianBlur((labels == label).astype(np.float32), (2 * margin + 1,) * 2, self.border_px)
            index = found[label - 1]
            source = (
                self.textures[index].window(base, (size, size), self.placements[index])
                if label
                else self.glass[self.glass_variant(tile)]
            )
            blended += weight[margin:-margin, margin:-margin, None] * source
        return np.rint(blended).astype(np.uint8)


def make_scene(
    regions: Sequence[tuple[str, shapely.Polygon]],
    textures: Mapping[str, Texture],
    *,
    size_px: tuple[int, int],
    tile_px: int,
    mpp: float,
    seed: int,
) -> Scene:
    """Prepare the painting of a slide.

    Args:
        regions: (class name, outline in level-0 pixels), not overlapping.
        textures: of every class.
        size_px: (width, height) of level 0.
        tile_px: side of a tile.
        mpp: micrometres per pixel of level 0.
        seed: decides which part of its texture a region shows, and the noise of the glass.
    """
    rng = np.random.default_rng([seed, 1])
    size, grid = tile_px, (math.ceil(size_px[0] / tile_px), math.ceil(size_px[1] / tile_px))
    border = max(0.8, _BORDER_BLUR_UM / mpp)
    columns, rows = (axis.ravel() for axis in np.meshgrid(np.arange(grid[0]), np.arange(grid[1])))
    reach = math.ceil(3 * border) + 1
    boxes = shapely.box(
        columns * size - reach, rows * size - reach, (columns + 1) * size + reach, (rows + 1) * size + reach
    )
    tree = shapely.STRtree([polygon for _, polygon in regions])
    touched: dict[tuple[int, int], list[int]] = {}
    for box, region in sorted(tree.query(boxes, predicate="intersects").T.tolist()):
        touched.setdefault((int(columns[box]), int(rows[box])), []).append(region)
    within = tree.query(boxes, predicate="within")[0]
    return Scene(
        tile_px=size,
        grid=grid,
        border_px=border,
        rings=[[shapely.get_coordinates(r).astype(np.int64) for r in (p.exterior, *p.interiors)] for _, p in regions],
        textures=[textures[name] for name, _ in regions],
        placements=[_random_placement(rng) for _ in regions],
        touched=touched,
        filled={(int(columns[box]), int(rows[box])) for box in within},
        glass=[_paint_glass(size, rng) for _ in range(_GLASS_VARIANTS)],
    )


def _random_placement(rng: np.random.Generator) -> Placement:
    shift_x, shift_y = rng.integers(0, 1 << 20, 2).tolist()
    flip_x, flip_y, transpose = (rng.random(3) < 0.5).tolist()
    return Placement((shift_x, shift_y), flip_x, flip_y, transpose)


def _paint_glass(size_px: int, rng: np.random.Generator) -> Pixels:
    tint = np.array([0.4, -0.2, 0.2])
    light = GLASS_GREY + tint + rng.normal(0, 1.1, (size_px, size_px, 1)) + rng.normal(0, 0.5, (size_px, size_px, 3))
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)

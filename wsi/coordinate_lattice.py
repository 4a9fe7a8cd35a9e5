"""Find the lattice that given tile positions lie on, so that adjacency has rows and columns to go by."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["FoundLattice", "find_lattice"]


_MOST_SHARED, _WIDEST = 32, 4
"""A pitch below a 32nd of a tile or above four tiles is that of chance: tiles so far apart must not become neighbours."""


@dataclass(frozen=True, slots=True)
class FoundLattice:
    """Rows and columns of n tiles.

    CLAM begins a lattice of its own at the corner of every contour. Tiles of one lattice have the columns and rows of that
    lattice; the lattices lie below one another, so far apart that no tile is adjacent to one of another lattice.

    Attributes:
        row: (n,) int64.
        col: (n,) int64.
        part: (n,) int64, number of the lattice.
        pitch: distance of adjacent tiles, level-0 pixels.
    """

    row: npt.NDArray[np.int64]
    col: npt.NDArray[np.int64]
    part: npt.NDArray[np.int64]
    pitch: int

    @property
    def n_parts(self) -> int:
        """Number of lattices."""
        return int(self.part.max(initial=-1)) + 1


def find_lattice(base_xy: npt.NDArray[np.int64], base_size: float, *, base_overlap: int = 0) -> FoundLattice:
    """Find rows and columns.

    The pitch is the commonest distance of tiles that follow one another in a row or column, where that can be one. Tiles
    whose positions differ by whole pitches lie on one lattice. Tiles on no common lattice get one each, so that they have
    no adjacent tiles.

    Args:
        base_xy: (n, 2) int64, level-0 pixels, top-left; all different.
        base_size: side of a tile, level-0 pixels.
        base_overlap: of TRIDENT's tiles, see `TileCoordinates`.
    """
    if base_overlap:
        base_xy = _without_long_steps(base_xy, round(base_size), base_overlap)
    pitch = _pitch(base_xy, max(1, round(base_size)))
    _, part = np.unique(base_xy % pitch, axis=0, return_inverse=True)
    part = part.reshape(-1).astype(np.int64)
    n_parts = int(part.max(initial=-1)) + 1
    low = np.full((n_parts, 2), np.iinfo(np.int64).max)
    np.minimum.at(low, part, base_xy)
    cells = (base_xy - low[part]) // pitch
    heights = np.zeros(n_parts, np.int64)
    np.maximum.at(heights, part, cells[:, 1] + 1)
    gap = math.ceil(base_size / pitch) + 1  # adjacency of overlapping tiles reaches so far
    tops = np.concatenate([[0], np.cumsum(heights + gap)[:-1]]) if n_parts else heights
    return FoundLattice(cells[:, 1] + tops[part], cells[:, 0], part, pitch)


def _without_long_steps(base_xy: npt.NDArray[np.int64], side: int, overlap: int) -> npt.NDArray[np.int64]:
    """Move all columns and rows but the first back by the overlap, where that puts all of them on one lattice.

    TRIDENT rounds both lengths on its own and writes the side rounded down: its first step may be a pixel longer, and its overlap
    a pixel more or less. That is looked for only where tiles do follow one another at such a distance.
    """
    pitch = _pitch(base_xy, max(1, side))
    rounded = [(first, first - pitch) for first in (side, side + 1) if abs(first - pitch - overlap) <= 1]
    for first, shared in [(side, overlap), *rounded]:
        if shared > 0 and _follow_a_long_step(base_xy, first, first - shared):
            return np.where(base_xy == 0, 0, base_xy - shared)
    return base_xy


def _follow_a_long_step(base_xy: npt.NDArray[np.int64], first: int, step: int) -> bool:
    """Tell whether all columns and rows lie at 0, or at a first step and whole others after it, which chance does not reach."""
    return first <= _MOST_SHARED * step and bool(
        ((base_xy == 0) | (base_xy >= first) & ((base_xy - first) % step == 0)).all()
    )


def _pitch(base_xy: npt.NDArray[np.int64], side: int) -> int:
    found = []
    for along in (0, 1):
        order = np.lexsort((base_xy[:, along], base_xy[:, 1 - along]))
        steps, changes = np.diff(base_xy[order], axis=0)[:, [along, 1 - along]].T
        found.append(steps[changes == 0])
    steps, counts = np.unique(np.concatenate(found), return_counts=True)
    if not len(steps):
        return side
    pitch = int(steps[counts.argmax()])
    return pitch if side <= _MOST_SHARED * pitch and pitch <= _WIDEST * side else side

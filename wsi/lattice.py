"""Tiles on their lattice: who lies in a cell, and who lies at fixed offsets from each tile."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.adjacency import Adjacency
from simtriplet.wsi.errors import NeighbourError

__all__ = ["Lattice", "join_offsets"]

_BLOCK = 1 << 14  # tiles; their columns of neighbours then stay in the second-level cache
_DENSE_CELLS_PER_TILE = 16
_NONE = np.uint32(0xFFFF_FFFE)


class Lattice:
    """Look tiles up by their lattice cell: a dense table where the bounding box is small, else a sorted list of keys.

    Args:
        row: (n,) lattice row of each tile.
        col: (n,) lattice column.
        margin: cells around the bounding box, so that a step across its border finds no tile of the next row.

    Raises:
        NeighbourError: if two tiles lie in one cell.
    """

    def __init__(self, row: npt.NDArray[np.integer[Any]], col: npt.NDArray[np.integer[Any]], *, margin: int) -> None:
        self.n_tiles = len(row)
        top, left = (int(row.min()), int(col.min())) if self.n_tiles else (0, 0)
        height = int(row.max()) - top + 1 if self.n_tiles else 1
        width = int(col.max()) - left + 1 if self.n_tiles else 1
        self.width = width + 2 * margin
        cells = self.width * (height + 2 * margin)
        self.keys = (row.astype(np.int64) - (top - margin)) * self.width + (col.astype(np.int64) - (left - margin))
        self._table: npt.NDArray[np.int32] | None = None
        numbers = np.arange(self.n_tiles, dtype=np.int32)
        if cells <= _DENSE_CELLS_PER_TILE * self.n_tiles + (1 << 20):
            self._table = np.full(cells, -1, np.int32)
            self._table[self.keys] = numbers
        else:
            self._order = np.argsort(self.keys).astype(np.int32)
            self._sorted = self.keys[self._order]
        shared = np.flatnonzero(self.at(self.keys) != numbers)
        if len(shared):
            raise NeighbourError(
                f"tile {shared[0]}: lies in one lattice cell with tile {self.at(self.keys[shared[:1]])[0]}: "
                "must be alone; tile the slide again"
            )

    def at(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Return the tile at each cell, -1 where there is none."""
        if self._table is not None:
            return self._table.take(keys)
        places = np.minimum(np.searchsorted(self._sorted, keys), self.n_tiles - 1)
        return np.where(self._sorted[places] == keys, self._order[places], np.int32(-1)).astype(np.int32)


def join_offsets(lattice: Lattice, offsets: Sequence[tuple[int, int]], pitch_um: float) -> Adjacency:
    """Join each tile with the tiles at fixed lattice offsets.

    Args:
        lattice: the tiles.
        offsets: (rows, columns) away, within the lattice's margin; straight or exactly diagonal, all of one pitch.
        pitch_um: length of a straight offset.
    """
    shifts = [dr * lattice.width + dc for dr, dc in offsets]
    # the lowest bit carries "diagonal" through the sort; the missing tile, -1, becomes at least _NONE
    diagonals = [np.uint32(dr != 0 and dc != 0) for dr, dc in offsets]
    lengths = np.array([pitch_um, pitch_um * math.sqrt(2)])
    counts = np.zeros(lattice.n_tiles + 1, np.int64)
    # room for all; the system gives memory only to what is written
    indices = np.empty(lattice.n_tiles * len(offsets), np.int32)
    distances = np.empty(lattice.n_tiles * len(offsets), np.float64)
    filled = 0
    for start in range(0, lattice.n_tiles, _BLOCK):
        keys = lattice.keys[start : start + _BLOCK]
        found = np.empty((len(keys), len(offsets)), np.uint32)
        for place, (shift, diagonal) in enumerate(zip(shifts, diagonals, strict=True)):
            found[:, place] = (lattice.at(keys + shift).view(np.uint32) << np.uint32(1)) | diagonal
        found.sort(axis=1)
        present = found < _NONE
        counts[start + 1 : start + 1 + len(keys)] = np.count_nonzero(present, axis=1)
        flat = found[present]
        stop = filled + len(flat)
        np.right_shift(flat, 1, out=indices[filled:stop], casting="unsafe")
        lengths.take(flat & np.uint32(1), out=distances[filled:stop], mode="clip")
        filled = stop
    return Adjacency(np.cumsum(counts), indices[:filled], distances[:filled])

"""A symmetric relation between the tiles of one slide, as CSR rows."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Adjacency", "adjacency_of_pairs", "row_blocks"]

_BLOCK_ENTRIES = 1 << 18


class Adjacency(NamedTuple):
    """CSR rows of a symmetric relation.

    Attributes:
        indptr: (n + 1,) int64.
        indices: (m,) int32, sorted within each row.
        distances_um: (m,) float64.
    """

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    distances_um: npt.NDArray[np.float64]

    @property
    def n_pairs(self) -> int:
        """Number of unordered pairs."""
        return len(self.indices) // 2

    def anchors(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """Return the anchor of each entry of the rows from `start` to before `stop`."""
        return np.repeat(np.arange(start, stop, dtype=np.int32), np.diff(self.indptr[start : stop + 1]))


def row_blocks(indptr: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of successive rows with about 2^18 entries together, so that work on them stays in the cache."""
    start, n_rows = 0, len(indptr) - 1
    while start < n_rows:
        full = int(np.searchsorted(indptr, indptr[start] + _BLOCK_ENTRIES, side="right")) - 1
        stop = min(max(full, start + 1), n_rows)
        yield start, stop
        start = stop


def adjacency_of_pairs(
    low: npt.NDArray[np.integer[Any]],
    high: npt.NDArray[np.integer[Any]],
    distances_um: npt.NDArray[np.float64],
    *,
    n_tiles: int,
) -> Adjacency:
    """Turn unordered pairs into sorted CSR rows.

    Args:
        low: (k,) one tile of each pair; each pair once.
        high: (k,) the other one.
        distances_um: (k,) between their centres.
        n_tiles: tiles of the slide.
    """
    anchors, others = np.concatenate([low, high]), np.concatenate([high, low])
    order = np.lexsort((others, anchors))
    indptr = np.zeros(n_tiles + 1, np.int64)
    np.cumsum(np.bincount(anchors, minlength=n_tiles), out=indptr[1:])
    return Adjacency(indptr, others[order].astype(np.int32), np.tile(distances_um, 2)[order])

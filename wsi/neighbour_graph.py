"""The neighbour graph of one slide's tiles, as it is read from a store."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["NeighbourGraph"]


@dataclass(frozen=True, slots=True)
class NeighbourGraph:
    """Which tiles are each other's inter-sample positives, as CSR rows.

    Attributes:
        indptr: (n + 1,) int64; the neighbours of tile i are indices[indptr[i]:indptr[i + 1]].
        indices: (m,) int32, sorted within a row, symmetric, no self loops.
        distances_um: (m,) float64, micrometres between tile centres.
        rule: what built it, as recorded.
    """

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    distances_um: npt.NDArray[np.float64]
    rule: dict[str, Any]

    @property
    def degrees(self) -> npt.NDArray[np.int64]:
        """(n,) number of neighbours of each tile."""
        return np.diff(self.indptr)

    @property
    def n_pairs(self) -> int:
        """Number of unordered pairs."""
        return len(self.indices) // 2

    def check_extent(self, n_tiles: int) -> None:
        """Make sure that rows and neighbours are those of so many tiles.

        Raises:
            ValueError: if they are not.
        """
        if self.indptr.shape != (n_tiles + 1,) or self.indices.shape != self.distances_um.shape:
            raise ValueError("half written")
        if self.indptr[0] != 0 or self.indptr[-1] != len(self.indices) or (np.diff(self.indptr) < 0).any():
            raise ValueError("half written")
        if len(self.indices) and not 0 <= self.indices.min() <= self.indices.max() < n_tiles:
            raise ValueError("damaged (it points at tiles that do not exist)")

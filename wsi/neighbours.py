"""Rules that say which tiles are neighbours; one small class each, no quadratic step anywhere.

A rule returns every candidate pair from both sides, without self loops; gates (simtriplet.wsi.gates) then drop pairs.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.errors import NeighbourError
from simtriplet.wsi.registry import Registry

__all__ = ["RULES", "Adjacency", "GridRule", "KnnRule", "NeighbourRule", "RadiusRule", "RingRule", "TilePlaces"]

_BLOCK = 1 << 20
_DENSE_CELLS_PER_TILE = 16
_DISTANCE_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class TilePlaces:
    """Where the n tiles of one slide lie.

    Attributes:
        row: (n,) int, lattice row, at stride pitch.
        col: (n,) int, lattice column.
        centres_um: (n, 2) float64, micrometres.
        size_px: side of a tile, tile pixels.
        stride_px: lattice pitch, tile pixels.
        mpp: micrometres per tile pixel.
    """

    row: npt.NDArray[np.integer[Any]]
    col: npt.NDArray[np.integer[Any]]
    centres_um: npt.NDArray[np.float64]
    size_px: int
    stride_px: int
    mpp: float

    def __len__(self) -> int:
        return len(self.row)


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


class NeighbourRule(Protocol):
    """Find candidate pairs among the tiles of one slide."""

    name: ClassVar[str]

    def adjacency(self, places: TilePlaces) -> Adjacency:
        """Return the symmetric relation, sorted, without self loops."""


RULES: Registry[type[Any]] = Registry("neighbour rule")


@dataclass(frozen=True, slots=True)
class GridRule:
    """Adjacency on the lattice.

    With overlapping tiles (stride < size) the nearest lattice neighbours share pixels with the anchor and would make the
    inter-sample term trivial, so the pitch is the smallest multiple of the stride that is at least the tile's size.

    Args:
        connectivity: 4 (edges) or 8 (edges and corners).
        allow_overlap: take the nearest lattice neighbours even where tiles overlap.
    """

    connectivity: int = 8
    allow_overlap: bool = False
    name: ClassVar[str] = "grid"

    def __post_init__(self) -> None:
        if self.connectivity not in (4, 8):
            raise NeighbourError(f"connectivity {self.connectivity}: must be 4 or 8; pass --connectivity 8")

    def adjacency(self, places: TilePlaces) -> Adjacency:
        """See NeighbourRule."""
        step = 1 if self.allow_overlap else math.ceil(places.size_px / places.stride_px)
        offsets = [(dr, dc) for dr in (-step, 0, step) for dc in (-step, 0, step) if (dr, dc) != (0, 0)]
        if self.connectivity == 4:
            offsets = [(dr, dc) for dr, dc in offsets if dr == 0 or dc == 0]
        lattice = _Lattice(places.row, places.col, margin=step)
        pitch_um = step * places.stride_px * places.mpp
        return _gather(lattice, offsets, pitch_um)


@dataclass(frozen=True, slots=True)
class RadiusRule:
    """All tiles whose centres lie within a distance.

    Args:
        radius_um: micrometres, between centres.
    """

    radius_um: float
    name: ClassVar[str] = "radius"

    def __post_init__(self) -> None:
        if not self.radius_um > 0 or not math.isfinite(self.radius_um):
            raise NeighbourError(f"radius {self.radius_um} um: must be a positive number; pass --radius-um")

    def adjacency(self, places: TilePlaces) -> Adjacency:
        """See NeighbourRule."""
        return RingRule(0.0, self.radius_um).adjacency(places)


@dataclass(frozen=True, slots=True)
class RingRule:
    """All tiles whose centres lie between two distances.

    Args:
        inner_um: micrometres, exclusive.
        outer_um: micrometres, inclusive.
    """

    inner_um: float
    outer_um: float
    name: ClassVar[str] = "ring"

    def __post_init__(self) -> None:
        if not 0 <= self.inner_um < self.outer_um < math.inf:
            raise NeighbourError(
                f"ring {self.inner_um}..{self.outer_um} um: must satisfy 0 <= inner < outer; pass --inner-um and --radius-um"
            )

    def adjacency(self, places: TilePlaces) -> Adjacency:
        """See NeighbourRule."""
        import scipy.spatial

        tree = scipy.spatial.cKDTree(places.centres_um)
        # centres in micrometres are rounded, which must not decide about lattice neighbours at just that distance
        pairs = tree.query_pairs(self.outer_um * (1 + _DISTANCE_SLACK), output_type="ndarray")
        return _from_pairs(pairs, places, inner_um=self.inner_um * (1 + _DISTANCE_SLACK))


@dataclass(frozen=True, slots=True)
class KnnRule:
    """The k nearest tiles of each; a pair counts when either tile has the other among its k.

    Args:
        k: number of nearest tiles.
    """

    k: int
    name: ClassVar[str] = "knn"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise NeighbourError(f"k {self.k}: must be at least 1; pass --k 8")

    def adjacency(self, places: TilePlaces) -> Adjacency:
        """See NeighbourRule."""
        import scipy.spatial

        n_tiles = len(places)
        k = min(self.k, n_tiles - 1)
        if k < 1:
            return _from_pairs(np.zeros((0, 2), np.int64), places)
        tree = scipy.spatial.cKDTree(places.centres_um)
        near = np.asarray(tree.query(places.centres_um, k=k + 1)[1]).reshape(n_tiles, k + 1)
        anchors = np.repeat(np.arange(n_tiles), k + 1).reshape(near.shape)
        others = near != anchors
        others[others.all(axis=1), -1] = False  # the tile itself was tied out by others at the same place
        low, high = np.minimum(anchors[others], near[others]), np.maximum(anchors[others], near[others])
        unique = np.unique(low.astype(np.int64) * n_tiles + high)
        return _from_pairs(np.column_stack([unique // n_tiles, unique % n_tiles]), places)


for _rule in (GridRule, RadiusRule, RingRule, KnnRule):
    RULES.add(_rule.name, _rule)


class _Lattice:
    """Look tiles up by their lattice cell: a dense table where the bounding box is small, else a sorted list of keys."""

    def __init__(self, row: npt.NDArray[np.integer[Any]], col: npt.NDArray[np.integer[Any]], *, margin: int) -> None:
        self.n_tiles = len(row)
        top, left = (int(row.min()), int(col.min())) if self.n_tiles else (0, 0)
        height = int(row.max()) - top + 1 if self.n_tiles else 1
        width = int(col.max()) - left + 1 if self.n_tiles else 1
        self.width = width + 2 * margin
        cells = self.width * (height + 2 * margin)
        self.keys = (row.astype(np.int64) - (top - margin)) * self.width + (col.astype(np.int64) - (left - margin))
        self._table: npt.NDArray[np.int32] | None = None
        if cells <= _DENSE_CELLS_PER_TILE * self.n_tiles + (1 << 20):
            self._table = np.full(cells, -1, np.int32)
            self._table[self.keys] = np.arange(self.n_tiles, dtype=np.int32)
        else:
            self._order = np.argsort(self.keys).astype(np.int32)
            self._sorted = self.keys[self._order]

    def at(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Return the tile at each cell, -1 where there is none."""
        if self._table is not None:
            return self._table[keys]
        places = np.minimum(np.searchsorted(self._sorted, keys), self.n_tiles - 1)
        return np.where(self._sorted[places] == keys, self._order[places], np.int32(-1)).astype(np.int32)


def _gather(lattice: _Lattice, offsets: list[tuple[int, int]], pitch_um: float) -> Adjacency:
    """Collect the tiles at fixed lattice offsets, block by block so that memory stays near the size of the result."""
    shifts = np.array([dr * lattice.width + dc for dr, dc in offsets], dtype=np.int64)
    diagonal = np.array([dr != 0 and dc != 0 for dr, dc in offsets])
    far = np.int64(1) << 32
    counts = np.zeros(lattice.n_tiles + 1, np.int64)
    indices, distances = [np.zeros(0, np.int32)], [np.zeros(0, np.float64)]
    for start in range(0, lattice.n_tiles, _BLOCK):
        keys = lattice.keys[start : start + _BLOCK]
        found = np.empty((len(keys), len(offsets)), np.int64)
        for place, shift in enumerate(shifts):
            tiles = lattice.at(keys + shift).astype(np.int64)
            # the lowest bit carries "diagonal" through the sort
            found[:, place] = np.where(tiles >= 0, 2 * tiles + int(diagonal[place]), far)
        found.sort(axis=1)
        present = found < far
        counts[start + 1 : start + 1 + len(keys)] = present.sum(axis=1)
        flat = found[present]
        indices.append((flat >> 1).astype(np.int32))
        distances.append(np.where(flat & 1, pitch_um * math.sqrt(2), pitch_um))
    return Adjacency(np.cumsum(counts), np.concatenate(indices), np.concatenate(distances))


def _from_pairs(pairs: npt.NDArray[Any], places: TilePlaces, *, inner_um: float = 0.0) -> Adjacency:
    """Turn unordered pairs into sorted CSR rows with distances above `inner_um`."""
    low, high = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)
    gap = places.centres_um[low] - places.centres_um[high]
    distances = np.hypot(gap[:, 0], gap[:, 1])
    if inner_um > 0:
        kept = distances > inner_um
        low, high, distances = low[kept], high[kept], distances[kept]
    anchors, others = np.concatenate([low, high]), np.concatenate([high, low])
    order = np.lexsort((others, anchors))
    counts = np.bincount(anchors, minlength=len(places))
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Adjacency(indptr, others[order].astype(np.int32), np.tile(distances, 2)[order])

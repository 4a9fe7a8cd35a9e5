"""Rules that say which tiles are neighbours; one small class each, no quadratic step anywhere.

A rule returns every candidate pair from both sides, without self loops; gates (simtriplet.wsi.gates) then drop pairs.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.adjacency import Adjacency, adjacency_of_pairs
from simtriplet.wsi.errors import NeighbourError
from simtriplet.wsi.lattice import Lattice, join_offsets
from simtriplet.wsi.registry import Registry

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

__all__ = ["RULES", "Adjacency", "GridRule", "KnnRule", "NeighbourRule", "RadiusRule", "RingRule", "TilePlaces"]

_DISTANCE_SLACK = 1e-9
_MAX_ENTRIES = 1 << 31


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
        lattice = Lattice(places.row, places.col, margin=step)
        return join_offsets(lattice, offsets, step * places.stride_px * places.mpp)


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
        outer_um = self.outer_um * (1 + _DISTANCE_SLACK)
        _refuse_too_many(tree, outer_um, len(places))
        pairs = tree.query_pairs(outer_um, output_type="ndarray")
        return _measure(pairs, places, inner_um=self.inner_um * (1 + _DISTANCE_SLACK))


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
            return _measure(np.zeros((0, 2), np.int64), places)
        tree = scipy.spatial.cKDTree(places.centres_um)
        near = np.asarray(tree.query(places.centres_um, k=k + 1)[1]).reshape(n_tiles, k + 1)
        anchors = np.repeat(np.arange(n_tiles), k + 1).reshape(near.shape)
        others = near != anchors
        others[others.all(axis=1), -1] = False  # the tile itself was tied out by others at the same place
        low, high = np.minimum(anchors[others], near[others]), np.maximum(anchors[others], near[others])
        unique = np.unique(low.astype(np.int64) * n_tiles + high)
        return _measure(np.column_stack([unique // n_tiles, unique % n_tiles]), places)


for _rule in (GridRule, RadiusRule, RingRule, KnnRule):
    RULES.add(_rule.name, _rule)


def _refuse_too_many(tree: "cKDTree", outer_um: float, n_tiles: int) -> None:
    """Count before collecting: a distance given in the wrong unit would join everything with everything."""
    n_entries = int(tree.count_neighbors(tree, outer_um)) - n_tiles
    if n_entries > _MAX_ENTRIES:
        raise NeighbourError(
            f"radius {outer_um:g} um: gives {n_entries / n_tiles:,.0f} neighbours a tile, {n_entries:,} in all: must be "
            f"at most {_MAX_ENTRIES:,}; pass a smaller --radius-um"
        )


def _measure(pairs: npt.NDArray[Any], places: TilePlaces, *, inner_um: float = 0.0) -> Adjacency:
    """Turn (k, 2) unordered pairs into rows, those farther apart than `inner_um` where it is not 0."""
    low, high = pairs[:, 0], pairs[:, 1]
    gap = places.centres_um[low] - places.centres_um[high]
    distances = np.hypot(gap[:, 0], gap[:, 1])
    if inner_um > 0:
        kept = distances > inner_um
        low, high, distances = low[kept], high[kept], distances[kept]
    return adjacency_of_pairs(low, high, distances, n_tiles=len(places))

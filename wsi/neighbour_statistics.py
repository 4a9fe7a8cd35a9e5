"""What a neighbour index is like: degrees, tiles alone, distances, and how often two neighbours have one label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.adjacency import Adjacency, row_blocks
from simtriplet.wsi.index_reader import read_index
from simtriplet.wsi.neighbour_graph import NeighbourGraph
from simtriplet.wsi.store import SPATIAL, TileStore

__all__ = ["DistanceCounts", "NeighbourStatistics", "add_statistics", "measure_neighbours"]

_STEP_UM = 0.1


class DistanceCounts(NamedTuple):
    """Unordered pairs by the distance between their centres, in steps of a tenth of a micrometre.

    Attributes:
        um: (k,) float64, ascending.
        pairs: (k,) int64.
        labelled: (k,) int64, those of them in which both tiles have a label.
        agreeing: (k,) int64, those in which the two labels are one.
    """

    um: npt.NDArray[np.float64]
    pairs: npt.NDArray[np.int64]
    labelled: npt.NDArray[np.int64]
    agreeing: npt.NDArray[np.int64]

    @property
    def median_um(self) -> float | None:
        """Median over pairs, None where there are none."""
        if not self.pairs.sum():
            return None
        return float(self.um[np.searchsorted(np.cumsum(self.pairs), (self.pairs.sum() + 1) // 2)])

    @property
    def mean_um(self) -> float | None:
        """Mean over pairs, None where there are none."""
        return float(np.average(self.um, weights=self.pairs)) if self.pairs.sum() else None

    def binned(self, n_bins: int) -> "DistanceCounts":
        """Return at most `n_bins` rows: these as they are, or bins of equal width named by their upper ends."""
        if len(self.um) <= n_bins:
            return self
        edges = np.linspace(0, self.um[-1], n_bins + 1)[1:]
        place = np.minimum(np.searchsorted(edges, self.um), n_bins - 1)
        sums = [np.bincount(place, weights=part, minlength=n_bins).astype(np.int64) for part in self[1:]]
        filled = sums[0] > 0
        return DistanceCounts(edges[filled].astype(np.float64), *(part[filled] for part in sums))


@dataclass(frozen=True, slots=True)
class NeighbourStatistics:
    """The numbers of one index, or of several together.

    Attributes:
        slide_id: the slide; empty for several together.
        n_slides: how many.
        n_without_neighbours: slides without a single pair.
        degree_counts: tiles by number of neighbours; entry d is of the tiles with d.
        distances: pairs by distance.
        chance_agreement: share of agreeing labels if pairs were drawn at random within the slide (of several: mean over
            their labelled pairs), what `label_agreement` must be compared with; None without labels.
        params: rule and gates; of several only what they have in common.
    """

    slide_id: str
    n_slides: int
    n_without_neighbours: int
    degree_counts: tuple[int, ...]
    distances: DistanceCounts
    chance_agreement: float | None
    params: dict[str, Any]

    @property
    def n_tiles(self) -> int:
        """Number of tiles."""
        return sum(self.degree_counts)

    @property
    def n_pairs(self) -> int:
        """Number of unordered pairs."""
        return int(self.distances.pairs.sum())

    @property
    def n_isolated(self) -> int:
        """Number of tiles without a neighbour."""
        return self.degree_counts[0] if self.degree_counts else 0

    @property
    def isolated_share(self) -> float | None:
        """Share of tiles without a neighbour, None without tiles."""
        return self.n_isolated / self.n_tiles if self.n_tiles else None

    @property
    def mean_degree(self) -> float:
        """Neighbours per tile."""
        return 2 * self.n_pairs / self.n_tiles if self.n_tiles else 0.0

    @property
    def n_labelled_pairs(self) -> int:
        """Number of pairs in which both tiles have a label."""
        return int(self.distances.labelled.sum())

    @property
    def label_agreement(self) -> float | None:
        """Share of labelled pairs whose labels agree; one minus the false-positive rate. None without labelled pairs."""
        return int(self.distances.agreeing.sum()) / self.n_labelled_pairs if self.n_labelled_pairs else None


def measure_neighbours(store: TileStore, name: str = SPATIAL) -> NeighbourStatistics:
    """Measure the index of one store.

    Raises:
        NeighbourError: if there is none of that name, or it is damaged or of other tiles.
    """
    graph = read_index(store, name)
    labels = store.labels()
    codes = None if labels is None else np.asarray(labels.codes)
    degrees = np.bincount(graph.degrees) if len(store) else np.zeros(0, np.int64)
    return NeighbourStatistics(
        slide_id=store.slide_id,
        n_slides=1,
        n_without_neighbours=int(graph.n_pairs == 0),
        degree_counts=tuple(degrees.tolist()),
        distances=_count_distances(graph, codes),
        chance_agreement=_chance(codes),
        params=dict(graph.rule.get("params", {})),
    )


def _chance(codes: npt.NDArray[np.integer[Any]] | None) -> float | None:
    counts = np.zeros(0) if codes is None else np.bincount(codes[codes >= 0]).astype(np.float64)
    n_labelled = counts.sum()
    if n_labelled < 2:
        return None
    return float((counts * (counts - 1)).sum() / (n_labelled * (n_labelled - 1)))


def _count_distances(graph: NeighbourGraph, codes: npt.NDArray[np.integer[Any]] | None) -> DistanceCounts:
    adjacency = Adjacency(graph.indptr, graph.indices, graph.distances_um)
    steps = int(np.rint(adjacency.distances_um.max() / _STEP_UM)) + 1 if len(adjacency.indices) else 0
    counts = np.zeros((3, steps), np.int64)
    for start, stop in row_blocks(adjacency.indptr):
        entries = slice(adjacency.indptr[start], adjacency.indptr[stop])
        anchors, others = adjacency.anchors(start, stop), adjacency.indices[entries]
        once = anchors < others
        place = np.rint(adjacency.distances_um[entries][once] / _STEP_UM).astype(np.int64)
        counts[0] += np.bincount(place, minlength=steps)
        if codes is not None:
            a, b = codes[anchors[once]], codes[others[once]]
            both = (a >= 0) & (b >= 0)
            counts[1] += np.bincount(place[both], minlength=steps)
            counts[2] += np.bincount(place[both & (a == b)], minlength=steps)
    present = np.flatnonzero(counts[0])
    return DistanceCounts((present * _STEP_UM).astype(np.float64), *counts[:, present])


def add_statistics(parts: Sequence[NeighbourStatistics]) -> NeighbourStatistics:
    """Return the numbers of several slides taken together, every pair counting once."""
    degrees = np.zeros(max((len(part.degree_counts) for part in parts), default=0), np.int64)
    for part in parts:
        degrees[: len(part.degree_counts)] += np.array(part.degree_counts, np.int64)
    weighted = [(part.chance_agreement, part.n_labelled_pairs) for part in parts if part.chance_agreement is not None]
    n_labelled = sum(weight for _, weight in weighted)
    common = dict(parts[0].params.items()) if parts else {}
    return NeighbourStatistics(
        slide_id="",
        n_slides=sum(part.n_slides for part in parts),
        n_without_neighbours=sum(part.n_without_neighbours for part in parts),
        degree_counts=tuple(degrees.tolist()),
        distances=_add_distances([part.distances for part in parts]),
        chance_agreement=sum(share * weight for share, weight in weighted) / n_labelled if n_labelled else None,
        params={key: value for key, value in common.items() if all(part.params.get(key) == value for part in parts)},
    )


def _add_distances(parts: Sequence[DistanceCounts]) -> DistanceCounts:
    steps = np.concatenate([np.zeros(0, np.int64), *(np.rint(part.um / _STEP_UM).astype(np.int64) for part in parts)])
    unique, place = np.unique(steps, return_inverse=True)
    sums = []
    for column in range(1, 4):
        values = np.concatenate([np.zeros(0, np.int64), *(part[column] for part in parts)])
        sums.append(np.bincount(place, weights=values, minlength=len(unique)).astype(np.int64))
    return DistanceCounts((unique * _STEP_UM).astype(np.float64), *sums)

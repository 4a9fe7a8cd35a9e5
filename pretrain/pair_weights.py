"""How much a neighbour counts: one weight per pair of the index, from what the store knows of its two tiles."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.adjacency import Adjacency, row_blocks
from simtriplet.wsi.errors import NeighbourError
from simtriplet.wsi.neighbour_graph import NeighbourGraph
from simtriplet.wsi.registry import Registry
from simtriplet.wsi.store import TileStore

__all__ = ["PAIR_WEIGHTS", "PairWeight", "weigh_pairs"]

PairWeight = Callable[[TileStore, NeighbourGraph, str], npt.NDArray[np.floating[Any]]]
"""Weigh the pairs of one slide: from a store, its neighbour index and the name of the features to compare (empty where the
settings name none), make (m,) finite numbers of at least 0, one per entry of the index and the same from both sides."""

PAIR_WEIGHTS: Registry[PairWeight] = Registry("pair weight")

_BLOCK_NUMBERS = 1 << 22
"""Feature values gathered at once, 16 MB of float32."""


def weigh_pairs(
    store: TileStore, graph: NeighbourGraph, names: Sequence[str], *, features: str | None = None
) -> npt.NDArray[np.float32]:
    """Return (m,) float32, the product of the named weights for each entry of a neighbour index.

    Args:
        store: the tiles.
        graph: their index.
        names: of the registry; none of them weighs all pairs 1.
        features: name of the stored features that "similarity" compares, with or without the leading `X_`.

    Raises:
        UnknownNameError: if there is no such weight.
        StoreError: if the store lacks the features or a column.
        NeighbourError: if a weight is negative or no finite number.
    """
    product = np.ones(len(graph.indices), np.float64)
    for name in names:
        weights = PAIR_WEIGHTS.get(name)(store, graph, (features or "").removeprefix("X_"))
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise NeighbourError(
                f"store '{store.path.name}': pair weight {name!r} has values that are negative or no finite number: "
                "must be at least 0; leave it out of data.pair_weights or repair what it is made of"
            )
        product *= weights
    return product.astype(np.float32)


def _by_distance(store: TileStore, graph: NeighbourGraph, features: str) -> npt.NDArray[np.floating[Any]]:
    """Nearest distance of the slide / distance: 1 for lattice neighbours, 0.71 for those at the corners."""
    apart = graph.distances_um[graph.distances_um > 0]
    nearest = apart.min() if len(apart) else 1.0
    return np.asarray(nearest / np.maximum(graph.distances_um, nearest))


def _by_tissue(store: TileStore, graph: NeighbourGraph, features: str) -> npt.NDArray[np.floating[Any]]:
    """The smaller tissue fraction of the two tiles: a neighbour says as much as there is on it, and on its anchor."""
    fraction = store.numbers("tissue_fraction")
    return np.asarray(np.minimum(np.repeat(fraction, graph.degrees), fraction[graph.indices]))


def _by_similarity(store: TileStore, graph: NeighbourGraph, features: str) -> npt.NDArray[np.floating[Any]]:
    """The cosine of stored features, at least 0; 0 where a feature vector is zero."""
    found = store.features(features)
    norms = np.linalg.norm(found, axis=1)
    norms[norms == 0] = 1
    rows = Adjacency(graph.indptr, graph.indices, graph.distances_um)
    cosine = np.empty(len(graph.indices), np.float32)
    step = max(1, _BLOCK_NUMBERS // max(1, found.shape[1]))
    for start, stop in row_blocks(graph.indptr):
        anchors, first = rows.anchors(start, stop), int(graph.indptr[start])
        for low in range(0, len(anchors), step):
            ones = anchors[low : low + step]
            here = slice(first + low, first + low + len(ones))
            others = graph.indices[here]
            cosine[here] = np.einsum("ij,ij->i", found[ones], found[others]) / (norms[ones] * norms[others])
    return np.maximum(cosine, 0)


PAIR_WEIGHTS.add("distance", _by_distance)
PAIR_WEIGHTS.add("tissue", _by_tissue)
PAIR_WEIGHTS.add("similarity", _by_similarity)

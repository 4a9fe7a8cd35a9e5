"""Build the neighbour index of a store: a rule proposes pairs, gates drop some, the rest is written beside the tiles."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from simtriplet.wsi.adjacency import Adjacency
from simtriplet.wsi.errors import NeighbourError
from simtriplet.wsi.gate_spec import GateSpec
from simtriplet.wsi.gates import apply_gates
from simtriplet.wsi.index_reader import read_index
from simtriplet.wsi.index_writer import check_index_name, remove_index_leftovers, write_index
from simtriplet.wsi.neighbour_graph import NeighbourGraph
from simtriplet.wsi.neighbours import GridRule, NeighbourRule, TilePlaces
from simtriplet.wsi.store import SPATIAL, TileStore

__all__ = [
    "BuiltIndex",
    "IndexSummary",
    "build_neighbours",
    "check_same_mpp",
    "index_store",
    "places_of",
    "summarise_index",
    "write_index",
]

_MPP_SLACK = 0.01


class BuiltIndex(NamedTuple):
    """A neighbour index before it is written.

    Attributes:
        adjacency: the relation.
        params: rule and gates as they were asked for.
        measured: what came out: candidate pairs before the gates, and the similarity that the quantile stands for.
    """

    adjacency: Adjacency
    params: dict[str, Any]
    measured: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class IndexSummary:
    """What `index` prints for one store.

    Attributes:
        slide_id: the slide.
        n_tiles: tiles in the store.
        n_pairs: unordered pairs.
        mean_degree: neighbours per tile.
        n_isolated: tiles without a neighbour.
        label_agreement: share of pairs whose two labels agree, None where fewer than one pair has both.
    """

    slide_id: str
    n_tiles: int
    n_pairs: int
    mean_degree: float
    n_isolated: int
    label_agreement: float | None


def places_of(store: TileStore) -> TilePlaces:
    """Read where a store's tiles lie."""
    return TilePlaces(
        row=store.numbers("row"),
        col=store.numbers("col"),
        centres_um=store.centres() * store.base_mpp,
        size_px=store.size_px,
        stride_px=store.stride_px,
        mpp=store.mpp,
    )


def check_same_mpp(stores: Sequence[TileStore]) -> None:
    """Refuse stores of different resolutions, whose tiles must not end up in one merged index.

    Slides tiled by one request may differ by the tolerance within which a level was taken as it is; that is allowed.

    Raises:
        NeighbourError: naming the first two that do not fit.
    """
    for store in stores[1:]:
        first = stores[0]
        allowed = 1 + _MPP_SLACK + _tolerance(first) + _tolerance(store)
        if max(first.mpp, store.mpp) > allowed * min(first.mpp, store.mpp):
            raise NeighbourError(
                f"stores '{first.path.name}' and '{store.path.name}': have {first.mpp:.4g} and {store.mpp:.4g} um per pixel: "
                "must be tiled alike to be indexed together; index them apart or tile one of them again"
            )


def _tolerance(store: TileStore) -> float:
    return float(store.attributes["tiling"].get("asked", {}).get("mpp_tolerance") or 0.0)


def build_neighbours(store: TileStore, rule: NeighbourRule, gates: GateSpec | None = None) -> BuiltIndex:
    """Find the neighbours of every tile of a store.

    Args:
        store: the tiles.
        rule: which tiles are candidates.
        gates: which pairs of those stay; within one tissue region when not given.

    Raises:
        NeighbourError: if the gates ask for something that the store does not have.
        AnnotationError: if an annotation file cannot be understood.
    """
    spec = gates or GateSpec()
    opened = spec.open_gates(store)
    params = {**_rule_params(rule), **spec.record(store, opened)}
    candidates = rule.adjacency(places_of(store))
    measured: dict[str, Any] = {"candidate_pairs": candidates.n_pairs}
    adjacency = apply_gates(candidates, opened)
    del candidates
    similar = spec.open_similarity_gate(store, adjacency)
    if similar is not None:
        adjacency = apply_gates(adjacency, [similar])
        measured["similarity_threshold"] = similar.threshold
    return BuiltIndex(adjacency, params, measured)


def _rule_params(rule: NeighbourRule) -> dict[str, Any]:
    return {"rule": rule.name, **dataclasses.asdict(rule), "unit": "micrometre"}  # type: ignore[call-overload]


def index_store(
    store: TileStore,
    rule: NeighbourRule | None = None,
    *,
    gates: GateSpec | None = None,
    name: str = SPATIAL,
    skip_same: bool = False,
) -> IndexSummary:
    """Build and write the neighbour index of one store; an older one of the same name is replaced.

    Args:
        store: the tiles.
        rule: 8-adjacency on the lattice when not given.
        gates: which pairs stay; within one tissue region when not given.
        name: `spatial` is what squidpy looks for.
        skip_same: leave the index alone when rule, gates and tiles are those it was built from.

    Raises:
        StoreError: if the store cannot be read or written.
        NeighbourError: if a parameter is out of range, or the gates ask for something that the store does not have.
        AnnotationError: if an annotation file cannot be understood.
    """
    check_index_name(name)
    rule, gates = rule or GridRule(), gates or GateSpec()
    if skip_same:
        present = _same_index(store, name, {**_rule_params(rule), **gates.record(store, gates.open_gates(store))})
        if present is not None:
            remove_index_leftovers(store)
            return _summarise(store, present)
    adjacency, params, measured = build_neighbours(store, rule, gates)
    write_index(store, adjacency, params, name=name, measured=measured)
    return _summarise(store, NeighbourGraph(*adjacency, rule=params))


def _same_index(store: TileStore, name: str, params: dict[str, Any]) -> NeighbourGraph | None:
    try:
        graph = read_index(store, name)
    except NeighbourError:
        return None
    try:
        return graph if graph.rule.get("params") == params else None
    except ValueError:  # a value that should be a number is an array, which has no one truth
        return None


def summarise_index(store: TileStore, name: str = SPATIAL) -> IndexSummary:
    """Count what an index holds.

    Raises:
        NeighbourError: if there is none of that name, or it is damaged or of other tiles.
    """
    return _summarise(store, read_index(store, name))


def _summarise(store: TileStore, graph: NeighbourGraph) -> IndexSummary:
    degrees = graph.degrees
    return IndexSummary(
        slide_id=store.slide_id,
        n_tiles=len(store),
        n_pairs=graph.n_pairs,
        mean_degree=float(degrees.mean()) if len(degrees) else 0.0,
        n_isolated=int((degrees == 0).sum()),
        label_agreement=_label_agreement(store, graph),
    )


def _label_agreement(store: TileStore, graph: NeighbourGraph) -> float | None:
    labels = store.labels()
    if labels is None:
        return None
    codes = np.asarray(labels.codes)
    anchors = np.repeat(codes, graph.degrees)
    others = codes[graph.indices]
    both = (anchors >= 0) & (others >= 0)
    return float((anchors[both] == others[both]).mean()) if both.any() else None

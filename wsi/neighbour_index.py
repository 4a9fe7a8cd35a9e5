"""Build a neighbour index and write it into the store's table, under the names squidpy uses."""

import dataclasses
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from simtriplet.wsi.errors import NeighbourError, StoreError
from simtriplet.wsi.gates import MinTissueGate, PairGate, SameTissueGate, apply_gates
from simtriplet.wsi.neighbours import Adjacency, GridRule, NeighbourRule, TilePlaces
from simtriplet.wsi.store import PARTIAL_SUFFIX, SPATIAL, TABLE, NeighbourGraph, TileStore
from simtriplet.wsi.table import write_array, write_dict

__all__ = ["IndexSummary", "build_neighbours", "index_store", "summarise_index", "write_index"]


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


def build_neighbours(
    store: TileStore, rule: NeighbourRule, *, same_tissue: bool = True, min_tissue: float | None = None
) -> tuple[Adjacency, dict[str, Any]]:
    """Find the neighbours of every tile of a store.

    Args:
        store: the tiles.
        rule: which tiles are candidates.
        same_tissue: keep only pairs within one tissue region.
        min_tissue: keep only pairs in which both tiles hold this share of tissue.

    Returns:
        The relation, and what to record of how it was made.
    """
    gates = _gates(store, same_tissue=same_tissue, min_tissue=min_tissue)
    return apply_gates(rule.adjacency(places_of(store)), gates), _params(rule, gates)


def _gates(store: TileStore, *, same_tissue: bool, min_tissue: float | None) -> list[PairGate]:
    gates: list[PairGate] = []
    if same_tissue:
        gates.append(SameTissueGate(store.numbers("tissue_id")))
    if min_tissue is not None:
        if not 0 <= min_tissue <= 1:
            raise NeighbourError(f"minimum tissue {min_tissue}: must lie in 0..1; pass a fraction")
        gates.append(MinTissueGate(store.numbers("tissue_fraction"), min_tissue))
    return gates


def _params(rule: NeighbourRule, gates: Sequence[PairGate]) -> dict[str, Any]:
    params = {"rule": rule.name, **dataclasses.asdict(rule), "unit": "micrometre"}  # type: ignore[call-overload]
    for gate in gates:
        params.update(gate.record())
    return params


def _is_same(store: TileStore, name: str, params: dict[str, Any]) -> bool:
    if name not in store.neighbour_names():
        return False
    try:
        return bool(store.neighbours(name).rule["params"] == params)
    except NeighbourError:
        return False


def index_store(
    store: TileStore,
    rule: NeighbourRule | None = None,
    *,
    name: str = SPATIAL,
    same_tissue: bool = True,
    min_tissue: float | None = None,
    skip_same: bool = False,
) -> IndexSummary:
    """Build and write the neighbour index of one store; an older one of the same name is replaced.

    Args:
        store: the tiles.
        rule: 8-adjacency on the lattice when not given.
        name: `spatial` is what squidpy looks for.
        same_tissue: see build_neighbours.
        min_tissue: see build_neighbours.
        skip_same: leave the index alone when rule, gates and tiles are those it was built from.

    Raises:
        StoreError: if the store cannot be written.
        NeighbourError: if a parameter is out of range.
    """
    rule = rule or GridRule()
    gates = _gates(store, same_tissue=same_tissue, min_tissue=min_tissue)
    if skip_same and _is_same(store, name, _params(rule, gates)):
        return summarise_index(store, name)
    adjacency, params = build_neighbours(store, rule, same_tissue=same_tissue, min_tissue=min_tissue)
    write_index(store, adjacency, params, name=name)
    return summarise_index(TileStore(store.path), name)


def summarise_index(store: TileStore, name: str = SPATIAL) -> IndexSummary:
    """Count what an index holds."""
    graph = store.neighbours(name)
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


def write_index(store: TileStore, adjacency: Adjacency, params: dict[str, Any], *, name: str = SPATIAL) -> None:
    """Write connectivities, distances and the rule; readers see the old index or the new one, never a mixture.

    All three parts carry one build id; a reader that finds different ids reports a half-written index.
    """
    build_id = uuid.uuid4().hex
    table = store.path / TABLE
    scratch = table / f"{name}{PARTIAL_SUFFIX}"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        group = zarr.open_group(scratch, mode="w", zarr_format=3)
        n_tiles = len(adjacency.indptr) - 1
        for part, data in (
            ("connectivities", np.ones(len(adjacency.indices), np.float32)),
            ("distances", adjacency.distances_um),
        ):
            attributes = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_tiles, n_tiles]}
            made = group.create_group(part, attributes={**attributes, "build_id": build_id})
            write_array(made, "data", data)
            write_array(made, "indices", adjacency.indices.astype(np.int32))
            write_array(made, "indptr", adjacency.indptr.astype(np.int64))
        record = {
            "connectivities_key": f"{name}_connectivities",
            "distances_key": f"{name}_distances",
            "params": params,
            "build_id": build_id,
            "tiles_id": store.attributes["tiles_id"],
        }
        write_dict(group, "uns", record)
        _swap(scratch / "connectivities", table / "obsp" / f"{name}_connectivities")
        _swap(scratch / "distances", table / "obsp" / f"{name}_distances")
        _swap(scratch / "uns", table / "uns" / f"{name}_neighbors")
    except OSError as error:
        raise StoreError(
            f"store '{store.path}': cannot be written ({error.strerror or error}); check space and rights"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _swap(new: Path, final: Path) -> None:
    old = new.with_name(new.name + ".old")
    if final.exists():
        os.rename(final, old)
    os.rename(new, final)

"""The neighbour index in the store: what is written is read, replaced whole, and refused when it is of older tiles."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from simtriplet.wsi.errors import NeighbourError
from simtriplet.wsi.gate_spec import GateSpec
from simtriplet.wsi.neighbour_index import build_neighbours, index_store, places_of, summarise_index
from simtriplet.wsi.neighbours import GridRule, KnnRule, RadiusRule, RingRule
from simtriplet.wsi.store import TABLE, TileStore

StoreFactory = Callable[..., TileStore]


def test_what_is_built_is_what_is_read(store_factory: StoreFactory) -> None:
    store = store_factory(rows=5, cols=7, keep=np.arange(35) % 4 != 1, index=False)
    for rule in (GridRule(), GridRule(4), RadiusRule(20.0), RingRule(20.0, 40.0), KnnRule(3)):
        adjacency, params, measured = build_neighbours(store, rule)
        index_store(store, rule)
        graph = TileStore(store.path).neighbours()
        assert np.array_equal(graph.indptr, adjacency.indptr)
        assert np.array_equal(graph.indices, adjacency.indices)
        assert np.array_equal(graph.distances_um, adjacency.distances_um)
        assert graph.rule["params"] == params
        assert graph.rule["measured"] == measured == {"candidate_pairs": len(adjacency.indices) // 2}
        assert params["rule"] == rule.name
        assert params["same_tissue"] is True
        assert graph.rule["tiles_id"] == store.attributes["tiles_id"]


def test_places_are_in_micrometres(store_factory: StoreFactory) -> None:
    store = store_factory(rows=2, cols=3, size_px=32, mpp=0.25)
    places = places_of(store)
    assert places.centres_um.tolist() == [[4.0 + 8 * c, 4.0 + 8 * r] for r in range(2) for c in range(3)]
    assert (places.size_px, places.stride_px, places.mpp, len(places)) == (32, 32, 0.25, 6)


def test_the_summary_counts(store_factory: StoreFactory) -> None:
    """Columns 0..2 are one class and 3..5 the other, so the pairs across are one in each of the four rows."""
    store = store_factory(rows=4, cols=6)
    summary = index_store(store, GridRule(connectivity=4))
    straight = 4 * 5 + 6 * 3
    assert (summary.slide_id, summary.n_tiles, summary.n_pairs, summary.n_isolated) == ("slide", 24, straight, 0)
    assert summary.mean_degree == 2 * straight / 24
    assert summary.label_agreement == (straight - 4) / straight
    assert summarise_index(TileStore(store.path)) == summary


def test_without_labels_there_is_no_agreement(store_factory: StoreFactory) -> None:
    assert index_store(store_factory(labels=False, index=False)).label_agreement is None


@pytest.mark.parametrize(("keep", "n_tiles"), [(np.zeros(24, bool), 0), (np.arange(24) == 7, 1)])
def test_empty_and_single_tile_stores(store_factory: StoreFactory, keep: Any, n_tiles: int) -> None:
    store = store_factory(keep=keep)
    summary = summarise_index(store)
    assert (summary.n_tiles, summary.n_pairs, summary.mean_degree, summary.n_isolated) == (n_tiles, 0, 0.0, n_tiles)
    assert store.neighbours().indptr.tolist() == [0] * (n_tiles + 1)
    assert store.neighbours().indices.dtype == np.int32


def test_isolated_tiles_are_legal_and_counted(store_factory: StoreFactory) -> None:
    store = store_factory(rows=5, cols=5, keep=np.isin(np.arange(25), [0, 1, 12, 24]))
    summary = summarise_index(store)
    assert (summary.n_pairs, summary.n_isolated) == (1, 2)
    assert store.neighbours().degrees.tolist() == [1, 1, 0, 0]


def test_gates_of_tissue(store_factory: StoreFactory) -> None:
    store = store_factory(rows=1, cols=6, index=False)
    zarr.open_array(store.path / TABLE / "obs" / "tissue_id", mode="r+")[...] = [0, 0, 0, 1, 1, 1]
    zarr.open_array(store.path / TABLE / "obs" / "tissue_fraction", mode="r+")[...] = [1, 0.5, 1, 1, 1, 0.2]
    store = TileStore(store.path)
    assert index_store(store).n_pairs == 4
    assert index_store(store, gates=GateSpec(same_tissue=False)).n_pairs == 5
    assert index_store(store, gates=GateSpec(min_tissue=0.5)).n_pairs == 3
    assert TileStore(store.path).neighbours().rule["params"]["min_tissue"] == 0.5
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(NeighbourError, match=r"must lie in 0\.\.1; pass a fraction$"):
            GateSpec(min_tissue=wrong)


def test_an_index_is_replaced_whole_and_leaves_nothing_behind(store_factory: StoreFactory) -> None:
    store = store_factory(rows=4, cols=6)
    before = {path.relative_to(store.path) for path in store.path.rglob("*")}
    index_store(store, GridRule(connectivity=4))
    assert len(TileStore(store.path).neighbours().indices) == 76
    assert {path.relative_to(store.path) for path in store.path.rglob("*")} == before


def test_several_indices_live_side_by_side(store_factory: StoreFactory) -> None:
    store = store_factory(rows=4, cols=6)
    index_store(store, RadiusRule(20.0), name="near")
    store = TileStore(store.path)
    assert store.neighbour_names() == ["near", "spatial"]
    assert len(store.neighbours("near").indices) == 76
    assert store.neighbours().rule["params"]["rule"] == "grid"
    assert store.neighbours("near").rule["connectivities_key"] == "near_connectivities"


def test_the_names_are_those_of_squidpy(store_factory: StoreFactory) -> None:
    table = zarr.open_group(store_factory().path / TABLE, mode="r")
    assert sorted(table["obsp"].keys()) == ["spatial_connectivities", "spatial_distances"]
    assert sorted(table["uns/spatial_neighbors"].keys()) == [
        "build_id", "connectivities_key", "distances_key", "measured", "pairs_id", "params", "tiles_id",
    ]  # fmt: skip
    for name in ("spatial_connectivities", "spatial_distances"):
        attributes = dict(table[f"obsp/{name}"].attrs)
        assert attributes["encoding-type"] == "csr_matrix"
        assert attributes["shape"] == [24, 24]


def test_the_same_index_is_skipped_when_asked(store_factory: StoreFactory) -> None:
    store = store_factory()
    build = store.neighbours().rule["build_id"]
    index_store(store, skip_same=True)
    assert TileStore(store.path).neighbours().rule["build_id"] == build
    index_store(store)
    assert TileStore(store.path).neighbours().rule["build_id"] != build
    build = TileStore(store.path).neighbours().rule["build_id"]
    for changes in ({"rule": GridRule(4)}, {"gates": GateSpec(same_tissue=False)}, {"gates": GateSpec(min_tissue=0.1)}):
        index_store(store, skip_same=True, **changes)
        changed = TileStore(store.path).neighbours().rule["build_id"]
        assert changed != build
        build = changed


def test_the_same_pairs_have_the_same_id(store_factory: StoreFactory) -> None:
    store = store_factory()
    before = store.neighbours().rule
    index_store(store)
    again = TileStore(store.path).neighbours().rule
    assert (again["build_id"] != before["build_id"], again["pairs_id"]) == (True, before["pairs_id"])
    index_store(store, GridRule(4))
    assert TileStore(store.path).neighbours().rule["pairs_id"] != before["pairs_id"]


class TestStale:
    def test_an_index_of_older_tiles_is_refused(self, store_factory: StoreFactory, tmp_path: Path) -> None:
        """Other tiles have another tiles_id, so an index carried over by hand does not pass."""
        old = store_factory("s", folder=tmp_path / "old")
        new = store_factory("s", folder=tmp_path / "new", index=False, seed=1)
        with pytest.raises(NeighbourError, match="has no neighbour index 'spatial'"):
            new.neighbours()
        for part in ("obsp/spatial_connectivities", "obsp/spatial_distances", "uns/spatial_neighbors"):
            shutil.copytree(old.path / TABLE / part, new.path / TABLE / part)
        carried = TileStore(new.path)
        with pytest.raises(NeighbourError, match=r"neighbour index 'spatial' is of older tiles; index it again$"):
            carried.neighbours()
        index_store(carried, skip_same=True)
        assert len(TileStore(new.path).neighbours().indices) == len(old.neighbours().indices)

    @pytest.mark.parametrize("part", ["obsp/spatial_connectivities", "obsp/spatial_distances", "uns/spatial_neighbors"])
    def test_parts_of_two_builds_are_half_written(self, store_factory: StoreFactory, tmp_path: Path, part: str) -> None:
        """What a kill between two renames leaves behind."""
        store = store_factory()
        shutil.copytree(store.path / TABLE / part, tmp_path / "part")
        index_store(store, GridRule(4))
        shutil.rmtree(store.path / TABLE / part)
        shutil.copytree(tmp_path / "part", store.path / TABLE / part)
        with pytest.raises(NeighbourError, match=r"neighbour index 'spatial' is half written; index it again$"):
            TileStore(store.path).neighbours()
        index_store(TileStore(store.path), skip_same=True)
        assert TileStore(store.path).neighbours().n_pairs == 68

    @pytest.mark.parametrize("part", ["obsp/spatial_connectivities", "obsp/spatial_distances"])
    def test_a_lost_part_is_damage(self, store_factory: StoreFactory, part: str) -> None:
        store = store_factory()
        shutil.rmtree(store.path / TABLE / part)
        with pytest.raises(NeighbourError, match=r"neighbour index 'spatial' is damaged; index it again$"):
            TileStore(store.path).neighbours()

    @pytest.mark.parametrize(
        "chunk",
        [
            "obsp/spatial_connectivities/indices/c/0",
            "obsp/spatial_connectivities/indptr/c/0",
            "obsp/spatial_distances/data/c/0",
            "uns/spatial_neighbors/tiles_id/c",
        ],
    )
    def test_a_flipped_byte_is_damage(self, store_factory: StoreFactory, chunk: str) -> None:
        store = store_factory()
        data = bytearray((store.path / TABLE / chunk).read_bytes())
        data[len(data) // 2] ^= 1
        (store.path / TABLE / chunk).write_bytes(data)
        with pytest.raises(NeighbourError, match=r"neighbour index 'spatial' is damaged; index it again$"):
            TileStore(store.path).neighbours()

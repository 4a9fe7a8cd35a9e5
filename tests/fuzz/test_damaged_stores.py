"""Damaged and hostile stores end in a SimTripletError or in right values: in bounded memory and time, without a word.

Metadata and chunks carry checksums, so that damage is told. Whoever writes a store on purpose writes right checksums too: then
values may be any that a store can hold, but tiles are those that their checksums are of, and nothing crashes, hangs or grows.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simtriplet.wsi.errors import NeighbourError, StoreError
from simtriplet.wsi.store import TABLE, TileStore
from simtriplet.wsi.zarr_files import write_array

CODECS = ("none", "zstd", "jpeg")


@pytest.fixture
def whole_stores(store_factory: Callable[..., TileStore], tmp_path: Path) -> Path:
    """A store of each codec, with labels, neighbours and features."""
    for number, codec in enumerate(CODECS):
        store = store_factory(codec, codec=codec, size_px=16, folder=tmp_path / "whole", seed=number)
        features = np.random.default_rng(number).random((len(store), 5), dtype=np.float32)
        write_array(store.path / TABLE / "obsm/X_net", features, {"tiles_id": store.attributes["tiles_id"]})
    return tmp_path / "whole"


def test_damaged_stores_are_refused_or_read_right(
    whole_stores: Path, quick_folder: Path, run_attempts: Callable[..., dict[str, Any]], n_mutants: int
) -> None:
    report = run_attempts("store_attempts.py", whole_stores, quick_folder, 0, n_mutants)
    assert report["failures"] == []
    counts = report["counts"]
    assert sum(counts.values()) == n_mutants
    assert min(counts["read"], counts["refused"], counts["refused-later"]) > n_mutants // 20
    assert report["max_seconds"] < 5
    assert report["peak_bytes"] < 1 << 30


def test_an_index_whose_record_is_an_array_is_of_other_tiles(store_factory: Callable[..., TileStore]) -> None:
    store = store_factory("a")
    place = store.path / TABLE / "uns/spatial_neighbors/tiles_id"
    shutil.rmtree(place)
    write_array(place, np.zeros(3))
    with pytest.raises(NeighbourError, match="is of older tiles"):
        store.neighbours()


def test_a_flipped_pixel_is_told_before_it_is_trained_on(store_factory: Callable[..., TileStore]) -> None:
    store = store_factory("a", codec="none", size_px=16)
    shard = store.path / "tiles/images/c.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[16 * 16 * 3 * 5 + 7] ^= 1
    shard.write_bytes(data)
    again = TileStore(store.path)
    again.images.read([0, 4, 6])
    with pytest.raises(StoreError, match=r"tile 5 is damaged \(its bytes do not match their checksum\)"):
        again.images.read([4, 5])


@pytest.mark.parametrize(
    "values", [np.full(24, -1), np.full(24, 2**64 - 1, np.uint64), np.full(24, 10**6), np.full(24, np.nan)]
)
def test_places_beyond_the_slide_are_refused(store_factory: Callable[..., TileStore], values: np.ndarray) -> None:
    store = store_factory("a")
    shutil.rmtree(store.path / TABLE / "obs/y")
    write_array(store.path / TABLE / "obs/y", values)
    with pytest.raises(StoreError, match="tile the slide again"):
        TileStore(store.path).base_xy()

"""Damaged and hostile stores end in a SimTripletError or in right values: in bounded memory and time, without a word.

Metadata and chunks carry checksums, so that damage is told. Whoever writes a store on purpose writes right checksums too: then
values may be any that a store can hold, but tiles are those that their checksums are of, and nothing crashes, hangs or grows.
"""

import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs import Blosc, zstd

from simtriplet.wsi.check import check_store
from simtriplet.wsi.checksum import crc32c
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


SWOLLEN = 1 << 28


def zeros_in_zstd() -> bytes:
    """A frame of blocks of 128 KiB, each one byte that is repeated (RFC 8878, 3.1.1.2)."""
    n_blocks, repeat = SWOLLEN >> 17, 1 << 20 | 1 << 1
    blocks = [struct.pack("<I", repeat | is_last)[:3] + b"\0" for is_last in [0] * (n_blocks - 1) + [1]]
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", SWOLLEN) + b"".join(blocks)


def zeros_in_blosc() -> bytes:
    return bytes(Blosc(cname="zstd", clevel=1, shuffle=0).encode(np.zeros(SWOLLEN, np.uint8)))


def countless_texts() -> bytes:
    return bytes(zstd.compress(struct.pack("<I", SWOLLEN // 8), 1))


SWELLING = {
    f"{TABLE}/obs/x/c/0": (zeros_in_zstd, TileStore.base_xy),
    f"{TABLE}/obs/crc32c/c/0": (zeros_in_zstd, lambda store: store.images.read([0])),
    f"{TABLE}/obs/tile_id/c/0": (countless_texts, TileStore.tile_ids),
    "images/thumbnail/0/c/0/0/0": (zeros_in_zstd, TileStore.thumbnail),
    f"{TABLE}/obsp/spatial_connectivities/indices/c/0": (zeros_in_blosc, TileStore.neighbours),
}


@pytest.mark.parametrize("place", SWELLING)
def test_a_chunk_that_swells_is_refused_before_memory_is_taken(
    store_factory: Callable[..., TileStore], place: str
) -> None:
    """Some KB with the right checksum hold 256 MB here, and could hold any number of GB."""
    store = store_factory("a", size_px=16)
    make, read = SWELLING[place]
    data = make()
    assert len(data) < SWOLLEN // 1000
    (store.path / place).write_bytes(data + struct.pack("<I", crc32c(data)))
    tracemalloc.start()
    try:
        with pytest.raises((StoreError, NeighbourError)):
            read(TileStore(store.path))
        check_store(store.path)  # which takes no more
        assert tracemalloc.get_traced_memory()[1] < SWOLLEN // 8
    finally:
        tracemalloc.stop()


def test_tiles_whose_checksums_are_lost_are_not_read(store_factory: Callable[..., TileStore]) -> None:
    store = store_factory("a", size_px=16)
    shutil.rmtree(store.path / TABLE / "obs/crc32c")
    with pytest.raises(StoreError, match="the checksums of its tiles are damaged"):
        TileStore(store.path).images.read([0])

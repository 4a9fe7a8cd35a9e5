"""Peak memory of a streamed epoch over stores far larger than memory: their pixels are never in it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from simtriplet.wsi.codec import make_codec
from simtriplet.wsi.images import TILES_PER_SHARD, shard_path
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.store_writer import StoreContents, StoreWriter

SIZE_PX = 64
GIB = 1 << 30
MOST_BYTES = 2 * GIB
MOST_BYTES_A_TILE = 300
"""What is held of a tile is its row of the neighbour index and its place in the epoch; its pixels are 12288 bytes."""


def make_large_store(folder: Path, side: int) -> TileStore:
    """Make a store of side x side tiles whose shards are all one file under many names, with an index."""
    row, col = (axis.ravel() for axis in np.mgrid[0:side, 0:side])
    tiles = np.random.default_rng(0).integers(0, 255, (TILES_PER_SHARD, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    contents = StoreContents(
        slide={"id": "large", "patient_id": None, "mpp": 0.5, "width": side * SIZE_PX, "height": side * SIZE_PX},
        tiling={"mpp": 0.5, "size_px": SIZE_PX, "stride_px": SIZE_PX},
        tissue={"method": "all"},
        base_xy=np.column_stack([col, row]).astype(np.int64) * SIZE_PX,
        row=row,
        col=col,
        tissue_id=np.zeros(len(row), np.int32),
        tissue_fraction=np.ones(len(row), np.float32),
        thumbnail=np.full((64, 64, 3), 200, np.uint8),
        thumbnail_downsample=side * SIZE_PX / 64,
        tissue_mask=np.ones((64, 64), np.uint16),
    )
    with StoreWriter(folder / "large.tiles.zarr", size_px=SIZE_PX, codec=make_codec("none")) as writer:
        for shard in range(-(-len(row) // TILES_PER_SHARD)):
            if not shard:
                writer.write_shard(0, list(tiles))
                continue
            array, n_tiles = writer._array("images"), min(TILES_PER_SHARD, len(row) - TILES_PER_SHARD * shard)
            os.link(shard_path(array, 0), shard_path(array, shard))
            writer._checksums["images"][shard] = writer._checksums["images"][0][:n_tiles]
            writer._sizes["images", shard] = writer._sizes["images", 0]
        store = writer.finish(contents)
    index_store(store)
    return store


_MEASURED = """
import sys
from simtriplet.pipelines.cli import cli

cli(sys.argv[1:], standalone_mode=False)
with open("/proc/self/status") as status:
    peak_kb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
print(f"PEAK {peak_kb}")
"""
"""The high-water mark of the program itself: what getrusage tells of a child begins at its parent's."""


@pytest.fixture
def peak_bytes(tmp_path) -> Callable[[TileStore], int]:
    """Return what `pretrain` with streamed tiles takes for its first steps, epoch planned and all."""

    def measure(store: TileStore) -> int:
        settings = ["model.backbone=resnet18", "data.image_size_px=32", "data.storage=stream", "run.device=cpu"]
        settings += ["run.batch_size=32", "run.max_steps=3", "run.threads=2", "run.tensorboard=off"]
        settings += ["run.monitor_every_epochs=0"]  # its tiles are as many for every store
        command = ["pretrain", str(store.path), "--preset", "quick", "--out", str(tmp_path / f"run-{len(store)}")]
        command += [part for setting in settings for part in ("--set", setting)]
        ended = subprocess.run(
            [sys.executable, "-c", _MEASURED, *command], capture_output=True, text=True, timeout=300, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return 1024 * int(ended.stdout.rpartition("PEAK ")[2])

    return measure


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read as Linux tells it")
def test_a_streamed_epoch_stays_below_2_gib_however_large_the_store(tmp_path, peak_bytes):
    sides = (316, 1000)  # 99,856 and 1,000,000 tiles: 1.2 and 12.3 GB of pixels
    stores = []
    for side in sides:
        (tmp_path / str(side)).mkdir()
        stores.append(make_large_store(tmp_path / str(side), side))
    small, large = (peak_bytes(store) for store in stores)
    more = len(stores[1]) - len(stores[0])
    for store, peak in zip(stores, (small, large), strict=True):
        print(f"streamed epoch of {len(store):,} tiles: peak {peak / GIB:.2f} GiB")  # noqa: T201 (docs/reliability.md)
    assert len(stores[1]) * SIZE_PX**2 * 3 > 5 * MOST_BYTES
    assert max(small, large) < MOST_BYTES
    assert (large - small) / more < MOST_BYTES_A_TILE

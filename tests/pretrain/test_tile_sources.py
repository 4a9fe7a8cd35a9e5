import numpy as np
import pytest
import torch

from simtriplet.pretrain.memory import free_host_bytes
from simtriplet.pretrain.tiles import HostTiles, ResidentTiles, StreamedTiles, TileNumbering, open_tiles, pick_tier
from simtriplet.wsi.errors import StoreError, TrainingError
from simtriplet.wsi.open_shards import OPEN_SHARDS

CPU = torch.device("cpu")


@pytest.fixture
def numbering(store_factory) -> TileNumbering:
    return TileNumbering([store_factory("a", rows=9, cols=9), store_factory("b", seed=1), store_factory("c", seed=2)])


def test_tiles_are_numbered_store_after_store(numbering):
    assert numbering.offsets.tolist() == [0, 81, 105, 129]
    assert numbering.n_bytes == 129 * 32 * 32 * 3
    ids = np.array([128, 0, 104, 105, 81, 0])
    out = np.empty((6, 32, 32, 3), np.uint8)
    numbering.read(ids, out=out)
    a, b, c = numbering.stores
    parts = [(c, 23), (a, 0), (b, 23), (c, 0), (b, 0), (a, 0)]
    assert np.array_equal(out, np.concatenate([store.images.read([tile]) for store, tile in parts]))


@pytest.mark.parametrize("tier", ["device", "host", "stream"])
def test_every_tier_gives_the_same_tiles(numbering, tier):
    ids = torch.randint(0, 129, (40,), generator=torch.Generator().manual_seed(0))
    wanted = np.empty((40, 32, 32, 3), np.uint8)
    numbering.read(ids.numpy(), out=wanted)
    with open_tiles(numbering, device=CPU, tier=tier, threads=2) as source:
        assert isinstance(source, {"device": ResidentTiles, "host": HostTiles, "stream": StreamedTiles}[tier])
        assert source.size_px == 32
        got = source.gather(ids)
        assert got.dtype == torch.uint8
        assert np.array_equal(got.numpy(), wanted)


def test_a_stream_reads_ahead_and_survives_a_change_of_mind(numbering):
    first, second = torch.arange(10), torch.arange(50, 60)
    with StreamedTiles(numbering, device=CPU) as source:
        direct = [source.gather(first), source.gather(second)]
        source.prefetch(first)
        assert torch.equal(source.gather(first), direct[0])
        source.prefetch(first)
        assert torch.equal(source.gather(second), direct[1])


def test_a_damaged_store_is_reported_from_the_reading_thread(numbering):
    shard = numbering.stores[1].path / "tiles" / "images" / "c.0.0.0.0"
    shard.write_bytes(shard.read_bytes()[:-50])
    with StreamedTiles(numbering, device=CPU) as source:
        source.prefetch(torch.arange(90, 95))
        with pytest.raises(StoreError):
            source.gather(torch.arange(90, 95))
    with pytest.raises(StoreError):
        ResidentTiles(numbering, device=CPU)


def test_stores_of_two_tile_sizes_are_refused_by_name(store_factory):
    with pytest.raises(TrainingError, match=r"'a\.tiles\.zarr' and 'b\.tiles\.zarr'.*32 and 48 px"):
        TileNumbering([store_factory("a"), store_factory("b", size_px=48)])


def test_stores_of_two_resolutions_are_refused_beyond_five_percent(store_factory):
    first, close, far = (store_factory(f"s{mpp}", mpp=mpp) for mpp in (0.5, 0.52, 0.53))
    assert len(TileNumbering([first, close])) == 48
    with pytest.raises(TrainingError, match=r"0\.5 and 0\.53 um"):
        TileNumbering([first, close, far])


def test_stores_without_tiles_are_refused(store_factory):
    with pytest.raises(TrainingError, match="no tile"):
        TileNumbering([])
    empty = store_factory("empty", keep=np.zeros(24, bool), index=False, labels=False)
    with pytest.raises(TrainingError, match="no tile"):
        TileNumbering([empty])


def test_the_tier_follows_the_size():
    free = free_host_bytes()
    assert free > 1 << 20
    assert pick_tier(1 << 20, device=CPU) == "device"
    assert pick_tier(100 * free, device=CPU) == "stream"


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    whole = free_host_bytes()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_host_bytes() == pytest.approx(whole / 4, rel=0.2)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_a_batch_of_repeats_over_all_stores(numbering, threads):
    ids = torch.randint(0, 129, (500,), generator=torch.Generator().manual_seed(1))
    whole = np.empty((129, 32, 32, 3), np.uint8)
    numbering.read(np.arange(129), out=whole)
    with StreamedTiles(numbering, device=CPU, threads=threads) as source:
        source.prefetch(ids)
        assert np.array_equal(source.gather(ids).numpy(), whole[ids.numpy()])


def test_all_files_are_closed_after_a_run(numbering):
    for tier in ("device", "stream"):
        with open_tiles(numbering, device=CPU, tier=tier, threads=2) as source:
            source.gather(torch.arange(129))
    assert not [key for store in numbering.stores for key in OPEN_SHARDS._open if key[0] == store.images._reader]

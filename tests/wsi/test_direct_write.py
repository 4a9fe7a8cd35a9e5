"""Writes past the page cache: what is in the file is what was in memory, wherever the memory lies."""

from pathlib import Path

import numpy as np
import pytest

from simtriplet.wsi.direct_write import ALIGNMENT, aligned_empty, join_buffers, write_direct
from simtriplet.wsi.shard import read_shard_index, write_shard


def _filled(shape: tuple[int, ...]) -> np.ndarray:
    memory = aligned_empty(shape)
    memory[...] = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    return memory


def test_memory_is_aligned_and_of_the_shape_asked_for() -> None:
    memory = aligned_empty((5, 7, 3))
    assert memory.shape == (5, 7, 3)
    assert memory.ctypes.data % ALIGNMENT == 0
    assert aligned_empty((0, 4)).size == 0


@pytest.mark.parametrize("size_px", [160, 224, 256, 301])
@pytest.mark.parametrize("count", [1, 40, 64])
def test_a_shard_of_one_piece_of_memory_reads_back(tmp_path: Path, size_px: int, count: int) -> None:
    tiles = _filled((64, size_px, size_px, 3))[:count]
    path = tmp_path / "shard"
    size = write_shard(path, [tile.data.cast("B") for tile in tiles], chunks_per_shard=64)
    data = path.read_bytes()
    assert size == len(data) == tiles.nbytes + 64 * 16 + 4
    assert data[: tiles.nbytes] == tiles.tobytes()
    with path.open("rb") as file:
        index = read_shard_index(file.fileno(), chunks_per_shard=64, name="shard")
    assert index.offsets[:count].tolist() == [place * size_px**2 * 3 for place in range(count)]


def test_large_aligned_memory_goes_past_the_page_cache(tmp_path: Path) -> None:
    memory = _filled((8 << 20,))
    path = tmp_path / "file"
    path.touch()
    done = write_direct(path, memory[: (6 << 20) + 100].data)
    assert done in (0, 6 << 20)  # 0: the file system of the test refuses
    assert path.read_bytes() == memory[:done].tobytes()


def test_small_or_missing_files_are_left_to_the_usual_way(tmp_path: Path) -> None:
    memory = _filled((8 << 20,))
    path = tmp_path / "file"
    assert write_direct(path, memory.data) == 0
    path.touch()
    assert write_direct(path, memory[:4096].data) == 0
    assert path.read_bytes() == b""


def test_only_neighbours_in_memory_are_joined() -> None:
    tiles = _filled((4, 64, 64))
    views = [tile.data.cast("B") for tile in tiles]
    joined = join_buffers(views)
    assert joined is not None
    assert bytes(joined) == tiles.tobytes()
    assert join_buffers(views[1:]) is not None, "a tile of 4,096 bytes starts on an aligned address"
    assert join_buffers([views[0], views[2]]) is None
    assert join_buffers([views[1], views[0]]) is None
    assert join_buffers([memoryview(bytes(tiles[0]))[1:]]) is None
    assert join_buffers([]) is None

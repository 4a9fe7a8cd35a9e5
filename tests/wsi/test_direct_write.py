"""Writes past the page cache: what is in the file is what was in memory, wherever the memory lies."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtriplet.wsi.direct_write import ALIGNMENT, aligned_empty, write_direct
from simtriplet.wsi.packed_chunks import PackedChunks
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
    size = write_shard(path, PackedChunks.of_stack(tiles), chunks_per_shard=64)
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
    done = write_direct(path, memory[: (6 << 20) + 100])
    assert done in (0, 6 << 20)  # 0: the file system of the test refuses
    assert path.read_bytes() == memory[:done].tobytes()


def test_small_or_missing_files_are_left_to_the_usual_way(tmp_path: Path) -> None:
    memory = _filled((8 << 20,))
    path = tmp_path / "file"
    assert write_direct(path, memory) == 0
    path.touch()
    assert write_direct(path, memory[:4096]) == 0
    assert path.read_bytes() == b""


def test_memory_that_is_not_aligned_is_left_to_the_usual_way(tmp_path: Path) -> None:
    memory = _filled((8 << 20,))
    path = tmp_path / "file"
    path.touch()
    assert write_direct(path, memory[1:]) == 0
    assert write_shard(path, PackedChunks.of_stack(memory[1 : 1 + (7 << 20)].reshape(7, 1 << 20)), chunks_per_shard=8)
    assert path.read_bytes()[: 7 << 20] == memory[1 : 1 + (7 << 20)].tobytes()


@given(sizes=st.lists(st.integers(0, 9), max_size=6))
def test_packed_chunks_are_the_pieces_of_their_memory(sizes: list[int]) -> None:
    memory = np.arange(sum(sizes), dtype=np.uint8)
    chunks = PackedChunks(memory, np.array(sizes, np.int64))
    pieces = [piece.tolist() for piece in np.split(memory, np.cumsum(sizes)[:-1])] if sizes else []
    assert [list(chunk) for chunk in chunks] == pieces
    assert [list(chunk) for chunk in chunks[1:4]] == pieces[1:4]
    assert len(chunks) == len(sizes)
    if sizes:
        assert list(chunks[-1]) == pieces[-1]
    with pytest.raises(IndexError):
        chunks[len(sizes)]


def test_packed_chunks_must_fill_their_memory() -> None:
    with pytest.raises(ValueError, match="bytes of memory"):
        PackedChunks(np.zeros(5, np.uint8), np.array([2, 2]))

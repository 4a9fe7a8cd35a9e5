"""Shard files byte for byte: what is written is what the index says, and damage is named."""

import os
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.shard import MISSING, ShardIndex, read_shard_index, write_shard


def read_index(path: Path, chunks_per_shard: int) -> ShardIndex:
    file = os.open(path, os.O_RDONLY)
    try:
        return read_shard_index(file, chunks_per_shard=chunks_per_shard, name="slide/c/0")
    finally:
        os.close(file)


@settings(deadline=None, max_examples=50)
@given(chunks=st.lists(st.binary(max_size=40), max_size=8), spare=st.integers(0, 3))
def test_chunks_lie_back_to_back_where_the_index_says(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], spare: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "shard"
    n_entries = max(1, len(chunks) + spare)
    size = write_shard(path, chunks, chunks_per_shard=n_entries)
    index = read_index(path, n_entries)
    data = path.read_bytes()
    assert size == len(data) == sum(map(len, chunks)) + 16 * n_entries + 4
    stored = [data[int(o) : int(o) + int(s)] for o, s in zip(index.offsets, index.sizes, strict=True) if o != MISSING]
    assert stored == chunks
    assert (index.offsets[len(chunks) :] == MISSING).all()
    assert (index.sizes[len(chunks) :] == MISSING).all()


def test_more_chunks_than_one_system_call_takes(tmp_path: Path) -> None:
    chunks = [np.full(7, number % 251, np.uint8) for number in range(1300)]
    write_shard(tmp_path / "shard", chunks, chunks_per_shard=1300)
    index = read_index(tmp_path / "shard", 1300)
    assert index.offsets.tolist() == [7 * number for number in range(1300)]
    assert (tmp_path / "shard").read_bytes()[: 7 * 1300] == b"".join(chunk.tobytes() for chunk in chunks)


def test_a_shorter_shard_replaces_a_longer_one(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard", [b"x" * 999], chunks_per_shard=2)
    assert write_shard(tmp_path / "shard", [b"y"], chunks_per_shard=2) == 1 + 36 == (tmp_path / "shard").stat().st_size


@settings(deadline=None, max_examples=60)
@given(place=st.integers(1, 16 * 4 + 4), bit=st.integers(0, 7))
def test_any_flipped_bit_in_the_index_is_found(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped"
    write_shard(path, [b"abc", b"", b"defg"], chunks_per_shard=4)
    data = bytearray(path.read_bytes())
    data[-place] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"^shard 'slide/c/0': its index is damaged; tile the slide again"):
        read_index(path, 4)


@pytest.mark.parametrize("length", [0, 1, 67])
def test_a_file_shorter_than_its_index_is_cut_short(tmp_path: Path, length: int) -> None:
    path = tmp_path / "shard"
    path.write_bytes(b"\0" * length)
    with pytest.raises(StoreError, match=rf"^shard 'slide/c/0': is cut short at {length} bytes"):
        read_index(path, 4)


@pytest.mark.parametrize("entry", [(0, 100), (10**6, 1), (2**64 - 2, 8)])
def test_an_index_that_points_outside_the_file_is_refused(tmp_path: Path, entry: tuple[int, int]) -> None:
    table = struct.pack("<QQ", *entry)
    (tmp_path / "shard").write_bytes(b"12345678" + table + struct.pack("<I", google_crc32c.value(table)))
    with pytest.raises(StoreError, match=r"its index points outside the file"):
        read_index(tmp_path / "shard", 1)

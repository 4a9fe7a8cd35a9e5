"""Open shard files: bounded whatever is read, shared by threads and safe over a fork."""

import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.open_shards import OPEN_SHARDS, OpenShard, OpenShards, ShardSource
from simtriplet.wsi.shard import write_shard
from simtriplet.wsi.store import TileStore

N = 12


@pytest.fixture
def sources(tmp_path: Path) -> list[ShardSource]:
    for number in range(N):
        write_shard(tmp_path / str(number), [bytes([number])], chunks_per_shard=2)
    return [ShardSource(tmp_path / str(number), f"s{number}", 2) for number in range(N)]


def read(shards: OpenShards, reader: int, number: int, source: ShardSource) -> int:
    opened = shards.acquire((reader, number), lambda: source)
    try:
        return os.pread(opened.file, 1, int(opened.index.offsets[0]))[0]
    finally:
        shards.release(opened)


def test_the_oldest_is_closed_first_and_nothing_that_is_read(sources: list[ShardSource]) -> None:
    shards = OpenShards(max_files=3)
    held = [shards.acquire((1, number), lambda number=number: sources[number]) for number in range(5)]  # type: ignore[misc]
    assert len(shards) == 5
    for opened in held:
        shards.release(opened)
    assert [read(shards, 1, number, sources[number]) for number in (4, 3, 7)] == [4, 3, 7]
    assert len(shards) == 3
    shards.close_reader(1)
    assert len(shards) == 0


def test_an_index_outlives_its_file_but_not_the_bound(sources: list[ShardSource]) -> None:
    shards = OpenShards(max_files=1, max_indices=4)
    for number in range(N):
        read(shards, 1, number, sources[number])
    sources[11].path.write_bytes(b"\x0b")  # its index was read and is kept; that of the first was dropped
    sources[0].path.write_bytes(b"\x00")
    assert read(shards, 1, 10, sources[10]) == 10
    assert read(shards, 1, 11, sources[11]) == 11
    with pytest.raises(StoreError, match="s0': is cut short"):
        read(shards, 1, 0, sources[0])


def test_threads_share_them(sources: list[ShardSource]) -> None:
    shards = OpenShards(max_files=2)

    def work(seed: int) -> bool:
        numbers = [(seed * 7 + step * 5) % N for step in range(300)]
        return all(read(shards, 1, number, sources[number]) == number for number in numbers)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


def test_a_forked_process_reads_on(sources: list[ShardSource]) -> None:
    shards = OpenShards()
    read(shards, 1, 0, sources[0])

    def work() -> None:
        assert [read(shards, 1, number, sources[number]) for number in range(N)] == list(range(N))

    with shards._lock:  # as if another thread held it at the moment of the fork
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
    child.join(20)
    assert child.exitcode == 0


@contextmanager
def few_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = sum(1 for _ in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 6, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_low_limit_of_open_files_is_kept_to(sources: list[ShardSource]) -> None:
    shards = OpenShards(max_files=N)
    held: list[OpenShard] = []
    with few_files():
        assert [read(shards, 1, number, sources[number]) for number in range(N)] == list(range(N))
        with pytest.raises(StoreError, match=r"cannot be opened .*raise the limit of open files, ulimit -n"):
            held.extend(shards.acquire((2, number), lambda number=number: sources[number]) for number in range(N))  # type: ignore[misc]
    assert 3 <= len(held) < N
    for opened in held:
        shards.release(opened)
    shards.close_reader(2)
    assert len(shards) == 0


def test_many_stores_are_read_under_a_low_limit(
    store_factory: Callable[..., TileStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OPEN_SHARDS, "max_files", 3)  # what a process takes that is started under such a limit
    stores = [store_factory(f"s{number}", index=False) for number in range(15)]
    with few_files():
        for _ in range(2):
            for store in stores:
                assert store.images.read([0, 23]).shape == (2, 32, 32, 3)


def test_what_the_system_refuses_is_not_called_damaged(sources: list[ShardSource]) -> None:
    """A link that leads to itself stands for missing rights, which a superuser does not lack."""
    shards, source = OpenShards(max_files=3), sources[0]
    source.path.unlink()
    with pytest.raises(StoreError, match=r"cannot be opened \(No such file or directory\); tile the slide again"):
        shards.acquire((0, 0), lambda: source)
    source.path.symlink_to(source.path)
    with pytest.raises(StoreError, match=r"cannot be opened \(Too many levels .*\); check its rights and disk"):
        shards.acquire((0, 0), lambda: source)

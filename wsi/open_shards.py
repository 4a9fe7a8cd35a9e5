"""The shard files that this process holds open, however many stores it reads: two bounded caches for all of them."""

import errno
import os
import resource
import stat
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.shard import ShardIndex, read_shard_index

__all__ = ["OPEN_SHARDS", "OpenShard", "OpenShards", "ShardKey", "ShardSource"]

_MAX_FILES = 256
_SHARE_OF_LIMIT = 4
"""A quarter of what the system lets the process open is taken at most: it has other files too."""

_MAX_INDICES = 1 << 15
"""Indices kept, 1.6 KB each: 2 million tiles, 52 MB."""

ShardKey = tuple[int, int]
"""Number of the reader, and of the shard."""


class ShardSource(NamedTuple):
    """Where a shard lies.

    Attributes:
        path: its file.
        name: what to call it in an error message.
        chunks_per_shard: entries of its index.
    """

    path: Path
    name: str
    chunks_per_shard: int


class OpenShard:
    """An open shard file.

    Attributes:
        file: descriptor, to be read with pread.
        index: where its chunks lie.
        users: how many read it at this moment.
    """

    __slots__ = ("file", "index", "users")

    def __init__(self, file: int, index: ShardIndex) -> None:
        self.file, self.index, self.users = file, index, 0


class OpenShards:
    """Open shard files, the least recently used closed first; safe to use from several threads.

    Args:
        max_files: files held open; more only while more are read at once.
        max_indices: indices kept of files that are open or were.
    """

    def __init__(self, max_files: int | None = None, max_indices: int = _MAX_INDICES) -> None:
        self.max_files = _default_files() if max_files is None else max_files
        self._max_indices = max_indices
        self._open: OrderedDict[ShardKey, OpenShard] = OrderedDict()
        self._indices: OrderedDict[ShardKey, ShardIndex] = OrderedDict()
        self._left: deque[int] = deque()
        self._lock = threading.Lock()
        self._readers = 0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew_lock)

    def __len__(self) -> int:
        return len(self._open)

    def _renew_lock(self) -> None:
        """A lock that another thread held when the process forked would never be free in the child."""
        self._lock = threading.Lock()

    def new_reader(self) -> int:
        """Return a number for the keys of one more reader."""
        with self._lock:
            self._readers += 1
            return self._readers

    def acquire(self, key: ShardKey, source: Callable[[], ShardSource]) -> OpenShard:
        """Return an open shard, which stays open until it is released.

        Args:
            key: who reads, and which shard.
            source: tells where it lies; asked only where it is not open.

        Raises:
            StoreError: if it cannot be opened, or its index is damaged.
        """
        with self._lock:
            self._close_left()
            found = self._open.get(key)
            if found is None:
                found = self._open[key] = self._open_file(key, source())
            self._open.move_to_end(key)
            found.users += 1
            self._close_idle(len(self._open) - self.max_files)
            return found

    def release(self, shard: OpenShard) -> None:
        """Say that a shard is not read any more."""
        with self._lock:
            shard.users -= 1

    def close_reader(self, reader: int) -> None:
        """Close and forget all files of one reader."""
        self._left.append(reader)
        with self._lock:
            self._close_left()

    def leave(self, reader: int) -> None:
        """Let the files of a reader that is gone be closed at the next occasion.

        For finalisers: the garbage collector may call one while this thread holds the lock.
        """
        self._left.append(reader)

    def _close_left(self) -> None:
        while self._left:
            reader = self._left.popleft()
            for key in [key for key in self._open if key[0] == reader]:
                os.close(self._open.pop(key).file)
            for key in [key for key in self._indices if key[0] == reader]:
                del self._indices[key]

    def _open_file(self, key: ShardKey, source: ShardSource) -> OpenShard:
        file = self._open_or_make_room(source.path, source.name)
        try:
            index = self._indices.get(key) or read_shard_index(
                file, chunks_per_shard=source.chunks_per_shard, name=source.name
            )
        except BaseException:
            os.close(file)
            raise
        self._indices[key] = index
        self._indices.move_to_end(key)
        if len(self._indices) > self._max_indices:
            self._indices.popitem(last=False)
        return OpenShard(file, index)

    def _open_or_make_room(self, path: Path, name: str) -> int:
        try:
            return _open_file(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                cure = "tile the slide again" if isinstance(error, FileNotFoundError) else "check its rights and disk"
                raise StoreError(f"shard '{name}': cannot be opened ({error.strerror}); {cure}") from error
        self._close_idle(len(self._open))
        try:
            return _open_file(path)
        except OSError as error:
            raise StoreError(
                f"shard '{name}': cannot be opened ({error.strerror}); raise the limit of open files, ulimit -n"
            ) from error

    def _close_idle(self, count: int) -> None:
        if count <= 0:
            return
        idle = [key for key, shard in self._open.items() if not shard.users]
        for key in idle[:count]:
            os.close(self._open.pop(key).file)


def _open_file(path: Path) -> int:
    """Open a file for reading; what is none, such as a pipe that would make us wait for ever, is refused."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is no file")
    return file


def _default_files() -> int:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MAX_FILES if soft == resource.RLIM_INFINITY else max(1, min(_MAX_FILES, soft // _SHARE_OF_LIMIT))


OPEN_SHARDS = OpenShards()
"""Those of this process."""

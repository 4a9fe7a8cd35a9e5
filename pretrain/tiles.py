"""The pixels of all stores under one numbering, resident on the device, resident on the host, or streamed."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simtriplet.pretrain.memory import free_device_bytes, free_host_bytes
from simtriplet.pretrain.settings import StorageTier
from simtriplet.wsi.errors import TrainingError
from simtriplet.wsi.store import TileStore

__all__ = ["HostTiles", "ResidentTiles", "StreamedTiles", "TileNumbering", "TileSource", "open_tiles", "pick_tier"]

logger = logging.getLogger(__name__)

_READ_CHUNK = 256
"""Tiles a read; a multiple of the 64 in a shard, so that every shard is opened once."""
_PART = 32
"""Tiles of a batch that one thread reads in a go."""
_DEVICE_SHARE = 0.4
"""Of free device memory; the rest is for activations."""
_HOST_SHARE = 0.6
_MPP_TOLERANCE = 0.05
"""Tiling takes a level within 2 % of the wanted mpp as it is, so two slides of one request may be 4 % apart."""


class TileNumbering:
    """Number the tiles of several stores from 0 on, store after store.

    Args:
        stores: of one tile size and one resolution.

    Raises:
        TrainingError: if there is no tile, or two stores differ in size or resolution.
    """

    def __init__(self, stores: Sequence[TileStore]) -> None:
        if not sum(len(store) for store in stores):
            raise TrainingError(f"{len(stores)} tile stores: hold no tile to train on; tile the slides again")
        for other in stores[1:]:
            _check_alike(stores[0], other)
        self.stores = list(stores)
        self.offsets = np.cumsum([0, *(len(store) for store in stores)])
        self.size_px = stores[0].size_px
        self.mpp = stores[0].mpp

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def n_bytes(self) -> int:
        """Bytes of all tiles as uint8 RGB."""
        return len(self) * self.size_px**2 * 3

    def read(
        self, ids: npt.NDArray[np.int64], *, out: npt.NDArray[np.uint8], pool: ThreadPoolExecutor | None = None
    ) -> None:
        """Read tiles by their global numbers, in any order, into (m, s, s, 3) uint8.

        Args:
            ids: (m,) numbers; repeats are read once.
            out: where the tiles go.
            pool: threads that share the work; the caller's own without it.

        Raises:
            StoreError: if a store is damaged.
        """
        # both views of an anchor come from one read
        once, first, place_of = np.unique(ids, return_index=True, return_inverse=True)

        def read_part(part: slice) -> None:
            self._read_sorted(once[part], first[part], out)

        parts = [slice(start, start + _PART) for start in range(0, len(once), _PART)]
        list(map(read_part, parts) if pool is None else pool.map(read_part, parts))
        again = np.flatnonzero(first[place_of] != np.arange(len(ids)))
        out[again] = out[first[place_of[again]]]

    def _read_sorted(
        self, ids: npt.NDArray[np.int64], places: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]
    ) -> None:
        cuts = np.searchsorted(ids, self.offsets)
        for owner in np.flatnonzero(np.diff(cuts)).tolist():
            part = slice(int(cuts[owner]), int(cuts[owner + 1]))
            self.stores[owner].images.read(ids[part] - self.offsets[owner], out=out, places=places[part])

    def close(self) -> None:
        """Close the stores' files; they open again when needed."""
        for store in self.stores:
            store.images.close()


def _check_alike(first: TileStore, other: TileStore) -> None:
    names = f"stores '{first.path.name}' and '{other.path.name}'"
    if first.size_px != other.size_px:
        raise TrainingError(
            f"{names}: have tiles of {first.size_px} and {other.size_px} px; tile all slides with one --size"
        )
    if abs(other.mpp / first.mpp - 1) > _MPP_TOLERANCE:
        raise TrainingError(f"{names}: have {first.mpp:g} and {other.mpp:g} um a pixel; tile all slides with one --mpp")


class TileSource(Protocol):
    """Give tiles by number; a context manager."""

    size_px: int
    """Side of a stored tile."""
    id_device: torch.device
    """Where the numbers are wanted, so that no gather makes the host wait for the device."""

    def prefetch(self, ids: Tensor) -> None:
        """Say which tiles the next gather will ask for."""

    def gather(self, ids: Tensor) -> Tensor:
        """Return (n, s, s, 3) uint8 on the training device for (n,) int64 global numbers, repeats allowed."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ResidentTiles:
    """All tiles in one tensor on the training device; read once.

    Args:
        numbering: the stores.
        device: where tiles lie and batches go.
        threads: readers.

    Raises:
        StoreError: if a store is damaged.
    """

    def __init__(self, numbering: TileNumbering, *, device: torch.device, threads: int = 4) -> None:
        self.size_px = numbering.size_px
        self.id_device = device
        self.tiles = read_all(numbering, memory=device, threads=threads)

    def prefetch(self, ids: Tensor) -> None:
        """Do nothing: every tile is here."""

    def gather(self, ids: Tensor) -> Tensor:
        """See TileSource."""
        return self.tiles.index_select(0, ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release nothing; the tensor goes with the object."""


def read_all(numbering: TileNumbering, *, memory: torch.device, threads: int) -> Tensor:
    """Read all tiles into one (n, s, s, 3) uint8 tensor, and close the stores.

    Raises:
        StoreError: if a store is damaged.
    """
    size_px = numbering.size_px
    tiles = torch.empty((len(numbering), size_px, size_px, 3), dtype=torch.uint8, device=memory)

    def load(start: int) -> None:
        ids = np.arange(start, min(start + _READ_CHUNK, len(numbering)))
        part = np.empty((len(ids), size_px, size_px, 3), np.uint8)
        numbering.read(ids, out=part)
        tiles[start : start + len(ids)] = torch.from_numpy(part)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(load, range(0, len(numbering), _READ_CHUNK)))
    numbering.close()
    return tiles


class _AheadTiles(ABC):
    """Tiles that are put together on the host, one batch ahead of the step, in pinned memory where the device is a GPU."""

    def __init__(self, size_px: int, device: torch.device) -> None:
        self.size_px = size_px
        self.id_device = torch.device("cpu")
        self.device = device
        self._ahead_pool = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._ahead: tuple[Tensor, Future[Tensor]] | None = None

    @abstractmethod
    def _fill(self, ids: Tensor, batch: Tensor) -> None:
        """Write the tiles (n,) into (n, s, s, 3) uint8."""

    def prefetch(self, ids: Tensor) -> None:
        """Start to put a batch together."""
        self._ahead = (ids, self._ahead_pool.submit(self._read, ids))

    def gather(self, ids: Tensor) -> Tensor:
        """See TileSource.

        Raises:
            StoreError: if a store is damaged.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and torch.equal(ahead[0], ids):
            return ahead[1].result().to(self.device, non_blocking=True)
        return self._read(ids).to(self.device, non_blocking=True)

    def _read(self, ids: Tensor) -> Tensor:
        shape = (len(ids), self.size_px, self.size_px, 3)
        if self.device.type == "cuda":
            # torch keeps pinned memory for the next batch, once the copy to the device is done
            batch = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:
            batch = torch.from_numpy(np.empty(shape, np.uint8))  # in huge pages, which torch does not ask for
        self._fill(ids, batch)
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the batch under way and end the threads."""
        self._ahead_pool.shutdown(cancel_futures=True)


class HostTiles(_AheadTiles):
    """All tiles in one tensor in host memory, read once; the copy to the device is under way while the step computes.

    Args:
        numbering: the stores.
        device: where batches go.
        threads: readers.

    Raises:
        StoreError: if a store is damaged.
    """

    def __init__(self, numbering: TileNumbering, *, device: torch.device, threads: int = 4) -> None:
        super().__init__(numbering.size_px, device)
        self.tiles = read_all(numbering, memory=torch.device("cpu"), threads=threads)

    def _fill(self, ids: Tensor, batch: Tensor) -> None:
        torch.index_select(self.tiles, 0, ids, out=batch)


class StreamedTiles(_AheadTiles):
    """Read every batch from the stores; memory stays the same however large they are.

    Args:
        numbering: the stores.
        device: where batches go.
        threads: readers, which share each batch.
    """

    def __init__(self, numbering: TileNumbering, *, device: torch.device, threads: int = 4) -> None:
        super().__init__(numbering.size_px, device)
        self._numbering = numbering
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tiles") if threads > 1 else None

    def _fill(self, ids: Tensor, batch: Tensor) -> None:
        self._numbering.read(ids.numpy(), out=batch.numpy(), pool=self._pool)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the batch under way, end the threads and close the stores."""
        super().__exit__(kind, error, trace)
        if self._pool is not None:
            self._pool.shutdown()
        self._numbering.close()


def pick_tier(n_bytes: int, *, device: torch.device) -> StorageTier:
    """Return the fastest tier whose memory holds `n_bytes` of tiles beside everything else."""
    share = _DEVICE_SHARE if device.type == "cuda" else _HOST_SHARE
    if n_bytes <= share * free_device_bytes(device):
        return "device"
    if device.type == "cuda" and n_bytes <= _HOST_SHARE * free_host_bytes():
        return "host"
    return "stream"


def open_tiles(
    numbering: TileNumbering, *, device: torch.device, tier: StorageTier = "auto", threads: int = 4
) -> TileSource:
    """Open the tiles in the tier asked for; `auto` picks by size."""
    picked = pick_tier(numbering.n_bytes, device=device) if tier == "auto" else tier
    logger.info("%d tiles (%.2f GB), storage tier %s", len(numbering), numbering.n_bytes / 1e9, picked)
    if picked == "stream":
        return StreamedTiles(numbering, device=device, threads=threads)
    kind = ResidentTiles if picked == "device" else HostTiles
    return kind(numbering, device=device, threads=threads)

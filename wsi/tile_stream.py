"""From windows of a slide to shards of a store: read, resample, score, drop, write, in threads and in bounded memory."""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from simtriplet.wsi.codec import Encoded
from simtriplet.wsi.direct_write import aligned_empty
from simtriplet.wsi.errors import SlideReadError
from simtriplet.wsi.geometry import TilePlan
from simtriplet.wsi.images import IMAGES, TILES_PER_SHARD
from simtriplet.wsi.native_grid import NativeTiles
from simtriplet.wsi.quality import QualitySpec, score_tiles
from simtriplet.wsi.slide import Pixels, ReducesWindows, SlideReader
from simtriplet.wsi.store_writer import StoreWriter

__all__ = ["CopiedTiles", "PixelTiles", "Streamed", "TileBlock", "TileFeed", "read_tiles", "resample", "stream_tiles"]

_WINDOW_BYTES = 24 << 20
"""Windows held at once by a thread while it resamples them."""

_SPARE_BYTES = 256 << 20
"""Of blocks of tiles, for threads beyond those that compute."""

Progress = Callable[[int, int], None]
Scores = dict[str, npt.NDArray[np.float32]]


class TileBlock(NamedTuple):
    """Tiles ready to be written.

    Attributes:
        encoded: by array (`images`, and one for each co-centred resolution), one chunk's bytes a tile.
        scores: (k,) float32 a quality column.
        damaged: places of tiles that cannot be read; where there are any, the block holds nothing else.
    """

    encoded: dict[str, Sequence[Encoded]]
    scores: Scores
    damaged: Sequence[int] = ()


class Scratch(threading.local):
    """Memory of one block a thread, used again for the next: fresh memory of that size costs 20 us a tile in page faults.

    It is aligned as a write past the page cache needs it.
    """

    def __init__(self) -> None:
        self._memory = aligned_empty((0,))

    def memory(self, n_bytes: int) -> npt.NDArray[np.uint8]:
        """Return (n_bytes,) uint8 of undefined content, valid until the next call in this thread."""
        if len(self._memory) < n_bytes:
            self._memory = aligned_empty((n_bytes,))
        return self._memory[:n_bytes]


class TileFeed(Protocol):
    """Where the tiles of one slide come from."""

    def block(self, places: npt.NDArray[np.int64], scratch: Scratch | None = None) -> TileBlock:
        """Return tiles by their places in storage order; called from several threads.

        Args:
            places: (k,) at most 64.
            scratch: memory that may hold the block's pixels until the next call with it.

        Raises:
            SlideReadError: if the pixels are damaged.
        """


@dataclass(frozen=True, slots=True)
class PixelTiles:
    """Tiles read from pixels.

    Attributes:
        reader: the slide.
        plan: level, size and scale.
        level_xy: (n, 2) int64, top-left corners, pixels of the plan's level.
        writer: encodes them.
        fold_limit: of the slide, for the quality scores.
        context: by array, plan and corners of the co-centred tiles.
    """

    reader: SlideReader
    plan: TilePlan
    level_xy: npt.NDArray[np.int64]
    writer: StoreWriter
    fold_limit: float
    context: Mapping[str, tuple[TilePlan, npt.NDArray[np.int64]]]

    def block(self, places: npt.NDArray[np.int64], scratch: Scratch | None = None) -> TileBlock:
        """See TileFeed."""
        shape = (len(places), self.plan.size_px, self.plan.size_px, 3)
        out = None if scratch is None else scratch.memory(math.prod(shape)).reshape(shape)
        tiles = read_tiles(self.reader, self.plan, self.level_xy[places], out=out)
        scores = score_tiles(tiles, fold_limit=self.fold_limit)
        encode = self.writer.codec.encode_stack
        encoded = {IMAGES: encode(tiles)}
        for name, (plan, level_xy) in self.context.items():
            encoded[name] = encode(read_tiles(self.reader, plan, level_xy[places]))
        return TileBlock(encoded, scores)


@dataclass(frozen=True, slots=True)
class CopiedTiles:
    """Tiles copied as the slide holds them; they are decoded only where their scores are asked for.

    Attributes:
        native: the slide's own tiles.
        row: (n,) native row of each tile.
        col: (n,) native column.
        writer: of the store, whose codec decodes them.
        scored: whether to decode and score.
        fold_limit: of the slide.
    """

    native: NativeTiles
    row: npt.NDArray[np.int64]
    col: npt.NDArray[np.int64]
    writer: StoreWriter
    scored: bool
    fold_limit: float

    def block(self, places: npt.NDArray[np.int64], scratch: Scratch | None = None) -> TileBlock:
        """See TileFeed."""
        memory = _fresh_memory if scratch is None else scratch.memory
        encoded = self.native.read(self.row[places].tolist(), self.col[places].tolist(), memory)
        if not self.scored:
            return TileBlock({IMAGES: encoded}, {})
        tiles = np.empty((len(places), self.native.size_px, self.native.size_px, 3), np.uint8)
        for place, (chunk, tile) in enumerate(zip(encoded, tiles, strict=True)):
            try:
                self.writer.codec.decode(bytes(chunk), tile)
            except ValueError as error:
                cell = int(self.col[places[place]]), int(self.row[places[place]])
                raise SlideReadError(
                    f"slide '{self.writer.path.name}': native tile {cell} cannot be decoded ({error}); the file is damaged"
                ) from error
        return TileBlock({IMAGES: encoded}, score_tiles(tiles, fold_limit=self.fold_limit))


def _fresh_memory(n_bytes: int) -> npt.NDArray[np.uint8]:
    return np.empty(n_bytes, np.uint8)


@dataclass(frozen=True, slots=True)
class Streamed:
    """What became of the tiles.

    Attributes:
        reasons: (n,) int8, places in QUALITY_REASONS: 0 for those written.
        scores: (n,) float32 a quality column; empty where tiles were not looked at.
        damaged: places of tiles that cannot be read, in order; where there are any, the store lacks whole shards: make it
            anew without them.
    """

    reasons: npt.NDArray[np.int8]
    scores: Scores
    damaged: tuple[int, ...] = ()


def stream_tiles(
    feed: TileFeed,
    n_tiles: int,
    writer: StoreWriter,
    *,
    quality: QualitySpec,
    threads: int,
    skip_damage: bool = False,
    progress: Progress | None = None,
) -> Streamed:
    """Write tiles in storage order, 64 to a shard, leaving out those that miss a quality limit.

    Args:
        feed: gives the tiles.
        n_tiles: how many there are.
        writer: the store.
        quality: limits; without any, threads write whole shards on their own.
        threads: that compute at once; as many again, within 256 MiB, for those that wait for the disk.
        skip_damage: find all tiles that cannot be read, instead of an error at the first.
        progress: called with (tiles done, tiles in all).

    Raises:
        SlideReadError: if the slide is damaged, unless damage is skipped.
        StoreError: if the store cannot be written.
    """
    feed = _DamageFinder(feed) if skip_damage else feed
    blocks = [np.arange(start, min(start + TILES_PER_SHARD, n_tiles)) for start in range(0, n_tiles, TILES_PER_SHARD)]
    run = _Filtered(feed, writer, quality) if quality.filters else _Whole(feed, writer)
    reasons = np.zeros(n_tiles, np.int8)
    scores: Scores = {}
    damaged: list[int] = []
    done = 0
    # while some wait for the disk, the others decode
    spare = _SPARE_BYTES // (TILES_PER_SHARD * writer.size_px**2 * 3)
    pool = ThreadPoolExecutor(threads + min(threads, spare), thread_name_prefix="tile")
    try:
        for places, block in zip(blocks, _in_order(pool, run, blocks, ahead=2 * threads + 1), strict=True):
            damaged += block.damaged
            if not block.damaged:
                found, reasons[places] = run.collect(block, len(places))
                for name, values in found.items():
                    scores.setdefault(name, np.full(n_tiles, np.nan, np.float32))[places] = values
            done += len(places)
            if progress is not None:
                progress(done, n_tiles)
        run.finish()
    finally:
        # on an error or Ctrl-C the blocks not yet begun are dropped
        pool.shutdown(wait=True, cancel_futures=True)
    return Streamed(reasons, scores, tuple(damaged))


@dataclass(frozen=True, slots=True)
class _DamageFinder:
    """A feed in which tiles that cannot be read are named, not raised."""

    feed: TileFeed

    def block(self, places: npt.NDArray[np.int64], scratch: Scratch | None = None) -> TileBlock:
        """See TileFeed."""
        try:
            return self.feed.block(places, scratch)
        except SlideReadError:
            damaged = [place for place in places.tolist() if not self._reads(place)]
        # what failed once and then no more, as on a network disk, is read again as a whole
        return TileBlock({}, {}, damaged) if damaged else self.feed.block(places, scratch)

    def _reads(self, place: int) -> bool:
        try:
            self.feed.block(np.array([place]))
        except SlideReadError:
            return False
        return True


class _Whole:
    """Every block is a shard: it is read and written by one thread."""

    def __init__(self, feed: TileFeed, writer: StoreWriter) -> None:
        self._feed, self._writer = feed, writer
        self._scratch = Scratch()

    def work(self, number: int, places: npt.NDArray[np.int64]) -> TileBlock:
        block = self._feed.block(places, self._scratch)
        if block.damaged:
            return block
        self._writer.write_encoded(number, block.encoded)
        return TileBlock({}, block.scores)

    def collect(self, block: TileBlock, n_places: int) -> tuple[Scores, npt.NDArray[np.int8]]:
        return block.scores, np.zeros(n_places, np.int8)

    def finish(self) -> None:
        """Nothing is left over."""


class _Filtered:
    """Blocks lose tiles, so what remains is packed into shards in order, by the one thread that collects."""

    def __init__(self, feed: TileFeed, writer: StoreWriter, quality: QualitySpec) -> None:
        self._feed, self._writer, self._quality = feed, writer, quality
        self._waiting: dict[str, list[Encoded]] = {name: [] for name in writer.arrays}
        self._shard = 0

    def work(self, number: int, places: npt.NDArray[np.int64]) -> TileBlock:
        return self._feed.block(places)

    def collect(self, block: TileBlock, n_places: int) -> tuple[Scores, npt.NDArray[np.int8]]:
        reasons = self._quality.reason_codes(block.scores)
        kept = np.flatnonzero(reasons == 0).tolist()
        for name, chunks in block.encoded.items():
            # a view would hold the memory of its whole block until the shard is full
            whole = len(kept) == len(chunks)
            self._waiting[name] += [chunks[place] if whole else bytes(chunks[place]) for place in kept]
        while len(self._waiting[IMAGES]) >= TILES_PER_SHARD:
            self._write()
        return block.scores, reasons

    def _write(self) -> None:
        shard = {name: chunks[:TILES_PER_SHARD] for name, chunks in self._waiting.items()}
        self._writer.write_encoded(self._shard, shard)
        self._waiting = {name: chunks[TILES_PER_SHARD:] for name, chunks in self._waiting.items()}
        self._shard += 1

    def finish(self) -> None:
        if self._waiting[IMAGES]:
            self._write()


def _in_order(
    pool: ThreadPoolExecutor, run: _Whole | _Filtered, blocks: Sequence[npt.NDArray[np.int64]], *, ahead: int
) -> Iterator[TileBlock]:
    """Yield the blocks in order, with only so many begun ahead, so that memory stays bounded."""
    pending: deque[Future[TileBlock]] = deque()
    for number, places in enumerate(blocks):
        pending.append(pool.submit(run.work, number, places))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def read_tiles(
    reader: SlideReader, plan: TilePlan, level_xy: npt.NDArray[np.int64], *, out: Pixels | None = None
) -> Pixels:
    """Read tiles.

    Args:
        reader: the slide.
        plan: level, size and scale.
        level_xy: (k, 2) int64, top-left corners, pixels of the plan's level.
        out: (k, s, s, 3) uint8 to read into; made when not given.

    Returns:
        (k, s, s, 3) uint8 RGB.

    Raises:
        SlideReadError: if the pixels are damaged.
    """
    size = (plan.read_px, plan.read_px)
    if plan.scale == 1:
        return reader.read_windows(plan.level, level_xy, size, out=out)
    tiles = np.empty((len(level_xy), plan.size_px, plan.size_px, 3), np.uint8) if out is None else out
    left = np.arange(len(level_xy))
    if plan.scale == round(plan.scale) and plan.scale > 1 and isinstance(reader, ReducesWindows):
        left = np.flatnonzero(~reader.read_reduced(plan.level, level_xy, plan.size_px, round(plan.scale), out=tiles))
    step = max(1, _WINDOW_BYTES // (3 * plan.read_px**2))
    for start in range(0, len(left), step):
        places = left[start : start + step]
        windows = reader.read_windows(plan.level, level_xy[places], size)
        for place, window in zip(places.tolist(), windows, strict=True):
            tiles[place] = resample(window, plan.scale, plan.size_px)
    return tiles


def resample(window: Pixels, scale: float, size_px: int) -> Pixels:
    """Bring an (r, r, 3) window of the level to an (s, s, 3) tile: exact area average, or cubic where finer than the level.

    OpenCV takes the factor itself (not the ratio of sizes) when no target size is given: output pixel i then averages
    exactly the interval [i, i + 1) x scale of the window.
    """
    factor = 1 / scale
    if scale > 1 and round(window.shape[0] * factor) == window.shape[0]:
        # where its rounded size is the window's own, OpenCV copies
        return _average(window, _area_weights(window.shape[0], scale, size_px))
    kind = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    tile = cv2.resize(window, None, fx=factor, fy=factor, interpolation=kind)
    if min(tile.shape[:2]) < size_px:
        missing = ((0, max(0, size_px - tile.shape[0])), (0, max(0, size_px - tile.shape[1])), (0, 0))
        tile = np.pad(tile, missing, mode="edge")
    return np.asarray(tile[:size_px, :size_px], dtype=np.uint8)


@lru_cache(maxsize=16)
def _area_weights(n_in: int, scale: float, n_out: int) -> npt.NDArray[np.float32]:
    """Return (n_out, n_in): how much of the interval [i, i + 1) x scale lies in each pixel; rows sum to 1."""
    low = np.arange(n_out)[:, None] * scale
    pixel = np.arange(n_in)[None]
    overlap = np.clip(np.minimum(low + scale, pixel + 1) - np.maximum(low, pixel), 0, None)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True), np.float32)


def _average(window: Pixels, weights: npt.NDArray[np.float32]) -> Pixels:
    rows = np.tensordot(weights, window.astype(np.float32), axes=(1, 0))
    columns = np.tensordot(rows, weights, axes=(1, 1)).transpose(0, 2, 1)
    return np.ascontiguousarray(np.clip(np.rint(columns), 0, 255).astype(np.uint8))

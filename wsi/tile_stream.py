"""From windows of a slide to shards of a store: read, resample, score, drop, write, in threads and in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.codec import Encoded
from simtriplet.wsi.errors import SlideReadError
from simtriplet.wsi.images import IMAGES, TILES_PER_SHARD
from simtriplet.wsi.quality import QualitySpec
from simtriplet.wsi.store_writer import StoreWriter
from simtriplet.wsi.tile_feed import Scores, Scratch, TileBlock, TileFeed

__all__ = ["Streamed", "stream_tiles"]

_SPARE_BYTES = 256 << 20
"""Of blocks of tiles, for threads beyond those that compute."""

Progress = Callable[[int, int], None]


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

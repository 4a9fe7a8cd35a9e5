"""What makes blocks of tiles ready to be written: read from pixels, or copied as the slide holds them."""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.codec import Encoded
from simtriplet.wsi.direct_write import aligned_empty
from simtriplet.wsi.errors import SlideReadError
from simtriplet.wsi.geometry import TilePlan
from simtriplet.wsi.images import IMAGES
from simtriplet.wsi.native_grid import NativeTiles
from simtriplet.wsi.quality import score_tiles
from simtriplet.wsi.resampling import read_tiles
from simtriplet.wsi.slide import SlideReader
from simtriplet.wsi.store_writer import StoreWriter

__all__ = ["CopiedTiles", "PixelTiles", "Scores", "Scratch", "TileBlock", "TileFeed"]

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

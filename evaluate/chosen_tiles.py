"""The pixels of some tiles of a cohort under one numbering, to be held in memory or streamed as the trainer does."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.pretrain.tiles import TileNumbering
from simtriplet.wsi.store import TileStore

__all__ = ["ChosenTiles"]


class ChosenTiles(TileNumbering):
    """Number labelled tiles from 0 on, in the order in which they are chosen; only these are ever read.

    Args:
        stores: that hold them, of one tile size and one resolution.
        tiles: the labelled tiles.
        places: (n,) int64 into `tiles`.

    Raises:
        TrainingError: if two stores differ in size or resolution.
    """

    def __init__(self, stores: Sequence[TileStore], tiles: LabelledTiles, places: npt.NDArray[np.int64]) -> None:
        super().__init__(stores)
        first = {store.slide_id: int(offset) for store, offset in zip(stores, self.offsets[:-1], strict=True)}
        starts = np.array([first[slide] for slide in tiles.slides[places].tolist()], dtype=np.int64)
        self._ids = starts + tiles.rows[places]

    def __len__(self) -> int:
        return len(self._ids)

    def read(
        self, ids: npt.NDArray[np.int64], *, out: npt.NDArray[np.uint8], pool: ThreadPoolExecutor | None = None
    ) -> None:
        """See TileNumbering."""
        super().read(self._ids[ids], out=out, pool=pool)

"""Decoded native tiles that several tiles of a lattice need."""

import threading
from collections import OrderedDict

from simtriplet.wsi.slide import Pixels

__all__ = ["NativeTileCache"]

Key = tuple[int, int, int]
"""Level, number and factor of reduction of a native tile."""


class NativeTileCache:
    """Decoded native tiles, the least recently used dropped first; shared by all threads.

    Args:
        max_bytes: of all tiles kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tiles: OrderedDict[Key, Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Pixels | None:
        """Return a tile, or None."""
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
            return tile

    def put(self, key: Key, tile: Pixels) -> None:
        """Keep a tile, which nobody may change afterwards."""
        with self._lock:
            if key in self._tiles:
                return
            self._tiles[key] = tile
            self._bytes += tile.nbytes
            while self._bytes > self._max_bytes and len(self._tiles) > 1:
                self._bytes -= self._tiles.popitem(last=False)[1].nbytes

"""Encoded chunks that lie back to back in memory, as they will in the file: one write takes all of them."""

from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

__all__ = ["PackedChunks"]


class PackedChunks(Sequence[memoryview]):
    """A sequence of chunks over one piece of memory.

    Args:
        memory: (b,) uint8, contiguous; it must keep its content as long as the chunks are used.
        sizes: (k,) int64, bytes of each chunk; they sum to b.
    """

    __slots__ = ("_ends", "memory", "sizes")

    def __init__(self, memory: npt.NDArray[np.uint8], sizes: npt.NDArray[np.int64]) -> None:
        self.memory = memory
        self.sizes = sizes
        self._ends: list[int] = np.cumsum(sizes).tolist()
        if memory.shape != (self._ends[-1] if self._ends else 0,):
            raise ValueError(f"{memory.shape} bytes of memory for chunks of {self._ends[-1:]} bytes")

    @classmethod
    def of_stack(cls, tiles: npt.NDArray[np.uint8]) -> "PackedChunks":
        """Take every item of a contiguous (k, ...) uint8 array as a chunk, without a copy."""
        size = tiles[0].size if len(tiles) else 0
        return cls(tiles.reshape(-1), np.full(len(tiles), size, np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> memoryview: ...
    @overload
    def __getitem__(self, place: slice) -> list[memoryview]: ...
    def __getitem__(self, place: int | slice) -> memoryview | list[memoryview]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        return self.memory[self._ends[place - 1] if place else 0 : self._ends[place]].data

"""What all readers share: windows that reach over the slide's border, transparency, and closing."""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.slide import Pixels, SlideInfo

__all__ = ["WindowReader", "clip_window", "on_white"]


def clip_window(
    xy: tuple[int, int], size: tuple[int, int], level_size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the part of a window that lies on the level: its top-left corner and (width, height), which may be zero."""
    left, top = max(0, xy[0]), max(0, xy[1])
    right, bottom = min(level_size[0], xy[0] + size[0]), min(level_size[1], xy[1] + size[1])
    return (left, top), (max(0, right - left), max(0, bottom - top))


def on_white(rgba: npt.NDArray[np.uint8]) -> Pixels:
    """Lay (h, w, 4) straight-alpha RGBA over white; return (h, w, 3)."""
    alpha = rgba[..., 3:]
    if alpha.min(initial=255) == 255:
        return np.ascontiguousarray(rgba[..., :3])
    weight = alpha.astype(np.uint16)
    mixed = (rgba[..., :3] * weight + 255 * (255 - weight) + 127) // 255
    return mixed.astype(np.uint8)


class WindowReader:
    """Base of the readers: subclasses give `read_inside`, this adds white borders and many windows."""

    path: Path
    info: SlideInfo

    def read_inside(self, level: int, xy: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """Read a non-empty window that lies wholly on the level; see SlideReader.read."""
        raise AssertionError("every reader defines read_inside")

    def close(self) -> None:
        """Release the file."""

    def read(self, level: int, xy: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """See SlideReader."""
        inner_xy, inner_size = clip_window(xy, size, self.info.level_sizes[level])
        if inner_size == size:
            return self.read_inside(level, inner_xy, inner_size)
        pixels = np.full((size[1], size[0], 3), 255, np.uint8)
        if min(inner_size) > 0:
            x, y = inner_xy[0] - xy[0], inner_xy[1] - xy[1]
            pixels[y : y + inner_size[1], x : x + inner_size[0]] = self.read_inside(level, inner_xy, inner_size)
        return pixels

    def read_windows(
        self, level: int, xy: npt.NDArray[np.int64], size: tuple[int, int], *, out: Pixels | None = None
    ) -> Pixels:
        """See SlideReader."""
        pixels = np.empty((len(xy), size[1], size[0], 3), np.uint8) if out is None else out
        for place, (x, y) in enumerate(xy.tolist()):
            pixels[place] = self.read(level, (x, y), size)
        return pixels

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

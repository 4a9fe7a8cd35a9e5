"""Slides through OpenSlide: all its formats, DICOM included."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openslide

from simtriplet.wsi.dicom_frames import refuse_lying_frames
from simtriplet.wsi.errors import SlideDamagedError, SlideOpenError, SlideReadError
from simtriplet.wsi.slide import MAX_TILE_PX, Pixels, SlideInfo, level_downsamples
from simtriplet.wsi.window import WindowReader, on_white

__all__ = ["OpenSlideReader"]


class OpenSlideReader(WindowReader):
    """Read with OpenSlide; each thread has a handle of its own, since an error leaves a handle unusable.

    Args:
        path: the slide file.

    Raises:
        SlideOpenError: if OpenSlide does not know the format or the file is damaged.
    """

    name = "openslide"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._handles: list[openslide.OpenSlide] = []
        self._lock = threading.Lock()
        if _is_dicom(path):
            refuse_lying_frames(path)
        self.info = _info(self._handle())
        self._refuse_large_tiles()
        # what the library itself takes a level-0 position to mean
        self._downsamples = tuple(float(downsample) for downsample in self._handle().level_downsamples)

    @classmethod
    def suits(cls, path: Path) -> bool:
        """Tell whether OpenSlide recognises the format."""
        try:
            return openslide.OpenSlide.detect_format(str(path)) is not None
        except openslide.OpenSlideError:
            return False

    def _refuse_large_tiles(self) -> None:
        """Refuse tiles too large to hold: OpenSlide ends the process when it cannot get their memory."""
        properties = self._handle().properties
        for level in range(len(self.info.level_sizes)):
            width, height = (
                int(properties.get(f"openslide.level[{level}].tile-{side}", 1)) for side in ("width", "height")
            )
            if width * height > MAX_TILE_PX:
                self.close()
                raise SlideDamagedError(
                    f"slide '{self.path}': native tiles of {width} x {height} pixels are larger than any scanner's; "
                    "the file is damaged, copy it again"
                )

    def _handle(self) -> openslide.OpenSlide:
        handle = getattr(self._local, "handle", None)
        if handle is None:
            try:
                handle = openslide.OpenSlide(str(self.path))
            except (openslide.OpenSlideError, OSError) as error:
                raise SlideOpenError(f"slide '{self.path}': OpenSlide cannot open it: {error}") from error
            self._local.handle = handle
            with self._lock:
                self._handles.append(handle)
        return handle

    def _drop_handle(self) -> None:
        """Close this thread's handle, which answers nothing but its first error any more; the next read opens another."""
        handle, self._local.handle = self._local.handle, None
        with self._lock:
            if handle in self._handles:
                self._handles.remove(handle)
                handle.close()

    def read_inside(self, level: int, xy: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """See WindowReader."""
        downsample = self._downsamples[level]
        base_xy = (round(xy[0] * downsample), round(xy[1] * downsample))
        try:
            image = self._handle().read_region(base_xy, level, size)
        except (openslide.OpenSlideError, OSError) as error:
            self._drop_handle()
            raise SlideReadError(
                f"slide '{self.path}': the region at {xy} of level {level} cannot be read ({error}); the file is damaged "
                f"at {base_xy}, level-0 pixels"
            ) from error
        return on_white(np.asarray(image))

    def close(self) -> None:
        """See SlideReader."""
        with self._lock:
            for handle in self._handles:
                handle.close()
            self._handles.clear()
        self._local = threading.local()


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _info(slide: openslide.OpenSlide) -> SlideInfo:
    properties = slide.properties
    sizes = tuple((int(width), int(height)) for width, height in slide.level_dimensions)
    return SlideInfo(
        level_sizes=sizes,
        level_downsamples=level_downsamples(sizes),
        mpp_x=positive(properties.get(openslide.PROPERTY_NAME_MPP_X)),
        mpp_y=positive(properties.get(openslide.PROPERTY_NAME_MPP_Y)),
        objective_power=positive(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
        vendor=str(properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")),
        scanned_xy=scanned_xy(properties),
    )


def scanned_xy(properties: Mapping[str, str]) -> tuple[int, int]:
    """Return where what was scanned begins, level-0 pixels: (0, 0) but for MIRAX and a few others."""
    names = openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y
    x, y = (round(positive(properties.get(name)) or 0) for name in names)
    return x, y


def positive(text: Any) -> float | None:
    """Return a positive finite number, or None for anything else a file may say."""
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None

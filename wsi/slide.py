"""Slides as the rest of the program sees them: one Protocol, several readers, `open_slide` picks one.

All positions here are (x, y) in pixels of the named level; all arrays are (height, width, 3) uint8 RGB.
"""

import logging
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.errors import ResolutionError, SettingsError, SlideDamagedError, SlideOpenError
from simtriplet.wsi.registry import Registry

__all__ = [
    "MAX_TILE_PX",
    "READERS",
    "ReaderFactory",
    "ReducesWindows",
    "SlideInfo",
    "SlideReader",
    "level_downsamples",
    "open_slide",
    "refuse_no_file",
    "slide_mpp",
    "warn_of_other_mpp",
]

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
MAX_SIDE_PX, MAX_AREA_PX = 1 << 21, 1 << 38
"""Largest level that is believed: a glass slide of 25 x 75 mm has 250,000 x 750,000 pixels of 0.1 um, two thirds of the area."""

MAX_ASPECT = 1000
"""Of level 0; a thread of pixels costs as much to look at as a slide of that length."""

MAX_TILE_PX = 1 << 24
"""Pixels of a native tile, which every thread holds decoded: 48 MiB."""

MAX_ANISOTROPY = 0.01
"""Largest relative difference between horizontal and vertical mpp that counts as square pixels."""

_TOLD_MPP_SHARE = 0.05
"""A given mpp that differs by more from the file's is told."""


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """What a slide says of itself.

    Attributes:
        level_sizes: (width, height) of each level, pixels of that level; level 0 first.
        level_downsamples: level-0 pixels per pixel of each level.
        mpp_x: micrometres per level-0 pixel, horizontally; None where the file does not say.
        mpp_y: the same, vertically.
        objective_power: magnification of the scan, None where the file does not say.
        vendor: the scanner family ("aperio", "generic-tiff", "dicom", ...).
        scanned_xy: where what was scanned begins, level-0 pixels; the rest is empty, and some viewers crop it.
    """

    level_sizes: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]
    mpp_x: float | None
    mpp_y: float | None
    objective_power: float | None
    vendor: str
    scanned_xy: tuple[int, int] = (0, 0)

    @property
    def width(self) -> int:
        """Level-0 pixels."""
        return self.level_sizes[0][0]

    @property
    def height(self) -> int:
        """Level-0 pixels."""
        return self.level_sizes[0][1]


def level_downsamples(level_sizes: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """Return the downsample of each level.

    Scanners reduce by a whole factor and drop (or pad) what does not fill a pixel, so that the ratio of the sizes is off
    by a little, and positions computed with it drift by pixels over a slide: where a whole factor explains both sides to
    less than a pixel, it is the factor.

    Args:
        level_sizes: (width, height) of each level, level 0 first.
    """
    width, height = level_sizes[0]
    found = []
    for level_width, level_height in level_sizes:
        ratio = (width / level_width + height / level_height) / 2
        whole = max(1, round(ratio))
        fits = abs(width / whole - level_width) < 1 and abs(height / whole - level_height) < 1
        found.append(float(whole) if fits else ratio)
    return tuple(found)


class SlideReader(Protocol):
    """Read pixels from one slide; safe to use from several threads at once."""

    name: str
    path: Path
    info: SlideInfo

    def read(self, level: int, xy: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """Read one window.

        Args:
            level: pyramid level.
            xy: top-left corner, pixels of that level; may lie outside the slide.
            size: (width, height), pixels of that level.

        Returns:
            (height, width, 3) uint8 RGB; white outside the slide and where it is transparent.

        Raises:
            SlideReadError: if the pixels cannot be decoded.
        """

    def read_windows(
        self, level: int, xy: npt.NDArray[np.int64], size: tuple[int, int], *, out: Pixels | None = None
    ) -> Pixels:
        """Read many windows of one size.

        Args:
            level: pyramid level.
            xy: (k, 2) int64, top-left corners, pixels of that level.
            size: (width, height), pixels of that level.
            out: (k, height, width, 3) uint8 to read into; made when not given.

        Returns:
            (k, height, width, 3) uint8 RGB.

        Raises:
            SlideReadError: if the pixels cannot be decoded.
        """

    def close(self) -> None:
        """Release the file."""

    def __enter__(self) -> Self:
        """Return the reader itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""


@runtime_checkable
class ReducesWindows(Protocol):
    """A reader that can area-average while it reads."""

    def read_reduced(
        self, level: int, xy: npt.NDArray[np.int64], size_px: int, factor: int, *, out: Pixels
    ) -> npt.NDArray[np.bool_]:
        """Read windows reduced by a whole factor, where that gives what reading and averaging them would.

        Args:
            level: pyramid level.
            xy: (k, 2) int64, top-left corners, pixels of that level.
            size_px: side of the results.
            factor: level pixels per result pixel, at least 2.
            out: (k, s, s, 3) uint8 to read into.

        Returns:
            (k,) bool, which were read; the others (across the border, or off the factor's lattice) are left to the caller.

        Raises:
            SlideReadError: if the pixels cannot be decoded.
        """


class ReaderFactory(Protocol):
    """Open a slide with one library."""

    def __call__(self, path: Path) -> SlideReader:
        """Open the slide.

        Raises:
            SlideOpenError: if this library cannot read the file.
        """

    def suits(self, path: Path) -> bool:
        """Tell whether `auto` should prefer this reader for the file."""


READERS: Registry[ReaderFactory] = Registry("slide reader", group="simtriplet.readers")
AUTO_ORDER = ("tiff", "openslide", "tiffslide")


def open_slide(path: str | Path, *, reader: str = "auto") -> SlideReader:
    """Open a slide.

    Args:
        path: the slide file.
        reader: a name in READERS, or "auto": the fast TIFF path where it gives the same pixels, else OpenSlide, else
            TiffSlide.

    Raises:
        SlideOpenError: if the file does not exist or no reader can open it.
        UnknownNameError: if there is no reader of that name.
    """
    import simtriplet.wsi.readers  # noqa: F401  (registers the readers on first use; they import slide libraries)

    path = Path(path)
    refuse_no_file(path)
    if reader != "auto":
        return _plausible(READERS.get(reader)(path))
    refusal: SlideOpenError | None = None
    for name in AUTO_ORDER:
        factory = READERS.get(name)
        if not factory.suits(path):
            continue
        try:
            opened = _plausible(factory(path))
        except SlideDamagedError:
            raise
        except SlideOpenError as error:
            refusal = error
            continue
        log.debug("slide %s: read with %s", path.name, name)
        return opened
    raise refusal or SlideOpenError(
        f"slide '{path}': is not a slide that OpenSlide or TiffSlide can read; check the file, or convert a plain picture "
        "to a tiled pyramid (vips tiffsave --tile --pyramid)"
    )


def refuse_no_file(path: Path) -> None:
    """Refuse what is no file that can be read: a slide library would wait for ever for a pipe to say something.

    Raises:
        SlideOpenError: if it is none.
    """
    try:
        kind = path.stat().st_mode
        if stat.S_ISREG(kind):
            path.open("rb").close()
            return
    except FileNotFoundError as error:
        raise SlideOpenError(f"slide '{path}': does not exist; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise SlideOpenError(f"slide '{path}': cannot be read ({reason}); check its path and rights") from error
    what = "a folder" if stat.S_ISDIR(kind) else "no ordinary file"
    raise SlideOpenError(f"slide '{path}': is {what}; pass a slide file")


def _plausible(reader: SlideReader) -> SlideReader:
    """Return a reader whose levels have sizes that a slide can have; close any other."""
    for number, (width, height) in enumerate(reader.info.level_sizes):
        short, long = sorted((width, height))
        larger = width > reader.info.width or height > reader.info.height
        thread = number == 0 and long > max(MAX_SIDE_PX >> 6, MAX_ASPECT * short)
        if short < 1 or long > MAX_SIDE_PX or short * long > MAX_AREA_PX or thread or larger:
            reader.close()
            raise SlideDamagedError(
                f"slide '{reader.path}': level {number} claims {width} x {height} pixels, which no slide has; "
                "the file is damaged, copy it again"
            )
    return reader


def slide_mpp(reader: SlideReader, override: float | None = None) -> float:
    """Return the slide's micrometres per level-0 pixel; an override wins over what the file says.

    Raises:
        ResolutionError: if it is unknown or differs between the axes by more than 1 %.
        SettingsError: if the override is not positive.
    """
    if override is not None:
        if not 0 < override < float("inf"):
            raise SettingsError(f"slide mpp {override}: must be a positive number; pass --slide-mpp 0.25, say")
        return override
    mpp_x, mpp_y = reader.info.mpp_x, reader.info.mpp_y
    if mpp_x is None or mpp_y is None:
        raise ResolutionError(f"slide '{reader.path}': has no mpp in its file; pass --slide-mpp")
    if abs(mpp_x - mpp_y) > MAX_ANISOTROPY * max(mpp_x, mpp_y):
        raise ResolutionError(f"slide '{reader.path}': pixels are not square ({mpp_x} x {mpp_y} um); pass --slide-mpp")
    return (mpp_x + mpp_y) / 2


def warn_of_other_mpp(reader: SlideReader, used: float) -> None:
    """Tell where an mpp that was given is far from the one in the file: it may be meant for the other slides of a folder."""
    in_file = reader.info.mpp_x
    if in_file is not None and abs(used - in_file) > _TOLD_MPP_SHARE * in_file:
        log.warning(
            "slide '%s': its file says %.4g um per pixel, %.4g is used as asked; slide_mpp in a manifest is for single slides",
            reader.path.name,
            in_file,
            used,
        )

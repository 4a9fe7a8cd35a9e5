"""Tile coordinates as CLAM and TRIDENT write them to HDF5: dataset `coords`, level-0 pixels, with attributes.

What the two write (https://github.com/mahmoodlab/CLAM, create_patches_fp.py; https://github.com/mahmoodlab/TRIDENT):
CLAM's patch_size and patch_level say that a tile is so many pixels of that level; level_dim is that level's size. Programs
that grew out of it add custom_downsample: those pixels are then shrunk to patch_size // custom_downsample.
TRIDENT's patch_size is the tile's own side, patch_size_level0 the same in level-0 pixels (with level0_magnification and
target_magnification, from which it follows), level0_width and level0_height the slide's size, overlap the pixels of a tile
that it shares with the next: columns lie at 0, P, 2P - O, 3P - 2O, ... (WSIPatcher), so that the first step is the longest.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.errors import AnnotationError
from simtriplet.wsi.interop_package import interop_package

__all__ = ["TileCoordinates", "check_h5_features", "read_coordinates", "read_h5_features"]

COORDS, FEATURES = "coords", "features"
_MAX_TILES = 1 << 24
_MAX_FEATURE_BYTES = 1 << 36
_SMALL_BYTES = 1 << 24
_MOST_COMPRESSION = 1100
"""gzip, which both programs' readers know, makes at most 1,032 bytes of one."""


@dataclass(frozen=True, slots=True)
class TileCoordinates:
    """Which tiles a file names; n tiles in its order, each once.

    Attributes:
        path: the file.
        writer: "clam" or "trident", by its attributes.
        slide_name: the slide's name as the file has it, else the file's own.
        base_xy: (n, 2) int64, level-0 pixels, top-left.
        size_px: side of a tile in its own pixels.
        level: CLAM: the pyramid level that the tiles are pixels of; None where `base_size` tells the resolution.
        level_size: CLAM: (width, height) of that level; None where the file does not say.
        scale: CLAM: level pixels per tile pixel.
        base_size: TRIDENT: side of a tile in level-0 pixels; 0 where `level` tells the resolution.
        slide_size: TRIDENT: (width, height) of level 0; None where the file does not say.
        base_overlap: TRIDENT: level-0 pixels that tiles share, which it counts from the second column and row on.
    """

    path: Path
    writer: str
    slide_name: str
    base_xy: npt.NDArray[np.int64]
    size_px: int
    level: int | None = None
    level_size: tuple[int, int] | None = None
    scale: float = 1.0
    base_size: float = 0.0
    slide_size: tuple[int, int] | None = None
    base_overlap: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.size_px <= 8192:
            raise _fault(self.path, f"patch_size {self.size_px}: must lie in 1..8192")
        if self.level is not None and self.level < 0:
            raise _fault(self.path, f"patch_level {self.level}: must be at least 0")
        if not 0 < (self.base_size if self.level is None else self.scale) < math.inf:
            raise _fault(self.path, "the size of its tiles on level 0: must be a positive number")


def read_coordinates(path: str | Path) -> TileCoordinates:
    """Read a file of CLAM or TRIDENT; a tile that it names twice counts once.

    Raises:
        AnnotationError: if it cannot be read, names no tiles, or lacks what says how large they are.
        MissingDependencyError: if h5py is not installed.
    """
    path = Path(path)
    with _opened(path) as file:
        given = _coords(file, path)
        attributes = {str(name): _plain(value) for name, value in file[COORDS].attrs.items()}
    _, first = np.unique(given, axis=0, return_index=True)
    base_xy = given[np.sort(first)]
    name = attributes.get("name")
    slide_name = name if isinstance(name, str) and name else path.stem.removesuffix("_patches")
    if "patch_level" in attributes:
        return _of_clam(path, slide_name, base_xy, attributes)
    return _of_trident(path, slide_name, base_xy, attributes)


def check_h5_features(path: Path, base_xy: npt.NDArray[np.int64]) -> None:
    """Refuse a file that `read_h5_features` would refuse, without reading the features.

    Raises:
        AnnotationError: if it cannot be read, or lacks features of one of the tiles.
        MissingDependencyError: if h5py is not installed.
    """
    with _opened(path) as file:
        _feature_rows(file, path, base_xy)


def read_h5_features(path: Path, base_xy: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Read the features of tiles from a file with `features` (n, d) and `coords` (n, 2), found by their coordinates.

    Args:
        path: the file.
        base_xy: (m, 2) int64, level-0 pixels, top-left: the tiles wanted, in this order.

    Returns:
        (m, d) float32.

    Raises:
        AnnotationError: if it cannot be read, lacks features of one of the tiles, or has some that are no finite number.
        MissingDependencyError: if h5py is not installed.
    """
    with _opened(path) as file:
        rows, shape = _feature_rows(file, path, base_xy)
        features = np.asarray(file[FEATURES][...], np.float32).reshape(shape)
    wanted = features[rows]
    if not np.isfinite(wanted).all():
        raise _fault(path, "has features that are no finite number", "extract them again")
    return wanted


def _feature_rows(
    file: Any, path: Path, base_xy: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], tuple[int, int]]:
    """Return the (m,) rows of the wanted tiles and the (n, d) shape of the features."""
    given = _coords(file, path)
    if FEATURES not in file:
        raise _fault(path, "has no dataset 'features'", "extract features first")
    _refuse_other_places(file, FEATURES, path)
    shape = tuple(file[FEATURES].shape)
    shape = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    if len(shape) != 2 or shape[0] != len(given) or math.prod(shape) * 4 > _MAX_FEATURE_BYTES:
        raise _fault(path, f"features of shape {shape} for {len(given)} coords", "extract features again")
    if file[FEATURES].dtype.kind != "f":
        raise _fault(path, f"features of type {file[FEATURES].dtype}: must be floating point", "extract them again")
    _refuse_empty_claims(file[FEATURES], path)
    places = {(x, y): row for row, (x, y) in reversed(list(enumerate(given.tolist())))}
    found = [places.get((x, y)) for x, y in base_xy.tolist()]
    if None in found:
        x, y = base_xy[found.index(None)].tolist()
        raise _fault(path, f"has no features of the tile at x {x}, y {y}", "extract features of these coordinates")
    return np.array(found, np.int64), (int(shape[0]), int(shape[1]))


def _fault(path: Path, rule: str, cure: str = "write it again with CLAM or TRIDENT") -> AnnotationError:
    return AnnotationError(f"coordinates '{path}': {rule}; {cure}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    h5py = interop_package("h5py", f"coordinates '{path.name}'")
    try:
        if path.exists() and not path.is_file():  # of a pipe no end might ever come
            raise _fault(path, "is no file", "check the path")
        with h5py.File(path, "r") as file:
            yield file
    except AnnotationError:
        raise
    except (
        OSError,
        RuntimeError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:  # h5py: all
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise _fault(path, f"cannot be read ({reason})", "check the path and the file") from error


def _coords(file: Any, path: Path) -> npt.NDArray[np.int64]:
    if COORDS not in file:
        raise _fault(path, "has no dataset 'coords'")
    _refuse_other_places(file, COORDS, path)
    if "imgs" in file:
        raise _fault(path, "holds pictures, of CLAM's create_patches.py", "make coordinates with create_patches_fp.py")
    shape, kind = tuple(file[COORDS].shape), file[COORDS].dtype.kind
    if 0 in shape and len(shape) <= 2:  # TRIDENT's of nothing have one axis
        raise _fault(path, "names no tiles", "leave the slide out")
    if len(shape) != 2 or shape[1] != 2 or shape[0] > _MAX_TILES or kind not in "iuf":
        raise _fault(path, f"coords of shape {shape} and type {file[COORDS].dtype}: must be (n, 2) numbers")
    _refuse_empty_claims(file[COORDS], path)
    given = np.asarray(file[COORDS][...])
    if not (np.isfinite(given).all() and (given == np.rint(given)).all() and (np.abs(given) < 1 << 40).all()):
        raise _fault(path, "has coords that are no whole numbers")
    return given.astype(np.int64)


def _refuse_other_places(file: Any, name: str, path: Path) -> None:
    """Refuse a dataset that would be read from another file, which may be anybody's."""
    is_elsewhere = hasattr(file.get(name, getlink=True), "filename")
    if is_elsewhere or file[name].is_virtual or file[name].external:
        raise _fault(path, f"its dataset '{name}' lies in another file", "copy both into one")


def _refuse_empty_claims(dataset: Any, path: Path) -> None:
    """Refuse a dataset that tells of more than is stored of it, before memory is taken for it."""
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > _SMALL_BYTES + _MOST_COMPRESSION * stored:
        raise _fault(path, f"claims {dataset.nbytes} bytes for '{dataset.name}' and holds {stored}")


def _plain(value: Any) -> Any:
    """Return an attribute as Python has it: numbers, text, lists; TRIDENT's 'None' is None."""
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    value = value.decode(errors="replace") if isinstance(value, bytes) else value
    return None if value == "None" else value


def _of_clam(
    path: Path, slide_name: str, base_xy: npt.NDArray[np.int64], attributes: Mapping[str, Any]
) -> TileCoordinates:
    read_px = _whole(path, attributes, "patch_size")
    size_px = int(read_px // max(1.0, _number(path, attributes, "custom_downsample") or 1.0))
    return TileCoordinates(
        path,
        "clam",
        slide_name,
        base_xy,
        size_px=size_px,
        level=_whole(path, attributes, "patch_level"),
        level_size=_size(attributes.get("level_dim")),
        scale=read_px / size_px if size_px > 0 else 1.0,
    )


def _of_trident(
    path: Path, slide_name: str, base_xy: npt.NDArray[np.int64], attributes: Mapping[str, Any]
) -> TileCoordinates:
    size_px = _whole(path, attributes, "patch_size")
    base_size = _number(path, attributes, "patch_size_level0")
    if base_size is None:
        powers = [_number(path, attributes, name) for name in ("level0_magnification", "target_magnification")]
        if powers[0] is None or not powers[1]:
            known = ", ".join(sorted(attributes)) or "none"
            raise _fault(
                path,
                f"does not say how large its tiles are (patch_level, or patch_size_level0; its attributes: {known})",
                "pass the file from the folder 'patches'",
            )
        base_size = size_px * powers[0] / powers[1]
    sides = attributes.get("level0_width"), attributes.get("level0_height")
    overlap = (_number(path, attributes, "overlap") or 0.0) * base_size / max(1, size_px)
    return TileCoordinates(
        path,
        "trident",
        slide_name,
        base_xy,
        size_px=size_px,
        base_size=base_size,
        slide_size=_size(sides),
        base_overlap=round(overlap) if 0 < overlap < base_size else 0,
    )


def _number(path: Path, attributes: Mapping[str, Any], name: str) -> float | None:
    value = attributes.get(name)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise _fault(path, f"attribute {name} {value!r}: must be a number") from error
    if not math.isfinite(number):
        raise _fault(path, f"attribute {name} {number}: must be a finite number")
    return number


def _whole(path: Path, attributes: Mapping[str, Any], name: str) -> int:
    value = _number(path, attributes, name)
    if value is None:
        raise _fault(
            path,
            f"coords have no attribute {name}, so that nothing says how large its tiles are",
            "pass the file from the folder 'patches'",
        )
    if value != round(value):
        raise _fault(path, f"attribute {name} {value}: must be a whole number")
    return int(value)


def _size(value: Any) -> tuple[int, int] | None:
    """Return (width, height), None where the file has none."""
    try:
        width, height = (int(side) for side in value)
    except (TypeError, ValueError):
        return None
    return width, height

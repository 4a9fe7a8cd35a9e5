"""Where a slide's tissue comes from: looked for by a detector, or outlined or painted by the user."""

import struct
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from simtriplet.wsi.annotation_file import ANNOTATION_SUFFIXES, find_annotation, read_annotations
from simtriplet.wsi.errors import TissueError
from simtriplet.wsi.overview import Overview
from simtriplet.wsi.reach import is_file, is_folder
from simtriplet.wsi.tissue import TissueMap, TissueSpec, label_regions, map_tissue
from simtriplet.wsi.tissue_polygons import PolygonTissue

__all__ = ["find_tissue", "mask_file", "read_mask"]

MASK_SUFFIXES = (".png",)
_MAX_ASPECT_ERROR = 0.01
_MAX_MASK_BYTES = 1 << 28
_MAX_PIXEL_BYTES = 1 << 29
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 4, 4: 4, 6: 4}
"""As OpenCV decodes each of PNG's colour types; palettes may be transparent."""


def find_tissue(overview: Overview, spec: TissueSpec, *, slide_mpp: float, slide_id: str) -> TissueMap:
    """Find the tissue regions of a slide, whichever way `spec` says.

    A user's own mask is taken as it is: nothing is filled in or dropped.

    Args:
        overview: the slide at low resolution.
        spec: how to find tissue.
        slide_mpp: micrometres per level-0 pixel.
        slide_id: names the slide's file in a folder of masks.

    Returns:
        The regions; there may be none.

    Raises:
        TissueError: if the user's mask is missing, is no picture, or has another shape than the slide.
        AnnotationError: if the user's outlines are malformed.
    """
    path = mask_file(spec, slide_id)
    if path is None:
        return map_tissue(overview, spec, slide_mpp=slide_mpp)
    height, width = overview.pixels.shape[:2]
    if path.suffix.lower() in ANNOTATION_SUFFIXES:
        areas = [region.area for region in read_annotations(path)]
        return PolygonTissue(areas, (width, height), overview.downsample)
    mask = read_mask(path, aspect=width / height, rounding=1 / min(width, height))
    fitted = cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=_kind(mask, width))
    return TissueMap(label_regions(fitted >= 128, 1.0), overview.downsample)


def mask_file(spec: TissueSpec, slide_id: str) -> Path | None:
    """Return the user's own mask or outlines of one slide; None where tissue is looked for.

    Raises:
        TissueError: if there is none, or more than one.
        UnreachableError: if it is out of reach.
    """
    path = spec.mask_path
    if path is None or is_file(path):
        return path
    if not is_folder(path):
        raise TissueError(f"tissue mask '{path}': does not exist; check the path")
    picture = [path / f"{slide_id}{suffix}" for suffix in MASK_SUFFIXES if is_file(path / f"{slide_id}{suffix}")]
    outlines = find_annotation(path, slide_id)
    found = picture + ([] if outlines is None else [outlines])
    if len(found) != 1:
        told = "holds no mask" if not found else f"holds both {found[0].name} and {found[1].name}"
        raise TissueError(
            f"tissue masks '{path}': {told} for slide '{slide_id}'; leave one <slide_id>.png or .geojson there"
        )
    return found[0]


def read_mask(path: Path, *, aspect: float, rounding: float = 0.0) -> npt.NDArray[np.bool_]:
    """Read a mask: (h, w) bool, True where the PNG is not black (or, with an alpha channel, neither black nor clear).

    Args:
        path: a PNG of any size.
        aspect: width over height of the slide.
        rounding: relative error that whole pixels cause in `aspect`.

    Raises:
        TissueError: if it is no picture, or its aspect differs by more than 1 %.
    """
    try:
        if path.stat().st_size > _MAX_MASK_BYTES:
            raise TissueError(
                f"tissue mask '{path}': is larger than {_MAX_MASK_BYTES >> 20} MiB; save it at some 8 um a pixel"
            )
        data = path.read_bytes()
        if _pixel_bytes(data) > _MAX_PIXEL_BYTES:  # told before the decoder takes the memory
            raise TissueError(
                f"tissue mask '{path}': has more pixels than a mask needs; save it at some 8 um a pixel, grey"
            )
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if _pixel_bytes(data) else None
    except (OSError, cv2.error) as error:
        raise TissueError(
            f"tissue mask '{path}': cannot be read ({type(error).__name__}); save it as PNG again"
        ) from error
    if pixels is None:
        raise TissueError(f"tissue mask '{path}': is not a picture; save it as PNG")
    height, width = pixels.shape[:2]
    tolerance = _MAX_ASPECT_ERROR + rounding + 1 / min(width, height)
    if abs(width / height / aspect - 1) > tolerance:
        raise TissueError(
            f"tissue mask '{path}': its {width} x {height} px do not have the slide's aspect of {aspect:.3f}; "
            "save the mask of the whole slide, not turned or cropped"
        )
    colours = pixels.reshape(height, width, -1)
    painted = (colours[..., :3] if colours.shape[2] > 2 else colours[..., :1]).any(axis=2)
    return np.asarray(painted & (colours[..., -1] > 0) if colours.shape[2] in (2, 4) else painted)


def _pixel_bytes(data: bytes) -> int:
    """Return how much memory a PNG takes decoded, by its head; 0 of anything else."""
    if data[: len(_PNG)] != _PNG or len(data) < 26:
        return 0
    width, height, depth, colours = struct.unpack_from(">IIBB", data, 16)
    return int(width * height * _PNG_CHANNELS.get(colours, 4) * (2 if depth == 16 else 1))


def _kind(mask: npt.NDArray[np.bool_], width: int) -> int:
    """Average where the mask is finer than the overview, repeat pixels where it is coarser."""
    return int(cv2.INTER_AREA if mask.shape[1] > width else cv2.INTER_NEAREST)

"""The thumbnail and its tissue label image as OME-Zarr 0.5 (https://ngff.openmicroscopy.org/0.5/)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.zarr_files import write_array, write_group

__all__ = ["THUMBNAIL_AXES", "write_thumbnail"]

THUMBNAIL_AXES = ("c", "y", "x")

_CHUNK_PX = 1024
_VERSION = {"version": "0.5"}
_SPACE = {"type": "space", "unit": "micrometer"}
_AXES = {"y": {"name": "y", **_SPACE}, "x": {"name": "x", **_SPACE}, "c": {"name": "c", "type": "channel"}}


def write_thumbnail(
    images: Path, thumbnail: npt.NDArray[np.uint8], tissue_mask: npt.NDArray[np.uint16], *, um_per_px: float
) -> None:
    """Write `thumbnail` (c, y, x), the order that OME-Zarr wants, and its label image `labels/tissue` (y, x).

    Args:
        images: the store's group `images`.
        thumbnail: (h, w, 3) uint8 RGB.
        tissue_mask: (h, w) uint16, region number plus one, 0 outside tissue.
        um_per_px: micrometres per thumbnail pixel.
    """
    group = images / "thumbnail"
    _write_image(group, thumbnail.transpose(2, 0, 1), "thumbnail", um_per_px, THUMBNAIL_AXES, {})
    labels = write_group(group / "labels", {"ome": {**_VERSION, "labels": ["tissue"]}})
    source = {"image-label": {**_VERSION, "source": {"image": "../../"}}}
    _write_image(labels / "tissue", tissue_mask, "tissue", um_per_px, ("y", "x"), source)


def _write_image(
    path: Path, pixels: npt.NDArray[Any], name: str, um_per_px: float, axes: Sequence[str], more: Mapping[str, Any]
) -> None:
    scale = [1.0 if axis == "c" else um_per_px for axis in axes]
    dataset = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    multiscale = {"name": name, "axes": [_AXES[axis] for axis in axes], "datasets": [dataset]}
    write_group(path, {"ome": {**_VERSION, "multiscales": [multiscale], **more}})
    chunks = (*pixels.shape[:-2], _CHUNK_PX, _CHUNK_PX)
    write_array(path / "0", pixels, chunks=chunks, dimension_names=axes)

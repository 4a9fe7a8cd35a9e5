"""The thumbnail and its tissue label image as OME-Zarr 0.5 (https://ngff.openmicroscopy.org/0.5/)."""

from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

__all__ = ["write_thumbnail"]

_CHUNK_PX = 1024


def write_thumbnail(
    images: zarr.Group, thumbnail: npt.NDArray[np.uint8], tissue_mask: npt.NDArray[np.uint16], *, um_per_px: float
) -> None:
    """Write `thumbnail` (y, x, c) and its label image `labels/tissue` (y, x).

    Args:
        images: the store's group `images`.
        thumbnail: (h, w, 3) uint8 RGB.
        tissue_mask: (h, w) uint16, region number plus one, 0 outside tissue.
        um_per_px: micrometres per thumbnail pixel.
    """
    group = images.create_group("thumbnail")
    _write_image(group, thumbnail, "thumbnail", um_per_px, ("y", "x", "c"))
    labels = group.create_group("labels", attributes={"ome": {"version": "0.5", "labels": ["tissue"]}})
    _write_image(labels.create_group("tissue"), tissue_mask, "tissue", um_per_px, ("y", "x"))


def _write_image(
    group: zarr.Group, pixels: npt.NDArray[Any], name: str, um_per_px: float, axes: tuple[str, ...]
) -> None:
    kinds = {
        "y": {"name": "y", "type": "space", "unit": "micrometer"},
        "x": {"name": "x", "type": "space", "unit": "micrometer"},
    }
    scale = [um_per_px if axis in kinds else 1.0 for axis in axes]
    transformations = [{"type": "scale", "scale": scale}]
    ome: dict[str, Any] = {
        "version": "0.5",
        "multiscales": [
            {
                "name": name,
                "axes": [kinds.get(axis, {"name": "c", "type": "channel"}) for axis in axes],
                "datasets": [{"path": "0", "coordinateTransformations": transformations}],
            }
        ],
    }
    if name == "tissue":
        ome["image-label"] = {"version": "0.5", "source": {"image": "../../"}}
    group.attrs["ome"] = ome
    array = group.create_array(
        "0",
        shape=pixels.shape,
        dtype=pixels.dtype,
        chunks=tuple(min(_CHUNK_PX, max(1, size)) for size in pixels.shape[:2]) + pixels.shape[2:],
        compressors=[ZstdCodec(), Crc32cCodec()],
        dimension_names=axes,
        config={"write_empty_chunks": True},
    )
    array[...] = pixels

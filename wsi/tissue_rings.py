"""Read the outlines of tissue, a ragged array of regions of polygons of rings, from a store."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from simtriplet.wsi.table import read_array

__all__ = ["read_rings"]


def read_rings(group: zarr.Group) -> list[list[list[npt.NDArray[np.float64]]]]:
    """Read the group `tissue` of a store.

    Returns:
        Per region, per polygon, its rings ((k, 2) level-0 pixels; exterior first).

    Raises:
        ValueError: if the parts do not fit together.
    """
    xy = read_array(group, "xy")
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        raise ValueError("must be two finite numbers a point")
    rings = [xy[start:stop] for start, stop in _spans(read_array(group, "ring_offsets"), len(xy))]
    polygons = _nest(rings, read_array(group, "polygon_offsets"))
    return _nest(polygons, read_array(group, "region_offsets"))


def _nest(items: Sequence[Any], offsets: npt.NDArray[Any]) -> list[list[Any]]:
    return [list(items[start:stop]) for start, stop in _spans(offsets, len(items))]


def _spans(offsets: npt.NDArray[Any], length: int) -> list[tuple[int, int]]:
    """Return where each of the parts of a ragged array begins and ends."""
    bounds = offsets.tolist()
    if offsets.dtype.kind not in "iu" or bounds[:1] != [0] or bounds[-1] != length or bounds != sorted(bounds):
        raise ValueError("its offsets are not those of its parts")
    return list(itertools.pairwise(bounds))

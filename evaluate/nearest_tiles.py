"""Which tiles are most alike by cosine, tiles of one's own group left out: what retrieval, leakage and galleries rest on."""

from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.errors import SettingsError

__all__ = ["NOBODY", "nearest_tiles", "unit_rows"]

NOBODY = -1
"""Stands where fewer than k tiles of other groups exist."""

_CELLS = 1 << 24
"""Similarities held at once: 64 MiB."""


def unit_rows(features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Return (m, d) rows of length 1; rows of zeros stay."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, 1e-12), dtype=np.float32)


def nearest_tiles(
    features: npt.NDArray[np.floating[Any]],
    groups: npt.NDArray[np.int64],
    *,
    anchors: npt.NDArray[np.int64],
    k: int,
) -> npt.NDArray[np.int64]:
    """Return the places of the k most similar tiles of other groups, the most similar first.

    Of the k found, equally similar ones come in the order of their places.

    Args:
        features: (m, d).
        groups: (m,) group of each tile: patients leave out all tiles of the anchor's patient, `np.arange(m)` the anchor alone.
        anchors: (a,) places of the tiles to find others for.
        k: how many.

    Returns:
        (a, k) places; NOBODY where there are fewer.

    Raises:
        SettingsError: if k is below 1.
    """
    if k < 1:
        raise SettingsError(f"k {k}: must be at least 1; pass a larger number")
    unit = unit_rows(features)
    found = np.full((len(anchors), k), NOBODY, dtype=np.int64)
    step = max(1, _CELLS // max(len(unit), 1))
    for start in range(0, len(anchors), step):
        rows = anchors[start : start + step]
        likeness = unit[rows] @ unit.T
        likeness[groups[rows, None] == groups[None]] = -np.inf
        found[start : start + step, : len(unit)] = _largest(likeness, k)
    return found


def _largest(likeness: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Return the columns of the k largest values of each row, largest first; NOBODY for minus infinity."""
    k = min(k, likeness.shape[1])
    candidates = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
    candidates.sort(axis=1)
    values = np.take_along_axis(likeness, candidates, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    columns = np.take_along_axis(candidates, order, axis=1)
    columns[np.take_along_axis(values, order, axis=1) == -np.inf] = NOBODY
    return columns

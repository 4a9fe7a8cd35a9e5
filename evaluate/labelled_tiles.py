"""The labelled tiles of a cohort as flat arrays: what a protocol learns from and is tested on."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.labels import TileLabels, tile_ids
from simtriplet.wsi.errors import EvaluationError
from simtriplet.wsi.store import TileStore

__all__ = ["LabelledTiles", "encoder_record", "gather_tiles", "locate_tiles"]

_SAME = {"encoder_hash": "encoders", "image_size_px": "image sizes"}
"""What must be alike in all stores' records, and how to call it; one hash may stand for images of several sizes."""


@dataclass(frozen=True, slots=True)
class LabelledTiles:
    """Tiles that have a label, m of them, store after store in storage order.

    Attributes:
        features: (m, d) float32; d is 0 where only pixels are learnt from.
        codes: (m,) int64 class codes.
        classes: class names in code order.
        patients: (m,) patient of each tile.
        slides: (m,) slide of each tile.
        tile_ids: (m,) the tile's name in its store.
        rows: (m,) int64, the tile's row in its store.
        base_xy: (m, 2) int64, level-0 pixels, top-left.
        patient_of: slide -> patient of every slide that was given, also of those without a labelled tile.
    """

    features: npt.NDArray[np.float32]
    codes: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    patients: npt.NDArray[np.object_]
    slides: npt.NDArray[np.object_]
    tile_ids: npt.NDArray[np.object_]
    rows: npt.NDArray[np.int64]
    base_xy: npt.NDArray[np.int64]
    patient_of: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.codes)


def gather_tiles(stores: Sequence[TileStore], features: str, labels: TileLabels) -> LabelledTiles:
    """Read the features of all labelled tiles.

    Args:
        stores: the slides, in the order of the labels.
        features: the name `embed` was given.
        labels: see read_labels.

    Raises:
        StoreError: if a store has no such features.
        EvaluationError: if they are of different widths, or not finite.
    """
    rows = [np.flatnonzero(codes >= 0) for codes in labels.codes]
    parts = [store.features(features)[kept] for store, kept in zip(stores, rows, strict=True)]
    for store, part in zip(stores, parts, strict=True):
        if part.shape[1] != parts[0].shape[1]:
            raise EvaluationError(
                f"features {features!r}: slide {store.slide_id!r} has {part.shape[1]} columns, "
                f"slide {stores[0].slide_id!r} {parts[0].shape[1]}; embed all stores with one encoder"
            )
        if not np.isfinite(part).all():
            raise EvaluationError(
                f"features {features!r}: slide {store.slide_id!r} has values that are not finite; embed again"
            )
    return dataclasses.replace(locate_tiles(stores, labels), features=np.concatenate(parts))


def locate_tiles(stores: Sequence[TileStore], labels: TileLabels) -> LabelledTiles:
    """Find all labelled tiles, without features.

    Args:
        stores: the slides, in the order of the labels.
        labels: see read_labels.
    """
    rows = [np.flatnonzero(codes >= 0) for codes in labels.codes]
    counts = [len(kept) for kept in rows]
    return LabelledTiles(
        features=np.empty((sum(counts), 0), np.float32),
        codes=np.concatenate([codes[kept] for codes, kept in zip(labels.codes, rows, strict=True)]),
        classes=labels.classes,
        patients=np.repeat(np.array(labels.patients, dtype=object), counts),
        slides=np.repeat(np.array([store.slide_id for store in stores], dtype=object), counts),
        tile_ids=np.concatenate([tile_ids(store)[kept] for store, kept in zip(stores, rows, strict=True)]),
        rows=np.concatenate(rows),
        base_xy=np.concatenate([store.base_xy()[kept] for store, kept in zip(stores, rows, strict=True)]),
        patient_of=dict(zip((store.slide_id for store in stores), labels.patients, strict=True)),
    )


def encoder_record(stores: Sequence[TileStore], features: str) -> dict[str, Any]:
    """Return what `embed` recorded of the encoder that made these features, which all stores must have.

    Raises:
        EvaluationError: if two stores were embedded with different encoders, or at different image sizes.
    """
    records = {store.slide_id: store.feature_attributes(features) for store in stores}
    first_id, first = next(iter(records.items()))
    for slide_id, record in records.items():
        for key, what in _SAME.items():
            if record.get(key) != first.get(key):
                raise EvaluationError(
                    f"features {features!r}: slides {first_id!r} and {slide_id!r} were embedded with different {what}; "
                    "embed them again"
                )
    left_out = {"encoding-type", "encoding-version", "tiles_id"}
    return {key: value for key, value in first.items() if key not in left_out}

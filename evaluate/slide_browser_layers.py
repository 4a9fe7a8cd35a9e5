"""What tiles can be coloured by: labels, predictions, and every other column of classes or numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.labels import tile_ids
from simtriplet.evaluate.palette import class_colours
from simtriplet.wsi.export_table import PREDICTED, read_predictions
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.table import Categorical

__all__ = ["Layer", "prediction_layers", "store_layers"]

_NOT_SHOWN = {"x", "y", "row", "col"}
_CHECKSUM = "crc32c"
_LABEL = "label"
_ENDS = (2.0, 98.0)
"""Percentiles at the ends of the colour scale, so that a few odd tiles do not take the colours of all others."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One value a tile.

    Attributes:
        name: of the column.
        values: (n,) int32 codes, -1 for none, where there are classes; else float32, NaN for none.
        classes: names in code order; None for numbers.
    """

    name: str
    values: npt.NDArray[np.int32] | npt.NDArray[np.float32]
    classes: tuple[str, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.values.nbytes

    def describe(self) -> dict[str, Any]:
        """Return its name, and its classes with colours and counts or the ends of its numbers, as JSON values."""
        if self.classes is None:
            return {"name": self.name, "kind": "numbers", **_range(self.values[np.isfinite(self.values)])}
        counts = np.bincount(self.values[self.values >= 0].astype(np.int64), minlength=len(self.classes)).tolist()
        colours = class_colours(len(self.classes))
        classes = [
            {"name": name, "count": count, "colour": _hex(colour)}
            for name, count, colour in zip(self.classes, counts, colours, strict=True)
        ]
        return {"name": self.name, "kind": "classes", "classes": classes, "without": int((self.values < 0).sum())}

    def value(self, tile: int) -> str | float | None:
        """Return what it says of a tile: the class, the number, or None."""
        found = self.values[tile]
        if self.classes is None:
            return round(float(found), 4) if np.isfinite(found) else None
        return self.classes[int(found)] if found >= 0 else None


def _range(values: npt.NDArray[Any]) -> dict[str, Any]:
    if not len(values):
        return {"low": None, "high": None, "below": False, "above": False}
    low, high = (float(end) for end in np.percentile(values, _ENDS))
    return {"low": low, "high": high, "below": bool(values.min() < low), "above": bool(values.max() > high)}


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(part * 255):02x}" for part in colour)


def store_layers(store: TileStore) -> list[Layer]:
    """Return the layers of a store's own columns: labels first, other classes, then numbers.

    Raises:
        StoreError: if a column is damaged.
    """
    names = [name for name in store.columns() if name not in _NOT_SHOWN and not name.startswith(_CHECKSUM)]
    layers = [layer for name in names if (layer := _column_layer(name, store.column(name))) is not None]
    return sorted(layers, key=lambda layer: (layer.name != _LABEL, layer.classes is None))


def _column_layer(name: str, column: npt.NDArray[Any] | Categorical) -> Layer | None:
    if isinstance(column, Categorical):
        return Layer(name, np.asarray(column.codes, dtype=np.int32), column.categories)
    if column.dtype.kind not in "biuf" or column.ndim != 1:
        return None
    return Layer(name, column.astype(np.float32))


def prediction_layers(store: TileStore, folder: Path) -> list[Layer]:
    """Return what `simtriplet predict` wrote of a slide: the predicted classes, and the probability of each.

    Args:
        store: the tiles.
        folder: with `<slide_id>.csv`; without that file there are no such layers.

    Raises:
        AnnotationError: if the file cannot be read, or is of other tiles.
    """
    from simtriplet.evaluate.prediction_files import check_file_name  # brings matplotlib and scikit-learn, seconds

    path = folder / f"{check_file_name(store.slide_id)}.csv"
    if not path.exists():
        return []
    columns = read_predictions(path, tile_ids(store).tolist())
    predicted = columns.pop(PREDICTED)
    assert isinstance(predicted, Categorical)
    shares = zip(predicted.categories, columns.values(), strict=True)
    numbers = [Layer(f"probability of {name}", np.asarray(values, dtype=np.float32)) for name, values in shares]
    return [Layer(PREDICTED, np.asarray(predicted.codes, dtype=np.int32), predicted.categories), *numbers]

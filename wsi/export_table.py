"""What an export says of each tile: the store's columns, and the classes and probabilities that `predict` found."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.csv_cells import without_formula
from simtriplet.wsi.errors import AnnotationError
from simtriplet.wsi.export_request import ExportRequest
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.table import Categorical

__all__ = ["PREDICTED", "TileColumns", "read_predictions", "tile_columns", "tissue_regions"]

PREDICTED = "predicted"
_PROBABILITY = "probability_"
Column = npt.NDArray[Any] | Categorical


@dataclass(frozen=True, slots=True)
class TileColumns:
    """All columns of one slide's tiles, n in storage order.

    Attributes:
        tile_id: (n,) names, unique in the slide.
        columns: by name, (n,) each: those of the store, then `predicted` and `probability_<class>`.
    """

    tile_id: list[str]
    columns: dict[str, Column]

    @property
    def numbers(self) -> dict[str, npt.NDArray[Any]]:
        """The columns of numbers."""
        return {
            name: values
            for name, values in self.columns.items()
            if not isinstance(values, Categorical) and values.dtype.kind in "biuf"
        }

    def names(self, column: str) -> list[str | None]:
        """Return (n,) class names or texts of a column, None where there is none or no such column."""
        values = self.columns.get(column)
        if values is None or column in self.numbers:
            return [None] * len(self.tile_id)
        texts = values.names() if isinstance(values, Categorical) else values
        return [None if text is None else str(text) for text in texts.tolist()]


def tile_columns(store: TileStore, request: ExportRequest) -> TileColumns:
    """Read the columns of a store, but for the checksums, and the predictions that the request names.

    Raises:
        StoreError: if the store is damaged.
        AnnotationError: if there are no predictions for the slide, or they are of other tiles.
    """
    tile_id = [str(name) for name in store.tile_ids()]
    columns: dict[str, Column] = {name: store.column(name) for name in store.columns() if not name.startswith("crc32c")}
    if request.predictions is not None:
        columns |= read_predictions(request.predictions / f"{store.slide_id}.csv", tile_id)
    return TileColumns(tile_id, columns)


def read_predictions(path: Path, tile_id: list[str]) -> dict[str, Column]:
    """Read what `predict` wrote of one slide: `predicted` (Categorical) and `probability_<class>` (n,) float64.

    Args:
        path: the CSV.
        tile_id: (n,) the tiles wanted, in this order.

    Raises:
        AnnotationError: if it cannot be read or does not hold exactly these tiles.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            rows = {row["tile_id"]: row for row in reader}
            shares = [name for name in reader.fieldnames or () if name.startswith(_PROBABILITY)]
        classes = tuple(name.removeprefix(_PROBABILITY) for name in shares)
        found = [rows[tile] for tile in tile_id]
        numbers = {without_formula(name): number for number, name in enumerate(classes)}
        codes = np.array([numbers[row[PREDICTED]] for row in found], np.int32)
        columns: dict[str, Column] = {PREDICTED: Categorical(codes, classes)}
        columns |= {name: np.array([float(row[name]) for row in found], np.float64) for name in shares}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise AnnotationError(
            f"predictions '{path}': cannot be read ({reason}); run simtriplet predict first"
        ) from error
    except (KeyError, ValueError, TypeError) as error:
        raise AnnotationError(
            f"predictions '{path}': are not those of the store's tiles ({error}); run simtriplet predict on it again"
        ) from error
    if len(rows) != len(tile_id):
        raise AnnotationError(
            f"predictions '{path}': hold {len(rows)} tiles, the store {len(tile_id)}; run simtriplet predict on it again"
        )
    return columns


def tissue_regions(store: TileStore) -> list[Any]:
    """Return one shapely MultiPolygon a tissue region, level-0 pixels."""
    import shapely

    return [
        shapely.MultiPolygon([shapely.Polygon(rings[0], rings[1:]) for rings in polygons])
        for polygons in store.tissue_rings()
    ]

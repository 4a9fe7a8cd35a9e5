"""The files of a slide's predictions: GeoJSON, a CSV of probabilities and the classes drawn on the thumbnail."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from simtriplet.evaluate.atomic_output import replace_file
from simtriplet.evaluate.csv_text import csv_text
from simtriplet.evaluate.figure import SOFTWARE
from simtriplet.evaluate.labels import tile_ids
from simtriplet.evaluate.overlay import draw_classes
from simtriplet.evaluate.prediction import SlidePrediction
from simtriplet.evaluate.prediction_polygons import GEOJSON_START, prediction_geojson
from simtriplet.wsi.errors import EvaluationError
from simtriplet.wsi.export_marks import begins_with
from simtriplet.wsi.store import TileStore

__all__ = ["check_file_name", "refuse_foreign_files", "write_prediction"]

_COLUMNS = ("slide_id", "tile_id", "x", "y", "predicted")
_PROBABILITY = "probability_"
_LONGEST_BYTES = 200  # file systems take 255, with the ending


def write_prediction(
    out: str | Path, store: TileStore, prediction: SlidePrediction, *, merged: bool = True
) -> list[Path]:
    """Write `<slide_id>.geojson`, `<slide_id>.csv` and `<slide_id>.png` into the folder `out`, each whole or not at all.

    Args:
        out: made where missing.
        store: the tiles.
        prediction: of these tiles.
        merged: see prediction_geojson.

    Returns:
        The three files.

    Raises:
        EvaluationError: if the slide's id cannot name a file, or the folder cannot be written, or a file of one of these names is
            there that this program did not write.
    """
    out = Path(out)
    stem = refuse_foreign_files(out, store.slide_id)
    contents: dict[str, bytes | str] = {
        "geojson": prediction_geojson(store, prediction, merged=merged),
        "csv": csv_text(_rows(store, prediction)),
        "png": draw_classes(store, prediction.codes, prediction.classes),
    }
    return [replace_file(out / f"{stem}.{ending}", content) for ending, content in contents.items()]


def refuse_foreign_files(out: Path, slide_id: str) -> str:
    """Return the stem of a slide's files, of which earlier predictions are replaced and nothing else: not the user's annotations.

    Raises:
        EvaluationError: if another file is there, or the slide's id cannot name a file.
    """
    stem = check_file_name(slide_id)
    for ending, is_own in _IS_OWN.items():
        path = out / f"{stem}.{ending}"
        if os.path.lexists(path) and not is_own(path):
            raise EvaluationError(f"output '{path}': is there and was not written by predict; choose another --out")
    return stem


def check_file_name(slide_id: str) -> str:
    """Return a slide's id if it can name a file inside any folder.

    Raises:
        EvaluationError: if it is empty, too long, starts with a dot, or holds a separator or an unprintable letter.
    """
    plain = slide_id.isprintable() and not any(letter in slide_id for letter in '/\\:*?"<>|')
    if not plain or not slide_id.strip() or slide_id.startswith(".") or len(slide_id.encode()) > _LONGEST_BYTES:
        raise EvaluationError(f"slide {slide_id!r}: its id cannot name a file; tile the slide under a plain id")
    return slide_id


def _is_own_geojson(path: Path) -> bool:
    return begins_with(path, GEOJSON_START)


def _is_own_csv(path: Path) -> bool:
    """Tell whether a table has the columns of predictions and no other, which somebody would have added."""
    if not begins_with(path, ",".join(_COLUMNS)):
        return False
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file))
    except (OSError, ValueError, csv.Error):
        return False
    return all(name.startswith(_PROBABILITY) for name in header[len(_COLUMNS) :])


def _is_own_png(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with Image.open(path) as picture:
            return picture.info.get("Software") == SOFTWARE
    except (OSError, ValueError, SyntaxError):  # what it is not, or too damaged to tell
        return False


_IS_OWN = {"geojson": _is_own_geojson, "csv": _is_own_csv, "png": _is_own_png}


def _rows(store: TileStore, prediction: SlidePrediction) -> Iterator[Sequence[object]]:
    yield *_COLUMNS, *(f"{_PROBABILITY}{name}" for name in prediction.classes)
    names = (prediction.classes[code] for code in prediction.codes.tolist())
    columns = tile_ids(store).tolist(), store.base_xy().tolist(), names, prediction.probabilities.tolist()
    for tile_id, (x, y), name, shares in zip(*columns, strict=True):
        yield store.slide_id, tile_id, x, y, name, *(f"{share:.6f}" for share in shares)

"""Read a CSV of labels: one row per slide, or one row per tile (by tile_id, or by x and y)."""

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simtriplet.wsi.errors import AnnotationError
from simtriplet.wsi.metadata import read_regular_file
from simtriplet.wsi.missing_values import MISSING, PERHAPS_MISSING
from simtriplet.wsi.registry import nearest_name

__all__ = ["LabelRow", "read_label_file"]

logger = logging.getLogger(__name__)

_MOST_BYTES = 1 << 29
SLIDE_COLUMN = "slide_id"
DEFAULT_PATIENT_COLUMN = "patient_id"


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One row of a label file.

    Attributes:
        line: where it stands in the file, from 1 (the header).
        slide_id: the slide.
        label: class name; None where the cell is empty.
        patient_id: the patient; None where the file has no such column.
        tile: None for the whole slide, else the tile's id or its (x, y), level-0 pixels, top-left.
    """

    line: int
    slide_id: str
    label: str | None
    patient_id: str | None
    tile: str | tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class _Columns:
    label: str
    patient: str | None
    tile: tuple[str, ...]


def read_label_file(file: Path, *, label_column: str, patient_column: str | None = None) -> list[LabelRow]:
    """Read and check a label file.

    Args:
        file: UTF-8 CSV with a header, a column `slide_id` and the label column; rows are tiles where it has a column
            `tile_id`, or `x` and `y` (level-0 pixels), else slides.
        label_column: holds the class names; an empty cell is no label.
        patient_column: holds the patient; `patient_id` where not given and there.

    Raises:
        AnnotationError: if it cannot be read, is empty, lacks a column, a row is incomplete or repeated, a label is what other
            programs write for none (nan, null), or two labels are one number (1, 1.0).
    """
    header, lines = _read_cells(file)
    columns = _find_columns(file, header, label_column, patient_column)
    rows = [_parse(file, number, dict(zip(header, cells, strict=True)), columns) for number, cells in lines]
    _refuse_repeats(file, rows)
    _refuse_missing_values(file, rows)
    _refuse_one_class_twice(file, rows)
    return rows


def _read_cells(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        text = read_regular_file(file, most_bytes=_MOST_BYTES).decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
    except UnicodeDecodeError as error:
        raise AnnotationError(f"label file '{file}': is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise AnnotationError(f"label file '{file}': is not a CSV file ({error}); correct it") from error
    except OSError as error:
        raise AnnotationError(f"label file '{file}': cannot be read ({error.strerror}); check the path") from error
    if len(lines) < 2:
        what = "has a header but no rows" if lines else "is empty"
        raise AnnotationError(f"label file '{file}': {what}; give a header with slide_id and one row per slide or tile")
    header = lines[0][1]
    if len(set(header)) != len(header):
        raise AnnotationError(f"label file '{file}': two columns have the same name; rename one")
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise AnnotationError(
                f"label file '{file}', line {number}: has {len(cells)} cells, the header {len(header)}; correct it"
            )
    return header, lines[1:]


def _find_columns(file: Path, header: Sequence[str], label_column: str, patient_column: str | None) -> _Columns:
    _refuse_other_delimiter(file, header)
    needed = {SLIDE_COLUMN: "rename one", label_column: "name one with --label-column"}
    if patient_column:
        needed[patient_column] = "name one with --patient-column"
    for name, cure in needed.items():
        if name not in header:
            hint = nearest_name(name, header)
            raise AnnotationError(
                f"label file '{file}': has no column {name!r}{hint}; it has {', '.join(header)}: {cure}"
            )
    patient = patient_column or (DEFAULT_PATIENT_COLUMN if DEFAULT_PATIENT_COLUMN in header else None)
    if "tile_id" in header:
        return _Columns(label_column, patient, ("tile_id",))
    if ("x" in header) != ("y" in header):
        raise AnnotationError(f"label file '{file}': has one of the columns x and y; give both, or tile_id, or neither")
    return _Columns(label_column, patient, ("x", "y") if "x" in header else ())


def _refuse_other_delimiter(file: Path, header: Sequence[str]) -> None:
    """Spreadsheets of many languages save semicolons where a CSV file has commas."""
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and sign in header[0]:
            raise AnnotationError(f"label file '{file}': has {name} between its cells; save it with commas")


def _parse(file: Path, line: int, cells: dict[str, str], columns: _Columns) -> LabelRow:
    for name in (SLIDE_COLUMN, *columns.tile, *([columns.patient] if columns.patient else [])):
        if not cells[name]:
            raise AnnotationError(f"label file '{file}', line {line}: has no {name}; fill it in")
    return LabelRow(
        line=line,
        slide_id=cells[SLIDE_COLUMN],
        label=cells[columns.label] or None,
        patient_id=cells[columns.patient] if columns.patient else None,
        tile=_parse_tile(file, line, [cells[name] for name in columns.tile]),
    )


def _parse_tile(file: Path, line: int, cells: Sequence[str]) -> str | tuple[int, int] | None:
    if len(cells) < 2:
        return cells[0] if cells else None
    try:
        x, y = (float(cell) for cell in cells)
        if x != int(x) or y != int(y):
            raise ValueError("not whole")
    except (ValueError, OverflowError) as error:
        where = f"label file '{file}', line {line}"
        raise AnnotationError(
            f"{where}: x, y {', '.join(cells)!r} are not whole level-0 pixels; correct them"
        ) from error
    return int(x), int(y)


def _refuse_missing_values(file: Path, rows: Sequence[LabelRow]) -> None:
    """What other programs write into an empty cell would become a class, or the patient of many slides."""
    doubtful: dict[str, int] = {}
    for row in rows:
        name = (row.label or "").lower()
        if (row.patient_id or "").lower() in MISSING | PERHAPS_MISSING:
            raise AnnotationError(
                f"label file '{file}', line {row.line}: {row.patient_id!r} is what some programs write for no patient; fill it in"
            )
        if name in MISSING:
            raise AnnotationError(
                f"label file '{file}', line {row.line}: {row.label!r} is what some programs write for no label; leave the cell "
                "empty, or give the class another name"
            )
        if name in PERHAPS_MISSING:
            doubtful.setdefault(str(row.label), row.line)
    for label, line in doubtful.items():
        logger.warning(
            "label file '%s', line %d: %r is taken for a class; leave cells without a label empty", file, line, label
        )


def _refuse_one_class_twice(file: Path, rows: Sequence[LabelRow]) -> None:
    """`1` and `1.0` are one number, which a table that was saved twice has both of; names that differ in case are told of."""
    names: dict[str, str] = {}
    numbers: dict[float, str] = {}
    for label in dict.fromkeys(row.label for row in rows if row.label is not None):
        other = names.setdefault(label.casefold(), label)
        if other != label:
            logger.warning("label file '%s': %r and %r are taken for two classes", file, other, label)
        number = _as_number(label)
        same = label if number is None else numbers.setdefault(number, label)
        if same != label:
            raise AnnotationError(
                f"label file '{file}': the classes {same!r} and {label!r} are one number; write it in one way"
            )


def _as_number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _refuse_repeats(file: Path, rows: Sequence[LabelRow]) -> None:
    seen: dict[tuple[str, str | tuple[int, int] | None], int] = {}
    patients: dict[str, str | None] = {}
    for row in rows:
        first = seen.setdefault((row.slide_id, row.tile), row.line)
        if first != row.line:
            what = "slide" if row.tile is None else f"tile {row.tile} of slide"
            raise AnnotationError(
                f"label file '{file}', line {row.line}: {what} {row.slide_id!r} is in line {first} too; keep one"
            )
        if patients.setdefault(row.slide_id, row.patient_id) != row.patient_id:
            raise AnnotationError(
                f"label file '{file}', line {row.line}: slide {row.slide_id!r} has two patients; correct one of them"
            )

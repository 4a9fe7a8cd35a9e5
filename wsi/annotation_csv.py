"""Read annotations from CSV: one vertex a row, or one area a row as WKT."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import shapely

from simtriplet.wsi.annotation import MAX_FILE_BYTES, NamedRegion, mend_area, open_annotation, ring_area
from simtriplet.wsi.errors import AnnotationError

__all__ = ["read_csv"]

_VERTEX_COLUMNS = ("class", "region", "x", "y")
_WKT_COLUMNS = ("class", "wkt")


def read_csv(path: Path) -> list[NamedRegion]:
    """Read areas from CSV with a heading; positions are level-0 pixels.

    * `class,region,x,y`: one vertex a row, in drawing order; rows of one class and region (any text) make one outline.
    * `class,wkt`: one POLYGON or MULTIPOLYGON a row, holes included.

    Further columns are ignored.

    Raises:
        AnnotationError: if the file cannot be read, lacks a column or has a malformed row.
    """
    try:
        text = open_annotation(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(
            f"annotation '{path}': is not UTF-8 text ({error.reason}); save it as UTF-8 CSV"
        ) from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    usual = csv.field_size_limit(MAX_FILE_BYTES)  # 128 KiB, which an outline of 6,000 points exceeds
    try:
        columns = [column.strip().lower() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
        if set(_WKT_COLUMNS) <= set(columns):
            return [region for region in _read_wkt(reader, path) if region is not None]
        if set(_VERTEX_COLUMNS) <= set(columns):
            return _read_vertices(reader, path)
    except csv.Error as error:
        raise AnnotationError(f"annotation '{path}': is not CSV ({error}); save it again") from error
    finally:
        csv.field_size_limit(usual)
    found = " ".join(", ".join(columns).split())[:80] or "none"
    raise AnnotationError(
        f"annotation '{path}': has columns {found}: must be {','.join(_VERTEX_COLUMNS)} or "
        f"{','.join(_WKT_COLUMNS)}; correct the heading"
    )


def _read_wkt(reader: "csv.DictReader[str]", path: Path) -> Iterator[NamedRegion | None]:
    for row in reader:
        try:
            with np.errstate(all="ignore"):  # numbers beyond those of double precision become infinite, and are refused
                shape = shapely.from_wkt(row["wkt"] or "")
        except shapely.errors.ShapelyError as error:
            reason = " ".join(str(error).split())[:80]
            raise _malformed(path, reader.line_num, f"wkt is malformed: {reason}") from error
        area = None if shape is None else mend_area(shape, f"line {reader.line_num}", path)
        name = row["class"] or ""
        yield NamedRegion(name, area) if area is not None and name.strip() else None


def _read_vertices(reader: "csv.DictReader[str]", path: Path) -> list[NamedRegion]:
    outlines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in reader:
        if row["class"] is None or row["region"] is None:
            raise _malformed(path, reader.line_num, "has too few cells")
        outlines.setdefault((row["class"], row["region"]), []).append(
            _vertex((row["x"], row["y"]), path, reader.line_num)
        )
    regions = []
    for (name, region), vertices in outlines.items():
        area = ring_area(vertices, [], f"region {region!r}", path)
        if area is not None and name.strip():
            regions.append(NamedRegion(name, area))
    return regions


def _vertex(cells: Sequence[str | None], path: Path, line: int) -> tuple[float, float]:
    try:
        x, y = (float(cell or "") for cell in cells)
    except ValueError:
        x = y = math.nan
    if not (math.isfinite(x) and math.isfinite(y)):
        raise _malformed(path, line, f"x, y {', '.join(map(repr, cells))[:60]}: must be numbers")
    return x, y


def _malformed(path: Path, line: int, what: str) -> AnnotationError:
    return AnnotationError(f"annotation '{path}': line {line} {what}; correct it")

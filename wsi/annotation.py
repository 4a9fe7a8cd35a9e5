"""Annotations: named regions drawn by pathologists, and the class of each tile that follows from them."""

import errno
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely

from simtriplet.wsi.area_cover import Cover
from simtriplet.wsi.errors import AnnotationError
from simtriplet.wsi.metadata import read_regular_file
from simtriplet.wsi.table import Categorical

__all__ = ["NamedRegion", "label_tiles", "mend_area", "open_annotation", "read_geojson", "ring_area"]

Area: TypeAlias = shapely.Polygon | shapely.MultiPolygon
MAX_FILE_BYTES = 1 << 29
MAX_COORDINATE_PX = 1e9
"""Far beyond any slide; squares of it are still exact enough for areas."""

_AREAS = ("Polygon", "MultiPolygon")

_FEW_MEETINGS = 100
_MEETINGS_AN_EDGE, _MEETINGS_OF_PARTS = 4, 16
"""Of the edges of one outline, and of all outlines of an area, which may lie side by side. To mend an outline takes the square
of how often it crosses itself: 1,000 times half a second, 29,000 times a minute."""

_PAIRS_AT_ONCE = 1 << 19


@dataclass(frozen=True, slots=True)
class NamedRegion:
    """One annotated area.

    Attributes:
        name: the class.
        area: polygon or multipolygon, level-0 pixels.
    """

    name: str
    area: Area

    def __post_init__(self) -> None:
        try:
            self.name.encode()
        except UnicodeEncodeError as error:
            raise AnnotationError(f"annotated class {self.name!r}: is no Unicode text; rename it") from error


def open_annotation(path: Path, *, n_bytes: int | None = None) -> bytes:
    """Return the first `n_bytes` of an annotation file, or all of them.

    Raises:
        AnnotationError: if it cannot be read or is larger than 512 MiB, far above what people draw.
    """
    try:
        return read_regular_file(path, most_bytes=MAX_FILE_BYTES, n_bytes=-1 if n_bytes is None else n_bytes)
    except OSError as error:
        cure = "split or simplify it" if error.errno == errno.EFBIG else "check the path"
        raise AnnotationError(f"annotation '{path}': cannot be read ({error.strerror}); {cure}") from error


def ring_area(
    exterior: Sequence[tuple[float, float]], holes: Sequence[Sequence[tuple[float, float]]], what: str, path: Path
) -> Area | None:
    """Return the area within an outline, None where it has none.

    Args:
        exterior: finite (x, y), level-0 pixels, closed or not.
        holes: outlines that are cut out.
        what: the place in the file, for error messages.
        path: the file.

    Raises:
        AnnotationError: if it has coordinates but fewer than three.
    """
    if not exterior:
        return None
    if len(exterior) < 3:
        raise AnnotationError(
            f"annotation '{path}': {what} has {len(exterior)} points: must be three or more; draw it again"
        )
    return mend_area(shapely.Polygon(exterior, holes), what, path)


def mend_area(shape: shapely.Geometry, what: str, path: Path) -> Area | None:
    """Return the valid area of a geometry, None where it has none (points, lines, outlines that enclose nothing).

    Raises:
        AnnotationError: if its coordinates are not finite.
    """
    if shape.geom_type not in _AREAS or shape.is_empty:
        return None
    try:
        if not np.isfinite(shapely.get_coordinates(shape)).all():
            raise ValueError("coordinates are not finite")
        if not all(abs(bound) <= MAX_COORDINATE_PX for bound in shape.bounds):
            raise ValueError(f"coordinates lie beyond {MAX_COORDINATE_PX:g} pixels")
        parts = [part for outline in shapely.get_parts(shape).tolist() for part in _mend_outline(outline)]
        if not shape.is_valid:
            _refuse_tangle(shape, most_an_edge=_MEETINGS_OF_PARTS)
        return shapely.union_all(parts) if parts else None
    except (shapely.errors.ShapelyError, ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())[:160]
        raise AnnotationError(f"annotation '{path}': {what} is malformed ({reason}); export it again") from error


def _mend_outline(outline: shapely.Polygon) -> list[Area]:
    """Return the valid areas within one outline; each for itself, as what two parts of an area share belongs to it too."""
    if not outline.is_valid:
        _refuse_tangle(outline, most_an_edge=_MEETINGS_AN_EDGE)
        outline = shapely.make_valid(outline)
    return [part for part in getattr(outline, "geoms", [outline]) if part.geom_type in _AREAS and part.area > 0]


def _refuse_tangle(shape: Area, *, most_an_edge: int) -> None:
    """Refuse what could be mended, but not in time.

    Args:
        shape: one or several outlines.
        most_an_edge: other edges that each may meet on average, but for the two beside it.

    Raises:
        ValueError: if the outlines cross each other, or themselves, too often.
    """
    rings = map(shapely.get_coordinates, shapely.get_rings(shapely.get_parts(shape)).tolist())
    edges = shapely.linestrings(np.concatenate([np.stack([ring[:-1], ring[1:]], axis=1) for ring in rings]))
    tree = shapely.STRtree(edges)
    most, met = _FEW_MEETINGS + most_an_edge * len(edges), 0
    step = max(1, _PAIRS_AT_ONCE // len(edges))
    for start in range(0, len(edges), step):
        part = edges[start : start + step]
        met += tree.query(part, predicate="intersects").shape[1] - 3 * len(part)  # itself, and the two beside it
        if met > 2 * most:  # each of two edges meets the other
            raise ValueError(f"it meets itself more than {most} times")


def read_geojson(path: str | Path) -> list[NamedRegion]:
    """Read regions as QuPath exports them: a FeatureCollection, a list of features or one feature.

    The class is `properties.classification.name` (its `names` with ": " between, or `properties.classification` itself, as a
    string), else `properties.name`, letter by letter; features without a class or without an area
    (points, lines) are left out.

    Raises:
        AnnotationError: if the file cannot be read or is not GeoJSON.
    """
    path = Path(path)
    data = open_annotation(path)
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error)[:160]
        raise AnnotationError(f"annotation '{path}': is not GeoJSON ({reason}); export it again from QuPath") from error
    regions = []
    for number, feature in enumerate(_features(document, path)):
        name = _class_name(feature)
        area = _area(feature, number, path)
        if name and area is not None and not area.is_empty:
            regions.append(NamedRegion(name, area))
    return regions


def _features(document: Any, path: Path) -> list[dict[str, Any]]:
    kind = document.get("type") if isinstance(document, dict) else None
    features = document
    if kind == "FeatureCollection":
        features = document.get("features")
    elif kind == "Feature":
        features = [document]
    if not isinstance(features, list) or not all(
        isinstance(item, dict) and item.get("type") == "Feature" for item in features
    ):
        raise AnnotationError(f"annotation '{path}': is not a GeoJSON FeatureCollection; export it again from QuPath")
    return features


def _class_name(feature: dict[str, Any]) -> str | None:
    properties = feature.get("properties")
    if not isinstance(properties, dict):
        return None
    given = _classification_name(properties.get("classification"))
    return next((name for name in (given, properties.get("name")) if isinstance(name, str) and name.strip()), None)


def _classification_name(classification: Any) -> Any:
    """Return a class as QuPath shows it; since 0.4 it writes those with parts, such as "Tumor: Positive", as a list."""
    if not isinstance(classification, dict):
        return classification
    parts = classification.get("names")
    if isinstance(parts, list) and parts and all(isinstance(part, str) for part in parts):
        return ": ".join(parts)
    return classification.get("name")


def _area(feature: dict[str, Any], number: int, path: Path) -> Area | None:
    geometry = feature.get("geometry")
    if not isinstance(geometry, dict) or geometry.get("type") not in _AREAS:
        return None
    try:
        with np.errstate(all="ignore"):  # numbers beyond those of double precision become infinite, and are refused
            shape = shapely.from_geojson(json.dumps(geometry))
    except (shapely.errors.ShapelyError, ValueError, TypeError, RecursionError, MemoryError) as error:
        reason = " ".join(str(error).split())[:160]
        raise AnnotationError(
            f"annotation '{path}': feature {number} is malformed ({reason}); export it again"
        ) from error
    return mend_area(shape, f"feature {number}", path)


def label_tiles(
    regions: Sequence[NamedRegion],
    base_xy: npt.NDArray[np.int64],
    base_size: float,
    *,
    min_cover: float,
    background: str | None = None,
    classes: Iterable[str] = (),
) -> Categorical:
    """Give each tile the class that covers most of it.

    Args:
        regions: the annotated areas.
        base_xy: (n, 2) int64, level-0 pixels, top-left.
        base_size: side of a tile, level-0 pixels.
        min_cover: least share of the tile that its class must cover, 0..1; tiles with less stay unlabelled.
        background: class of tiles that lie outside all regions by the same share; None leaves them unlabelled.
        classes: names that come first among the categories, in this order.

    Returns:
        Codes (n,), -1 for unlabelled, and the class names.
    """
    present = {region.name for region in regions} | ({background} if background else set())
    names = [*dict.fromkeys(classes), *sorted(present - set(classes))]
    tiles = Cover(base_xy, base_size)
    areas = [shapely.union_all([region.area for region in regions if region.name == name]) for name in names]
    cover = np.zeros((len(base_xy), max(1, len(names))))
    for code, area in enumerate(areas):
        cover[:, code] = tiles.shares(area)
    if background:
        # regions of two classes may overlap, so what lies outside all of them is not one minus the sum
        cover[:, names.index(background)] += 1.0 - tiles.shares(shapely.union_all(areas))
    # intersections leave errors near 1e-12, which must not decide at the limit
    cover = np.round(cover, 9)
    best = cover.argmax(axis=1)
    enough = cover[np.arange(len(base_xy)), best] >= max(min_cover, 1e-9)
    return Categorical(np.where(enough, best, -1).astype(np.int32), tuple(names))

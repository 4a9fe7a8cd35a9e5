"""Read the XML of Aperio ImageScope."""

from pathlib import Path
from xml.etree.ElementTree import Element

import shapely

from simtriplet.wsi.annotation import NamedRegion, ring_area
from simtriplet.wsi.annotation_xml import number_of, read_elements

__all__ = ["APERIO_ROOT", "read_aperio"]

APERIO_ROOT = "Annotations"
_FREEHAND, _RECTANGLE, _ELLIPSE = "0", "1", "2"
_ELLIPSE_SEGMENTS = 32


def read_aperio(path: Path) -> list[NamedRegion]:
    """Read the areas of an ImageScope file; the class is the `Text` of the region, or the `Name` of its layer.

    Regions with `NegativeROA="1"` are cut out of the other regions of their layer. Rulers and arrows are left out, and so are
    regions without a class or an area.

    Raises:
        AnnotationError: if the file cannot be read, is not XML or has malformed vertices.
    """
    regions: list[NamedRegion] = []
    for layer in read_elements(path, "Annotation"):
        regions += _read_layer(layer, path)
    return regions


def _read_layer(layer: Element, path: Path) -> list[NamedRegion]:
    drawn, holes = [], []
    for element in layer.iter("Region"):
        area = _area(element, path)
        name = next((text for text in (element.get("Text", ""), layer.get("Name", "")) if text.strip()), "")
        if area is None:
            continue
        if element.get("NegativeROA") == "1":
            holes.append(area)
        elif name:
            drawn.append(NamedRegion(name, area))
    if not holes:
        return drawn
    hole = shapely.union_all(holes)
    cut = [(region.name, shapely.difference(region.area, hole)) for region in drawn]
    return [NamedRegion(name, area) for name, area in cut if area.area > 0]


def _area(element: Element, path: Path) -> shapely.Polygon | shapely.MultiPolygon | None:
    kind = element.get("Type", _FREEHAND)
    if kind not in (_FREEHAND, _RECTANGLE, _ELLIPSE):
        return None
    vertices = [(number_of(vertex, "X", path), number_of(vertex, "Y", path)) for vertex in element.iter("Vertex")]
    if kind == _ELLIPSE and vertices:
        return _ellipse(vertices)
    return ring_area(vertices, [], f"region {element.get('Id', '?')}", path)


def _ellipse(corners: list[tuple[float, float]]) -> shapely.Polygon | None:
    """Return the ellipse in the box around the two corners that ImageScope keeps of it."""
    left, top, right, bottom = shapely.MultiPoint(corners).bounds
    if right <= left or bottom <= top:
        return None
    circle = shapely.Point(0, 0).buffer(1, quad_segs=_ELLIPSE_SEGMENTS)
    radii, centre = ((right - left) / 2, (bottom - top) / 2), ((left + right) / 2, (top + bottom) / 2)
    return shapely.transform(circle, lambda xy: xy * radii + centre)

"""Read the XML of ASAP (https://computationalpathologygroup.github.io/ASAP/), as CAMELYON and PANDA give it."""

from pathlib import Path
from xml.etree.ElementTree import Element

from simtriplet.wsi.annotation import NamedRegion, ring_area
from simtriplet.wsi.annotation_xml import number_of, read_elements

__all__ = ["ASAP_ROOT", "read_asap"]

ASAP_ROOT = "ASAP_Annotations"
_AREAS = ("polygon", "rectangle", "spline")
_NO_GROUP = ("", "None")


def read_asap(path: Path) -> list[NamedRegion]:
    """Read the areas of an ASAP file; the class is `PartOfGroup`, or `Name` where there is no group.

    A spline is taken through its control points. Points, lines and annotations without a class or an area are left out.

    Raises:
        AnnotationError: if the file cannot be read, is not XML or has malformed coordinates.
    """
    regions = []
    for number, element in enumerate(read_elements(path, "Annotation")):
        group = element.get("PartOfGroup", "")
        name = element.get("Name", "") if group in _NO_GROUP else group
        if element.get("Type", "").lower() not in _AREAS or not name.strip():
            continue
        area = ring_area(_vertices(element, path), [], f"annotation {number}", path)
        if area is not None:
            regions.append(NamedRegion(name, area))
    return regions


def _vertices(element: Element, path: Path) -> list[tuple[float, float]]:
    points = list(element.iter("Coordinate"))
    order = [number_of(point, "Order", path) if point.get("Order") else place for place, point in enumerate(points)]
    ordered = [points[place] for place in sorted(range(len(points)), key=lambda place: order[place])]
    return [(number_of(point, "X", path), number_of(point, "Y", path)) for point in ordered]

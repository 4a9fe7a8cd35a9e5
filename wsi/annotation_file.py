"""Read an annotation file of any known format, and find the one that belongs to a slide."""

from pathlib import Path

from simtriplet.wsi.annotation import NamedRegion, open_annotation, read_geojson
from simtriplet.wsi.annotation_aperio import APERIO_ROOT, read_aperio
from simtriplet.wsi.annotation_asap import ASAP_ROOT, read_asap
from simtriplet.wsi.annotation_csv import read_csv
from simtriplet.wsi.annotation_xml import root_tag
from simtriplet.wsi.errors import AnnotationError
from simtriplet.wsi.reach import is_file

__all__ = ["ANNOTATION_SUFFIXES", "find_annotation", "read_annotations"]

ANNOTATION_SUFFIXES = (".geojson", ".json", ".xml", ".csv")
_XML_READERS = {ASAP_ROOT: read_asap, APERIO_ROOT: read_aperio}


def read_annotations(path: str | Path) -> list[NamedRegion]:
    """Read the areas of a file: QuPath's GeoJSON, XML of ASAP or Aperio ImageScope, or CSV.

    The content decides, the suffix only where the content is empty or says nothing (CSV).

    Raises:
        AnnotationError: if the file cannot be read, is of no known format or is malformed.
    """
    path = Path(path)
    start = open_annotation(path, n_bytes=64).lstrip(b"\xef\xbb\xbf \t\r\n")
    suffix = path.suffix.lower()
    if start[:1] == b"<" or start.startswith((b"\xff\xfe", b"\xfe\xff")) or suffix == ".xml":
        root = root_tag(path)
        if root not in _XML_READERS:
            raise AnnotationError(
                f"annotation '{path}': is XML of <{root[:40]}>: must be of {' or '.join(_XML_READERS)}; export it from ASAP, "
                "ImageScope or QuPath"
            )
        return _XML_READERS[root](path)
    if start[:1] in (b"{", b"[") or suffix in (".geojson", ".json"):
        return read_geojson(path)
    if suffix == ".csv":
        return read_csv(path)
    raise AnnotationError(f"annotation '{path}': is of no known format; name it {', '.join(ANNOTATION_SUFFIXES)}")


def find_annotation(folder: Path, slide_id: str) -> Path | None:
    """Return the annotation file of a slide in a folder, None where it has none.

    Raises:
        AnnotationError: if there are two.
        UnreachableError: if the folder may not be entered.
    """
    named = [folder / f"{slide_id}{suffix}" for suffix in ANNOTATION_SUFFIXES]
    found = [path for path in named if is_file(path)]
    if len(found) > 1:
        raise AnnotationError(
            f"annotations '{folder}': {found[0].name} and {found[1].name} are both of slide '{slide_id}'; leave one of them"
        )
    return found[0] if found else None

"""Read annotation XML safely: element by element, without entities, DTDs or anything from outside the file."""

import io
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from simtriplet.wsi.annotation import open_annotation
from simtriplet.wsi.errors import AnnotationError

__all__ = ["number_of", "read_elements", "root_tag"]

_PIECE_BYTES = 1 << 23
_MOST_LEVELS = 64
"""ASAP has 5, ImageScope 6."""


class _Pieces(io.BytesIO):
    """Give a parser large pieces, however small it asks for them.

    What expat finds unfinished at the end of a piece, such as one word of 100 MB, it reads again from its beginning with the
    next: in the 16 KiB that are asked for that takes 197 s, in these under one.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next piece."""
        return super().read(_PIECE_BYTES)


def root_tag(path: Path) -> str:
    """Return the name of the document's outermost element.

    Raises:
        AnnotationError: if the file cannot be read, is not XML, or holds a DTD.
    """
    return next(_events(path))[1].tag


def read_elements(path: Path, tag: str) -> Iterator[Element]:
    """Yield the elements of one name, each whole; they are emptied afterwards, so that memory holds one at a time.

    Raises:
        AnnotationError: if the file cannot be read, is not XML, or holds a DTD.
    """
    parents: list[Element] = []
    for event, element in _events(path):
        if event == "start":
            parents.append(element)
            if len(parents) > _MOST_LEVELS:  # what is done at each level would take the square of their number
                raise AnnotationError(
                    f"annotation '{path}': is nested deeper than {_MOST_LEVELS} levels; export it again"
                )
            continue
        parents.pop()
        if element.tag == tag:
            yield element
        if not any(parent.tag == tag for parent in parents):
            element.clear()
            if parents:
                parents[-1].remove(element)


def _events(path: Path) -> Iterator[tuple[str, Element]]:
    data = open_annotation(path)
    try:
        yield from defusedxml.ElementTree.iterparse(_Pieces(data), events=("start", "end"), forbid_dtd=True)
    except DefusedXmlException as error:
        raise AnnotationError(
            f"annotation '{path}': holds a DTD, entities or external references ({type(error).__name__}), which are not read; "
            "remove them, or export it again"
        ) from error
    except (ParseError, LookupError, ValueError, MemoryError) as error:
        raise AnnotationError(f"annotation '{path}': is not XML ({error}); export it again") from error


def number_of(element: Element, name: str, path: Path) -> float:
    """Return an attribute that holds a number; a comma may stand for the point.

    Raises:
        AnnotationError: if it is missing or no finite number.
    """
    text = element.get(name, "")
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise AnnotationError(
            f"annotation '{path}': {element.tag} has {name} {text!r}: must be a number; export it again"
        )
    return value

"""Which address of the slide browser gives what. Nothing here touches a socket or, but for the page's own files, a path."""

import json
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from importlib.resources import files
from typing import Any, NamedTuple, cast, get_args
from urllib.parse import parse_qs

from simtriplet.evaluate.slide_browser_nearest import Among, SearchAbandonedError
from simtriplet.evaluate.slide_browser_slides import BrowsedSlides
from simtriplet.wsi.errors import NeighbourError, SimTripletError, StoreError

__all__ = ["Answer", "answer", "failure"]

_SCRIPT, _STYLE, _TEXT = "text/javascript; charset=utf-8", "text/css; charset=utf-8", "text/plain; charset=utf-8"
_JSON, _BINARY, _JPEG, _HTML = "application/json", "application/octet-stream", "image/jpeg", "text/html; charset=utf-8"

_ASSETS = {
    "main.js": _SCRIPT,
    "actions.js": _SCRIPT,
    "api.js": _SCRIPT,
    "colours.js": _SCRIPT,
    "grid.js": _SCRIPT,
    "overlay.js": _SCRIPT,
    "panel.js": _SCRIPT,
    "picture.js": _SCRIPT,
    "openseadragon.min.js": _SCRIPT,
    "openseadragon.LICENSE.txt": _TEXT,
    "style.css": _STYLE,
}
"""All files that are served; a name that is not here is no file."""

_MAX_K = 200


class Answer(NamedTuple):
    """What goes back.

    Attributes:
        status: of HTTP.
        kind: media type.
        body: bytes.
    """

    status: HTTPStatus
    kind: str
    body: bytes


class _Asked(NamedTuple):
    slides: BrowsedSlides
    numbers: tuple[int, ...]
    query: Mapping[str, str]
    is_wanted: Callable[[], bool]


class _QueryError(Exception):
    """What stands behind the question mark is not understood."""


Route = Callable[[_Asked], Answer]


def _json(value: object, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    return Answer(status, _JSON, json.dumps(value, ensure_ascii=True, allow_nan=False).encode())


def failure(message: str, status: HTTPStatus) -> Answer:
    """Return an error as JSON."""
    return _json({"error": message}, status)


def _binary(content: bytes) -> Answer:
    return Answer(HTTPStatus.OK, _BINARY, content)


def _jpeg(content: bytes) -> Answer:
    return Answer(HTTPStatus.OK, _JPEG, content)


def _neighbours(asked: _Asked) -> Answer:
    slide, tile = asked.numbers
    return _json(asked.slides.neighbours(slide, tile, asked.query.get("index", "spatial")))


def _nearest(asked: _Asked) -> Answer:
    slide, tile = asked.numbers
    k, among, features = (asked.query.get(*pair) for pair in (("k", "12"), ("among", "all"), ("features", "")))
    if not re.fullmatch(r"[0-9]{1,3}", k) or not 1 <= int(k) <= _MAX_K:
        raise _QueryError(f"k {k!r}: must be 1 to {_MAX_K}")
    if among not in get_args(Among):
        raise _QueryError(f"among {among!r}: must be one of {', '.join(get_args(Among))}")
    found = asked.slides.nearest(
        slide, tile, features=features, k=int(k), among=cast(Among, among), is_wanted=asked.is_wanted
    )
    return _json(found)


_NUMBER = "([0-9]{1,9})"
_SLIDE, _TILE = f"api/slides/{_NUMBER}", f"api/slides/{_NUMBER}/tiles/{_NUMBER}"
_ROUTES: tuple[tuple[re.Pattern[str], Route], ...] = tuple(
    (re.compile(pattern), route)
    for pattern, route in (
        ("api/slides", lambda asked: _json(asked.slides.list_slides())),
        (_SLIDE, lambda asked: _json(asked.slides.describe(*asked.numbers))),
        (f"{_SLIDE}/tiles", lambda asked: _binary(asked.slides.positions(*asked.numbers))),
        (f"{_SLIDE}/layers/{_NUMBER}", lambda asked: _binary(asked.slides.layer_values(*asked.numbers))),
        (_TILE, lambda asked: _json(asked.slides.tile(*asked.numbers))),
        (f"{_TILE}/neighbours", _neighbours),
        (f"{_TILE}/nearest", _nearest),
        (f"{_TILE}/picture", lambda asked: _jpeg(asked.slides.tile_picture(*asked.numbers))),
        (f"{_SLIDE}/squares/{_NUMBER}/{_NUMBER}/{_NUMBER}", lambda asked: _jpeg(asked.slides.square(*asked.numbers))),
    )
)


def answer(slides: BrowsedSlides, path: str, query: str, *, is_wanted: Callable[[], bool]) -> Answer:
    """Answer a request.

    Args:
        slides: what is looked at.
        path: behind the session's key, without a leading slash; as sent, not decoded: no address needs decoding.
        query: behind the question mark.
        is_wanted: tells whether somebody still waits; what takes long ends where nobody does.

    Returns:
        The answer; failures are answers too.
    """
    if path == "":
        return _asset("index.html", _HTML)
    name = path.removeprefix("assets/")
    if name != path and name in _ASSETS:
        return _asset(name, _ASSETS[name])
    for pattern, route in _ROUTES:
        if match := pattern.fullmatch(path):
            return _run(route, slides, tuple(map(int, match.groups())), query, is_wanted)
    return failure("no such address", HTTPStatus.NOT_FOUND)


def _run(
    route: Route, slides: BrowsedSlides, numbers: tuple[int, ...], query: str, is_wanted: Callable[[], bool]
) -> Answer:
    try:
        return route(_Asked(slides, numbers, _parse(query), is_wanted))
    except SearchAbandonedError:
        return failure("nobody waits for this", HTTPStatus.SERVICE_UNAVAILABLE)
    except IndexError as error:
        return failure(str(error), HTTPStatus.NOT_FOUND)
    except (NeighbourError, StoreError) as error:
        return failure(str(error), HTTPStatus.CONFLICT)
    except SimTripletError as error:
        return failure(str(error), HTTPStatus.INTERNAL_SERVER_ERROR)
    except _QueryError as error:
        return failure(str(error), HTTPStatus.BAD_REQUEST)


def _parse(query: str) -> Mapping[str, str]:
    try:
        return {name: texts[-1] for name, texts in parse_qs(query, max_num_fields=10).items()}
    except ValueError as error:
        raise _QueryError(str(error)) from error


def _asset(name: str, kind: str) -> Answer:
    content: Any = files("simtriplet.evaluate") / "browser" / name
    return Answer(HTTPStatus.OK, kind, content.read_bytes())

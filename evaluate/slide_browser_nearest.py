"""The tiles most like one tile by their features, over all opened slides, slide by slide."""

import heapq
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.nearest_tiles import unit_rows
from simtriplet.evaluate.slide_browser_cache import BoundedCache
from simtriplet.wsi.errors import EvaluationError, StoreError
from simtriplet.wsi.store import TileStore

__all__ = ["Among", "FoundTiles", "NearTile", "SearchAbandonedError", "TileSearch"]

Among = Literal["all", "slides", "patients"]
"""Where to look: everywhere, on other slides, with other patients."""

_CACHE_BYTES = 512 << 20
_SEARCHES = 2
"""At a time; each holds the features of a slide beside those that are kept."""
_HASH = "encoder_hash"


class SearchAbandonedError(Exception):
    """Who asked is gone."""


class NearTile(NamedTuple):
    """A tile and how far it is.

    Attributes:
        slide: number of the slide.
        tile: in storage order.
        distance: cosine distance, 0 alike to 2 opposite.
    """

    slide: int
    tile: int
    distance: float


class FoundTiles(NamedTuple):
    """What was found.

    Attributes:
        tiles: nearest first.
        left_out: a line on each slide that could not be searched.
    """

    tiles: list[NearTile]
    left_out: list[str]


class _Features(NamedTuple):
    unit: npt.NDArray[np.float32]
    encoder: object


class TileSearch:
    """Find similar tiles; features are read once and kept up to half a gigabyte, so that a cohort of any size can be searched.

    Args:
        stores: the slides.
        max_bytes: of features kept.
    """

    def __init__(self, stores: Sequence[TileStore], *, max_bytes: int = _CACHE_BYTES) -> None:
        self.stores = stores
        self._features: BoundedCache[tuple[int, str], _Features] = BoundedCache(
            max_bytes, lambda value: value.unit.nbytes
        )
        self._places = threading.Semaphore(_SEARCHES)

    def find(
        self,
        slide: int,
        tile: int,
        *,
        name: str,
        k: int,
        among: Among = "all",
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> FoundTiles:
        """Return the k tiles nearest to a tile, which itself is left out.

        Args:
            slide: number of its slide.
            tile: in storage order.
            name: of the features.
            k: how many.
            among: where to look.
            is_wanted: asked before each slide; where it is not, the search ends.

        Raises:
            SearchAbandonedError: if it is not wanted any more.
            StoreError: if the tile's slide has no such features.
            EvaluationError: if the tile's features are not finite.
        """
        with self._places:
            return self._find(slide, tile, name, k, among, is_wanted)

    def _find(
        self, slide: int, tile: int, name: str, k: int, among: Among, is_wanted: Callable[[], bool]
    ) -> FoundTiles:
        asked = self._of(slide, name)
        query = asked.unit[tile]
        if not np.isfinite(query).all():
            raise EvaluationError(f"features {name!r}: those of tile {tile} are not finite; embed again")
        nearest: list[tuple[float, int, int]] = []
        left_out: list[str] = []
        for number in self._searched(slide, among):
            if not is_wanted():
                raise SearchAbandonedError
            try:
                other = self._of(number, name)
            except StoreError as error:
                left_out.append(str(error))
                continue
            if other.encoder != asked.encoder or other.unit.shape[1] != asked.unit.shape[1]:
                left_out.append(f"slide {self.stores[number].slide_id!r}: its features {name!r} are of another encoder")
                continue
            itself = tile if number == slide else None
            nearest += [(1 - likeness, number, place) for likeness, place in _most_alike(other.unit, query, k, itself)]
        tiles = [NearTile(number, place, max(0.0, far)) for far, number, place in heapq.nsmallest(k, nearest)]
        return FoundTiles(tiles, left_out)

    def _searched(self, slide: int, among: Among) -> list[int]:
        asked, numbers = self.stores[slide], range(len(self.stores))
        if among == "patients":
            return [number for number in numbers if self.stores[number].patient_id != asked.patient_id]
        return [number for number in numbers if among == "all" or number != slide]

    def _of(self, slide: int, name: str) -> _Features:
        return self._features.get((slide, name), lambda: self._read(slide, name))

    def _read(self, slide: int, name: str) -> _Features:
        store = self.stores[slide]
        attributes: dict[str, Any] = store.feature_attributes(name) if store.features_exist(name) else {}
        return _Features(unit_rows(store.features(name)), attributes.get(_HASH))


def _most_alike(
    unit: npt.NDArray[np.float32], query: npt.NDArray[np.float32], k: int, itself: int | None
) -> list[tuple[float, int]]:
    """Return (cosine, place) of the k rows most like the query, in no order."""
    likeness = unit @ query
    likeness[~np.isfinite(likeness)] = -np.inf
    if itself is not None:
        likeness[itself] = -np.inf
    k = min(k, len(likeness))
    places = np.argpartition(-likeness, k - 1)[:k] if k else np.empty(0, np.int64)
    return [(float(likeness[place]), int(place)) for place in places if np.isfinite(likeness[place])]

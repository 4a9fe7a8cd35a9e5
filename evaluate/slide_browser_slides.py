"""The opened slides as the browser's page asks for them: what each is, its tiles, layers, neighbours and pictures."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from simtriplet.evaluate.labels import tile_ids
from simtriplet.evaluate.slide_browser_cache import BoundedCache, OpenSlides
from simtriplet.evaluate.slide_browser_layers import Layer, prediction_layers, store_layers
from simtriplet.evaluate.slide_browser_nearest import Among, TileSearch
from simtriplet.evaluate.slide_browser_pyramid import Overview, Pyramid, compose_window, read_window
from simtriplet.wsi.errors import AnnotationError, EvaluationError, SlideOpenError, StoreError
from simtriplet.wsi.neighbour_graph import NeighbourGraph
from simtriplet.wsi.slide import Pixels, SlideReader
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.tiling_record import fingerprint

__all__ = ["BrowsedSlides"]

_TABLE_BYTES = 256 << 20
_PICTURE_BYTES = 64 << 20
_QUALITY = 88
_MAX_RING_POINTS = 200_000
"""Of the tissue outlines sent to the page; above, every second, third, ... corner is."""


class _Contents(NamedTuple):
    """What is kept of a slide while it is looked at."""

    base_xy: npt.NDArray[np.int64]
    tile_ids: npt.NDArray[np.object_]
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]
    overview: Overview
    uses_slide: bool
    pyramid: Pyramid

    @property
    def nbytes(self) -> int:
        """Bytes held, a tile id taken for 64."""
        layers = sum(layer.nbytes for layer in self.layers)
        return self.base_xy.nbytes + 64 * len(self.tile_ids) + layers + self.overview.pixels.nbytes


class BrowsedSlides:
    """Answer what the page asks; safe to use from several threads, and bounded in memory however many slides there are.

    Args:
        stores: opened stores, numbered in this order.
        slides: slide files by slide id, for pictures finer than the store's; may lack some.
        predictions: folder that `simtriplet predict` wrote.
    """

    def __init__(
        self,
        stores: Sequence[TileStore],
        *,
        slides: Mapping[str, Path] | None = None,
        predictions: Path | None = None,
    ) -> None:
        self.stores = list(stores)
        self._open_slides = OpenSlides(slides or {})
        self._predictions = predictions
        self._search = TileSearch(self.stores)
        self._contents: BoundedCache[int, _Contents] = BoundedCache(_TABLE_BYTES, lambda value: value.nbytes)
        self._graphs: BoundedCache[tuple[int, str], NeighbourGraph] = BoundedCache(_TABLE_BYTES, _graph_bytes)
        self._pictures: BoundedCache[tuple[int, ...], bytes] = BoundedCache(_PICTURE_BYTES, len)

    def close(self) -> None:
        """Close the slide files."""
        self._open_slides.close()

    def list_slides(self) -> list[dict[str, Any]]:
        """Return id, patient and number of tiles of every slide."""
        return [{"id": store.slide_id, "patient": store.patient_id, "tiles": len(store)} for store in self.stores]

    def describe(self, slide: int) -> dict[str, Any]:
        """Return what the page must know of a slide, as JSON values.

        Raises:
            IndexError: if there is no such slide.
            StoreError: if its store is damaged.
        """
        store, contents = self._store(slide), self._of(slide)
        pyramid = contents.pyramid
        width, height = pyramid.size
        levels = {"width": width, "height": height, "min": pyramid.min_level, "max": pyramid.max_level}
        return {
            "id": store.slide_id,
            "patient": store.patient_id,
            "tiles": len(store),
            "width": pyramid.base_size[0],
            "height": pyramid.base_size[1],
            "base_mpp": store.base_mpp,
            "mpp": store.mpp,
            "size_px": store.size_px,
            "base_size": store.base_size_px,
            "base_stride": store.stride_px * store.mpp / store.base_mpp,
            "pyramid": {**levels, "square": pyramid.square_px, "finest": pyramid.finest},
            "from_slide": contents.uses_slide,
            "layers": [layer.describe() for layer in contents.layers],
            "indices": _first("spatial", store.neighbour_names()),
            "features": _first("simtriplet", store.feature_names()),
            "tissue": _rounded_rings(store),
            "notes": list(contents.notes),
        }

    def positions(self, slide: int) -> bytes:
        """Return x and y of every tile's top-left corner, level-0 pixels, as little-endian int32."""
        return self._of(slide).base_xy.astype("<i4").tobytes()

    def layer_values(self, slide: int, layer: int) -> bytes:
        """Return a layer's values: little-endian int32 codes (-1 none) or float32 (NaN none)."""
        found = self._layer(slide, layer)
        return found.values.astype("<f4" if found.classes is None else "<i4").tobytes()

    def tile(self, slide: int, tile: int) -> dict[str, Any]:
        """Return a tile's id, place and all that the columns say of it."""
        store, contents = self._store(slide), self._of(slide)
        _check_tile(store, tile)
        x, y = contents.base_xy[tile].tolist()
        values = [[layer.name, layer.value(tile)] for layer in contents.layers]
        return {"id": str(contents.tile_ids[tile]), "x": x, "y": y, "values": values}

    def neighbours(self, slide: int, tile: int, index: str) -> dict[str, Any]:
        """Return a tile's neighbours and their distances in micrometres.

        Raises:
            NeighbourError: if the slide has no such index.
        """
        store = self._store(slide)
        _check_tile(store, tile)
        graph = self._graphs.get((slide, index), lambda: store.neighbours(index))
        row = slice(int(graph.indptr[tile]), int(graph.indptr[tile + 1]))
        distances = np.round(graph.distances_um[row], 2).tolist()
        return {"tiles": graph.indices[row].tolist(), "distances_um": distances}

    def nearest(
        self,
        slide: int,
        tile: int,
        *,
        features: str,
        k: int,
        among: Among,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> dict[str, Any]:
        """Return the k tiles nearest to a tile by features, and which slides could not be searched.

        Raises:
            SearchAbandonedError: if `is_wanted` says so.
        """
        _check_tile(self._store(slide), tile)
        found = self._search.find(slide, tile, name=features, k=k, among=among, is_wanted=is_wanted)
        tiles = [{"slide": near.slide, "tile": near.tile, "distance": round(near.distance, 5)} for near in found.tiles]
        return {"tiles": tiles, "left_out": found.left_out}

    def tile_picture(self, slide: int, tile: int) -> bytes:
        """Return a tile as JPEG."""
        store = self._store(slide)
        _check_tile(store, tile)
        return self._pictures.get((slide, tile), lambda: _jpeg(store.images.read([tile])[0]))

    def square(self, slide: int, level: int, col: int, row: int) -> bytes:
        """Return a square of the slide's pyramid as JPEG.

        Raises:
            IndexError: if there is no such square.
            SlideReadError: if the slide is damaged there.
        """
        contents = self._of(slide)
        return self._pictures.get(
            (slide, level, col, row), lambda: _jpeg(self._draw_square(slide, contents, level, col, row))
        )

    def _draw_square(self, slide: int, contents: _Contents, level: int, col: int, row: int) -> Pixels:
        store, window = self._store(slide), contents.pyramid.window(level, col, row)
        if contents.uses_slide:
            return self._open_slides.use(store.slide_id, lambda reader: read_window(reader, window, contents.overview))
        return compose_window(store, contents.base_xy, window, contents.overview)

    def _store(self, slide: int) -> TileStore:
        if not 0 <= slide < len(self.stores):
            raise IndexError(f"slide {slide}: must lie in 0..{len(self.stores) - 1}")
        return self.stores[slide]

    def _layer(self, slide: int, layer: int) -> Layer:
        layers = self._of(slide).layers
        if not 0 <= layer < len(layers):
            raise IndexError(f"layer {layer}: must lie in 0..{len(layers) - 1}")
        return layers[layer]

    def _of(self, slide: int) -> _Contents:
        store = self._store(slide)
        return self._contents.get(slide, lambda: self._read(store))

    def _read(self, store: TileStore) -> _Contents:
        uses_slide, notes = self._find_slide(store)
        predicted: list[Layer] = []
        if self._predictions is not None:
            try:
                predicted = prediction_layers(store, self._predictions)
            except (AnnotationError, EvaluationError) as error:
                notes.append(str(error))
        own = store_layers(store)
        n_labels = sum(layer.name == "label" for layer in own)
        return _Contents(
            store.base_xy(),
            tile_ids(store),
            (*own[:n_labels], *predicted, *own[n_labels:]),
            tuple(notes),
            Overview(store.thumbnail(), store.thumbnail_downsample),
            uses_slide,
            Pyramid(_base_size(store), 1.0 if uses_slide else _finest(store)),
        )

    def _find_slide(self, store: TileStore) -> tuple[bool, list[str]]:
        """Tell whether the pictures can come from the slide file, and what to tell the user where they cannot."""
        if store.slide_id not in self._open_slides:
            return False, [f"slide {store.slide_id!r}: is not in --slides"] if self._open_slides.files else []
        try:
            size = self._open_slides.use(store.slide_id, _slide_size)
        except SlideOpenError as error:
            return False, [str(error)]
        if size != _base_size(store):
            said = (
                f"slide {store.slide_id!r}: the file has {size} px, the store was made of one of {_base_size(store)} px"
            )
            return False, [f"{said}; its pictures are the store's"]
        made_of = store.attributes["slide"].get("fingerprint")
        if made_of not in (None, fingerprint(self._open_slides.files[store.slide_id])):
            said = f"slide {store.slide_id!r}: the file in --slides is not the one that the store was made of"
            return False, [f"{said}; its pictures are the store's"]
        return True, []


def _slide_size(reader: SlideReader) -> tuple[int, int]:
    return reader.info.width, reader.info.height


def _base_size(store: TileStore) -> tuple[int, int]:
    try:
        return int(store.attributes["slide"]["width"]), int(store.attributes["slide"]["height"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"store '{store.path.name}': tells no size of its slide; tile the slide again") from error


def _finest(store: TileStore) -> float:
    """Return the level-0 pixels per pixel of the finest level that the tiles are worth: the power of two below theirs."""
    return 2.0 ** max(0, math.floor(math.log2(store.mpp / store.base_mpp) + 1e-6))


def _check_tile(store: TileStore, tile: int) -> None:
    if not 0 <= tile < len(store):
        raise IndexError(f"tile {tile}: must lie in 0..{len(store) - 1}")


def _first(wanted: str, names: Sequence[str]) -> list[str]:
    """Return the names with the program's own before all others: the page begins with the first."""
    return sorted(names, key=lambda name: (name != wanted, name))


def _graph_bytes(graph: NeighbourGraph) -> int:
    return graph.indptr.nbytes + graph.indices.nbytes + graph.distances_um.nbytes


def _rounded_rings(store: TileStore) -> list[list[int]]:
    """Return the tissue's rings, each x, y, x, y, ... in whole level-0 pixels."""
    rings = [ring for region in store.tissue_rings() for polygon in region for ring in polygon]
    step = max(1, math.ceil(sum(map(len, rings)) / _MAX_RING_POINTS))
    return [np.rint(ring[::step]).astype(np.int64).ravel().tolist() for ring in rings]


def _jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="jpeg", quality=_QUALITY)
    return buffer.getvalue()

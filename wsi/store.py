"""The tile store, read side: one Zarr v3 folder per slide with tiles, table, thumbnail and tissue.

docs/store-format.md describes every array. This module needs numpy and zarr alone, so that a trainer can read stores
on a machine without any slide library.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr

from simtriplet.wsi.content_id import content_id
from simtriplet.wsi.errors import NeighbourError, StoreError, UnreachableError
from simtriplet.wsi.images import TileImages, context_name
from simtriplet.wsi.metadata import CHECKSUM, DAMAGE
from simtriplet.wsi.neighbour_graph import NeighbourGraph
from simtriplet.wsi.reach import entries, exists, is_folder
from simtriplet.wsi.store_attributes import FORMAT_VERSION, PARTIAL_SUFFIX, SCHEMA, read_attributes
from simtriplet.wsi.store_files import StoreFiles
from simtriplet.wsi.table import Categorical, member_names, read_array, read_column
from simtriplet.wsi.thumbnail import THUMBNAIL_AXES
from simtriplet.wsi.tissue_rings import read_rings

__all__ = [
    "FORMAT_VERSION",
    "PARTIAL_SUFFIX",
    "SCHEMA",
    "STORE_SUFFIX",
    "TileStore",
    "find_stores",
    "open_stores",
]

STORE_SUFFIX = ".tiles.zarr"
TABLE = "tables/tiles"
SPATIAL = "spatial"
_WHOLE = ("x", "y", "row", "col", "tissue_id")


class TileStore:
    """One slide's tiles, opened for reading.

    Args:
        path: a folder called `<slide_id>.tiles.zarr`.

    Raises:
        StoreError: if it is not a complete tile store, was changed, or holds other tiles than it says.
        StoreVersionError: if another major version wrote it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.attributes = read_attributes(self.path)
        if self._has_pixels():
            self._check_extent(self.images)

    def _has_pixels(self) -> bool:
        try:
            return exists(self.path / "tiles" / "images")
        except UnreachableError as error:
            raise StoreError(f"store '{self.path.name}': its {error}") from error

    def _check_extent(self, images: TileImages) -> TileImages:
        """Refuse pixels of other size or number before anything is made as long as the store says it is."""
        if (len(images), images.size_px) != (len(self), self.size_px):
            raise StoreError(
                f"store '{self.path.name}': tells of {len(self)} tiles of {self.size_px} px, but its {images.path.name} are "
                f"{len(images)} of {images.size_px} px; tile the slide again with --existing replace"
            )
        images.check_extent()
        return images

    @classmethod
    def open(cls, path: str | Path) -> "TileStore":
        """Open a store; the same as calling the class."""
        return cls(path)

    def __repr__(self) -> str:
        return f"<TileStore '{self.path.name}': {len(self)} tiles of {self.size_px} px at {self.mpp:.4g} um per pixel>"

    @property
    def slide_id(self) -> str:
        """The slide's id, unique in a cohort."""
        return str(self.attributes["slide"]["id"])

    @property
    def patient_id(self) -> str:
        """The patient the manifest gave, else the slide's own id."""
        return str(self.attributes["slide"].get("patient_id") or self.slide_id)

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of the stored tiles."""
        return float(self.attributes["tiling"]["mpp"])

    @property
    def base_mpp(self) -> float:
        """Micrometres per level-0 pixel of the slide."""
        return float(self.attributes["slide"]["mpp"])

    @property
    def size_px(self) -> int:
        """Side of a tile in its own pixels."""
        return int(self.attributes["tiling"]["size_px"])

    @property
    def base_size_px(self) -> float:
        """Side of a tile in level-0 pixels."""
        return self.size_px * self.mpp / self.base_mpp

    @property
    def stride_px(self) -> int:
        """Distance between lattice neighbours in the tile's own pixels."""
        return int(self.attributes["tiling"]["stride_px"])

    @cached_property
    def images(self) -> TileImages:
        """The pixels; `store.images.read(ids)` gives (m, s, s, 3) uint8."""
        return TileImages(self.path / "tiles" / "images")

    @property
    def context_mpp(self) -> tuple[float, ...]:
        """Resolutions at which co-centred tiles are stored too, micrometres per pixel."""
        return tuple(float(mpp) for mpp in self.attributes["tiling"].get("context_mpp", ()))

    def context(self, mpp: float) -> TileImages:
        """Return the co-centred tiles at another resolution, in the same order.

        Raises:
            StoreError: if the store has none at that mpp.
        """
        if mpp not in self.context_mpp:
            known = ", ".join(f"{one:g}" for one in self.context_mpp) or "none"
            raise StoreError(
                f"store '{self.path.name}': has no tiles at {mpp:g} um per pixel (known: {known}); tile again"
            )
        return self._check_extent(TileImages(self.path / "tiles" / context_name(mpp)))

    @cached_property
    def group(self) -> zarr.Group:
        """The zarr group, opened for reading."""
        return zarr.open_group(StoreFiles(self.path, read_only=True), mode="r", zarr_format=3)

    @property
    def table(self) -> zarr.Group:
        """The AnnData group."""
        return self._part(TABLE, "the table")

    def _part(self, path: str, what: str) -> zarr.Group:
        """Return a group of the store."""
        with self._reading(what):
            node = self.group[path]
            if not isinstance(node, zarr.Group):
                raise KeyError(path)
            return node

    def __len__(self) -> int:
        return int(self.attributes["n_tiles"])

    def columns(self) -> list[str]:
        """Return the names of the obs columns."""
        with self._reading("the table"):
            names = self._part(f"{TABLE}/obs", "the table").attrs["column-order"]
            if not isinstance(names, list) or not all(isinstance(name, str) and "/" not in name for name in names):
                raise TypeError("column-order must name the columns")
            return cast("list[str]", names)

    def column(self, name: str) -> npt.NDArray[Any] | Categorical:
        """Read one obs column.

        Raises:
            StoreError: if there is none of that name, or it is damaged.
        """
        if name not in self.columns():
            raise StoreError(f"store '{self.path.name}': has no column {name!r}; it has {', '.join(self.columns())}")
        with self._reading(f"column {name!r}"):
            values = read_column(self._part(f"{TABLE}/obs", "the table"), name, n_rows=len(self))
            kinds = "iu" if name in _WHOLE or name.startswith("crc32c") else "biufOTU"
            if not isinstance(values, Categorical) and (values.ndim != 1 or values.dtype.kind not in kinds):
                raise TypeError(f"holds {values.dtype} of shape {values.shape}")
            return values

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """Read one numeric obs column, (n,).

        Raises:
            StoreError: if it is missing, damaged or holds names.
        """
        values = self.column(name)
        if isinstance(values, Categorical) or values.dtype.kind not in "biuf":
            raise StoreError(f"store '{self.path.name}': column {name!r} holds names, not numbers")
        return values

    def base_xy(self) -> npt.NDArray[np.int64]:
        """(n, 2) int64, level-0 pixels, top-left corner of each tile."""
        base_xy = np.column_stack([self.numbers(axis).astype(np.int64) for axis in ("x", "y")])
        slide = self.attributes["slide"]
        beyond = [slide.get("width") or math.inf, slide.get("height") or math.inf]
        with self._reading("the places of tiles"):
            if (base_xy < 0).any() or (base_xy >= beyond).any():
                raise ValueError("some lie beyond the slide")
        return base_xy

    def centres(self) -> npt.NDArray[np.float64]:
        """(n, 2) float64, level-0 pixels, centre of each tile (obsm/spatial)."""
        with self._reading("obsm/spatial"):
            found = read_array(self._part(f"{TABLE}/obsm", "the table"), SPATIAL, n_rows=len(self))
            centres = np.asarray(found, dtype=np.float64)
            if centres.shape != (len(self), 2) or not np.isfinite(centres).all():
                raise ValueError("must be two finite numbers a tile")
            return centres

    def tile_ids(self) -> npt.NDArray[np.object_]:
        """(n,) names of the tiles, unique in the store."""
        with self._reading("column 'tile_id'"):
            found = read_array(self._part(f"{TABLE}/obs", "the table"), "tile_id", n_rows=len(self))
            return found.astype(object)

    def labels(self, column: str = "label") -> Categorical | None:
        """Return the tile labels that annotations gave, or None when the store has none."""
        if column not in self.columns():
            return None
        values = self.column(column)
        return values if isinstance(values, Categorical) else None

    def neighbour_names(self) -> list[str]:
        """Return the names of the neighbour indices in this store."""
        suffix = "_neighbors"
        with self._reading("the table"):
            keys = member_names(self._part(f"{TABLE}/uns", "the table"))
        return sorted(key.removesuffix(suffix) for key in keys if key.endswith(suffix))

    def neighbours(self, name: str = SPATIAL) -> NeighbourGraph:
        """Read a neighbour index.

        Raises:
            NeighbourError: if there is none of that name, or it belongs to other tiles.
        """
        if name not in self.neighbour_names():
            raise NeighbourError(
                f"store '{self.path.name}': has no neighbour index {name!r}; run simtriplet index on it"
            )
        from simtriplet.wsi.index_reader import read_index  # it reads stores, so it imports this module

        return read_index(self, name)

    def feature_names(self) -> list[str]:
        """Return the names under which `embed` has stored features."""
        with self._reading("the table"):
            keys = member_names(self._part(f"{TABLE}/obsm", "the table"))
        return sorted(key.removeprefix("X_") for key in keys if key.startswith("X_"))

    def features(self, name: str) -> npt.NDArray[np.float32]:
        """Read (n, d) float32 features.

        Raises:
            StoreError: if there are none of that name.
        """
        if name not in self.feature_names():
            known = ", ".join(self.feature_names()) or "none"
            raise StoreError(
                f"store '{self.path.name}': has no features {name!r} (known: {known}); run simtriplet embed"
            )
        with self._reading(f"features {name!r}", cure="run simtriplet embed, or import, again"):
            found = read_array(self._part(f"{TABLE}/obsm", "the table"), f"X_{name}", n_rows=len(self))
            if found.ndim != 2 or found.dtype.kind != "f":
                raise TypeError(f"they are {found.dtype} of shape {found.shape}")
            features = found.astype(np.float32, copy=False)
        made_for = self.feature_attributes(name).get("tiles_id", self.attributes["tiles_id"])
        if made_for != self.attributes["tiles_id"]:
            raise StoreError(
                f"store '{self.path.name}': features {name!r} are of older tiles; run simtriplet embed, or import, again"
            )
        return features

    def features_id(self, name: str) -> str:
        """Return what tells features from others of one name: the SHA-256 of their encoder, of themselves where it is not known.

        Raises:
            StoreError: if there are none of that name, or they are damaged or of other tiles.
        """
        encoder = self.feature_attributes(name).get("encoder_hash")
        return str(encoder) if encoder else content_id({}, {"features": self.features(name)})

    def feature_attributes(self, name: str) -> dict[str, Any]:
        """Return what `embed` recorded beside the features: encoder, checkpoint hash, patients it was trained on."""
        with self._reading(f"features {name!r}", cure="run simtriplet embed, or import, again"):
            attributes = dict(self._part(f"{TABLE}/obsm", "the table")[f"X_{name}"].attrs)
        attributes.pop(CHECKSUM, None)
        return attributes

    def features_exist(self, name: str) -> bool:
        """Tell whether features called `name` are in the store."""
        return name in self.feature_names()

    def thumbnail(self) -> npt.NDArray[np.uint8]:
        """(h, w, 3) uint8 RGB picture of the whole slide."""
        with self._reading("the thumbnail"):
            group = self._part("images/thumbnail", "the thumbnail")
            pixels = read_array(group, "0")
            if getattr(group["0"].metadata, "dimension_names", None) == THUMBNAIL_AXES and pixels.ndim == 3:
                pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))  # (y, x, c) before format 1.2
            if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
                raise TypeError(f"it is {pixels.dtype} of shape {pixels.shape}")
            return cast("npt.NDArray[np.uint8]", pixels)

    @property
    def thumbnail_downsample(self) -> float:
        """Level-0 pixels per thumbnail pixel."""
        return float(self.attributes["thumbnail"]["downsample"])

    def tissue_rings(self) -> list[list[list[npt.NDArray[np.float64]]]]:
        """Return the tissue polygons: per region, per polygon, its rings ((k, 2) level-0 pixels; exterior first)."""
        with self._reading("the tissue outline"):
            return read_rings(self._part("tissue", "the tissue outline"))

    @contextlib.contextmanager
    def _reading(self, what: str, *, cure: str = "tile the slide again") -> Iterator[None]:
        """Turn what zarr raises on a damaged or missing array into a StoreError."""
        try:
            yield
        except StoreError:
            raise
        except DAMAGE as error:
            raise StoreError(f"store '{self.path.name}': {what} is damaged ({error}); {cure}") from error


def find_stores(paths: Iterable[str | Path]) -> list[Path]:
    """Return the stores that `paths` name: a store is itself, any other folder stands for the stores right inside it.

    Raises:
        StoreError: if a path does not exist or holds no store.
        UnreachableError: if that cannot be told.
    """
    found: list[Path] = []
    for given in map(Path, paths):
        if given.name.endswith(STORE_SUFFIX) or exists(given / "zarr.json"):
            found.append(given)
            continue
        is_there = is_folder(given)
        inside = [path for path in entries(given) if path.name.endswith(STORE_SUFFIX)] if is_there else []
        if not inside:
            reason = "holds no tile stores (*.tiles.zarr)" if is_there else "does not exist"
            raise StoreError(f"'{given}': {reason}; run simtriplet tile first")
        found.extend(inside)
    return list(dict.fromkeys(found))


def open_stores(paths: Iterable[str | Path]) -> list[TileStore]:
    """Open all stores that `paths` name, refusing two with one slide id.

    Raises:
        StoreError: if one cannot be opened, or two hold the same slide.
        UnreachableError: if a path is out of reach.
    """
    stores = [TileStore(path) for path in find_stores(paths)]
    seen: dict[str, Path] = {}
    for store in stores:
        if store.slide_id in seen:
            raise StoreError(
                f"stores '{seen[store.slide_id]}' and '{store.path}': hold the same slide; pass one of them"
            )
        seen[store.slide_id] = store.path
    return stores

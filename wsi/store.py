"""The tile store, read side: one Zarr v3 folder per slide with tiles, table, thumbnail and tissue.

docs/store-format.md describes every array. This module needs numpy and zarr alone, so that a trainer can read stores
on a machine without any slide library.
"""

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr

from simtriplet.wsi.errors import NeighbourError, StoreError, StoreVersionError
from simtriplet.wsi.images import TileImages, context_name
from simtriplet.wsi.table import Categorical, read_array, read_column, read_value

__all__ = ["FORMAT_VERSION", "STORE_SUFFIX", "NeighbourGraph", "TileStore", "find_stores", "open_stores"]

SCHEMA = "simtriplet.tiles"
FORMAT_VERSION = "1.0"
STORE_SUFFIX = ".tiles.zarr"
PARTIAL_SUFFIX = ".partial"
TABLE = "tables/tiles"
SPATIAL = "spatial"


@dataclass(frozen=True, slots=True)
class NeighbourGraph:
    """Which tiles are each other's inter-sample positives, as CSR rows.

    Attributes:
        indptr: (n + 1,) int64; the neighbours of tile i are indices[indptr[i]:indptr[i + 1]].
        indices: (m,) int32, sorted within a row, symmetric, no self loops.
        distances_um: (m,) float64, micrometres between tile centres.
        rule: what built it, as recorded.
    """

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    distances_um: npt.NDArray[np.float64]
    rule: dict[str, Any]

    @property
    def degrees(self) -> npt.NDArray[np.int64]:
        """(n,) number of neighbours of each tile."""
        return np.diff(self.indptr)

    @property
    def n_pairs(self) -> int:
        """Number of unordered pairs."""
        return len(self.indices) // 2


class TileStore:
    """One slide's tiles, opened for reading.

    Args:
        path: a folder called `<slide_id>.tiles.zarr`.

    Raises:
        StoreError: if it is not a complete tile store.
        StoreVersionError: if another major version wrote it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.attributes = _read_attributes(self.path)

    @classmethod
    def open(cls, path: str | Path) -> "TileStore":
        """Open a store; the same as calling the class."""
        return cls(path)

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
        return TileImages(self.path / "tiles" / context_name(mpp))

    @cached_property
    def group(self) -> zarr.Group:
        """The zarr group, opened for reading."""
        return zarr.open_group(self.path, mode="r")

    @property
    def table(self) -> zarr.Group:
        """The AnnData group."""
        with self._reading("the table"):
            return cast(zarr.Group, self.group[TABLE])

    def __len__(self) -> int:
        return int(self.attributes["n_tiles"])

    def columns(self) -> list[str]:
        """Return the names of the obs columns."""
        with self._reading("the table"):
            return [str(name) for name in cast("Sequence[str]", self.table["obs"].attrs["column-order"])]

    def column(self, name: str) -> npt.NDArray[Any] | Categorical:
        """Read one obs column.

        Raises:
            StoreError: if there is none of that name, or it is damaged.
        """
        if name not in self.columns():
            raise StoreError(f"store '{self.path.name}': has no column {name!r}; it has {', '.join(self.columns())}")
        with self._reading(f"column {name!r}"):
            return read_column(cast(zarr.Group, self.table["obs"]), name)

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """Read one numeric obs column, (n,).

        Raises:
            StoreError: if it is missing, damaged or holds names.
        """
        values = self.column(name)
        if isinstance(values, Categorical):
            raise StoreError(f"store '{self.path.name}': column {name!r} holds names, not numbers")
        return values

    def base_xy(self) -> npt.NDArray[np.int64]:
        """(n, 2) int64, level-0 pixels, top-left corner of each tile."""
        return np.column_stack([self.numbers("x"), self.numbers("y")]).astype(np.int64)

    def centres(self) -> npt.NDArray[np.float64]:
        """(n, 2) float64, level-0 pixels, centre of each tile (obsm/spatial)."""
        with self._reading("obsm/spatial"):
            return np.asarray(read_array(cast(zarr.Group, self.table["obsm"]), SPATIAL), dtype=np.float64)

    def labels(self, column: str = "label") -> Categorical | None:
        """Return the tile labels that annotations gave, or None when the store has none."""
        if column not in self.columns():
            return None
        values = self.column(column)
        return values if isinstance(values, Categorical) else None

    def neighbour_names(self) -> list[str]:
        """Return the names of the neighbour indices in this store."""
        uns = cast(zarr.Group, self.table["uns"])
        suffix = "_neighbors"
        return sorted(key.removesuffix(suffix) for key in uns if key.endswith(suffix))

    def neighbours(self, name: str = SPATIAL) -> NeighbourGraph:
        """Read a neighbour index.

        Raises:
            NeighbourError: if there is none of that name, or it belongs to other tiles.
        """
        if name not in self.neighbour_names():
            raise NeighbourError(
                f"store '{self.path.name}': has no neighbour index {name!r}; run simtriplet index on it"
            )
        obsp = cast(zarr.Group, self.table["obsp"])
        try:
            rule = read_value(cast(zarr.Group, self.table["uns"]), f"{name}_neighbors")
            pairs = cast(zarr.Group, obsp[f"{name}_connectivities"])
            far = cast(zarr.Group, obsp[f"{name}_distances"])
            indptr = read_array(pairs, "indptr").astype(np.int64)
            indices = read_array(pairs, "indices").astype(np.int32)
            distances = read_array(far, "data").astype(np.float64)
        except (KeyError, ValueError, RuntimeError) as error:
            raise NeighbourError(
                f"store '{self.path.name}': neighbour index {name!r} is damaged; index it again"
            ) from error
        builds = {str(node.attrs.get("build_id")) for node in (pairs, far)} | {str(rule.get("build_id"))}
        if len(builds) != 1 or len(indptr) != len(self) + 1 or len(distances) != len(indices):
            raise NeighbourError(f"store '{self.path.name}': neighbour index {name!r} is half written; index it again")
        if rule.get("tiles_id") != self.attributes["tiles_id"]:
            raise NeighbourError(
                f"store '{self.path.name}': neighbour index {name!r} is of older tiles; index it again"
            )
        return NeighbourGraph(indptr, indices, distances, rule)

    def feature_names(self) -> list[str]:
        """Return the names under which `embed` has stored features."""
        obsm = cast(zarr.Group, self.table["obsm"])
        return sorted(key.removeprefix("X_") for key in obsm if key.startswith("X_"))

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
        obsm = cast(zarr.Group, self.table["obsm"])
        with self._reading(f"features {name!r}", cure="run simtriplet embed again"):
            features = np.asarray(read_array(obsm, f"X_{name}"), dtype=np.float32)
        if obsm[f"X_{name}"].attrs.get("tiles_id", self.attributes["tiles_id"]) != self.attributes["tiles_id"]:
            raise StoreError(
                f"store '{self.path.name}': features {name!r} are of older tiles; run simtriplet embed again"
            )
        return features

    def feature_attributes(self, name: str) -> dict[str, Any]:
        """Return what `embed` recorded beside the features: encoder, checkpoint hash, patients it was trained on."""
        self.features_exist(name)
        return dict(cast(zarr.Group, self.table["obsm"])[f"X_{name}"].attrs)

    def features_exist(self, name: str) -> bool:
        """Tell whether features called `name` are in the store."""
        return name in self.feature_names()

    def thumbnail(self) -> npt.NDArray[np.uint8]:
        """(h, w, 3) uint8 RGB picture of the whole slide."""
        with self._reading("the thumbnail"):
            return read_array(cast(zarr.Group, self.group["images/thumbnail"]), "0").astype(np.uint8)

    @property
    def thumbnail_downsample(self) -> float:
        """Level-0 pixels per thumbnail pixel."""
        return float(self.attributes["thumbnail"]["downsample"])

    def tissue_rings(self) -> list[list[list[npt.NDArray[np.float64]]]]:
        """Return the tissue polygons: per region, per polygon, its rings ((k, 2) level-0 pixels; exterior first)."""
        with self._reading("the tissue outline"):
            group = cast(zarr.Group, self.group["tissue"])
            xy = read_array(group, "xy")
            rings = np.split(xy, read_array(group, "ring_offsets")[1:-1])
            polygons = _nest(rings, read_array(group, "polygon_offsets"))
            return _nest(polygons, read_array(group, "region_offsets"))

    @contextlib.contextmanager
    def _reading(self, what: str, *, cure: str = "tile the slide again") -> Iterator[None]:
        """Turn what zarr raises on a damaged or missing array into a StoreError."""
        try:
            yield
        except (ValueError, KeyError, RuntimeError) as error:
            raise StoreError(f"store '{self.path.name}': {what} is damaged ({error}); {cure}") from error


def _nest(items: Sequence[Any], offsets: npt.NDArray[Any]) -> list[list[Any]]:
    bounds = offsets.tolist()
    return [list(items[start:stop]) for start, stop in itertools.pairwise(bounds)]


def _read_attributes(path: Path) -> dict[str, Any]:
    if path.name.endswith(PARTIAL_SUFFIX):
        raise StoreError(f"store '{path.name}': is half written; tile the slide again")
    try:
        document = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        attributes = document["attributes"]["simtriplet"]
        schema, version, state = attributes["schema"], str(attributes["version"]), attributes["state"]
    except FileNotFoundError as error:
        raise StoreError(f"store '{path}': does not exist or is no Zarr v3 group; run simtriplet tile first") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"store '{path}': is not a simtriplet tile store; make one with simtriplet tile") from error
    if schema != SCHEMA:
        raise StoreError(f"store '{path}': is a {schema!r}, not {SCHEMA!r}; make one with simtriplet tile")
    if version.partition(".")[0] != FORMAT_VERSION.partition(".")[0]:
        raise StoreVersionError(
            f"store '{path}': has format version {version}, this program reads {FORMAT_VERSION}; "
            "tile the slide again or install the simtriplet that wrote it"
        )
    if state != "complete":
        raise StoreError(f"store '{path}': is {state}, not complete; tile the slide again with --existing replace")
    return cast("dict[str, Any]", attributes)


def find_stores(paths: Iterable[str | Path]) -> list[Path]:
    """Return the stores that `paths` name: a store is itself, any other folder stands for the stores right inside it.

    Raises:
        StoreError: if a path does not exist or holds no store.
    """
    found: list[Path] = []
    for given in map(Path, paths):
        if (given / "zarr.json").exists() or given.name.endswith(STORE_SUFFIX):
            found.append(given)
            continue
        inside = sorted(given.glob(f"*{STORE_SUFFIX}")) if given.is_dir() else []
        if not inside:
            reason = "holds no tile stores (*.tiles.zarr)" if given.is_dir() else "does not exist"
            raise StoreError(f"'{given}': {reason}; run simtriplet tile first")
        found.extend(inside)
    return list(dict.fromkeys(found))


def open_stores(paths: Iterable[str | Path]) -> list[TileStore]:
    """Open all stores that `paths` name, refusing two with one slide id.

    Raises:
        StoreError: if one cannot be opened, or two hold the same slide.
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

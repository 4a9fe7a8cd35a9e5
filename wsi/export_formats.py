"""The export formats by name, and the loop over stores that all of them share."""

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from simtriplet.wsi.errors import StoreError, StoreExistsError
from simtriplet.wsi.export_anndata import write_h5ad
from simtriplet.wsi.export_geojson import write_geojson
from simtriplet.wsi.export_geoparquet import write_geoparquet
from simtriplet.wsi.export_images import write_images
from simtriplet.wsi.export_marks import is_own_geojson, is_own_h5ad, is_own_parquet, is_own_spatialdata
from simtriplet.wsi.export_names import slide_file_stem
from simtriplet.wsi.export_request import ExportRequest, Progress
from simtriplet.wsi.export_room import parquet_room, picture_room, row_room, table_room
from simtriplet.wsi.export_spatialdata import write_spatialdata
from simtriplet.wsi.export_target import EXPORT_RECORD, is_wanted, whole_file, whole_folder
from simtriplet.wsi.export_webdataset import write_webdataset
from simtriplet.wsi.interop_package import interop_package
from simtriplet.wsi.registry import Registry
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.tile_request import Existing

__all__ = ["FORMATS", "ExportFormat", "Exported", "export_stores"]


class Joined(Protocol):
    """Write all stores into one folder."""

    def __call__(
        self, stores: Sequence[TileStore], folder: Path, request: ExportRequest, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Fill the folder; return what its record says."""


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """One format; exactly one of `per_slide` and `joined` is given.

    Attributes:
        name: as --to names it.
        packages: that it needs beyond the program's own.
        extra: that has them.
        per_slide: writes one slide to one path.
        suffix: of that path.
        is_folder: that path is a folder.
        is_own: tells of what lies at that path whether this program wrote it.
        joined: writes all slides into one folder.
        room: returns about how many bytes that takes.
    """

    name: str
    packages: tuple[str, ...] = ()
    extra: str = "interop"
    per_slide: Callable[[TileStore, Path, ExportRequest], None] | None = None
    suffix: str = ""
    is_folder: bool = False
    is_own: Callable[[Path], bool] = Path.is_file
    joined: Joined | None = None
    room: Callable[[Sequence[TileStore], ExportRequest], int] = row_room

    def __post_init__(self) -> None:
        if (self.per_slide is None) == (self.joined is None):
            raise ValueError(f"format {self.name!r}: must write each slide or all in one")


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of one output.

    Attributes:
        path: the file or folder.
        status: "ok", or "skipped" where it was there.
        n_slides: slides in it.
        n_tiles: tiles in it.
    """

    path: Path
    status: Literal["ok", "skipped"]
    n_slides: int
    n_tiles: int


FORMATS: Registry[ExportFormat] = Registry("export format")
for _format in (
    ExportFormat(
        "spatialdata",
        ("spatialdata",),
        per_slide=write_spatialdata,
        suffix=".spatialdata.zarr",
        is_folder=True,
        is_own=is_own_spatialdata,
        room=table_room,
    ),
    ExportFormat("anndata", ("anndata",), per_slide=write_h5ad, suffix=".h5ad", is_own=is_own_h5ad, room=table_room),
    ExportFormat("geojson", per_slide=write_geojson, suffix=".geojson", is_own=is_own_geojson),
    ExportFormat(
        "geoparquet",
        ("pyarrow",),
        "parquet",
        per_slide=write_geoparquet,
        suffix=".parquet",
        is_own=is_own_parquet,
        room=parquet_room,
    ),
    ExportFormat("images", joined=write_images, room=picture_room),
    ExportFormat("webdataset", joined=write_webdataset, room=picture_room),
):
    FORMATS.add(_format.name, _format)


def export_stores(
    stores: Sequence[TileStore],
    form: str,
    out: str | Path,
    request: ExportRequest | None = None,
    *,
    existing: Existing = "error",
    progress: Progress | None = None,
) -> list[Exported]:
    """Write stores in the form of other programs, each output whole or not at all.

    Args:
        stores: of different slides.
        form: a name in FORMATS.
        out: folder of `<slide_id><suffix>`; for "images" and "webdataset" the folder that holds all of them.
        request: options.
        existing: what to do about an output that is there; only exports of the same kind are ever replaced.
        progress: called with (tiles done, tiles in all).

    Raises:
        UnknownNameError: if there is no such format.
        MissingDependencyError: if a package that it needs is not installed; nothing is written then.
        StoreExistsError: if an output is there and may not be touched; nothing is written then.
        StoreError: if a store is damaged or an output cannot be written.
    """
    out = Path(out)
    chosen, request = FORMATS.get(form), request or ExportRequest()
    for package in chosen.packages:
        interop_package(package, f"export to {form!r}", extra=chosen.extra)
    if not stores:
        raise StoreError(f"export to {form!r}: needs at least one store; pass some")
    if chosen.joined is not None:
        return [_export_joined(stores, chosen, chosen.joined, out, request, existing, progress)]
    paths = [out / f"{slide_file_stem(store)}{chosen.suffix}" for store in stores]
    wanted = [is_wanted(path, existing, is_own=chosen.is_own) for path in paths]
    for store, path, is_new in zip(stores, paths, wanted, strict=True):
        if not is_new:
            _refuse_earlier_export(path, store)
    results, done, total = [], 0, sum(map(len, stores))
    for store, path, is_new in zip(stores, paths, wanted, strict=True):
        if is_new:
            _export_one(store, chosen, path, request)
        results.append(Exported(path, "ok" if is_new else "skipped", 1, len(store)))
        done += len(store)
        if progress is not None:
            progress(done, total)
    return results


def _export_one(store: TileStore, chosen: ExportFormat, path: Path, request: ExportRequest) -> None:
    assert chosen.per_slide is not None
    whole = whole_folder if chosen.is_folder else whole_file
    with whole(path, lambda: chosen.room([store], request)) as partial:
        chosen.per_slide(store, partial, request)


def _refuse_earlier_export(path: Path, store: TileStore) -> None:
    """Refuse what was written before the store's tiles were made, and so of other tiles."""
    try:
        made = datetime.datetime.fromisoformat(store.attributes["provenance"]["created"]).timestamp()
    except (LookupError, TypeError, ValueError):  # a store that another program wrote need not say
        return
    if path.stat().st_mtime < made:
        raise StoreExistsError(f"output '{path}': is older than the tiles of its store; pass --existing replace")


def _export_joined(
    stores: Sequence[TileStore],
    chosen: ExportFormat,
    write: Joined,
    out: Path,
    request: ExportRequest,
    existing: Existing,
    progress: Progress | None,
) -> Exported:
    n_tiles = sum(map(len, stores))
    asked = _asked(stores, chosen, request)
    if not is_wanted(out, existing, is_own=lambda folder: (folder / EXPORT_RECORD).is_file()):
        _refuse_other_export(out, asked)
        return Exported(out, "skipped", len(stores), n_tiles)
    with whole_folder(out, lambda: chosen.room(stores, request)) as partial:
        partial.mkdir()
        record = {**asked, **write(stores, partial, request, progress)}
        (partial / EXPORT_RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Exported(out, "ok", len(stores), n_tiles)


def _asked(stores: Sequence[TileStore], chosen: ExportFormat, request: ExportRequest) -> dict[str, Any]:
    """Return what an export's record says of the request: nothing of this machine."""
    options = {name: getattr(request, name) for name in ("image_format", "jpeg_quality", "shard_tiles", "neighbours")}
    return {
        "format": chosen.name,
        "options": {**options, "predictions": request.predictions is not None},
        "slides": {
            store.slide_id: {"tiles_id": store.attributes["tiles_id"], "n_tiles": len(store)} for store in stores
        },
    }


def _refuse_other_export(out: Path, asked: dict[str, Any]) -> None:
    try:
        found = json.loads((out / EXPORT_RECORD).read_text(encoding="utf-8"))
        same = all(found[name] == value for name, value in asked.items())
    except (OSError, ValueError, LookupError, TypeError):
        same = False
    if not same:
        raise StoreExistsError(
            f"output '{out}': was made from other tiles or with other options; pass --existing replace"
        )

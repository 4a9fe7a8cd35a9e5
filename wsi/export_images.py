"""Tiles as a folder of pictures and a CSV, in torchvision's ImageFolder layout: `<class>/<slide_id>_<x>_<y>.png`."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simtriplet.wsi.csv_cells import without_formula
from simtriplet.wsi.export_names import UNLABELLED, class_folder, slide_file_stem
from simtriplet.wsi.export_pixels import PictureFiles, each_block
from simtriplet.wsi.export_request import ExportRequest, Progress
from simtriplet.wsi.export_table import TileColumns, tile_columns
from simtriplet.wsi.store import TileStore

__all__ = ["TILES_CSV", "write_images"]

TILES_CSV = "tiles.csv"
_COLUMNS = ("file", "slide_id", "patient_id", "tile_id", "x", "y", "base_size_px", "mpp")


def write_images(
    stores: Sequence[TileStore], folder: Path, request: ExportRequest, progress: Progress | None = None
) -> dict[str, Any]:
    """Write all tiles of all stores into a folder that is there and empty.

    Beside the pictures `tiles.csv` has a row for each: file, slide_id, patient_id, tile_id, x, y (level-0 pixels, top-left),
    base_size_px (side in level-0 pixels), mpp (micrometres per pixel of the picture), then every column that a store has,
    blank where it has none. A name that a spreadsheet
    would compute has an apostrophe before it. Tiles without a label lie in `unlabelled`.

    Args:
        stores: of different slides.
        folder: to fill.
        request: picture format, predictions and threads.
        progress: called with (tiles done, tiles in all).

    Returns:
        What the export's record says of it.

    Raises:
        StoreError: if a store is damaged.
    """
    total, done = sum(map(len, stores)), 0
    others = _other_columns(stores, request)
    with (folder / TILES_CSV).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([without_formula(name) for name in (*_COLUMNS, *others)])
        for store in stores:
            pictures = _Pictures(store, folder, request, others)
            for places, names in each_block(len(store), pictures.write, threads=request.threads):
                table.writerows(pictures.row(tile, name) for tile, name in zip(places, names, strict=True))
                done += len(places)
                if progress is not None:
                    progress(done, total)
    return {"n_tiles": total}


def _other_columns(stores: Sequence[TileStore], request: ExportRequest) -> list[str]:
    found: dict[str, None] = {}
    for store in stores:
        found |= dict.fromkeys(tile_columns(store, request).columns)
    return [name for name in found if name not in _COLUMNS]


class _Pictures:
    """Write the pictures of one store."""

    def __init__(self, store: TileStore, folder: Path, request: ExportRequest, others: Sequence[str]) -> None:
        self._files = PictureFiles(store, request)
        self._store, self._folder = store, folder
        self._table: TileColumns = tile_columns(store, request)
        self._xy = store.base_xy().tolist()
        self._stem = slide_file_stem(store)
        names = self._table.names("label")
        folders = {name: class_folder(name) if name is not None else UNLABELLED for name in set(names)}
        self._folders = [folders[name] for name in names]
        for name in folders.values():
            (folder / name).mkdir(exist_ok=True)
        columns = [self._column(name) for name in others]
        self._others: list[tuple[str | None, ...]] = list(zip(*columns, strict=True)) or [()] * len(store)

    def _column(self, name: str) -> list[str | None]:
        """Return a column as text: numbers as short as their precision allows, None where there is nothing."""
        values = self._table.numbers.get(name)
        return self._table.names(name) if values is None else values.astype(str).tolist()

    def write(self, places: range) -> list[str]:
        """Write some tiles; return their files, relative to the folder."""
        written = []
        for tile in places:
            x, y = self._xy[tile]
            name = f"{self._folders[tile]}/{self._stem}_{x}_{y}.{self._files.ending}"
            (self._folder / name).write_bytes(self._files.of(tile))
            written.append(name)
        return written

    def row(self, tile: int, file: str) -> list[Any]:
        """Return a tile's row of the table."""
        x, y = self._xy[tile]
        store, tile_id = self._store, self._table.tile_id[tile]
        first = [file, store.slide_id, store.patient_id, tile_id, x, y, store.base_size_px, store.mpp]
        return [without_formula(cell) for cell in (*first, *self._others[tile])]

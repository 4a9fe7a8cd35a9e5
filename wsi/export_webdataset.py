"""Tiles as a WebDataset: tar files of a picture and a JSON a tile, the same bytes whenever they are made."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from simtriplet.wsi.errors import NeighbourError
from simtriplet.wsi.export_names import tile_key
from simtriplet.wsi.export_pixels import PictureFiles, each_block
from simtriplet.wsi.export_request import ExportRequest, Progress
from simtriplet.wsi.export_table import PREDICTED, tile_columns
from simtriplet.wsi.store import SPATIAL, TileStore

__all__ = ["write_webdataset"]


class _Member(NamedTuple):
    """One tile."""

    key: str
    ending: str
    picture: bytes
    about: dict[str, Any]


def write_webdataset(
    stores: Sequence[TileStore], folder: Path, request: ExportRequest, progress: Progress | None = None
) -> dict[str, Any]:
    """Write all tiles of all stores into `tiles-000000.tar` and following, in storage order.

    Each tile is `<key>.jpg` or `<key>.png` and `<key>.json` with key, slide, patient, tile_id, x, y (level-0 pixels,
    top-left), base_size_px (side in level-0 pixels), mpp, label and predicted (null where there is none) and the keys of its
    neighbours (null where the store has no such index).

    Args:
        stores: of different slides.
        folder: to fill; it is there.
        request: picture format, shard size, neighbour index, predictions and threads.
        progress: called with (tiles done, tiles in all).

    Returns:
        What the export's record says of it: the tiles in each tar file.

    Raises:
        StoreError: if a store is damaged.
        NeighbourError: if its index is damaged or of older tiles, or one was asked for that no store has.
    """
    _refuse_unknown_index(stores, request.neighbours)
    total, done = sum(map(len, stores)), 0
    shards: dict[str, int] = {}
    with ExitStack() as opened:
        for store in stores:
            for member in _members(store, request):
                if done % request.shard_tiles == 0:
                    opened.close()
                    name = f"tiles-{len(shards):06d}.tar"
                    tar = opened.enter_context(tarfile.open(folder / name, "w", format=tarfile.PAX_FORMAT))
                    shards[name] = 0
                _add(tar, f"{member.key}.{member.ending}", member.picture)
                about = json.dumps({"key": member.key, **member.about}, ensure_ascii=False)
                _add(tar, f"{member.key}.json", about.encode())
                shards[name] += 1
                done += 1
                if progress is not None and (done % 64 == 0 or done == total):
                    progress(done, total)
    return {"n_tiles": total, "shards": shards}


def _refuse_unknown_index(stores: Sequence[TileStore], name: str) -> None:
    """Stores may lack an index; one that was asked for by name and that none of them has is a mistake."""
    known = sorted({one for store in stores for one in store.neighbour_names()})
    if name != SPATIAL and name not in known:
        raise NeighbourError(
            f"neighbour index {name!r}: is in none of the stores (known: {', '.join(known) or 'none'}); "
            "run simtriplet index --name, or leave --neighbours out"
        )


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file that knows no time and no owner."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _members(store: TileStore, request: ExportRequest) -> Iterator[_Member]:
    files = PictureFiles(store, request)
    table = tile_columns(store, request)
    xy = store.base_xy().tolist()
    keys = [tile_key(store.slide_id, x, y) for x, y in xy]
    labels, predicted = table.names("label"), table.names(PREDICTED)
    graph = store.neighbours(request.neighbours) if request.neighbours in store.neighbour_names() else None

    def encode(places: range) -> list[bytes]:
        return [files.of(tile) for tile in places]

    for places, pictures in each_block(len(store), encode, threads=request.threads):
        for tile, picture in zip(places, pictures, strict=True):
            near = None
            if graph is not None:
                ids = graph.indices[graph.indptr[tile] : graph.indptr[tile + 1]].tolist()
                near = [keys[other] for other in ids]
            about = {
                "slide": store.slide_id,
                "patient": store.patient_id,
                "tile_id": table.tile_id[tile],
                "x": xy[tile][0],
                "y": xy[tile][1],
                "base_size_px": store.base_size_px,
                "mpp": store.mpp,
                "label": labels[tile],
                PREDICTED: predicted[tile],
                "neighbours": near,
            }
            yield _Member(keys[tile], files.ending, picture, about)

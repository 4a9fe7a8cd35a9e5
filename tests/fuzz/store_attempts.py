"""Read damaged copies of stores as the program does, in child processes; prints what came of them as JSON.

python store_attempts.py FOLDER_OF_STORES SCRATCH FIRST COUNT
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contained import run_contained
from store_mutants import TABLE, Mutant, damage, read_files, restore, write_files

from simtriplet.pretrain.cohort import Cohort
from simtriplet.pretrain.tiles import StreamedTiles
from simtriplet.wsi import index_reader
from simtriplet.wsi.errors import SimTripletError
from simtriplet.wsi.neighbour_index import build_neighbours
from simtriplet.wsi.neighbours import GridRule
from simtriplet.wsi.store import TileStore, open_stores

index_reader._PAUSE_S = 0.0  # nobody is replacing the index of these stores
Part = Callable[[TileStore], Any]


def stream(store: TileStore) -> Any:
    """Read tiles as a training run does that streams."""
    cohort = Cohort([store], neighbours=None)
    ids = torch.arange(len(store)).flip(0)
    with StreamedTiles(cohort.numbering, device=torch.device("cpu"), threads=1) as source:
        source.prefetch(ids)
        return source.gather(ids).numpy()


def draw(store: TileStore) -> Any:
    """Draw neighbours as a training run does."""
    found = Cohort([store], neighbours="spatial").neighbour_draw(torch.device("cpu"))
    assert found is not None
    return found.draw(torch.arange(len(store)), torch.Generator().manual_seed(0)).numpy()


PARTS: dict[str, tuple[str, Part]] = {
    "images": ("tiles", lambda store: store.images.read(np.arange(len(store)))),
    "stream": ("tiles", stream),
    "xy": (f"{TABLE}/obs", TileStore.base_xy),
    "centres": (f"{TABLE}/obsm/spatial", TileStore.centres),
    "ids": (f"{TABLE}/obs/tile_id", TileStore.tile_ids),
    "label": (f"{TABLE}/obs/label", lambda store: (labels := store.labels()) and labels.names()),
    "columns": (f"{TABLE}/obs", lambda store: [values_of(store.column(name)) for name in store.columns()]),
    "graph": (f"{TABLE}/obsp", lambda store: list(dataclasses.astuple(store.neighbours())[:3])),
    "draw": (f"{TABLE}/uns", draw),
    "build": (f"{TABLE}/obs", lambda store: list(build_neighbours(store, GridRule()).adjacency)),
    "features": (f"{TABLE}/obsm/X_net", lambda store: store.features("net")),
    "thumbnail": ("images", TileStore.thumbnail),
    "tissue": ("tissue", TileStore.tissue_rings),
    "facts": (
        "zarr.json",
        lambda store: [store.mpp, store.base_mpp, store.stride_px, store.slide_id, store.patient_id],
    ),
}


def values_of(column: Any) -> Any:
    return column.names() if hasattr(column, "names") else column


class Attempts:
    """Damaged copies of the stores of a folder.

    Args:
        folder: of the whole stores.
        scratch: for the damaged ones.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.files = {store.path.name: read_files(store.path) for store in open_stores([folder])}
        self.expected = {
            store.path.name: {name: part(store) for name, (_, part) in PARTS.items()} for store in open_stores([folder])
        }
        self.scratch = scratch
        for name, files in self.files.items():
            write_files(scratch / name, files)

    def __call__(self, number: int) -> str:
        name = sorted(self.files)[number % len(self.files)]
        store, dirty = self.scratch / name, self.scratch / f"{name}.dirty"
        if dirty.exists():  # a child died here
            write_files(store, self.files[name])
        dirty.touch()
        mutant = damage(store, self.files[name], number // len(self.files))
        try:
            return self._read(store, name, mutant, number)
        finally:
            for place in mutant.places:
                restore(store / place, self.files[name][place])
            dirty.unlink()

    def _read(self, path: Path, name: str, mutant: Mutant, number: int) -> str:
        (store,) = open_stores([path])
        touched = [
            part
            for part, (place, _) in PARTS.items()
            if any(one.startswith(place) or place.startswith(one.partition("/zarr.json")[0]) for one in mutant.places)
        ]
        others = touched or sorted(PARTS)
        chosen = {"images", others[number // 7 % len(others)], others[number // 77 % len(others)]}
        outcome = "read"
        for part in sorted(chosen):
            try:
                found = PARTS[part][1](store)
            except SimTripletError:
                outcome = "refused-later"
                continue
            may_differ = mutant.is_meant and part not in ("images", "stream")
            if not may_differ and not equal(found, self.expected[name][part]):
                return f"!silently wrong {part} after {mutant.what}"
        return outcome


def equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(equal, found, expected))
    return bool(np.array_equal(found, expected))


def main() -> None:
    """Run the attempts that the command line names."""
    folder, scratch, first, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    report = run_contained(Attempts(folder, scratch), range(first, first + count))
    sys.stdout.write(json.dumps(dataclasses.asdict(report)))


if __name__ == "__main__":
    main()

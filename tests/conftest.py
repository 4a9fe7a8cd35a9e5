"""Fixtures that several test folders share: real stores made from arrays, and the real slides where they exist."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: threads of two workers would wait for one another
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(threads, "1")

from simtriplet.wsi.codec import make_codec
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.store_writer import StoreContents, StoreWriter
from simtriplet.wsi.table import Categorical

StoreFactory = Callable[..., TileStore]

SHARED_DATA = Path(os.environ.get("SIMTRIPLET_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides; tests that ask for it are skipped where it does not exist."""
    if not (SHARED_DATA / "slides").is_dir():
        pytest.skip("the real slides are not on this machine (set SIMTRIPLET_DATA)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def n_kills() -> int:
    """Moments at which a command is killed; `make torture` asks for more."""
    return int(os.environ.get("SIMTRIPLET_FAULTS", "20"))


@pytest.fixture(scope="session")
def n_mutants() -> int:
    """Damaged files of each kind that are tried; `make torture` asks for more."""
    return int(os.environ.get("SIMTRIPLET_FUZZ", "2000"))


@pytest.fixture
def store_factory(tmp_path: Path) -> StoreFactory:
    """Make a store of rows x cols tiles without a slide: two classes that differ in texture, split by column."""

    def make(
        name: str = "slide",
        *,
        rows: int = 4,
        cols: int = 6,
        size_px: int = 32,
        patient_id: str | None = None,
        seed: int = 0,
        codec: str = "none",
        labels: bool = True,
        index: bool = True,
        keep: np.ndarray[Any, Any] | None = None,
        folder: Path | None = None,
        mpp: float = 0.5,
        base_mpp: float | None = None,
    ) -> TileStore:
        base_px = size_px * mpp / (base_mpp or mpp)  # side of a tile on the slide
        row, col = (axis.ravel() for axis in np.mgrid[0:rows, 0:cols])
        if keep is not None:
            row, col = row[keep], col[keep]
        rng = np.random.default_rng(seed)
        codes = (col >= cols // 2).astype(np.int8)
        tiles = (
            np.stack([_texture(int(code), size_px, rng) for code in codes])
            if len(codes)
            else np.zeros((0, size_px, size_px, 3), np.uint8)
        )
        contents = StoreContents(
            slide={
                "id": name,
                "patient_id": patient_id,
                "mpp": base_mpp or mpp,
                "width": round(cols * base_px),
                "height": round(rows * base_px),
            },
            tiling={"mpp": mpp, "size_px": size_px, "stride_px": size_px},
            tissue={"method": "all"},
            base_xy=np.rint(np.column_stack([col, row]) * base_px).astype(np.int64),
            row=row,
            col=col,
            tissue_id=np.zeros(len(row), np.int32),
            tissue_fraction=np.ones(len(row), np.float32),
            thumbnail=np.full((rows * 4, cols * 4, 3), 200, np.uint8),
            thumbnail_downsample=base_px / 4,
            tissue_mask=np.ones((rows * 4, cols * 4), np.uint16),
            label=Categorical(codes, ("dots", "stripes")) if labels else None,
        )
        path = (folder or tmp_path) / f"{name}.tiles.zarr"
        with StoreWriter(path, size_px=size_px, codec=make_codec(codec)) as writer:
            writer.write_tiles(tiles)
            store = writer.finish(contents)
        if index:
            index_store(store)
        return TileStore(path)

    return make


def _texture(code: int, size_px: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    tile = rng.integers(150, 220, (size_px, size_px, 3), dtype=np.uint8)
    if code:
        tile[:, ::4] = (120, 60, 140)
    else:
        for y, x in rng.integers(0, size_px - 3, (12, 2)):
            tile[y : y + 3, x : x + 3] = (60, 30, 110)
    return tile

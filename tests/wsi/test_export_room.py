"""What an export is said to need: as much as it takes on the disk, and not many times as much."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from simtriplet.evaluate.feature_array import write_features
from simtriplet.wsi.export_formats import FORMATS, export_stores
from simtriplet.wsi.export_request import ExportRequest, ImageFormat
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.neighbours import KnnRule
from simtriplet.wsi.store import TileStore

StoreFactory = Callable[..., TileStore]


def on_disk(folder: Path) -> int:
    """Bytes of all blocks that the files of a folder take."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("form", list(FORMATS))
def test_tables(store_factory: StoreFactory, tmp_path: Path, form: str) -> None:
    chosen = FORMATS.get(form)
    for package in chosen.packages:
        pytest.importorskip(package, reason=f"{package} is not installed")
    store = store_factory("slide", rows=30, cols=40, size_px=16)
    index_store(store, KnnRule(30), name="near")
    write_features(store, "x", np.random.default_rng(0).normal(size=(1200, 256)).astype(np.float32), {})
    store = TileStore(store.path)
    export_stores([store], form, tmp_path / "out")
    size = on_disk(tmp_path / "out")
    most = 16 if form == "geoparquet" else 8  # a whole lattice packs better than any slide
    assert size <= chosen.room([store], ExportRequest()) <= most * size


@pytest.mark.parametrize("form", ["images", "webdataset"])
@pytest.mark.parametrize(("codec", "image_format"), [("jpeg", "auto"), ("none", "jpeg"), ("none", "png")])
def test_pictures(
    store_factory: StoreFactory, tmp_path: Path, form: str, codec: str, image_format: ImageFormat
) -> None:
    stores = [store_factory(name, rows=6, cols=8, size_px=256, codec=codec) for name in ("a", "b")]
    request = ExportRequest(image_format=image_format)
    export_stores(stores, form, tmp_path / "out", request)
    assert on_disk(tmp_path / "out") <= FORMATS.get(form).room(stores, request) <= 2 * on_disk(tmp_path / "out")

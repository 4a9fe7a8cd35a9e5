"""Stores in the hands of other packages: squidpy on the neighbour graph, tensorstore and zarrs on the pixels."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.neighbours import GridRule
from simtriplet.wsi.store import TABLE, TileStore

StoreFactory = Callable[..., TileStore]


def _read_table(store: TileStore) -> Any:
    anndata = pytest.importorskip("anndata", reason="the extra interop is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own future versions
        return anndata.read_zarr(store.path / TABLE)


def _squidpy() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("squidpy", reason="the extra interop is not installed")


def test_squidpy_uses_the_graph_as_it_is(store_factory: StoreFactory) -> None:
    """Two classes side by side: tiles of one class have more neighbours of their own than chance gives them."""
    squidpy = _squidpy()
    table = _read_table(store_factory(rows=8, cols=12))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        squidpy.gr.nhood_enrichment(table, cluster_key="label", n_perms=100, seed=0, show_progress_bar=False)
        scores = table.uns["label_nhood_enrichment"]["zscore"]
        squidpy.gr.centrality_scores(table, cluster_key="label")
    assert (np.diag(scores) > 3).all()
    assert (scores[0, 1], scores[1, 0]) < (0, 0)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_squidpys_own_grid_is_the_same_graph(store_factory: StoreFactory, connectivity: int) -> None:
    squidpy = _squidpy()
    keep = np.random.default_rng(0).random(20 * 22) > 0.1
    store = store_factory(rows=20, cols=22, size_px=8, keep=keep, index=False)
    index_store(store, GridRule(connectivity))
    table = _read_table(store)
    ours = table.obsp["spatial_connectivities"].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        squidpy.gr.spatial_neighbors(table, coord_type="grid", n_neighs=connectivity, n_rings=1, delaunay=False)
    theirs = table.obsp["spatial_connectivities"]
    assert (ours != theirs).nnz == 0


def test_ome_zarr_opens_the_thumbnail_and_its_label(store_factory: StoreFactory) -> None:
    """By the package of the standard's authors, which refuses axes in another order than the standard's."""
    store = store_factory(rows=3, cols=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = pytest.importorskip("ome_zarr.axes", reason="the extra interop is not installed")
        from ome_zarr.format import FormatV05
        from ome_zarr.io import parse_url
        from ome_zarr.reader import Reader

        picture, _, label = Reader(parse_url(store.path / "images" / "thumbnail"))()
    for node in (picture, label):
        axes.Axes(node.metadata["axes"], fmt=FormatV05())
    assert np.array_equal(np.asarray(picture.data[0]).transpose(1, 2, 0), store.thumbnail())
    assert np.asarray(label.data[0]).shape == store.thumbnail().shape[:2]


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_tensorstore_reads_the_shards(store_factory: StoreFactory, codec: str) -> None:
    tensorstore = pytest.importorskip("tensorstore", reason="the extra interop is not installed")
    store = store_factory(rows=9, cols=10, codec=codec)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store.path / "tiles" / "images")}}
    theirs = tensorstore.open(spec, read=True).result()
    assert theirs.shape == (90, 32, 32, 3)
    expected = store.images.read(np.arange(90))
    assert np.array_equal(theirs.read().result(), expected)
    assert np.array_equal(theirs[71].read().result(), expected[71])


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_zarrs_reads_the_shards(store_factory: StoreFactory, codec: str, tmp_path: Path) -> None:
    """The Rust implementation, as the codec pipeline that zarr-python lends its name to."""
    pytest.importorskip("zarrs", reason="the extra interop is not installed")
    import zarr

    store = store_factory(rows=9, cols=10, codec=codec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where zarrs falls back to zarr-python it warns, which the next line forbids
        warnings.filterwarnings("error", message=".*(fall|unsupported).*")
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            theirs = zarr.open_array(store.path / "tiles" / "images", mode="r")[...]
    assert np.array_equal(theirs, store.images.read(np.arange(90)))

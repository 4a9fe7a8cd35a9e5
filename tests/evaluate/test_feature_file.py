"""Copies of features beside the store, for programs that read no Zarr."""

import importlib.util
import json

import numpy as np
import pytest

from simtriplet.evaluate.feature_array import write_features
from simtriplet.evaluate.feature_file import check_forms, write_feature_file
from simtriplet.evaluate.labels import tile_ids
from simtriplet.wsi.errors import MissingDependencyError, SettingsError, StoreError

HAS_ARROW = importlib.util.find_spec("pyarrow") is not None


@pytest.fixture
def store(store_factory):
    made = store_factory("a.slide", index=False)
    features = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    write_features(made, "f", features, {"encoder_hash": "h"})
    return made


def test_npy_is_the_array_beside_the_store(store):
    file = write_feature_file(store, "f", "npy")
    assert file == store.path.parent / "a.slide.f.npy"
    np.testing.assert_array_equal(np.load(file, allow_pickle=False), store.features("f"))
    assert sorted(path.name for path in store.path.parent.iterdir()) == ["a.slide.f.npy", "a.slide.tiles.zarr"]


def test_parquet_has_a_row_per_tile_and_says_what_made_it(store):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(write_feature_file(store, "f", "parquet"))
    assert table.column_names == ["slide_id", "tile_id", "x", "y", "features"]
    np.testing.assert_array_equal(np.stack(table["features"].to_numpy()), store.features("f"))
    assert table["tile_id"].to_pylist() == tile_ids(store).tolist()
    assert set(table["slide_id"].to_pylist()) == {"a.slide"}
    np.testing.assert_array_equal(np.column_stack([table["x"], table["y"]]), store.base_xy())
    assert json.loads(table.schema.metadata[b"simtriplet"])["encoder_hash"] == "h"


@pytest.mark.skipif(HAS_ARROW, reason="pyarrow is installed")
def test_without_pyarrow_the_extra_is_named_before_anything_is_done(store):
    for ask in (lambda: check_forms(("npy", "parquet")), lambda: write_feature_file(store, "f", "parquet")):
        with pytest.raises(MissingDependencyError, match=r"pip install 'simtriplet\[parquet\]'"):
            ask()
    check_forms(("npy",))


def test_features_that_are_not_there_are_not_copied(store):
    with pytest.raises(StoreError, match="has no features 'g'"):
        write_feature_file(store, "g", "npy")
    with pytest.raises((SettingsError, StoreError)):
        write_feature_file(store, "../f", "npy")

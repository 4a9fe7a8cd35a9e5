"""Exports opened again by the packages they are made for: the same pixels, places, labels, features and neighbours."""

import csv
import datetime
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import shapely
from PIL import Image

from simtriplet.evaluate.feature_array import write_features
from simtriplet.evaluate.prediction import SlidePrediction
from simtriplet.evaluate.prediction_files import write_prediction
from simtriplet.wsi.annotation import read_geojson
from simtriplet.wsi.errors import (
    AnnotationError,
    MissingDependencyError,
    NeighbourError,
    StoreError,
    StoreExistsError,
)
from simtriplet.wsi.export_formats import FORMATS, export_stores
from simtriplet.wsi.export_names import class_folder, slide_file_stem, tile_key
from simtriplet.wsi.export_request import ExportRequest
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.neighbours import KnnRule
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.table import Categorical, write_categorical
from simtriplet.wsi.zarr_files import write_array

StoreFactory = Callable[..., TileStore]
ROWS, COLS = 9, 10


@contextmanager
def _interop(*names: str) -> Iterator[list[Any]]:
    """Import packages of the extra, whose warnings are of their own future versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield [pytest.importorskip(name, reason="the extra interop is not installed") for name in names]


@pytest.fixture
def store(store_factory: StoreFactory) -> TileStore:
    """Ninety tiles with labels (some without), two indices and features."""
    made = store_factory("slide.one", rows=ROWS, cols=COLS, patient_id="p1", mpp=0.5)
    index_store(made, KnnRule(3), name="near")
    features = np.random.default_rng(3).normal(size=(len(made), 5)).astype(np.float32)
    write_features(made, "f", features, {"encoder": "of a test"})
    return TileStore(made.path)


def _predictions(store: TileStore, folder: Path) -> np.ndarray[Any, Any]:
    """Write what `predict` writes; return the (n, 2) probabilities."""
    folder.mkdir()
    shares = np.round(np.random.default_rng(5).random((len(store), 1)), 6)
    shares = np.hstack([shares, 1 - shares])
    rows = ["slide_id,tile_id,x,y,predicted,probability_a,probability_b"]
    for tile_id, (x, y), (a, b) in zip(_tile_ids(store), store.base_xy().tolist(), shares.tolist(), strict=True):
        rows.append(f"{store.slide_id},{tile_id},{x},{y},{'a' if a >= b else 'b'},{a:.6f},{b:.6f}")
    (folder / f"{store.slide_id}.csv").write_text("\n".join(rows) + "\n")
    return shares


def _tile_ids(store: TileStore) -> list[str]:
    return [f"r{r}_c{c}" for r, c in zip(store.numbers("row"), store.numbers("col"), strict=True)]


def _labels(store: TileStore) -> list[str | None]:
    labels = store.labels()
    assert labels is not None
    return labels.names().tolist()


def _same_table(table: Any, store: TileStore) -> None:
    assert list(table.obs_names) == _tile_ids(store)
    assert table.obs["label"].tolist() == _labels(store)
    assert np.array_equal(table.obs[["x", "y"]].to_numpy(), store.base_xy())
    assert set(table.obs["patient_id"]) == {"p1"}
    assert np.array_equal(table.obsm["spatial"], store.centres())
    assert np.array_equal(table.obsm["X_f"], store.features("f"))
    for name in ("spatial", "near"):
        graph = store.neighbours(name)
        for key, values in (("connectivities", np.ones(len(graph.indices))), ("distances", graph.distances_um)):
            matrix = table.obsp[f"{name}_{key}"].tocsr()
            matrix.sort_indices()
            assert np.array_equal(matrix.indptr, graph.indptr)
            assert np.array_equal(matrix.indices, graph.indices)
            assert np.array_equal(matrix.data, values)
        assert table.uns[f"{name}_neighbors"]["connectivities_key"] == f"{name}_connectivities"
    about = json.loads(table.uns["simtriplet"])
    assert about["store"]["tiles_id"] == store.attributes["tiles_id"]
    assert about["features"]["f"]["encoder"] == "of a test"


def test_anndata_reads_the_table_with_features_and_graphs(store: TileStore, tmp_path: Path) -> None:
    with _interop("anndata") as [anndata]:
        (exported,) = export_stores([store], "anndata", tmp_path / "out")
        table = anndata.read_h5ad(exported.path)
    assert exported.path.name == "slide.one.h5ad"
    _same_table(table, store)
    picture = table.uns["spatial"]["slide.one"]
    assert np.array_equal(picture["images"]["hires"], store.thumbnail())
    # the tile's centre on the picture, as scanpy and squidpy draw it
    assert picture["scalefactors"]["tissue_hires_scalef"] == 1 / 8
    assert picture["scalefactors"]["spot_diameter_fullres"] == 32


def test_the_stores_own_table_is_anndata_already(store: TileStore) -> None:
    with _interop("anndata") as [anndata]:
        table = anndata.read_zarr(store.path / "tables" / "tiles")
    assert table.obs["label"].tolist() == _labels(store)
    assert np.array_equal(table.obsm["X_f"], store.features("f"))


def test_spatialdata_places_tiles_tissue_and_thumbnail_on_one_another(tmp_path: Path, tissue_store: TileStore) -> None:
    store = tissue_store
    with _interop("spatialdata", "spatialdata.transformations") as [spatialdata, transformations]:
        (exported,) = export_stores([store], "spatialdata", tmp_path / "out")
        slide = spatialdata.SpatialData.read(exported.path)
        _same_table(slide.tables["table"], store)
        picture = slide.images["thumbnail"]
        assert np.array_equal(np.asarray(picture).transpose(1, 2, 0), store.thumbnail())
        squares = slide.shapes["tiles"]
        assert np.array_equal(squares.geometry.bounds.to_numpy()[:, :2], store.base_xy())
        assert (squares.geometry.area == store.base_size_px**2).all()
        (region,) = slide.shapes["tissue"].geometry
        assert region.equals(shapely.box(0, 0, 300, 200).difference(shapely.box(40, 40, 60, 60)))
        scales = {
            (element, system): transformations.get_transformation(slide[element], system)
            .to_affine_matrix(("x", "y"), ("x", "y"))
            .diagonal()[0]
            for element in ("thumbnail", "tiles", "tissue")
            for system in ("global", "micrometres")
        }
        joined = spatialdata.join_spatialelement_table(sdata=slide, spatial_element_names="tiles", table_name="table")
    assert scales == {
        ("thumbnail", "global"): 8,
        ("thumbnail", "micrometres"): 4,
        ("tiles", "global"): 1,
        ("tiles", "micrometres"): 0.5,
        ("tissue", "global"): 1,
        ("tissue", "micrometres"): 0.5,
    }
    assert len(joined[1]) == len(store)


@pytest.fixture
def tissue_store(store: TileStore) -> TileStore:
    """The same store with one tissue region that has a hole."""
    from simtriplet.wsi.zarr_files import write_array

    region = shapely.box(0, 0, 300, 200).difference(shapely.box(40, 40, 60, 60))
    rings = [np.asarray(ring.coords) for ring in (region.exterior, *region.interiors)]
    tissue = {
        "xy": np.concatenate(rings),
        "ring_offsets": np.cumsum([0, *map(len, rings)]),
        "polygon_offsets": np.array([0, 2]),
        "region_offsets": np.array([0, 1]),
    }
    for name, values in tissue.items():
        folder = store.path / "tissue" / name
        for file in sorted(folder.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        folder.rmdir()
        write_array(folder, values)
    return TileStore(store.path)


def test_geojson_has_tiles_as_detections_and_tissue_as_annotations(tmp_path: Path, tissue_store: TileStore) -> None:
    store = tissue_store
    shares = _predictions(store, tmp_path / "maps")
    (exported,) = export_stores([store], "geojson", tmp_path / "out", ExportRequest(predictions=tmp_path / "maps"))
    features = json.loads(exported.path.read_text())["features"]
    tissue, tiles = features[0], features[1:]
    assert tissue["properties"]["objectType"] == "annotation"
    assert tissue["properties"]["classification"]["name"] == "Tissue"
    assert shapely.geometry.shape(tissue["geometry"]).area == 300 * 200 - 20 * 20
    assert len(tiles) == len(store)
    for tile, (x, y), label, share, name in zip(
        tiles, store.base_xy().tolist(), _labels(store), shares.tolist(), _tile_ids(store), strict=True
    ):
        about = tile["properties"]
        assert (about["objectType"], about["name"], about["label"]) == ("detection", name, label)
        assert about["classification"]["name"] == ("a" if share[0] >= share[1] else "b")
        assert about["measurements"]["probability_a"] == share[0]
        assert (about["measurements"]["x"], about["measurements"]["tissue_fraction"]) == (x, 1.0)
        assert shapely.geometry.shape(tile["geometry"]).equals(shapely.box(x, y, x + 32, y + 32))
    # QuPath refuses a file with a class that has no colour, and reads an area of one part as a polygon
    colours = {one["properties"]["classification"]["name"]: one["properties"]["classification"] for one in features}
    assert [colours[name]["color"] for name in ("Tissue", "a", "b")] == [[128, 128, 128], [0, 114, 178], [230, 159, 0]]
    assert all(
        one["properties"]["classification"] == colours[one["properties"]["classification"]["name"]] for one in features
    )
    assert {one["geometry"]["type"] for one in features} == {"Polygon"}
    # and back as annotations of this program, here of the labels
    (labelled,) = export_stores([store], "geojson", tmp_path / "labels")
    assert [region.name for region in read_geojson(labelled.path)] == ["Tissue", *_labels(store)]
    with _interop("geopandas", "pyogrio") as [geopandas, _]:
        frame = geopandas.read_file(exported.path)
    assert len(frame) == len(store) + 1


def test_geoparquet_is_read_by_geopandas(store: TileStore, tmp_path: Path) -> None:
    shares = _predictions(store, tmp_path / "maps")
    with _interop("geopandas", "pyarrow.parquet") as [geopandas, parquet]:
        (exported,) = export_stores(
            [store], "geoparquet", tmp_path / "out", ExportRequest(predictions=tmp_path / "maps")
        )
        frame = geopandas.read_parquet(exported.path)
        metadata = json.loads(parquet.read_schema(exported.path).metadata[b"simtriplet"])
    assert frame.crs is None
    assert np.array_equal(frame.geometry.bounds.to_numpy()[:, :2], store.base_xy())
    assert np.array_equal(frame.total_bounds, [0, 0, COLS * 32, ROWS * 32])
    assert frame["label"].tolist() == _labels(store)
    assert frame["tile_id"].tolist() == _tile_ids(store)
    assert np.array_equal(frame[["probability_a", "probability_b"]].to_numpy(), np.round(shares, 6))
    assert np.array_equal(frame["row"], store.numbers("row"))
    assert (metadata["units"]["geometry"], metadata["base_mpp"]) == ("level-0 pixels", 0.5)


def _sizes(exported: Path, form: str) -> list[tuple[float, ...]]:
    """Return left, top, right, bottom of each tile of an export, level-0 pixels, as its own package has them."""
    if form == "geojson":
        return [region.area.bounds for region in read_geojson(exported)]
    if form == "images":
        return [
            (x, y, x + side, y + side)
            for x, y, side in ([float(row[name]) for name in ("x", "y", "base_size_px")] for row in _rows(exported))
        ]
    if form == "webdataset":
        with tarfile.open(exported / "tiles-000000.tar") as tar:
            about = [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith(".json")]  # type: ignore[arg-type]
        return [(one["x"], one["y"], one["x"] + one["base_size_px"], one["y"] + one["base_size_px"]) for one in about]
    if form == "geoparquet":
        with _interop("geopandas") as [geopandas]:
            return [tuple(box) for box in geopandas.read_parquet(exported).geometry.bounds.to_numpy()]
    if form == "spatialdata":
        with _interop("spatialdata") as [spatialdata]:
            slide = spatialdata.SpatialData.read(exported)
            return [tuple(box) for box in slide.shapes["tiles"].geometry.bounds.to_numpy()]
    with _interop("anndata") as [anndata]:
        table = anndata.read_h5ad(exported)
    half = table.uns["spatial"]["s"]["scalefactors"]["spot_diameter_fullres"] / 2
    return [(x - half, y - half, x + half, y + half) for x, y in table.obsm["spatial"].tolist()]


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_tiles_are_as_large_as_they_are_on_the_slide(form: str, store_factory: StoreFactory, tmp_path: Path) -> None:
    """Tiles of 32 px at 1 um from a slide of 0.25 um: squares of 128 level-0 pixels."""
    store = store_factory("s", rows=2, cols=5, mpp=1.0, base_mpp=0.25)
    (exported,) = export_stores([store], form, tmp_path / "out")
    cells = [
        (int(col) * 128, int(row) * 128) for col, row in zip(store.numbers("col"), store.numbers("row"), strict=True)
    ]
    found = _sizes(exported.path, form)
    assert found == [(x, y, x + 128, y + 128) for x, y in cells]


def test_names_of_classes_need_not_be_names_of_columns(store_factory: StoreFactory, tmp_path: Path) -> None:
    """QuPath's own classes have blanks and colons; SpatialData takes neither, HDF5 no slash. Both have one table."""
    store = store_factory("s", rows=2, cols=3)
    classes = ("Immune cells", "Immune/cells", "Tumor: Positive", "tumor_ positive", "+")
    shares = np.random.default_rng(0).dirichlet(np.ones(5), size=6)
    write_prediction(tmp_path / "maps", store, SlidePrediction("s", classes, shares))
    request = ExportRequest(predictions=tmp_path / "maps")
    with _interop("spatialdata") as [spatialdata]:
        (exported,) = export_stores([store], "spatialdata", tmp_path / "out", request)
        table = spatialdata.SpatialData.read(exported.path).tables["table"]
    told = json.loads(table.uns["simtriplet"])["columns"]
    assert sorted(told.values()) == sorted(f"probability_{name}" for name in classes)
    for here, name in told.items():
        expected = shares[:, classes.index(name.removeprefix("probability_"))]
        np.testing.assert_allclose(table.obs[here], expected, atol=1e-6)
    assert table.obs["predicted"].tolist() == [classes[code] for code in shares.argmax(axis=1)]


@pytest.mark.parametrize("form", ["anndata", "geojson", "geoparquet", "images"])
def test_columns_of_ones_own_come_along(form: str, store_factory: StoreFactory, tmp_path: Path) -> None:
    """Text and truth values, which anndata lets users put into the table."""
    store = store_factory("s", rows=1, cols=3)
    obs = store.path / "tables" / "tiles" / "obs"
    write_array(obs / "stain", np.array(["HE", "HE", "PAS"], dtype=object))
    write_array(obs / "checked", np.array([True, False, True]))
    meta = json.loads((obs / "zarr.json").read_text())
    meta["attributes"]["column-order"] += ["stain", "checked"]
    del meta["attributes"]["simtriplet_checksum"]
    (obs / "zarr.json").write_text(json.dumps(meta))
    (exported,) = export_stores([TileStore(store.path)], form, tmp_path / "out")
    if form == "geojson":
        tiles = json.loads(exported.path.read_text())["features"]
        measured = [tile["properties"]["measurements"] for tile in tiles]
        assert [one["checked"] for one in measured] == [1, 0, 1]
        assert all(type(value) in (int, float) for one in measured for value in one.values())
        return
    if form == "images":
        rows = _rows(exported.path)
        stains, checked = [row["stain"] for row in rows], [row["checked"] == "True" for row in rows]
    else:
        with _interop("anndata", "geopandas") as [anndata, geopandas]:
            is_table = form == "anndata"
            table = anndata.read_h5ad(exported.path).obs if is_table else geopandas.read_parquet(exported.path)
        stains, checked = table["stain"].tolist(), table["checked"].tolist()
    assert (stains, checked) == (["HE", "HE", "PAS"], [True, False, True])


def test_a_folder_of_geoparquet_reads_as_one_table(store_factory: StoreFactory, tmp_path: Path) -> None:
    """The first file is of a slide without annotations; its columns are those that a reader goes by."""
    stores = [store_factory("a", rows=1, cols=2, labels=False), store_factory("b", rows=1, cols=4)]
    export_stores(stores, "geoparquet", tmp_path / "out")
    with _interop("geopandas") as [geopandas]:
        frame = geopandas.read_parquet(tmp_path / "out")
    assert frame["slide_id"].tolist() == ["a"] * 2 + ["b"] * 4
    assert frame["label"].tolist() == [None] * 2 + _labels(stores[1])


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_slide_without_tiles_is_exported_too(form: str, store_factory: StoreFactory, tmp_path: Path) -> None:
    store = store_factory("empty", rows=2, cols=2, keep=np.zeros(4, bool), index=False)
    (exported,) = export_stores([store], form, tmp_path / "out")
    assert (exported.status, exported.n_tiles) == ("ok", 0)
    if form == "spatialdata":
        with _interop("spatialdata") as [spatialdata]:
            slide = spatialdata.SpatialData.read(exported.path)
            assert len(slide.tables["table"]) == 0
    elif form == "geoparquet":
        with _interop("geopandas") as [geopandas]:
            assert len(geopandas.read_parquet(exported.path)) == 0


def test_an_index_that_no_store_has_is_told(store_factory: StoreFactory, tmp_path: Path) -> None:
    store = store_factory("s", rows=1, cols=2)
    with pytest.raises(NeighbourError, match=r"'spatail': is in none of the stores \(known: spatial\)"):
        export_stores([store], "webdataset", tmp_path / "out", ExportRequest(neighbours="spatail"))
    assert not (tmp_path / "out").exists()


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "tiles.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_images_are_an_image_folder_with_the_very_pixels(
    store_factory: StoreFactory, tmp_path: Path, codec: str
) -> None:
    from torchvision.datasets import ImageFolder

    first = store_factory("one", rows=ROWS, cols=COLS, codec=codec, patient_id="p1")
    second = store_factory("two", rows=2, cols=4, codec=codec, labels=False, seed=7)
    steps: list[tuple[int, int]] = []
    (exported,) = export_stores(
        [first, second],
        "images",
        tmp_path / "out",
        ExportRequest(threads=2),
        progress=lambda done, of: steps.append((done, of)),
    )
    assert steps == [(64, 98), (90, 98), (98, 98)]
    assert exported.path == tmp_path / "out"
    rows = _rows(exported.path)
    expected = [*first.images.read(np.arange(90)), *second.images.read(np.arange(8))]
    for row, pixels in zip(rows, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(exported.path / row["file"])), pixels)
        folder, name = row["file"].split("/")
        assert folder == (row["label"] or "unlabelled")
        assert name == f"{row['slide_id']}_{row['x']}_{row['y']}.png"
    assert [[int(row["x"]), int(row["y"])] for row in rows] == [*first.base_xy().tolist(), *second.base_xy().tolist()]
    assert [row["label"] or None for row in rows] == _labels(first) + [None] * 8
    assert {row["patient_id"] for row in rows} == {"p1", "two"}
    found = ImageFolder(exported.path)
    assert found.classes == ["dots", "stripes", "unlabelled"]
    assert np.bincount(found.targets).tolist() == [45, 45, 8]
    record = json.loads((exported.path / "export.json").read_text())
    assert (record["format"], record["n_tiles"], record["slides"]["two"]["n_tiles"]) == ("images", 98, 8)


def test_stored_jpeg_is_copied_byte_for_byte(store_factory: StoreFactory, tmp_path: Path) -> None:
    store = store_factory("one", rows=3, cols=4, codec="jpeg")
    export_stores([store], "images", tmp_path / "out")
    for tile, row in enumerate(_rows(tmp_path / "out")):
        assert row["file"].endswith(".jpg")
        assert (tmp_path / "out" / row["file"]).read_bytes() == store.images.read_encoded(tile)
    export_stores([store], "images", tmp_path / "png", ExportRequest(image_format="png"))
    pixels = store.images.read(np.arange(12))
    for tile, row in enumerate(_rows(tmp_path / "png")):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "png" / row["file"])), pixels[tile])


def test_jpeg_of_raw_tiles_has_the_quality_asked_for(store_factory: StoreFactory, tmp_path: Path) -> None:
    store = store_factory("one", rows=2, cols=2)
    for quality in (40, 95):
        request = ExportRequest(image_format="jpeg", jpeg_quality=quality)
        export_stores([store], "images", tmp_path / str(quality), request)
        for tile, row in enumerate(_rows(tmp_path / str(quality))):
            expected = imagecodecs.jpeg8_encode(store.images.read([tile])[0], level=quality)
            assert (tmp_path / str(quality) / row["file"]).read_bytes() == expected


@pytest.mark.parametrize("codec", ["none", "jpeg"])
def test_webdataset_streams_pixels_labels_and_neighbours(
    store_factory: StoreFactory, tmp_path: Path, codec: str
) -> None:
    store = store_factory("slide.one", rows=ROWS, cols=COLS, codec=codec)
    plain = store_factory("two", rows=1, cols=3, codec=codec, labels=False, index=False)
    (exported,) = export_stores(
        [store, plain], "webdataset", tmp_path / "out", ExportRequest(shard_tiles=40, threads=2)
    )
    shards = sorted(exported.path.glob("*.tar"))
    assert [path.name for path in shards] == [f"tiles-{number:06d}.tar" for number in range(3)]
    assert json.loads((exported.path / "export.json").read_text())["shards"] == {
        "tiles-000000.tar": 40,
        "tiles-000001.tar": 40,
        "tiles-000002.tar": 13,
    }
    with _interop("webdataset") as [webdataset]:
        urls = [str(path) for path in shards]
        samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
        raw = list(webdataset.WebDataset(urls, shardshuffle=False))
    ending = "jpg" if codec == "jpeg" else "png"
    graph, labels = store.neighbours(), _labels(store)
    keys = [sample["__key__"] for sample in samples]
    pixels = store.images.read(np.arange(len(store)))
    for tile, (sample, about) in enumerate(zip(samples[: len(store)], map(_about, raw), strict=False)):
        if codec == "none":
            assert np.array_equal(sample[ending], pixels[tile])
        else:
            assert raw[tile][ending] == store.images.read_encoded(tile)
        assert about["key"] == keys[tile]
        assert [about["x"], about["y"]] == store.base_xy()[tile].tolist()
        assert (about["slide"], about["label"], about["predicted"]) == ("slide.one", labels[tile], None)
        near = graph.indices[graph.indptr[tile] : graph.indptr[tile + 1]].tolist()
        assert about["neighbours"] == [keys[other] for other in near]
    last = _about(raw[-1])
    assert (last["slide"], last["label"], last["neighbours"]) == ("two", None, None)
    assert len(samples) == 93
    export_stores([store, plain], "webdataset", tmp_path / "again", ExportRequest(shard_tiles=40, threads=1))
    for path in (*shards, exported.path / "export.json"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def _about(sample: dict[str, Any]) -> dict[str, Any]:
    loaded = json.loads(sample["json"])
    assert isinstance(loaded, dict)
    return loaded


def test_tar_members_know_no_time_and_no_owner(store_factory: StoreFactory, tmp_path: Path) -> None:
    export_stores([store_factory(rows=1, cols=2)], "webdataset", tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "tiles-000000.tar") as tar:
        entries = tar.getmembers()
        first = tar.extractfile(entries[0])
        assert first is not None
        assert Image.open(io.BytesIO(first.read())).size == (32, 32)
    assert [entry.name for entry in entries] == [
        "slide_0_0.png",
        "slide_0_0.json",
        "slide_32_0.png",
        "slide_32_0.json",
    ]
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname) for entry in entries} == {(0, 0, 0, "", "")}


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_what_is_there_is_left_skipped_or_replaced(form: str, store_factory: StoreFactory, tmp_path: Path) -> None:
    for package in FORMATS.get(form).packages:
        with _interop(package):
            pass
    store = store_factory(rows=2, cols=3)
    out = tmp_path / "out"
    (exported,) = export_stores([store], form, out)
    before = exported.path.stat().st_ino
    with pytest.raises(StoreExistsError, match="exists already; pass --existing skip or --existing replace"):
        export_stores([store], form, out)
    (skipped,) = export_stores([store], form, out, existing="skip")
    assert (skipped.status, exported.path.stat().st_ino) == ("skipped", before)
    (replaced,) = export_stores([store], form, out, existing="replace")
    assert (replaced.status, replaced.n_tiles) == ("ok", 6)
    assert exported.path.stat().st_ino != before
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("form", ["images", "webdataset"])
def test_skip_keeps_only_what_was_asked_for(form: str, store_factory: StoreFactory, tmp_path: Path) -> None:
    one, two = store_factory("one", rows=1, cols=2), store_factory("two", rows=1, cols=2)
    export_stores([one], form, tmp_path / "out")
    message = "was made from other tiles or with other options; pass --existing replace"
    with pytest.raises(StoreExistsError, match=message):
        export_stores([one, two], form, tmp_path / "out", existing="skip")
    with pytest.raises(StoreExistsError, match=message):
        export_stores([one], form, tmp_path / "out", ExportRequest(image_format="jpeg"), existing="skip")
    assert (
        export_stores([one], form, tmp_path / "out", ExportRequest(threads=2), existing="skip")[0].status == "skipped"
    )


def test_no_name_in_the_table_is_a_formula(store_factory: StoreFactory, tmp_path: Path) -> None:
    store = store_factory("one", rows=1, cols=2)
    folder = store.path / "tables" / "tiles" / "obs" / "label"
    for file in sorted(folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    write_categorical(folder, Categorical(np.array([0, 1]), ("=1+1", "../up")))
    export_stores([TileStore(store.path)], "images", tmp_path / "out")
    rows = _rows(tmp_path / "out")
    assert [row["label"] for row in rows] == ["'=1+1", "../up"]
    assert [row["file"] for row in rows] == ["%3D1+1/one_0_0.png", "%2E.%2Fup/one_32_0.png"]
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2


@pytest.mark.parametrize("form", ["images", "spatialdata"])
def test_a_folder_of_something_else_is_never_replaced(form: str, store_factory: StoreFactory, tmp_path: Path) -> None:
    with _interop("spatialdata"):
        pass
    store = store_factory(rows=1, cols=2)
    target = tmp_path / "out" if form == "images" else tmp_path / "out" / "slide.spatialdata.zarr"
    target.mkdir(parents=True)
    (target / "thesis.txt").write_text("years")
    with pytest.raises(StoreError, match="no export of this kind; choose another --out"):
        export_stores([store], form, tmp_path / "out", existing="replace")
    assert (target / "thesis.txt").read_text() == "years"


def _foreign_geojson(path: Path) -> None:
    path.write_text('{"type": "FeatureCollection", "features": []}\n')


def _foreign_h5ad(path: Path) -> None:
    with _interop("anndata") as (anndata,):
        anndata.AnnData(np.zeros((2, 1), np.float32)).write_h5ad(path)


def _foreign_parquet(path: Path) -> None:
    with _interop("pyarrow", "pyarrow.parquet") as (arrow, parquet):
        parquet.write_table(arrow.table({"x": [1]}), path)


def _foreign_spatialdata(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {"spatialdata_attrs": {}}}')


def _text(path: Path) -> None:
    path.write_text("years of work")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("existing", ["replace", "skip"])
@pytest.mark.parametrize(
    ("form", "make"),
    [
        ("geojson", _foreign_geojson),
        ("anndata", _foreign_h5ad),
        ("geoparquet", _foreign_parquet),
        ("spatialdata", _foreign_spatialdata),
        *((form, _text) for form in ("geojson", "anndata", "geoparquet", "spatialdata", "images")),
        ("geojson", _pipe),
    ],
)
def test_what_another_program_wrote_is_never_replaced(
    form: str, make: Callable[[Path], None], existing: Any, store_factory: StoreFactory, tmp_path: Path
) -> None:
    """Annotations are often called like this, beside the stores."""
    for package in FORMATS.get(form).packages:
        with _interop(package):
            pass
    target = tmp_path / "images" if form == "images" else tmp_path / f"slide{FORMATS.get(form).suffix}"
    make(target)
    before = target.lstat().st_ino, target.lstat().st_mtime_ns
    store = store_factory(rows=1, cols=2)
    with pytest.raises(StoreError, match="no export of this kind; choose another --out"):
        export_stores([store], form, target if form == "images" else tmp_path, existing=existing)
    assert (target.lstat().st_ino, target.lstat().st_mtime_ns) == before


@pytest.mark.parametrize("form", ["images", "webdataset"])
def test_a_damaged_tile_is_told_and_leaves_nothing(form: str, store_factory: StoreFactory, tmp_path: Path) -> None:
    store = store_factory(rows=2, cols=3, codec="jpeg")
    shard = store.path / "tiles" / "images" / "c.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[len(store.images.read_encoded(0)) + 200] ^= 0xFF  # within the second tile
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"tile 1 is damaged \(its bytes do not match their checksum"):
        export_stores([TileStore(store.path)], form, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("out*"))


def test_what_is_older_than_the_tiles_of_its_store_is_not_taken_for_theirs(
    store_factory: StoreFactory, tmp_path: Path
) -> None:
    store, out = store_factory("a", rows=2, cols=2), tmp_path / "out"
    export_stores([store], "geojson", out)
    file = out / "a.geojson"
    assert [one.status for one in export_stores([store], "geojson", out, existing="skip")] == ["skipped"]
    long_ago = datetime.datetime.fromisoformat(store.attributes["provenance"]["created"]).timestamp() - 60
    os.utime(file, (long_ago, long_ago))
    with pytest.raises(
        StoreExistsError, match=r"a\.geojson': is older than the tiles of its store; pass --existing replace"
    ):
        export_stores([store], "geojson", out, existing="skip")
    assert [one.status for one in export_stores([store], "geojson", out, existing="replace")] == ["ok"]
    assert file.stat().st_mtime > long_ago + 1


@pytest.mark.parametrize("form", ["spatialdata", "anndata", "geoparquet"])
def test_a_missing_package_is_named_with_its_extra(
    form: str, store_factory: StoreFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package,) = FORMATS.get(form).packages
    monkeypatch.setitem(sys.modules, package, None)
    extra = "parquet" if form == "geoparquet" else "interop"
    message = (
        rf"export to '{form}': needs the package {package}, which is not installed; pip install 'simtriplet\[{extra}\]'"
    )
    with pytest.raises(MissingDependencyError, match=message):
        export_stores([store_factory(rows=1, cols=2)], form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_formats_are_listed_without_their_packages() -> None:
    """`simtriplet --help` and the exports that need none must not wait for pandas."""
    code = "import sys, simtriplet.wsi.export_formats; print([n for n in {names!r} if n in sys.modules])"
    names = ("pandas", "anndata", "spatialdata", "geopandas", "pyarrow", "webdataset", "h5py", "dask", "torch")
    ended = subprocess.run([sys.executable, "-c", code.format(names=names)], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_predictions_of_other_tiles_are_refused(store_factory: StoreFactory, tmp_path: Path) -> None:
    store, other = store_factory(rows=2, cols=3), store_factory("more", rows=2, cols=4)
    _predictions(other, tmp_path / "maps")
    request = ExportRequest(predictions=tmp_path / "maps")
    with pytest.raises(AnnotationError, match=r"cannot be read \(No such file.*run simtriplet predict first"):
        export_stores([store], "geojson", tmp_path / "out", request)
    (tmp_path / "maps" / "more.csv").rename(tmp_path / "maps" / "slide.csv")
    with pytest.raises(AnnotationError, match="hold 8 tiles, the store 6"):
        export_stores([store], "geojson", tmp_path / "out", request)
    assert not list((tmp_path / "out").iterdir())


def test_a_store_whose_table_is_gone_is_told(store_factory: StoreFactory, tmp_path: Path) -> None:
    store = store_factory(rows=2, cols=3)
    shutil.rmtree(store.path / "tables" / "tiles" / "obs")
    with pytest.raises(StoreError, match=r"the table is damaged .*; tile the slide again"):
        export_stores([store], "geojson", tmp_path / "out")


def test_names_of_files_differ_wherever_classes_and_slides_do(store_factory: StoreFactory) -> None:
    names = ["tumour", "tumour/stroma", "tumour%2Fstroma", "unlabelled", "..", ".", "", "Krebs äöü", "a:b", "a_b"]
    folders = [class_folder(name) for name in names]
    assert len(set(folders)) == len(names)
    assert folders[:2] == ["tumour", "tumour%2Fstroma"]
    assert folders[7] == "Krebs äöü"
    for folder in folders:
        assert "/" not in folder
        assert folder not in ("", ".", "..", "unlabelled")
    assert tile_key("a.b", 1, 2) == "a%2Eb_1_2"
    store = store_factory(rows=1, cols=2)
    store.attributes["slide"]["id"] = "../../elsewhere"
    with pytest.raises(StoreError, match="cannot name a file"):
        slide_file_stem(store)

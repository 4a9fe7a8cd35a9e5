"""`embed --write` and `predict` as a user runs them."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image

from simtriplet.evaluate.evaluation import evaluate_features
from simtriplet.evaluate.saved_head import fit_result_head, save_head
from simtriplet.wsi.annotation import label_tiles, read_geojson
from simtriplet.wsi.store import TileStore, open_stores

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]


@pytest.fixture(scope="module")
def stores(program: Run, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort's stores with labels and features."""
    out = tmp_path_factory.mktemp("stores")
    program("tile", cohort, "--out", out, "--mpp", 1.0, "--size", 64, "--annotations", cohort.parent / "annotations")
    program("embed", out, "--encoder", "random:resnet18:32", "--name", "f", "--write", "npy")
    return out


@pytest.fixture(scope="module")
def head(stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    saved = fit_result_head(evaluate_features(open_stores([stores]), "f", folds=2))
    return save_head(tmp_path_factory.mktemp("head") / "head.json", saved)


def test_embed_writes_copies_and_goes_on_where_it_was(program: Run, failure: Failure, stores: Path) -> None:
    store = TileStore(stores / "patient01-slide1.tiles.zarr")
    np.testing.assert_array_equal(np.load(stores / "patient01-slide1.f.npy"), store.features("f"))
    (stores / "patient02-slide1.f.npy").unlink()
    features = store.path / "tables" / "tiles" / "obsm" / "X_f"
    before = features.stat().st_ino
    ended = program("embed", stores, "--encoder", "random:resnet18:32", "--name", "f", "--write", "npy")
    assert "(4 skipped)" in ended.stderr
    assert features.stat().st_ino == before
    assert (stores / "patient02-slide1.f.npy").exists()
    ended = program("embed", stores, "--encoder", "random:resnet18:48", "--name", "other")
    assert "skipped" not in ended.stderr
    ended = program("embed", stores, "--encoder", "random:resnet18:32", "--name", "other")
    assert "skipped" not in ended.stderr  # the same weights, but other images
    line = failure(program("embed", stores, "--encoder", "torchvision:resnet18:nowhere.pth", status=1))
    assert "nowhere.pth" in line


def test_a_warning_of_every_slide_is_given_once_and_counted(
    program: Run, stores: Path, head: Path, tmp_path: Path
) -> None:
    def warnings(*options: str) -> list[str]:
        said = program(*options, "predict", stores, "--head", head, "--out", tmp_path / "maps").stderr
        return [line.partition(": ")[2] for line in said.splitlines() if line.startswith("WARNING")]

    learnt = [
        f"slide 'patient{number:02d}-slide1': the head has learnt from this patient's labels" for number in range(1, 5)
    ]
    assert warnings() == [learnt[0], "3 more warnings of this kind; -v shows them"]
    assert warnings("-q") == warnings()
    assert warnings("-v") == learnt


def test_predict_writes_maps_that_read_back(program: Run, stores: Path, head: Path, tmp_path: Path) -> None:
    ended = program("predict", stores, "--head", head, "--out", tmp_path / "maps", "--per-tile")
    classes = json.loads(head.read_text())["classes"]
    for line, store in zip(ended.stdout.splitlines()[1:], open_stores([stores]), strict=True):
        with (tmp_path / "maps" / f"{store.slide_id}.csv").open(newline="") as text:
            predicted = [classes.index(row["predicted"]) for row in csv.DictReader(text)]
        regions = read_geojson(tmp_path / "maps" / f"{store.slide_id}.geojson")
        assert len(regions) == len(store)
        found = label_tiles(regions, store.base_xy(), store.base_size_px, min_cover=0.5, classes=classes)
        assert found.codes.tolist() == predicted
        assert line.split("\t")[:2] == [store.slide_id, str(len(store))]
        assert (tmp_path / "maps" / f"{store.slide_id}.png").stat().st_size > 1000
    program("predict", stores, "--head", head, "--out", tmp_path / "merged")
    merged = read_geojson(tmp_path / "merged" / "patient01-slide1.geojson")
    assert 0 < len(merged) < len(TileStore(stores / "patient01-slide1.tiles.zarr"))


@pytest.mark.parametrize("ending", ["geojson", "export.geojson", "csv", "column.csv", "png"])
def test_predict_replaces_its_own_files_and_no_others(
    program: Run, failure: Failure, stores: Path, head: Path, tmp_path: Path, ending: str
) -> None:
    """A folder of annotations that are called as the slides are, and one of slides' pictures."""
    maps = tmp_path / "maps"
    command = ("predict", stores, "--head", head, "--out", maps)
    program(*command)
    before = {file.name: file.read_bytes() for file in maps.iterdir()}
    program(*command)
    assert {file.name: file.read_bytes() for file in maps.iterdir()} == before
    theirs = maps / f"patient03-slide1.{ending.rpartition('.')[2]}"
    drawn = io.BytesIO()
    Image.new("RGB", (8, 8)).save(drawn, "png")
    program("export", stores, "--to", "geojson", "--out", tmp_path / "exported")
    contents = {
        "geojson": b'{"type": "FeatureCollection", "features": []}',
        "export.geojson": (tmp_path / "exported" / theirs.name).read_bytes() if "geo" in ending else b"",
        "csv": b"x,y,class\n1,2,tumour\n",
        "column.csv": before.get(theirs.name, b"").replace(b"\n", b",checked\n", 1),
    }
    theirs.write_bytes(contents.get(ending, drawn.getvalue()))
    before[theirs.name] = theirs.read_bytes()
    line = failure(program(*command, "--per-tile", status=1))
    assert line == f"Error: output '{theirs}': is there and was not written by predict; choose another --out"
    assert {file.name: file.read_bytes() for file in maps.iterdir()} == before, "nothing was written"


def test_predict_refuses_features_of_another_encoder(
    program: Run, failure: Failure, stores: Path, head: Path, tmp_path: Path
) -> None:
    other = tmp_path / "head.json"
    values = json.loads(head.read_text())
    del values["simtriplet_checksum"]  # who changes a head on purpose takes it out
    other.write_text(json.dumps({**values, "encoder": {**values["encoder"], "encoder_hash": "0"}}))
    line = failure(program("predict", stores, "--head", other, "--out", tmp_path / "maps", status=1))
    assert "of another encoder than the head was fitted on" in line
    assert not (tmp_path / "maps").exists()
    line = failure(program("predict", stores, "--head", tmp_path / "none", "--out", tmp_path / "maps", status=1))
    assert "cannot be read" in line
    line = failure(program("predict", stores, "--head", head, "--out", other, status=1))
    assert f"output '{other}': cannot be written ('{other}' is a file); choose another --out" in line

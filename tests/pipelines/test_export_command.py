"""`export` and `import` as a user runs them."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from simtriplet.wsi.store import TileStore, open_stores

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]


@pytest.fixture(scope="module")
def stores(program: Run, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort's stores as JPEG with labels."""
    out = tmp_path_factory.mktemp("stores")
    annotations = cohort.parent / "annotations"
    program("tile", cohort, "--out", out, "--mpp", 1.0, "--size", 64, "--codec", "jpeg", "--annotations", annotations)
    return out


def test_all_slides_become_one_folder_of_pictures(program: Run, failure: Failure, stores: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    ended = program("export", stores, "--to", "images", "--out", out)
    opened = open_stores([stores])
    n_tiles = sum(map(len, opened))
    assert ended.stdout.splitlines()[1] == f"pictures\tok\t4\t{n_tiles}"
    assert f"export to images: {n_tiles}/{n_tiles} tiles" in ended.stderr
    with (out / "tiles.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == n_tiles == len(list(out.rglob("*.jpg")))
    for store in opened:
        of_slide = [row for row in rows if row["slide_id"] == store.slide_id]
        assert [(int(row["x"]), int(row["y"])) for row in of_slide] == list(map(tuple, store.base_xy().tolist()))
        assert (out / of_slide[3]["file"]).read_bytes() == store.images.read_encoded(3)
    line = failure(program("export", stores, "--to", "images", "--out", out, status=1))
    assert line == f"Error: output '{out}': exists already; pass --existing skip or --existing replace"
    ended = program("-q", "export", stores, "--to", "images", "--out", out, "--existing", "skip")
    assert "\tskipped\t" in ended.stdout
    assert "tiles," not in ended.stderr


def test_each_slide_becomes_one_file(program: Run, failure: Failure, stores: Path, tmp_path: Path) -> None:
    program("export", stores, "--to", "geojson", "--out", tmp_path)
    opened = open_stores([stores])
    for store in opened:
        document = json.loads((tmp_path / f"{store.slide_id}.geojson").read_text())
        kinds = [feature["properties"]["objectType"] for feature in document["features"]]
        assert kinds.count("detection") == len(store)
        assert kinds.count("annotation") == len(store.tissue_rings()) > 0
    line = failure(
        program("export", stores, "--to", "geojson", "--out", tmp_path / "p", "--predictions", tmp_path, status=1)
    )
    assert f"predictions '{tmp_path / 'patient01-slide1.csv'}': cannot be read" in line
    ended = program("export", stores, "--to", "geojson", "--out", tmp_path, "--shard-tiles", 9, status=2)
    assert "--shard-tiles: does nothing with --to geojson; it is for webdataset" in ended.stderr


def test_a_killed_export_leaves_nothing_under_its_name(stores: Path, tmp_path: Path) -> None:
    """SIGKILL while it writes; the next run clears what is left and is whole."""
    out = tmp_path / "pictures"
    command = [sys.executable, "-m", "simtriplet.pipelines", "export", str(stores), "--to", "images", "--out", str(out)]
    command += ["--image-format", "png"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    scratch = tmp_path / "pictures.partial"
    while not list(scratch.rglob("*.png")) and child.poll() is None:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not out.exists()
    assert scratch.exists()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert not scratch.exists()
    assert len(list(out.rglob("*.png"))) == sum(map(len, open_stores([stores])))


def test_commands_are_there_without_the_packages() -> None:
    """`--help` must not wait for what only an export needs, nor for torch."""
    code = """
import sys
from simtriplet.pipelines.cli import cli
for name in ("export", "import"):
    cli([name, "--help"], standalone_mode=False)
slow = ("pandas", "anndata", "spatialdata", "pyarrow", "h5py", "torch")
print([name for name in slow if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_coordinates_and_features_come_in(
    program: Run, failure: Failure, cohort: Path, stores: Path, tmp_path: Path
) -> None:
    """What this program tiled, told as TRIDENT tells it, is tiled again to the same pixels, and features follow."""
    h5py = pytest.importorskip("h5py", reason="the extra interop is not installed")
    opened = open_stores([stores])
    for number, store in enumerate(opened):
        with h5py.File(tmp_path / f"{store.slide_id}_patches.h5", "w") as file:
            coords = file.create_dataset("coords", data=store.base_xy()[::-1])
            coords.attrs["patch_size"], coords.attrs["name"] = 64, store.slide_id
            coords.attrs["patch_size_level0"] = round(store.base_size_px)
            file["features"] = np.column_stack([store.base_xy()[::-1], np.full(len(store), number)]).astype(np.float32)
    out = tmp_path / "imported"
    ended = program("import", tmp_path, "--slides", cohort, "--out", out, "--features", "theirs", "--codec", "jpeg")
    assert [line.split("\t")[1] for line in ended.stdout.splitlines()[1:]] == ["ok"] * 4
    for number, (store, ours) in enumerate(zip(open_stores([out]), opened, strict=True)):
        assert store.patient_id == ours.patient_id
        order = {tuple(xy): tile for tile, xy in enumerate(ours.base_xy().tolist())}
        same = [order[tuple(xy)] for xy in store.base_xy().tolist()]
        assert sorted(same) == list(range(len(ours)))
        assert np.array_equal(store.images.read(np.arange(len(store))), ours.images.read(same))
        features = store.features("theirs")
        assert np.array_equal(features[:, :2], store.base_xy())
        assert set(features[:, 2]) == {number}
    program("index", out)
    assert TileStore(out / "patient01-slide1.tiles.zarr").neighbours().n_pairs > 0
    with cohort.open(newline="") as table:
        slide = cohort.parent / next(csv.DictReader(table))["path"]
    one = tmp_path / "patient01-slide1_patches.h5"
    with h5py.File(tmp_path / "bare.h5", "w") as file, h5py.File(one) as whole:
        whole.copy("coords", file)
    words = ("import", tmp_path / "bare.h5", "--slide", slide, "--out", tmp_path / "none", "--features", "theirs")
    assert "has no dataset 'features'" in failure(program(*words, status=1))
    assert not list((tmp_path / "none").glob("*.zarr")), "hours of reading before that is told"
    (tmp_path / "bare.h5").unlink()
    skip = (
        "import",
        one,
        "--slides",
        cohort,
        "--out",
        out,
        "--features",
        "theirs",
        "--codec",
        "jpeg",
        "--existing",
        "skip",
    )
    assert "skipped" in program(*skip).stdout
    with h5py.File(one, "a") as file:
        file["features"][0, 2] = 7
    line = failure(program(*skip, status=1))
    assert "has other features 'theirs'; pass --existing replace, or give these another name with --features" in line
    line = failure(program("import", one, "--slide", slide, "--out", out, status=1))
    assert "exists already; pass --existing skip or --existing replace" in line
    line = failure(program("import", tmp_path, "--slide", slide, "--out", out, status=1))
    assert "is one slide for 4 files; pass --slides with their folder" in line
    other = tmp_path / "elsewhere"
    other.mkdir()
    one.rename(other / "unknown.h5")
    (tmp_path / "patient02-slide1_patches.h5").rename(other / "good.h5")
    with h5py.File(other / "unknown.h5", "a") as file:
        file["coords"].attrs["level0_width"] = file["coords"].attrs["level0_height"] = 7
    with h5py.File(other / "bare.h5", "w") as file:  # a slide on which no tissue was found
        file.create_dataset("coords", data=np.zeros((0, 2))).attrs["patch_size"] = 64
    ended = program("import", other, "--slides", cohort, "--out", tmp_path / "two", status=1)
    lines = [line.split("\t") for line in ended.stdout.splitlines()[1:]]
    assert [line[:2] for line in lines] == [
        ["bare", "failed"],
        ["patient02-slide1", "ok"],
        ["patient01-slide1", "failed"],
    ]
    assert lines[0][-1].endswith("bare.h5': names no tiles; leave the slide out")
    assert failure(ended) == "Error: 2 of 3 slides failed; the table says why"
    (other / "bare.h5").unlink()
    with h5py.File(other / "unknown.h5", "a") as file:
        file["coords"].attrs["name"] = "unknown"
    ended = program("import", other, "--slides", cohort, "--out", tmp_path / "three", status=1)
    assert "is called 'unknown'" in ended.stdout
    assert failure(ended) == "Error: 1 of 2 slides failed; the table says why"
    assert [store.slide_id for store in open_stores([tmp_path / "three"])] == ["patient02-slide1"]
    (other / "good.h5").unlink()
    line = failure(program("import", other, "--slides", cohort, "--out", out, status=1))
    assert "no slide in" in line
    assert "is called 'unknown'" in line
    with h5py.File(other / "unknown.h5", "a") as file:
        del file["coords"].attrs["level0_width"]
        file["coords"][0] = (10**6, 0)
    line = failure(program("import", other / "unknown.h5", "--slide", slide, "--out", tmp_path / "x", status=1))
    assert "a tile begins at x 1000000, y 0, outside" in line

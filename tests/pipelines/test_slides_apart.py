"""What is wrong with one slide's files (its annotations, its path, its rights) is that slide's own failure."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from simtriplet.pipelines.manifest import collect_jobs
from simtriplet.wsi.errors import AnnotationError
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.synthetic import SyntheticSlideSpec, draw_slide

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]
TILING = ("--mpp", 0.5, "--size", 64)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 640 x 512 px."""
    path = tmp_path_factory.mktemp("slide") / "tiny.svs"
    draw_slide(path, SyntheticSlideSpec(width_px=640, height_px=512, tissue_fraction=0.5, n_pieces=1, region_um=100.0))
    return path


@pytest.fixture
def slides(slide: Path, tmp_path: Path) -> Path:
    """A folder of the slides a, b, c and d."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in "abcd":
        shutil.copy(slide, folder / f"{name}.svs")
    return folder


def outline(class_name: str) -> str:
    """Return GeoJSON of one region that covers the slide."""
    ring = [[0, 0], [640, 0], [640, 512], [0, 512], [0, 0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": class_name}},
    }
    return json.dumps({"type": "FeatureCollection", "features": [feature]})


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """A folder with a good file of a, a malformed one of b, two of c and none of d."""
    folder = tmp_path / "annotations"
    folder.mkdir()
    for name in ("a.geojson", "c.geojson", "c.json"):
        (folder / name).write_text(outline("tumour"))
    (folder / "b.geojson").write_text(outline("tumour")[:-20])
    return folder


def summary(out: Path) -> dict[str, dict[str, str]]:
    with (out / "tile-summary.csv").open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


class TestAnnotations:
    def test_a_bad_file_fails_its_slide_alone_which_is_taken_again(
        self, program: Run, failure: Failure, slides: Path, annotations: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        words = ("tile", slides, "--out", out, *TILING, "--annotations", annotations)
        ended = program(*words, status=1)
        assert "2 of 4 slides failed" in failure(ended)
        assert "1 of 4 slides have no annotations, 'd' for instance" in ended.stderr
        rows = summary(out)
        assert {name: row["status"] for name, row in rows.items()} == {
            "a": "ok",
            "b": "failed",
            "c": "failed",
            "d": "ok",
        }
        assert rows["b"]["reason"].startswith("annotation 'b.geojson': ")
        assert "c.geojson and c.json are both of slide 'c'; leave one of them" in rows["c"]["reason"]
        assert int(rows["a"]["labelled"]) == int(rows["a"]["tiles"]) > 0
        assert rows["d"]["labelled"] == "0"
        (annotations / "b.geojson").write_text(outline("stroma"))
        (annotations / "c.json").unlink()
        assert program(*words, "--retry-failed").stdout.count("\tok\t") == 2
        labels = TileStore(out / "b.tiles.zarr").labels()
        assert labels is not None
        assert labels.categories == ("stroma",)

    def test_of_a_single_slide_it_is_the_error_before_anything_is_made(
        self, program: Run, failure: Failure, slides: Path, annotations: Path, tmp_path: Path
    ) -> None:
        bad = annotations / "b.geojson"
        for given in (annotations, bad):
            words = ("tile", slides / "b.svs", "--out", tmp_path / "out", *TILING, "--annotations", given)
            assert failure(program(*words, status=1)).startswith(f"Error: annotation '{bad}': ")
        assert not (tmp_path / "out").exists()
        with pytest.raises(AnnotationError, match="are both of slide 'c'"):
            collect_jobs([slides / "c.svs"], annotations=annotations)

    def test_a_store_is_the_same_however_its_regions_were_given(
        self, program: Run, slides: Path, annotations: Path, tmp_path: Path
    ) -> None:
        """A folder of slides is tiled with the file's path, a single one with what the file holds."""
        for name in ("b.geojson", "c.json"):
            (annotations / name).unlink()
        labels = ("--annotations", annotations)
        program("tile", slides, "--out", tmp_path / "many", *TILING, *labels)
        program("tile", slides / "a.svs", "--out", tmp_path / "one", *TILING, *labels)
        stores = [TileStore(tmp_path / name / "a.tiles.zarr") for name in ("many", "one")]
        many, one = (store.attributes | {"tiles_id": "of each its own", "provenance": {}} for store in stores)
        assert many == one
        ended = program("tile", slides, "--out", tmp_path / "one", *TILING, *labels, "--existing", "skip")
        assert summary(tmp_path / "one")["a"]["status"] == "skipped", ended.stdout

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
        many, one = (store.attributes | {"provenance": {}} for store in stores)
        assert many == one
        ended = program("tile", slides, "--out", tmp_path / "one", *TILING, *labels, "--existing", "skip")
        assert summary(tmp_path / "one")["a"]["status"] == "skipped", ended.stdout


class TestPaths:
    def test_one_that_is_missing_or_out_of_reach_fails_alone(
        self, program: Run, failure: Failure, slides: Path, tmp_path: Path
    ) -> None:
        """A folder's name of 300 letters stands for one without rights, which a superuser has: the system refuses both."""
        out, beyond = tmp_path / "out", slides / ("x" * 300) / "far.svs"
        words = ("tile", beyond, slides / "gone.svs", slides / "a.svs", slides / "b.svs", "--out", out, *TILING)
        assert "2 of 4 slides failed" in failure(program(*words, status=1))
        rows = summary(out)
        assert {name: row["status"] for name, row in rows.items()} == {
            "a": "ok",
            "b": "ok",
            "far": "failed",
            "gone": "failed",
        }
        assert rows["gone"]["reason"] == "slide 'gone.svs': does not exist; check the path"
        assert (
            rows["far"]["reason"] == "slide 'far.svs': cannot be read (File name too long); check its path and rights"
        )
        assert "2 of 4 slides of the earlier run failed" in program(*words, "--retry-failed", status=1).stderr

    def test_so_does_a_row_of_a_manifest(self, program: Run, failure: Failure, slides: Path, tmp_path: Path) -> None:
        manifest, out = slides / "slides.csv", tmp_path / "out"
        manifest.write_text(f"path\na.svs\ngone.svs\n{'x' * 300}/far.dcm\n{'x' * 300}/off.svs\n")
        assert "3 of 4 slides failed" in failure(program("tile", manifest, "--out", out, *TILING, status=1))
        assert [name for name, row in summary(out).items() if row["status"] == "ok"] == ["a"]

    def test_where_there_is_no_slide_at_all_it_is_the_error(
        self, program: Run, failure: Failure, tmp_path: Path
    ) -> None:
        gone, other, beyond = tmp_path / "gone.svs", tmp_path / "other.svs", tmp_path / ("x" * 300) / "far.svs"
        for words in ((gone,), (gone, other)):
            line = failure(program("tile", *words, "--out", tmp_path / "out", status=1))
            assert line == f"Error: slide '{gone}': does not exist; check the path"
        line = failure(program("tile", beyond, "--out", tmp_path / "out", status=1))
        assert line.endswith("cannot be read (File name too long); check its path and rights")
        assert not (tmp_path / "out").exists()

    def test_info_tells_of_the_others(self, program: Run, failure: Failure, slides: Path) -> None:
        ended = program("info", slides / ("x" * 300) / "far.svs", slides / "a.svs", status=1)
        assert "a.svs" in ended.stdout
        assert "File name too long" in failure(ended)

    def test_a_store_that_is_out_of_reach_fails_its_slide_alone(
        self, program: Run, failure: Failure, slides: Path, tmp_path: Path
    ) -> None:
        """A link that leads to itself stands for one that leads where nobody may look."""
        out = tmp_path / "out"
        out.mkdir()
        store = out / "b.tiles.zarr"
        store.symlink_to(store)
        assert "1 of 4 slides failed" in failure(program("tile", slides, "--out", out, *TILING, status=1))
        reason = summary(out)["b"]["reason"]
        assert reason.startswith("path 'b.tiles.zarr': is out of reach (Too many levels of symbolic links); check the")

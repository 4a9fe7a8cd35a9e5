"""The options of `tile` as a user types them: grids, contexts, masks, quality limits, annotations of other programs."""

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import cv2
import numpy as np
import pytest
import shapely

from simtriplet.wsi.check import check_store
from simtriplet.wsi.slide import open_slide
from simtriplet.wsi.store import TileStore, find_stores

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]


@pytest.fixture(scope="module")
def slide(cohort: Path) -> Path:
    """A slide of 1,536 x 1,280 px at 0.5 um per pixel with ground truth."""
    return cohort.parent / "patient01-slide1.svs"


def _tile(program: Run, slide: Path, out: Path, *options: object) -> TileStore:
    program("tile", slide, "--out", out, *options)
    return TileStore(out / f"{slide.stem}.tiles.zarr")


def test_native_tiles(program: Run, failure: Failure, slide: Path, tmp_path: Path) -> None:
    store = _tile(program, slide, tmp_path / "native", "--grid", "native", "--min-tissue", 0.1)
    assert store.attributes["tiling"]["grid"] == "native"
    assert store.attributes["tiling"]["codec"] == "jpeg"
    with open_slide(slide) as reader:
        for place, (x, y) in enumerate(store.base_xy().tolist()):
            expected = reader.read(0, (x, y), (store.size_px, store.size_px))
            assert np.array_equal(store.images.read(np.array([place]))[0], expected)
    line = failure(program("tile", slide, "--out", tmp_path / "no", "--grid", "native", "--mpp", 0.7, status=1))
    assert "--grid mpp" in line
    assert find_stores([tmp_path / "native"])


def test_overlap_is_a_stride(program: Run, slide: Path, tmp_path: Path) -> None:
    shared = _tile(program, slide, tmp_path / "a", "--mpp", 1, "--size", 64, "--overlap", 16)
    strided = _tile(program, slide, tmp_path / "b", "--mpp", 1, "--size", 64, "--stride", 48)
    assert shared.stride_px == strided.stride_px == 48
    assert np.array_equal(shared.base_xy(), strided.base_xy())
    both = ("--stride", 48, "--overlap", 16)
    assert "pass one of them" in program("tile", slide, "--out", tmp_path / "c", "--size", 64, *both, status=2).stderr


def test_contexts_lie_around_the_same_centre(program: Run, slide: Path, tmp_path: Path) -> None:
    store = _tile(program, slide, tmp_path, "--mpp", 0.5, "--size", 64, "--context-mpp", 1, "--context-mpp", 2)
    assert store.context_mpp == (1.0, 2.0)
    some = np.arange(0, len(store), max(1, len(store) // 20))
    fine, wide = store.images.read(some), store.context(1.0).read(some)
    middle = wide[:, 16:48, 16:48].astype(int)
    reduced = fine.reshape(len(some), 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(middle - reduced).mean() < 3, "the middle of the wider tile is the tile, at half its resolution"
    assert check_store(store.path) == []


def test_the_users_own_mask_is_the_tissue(program: Run, slide: Path, tmp_path: Path) -> None:
    mask = np.zeros((128, 154), np.uint8)
    mask[:64, :77] = 255  # the upper left quarter
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    store = _tile(program, slide, tmp_path / "png", "--mpp", 1, "--size", 64, "--tissue", f"mask:{tmp_path}/mask.png")
    centres = store.centres()
    assert len(store) > 0
    assert centres[:, 0].max() <= 800
    assert centres[:, 1].max() <= 700
    feature = {
        "type": "Feature",
        "geometry": json.loads(shapely.to_geojson(shapely.box(0, 0, 768, 640))),
        "properties": {"classification": {"name": "tissue"}},
    }
    (tmp_path / "outline.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    drawn = _tile(
        program, slide, tmp_path / "json", "--mpp", 1, "--size", 64, "--tissue", f"mask:{tmp_path}/outline.geojson"
    )
    assert np.array_equal(drawn.base_xy(), store.base_xy())


def test_quality_limits_leave_tiles_out_and_say_why(
    program: Run, failure: Failure, slide: Path, tmp_path: Path
) -> None:
    every = _tile(program, slide, tmp_path / "all", "--mpp", 1, "--size", 64)
    saturation = every.numbers("saturation")
    limit = float(np.quantile(saturation, 0.3))
    some = _tile(program, slide, tmp_path / "some", "--mpp", 1, "--size", 64, "--min-saturation", f"{limit:.6f}")
    assert len(some) == pytest.approx(0.7 * len(every), abs=2)
    assert some.attributes["tiling"]["rejected"]["saturation"] == len(every) - len(some)
    assert some.numbers("saturation").min() >= limit - 1e-5
    assert (tmp_path / "some" / f"{slide.stem}.tiling.jpg").read_bytes()[:2] == b"\xff\xd8"
    arguments = ("--mpp", 1, "--size", 64, "--min-saturation", 1.0)
    assert "miss the quality limits" in failure(program("tile", slide, "--out", tmp_path / "no", *arguments, status=1))


def test_annotations_of_other_programs_give_the_same_labels(program: Run, slide: Path, tmp_path: Path) -> None:
    """A triangle as QuPath, ASAP, ImageScope and a table of vertices write it."""
    corners = [(100.0, 100.0), (1400.0, 150.0), (700.0, 1200.0)]
    geometry = json.loads(shapely.to_geojson(shapely.Polygon(corners)))
    feature = {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": "tumour"}}}
    texts = {
        "a.geojson": json.dumps({"type": "FeatureCollection", "features": [feature]}),
        "b.xml": '<ASAP_Annotations><Annotations><Annotation Name="1" Type="Polygon" PartOfGroup="tumour"><Coordinates>'
        + "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(corners))
        + "</Coordinates></Annotation></Annotations></ASAP_Annotations>",
        "c.xml": '<Annotations><Annotation Name="tumour"><Regions><Region><Vertices>'
        + "".join(f'<Vertex X="{x}" Y="{y}" />' for x, y in corners)
        + "</Vertices></Region></Regions></Annotation></Annotations>",
        "d.csv": "class,region,x,y\n" + "".join(f"tumour,1,{x},{y}\n" for x, y in corners),
    }
    found = []
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        store = _tile(program, slide, tmp_path / name[0], "--mpp", 1, "--size", 64, "--annotations", tmp_path / name)
        labels = store.labels()
        assert labels is not None
        assert labels.categories == ("tumour",)
        found.append(labels.codes.tolist())
    assert 0 in found[0]
    assert -1 in found[0]
    assert found[1:] == found[:1] * 3


def test_progress_tells_rate_and_time_left(program: Run, slide: Path, tmp_path: Path) -> None:
    said = program("tile", slide, "--out", tmp_path, "--mpp", 1, "--size", 64).stderr
    assert "tiles" in said
    assert "/s" in said
    assert " s left" in said


def test_a_folder_of_real_slides_with_their_labels(program: Run, shared_data: Path, tmp_path: Path) -> None:
    """All 165 slides of GlaS in one command."""
    glas = shared_data / "glas"
    with (glas / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    slides = {path.stem: path for path in (glas / "slides").iterdir()}
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "slide_id", "patient_id", "label"])
        writer.writerows(
            [slides[row["slide_id"]], row["slide_id"], row["patient_id"], row["diagnosis"]] for row in rows
        )
    start = time.monotonic()
    said = program(
        "tile", tmp_path / "manifest.csv", "--out", tmp_path / "stores", "--mpp", 0.62, "--size", 128, "--stride", 64,
        "--annotations", glas / "annotations", "--background", "other", "--codec", "jpeg", "--workers", 2,
    )  # fmt: skip
    assert time.monotonic() - start < 300
    with (tmp_path / "stores/tile-summary.csv").open() as file:
        summary = list(csv.DictReader(file))
    assert len(summary) == len(rows) == 165, said.stdout
    assert {row["status"] for row in summary} == {"ok"}
    for row in rows[::8]:
        store = TileStore(tmp_path / "stores" / f"{row['slide_id']}.tiles.zarr")
        assert store.patient_id == row["patient_id"]
        assert store.attributes["slide"]["label"] == row["diagnosis"]
        labels = store.labels()
        assert labels is not None
        assert set(labels.categories) <= {"gland", "other"}
        assert (np.asarray(labels.codes) >= 0).mean() > 0.7


def test_options_that_would_do_nothing_are_refused(program: Run, slide: Path, tmp_path: Path) -> None:
    said = program("tile", slide, "--out", tmp_path / "o", "--grid", "native", "--size", 224, status=2)
    assert "--size: native tiles" in said.stderr
    assert not (tmp_path / "o").exists()


def test_annotations_for_no_slide_are_an_error_and_for_some_a_warning(
    program: Run, failure: Failure, cohort: Path, slide: Path, tmp_path: Path
) -> None:
    (tmp_path / "none").mkdir()
    arguments = ("tile", slide, "--out", tmp_path / "o", "--mpp", 1, "--size", 64, "--annotations", tmp_path / "none")
    line = failure(program(*arguments, status=1))
    assert "hold no file" in line
    assert "patient01-slide1.geojson" in line
    (tmp_path / "some").mkdir()
    file = next((cohort.parent / "annotations").glob("patient02*"))
    (tmp_path / "some" / file.name).write_bytes(file.read_bytes())
    said = program(
        "tile", slide, slide.with_name("patient02-slide1.svs"), "--out", tmp_path / "o", "--mpp", 1, "--size", 64,
        "--annotations", tmp_path / "some",
    )  # fmt: skip
    assert "1 of 2 slides have no annotations" in said.stderr


def test_a_column_that_is_nearly_known_is_a_mistake(
    program: Run, failure: Failure, slide: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"path,slidempp,diagnosis\n{slide},0.25,benign\n")
    line = failure(program("tile", manifest, "--out", tmp_path / "o", status=1))
    assert "'slidempp' is not known; did you mean 'slide_mpp'?" in line


def test_a_slide_smaller_than_a_tile_is_told_so(program: Run, failure: Failure, slide: Path, tmp_path: Path) -> None:
    line = failure(program("tile", slide, "--out", tmp_path / "o", "--mpp", 1, "--size", 4096, status=1))
    assert "is smaller than one tile of 4096 px" in line


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--reader", "fast"), "known are"),
        (("--tissue", "mask:gone.png"), "does not exist"),
        (("--slide-mpp", "0"), "must be a positive number"),
        (("--slide-mpp", "nan"), "must be a positive number"),
        (("--overlap", "-8"), "overlap -8"),
    ],
)
def test_what_would_fail_on_every_slide_is_refused_before_anything_is_written(
    program: Run, failure: Failure, slide: Path, tmp_path: Path, options: tuple[str, ...], hint: str
) -> None:
    assert hint in failure(program("tile", slide, "--out", tmp_path / "o", *options, status=1))
    assert not (tmp_path / "o").exists()


def test_a_context_finer_than_the_slide_is_named(program: Run, failure: Failure, slide: Path, tmp_path: Path) -> None:
    line = failure(program("tile", slide, "--out", tmp_path / "o", "--context-mpp", 0.1, status=1))
    assert "--context-mpp" in line


def test_an_mpp_that_is_far_from_the_files_is_told(program: Run, cohort: Path, tmp_path: Path) -> None:
    slide = cohort.parent / "patient01-slide1.svs"
    said = program("tile", slide, "--out", tmp_path, "--mpp", 1.0, "--size", 64, "--slide-mpp", 0.25).stderr
    assert said.count("its file says 0.5 um per pixel, 0.25 is used as asked") == 1
    near = ("--slide-mpp", 0.51, "--existing", "replace")
    assert "its file says" not in program("tile", slide, "--out", tmp_path, "--mpp", 1.02, "--size", 64, *near).stderr

"""Tiling one slide: the pixels against an independent reader and average, the order, and what happens on failure."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely

from simtriplet.wsi.annotation import NamedRegion
from simtriplet.wsi.errors import (
    ResolutionError,
    SettingsError,
    StoreExistsError,
    TissueError,
)
from simtriplet.wsi.geometry import TilingSpec, morton_order
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.tiling import LabelSpec, SlideJob, TileRequest, TilingSummary, slide_id_of, tile_slide
from simtriplet.wsi.tissue import TissueSpec

Writer = Callable[..., Path]
Weights = npt.NDArray[np.float64]
EVERYWHERE = TissueSpec(detector="all")


def request_for(*, codec: Any = "none", **tiling: Any) -> TileRequest:
    return TileRequest(tiling=TilingSpec(**tiling), tissue=EVERYWHERE, codec=codec)


def tile(path: Path, out: Path, request: TileRequest, **job: Any) -> TileStore:
    summary = tile_slide(SlideJob(path, "s", **job), out, request, threads=2)
    store = TileStore(out / "s.tiles.zarr")
    assert summary.n_tiles == len(store)
    return store


@pytest.fixture
def two_pieces(tmp_path: Path, tissue_picture: Any, write_slide: Writer) -> Path:
    """White glass of 1500 x 900 px at 2 um with two pieces of tissue, the larger one on the right."""
    pixels = np.full((900, 1500, 3), 245, np.uint8)
    pixels[100:500, 60:560] = tissue_picture(500, 400, seed=1)
    pixels[80:840, 760:1460] = tissue_picture(700, 760, seed=2)
    return write_slide(tmp_path / "pieces.tif", pixels, mpp=2.0)


def test_tiles_come_region_by_region_in_morton_order(tmp_path: Path, two_pieces: Path) -> None:
    request = TileRequest(tiling=TilingSpec(mpp=2.0, size_px=40, min_tissue=0.5))
    store = tile(two_pieces, tmp_path / "out", request)
    region, row, col = (store.numbers(name) for name in ("tissue_id", "row", "col"))
    assert set(region.tolist()) == {0, 1}
    assert np.array_equal(np.lexsort((morton_order(row, col), region)), np.arange(len(store)))
    assert (store.base_xy()[region == 0, 0] > 700).all()
    assert (store.base_xy()[region == 1, 0] < 600).all()
    assert (store.numbers("tissue_fraction") >= 0.5).all()
    # 700 x 760 and 500 x 400 px of tissue, 40 px tiles
    assert 17 * 18 <= (region == 0).sum() <= 19 * 21
    assert 12 * 9 <= (region == 1).sum() <= 14 * 12
    assert store.images.read(np.arange(len(store))).mean() < 190
    outline = [
        shapely.MultiPolygon([shapely.Polygon(rings[0], rings[1:]) for rings in r]) for r in store.tissue_rings()
    ]
    assert [round(part.area, -4) for part in outline] == pytest.approx([700 * 760, 500 * 400], rel=0.06)


def test_the_least_tissue_decides_which_tiles_stay(tmp_path: Path, two_pieces: Path) -> None:
    counts = []
    for share in (0.0, 0.5, 1.0):
        request = TileRequest(tiling=TilingSpec(mpp=2.0, size_px=40, min_tissue=share))
        store = tile(two_pieces, tmp_path / str(share), request)
        fraction = store.numbers("tissue_fraction")
        assert (fraction >= share).all()
        assert (fraction > 0).all()
        counts.append(len(store))
    assert counts[0] > counts[1] > counts[2] > 0


def test_a_blank_slide_has_nothing_to_tile(tmp_path: Path, write_slide: Writer) -> None:
    path = write_slide(tmp_path / "blank.tif", np.full((600, 800, 3), 243, np.uint8))
    with pytest.raises(TissueError, match=r"no tissue was found; check the slide, or pass --tissue all$"):
        tile(path, tmp_path / "out", TileRequest())
    assert not (tmp_path / "out").exists()


def test_tiles_larger_than_the_slide_say_so(tmp_path: Path, flat_slide: Path) -> None:
    with pytest.raises(TissueError, match=r"is smaller than one tile of 800 px at 0\.5 um per pixel"):
        tile(flat_slide, tmp_path / "out", request_for(size_px=800))


def test_a_slide_without_glass_is_kept_whole(tmp_path: Path, flat_slide: Path) -> None:
    store = tile(flat_slide, tmp_path / "out", TileRequest(tiling=TilingSpec(size_px=100)))
    assert len(store) == 10 * 7


class TestAttributes:
    def test_what_is_recorded(self, tmp_path: Path, flat_slide: Path) -> None:
        store = tile(flat_slide, tmp_path / "out", request_for(size_px=100, mpp=1.0), patient_id="p7")
        slide, tiling = store.attributes["slide"], store.attributes["tiling"]
        assert (slide["width"], slide["height"], slide["vendor"]) == (1000, 700, "generic-tiff")
        assert (slide["id"], store.patient_id, slide["mpp_source"]) == ("s", "p7", "file")
        assert len(slide["fingerprint"]) == 64
        assert tiling["asked"] == {**dataclasses.asdict(TilingSpec(size_px=100, mpp=1.0)), "context_mpp": []}
        assert (tiling["n_rows"], tiling["n_cols"]) == (3, 5)
        assert store.attributes["tissue"]["detector"] == "all"
        assert store.thumbnail().shape == (44, 63, 3)
        assert store.thumbnail_downsample == 16.0

    def test_an_override_of_the_resolution_is_recorded(self, tmp_path: Path, flat_slide: Path) -> None:
        store = tile(flat_slide, tmp_path / "out", request_for(size_px=100, mpp=0.25), slide_mpp=0.25)
        assert store.base_mpp == 0.25
        assert store.attributes["slide"]["mpp_source"] == "option"
        assert len(store) == 70

    def test_the_summary_counts(self, tmp_path: Path, flat_slide: Path) -> None:
        done: list[tuple[int, int]] = []
        summary = tile_slide(
            SlideJob(flat_slide, "s"), tmp_path, request_for(size_px=50), progress=lambda *at: done.append(at)
        )
        assert (summary.slide_id, summary.status, summary.reader) == ("s", "ok", "tiff")
        assert (summary.n_tiles, summary.n_lattice, summary.n_labelled, summary.mpp) == (280, 280, 0, 0.5)
        assert summary.n_bytes == 280 * 50 * 50 * 3 + 5 * (16 * 64 + 4)
        assert summary.seconds > 0
        assert done == [(64, 280), (128, 280), (192, 280), (256, 280), (280, 280)]

    def test_no_absolute_path_in_any_document(self, tmp_path: Path, flat_slide: Path) -> None:
        store = tile(flat_slide, tmp_path / "out", request_for(size_px=100), patient_id="p")

        def strings(value: Any) -> list[str]:
            if isinstance(value, dict):
                return [text for item in value.items() for part in item for text in strings(part)]
            if isinstance(value, list):
                return [text for part in value for text in strings(part)]
            return [value] if isinstance(value, str) else []

        documents = list(store.path.rglob("zarr.json"))
        assert len(documents) > 20
        for document in documents:
            texts = strings(json.loads(document.read_text()))
            assert not [text for text in texts if text.startswith(("/", "~", "file:")) and len(text) > 1], document
            assert not [text for text in texts if tmp_path.name in text or flat_slide.name in text], document
        for file in store.path.rglob("*"):
            if file.is_file():
                assert os.fsencode(tmp_path) not in file.read_bytes(), file


class TestExisting:
    REQUEST = request_for(size_px=100)

    def run(self, path: Path, out: Path, request: TileRequest, existing: Any, **job: Any) -> TilingSummary:
        return tile_slide(SlideJob(path, "s", **job), out, request, existing=existing)

    def test_error_is_the_default_and_touches_nothing(self, tmp_path: Path, flat_slide: Path) -> None:
        before = tile(flat_slide, tmp_path, self.REQUEST).attributes
        with pytest.raises(StoreExistsError, match=r"exists already; pass --existing skip or --existing replace$"):
            tile(flat_slide, tmp_path, self.REQUEST)
        assert TileStore(tmp_path / "s.tiles.zarr").attributes == before

    def test_skip_keeps_a_store_of_the_same_request(self, tmp_path: Path, flat_slide: Path) -> None:
        before = tile(flat_slide, tmp_path, self.REQUEST).attributes
        summary = self.run(flat_slide, tmp_path, self.REQUEST, "skip")
        assert (summary.status, summary.n_tiles) == ("skipped", 70)
        assert TileStore(tmp_path / "s.tiles.zarr").attributes == before

    @pytest.mark.parametrize(
        "changes",
        [
            {"request": request_for(size_px=50)},
            {"request": request_for(size_px=100, codec="zstd")},
            {"slide_mpp": 0.4},
            {"patient_id": "p"},
            {"regions": ()},
            {"regions": (NamedRegion("a", shapely.box(0, 0, 9, 9)),)},
        ],
    )
    def test_skip_refuses_a_store_of_another_request(
        self, tmp_path: Path, flat_slide: Path, changes: dict[str, Any]
    ) -> None:
        tile(flat_slide, tmp_path, self.REQUEST)
        request = changes.pop("request", self.REQUEST)
        with pytest.raises(StoreExistsError, match="was made from another slide or with other settings"):
            self.run(flat_slide, tmp_path, request, "skip", **changes)

    def test_skip_refuses_a_store_of_another_slide(
        self, tmp_path: Path, flat_slide: Path, picture: Any, write_slide: Writer
    ) -> None:
        tile(flat_slide, tmp_path, self.REQUEST)
        other = write_slide(tmp_path / "other.tif", picture(1000, 700, seed=9))
        with pytest.raises(StoreExistsError, match="was made from another slide"):
            self.run(other, tmp_path, self.REQUEST, "skip")

    def test_replace_makes_new_tiles(self, tmp_path: Path, flat_slide: Path) -> None:
        before = tile(flat_slide, tmp_path, self.REQUEST).attributes
        assert self.run(flat_slide, tmp_path, request_for(size_px=50), "replace").n_tiles == 280
        after = TileStore(tmp_path / "s.tiles.zarr")
        assert len(after) == 280
        assert after.attributes["tiles_id"] != before["tiles_id"]
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["flat.tif", "s.tiles.zarr", "s.tiling.jpg"]

    def test_a_failed_replacement_leaves_the_old_store(self, tmp_path: Path, flat_slide: Path) -> None:
        before = tile(flat_slide, tmp_path, self.REQUEST).attributes
        with pytest.raises(ResolutionError):
            self.run(flat_slide, tmp_path, request_for(size_px=100, mpp=0.1), "replace")
        assert TileStore(tmp_path / "s.tiles.zarr").attributes == before


class TestLabels:
    GLAND = NamedRegion("gland", shapely.box(0, 0, 250, 700))

    def test_regions_become_a_column(self, tmp_path: Path, flat_slide: Path) -> None:
        store = tile(flat_slide, tmp_path, request_for(size_px=100), regions=(self.GLAND,))
        labels = store.labels()
        assert labels is not None
        expected = ["gland" if x < 250 - 49 else None for x in store.base_xy()[:, 0].tolist()]
        assert labels.names().tolist() == expected
        assert labels.categories == ("gland",)

    def test_the_background_is_a_class_when_asked(self, tmp_path: Path, flat_slide: Path) -> None:
        request = dataclasses.replace(request_for(size_px=100), labels=LabelSpec(min_cover=0.6, background="rest"))
        store = tile(flat_slide, tmp_path, request, regions=(self.GLAND,))
        labels = store.labels()
        assert labels is not None
        by_x = dict(zip(store.base_xy()[:, 0].tolist(), labels.names().tolist(), strict=True))
        assert by_x == {0: "gland", 100: "gland", 200: None} | dict.fromkeys(range(300, 1000, 100), "rest")

    def test_without_annotations_there_is_no_column(self, tmp_path: Path, flat_slide: Path) -> None:
        assert tile(flat_slide, tmp_path, request_for(size_px=100)).labels() is None


@pytest.mark.parametrize("slide_id", ["", ".hidden", "../up", "a/b", "a\\b", "a\nb", "-rf", "x" * 201, "a\0"])
def test_ids_that_could_leave_the_folder_are_refused(slide_id: str) -> None:
    with pytest.raises(SettingsError, match=r"give it another id in a manifest$"):
        SlideJob(Path("a.svs"), slide_id)


@pytest.mark.parametrize("slide_id", ["TCGA-CR-7395-01A.uuid", "slide 7 (2)", "Präparat_3", "a+b"])
def test_ids_of_real_files_are_kept(tmp_path: Path, flat_slide: Path, slide_id: str) -> None:
    tile_slide(SlideJob(flat_slide, slide_id), tmp_path, request_for(size_px=300))
    assert TileStore(tmp_path / f"{slide_id}.tiles.zarr").slide_id == slide_id


def test_the_id_is_the_name_without_its_last_suffix() -> None:
    assert slide_id_of(Path("/data/TCGA-1.b2c.svs")) == "TCGA-1.b2c"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TileRequest(jpeg_quality=0), "jpeg_quality 0: must lie in 1..100"),
        (lambda: LabelSpec(min_cover=0.0), "min_cover 0.0: must lie above 0"),
    ],
)
def test_requests_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make()


@pytest.mark.parametrize(("edge", "kept", "beyond", "bare"), [("inside", 6, 5, 0), ("pad", 11, 0, 1)])
def test_tiles_over_the_edge_are_counted(
    tmp_path: Path, tissue_picture: Any, write_slide: Writer, edge: Any, kept: int, beyond: int, bare: int
) -> None:
    # 3 x 2 whole tiles; of the fourth column's 68 % are on the slide, of the third row's 64 %, of their common one 43.5 %
    slide = write_slide(tmp_path / "s.tif", tissue_picture(368, 264), mpp=1.0)
    store = tile(slide, tmp_path / "out", request_for(mpp=1.0, size_px=100, edge=edge))
    rejected = store.attributes["tiling"]["rejected"]
    assert (len(store), rejected["edge"], rejected["tissue"]) == (kept, beyond, bare)


def test_a_picture_that_cannot_be_written_costs_the_store_nothing(
    tmp_path: Path, two_pieces: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out/s.tiling.jpg").mkdir(parents=True)
    store = tile(two_pieces, tmp_path / "out", TileRequest(tiling=TilingSpec(mpp=2.0, size_px=40)))
    assert len(store) > 100
    assert "s.tiling.jpg': cannot be written" in caplog.text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["s.tiles.zarr", "s.tiling.jpg"]

"""Annotations: QuPath's GeoJSON in, the class of each tile out, against areas cut one by one."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from simtriplet.wsi.annotation import NamedRegion, label_tiles, read_geojson
from simtriplet.wsi.errors import AnnotationError
from simtriplet.wsi.openslide_reader import scanned_xy
from simtriplet.wsi.slide import SlideInfo
from simtriplet.wsi.tile_request import LabelSpec, SlideJob
from simtriplet.wsi.tiling import tile_labels

SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]]}


def feature(geometry: Any = SQUARE, name: str | None = "gland", **properties: Any) -> dict[str, Any]:
    classification = {"classification": {"name": name, "color": [1, 2, 3]}} if name else {}
    return {"type": "Feature", "geometry": geometry, "properties": {**classification, **properties}}


def write(path: Path, document: Any) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.geojson"


class TestReading:
    @pytest.mark.parametrize(
        "document",
        [
            {"type": "FeatureCollection", "features": [feature(), feature(name="stroma")]},
            [feature(), feature(name="stroma")],
        ],
    )
    def test_collections_and_lists(self, path: Path, document: Any) -> None:
        regions = read_geojson(write(path, document))
        assert [region.name for region in regions] == ["gland", "stroma"]
        assert all(region.area.equals(shapely.box(0, 0, 10, 10)) for region in regions)

    def test_one_feature_with_a_byte_order_mark(self, path: Path) -> None:
        assert [r.name for r in read_geojson(write(path, "\ufeff" + json.dumps(feature(name=" Gland "))))] == [
            " Gland "
        ]

    def test_a_class_of_parts_is_called_as_qupath_shows_it(self, path: Path) -> None:
        document = [feature(), feature(), feature(name=None)]
        document[0]["properties"]["classification"] = {"names": ["Tumor", "Positive"], "color": [1, 2, 3]}
        document[1]["properties"]["classification"] = {"names": [], "name": "gland"}
        document[2]["properties"]["classification"] = {"names": [3]}
        assert [r.name for r in read_geojson(write(path, document))] == ["Tumor: Positive", "gland"]

    def test_the_class_wins_over_the_name(self, path: Path) -> None:
        document = [feature(name="gland"), feature(name=None), feature(name=None)]
        document[0]["properties"]["name"] = "mine"
        document[1]["properties"]["name"] = "mine"
        assert [r.name for r in read_geojson(write(path, document))] == ["gland", "mine"]

    @pytest.mark.parametrize(
        "left_out",
        [
            feature({"type": "Point", "coordinates": [1, 2]}),
            feature({"type": "LineString", "coordinates": [[1, 2], [3, 4]]}),
            feature(None),
            feature({"type": "Polygon", "coordinates": []}),
            {"type": "Feature", "geometry": SQUARE},
            {"type": "Feature", "geometry": SQUARE, "properties": None},
            feature(name="   "),
            {"type": "Feature", "geometry": SQUARE, "properties": {"classification": ["gland"]}},
            feature({"type": "Polygon", "coordinates": [[[0, 0], [5, 5], [9, 9], [0, 0]]]}),
        ],
    )
    def test_features_without_class_or_area_are_left_out(self, path: Path, left_out: Any) -> None:
        assert len(read_geojson(write(path, [left_out, feature()]))) == 1

    def test_holes_and_parts(self, path: Path) -> None:
        hole = [[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]]
        holed = {"type": "Polygon", "coordinates": [*SQUARE["coordinates"], hole]}
        far = [[[20, 0], [21, 0], [21, 1], [20, 0]]]
        many = {"type": "MultiPolygon", "coordinates": [SQUARE["coordinates"], far]}
        first, second = read_geojson(write(path, [feature(holed), feature(many)]))
        assert (first.area.area, second.area.area) == (96.0, 100.5)

    def test_a_bow_tie_is_mended(self, path: Path) -> None:
        bow = {"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]}
        (region,) = read_geojson(write(path, [feature(bow)]))
        assert region.area.is_valid
        assert region.area.area == 50.0

    def test_parts_that_overlap_or_touch_are_all_of_the_area(self, path: Path) -> None:
        """What two of them share is no hole: a picture's pixels, drawn as squares side by side, once lost every second one."""
        squares = [
            [[[x, y], [x + 10, y], [x + 10, y + 10], [x, y + 10], [x, y]]]
            for x in range(0, 60, 10)
            for y in range(0, 60, 10)
        ]
        (grid,) = read_geojson(write(path, feature({"type": "MultiPolygon", "coordinates": squares})))
        assert grid.area.area == 3600
        overlapping = [[[[x, x], [x + 20, x], [x + 20, x + 20], [x, x + 20], [x, x]]] for x in (0, 10)]
        (both,) = read_geojson(write(path, feature({"type": "MultiPolygon", "coordinates": overlapping})))
        assert both.area.area == 700

    @pytest.mark.parametrize("kind", ["scribble", "one hole many times", "all through one point", "thin parts"])
    def test_outlines_that_take_too_long_to_mend_are_refused_at_once(self, path: Path, kind: str) -> None:
        rng = np.random.default_rng(5)
        scribble = rng.uniform(0, 1e5, (500, 2)).tolist()
        square, hole = [[0, 0], [90, 0], [90, 90], [0, 90], [0, 0]], [[9, 9], [19, 9], [9, 19], [9, 9]]
        petals = [[[0, 0], [9e4, 60 * turn], [9e4, 60 * turn + 20]] for turn in range(1000)]
        lines = rng.uniform(0, 1e5, (400, 2, 2))
        coordinates: Any = {
            "scribble": [[*scribble, scribble[0]]],
            "one hole many times": [square, *[hole] * 1000],
            "all through one point": [[*(point for petal in petals for point in petal), [0, 0]]],
            "thin parts": [[[*line, [line[1][0] + 9, line[1][1] + 9], line[0]]] for line in lines.tolist()],
        }[kind]
        shape = "MultiPolygon" if kind == "thin parts" else "Polygon"
        began = time.process_time()
        with pytest.raises(AnnotationError, match="meets itself more than"):
            read_geojson(write(path, feature({"type": shape, "coordinates": coordinates})))
        assert time.process_time() - began < 5

    def test_three_numbers_a_point(self, path: Path) -> None:
        deep = {"type": "Polygon", "coordinates": [[[x, y, 0] for x, y in SQUARE["coordinates"][0]]]}
        assert read_geojson(write(path, [feature(deep)]))[0].area.area == 100.0


class TestMalformed:
    @pytest.mark.parametrize(
        "document",
        [
            "",
            "{",
            "[1, 2",
            "null",
            "3",
            '"text"',
            "{}",
            "[1]",
            "[null]",
            '{"type": "FeatureCollection"}',
            '{"type": "FeatureCollection", "features": {}}',
            '{"type": "FeatureCollection", "features": [3]}',
            '{"type": "Topology", "objects": {}}',
            json.dumps(SQUARE),
            "[" * 100_000,
            "x,y\n1,2\n",
        ],
    )
    def test_documents(self, path: Path, document: str) -> None:
        with pytest.raises(AnnotationError, match=r"is not (a )?GeoJSON") as caught:
            read_geojson(write(path, document))
        assert str(caught.value).startswith(f"annotation '{path}': ")
        assert str(caught.value).endswith("; export it again from QuPath")

    @pytest.mark.parametrize(
        "coordinates",
        [
            None,
            3,
            "text",
            {},
            [3],
            [[3]],
            [[["a", "b"]]],
            [[[0]]],
            [[[0, 0], [1, 1]]],
            [[[0, 0], [9, 0], [9, 9], [None, 0]]],
            [[[0, 0], [9, 0], [9, 9]]],
            [[[0, 0], [float("nan"), 0], [9, 9], [0, 0]]],
            [[[0, 0], [float("inf"), 0], [9, 9], [0, 0]]],
            [[[0, 0], [1e400, 0], [9, 9], [0, 0]]],
        ],
    )
    def test_coordinates(self, path: Path, coordinates: Any) -> None:
        document = [feature(), feature({"type": "Polygon", "coordinates": coordinates})]
        with pytest.raises(
            AnnotationError, match=rf"^annotation '{path}': feature 1 is malformed \(.*\); export it again$"
        ):
            read_geojson(write(path, document))

    def test_no_coordinates(self, path: Path) -> None:
        with pytest.raises(AnnotationError, match="feature 0 is malformed"):
            read_geojson(write(path, [feature({"type": "Polygon"})]))

    def test_missing_and_binary_files(self, path: Path) -> None:
        with pytest.raises(AnnotationError, match=r"cannot be read \(No such file or directory\); check the path$"):
            read_geojson(path)
        path.write_bytes(b"\xff\xfe\x00\x01")
        with pytest.raises(AnnotationError, match="is not GeoJSON"):
            read_geojson(path)

    json_values = st.recursive(
        st.none() | st.booleans() | st.floats() | st.sampled_from(["Polygon", "Feature", "gland", ""]),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "geometry", "properties", "coordinates", "features", "name", "classification"]
                ),
                inner,
            )
        ),
        max_leaves=12,
    )

    @settings(deadline=None, max_examples=150)
    @given(document=json_values)
    def test_any_json_is_read_or_refused_in_one_way(
        self, tmp_path_factory: pytest.TempPathFactory, document: Any
    ) -> None:
        for wrapped in (document, [feature(document)], [feature({"type": "MultiPolygon", "coordinates": document})]):
            path = write(tmp_path_factory.getbasetemp() / "any.geojson", wrapped)
            try:
                regions = read_geojson(path)
            except AnnotationError:
                continue
            assert all(region.name and region.area.is_valid and region.area.area > 0 for region in regions)


def label_by_hand(
    regions: list[NamedRegion], corners: Any, size: float, min_cover: float, background: str | None
) -> list[str | None]:
    """Cut every tile with every class, one at a time."""
    names = sorted({region.name for region in regions} | ({background} if background else set()))
    found: list[str | None] = []
    for x, y in corners.tolist():
        tile = shapely.box(x, y, x + size, y + size)
        cover = {
            name: shapely.union_all([r.area for r in regions if r.name == name]).intersection(tile).area / size**2
            for name in names
        }
        if background:
            cover[background] += 1 - shapely.union_all([r.area for r in regions]).intersection(tile).area / size**2
        best = max(names, key=lambda name: round(cover[name], 9), default=None)
        found.append(best if best is not None and round(cover[best], 9) >= max(min_cover, 1e-9) else None)
    return found


boxes = st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 40), st.integers(1, 40))
drawn = st.lists(st.tuples(st.sampled_from("abc"), boxes), max_size=6)


@settings(deadline=None, max_examples=150)
@given(
    drawn=drawn,
    size=st.integers(1, 30) | st.floats(1, 30),
    min_cover=st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0]),
    background=st.sampled_from([None, "background", "a"]),
    seed=st.integers(0, 99),
)
def test_labels_are_those_cut_by_hand(
    drawn: list[tuple[str, tuple[int, int, int, int]]], size: float, min_cover: float, background: str | None, seed: int
) -> None:
    regions = [NamedRegion(name, shapely.box(x, y, x + w, y + h)) for name, (x, y, w, h) in drawn]
    corners = np.random.default_rng(seed).integers(-10, 70, (12, 2))
    labels = label_tiles(regions, corners, size, min_cover=min_cover, background=background)
    assert labels.names().tolist() == label_by_hand(regions, corners, size, min_cover, background)


GRID = np.array([[0, 0], [10, 0], [20, 0], [30, 0]])


def test_holes_are_outside() -> None:
    ring = NamedRegion("gland", shapely.box(0, 0, 40, 10).difference(shapely.box(10, 0, 20, 10)))
    assert label_tiles([ring], GRID, 10, min_cover=0.5).names().tolist() == ["gland", None, "gland", "gland"]


def test_the_larger_of_two_overlapping_classes_wins() -> None:
    regions = [NamedRegion("b", shapely.box(0, 0, 10, 10)), NamedRegion("a", shapely.box(0, 0, 6, 10))]
    assert label_tiles(regions, GRID[:1], 10, min_cover=0.5).names().tolist() == ["b"]


def test_pieces_of_one_class_add_up_but_count_once_where_they_overlap() -> None:
    left, right = shapely.box(0, 0, 3, 10), shapely.box(7, 0, 10, 10)
    both = [NamedRegion("a", left), NamedRegion("a", right)]
    assert label_tiles(both, GRID[:1], 10, min_cover=0.6).names().tolist() == ["a"]
    twice = [NamedRegion("a", left), NamedRegion("a", left)]
    assert label_tiles(twice, GRID[:1], 10, min_cover=0.6).names().tolist() == [None]


def test_overlapping_classes_do_not_shrink_the_background() -> None:
    """0.6 of the tile lies outside both regions, which cover the same 0.4."""
    regions = [NamedRegion(name, shapely.box(0, 0, 4, 10)) for name in "ab"]
    assert label_tiles(regions, GRID[:1], 10, min_cover=0.5, background="none").names().tolist() == ["none"]


@pytest.mark.parametrize(("min_cover", "name"), [(0.3, "a"), (0.30001, None)])
def test_the_least_cover_is_inclusive(min_cover: float, name: str | None) -> None:
    regions = [NamedRegion("a", shapely.box(0, 0, 3, 10))]
    assert label_tiles(regions, GRID[:1], 10, min_cover=min_cover).names().tolist() == [name]


@pytest.mark.parametrize(("size", "x", "share"), [(485.8, 28974, 0.75), (36.57, 4705, 0.5), (485.8, 28974, 1.0)])
def test_a_share_that_is_exact_by_hand_is_not_lost_to_rounding(size: float, x: int, share: float) -> None:
    """Far from the origin the area of the cut comes out a little less than it is."""
    region = NamedRegion("a", shapely.box(x - 5, -5, x + size * share, size + 5))
    assert label_tiles([region], np.array([[x, 0]]), size, min_cover=share).names().tolist() == ["a"]


def test_classes_given_come_first_and_keep_their_codes() -> None:
    labels = label_tiles(
        [NamedRegion("x", shapely.box(0, 0, 10, 10))], GRID, 10, min_cover=0.5, background="b", classes=("z", "x")
    )
    assert labels.categories == ("z", "x", "b")
    assert np.asarray(labels.codes).tolist() == [1, 2, 2, 2]


def test_no_regions_and_no_tiles() -> None:
    assert label_tiles([], GRID, 10, min_cover=0.5).names().tolist() == [None] * 4
    assert label_tiles([], GRID, 10, min_cover=0.5, background="b").names().tolist() == ["b"] * 4
    area = NamedRegion("a", shapely.box(0, 0, 1, 1))
    assert len(label_tiles([area], np.zeros((0, 2), np.int64), 10, min_cover=0.5).codes) == 0


def test_slides_that_qupath_crops_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """MIRAX says where what was scanned begins; QuPath counts pixels from there."""
    corner = scanned_xy({"openslide.bounds-x": "32752", "openslide.bounds-y": "109084"})
    info = SlideInfo(((91287, 206613),), (1.0,), 0.25, 0.25, 20.0, "mirax", scanned_xy=corner)
    job = SlideJob(Path("a.mrxs"), "a", regions=(NamedRegion("gland", shapely.box(0, 0, 9, 9)),))
    xy = np.zeros((1, 2), np.int64)
    tile_labels(job, LabelSpec(), xy, 9.0, info)
    assert "'a.mrxs': what was scanned begins at x 32752, y 109084" in caplog.text
    assert "--no-crop" in caplog.text
    caplog.clear()
    for bare in ({}, {"openslide.bounds-x": "0", "openslide.bounds-y": "0"}):
        tile_labels(job, LabelSpec(), xy, 9.0, replace(info, scanned_xy=scanned_xy(bare)))
    assert caplog.text == ""

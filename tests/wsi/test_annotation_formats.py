"""Annotations of ASAP, ImageScope and in CSV; hostile and malformed files; which file belongs to a slide."""

import csv
import time
from pathlib import Path

import pytest
import shapely

from simtriplet.wsi.annotation import NamedRegion
from simtriplet.wsi.annotation_file import find_annotation, read_annotations
from simtriplet.wsi.errors import AnnotationError

SQUARE = [(0, 0), (10, 0), (10, 10), (0, 10)]


def asap(*annotations: str) -> str:
    groups = '<AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#64FE2E"/></AnnotationGroups>'
    return f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{"".join(annotations)}</Annotations>{groups}</ASAP_Annotations>'


def asap_area(
    points: list[tuple[float, float]], *, group: str = "Tumor", name: str = "Annotation 0", kind: str = "Polygon"
) -> str:
    rows = [f'<Coordinate Order="{place}" X="{x}" Y="{y}"/>' for place, (x, y) in enumerate(points)]
    # the order is in the attribute, not in the file
    text = "".join(reversed(rows))
    head = f'<Annotation Name="{name}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
    return f"{head}<Coordinates>{text}</Coordinates></Annotation>"


def aperio(*layers: tuple[str, list[str]]) -> str:
    text = "".join(
        f'<Annotation Id="{number}" Name="{name}"><Regions><RegionAttributeHeaders/>{"".join(regions)}</Regions></Annotation>'
        for number, (name, regions) in enumerate(layers)
    )
    return f'<Annotations MicronsPerPixel="0.499">{text}</Annotations>'


def aperio_area(points: list[tuple[float, float]], *, text: str = "", kind: int = 0, negative: int = 0) -> str:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return (
        f'<Region Id="1" Type="{kind}" Text="{text}" NegativeROA="{negative}"><Vertices>{vertices}</Vertices></Region>'
    )


def box(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def read(folder: Path, name: str, text: str | bytes) -> list[NamedRegion]:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_annotations(path)


class TestAsap:
    def test_the_group_is_the_class_and_the_name_without_one(self, tmp_path: Path) -> None:
        regions = read(
            tmp_path, "a.xml", asap(asap_area(SQUARE), asap_area(box(20, 0, 4, 5), group="None", name=" My class"))
        )
        assert [region.name for region in regions] == ["Tumor", " My class"]
        assert regions[0].area.equals(shapely.Polygon(SQUARE))
        assert regions[1].area.equals(shapely.box(20, 0, 24, 5))

    @pytest.mark.parametrize("kind", ["Polygon", "Rectangle", "Spline"])
    def test_areas(self, tmp_path: Path, kind: str) -> None:
        assert read(tmp_path, "a.xml", asap(asap_area(SQUARE, kind=kind)))[0].area.area == 100

    def test_points_lines_and_empty_ones_are_left_out(self, tmp_path: Path) -> None:
        left_out = [asap_area(SQUARE, kind=kind) for kind in ("Dot", "PointSet", "Measurement")]
        left_out += [asap_area([]), asap_area(SQUARE, group="None", name=""), asap_area([(0, 0), (5, 5), (9, 9)])]
        assert len(read(tmp_path, "a.xml", asap(*left_out, asap_area(SQUARE)))) == 1

    def test_decimal_commas(self, tmp_path: Path) -> None:
        text = asap(asap_area(SQUARE)).replace('X="10"', 'X="10,5"')
        assert read(tmp_path, "a.xml", text)[0].area.area == 105

    def test_a_bow_tie_is_mended(self, tmp_path: Path) -> None:
        (region,) = read(tmp_path, "a.xml", asap(asap_area([(0, 0), (10, 10), (10, 0), (0, 10)])))
        assert region.area.is_valid
        assert region.area.area == 50


class TestAperio:
    def test_the_text_of_the_region_is_the_class_or_the_name_of_the_layer(self, tmp_path: Path) -> None:
        text = aperio(
            ("Tumor", [aperio_area(SQUARE), aperio_area(box(20, 0, 5, 5), text="Necrosis")]),
            ("", [aperio_area(SQUARE)]),
        )
        assert [(r.name, r.area.area) for r in read(tmp_path, "a.xml", text)] == [("Tumor", 100), ("Necrosis", 25)]

    def test_negative_regions_are_holes_of_their_layer(self, tmp_path: Path) -> None:
        layer = [aperio_area(SQUARE), aperio_area(box(2, 2, 3, 3), negative=1)]
        regions = read(tmp_path, "a.xml", aperio(("a", layer), ("b", [aperio_area(SQUARE)])))
        assert [(r.name, r.area.area) for r in regions] == [("a", 91), ("b", 100)]
        assert len(regions[0].area.interiors) == 1

    def test_rulers_are_left_out_and_ellipses_are_round(self, tmp_path: Path) -> None:
        layer = [
            aperio_area([(0, 0), (9, 9)], kind=4),
            aperio_area([(0, 0), (20, 10)], kind=2),
            aperio_area(SQUARE, kind=1),
        ]
        ellipse, rectangle = read(tmp_path, "a.xml", aperio(("a", layer)))
        assert ellipse.area.area == pytest.approx(3.14159 * 10 * 5, rel=0.002)
        assert ellipse.area.bounds == pytest.approx((0, 0, 20, 10))
        assert rectangle.area.area == 100


class TestCsv:
    def test_vertices(self, tmp_path: Path) -> None:
        rows = [f"gland,1,{x},{y}" for x, y in SQUARE] + [f'"a, b",1,{x},{y}' for x, y in box(0, 0, 2, 3)]
        rows += [f"gland,2,{x},{y}" for x, y in box(50, 0, 2, 3)]
        regions = read(tmp_path, "a.csv", "\ufeffClass,Region,X,Y\r\n" + "\r\n".join(rows) + "\r\n")
        assert [(r.name, r.area.area) for r in regions] == [("gland", 100), ("a, b", 6), ("gland", 6)]

    def test_wkt(self, tmp_path: Path) -> None:
        holed = "POLYGON ((0 0, 10 0, 10 10, 0 10, 0 0), (1 1, 2 1, 2 2, 1 2, 1 1))"
        many = "MULTIPOLYGON (((0 0, 1 0, 1 1, 0 0)), ((5 5, 6 5, 6 6, 5 5)))"
        text = f'id,class,wkt\n1,gland,"{holed}"\n2,b,"{many}"\n3,c,POINT (1 1)\n4,,"{holed}"\n'
        assert [(r.name, r.area.area) for r in read(tmp_path, "a.csv", text)] == [("gland", 99), ("b", 1)]

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("", "has columns none"),
            ("x,y\n1,2\n", "has columns x, y: must be class,region,x,y or class,wkt"),
            ("class,region,x,y\na,1,2\n", "line 2 x, y '2', None: must be numbers"),
            ("class,region,x,y\na\n", "line 2 has too few cells"),
            ("class,region,x,y\na,1,2,nan\n", "line 2 x, y '2', 'nan': must be numbers"),
            ("class,region,x,y\na,1,2,3\na,1,2,4\n", "region '1' has 2 points: must be three or more"),
            ("class,wkt\na,POLYGON\n", "line 2 wkt is malformed"),
            ("class,wkt\na\n", "line 2 wkt is malformed"),
            ("class,wkt\na," + "x" * 200_000, "line 2 wkt is malformed"),
            (b"class,wkt\n\xff\xfe\n", "is not UTF-8"),
        ],
    )
    def test_malformed(self, tmp_path: Path, text: str | bytes, told: str) -> None:
        with pytest.raises(AnnotationError) as caught:
            read(tmp_path, "a.csv", text)
        message = str(caught.value)
        assert message.startswith(f"annotation '{tmp_path / 'a.csv'}': {told}")
        assert "; " in message
        assert "\n" not in message


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a0 "lol">'
    + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    + "]><ASAP_Annotations>&a11;</ASAP_Annotations>"
)
EXTERNAL = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><ASAP_Annotations>&x;</ASAP_Annotations>'


@pytest.mark.parametrize("text", [BOMB, EXTERNAL, '<!DOCTYPE a SYSTEM "http://localhost/a.dtd"><Annotations/>'])
def test_entities_dtds_and_references_are_refused_at_once(tmp_path: Path, text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(AnnotationError, match=r"holds a DTD, entities or external references .*; remove them"):
        read(tmp_path, "a.xml", text)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not XML"),
        ("<a>", "is not XML|is XML of <a>"),
        ("<svg/>", "is XML of <svg>: must be of ASAP_Annotations or Annotations"),
        (asap(asap_area(SQUARE))[:200], "is not XML"),
        (asap(asap_area(SQUARE)).replace('X="10"', 'X="ten"'), "Coordinate has X 'ten': must be a number"),
        (asap(asap_area(SQUARE)).replace('X="10"', 'X="inf"'), "Coordinate has X 'inf': must be a number"),
        (asap(asap_area(SQUARE)).replace('Y="10"', ""), "Coordinate has Y '': must be a number"),
        (asap(asap_area([(0, 0), (1, 1)])), "annotation 0 has 2 points: must be three or more"),
        (aperio(("a", [aperio_area([(0, 0), (1, 1)])])), "region 1 has 2 points"),
        ('<?xml version="1.0" encoding="klingon"?><Annotations/>', "is not XML"),
        ("<Annotations>\x00</Annotations>", "is not XML"),
    ],
)
def test_malformed_xml_is_refused_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(AnnotationError, match=told) as caught:
        read(tmp_path, "a.xml", text)
    message = str(caught.value)
    assert message.startswith(f"annotation '{tmp_path / 'a.xml'}': ")
    assert "; " in message
    assert "\n" not in message


def test_the_content_decides(tmp_path: Path) -> None:
    geojson = '{"type": "FeatureCollection", "features": []}'
    assert read(tmp_path, "a.txt", geojson) == []
    assert read(tmp_path, "b.txt", asap(asap_area(SQUARE)))[0].name == "Tumor"
    assert read(tmp_path, "c.csv", aperio(("a", [aperio_area(SQUARE)])))[0].name == "a"
    with pytest.raises(AnnotationError, match="is of no known format; name it"):
        read(tmp_path, "d.txt", "class,wkt\n")
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_annotations(tmp_path / "missing.xml")


def test_an_outline_of_many_points_fits_into_a_cell(tmp_path: Path) -> None:
    """csv itself takes 131,072 letters at most, and still does elsewhere."""
    circle = shapely.Point(20_000, 20_000).buffer(9_000, quad_segs=3_000)
    assert len(circle.wkt) > 3 * csv.field_size_limit() == 3 << 17
    (region,) = read(tmp_path, "a.csv", f'class,wkt\ngland,"{circle.wkt}"\n')
    assert region.area.equals(circle)
    assert csv.field_size_limit() == 1 << 17


def test_many_annotations_are_read_one_at_a_time(tmp_path: Path) -> None:
    areas = [asap_area(box(20 * number, 0, 10, 10), group=f"class {number % 3}") for number in range(3000)]
    regions = read(tmp_path, "a.xml", asap(*areas))
    assert len(regions) == 3000
    assert regions[-1].area.bounds == (20 * 2999, 0, 20 * 2999 + 10, 10)


def test_a_slide_has_one_file_or_none(tmp_path: Path) -> None:
    assert find_annotation(tmp_path, "s") is None
    (tmp_path / "s.xml").touch()
    (tmp_path / "s2.csv").touch()
    assert find_annotation(tmp_path, "s") == tmp_path / "s.xml"
    (tmp_path / "s.geojson").touch()
    with pytest.raises(AnnotationError, match=r"s\.geojson and s\.xml are both of slide 's'; leave one of them$"):
        find_annotation(tmp_path, "s")
    (tmp_path / "a.b.geojson").touch()
    assert find_annotation(tmp_path, "a.b") == tmp_path / "a.b.geojson"

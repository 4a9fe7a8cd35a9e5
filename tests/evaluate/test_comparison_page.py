"""The comparison's page, read as text and looked at in a real browser."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from simtriplet.evaluate.bootstrap import Interval
from simtriplet.evaluate.comparison import ComparisonSettings
from simtriplet.evaluate.comparison_charts import Series, draw_label_curves, draw_scores
from simtriplet.evaluate.comparison_measurement import compare_encoders
from simtriplet.evaluate.comparison_pictures import gallery_section
from simtriplet.evaluate.comparison_report import write_comparison
from simtriplet.evaluate.embedding_map import EmbeddingMap, draw_embedding_map, group_marker
from simtriplet.evaluate.feature_array import write_features
from simtriplet.evaluate.gallery import draw_gallery
from simtriplet.evaluate.label_curve import CurvePoint
from simtriplet.evaluate.lines_table import lines_table
from simtriplet.evaluate.nearest_tiles import NOBODY
from simtriplet.evaluate.palette import class_colours, series_colours

HOSTILE = '<b>&" <script>alert(1)</script>'
TITLES = {"good": "SimTriplet, 400 epochs", "weak": HOSTILE, "noise": "a" * 70}


@pytest.fixture(scope="module")
def made():
    """What the tests of this module look at; the first that asks makes it."""
    return {}


@pytest.fixture
def compared(made, store_factory, tmp_path_factory, monkeypatch):
    """A page with curves and a transductive row, its comparison and its stores."""
    if not made:
        monkeypatch.setattr("simtriplet.evaluate.label_efficiency.DEFAULT_DRAWS", {"share": 2, "shots": 2})
        folder, out = tmp_path_factory.mktemp("stores"), tmp_path_factory.mktemp("page")
        stores = [store_factory(f"s{n}", patient_id=f"p{n}", seed=n, index=False, folder=folder) for n in range(3)]
        stores.append(store_factory("s3", patient_id="p0", seed=9, index=False, folder=folder))
        stores[-1].attributes["slide"]["id"] = HOSTILE.replace("/", "")  # a reader that checks less than ours
        rng = np.random.default_rng(0)
        for store in stores:
            for name, signal in (("good", 9.0), ("weak", 0.7), ("noise", 0.0)):
                features = rng.normal(size=(len(store), 6)).astype(np.float32)
                features[:, 0] += signal * np.asarray(store.labels().codes)
                seen = {"pretraining_patients": ["p1"]} if name == "weak" else {}
                record = {"encoder_hash": name, "objective": HOSTILE, "image_size_px": 48, "precision": "fp32"}
                write_features(store, name, features, {**record, **seen})
        settings = ComparisonSettings(folds=3)
        comparison = compare_encoders(stores, TITLES, settings=settings, reference="noise", out=out)
        made.update(page=out / "comparison.html", comparison=comparison, stores=stores)
    return made


class PageReader(HTMLParser):
    """Collect tags, pictures and headings of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.pictures, self.headings, self.addresses = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        if tag == "img":
            self.pictures.append(found)
        self.addresses += [value for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data):
        if self.tags and self.tags[-1] in ("h1", "h2", "h3") and data.strip():
            self.headings.append(data)


def test_the_page_holds_every_picture_with_a_text(compared):
    text = compared["page"].read_text(encoding="utf-8")
    reader = PageReader(text)
    assert {"In one table", "How far apart", "Few labels", "Confusion", "Maps of the features", "Nearest tiles"} < set(
        reader.headings
    )
    # 2 scores, 2 curves; for each of 3 encoders a confusion matrix, 2 maps, a gallery; labels + 3 predictions on 4 slides
    assert len(reader.pictures) == 2 + 2 + 3 * (1 + 2 + 1) + 4 * 4
    alts = [picture["alt"] for picture in reader.pictures]
    assert all(len(alt) > 10 or alt == "Labels" for alt in alts)
    good = compared["comparison"].encoders[0].result
    assert any(f"SimTriplet, 400 epochs {good.metrics.balanced_accuracy:.3f} (" in alt for alt in alts)
    assert all(address.startswith("data:image/png;base64,") for address in reader.addresses)
    assert not re.search(r"https?://|url\(|@import", text)


def test_names_of_encoders_slides_and_objectives_stay_text(compared):
    text = compared["page"].read_text(encoding="utf-8")
    reader = PageReader(text)
    assert {"script", "b"}.isdisjoint(reader.tags)
    assert "<script" not in text
    assert text.count("&lt;b&gt;&amp;&quot; &lt;script&gt;") > 10
    assert f"{HOSTILE} (transductive)" in reader.headings


def test_transductive_is_a_label_beside_each_number(compared):
    text = compared["page"].read_text(encoding="utf-8")
    rows = re.findall(r"<tr>.*?</tr>", text.partition("How far apart")[0])
    marked = [row.count('<span class="tag">transductive</span>') for row in rows[1:]]
    assert marked == [0, 7, 0]
    curves = re.findall(r"<tr>.*?</tr>", text.partition("Few labels")[2].partition("Confusion")[0])
    assert [row.count('class="tag"') for row in curves if "&lt;b&gt;" in row] == [4, 5]


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_the_page_without_fault(compared, look_at, width, dark):
    look = look_at(compared["page"], width=width, dark=dark)
    assert look.errors == []
    assert look.requests == []
    assert look.scroll_width == width
    assert (look.broken_pictures, look.without_alt, look.clipped_tables) == (0, 0, 0)
    assert HOSTILE in look.text
    assert Image.open(io.BytesIO(look.screenshot)).width == width


def test_paper_shows_whole_tables_and_pictures(compared, look_at):
    a4 = look_at(compared["page"], width=718, printed=True)  # within margins of one centimetre, at 96 px an inch
    assert (a4.scroll_width, a4.cut_boxes) == (718, 0)
    assert look_at(compared["page"], width=718).cut_boxes > 0  # a window scrolls


def test_the_page_says_what_the_lines_of_its_cells_are_and_how_encoders_saw_tiles(compared):
    text = compared["page"].read_text(encoding="utf-8")
    assert f"below it the difference from {'a' * 70}, and its p-value" in text
    assert text.count("; images of 48 px; in fp32; protocol linear; encoder hash") == 3
    assert "<td>folds</td><td>3 by patient</td>" in text


def test_the_browser_sees_faults(look_at, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><script>console.error('no'); missing()</script><img src='http://127.0.0.1:9/x.png'>"
        "<table style='width:2000px'><tr><td>wide</td></tr></table>"
    )
    look = look_at(page, width=360)
    assert any("missing" in error for error in look.errors)
    assert '[{"type": "string", "value": "no"}]' in look.errors
    assert look.requests == ["http://127.0.0.1:9/x.png"]
    assert look.scroll_width > 2000
    assert (look.broken_pictures, look.without_alt, look.clipped_tables) == (1, 1, 1)


def test_rows_without_features_leave_sections_out(compared, tmp_path):
    comparison = compared["comparison"]
    bare = dataclasses.replace(
        comparison,
        encoders=tuple(
            dataclasses.replace(one, geometry=None, laid_out=None, nearest=None, curves=(), curve_differences={})
            for one in comparison.encoders
        ),
    )
    page = write_comparison(tmp_path, bare, compared["stores"], max_slides=2)
    text = page.read_text(encoding="utf-8")
    assert {"Maps of the features", "Nearest tiles"}.isdisjoint(PageReader(text).headings)
    assert "Curves over the number of labels were not measured." in text
    # of different patients, though the first patient has two slides
    assert "2 of 4 slides are shown." in text
    assert re.findall(r"Patient: p\d", text) == ["Patient: p0", "Patient: p1"]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def count_near(picture, colour):
    wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
    return int((abs(picture - wanted).max(axis=2) < 12).sum())


def test_an_encoder_has_one_colour_in_every_chart():
    colours = series_colours(9)
    assert len(set(colours)) == 7
    series = [Series(f"encoder {number}", colour, number) for number, colour in enumerate(colours)]
    assert len({(one.colour, one.marker) for one in series}) == 9
    interval = Interval(0.6, 0.5, 0.7)
    points = [CurvePoint(amount, (), {"m": interval}) for amount in (1, 4, 16)]
    for one in series:
        scores = pixels(draw_scores([(one, interval)], axis_title="x (0 to 1)"))
        curve = pixels(
            draw_label_curves(
                [(one, points)], metric="m", x_title="labels (tiles)", y_title="y (0 to 1)", tick_text=str, chance=0.5
            )
        )
        for picture in (scores, curve):
            found = {colour: count_near(picture, colour) for colour in colours}
            assert max(found, key=found.__getitem__) == one.colour
            assert found[one.colour] > 30


def test_scores_without_intervals_and_curves_of_one_point_are_drawn():
    series = Series("one", "#0072B2", 0)
    without = Interval(0.6, None, None)
    assert count_near(pixels(draw_scores([(series, without)], axis_title="x")), "#0072B2") > 30
    points = [CurvePoint(0.01, (), {"m": without})]
    drawn = draw_label_curves([(series, points)], metric="m", x_title="x", y_title="y", tick_text=str)
    assert count_near(pixels(drawn), "#0072B2") > 30


def test_groups_of_a_map_differ_without_colour_too():
    assert len({group_marker(code) for code in range(4)}) == 4
    assert len({(code % 8, group_marker(code)) for code in range(16)}) == 16  # after eight, colours are darker ones


def test_maps_of_many_groups_are_drawn():
    rng = np.random.default_rng(0)
    laid_out = EmbeddingMap("pca", np.arange(60), rng.normal(size=(60, 2)), (0.5, 0.25))
    few = pixels(draw_embedding_map(laid_out, np.repeat(["a", "b"], 30)))
    many = pixels(draw_embedding_map(laid_out, np.array([f"$group_{n}$" for n in range(60)])))
    assert many.shape[1] == few.shape[1]
    assert many.shape[0] > few.shape[0] + 80
    assert laid_out.axis_titles == ("component 1 (50% of variance)", "component 2 (25% of variance)")
    assert EmbeddingMap("umap", laid_out.places, laid_out.xy, ()).axis_titles[0] == "UMAP 1 (no unit)"


def test_a_gallery_shows_the_tiles_themselves(compared):
    tiles, stores = compared["comparison"].encoders[0].result.tiles, compared["stores"]
    place = int(np.flatnonzero(tiles.slides == "s1")[5])
    anchors, found = np.array([place]), np.array([[place, NOBODY]])
    picture = pixels(draw_gallery(stores, tiles, anchors, found))
    tile = stores[1].images.read([int(tiles.rows[place])])[0]
    middle = np.asarray(Image.fromarray(tile).resize((92, 92), Image.Resampling.LANCZOS)).astype(int)[20:72, 20:72]
    for left in (128, 128 + 92 + 24):
        shown = picture[30 + 20 : 30 + 72, left + 20 : left + 72]
        assert np.corrcoef(shown.ravel(), middle.ravel())[0, 1] > 0.95
    assert (picture[30 + 20 : 30 + 72, 128 + 2 * 104 + 12 + 20 : 128 + 2 * 104 + 12 + 72] == 255).all()  # nobody
    colour = "#" + "".join(f"{round(255 * part):02x}" for part in class_colours(2)[int(tiles.codes[place])])
    assert count_near(picture, colour) > 2 * 92 * 4


def test_a_large_k_does_not_widen_the_galleries(compared):
    comparison = compared["comparison"]
    widths = []
    for k in (8, 100_000):
        nearest = np.repeat(comparison.anchors[:, None], k, axis=1)
        rows = [dataclasses.replace(row, nearest=nearest) for row in comparison.encoders]
        text = gallery_section(dataclasses.replace(comparison, encoders=tuple(rows)), compared["stores"])
        assert "and the 8 most similar ones of other patients each" in text
        data = re.findall(r"data:image/png;base64,([^\"]+)", text)[0]
        widths.append(Image.open(io.BytesIO(base64.b64decode(data))).width)
    assert widths[0] == widths[1]


def test_tables_of_lines_escape_and_mark():
    text = lines_table([("a", "<b>")], [[("&",), ("1", "<i>", "tag")]], tags=("tag",), swatches=("#123456",))
    assert "a<br>&lt;b&gt;" in text
    assert '<i class="key" style="background:#123456"></i>&amp;</td>' in text
    assert '<div>1</div><div class="small quiet">&lt;i&gt;</div><div><span class="tag">tag</span></div>' in text

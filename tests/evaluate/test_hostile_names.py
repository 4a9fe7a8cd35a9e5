"""Names from other people's files in every page and table: read as text, run by nothing, computed by no spreadsheet."""

import csv
import io
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from simtriplet.evaluate.comparison import ComparisonSettings
from simtriplet.evaluate.comparison_measurement import compare_encoders
from simtriplet.evaluate.csv_text import csv_text
from simtriplet.evaluate.evaluation import evaluate_features
from simtriplet.evaluate.feature_array import write_features
from simtriplet.evaluate.html_page import escape
from simtriplet.evaluate.neighbour_report import write_neighbour_report
from simtriplet.evaluate.prediction import predict_slide
from simtriplet.evaluate.prediction_files import write_prediction
from simtriplet.evaluate.report import write_report
from simtriplet.evaluate.results import write_results
from simtriplet.evaluate.saved_head import fit_result_head
from simtriplet.evaluate.unlabelled import describe_features
from simtriplet.evaluate.unlabelled_report import write_unlabelled_report
from simtriplet.wsi.errors import EvaluationError
from simtriplet.wsi.store import TileStore

MARK = "document.title=document.documentElement.id='ran'"
"""What every one of the scripts below would do, and a browser would show."""

SCRIPT = f"<script>{MARK}</script>"
PICTURE = f'"><img src=x onerror="{MARK}">'
FRAME = f"'><svg/onload={MARK}>{{{{7*7}}}}${{7*7}}"
CLOSING = f"</title></style></td></section>{SCRIPT}"
BACKWARDS = "safe\u202egnp.exe\u2066\u0000\u001b[2J"
FORMULA = "=cmd|'/c calc'!A1"
PIPES = "a | b `c` [d](javascript:alert(1)) <b>"

SLIDES = (PICTURE, SCRIPT.replace("/", "\u2215"), "plain", FORMULA.replace("/", "\u2215"))
PATIENTS = (SCRIPT, FRAME, BACKWARDS, FORMULA)
CLASSES = (f"{PICTURE}{SCRIPT}", FORMULA)
TITLE = CLOSING
ENCODER = {"encoder_hash": SCRIPT, "backbone": PICTURE, "objective": FRAME, "steps": 3, "image_size_px": 32}


class Pages(dict[str, Path]):
    """The pages by name, and the folder of the tables."""

    tables: Path


@pytest.fixture(scope="module")
def made() -> dict[str, Pages]:
    """What the tests of this module look at; the first that asks makes it."""
    return {}


@pytest.fixture
def pages(made, store_factory, tmp_path_factory) -> Pages:
    if not made:
        made["pages"] = make_pages(store_factory, tmp_path_factory.mktemp("hostile"))
    return made["pages"]


def make_pages(store_factory, folder: Path) -> Pages:
    """Write every page and table that names go into."""
    stores = hostile_stores(store_factory, folder)
    labels = write_labels(folder / "labels.csv", stores)
    found, pages = Pages(), folder / "pages"
    run = folder / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("\n".join(json.dumps({"step": n, "loss": 1 - n / 9}) for n in range(9)))
    result = evaluate_features(stores, "f", labels=labels, folds=2, draws=100)
    other = evaluate_features(stores, "g", labels=labels, folds=2, draws=100)
    found["report"] = write_report(pages / "report", result=result, stores=stores, baseline=other, run=run, title=TITLE)
    described = [describe_features(stores, name) for name in ("f", "g")]
    found["unlabelled"] = write_unlabelled_report(
        pages / "unlabelled", result=described[0], baseline=described[1], stores=stores, run=run, title=TITLE
    )
    settings = ComparisonSettings(folds=2, labels=labels, curves=False)
    compare_encoders(stores, {"f": PICTURE, "g": PIPES}, settings=settings, out=pages / "comparison")
    found["comparison"] = pages / "comparison" / "comparison.html"
    found.tables = pages
    write_results(pages / "results", result, baseline=other)
    plain = stores[2]
    write_prediction(pages / "predicted", plain, predict_slide(plain, fit_result_head(result)))
    write_neighbour_report([plain], pages / "neighbours")
    return found


def hostile_stores(store_factory, folder: Path) -> list[TileStore]:
    stores = []
    for number, (slide, patient) in enumerate(zip(SLIDES, PATIENTS, strict=True)):
        made = store_factory(f"s{number}", patient_id=f"p{number}", seed=number, rows=3, cols=4, folder=folder)
        rng = np.random.default_rng(number)
        for name, signal in (("f", 5.0), ("g", 0.0)):
            features = rng.normal(size=(len(made), 4)).astype(np.float32)
            features[:, 0] += signal * np.asarray(made.labels().codes)
            write_features(made, name, features, ENCODER)
        store = TileStore(made.path)
        store.attributes["slide"] |= {"id": slide, "patient_id": patient}  # a reader that checks less than ours
        stores.append(store)
    return stores


def write_labels(path: Path, stores: Sequence[TileStore]) -> Path:
    rows: list[Sequence[object]] = [("slide_id", "x", "y", "label", "patient_id")]
    for store in stores:
        codes = np.asarray(store.labels().codes).tolist()
        for (x, y), code in zip(store.base_xy().tolist(), codes, strict=True):
            rows.append((store.slide_id, x, y, CLASSES[code], store.patient_id))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


PAGES = ("report", "unlabelled", "comparison")


class PageReader(HTMLParser):
    """Collect what a page could run or load, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcdoc", "action")]

    def handle_data(self, data):
        self.text += data


_TABLE = {"table", "thead", "tbody", "tr", "th", "td"}
ALLOWED = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "header",
    "section",
    "div",
    "span",
    "p",
    "br",
    "i",
    "b",
}
ALLOWED |= {"h1", "h2", "h3", "figure", "figcaption", "img"} | _TABLE


@pytest.mark.parametrize("page", PAGES)
def test_no_name_becomes_markup(pages, page):
    text = pages[page].read_text(encoding="utf-8")
    reader = PageReader(text)
    assert reader.tags <= ALLOWED
    assert reader.handlers == []
    assert all(address.startswith("data:image/png;base64,") for address in reader.addresses)
    assert PICTURE in reader.text  # shown as it is
    assert text.count("Content-Security-Policy") == 1
    if page != "comparison":
        assert CLOSING in reader.text


@pytest.mark.parametrize("page", PAGES)
def test_no_name_reorders_or_hides_the_text_around_it(pages, page):
    text = pages[page].read_text(encoding="utf-8")
    odd = {letter for letter in text if not letter.isprintable()} - {"\n"}
    assert odd == set()
    if page == "report":
        assert "safe\ufffdgnp.exe\ufffd\ufffd\ufffd[2J" in text


@pytest.mark.parametrize("page", PAGES)
def test_a_browser_runs_nothing_of_a_page(pages, look_at, page):
    look = look_at(pages[page], width=1280)
    assert look.errors == []
    assert look.requests == []
    assert look.broken_pictures == 0
    assert PICTURE in look.text


def test_the_browser_would_have_seen_a_script_run(look_at, tmp_path):
    """Of names that are put into a page as they come, and no policy."""
    page = tmp_path / "naive.html"
    page.write_text(f"<p>{PICTURE}</p><p>{SCRIPT}</p><p>{FRAME}</p>", encoding="utf-8")
    look = look_at(page, width=600)
    assert PICTURE not in look.text
    assert look.requests
    assert {"img", "script", "svg/onload=" + MARK.split("'")[0]} & PageReader(page.read_text()).tags


def test_escaping_leaves_ordinary_names_alone():
    for name in ("Ärztin 3", "腺癌", "G2–G3", "tumour, 50 %", "HER2 3+"):
        assert escape(name) == name
    assert escape("a\n b\tc") == "a  b c"


def cells_of(path: Path) -> list[str]:
    return [cell for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8"))) for cell in row]


def test_no_cell_of_a_table_is_a_formula(pages):
    tables = sorted(pages.tables.rglob("*.csv"))
    assert {path.name for path in tables} >= {
        "results.csv",
        "predictions.csv",
        "comparison.csv",
        "spatial.csv",
        "plain.csv",
    }
    cells = [cell for path in tables for cell in cells_of(path)]
    assert f"'{FORMULA}" in cells  # a class, as shown by a spreadsheet
    for cell in cells:
        assert cell[:1] not in ("=", "@", "\t", "\r")
        if cell[:1] in ("+", "-"):
            float(cell)


@pytest.mark.parametrize("name", ["+", "++", "3+", "-", "- -", "-1.5", "+2e-3", "a=b", "user@host", "'quoted", "G1-G2"])
def test_grades_numbers_and_plain_names_stay_as_they_are(name):
    assert cells_after(name) == name


@pytest.mark.parametrize("name", ["=1+1", "@SUM(A1)", "+A1", "-cmd|x", "\t=1", "+1+cmd()", "-2+3!x", "=\n1"])
def test_what_a_spreadsheet_would_compute_is_quoted(name):
    assert cells_after(name) == f"'{name}"


def cells_after(name: str) -> str:
    (row,) = csv.reader(io.StringIO(csv_text([(name, -1.5)]), newline=""))
    assert row[1] == "-1.5"
    return row[0]


def test_json_and_geojson_hold_names_exactly(pages):
    results = json.loads((pages.tables / "results" / "results.json").read_text(encoding="utf-8"))
    assert sorted(results["classes"]) == sorted(CLASSES)
    (drawn,) = (pages.tables / "predicted").glob("*.geojson")
    names = {feature["properties"]["classification"]["name"] for feature in json.loads(drawn.read_text())["features"]}
    assert names <= set(CLASSES)
    assert names


def test_the_markdown_table_keeps_its_columns_and_holds_no_markup(pages):
    lines = (pages.tables / "comparison" / "comparison.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    bars = {row.replace("\\|", "").count("|") for row in rows}
    assert len(bars) == 1
    assert not any("<" in line for line in lines)
    assert not any("](javascript" in line for line in lines)


@pytest.mark.parametrize(
    "slide", ["../outside", "/tmp/outside", "a/b", "..", ".hidden", "a\nb", "x" * 250, "nul\u0000"]
)
def test_no_slide_id_leads_out_of_a_folder(store_factory, tmp_path, slide):
    """A store can be made by anyone: what its attributes call the slide is not what its folder is called."""
    store = store_factory("honest", rows=2, cols=2)
    store.attributes["slide"]["id"] = slide
    out = tmp_path / "deep" / "out"
    before = set(tmp_path.rglob("*"))
    with pytest.raises(EvaluationError, match="cannot name a file"):
        write_neighbour_report([store], out)
    assert set(tmp_path.rglob("*")) == before

"""The report page and its pictures: geometry, colours, escaping."""

import base64
import dataclasses
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from simtriplet.evaluate import evaluate_features, write_report
from simtriplet.evaluate.charts import draw_confusion, draw_loss
from simtriplet.evaluate.feature_array import write_features
from simtriplet.evaluate.overlay import draw_classes, draw_grid, nice_length_um, tile_squares
from simtriplet.evaluate.palette import class_colours
from simtriplet.evaluate.training_log import read_loss_curve
from simtriplet.wsi.errors import EvaluationError
from simtriplet.wsi.store import TileStore

HOSTILE = "<script>alert(1)&"


SLIDES = ("s0", "s1", HOSTILE)


@pytest.fixture
def cohort(template, store_factory, tmp_path):
    """Three patients with separable features "f" and random ones "noise". Made once, copied for each test."""
    if not any(template.iterdir()):
        rng = np.random.default_rng(0)
        for number in range(len(SLIDES)):
            store = store_factory(f"s{number}", patient_id=f"p{number}", seed=number, index=False, folder=template)
            give_features(store, "f", 20.0, rng)
            give_features(store, "noise", 0.0, rng)
    shutil.copytree(template, tmp_path / "stores")
    stores = [TileStore(tmp_path / "stores" / f"s{number}.tiles.zarr") for number in range(len(SLIDES))]
    for store, name in zip(stores, SLIDES, strict=True):
        store.attributes["slide"]["id"] = name  # a reader that checks less than ours
    return stores


def give_features(store, name, signal, rng):
    features = rng.normal(size=(len(store), 4)).astype(np.float32)
    features[:, 0] += signal * np.asarray(store.labels().codes)
    write_features(store, name, features, {"encoder_hash": name, "backbone": "resnet18", "objective": "o", "steps": 3})


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [json.dumps({"step": step, "loss": 1 - step / 100, "lr": 0.1}) for step in range(0, 100, 2)]
    lines += ['{"step": 98, "loss": NaN}', '{"epoch": 1}', '{"step": 100, "lo']
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folder


class PageReader(HTMLParser):
    """Collect the tags, headings and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.headings, self.texts, self.sources = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)
        if self.tags and self.tags[-1] in ("h1", "h2", "h3") and data.strip():
            self.headings.append(data)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_the_page_is_whole_and_loads_nothing(cohort, run, tmp_path):
    result, baseline = (evaluate_features(cohort, name) for name in ("f", "noise"))
    page = write_report(tmp_path / "out", result=result, stores=cohort[:1], baseline=baseline, run=run, title="A & B")
    text = page.read_text(encoding="utf-8")
    reader = PageReader(text)
    assert page == tmp_path / "out" / "report.html"
    assert reader.headings[:2] == ["A & B", "Were test patients in pretraining? No"]
    assert {"Classes", "Folds", "Pretraining", "Slides", "Settings", "s0"} < set(reader.headings)
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert not re.search(r"https?://|url\(|@import", text)
    assert str(tmp_path) not in text
    words = " ".join(reader.texts)
    assert "1.000" in words
    assert f"baseline {baseline.metrics.balanced_accuracy:.3f}" in words
    assert "Macro AUROC" in words
    assert f"baseline {baseline.metrics.macro_auroc:.3f}" in words
    assert "Loss from 1.000 to 0.020 over 98 steps" in words


@pytest.mark.parametrize("width", [1000, 1280])
def test_no_table_is_cut_in_a_usual_window(cohort, look_at, tmp_path, width):
    page = write_report(tmp_path / "out", result=evaluate_features(cohort, "f"), stores=cohort[:1])
    page.write_text(page.read_text(encoding="utf-8").replace("stripes", "epithelium"), encoding="utf-8")
    look = look_at(page, width=width)
    assert "epithelium" in look.text
    assert look.cut_boxes == 0


def test_pictures_in_the_page_are_the_files_beside_it(cohort, run, tmp_path):
    result = evaluate_features(cohort, "f")
    text = write_report(tmp_path, result=result, stores=cohort[1:], run=run).read_text(encoding="utf-8")
    inlined = {base64.b64decode(data) for data in re.findall(r"base64,([A-Za-z0-9+/=]+)", text)}
    files = sorted((tmp_path / "figures").iterdir())
    assert {file.read_bytes() for file in files} == inlined
    assert [file.name for file in files if file.name.startswith("0")] == [
        *(
            f"{stem}_{kind}.png"
            for stem in ("01_s1", "02_-script-alert-1-")
            for kind in ("labels", "predictions", "tiles")
        )
    ]


def test_a_hostile_slide_name_stays_text(cohort, tmp_path):
    result = evaluate_features(cohort, "f")
    text = write_report(tmp_path, result=result, stores=cohort[2:], title=HOSTILE).read_text(encoding="utf-8")
    reader = PageReader(text)
    assert "<script" not in text
    assert "script" not in reader.tags
    assert HOSTILE in reader.headings
    assert "&lt;script&gt;alert(1)&amp;" in text


def test_leakage_is_said(cohort, tmp_path):
    for store in cohort:
        write_features(store, "f", store.features("f"), {"encoder_hash": "f", "pretraining_patients": ["p0"]})
    result = evaluate_features(cohort, "f", folds=3)
    text = write_report(tmp_path, result=result, stores=cohort[:1]).read_text(encoding="utf-8")
    leaking = [number for number, fold in enumerate(result.folds, 1) if fold.test_patients == ("p0",)]
    assert "Were test patients in pretraining? Yes" in text
    assert f"In fold {leaking[0]} the encoder" in text


def test_only_the_first_slides_are_drawn_and_untested_ones_without_predictions(cohort, tmp_path):
    result = evaluate_features(cohort, "f", test_patients=["p2"])
    text = write_report(tmp_path, result=result, stores=cohort, max_slides=1).read_text(encoding="utf-8")
    assert "1 of 3 slides are shown." in text
    assert "no interval: one test patient" in text
    assert not list((tmp_path / "figures").glob("*predictions*"))


def test_a_baseline_of_other_tiles_is_refused(cohort, tmp_path):
    result = evaluate_features(cohort, "f")
    for other in (evaluate_features(cohort[:2], "noise"), evaluate_features(cohort, "noise", protocol="knn")):
        with pytest.raises(
            EvaluationError, match="baseline 'noise': was measured on other tiles or with other settings"
        ):
            write_report(tmp_path, result=result, stores=cohort, baseline=other)


def test_features_may_stand_beside_a_network_trained_with_labels(cohort, tmp_path):
    result = evaluate_features(cohort, "f")
    network = dataclasses.replace(result, settings=dataclasses.replace(result.settings, protocol="supervised"))
    base = evaluate_features(cohort, "noise")
    text = write_report(tmp_path, result=network, stores=cohort[:1], baseline=base).read_text(encoding="utf-8")
    assert "baseline: features &#x27;noise&#x27;, resnet18 (o, 3 steps), protocol linear" in text
    other = evaluate_features(cohort, "noise", seed=1)
    with pytest.raises(EvaluationError, match="measured on other tiles or with other settings"):
        write_report(tmp_path, result=network, stores=cohort[:1], baseline=other)


def test_patients_are_those_of_the_label_file(cohort, tmp_path):
    labels = tmp_path / "labels.csv"
    rows = ["slide_id,x,y,label,patient_id"]
    for store, patient in zip(cohort, ("Ann", "Bob", "Cid"), strict=True):
        rows += [f"{store.slide_id},{x},{y},{'left' if x < 96 else 'right'},{patient}" for x, y in store.base_xy()]
    labels.write_text("\n".join(rows))
    result = evaluate_features(cohort, "f", labels=labels, test_patients=["Cid"])
    text = write_report(tmp_path, result=result, stores=cohort).read_text(encoding="utf-8")
    assert [text.count(f"Patient {name}. ") for name in ("Ann", "Bob", "Cid", "p0")] == [1, 1, 1, 0]
    assert "<td>folds</td><td>none: named patients are tested, all others learnt from</td>" in text


def test_the_loss_curve_leaves_out_what_is_no_loss(run, tmp_path):
    curve = read_loss_curve(run)
    np.testing.assert_array_equal(curve.steps, np.arange(0, 100, 2))
    np.testing.assert_allclose(curve.losses, 1 - np.arange(0, 100, 2) / 100)
    with pytest.raises(EvaluationError, match=r"no readable metrics.jsonl; pass a folder that pretrain wrote"):
        read_loss_curve(tmp_path / "none")


def test_a_run_that_has_logged_nothing_is_said_so(cohort, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    result = evaluate_features(cohort, "f")
    text = write_report(tmp_path / "out", result=result, stores=cohort[:1], run=tmp_path).read_text(encoding="utf-8")
    assert "has not logged a loss yet" in text


def test_tile_squares_lie_where_the_tiles_lie(store_factory):
    store = store_factory(
        rows=4, cols=6, size_px=32, index=False
    )  # thumbnail: 8 level-0 pixels a pixel, so 4 pixels a tile
    squares = tile_squares(store, whole=True)
    np.testing.assert_allclose(squares[:, 0], store.base_xy() / 8)
    np.testing.assert_allclose(squares[:, 2], store.base_xy() / 8 + 4)


def test_tiles_have_the_colour_of_their_class_at_their_place(store_factory):
    store = store_factory(rows=4, cols=6, index=False)  # 24 x 16 thumbnail pixels, drawn 900 wide: 150 px a tile
    codes = np.full(24, -1)
    codes[[0, 9]] = 0, 1
    picture = pixels(draw_classes(store, codes, ("x", "y"))).astype(int)
    ground = 200 * 0.65 + 255 * 0.35
    for place in range(24):
        x, y = (store.base_xy()[place] / 32 * 150 + 40).astype(int)
        colour = np.array(class_colours(2)[codes[place]]) * 255
        expected = colour * 0.55 + ground * 0.45 if codes[place] >= 0 else np.full(3, ground)
        np.testing.assert_allclose(picture[y, x], expected, atol=3)


def test_wrong_predictions_are_crossed(store_factory):
    store = store_factory(rows=4, cols=6, index=False)
    codes, labels = np.zeros(24, int), np.zeros(24, int)
    labels[7] = 1
    picture = pixels(draw_classes(store, codes, ("x", "y"), labels=labels)).astype(int)
    for place in range(24):
        x, y = (store.base_xy()[place] / 32 * 150 + 75).astype(int)
        assert (picture[y - 3 : y + 3, x - 3 : x + 3].sum(axis=2).min() < 60) == (place == 7)


def test_the_grid_is_drawn_on_the_borders(store_factory):
    picture = pixels(draw_grid(store_factory(rows=4, cols=6, index=False))).astype(int)
    assert abs(picture[75, 75] - 200).max() <= 3
    assert picture[75, 148:153, 0].min() < 100
    assert picture[148:153, 75, 0].min() < 100


def test_a_tall_slide_and_many_classes_with_odd_names_are_drawn(store_factory):
    store = store_factory(rows=9, cols=2, index=False)
    names = ["$\\frac{$", "漢字", "x" * 80, "line\nbreak", *(f"class {n}" for n in range(16))]
    picture = pixels(draw_classes(store, np.arange(18), names))
    assert picture.shape[1] == 440
    assert picture.shape[0] > 900
    assert pixels(draw_confusion(np.eye(20, dtype=int).tolist(), names)).shape[0] > 20 * 70


def test_a_slide_without_tiles_is_drawn(store_factory):
    store = store_factory(keep=np.zeros(24, bool), index=False)
    assert pixels(draw_grid(store)).shape[1] == 900


@pytest.mark.parametrize(
    ("longest", "length"), [(1.0, 1), (1.99, 1), (2.0, 2), (4.9, 2), (5, 5), (999, 500), (1000, 1000), (0.3, 0.2)]
)
def test_scale_bars_are_round(longest, length):
    assert nice_length_um(longest) == pytest.approx(length)


def test_sixteen_classes_have_sixteen_colours():
    assert len(set(class_colours(16))) == 16
    assert class_colours(17)[16] == class_colours(1)[0]


@pytest.mark.parametrize("n", [1, 29, 200])
def test_loss_curves_of_any_length_are_drawn(n):
    picture = pixels(draw_loss(np.arange(n, dtype=float), np.linspace(1, 0, n)))
    assert picture.shape == (320, 760, 3)

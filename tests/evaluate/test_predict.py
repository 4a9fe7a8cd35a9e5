"""A saved head over slides: what is read back is what was predicted, and only for the encoder it was fitted on."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import shapely

from simtriplet.evaluate.evaluation import evaluate_features, read_labelled_tiles
from simtriplet.evaluate.feature_array import write_features
from simtriplet.evaluate.labelled_tiles import encoder_record
from simtriplet.evaluate.linear_head import LinearHead
from simtriplet.evaluate.prediction import SlidePrediction, predict_slide
from simtriplet.evaluate.prediction_files import write_prediction
from simtriplet.evaluate.prediction_polygons import prediction_geojson, tile_boxes
from simtriplet.evaluate.saved_head import SavedHead, fit_head, fit_result_head, load_head, save_head
from simtriplet.wsi.annotation import label_tiles, read_geojson
from simtriplet.wsi.errors import CheckpointError, EvaluationError, StoreError

ENCODER = {"encoder_hash": "h", "image_size_px": 32, "backbone": "resnet18"}


def give_features(store, *, width=4, seed=0, **attributes):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(len(store), width)).astype(np.float32)
    features[:, 0] += 4 * np.asarray(store.labels().codes)
    write_features(store, "f", features, {**ENCODER, **attributes})


@pytest.fixture
def cohort(store_factory):
    stores = [store_factory(f"s{n}", patient_id=f"p{n}", seed=n, index=False) for n in range(3)]
    for number, store in enumerate(stores):
        give_features(store, seed=number)
    return stores


@pytest.fixture
def saved(cohort):
    return fit_result_head(evaluate_features(cohort, "f", folds=3))


def random_prediction(store, classes=("a", "b", "c"), seed=0):
    shares = np.random.default_rng(seed).dirichlet(np.ones(len(classes)), size=len(store))
    return SlidePrediction(store.slide_id, classes, shares)


def read_back(store, text, classes, tmp_path):
    file = tmp_path / "map.geojson"
    file.write_text(text, encoding="utf-8")
    return label_tiles(read_geojson(file), store.base_xy(), store.base_size_px, min_cover=0.5, classes=classes).codes


def test_a_head_comes_back_exactly(saved, tmp_path):
    file = save_head(tmp_path / "deep" / "head.json", saved)
    found = load_head(file)
    for name in ("mean", "scale", "weight", "bias"):
        np.testing.assert_array_equal(getattr(found.head, name), getattr(saved.head, name))
    for name in ("classes", "features", "encoder", "fitted", "n_tiles", "patients"):
        assert getattr(found, name) == getattr(saved, name)
    assert (found.classes, found.n_tiles, found.patients) == (("dots", "stripes"), 72, ("p0", "p1", "p2"))
    assert found.fitted["C_chosen_by"] == "inner folds of patients"
    assert found.head.strength == saved.head.strength


def test_a_slide_whose_labels_the_head_has_seen_is_named_though_the_label_file_names_patients_otherwise(
    cohort, tmp_path, caplog
):
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label,patient\ns0,x,A\ns1,y,A\n")
    cohort_of_two = [*cohort[:2]]
    tiles, _ = read_labelled_tiles(cohort_of_two, "f", labels=labels, patient_column="patient")
    saved = fit_head(tiles, features="f", encoder=encoder_record(cohort_of_two, "f"))
    found = load_head(save_head(tmp_path / "head.json", saved))
    assert (found.patients, found.slides) == (("A",), ("s0", "s1"))
    caplog.clear()
    for store in cohort[1:]:
        predict_slide(store, found)
    assert "slide 's1': the head has learnt" in caplog.text
    assert "slide 's2'" not in caplog.text


def test_a_head_of_format_1_0_is_read(saved, tmp_path):
    file = save_head(tmp_path / "head.json", saved)
    values = json.loads(file.read_text())
    del values["slides"], values["simtriplet_checksum"]
    file.write_text(json.dumps({**values, "version": "1.0"}))
    assert load_head(file).slides == ()


def test_a_class_that_was_not_in_training_stays_impossible(saved, tmp_path):
    head = dataclasses.replace(saved.head, bias=np.array([0.5, -np.inf]))
    found = load_head(save_head(tmp_path / "head.json", dataclasses.replace(saved, head=head)))
    assert found.head.bias.tolist() == [0.5, -np.inf]


def test_predictions_are_those_of_the_head(cohort, saved):
    prediction = predict_slide(cohort[1], saved)
    logits = saved.head.logits(cohort[1].features("f"))
    np.testing.assert_array_equal(prediction.codes, logits.argmax(axis=1))
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1)
    assert (prediction.codes == cohort[1].labels().codes).mean() > 0.9


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("mpp", [0.5, 0.77])
def test_tiles_read_back_from_geojson_have_the_class_that_was_predicted(store_factory, tmp_path, merged, mpp):
    store = store_factory(rows=9, cols=11, size_px=16, index=False, mpp=mpp)
    prediction = random_prediction(store)
    text = prediction_geojson(store, prediction, merged=merged)
    np.testing.assert_array_equal(read_back(store, text, prediction.classes, tmp_path), prediction.codes)


def test_qupath_finds_type_class_colour_and_measurements(store_factory):
    store = store_factory(rows=2, cols=3, size_px=16, index=False)
    shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
    document = json.loads(prediction_geojson(store, SlidePrediction("slide", ("tumour", "stroma"), shares)))
    assert document["type"] == "FeatureCollection"
    first, second = document["features"]
    assert first["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "tumour", "color": [0, 114, 178]},
        "measurements": {
            "Probability: tumour": pytest.approx(0.85),
            "Probability: stroma": pytest.approx(0.15),
            "Tiles": 4,
        },
    }
    assert second["properties"]["measurements"]["Tiles"] == 2
    area = shapely.from_geojson(json.dumps(first["geometry"]))
    assert area.equals(shapely.box(0, 0, 32, 32))
    assert len(area.exterior.coords) == 5


def test_areas_of_a_class_cover_its_tiles_once(store_factory):
    store = store_factory(rows=12, cols=12, size_px=16, index=False)
    prediction = random_prediction(store, seed=3)
    features = json.loads(prediction_geojson(store, prediction))["features"]
    for code, name in enumerate(prediction.classes):
        mine = [one for one in features if one["properties"]["classification"]["name"] == name]
        assert sum(one["properties"]["measurements"]["Tiles"] for one in mine) == (prediction.codes == code).sum()
        areas = [shapely.from_geojson(json.dumps(one["geometry"])) for one in mine]
        assert sum(area.area for area in areas) == (prediction.codes == code).sum() * 256
        assert all(area.is_valid and area.geom_type == "Polygon" for area in areas)


class Lattice:
    """What tile_boxes looks at: tiles of a lattice whose pitch in level-0 pixels is not whole."""

    def __init__(self, *, size_px, stride_px, mpp, base_mpp, cells):
        self.size_px, self.stride_px, self.mpp, self.base_mpp = size_px, stride_px, mpp, base_mpp
        self.cells = np.array(cells)

    def base_xy(self):
        return np.rint(self.cells * self.stride_px * self.mpp / self.base_mpp).astype(np.int64)


@pytest.mark.parametrize(("size", "stride"), [(224, 224), (224, 112), (100, 130)])
def test_boxes_of_neighbours_share_their_edges_to_the_last_bit(size, stride):
    cells = [(x, y) for x in range(40) for y in (0, 1, 3)]
    boxes = tile_boxes(Lattice(size_px=size, stride_px=stride, mpp=0.5, base_mpp=0.2528, cells=cells))
    by_cell = dict(zip(cells, boxes, strict=True))
    pitch = min(size, stride) * 0.5 / 0.2528
    assert np.abs(boxes[:, 2:] - boxes[:, :2] - pitch).max() <= 1.0
    if stride > size:
        np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], pitch)
        return
    for (x, y), (_, _, right, bottom) in by_cell.items():
        if (x + 1, y) in by_cell:
            assert right == by_cell[x + 1, y][0]
        if (x, y + 1) in by_cell:
            assert bottom == by_cell[x, y + 1][1]
    joined = shapely.union_all(shapely.box(*boxes.T))
    assert len(shapely.get_parts(joined)) == 2  # rows 0 and 1, and row 3
    assert not any(part.interiors for part in shapely.get_parts(joined))


def test_files_of_a_slide(cohort, saved, tmp_path):
    prediction = predict_slide(cohort[0], saved)
    files = write_prediction(tmp_path / "out", cohort[0], prediction)
    assert [file.name for file in files] == ["s0.geojson", "s0.csv", "s0.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["s0.csv", "s0.geojson", "s0.png"]
    with files[1].open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert list(rows[0]) == ["slide_id", "tile_id", "x", "y", "predicted", "probability_dots", "probability_stripes"]
    assert [(int(row["x"]), int(row["y"])) for row in rows] == [tuple(xy) for xy in cohort[0].base_xy().tolist()]
    for row, code, shares in zip(rows, prediction.codes, prediction.probabilities, strict=True):
        assert row["predicted"] == saved.classes[code]
        assert float(row["probability_stripes"]) == pytest.approx(shares[1], abs=1e-6)
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_a_slide_without_tiles_gives_empty_files(store_factory, saved, tmp_path):
    store = store_factory("empty", keep=np.zeros(24, bool), index=False)
    write_features(store, "f", np.zeros((0, 4), np.float32), ENCODER)
    files = write_prediction(tmp_path, store, predict_slide(store, saved))
    assert json.loads(files[0].read_text()) == {
        "type": "FeatureCollection",
        "generator": "SimTriplet predict",
        "features": [],
    }


@pytest.mark.parametrize(
    "slide_id", ["../up", "..", ".hidden", "a/b", "a\\b", "", " ", "a\0b", "x" * 201, "C:x", "a\nb"]
)
def test_a_slide_cannot_write_outside_the_folder(cohort, saved, tmp_path, slide_id):
    store = cohort[0]
    store.attributes["slide"]["id"] = slide_id
    out = tmp_path / "deep" / "out"
    with pytest.raises(EvaluationError, match="cannot name a file"):
        write_prediction(out, store, predict_slide(store, saved))
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("attributes", "width", "said"),
    [
        ({"encoder_hash": "other"}, 4, r"weights differ"),
        ({"image_size_px": 64}, 4, r"image size differ"),
        ({}, 5, r"length differ"),
        ({"encoder_hash": "other"}, 5, r"weights and length differ"),
    ],
)
def test_features_of_another_encoder_are_refused(cohort, saved, attributes, width, said):
    give_features(cohort[0], width=width, **attributes)
    with pytest.raises(EvaluationError, match=said):
        predict_slide(cohort[0], saved)


def test_missing_or_broken_features_are_refused(store_factory, cohort, saved):
    with pytest.raises(StoreError, match="has no features 'f'"):
        predict_slide(store_factory("bare", index=False), saved)
    write_features(cohort[0], "f", np.full((24, 4), np.nan, np.float32), ENCODER)
    with pytest.raises(EvaluationError, match="not finite"):
        predict_slide(cohort[0], saved)


def test_a_patient_that_the_head_has_learnt_from_is_named(store_factory, cohort, saved, caplog):
    predict_slide(cohort[0], saved)
    assert "slide 's0': the head has learnt from this patient's labels" in caplog.text
    caplog.clear()
    stranger = store_factory("new", patient_id="p9", index=False)
    give_features(stranger)
    predict_slide(stranger, saved)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "other"},
        {"version": "2.0"},
        {"weight": [[1.0, 2.0]]},
        {"bias": ["x", 1]},
        {"classes": ["a", "a"]},
        {"classes": None},
        {"scale": [1.0, 1.0, 1.0, 0.0]},
        {"weight": None},
        {"n_tiles": "many"},
    ],
)
def test_a_damaged_head_is_refused_in_one_line(saved, tmp_path, change):
    file = save_head(tmp_path / "head.json", saved)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match="head") as caught:
        load_head(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"[1]", b"\x80\x04K\x01.", b"{" * 100_000, b"null"])
def test_what_is_no_head_is_refused(tmp_path, content):
    file = tmp_path / "head.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match="head '"):
        load_head(file)


def test_a_head_of_the_wrong_shape_cannot_be_made():
    head = LinearHead(np.zeros(3), np.ones(3), np.zeros((2, 3)), np.zeros(3), 1.0, True)
    with pytest.raises(CheckpointError, match="other shapes"):
        SavedHead(head, ("a", "b"), "f", {}, {}, 0, ())

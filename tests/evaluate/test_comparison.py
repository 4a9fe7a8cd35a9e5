"""Encoders compared: every number is that of the single evaluation, and the table says the same in every format."""

import csv
import dataclasses
import io
import json
import shutil

import numpy as np
import pytest

from simtriplet.evaluate import evaluate_features
from simtriplet.evaluate.comparison import Comparison, ComparisonSettings
from simtriplet.evaluate.comparison_measurement import compare_encoders
from simtriplet.evaluate.comparison_table import (
    comparison_csv,
    comparison_json,
    comparison_markdown,
    headers,
    table_cells,
)
from simtriplet.evaluate.embedding_map import map_features
from simtriplet.evaluate.feature_array import write_features
from simtriplet.evaluate.feature_geometry import measure_geometry
from simtriplet.evaluate.label_efficiency import measure_label_curve
from simtriplet.evaluate.paired import compare_curves, compare_paired
from simtriplet.wsi.errors import EvaluationError, MissingDependencyError, SettingsError
from simtriplet.wsi.store import TileStore

OWNERS = {"s0": "p0", "s1": "p1", "s2": "p2", "s3": "p3", "s4": "p3"}
TITLES = {"good": "Good", "weak": '<b>&"| weak', "noise": "Noise"}
QUICK = ComparisonSettings(folds=4, curves=False)


@pytest.fixture
def cohort(template, store_factory, tmp_path):
    """Five slides of four patients with three feature sets; `weak` was pretrained on p1. Made once, copied."""
    if not any(template.iterdir()):
        for number, (name, owner) in enumerate(OWNERS.items()):
            store_factory(name, patient_id=owner, seed=number, index=False, folder=template)
        stores = [TileStore(template / f"{name}.tiles.zarr") for name in OWNERS]
        give_features(stores, "good", signal=20.0)
        give_features(stores, "weak", signal=1.0, pretraining_patients=["p1"])
        give_features(stores, "noise", signal=0.0)
    shutil.copytree(template, tmp_path / "stores")
    return [TileStore(tmp_path / "stores" / f"{name}.tiles.zarr") for name in OWNERS]


@pytest.fixture(scope="module")
def made():
    """Comparisons by reference, for tests that only look at them."""
    return {}


@pytest.fixture
def compared(cohort, made):
    """Return the quick comparison of all three, differences taken from the encoder named."""

    def compare(reference):
        if reference not in made:
            made[reference] = compare_encoders(cohort, TITLES, settings=QUICK, reference=reference)
        return made[reference]

    return compare


def give_features(stores, name, *, signal, **attributes):
    rng = np.random.default_rng(len(name))
    for store in stores:
        features = rng.normal(size=(len(store), 6)).astype(np.float32)
        features[:, 0] += signal * (2.0 * np.asarray(store.labels().codes) - 1)
        record = {"encoder_hash": name, "backbone": "resnet18", "objective": "o", "steps": 3}
        write_features(store, name, features, {**record, **attributes})


def without_features(result):
    return dataclasses.replace(
        result, tiles=dataclasses.replace(result.tiles, features=np.zeros((len(result.tiles), 0), np.float32))
    )


def test_every_number_is_that_of_the_single_evaluation(cohort, compared):
    comparison = compared("noise")
    assert comparison.reference == "Noise"
    assert [encoder.title for encoder in comparison.encoders] == list(TITLES.values())
    singles = {name: evaluate_features(cohort, name, folds=4) for name in TITLES}
    for encoder, (name, single) in zip(comparison.encoders, singles.items(), strict=True):
        assert encoder.result.features == name
        assert encoder.result.intervals == single.intervals
        assert encoder.result.metrics == single.metrics
        assert [fold.test_patients for fold in encoder.result.folds] == [fold.test_patients for fold in single.folds]
        assert encoder.geometry == measure_geometry(single.tiles, np.arange(len(single.tiles)))
        expected = {} if name == "noise" else compare_paired(single, singles["noise"])
        assert encoder.differences == expected
        assert encoder.curves == ()
    assert comparison.encoders[0].geometry.retrieval == 1.0
    assert comparison.encoders[0].differences["balanced_accuracy"].difference == pytest.approx(
        singles["good"].metrics.balanced_accuracy - singles["noise"].metrics.balanced_accuracy
    )


def test_curves_and_their_differences_are_those_of_single_calls(cohort, monkeypatch):
    monkeypatch.setattr("simtriplet.evaluate.label_efficiency.DEFAULT_DRAWS", {"share": 2, "shots": 3})
    settings = ComparisonSettings(folds=2, seed=3)
    comparison = compare_encoders(cohort, {"good": "good", "noise": "noise"}, settings=settings, reference="noise")
    for kind in ("share", "shots"):
        good, noise = (measure_label_curve(cohort, name, kind=kind, folds=2, seed=3) for name in ("good", "noise"))
        for encoder, single in zip(comparison.encoders, (good, noise), strict=True):
            curve = encoder.curve(kind)
            assert [point.intervals for point in curve.points] == [point.intervals for point in single.points]
            assert all(point.log_probabilities is None for point in curve.points)
        assert comparison.encoders[0].curve_differences[kind] == compare_curves(good, noise, seed=3)
    assert comparison.encoders[1].curve_differences == {}
    values = json.loads(comparison_json(comparison))["encoders"][0]["curves"]
    assert [[point["amount"] for point in curve["points"]] for curve in values] == [
        [0.01, 0.1, 0.25, 1.0],
        [1, 2, 4, 8, 16],
    ]
    assert [len(point["draws"]) for point in values[1]["points"]] == [3] * 5


def test_shots_that_the_training_tiles_do_not_allow_are_left_out(store_factory, caplog):
    stores = [store_factory(f"s{n}", rows=1, cols=6, patient_id=f"p{n}", seed=n, index=False) for n in range(2)]
    for name in ("one", "two"):
        give_features(stores, name, signal=1.0)
    comparison = compare_encoders(stores, {"one": "one", "two": "two"}, settings=ComparisonSettings(folds=2))
    assert [point.amount for point in comparison.encoders[0].curve("shots").points] == [1, 2]
    assert "at most 3 tiles of a class" in caplog.text


def test_three_formats_hold_the_same_numbers(compared):
    comparison = compared("good")
    values = json.loads(comparison_json(comparison))
    lines = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    rows = markdown_rows(comparison_markdown(comparison))
    assert values["reference"] == "Good"
    assert (values["n_tiles"], values["n_patients"], values["n_folds"]) == (120, 4, 4)
    assert len(lines) == len(rows) == len(values["encoders"]) == 3
    for encoder, line, cells in zip(values["encoders"], lines, rows, strict=True):
        assert line["encoder"] == encoder["title"]
        assert (line["is_reference"] == "True") == (encoder["title"] == "Good") == (cells[4] == "reference")
        for column, metric in enumerate(("balanced_accuracy", "macro_f1", "macro_auroc"), start=1):
            one = encoder["metrics"][metric]
            assert [float(line[f"{metric}{end}"]) for end in ("", "_low", "_high")] == [
                one["value"], one["low"], one["high"]
            ]  # fmt: skip
            assert cells[column].startswith(f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]")
        if encoder["title"] != "Good":
            one = encoder["differences"]["balanced_accuracy"]
            assert float(line["balanced_accuracy_difference"]) == one["difference"]
            assert float(line["balanced_accuracy_difference_p_value"]) == one["p_value"]
            assert cells[4].startswith(f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}] p = ")
        geometry = encoder["geometry"]
        assert float(line["retrieval"]) == geometry["retrieval"]
        assert int(line["retrieval_k"]) == geometry["k"] == 5
        assert cells[5].startswith(f"{geometry['retrieval']:.3f} ({geometry['retrieval_chance']:.3f})")
        assert cells[6].startswith(f"{geometry['slide_leakage']:.3f} ({geometry['slide_leakage_chance']:.3f})")
        assert cells[7].startswith(f"{geometry['effective_rank']:.1f} of 6")


def markdown_rows(text):
    table = [line for line in text.splitlines() if line.startswith("|")]
    cells = [line.replace("\\|", "¦").strip("|").split("|") for line in table]
    assert {len(row) for row in cells} == {8}
    return [[cell.strip() for cell in row] for row in cells[2:]]


def test_names_stay_text_in_markdown(compared):
    text = comparison_markdown(compared("weak"))
    assert '&lt;b&gt;&amp;"\\| weak' in text
    assert "<b>" not in text
    assert "from &lt;b&gt;" in text.splitlines()[0]


def test_transductive_stands_beside_every_number_that_is(cohort, compared):
    comparison = compared("good")
    good, weak, noise = (table_cells(encoder, comparison) for encoder in comparison.encoders)
    assert comparison.encoders[1].leakage == "transductive"
    assert all(cell[-1] == "transductive" for cell in weak[1:])
    assert "transductive" not in [line for cell in (*good, *noise) for line in cell]
    # where the reference is transductive, so are the differences from it
    comparison = compared("weak")
    good, weak, noise = (table_cells(encoder, comparison) for encoder in comparison.encoders)
    for cells in (good, noise):
        assert [cell[-1] == "transductive" for cell in cells] == [place == 4 for place in range(8)]
    assert weak[4] == ("reference",)
    text = comparison_markdown(comparison)
    assert "transductive: the encoder was pretrained on tiles" in text
    inductive = compare_encoders(cohort, {"good": "a", "noise": "b"}, settings=QUICK)
    assert "transductive" not in comparison_markdown(inductive)


def test_a_network_trained_with_labels_has_a_row_and_no_features(cohort):
    trained = dataclasses.replace(
        without_features(evaluate_features(cohort, "weak", protocol="knn", folds=4)), features="supervised"
    )
    curve = measure_label_curve(cohort, "weak", kind="share", draws=1, folds=4)
    comparison = compare_encoders(
        cohort, {"good": "Good"}, settings=QUICK, results={"Scratch": trained}, result_curves={"Scratch": [curve]},
        reference="supervised",
    )  # fmt: skip
    good, scratch = comparison.encoders
    assert comparison.reference == "Scratch"
    assert good.differences == compare_paired(evaluate_features(cohort, "good", folds=4), trained)
    assert scratch.result.intervals == trained.intervals
    assert table_cells(scratch, comparison)[4:] == (("reference",), *[("–",)] * 3)
    assert scratch.geometry is None
    line = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))[1]
    assert [line[key] for key in ("features", "retrieval", "slide_leakage", "effective_rank", "feature_dim")] == [
        ""
    ] * 5
    assert scratch.curve("share").kind == "share"


def test_curves_with_other_draws_are_shown_without_differences(cohort, monkeypatch, caplog):
    monkeypatch.setattr("simtriplet.evaluate.label_efficiency.DEFAULT_DRAWS", {"share": 2, "shots": 2})
    result = without_features(evaluate_features(cohort, "noise", folds=4))
    curve = measure_label_curve(cohort, "noise", kind="share", draws=1, folds=4)
    comparison = compare_encoders(
        cohort, {"good": "Good"}, settings=ComparisonSettings(folds=4), results={"Scratch": result},
        result_curves={"Scratch": [curve]},
    )  # fmt: skip
    assert comparison.encoders[1].curve_differences == {}
    assert comparison.encoders[1].differences
    assert "Scratch: its share curve has other draws of labels" in caplog.text


def test_results_of_other_folds_are_refused(cohort):
    for other in (
        evaluate_features(cohort, "noise", test_patients=["p3"]),
        evaluate_features(cohort[:4], "noise", folds=4),
        evaluate_features(cohort, "noise", folds=2),
    ):
        with pytest.raises(EvaluationError, match=r"have other .*; measure both"):
            compare_encoders(cohort, {"good": "Good"}, settings=QUICK, results={"Other": other})


def test_refusals_come_before_anything_is_measured(cohort):
    def compare(features, **options):
        return compare_encoders(cohort, features, settings=QUICK, **options)

    with pytest.raises(EvaluationError, match=r"comparison of 1 encoder\(s\): needs two"):
        compare({"good": "Good"})
    with pytest.raises(EvaluationError, match="encoder 'x': two have this title"):
        compare({"good": "x", "noise": "x"})
    with pytest.raises(EvaluationError, match="reference 'nose': is none of the encoders; did you mean 'noise'"):
        compare({"good": "Good", "noise": "noise"}, reference="nose")
    with pytest.raises(SettingsError, match="k 0: must be at least 1"):
        ComparisonSettings(k=0)
    with pytest.raises(SettingsError, match="evaluation protocol 'svm': is not known"):
        ComparisonSettings(protocol="svm")
    with pytest.raises(SettingsError, match="folds 1"):
        ComparisonSettings(folds=1)


def test_progress_counts_to_the_end(cohort, tmp_path):
    seen = []
    compare_encoders(
        cohort, {"good": "Good", "noise": "Noise"}, settings=QUICK, out=tmp_path / "out",
        progress=lambda *step: seen.append(step),
    )  # fmt: skip
    assert seen == [
        (0, 4, "Good: linear"), (1, 4, "Noise: linear"), (2, 4, "Noise: differences"), (3, 4, "report"), (4, 4, "done")
    ]  # fmt: skip


def test_equal_inputs_give_equal_files(cohort, tmp_path):
    for out in ("one", "two"):
        compare_encoders(cohort, {"good": "a", "weak": "b"}, settings=QUICK, out=tmp_path / out)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["comparison.csv", "comparison.html", "comparison.json", "comparison.md"]
    for name in names:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert str(tmp_path).encode() not in content


def test_the_header_names_k_and_the_reference(cohort):
    comparison = compare_encoders(cohort, TITLES, settings=dataclasses.replace(QUICK, k=2), reference="noise")
    titles = [" ".join(title) for title in headers(comparison)]
    assert titles[4] == "difference in balanced accuracy from Noise [95 %], p"
    assert titles[5] == "retrieval@2 (chance)"
    assert comparison.encoders[0].nearest.shape == (4, 2)


def test_nearest_tiles_of_the_gallery_are_of_other_patients(compared):
    comparison = compared("good")
    for encoder in comparison.encoders:
        patients = encoder.result.tiles.patients
        assert (patients[encoder.nearest] != patients[comparison.anchors][:, None]).all()
    codes = comparison.encoders[0].result.tiles.codes
    assert (codes[comparison.encoders[0].nearest] == codes[comparison.anchors][:, None]).all()


def test_maps_keep_the_largest_variance_and_a_collapsed_encoder_is_a_point():
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, np.pi / 2, 400)
    rows = np.stack([np.cos(angle), np.sin(angle), np.full(400, 1e-3)], axis=1)
    found = map_features(rows, np.arange(400))
    assert sum(found.explained) == pytest.approx(1, abs=1e-3)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    spread = np.linalg.svd(unit - unit.mean(axis=0))[1] ** 2
    assert found.explained[0] == pytest.approx(spread[0] / spread.sum(), rel=1e-5)
    assert found.xy.var(axis=0).sum() == pytest.approx(unit.var(axis=0).sum(), rel=1e-4)
    assert len(map_features(rng.normal(size=(5000, 3)), np.arange(5000)).places) == 3000
    collapsed = map_features(np.ones((10, 4)), np.arange(10))
    assert not collapsed.xy.any()
    assert collapsed.explained == (0.0, 0.0)


def test_umap_without_the_package_says_what_to_do(monkeypatch):
    monkeypatch.setattr("simtriplet.evaluate.embedding_map.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install umap-learn or use pca"):
        map_features(np.eye(4), np.arange(4), method="umap")


def test_a_comparison_knows_its_reference(compared):
    comparison = compared("good")
    assert comparison.base.title == "Good"
    with pytest.raises(EvaluationError, match="reference 'x': is none of the encoders"):
        Comparison(comparison.encoders, "x", comparison.anchors)

"""Few-shot and label-efficiency curves on features whose answer is known, from stores to files."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest

from simtriplet.evaluate.evaluation import evaluate_features
from simtriplet.evaluate.feature_array import write_features
from simtriplet.evaluate.few_label_head import learn_linearly
from simtriplet.evaluate.label_curve import CurvePoint, CurveSettings
from simtriplet.evaluate.label_curve_files import write_label_curves
from simtriplet.evaluate.label_draws import draw_seeds
from simtriplet.evaluate.label_efficiency import curve_of_tiles, measure_label_curve
from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.paired import compare_curves, compare_paired
from simtriplet.evaluate.splits import hold_out, make_folds
from simtriplet.wsi.errors import EvaluationError, SettingsError, StoreError
from simtriplet.wsi.store import TileStore

ENCODER = {"encoder_hash": "h", "backbone": "resnet18", "objective": "simtriplet", "steps": 9}
SLIDES = ("s0", "s1", "s2", "s3", "s4")


@pytest.fixture
def cohort(template, store_factory, tmp_path):
    """Five patients of 24 tiles; the label is the half of the slide. Made once, copied for each test."""
    if not any(template.iterdir()):
        for number, name in enumerate(SLIDES):
            store_factory(name, patient_id=f"p{number}", seed=number, index=False, folder=template)
    shutil.copytree(template, tmp_path / "stores")
    return [TileStore(tmp_path / "stores" / f"{name}.tiles.zarr") for name in SLIDES]


def give_features(stores, *, signal, name="f", seed=0, **attributes):
    rng = np.random.default_rng(seed)
    for store in stores:
        features = rng.normal(size=(len(store), 8)).astype(np.float32)
        features += signal * np.asarray(store.labels().codes)[:, None]
        write_features(store, name, features, {**ENCODER, **attributes})


def make_tiles(*, signal, n_patients=6, per_patient=40, dim=16, seed=0):
    rng = np.random.default_rng(seed)
    m = n_patients * per_patient
    codes = rng.integers(0, 3, m)
    features = rng.normal(size=(m, dim)).astype(np.float32)
    features[np.arange(m), codes] += signal
    patients = np.repeat([f"p{number}" for number in range(n_patients)], per_patient).astype(object)
    places = np.arange(m)
    names = np.array([f"t{place}" for place in places], dtype=object)
    return LabelledTiles(
        features, codes, ("a", "b", "c"), patients, patients, names, places, np.zeros((m, 2), np.int64)
    )


def curve_of(tiles, **settings):
    chosen = CurveSettings(**{"kind": "shots", "amounts": (1, 4, 16), "draws": 8, "bootstrap": 200, **settings})
    return curve_of_tiles(tiles, chosen, learn_linearly, features="f", encoder={}, label_source="here")


def values(curve, name="balanced_accuracy"):
    return [point.intervals[name].value for point in curve.points]


def test_one_tile_a_class_is_enough_where_classes_lie_apart():
    curve = curve_of(make_tiles(signal=40.0, dim=3))
    assert values(curve) == values(curve, "macro_auroc") == [1.0, 1.0, 1.0]
    assert [draw.n_labels for draw in curve.points[1].draws] == [12] * 8


def test_noise_stays_at_chance_and_a_weak_signal_gains_from_labels():
    noise = curve_of(make_tiles(signal=0.0, n_patients=12))
    assert values(noise) == pytest.approx([1 / 3] * 3, abs=0.07)
    assert values(noise, "macro_auroc") == pytest.approx([0.5] * 3, abs=0.06)
    one, four, sixteen = values(curve_of(make_tiles(signal=2.5)))
    assert one + 0.05 < four < sixteen - 0.02


def test_all_labels_give_what_the_linear_protocol_gives(cohort):
    give_features(cohort, signal=1.5)
    curve = measure_label_curve(cohort, "f", kind="share", seed=3)
    linear = evaluate_features(cohort, "f", seed=3)
    assert [point.amount for point in curve.points] == [0.01, 0.1, 0.25, 1.0]
    assert [len(point.draws) for point in curve.points] == [5, 5, 5, 1]
    for name, interval in linear.intervals.items():
        found = curve.points[-1].intervals[name]
        np.testing.assert_allclose(dataclasses.astuple(found), dataclasses.astuple(interval), rtol=1e-6)
    np.testing.assert_allclose(np.exp(curve.points[-1].log_probabilities[0]), linear.probabilities, rtol=1e-5)
    assert [draw.n_labels for draw in curve.points[0].draws] == [2.0] * 5
    assert curve.points[-1].draws[0].n_labels == 96


def test_a_point_is_the_mean_of_its_draws_and_its_interval_draws_patients():
    tiles = make_tiles(signal=1.5)
    curve = curve_of(tiles, amounts=(2,), bootstrap=300)
    (point,) = curve.points
    for name, interval in point.intervals.items():
        assert interval.value == pytest.approx(np.mean([draw.scores[name] for draw in point.draws]))
        assert interval.low < interval.value < interval.high
    # Accuracy is linear where all patients have as many tiles: its interval has a closed form to resample.
    right = point.log_probabilities.argmax(axis=2) == tiles.codes
    by_patient = right.mean(axis=0).reshape(6, 40).mean(axis=1)
    times = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=300)
    expected = np.percentile(times @ by_patient / 6, [2.5, 97.5])
    np.testing.assert_allclose([point.intervals["accuracy"].low, point.intervals["accuracy"].high], expected)


def test_the_same_folds_and_labels_serve_all_features_and_draws_go_on():
    tiles, seen = make_tiles(signal=1.0), {}

    def learn(given, fold, settings):
        def note(labelled, seed):
            seen.setdefault(given.features.shape[1], []).append((seed, labelled.tolist(), fold.test.tolist()))
            return np.full((len(fold.test), 3), 1 / 3)

        return note

    other = dataclasses.replace(tiles, features=tiles.features[:, :4])
    settings = CurveSettings(kind="share", amounts=(0.05, 0.5), draws=3, folds=3)
    for given in (tiles, other):
        curve = curve_of_tiles(given, settings, learn, features="f", encoder={}, label_source="")
    assert seen[16] == seen[4]
    assert {seed for seed, _, _ in seen[4]} == set(draw_seeds(0, 3))
    folds = make_folds(tiles.codes, tiles.patients, classes=tiles.classes, folds=3, seed=0)
    assert {tuple(test) for _, _, test in seen[4]} == {tuple(fold.test.tolist()) for fold in folds}
    for number, fold in enumerate(folds):
        assert (curve.tiles.folds[fold.test] == number).all()
    for _, labelled, test in seen[4]:
        assert not set(tiles.patients[labelled]) & set(tiles.patients[test])


@pytest.mark.parametrize("kind", ["shots", "share"])
def test_labels_that_were_not_drawn_are_never_looked_at(kind):
    tiles = make_tiles(signal=1.0)
    fold = hold_out(tiles.patients, ["p0", "p1"])
    settings = CurveSettings(kind=kind, amounts=(1,), draws=1)
    labelled = fold.train[::7]
    hidden = (tiles.codes + 1) % 3
    hidden[labelled] = tiles.codes[labelled]
    one, two = (
        learn_linearly(given, fold, settings)(labelled, 0)
        for given in (tiles, dataclasses.replace(tiles, codes=hidden))
    )
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(one.sum(axis=1), 1)


def test_a_class_that_nobody_in_training_has_gets_no_probability():
    tiles = make_tiles(signal=3.0)
    kept = (tiles.codes != 2) | (tiles.patients == "p0")
    fewer = dataclasses.replace(
        tiles, **{name: getattr(tiles, name)[kept] for name in tiles.__slots__ if name not in ("classes", "patient_of")}
    )
    settings = CurveSettings(kind="shots", amounts=(2,), draws=8, bootstrap=200)
    folds = [hold_out(fewer.patients, ["p0"])]
    curve = curve_of_tiles(fewer, settings, learn_linearly, features="f", encoder={}, label_source="", folds=folds)
    with pytest.raises(EvaluationError, match="class 'c': only test patients have tiles of it"):
        curve_of(fewer, amounts=(2,), test_patients=("p0",))
    assert np.isneginf(curve.points[0].log_probabilities[:, :, 2]).all()
    assert curve.points[0].intervals["macro_auroc"].low is None
    assert 0.4 < values(curve)[0] <= 2 / 3


def test_the_same_seed_gives_the_same_files_and_another_does_not(cohort, tmp_path):
    give_features(cohort, signal=1.0)
    for out, seed in (("one", 4), ("two", 4), ("other", 5)):
        curve = measure_label_curve(cohort, "f", kind="shots", amounts=(1, 2), draws=3, seed=seed)
        write_label_curves(tmp_path / out, [curve])
    for name in ("label_curves.json", "label_curves.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        assert (tmp_path / "one" / name).read_bytes() != (tmp_path / "other" / name).read_bytes()
        assert str(tmp_path) not in (tmp_path / "one" / name).read_text()


def test_files_hold_what_was_found(cohort, tmp_path):
    give_features(cohort, signal=1.0, pretraining_patients=["p1"])
    give_features(cohort, signal=20.0, name="g")
    curves = [measure_label_curve(cohort, name, kind="share", draws=2) for name in ("f", "g")]
    write_label_curves(tmp_path / "out", curves)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["label_curves.csv", "label_curves.json"]
    found = json.loads((tmp_path / "out/label_curves.json").read_text())
    assert [one["features"] for one in found["curves"]] == ["f", "g"]
    assert [one["leakage"] for one in found["curves"]] == ["transductive", "inductive"]
    assert found["curves"][1]["points"][0]["metrics"]["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["curves"][0]["settings"]["amounts"] == [0.01, 0.1, 0.25, 1.0]
    assert (found["curves"][0]["n_tested_tiles"], found["curves"][0]["n_test_patients"]) == (120, 5)
    (against,) = found["against"]
    assert (against["features"], against["leakage"]) == ("g", "inductive")
    at_all = compare_curves(*curves)[1.0]["balanced_accuracy"]
    assert against["points"][3]["differences"]["balanced_accuracy"]["difference"] == at_all.difference < 0
    with (tmp_path / "out/label_curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * (4 + 2 + 2 + 2 + 1)
    by_key = {(row["features"], row["amount"], row["metric"]): row for row in rows if row["scope"] == "mean"}
    row = by_key["f", "0.1", "macro_auroc"]
    interval = curves[0].points[1].intervals["macro_auroc"]
    assert (float(row["value"]), float(row["low"]), float(row["high"])) == dataclasses.astuple(interval)


def test_curves_and_results_are_compared_on_the_same_patients(cohort):
    give_features(cohort, signal=20.0, name="good")
    give_features(cohort, signal=0.0, name="noise", seed=5)
    good, noise = (
        measure_label_curve(cohort, name, kind="shots", amounts=(1, 4), draws=4) for name in ("good", "noise")
    )
    by_amount = compare_curves(good, noise, draws=200)
    assert list(by_amount) == [1, 4]
    for point, other, found in zip(good.points, noise.points, by_amount.values(), strict=True):
        for name in ("balanced_accuracy", "macro_f1", "macro_auroc", "accuracy"):
            assert found[name].a == pytest.approx(point.intervals[name].value)
            assert found[name].b == pytest.approx(other.intervals[name].value)
        assert found["balanced_accuracy"].p_value == 2 / 2**5
        assert found["balanced_accuracy"].low > 0.2
    results = [
        evaluate_features(cohort, name, protocol=protocol) for name, protocol in (("good", "linear"), ("noise", "knn"))
    ]
    found = compare_paired(*results, draws=200)
    assert list(found) == ["balanced_accuracy", "macro_f1", "macro_auroc", "accuracy"]
    for name, one in found.items():
        assert one.difference == pytest.approx(results[0].intervals[name].value - results[1].intervals[name].value)


def test_what_cannot_be_paired_is_refused(cohort):
    give_features(cohort, signal=1.0)
    one, other = (evaluate_features(cohort, "f", seed=seed, folds=2) for seed in (0, 1))
    assert {fold.test_patients for fold in one.folds} != {fold.test_patients for fold in other.folds}
    with pytest.raises(EvaluationError, match="have other folds; measure both on the same"):
        compare_paired(one, other)
    with pytest.raises(EvaluationError, match="have other"):
        compare_paired(one, evaluate_features(cohort[1:], "f", folds=2))
    curve = measure_label_curve(cohort, "f", kind="shots", amounts=(1, 2), draws=2)
    with pytest.raises(EvaluationError, match="have other amounts"):
        compare_curves(curve, measure_label_curve(cohort, "f", kind="shots", amounts=(1, 4), draws=2))
    with pytest.raises(EvaluationError, match="have other draws of labels"):
        compare_curves(curve, measure_label_curve(cohort, "f", kind="shots", amounts=(1, 2), draws=3))
    bare = dataclasses.replace(curve, points=tuple(CurvePoint(p.amount, p.draws, p.intervals) for p in curve.points))
    with pytest.raises(EvaluationError, match="does not hold its predictions at 1"):
        compare_curves(curve, bare)
    with pytest.raises(EvaluationError, match="do not hold the tiles"):
        compare_curves(*[dataclasses.replace(curve, tiles=None)] * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "share", "amounts": (0.0, 1.0)}, r"share 0.0: must be above 0"),
        ({"kind": "share", "amounts": (10,)}, "share 10: must be above 0 and at most 1; pass 0.1"),
        ({"kind": "shots", "amounts": (1.5,)}, "shots 1.5: must be a whole number"),
        ({"kind": "shots", "amounts": (2, 1)}, "must rise"),
        ({"kind": "shots", "amounts": ()}, "at least one"),
        ({"kind": "shot"}, "kind 'shot': must be one of share, shots"),
        ({"kind": "shots", "draws": 0}, "draws 0: must be at least 1"),
        ({"kind": "shots", "bootstrap": 99}, "bootstrap 99: must be at least 100"),
    ],
)
def test_numbers_out_of_range_are_refused(cohort, options, message):
    with pytest.raises(SettingsError, match=message):
        measure_label_curve(cohort, "f", **options)


def test_cohorts_that_do_not_allow_it_are_refused(cohort):
    with pytest.raises(EvaluationError, match="of no stores"):
        measure_label_curve([], "f", kind="shots")
    with pytest.raises(StoreError, match="has no features 'f'"):
        measure_label_curve(cohort, "f", kind="shots")
    give_features(cohort, signal=1.0)
    with pytest.raises(EvaluationError, match="class 'dots': has 48 training tiles in a fold, 64 shots need 64"):
        measure_label_curve(cohort, "f", kind="shots", amounts=(1, 64))
    with pytest.raises(EvaluationError, match="one patient only"):
        measure_label_curve(cohort[:1], "f", kind="shots")

"""Evaluation from stores to files."""

import csv
import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from simtriplet.evaluate import embed_store, evaluate_features, write_report
from simtriplet.evaluate.feature_array import write_features
from simtriplet.pretrain.encoder import load_encoder
from simtriplet.wsi.errors import EvaluationError, SettingsError, StoreError
from simtriplet.wsi.store import TileStore

ENCODER = {"encoder_hash": "h", "backbone": "resnet18", "objective": "simtriplet", "steps": 9}


OWNERS = {"s0": "p0", "s1": "p1", "s2": "p2", "s3": "p3", "s4": "p3"}


@pytest.fixture
def cohort(template, store_factory, tmp_path):
    """Five slides of four patients; the label is the half of the slide. Made once, copied for each test."""
    if not any(template.iterdir()):
        for number, (name, owner) in enumerate(OWNERS.items()):
            store_factory(name, patient_id=owner, seed=number, index=False, folder=template)
    shutil.copytree(template, tmp_path / "stores")
    return [TileStore(tmp_path / "stores" / f"{name}.tiles.zarr") for name in OWNERS]


def give_features(stores, *, signal, name="f", seed=0, **attributes):
    rng = np.random.default_rng(seed)
    for store in stores:
        features = rng.normal(size=(len(store), 8)).astype(np.float32)
        features[:, 0] += signal * np.asarray(store.labels().codes)
        write_features(store, name, features, {**ENCODER, **attributes})


def test_separable_features_are_perfect_and_random_ones_at_chance(cohort):
    give_features(cohort, signal=20.0)
    give_features(cohort, signal=0.0, name="noise")
    perfect = evaluate_features(cohort, "f")
    assert perfect.metrics.balanced_accuracy == perfect.metrics.macro_f1 == 1.0
    assert evaluate_features(cohort, "noise").metrics.balanced_accuracy == pytest.approx(0.5, abs=0.15)


def test_shuffled_labels_bring_separable_features_to_chance(cohort, tmp_path):
    give_features(cohort, signal=20.0)
    rng = np.random.default_rng(3)
    with (tmp_path / "shuffled.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slide_id", "x", "y", "label"])
        for store in cohort:
            names = rng.permutation(store.labels().names())
            writer.writerows([store.slide_id, x, y, name] for (x, y), name in zip(store.base_xy(), names, strict=True))
    shuffled = evaluate_features(cohort, "f", labels=tmp_path / "shuffled.csv")
    assert shuffled.metrics.balanced_accuracy == pytest.approx(0.5, abs=0.15)


def test_a_real_encoder_tells_the_two_textures_apart(cohort):
    encoder = load_encoder("random:resnet18:32")
    for store in cohort:
        embed_store(store, encoder, name="r18", device="cpu")
    result = evaluate_features(cohort, "r18")
    assert result.metrics.balanced_accuracy > 0.95
    assert result.encoder["encoder_hash"] == encoder.info.checkpoint_hash


def test_no_patient_is_learnt_from_and_tested_on(cohort):
    give_features(cohort, signal=1.0)
    result = evaluate_features(cohort, "f", folds=4)
    assert sorted(name for fold in result.folds for name in fold.test_patients) == ["p0", "p1", "p2", "p3"]
    for fold in result.folds:
        assert not set(fold.train_patients) & set(fold.test_patients)
    assert (result.predicted >= 0).all()


def test_leakage_is_told_fold_by_fold(cohort):
    give_features(cohort, signal=1.0, pretraining_patients=["p1", "someone"])
    result = evaluate_features(cohort, "f", folds=4)
    told = {fold.test_patients: fold.leakage for fold in result.folds}
    assert told == {(f"p{n}",): "transductive" if n == 1 else "inductive" for n in range(4)}
    assert result.leakage == "transductive"


def test_leakage_is_seen_through_other_patient_names(cohort, tmp_path):
    give_features(cohort, signal=1.0, pretraining_patients=["p1"], pretraining_slides=["s1"])
    file = tmp_path / "l.csv"
    file.write_text("slide_id,label,patient\ns0,x,A\ns1,x,B\ns2,y,C\ns3,y,D\ns4,y,D\n")
    result = evaluate_features(cohort, "f", labels=file, patient_column="patient", test_patients=["B", "C"])
    assert [fold.leakage for fold in result.folds] == ["transductive"]


def test_leakage_is_seen_through_a_slide_without_labels_of_the_same_patient(cohort, tmp_path):
    give_features(cohort, signal=1.0, pretraining_patients=["p0"], pretraining_slides=["s0"])
    file = tmp_path / "l.csv"
    file.write_text("slide_id,label,patient\ns0,,A\ns1,x,A\ns2,y,B\ns3,x,C\ns4,y,D\n")
    told = {
        name: evaluate_features(
            cohort, "f", labels=file, patient_column="patient", test_patients=[name, "B"]
        ).folds[0].leakage
        for name in "AC"
    }  # fmt: skip
    assert told == {"A": "transductive", "C": "inductive"}


def test_features_of_images_of_another_size_are_refused(cohort):
    give_features(cohort, signal=1.0, image_size_px=64)
    give_features(cohort[2:3], signal=1.0, image_size_px=128)
    with pytest.raises(EvaluationError, match="'s0' and 's2' were embedded with different image sizes"):
        evaluate_features(cohort, "f")


def test_results_say_what_was_found_and_hold_no_path(cohort, tmp_path):
    give_features(cohort, signal=20.0)
    out = tmp_path / "deep" / "out"
    result = evaluate_features(cohort, "f", out=out, folds=4, seed=5)
    values = json.loads((out / "results.json").read_text())
    assert (values["n_tiles"], values["n_slides"], values["n_patients"]) == (120, 5, 4)
    assert values["metrics"]["balanced_accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert values["per_class"][0] == {
        "name": "dots", "precision": 1.0, "recall": 1.0, "f1": 1.0, "n_tiles": 60, "n_patients": 4, "auroc": 1.0
    }  # fmt: skip
    assert values["confusion"] == [[60, 0], [0, 60]]
    assert values["metrics"]["macro_auroc"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert values["fold_spread"]["macro_auroc"] == {"mean": 1.0, "std": 0.0}
    assert [fold["metrics"]["macro_auroc"] for fold in values["folds"]] == [1.0] * 4
    assert values["encoder"] == ENCODER
    assert values["settings"]["seed"] == 5
    assert {fold["leakage"] for fold in values["folds"]} == {"inductive"}
    assert sorted(path.name for path in out.iterdir()) == [
        "confusion_matrix.png", "predictions.csv", "results.csv", "results.json"
    ]  # fmt: skip
    for name in ("results.json", "results.csv", "predictions.csv"):
        assert str(tmp_path) not in (out / name).read_text()
    assert result.metrics.confusion == ((60, 0), (0, 60))


def test_predictions_name_every_tile_once(cohort, tmp_path):
    give_features(cohort, signal=20.0)
    result = evaluate_features(cohort, "f", out=tmp_path / "out")
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["slide_id", "tile_id", "x", "y", "label", "predicted", "probability"]
    places = {(store.slide_id, x, y) for store in cohort for x, y in store.base_xy().tolist()}
    assert {(row["slide_id"], int(row["x"]), int(row["y"])) for row in rows} == places
    assert all(row["label"] == row["predicted"] and 0.5 < float(row["probability"]) <= 1 for row in rows)
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        overall = {row["metric"]: float(row["value"]) for row in csv.DictReader(file) if row["scope"] == "overall"}
    assert overall == {name: interval.value for name, interval in result.intervals.items()}


def test_auroc_is_left_out_where_one_class_alone_is_tested(cohort, tmp_path):
    give_features(cohort, signal=20.0)
    file = tmp_path / "l.csv"
    file.write_text("slide_id,label\ns0,x\ns1,x\ns2,x\ns3,y\ns4,y\n")
    result = evaluate_features(cohort, "f", labels=file, test_patients=["p0", "p1"], out=tmp_path / "out")
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(result.intervals) == list(values["metrics"]) == ["balanced_accuracy", "macro_f1", "accuracy"]
    assert values["folds"][0]["metrics"]["macro_auroc"] is None
    assert "macro_auroc" not in values["fold_spread"]
    with (tmp_path / "out" / "results.csv").open(newline="") as table:
        found = [row["value"] for row in csv.DictReader(table) if "auroc" in row["metric"]]
    assert found == ["", "", ""]
    write_report(tmp_path / "out", result=result, stores=cohort[:1])


def test_auroc_is_of_the_probabilities_that_are_kept(cohort):
    give_features(cohort, signal=20.0)
    result = evaluate_features(cohort, "f", protocol="knn")
    tested = result.predicted >= 0
    for code, one in enumerate(result.metrics.per_class):
        assert one.auroc == roc_auc_score(result.tiles.codes[tested] == code, result.probabilities[tested, code])
    assert result.intervals["macro_auroc"].value == pytest.approx(result.metrics.macro_auroc)


def test_the_same_seed_gives_the_same_files(cohort, tmp_path):
    give_features(cohort, signal=1.0)
    for out in ("one", "two", "other"):
        evaluate_features(cohort, "f", out=tmp_path / out, folds=2, seed=9 if out == "other" else 4)
    for name in ("results.json", "results.csv", "predictions.csv", "confusion_matrix.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one" / "results.json").read_bytes() != (tmp_path / "other" / "results.json").read_bytes()


def test_held_out_patients_alone_are_tested(cohort, tmp_path):
    give_features(cohort, signal=20.0)
    result = evaluate_features(cohort, "f", protocol="paper", test_patients=["p3"], out=tmp_path)
    assert [fold.test_patients for fold in result.folds] == [("p3",)]
    assert result.folds[0].fitted["heads"] == 3
    assert set(result.tiles.slides[result.predicted >= 0]) == {"s3", "s4"}
    assert result.intervals["accuracy"].low is None
    assert (result.codes_of(cohort[0], result.predicted) == -1).all()
    np.testing.assert_array_equal(result.codes_of(cohort[4], result.predicted), cohort[4].labels().codes)


def test_a_convergence_that_failed_is_recorded(cohort, monkeypatch, caplog):
    give_features(cohort, signal=0.5)
    monkeypatch.setattr("simtriplet.evaluate.linear_head._MAX_ITERATIONS", 1)
    result = evaluate_features(cohort, "f", folds=2)
    assert not any(fold.fitted["converged"] for fold in result.folds)
    assert "stopped before it converged" in caplog.text


def test_refusals(cohort, store_factory):
    with pytest.raises(EvaluationError, match="of no stores"):
        evaluate_features([], "f")
    with pytest.raises(StoreError, match="has no features 'f'"):
        evaluate_features(cohort, "f")
    give_features(cohort, signal=1.0)
    with pytest.raises(SettingsError, match="evaluation protocol 'svm': is not known"):
        evaluate_features(cohort, "f", protocol="svm")
    with pytest.raises(SettingsError, match="folds 0: must be at least 2"):
        evaluate_features(cohort, "f", folds=0)
    with pytest.raises(EvaluationError, match="one patient only"):
        evaluate_features(cohort[3:], "f")
    give_features(cohort[:1], signal=1.0, encoder_hash="other")
    with pytest.raises(EvaluationError, match="slides 's0' and 's1' were embedded with different encoders"):
        evaluate_features(cohort, "f")
    write_features(cohort[0], "f", np.zeros((24, 3), np.float32), ENCODER)
    with pytest.raises(EvaluationError, match="embed all stores with one encoder"):
        evaluate_features(cohort, "f")
    write_features(cohort[0], "f", np.full((24, 8), np.nan, np.float32), ENCODER)
    with pytest.raises(EvaluationError, match="slide 's0' has values that are not finite"):
        evaluate_features(cohort, "f")


def test_an_output_folder_that_is_a_file_is_refused(cohort, tmp_path):
    give_features(cohort, signal=1.0)
    (tmp_path / "taken").write_text("")
    with pytest.raises(EvaluationError, match="cannot be written"):
        evaluate_features(cohort, "f", out=tmp_path / "taken")

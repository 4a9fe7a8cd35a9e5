"""The command `compare`, on stores with features whose worth is known."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from simtriplet.evaluate import evaluate_features
from simtriplet.evaluate.feature_array import write_features
from simtriplet.wsi.store import TileStore, open_stores

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]


@pytest.fixture
def stores(store_factory: Callable[..., TileStore], tmp_path: Path) -> Path:
    """Three patients with a good and a useless set of features."""
    folder = tmp_path / "stores"
    rng = np.random.default_rng(0)
    for number in range(3):
        store = store_factory(f"s{number}", patient_id=f"p{number}", seed=number, index=False, folder=folder)
        labels = store.labels()
        assert labels is not None
        for name, signal in (("good", 20.0), ("noise", 0.0)):
            features = rng.normal(size=(len(store), 4)).astype(np.float32)
            features[:, 0] += signal * np.asarray(labels.codes)
            write_features(store, name, features, {"encoder_hash": name})
    return folder


def test_a_table_on_stdout_and_four_files(program: Run, stores: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = program(
        "compare", stores, "--features", "good=Sim=Triplet", "--features", "noise", "--out", out, "--folds", 3,
        "--reference", "noise", "--no-curves", "--k", 3, "--seed", 2,
    )  # fmt: skip
    header, good, noise = (line.split("\t") for line in ended.stdout.splitlines())
    assert header[:2] == ["encoder", "balanced accuracy [95 %]"]
    assert header[5] == "retrieval@3 (chance)"
    assert good[:2] == ["Sim=Triplet", "1.000 [1.000, 1.000]"]
    assert noise[4] == "reference"
    assert f"report: {out / 'comparison.html'}" in ended.stderr
    values = json.loads((out / "comparison.json").read_text())
    alone = evaluate_features(open_stores([stores]), "noise", folds=3, seed=2)
    assert values["encoders"][1]["metrics"]["macro_f1"]["value"] == alone.metrics.macro_f1
    assert (out / "comparison.md").read_text().count("\n| ") == 2
    with (out / "comparison.csv").open(newline="") as file:
        assert [row["encoder"] for row in csv.DictReader(file)] == ["Sim=Triplet", "noise"]
    assert (out / "comparison.html").stat().st_size > 100_000


def test_a_network_trained_with_labels_stands_in_the_same_table_with_its_curve(
    program: Run, stores: Path, tmp_path: Path
) -> None:
    quick = ("backbone=resnet18", "image_size_px=32", "epochs=1", "min_steps=2")
    program(
        "-q", "compare", stores, "--features", "good", "--out", tmp_path / "out", "--folds", 3, "--supervised",
        "--supervised-curve", *(part for one in quick for part in ("--set", one)), "--reference", "good",
    )  # fmt: skip
    good, network = json.loads((tmp_path / "out/comparison.json").read_text())["encoders"]
    assert (good["title"], network["title"]) == ("good", "supervised from scratch")
    assert network["metrics"]["balanced_accuracy"]["value"] < good["metrics"]["balanced_accuracy"]["value"] == 1.0
    assert network["geometry"] is None
    curve = next(one for one in network["curves"] if one["kind"] == "share")
    assert [point["amount"] for point in curve["points"]] == [0.01, 0.1, 0.25, 1.0]
    assert network["differences"]["balanced_accuracy"]["difference"] < 0
    assert all(point["differences"] for point in curve["points"]), (
        "the networks learnt from other labels than the heads"
    )


def test_only_the_classes_asked_for_are_told_apart(
    program: Run, failure: Failure, stores: Path, tmp_path: Path
) -> None:
    rows = ["slide_id,x,y,kind"]
    for store in open_stores([stores]):
        kinds = ("left", "middle", "right")
        rows += [f"{store.slide_id},{x},{y},{kinds[n % 3]}" for n, (x, y) in enumerate(store.base_xy().tolist())]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    asked = (
        "-q", "compare", stores, "--features", "good", "--features", "noise", "--out", tmp_path / "out", "--no-curves",
        "--labels", tmp_path / "labels.csv", "--label-column", "kind", "--folds", 3, "--classes",
    )  # fmt: skip
    program(*asked, "right, left")
    values = json.loads((tmp_path / "out/comparison.json").read_text())
    assert (values["classes"], values["n_tiles"]) == (["left", "right"], 48)
    assert "class 'lift': no tile has it; did you mean 'left'" in failure(program(*asked, "right,lift", status=1))
    assert "--classes 'left,': must be names" in failure(program(*asked, "left,", status=1))


def test_held_out_patients_and_a_label_file(program: Run, stores: Path, tmp_path: Path) -> None:
    rows = ["slide_id,x,y,kind"]
    for store in open_stores([stores]):
        rows += [f"{store.slide_id},{x},{y},{'left' if x < 96 else 'right'}" for x, y in store.base_xy().tolist()]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    (tmp_path / "test.txt").write_text("p1\np2\n")
    program(
        "-q", "compare", stores, "--features", "good", "--features", "noise", "--out", tmp_path / "out", "--no-curves",
        "--labels", tmp_path / "labels.csv", "--label-column", "kind", "--test-patients", tmp_path / "test.txt",
    )  # fmt: skip
    values = json.loads((tmp_path / "out/comparison.json").read_text())
    assert values["classes"] == ["left", "right"]
    assert (values["n_patients"], values["n_folds"], values["n_tiles"]) == (2, 1, 48)
    assert values["encoders"][0]["settings"]["test_patients"] == ["p1", "p2"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--features", "good", "--features", "noise", "--set", "epochs=1"], "--set without --supervised"),
        (["--features", "good"], "comparison of 1 encoder(s): needs two"),
        (["--features", "good", "--features", "good=x"], "--features 'good': is given twice"),
        (["--features", "=x", "--features", "good"], "--features '=x': has no name"),
        (["--features", "good", "--features", "god"], "has no features 'god'"),
        (["--features", "good", "--features", "noise", "--reference", "x"], "reference 'x': is none of the encoders"),
        (["--features", "good", "--features", "noise", "--protocol", "svm"], "evaluation protocol 'svm': is not known"),
        (
            ["--features", "good", "--features", "noise", "--patient-column", "x"],
            "--patient-column 'x': is a column of",
        ),
        (["--features", "good", "--features", "noise", "--test-patients", "/dev/null"], "'/dev/null': cannot be read"),
    ],
)
def test_nonsense_is_told_in_one_line(
    program: Run, failure: Failure, stores: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    ended = program("compare", stores, "--out", tmp_path / "out", "--no-curves", *options, status=1)
    assert said in failure(ended)
    assert not (tmp_path / "out").exists()

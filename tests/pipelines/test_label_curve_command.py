"""`evaluate` with few labels and against a baseline, as a user calls it."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from simtriplet.evaluate.feature_array import write_features
from simtriplet.wsi.store import TileStore

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]


@pytest.fixture
def stores(store_factory: Callable[..., TileStore], tmp_path: Path) -> Path:
    """Four patients with the features "good", which tell the classes apart, and "noise"."""
    folder, rng = tmp_path / "stores", np.random.default_rng(0)
    for number in range(4):
        store = store_factory(f"s{number}", patient_id=f"p{number}", seed=number, index=False, folder=folder)
        codes = np.asarray(store.labels().codes)
        for name, signal in (("good", 20.0), ("noise", 0.0)):
            features = rng.normal(size=(len(store), 4)) + signal * codes[:, None]
            write_features(store, name, features.astype(np.float32), {"encoder_hash": name})
    return folder


def rows_of(ended: "CompletedProcess[str]") -> list[list[str]]:
    return [line.split("\t") for line in ended.stdout.splitlines()]


def test_few_shot_prints_a_table_and_writes_the_curves(program: Run, stores: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", stores, "--features", "good", "--baseline", "noise", "--out", tmp_path / "r")
    ended = program(*arguments, "--protocol", "few-shot", "--amounts", "1,4", "--label-draws", 3)
    rows = rows_of(ended)
    assert rows[0] == ["features", "metric", "1 a class", "4 a class", "leakage"]
    assert rows[1] == ["good", "balanced accuracy", *["1.000 (1.000-1.000)"] * 2, "inductive"]
    assert [row[:2] for row in rows[1:7]] == [
        [name, metric] for name in ("good", "noise") for metric in ("balanced accuracy", "macro-F1", "AUROC")
    ]
    assert rows[8][:2] == ["good - noise", "balanced accuracy"]
    assert rows[8][2].endswith(" p 0.1250")  # four patients: 2 / 2**4
    values = json.loads((tmp_path / "r/label_curves.json").read_text())
    assert [curve["features"] for curve in values["curves"]] == ["good", "noise"]
    assert [len(point["draws"]) for point in values["curves"][0]["points"]] == [3, 3]
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["label_curves.csv", "label_curves.json"]


def test_label_efficiency_ends_at_the_linear_protocol(program: Run, stores: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", stores, "--features", "noise", "--no-report", "--seed", 2)
    ended = program(*arguments, "--protocol", "label-efficiency", "--amounts", "0.05,1", "--out", tmp_path / "c")
    program(*arguments, "--out", tmp_path / "l")
    assert rows_of(ended)[0][2:4] == ["5 % of the labels", "100 % of the labels"]
    curve = json.loads((tmp_path / "c/label_curves.json").read_text())["curves"][0]
    linear = json.loads((tmp_path / "l/results.json").read_text())
    for name, interval in linear["metrics"].items():
        assert curve["points"][-1]["metrics"][name] == pytest.approx(interval)


def test_evaluate_prints_auroc_and_the_difference_from_the_baseline(program: Run, stores: Path, tmp_path: Path) -> None:
    ended = program(
        "evaluate", stores, "--features", "good", "--baseline", "noise", "--out", tmp_path / "r", "--no-report"
    )
    rows = rows_of(ended)
    assert rows[0][4] == "AUROC (95 %)"
    assert rows[1][2:5] == ["1.000 (1.000-1.000)"] * 3
    assert rows[3] == ["features", "metric", "difference (95 %)", "p"]
    assert rows[4][:2] == ["good - noise", "balanced accuracy"]
    assert rows[4][3] == "0.1250"
    assert rows[-3] == ["class", "precision", "recall", "F1", "AUROC", "tiles", "patients"]
    assert rows[-1] == ["stripes", *["1.000"] * 4, "48", "4"]


def test_one_test_patient_is_told_to_have_no_interval(program: Run, stores: Path, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("p2\n")
    arguments = (
        "evaluate",
        stores,
        "--features",
        "good",
        "--baseline",
        "noise",
        "--test-patients",
        tmp_path / "test.txt",
    )
    rows = rows_of(program(*arguments, "--out", tmp_path / "r", "--no-report"))
    assert rows[1][2] == "1.000 (no interval: one test patient)"
    assert [row[-1] for row in rows[4:8]] == ["-"] * 4
    rows = rows_of(program(*arguments, "--out", tmp_path / "c", "--protocol", "few-shot", "--amounts", "1"))
    assert rows[1][2] == "1.000 (no interval: one test patient)"
    assert rows[8][2].endswith("(no interval: one test patient)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--protocol", "few-shot", "--amounts", "one"), "--amounts 'one': must be numbers with commas between"),
        (("--protocol", "few-shot", "--amounts", "1,nan"), "--amounts '1,nan': must be numbers with commas between"),
        (("--protocol", "few-shot", "--amounts", "inf"), "--amounts 'inf': must be numbers with commas between"),
        (("--protocol", "few-shot", "--amounts", "0.5"), "shots 0.5: must be a whole number"),
        (("--protocol", "few-shot", "--amounts", "99"), "class 'dots': has 36 training tiles in a fold, 99 shots"),
        (("--protocol", "label-efficiency", "--amounts", "50"), "share 50.0: must be above 0 and at most 1"),
        (("--amounts", "1"), "with protocol 'linear': only for few-shot and label-efficiency"),
        (("--protocol", "few-shots"), "'few-shots'"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(
    program: Run, failure: Failure, stores: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    ended = program("evaluate", stores, "--features", "good", "--out", tmp_path / "r", *options, status=1)
    assert message in failure(ended)
    assert not (tmp_path / "r").exists()

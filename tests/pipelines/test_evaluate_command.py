"""`evaluate` with networks trained with labels, and heads that it saves, as a user calls it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from simtriplet.evaluate.feature_array import write_features
from simtriplet.evaluate.saved_head import load_head
from simtriplet.wsi.store import TileStore, open_stores

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]
QUICK = ("--set", "backbone=resnet18", "--set", "image_size_px=32", "--set", "epochs=1", "--set", "min_steps=12")


@pytest.fixture
def stores(store_factory: Callable[..., TileStore], tmp_path: Path) -> Path:
    """Four patients with the features "good", which tell the classes apart."""
    folder, rng = tmp_path / "stores", np.random.default_rng(0)
    for number in range(4):
        store = store_factory(f"s{number}", patient_id=f"p{number}", seed=number, index=False, folder=folder)
        features = rng.normal(size=(len(store), 4)) + 20.0 * np.asarray(store.labels().codes)[:, None]
        write_features(store, "good", features.astype(np.float32), {"encoder_hash": "good"})
    return folder


def test_a_network_from_scratch_beside_features_on_the_same_folds(program: Run, stores: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    asked = ("--protocol", "supervised", *QUICK, "--baseline", "good", "--folds", 2)
    ended = program("evaluate", stores, "--out", out, *asked)
    rows = [line.split("\t") for line in ended.stdout.splitlines()]
    assert rows[1][:2] == ["supervised", "supervised"]
    assert rows[2][:2] == ["good", "linear"]
    result = json.loads((out / "results.json").read_text())
    assert result["settings"]["protocol"] == "supervised"
    assert [fold["n_test"] for fold in result["folds"]] == [48, 48]
    assert result["folds"][0]["fitted"]["steps"] == 12
    page = (out / "report.html").read_text()
    assert "protocol linear" in page
    assert "retrieval@5" in page
    assert result["geometry"] is None
    against = result["against"]
    assert (against["features"], against["protocol"]) == ("good", "linear")
    printed = next(row for row in rows if row[:2] == ["supervised - good", "balanced accuracy"])
    assert printed[2].startswith(f"{against['differences']['balanced_accuracy']['difference']:+.3f}")


def test_features_are_described_without_a_head_too(program: Run, stores: Path, tmp_path: Path) -> None:
    ended = program("evaluate", stores, "--features", "good", "--out", tmp_path, "--folds", 2)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["against"] is None
    retrieval = found["geometry"]["retrieval"]
    assert 0.9 < retrieval <= 1
    assert found["geometry"]["feature_dim"] == 4
    assert f"good\t{retrieval:.3f} (" in ended.stdout
    assert f"features,,retrieval,{retrieval},,,96,4" in (tmp_path / "results.csv").read_text()
    assert "Without a head" in (tmp_path / "report.html").read_text()


def modules_of(*words: object) -> set[str]:
    """Run a command, which must succeed, in a process of its own; return the modules that it had imported at its end."""
    code = "import sys; from simtriplet.pipelines.program import main; main(); print('modules', *sys.modules)"
    command = [sys.executable, "-c", code, *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.splitlines()[-1].split())


def test_heads_on_stored_features_need_no_torch(stores: Path, tmp_path: Path) -> None:
    """Measured, drawn, saved, compared and used: seconds that its import would take, each time."""
    for store in open_stores([stores]):
        write_features(store, "same", store.features("good"), {"encoder_hash": "same"})
    results, head = tmp_path / "results", tmp_path / "head.json"
    linear = ("--features", "good", "--protocol", "linear", "--folds", 2)
    for words in (
        ("evaluate", stores, *linear, "--out", results, "--save-head", head),
        ("compare", stores, *linear, "--features", "same", "--out", tmp_path / "comparison"),
        ("predict", stores, "--head", head, "--out", tmp_path / "maps"),
    ):
        assert not modules_of(*words) & {"torch", "torchvision", "timm"}, words[0]
    assert (results / "report.html").exists()


def test_finetune_starts_from_an_encoder(program: Run, failure: Failure, stores: Path, tmp_path: Path) -> None:
    asked = ("evaluate", stores, "--out", tmp_path / "r", "--protocol", "finetune", "--no-report")
    assert failure(program(*asked, status=1)) == "Error: protocol 'finetune': needs an encoder; pass --encoder"
    ended = program(*asked, "--encoder", "random:resnet18:32", "--folds", 2, *QUICK[4:])
    assert "supervised" in ended.stdout.splitlines()[1]  # an encoder that has learnt nothing is no finetuning


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (("--encoder", "random:resnet18:32"), "--encoder with protocol 'linear': only for supervised and finetune"),
        (("--set", "epochs=3"), "--set with protocol 'linear': only for supervised and finetune"),
        (("--protocol", "supervised", "--set", "epoch=3"), "setting 'epoch' is not known; did you mean 'epochs'?"),
        (("--protocol", "supervised", "--encoder", "random:resnet18:32"), "starts from random weights"),
        (("--protocol", "supervised", "--save-head", "h.json"), "a head reads features"),
        (("--protocol", "supervised", "--amounts", "1"), "--amounts with protocol 'supervised': only for few-shot and"),
        (("--protocol", "few-shot", "--run", "x"), "--run with protocol 'few-shot': only for knn and linear and paper"),
        (("--patient-column", "case"), "--patient-column 'case': is a column of --labels; give that file"),
        (("--baseline", "good"), "--baseline 'good': is what it would be compared with; name other features"),
        (
            ("--protocol", "fewshot"),
            "did you mean 'few-shot'?; known are knn, linear, paper, few-shot, label-efficiency",
        ),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    program: Run, failure: Failure, stores: Path, tmp_path: Path, extra: tuple[str, ...], said: str
) -> None:
    line = failure(program("evaluate", stores, "--features", "good", "--out", tmp_path / "r", *extra, status=1))
    assert said in line


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (("--test-patients", "nobody.txt"), "--test-patients 'nobody.txt': names nobody"),
        (("--baseline", "god"), "has no features 'god' (known: good)"),
        (("--run", "nowhere"), "run 'nowhere': has no readable metrics.jsonl"),
        (("--out", "nobody.txt/x"), "output 'nobody.txt/x': cannot be written ("),
        (
            ("--save-head", "r/results.json"),
            "'r/results.json': is the name of something that is no head; choose another",
        ),
        (("--save-head", "nobody.txt"), "'nobody.txt': is the name of something that is no head"),
        (("--save-head", "nobody.txt/h"), "nobody.txt' is a file); choose another --save-head"),
    ],
)
def test_what_cannot_end_well_is_not_begun(
    program: Run, failure: Failure, stores: Path, tmp_path: Path, extra: tuple[str, ...], said: str
) -> None:
    (tmp_path / "nobody.txt").write_text("\n\n")
    ended = program("evaluate", stores, "--features", "good", "--out", "r", *extra, status=1, cwd=tmp_path)
    assert said in failure(ended)
    assert ended.stdout == ""
    assert not (tmp_path / "r").exists()
    assert (tmp_path / "nobody.txt").read_text() == "\n\n"


def test_a_warning_is_given_once_however_many_measurements_give_it(program: Run, stores: Path, tmp_path: Path) -> None:
    for store in open_stores([stores]):
        write_features(store, "same", store.features("good"), {"encoder_hash": "same"})
    for extra in ((), ("--protocol", "few-shot", "--amounts", "1", "--label-draws", 2)):
        ended = program(
            "evaluate",
            stores,
            "--features",
            "good",
            "--baseline",
            "same",
            "--out",
            tmp_path / "r",
            "--no-report",
            *extra,
        )
        assert ended.stderr.count("4 folds: class") == 1


def test_a_saved_head_reads_back(program: Run, stores: Path, tmp_path: Path) -> None:
    head = tmp_path / "head.json"
    ended = program(
        "evaluate", stores, "--features", "good", "--out", tmp_path / "r", "--no-report", "--save-head", head
    )
    assert f"head: {head}" in ended.stderr
    saved = load_head(head)
    assert saved.classes == ("dots", "stripes")
    assert (saved.features, saved.n_tiles, saved.patients) == ("good", 96, ("p0", "p1", "p2", "p3"))

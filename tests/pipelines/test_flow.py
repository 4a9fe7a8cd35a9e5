"""The whole job behind `run` and `demo`, on drawn slides and on the real ones where they are."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from simtriplet.wsi.store import TileStore

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]

TINY = {"run.max_steps": 6, "run.batch_size": 16, "data.image_size_px": 32, "run.threads": 1}
FAST = [part for key, value in TINY.items() for part in ("--set", f"pretrain.{key}={value}")]


def recipe_text(cohort: Path, out: Path) -> str:
    return f"""
out = "{out}"
[slides]
inputs = ["{cohort}"]
annotations = "{cohort.parent / "annotations"}"
[tiling]
mpp = 1.0
size_px = 64
[pretrain]
preset = "quick"
"""


def test_run_does_everything_and_skips_it_the_second_time(program: Run, cohort: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text(cohort, tmp_path / "out"))
    first = program("run", recipe, *FAST)
    report = tmp_path / "out/evaluation/report.html"
    assert str(report) in first.stdout
    numbers = (tmp_path / "out/evaluation/results.json").read_bytes()
    encoder = (tmp_path / "out/pretrain/encoder.safetensors").stat().st_mtime_ns
    again = program("run", recipe, *FAST)
    assert again.stdout.count("skipped") == 4
    assert (tmp_path / "out/evaluation/results.json").read_bytes() == numbers
    assert (tmp_path / "out/pretrain/encoder.safetensors").stat().st_mtime_ns == encoder


def test_run_measures_with_the_labels_of_slides_that_a_manifest_gives(
    program: Run, cohort: Path, tmp_path: Path
) -> None:
    slides = sorted(cohort.parent.glob("*.svs"))
    rows = [f"{slide},patient-{number},{'odd' if number % 2 else 'even'}" for number, slide in enumerate(slides)]
    manifest = tmp_path / "slides.csv"
    manifest.write_text("\n".join(["path,patient_id,label", *rows]), encoding="utf-8")
    recipe = tmp_path / "recipe.toml"
    text = recipe_text(manifest, tmp_path / "out")
    recipe.write_text("\n".join(line for line in text.splitlines() if not line.startswith("annotations")))
    program("run", recipe, *FAST)
    found = json.loads((tmp_path / "out/evaluation/results.json").read_text())
    assert found["labels"] == "slide labels (of the manifest that was tiled)"
    assert found["classes"] == ["even", "odd"]
    assert found["n_patients"] == len(slides)
    assert found["against"]["features"] == "random"
    assert found["geometry"]["feature_dim"] == 512


def test_run_tells_what_is_wrong_with_the_labels_once(program: Run, cohort: Path, tmp_path: Path) -> None:
    """Though it reads them for its own features and for those it compares them with."""
    slides = [path.stem for path in sorted(cohort.parent.glob("*.svs"))]
    rows = [
        f"{slide},{'odd' if number % 2 else 'even'},p{number}" for number, slide in enumerate([*slides, "stranger"])
    ]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["slide_id,label,patient_id", *rows]), encoding="utf-8")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"{recipe_text(cohort, tmp_path / 'out')}\n[evaluate]\nlabels = '{labels}'\n")
    ended = program("run", recipe, *FAST)
    assert ended.stderr.count("slide 'stranger' has no store here") == 1
    assert json.loads((tmp_path / "out/evaluation/results.json").read_text())["against"]["features"] == "random"


def test_run_writes_a_recipe_that_runs_from_its_folder(program: Run, cohort: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text(cohort, tmp_path / "out"))
    program("run", recipe, *FAST)
    resolved = tmp_path / "out/recipe.toml"
    values = tomllib.loads(resolved.read_text())
    assert values["pretrain"]["run"]["max_steps"] == 6
    assert str(tmp_path) not in resolved.read_text()
    assert program("run", resolved).stdout.count("skipped") == 4


@pytest.mark.parametrize(
    ("assignment", "hint"),
    [
        ("tiling.mp=0.5", "'tiling.mp' is not known; did you mean 'mpp'?"),
        ("tilling.mpp=0.5", "'tilling' is not known; did you mean 'tiling'?"),
        ("pretrain.run.epoch=1", "'run.epoch' is not known; did you mean 'epochs'?"),
        ("tiling.mpp=fine", "must be a number"),
        ("slides.inputs=[]", "must name slides"),
    ],
)
def test_run_refuses_a_wrong_setting(
    program: Run, failure: Failure, cohort: Path, tmp_path: Path, assignment: str, hint: str
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text(cohort, tmp_path / "out"))
    assert hint in failure(program("run", recipe, "--set", assignment, status=1))
    assert not (tmp_path / "out").exists()


def test_demo_on_a_slide_of_ones_own_describes_it_without_labels(program: Run, cohort: Path, tmp_path: Path) -> None:
    slide = cohort.parent / "patient01-slide1.svs"
    ended = program("demo", "--slide", slide, "--out", tmp_path / "mine", *FAST)
    values = json.loads((tmp_path / "mine/evaluation/results.json").read_text())
    assert values["schema"] == "simtriplet.unlabelled"
    assert 0 <= values["neighbour_auc"] <= 1
    store = TileStore(tmp_path / "mine/stores/patient01-slide1.tiles.zarr")
    assert sum(values["clusters"]) == len(store) == values["n_tiles"]
    assert "no labels" in ended.stderr
    assert "clusters" in (tmp_path / "mine/evaluation/report.html").read_text().lower()


@pytest.mark.parametrize(
    ("name", "options"),
    [("CMU-1-Small-Region.svs", ()), ("TCGA-CR-7395-01A-01-TS1.svs", ("--slide-mpp", "0.25"))],
)
def test_demo_ends_on_a_real_slide(
    program: Run, shared_data: Path, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    ended = program("demo", "--slide", shared_data / "slides" / name, *options, "--out", tmp_path / "real", *FAST)
    report = tmp_path / "real/evaluation/report.html"
    assert str(report) in ended.stdout
    values = json.loads((report.parent / "results.json").read_text())
    assert values["n_tiles"] >= 100
    assert values["effective_rank"] > 1
    assert (tmp_path / "real/pretrain/encoder.safetensors").exists()


def test_commands_one_by_one_on_a_real_slide(program: Run, shared_data: Path, tmp_path: Path) -> None:
    stores, run = tmp_path / "stores", tmp_path / "run"
    slide = shared_data / "slides/CMU-1-Small-Region.svs"
    program("tile", slide, "--out", stores, "--mpp", 0.5, "--size", 96)
    program("index", stores)
    sets = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    program("pretrain", stores, "--out", run, "--preset", "quick", *sets)
    program("embed", stores, "--encoder", run)
    store = TileStore(stores / "CMU-1-Small-Region.tiles.zarr")
    assert store.features("simtriplet").shape == (len(store), 512)
    # a slide is one patient: numbers for it alone would be self-deception
    table = tmp_path / "tiles.csv"
    lines = [f"{store.slide_id},{x},{y},{'ab'[i % 2]}" for i, (x, y) in enumerate(store.base_xy().tolist())]
    table.write_text("slide_id,x,y,label\n" + "\n".join(lines) + "\n")
    ended = program("evaluate", stores, "--labels", table, "--out", tmp_path / "results", status=1)
    assert "patient" in ended.stderr


@pytest.mark.slow
def test_the_demo_as_it_is_learns(program: Run, tmp_path: Path) -> None:
    """Nothing is made smaller here: a training that diverges, or ends no better than random weights, fails."""
    ended = program("demo", "--out", tmp_path / "demo", timeout=1500)
    report = tmp_path / "demo/evaluation/report.html"
    assert str(report) in ended.stdout
    rows = [line.split("\t") for line in ended.stdout.splitlines()]
    scores = {row[0]: float(row[2].split()[0]) for row in rows if row[0] in ("simtriplet", "random")}
    assert scores["simtriplet"] > scores["random"] > 1 / 4, "four classes"

"""A recipe that is run again when some of its slides have gone, and others were mended: the training goes on as it began."""

import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from simtriplet.pipelines.begun_run import stores_to_train_on
from simtriplet.wsi.store import TileStore, open_stores

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]
Again = Callable[..., "CompletedProcess[str]"]

TINY = {"run.max_steps": 4, "run.batch_size": 16, "data.image_size_px": 32, "run.threads": 1}
FAST = [part for key, value in TINY.items() for part in ("--set", f"pretrain.{key}={value}")]


def make_recipe(folder: Path, cohort: Path, *lines: str) -> None:
    """Four slides with their manifest, which may be damaged and removed, and a recipe for them."""
    (folder / "slides").mkdir(parents=True)
    for file in (cohort, *cohort.parent.glob("*.svs")):
        shutil.copy(file, folder / "slides")
    text = f"""
        out = "out"
        slides.inputs = ["slides/{cohort.name}"]
        slides.annotations = "{cohort.parent / "annotations"}"
        tiling = {{mpp = 1.0, size_px = 64}}
        pretrain.preset = "quick"
        evaluate.folds = 2
        evaluate.protocol = "knn"
        embed.baseline = false
        """
    (folder / "recipe.toml").write_text("\n".join([*(line.strip() for line in text.splitlines()), *lines]))


@pytest.fixture(scope="module")
def finished(program: Run, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that was run once; one of four patients is left out of the training."""
    folder = tmp_path_factory.mktemp("finished") / "job"
    make_recipe(folder, cohort, 'pretrain.exclude_patients = ["patient03"]')
    program("run", folder / "recipe.toml", *FAST)
    return folder


@pytest.fixture
def job(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "job")


@pytest.fixture
def again(program: Run, job: Path) -> Again:
    """Run the recipe once more; training it anew would show."""

    def run(*options: object, status: int = 0) -> "CompletedProcess[str]":
        encoder = job / "out/pretrain/encoder.safetensors"
        before = encoder.stat().st_mtime_ns if encoder.exists() else None
        ended = program("run", job / "recipe.toml", *FAST, *options, status=status)
        assert before is None or encoder.stat().st_mtime_ns == before
        return ended

    return run


def archive(job: Path, *names: str) -> None:
    for name in names:
        (job / f"slides/{name}-slide1.svs").unlink()


def edit_manifest(job: Path, edit: Callable[[str], str]) -> None:
    (manifest,) = (job / "slides").glob("*.csv")
    manifest.write_text("".join(edit(line) for line in manifest.read_text().splitlines(keepends=True)))


def test_a_run_goes_on_with_the_slides_it_began_with(
    program: Run, failure: Failure, cohort: Path, tmp_path: Path
) -> None:
    make_recipe(tmp_path, cohort)
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    bad = tmp_path / "slides/patient04-slide1.svs"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:5000])
    ended = program("run", recipe, *FAST, status=1)
    assert "1 slide failed" in failure(ended)
    encoder = (out / "pretrain/encoder.safetensors").stat().st_mtime_ns

    bad.write_bytes(whole)
    archive(tmp_path, "patient01")
    ended = program("run", recipe, *FAST)
    assert "slide 'patient01-slide1' is not there any more: used as tiled before" in ended.stderr
    assert (
        "slide 'patient04-slide1' is new since the training began: embedded and evaluated, not trained" in ended.stderr
    )
    assert (out / "pretrain/encoder.safetensors").stat().st_mtime_ns == encoder
    assert len([store for store in open_stores([out / "stores"]) if "simtriplet" in store.feature_names()]) == 4


def test_slides_that_are_not_named_any_more(again: Again, failure: Failure, job: Path) -> None:
    """Neither the one that was trained on nor the one of a patient who was left out."""
    archive(job, "patient01", "patient03")
    edit_manifest(job, lambda line: "" if "patient01" in line or "patient03" in line else line)
    ended = again()
    assert "slide 'patient01-slide1' is not to be had any more, but the training began with it" in ended.stderr
    for change in ("tiling.stride_px=32", "tiling.min_tissue=0.9", "slides.slide_mpp=0.31"):
        line = failure(again("--set", change, status=1))
        assert "--set out=FOLDER" in line, change
    shutil.rmtree(job / "out/stores/patient01-slide1.tiles.zarr")
    line = failure(again(status=1))
    assert "neither the slide nor its store; bring one back, or train anew with --set out=FOLDER" in line


@pytest.mark.parametrize("said", ["patientX,,", "patient01,tumour,", "patient01,,0.3"], ids=["patient", "label", "mpp"])
def test_archived_slides_of_which_something_else_is_said(again: Again, failure: Failure, job: Path, said: str) -> None:
    archive(job, "patient01")
    edit_manifest(job, lambda line: line.replace("\n", ",label,slide_mpp\n" if line.startswith("path,") else ",,\n"))
    assert "slide 'patient01-slide1' is not there any more: used as tiled before" in again().stderr
    edit_manifest(job, lambda line: line.replace("slide1,patient01,,", f"slide1,{said}"))
    line = failure(again(status=1))
    assert "slide 'patient01-slide1': the training began with it, and its store was made with other settings" in line
    assert "set them back, or train anew with --set out=FOLDER" in line


def test_a_slide_that_is_another_one_now(again: Again, failure: Failure, job: Path) -> None:
    shutil.copy(job / "slides/patient02-slide1.svs", job / "slides/patient01-slide1.svs")
    line = failure(again(status=1))
    assert "slide 'patient01-slide1': the training began with it, and now its file, patient, label" in line


def test_all_slides_of_a_folder_are_archived(again: Again, job: Path) -> None:
    recipe = job / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('["slides/manifest.csv"]', '["slides"]'))
    shutil.rmtree(job / "slides")
    ended = again()
    assert "does not exist; check the path" in ended.stderr
    assert "3 slides, 'patient01-slide1' for instance, are not to be had any more" in ended.stderr


def test_checkpoints_that_were_removed_for_the_room(again: Again, failure: Failure, job: Path) -> None:
    shutil.rmtree(job / "out/pretrain/checkpoints")
    assert "has no checkpoints any more; its encoder is used as it is" in again().stderr
    line = failure(again("--set", "pretrain.optimiser.base_lr=0.123", status=1))
    assert "was begun with optimiser.base_lr" in line


def test_an_encoder_that_is_gone_or_damaged_is_made_again(program: Run, job: Path) -> None:
    encoder = job / "out/pretrain/encoder.safetensors"
    before = encoder.read_bytes(), encoder.with_suffix(".json").read_bytes()
    encoder.unlink()
    program("run", job / "recipe.toml", *FAST)
    assert (encoder.read_bytes(), encoder.with_suffix(".json").read_bytes()) == before
    encoder.write_bytes(before[0][:-1] + bytes([before[0][-1] ^ 1]))
    program("run", job / "recipe.toml", *FAST)
    assert (encoder.read_bytes(), encoder.with_suffix(".json").read_bytes()) == before


def test_which_stores_are_trained_on(store_factory: Callable[..., TileStore], caplog: pytest.LogCaptureFixture) -> None:
    stores = [store_factory(name, patient_id=f"p-{name}", rows=1, cols=2, index=False) for name in "abcd"]
    assert stores_to_train_on(stores, (), ()) == stores
    assert stores_to_train_on(stores, "abcd", ()) == stores
    assert stores_to_train_on(stores, "abc", ["p-d"]) == stores, "whom the run leaves out anyway"
    assert not caplog.records
    assert stores_to_train_on(stores, "ab", ()) == stores[:2]
    assert "2 slides, 'c' for instance, are new since" in caplog.text

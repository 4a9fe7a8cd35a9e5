"""A recipe that is run again when some of its slides have gone, and others were mended: the training goes on as it began."""

import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from simtriplet.pipelines.begun_run import stores_to_train_on, with_stores_of_run
from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.store import TileStore, open_stores

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]

TINY = {"run.max_steps": 4, "run.batch_size": 16, "data.image_size_px": 32, "run.threads": 1}
FAST = [part for key, value in TINY.items() for part in ("--set", f"pretrain.{key}={value}")]


@pytest.fixture
def slides(cohort: Path, tmp_path: Path) -> Path:
    """Four slides that may be damaged and removed, with their manifest."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for file in (cohort, *cohort.parent.glob("*.svs")):
        shutil.copy(file, folder)
    return folder / cohort.name


def test_a_run_goes_on_with_the_slides_it_began_with(
    program: Run, failure: Failure, slides: Path, cohort: Path, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text(
        f'out = "out"\nslides.inputs = ["{slides}"]\nslides.annotations = "{cohort.parent / "annotations"}"\n'
        'tiling = {mpp = 1.0, size_px = 64}\npretrain.preset = "quick"\nevaluate.folds = 2\nembed.baseline = false\n'
    )
    bad, archived = slides.parent / "patient04-slide1.svs", slides.parent / "patient01-slide1.svs"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:5000])
    ended = program("run", recipe, *FAST, status=1)
    assert "1 slides failed" in failure(ended)
    encoder = (out / "pretrain/encoder.safetensors").stat().st_mtime_ns

    bad.write_bytes(whole)
    archived.unlink()
    ended = program("run", recipe, *FAST)
    assert "slide 'patient01-slide1' is not there any more: used as tiled before" in ended.stderr
    assert (
        "slide 'patient04-slide1' is new since the training began: embedded and evaluated, not trained" in ended.stderr
    )
    assert (out / "pretrain/encoder.safetensors").stat().st_mtime_ns == encoder
    assert len([store for store in open_stores([out / "stores"]) if "simtriplet" in store.feature_names()]) == 4

    slides.write_text("".join(line for line in slides.read_text().splitlines(True) if "patient01" not in line))
    ended = program("run", recipe, *FAST)
    assert "slide 'patient01-slide1' is not to be had any more, but the training began with it" in ended.stderr

    line = failure(program("run", recipe, *FAST, "--set", "tiling.mpp=2.0", status=1))
    assert "was made from another file or with other settings; choose another folder with --set out=FOLDER" in line
    shutil.rmtree(out / "stores/patient01-slide1.tiles.zarr")
    line = failure(program("run", recipe, *FAST, status=1))
    assert "neither the slide nor its store; bring one back, or train anew with --set out=FOLDER" in line


def test_which_stores_are_trained_on(store_factory: Callable[..., TileStore], caplog: pytest.LogCaptureFixture) -> None:
    stores = [store_factory(name, patient_id=f"p-{name}", rows=1, cols=2, index=False) for name in "abcd"]
    folder = stores[0].path.parent
    assert stores_to_train_on(stores, (), ()) == stores
    assert stores_to_train_on(stores, "abcd", ()) == stores
    assert stores_to_train_on(stores, "abc", ["p-d"]) == stores, "whom the run leaves out anyway"
    assert not caplog.records
    assert stores_to_train_on(stores, "ab", ()) == stores[:2]
    assert "2 slides, 'c' for instance, are new since" in caplog.text
    assert [store.slide_id for store in with_stores_of_run(stores[1:], "abc", folder)] == ["a", "b", "c", "d"]
    assert "slide 'a' is not to be had any more" in caplog.text
    with pytest.raises(StoreError, match="slide 'x': the training began with it, and now there is neither"):
        with_stores_of_run(stores, "abx", folder)

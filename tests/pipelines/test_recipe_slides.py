"""What a recipe says of its slides and files: damage, time, masks and first weights; and what is written of where they lie."""

import csv
import tomllib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from simtriplet.pipelines.flow import _tile
from simtriplet.pipelines.recipe import Recipe, read_recipe, relative_to_out
from simtriplet.pipelines.slide_steps import make_folder, tile_slides, write_settings
from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.tile_request import SlideJob, TileRequest
from simtriplet.wsi.tissue import TissueSpec

SIDE, TILE = 512, 128


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """A slide of 4 x 4 native tiles, and a level for the overview."""
    coarse = np.random.default_rng(0).integers(60, 220, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    path = tmp_path / "slides" / "a.tif"
    path.parent.mkdir()
    scale = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER", "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        for step in (1, 16):
            level = np.ascontiguousarray(pixels[::step, ::step])
            tiff.write(
                level, tile=(TILE, TILE), photometric="rgb", compression="deflate", subfiletype=step > 1, **scale
            )
    return path


def damage(slide: Path, number: int = 5) -> None:
    with tifffile.TiffFile(slide) as tiff:
        offset, size = tiff.pages[0].dataoffsets[number], tiff.pages[0].databytecounts[number]
    with slide.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * size)


def recipe_of(tmp_path: Path, *lines: str) -> Recipe:
    text = ['out = "out"', 'slides.inputs = ["slides"]', f"tiling.size_px = {TILE}", *lines]
    (tmp_path / "recipe.toml").write_text("\n".join(text))
    return read_recipe(tmp_path / "recipe.toml")


def test_damage_is_an_error_or_left_out_as_the_recipe_says(tmp_path: Path, slide: Path) -> None:
    damage(slide)
    everywhere = 'tissue.detector = "all"'
    with pytest.raises(StoreError, match=r"native tile 5 of level 0 cannot be decoded"):
        _tile(recipe_of(tmp_path, everywhere), True)
    (store,), n_failed = _tile(recipe_of(tmp_path, everywhere, 'slides.on_damage = "skip"'), True)
    assert store.attributes["tiling"]["damaged"]["tiles"] == [[TILE, TILE]]
    assert (len(store), n_failed) == (15, 0)


def test_a_slide_has_as_long_as_the_recipe_says(tmp_path: Path, slide: Path) -> None:
    hurry, patience = (
        'slides.timeout_s = 0.001\ntissue.detector = "all"',
        'slides.timeout_s = 0\ntissue.detector = "all"',
    )
    with pytest.raises(StoreError, match=r"slide 'a\.tif': took longer than 0\.001 s"):
        _tile(recipe_of(tmp_path, hurry), True)
    assert len(_tile(recipe_of(tmp_path, patience), True)[0][0]) == 16


def test_masks_and_first_weights_are_found_from_the_recipe(
    tmp_path: Path, slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From wherever it is run; and what is written of it into its output finds them from there."""
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), np.repeat(np.uint8([[0, 255]]), 16, axis=0).repeat(8, axis=1))
    recipe = recipe_of(tmp_path, 'tissue.detector = "mask:masks"', 'pretrain.model.weights = "first.safetensors"')
    make_folder(recipe.out)
    write_settings(recipe.out / "recipe.toml", relative_to_out(recipe))
    assert str(tmp_path) not in (recipe.out / "recipe.toml").read_text()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    written = read_recipe(recipe.out / "recipe.toml")
    for one in (recipe, written):
        assert one.tissue.mask_path is not None
        assert one.tissue.mask_path.resolve() == tmp_path / "masks"
        assert Path(one.pretrain.model["weights"]).resolve() == tmp_path / "first.safetensors"
    ((store,), _) = _tile(replace(written, out=tmp_path / "other"), True)
    assert sorted(set(store.numbers("x").tolist())) == [2 * TILE, 3 * TILE]


def test_no_folder_is_named_beside_the_stores(tmp_path: Path, slide: Path) -> None:
    """The reasons of failures and the settings go with the stores to whoever gets them."""
    out, masks = tmp_path / "out", tmp_path / "masks"
    masks.mkdir()
    request = TileRequest(tissue=TissueSpec(detector=f"mask:{masks}"))
    jobs = [SlideJob(slide, "a"), SlideJob(slide, "b"), SlideJob(tmp_path / "gone.tif", "c")]
    tile_slides(jobs, out, request, existing="error", quiet=True)
    with (out / "tile-summary.csv").open(newline="") as file:
        reasons = {row["slide_id"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons["a"].startswith("tissue masks 'masks': holds no mask for slide 'a'")
    assert reasons["c"] == "slide 'gone.tif': does not exist; check the path"
    assert tomllib.loads((out / "tile.toml").read_text())["tissue"]["detector"] == "mask:masks"
    found = {path.name for path in out.rglob("*") if path.is_file() and str(tmp_path).encode() in path.read_bytes()}
    assert found == set()


def test_the_summary_is_not_written_through_a_link(tmp_path: Path, slide: Path) -> None:
    """Two runs may share a folder: neither writes into what the other is about to rename, nor into anybody's other file."""
    out, precious = tmp_path / "out", tmp_path / "precious.csv"
    out.mkdir()
    precious.write_text("years")
    (out / "tile-summary.csv.partial").symlink_to(precious)
    tile_slides(
        [SlideJob(slide, "a")], out, TileRequest(tissue=TissueSpec(detector="all")), existing="error", quiet=True
    )
    assert precious.read_text() == "years"
    assert "a,ok," in (out / "tile-summary.csv").read_text()

"""Real slides: scanner files and files that are no slides, where they exist on this machine."""

from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest

from simtriplet.wsi.annotation import read_geojson
from simtriplet.wsi.check import check_store
from simtriplet.wsi.codec import CodecName
from simtriplet.wsi.errors import ResolutionError, SlideOpenError
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.slide import open_slide, slide_mpp
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.tiling import SlideJob, TileRequest, tile_slide
from simtriplet.wsi.tissue import TissueSpec

CMU = "CMU-1-Small-Region.svs"
TCGA = "TCGA-CR-7395-01A-01-TS1.svs"


@pytest.mark.parametrize("name", [CMU, TCGA, "generic-4-levels.tif"])
def test_the_fast_reader_equals_openslide(shared_data: Path, name: str) -> None:
    path = shared_data / "slides" / name
    rng = np.random.default_rng(0)
    with open_slide(path) as ours, openslide.OpenSlide(path) as theirs:
        assert ours.name == "tiff"
        assert ours.info.level_sizes == theirs.level_dimensions
        # whole factors where a scanner reduced by one and dropped the rest
        assert ours.info.level_downsamples == pytest.approx(theirs.level_downsamples, rel=1e-3)
        exact = [i for i, d in enumerate(theirs.level_downsamples) if d == round(d)]
        assert 0 in exact
        for level in exact:
            width, height = ours.info.level_sizes[level]
            step = round(theirs.level_downsamples[level])
            for x, y in zip(rng.integers(0, width - 300, 6), rng.integers(0, height - 200, 6), strict=True):
                rgba = np.asarray(theirs.read_region((int(x) * step, int(y) * step), level, (300, 200)))
                expected = np.where(rgba[..., 3:] == 0, 255, rgba[..., :3])
                assert np.array_equal(ours.read(level, (int(x), int(y)), (300, 200)), expected)


@pytest.mark.parametrize("name", [CMU, TCGA, "generic-4-levels.tif"])
def test_tiffslide_reads_the_same(shared_data: Path, name: str) -> None:
    path = shared_data / "slides" / name
    with open_slide(path) as ours, open_slide(path, reader="tiffslide") as theirs:
        for level in range(len(ours.info.level_sizes)):
            assert np.array_equal(ours.read(level, (401, 603), (300, 200)), theirs.read(level, (401, 603), (300, 200)))


def tile(path: Path, out: Path, **tiling: Any) -> TileStore:
    mpp = tiling.pop("slide_mpp", None)
    tile_slide(SlideJob(path, path.stem, slide_mpp=mpp), out, TileRequest(TilingSpec(**tiling)), threads=2)
    return TileStore(out / f"{path.stem}.tiles.zarr")


def check_against_openslide(store: TileStore, path: Path) -> None:
    size = store.size_px
    some = np.random.default_rng(0).permutation(len(store))[:10]
    with openslide.OpenSlide(path) as slide:
        for pixels, (x, y) in zip(store.images.read(some), store.base_xy()[some].tolist(), strict=True):
            expected = slide.read_region((x, y), 0, (size, size)).convert("RGB")
            assert np.array_equal(pixels, np.asarray(expected))


def test_an_aperio_slide(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "slides" / CMU
    store = tile(path, tmp_path, mpp=0.5, size_px=128)
    assert (store.base_mpp, store.mpp) == (0.499, 0.499)
    assert 150 < len(store) <= (2220 // 128) * (2967 // 128)
    check_against_openslide(store, path)
    assert index_store(store).mean_degree > 4
    assert check_store(store.path) == []
    # the label and the macro image stay in the slide: only the picture of the scan itself is in the store
    height, width, _ = store.thumbnail().shape
    assert (height, width) == (-(-2967 // 16), -(-2220 // 16))
    assert sorted(entry.name for entry in (store.path / "images").iterdir()) == ["thumbnail", "zarr.json"]
    assert set(store.attributes["slide"]) == {
        "id", "patient_id", "label", "mpp", "mpp_source", "width", "height", "level_downsamples", "objective_power", "vendor",
        "fingerprint",
    }  # fmt: skip


def test_a_slide_without_resolution_and_with_background(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "slides" / TCGA
    with pytest.raises(ResolutionError, match=r"has no mpp in its file; pass --slide-mpp$"):
        tile(path, tmp_path)
    store = tile(path, tmp_path, slide_mpp=0.5, size_px=128)
    lattice = (4443 // 128) * (3567 // 128)
    assert 0.2 * lattice < len(store) < 0.95 * lattice
    check_against_openslide(store, path)
    assert store.images.read(np.arange(len(store))).mean() < store.thumbnail().mean()


NO_SLIDE = (
    "is not a slide that OpenSlide or TiffSlide can read; check the file, or convert a plain picture to a tiled pyramid "
    "(vips tiffsave --tile --pyramid)"
)
ODD = {
    "corrupt.png": NO_SLIDE,
    "not-a-slide.dcm": NO_SLIDE,
    "uint16.tif": "pixels are 1 x uint16, not 8-bit RGB; convert it to RGB",
    "untiled-rgb.tif": "is stored in strips, not in tiles; convert it to a tiled pyramid (vips tiffsave --tile --pyramid)",
    "no-resolution.tif": "has no mpp in its file; pass --slide-mpp",
    "mpp-1000.tif": (
        "its 1000 um per pixel are coarser than the wanted 0.5; "
        "pass --mpp 1000 or coarser, or --upsample, or --slide-mpp if the file is wrong"
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_refused_with_the_reason(shared_data: Path, tmp_path: Path, name: str) -> None:
    path = shared_data / "slides" / "odd" / name
    with pytest.raises((SlideOpenError, ResolutionError)) as caught:
        tile(path, tmp_path / "out")
    said = path.name if name == "mpp-1000.tif" else path
    assert str(caught.value) == f"slide '{said}': {ODD[name]}"
    assert not (tmp_path / "out").exists()


def test_every_odd_file_has_its_reason_here(shared_data: Path) -> None:
    assert {path.name for path in (shared_data / "slides" / "odd").iterdir()} == set(ODD)


@pytest.mark.parametrize("name", ["dicom-full.dcm", "dicom-sparse.dcm"])
def test_dicom_goes_through_openslide(shared_data: Path, tmp_path: Path, name: str) -> None:
    path = shared_data / "slides" / name
    with open_slide(path) as slide:
        assert (slide.name, slide.info.vendor, slide.info.level_sizes) == ("openslide", "dicom", ((154, 290),))
        assert slide_mpp(slide) == pytest.approx(124.2, abs=0.05)
        pixels = slide.read(0, (0, 0), (154, 290))
    with openslide.OpenSlide(path) as slide:
        rgba = np.asarray(slide.read_region((0, 0), 0, (154, 290)))
    assert (pixels[rgba[..., 3] == 0] == 255).all()
    assert np.array_equal(pixels[rgba[..., 3] == 255], rgba[rgba[..., 3] == 255, :3])
    request = TileRequest(TilingSpec(mpp=124.2, size_px=16), TissueSpec(detector="all"))  # the picture is black
    tile_slide(SlideJob(path, "d"), tmp_path, request)
    store = TileStore(tmp_path / "d.tiles.zarr")
    assert len(store) == (154 // 16) * (290 // 16)
    x, y = store.base_xy()[-1].tolist()
    assert np.array_equal(store.images.read([len(store) - 1])[0], pixels[y : y + 16, x : x + 16])


def test_a_slide_that_is_nearly_all_tissue_keeps_its_tiles(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "glas" / "slides" / "train_1.tif"
    regions = tuple(read_geojson(shared_data / "glas" / "annotations" / "train_1.geojson"))
    request = TileRequest(TilingSpec(mpp=0.62005, size_px=64))
    tile_slide(SlideJob(path, "g", regions=regions), tmp_path, request)
    store = TileStore(tmp_path / "g.tiles.zarr")
    assert len(store) > 0.8 * (775 // 64) * (522 // 64)
    labels = store.labels()
    assert labels is not None
    assert labels.categories == ("gland",)
    assert 0 < (np.asarray(labels.codes) == 0).sum() < len(store)


@pytest.mark.parametrize(("name", "slide_mpp_um", "least_db"), [(CMU, None, 27.0), (TCGA, 0.25, 33.0)])
def test_jpeg_at_the_default_quality_keeps_what_the_docs_say(
    shared_data: Path, tmp_path: Path, name: str, slide_mpp_um: float | None, least_db: float
) -> None:
    job = SlideJob(shared_data / "slides" / name, "s", slide_mpp=slide_mpp_um)
    tiles = []
    codecs: tuple[CodecName, ...] = ("none", "jpeg")
    for codec in codecs:
        tile_slide(job, tmp_path / codec, TileRequest(TilingSpec(mpp=0.5), codec=codec))
        images = TileStore(tmp_path / codec / "s.tiles.zarr").images
        tiles.append(images.read(range(images.n_tiles)).astype(np.float64))
    psnr = 10 * np.log10(255**2 / ((tiles[0] - tiles[1]) ** 2).mean(axis=(1, 2, 3)))
    assert len(psnr) > 40
    assert psnr.min() >= least_db

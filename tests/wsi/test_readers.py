"""The readers against each other and against the pixels that were written, and what they refuse."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simtriplet.wsi.errors import SlideOpenError, SlideReadError, UnknownNameError
from simtriplet.wsi.slide import SlideReader, open_slide

Pixels = npt.NDArray[np.uint8]
Writer = Callable[..., Path]
ALL = ("tiff", "openslide", "tiffslide")
APERIO = "Aperio Image Library v11.2.1\r\n701x503 (240x240) Q=70|AppMag = 20|MPP = 0.4990|Left = 25.69"


def open_files() -> list[Path]:
    return [file.resolve() for file in Path("/proc/self/fd").iterdir()]


def read_levels(path: Path, reader: str) -> list[Pixels]:
    with open_slide(path, reader=reader) as slide:
        return [slide.read(level, (0, 0), size) for level, size in enumerate(slide.info.level_sizes)]


LAYOUTS: dict[str, dict[str, Any]] = {
    "raw": {"compression": None, "tile": 256},  # libtiff wants tile bytes as tifffile pads them
    "lzw": {"compression": "lzw", "tile": 240},
    "lzw with predictor": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "deflate", "tile": 240},
    "jpeg 240": {"compression": "jpeg", "tile": 240},
    "jpeg 4:4:4": {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (1, 1)},
    "aperio jpeg": {"compression": "jpeg", "tile": 240, "aperio": APERIO},
    "aperio jpeg 2000": {"compression": "APERIO_JP2000_RGB", "aperio": APERIO},
    "small tiles": {"compression": "deflate", "tile": 16},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_readers_agree_pixel_for_pixel(tmp_path: Path, picture: Any, write_slide: Writer, layout: str) -> None:
    """Odd sizes that no tile divides, three levels."""
    base = picture(701, 503)
    path = write_slide(tmp_path / "a.svs", base, n_levels=3, **LAYOUTS[layout])
    tiff, openslide, tiffslide = (read_levels(path, name) for name in ALL)
    assert [level.shape for level in tiff] == [(503, 701, 3), (251, 350, 3), (125, 175, 3)]
    for ours, theirs, third in zip(tiff, openslide, tiffslide, strict=True):
        assert np.array_equal(ours, theirs)
        assert np.array_equal(ours, third)
    if "jpeg" not in layout:
        assert np.array_equal(tiff[0], base)
    with open_slide(path) as slide:
        assert slide.name == "tiff"


@pytest.mark.parametrize("compression", ["lzw", "jpeg"])
def test_grey_slides_become_rgb(tmp_path: Path, picture: Any, write_slide: Writer, compression: str) -> None:
    grey = picture(300, 200)[..., 0]
    path = write_slide(tmp_path / "a.tif", grey, compression=compression, tile=64)
    read = [read_levels(path, name)[0] for name in ALL]
    assert read[0].shape == (200, 300, 3)
    assert (read[0] == read[0][..., :1]).all()
    assert np.array_equal(read[0], read[1])
    assert np.array_equal(read[0], read[2])
    assert np.abs(read[0][..., 0].astype(int) - grey).mean() < (3 if compression == "jpeg" else 1e-9)


@pytest.mark.parametrize(
    "layout",
    [
        {"compression": "lzw", "photometric": "ycbcr", "subsampling": (1, 1)},
        {"compression": "deflate", "photometric": "ycbcr", "subsampling": (1, 1)},
        {"compression": "APERIO_JP2000_YCBC", "aperio": APERIO},
    ],
)
def test_colours_that_only_openslide_converts_are_left_to_it(
    tmp_path: Path, picture: Any, write_slide: Writer, layout: dict[str, Any]
) -> None:
    """Luma and chroma that no JPEG codec turns into RGB must not be taken for red, green and blue."""
    path = write_slide(tmp_path / "a.svs", picture(300, 200), **layout)
    with open_slide(path) as slide:
        assert slide.name == "openslide"
    with pytest.raises(SlideOpenError, match="has no tiled 8-bit level of a known compression"):
        open_slide(path, reader="tiff")


@pytest.mark.parametrize("reader", ["auto", "openslide", "tiffslide"])
def test_transparency_is_white(tmp_path: Path, picture: Any, write_slide: Writer, reader: str) -> None:
    rgba = np.dstack([picture(96, 64), np.full((64, 96), 255, np.uint8)])
    rgba[:, 48:] = 0
    path = write_slide(tmp_path / "a.tif", rgba, tile=32, extrasamples=["UNASSALPHA"])
    read = read_levels(path, reader)[0]
    assert np.array_equal(read[:, :48], rgba[:, :48, :3])
    assert (read[:, 48:] == 255).all()


def test_level_downsamples_agree_with_openslide(tmp_path: Path, picture: Any, write_slide: Writer) -> None:
    path = write_slide(tmp_path / "a.tif", picture(701, 503), n_levels=3, tile=64)
    infos = []
    for name in ALL:
        with open_slide(path, reader=name) as slide:
            infos.append(slide.info)
    assert infos[0].level_downsamples == pytest.approx(infos[1].level_downsamples)
    assert infos[0].level_downsamples == pytest.approx(infos[2].level_downsamples)
    assert (infos[0].width, infos[0].height) == (701, 503)
    assert infos[0].vendor == infos[1].vendor == "generic-tiff"


@pytest.fixture(scope="module")
def bordered(tmp_path_factory: pytest.TempPathFactory, picture: Any, write_slide: Writer) -> tuple[Pixels, Path]:
    base = picture(130, 70)
    return base, write_slide(tmp_path_factory.mktemp("bordered") / "a.tif", base, tile=32)


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    xy=st.tuples(st.integers(-60, 160), st.integers(-60, 100)), size=st.tuples(st.integers(1, 200), st.integers(1, 200))
)
def test_windows_over_every_border_are_white_outside(
    bordered: tuple[Pixels, Path], name: str, xy: tuple[int, int], size: tuple[int, int]
) -> None:
    base, path = bordered
    sheet = np.full((600, 600, 3), 255, np.uint8)
    sheet[200:270, 200:330] = base
    with open_slide(path, reader=name) as slide:
        read = slide.read(0, xy, size)
    assert np.array_equal(read, sheet[200 + xy[1] : 200 + xy[1] + size[1], 200 + xy[0] : 200 + xy[0] + size[0]])


@pytest.mark.parametrize("name", ALL)
def test_threads_see_the_same_pixels(tmp_path: Path, picture: Any, write_slide: Writer, name: str) -> None:
    base = picture(701, 503)
    path = write_slide(tmp_path / "a.tif", base, tile=64, n_levels=2)
    corners = np.random.default_rng(0).integers(0, 400, (200, 2))
    with open_slide(path, reader=name) as slide, ThreadPoolExecutor(8) as pool:
        windows = list(pool.map(lambda xy: slide.read(0, (int(xy[0]), int(xy[1])), (40, 30)), corners))
    for (x, y), window in zip(corners.tolist(), windows, strict=True):
        assert np.array_equal(window, base[y : y + 30, x : x + 40])


def test_the_tile_cache_forgets_but_never_lies(tmp_path: Path, picture: Any, write_slide: Writer) -> None:
    from simtriplet.wsi.tiff_reader import TiffReader

    base = picture(640, 640)
    with TiffReader(write_slide(tmp_path / "a.tif", base, tile=64)) as slide:
        slide._cache._max_bytes = 3 * 64 * 64 * 3
        for x, y in np.random.default_rng(0).integers(0, 600, (150, 2)).tolist():
            assert np.array_equal(slide.read(0, (x, y), (40, 40)), base[y : y + 40, x : x + 40])
            assert slide._cache._bytes == sum(tile.nbytes for tile in slide._cache._tiles.values()) <= 3 * 64 * 64 * 3


@pytest.mark.parametrize("name", ALL)
def test_a_block_closes_every_file(tmp_path: Path, picture: Any, write_slide: Writer, name: str) -> None:
    path = write_slide(tmp_path / "a.tif", picture(64, 64), tile=32)
    with open_slide(path, reader=name) as slide:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: slide.read(0, (0, 0), (8, 8)), range(4)))
        # OpenSlide itself opens the file only while it reads
        assert name == "openslide" or path in open_files()
    assert path not in open_files()


def refusal(path: Path, reader: str = "auto") -> str:
    with pytest.raises(SlideOpenError) as caught:
        open_slide(path, reader=reader)
    message = str(caught.value)
    assert "\n" not in message
    assert isinstance(caught.value, OSError)
    assert str(path) in message
    return message


class TestRefusals:
    def test_missing_folder_and_unknown_reader(self, tmp_path: Path, flat_slide: Path) -> None:
        assert refusal(tmp_path / "no.svs") == f"slide '{tmp_path / 'no.svs'}': does not exist; check the path"
        assert refusal(tmp_path).endswith("is a folder; pass a slide file")
        with pytest.raises(UnknownNameError, match=r"did you mean 'openslide'"):
            open_slide(flat_slide, reader="openslid")

    @pytest.mark.parametrize("content", [b"", b"case;slide\n1;2\n", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*\0\0\0\x08"])
    @pytest.mark.parametrize("reader", ["auto", *ALL])
    def test_files_that_are_no_slides(self, tmp_path: Path, content: bytes, reader: str) -> None:
        path = tmp_path / "renamed.svs"
        path.write_bytes(content)
        refusal(path, reader)

    @pytest.mark.parametrize(
        ("pixels", "options", "reason"),
        [
            (np.zeros((64, 64, 3), np.uint16), {"tile": (32, 32)}, "3 x uint16, not 8-bit RGB"),
            (np.zeros((64, 64), np.float32), {"tile": (32, 32)}, "1 x float32, not 8-bit RGB"),
            (np.zeros((3, 64, 64), np.uint8), {"tile": (32, 32), "planarconfig": "separate"}, "not 8-bit RGB"),
            (np.zeros((64, 64, 3), np.uint8), {"rowsperstrip": 16}, "is stored in strips, not in tiles"),
        ],
    )
    def test_tiffs_of_another_kind(self, tmp_path: Path, pixels: Any, options: dict[str, Any], reason: str) -> None:
        path = tmp_path / "a.tif"
        photometric = "rgb" if 3 in pixels.shape else "minisblack"
        tifffile.imwrite(path, pixels, photometric=photometric, metadata=None, **options)
        refusal(path, "tiff")
        assert reason in refusal(path, "tiffslide")

    def test_a_lying_height_is_not_left_to_a_reader_that_takes_it(
        self, tmp_path: Path, picture: Any, write_slide: Writer
    ) -> None:
        """With colours that this program leaves to OpenSlide, which takes tiles that are not there for white."""
        path = write_slide(tmp_path / "a.tif", picture(256, 128), tile=64)
        with tifffile.TiffFile(path, mode="r+b") as tiff:
            tags = tiff.pages[0].tags
            tags["PhotometricInterpretation"].overwrite(9)
            tags["ImageLength"].overwrite(60_000)
        with openslide.OpenSlide(path) as lenient:
            assert lenient.dimensions == (256, 60_000)
        assert "3752 tiles announced, 8 stored; the file is damaged" in refusal(path)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
    @pytest.mark.parametrize("reader", ["auto", *ALL])
    def test_a_tiff_cut_short(self, flat_slide: Path, share: float, reader: str) -> None:
        """Cut before or after its directory: refused at opening or at reading, never wrong pixels."""
        os.truncate(flat_slide, int(flat_slide.stat().st_size * share))
        with pytest.raises((SlideOpenError, SlideReadError)) as caught, open_slide(flat_slide, reader=reader) as slide:
            slide.read(0, (0, 0), (slide.info.width, slide.info.height))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("reader", ALL)
    def test_a_damaged_native_tile_fails_alone(
        self, tmp_path: Path, picture: Any, write_slide: Writer, reader: str
    ) -> None:
        base = picture(256, 128)
        path = write_slide(tmp_path / "a.tif", base, tile=64)
        with tifffile.TiffFile(path) as tiff:
            offset, size = tiff.pages[0].dataoffsets[5], tiff.pages[0].databytecounts[5]
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"\xff" * size)
        with open_slide(path, reader=reader) as slide:
            with pytest.raises(SlideReadError, match=r"the file is damaged at \(\d+, \d+\), level-0 pixels$"):
                slide.read(0, (64, 64), (64, 64))
            assert np.array_equal(slide.read(0, (128, 0), (128, 64)), base[:64, 128:])


@pytest.mark.parametrize("reader", ["tiff", "openslide", "tiffslide"])
def test_a_sparse_native_tile_is_white(tmp_path: Path, picture: Any, write_slide: Writer, reader: str) -> None:
    base = picture(128, 64)
    path = write_slide(tmp_path / "a.tif", base, tile=64)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page: Any = tiff.pages[0]
        page.tags["TileByteCounts"].overwrite([page.databytecounts[0], 0])
    with open_slide(path, reader=reader) as slide:
        assert np.array_equal(slide.read(0, (0, 0), (64, 64)), base[:, :64])
        assert (slide.read(0, (64, 0), (64, 64)) == 255).all()
        across = slide.read(0, (40, 10), (50, 30))
        assert np.array_equal(across[:, :24], base[10:40, 40:64])
        assert (across[:, 24:] == 255).all()


def test_pages_that_are_no_levels_are_left_out(tmp_path: Path, picture: Any, write_slide: Writer) -> None:
    """A square picture in the file (a macro image, say) is no level of a slide that is not square."""
    base = picture(600, 300)
    path = write_slide(tmp_path / "a.tif", [base, picture(290, 290), base[::2, ::2].copy()], tile=64)
    with open_slide(path, reader="tiff") as slide:
        assert slide.info.level_sizes == ((600, 300), (300, 150))
        assert np.array_equal(slide.read(1, (0, 0), (300, 150)), base[::2, ::2])


def test_every_reader_keeps_the_protocol(flat_slide: Path) -> None:
    for name in ALL:
        with open_slide(flat_slide, reader=name) as slide:
            reader: SlideReader = slide
            assert reader.name == name
            assert reader.path == flat_slide
            windows = reader.read_windows(0, np.array([[0, 0], [-5, 690]]), (20, 30))
            assert windows.shape == (2, 30, 20, 3)
            assert windows.dtype == np.uint8
            assert reader.read_windows(0, np.zeros((0, 2), np.int64), (20, 30)).shape == (0, 30, 20, 3)


@pytest.mark.parametrize("reader", ["auto", "tiffslide"])
def test_no_other_file_is_read(tmp_path: Path, reader: str) -> None:
    """OME-TIFF may name other files to take pixels from, wherever they lie; here one of another patient."""
    layout: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate"}
    other, path = tmp_path / "private" / "other.ome.tif", tmp_path / "slides" / "a.ome.tif"
    for folder in (other.parent, path.parent):
        folder.mkdir()
    tifffile.imwrite(other, np.full((128, 128, 3), 77, np.uint8), ome=True, metadata={"axes": "YXS"}, **layout)
    about = """<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0">
        <Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="128" SizeY="128" SizeC="3" SizeZ="1" SizeT="1">
        <Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1">
        <UUID FileName="../private/other.ome.tif">urn:uuid:2</UUID></TiffData></Pixels></Image></OME>"""
    tifffile.imwrite(path, np.full((128, 128, 3), 200, np.uint8), description=about, metadata=None, **layout)
    with open_slide(path, reader=reader) as slide:
        assert np.unique(slide.read(0, (0, 0), (128, 128))).tolist() == [200]

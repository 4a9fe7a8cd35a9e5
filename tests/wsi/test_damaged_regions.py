"""Regions of a slide that cannot be decoded: an error that says where, or tiles left out and listed; never wrong pixels."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from simtriplet.wsi.check import check_store
from simtriplet.wsi.errors import SimTripletError, SlideReadError, StoreExistsError
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.jpeg_damage import looks_damaged
from simtriplet.wsi.openslide_reader import OpenSlideReader
from simtriplet.wsi.quality import QualitySpec
from simtriplet.wsi.slide import open_slide
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.synthetic import SyntheticSlideSpec, draw_slide
from simtriplet.wsi.tiff_reader import TiffReader
from simtriplet.wsi.tiling import SlideJob, TileRequest, tile_slide
from simtriplet.wsi.tissue import TissueSpec

Writer = Callable[..., Path]
WIDTH, HEIGHT, TILE = 1024, 768, 64
N_COLS = WIDTH // TILE
PLACES = (17, 40, 41, 100)
"""Native tiles of level 0 that are damaged, none of them the tissue's only one."""


def request_for(on_damage: str = "error", *, size_px: int = TILE, reader: str = "auto", **options: Any) -> TileRequest:
    context = options.pop("context_mpp", ())
    return TileRequest(
        tiling=TilingSpec(size_px=size_px, context_mpp=context),
        tissue=TissueSpec(detector="all"),
        on_damage=on_damage,  # type: ignore[arg-type]
        reader=reader,
        **options,
    )


def tile(path: Path, out: Path, request: TileRequest, **options: Any) -> TileStore:
    tile_slide(SlideJob(path, "s"), out, request, threads=2, **options)
    return TileStore(out / "s.tiles.zarr")


def overwrite(path: Path, change: Callable[[bytes], bytes], numbers: tuple[int, ...] = PLACES, page: int = 0) -> None:
    """Change the bytes of native tiles in place."""
    with tifffile.TiffFile(path) as tiff:
        level: Any = tiff.pages[page]
        places = [(level.dataoffsets[number], level.databytecounts[number]) for number in numbers]
    with path.open("r+b") as file:
        for offset, size in places:
            file.seek(offset)
            data = change(file.read(size))
            assert len(data) == size
            file.seek(offset)
            file.write(data)


def cut(data: bytes) -> bytes:
    """The second half was never written: it holds something else."""
    return data[: len(data) // 2].ljust(len(data), b"\x55")


def zeroed(data: bytes) -> bytes:
    """A block of the disk is lost in the middle; beginning and end are whole."""
    middle = len(data) * 2 // 3
    return data[: middle - 100] + bytes(200) + data[middle + 100 :]


def erased(data: bytes) -> bytes:
    """A block of flash memory that was erased."""
    middle = len(data) * 2 // 3
    return data[: middle - 100] + b"\xff" * 200 + data[middle + 100 :]


def foreign(data: bytes) -> bytes:
    return b"\x55" * len(data)


def base_xy(numbers: tuple[int, ...]) -> list[list[int]]:
    return [[number % N_COLS * TILE, number // N_COLS * TILE] for number in numbers]


@pytest.fixture
def intact(tmp_path: Path, write_slide: Writer, tissue_picture: Any) -> Path:
    """A slide of 1024 x 768 px in JPEG tiles of 64 px with a level for the overview, so that level 0 is met by tiles only."""
    noise = np.random.default_rng(0).integers(-20, 21, (HEIGHT, WIDTH, 3))
    pixels = np.clip(tissue_picture(WIDTH, HEIGHT) + noise, 0, 255).astype(np.uint8)
    return write_slide(
        tmp_path / "whole.tif", pixels, n_levels=5, tile=TILE, compression="jpeg", compressionargs={"level": 90}
    )


@pytest.fixture
def slide(intact: Path) -> Path:
    path = intact.with_name("a.tif")
    path.write_bytes(intact.read_bytes())
    return path


# zeros are codes like others to libjpeg; only the fast path looks for them
KINDS = pytest.mark.parametrize(
    ("reader", "kind"),
    [
        ("tiff", cut),
        ("tiff", zeroed),
        ("tiff", erased),
        ("tiff", foreign),
        ("openslide", cut),
        ("openslide", erased),
        ("openslide", foreign),
    ],
)


@KINDS
def test_a_damaged_region_is_an_error_that_says_where(
    slide: Path, tmp_path: Path, kind: Callable[[bytes], bytes], reader: str
) -> None:
    overwrite(slide, kind, (40,))
    with pytest.raises(SlideReadError, match=r"the file is damaged at \(512, 128\), level-0 pixels"):
        tile(slide, tmp_path / "out", request_for(reader=reader))
    assert list((tmp_path / "out").iterdir()) == []


@KINDS
def test_damaged_tiles_are_left_out_and_listed(
    intact: Path, slide: Path, tmp_path: Path, kind: Callable[[bytes], bytes], reader: str
) -> None:
    whole = tile(intact, tmp_path / "whole", request_for(reader=reader))
    overwrite(slide, kind)
    store = tile(slide, tmp_path / "out", request_for("skip", reader=reader))
    assert sorted(store.attributes["tiling"]["damaged"]["tiles"]) == sorted(base_xy(PLACES))
    assert store.attributes["tiling"]["rejected"]["damaged"] == len(PLACES)
    assert len(store) == len(whole) - len(PLACES) == 188
    kept = [place for place, xy in enumerate(whole.base_xy().tolist()) if xy not in base_xy(PLACES)]
    assert np.array_equal(store.base_xy(), whole.base_xy()[kept])
    assert np.array_equal(store.images.read(np.arange(len(store))), whole.images.read(np.array(kept)))
    assert check_store(store.path) == []


@pytest.mark.parametrize("reader", ["tiff", "openslide", "tiffslide"])
@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_every_reader_sees_a_stream_that_ends_early(
    tmp_path: Path, write_slide: Writer, tissue_picture: Any, reader: str, compression: str
) -> None:
    pixels = tissue_picture(512, 512)
    path = write_slide(tmp_path / "a.tif", pixels, n_levels=5, tile=TILE, compression=compression)
    overwrite(path, cut, (12,))
    with pytest.raises(SlideReadError, match=r"damaged at \(256, 64\), level-0 pixels"):
        tile(path, tmp_path / "no", request_for(reader=reader))
    store = tile(path, tmp_path / "out", request_for("skip", reader=reader))
    assert store.attributes["tiling"]["damaged"] == {"tiles": [[256, 64]], "overview": []}
    assert len(store) == 63


def test_tiles_that_only_touch_damage_are_left_out_too(slide: Path, tmp_path: Path) -> None:
    """Tiles of 96 px over native tiles of 64 px, with quality limits and a wider context."""
    overwrite(slide, cut, (40,))
    request = request_for("skip", size_px=96, quality=QualitySpec(min_sharpness=0.0), context_mpp=(1.0,))
    store = tile(slide, tmp_path / "out", request)
    # the native tile spans x 512 to 576, y 128 to 192; a tile with its context 192 px around its centre
    touched = {
        (x, y)
        for x in range(0, WIDTH - 95, 96)
        for y in range(0, HEIGHT - 95, 96)
        if x - 48 < 576 and x + 144 > 512 and y - 48 < 192 and y + 144 > 128
    }
    listed = {(x, y) for x, y in store.attributes["tiling"]["damaged"]["tiles"]}
    inner = {(x, y) for x, y in touched if x < 576 and x + 96 > 512 and y < 192 and y + 96 > 128}
    assert inner <= listed <= touched
    assert listed.isdisjoint(map(tuple, store.base_xy().tolist()))
    assert len(store) + len(listed) == 80
    assert check_store(store.path) == []


def test_native_tiles_that_are_damaged(slide: Path, tmp_path: Path) -> None:
    request = {"grid": "native"}
    overwrite(slide, cut)
    with pytest.raises(SlideReadError, match="its end is missing"):
        tile(slide, tmp_path / "no", request_for(**request))
    store = tile(slide, tmp_path / "out", request_for("skip", **request))
    assert store.attributes["tiling"]["rejected"]["damaged"] == len(PLACES)
    assert check_store(store.path) == []


def test_damage_in_the_overview_is_listed(tmp_path: Path, write_slide: Writer, tissue_picture: Any) -> None:
    """The slide has one level: tissue is looked for on the pixels that are damaged."""
    path = write_slide(tmp_path / "a.tif", tissue_picture(WIDTH, HEIGHT), tile=TILE)
    overwrite(path, foreign, (40, 41))
    with pytest.raises(SlideReadError):
        tile(path, tmp_path / "no", request_for())
    store = tile(path, tmp_path / "out", request_for("skip"))
    damaged = store.attributes["tiling"]["damaged"]
    covered = np.zeros((HEIGHT, WIDTH), bool)
    for x, y, width, height in damaged["overview"]:
        covered[y : y + height, x : x + width] = True
    assert covered[128:192, 512:640].all()
    assert covered.mean() < 0.06, "what is given up is not much more than what is lost"
    assert sorted(damaged["tiles"]) == sorted(base_xy((40, 41)))


def test_a_store_that_lacks_tiles_is_not_taken_for_a_whole_one(slide: Path, tmp_path: Path) -> None:
    overwrite(slide, cut)
    store = tile(slide, tmp_path, request_for("skip"))
    with pytest.raises(StoreExistsError, match=r"lacks 4 tiles .* --on-damage skip to keep it"):
        tile(slide, tmp_path, request_for("error"), existing="skip")
    again = tile(slide, tmp_path, request_for("skip"), existing="skip")
    assert again.attributes["tiles_id"] == store.attributes["tiles_id"]


def test_an_undamaged_store_serves_both_requests(intact: Path, tmp_path: Path) -> None:
    store = tile(intact, tmp_path, request_for("error"))
    assert store.attributes["tiling"]["damaged"] == {"tiles": [], "overview": []}
    again = tile(intact, tmp_path, request_for("skip"), existing="skip")
    assert again.attributes["tiles_id"] == store.attributes["tiles_id"]


def test_a_slide_of_nothing_but_damage_is_an_error(slide: Path, tmp_path: Path) -> None:
    overwrite(slide, foreign, tuple(range(N_COLS * HEIGHT // TILE)))
    with pytest.raises(SlideReadError, match="none of its 192 tissue tiles can be read"):
        tile(slide, tmp_path / "out", request_for("skip"))
    assert list((tmp_path / "out").iterdir()) == []


def test_openslide_goes_on_after_each_error_with_one_handle(slide: Path) -> None:
    overwrite(slide, foreign, tuple(range(100)))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with OpenSlideReader(slide) as reader:
        for number in range(100):
            with pytest.raises(SlideReadError):
                reader.read(0, (number % N_COLS * TILE, number // N_COLS * TILE), (8, 8))
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
        assert reader.read(0, (0, HEIGHT - 8), (8, 8)).shape == (8, 8, 3)


class TestSuspicion:
    """`looks_damaged` may suspect a whole stream, which costs a second decoding and changes nothing."""

    def test_streams_of_a_drawn_slide_are_not_suspected(self, tmp_path: Path) -> None:
        path = tmp_path / "drawn.svs"
        draw_slide(path, SyntheticSlideSpec(width_px=2048, height_px=1536))
        data = path.read_bytes()
        with tifffile.TiffFile(path) as tiff:
            page: Any = tiff.pages[0]
            streams = [data[o : o + n] for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
        assert len(streams) == 48
        assert not any(looks_damaged(stream) for stream in streams)

    @pytest.mark.parametrize(
        "options",
        [{"restart_marker_blocks": 4}, {"optimize": True}, {"progressive": True}],
        ids=["restarts", "optimised", "progressive"],
    )
    @pytest.mark.parametrize("flat", [False, True])
    def test_unusual_streams_are_read(self, tmp_path: Path, picture: Any, options: Any, flat: bool) -> None:
        """Flat tiles with their own Huffman tables are runs of zeros; progressive ones have many markers."""
        path, pixels = tmp_path / "a.tif", picture(512, 512)
        if flat:
            pixels[:] = (240, 240, 240)

        def encode(x: int, y: int) -> bytes:
            file = io.BytesIO()
            Image.fromarray(pixels[y : y + 256, x : x + 256]).save(file, "jpeg", quality=90, **options)
            return file.getvalue()

        streams = [encode(x, y) for y in (0, 256) for x in (0, 256)]
        with tifffile.TiffWriter(path) as tiff:
            tiff.write(
                iter(streams), shape=(512, 512, 3), dtype=np.uint8, tile=(256, 256), photometric="ycbcr",
                compression=7, subsampling=(2, 2), metadata=None,
            )  # fmt: skip
        if "restart_marker_blocks" in options:
            assert not any(looks_damaged(stream) for stream in streams)
        with TiffReader(path) as reader:
            for number, stream in enumerate(streams):
                expected = np.asarray(Image.open(io.BytesIO(stream)).convert("RGB"))
                found = reader.read(0, (number % 2 * 256, number // 2 * 256), (256, 256))
                assert np.abs(found.astype(int) - expected).max() <= 2


def test_bytes_lost_in_a_stream_are_an_error_nearly_as_often_as_libjpeg_can_tell(slide: Path, n_mutants: int) -> None:
    """OpenSlide takes libjpeg's warnings for errors; the fast path, which cannot hear them, looks at the bytes."""
    with tifffile.TiffFile(slide) as tiff:
        page: Any = tiff.pages[0]
        offset, size = page.dataoffsets[40], page.databytecounts[40]
    data, rng = slide.read_bytes(), np.random.default_rng(7)
    told = {"tiff": 0, "openslide": 0}
    for _ in range(n_mutants // 20):
        start, length = int(rng.integers(200, size)), int(rng.integers(1, 600))
        end = min(offset + size, offset + start + length)
        lost = end - offset - start
        mutant = bytearray(data)
        mutant[offset + start : end] = bytes(lost) if rng.random() < 0.3 else rng.bytes(lost)
        slide.write_bytes(mutant)
        for reader in told:
            told[reader] += not reads(slide, reader)
    assert told["tiff"] > n_mutants // 20 / 2
    assert told["tiff"] > 0.95 * told["openslide"]


def reads(path: Path, reader: str) -> bool:
    try:
        with open_slide(path, reader=reader) as slide:
            slide.read(0, (512, 128), (TILE, TILE))
    except SimTripletError:
        return False
    return True

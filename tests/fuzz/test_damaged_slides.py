"""Damaged and hostile slide files end in a SimTripletError or in right pixels: in bounded memory and time, without a word.

What cannot be told: a change within the compressed data of a JPEG, JPEG 2000, LZW or raw tile that the decoder takes for
another picture. Only deflate carries a checksum; its damage is always seen.
"""

import logging
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile

from simtriplet.wsi.errors import SimTripletError, SlideOpenError, SlideReadError
from simtriplet.wsi.overview import read_overview
from simtriplet.wsi.slide import open_slide

log = logging.getLogger(__name__)

WIDTH, HEIGHT, TILE = 256, 192, 64
APERIO = "Aperio Image Library v12.0.0\r\n256x192 [0,0 256x192] (64x64)|AppMag = 20|MPP = 0.5"
GIB = 1 << 30


def draw_levels() -> list[np.ndarray]:
    """Return three levels, (h, w, 3), with detail everywhere."""
    coarse = np.random.default_rng(5).integers(0, 256, (HEIGHT // 12 + 2, WIDTH // 12 + 2), dtype=np.uint8)
    share = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)[..., None] / 255
    base = np.rint(share * (228, 150, 196) + (1 - share) * (120, 66, 140)).astype(np.uint8)
    half = cv2.resize(base, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
    return [base, half, cv2.resize(half, (WIDTH // 4, HEIGHT // 4), interpolation=cv2.INTER_AREA)]


def write_tiff(path: Path, *, big: bool = False, aperio: bool = False, tiled: bool = True, **layout: Any) -> None:
    about = APERIO if aperio else None
    shape: dict[str, Any] = {"tile": (TILE, TILE)} if tiled else {"rowsperstrip": 32}
    with tifffile.TiffWriter(path, bigtiff=big) as tiff:
        for number, level in enumerate(draw_levels()):
            part_of_pyramid = {"subfiletype": int(number > 0 and not aperio), "description": about, "metadata": None}
            scale = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
            tiff.write(level, photometric="rgb", **shape, **part_of_pyramid, **scale, **layout)
            if aperio and number == 0:
                tiff.write(level[::4, ::4].copy(), photometric="rgb", description=about, metadata=None)


def write_with_tables(path: Path) -> None:
    """Write what scanners write: tiles as abbreviated JPEG streams, their tables once in a tag."""
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate(draw_levels()):
            height, width = level.shape[:2]
            padded = np.pad(level, ((0, -height % TILE), (0, -width % TILE), (0, 0)), mode="edge")
            corners = [(y, x) for y in range(0, height, TILE) for x in range(0, width, TILE)]
            streams = [split_jpeg(padded[y : y + TILE, x : x + TILE]) for y, x in corners]
            tables = streams[0][0]
            tiff.write(
                iter([stream for _, stream in streams]),
                shape=level.shape,
                dtype=np.uint8,
                photometric="ycbcr",
                subsampling=(2, 2),
                compression=7,
                tile=(TILE, TILE),
                subfiletype=int(number > 0),
                metadata=None,
                extratags=[(347, 7, len(tables), tables, True)],
                resolution=(20_000, 20_000),
                resolutionunit="CENTIMETER",
            )


def split_jpeg(pixels: np.ndarray) -> tuple[bytes, bytes]:
    """Return the tables of a JPEG stream, and the stream without them."""
    data = bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), 85, subsampling="420"))
    tables, rest, place = b"", b"", 2
    while data[place + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, place + 2)
        segment = data[place : place + 2 + length]
        if data[place + 1] in (0xDB, 0xC4):
            tables += segment
        elif data[place + 1] != 0xE0:
            rest += segment
        place += 2 + length
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + data[place:]


def write_ome(path: Path) -> None:
    base, *smaller = draw_levels()
    um = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    layout: dict[str, Any] = {"tile": (TILE, TILE), "photometric": "rgb", "compression": "deflate"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(base, subifds=len(smaller), metadata={"axes": "YXS", **um}, **layout)
        for level in smaller:
            tiff.write(level, subfiletype=1, **layout)


def write_dicom(path: Path) -> None:
    """Write one level of tiles as a DICOM whole-slide image."""
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

    base = draw_levels()[0]
    corners = [(y, x) for y in range(0, HEIGHT, TILE) for x in range(0, WIDTH, TILE)]
    frames = [bytes(imagecodecs.jpeg8_encode(base[y : y + TILE, x : x + TILE].copy(), 85)) for y, x in corners]
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3.4"
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.SeriesInstanceUID, made.StudyInstanceUID, made.FrameOfReferenceUID = "1.2.3.5", "1.2.3.6", "1.2.3.7"
    made.ImageType, made.Modality = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "SM"
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "YBR_FULL_422", 0
    made.NumberOfFrames, made.Rows, made.Columns = len(frames), TILE, TILE
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.TotalPixelMatrixColumns, made.TotalPixelMatrixRows = WIDTH, HEIGHT
    made.TotalPixelMatrixFocalPlanes, made.NumberOfOpticalPaths = 1, 1
    made.DimensionOrganizationType, made.InstanceNumber = "TILED_FULL", 1
    measures, shared = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.0005, 0.0005], 0.001
    shared.PixelMeasuresSequence = [measures]
    made.SharedFunctionalGroupsSequence = [shared]
    made.PixelData = encapsulate(frames)
    made["PixelData"].VR = "OB"
    made.save_as(path, enforce_file_format=True, little_endian=True, implicit_vr=False)


@dataclass(frozen=True)
class Kind:
    """A kind of slide.

    Attributes:
        write: makes an undamaged one.
        name: of its file.
        share: of the mutants that are tried.
        reader: asked for.
        found: the reader that opens it, "none" where it is refused, damaged or not.
        checksum: damage of a tile is always seen.
    """

    write: Callable[[Path], None]
    name: str
    share: float = 1.0
    reader: str = "auto"
    found: str = "tiff"
    checksum: bool = False
    layout: dict[str, Any] = field(default_factory=dict)

    def draw(self, folder: Path) -> Path:
        path = folder / self.name
        self.write(path, **self.layout)
        return path


def write_picture(path: Path) -> None:
    cv2.imwrite(str(path), draw_levels()[0])


DEFLATE = {"compression": "deflate"}
KINDS = {
    "aperio jpeg": Kind(write_tiff, "a.svs", layout={"aperio": True, "compression": "jpeg"}),
    "jpeg tables": Kind(write_with_tables, "a.tif"),
    "deflate": Kind(write_tiff, "b.tif", checksum=True, layout=DEFLATE),
    "bigtiff lzw": Kind(write_tiff, "c.tif", layout={"big": True, "compression": "lzw"}),
    "ome": Kind(write_ome, "a.ome.tif", checksum=True),
    "aperio jpeg 2000": Kind(write_tiff, "b.svs", 0.15, layout={"aperio": True, "compression": "APERIO_JP2000_RGB"}),
    "raw": Kind(write_tiff, "d.tif", 0.15),
    "dicom": Kind(write_dicom, "a.dcm", 0.15, found="openslide"),
    "openslide": Kind(write_tiff, "e.tif", 0.15, "openslide", "openslide", False, DEFLATE),
    "tiffslide": Kind(write_tiff, "f.tif", 0.15, "tiffslide", "tiffslide", True, DEFLATE),
    "strips": Kind(write_tiff, "g.tif", 0.15, found="none", layout={"tiled": False, **DEFLATE}),
    "png": Kind(write_picture, "a.png", 0.15, found="none"),
    "jpeg": Kind(write_picture, "a.jpg", 0.15, found="none"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_mutants(name: str, quick_folder: Path, run_attempts: Any, n_mutants: int) -> None:
    kind = KINDS[name]
    path = kind.draw(quick_folder)
    n = max(1, round(n_mutants * kind.share))
    report = run_attempts("slide_attempts.py", path, quick_folder, 0, n, kind.reader)
    log.info("%s: %d mutants, %s", name, n, report)
    counts = report["counts"]
    assert report["failures"] == []
    assert report["reader"] == kind.found
    assert report["peak_bytes"] < 1.5 * GIB
    if kind.found == "none":
        # of strips a change in the directory makes tiles, once in thousands of times
        assert counts["refused"] >= (n if kind.name != "g.tif" else n - max(1, n // 1000))
        return
    # the fuzzer does its work: some are refused, some read, and damaged tiles are found
    assert min(counts[outcome] for outcome in ("refused", "opened", "read")) > 0
    if name != "dicom" and n >= 100:
        assert counts["tiled"] > 0
        assert kind.name == "d.tif" or counts["tile-refused"] > 0
    if kind.checksum:
        assert "tile-unseen" not in counts


class Tiff:
    """A TIFF of one directory written by hand, so that every number may lie."""

    def __init__(self, entries: dict[int, tuple[int, int, int | bytes]], blobs: bytes = b"") -> None:
        self.entries, self.blobs = entries, blobs

    def write(self, path: Path) -> Path:
        end = 8 + 2 + 12 * len(self.entries) + 4
        data, later = struct.pack("<2sHIH", b"II", 42, 8, len(self.entries)), b""
        for code, (kind, count, value) in sorted(self.entries.items()):
            if isinstance(value, bytes):
                place = end + len(later)
                later += value
                value = place
            data += struct.pack("<HHII", code, kind, count, value)
        path.write_bytes(data + bytes(4) + later + self.blobs)
        return path


def bomb(
    width: int, height: int, tile: int, compression: int, stream: bytes, *, photometric: int = 2, samples: int = 3
) -> Tiff:
    """Return a tiled TIFF all of whose tiles are the same stream."""
    n = min(4096, -(-width // tile) * -(-height // tile))
    offset = 8 + 2 + 12 * 11 + 4 + 8 * samples
    entries: dict[int, tuple[int, int, int | bytes]] = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, samples, 8 if samples == 1 else struct.pack("<H", 8) * samples),
        259: (3, 1, compression),
        262: (3, 1, photometric),
        277: (3, 1, samples),
        284: (3, 1, 1),
        322: (4, 1, tile),
        323: (4, 1, tile),
    }
    # the tables of offsets come behind the entry of bits per sample; the stream behind both
    bits = 0 if samples == 1 else 2 * samples
    offset = 8 + 2 + 12 * 11 + 4 + bits + (8 * n if n > 1 else 0)
    entries[324] = (4, n, struct.pack("<I", offset) * n if n > 1 else offset)
    entries[325] = (4, n, struct.pack("<I", len(stream)) * n if n > 1 else len(stream))
    return Tiff(entries, stream)


def deflated_zeros(n_bytes: int) -> bytes:
    """Return a zlib stream of zeros, at least 32 MiB, put together from copies of one block."""
    packer, part = zlib.compressobj(9), bytes(1 << 24)
    first, second = (packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    checksum = struct.pack(">HH", n_bytes % 65_521, 1)
    return first + second * ((n_bytes >> 24) - 1) + b"\x03\x00" + checksum


def lying_jpeg(width: int, height: int, samples: int) -> bytes:
    """Return a small JPEG whose head announces another size."""
    shape = (16, 16, samples) if samples > 1 else (16, 16)
    data = bytearray(imagecodecs.jpeg8_encode(np.full(shape, 128, np.uint8), 85))
    frame = data.find(b"\xff\xc0")
    struct.pack_into(">HH", data, frame + 5, height, width)
    return bytes(data)


def lying_jpeg_2000(width: int, height: int) -> bytes:
    data = bytearray(imagecodecs.jpeg2k_encode(np.full((64, 64, 3), 128, np.uint8), codecformat="j2k"))
    struct.pack_into(">II", data, 8, width, height)
    struct.pack_into(">II", data, 24, width, height)  # one tile of that size
    return bytes(data)


def many_coloured_jpeg_2000(n_components: int, side: int) -> bytes:
    """Return a small JPEG 2000 whose head announces components by the thousand (ISO 15444-1, A.5.1)."""
    data = bytes(imagecodecs.jpeg2k_encode(np.full((64, 64, 3), 128, np.uint8), codecformat="j2k"))
    head, rest = bytearray(data[:42]), data[42 + 9 :]
    struct.pack_into(">H", head, 4, 38 + 3 * n_components)
    struct.pack_into(">II", head, 8, side, side)
    struct.pack_into(">II", head, 24, side, side)
    struct.pack_into(">H", head, 40, n_components)
    return bytes(head) + data[42:45] * n_components + rest


BOMBS: dict[str, Callable[[], Tiff]] = {
    "a million pixels square in 2 KB": lambda: bomb(10**6, 10**6, 256, 8, zlib.compress(bytes(256 * 256 * 3))),
    "one tile of a million pixels square": lambda: bomb(10**6, 10**6, 10**6, 8, b"\0" * 64),
    "one raw tile of 60,000 pixels square": lambda: bomb(59_904, 59_904, 59_904, 1, b"\0" * 64),
    "four billion pixels high": lambda: bomb(16, 2**32 - 16, 2**31, 8, b"\0" * 64),
    "a tile that expands to 2 GiB": lambda: bomb(64, 64, 64, 8, deflated_zeros(2 << 30)),
    "a tile of LZW that never ends": lambda: bomb(64, 64, 64, 5, bytes(imagecodecs.lzw_encode(bytes(1 << 26)))),
    "a JPEG of 65,500 pixels square in a tile": lambda: bomb(64, 64, 64, 7, lying_jpeg(65_500, 65_500, 3)),
    "a grey one": lambda: bomb(64, 64, 64, 7, lying_jpeg(65_500, 65_500, 1), photometric=1, samples=1),
    "a JPEG 2000 of 60,000 pixels square": lambda: bomb(64, 64, 64, 33_005, lying_jpeg_2000(60_000, 60_000)),
    "a JPEG 2000 of 16,000 components": lambda: bomb(2048, 2048, 2048, 33_005, many_coloured_jpeg_2000(16_000, 2048)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str, quick_folder: Path, run_attempts: Any) -> None:
    """Every reader, each in a child that may take 512 MiB more than it began with, refuses or takes only what it needs."""
    path = BOMBS[name]().write(quick_folder / "bomb.tif")
    report = run_attempts("bomb_attempts.py", path, quick_folder)
    assert report["failures"] == []
    counts = report["counts"]
    assert sum(counts.values()) == 3
    if "tile that expands" not in name and "LZW" not in name:  # of which the beginning fills the tile
        assert counts == {"refused": 3}


@pytest.mark.parametrize(
    ("reader", "told"),
    [("tiff", "no head of a picture of up to four components"), ("tiffslide", "more than a tile's pixels")],
)
def test_a_picture_of_thousands_of_colours_is_refused_before_it_is_decoded(
    tmp_path: Path, reader: str, told: str
) -> None:
    """Before the decoder asks for memory, which it would get: 19 GB for 4096 pixels square."""
    path = bomb(64, 64, 64, 33_005, many_coloured_jpeg_2000(300, 64)).write(tmp_path / "bomb.tif")
    with open_slide(path, reader=reader) as slide, pytest.raises(SlideReadError, match=told):
        slide.read(0, (0, 0), (64, 64))


class TestFilesThatAreNone:
    """What lies under a name need not be a file, or not one that may be read."""

    @pytest.mark.parametrize("reader", ["auto", "tiff", "openslide", "tiffslide"])
    def test_a_pipe_is_not_waited_for(self, tmp_path: Path, reader: str) -> None:
        path = tmp_path / "a.svs"
        os.mkfifo(path)
        with pytest.raises(SlideOpenError, match=r"a\.svs': is no ordinary file; pass a slide file$"):
            open_slide(path, reader=reader)

    def test_a_link_that_leads_to_itself(self, tmp_path: Path) -> None:
        path = tmp_path / "a.svs"
        path.symlink_to(path)
        with pytest.raises(SlideOpenError, match=r"cannot be read .Too many levels of symbolic links.; check its path"):
            open_slide(path)

    def test_a_device(self) -> None:
        with pytest.raises(SlideOpenError, match="is no ordinary file"):
            open_slide("/dev/zero")

    def test_a_file_without_rights(self, tmp_path: Path) -> None:
        path = tmp_path / "a.svs"
        path.write_bytes(b"II*\0")
        path.chmod(0)
        with pytest.raises(SlideOpenError, match=r"a\.svs'"):  # a superuser may read it, and finds no slide
            open_slide(path)

    @pytest.mark.parametrize("name", ["x" * 300, "a\0.svs"])
    def test_a_name_that_no_file_can_have(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(SlideOpenError, match=r"cannot be read .*; check its path and rights$"):
            open_slide(tmp_path / name)

    def test_nothing_and_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a.svs").touch()
        for path in (tmp_path / "a.svs", tmp_path, tmp_path / "none"):
            with pytest.raises(SlideOpenError, match="slide '"):
                open_slide(path)


def test_directories_that_lead_back(tmp_path: Path) -> None:
    """TiffSlide would follow them for ever."""
    path = KINDS["deflate"].draw(tmp_path)
    with tifffile.TiffFile(path) as tiff:
        first, last = tiff.pages[0].offset, tiff.pages[-1].offset
        link = last + 2 + 12 * len(tiff.pages[-1].tags)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, link, first)
    path.write_bytes(data)
    for reader in ("auto", "tiffslide"):
        with pytest.raises(SimTripletError, match="its chain of directories leads back to itself; the file is damaged"):
            open_slide(path, reader=reader)


@pytest.mark.parametrize("name", ["aperio jpeg", "aperio jpeg 2000"])
def test_a_tile_without_its_end_is_damaged(tmp_path: Path, name: str) -> None:
    """Decoders make grey or noise of what is missing; a copy that ended too soon leaves zeros there."""
    path = KINDS[name].draw(tmp_path)
    with tifffile.TiffFile(path) as tiff:
        start, size = tiff.pages[0].dataoffsets[5], tiff.pages[0].databytecounts[5]
    with path.open("r+b") as file:
        file.seek(start + size - 40)
        file.write(bytes(40))
    with (
        open_slide(path) as slide,
        pytest.raises(SlideReadError, match=r"native tile 5 of level 0 .*its end is missing"),
    ):
        slide.read(0, (TILE, TILE), (TILE, TILE))


def test_an_overview_of_a_long_slide_stays_small(tmp_path: Path) -> None:
    """600,000 pixels by 601: blocks follow the picture's own size, not its longer side."""
    height, n = 600_000, -(-600_000 // 4096)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiles = iter([b""] * n)
        tiff.write(
            tiles, shape=(height, 601, 3), dtype=np.uint8, tile=(4096, 608), photometric="rgb", compression="deflate"
        )
    sizes = []
    with open_slide(path) as slide:
        read = slide.read
        slide.read = lambda level, xy, size: sizes.append(size) or read(level, xy, size)  # type: ignore[method-assign]
        overview = read_overview(slide, downsample=1.0)
    assert overview.pixels.shape[0] <= 4096
    assert max(3 * width * height for width, height in sizes) <= 100 << 20


def test_sizes_that_no_slide_has(tmp_path: Path) -> None:
    path = KINDS["openslide"].draw(tmp_path)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].tags["ImageLength"].valueoffset
        assert tiff.pages[0].tags["ImageLength"].dtype == 4
    struct.pack_into("<I", data, place, 3_000_000)
    path.write_bytes(data)
    with pytest.raises(SlideOpenError, match=r"level 0 claims 256 x 3000000 pixels, which no slide has; the file is"):
        open_slide(path, reader="openslide")
    for reader in ("auto", "tiffslide"):
        with pytest.raises(SlideOpenError, match=r"e\.tif'"):
            open_slide(path, reader=reader)


def test_dicom_frames_that_lie_elsewhere(tmp_path: Path) -> None:
    """OpenSlide's library reads where the table says, and dies of it."""
    path = KINDS["dicom"].draw(tmp_path)
    data = bytearray(path.read_bytes())
    table = data.find(b"\xfe\xff\x00\xe0", data.find(b"\xe0\x7f\x10\x00"))
    (second,) = struct.unpack_from("<I", data, table + 12)
    struct.pack_into("<I", data, table + 12, second ^ 4)
    path.write_bytes(data)
    with pytest.raises(
        SlideOpenError, match="is a damaged DICOM file: its table of offsets does not lead to its frames"
    ):
        open_slide(path)

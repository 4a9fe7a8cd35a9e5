"""Memory of tiling: bounded whatever the size of the slide, measured on a sparse one of 100,000 x 100,000 px."""

import json
import math
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest

SIDE_PX, TILE_PX = 100_000, 256
LIMIT_KIB = 1536 * 1024
STEPS = (1, 4, 16, 64)
GLASS, TISSUE = 0, 1

_SHORT, _LONG, _LONG8, _RATIONAL = 3, 4, 16, 5


def write_sparse(path: Path, payloads: list[bytes], is_tissue: Callable[[int], Any]) -> None:
    """Write a BigTIFF whose tiles of one kind are all the same bytes.

    Args:
        path: the file.
        payloads: JPEG of a tile of glass and of one of tissue.
        is_tissue: gives for a downsample the (rows, cols) bool of the tiles that show tissue.
    """
    with path.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        offsets = []
        for payload in payloads:
            offsets.append(file.tell())
            file.write(payload)
        link = 8
        for step in STEPS:
            kinds = is_tissue(step).ravel().astype(np.int64)
            place = -(-file.seek(0, 2) // 8) * 8
            file.seek(place)
            file.write(np.array(offsets, "<u8")[kinds].tobytes())
            sizes_at = file.tell()
            file.write(np.array([len(payload) for payload in payloads], "<u8")[kinds].tobytes())
            directory = file.tell()
            _write_directory(file, -(-SIDE_PX // step), len(kinds), place, sizes_at, reduced=step > 1)
            after = file.tell()
            file.seek(link)
            file.write(struct.pack("<Q", directory))
            link = after - 8


def _write_directory(file: Any, side_px: int, n_tiles: int, offsets: int, sizes: int, *, reduced: bool) -> None:
    per_cm = struct.unpack("<Q", struct.pack("<II", 20_000, 1))[0]
    eight = struct.unpack("<Q", struct.pack("<HHHH", 8, 8, 8, 0))[0]
    halves = struct.unpack("<Q", struct.pack("<HHHH", 2, 2, 0, 0))[0]
    entries = [
        (254, _LONG, 1, int(reduced)),
        (256, _LONG, 1, side_px),
        (257, _LONG, 1, side_px),
        (258, _SHORT, 3, eight),
        (259, _SHORT, 1, 7),
        (262, _SHORT, 1, 6),
        (277, _SHORT, 1, 3),
        (282, _RATIONAL, 1, per_cm),
        (283, _RATIONAL, 1, per_cm),
        (284, _SHORT, 1, 1),
        (296, _SHORT, 1, 3),
        (322, _LONG, 1, TILE_PX),
        (323, _LONG, 1, TILE_PX),
        (324, _LONG8, n_tiles, offsets),
        (325, _LONG8, n_tiles, sizes),
        (530, _SHORT, 2, halves),
    ]
    file.write(struct.pack("<Q", len(entries)))
    for entry in entries:
        file.write(struct.pack("<HHQQ", *entry))
    file.write(struct.pack("<Q", 0))


def jpeg(pixels: Any) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(pixels, 80, colorspace="RGB", outcolorspace="YCBCR", subsampling="420"))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 10^10 pixels in a few MB: 5 x 5 mm of tissue in 50 x 50 mm of glass."""
    path = tmp_path_factory.mktemp("sparse") / "sparse.tif"
    rng = np.random.default_rng(0)
    glass = np.full((TILE_PX, TILE_PX, 3), 243, np.uint8)
    coarse = rng.integers(0, 60, (TILE_PX // 8, TILE_PX // 8, 1), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    tissue = np.uint8((200, 110, 170)) - coarse

    def is_tissue(step: int) -> Any:
        n_cols = math.ceil(math.ceil(SIDE_PX / step) / TILE_PX)
        centre = (np.arange(n_cols) + 0.5) * TILE_PX * step
        inside = np.abs(centre - SIDE_PX / 2) < max(5_000, 0.6 * TILE_PX * step)
        return inside[:, None] & inside[None, :]

    write_sparse(path, [jpeg(glass), jpeg(tissue)], is_tissue)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("size_px", "reader"), [(224, "tiff"), (64, "tiff"), (224, "openslide")])
def test_peak_memory_of_a_huge_slide(sparse: Path, tmp_path: Path, size_px: int, reader: str) -> None:
    code = f"""
        import json
        from pathlib import Path
        from simtriplet.wsi.geometry import TilingSpec
        from simtriplet.wsi.tiling import SlideJob, TileRequest, tile_slide
        request = TileRequest(tiling=TilingSpec(size_px={size_px}), codec="jpeg", reader={reader!r})
        made = tile_slide(SlideJob(Path({str(sparse)!r}), "s"), Path({str(tmp_path)!r}), request)
        status = Path("/proc/self/status").read_text().splitlines()  # getrusage begins with the peak of whoever forked
        peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
        print(json.dumps([made.n_tiles, made.n_lattice, peak_kib]))
        """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    n_tiles, n_lattice, peak_kib = json.loads(ended.stdout)
    assert n_lattice == (SIDE_PX // size_px) ** 2
    assert n_tiles > (10_000 / size_px) ** 2 / 2
    print(f"{reader}, {size_px} px: {n_tiles} of {n_lattice} tiles, peak {peak_kib / 1024:.0f} MiB")  # noqa: T201
    assert peak_kib < LIMIT_KIB, f"{peak_kib / 1024:.0f} MiB"

"""What a failed or killed run leaves behind: nothing under the final name."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from simtriplet.wsi.errors import (
    SlideOpenError,
    SlideReadError,
    StoreError,
)
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.tiling import SlideJob, TileRequest, tile_slide
from simtriplet.wsi.tissue import TissueSpec

Writer = Callable[..., Path]
Weights = npt.NDArray[np.float64]
EVERYWHERE = TissueSpec(detector="all")


def request_for(*, codec: Any = "none", **tiling: Any) -> TileRequest:
    return TileRequest(tiling=TilingSpec(**tiling), tissue=EVERYWHERE, codec=codec)


def tile(path: Path, out: Path, request: TileRequest, **job: Any) -> TileStore:
    summary = tile_slide(SlideJob(path, "s", **job), out, request, threads=2)
    store = TileStore(out / "s.tiles.zarr")
    assert summary.n_tiles == len(store)
    return store


class TestFailures:
    def test_a_slide_cut_short_leaves_no_store(self, tmp_path: Path, picture: Any, write_slide: Writer) -> None:
        """The directory of a JPEG slide written by hand comes first, its pixels are cut."""
        path = write_slide(tmp_path / "a.tif", picture(1000, 700), compression="jpeg")
        os.truncate(path, path.stat().st_size * 2 // 3)
        with pytest.raises((SlideReadError, SlideOpenError)) as caught:
            tile(path, tmp_path / "out", request_for(size_px=50))
        assert "\n" not in str(caught.value)
        assert list(tmp_path.rglob("*.zarr*")) == []

    def test_a_damaged_native_tile_leaves_no_store(self, tmp_path: Path, picture: Any, write_slide: Writer) -> None:
        """The overview comes from the level above, so that the damage is met while tiles are written."""
        import tifffile

        path = write_slide(tmp_path / "a.tif", picture(4096, 1024), n_levels=5, mpp=0.5)
        with tifffile.TiffFile(path) as tiff:
            offset, size = tiff.pages[0].dataoffsets[-1], tiff.pages[0].databytecounts[-1]
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"\xff" * size)
        with pytest.raises(SlideReadError, match=r"native tile 63 of level 0 cannot be decoded"):
            tile(path, tmp_path / "out", request_for(size_px=128))
        assert list((tmp_path / "out").iterdir()) == []

    @pytest.mark.parametrize("how", ["replaced", "written to", "removed"])
    def test_a_slide_that_changes_while_it_is_read_leaves_no_store(
        self, tmp_path: Path, flat_slide: Path, how: str
    ) -> None:
        """Else pixels of one file would be kept as those of another."""
        path, other = tmp_path / "s.tif", tmp_path / "other.tif"
        for copy in (path, other):
            copy.write_bytes(flat_slide.read_bytes())

        def change(_room: object) -> None:
            if how == "replaced":
                other.replace(path)
            elif how == "written to":
                os.utime(path, ns=(0, 1))  # whatever was written where
            else:
                path.unlink()

        job = SlideJob(path, "s", slide_mpp=0.5)
        with pytest.raises(SlideReadError, match=r"was changed while it was read; tile it again|is gone \("):
            tile_slide(job, tmp_path / "out", request_for(size_px=100, mpp=0.5), threads=2, tell_room=change)
        assert list((tmp_path / "out").iterdir()) == []

    def test_an_output_that_cannot_be_made(self, tmp_path: Path, flat_slide: Path) -> None:
        (tmp_path / "out").write_text("a file")
        with pytest.raises(StoreError, match=r"cannot be written \(.*\); choose another --out$"):
            tile(flat_slide, tmp_path / "out", request_for(size_px=100))

    def test_a_disk_that_fills_up(self, tmp_path: Path, flat_slide: Path) -> None:
        """A limit on the size of files stands for the full disk."""
        result = self.python(
            f"""
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            from simtriplet.wsi.errors import StoreError
            try:
                tile_slide(SlideJob(Path({str(flat_slide)!r}), "s"), Path({str(tmp_path / "out")!r}), REQUEST)
            except StoreError as error:
                print(error)
            """
        ).communicate(timeout=60)[0]
        assert re.search(
            r"cannot be written \(File too large; needs up to about \d+\.\d MB\); free space and tile again$",
            result.rstrip(),
        )
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_killed_run_leaves_nothing_under_the_final_name(self, tmp_path: Path, flat_slide: Path) -> None:
        process = self.python(
            f"""
            import time
            def stop(done, total):
                print(done, flush=True)
                time.sleep(60)
            tile_slide(SlideJob(Path({str(flat_slide)!r}), "s"), Path({str(tmp_path / "out")!r}), REQUEST, progress=stop)
            """
        )
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "64"
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["s.tiles.zarr.partial"]
        with pytest.raises(StoreError, match="is half written"):
            TileStore(tmp_path / "out" / "s.tiles.zarr.partial")
        store = tile(flat_slide, tmp_path / "out", request_for(size_px=50))
        assert len(store) == 280
        assert {entry.name for entry in (tmp_path / "out").iterdir()} == {"s.tiles.zarr", "s.tiling.jpg"}

    def python(self, code: str) -> "subprocess.Popen[str]":
        head = """
            from pathlib import Path
            from simtriplet.wsi.geometry import TilingSpec
            from simtriplet.wsi.tiling import SlideJob, TileRequest, tile_slide
            from simtriplet.wsi.tissue import TissueSpec
            REQUEST = TileRequest(tiling=TilingSpec(size_px=50), tissue=TissueSpec(detector="all"))
            """
        program = textwrap.dedent(head) + textwrap.dedent(code)
        return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)

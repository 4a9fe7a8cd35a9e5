"""A log on a full disk, a terminal that is gone, streams that were never there: the work is done all the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from simtriplet.wsi.check import check_store

PROGRAM = [sys.executable, "-m", "simtriplet.pipelines"]


@pytest.mark.parametrize("streams", ["2>/dev/full", "<&- >&- 2>&-", "2>&1 >/dev/null | true"])
def test_what_nobody_hears_keeps_nothing_from_being_done(cohort: Path, tmp_path: Path, streams: str) -> None:
    slide, out = cohort.parent / "patient01-slide1.svs", tmp_path / "out"
    words = [*PROGRAM, "tile", str(slide), "--out", str(out), "--mpp", "2", "--size", "64"]
    command = ["bash", "-o", "pipefail", "-c", f'"$@" {streams}', "bash", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert check_store(out / "patient01-slide1.tiles.zarr") == []
    assert sorted(path.name for path in out.iterdir()) == [
        "patient01-slide1.tiles.zarr",
        "patient01-slide1.tiling.jpg",
        "tile-summary.csv",
        "tile.toml",
    ]


def test_results_that_cannot_be_written_are_an_error(cohort: Path) -> None:
    words = [*PROGRAM, "info", str(cohort.parent / "patient01-slide1.svs")]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert "cannot be written (No space left on device)" in ended.stderr

"""What a full disk is told with."""

import errno
from pathlib import Path

import pytest

from simtriplet.wsi.disk_room import gigabytes, why_not_written


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0.0 kB"), (5_300, "5.3 kB"), (100_000, "0.1 MB"), (24_300_000, "24.3 MB"), (2_500_000_000, "2.5 GB")],
)
def test_sizes_as_a_person_reads_them(n_bytes: int, text: str) -> None:
    assert gigabytes(n_bytes) == text


def test_a_full_disk_is_told_in_the_words_of_the_system(tmp_path: Path) -> None:
    """Arrow and HDF5 put their own around them, HDF5 400 letters of them."""
    error = OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")
    why = why_not_written(error, tmp_path / "not" / "there", needed=5_300)
    assert why.startswith("No space left on device; needs up to about 5.3 kB, ")
    assert why.endswith(" are free")


def test_a_limit_on_files_says_nothing_of_the_disk(tmp_path: Path) -> None:
    error = OSError(errno.EFBIG, "File too large")
    assert why_not_written(error, tmp_path, needed=5_300) == "File too large; needs up to about 5.3 kB"


def test_other_failures_need_no_room(tmp_path: Path) -> None:
    assert why_not_written(OSError(errno.EACCES, "Permission denied"), tmp_path, needed=1) == "Permission denied"
    assert why_not_written(RuntimeError("no zip\nframe 0"), tmp_path, needed=1) == "no zip"
    assert why_not_written(RuntimeError("no zip"), tmp_path, needed=1 << 60).startswith(
        "No space left on device; needs"
    )

"""Paths that may not be entered and disks that fail: one line that names the path, and the others are gone on with.

Folders' names of 300 letters stand for them: the system refuses these to a superuser too, before anything can be known.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from simtriplet.pipelines import cli
from simtriplet.pipelines.command_evaluate_checks import check_head_file
from simtriplet.wsi.errors import UnreachableError
from simtriplet.wsi.store import TileStore

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]
BEYOND = Path("x" * 300)


class TestCheck:
    def test_a_store_out_of_reach_is_a_problem_and_the_others_are_looked_at(
        self, program: Run, failure: Failure, store_factory: Callable[..., TileStore], tmp_path: Path
    ) -> None:
        good = store_factory("a").path
        looped = good.with_name("b.tiles.zarr")
        looped.symlink_to(looped)
        ended = program("check", BEYOND / "far.tiles.zarr", BEYOND / "folder", good.parent, status=1, cwd=tmp_path)
        told = ended.stdout.splitlines()
        assert told[0].startswith("far.tiles.zarr: path 'xxx")
        assert told[1].startswith("folder: path 'xxx")
        assert all("is out of reach (File name too long)" in line for line in told[:2])
        assert told[2] == "a.tiles.zarr: ok"
        assert "is out of reach (Too many levels of symbolic links)" in told[3]
        assert "3 of 4 stores are out of reach; check their paths, rights and disks" in failure(ended)

    def test_only_what_is_damaged_is_made_again(
        self, program: Run, failure: Failure, store_factory: Callable[..., TileStore], tmp_path: Path
    ) -> None:
        damaged = store_factory("a").path
        (damaged / "zarr.json").write_text("{}")
        ended = program("check", BEYOND / "far.tiles.zarr", damaged, "--repair", status=1, cwd=tmp_path)
        assert "1 of 2 stores are damaged, 1 out of reach; see the commands above" in failure(ended)
        (line,) = [line for line in ended.stdout.splitlines() if "to make tiles" in line]
        assert line.startswith("a.tiles.zarr: ")

    def test_a_slide_that_is_missing_is_no_slide_to_repair_from(
        self, program: Run, failure: Failure, store_factory: Callable[..., TileStore], tmp_path: Path
    ) -> None:
        store = store_factory("a").path
        (tmp_path / "there.svs").touch()
        words = ("check", store, "--repair", "--slides", "there.svs", "--slides", "gone.svs")
        line = failure(program(*words, status=1, cwd=tmp_path))
        assert line == "Error: slide 'gone.svs': does not exist; check the path"


@pytest.mark.parametrize(
    "words",
    [
        ("index", "STORE", BEYOND / "far"),
        ("index", "STORE", "--annotations", BEYOND / "far", "--name", "bordered"),
        ("embed", "STORE", "--encoder", BEYOND / "far"),
        ("export", "STORE", "--to", "geojson", "--out", "out", "--predictions", BEYOND / "far"),
        ("view", "STORE", "--predictions", BEYOND / "far"),
        ("tile", "slide.svs", "--out", "out", "--tissue", f"mask:{BEYOND / 'far'}"),
        ("tile", "slide.svs", "--out", "out", "--annotations", BEYOND / "far"),
        ("import", BEYOND / "far.h5", "--slide", "slide.svs", "--out", "out"),
    ],
    ids=lambda words: " ".join(str(word) for word in words if "x" * 300 not in str(word)),
)
def test_other_commands_end_in_one_line_that_names_the_path(
    program: Run, failure: Failure, store_factory: Callable[..., TileStore], tmp_path: Path, words: tuple[object, ...]
) -> None:
    store = store_factory("a").path
    (tmp_path / "slide.svs").touch()
    given = [store if word == "STORE" else word for word in words]
    line = failure(program(*given, status=1, cwd=tmp_path))
    assert "x" * 200 in line
    assert "File name too long" in line


def test_a_head_that_is_to_be_written_out_of_reach_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="File name too long"):
        check_head_file(BEYOND / "far", tmp_path)


class TestLastBoundary:
    """What the system refuses where nothing else foresaw it."""

    @pytest.mark.parametrize(
        ("number", "name", "said"),
        [
            (errno.EACCES, "/far/a", "path '/far/a': cannot be used (Permission denied); check its rights"),
            (errno.EPERM, "/far/a", "path '/far/a': cannot be used (Operation not permitted); check its rights"),
            (
                errno.EIO,
                "/far/a",
                "path '/far/a': cannot be used (Input/output error); check its disk and network, and",
            ),
            (errno.ESTALE, "/far/a", "path '/far/a': cannot be used (Stale file handle); check its disk and network"),
            (errno.ENOENT, "/far/a", "path '/far/a': cannot be used (No such file or directory); bring back what"),
            (errno.ENOTDIR, "/far/a", "path '/far/a': cannot be used (Not a directory); bring back what was there"),
            (errno.EEXIST, "/far/a", "path '/far/a': cannot be used (File exists); move away what is there"),
            (errno.ENOSPC, "/far/a", "output '/far/a': cannot be written (No space left on device); free space"),
            (errno.ENAMETOOLONG, "x" * 999, f"path '{'x' * 190}"),
            (errno.ENOMEM, None, "system: cannot be used (Cannot allocate memory); check its"),
        ],
    )
    def test_is_one_line_with_what_to_do(
        self, capsys: pytest.CaptureFixture[str], number: int, name: str | None, said: str
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            cli._tell(OSError(number, os.strerror(number), name))
        assert ended.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"Error: {said}")
        assert len(line) < 400

    def test_an_error_without_a_number_is_a_bug(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Of a library, not of the system: its traceback is wanted."""
        for error in (OSError("a library's own words"), KeyError("k")):
            cli._tell(error)
        assert capsys.readouterr().err == ""

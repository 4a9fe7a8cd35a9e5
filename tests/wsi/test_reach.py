"""What a path leads to; a name of 300 letters and a link to itself stand for what rights and disks refuse."""

from pathlib import Path

import pytest

from simtriplet.wsi.errors import StoreError, UnreachableError
from simtriplet.wsi.reach import entries, exists, is_file, is_folder, leads_to_folder
from simtriplet.wsi.store import TileStore, find_stores


def test_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    kinds = {path.name: (exists(path), is_file(path), is_folder(path)) for path in entries(tmp_path)}
    assert list(kinds) == ["file", "link", "nowhere"]
    assert kinds == {"file": (True, True, False), "link": (True, True, False), "nowhere": (False, False, False)}
    assert (exists(tmp_path), is_file(tmp_path), is_folder(tmp_path)) == (True, False, True)
    for nothing in (tmp_path / "gone", file / "inside", tmp_path / "zero\0byte"):
        assert not exists(nothing)


@pytest.mark.parametrize(("name", "reason"), [("x" * 300, "File name too long"), ("loop", "Too many levels of")])
def test_what_cannot_be_told_is_an_error_that_names_the_path(tmp_path: Path, name: str, reason: str) -> None:
    path = tmp_path / name
    if name == "loop":
        path.symlink_to(path)
    for asked in (exists, is_file, is_folder, entries):
        with pytest.raises(UnreachableError, match=rf"^path '.*{name}': is out of reach \({reason}.*; check the path"):
            asked(path)
    assert not leads_to_folder(path)
    with pytest.raises(UnreachableError):
        find_stores([path])
    with pytest.raises(StoreError, match=rf"': cannot be read \({reason}.*; check its path, its rights and its disk"):
        TileStore(path)

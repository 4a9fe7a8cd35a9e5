"""A disk that fills up: one line that says how much was needed, and everything that was there before is as it was."""

import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() or libc.mount(b"none", bytes(folder), b"tmpfs", 0, b"size=4m"):
        pytest.skip("only root may mount a small disk")
    yield folder
    assert libc.umount2(bytes(folder), 2) == 0


def fill(folder: Path, free: int) -> None:
    """Leave so many bytes free."""
    room = shutil.disk_usage(folder).free - free
    (folder / "filler").write_bytes(b"\0" * max(0, room))


def test_tile_refuses_what_cannot_fit(zygote: Any, rules: Any, tile_command: Any, small_disk: Path) -> None:
    zygote.done(*tile_command(small_disk / "stores", "skip", 1))
    before = (small_disk / "stores" / "tile-summary.csv").read_bytes()
    fill(small_disk, 300_000)
    ended = zygote.run(*tile_command(small_disk / "stores", "replace", 1))
    assert ended.status == 1
    assert "needs about" in ended.error
    rules.whole_files(small_disk)
    assert rules.leftovers(small_disk) == []
    assert before


def test_a_limit_on_files_ends_tile_in_one_line(
    zygote: Any, rules: Any, tile_command: Any, tiled: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stores"
    shutil.copytree(tiled, folder)
    ended = zygote.run(*tile_command(folder, "replace", 1), fsize=150_000)
    assert ended.status == 1
    assert "(File too large; needs up to about " in ended.error
    rules.same_stores(folder, tiled)
    assert rules.leftovers(folder) == []


@pytest.mark.parametrize("free", [0, 20_000])
def test_embed_and_index_keep_what_was_there(
    zygote: Any, rules: Any, indexed: Path, trained: Path, small_disk: Path, free: int
) -> None:
    stores = small_disk / "stores"
    shutil.copytree(indexed, stores)
    zygote.done("-q", "embed", stores, "--encoder", trained, "--device", "cpu")
    kept = small_disk.parent / "kept"
    shutil.copytree(stores, kept)
    fill(small_disk, free)
    for command in (
        ["embed", stores, "--encoder", "random:tiny:16", "--device", "cpu"],
        ["index", stores, "--k", "30", "--rule", "knn"],
    ):
        ended = zygote.run("-q", *command)
        if free == 0:
            assert ended.status == 1
            assert "No space left on device" in ended.error
            assert "needs up to about" in ended.error or "check space" in ended.error
            rules.same_stores(stores, kept)
        rules.whole_files(stores)
        assert rules.leftovers(stores) == []


@pytest.mark.parametrize("how", ["tmpfs", "limit"])
def test_the_checkpoint_before_stays(
    zygote: Any, rules: Any, pretrain_command: Any, tmp_path: Path, how: str, request: pytest.FixtureRequest
) -> None:
    out = (request.getfixturevalue("small_disk") if how == "tmpfs" else tmp_path) / "run"
    ended = zygote.run(*pretrain_command(out, "run.max_minutes=0.0001"))
    assert ended.status == 1, ended.said
    step = torch.load(out / "checkpoints" / "last.pt", weights_only=True)["step"]
    size = (out / "checkpoints" / "last.pt").stat().st_size
    limit = size // 2 if how == "limit" else None
    if how == "tmpfs":
        fill(out.parent, size // 2)
    ended = zygote.run(*pretrain_command(out), "--resume", fsize=limit)
    assert ended.status == 1, ended.said
    assert "cannot be written" in ended.error
    assert "needs up to about" in ended.error
    assert torch.load(out / "checkpoints" / "last.pt", weights_only=True)["step"] >= step
    assert rules.leftovers(out) == []
    if how == "limit":
        zygote.done(*pretrain_command(out), "--resume")

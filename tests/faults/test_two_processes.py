"""Two processes on one output: the second is refused in one line, and the first ends as if it had been alone."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simtriplet.evaluate.feature_array import claim_features
from simtriplet.wsi.codec import make_codec
from simtriplet.wsi.folder_hold import FolderHold, claim_scratch
from simtriplet.wsi.store import STORE_SUFFIX, TABLE, TileStore
from simtriplet.wsi.store_writer import StoreWriter

pytestmark = pytest.mark.slow


def wait_for(found: Any, pid: int) -> None:
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(pid, signal.SIGSTOP)  # so that the second meets the first in the middle of its work


def test_tile(zygote: Any, rules: Any, tile_command: Any, tiled: Path, tmp_path: Path) -> None:
    """The first is this process, which holds what such a command holds; other slides are not its own."""
    held = sorted(path.name for path in tiled.glob(f"*{STORE_SUFFIX}"))[0]
    with StoreWriter(tmp_path / held, size_px=32, codec=make_codec("none")) as first:
        first.write_tiles(np.zeros((3, 32, 32, 3), np.uint8))
        before = sorted(first.partial.rglob("*"))
        second = zygote.run(*tile_command(tmp_path, "skip", 1))
        assert second.status == 1
        assert f"store '{held}': another run is writing it; wait for that run to end" in second.error
        both = zygote.run(*tile_command(tmp_path, "skip"))
        assert both.status == 1
        assert "1 of 2 slides failed" in both.error
        assert sorted(first.partial.rglob("*")) == before
    zygote.done(*tile_command(tmp_path))
    rules.same_stores(tmp_path, tiled)
    assert rules.leftovers(tmp_path) == []


def test_many_that_begin_at_once(zygote: Any, rules: Any, tile_command: Any, tiled: Path, tmp_path: Path) -> None:
    """Whoever comes first, no two write one store, and none is damaged."""
    several = [zygote.start(*tile_command(tmp_path)) for _ in range(4)]
    ended = [zygote.wait(pid) for pid in several]
    assert {each.status for each in ended} <= {0, 1}
    for each in ended:
        assert not each.status or "slides failed" in each.error
    rules.whole_files(tmp_path)
    zygote.done(*tile_command(tmp_path))
    rules.same_stores(tmp_path, tiled)
    assert rules.leftovers(tmp_path) == []


def test_pretrain(zygote: Any, rules: Any, pretrain_command: Any, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = zygote.start(*pretrain_command(out))
    wait_for(lambda: (out / "metrics.jsonl").exists(), first)
    for options in ((), ("--resume",)):
        second = zygote.run(*pretrain_command(out), *options)
        assert second.status == 1
        assert "another process is training in it; wait for it to end" in second.error
    os.kill(first, signal.SIGCONT)
    assert zygote.wait(first).status == 0
    rules.same_runs(out, trained)


def test_index_and_embed(zygote: Any, rules: Any, indexed: Path, trained: Path, tmp_path: Path) -> None:
    """The first is this process, which holds what such a command holds."""
    stores = tmp_path / "stores"
    shutil.copytree(indexed, stores)
    path = sorted(stores.glob(f"*{STORE_SUFFIX}"))[0]
    with FolderHold(path / TABLE):
        ended = zygote.run("-q", "index", path)
        assert ended.status == 1
        assert "another run is indexing it; wait for that run to end" in ended.error
    with claim_features(TileStore(path), "f"):
        ended = zygote.run("-q", "embed", path, "--encoder", trained, "--name", "f", "--device", "cpu")
        assert ended.status == 1
        assert "another run is making its features 'f'; wait for that run to end" in ended.error
        zygote.done("-q", "embed", path, "--encoder", trained, "--name", "g", "--device", "cpu")
    assert TileStore(path).feature_names() == ["g"]
    rules.whole_files(stores)
    assert rules.leftovers(stores) == []


def test_evaluate_compare_and_predict(zygote: Any, indexed: Path, trained: Path, tmp_path: Path) -> None:
    """The first is this process, which holds what such a command holds."""
    stores, out, head = tmp_path / "stores", tmp_path / "out", tmp_path / "head.json"
    shutil.copytree(indexed, stores)
    zygote.done("-q", "embed", stores, "--encoder", trained, "--name", "f", "--device", "cpu")
    zygote.done(
        *("-q", "evaluate", stores, "--features", "f", "--out", tmp_path / "first", "--folds", 2, "--save-head", head)
    )
    out.mkdir()
    commands = (
        ("evaluate", stores, "--features", "f", "--folds", 2, "--out", out),
        ("compare", stores, "--features", "f", "--folds", 2, "--no-curves", "--out", out),
        ("predict", stores, "--head", head, "--out", out),
    )
    with FolderHold(out):
        for command in commands:
            ended = zygote.run("-q", *command)
            assert ended.status == 1, command
            assert "another run is working there; wait for it to end" in ended.error, command
        assert list(out.iterdir()) == []
    zygote.done("-q", *commands[-1])


def test_one_of_many_gets_a_scratch_folder(tmp_path: Path) -> None:
    """Its holder alone may empty it: a second one that came a moment too late removed the first one's files once."""
    folder = tmp_path / "a.partial"
    with claim_scratch(folder) as hold:
        (folder / "half").write_text("written")
        with pytest.raises(BlockingIOError):
            claim_scratch(folder)
        assert (folder / "half").exists()
        folder.rename(tmp_path / "a")
        assert not hold.is_of(folder)
        with claim_scratch(folder) as other:
            assert other.is_of(folder)
            assert (tmp_path / "a" / "half").exists()

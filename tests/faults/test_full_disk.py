"""A disk that fills up: one line that says how much was needed, and everything that was there before is as it was."""

import ctypes
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simtriplet.wsi.export_formats import FORMATS
from simtriplet.wsi.store import TileStore

pytestmark = pytest.mark.slow

UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
ResultsCommand = Mapping[str, Callable[[Path], list[object]]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 6 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() or libc.mount(b"none", bytes(folder), b"tmpfs", 0, b"size=6m"):
        pytest.skip("only root may mount a small disk")
    yield folder
    assert libc.umount2(bytes(folder), 2) == 0


@pytest.fixture(scope="module")
def embedded(zygote: Any, indexed: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stores with features of two names: not to be changed."""
    stores = tmp_path_factory.mktemp("embedded") / "stores"
    shutil.copytree(indexed, stores)
    for name in ("one", "two"):
        zygote.done("-q", "embed", stores, "--encoder", trained, "--name", name, "--device", "cpu")
    return stores


@pytest.fixture(scope="module")
def results_command(zygote: Any, embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> ResultsCommand:
    """Arguments of the commands that measure and predict, by the folder of their results."""
    head = tmp_path_factory.mktemp("head") / "head.json"
    evaluate = ["-q", "evaluate", embedded, "--features", "one", "--folds", "2"]
    zygote.done(*evaluate, "--out", head.parent / "results", "--no-report", "--save-head", head)
    compare = ["-q", "compare", embedded, "--features", "one", "--features", "two", "--folds", "2", "--no-curves"]
    return {
        "evaluate": lambda out: [*evaluate, "--out", out],
        "compare": lambda out: [*compare, "--out", out],
        "predict": lambda out: ["-q", "predict", embedded, "--head", head, "--out", out],
    }


def fill(folder: Path, free: int) -> None:
    """Leave so many bytes free, in whole blocks."""
    filler = folder / "filler"
    filler.unlink(missing_ok=True)
    room = shutil.disk_usage(folder).free - free
    filler.write_bytes(b"\0" * max(0, room))


def files(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def needed(ended: Any) -> float:
    """The bytes that the one line of a full disk asks for, which are more than it says are free."""
    assert ended.status == 1, ended.said
    told = re.search(r"needs (?:up to )?about ([\d.]+) (.B)(?:, ([\d.]+) (.B) are free)?", ended.error)
    assert told is not None, ended.error
    assert len(ended.error) < 400, ended.error
    assert len([line for line in ended.said.splitlines() if not line.startswith("WARNING ")]) == 1, ended.said
    asked = float(told[1]) * UNITS[told[2]]
    if told[3] is not None:
        assert asked > float(told[3]) * UNITS[told[4]]
    return asked


def test_tile_refuses_what_cannot_fit(
    zygote: Any, rules: Any, tile_command: Any, small_disk: Path, tmp_path: Path
) -> None:
    stores = small_disk / "stores"
    zygote.done(*tile_command(stores, "skip", 1))
    shutil.copytree(stores, tmp_path / "before")
    fill(small_disk, 300_000)
    ended = zygote.run(*tile_command(stores, "replace", 1))
    (store,) = stores.glob("*.zarr")
    assert needed(ended) >= sum(map(len, files(store / "tiles").values()))
    rules.same_stores(stores, tmp_path / "before")
    assert ",failed," in (stores / "tile-summary.csv").read_text()
    rules.whole_files(small_disk)
    assert rules.leftovers(small_disk) == []


def test_a_limit_on_files_ends_tile_in_one_line(
    zygote: Any, rules: Any, tile_command: Any, tiled: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stores"
    shutil.copytree(tiled, folder)
    ended = zygote.run(*tile_command(folder, "replace", 1), fsize=150_000)
    assert "(File too large; needs up to about " in ended.error
    assert needed(ended) > 150_000
    rules.same_stores(folder, tiled)
    assert rules.leftovers(folder) == []


@pytest.mark.parametrize(("command", "free"), [("embed", 0), ("embed", 4096), ("index", 0), ("index", 20_000)])
def test_embed_and_index_keep_what_was_there(
    zygote: Any, rules: Any, indexed: Path, trained: Path, small_disk: Path, tmp_path: Path, command: str, free: int
) -> None:
    stores = small_disk / "stores"
    shutil.copytree(indexed, stores)
    zygote.done("-q", "embed", stores, "--encoder", trained, "--device", "cpu")
    kept = tmp_path / "kept"
    shutil.copytree(stores, kept)
    arguments = {
        "embed": ["embed", stores, "--encoder", "random:tiny:16", "--device", "cpu", "--existing", "replace"],
        "index": ["index", stores, "--k", "30", "--rule", "knn"],
    }[command]
    fill(small_disk, free)
    ended = zygote.run("-q", *arguments)
    assert "(No space left on device; needs up to about " in ended.error
    assert needed(ended) > free
    rules.same_stores(stores, kept)
    rules.whole_files(stores)
    assert rules.leftovers(stores) == []
    (small_disk / "filler").unlink()
    zygote.done("-q", *arguments)


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
    assert "cannot be written" in ended.error
    assert needed(ended) >= size
    assert torch.load(out / "checkpoints" / "last.pt", weights_only=True)["step"] >= step
    assert rules.leftovers(out) == []
    if how == "tmpfs":
        (out.parent / "filler").unlink()
    zygote.done(*pretrain_command(out), "--resume")


def test_a_run_that_cannot_begin_leaves_nothing_half_written(
    zygote: Any, pretrain_command: Any, small_disk: Path
) -> None:
    out = small_disk / "run"
    fill(small_disk, 0)
    ended = zygote.run(*pretrain_command(out))
    assert f"run folder '{out}': cannot be written (No space left on device; needs" in ended.error
    assert needed(ended) > 0
    assert files(out) == {}


def test_a_run_that_cannot_go_on_is_as_it_was(
    zygote: Any, pretrain_command: Any, trained: Path, small_disk: Path
) -> None:
    out = small_disk / "run"
    shutil.copytree(trained, out)
    fill(small_disk, 0)
    ended = zygote.run(*pretrain_command(out), "--resume")
    assert f"run folder '{out}': cannot be written (No space left on device; needs" in ended.error
    assert needed(ended) > 0
    assert files(out) == files(trained)


def test_an_encoder_that_does_not_fit_as_torchscript(
    zygote: Any, pretrain_command: Any, trained: Path, small_disk: Path
) -> None:
    """Torch itself would end the process."""
    out = small_disk / "run"
    shutil.copytree(trained, out)
    fill(small_disk, 12 << 10)  # for the metrics, which are written anew
    ended = zygote.run(*pretrain_command(out, 'run.export=["torchscript"]'), "--resume")
    assert f"encoder '{out / 'encoder.torchscript.pt'}': cannot be written (No space left on device; " in ended.error
    assert needed(ended) > (trained / "encoder.safetensors").stat().st_size
    told = {"settings.toml": b""}  # which form was asked for
    assert files(out) | told == files(trained) | told


@pytest.mark.parametrize("command", ["evaluate", "compare", "predict"])
def test_results_before_stay(
    zygote: Any, rules: Any, results_command: ResultsCommand, small_disk: Path, command: str
) -> None:
    out = small_disk / "results"
    arguments = results_command[command](out)
    zygote.done(*arguments)
    before = files(out)
    fill(small_disk, 0)
    ended = zygote.run(*arguments)
    assert "cannot be written (No space left on device; needs up to about " in ended.error
    assert needed(ended) > 0
    assert files(out) == before
    fill(small_disk, 24 << 10)  # for some of them
    ended = zygote.run(*arguments)
    assert needed(ended) > 24 << 10
    assert files(out).keys() == before.keys()
    rules.whole_files(out)


@pytest.mark.parametrize("how", ["full", "nearly", "limit"])
@pytest.mark.parametrize("form", list(FORMATS))
def test_an_export_before_stays(
    zygote: Any, embedded: Path, tmp_path: Path, form: str, how: str, request: pytest.FixtureRequest
) -> None:
    for package in FORMATS.get(form).packages:
        pytest.importorskip(package, reason=f"{package} is not installed")
    disk = tmp_path if how == "limit" else request.getfixturevalue("small_disk")
    stores = sorted(embedded.glob("*.zarr"))[:1]
    command = ["-q", "export", *stores, "--to", form, "--out", disk / "out"]
    zygote.done(*command)
    before = files(disk / "out")
    size = sum(map(len, before.values()))
    if how != "limit":
        fill(disk, 0 if how == "full" else size // 2)
    ended = zygote.run(*command, "--existing", "replace", fsize=600 if how == "limit" else None)
    assert f"output '{disk / 'out'}" in ended.error
    assert "cannot be written (" in ended.error
    assert size <= needed(ended) <= 10 * size + (1 << 21)
    assert files(disk / "out") == before
    assert [path.name for path in disk.iterdir() if path.name.startswith("out")] == ["out"]


@pytest.mark.parametrize("how", ["tmpfs", "limit"])
def test_an_imported_store_stays(
    zygote: Any, rules: Any, tiled: Path, drawn: Path, tmp_path: Path, how: str, request: pytest.FixtureRequest
) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra interop is not installed")
    store = TileStore(sorted(tiled.glob("*.zarr"))[0])
    with h5py.File(tmp_path / "coordinates.h5", "w") as file:
        coords = file.create_dataset("coords", data=store.base_xy())
        coords.attrs["patch_size"], coords.attrs["name"] = 32, store.slide_id
        coords.attrs["patch_size_level0"] = round(store.base_size_px)
        file["features"] = np.ones((len(store), 4), np.float32)
    out = (request.getfixturevalue("small_disk") if how == "tmpfs" else tmp_path) / "stores"
    slide = drawn.parent / f"{store.slide_id}.svs"
    command = ["-q", "import", tmp_path / "coordinates.h5", "--slide", slide, "--out", out, "--features", "theirs"]
    zygote.done(*command)
    shutil.copytree(out, tmp_path / "before")
    if how == "tmpfs":
        fill(out.parent, 300_000)
    ended = zygote.run(*command, "--existing", "replace", fsize=100_000 if how == "limit" else None)
    assert needed(ended) >= len(store) * 32 * 32 * 3
    rules.same_stores(out, tmp_path / "before")
    rules.whole_files(out)
    assert rules.leftovers(out) == []


def test_the_demo_tells_what_its_slides_need(zygote: Any, small_disk: Path) -> None:
    fill(small_disk, 500_000)
    out = small_disk / "demo"
    ended = zygote.run("-q", "demo", "--out", out)
    assert f"drawn slides '{out / 'slides'}': cannot be written (No space left on device; needs" in ended.error
    assert 18e6 < needed(ended) < 36e6  # a slide takes 3.0 MB
    assert files(out) == {}

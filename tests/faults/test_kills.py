"""SIGKILL at any moment of any command: nothing half-written under a final name, and the same command again mends it."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def half(n_kills: int) -> int:
    """Every command is killed at random moments and before random writes, half of the times each."""
    return max(2, n_kills // 2)


@pytest.fixture
def kill(zygote: Any, torture: Any, kill_at_writes: Any, n_kills: int) -> Callable[..., None]:
    """Kill a command at moments and at writes; `begin` makes a folder and gives the command."""

    def both(begin: Any, compare: Any, *, kills_a_round: int = 1) -> None:
        wanted = half(n_kills)
        folder, command = begin(0)
        seconds = zygote.done(*command).seconds
        compare(folder)
        shutil.rmtree(folder)
        hits, tried = kill_at_writes(wanted, begin, compare, seed=1)
        assert hits > tried // 2
        at_moments = 2 * wanted - tried
        assert torture(at_moments, seconds, begin, compare, kills_a_round=kills_a_round) == at_moments

    return both


def test_tile(kill: Any, rules: Any, tile_command: Any, tiled: Path, tmp_path: Path) -> None:
    """Half of the folders hold finished stores, which are replaced."""

    def begin(number: int) -> tuple[Path, list[object]]:
        folder = tmp_path / str(number)
        if number % 2:
            return folder, tile_command(folder, "skip")
        shutil.copytree(tiled, folder)
        return folder, tile_command(folder, "replace")

    def compare(folder: Path) -> None:
        rules.same_stores(folder, tiled)
        assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in tiled.iterdir())

    kill(begin, compare)


def test_index(kill: Any, rules: Any, zygote: Any, indexed: Path, tmp_path: Path) -> None:
    """Another index of the same name is replaced."""
    other = tmp_path / "other"
    shutil.copytree(indexed, other)
    zygote.done("-q", "index", other, "--connectivity", "4")

    def begin(number: int) -> tuple[Path, list[object]]:
        folder = tmp_path / str(number)
        shutil.copytree(other, folder)
        return folder, ["-q", "index", folder]

    kill(begin, lambda folder: rules.same_stores(folder, indexed), kills_a_round=2)


def test_pretrain(kill: Any, rules: Any, pretrain_command: Any, trained: Path, tmp_path: Path) -> None:
    """Five kills a run: it goes on from the last checkpoint, and where there is none from the beginning."""

    def begin(number: int) -> tuple[Path, list[object]]:
        folder = tmp_path / str(number)
        return folder, [*pretrain_command(folder), "--resume"]

    kill(begin, lambda folder: rules.same_runs(folder, trained), kills_a_round=5)


def test_embed(kill: Any, rules: Any, zygote: Any, indexed: Path, trained: Path, tmp_path: Path) -> None:
    """Features of another encoder are replaced."""
    other, whole = tmp_path / "other", tmp_path / "whole"
    shutil.copytree(indexed, other)
    zygote.done("-q", "embed", other, "--encoder", "random:tiny:16", "--name", "f", "--device", "cpu")
    options = ("--encoder", trained, "--name", "f", "--device", "cpu", "--write", "npy")
    shutil.copytree(indexed, whole)
    zygote.done("-q", "embed", whole, *options)

    def begin(number: int) -> tuple[Path, list[object]]:
        folder = tmp_path / str(number)
        shutil.copytree(other, folder)
        return folder, ["-q", "embed", folder, *options]

    def compare(folder: Path) -> None:
        rules.same_stores(folder, whole)
        for file in whole.glob("*.npy"):
            assert (folder / file.name).read_bytes() == file.read_bytes()

    kill(begin, compare)


def test_run(
    zygote: Any,
    torture: Any,
    kill_at_writes: Any,
    rules: Any,
    drawn: Path,
    training: dict[str, Any],
    tmp_path: Path,
    n_kills: int,
) -> None:
    """The whole job, killed up to ten times before it may end: each time it gets a step further; and before writes of its."""
    settings = "\n".join(f"pretrain.{key} = {json.dumps(value)}" for key, value in training.items())

    def begin(number: int | str) -> tuple[Path, list[object]]:
        folder = tmp_path / str(number)
        folder.mkdir()
        recipe = tmp_path / f"{number}.toml"
        recipe.write_text(
            f'out = "{number}"\ntiling.mpp = 1.0\ntiling.size_px = 32\nslides.inputs = ["{drawn}"]\n'
            f'slides.annotations = "{drawn.parent / "annotations"}"\nembed.device = "cpu"\nembed.baseline = false\n'
            f'evaluate.protocol = "knn"\n{settings}\n'
        )
        return folder, ["-q", "run", recipe]

    whole, command = begin("whole")
    began = time.monotonic()
    n_writes = zygote.n_writes(whole, *command)
    seconds = time.monotonic() - began

    def compare(folder: Path) -> None:
        rules.same_stores(folder / "stores", whole / "stores")
        rules.same_runs(folder / "pretrain", whole / "pretrain")
        names = sorted(str(path.relative_to(whole)) for path in (whole / "evaluation").rglob("*"))
        assert names == sorted(str(path.relative_to(folder)) for path in (folder / "evaluation").rglob("*"))
        for name in ("results.json", "results.csv", "predictions.csv"):
            assert (folder / "evaluation" / name).read_bytes() == (whole / "evaluation" / name).read_bytes(), name

    at_writes = max(2, n_kills // 10)
    at_moments = n_kills - at_writes
    assert torture(at_moments, seconds / 3, begin, compare, kills_a_round=10) == at_moments
    assert kill_at_writes(at_writes, begin, compare, n_writes=n_writes, seed=4)[0] > 0


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    zygote: Any, rules: Any, pretrain_command: Any, trained: Path, tmp_path: Path
) -> None:
    """Its folder holds settings and metrics; with --resume and without, nothing stands in the way."""
    for name, resume in (("anew", ()), ("resumed", ("--resume",))):
        out = tmp_path / name
        pid = zygote.start(*pretrain_command(out))
        deadline = time.monotonic() + 60
        while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        zygote.kill(pid)
        assert not list(out.rglob("*.pt")), "killed too late"
        zygote.done(*pretrain_command(out), *resume)
        rules.same_runs(out, trained)


def test_training_goes_on_after_the_steps_before_it_ran_once_more(
    zygote: Any, rules: Any, tile_command: Any, pretrain_command: Any, indexed: Path, trained: Path, tmp_path: Path
) -> None:
    """A script of all steps that is simply started again after the machine died; here it even makes all stores anew."""
    stores, out = tmp_path / "stores", tmp_path / "run"
    shutil.copytree(indexed, stores)
    command = [stores if word == indexed else word for word in pretrain_command(out)]
    pid = zygote.start(*command)
    deadline = time.monotonic() + 60
    while not (out / "checkpoints/last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    zygote.kill(pid)
    assert not (out / "encoder.safetensors").exists(), "killed too late"
    zygote.done(*tile_command(stores, "replace"))
    zygote.done("-q", "index", stores)
    rules.same_stores(stores, indexed)
    zygote.done(*command, "--resume")
    rules.same_runs(out, trained)


def test_the_program_itself_and_its_workers(tile_command: Any, rules: Any, tiled: Path, tmp_path: Path) -> None:
    """Real processes, whose workers must not outlive the one that is killed for long: they would hold their stores."""
    words = [sys.executable, "-m", "simtriplet.pipelines", *map(str, tile_command(tmp_path)), "--workers", "2"]
    for wait in (0.0, 0.3):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*.tiles.zarr*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        rules.whole_files(tmp_path)
        time.sleep(1)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
    rules.same_stores(tmp_path, tiled)
    assert rules.leftovers(tmp_path) == []

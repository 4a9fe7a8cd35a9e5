"""Every command and every piece of Python on a page runs as it stands there, in a folder of the kind the page speaks of.

What would take hours is made short by options put behind those of the page (`SHORTER`); what a test cannot do is
named with the reason (`NOT_RUN`).
"""

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simtriplet.pipelines.cli import cli
from simtriplet.wsi import open_stores

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
PROGRAM = [sys.executable, "-m", "simtriplet.pipelines"]

NOT_RUN = {
    "git clone": "there is no network",
    "cd simtriplet": "follows git clone",
    "source .venv/bin/activate": "changes the reader's shell",
    ".ci/run": "would run itself",
    "python benchmarks/study.py": "takes hours; tests/test_study.py runs it on tiny slides",
    "simtriplet embed stores --encoder timm:resnet50.a1_in1k --name published --allow-download": "fetches weights from the network",
}

NETWORK = ["--set", "image_size_px=32", "--set", "min_steps=2", "--set", "epochs=1", "--set", "backbone=resnet18"]
SHORTER_PYTHON = (
    'backbone="resnet50", image_size_px=128',
    'backbone="resnet18", image_size_px=32, epochs=1, min_steps=2',
)
FEW = ["--label-draws", "1", "--amounts"]


def shorter(words: list[str], tiny_run: tuple[str, ...]) -> list[str]:
    """Return options that make a command of a page take seconds."""
    if "pretrain" in words:
        return [word for value in tiny_run for word in ("--set", value)]
    if words[0] == "run":
        return [word for value in tiny_run for word in ("--set", f"pretrain.{value}")]
    if "--supervised" in words or {"supervised", "finetune"} & set(words):
        settings = NETWORK if "finetune" not in words else NETWORK[2:6]
        return [
            *settings,
            *(["--folds", "2"] if "compare" in words else []),
            *(["--no-curves"] if "compare" in words and "--supervised-curve" not in words else []),
        ]
    if words[0] == "compare":
        return ["--no-curves"]
    return [*FEW, "1,2"] if "few-shot" in words else [*FEW, "0.25,1"] if "label-efficiency" in words else []


@pytest.fixture
def folder(reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the reader's folder, which the test works in."""
    copy = tmp_path / "reader"
    shutil.copytree(reader_folder, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return copy


@pytest.fixture(autouse=True)
def same_logging() -> Iterator[None]:
    """The program sets up logging for its own process, which here is the tests'."""
    root, ours = logging.getLogger(), logging.getLogger("simtriplet")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before


def commands_of(text: str) -> Iterator[str]:
    """Return the commands of a block, continued lines joined and comments removed."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield shlex.join(words) if "*" not in line else " ".join(words)


def expand(words: list[str]) -> list[str]:
    """Do what a shell does with `*`."""
    return [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]


class Reader:
    """Do what a page says, line by line."""

    def __init__(self, tiny_run: tuple[str, ...]) -> None:
        self.tiny_run = tiny_run
        self.background: list[subprocess.Popen[str]] = []
        self.n_run = 0
        self.has_tiled = False

    def do(self, command: str) -> None:
        if any(command.startswith(start) for start in NOT_RUN):
            return
        self.n_run += 1
        name, *words = expand(shlex.split(command))
        if words and words[-1] == "&":
            self._start([sys.executable, "-m", name, *words[:-1]])
        elif name == "make":
            assert f"\n{words[0]}:" in (ROOT / "Makefile").read_text()
        elif name == "simtriplet":
            self._simtriplet(words)
        elif name == "torchrun":
            extra = shorter(words, self.tiny_run)
            self._process([sys.executable, "-m", "torch.distributed.run", *words, *extra])
        elif name == "python":
            quick = ["--steps", "2", "--size", "32", "--batch-size", "8"] if "own_training" in words[0] else []
            self._process([sys.executable, str(ROOT / words[0]), *words[1:], *quick])
        else:
            pytest.fail(f"a page shows a command that no test runs: {command}")

    def _simtriplet(self, words: list[str]) -> None:
        if words[0] == "view":
            self._view(words)
        else:
            self._make_room(words)
            cli.main([*words, *shorter(words, self.tiny_run)], standalone_mode=False)

    def _make_room(self, words: list[str]) -> None:
        """A page that tiles begins without stores, and each run of training without a run."""
        begins = words[0] == "tile" and not self.has_tiled and "replace" not in words
        self.has_tiled |= words[0] == "tile"
        begins |= words[0] == "pretrain" and "--resume" not in words
        out = Path(words[words.index("--out") + 1]) if "--out" in words else None
        if begins and out is not None:
            shutil.rmtree(out, ignore_errors=True)

    @staticmethod
    def _process(command: list[str]) -> None:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert ended.returncode == 0, ended.stderr + ended.stdout

    def _start(self, command: list[str]) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.background.append(subprocess.Popen(command, text=True, **quiet))  # type: ignore[call-overload]

    def _view(self, words: list[str]) -> None:
        """Open what the program says it serves, then end it as Ctrl-C does."""
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen([*PROGRAM, *words, "--no-open"], text=True, **both)  # type: ignore[call-overload]
        try:
            address = next(word for line in process.stdout for word in line.split() if word.startswith("http://"))
            with urllib.request.urlopen(address, timeout=30) as page:
                assert b"openseadragon" in page.read().lower()
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        assert process.returncode in (0, 130)

    def close(self) -> None:
        for process in reversed(self.background):
            process.terminate()
        for process in self.background:
            process.wait(timeout=30)


@pytest.fixture
def reader(tiny_run: tuple[str, ...]) -> Iterator[Reader]:
    one = Reader(tiny_run)
    yield one
    one.close()


def write_recipe(folder: Path, read_blocks: Callable[[Path], list[Any]]) -> None:
    """The recipe on the page about recipes is the one that pages speak of."""
    (block,) = [block for block in read_blocks(ROOT / "docs" / "recipes.md") if block.language == "toml"]
    tomllib.loads(block.text)
    (folder / "recipe.toml").write_text(block.text, encoding="utf-8")


def write_weights(folder: Path) -> None:
    """Files of weights that the page about encoders names."""
    timm = pytest.importorskip("timm")
    import torch
    import torchvision
    from safetensors.torch import save_file

    torch.save(torchvision.models.resnet50().state_dict(), folder / "weights.pth")
    save_file(timm.create_model("vit_small_patch16_224").state_dict(), folder / "weights.safetensors")


def with_commands(language: str) -> list[Path]:
    return [page for page in PAGES if f"```{language}\n" in page.read_text(encoding="utf-8")]


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.slow
@pytest.mark.parametrize("page", with_commands("sh"), ids=page_id)
def test_commands_of_a_page_run(
    page: Path, folder: Path, reader: Reader, read_blocks: Callable[[Path], list[Any]]
) -> None:
    write_recipe(folder, read_blocks)
    if page.name == "predicting.md":
        write_weights(folder)
    if page.name == "exporting.md":
        pytest.importorskip("h5py", reason="the extra interop is not installed")
    for block in read_blocks(page):
        if block.language == "sh":
            for command in commands_of(block.text):
                reader.do(command)
                if reader.background:
                    time.sleep(0.2)
    assert reader.n_run or page.name == "study.md"


@pytest.mark.filterwarnings("ignore:.*tiles-000000.tar")  # which webdataset leaves open
@pytest.mark.filterwarnings("ignore:.*is not a valid key")  # in the settings of a package that squidpy brings
@pytest.mark.slow
@pytest.mark.parametrize("page", with_commands("python"), ids=page_id)
def test_python_of_a_page_runs(page: Path, folder: Path, read_blocks: Callable[[Path], list[Any]]) -> None:
    for package in ("squidpy", "timm", "webdataset"):
        if any(f"import {package}" in block.text for block in read_blocks(page)):
            pytest.importorskip(package)
    names: dict[str, Any] = {"stores": open_stores([folder / "stores"]), "out": folder / "python-out"}
    names["out"].mkdir()
    if "S1.tiles.zarr" in page.read_text(encoding="utf-8"):
        shutil.copytree(names["stores"][0].path, folder / "stores" / "S1.tiles.zarr")
    for block in read_blocks(page):
        if block.language == "python":
            text = block.text.replace(*SHORTER_PYTHON)
            exec(compile(text, page_id(page), "exec"), names)


def test_what_is_not_run_stands_on_a_page(read_blocks: Callable[[Path], list[Any]]) -> None:
    shown = [
        command
        for page in PAGES
        for block in read_blocks(page)
        if block.language == "sh"
        for command in commands_of(block.text)
    ]
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in shown), start


@pytest.fixture
def cluster(folder: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: tuple[str, ...], tmp_path: Path) -> Path:
    """A folder of programs on the path: `simtriplet` with options that make runs short, `scontrol` that notes what it is told."""
    settings = " ".join(f"--set {value}" for value in (*tiny_run, "run.max_steps=40"))
    call = shlex.join(PROGRAM)
    programs = {
        "simtriplet": f'if [ "$1" = pretrain ]; then exec {call} "$@" {settings}; else exec {call} "$@"; fi',
        "scontrol": f'echo "$@" >>{shlex.quote(str(tmp_path / "requeued"))}',
    }
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, text in programs.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    return folder


def submit_array(
    monkeypatch: pytest.MonkeyPatch, tasks: list[int], stores: str
) -> list[subprocess.CompletedProcess[str]]:
    """Run the tasks of an array job one after another."""
    ended = []
    for task in tasks:
        named = {"ID": task, "COUNT": len(tasks), "MIN": min(tasks), "MAX": max(tasks)}
        for name, value in named.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        command = ["bash", str(ROOT / "examples/slurm/tile.sh"), "slides.csv", stores]
        ended.append(subprocess.run(command, capture_output=True, text=True, check=False))
    return ended


def test_array_job_tiles_every_slide_once(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = submit_array(monkeypatch, list(range(5)), "shares")  # of four slides
    assert [one.returncode for one in ended] == [0] * 5
    shares = [sorted(path.name for path in (cluster / "shares" / str(task)).glob("*.tiles.zarr")) for task in range(5)]
    assert [len(share) for share in shares] == [1, 1, 1, 1, 0]
    assert len({name for share in shares for name in share}) == 4


@pytest.mark.parametrize("tasks", [[1, 2], [0, 3]])
def test_array_job_of_some_tasks_is_refused(cluster: Path, monkeypatch: pytest.MonkeyPatch, tasks: list[int]) -> None:
    """Shares follow from the number of tasks, so that slides would be left out."""
    for one in submit_array(monkeypatch, tasks, "shares"):
        assert (one.returncode, "submit all tasks" in one.stderr) == (2, True)
    assert not (cluster / "shares").exists()


@pytest.mark.slow
def test_training_is_requeued_when_the_time_is_up_and_goes_on(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    job = ["bash", str(ROOT / "examples/slurm/pretrain.sh"), "runs/job", "stores"]
    run = cluster / "runs" / "job"
    started = subprocess.Popen(job, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists():
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started.send_signal(signal.SIGUSR1)  # to the script alone, as SLURM does
    assert started.wait(timeout=60) != 0
    assert (run / "checkpoints" / "last.pt").exists()
    assert not (run / "encoder.safetensors").exists()
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    subprocess.run(job, check=True, capture_output=True)
    assert (run / "encoder.safetensors").exists()
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"

"""What is written to stderr: bars on a terminal, plain lines elsewhere, JSON objects on demand; and a quick `--help`."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import click
import pytest

from simtriplet.pipelines.cli import cli

Run = Callable[..., "CompletedProcess[str]"]
PROGRAM = [sys.executable, "-m", "simtriplet.pipelines"]


def events(stderr: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in stderr.splitlines()]
    assert all({"time", "event"} <= event.keys() for event in found)
    return found


def test_json_lines_tell_messages_progress_and_logs(program: Run, cohort: Path, tmp_path: Path) -> None:
    ended = program("-v", "--log-format", "json", "tile", cohort, "--out", "stores", "--size", 64, cwd=tmp_path)
    told = events(ended.stderr)
    progress = [event for event in told if event["event"] == "progress"]
    assert progress
    last = progress[-1]
    assert (last["job"], last["unit"]) == ("tile", "tiles")
    assert last["done"] == last["total"]
    assert last["part"]["of"] == 4
    assert last["rate_per_s"] > 0
    messages = [event["message"] for event in told if event["event"] == "message"]
    assert messages[-1] == "stores are in stores; next: simtriplet index stores"
    assert ended.stdout.startswith("slide\tstatus\t")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["index", "nowhere.tiles.zarr"], 1, "nowhere.tiles.zarr"),
        (["tile", "x.svs", "--codec", "gif"], 2, "'gif' is not one of"),
        (["nonsense"], 2, "No such command 'nonsense'"),
    ],
)
def test_failures_are_one_json_object(
    program: Run, tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    (error,) = events(program("--log-format", "json", *arguments, cwd=tmp_path, status=status).stderr)
    assert (error["event"], error["status"]) == ("error", status)
    assert message in str(error["message"])


def on_a_terminal(command: list[str], folder: Path) -> str:
    """Run a program whose stderr is a terminal of 120 columns, and return what it drew there."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, cwd=folder, env=environment)
    os.close(theirs)
    drawn = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        drawn += piece
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.decode())


def test_terminal_shows_slides_in_all_and_the_tiles_of_each(cohort: Path, tmp_path: Path) -> None:
    drawn = on_a_terminal([*PROGRAM, "tile", str(cohort), "--out", "stores", "--size", "64"], tmp_path)
    assert re.search(r"tile +━+ +4/4 +slides", drawn)
    assert re.search(r"patient\d\d-slide1 +━+ +(\d+)/\1 +tiles", drawn)
    assert re.search(r"\d+/s +0:00:\d\d", drawn)


def test_quiet_shows_no_progress_and_verbose_logs(program: Run, cohort: Path, tmp_path: Path) -> None:
    quiet = program("-q", "tile", cohort, "--out", "a", "--size", 64, cwd=tmp_path)
    assert "tiles," not in quiet.stderr
    plain = program("tile", cohort, "--out", "b", "--size", 64, cwd=tmp_path)
    assert re.search(r"tile: (\d+)/\1 tiles, [\d,]+/s, 0 s left patient", plain.stderr)


def test_help_imports_no_command(program: Run) -> None:
    heavy = "{'torch', 'cv2', 'sklearn', 'matplotlib', 'dask'}"
    code = "import sys; from simtriplet.pipelines.cli import main; sys.argv = ['simtriplet', '--help'];"
    code += f"main(); print(sorted({heavy} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, imported = ended.stdout.splitlines()
    assert imported == "[]"
    for name in cli.list_commands(click.Context(cli)):
        assert any(line.strip().startswith(f"{name} ") for line in shown), name

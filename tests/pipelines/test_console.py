"""What is written to stderr: bars on a terminal, plain lines elsewhere, JSON objects on demand; and a quick `--help`."""

import json
import os
import pty
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import click
import pytest
from click.testing import CliRunner

from simtriplet.pipelines import console
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


def on_a_terminal(command: list[str], folder: Path, *, columns: int = 120) -> str:
    """Run a program whose stderr is a terminal, and return what it drew there."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color"}
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


def test_a_narrow_terminal_cuts_the_note_and_no_number(tmp_path: Path) -> None:
    code = "from simtriplet.pipelines.console import progress_bar\nwith progress_bar('pretrain', 'steps') as tick:\n"
    code += "    tick(150, 200, 'epoch 1, loss 17.143, 43 triplets/s, 3 skipped')"
    drawn = on_a_terminal([sys.executable, "-c", code], tmp_path, columns=80)
    assert re.search(r"pretrain .*150/200 steps .*\d:\d\d:\d\d (-:--:--|\d:\d\d:\d\d) epoch 1, .*…", drawn)


def test_lines_of_several_slides_tell_the_time_that_all_of_them_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of eight slides are done after six seconds; the third is half done after half a second more."""
    clock = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with console.progress_bar("tile", "tiles", parts="slides") as tick:
        for after_s, done, part in ((1, 10, (10, 10, 1)), (5, 40, (30, 30, 2)), (0.5, 50, (10, 20, 3))):
            clock[0] += after_s
            tick(done, done, "one", part=console.Part("one", *part, 8))
    assert capsys.readouterr().err == "tile: 40 tiles, 6.7/s, 18 s left one\n"


def test_quiet_shows_no_progress_and_verbose_logs(program: Run, cohort: Path, tmp_path: Path) -> None:
    quiet = program("-q", "tile", cohort, "--out", "a", "--size", 64, cwd=tmp_path)
    assert quiet.stderr == ""
    assert quiet.stdout.splitlines()[0].startswith("slide\tstatus\t")
    plain = program("tile", cohort, "--out", "b", "--size", 64, cwd=tmp_path)
    progress = [line for line in plain.stderr.splitlines() if line.startswith("tile: ")]
    assert re.fullmatch(r"tile: \d+ tiles, [\d,]+/s, 0 s left patient\d\d-slide1 \(4/4\)", progress[-1])


def test_help_of_a_command_needs_no_torch() -> None:
    """Which takes seconds to import: nobody waits for it before a wrong option is told."""
    code = "import sys, click; from simtriplet.pipelines.cli import cli; context = click.Context(cli)\n"
    code += "for name in cli.list_commands(context): cli.get_command(context, name)\n"
    code += "print(sorted({'torch', 'torchvision', 'timm'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_help_imports_no_command(program: Run) -> None:
    heavy = "{'torch', 'cv2', 'sklearn', 'matplotlib', 'dask'}"
    code = "import sys; from simtriplet.pipelines.cli import main; sys.argv = ['simtriplet', '--help'];"
    code += f"main(); print(sorted({heavy} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, imported = ended.stdout.splitlines()
    assert imported == "[]"
    for name in cli.list_commands(click.Context(cli)):
        assert any(line.strip().startswith(f"{name} ") for line in shown), name


def test_ctrl_c_before_the_libraries_are_there_is_one_line_too() -> None:
    """A finder that is asked for the first of them presses it."""
    code = """
        import importlib.abc, os, signal, sys

        class Impatient(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name == "click":
                    os.kill(os.getpid(), signal.SIGINT)

        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.meta_path.insert(0, Impatient())
        sys.argv = ["simtriplet", "info", "a.svs"]
        from simtriplet.pipelines.program import main
        main()
        """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert ended.returncode == 130
    assert ended.stderr.strip() == "Error: interrupted; run the same command again to go on"


@pytest.mark.parametrize("words", [["tile", "a.svs", "--out", ""], ["check", ""], ["pretrain", "s", "--out", ""]])
def test_an_empty_path_is_not_this_folder(words: list[str]) -> None:
    """What a variable of a script comes to that was never set."""
    ended = CliRunner().invoke(cli, words)
    assert ended.exit_code == 2
    assert "is empty; name a file or folder" in ended.output


def test_a_wrong_command_is_told_the_nearest() -> None:
    assert "No such command 'pretrian'; did you mean 'pretrain'?" in CliRunner().invoke(cli, ["pretrian"]).output
    assert "No such command 'xyz'." in CliRunner().invoke(cli, ["xyz"]).output


def test_too_little_memory_is_one_line(tmp_path: Path) -> None:
    """A manifest of 64 MB, and a program that may take 16 MB more than it has when it begins to work."""
    with (tmp_path / "slides.csv").open("wb") as file:
        file.write(b"path\n")
        file.truncate(64 << 20)
    code = """
        import resource, sys
        from pathlib import Path
        import simtriplet.pipelines.commands_slides
        from simtriplet.pipelines.program import main

        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + (16 << 20), mapped + (16 << 20)))
        main()
        """
    words = ["tile", str(tmp_path / "slides.csv"), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", textwrap.dedent(code), *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("Error: memory: there is too little")
    assert line.endswith("and run the same command with --existing skip to go on")

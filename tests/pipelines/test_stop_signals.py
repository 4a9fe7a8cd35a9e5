"""Ctrl-C at moments at which Python itself would lose it, and what it says of how to go on."""

import subprocess
import sys

import click
import pytest

from simtriplet.pipelines import cli

FORK = """
import os, signal, sys
from simtriplet.pipelines.slide_worker import SlideWorker
os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT))
try:
    SlideWorker.forked()
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_a_signal_during_a_fork_is_heard() -> None:
    ended = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (7, "")


@pytest.mark.parametrize("name", [name for name in cli._COMMANDS if name not in ("pretrain", "view")])
def test_how_to_go_on_is_what_works(name: str) -> None:
    """The same command again, unless it would be refused for what is done already."""
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    existing = {option.name: option.default for option in command.params}.get("existing")
    assert ("--existing skip" in cli._GO_ON.get(name, "")) == (existing == "error")

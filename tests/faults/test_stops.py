"""SIGTERM and Ctrl-C: within ten seconds, a checkpoint first, the status of a stopped program, and how to go on."""

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

SIGNALS = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}
LIMIT_S = 10


@pytest.fixture
def commands(
    tile_command: Any, pretrain_command: Any, indexed: Path, trained: Path, tmp_path: Path
) -> dict[str, tuple[list[object], str]]:
    """Commands long enough to be stopped, and what they say to go on."""
    stores = tmp_path / "stores"
    shutil.copytree(indexed, stores)
    again = "run the same command again to go on"
    anew = "run the same command again, which replaces everything once more"
    return {
        "tile": (tile_command(tmp_path / "out", "replace", 4), anew),
        "index": (["-q", "index", stores], again),
        "pretrain": (
            [*pretrain_command(tmp_path / "run", "run.epochs=10000"), "--resume"],
            "run the same command with --resume to go on",
        ),
        "embed": (
            [
                "-q",
                "embed",
                stores,
                "--encoder",
                trained,
                "--device",
                "cpu",
                "--existing",
                "replace",
                "--batch-size",
                "1",
            ],
            anew,
        ),
    }


@pytest.mark.parametrize("name", ["tile", "index", "pretrain", "embed"])
@pytest.mark.parametrize("number", SIGNALS, ids=["SIGTERM", "SIGINT"])
def test_a_signal_at_any_moment(
    zygote: Any, rules: Any, commands: Any, tmp_path: Path, n_kills: int, name: str, number: signal.Signals
) -> None:
    command, go_on = commands[name]
    status, word = SIGNALS[number]
    seconds = 1.0 if name == "pretrain" else zygote.done(*command).seconds
    moments, stopped = random.Random(number), 0
    for _ in range(max(3, n_kills // 4)):
        pid = zygote.start(*command)
        time.sleep(moments.uniform(0.2, 0.8) * seconds)
        began = time.monotonic()
        zygote.signal(pid, number)
        ended = zygote.wait(pid)
        assert time.monotonic() - began < LIMIT_S
        rules.whole_files(tmp_path)
        if ended.status != 0 and ended.status != -number:  # before the program heeded it, or after its end
            assert (ended.status, ended.error) == (status, f"Error: {word}; {go_on}"), ended.said
            stopped += 1
    assert stopped > 0 or name == "index"  # which is over in no time
    if name != "pretrain":  # a signal that met the clearing up leaves it to the next run
        zygote.done(*command)
        assert rules.leftovers(tmp_path) == []


def test_training_saves_where_it_stopped(zygote: Any, commands: Any, tmp_path: Path) -> None:
    command, _ = commands["pretrain"]
    out = tmp_path / "run"
    rare = ("run.checkpoint_every_epochs=100000", "run.keep_every_epochs=100000")
    pid = zygote.start(*command, *(part for value in rare for part in ("--set", value)))
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    zygote.signal(pid, signal.SIGTERM)
    assert zygote.wait(pid).status == 143
    state = torch.load(out / "checkpoints" / "last.pt", weights_only=True)
    assert state["step"] == len((out / "metrics.jsonl").read_text().splitlines()) > 0
    assert not state["finished"]


def test_a_second_signal_ends_it_at_once(zygote: Any, commands: Any) -> None:
    """Training, whose checkpoint may take its time; by then it may have ended in order."""
    command, _ = commands["pretrain"]
    pid = zygote.start(*command, "--set", "run.batch_size=180", "--set", "run.accumulate=90")  # long steps
    time.sleep(1.5)
    zygote.signal(pid, signal.SIGINT)
    time.sleep(1.1)
    zygote.signal(pid, signal.SIGINT)
    time.sleep(0.6)
    zygote.signal(pid, signal.SIGINT)
    began = time.monotonic()
    ended = zygote.wait(pid)
    assert time.monotonic() - began < 2
    assert ended.status in (130, -signal.SIGINT), ended.said
    assert "Traceback" not in ended.said


def test_two_signals_at_once_are_one_wish(zygote: Any, rules: Any, commands: Any, tmp_path: Path) -> None:
    command, _ = commands["tile"]
    pid = zygote.start(*command)
    time.sleep(0.3)
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):  # both wait for a busy program
        zygote.signal(pid, number)
    ended = zygote.wait(pid)
    assert ended.status in (130, 143), ended.said
    assert ended.error
    rules.whole_files(tmp_path)

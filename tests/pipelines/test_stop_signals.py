"""Ctrl-C at moments at which Python itself would lose it, and what it says of how to go on."""

import os
import subprocess
import sys

import click
import pytest

from simtriplet.pipelines import cli

FORK = """
import os, signal, sys, threading, time
from simtriplet.pipelines.slide_worker import SlideWorker
ready = threading.Event()
if sys.argv[1] == "a thread that takes signals":  # as those of BLAS do
    threading.Thread(target=lambda: (ready.set(), time.sleep(60)), daemon=True).start()
    ready.wait()
def press():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
os.register_at_fork(before=press)
try:
    SlideWorker.forked()
except KeyboardInterrupt:
    sys.exit(7)
"""

HOLDING = """
import os, signal, sys, threading, time
from simtriplet.pipelines.slide_worker import _holding_stops_back

ready = threading.Event()
threading.Thread(target=lambda: (ready.set(), time.sleep(600)), daemon=True).start()  # takes what the mask keeps from us
ready.wait()
heard = []

def heed(number, _):
    heard.append(signal.Signals(number).name)
    raise KeyboardInterrupt

def hold(first, moment):
    '''Hold stops back, and send one at the k-th line of doing so; return whether there are that many lines.'''
    steps = iter(range(1000))

    def press(frame, event, _):
        if event == "line" and next(steps) == moment:
            sys.settrace(None)
            os.kill(os.getpid(), first)
            time.sleep(0.01)
        return press

    def enter(frame, event, _):
        return press if frame.f_code is _holding_stops_back.__wrapped__.__code__ else None

    sys.settrace(enter)
    try:
        with _holding_stops_back():
            pass
    finally:
        sys.settrace(None)
    return next(steps) > moment

for first, second in ((signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)):
    moment, is_inside = 0, True
    while is_inside:
        for number in (first, second):
            signal.signal(number, heed)
        heard.clear()
        try:
            is_inside = hold(first, moment)
        except KeyboardInterrupt:
            assert heard == [first.name], (moment, heard)
        else:
            assert not is_inside and not heard, (moment, heard)
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), moment
        try:
            signal.raise_signal(second)
            time.sleep(0.01)
        except KeyboardInterrupt:
            pass
        assert not is_inside or heard == [first.name, second.name], (moment, heard)
        moment += 1
    print(moment)
"""

SWALLOWED = """
import os, signal, sys
from simtriplet.pipelines import commands_slides
from simtriplet.pipelines.program import main

def swallow(**_):
    try:
        os.kill(os.getpid(), getattr(signal, sys.argv[0]))
    except KeyboardInterrupt:
        pass

signal.signal(signal.SIGINT, signal.default_int_handler)
commands_slides.info.callback = swallow
sys.argv = [sys.argv[1], "info", "a.svs"]
main()
"""

HALF_MADE = """
import os, signal, sys, warnings
from multiprocessing import Pipe
from simtriplet.pipelines import slide_worker
from simtriplet.pipelines.stop_signals import STOP

class Loop:
    def __del__(self):
        raise AttributeError("not all of it is there")

async def never():
    pass

def make(*_):
    loop, waiting = Loop(), never()
    os.kill(os.getpid(), signal.SIGTERM)

def make_carefully(*_):
    try:
        with warnings.catch_warnings():
            make()
    finally:
        warnings.warn("half of it is there")

task = make_carefully if sys.argv[2] == "catching warnings" else make
if sys.argv[1] == "program":
    STOP.heed()
    try:
        task()
    except KeyboardInterrupt:
        STOP.end()
else:
    here, there = Pipe()
    here.send((task, None))
    slide_worker.serve(there, os.getppid())
"""


@pytest.mark.parametrize(
    ("process", "said"), [("program", "\nError: terminated; run the same command again to go on\n"), ("worker", "")]
)
@pytest.mark.parametrize(("action", "moment"), [("error", "anywhere"), ("always", "catching warnings")])
def test_what_a_signal_tore_out_of_its_making_shows_no_traceback(
    process: str, said: str, action: str, moment: str
) -> None:
    words = [sys.executable, "-W", action, "-c", HALF_MADE, process, moment]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (143, said)


@pytest.mark.parametrize("threads", ["one thread", "a thread that takes signals"])
def test_a_signal_during_a_fork_is_heard(threads: str) -> None:
    """Whichever thread the system hands it to."""
    words = [sys.executable, "-c", FORK, threads]
    ended = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=60, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    )
    assert (ended.returncode, ended.stderr) == (7, "")


def test_a_signal_at_any_line_around_a_fork_is_heard_once_and_so_is_the_next() -> None:
    """Whether this thread takes it or another one, and whatever is put up or taken down at that moment."""
    words = [sys.executable, "-c", HOLDING]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert all(int(lines) > 15 for lines in ended.stdout.split())


@pytest.mark.parametrize(("name", "status", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_that_a_library_swallowed_is_the_status_all_the_same(name: str, status: int, word: str) -> None:
    words = [sys.executable, "-c", SWALLOWED, name]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (status, f"\nError: {word}; run the same command again to go on\n")


@pytest.mark.parametrize("name", [name for name in cli._COMMANDS if name not in ("pretrain", "view")])
def test_how_to_go_on_is_what_works(name: str) -> None:
    """The same command again, unless it would be refused for what is done already."""
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    existing = {option.name: option.default for option in command.params}.get("existing")
    assert ("--existing skip" in cli._GO_ON.get(name, "")) == (existing == "error")

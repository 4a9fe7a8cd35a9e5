"""Signals that come while a step is under way: noted, served once, and handed on to whoever heeded them before."""

import os
import signal
import time
from itertools import pairwise

import pytest

from simtriplet.pretrain import interrupt as module
from simtriplet.pretrain.distributed import World
from simtriplet.pretrain.interrupt import DeferredInterrupt
from simtriplet.pretrain.stop_vote import OUT_OF_TIME, StopVote


class EndedError(KeyboardInterrupt):
    """What a program's own handler of SIGTERM raises."""


@pytest.fixture
def own_handler():
    """Handle SIGTERM as the command line does."""

    def end(number, frame):
        raise EndedError(number)

    before = signal.signal(signal.SIGTERM, end)
    yield end
    signal.signal(signal.SIGTERM, before)


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.001)  # Python runs a handler between two of its instructions


def work(*numbers, then=lambda interrupt: None):
    """Get signals while a step is under way; return the one that was noted."""
    with DeferredInterrupt() as interrupt:
        for number in numbers:
            send(number)
        then(interrupt)
    return interrupt.number


def test_without_a_signal_nothing_happens(own_handler):
    assert work() == 0
    assert signal.getsignal(signal.SIGTERM) is own_handler


def test_a_signal_keeps_its_meaning(own_handler):
    for number, error in ((signal.SIGTERM, EndedError), (signal.SIGINT, KeyboardInterrupt)):
        with pytest.raises(KeyboardInterrupt) as caught:
            work(number, then=lambda interrupt: interrupt.hand_on(interrupt.number))
        assert caught.type is error
    assert signal.getsignal(signal.SIGTERM) is own_handler


def test_a_second_signal_is_the_same_wish_again_for_a_while(own_handler, monkeypatch):
    noted = []

    def wait(interrupt):
        noted.append(interrupt.number)
        monkeypatch.setattr(module, "_PATIENCE_S", dict.fromkeys(module._PATIENCE_S, 0.0))
        send(signal.SIGTERM)
        noted.append("not reached: a late one is served at once")

    with pytest.raises(EndedError):
        work(signal.SIGTERM, signal.SIGTERM, signal.SIGINT, then=wait)
    assert noted == [signal.SIGTERM]


def test_a_signal_that_nobody_noticed_is_not_lost(own_handler):
    with pytest.raises(EndedError):
        work(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError):  # what is raised already is not hidden
        work(signal.SIGTERM, then=lambda interrupt: 1 / 0)


def test_a_process_alone_is_asked_before_every_step():
    vote = StopVote(World(), None)
    assert [vote.ask(step, 0, is_last=False) for step in range(3)] == [0, 0, 0]
    assert vote.ask(3, OUT_OF_TIME, is_last=False) == OUT_OF_TIME
    assert vote.ask(3, signal.SIGTERM, is_last=False) == signal.SIGTERM


class Pair(World):
    """Two processes of which the other one says what it is told to."""

    other: tuple[int, int] = (0, -100)
    asked = 0

    def largest(self, values, device):
        type(self).asked += 1
        return tuple(max(pair) for pair in zip(values, self.other, strict=True))


def votes_until(steps, seconds_a_step, monkeypatch):
    """Return after which steps two processes ask each other, by a clock that only steps move."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    vote, asked = StopVote(Pair(0, 2), None), []
    for step in range(steps):
        before = Pair.asked
        vote.ask(step, 0, is_last=step == steps - 1)
        if Pair.asked > before:
            asked.append(step)
        clock[0] += seconds_a_step
    return asked


@pytest.mark.parametrize(("seconds", "gap"), [(0.01, 10), (0.5, 4), (1.5, 1), (30.0, 1)])
def test_several_are_asked_every_ten_steps_or_two_seconds(monkeypatch, seconds, gap):
    asked = votes_until(100, seconds, monkeypatch)
    assert asked[:2] == [0, 1]
    assert asked[-1] == 99  # the last occasion
    assert {b - a for a, b in pairwise(asked[1:-1])} == {gap}


def test_the_strongest_reason_of_any_process_is_that_of_all(monkeypatch):
    vote = StopVote(Pair(0, 2), None)
    monkeypatch.setattr(Pair, "other", (int(signal.SIGTERM), -100))
    assert vote.ask(0, OUT_OF_TIME, is_last=False) == signal.SIGTERM

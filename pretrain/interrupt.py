"""Let a training step finish before Ctrl-C or a batch system's SIGTERM takes effect."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

__all__ = ["DeferredInterrupt"]

_PATIENCE_S = {signal.SIGINT: 1.0, signal.SIGTERM: 5.0}
"""Schedulers, terminals and torchrun send a signal two or three times at once, while a checkpoint takes its time; a person
who presses Ctrl-C a second time does not want to wait for it."""


class DeferredInterrupt:
    """A context manager that notes SIGINT or SIGTERM instead of raising in the middle of a step.

    Who notices the note saves what there is to save and hands the signal on to the handler that was there before: each
    signal keeps its meaning, and one that the process was started to ignore stays ignored. A signal that nobody noticed is
    handed on at the end of the block. More signals within five seconds (Ctrl-C: one) are the same wish again; a later one
    is impatience, and is handed on at once. Outside the main thread, where Python allows no handlers, it does nothing.

    Attributes:
        number: of the first signal that came, 0 while there is none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._came_at = 0.0
        self._handed_on = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in _PATIENCE_S if signal.getsignal(number) is not signal.SIG_IGN]
            self._previous = {int(number): signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the former handlers back.

        Raises:
            KeyboardInterrupt: or whatever the former handler raises, if a signal came that nobody handed on.
        """
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if error is None and self.number and not self._handed_on:
            self.hand_on(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._came_at = number, now
        elif now - self._came_at >= _PATIENCE_S[signal.Signals(number)]:
            self.hand_on(number)

    def hand_on(self, number: int) -> NoReturn:
        """Let a signal have the effect that it would have had.

        Raises:
            KeyboardInterrupt: or whatever the former handler raises.
        """
        self._handed_on = True
        handler = self._previous.get(number)
        if callable(handler):
            handler(number, None)
        raise KeyboardInterrupt

"""Ctrl-C and SIGTERM end the program in order and in time: what is half done is put away, and one line says how to go on."""

import _thread
import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

__all__ = ["SAME_COMMAND", "STOP", "StopSignals", "fall_silent"]

SAME_COMMAND = "run the same command again to go on"

_PATIENCE_S = 0.5
"""Schedulers, terminals and torchrun send a signal two or three times at once; a later one is impatience."""

_LIMIT_S = 8.0
"""Then the program ends as it stands: outputs are whole or under a temporary name at every moment."""

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class StopSignals:
    """What a program that was told to stop knows of it.

    The first signal raises KeyboardInterrupt; a second one after half a second ends the program at once. A signal that the
    program was started to ignore (`nohup`, `&` in a script) stays ignored.

    Attributes:
        number: of the first signal, 0 while there is none.
        go_on: what to do to go on.
        importing: whether libraries are being loaded, which do not all survive an exception: nothing has begun, and the
            program ends at once.
    """

    def __init__(self, go_on: str) -> None:
        self.number = 0
        self.go_on = go_on
        self.importing = False
        self._came_at = 0.0
        self._has_told = False

    def heed(self) -> None:
        """Begin to wait for signals."""
        for number in _WORDS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._heed)

    @contextlib.contextmanager
    def while_importing(self) -> Iterator[None]:
        """Let a signal end the program at once while a block imports libraries."""
        before, self.importing = self.importing, True
        try:
            yield
        finally:
            self.importing = before

    def leave(self) -> None:
        """Stop waiting: the work is done, and a signal that meets the interpreter's own end simply ends it."""
        if not self.number:  # else its second copy, sent at once, would take the place of the status
            for number in _WORDS:
                if signal.getsignal(number) == self._heed:
                    signal.signal(number, signal.SIG_DFL)

    def end(self) -> NoReturn:
        """End as a program does that a signal ended: 130 for Ctrl-C, 143 for SIGTERM.

        Raises:
            SystemExit: after one line on stderr.
        """
        self._tell()
        raise SystemExit(128 + self.number)

    def _heed(self, number: int, frame: FrameType | None) -> Any:
        now = time.monotonic()
        if not self.number:
            self.number, self._came_at = number, now
            if self.importing:
                self._end_now()
            _thread.start_new_thread(self._end_in_time, ())  # threading's own locks may be held by whom the signal met
            fall_silent()
            raise KeyboardInterrupt
        if now - self._came_at >= _PATIENCE_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _end_in_time(self) -> None:
        time.sleep(_LIMIT_S)
        self._end_now()

    def _end_now(self) -> NoReturn:
        self._tell()
        os._exit(128 + self.number)

    def _tell(self) -> None:
        if self._has_told:
            return
        self._has_told = True
        line = f"\nError: {_WORDS[signal.Signals(self.number)]}; {self.go_on}\n"  # behind the terminal's ^C
        with contextlib.suppress(OSError):
            os.write(2, line.encode())


def fall_silent() -> None:
    """Keep what a signal tore out of its making, such as zarr's event loop, from showing a traceback as it is thrown away."""
    sys.unraisablehook = lambda _: None
    warnings.simplefilter("ignore")
    # unlike the filter, this outlives the end of a `catch_warnings` around it all
    warnings.formatwarning = lambda *_, **__: ""


STOP = StopSignals(SAME_COMMAND)
"""Those of this program."""

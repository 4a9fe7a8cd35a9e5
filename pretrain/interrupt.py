"""Let a training step finish before Ctrl-C or a batch system's SIGTERM takes effect."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["DeferredInterrupt"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DeferredInterrupt:
    """A context manager that notes the first SIGINT or SIGTERM instead of raising in the middle of a step.

    A second signal raises at once. Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the former handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def raise_if_requested(self) -> None:
        """Raise KeyboardInterrupt if a signal came."""
        if self.requested:
            raise KeyboardInterrupt

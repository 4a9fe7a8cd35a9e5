"""What the slide browser keeps in memory: values up to a number of bytes, and a few open slides."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

from simtriplet.wsi.errors import SlideOpenError
from simtriplet.wsi.slide import SlideReader, open_slide

__all__ = ["BoundedCache", "OpenSlides"]

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_READING_THREADS = 4


class BoundedCache(Generic[Key, Value]):
    """Values by key, the least recently used dropped first; safe to use from several threads.

    Args:
        max_bytes: what the values take together at most; of larger ones the last alone is kept.
        measure: bytes of a value.
    """

    def __init__(self, max_bytes: int, measure: Callable[[Value], int]) -> None:
        self.max_bytes, self._measure = max_bytes, measure
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._gates: dict[Key, threading.Lock] = {}
        self._lock = threading.Lock()
        self.held_bytes = 0

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """Return the value of a key; of several threads that miss it, one makes it and the others wait."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            gate = self._gates.setdefault(key, threading.Lock())
        try:
            with gate:
                with self._lock:
                    if key in self._values:
                        return self._values[key]
                value = make()
                self._keep(key, value)
                return value
        finally:
            with self._lock:
                self._gates.pop(key, None)

    def _keep(self, key: Key, value: Value) -> None:
        with self._lock:
            self._drop(key)
            self._values[key] = value
            self.held_bytes += self._measure(value)
            while self.held_bytes > self.max_bytes and len(self._values) > 1:
                self._drop(next(iter(self._values)))

    def _drop(self, key: Key) -> None:
        if key in self._values:
            self.held_bytes -= self._measure(self._values.pop(key))


class _OpenSlide:
    """A reader, once somebody has opened it, and how many read with it at this moment."""

    def __init__(self, path: Path) -> None:
        self.path, self.users = path, 0
        self._reader: SlideReader | None = None
        self._lock = threading.Lock()

    def open(self) -> SlideReader:
        """Return the reader; of several threads one opens the file and the others wait."""
        with self._lock:
            if self._reader is None:
                self._reader = open_slide(self.path)
            return self._reader

    @property
    def is_open(self) -> bool:
        """Tell whether somebody has opened it."""
        return self._reader is not None

    def close(self) -> None:
        """Close what is open."""
        if self._reader is not None:
            self._reader.close()


class OpenSlides:
    """Slide files opened when first read, a few at a time.

    All reading is done by the same few threads, since OpenSlide takes a handle for every thread that ever read.

    Args:
        files: path of each slide by its id.
        max_open: slides held open, each with up to 128 MiB of decoded tiles; more only while more are read at once.
    """

    def __init__(self, files: Mapping[str, Path], *, max_open: int = 2) -> None:
        self.files, self.max_open = dict(files), max_open
        self._open: OrderedDict[str, _OpenSlide] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_READING_THREADS, thread_name_prefix="slide")

    def __contains__(self, slide_id: str) -> bool:
        return slide_id in self.files

    def __len__(self) -> int:
        return len(self._open)

    def use(self, slide_id: str, task: Callable[[SlideReader], Value]) -> Value:
        """Return what `task` makes of a slide's reader.

        Raises:
            SlideOpenError: if the file cannot be opened, or all are closed already.
            SlideReadError: if its pixels cannot be decoded.
        """
        try:
            future = self._pool.submit(self._use, slide_id, task)
        except RuntimeError as error:  # a request that came while the program ends
            raise SlideOpenError(f"slide {slide_id!r}: the slides are closed; start the program again") from error
        return future.result()

    def _use(self, slide_id: str, task: Callable[[SlideReader], Value]) -> Value:
        slide = self._acquire(slide_id)
        try:
            reader = slide.open()
            for one in self._take_surplus():
                one.close()
            return task(reader)
        finally:
            self._release(slide_id)

    def _acquire(self, slide_id: str) -> _OpenSlide:
        """Return a slide, which its first user opens; files are not touched under the lock of all."""
        with self._lock:
            slide = self._open.setdefault(slide_id, _OpenSlide(self.files[slide_id]))
            self._open.move_to_end(slide_id)
            slide.users += 1
            return slide

    def _take_surplus(self) -> list[_OpenSlide]:
        """Return what to close, the least recently used first: of slides that could be opened those that are too many."""
        with self._lock:
            opened = [key for key, one in self._open.items() if one.is_open]
            idle = [key for key in opened if not self._open[key].users]
            return [self._open.pop(key) for key in idle[: max(0, len(opened) - self.max_open)]]

    def _release(self, slide_id: str) -> None:
        """Let go of a slide; one that could not be opened keeps no place."""
        with self._lock:
            slide = self._open[slide_id]
            slide.users -= 1
            if not slide.users and not slide.is_open:
                del self._open[slide_id]

    def close(self) -> None:
        """Wait for those that read, then close all slides."""
        self._pool.shutdown()
        for slide in self._open.values():
            slide.close()
        self._open.clear()

"""Events for TensorBoard beside the plain lines of metrics.jsonl; the package tensorboard is optional."""

import importlib.util
import io
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simtriplet.pretrain.settings import Switch
from simtriplet.wsi.errors import MissingDependencyError

__all__ = ["EventLog", "open_event_log"]


class EventLog:
    """Write numbers as TensorBoard scalars, whole reports at a time.

    torch's SummaryWriter writes from a thread of its own: a full disk is a traceback of that thread, and files appear in a folder
    that is being removed.

    Args:
        folder: for the event files; made where it is missing.
        after_step: steps that count; events of later ones, which a killed run left, are hidden.

    Raises:
        OSError: if the folder cannot be written, here and from `add`.
    """

    def __init__(self, folder: Path, *, after_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        # TensorBoard reads the files in the order of their names
        self.path = folder / f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}"
        self.path.touch(exist_ok=False)
        start = SessionLog(status=SessionLog.START)
        self._append(Event(file_version="brain.Event:2"), Event(step=after_step + 1, session_log=start))

    def add(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        """Write the numbers among `values`, those of nested mappings as `group/outer/inner`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=tag, simple_value=number) for tag, number in _numbers(group, values)]
        self._append(Event(step=step, summary=Summary(value=scalars)))

    def _append(self, *events: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = io.BytesIO()
        for event in events:
            event.wall_time = time.time()
            RecordWriter(records).write(event.SerializeToString())
        # never made again where it is gone: its folder may be being removed
        with open(self.path, "ab", opener=lambda path, flags: os.open(path, flags & ~os.O_CREAT)) as file:
            file.write(records.getvalue())


def _numbers(group: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{group}/{name}", value)
        elif isinstance(value, int | float) and name != "step":
            yield f"{group}/{name}", value


def open_event_log(choice: Switch, folder: Path, *, after_step: int) -> EventLog | None:
    """Open the events of a run, None where they are not wanted or, for "auto", cannot be written.

    Raises:
        MissingDependencyError: if "on" is asked for and the package tensorboard is missing.
        OSError: if the folder cannot be written.
    """
    installed = importlib.util.find_spec("tensorboard") is not None
    if choice == "on" and not installed:
        raise MissingDependencyError(
            "run.tensorboard 'on': needs the package tensorboard, which is not installed; install it, or use auto or off"
        )
    if choice == "off" or not installed:
        return None
    return EventLog(folder, after_step=after_step)

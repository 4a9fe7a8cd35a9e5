"""What a person sees: progress on stderr (bars on a terminal, plain or JSON lines elsewhere), results as tables on stdout."""

import datetime
import json
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from simtriplet.evaluate.visible_text import visible
from simtriplet.pipelines.options import quiet as is_quiet

__all__ = [
    "JsonFormatter",
    "LogFormat",
    "Part",
    "Ticker",
    "is_json",
    "print_table",
    "progress_bar",
    "say",
    "set_log_format",
    "tell_error",
]

PLAIN_INTERVAL_S = 5.0

LogFormat = Literal["text", "json"]

_format: LogFormat = "text"


def set_log_format(chosen: LogFormat) -> None:
    """Say how messages and progress are written to stderr from now on: for a person, or one JSON object a line."""
    global _format
    _format = chosen


def is_json() -> bool:
    """Tell whether lines are JSON objects."""
    return _format == "json"


class JsonFormatter(logging.Formatter):
    """Write a log record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time (UTC), event "log", level, logger and message, and the traceback where there is one."""
        values = {"level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return _event("log", **values)


def _event(kind: str, **values: Any) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "event": kind, **values}, ensure_ascii=False)


def say(message: str, *, warns: bool = False) -> None:
    """Write a message for a person to stderr; with -q only what `warns`."""
    if is_quiet() and not warns:
        return
    if _format == "json":
        click.echo(_event("message", message=visible(" ".join(message.split("\n")))), err=True)
    else:
        click.echo("\n".join(map(visible, message.split("\n"))), err=True)


def tell_error(message: str, status: int) -> None:
    """Write the one line of a failure to stderr."""
    line = visible(" ".join(message.splitlines()))
    click.echo(_event("error", message=line, status=status) if _format == "json" else f"Error: {line}", err=True)


class Part(NamedTuple):
    """The part of a job that is being worked on, such as a slide.

    Attributes:
        name: which one.
        done: steps of the part that are done.
        total: steps of the part.
        number: counted from 1.
        of: parts of the job.
    """

    name: str
    done: int
    total: int
    number: int
    of: int

    @property
    def share(self) -> float:
        """Share of the whole job that is done, parts taken for alike."""
        return (self.number - 1 + self.done / max(1, self.total)) / self.of


class Ticker(Protocol):
    """Report progress of one job."""

    def __call__(self, done: int, total: int, note: str = "", *, part: Part | None = None) -> None:
        """Say that `done` of `total` steps are done, and how far the part being worked on is."""


@contextmanager
def progress_bar(title: str, unit: str, *, quiet: bool = False, parts: str = "") -> Iterator[Ticker]:
    """Show progress on stderr while the block runs.

    Args:
        title: the job.
        unit: of its steps.
        quiet: show nothing.
        parts: what its parts are called, where it has any ("slides"); on a terminal each then has a bar of its own.
    """
    if quiet:
        yield _silent
    elif _format == "json":
        yield _JsonTicker(title, unit)
    elif sys.stderr.isatty():
        with _rich_progress() as bars:
            yield _PartTicker(bars, title, unit, parts) if parts else _BarTicker(bars, title, unit)
    else:
        yield _PlainTicker(title, unit)


def _silent(done: int, total: int, note: str = "", *, part: Part | None = None) -> None:
    """Show nothing."""


class _RateColumn(ProgressColumn):
    """Steps a second, lately."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.1f}/s" if task.speed < 10 else f"{task.speed:,.0f}/s")


class _NoteColumn(ProgressColumn):
    """What gives way, with the bar, where the terminal is narrow."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")


def _whole() -> Column:
    """Return a column that is never cut: half of a number is worse than none."""
    return Column(no_wrap=True)


def _rich_progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(table_column=_whole()),
        TextColumn("{task.fields[unit]}"),
        _RateColumn(table_column=_whole()),
        TimeElapsedColumn(table_column=_whole()),
        TimeRemainingColumn(table_column=_whole()),
        _NoteColumn(),
        console=Console(stderr=True),
    )


class _BarTicker:
    """One bar."""

    def __init__(self, bars: Progress, title: str, unit: str) -> None:
        self._bars = bars
        self._task = bars.add_task(title, total=None, unit=unit, note="")

    def __call__(self, done: int, total: int, note: str = "", *, part: Part | None = None) -> None:
        self._bars.update(self._task, completed=done, total=total, note=visible(note))


class _PartTicker:
    """A bar for the whole job, counted in parts, with the time left; below it a bar for the part being worked on."""

    def __init__(self, bars: Progress, title: str, unit: str, parts: str) -> None:
        self._bars = bars
        self._unit = unit
        self._whole = bars.add_task(title, total=None, unit=parts, note="")
        self._part_name, self._part_task = "", self._whole

    def __call__(self, done: int, total: int, note: str = "", *, part: Part | None = None) -> None:
        if part is None:
            return
        if part.name != self._part_name:
            if self._part_task != self._whole:
                self._bars.remove_task(self._part_task)
            self._part_task = self._bars.add_task(visible(part.name), total=part.total, unit=self._unit, note="")
            self._part_name = part.name
        self._bars.update(self._part_task, completed=part.done, total=part.total)
        self._bars.update(self._whole, completed=part.number - 1 + (part.done >= part.total), total=part.of)


class _LineTicker(ABC):
    """One line now and then, with the rate and the time left, for logs."""

    def __init__(self, title: str, unit: str) -> None:
        self._title, self._unit = title, unit
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int, note: str = "", *, part: Part | None = None) -> None:
        now = time.monotonic()
        share = part.share if part is not None else done / max(1, total)
        if now - self._last < PLAIN_INTERVAL_S and share < 1:
            return
        self._last = now
        elapsed = max(now - self._start, 1e-9)
        self._write(done, total, done / elapsed, elapsed * (1 - share) / share if share else 0.0, note, part)

    @abstractmethod
    def _write(self, done: int, total: int, rate: float, left_s: float, note: str, part: Part | None) -> None:
        """Write the line."""


def _duration(seconds: float) -> str:
    """Return a time as a person says it."""
    for limit, length, unit in ((180, 1, "s"), (180 * 60, 60, "min"), (72 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds / 86400:,.0f} days"


class _PlainTicker(_LineTicker):
    def _write(self, done: int, total: int, rate: float, left_s: float, note: str, part: Part | None) -> None:
        # of several parts only those that were begun have told how much they are
        count = f"{done}/{total}" if part is None or part.of == 1 else f"{done}"
        rate_text = f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:.2g}"
        say(f"{self._title}: {count} {self._unit}, {rate_text}/s, {_duration(left_s)} left {note}".rstrip())


class _JsonTicker(_LineTicker):
    def _write(self, done: int, total: int, rate: float, left_s: float, note: str, part: Part | None) -> None:
        values: dict[str, Any] = {"job": self._title, "unit": self._unit, "done": done, "total": total}
        values |= {"rate_per_s": round(rate, 2), "left_s": round(left_s, 1), "note": visible(note)}
        if part is not None:
            values["part"] = part._asdict()
        click.echo(_event("progress", **values), err=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout; plain tab-separated lines when stdout is not a terminal."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            click.echo("\t".join(map(visible, row)))
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(visible(cell).replace("[", "\\[") for cell in row))
    Console().print(table)

"""What a person sees: progress on stderr (bars on a terminal, plain lines elsewhere), results as tables on stdout."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["Ticker", "print_table", "progress_bar", "say"]

PLAIN_INTERVAL_S = 5.0


class Ticker(Protocol):
    """Report progress of one job."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` steps are done."""


def say(message: str) -> None:
    """Write one line for a person to stderr."""
    click.echo(message, err=True)


@contextmanager
def progress_bar(title: str, unit: str, *, quiet: bool = False) -> Iterator[Ticker]:
    """Show progress on stderr while the block runs."""
    if quiet:
        yield _silent
    elif sys.stderr.isatty():
        with _rich_progress(unit) as bar:
            task = bar.add_task(title, total=None, note="")

            def tick(done: int, total: int, note: str = "") -> None:
                bar.update(task, completed=done, total=total, note=note)

            yield tick
    else:
        yield _PlainTicker(title, unit)


def _silent(done: int, total: int, note: str = "") -> None:
    """Show nothing."""


def _rich_progress(unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class _PlainTicker:
    """One line now and then, with the rate and the time left, for logs."""

    def __init__(self, title: str, unit: str) -> None:
        self._title, self._unit = title, unit
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self._last < PLAIN_INTERVAL_S and done < total:
            return
        self._last = now
        rate = done / max(now - self._start, 1e-9)
        left = (total - done) / rate if rate else 0.0
        say(f"{self._title}: {done}/{total} {self._unit}, {rate:,.0f}/s, {left:,.0f} s left {note}".rstrip())


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout; plain tab-separated lines when stdout is not a terminal."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            click.echo("\t".join(row))
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    Console().print(table)

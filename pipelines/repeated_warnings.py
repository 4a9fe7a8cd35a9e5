"""Warnings that a command would give several times, of every slide or in every step."""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator

import click

__all__ = ["each_warning_once", "first_of_each_warning"]


@contextlib.contextmanager
def first_of_each_warning() -> Iterator[None]:
    """Of warnings that differ in their values alone let the first pass, and count the others; with -v all pass."""
    context = click.get_current_context(silent=True)
    if context is not None and context.find_root().params.get("verbose"):
        yield
        return
    seen: Counter[tuple[str, str]] = Counter()

    def is_first(record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        kind = record.name, str(record.msg)
        seen[kind] += 1
        return seen[kind] == 1

    try:
        with _letting_pass(is_first):
            yield
    finally:
        for (name, _), count in seen.items():
            if count > 1:
                logging.getLogger(name).warning("%d more warnings of this kind; -v shows them", count - 1)


@contextlib.contextmanager
def each_warning_once() -> Iterator[None]:
    """Drop warnings that were given already: measurements of the same tiles all warn of the same labels and folds."""
    seen: set[tuple[str, str]] = set()

    def is_new(record: logging.LogRecord) -> bool:
        said = record.name, record.getMessage()
        if record.levelno != logging.WARNING or said not in seen:
            seen.add(said)
            return True
        return False

    with _letting_pass(is_new):
        yield


@contextlib.contextmanager
def _letting_pass(chosen: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Show no other records than the chosen ones."""
    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(chosen)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(chosen)

"""The summary of a batch of slides: one outcome a slide, in memory and as a CSV file beside the stores."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from simtriplet.wsi.disk_room import why_not_written
from simtriplet.wsi.errors import SettingsError, StoreError
from simtriplet.wsi.tiling import TilingSummary
from simtriplet.wsi.whole_file import rewrite_whole

__all__ = ["Outcome", "SummaryRow", "begin_summary", "read_summary", "write_summary"]

SUMMARY_COLUMNS = ("slide_id", "status", "tiles", "labelled", "mpp", "reader", "seconds", "megabytes", "reason")
SummaryRow = dict[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one slide: a summary, or the reason of its failure, and whether that is a store made otherwise."""

    slide_id: str
    summary: TilingSummary | None
    reason: str = ""
    is_mismatch: bool = False

    @property
    def status(self) -> str:
        """One of ok, skipped and failed."""
        return self.summary.status if self.summary is not None else "failed"


def begin_summary(path: Path, slide_ids: Sequence[str]) -> None:
    """Take the lines of slides that are to be tiled out of an earlier run's summary: after a kill they tell what was not reached.

    Raises:
        StoreError: if the disk is full or fails; the summary of before stays.
    """
    if path.exists():
        _merge(path, dict.fromkeys(slide_ids))


def write_summary(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the lines of a run's slides into the summary, a CSV file with a row a slide, in one step.

    The lines of other slides stay: an earlier run's, and those of a run that shares the folder at the same time.

    Args:
        path: the file.
        outcomes: of this run.

    Raises:
        StoreError: if the disk is full or fails; the summary of before stays.
    """
    _merge(path, {outcome.slide_id: _row(outcome) for outcome in outcomes})


def _merge(path: Path, changes: Mapping[str, SummaryRow | None]) -> None:
    """Put rows in the places of those of the same slides; None takes a row out."""
    n_bytes = 0

    def merged() -> bytes:
        nonlocal n_bytes
        try:
            rows: dict[str, SummaryRow | None] = {**read_summary(path)}
        except SettingsError:  # none yet, or one that tells nothing any more
            rows = {}
        rows |= changes
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, SUMMARY_COLUMNS)
        writer.writeheader()
        writer.writerows(row for _, row in sorted(rows.items()) if row is not None)
        data = text.getvalue().encode()
        n_bytes = len(data)
        return data

    try:
        rewrite_whole(path, merged)
    except OSError as error:
        why = why_not_written(error, path.parent, needed=n_bytes)
        raise StoreError(f"summary '{path}': cannot be written ({why}); free space, or choose another --out") from error


def read_summary(path: Path) -> dict[str, SummaryRow]:
    """Read the summary of an earlier run, by slide id.

    Raises:
        SettingsError: if there is none, or it is no such file.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            rows = {row["slide_id"]: {name: row[name] or "" for name in SUMMARY_COLUMNS} for row in reader}
    except FileNotFoundError as error:
        raise SettingsError(f"summary '{path}': does not exist; tile without --retry-failed first") from error
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise SettingsError(
            f"summary '{path}': cannot be read ({error}); tile with --existing skip instead of --retry-failed"
        ) from error
    return rows


def _row(outcome: Outcome) -> SummaryRow:
    summary = outcome.summary
    if summary is None:
        values = [outcome.slide_id, "failed", "", "", "", "", "", "", outcome.reason]
    else:
        values = [
            summary.slide_id,
            summary.status,
            str(summary.n_tiles),
            str(summary.n_labelled),
            f"{summary.mpp:.6g}",
            summary.reader,
            f"{summary.seconds:.2f}",
            f"{summary.n_bytes / 1e6:.1f}",
            "",
        ]
    return dict(zip(SUMMARY_COLUMNS, values, strict=True))

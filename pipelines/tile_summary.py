"""The summary of a batch of slides: one outcome a slide, in memory and as a CSV file beside the stores."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from simtriplet.wsi.disk_room import why_not_written
from simtriplet.wsi.errors import SettingsError, StoreError
from simtriplet.wsi.tiling import TilingSummary
from simtriplet.wsi.whole_file import write_whole

__all__ = ["Outcome", "SummaryRow", "read_summary", "write_summary"]

SUMMARY_COLUMNS = ("slide_id", "status", "tiles", "labelled", "mpp", "reader", "seconds", "megabytes", "reason")
SummaryRow = dict[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one slide: a summary, or the reason of its failure."""

    slide_id: str
    summary: TilingSummary | None
    reason: str = ""

    @property
    def status(self) -> str:
        """One of ok, skipped and failed."""
        return self.summary.status if self.summary is not None else "failed"


def write_summary(path: Path, outcomes: Sequence[Outcome], *, others: Mapping[str, SummaryRow] | None = None) -> None:
    """Write the run summary as CSV, one row a slide, atomically.

    Args:
        path: the file.
        outcomes: of this run.
        others: rows of an earlier run by slide id, for the slides that this one does not touch.

    Raises:
        StoreError: if the disk is full or fails; the summary of before stays.
    """
    rows = {**(others or {}), **{outcome.slide_id: _row(outcome) for outcome in outcomes}}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, SUMMARY_COLUMNS)
    writer.writeheader()
    writer.writerows(rows[slide_id] for slide_id in sorted(rows))
    data = text.getvalue().encode()
    try:
        write_whole(path, data)
    except OSError as error:
        why = why_not_written(error, path.parent, needed=len(data))
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

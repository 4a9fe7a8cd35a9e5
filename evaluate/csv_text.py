"""Tables as CSV in which no name is a formula: spreadsheets compute cells that begin like one, whoever wrote them."""

import csv
import io
from collections.abc import Iterable, Sequence

from simtriplet.wsi.csv_cells import without_formula

__all__ = ["csv_text", "without_formula"]


def csv_text(rows: Iterable[Sequence[object]], *, line_end: str = "\n") -> str:
    """Return rows as CSV; a text that a spreadsheet would compute gets an apostrophe before it."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end).writerows([without_formula(cell) for cell in row] for row in rows)
    return text.getvalue()

"""An HTML table whose cells have several lines: a number, below it its interval, its p-value, and what must be known of it."""

import itertools
from collections.abc import Iterable, Sequence

from simtriplet.evaluate.html_page import escape

__all__ = ["Cell", "lines_table"]

Cell = Sequence[str]
"""Lines, the number first."""


def lines_table(
    header: Sequence[Cell], rows: Iterable[Sequence[Cell]], *, tags: Sequence[str] = (), swatches: Sequence[str] = ()
) -> str:
    """Return a table that scrolls sideways where the window is too narrow.

    Args:
        header: column titles.
        rows: as many cells each.
        tags: lines that are shown as a label of their own.
        swatches: per row a colour, `#rrggbb`, to show before its first cell; or none at all.
    """
    head = "".join(f"<th>{'<br>'.join(map(escape, title))}</th>" for title in header)
    body = ""
    for row, colour in itertools.zip_longest(rows, swatches):
        key = f'<i class="key" style="background:{escape(colour)}"></i>' if colour else ""
        body += f"<tr><td>{key}{escape(' '.join(row[0]))}</td>"
        body += "".join(f"<td>{_lines(cell, tags)}</td>" for cell in row[1:]) + "</tr>"
    return f'<div class="scroll"><table class="lines"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _lines(cell: Cell, tags: Sequence[str]) -> str:
    shown = []
    for number, line in enumerate(cell):
        text = escape(line)
        if line in tags:
            shown.append(f'<div><span class="tag">{text}</span></div>')
        elif number:
            shown.append(f'<div class="small quiet">{text}</div>')
        else:
            shown.append(f"<div>{text}</div>")
    return "".join(shown)

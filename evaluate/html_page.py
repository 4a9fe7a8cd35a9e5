"""The few HTML pieces a report is made of; every text that enters them is escaped here."""

import base64
import itertools
from collections.abc import Iterable, Sequence
from html import escape as escape_signs

from simtriplet.evaluate.report_style import CSS
from simtriplet.evaluate.visible_text import visible

__all__ = ["escape", "figure", "page", "pairs", "paragraph", "section", "table"]


def escape(text: str) -> str:
    """Return a text for an element or a quoted attribute: no sign of it is markup, none reorders the text around it."""
    return escape_signs(visible(text))


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole document that loads nothing: its policy forbids scripts and any address but inlined pictures."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def section(heading: str, *parts: str, kind: str = "") -> str:
    """Return a section with HTML parts under a heading given as text."""
    shown = f' class="{escape(kind)}"' if kind else ""
    return f"<section{shown}><h2>{escape(heading)}</h2>{''.join(parts)}</section>"


def paragraph(text: str, *, kind: str = "") -> str:
    """Return a paragraph of text."""
    shown = f' class="{escape(kind)}"' if kind else ""
    return f"<p{shown}>{escape(text)}</p>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, swatches: Sequence[str] = ()) -> str:
    """Return a table of texts that scrolls sideways where the window is too narrow.

    Args:
        header: column titles.
        rows: as many texts each.
        swatches: per row a colour, `#rrggbb`, to show before its first text; or none at all.
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    keys = [f'<i class="key" style="background:{escape(colour)}"></i>' for colour in swatches]
    body = ""
    for row, key in itertools.zip_longest(rows, keys, fillvalue=""):
        body += f"<tr><td>{key}" + "</td><td>".join(map(escape, row)) + "</td></tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Return names and values as a two-column table."""
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="pairs"><tbody>{body}</tbody></table>'


def figure(png: bytes, caption: str, *, alt: str | None = None, kind: str = "") -> str:
    """Return a picture, inlined, with its caption.

    Args:
        png: the picture.
        caption: shown below it.
        alt: what a screen reader says instead of the picture; the caption where not given.
        kind: a class of the style sheet.
    """
    data = base64.b64encode(png).decode("ascii")
    shown = f' class="{escape(kind)}"' if kind else ""
    picture = f'<img alt="{escape(alt or caption)}" src="data:image/png;base64,{data}">'
    return f"<figure{shown}>{picture}<figcaption>{escape(caption)}</figcaption></figure>"

"""Make and render matplotlib figures without pyplot: no global state, no display, safe in threads."""

import io
import warnings
from collections.abc import Iterable

from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

__all__ = ["DPI", "SOFTWARE", "make_figure", "plain_text", "render_png", "shorten"]

DPI = 100
SOFTWARE = "SimTriplet"
"""What a PNG says that drew it, by which predict knows its own pictures."""


def make_figure(width_px: float, height_px: float) -> Figure:
    """Return a white figure of this size in pixels."""
    return Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, facecolor="white")


def render_png(figure: Figure, *, few_colours: bool = False) -> bytes:
    """Return the figure as PNG.

    Args:
        figure: what to draw.
        few_colours: keep 256 colours, which makes stained tissue a third of the size without a visible difference;
            not for pictures with a legend, as a colour that covers little is lost.
    """
    plain_text(figure.findobj(Text))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # names in any script; drawn as boxes
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": SOFTWARE})
    if not few_colours:
        return buffer.getvalue()
    smaller = io.BytesIO()
    picture = Image.open(buffer).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(smaller, format="png", optimize=True)
    return smaller.getvalue()


def plain_text(texts: Iterable[Text]) -> None:
    """Draw texts letter by letter: class names may hold `$`, which matplotlib would read as mathematics."""
    for text in texts:
        text.set_parse_math(False)


def shorten(name: str, longest: int = 28) -> str:
    """Return a name of at most `longest` letters, without line breaks; its end stays, where grades and versions differ."""
    flat = " ".join(name.split())
    if len(flat) <= longest:
        return flat
    tail = (longest - 1) // 2
    return f"{flat[: longest - 1 - tail]}…{flat[-tail:]}"

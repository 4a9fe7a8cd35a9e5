"""Colours of classes and of the lines of a chart, for colour-blind readers too."""

from simtriplet.wsi.class_colours import class_colours

__all__ = ["class_colours", "series_colours"]

_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#595959")
"""Of the class colours those that show as a line on white, the most different ones first."""


def series_colours(count: int) -> list[str]:
    """Return one colour, `#rrggbb`, per line of a chart; they repeat after seven."""
    return [_SERIES[number % len(_SERIES)] for number in range(count)]

"""Charts of several encoders: scores with intervals, and curves over the number of labels."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from simtriplet.evaluate.bootstrap import Interval
from simtriplet.evaluate.figure import make_figure, render_png, shorten
from simtriplet.evaluate.label_curve import CurvePoint

__all__ = ["Series", "draw_label_curves", "draw_scores"]

_INK, _GRID = "#22303c", "#d5dbe1"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_FONT = 11


class Series(NamedTuple):
    """One encoder in a chart.

    Attributes:
        title: in the legend.
        colour: `#rrggbb`, the same in every chart.
        number: the encoder's place, which gives the marker.
    """

    title: str
    colour: str
    number: int

    @property
    def marker(self) -> str:
        """Tells encoders apart without colour; where colours repeat, the marker is another one."""
        return _MARKERS[(self.number + self.number // len(_MARKERS)) % len(_MARKERS)]


def draw_scores(
    scores: Sequence[tuple[Series, Interval]], *, axis_title: str, baseline: tuple[float, str] | None = None
) -> bytes:
    """Draw a point and a 95 % interval per encoder, as PNG.

    Args:
        scores: from top to bottom.
        axis_title: what is measured, and its unit.
        baseline: a value to mark with a dotted line, and what it is, such as chance.
    """
    names = [shorten(series.title, 22) for series, _ in scores]
    left, bottom, top, row = 34 + 8.8 * max(map(len, names)), 56, 26, 40
    width, height = left + 380, bottom + top + row * len(scores)
    figure = make_figure(width, height)
    axes = figure.add_axes((left / width, bottom / height, 350 / width, row * len(scores) / height))
    for place, (series, interval) in enumerate(scores):
        if interval.low is not None and interval.high is not None:
            axes.plot([interval.low, interval.high], [place, place], color=series.colour, linewidth=5, alpha=0.35)
        axes.plot([interval.value], [place], marker=series.marker, color=series.colour, markersize=9)
    if baseline is not None:
        axes.axvline(baseline[0], color=_INK, linestyle=":", linewidth=1.4)
        axes.text(baseline[0], -0.62, baseline[1], ha="center", va="bottom", fontsize=10, color=_INK)
    axes.set_yticks(range(len(scores)), names)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xlabel(axis_title, fontsize=_FONT, color=_INK)
    _finish(axes, grid="x")
    return render_png(figure)


def draw_label_curves(
    curves: Sequence[tuple[Series, Sequence[CurvePoint]]],
    *,
    metric: str,
    x_title: str,
    y_title: str,
    tick_text: Callable[[float], str],
    chance: float | None = None,
) -> bytes:
    """Draw a line with its 95 % band per encoder over the amount of labels, as PNG.

    Args:
        curves: points by rising amount.
        metric: name of the interval drawn.
        x_title: what amounts are, with their unit; the axis is logarithmic.
        y_title: what is measured, with its unit.
        tick_text: how an amount is written under the axis.
        chance: value to mark with a dotted line.
    """
    rows = len(curves) + (chance is not None)
    plot, left, bottom, top = (430, 300), 74, 56, 14
    legend = 22 * ((rows + 1) // 2) + 10
    width, height = left + plot[0] + 18, top + plot[1] + bottom + legend
    figure = make_figure(width, height)
    axes = figure.add_axes((left / width, (bottom + legend) / height, plot[0] / width, plot[1] / height))
    for series, points in curves:
        _draw_curve(axes, series, points, metric)
    if chance is not None:
        axes.axhline(chance, color=_INK, linestyle=":", linewidth=1.4, label="chance")
    amounts = sorted({point.amount for _, points in curves for point in points})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(amounts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda amount, _: tick_text(amount)))
    axes.set_xlabel(x_title, fontsize=_FONT, color=_INK)
    axes.set_ylabel(y_title, fontsize=_FONT, color=_INK)
    _finish(axes, grid="y")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.45, -bottom / plot[1]), ncols=2, frameon=False, fontsize=10.5,
        borderaxespad=0,
    )  # fmt: skip
    return render_png(figure)


def _draw_curve(axes: Axes, series: Series, points: Sequence[CurvePoint], metric: str) -> None:
    amounts = [point.amount for point in points]
    intervals = [point.intervals[metric] for point in points]
    axes.plot(
        amounts, [one.value for one in intervals], color=series.colour, marker=series.marker, linewidth=2.2,
        markersize=7, label=shorten(series.title, 22),
    )  # fmt: skip
    banded = [
        (x, one.low, one.high)
        for x, one in zip(amounts, intervals, strict=True)
        if one.low is not None and one.high is not None
    ]
    if banded:
        x, low, high = map(list, zip(*banded, strict=True))
        axes.fill_between(x, low, high, color=series.colour, alpha=0.15, linewidth=0)


def _finish(axes: Axes, *, grid: str) -> None:
    axes.tick_params(labelsize=10.5, colors=_INK)
    axes.tick_params(axis="y" if grid == "x" else "x", length=0)
    axes.grid(axis="x" if grid == "x" else "y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if grid == "x":
        axes.spines["left"].set_visible(False)

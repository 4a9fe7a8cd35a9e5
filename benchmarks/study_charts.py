"""The charts of the study, as PNG."""

from collections.abc import Sequence
from typing import Any

from simtriplet.evaluate.figure import make_figure, render_png
from simtriplet.evaluate.palette import series_colours

_INK = "#22303c"
_MARKERS = "osD^vPX"
_BAR_POINTS = 10
"""Bars that reach farther beyond all points are cut off, so that one of few patients does not flatten the others."""


def draw_label_curves(table: dict[str, Any], metric: str) -> bytes:
    """Draw every encoder's metric over the share of labels, with bands of 95 % over patients; the legend from best to worst."""
    figure = make_figure(860, 420)
    axes = figure.add_axes((0.08, 0.14, 0.62, 0.82))
    curves = list(table["curves"].values())
    for place, (colour, curve) in enumerate(zip(series_colours(len(curves)), curves, strict=True)):
        x = [100 * point["share"] for point in curve["points"]]
        middle, low, high = ([point[metric][key] for point in curve["points"]] for key in ("value", "low", "high"))
        axes.plot(x, middle, color=colour, marker=_MARKERS[place % len(_MARKERS)], label=curve["title"])
        axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks([1, 10, 25, 100], ["1", "10", "25", "100"])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("share of the labels learnt from, per cent", color=_INK)
    axes.set_ylabel(metric.replace("_", " "), color=_INK)
    axes.grid(axis="y", color="#d5dbe1", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    best_first = sorted(range(len(curves)), key=lambda place: -curves[place]["points"][-1][metric]["value"])
    axes.legend(
        [handles[place] for place in best_first],
        [names[place] for place in best_first],
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
    )
    return render_png(figure)


def draw_purity(rows: Sequence[dict[str, Any]]) -> bytes:
    """Draw the gain from the neighbour over the purity of the pairs, each kind of objective in its colour and marker."""
    figure = make_figure(860, 460)
    axes = figure.add_axes((0.08, 0.12, 0.8, 0.6))
    families = sorted({row["family"] for row in rows})
    for place, (colour, family) in enumerate(zip(series_colours(len(families)), families, strict=True)):
        points = sorted((row for row in rows if row["family"] == family), key=lambda row: row["purity"])
        x = [row["purity"] + 0.003 * (place - (len(families) - 1) / 2) for row in points]  # bars side by side
        gains = [[100 * row["gain"]["1"][key] for key in ("difference", "low", "high")] for row in points]
        middle = [gain[0] for gain in gains]
        around = [[gain[0] - gain[1] for gain in gains], [gain[2] - gain[0] for gain in gains]]
        axes.errorbar(x, middle, yerr=around, color=colour, marker=_MARKERS[place], capsize=3, label=family)
    by_pairing = sorted({row["pairing"]: row for row in rows}.values(), key=lambda row: row["purity"])
    for place, row in enumerate(by_pairing):  # one below the other, as purities lie close together
        title = f"{row['tile_um']:.0f} um, {row['title']}"
        height, last = 1.32 - 0.075 * place, place == len(by_pairing) - 1 and place > 0
        above, side = axes.get_xaxis_transform(), "right" if last else "left"
        axes.text(row["purity"], height, title, transform=above, ha=side, fontsize=9, color=_INK)
        line = {"color": "#d5dbe1", "linewidth": 0.8, "zorder": 0, "clip_on": False}
        axes.plot([row["purity"]] * 2, [0, height], transform=above, **line)
    middles = [100 * row["gain"]["1"]["difference"] for row in rows]
    axes.set_ylim(min(middles) - _BAR_POINTS, max(middles) + _BAR_POINTS)
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.margins(x=0.12)
    axes.set_xlabel("share of neighbour pairs of one class", color=_INK)
    axes.set_ylabel("gain, points of balanced accuracy", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best", title="triplet minus two views, 100 % of the labels")
    return render_png(figure)

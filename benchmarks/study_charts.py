"""The charts of the study, as PNG."""

from collections.abc import Sequence
from typing import Any

from simtriplet.evaluate.figure import make_figure, render_png
from simtriplet.evaluate.palette import series_colours

_INK = "#22303c"


def draw_label_curves(table: dict[str, Any], metric: str) -> bytes:
    """Draw every encoder's metric over the share of labels, with bands of 95 % over patients."""
    figure = make_figure(760, 420)
    axes = figure.add_axes((0.1, 0.14, 0.87, 0.82))
    curves = table["curves"].values()
    for colour, curve in zip(series_colours(len(curves)), curves, strict=True):
        x = [100 * point["share"] for point in curve["points"]]
        middle, low, high = ([point[metric][key] for point in curve["points"]] for key in ("value", "low", "high"))
        axes.plot(x, middle, color=colour, marker="o", label=curve["title"])
        axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks([1, 10, 25, 100], ["1", "10", "25", "100"])
    axes.set_xlabel("share of the labels learnt from, per cent", color=_INK)
    axes.set_ylabel("balanced accuracy", color=_INK)
    axes.grid(axis="y", color="#d5dbe1", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return render_png(figure)


def draw_purity(rows: Sequence[dict[str, Any]]) -> bytes:
    """Draw the gain from the neighbour over the purity of the pairs, each kind of objective in its colour."""
    figure = make_figure(760, 420)
    axes = figure.add_axes((0.1, 0.14, 0.87, 0.82))
    families = sorted({row["family"] for row in rows})
    for colour, family in zip(series_colours(len(families)), families, strict=True):
        points = sorted((row for row in rows if row["family"] == family), key=lambda row: row["purity"])
        x = [row["purity"] for row in points]
        gains = [[100 * row["gain"]["1"][key] for key in ("difference", "low", "high")] for row in points]
        middle = [gain[0] for gain in gains]
        around = [[gain[0] - gain[1] for gain in gains], [gain[2] - gain[0] for gain in gains]]
        axes.errorbar(x, middle, yerr=around, color=colour, marker="o", capsize=3, label=family)
        for row, place in zip(points, middle, strict=True):
            axes.annotate(f"{row['tile_um']:.0f} um, {row['title']}", (row["purity"], place), fontsize=9, color=_INK)
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.set_xlabel("share of neighbour pairs of one class", color=_INK)
    axes.set_ylabel("triplet minus two views, points of balanced accuracy", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    return render_png(figure)

"""The charts of a report: confusion matrix and loss curve, as PNG."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from simtriplet.evaluate.figure import make_figure, render_png, shorten

__all__ = ["draw_confusion", "draw_loss"]

_BLUE, _INK = "#0072B2", "#22303c"


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> bytes:
    """Draw a (k, k) confusion matrix: colour and percentage by row (recall on the diagonal), tiles below."""
    counts = np.asarray(confusion, dtype=np.int64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [shorten(name, 20) for name in classes]
    side = max(240, 74 * len(names))
    left, bottom = 40 + 8 * max(map(len, names)), 58 + (5 * max(map(len, names)) if len(names) > 2 else 10)
    figure = make_figure(left + side + 20, bottom + side + 20)
    width, height = figure.get_size_inches() * figure.dpi
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    axes.set_xticks(
        range(len(names)), names, rotation=35 if len(names) > 2 else 0, ha="right" if len(names) > 2 else "center"
    )
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted", color=_INK)
    axes.set_ylabel("label", color=_INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _write_cells(axes, counts, shares)
    return render_png(figure)


def _write_cells(axes: Axes, counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> None:
    for row, column in np.ndindex(*counts.shape):
        share = shares[row, column]
        colour = "white" if share > 0.55 else _INK
        axes.text(
            column, row - 0.08, f"{share:.0%}", ha="center", va="center", color=colour, fontsize=13, weight="bold"
        )
        axes.text(column, row + 0.2, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=9)


def draw_loss(steps: npt.NDArray[np.float64], losses: npt.NDArray[np.float64]) -> bytes:
    """Draw (n,) losses over (n,) steps, with their running mean where there are many."""
    figure = make_figure(760, 320)
    axes = figure.add_axes((0.105, 0.16, 0.875, 0.78))
    smooth = len(losses) >= 30
    axes.plot(steps, losses, color=_BLUE, alpha=0.3 if smooth else 1.0, linewidth=1.0 if smooth else 2.0)
    if smooth:
        width = max(3, len(losses) // 30)
        mean = np.convolve(losses, np.full(width, 1 / width), mode="valid")
        axes.plot(steps[width - 1 :], mean, color=_BLUE, linewidth=2.0, label=f"mean of {width} logged steps")
        axes.legend(frameon=False, loc="upper right")
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel("pretraining loss", color=_INK)
    axes.grid(axis="y", color="#d5dbe1", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    return render_png(figure)

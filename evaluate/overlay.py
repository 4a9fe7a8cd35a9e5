"""Pictures of a slide: its thumbnail with the tile grid, with labels, with predictions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from simtriplet.evaluate.figure import make_figure, render_png, shorten
from simtriplet.evaluate.palette import class_colours
from simtriplet.wsi.store import TileStore

__all__ = ["draw_classes", "draw_grid", "nice_length_um", "tile_squares"]

_LONG_SIDE_PX = 900
_MIN_WIDTH_PX = 440
_LEGEND_ROW_PX, _LEGEND_COLUMN_PX = 27, 290
_FONT_SIZE = 13
_FILL_ALPHA = 0.55
_GRID_COLOUR, _PLAIN_COLOUR = "#00406b", "#6b7680"


class _Canvas(NamedTuple):
    figure: Figure
    axes: Axes
    px_per_thumbnail_px: float


def tile_squares(store: TileStore, *, whole: bool) -> npt.NDArray[np.float64]:
    """Return (n, 4, 2) corners of the tiles, thumbnail pixels.

    Args:
        store: the tiles.
        whole: draw tiles in full; else overlapping ones only as large as their stride, so that colours do not pile up.
    """
    per_px = store.mpp / store.base_mpp / store.thumbnail_downsample
    side = (store.size_px if whole else min(store.size_px, store.stride_px)) * per_px
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * side
    return store.centres()[:, None] / store.thumbnail_downsample + corners


def draw_grid(store: TileStore) -> bytes:
    """Draw the thumbnail with the outline of every tile, as PNG."""
    entry = Patch(facecolor="none", edgecolor=_GRID_COLOUR, linewidth=1.2, label=f"tile ({len(store):,})")
    canvas = _make_canvas(store, store.thumbnail(), [entry])
    _add_tiles(canvas, tile_squares(store, whole=True), edge=_GRID_COLOUR)
    return render_png(canvas.figure, few_colours=True)


def draw_classes(
    store: TileStore,
    codes: npt.NDArray[np.int64],
    classes: Sequence[str],
    *,
    labels: npt.NDArray[np.int64] | None = None,
) -> bytes:
    """Draw the thumbnail in grey with the tiles in the colour of their class, as PNG.

    Args:
        store: the tiles.
        codes: (n,) class of each tile; -1 for none, drawn as an outline.
        classes: names in code order.
        labels: (n,) true classes; tiles whose class is another get a cross.
    """
    colours = class_colours(len(classes))
    counts = np.bincount(codes[codes >= 0], minlength=len(classes))
    entries: list[Patch | Line2D] = [
        Patch(facecolor=(*colour, _FILL_ALPHA), edgecolor=colour, label=f"{shorten(name, 18)} ({count:,})")
        for name, colour, count in zip(classes, colours, counts.tolist(), strict=True)
    ]
    wrong = np.zeros(len(codes), bool) if labels is None else (labels >= 0) & (codes >= 0) & (labels != codes)
    if (codes < 0).any():
        entries.append(Patch(facecolor="none", edgecolor=_PLAIN_COLOUR, label=f"no class ({(codes < 0).sum():,})"))
    if labels is not None:
        entries.append(_cross_entry(int(wrong.sum())))
    canvas = _make_canvas(store, _greyed(store.thumbnail()), entries)
    squares = tile_squares(store, whole=False)
    _add_tiles(canvas, squares[codes < 0], edge=_PLAIN_COLOUR)
    for code, colour in enumerate(colours):
        _add_tiles(canvas, squares[codes == code], edge=colour, face=(*colour, _FILL_ALPHA))
    _add_crosses(canvas, squares[wrong])
    return render_png(canvas.figure)


def _cross_entry(count: int) -> Line2D:
    label = f"differs from label ({count:,})"
    return Line2D([], [], linestyle="none", marker="x", color="black", markersize=7, markeredgewidth=1.4, label=label)


def _greyed(thumbnail: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Take colour and contrast out of the tissue, so that class colours are the only ones."""
    grey = thumbnail.mean(axis=2, keepdims=True)
    return np.repeat(grey * 0.65 + 255 * 0.35, 3, axis=2).astype(np.uint8)


def _make_canvas(store: TileStore, picture: npt.NDArray[np.uint8], entries: Sequence[Patch | Line2D]) -> _Canvas:
    height, width = picture.shape[:2]
    scale = _LONG_SIDE_PX / max(width, height)
    figure_width = max(width * scale, _MIN_WIDTH_PX)
    columns = max(1, min(len(entries), int(figure_width // _LEGEND_COLUMN_PX)))
    legend_height = 16 + _LEGEND_ROW_PX * math.ceil(len(entries) / columns)
    figure_height = height * scale + legend_height
    figure = make_figure(figure_width, figure_height)
    share = width * scale / figure_width
    axes = figure.add_axes(((1 - share) / 2, legend_height / figure_height, share, height * scale / figure_height))
    axes.imshow(
        picture, extent=(0, width, height, 0), interpolation="lanczos" if scale < 4 else "nearest", aspect="auto"
    )
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    figure.legend(
        handles=list(entries), loc="lower center", ncols=columns, frameon=False, fontsize=_FONT_SIZE, borderaxespad=0.3
    )
    canvas = _Canvas(figure, axes, scale)
    _add_scale_bar(canvas, width, height, um_per_px=store.base_mpp * store.thumbnail_downsample)
    return canvas


def _add_tiles(
    canvas: _Canvas,
    squares: npt.NDArray[np.float64],
    *,
    edge: str | tuple[float, float, float],
    face: str | tuple[float, ...] = "none",
) -> None:
    if not len(squares):
        return
    line = float(np.clip(_side_px(canvas, squares) * 0.05, 0.25, 1.2))
    canvas.axes.add_collection(
        PolyCollection(list(squares), facecolors=[face], edgecolors=[edge], linewidths=line), autolim=False
    )


def _add_crosses(canvas: _Canvas, squares: npt.NDArray[np.float64]) -> None:
    if len(squares):
        centres = squares.mean(axis=1)
        side = _side_px(canvas, squares) * 0.35
        canvas.axes.scatter(
            centres[:, 0],
            centres[:, 1],
            marker="x",
            color="black",
            s=side**2,
            linewidths=float(np.clip(side / 8, 0.5, 1.8)),
        )


def _side_px(canvas: _Canvas, squares: npt.NDArray[np.float64]) -> float:
    """Side of a tile in points of the figure, 72 to the inch, as line widths are."""
    return float(squares[0, 1, 0] - squares[0, 0, 0]) * canvas.px_per_thumbnail_px * 72 / canvas.figure.dpi


def nice_length_um(longest_um: float) -> float:
    """Return the longest of 1, 2, 5 x 10^k micrometres that is not above `longest_um`."""
    power = 10.0 ** math.floor(math.log10(longest_um))
    return next(step * power for step in (5, 2, 1) if step * power <= longest_um * (1 + 1e-9))


def _add_scale_bar(canvas: _Canvas, width: int, height: int, *, um_per_px: float) -> None:
    """Draw a bar of at most a quarter of the width into the lower left corner, on a light ground."""
    length_um = nice_length_um(width * um_per_px / 4)
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    px = 1 / canvas.px_per_thumbnail_px  # one figure pixel in thumbnail pixels
    length = length_um / um_per_px
    ground_size = max(length, 76 * px) + 20 * px, 44 * px
    ground = Rectangle((8 * px, height - 52 * px), *ground_size, facecolor="white", alpha=0.85, zorder=5)
    bar = Rectangle((18 * px, height - 19 * px), length, 5 * px, facecolor="black", zorder=6)
    canvas.axes.add_patch(ground)
    canvas.axes.add_patch(bar)
    where = 18 * px, height - 23 * px
    canvas.axes.text(*where, text, fontsize=_FONT_SIZE, color="black", zorder=6, va="bottom", ha="left")

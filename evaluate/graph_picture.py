"""The thumbnail of a slide with its neighbour graph drawn on it."""

import math

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from simtriplet.evaluate.figure import make_figure, render_png
from simtriplet.evaluate.overlay import nice_length_um
from simtriplet.wsi.index_reader import read_index
from simtriplet.wsi.neighbour_graph import NeighbourGraph
from simtriplet.wsi.store import SPATIAL, TileStore

__all__ = ["draw_graph"]

_LONG_SIDE_PX, _MIN_WIDTH_PX = 1100, 560
_LEGEND_ROW_PX, _LEGEND_COLUMN_PX = 27, 290
_FONT_SIZE = 13
_MAX_DRAWN = 150_000
_PAIR, _OTHER_LABEL, _ALONE = "#0072B2", "#D55E00", "#CC79A7"
_DETAIL_TILES = 24
_DETAIL_FROM = 4 * _DETAIL_TILES**2


def draw_graph(store: TileStore, name: str = SPATIAL, *, seed: int = 0) -> bytes:
    """Draw every pair as a line between its centres, tiles without a neighbour as rings, as PNG.

    Pairs whose labels differ have a colour of their own. Above 150,000 pairs a random part of them is drawn, which the
    legend says. Of a slide of many tiles, the square with the most tiles at a border is shown again, larger.

    Args:
        store: the tiles.
        name: of the index.
        seed: of the part that is drawn.

    Raises:
        NeighbourError: if there is no such index.
    """
    graph = read_index(store, name)
    centres = store.centres() / store.thumbnail_downsample
    pairs = _drawn_pairs(graph, seed)
    differ = _differ(store, pairs)
    height, width = store.thumbnail().shape[:2]
    whole = (0.0, 0.0, float(width), float(height))
    views = [whole]
    if len(store) >= _DETAIL_FROM:
        views.append(_detail(store, graph, centres, width, height))
    entries = _entries(graph, pairs, differ)
    figure, panels = _lay_out(views, entries)
    um_per_px = store.base_mpp * store.thumbnail_downsample
    for axes, view in zip(panels, views, strict=True):
        _draw_view(axes, store, view, um_per_px)
        _draw_pairs(axes, centres, pairs, differ, spacing_px=_spacing(store) * _scale(axes, view))
        _draw_alone(axes, centres[graph.degrees == 0], side_px=_spacing(store) * _scale(axes, view))
    if len(views) > 1:
        left, top, right, bottom = views[1]
        panels[0].add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="black", linewidth=1.6)
        )
    return render_png(figure)


def _drawn_pairs(graph: NeighbourGraph, seed: int) -> npt.NDArray[np.int64]:
    """Return (k, 2) pairs, each once, at most 150,000 of them."""
    entries = np.arange(len(graph.indices))
    if graph.n_pairs > _MAX_DRAWN:
        drawn = np.random.default_rng(seed).choice(len(graph.indices), 2 * _MAX_DRAWN, replace=False)
        entries = np.sort(drawn)
    anchors = np.searchsorted(graph.indptr, entries, side="right") - 1
    others = graph.indices[entries].astype(np.int64)
    once = anchors < others
    return np.column_stack([anchors[once], others[once]])


def _differ(store: TileStore, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
    labels = store.labels()
    if labels is None:
        return None
    a, b = np.asarray(labels.codes)[pairs].T
    return np.asarray((a >= 0) & (b >= 0) & (a != b))


def _entries(graph: NeighbourGraph, pairs: npt.NDArray[np.int64], differ: npt.NDArray[np.bool_] | None) -> list[Line2D]:
    n_other = 0 if differ is None else int(differ.sum())
    part = f" of {graph.n_pairs:,}" if len(pairs) < graph.n_pairs else ""
    said = "pairs" if differ is None else "pairs of one label, or without"
    entries = [Line2D([], [], color=_PAIR, linewidth=2, label=f"{said} ({len(pairs) - n_other:,}{part})")]
    if differ is not None:
        entries.append(
            Line2D([], [], color=_OTHER_LABEL, linewidth=2, label=f"pairs of two labels ({n_other:,}{part})")
        )
    n_alone = int((graph.degrees == 0).sum())
    entries.append(_ring_entry(f"tiles without neighbours ({n_alone:,})"))
    return entries


def _ring_entry(label: str) -> Line2D:
    return Line2D(
        [],
        [],
        linestyle="none",
        marker="o",
        markersize=8,
        markerfacecolor="none",
        color=_ALONE,
        markeredgewidth=2,
        label=label,
    )


def _detail(
    store: TileStore, graph: NeighbourGraph, centres: npt.NDArray[np.float64], width: int, height: int
) -> tuple[float, float, float, float]:
    """Return the square of 24 x 24 tiles with the most tiles of an incomplete neighbourhood, thumbnail pixels."""
    side = min(_DETAIL_TILES * _spacing(store), width, height)
    incomplete = graph.degrees < np.quantile(graph.degrees, 0.9)
    cells = np.floor(centres / side).astype(np.int64)
    _, place = np.unique(cells, axis=0, return_inverse=True)
    sums = np.bincount(place.ravel(), weights=incomplete)
    x, y = centres[place.ravel() == sums.argmax()].mean(axis=0)
    left, top = np.clip(x - side / 2, 0, width - side), np.clip(y - side / 2, 0, height - side)
    return float(left), float(top), float(left + side), float(top + side)


def _spacing(store: TileStore) -> float:
    """Lattice pitch, thumbnail pixels."""
    return store.stride_px * store.mpp / store.base_mpp / store.thumbnail_downsample


def _lay_out(views: list[tuple[float, float, float, float]], entries: list[Line2D]) -> tuple[Figure, list[Axes]]:
    """Put the views side by side at one height, the legend below."""
    left, top, right, bottom = views[0]
    scale = _LONG_SIDE_PX / max(right - left, bottom - top)
    height = (bottom - top) * scale
    if len(views) > 1:
        height = max(height, 520.0)
    widths = [(view[2] - view[0]) / (view[3] - view[1]) * height for view in views]
    total = max(sum(widths) + 12 * (len(views) - 1), _MIN_WIDTH_PX)
    columns = max(1, min(len(entries), int(total // _LEGEND_COLUMN_PX)))
    legend = 16 + _LEGEND_ROW_PX * math.ceil(len(entries) / columns)
    figure = make_figure(total, height + legend)
    panels, start = [], (total - sum(widths) - 12 * (len(views) - 1)) / 2
    for panel_width in widths:
        place = (start / total, legend / (height + legend), panel_width / total, height / (height + legend))
        panels.append(figure.add_axes(place))
        start += panel_width + 12
    figure.legend(
        handles=entries, loc="lower center", ncols=columns, frameon=False, fontsize=_FONT_SIZE, borderaxespad=0.3
    )
    return figure, panels


def _scale(axes: Axes, view: tuple[float, float, float, float]) -> float:
    """Figure pixels per thumbnail pixel."""
    figure = axes.get_figure()
    assert figure is not None
    return float(axes.get_position().width * figure.bbox.width / (view[2] - view[0]))


def _draw_view(axes: Axes, store: TileStore, view: tuple[float, float, float, float], um_per_px: float) -> None:
    """Show the thumbnail in pale grey, so that the graph's colours are the only ones, with a scale bar."""
    left, top, right, bottom = view
    thumbnail = store.thumbnail()
    grey = np.repeat(thumbnail.mean(axis=2, keepdims=True) * 0.6 + 255 * 0.4, 3, axis=2).astype(np.uint8)
    height, width = grey.shape[:2]
    axes.imshow(grey, extent=(0, width, height, 0), interpolation="bilinear", aspect="auto")
    axes.set_axis_off()
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    px = 1 / _scale(axes, view)
    length_um = nice_length_um((right - left) * um_per_px / 4)
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    length = length_um / um_per_px
    ground = max(length, 76 * px) + 20 * px, 44 * px
    axes.add_patch(Rectangle((left + 8 * px, bottom - 52 * px), *ground, facecolor="white", alpha=0.85, zorder=5))
    axes.add_patch(Rectangle((left + 18 * px, bottom - 19 * px), length, 5 * px, facecolor="black", zorder=6))
    axes.text(left + 18 * px, bottom - 23 * px, text, fontsize=_FONT_SIZE, zorder=6, va="bottom", ha="left")


def _draw_pairs(
    axes: Axes,
    centres: npt.NDArray[np.float64],
    pairs: npt.NDArray[np.int64],
    differ: npt.NDArray[np.bool_] | None,
    *,
    spacing_px: float,
) -> None:
    line = float(np.clip(spacing_px * 0.07, 0.3, 1.6))
    other = np.zeros(len(pairs), np.bool_) if differ is None else differ
    for chosen, colour, width in ((~other, _PAIR, line), (other, _OTHER_LABEL, line * 1.5)):
        lines = LineCollection(list(centres[pairs[chosen]]), colors=colour, linewidths=width)
        axes.add_collection(lines, autolim=False)


def _draw_alone(axes: Axes, centres: npt.NDArray[np.float64], *, side_px: float) -> None:
    size = float(np.clip(side_px * 0.35, 2, 12))
    axes.plot(
        *centres.T,
        linestyle="none",
        marker="o",
        markersize=size,
        markerfacecolor="none",
        markeredgewidth=max(0.8, size / 6),
        color=_ALONE,
        scalex=False,
        scaley=False,
    )

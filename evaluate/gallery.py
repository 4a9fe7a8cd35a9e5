"""Nearest-neighbour galleries: tiles of some anchors and what an encoder finds most like them in other patients."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from simtriplet.evaluate.figure import make_figure, render_png, shorten
from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.nearest_tiles import NOBODY
from simtriplet.evaluate.palette import class_colours
from simtriplet.wsi.store import TileStore

__all__ = ["describe_gallery", "draw_gallery", "pick_anchors"]

_MAX_ROWS = 8
_TILE_PX, _GAP_PX, _LABEL_PX, _ROW_PX, _HEAD_PX, _LEGEND_PX = 92, 12, 128, 124, 30, 34

_Ints = npt.NDArray[np.int64]


def pick_anchors(tiles: LabelledTiles, tested: _Ints, *, per_class: int = 2, seed: int = 0) -> _Ints:
    """Choose tiles to show neighbours of: some of each class, of different patients as far as there are.

    Args:
        tiles: the labelled tiles.
        tested: (t,) places to choose from.
        per_class: how many of a class; fewer where more than eight would be shown.
        seed: of the choice.

    Returns:
        (a,) places, class by class.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(np.sort(tested))
    per_class = max(1, min(per_class, _MAX_ROWS // max(1, len(tiles.classes))))
    chosen: list[int] = []
    for code in range(len(tiles.classes)):
        mine = shuffled[tiles.codes[shuffled] == code]
        _, first = np.unique(tiles.patients[mine].astype(str), return_index=True)
        others = np.setdiff1d(np.arange(len(mine)), first)
        chosen += mine[np.concatenate([np.sort(first), others])][:per_class].tolist()
    return np.array(chosen[:_MAX_ROWS], dtype=np.int64)


def draw_gallery(stores: Sequence[TileStore], tiles: LabelledTiles, anchors: _Ints, found: _Ints) -> bytes:
    """Draw a row for each anchor: the anchor, then its k nearest tiles, framed in the colour of their class, as PNG.

    The frame of a tile of another class than the anchor's is dashed.

    Args:
        stores: of the tiles.
        tiles: the labelled tiles.
        anchors: (a,) places.
        found: (a, k) places, NOBODY where there is none.
    """
    pictures = _read(stores, tiles, np.concatenate([anchors[:, None], found], axis=1))
    columns, colours = found.shape[1] + 1, class_colours(len(tiles.classes))
    width = _LABEL_PX + columns * (_TILE_PX + _GAP_PX) + 2 * _GAP_PX
    height = _HEAD_PX + len(anchors) * _ROW_PX + _LEGEND_PX
    figure = make_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    _write_head(axes, columns)
    for row, anchor in enumerate(anchors.tolist()):
        top = _HEAD_PX + row * _ROW_PX
        label = f"{shorten(tiles.classes[tiles.codes[anchor]], 16)}\n{shorten(str(tiles.patients[anchor]), 16)}"
        axes.text(_LABEL_PX - 12, top + _TILE_PX / 2, label, ha="right", va="center", fontsize=10)
        for column, place in enumerate([anchor, *found[row].tolist()]):
            if place != NOBODY:
                code = int(tiles.codes[place])
                frame = _Frame(tiles.classes[code], colours[code], dashed=code != tiles.codes[anchor])
                _add_tile(axes, pictures[place], _column_left(column), top, frame)
    _add_legend(axes, tiles.classes, colours)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("auto")
    return render_png(figure)


class _Frame(NamedTuple):
    name: str
    colour: tuple[float, float, float]
    dashed: bool


def _add_tile(axes: Axes, picture: npt.NDArray[np.uint8], left: float, top: float, frame: _Frame) -> None:
    axes.imshow(picture, extent=(left, left + _TILE_PX, top + _TILE_PX, top), interpolation="lanczos")
    for colour, width, style in (("white", 4.5, "-"), (frame.colour, 3.0, "--" if frame.dashed else "-")):
        axes.add_patch(
            Rectangle((left, top), _TILE_PX, _TILE_PX, fill=False, edgecolor=colour, linewidth=width, linestyle=style)
        )
    name = shorten(frame.name, 13)
    axes.text(left + _TILE_PX / 2, top + _TILE_PX + 5, name, ha="center", va="top", fontsize=9)


def describe_gallery(tiles: LabelledTiles, anchors: _Ints, found: _Ints) -> str:
    """Say in words what a gallery shows."""
    there = found != NOBODY
    alike = (tiles.codes[found] == tiles.codes[anchors, None]) & there
    return (
        f"{len(anchors)} tiles and the {found.shape[1]} most similar ones of other patients each: "
        f"{int(alike.sum())} of {int(there.sum())} are of the class of their anchor"
    )


def _column_left(column: int) -> int:
    return _LABEL_PX + column * (_TILE_PX + _GAP_PX) + (_GAP_PX if column else 0)


def _write_head(axes: Axes, columns: int) -> None:
    for column in range(columns):
        text = "anchor" if column == 0 else f"nearest {column}" if column == 1 else str(column)
        axes.text(_column_left(column) + _TILE_PX / 2, _HEAD_PX - 10, text, ha="center", va="bottom", fontsize=10)


def _add_legend(axes: Axes, classes: Sequence[str], colours: Sequence[tuple[float, float, float]]) -> None:
    handles = [
        Patch(fill=False, edgecolor=colour, linewidth=3, label=shorten(name, 16))
        for name, colour in list(zip(classes, colours, strict=True))[:4]
    ]
    handles.append(Patch(fill=False, edgecolor="#22303c", linewidth=2, linestyle="--", label="another class"))
    axes.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=10, borderaxespad=0.2)


def _read(stores: Sequence[TileStore], tiles: LabelledTiles, places: _Ints) -> dict[int, npt.NDArray[np.uint8]]:
    """Read each tile once, store by store."""
    wanted = np.unique(places[places != NOBODY])
    pictures: dict[int, npt.NDArray[np.uint8]] = {}
    for store in stores:
        mine = wanted[tiles.slides[wanted] == store.slide_id]
        if len(mine):
            pictures |= dict(zip(mine.tolist(), store.images.read(tiles.rows[mine]), strict=True))
    return pictures

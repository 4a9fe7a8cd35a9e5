"""Features laid out in two dimensions, coloured by class and by patient: what a person sees of a representation."""

import importlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from simtriplet.evaluate.figure import make_figure, render_png, shorten
from simtriplet.evaluate.nearest_tiles import unit_rows
from simtriplet.evaluate.palette import class_colours
from simtriplet.wsi.errors import MissingDependencyError

__all__ = ["EmbeddingMap", "MapMethod", "draw_embedding_map", "map_features"]

MapMethod = Literal["pca", "umap"]

_MAX_POINTS = 3_000
"""More hide each other at the size of the picture."""

_MARKERS = ("o", "^", "s", "D")
_MAX_NAMES = 16
"""Groups that a legend tells apart: of more, the first ones are named."""

_PANEL_PX, _LEFT_PX, _BOTTOM_PX, _TOP_PX, _ROW_PX, _COLUMNS = 400, 80, 56, 12, 21, 3


@dataclass(frozen=True, slots=True)
class EmbeddingMap:
    """Places of tiles in a plane.

    Attributes:
        method: how they were laid out.
        places: (p,) of the tiles drawn, among the labelled ones.
        xy: (p, 2) float64.
        explained: share of the variance along x and along y; empty for UMAP, whose axes have no unit.
    """

    method: MapMethod
    places: npt.NDArray[np.int64]
    xy: npt.NDArray[np.float64]
    explained: tuple[float, ...]

    @property
    def axis_titles(self) -> tuple[str, str]:
        """Titles of x and y."""
        if not self.explained:
            return "UMAP 1 (no unit)", "UMAP 2 (no unit)"
        first, second = self.explained
        return f"component 1 ({first:.0%} of variance)", f"component 2 ({second:.0%} of variance)"


def map_features(
    features: npt.NDArray[np.floating[Any]], tested: npt.NDArray[np.int64], *, method: MapMethod = "pca", seed: int = 0
) -> EmbeddingMap:
    """Lay the directions of features out in a plane, as cosine sees them.

    Args:
        features: (m, d).
        tested: places of the tiles that may be drawn; at most 3,000 of them are.
        method: principal components, or UMAP where the package umap-learn is installed.
        seed: of the draw and of UMAP.

    Raises:
        MissingDependencyError: if UMAP is asked for and not installed.
    """
    places = np.sort(tested)
    if len(places) > _MAX_POINTS:
        places = np.sort(np.random.default_rng(seed).choice(places, _MAX_POINTS, replace=False))
    rows = unit_rows(features[places]).astype(np.float64)
    if method == "umap":
        return EmbeddingMap(method, places, _umap(rows, seed), ())
    xy, explained = _principal_components(rows)
    return EmbeddingMap(method, places, xy, explained)


def _principal_components(rows: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], tuple[float, float]]:
    """Return (p, 2) scores and the share of variance of each; zeros where features have fewer directions."""
    xy, share = np.zeros((len(rows), 2)), np.zeros(2)
    if (rows != rows[0]).any():
        model: Any = PCA(n_components=min(2, *rows.shape), svd_solver="covariance_eigh")
        with threadpool_limits(1, user_api="blas"):  # the order of sums, and with it the last digits, stays the same
            scores = model.fit_transform(rows)
        xy[:, : scores.shape[1]], share[: scores.shape[1]] = scores, model.explained_variance_ratio_
    return xy, (float(share[0]), float(share[1]))


def _umap(rows: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    if importlib.util.find_spec("umap") is None:
        raise MissingDependencyError("map 'umap': the package is not installed; pip install umap-learn or use pca")
    umap: Any = importlib.import_module("umap")
    model = umap.UMAP(n_components=2, metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(model.fit_transform(rows), dtype=np.float64)


def draw_embedding_map(laid_out: EmbeddingMap, groups: npt.NDArray[Any]) -> bytes:
    """Draw a map, as PNG.

    Args:
        laid_out: where tiles lie.
        groups: (m,) name of each labelled tile's group, which gives its colour and marker.
    """
    names, codes = np.unique(groups, return_inverse=True)
    legend_px = _ROW_PX * math.ceil(min(len(names), _MAX_NAMES) / _COLUMNS) + 14
    width, height = _LEFT_PX + _PANEL_PX + 18, _TOP_PX + _PANEL_PX + _BOTTOM_PX + legend_px
    figure = make_figure(width, height)
    left, bottom = _LEFT_PX / width, (_BOTTOM_PX + legend_px) / height
    axes = figure.add_axes((left, bottom, _PANEL_PX / width, _PANEL_PX / height))
    _draw_groups(axes, laid_out.xy, codes[laid_out.places], names.tolist())
    x_title, y_title = laid_out.axis_titles
    axes.set_xlabel(x_title, fontsize=11)
    axes.set_ylabel(y_title, fontsize=11)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.45, -_BOTTOM_PX / _PANEL_PX), ncols=_COLUMNS, frameon=False, fontsize=10,
        borderaxespad=0, handletextpad=0.2, labelspacing=0.3, columnspacing=1.2,
    )  # fmt: skip
    return render_png(figure)


def group_marker(code: int) -> str:
    """Return a marker that tells groups apart without colour; where hues repeat, after eight, it is another one."""
    return _MARKERS[(code + code // 8) % len(_MARKERS)]


def _draw_groups(axes: Axes, xy: npt.NDArray[np.float64], codes: npt.NDArray[np.int64], names: Sequence[str]) -> None:
    """Draw in a shuffled order, so that no group lies on top of the others because it comes last."""
    colours = np.array(class_colours(len(names)))
    size = float(np.clip(9_000 / max(len(xy), 1), 6, 30))
    for code, name in enumerate(names[:_MAX_NAMES]):
        axes.scatter([], [], s=34, color=[colours[code]], marker=group_marker(code), label=shorten(name, 16))
    order = np.random.default_rng(0).permutation(len(xy))
    for chunk in np.array_split(order, 8):
        for code in np.unique(codes[chunk]).tolist():
            mine = chunk[codes[chunk] == code]
            axes.scatter(
                xy[mine, 0],
                xy[mine, 1],
                s=size,
                color=[colours[code]],
                marker=group_marker(code),
                linewidths=0.3,
                edgecolors="#22303c",
            )
    axes.tick_params(labelsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e8ec", linewidth=0.6)
    axes.set_axisbelow(True)

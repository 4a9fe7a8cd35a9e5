"""The page for slides without labels: tile grid, clusters, loss, and the numbers that need no labels."""

import re
from collections.abc import Sequence
from pathlib import Path

from simtriplet.evaluate.atomic_output import replace_file
from simtriplet.evaluate.html_page import escape, figure, page, paragraph, section, table
from simtriplet.evaluate.overlay import draw_classes, draw_grid
from simtriplet.evaluate.report import loss_section
from simtriplet.evaluate.unlabelled import UnlabelledResult
from simtriplet.wsi.store import TileStore

__all__ = ["write_unlabelled_report"]

_NOTE = (
    "These slides have no labels, so nothing here says how well classes are told apart. Neighbour likeness is the chance "
    "that a tile is more like its neighbour than like a random tile of its slide (0.5 is none); the effective rank counts "
    "the dimensions in use (1 is a collapsed encoder). For accuracy, annotate regions or pass a label file to "
    "simtriplet evaluate."
)


def write_unlabelled_report(
    out: Path,
    *,
    result: UnlabelledResult,
    stores: Sequence[TileStore],
    baseline: UnlabelledResult | None = None,
    run: Path | None = None,
    title: str = "SimTriplet without labels",
    max_slides: int = 12,
) -> Path:
    """Write `out`/report.html, which needs no other file, and its pictures as PNG into `out`/figures.

    Args:
        out: folder; made where missing.
        result: what `describe_features` found.
        stores: the slides, as given to it.
        baseline: the same of other features of the same tiles.
        run: folder of the pretraining run, for its loss curve.
        title: heading of the page.
        max_slides: pictures are drawn of the first so many slides.

    Returns:
        The page.

    Raises:
        EvaluationError: if the run has no log, or `out` is not writable.
    """
    figures = out / "figures"
    found = [result, *([baseline] if baseline is not None else [])]
    body = [
        f"<header><h1>{escape(title)}</h1>{paragraph(_describe(result, stores), kind='quiet')}</header>",
        section(
            "Features", table(("features", "neighbour likeness", "effective rank", "dimensions"), map(_row, found))
        ),
        section("What this says", paragraph(_NOTE), kind="note"),
        *([loss_section(figures, run)] if run is not None else []),
        section("Slides", *_slides(figures, result, stores[:max_slides])),
    ]
    return replace_file(out / "report.html", page(title, body))


def _describe(result: UnlabelledResult, stores: Sequence[TileStore]) -> str:
    return f"Features {result.features!r} of {result.n_tiles:,} tiles of {len(stores)} slides."


def _row(result: UnlabelledResult) -> tuple[str, str, str, str]:
    auc = "no neighbours" if result.neighbour_auc is None else f"{result.neighbour_auc:.3f}"
    return result.features, auc, f"{result.effective_rank:.1f}", str(result.feature_dim)


def _slides(figures: Path, result: UnlabelledResult, stores: Sequence[TileStore]) -> list[str]:
    names = [f"cluster {number + 1}" for number in range(result.n_clusters)]
    parts = []
    for number, (store, codes) in enumerate(zip(stores, result.clusters, strict=False), start=1):
        stem = f"{number:02d}_{re.sub(r'[^A-Za-z0-9_.-]+', '-', store.slide_id)}"
        pictures = {"tiles": draw_grid(store), "clusters": draw_classes(store, codes, names)}
        for kind, png in pictures.items():
            replace_file(figures / f"{stem}_{kind}.png", png)
        captions = {"tiles": "Tiles", "clusters": "Clusters of the features (k-means), found without labels"}
        shown = "".join(figure(png, captions[kind]) for kind, png in pictures.items())
        parts.append(f'<div class="slide"><h3>{escape(store.slide_id)}</h3><div class="columns">{shown}</div></div>')
    return parts

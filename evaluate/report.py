"""One page that shows what was measured and on what: report.html, with its pictures inlined."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from simtriplet.evaluate.atomic_output import replace_file
from simtriplet.evaluate.charts import draw_confusion, draw_loss
from simtriplet.evaluate.evaluation import EvaluationResult
from simtriplet.evaluate.html_page import escape, figure, page, paragraph, section
from simtriplet.evaluate.protocol_registry import PROTOCOLS
from simtriplet.evaluate.report_numbers import (
    class_table,
    describe,
    fold_table,
    geometry_section,
    leakage_note,
    settings_table,
    summary_cards,
)
from simtriplet.evaluate.report_slides import slides_section
from simtriplet.evaluate.training_log import read_loss_curve
from simtriplet.wsi.errors import EvaluationError
from simtriplet.wsi.store import TileStore

__all__ = ["loss_section", "write_report"]


def write_report(
    out: str | Path,
    *,
    result: EvaluationResult,
    stores: Sequence[TileStore],
    baseline: EvaluationResult | None = None,
    run: Path | None = None,
    title: str = "SimTriplet evaluation",
    max_slides: int = 12,
) -> Path:
    """Write `out`/report.html, which needs no other file, and its pictures as PNG into `out`/figures.

    Args:
        out: folder; made where missing.
        result: what `evaluate_features` found.
        stores: the slides to show.
        baseline: the same evaluation of other features of the same tiles, such as those of random weights; beside a
            network trained with labels, features by any protocol.
        run: folder of the pretraining run, for its loss curve.
        title: heading of the page.
        max_slides: pictures are drawn of the first so many slides.

    Returns:
        The page.

    Raises:
        EvaluationError: if the baseline is of other tiles, folds or, for features, another protocol, the run has no log, or
            `out` is not writable.
    """
    out = Path(out)
    if baseline is not None:
        _require_comparable(result, baseline)
    figures = out / "figures"
    body = [
        f'<header><h1>{escape(title)}</h1><p class="quiet">{escape(describe(result))}</p></header>',
        summary_cards(result, baseline),
        leakage_note(result),
        _classes_section(figures, result),
        section("Folds", fold_table(result)),
        geometry_section([result, *([baseline] if baseline is not None else [])]),
        *([loss_section(figures, run)] if run is not None else []),
        slides_section(figures, result, stores, max_slides),
        section("Settings", settings_table(result)),
    ]
    return replace_file(out / "report.html", page(title, body))


def _require_comparable(result: EvaluationResult, baseline: EvaluationResult) -> None:
    def tested(one: EvaluationResult) -> list[tuple[str, str, int]]:
        tiles = one.tiles
        return list(zip(tiles.slides.tolist(), tiles.tile_ids.tolist(), tiles.codes.tolist(), strict=True))

    same = result.tiles.classes == baseline.tiles.classes and tested(result) == tested(baseline)
    asked = baseline.settings
    if result.settings.protocol not in PROTOCOLS:  # a network trained with labels, which features cannot be
        asked = dataclasses.replace(asked, protocol=result.settings.protocol)
    if not same or result.settings != asked:
        raise EvaluationError(
            f"baseline {baseline.features!r}: was measured on other tiles or with other settings; evaluate both alike"
        )


def _classes_section(figures: Path, result: EvaluationResult) -> str:
    chart = draw_confusion(result.metrics.confusion, result.tiles.classes)
    replace_file(figures / "confusion_matrix.png", chart)
    parts = class_table(result), figure(chart, "Confusion matrix: percent of each label's tiles, and tiles")
    return section("Classes", f'<div class="columns wide">{"".join(parts)}</div>')


def loss_section(figures: Path, run: Path) -> str:
    """Return the section with the loss curve of a run, and write its picture."""
    curve = read_loss_curve(run)
    if not len(curve.steps):
        return section("Pretraining", paragraph("The run has not logged a loss yet."))
    chart = draw_loss(curve.steps, curve.losses)
    replace_file(figures / "loss.png", chart)
    caption = f"Loss from {curve.losses[0]:.3f} to {curve.losses[-1]:.3f} over {curve.steps[-1]:,.0f} steps"
    return section("Pretraining", figure(chart, caption))

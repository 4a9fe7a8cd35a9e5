"""One page that shows how encoders compare: comparison.html, with its pictures inlined, and the tables beside it."""

from collections.abc import Sequence
from pathlib import Path

from simtriplet.evaluate.atomic_output import replace_file
from simtriplet.evaluate.comparison import Comparison
from simtriplet.evaluate.comparison_pictures import (
    confusion_section,
    curves_section,
    gallery_section,
    map_section,
    scores_section,
    slides_section,
)
from simtriplet.evaluate.comparison_table import (
    TRANSDUCTIVE,
    comparison_csv,
    comparison_json,
    comparison_markdown,
    headers,
    notes,
    table_cells,
)
from simtriplet.evaluate.html_page import escape, page, pairs, paragraph, section
from simtriplet.evaluate.lines_table import lines_table
from simtriplet.evaluate.palette import series_colours
from simtriplet.evaluate.report_numbers import encoder_text, folds_text
from simtriplet.wsi.store import TileStore

__all__ = ["write_comparison"]


def write_comparison(
    out: str | Path,
    comparison: Comparison,
    stores: Sequence[TileStore],
    *,
    title: str = "Encoders compared",
    max_slides: int = 4,
) -> Path:
    """Write comparison.json, comparison.csv, comparison.md and comparison.html into the folder `out`.

    Args:
        out: made where missing.
        comparison: what compare_encoders found.
        stores: the slides, as given to it.
        title: heading of the page.
        max_slides: predictions are drawn on so many slides, of different patients where there are as many.

    Returns:
        The page, which needs no other file.

    Raises:
        EvaluationError: if the folder cannot be written.
    """
    out = Path(out)
    replace_file(out / "comparison.csv", comparison_csv(comparison))
    replace_file(out / "comparison.md", comparison_markdown(comparison))
    replace_file(out / "comparison.json", comparison_json(comparison))
    body = [
        f"<header><h1>{escape(title)}</h1>{paragraph(_describe(comparison), kind='quiet')}</header>",
        section(
            "In one table", _table(comparison), *(paragraph(note, kind="small quiet") for note in notes(comparison))
        ),
        scores_section(comparison),
        curves_section(comparison),
        confusion_section(comparison),
        map_section(comparison),
        gallery_section(comparison, stores),
        slides_section(comparison, stores, max_slides),
        section("How it was measured", pairs(_settings(comparison))),
    ]
    return replace_file(out / "comparison.html", page(title, body))


def _describe(comparison: Comparison) -> str:
    titles = [encoder.title for encoder in comparison.encoders]
    return f"{', '.join(titles)}: measured on the same tiles and the same folds of patients."


def _table(comparison: Comparison) -> str:
    rows = [table_cells(encoder, comparison) for encoder in comparison.encoders]
    colours = series_colours(len(rows))
    return lines_table(headers(comparison), rows, tags=(TRANSDUCTIVE,), swatches=colours)


def _settings(comparison: Comparison) -> list[tuple[str, str]]:
    first = comparison.encoders[0].result
    settings = first.settings
    rows = [
        ("folds", folds_text(first)),
        ("seed", str(settings.seed)),
        ("labels", first.label_source),
        ("classes", ", ".join(first.tiles.classes)),
        ("bootstrap", f"{settings.draws:,} draws of patients"),
    ]
    for encoder in comparison.encoders:
        result = encoder.result
        shown = [f"images of {px} px"] if (px := result.encoder.get("image_size_px")) else []
        shown += [f"in {precision}"] if (precision := result.encoder.get("precision")) else []
        said = "; ".join([encoder_text(result), *shown, f"protocol {result.settings.protocol}"])
        hashed = result.encoder.get("encoder_hash")
        rows.append((encoder.title, said + (f"; encoder hash {hashed}" if hashed else "")))
    return rows

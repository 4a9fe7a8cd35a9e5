"""The part of a report that shows slides: tile grid, labels and predictions, and their counts."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.atomic_output import replace_file
from simtriplet.evaluate.evaluation import EvaluationResult
from simtriplet.evaluate.html_page import escape, figure, paragraph, section, table
from simtriplet.evaluate.overlay import draw_classes, draw_grid
from simtriplet.evaluate.palette import class_colours
from simtriplet.wsi.store import TileStore

__all__ = ["slides_section"]

_Codes = npt.NDArray[np.int64]


def slides_section(figures: Path, result: EvaluationResult, stores: Sequence[TileStore], most: int) -> str:
    """Return pictures and counts of the first slides, and write the pictures into the folder `figures`.

    Args:
        figures: made where missing.
        result: what was found.
        stores: the slides.
        most: how many are shown.
    """
    shown = stores[:most]
    parts = [_slide_part(figures, number, store, result) for number, store in enumerate(shown, start=1)]
    if len(stores) > len(shown):
        parts.append(paragraph(f"{len(shown)} of {len(stores)} slides are shown.", kind="quiet"))
    return section("Slides", *parts)


def _slide_part(figures: Path, number: int, store: TileStore, result: EvaluationResult) -> str:
    classes = result.tiles.classes
    labels = result.codes_of(store, result.tiles.codes)
    named = result.tiles.patients[result.tiles.slides == store.slide_id]  # a label file may name patients otherwise
    patient = str(named[0]) if len(named) else store.patient_id
    predicted = result.codes_of(store, result.predicted)
    pictures = [("tiles", draw_grid(store), "Tiles"), ("labels", draw_classes(store, labels, classes), "Labels")]
    if (predicted >= 0).any():
        caption = "Predictions, by a classifier that never saw this patient's labels"
        pictures.append(("predictions", draw_classes(store, predicted, classes, labels=labels), caption))
    stem = f"{number:02d}_{re.sub(r'[^A-Za-z0-9_.-]+', '-', store.slide_id)}"
    for kind, png, _ in pictures:
        replace_file(figures / f"{stem}_{kind}.png", png)
    tiles, *others = (figure(png, caption) for _, png, caption in pictures)
    facts = f"<div><h3>{escape(store.slide_id)}</h3>{_facts(store, patient, labels, predicted)}"
    facts += f"{_counts(classes, labels, predicted)}</div>"
    return f'<div class="slide columns wide">{facts}{tiles}{"".join(others)}</div>'


def _facts(store: TileStore, patient: str, labels: _Codes, predicted: _Codes) -> str:
    size = f"{len(store):,} tiles of {store.size_px} px at {store.mpp:g} µm/px: {store.size_px * store.mpp:g} µm wide."
    tested = predicted >= 0
    share = (
        f" {(predicted == labels)[tested].mean():.1%} of {tested.sum():,} tested tiles are right."
        if tested.any()
        else ""
    )
    return paragraph(f"Patient {patient}. {size}{share}", kind="quiet")


def _counts(classes: Sequence[str], labels: _Codes, predicted: _Codes) -> str:
    colours = [
        f"#{round(r * 255):02x}{round(g * 255):02x}{round(b * 255):02x}" for r, g, b in class_colours(len(classes))
    ]
    return table(
        ("class", "labelled", "predicted", "recall"), _count_rows(classes, labels, predicted), swatches=colours
    )


def _count_rows(classes: Sequence[str], labels: _Codes, predicted: _Codes) -> Iterator[tuple[str, ...]]:
    for code, name in enumerate(classes):
        mine = (labels == code) & (predicted >= 0)
        recall = f"{(predicted[mine] == code).mean():.0%}" if mine.any() else "–"
        yield name, f"{(labels == code).sum():,}", f"{(predicted == code).sum():,}", recall

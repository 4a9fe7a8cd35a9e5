"""The sections of the comparison page that hold pictures: charts, confusion, maps, galleries, slides."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from simtriplet.evaluate.bootstrap import Interval
from simtriplet.evaluate.charts import draw_confusion
from simtriplet.evaluate.comparison import ComparedEncoder, Comparison
from simtriplet.evaluate.comparison_charts import Series, draw_label_curves, draw_scores
from simtriplet.evaluate.comparison_table import DIFFERENCE_METRIC, EMPTY, TRANSDUCTIVE, p_text
from simtriplet.evaluate.embedding_map import draw_embedding_map
from simtriplet.evaluate.gallery import describe_gallery, draw_gallery
from simtriplet.evaluate.html_page import escape, figure, paragraph, section
from simtriplet.evaluate.label_curve import CurveKind, CurvePoint, LabelCurve
from simtriplet.evaluate.lines_table import Cell, lines_table
from simtriplet.evaluate.overlay import draw_classes
from simtriplet.evaluate.palette import class_colours, series_colours
from simtriplet.wsi.store import TileStore

__all__ = [
    "confusion_section",
    "curves_section",
    "gallery_section",
    "map_section",
    "scores_section",
    "slides_section",
]

_CURVE_TITLES: dict[CurveKind, tuple[str, str]] = {
    "share": ("Label efficiency", "labels learnt from (% of the training tiles)"),
    "shots": ("Few-shot", "labels learnt from (tiles a class)"),
}


_MAX_NEAREST = 8
"""Tiles that a row of a gallery shows: more are too small to see, whatever k retrieval is measured with."""


def _series(comparison: Comparison) -> list[Series]:
    colours = series_colours(len(comparison.encoders))
    return [
        Series(encoder.title, colour, number)
        for number, (encoder, colour) in enumerate(zip(comparison.encoders, colours, strict=True))
    ]


def _columns(*parts: str) -> str:
    return f'<div class="columns wide">{"".join(parts)}</div>'


def _marked(encoder: ComparedEncoder) -> str:
    """Return an encoder's title, and whether what is shown of it is transductive."""
    return f"{encoder.title} ({TRANSDUCTIVE})" if encoder.leakage == TRANSDUCTIVE else encoder.title


def scores_section(comparison: Comparison) -> str:
    """Draw balanced accuracy with its interval, and the differences from the reference."""
    chance = 1 / len(comparison.encoders[0].result.tiles.classes)
    scores, differences = [], []
    for series, encoder in zip(_series(comparison), comparison.encoders, strict=True):
        scores.append((series, encoder.result.intervals[DIFFERENCE_METRIC]))
        one = encoder.differences.get(DIFFERENCE_METRIC)
        if one is not None:
            differences.append((series, Interval(one.difference, one.low, one.high)))
    caption = "Balanced accuracy; band: 95 % interval over patients"
    value = draw_scores(scores, axis_title="balanced accuracy (0 to 1)", baseline=(chance, "chance"))
    title = f"Balanced accuracy minus that of {comparison.reference}, on the same patients; band: 95 % interval"
    difference = draw_scores(differences, axis_title="difference in balanced accuracy", baseline=(0.0, "no difference"))
    return section(
        "How far apart",
        _columns(
            figure(value, caption, alt=f"{caption}: {_said(scores)}", kind="wide"),
            figure(difference, title, alt=f"{title}: {_said(differences)}", kind="wide"),
        ),
    )


def _said(scores: Sequence[tuple[Series, Interval]]) -> str:
    return "; ".join(f"{series.title} {_interval_text(interval)}" for series, interval in scores)


def _interval_text(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def curves_section(comparison: Comparison) -> str:
    """Draw both kinds of curves, with their numbers and the differences from the reference in a table each."""
    parts = [_curve_part(comparison, kind) for kind in _CURVE_TITLES]
    if not any(parts):
        return section("Few labels", paragraph("Curves over the number of labels were not measured."))
    said = f"In the tables: balanced accuracy; below it the difference from {comparison.reference}, and its p-value."
    return section("Few labels", paragraph(said, kind="small quiet"), "".join(filter(None, parts)))  # wide tables


def _curve_part(comparison: Comparison, kind: CurveKind) -> str:
    title, x_title = _CURVE_TITLES[kind]
    drawn = [
        (series, curve.points)
        for series, encoder in zip(_series(comparison), comparison.encoders, strict=True)
        if (curve := encoder.curve(kind)) is not None
    ]
    if not drawn:
        return ""
    chart = draw_label_curves(
        drawn,
        metric=DIFFERENCE_METRIC,
        x_title=x_title,
        y_title="balanced accuracy (0 to 1)",
        tick_text=lambda amount: _amount_text(kind, amount).removesuffix(" %"),
        chance=1 / len(comparison.encoders[0].result.tiles.classes),
    )
    caption = f"{title}: mean over the draws of labels; band: 95 % interval over test patients"
    header, rows = _curve_table(comparison, kind)
    alt = f"{caption}. " + "; ".join(" ".join(line for cell in row for line in cell) for row in rows)
    numbers = lines_table(header, rows, tags=(TRANSDUCTIVE,))
    return f"<div>{figure(chart, caption, alt=alt, kind='wide')}{numbers}</div>"


def _amount_text(kind: CurveKind, amount: float) -> str:
    return f"{100 * amount:g} %" if kind == "share" else f"{amount:g}"


def _curve_table(comparison: Comparison, kind: CurveKind) -> tuple[list[Cell], list[list[Cell]]]:
    """Return a row per encoder that has the curve: at each amount the value, and the difference from the reference."""
    drawn = [(encoder, curve) for encoder in comparison.encoders if (curve := encoder.curve(kind)) is not None]
    amounts = sorted({point.amount for _, curve in drawn for point in curve.points})
    rows = []
    for encoder, curve in drawn:
        points = {point.amount: point for point in curve.points}
        rows.append([(encoder.title,), *(_curve_cell(encoder, curve, points.get(amount)) for amount in amounts)])
    return [("labels",), *((_amount_text(kind, amount),) for amount in amounts)], rows


def _curve_cell(encoder: ComparedEncoder, curve: LabelCurve, point: CurvePoint | None) -> Cell:
    if point is None:
        return (EMPTY,)
    lines = [f"{point.intervals[DIFFERENCE_METRIC].value:.3f}"]
    one = encoder.curve_differences.get(curve.kind, {}).get(point.amount, {}).get(DIFFERENCE_METRIC)
    if one is not None:
        lines.append(f"{one.difference:+z.3f}")
        lines += [p_text(one.p_value)] if one.p_value is not None else []
    return [*lines, TRANSDUCTIVE] if curve.leakage == TRANSDUCTIVE else lines


def confusion_section(comparison: Comparison) -> str:
    """Draw a confusion matrix per encoder."""
    parts = []
    for encoder in comparison.encoders:
        metrics = encoder.result.metrics
        recalls = ", ".join(f"{one.name} {one.recall:.0%}" for one in metrics.per_class)
        chart = draw_confusion(metrics.confusion, encoder.result.tiles.classes)
        title = _marked(encoder)
        parts.append(figure(chart, title, alt=f"Confusion matrix of {title}; recall: {recalls}"))
    said = "Percent of each label's tiles, and tiles: the diagonal is what was told rightly."
    return section("Confusion", paragraph(said, kind="small quiet"), f'<div class="columns">{"".join(parts)}</div>')


def map_section(comparison: Comparison) -> str:
    """Draw the features of each encoder in a plane; nothing where no row has features."""
    parts = []
    for encoder in comparison.encoders:
        if encoder.laid_out is None:
            continue
        title, tiles = _marked(encoder), encoder.result.tiles
        method = "principal components" if encoder.laid_out.method == "pca" else "UMAP"
        pictures = []
        for group, names in (("class", tiles.codes), ("patient", tiles.patients)):
            labels = np.array(tiles.classes)[names] if group == "class" else names.astype(str)
            chart = draw_embedding_map(encoder.laid_out, labels)
            caption = f"By {group}: {len(encoder.laid_out.places):,} tiles, {method} of their features"
            pictures.append(figure(chart, caption, alt=f"Map of {title}. {caption}", kind="wide"))
        parts.append(f'<h3 class="encoder">{escape(title)}</h3>{_columns(*pictures)}')
    said = "Good features lie together by class and mix by patient. A plane shows only part of a space."
    return section("Maps of the features", paragraph(said, kind="small quiet"), *parts) if parts else ""


def gallery_section(comparison: Comparison, stores: Sequence[TileStore]) -> str:
    """Draw what each encoder finds most like the same anchors; nothing where no row has features."""
    parts = []
    for encoder in comparison.encoders:
        if encoder.nearest is None or not len(comparison.anchors):
            continue
        title, tiles = _marked(encoder), encoder.result.tiles
        nearest = encoder.nearest[:, :_MAX_NEAREST]
        said = describe_gallery(tiles, comparison.anchors, nearest)
        chart = draw_gallery(stores, tiles, comparison.anchors, nearest)
        parts.append(f'<h3 class="encoder">{escape(title)}</h3>')
        parts.append(figure(chart, said, alt=f"{title}: {said}", kind="wide large"))
    said = "Anchors were drawn at random, the same for every encoder; tiles of the anchor's own patient are left out."
    return section("Nearest tiles", paragraph(said, kind="small quiet"), *parts) if parts else ""


def slides_section(comparison: Comparison, stores: Sequence[TileStore], most: int) -> str:
    """Draw labels and predictions on some tested slides."""
    first = comparison.encoders[0].result
    patients = dict(zip(first.tiles.slides.tolist(), map(str, first.tiles.patients), strict=True))
    shown = _spread([store for store in stores if (first.codes_of(store, first.predicted) >= 0).any()], patients)[:most]
    parts = []
    for store in shown:
        pictures = "".join(figure(png, caption, alt=alt) for png, caption, alt in _slide_pictures(comparison, store))
        heading = f"<h3>{escape(store.slide_id)}</h3>{paragraph(f'Patient: {patients[store.slide_id]}', kind='quiet')}"
        parts.append(f'<div class="slide">{heading}{_columns(pictures)}</div>')
    if len(shown) < len(stores):
        parts.append(paragraph(f"{len(shown)} of {len(stores)} slides are shown.", kind="quiet"))
    return section("Predictions on slides", _class_keys(first.tiles.classes), *parts)


def _class_keys(classes: Sequence[str]) -> str:
    """Name the colours in text, as a picture's legend is small on a narrow window."""
    keys = []
    for name, colour in zip(classes, class_colours(len(classes)), strict=True):
        red, green, blue = (round(255 * part) for part in colour)
        keys.append(f'<span><i class="key" style="background:rgb({red},{green},{blue})"></i>{escape(name)}</span>')
    return f'<div class="keys small quiet">{"".join(keys)}<span>× differs from the label</span></div>'


def _spread(stores: Sequence[TileStore], patients: Mapping[str, str]) -> list[TileStore]:
    """Order slides so that every patient's first comes before any patient's second."""
    turns: Counter[str] = Counter()
    keyed = []
    for place, store in enumerate(stores):
        keyed.append((turns[patients[store.slide_id]], place))
        turns[patients[store.slide_id]] += 1
    return [stores[place] for _, place in sorted(keyed)]


def _slide_pictures(comparison: Comparison, store: TileStore) -> Iterator[tuple[bytes, str, str]]:
    tiles = comparison.encoders[0].result.tiles
    labels = comparison.encoders[0].result.codes_of(store, tiles.codes)
    counts = np.bincount(labels[labels >= 0], minlength=len(tiles.classes)).tolist()
    said = ", ".join(f"{count} {name}" for name, count in zip(tiles.classes, counts, strict=True))
    yield draw_classes(store, labels, tiles.classes), "Labels", f"Labels on slide {store.slide_id}: {said}"
    for encoder in comparison.encoders:
        predicted = encoder.result.codes_of(store, encoder.result.predicted)
        tested = predicted >= 0
        right = f"{(predicted == labels)[tested].mean():.1%} of {int(tested.sum()):,} tiles are right"
        caption = f"{_marked(encoder)}: {right}"
        png = draw_classes(store, predicted, tiles.classes, labels=labels)
        yield png, caption, f"Predictions on slide {store.slide_id} by {caption}"

"""The parts of a report that hold numbers: summary cards, tables, the note on leakage, the settings."""

from collections.abc import Iterator, Sequence

from simtriplet.evaluate.bootstrap import Interval
from simtriplet.evaluate.evaluation import EvaluationResult, FoldResult
from simtriplet.evaluate.html_page import escape, pairs, paragraph, section, table

__all__ = [
    "class_table",
    "describe",
    "encoder_text",
    "fold_table",
    "folds_text",
    "geometry_section",
    "leakage_note",
    "settings_table",
    "summary_cards",
]

_FEW_PATIENTS = 10
"""Below this a percentile bootstrap covers clearly less than the 95 % it names."""

_TITLES = {
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "macro_auroc": "Macro AUROC",
    "accuracy": "Accuracy",
}


def describe(result: EvaluationResult) -> str:
    """Return one line on what was measured."""
    tiles = result.tiles
    counts = (
        f"{len(tiles):,} labelled tiles",
        f"{len(set(tiles.slides.tolist()))} slides",
        f"{len(set(tiles.patients.tolist()))} patients",
        f"{len(tiles.classes)} classes",
    )
    return f"Features {result.features!r}, {encoder_text(result)}. {', '.join(counts)}."


def encoder_text(result: EvaluationResult) -> str:
    """Return the encoder in words."""
    encoder = result.encoder
    backbone, objective, steps = (encoder.get(key) for key in ("backbone", "objective", "steps"))
    trained = f"{objective}, {steps:,} steps" if isinstance(steps, int) and steps else f"{objective} weights"
    return f"{backbone or 'unknown encoder'} ({trained})"


def summary_cards(result: EvaluationResult, baseline: EvaluationResult | None) -> str:
    """Return a card per metric: number, 95 % interval, and where the baseline and chance stand."""
    chances = {"balanced_accuracy": 1 / len(result.tiles.classes), "macro_auroc": 0.5}
    cards = []
    for name, interval in result.intervals.items():
        base = baseline.intervals[name] if baseline else None
        cards.append(_card(_TITLES[name], interval, base, chances.get(name)))
    keys = ['<span><i class="key"></i>this encoder, band: 95 % interval over patients</span>']
    if baseline:
        protocol = baseline.settings.protocol
        by = "" if protocol == result.settings.protocol else f", protocol {protocol}"
        text = f"baseline: features {baseline.features!r}, {encoder_text(baseline)}{by}"
        keys.append(f'<span><i class="key base"></i>{escape(text)}</span>')
    keys.append('<span><i class="key chance"></i>chance</span>')
    return f'<div class="cards">{"".join(cards)}</div><div class="keys small quiet">{"".join(keys)}</div>'


def _card(title: str, interval: Interval, base: Interval | None, chance: float | None) -> str:
    marks = ['<i class="track"></i>']
    if interval.low is not None and interval.high is not None:
        width = interval.high - interval.low
        marks.append(f'<i class="range" style="left:{interval.low:.2%};width:{width:.2%}"></i>')
    if chance is not None:
        marks.append(f'<i class="chance" style="left:{chance:.2%}"></i>')
    if base is not None:
        marks.append(f'<i class="base" style="left:{base.value:.2%}"></i>')
    marks.append(f'<i class="mark" style="left:{interval.value:.2%}"></i>')
    lines = [_interval_text(interval)]
    if base is not None:
        lines.append(f"baseline {base.value:.3f} ({interval.value - base.value:+.3f})")
    return (
        f'<div class="card"><div class="quiet">{escape(title)}</div><div class="value">{interval.value:.3f}</div>'
        f'<div class="scale">{"".join(marks)}</div><div class="ends small quiet"><span>0</span><span>1</span></div>'
        + "".join(f'<div class="small">{escape(line)}</div>' for line in lines)
        + "</div>"
    )


def _interval_text(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return "no interval: one test patient"
    return f"95 % interval {interval.low:.3f} to {interval.high:.3f}"


def leakage_note(result: EvaluationResult) -> str:
    """Say whether the encoder saw test patients (without labels) in pretraining."""
    leaking = [number for number, fold in enumerate(result.folds, start=1) if fold.leakage == "transductive"]
    if not leaking:
        text = "The encoder was pretrained on none of the test patients (inductive). New patients are met alike."
        return section("Were test patients in pretraining? No", paragraph(text))
    which = "every fold" if len(leaking) == len(result.folds) else f"fold {', '.join(map(str, leaking))}"
    text = (
        f"In {which} the encoder was pretrained on tiles of test patients, without their labels (transductive). "
        "The classifier never saw them, but numbers for new patients may be lower; "
        "pretrain with --exclude-patients to measure that."
    )
    return section("Were test patients in pretraining? Yes", paragraph(text), kind="note")


def class_table(result: EvaluationResult) -> str:
    """Return precision, recall, F1 and AUROC by class, with the counts they rest on."""
    header = ("class", "precision", "recall", "F1", "AUROC", "tiles", "patients")
    rows = [
        (
            one.name,
            f"{one.precision:.3f}",
            f"{one.recall:.3f}",
            f"{one.f1:.3f}",
            "-" if one.auroc is None else f"{one.auroc:.3f}",
            f"{one.n_tiles:,}",
            str(one.n_patients),
        )
        for one in result.metrics.per_class
    ]
    return table(header, rows)


def geometry_section(results: Sequence[EvaluationResult]) -> str:
    """Return retrieval, slide leakage and effective rank of features; nothing where none has any."""
    rows = [(one.features, *map(" ".join, one.geometry.cells())) for one in results if one.geometry is not None]
    if not rows:
        return ""
    k = next(one.geometry.k for one in results if one.geometry is not None)
    text = (
        f"Retrieval: share of the {k} most similar tiles of other patients that have the tile's class (by chance). "
        "Slide leakage: how often the 20 most similar tiles vote for the tile's own slide (share of the largest slide); "
        "lower is better. Effective rank: how many dimensions the features use."
    )
    header = ("features", f"retrieval@{k}", "slide leakage", "effective rank")
    return section("Without a head", paragraph(text) + table(header, rows))


def fold_table(result: EvaluationResult) -> str:
    """Return what was tested in each fold."""
    header = (
        "fold",
        "balanced accuracy",
        "macro F1",
        "training tiles",
        "test tiles",
        "encoder saw them",
        "test patients",
    )
    return table(header, (_fold_row(number, fold) for number, fold in enumerate(result.folds, start=1)))


def _fold_row(number: int, fold: FoldResult) -> tuple[str, ...]:
    numbers = (
        f"{fold.metrics.balanced_accuracy:.3f}",
        f"{fold.metrics.macro_f1:.3f}",
        f"{fold.n_train:,}",
        f"{fold.n_test:,}",
    )
    saw = "yes" if fold.leakage == "transductive" else "no"
    return str(number), *numbers, saw, _shortened(fold.test_patients)


def _shortened(names: tuple[str, ...], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def settings_table(result: EvaluationResult) -> str:
    """Return what would have to be given to get these numbers again."""
    return pairs(_settings(result))


def folds_text(result: EvaluationResult) -> str:
    """Return how patients were split."""
    made, asked = len(result.folds), result.settings.folds
    if result.settings.test_patients:
        return "none: named patients are tested, all others learnt from"
    return f"{made} by patient" if asked in (None, made) else f"{made} by patient ({asked} asked for)"


def _settings(result: EvaluationResult) -> Iterator[tuple[str, str]]:
    settings, encoder = result.settings, result.encoder
    yield "protocol", settings.protocol
    yield "folds", folds_text(result)
    yield "seed", str(settings.seed)
    yield "labels", result.label_source
    n_patients = len(set(result.tiles.patients[result.predicted >= 0].tolist()))
    few = "; so few patients make them too narrow" if n_patients < _FEW_PATIENTS else ""
    yield "intervals", f"{settings.draws:,} bootstrap draws of {n_patients} test patients{few}"
    for key, title in (
        ("mpp", "encoder trained at (um/px)"),
        ("image_size_px", "encoder's input (px)"),
        ("precision", "precision"),
    ):
        if encoder.get(key):
            yield title, str(encoder[key])
    yield "encoder hash", str(encoder.get("encoder_hash", "not recorded"))
    chosen = sorted({str(fold.fitted["C"]) for fold in result.folds if "C" in fold.fitted})
    if chosen:
        yield "penalty C chosen", ", ".join(chosen)

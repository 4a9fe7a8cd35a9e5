"""What came out of the study: label curves of every method, paired differences, and the gain from the neighbour by purity."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from study_charts import draw_label_curves, draw_purity
from study_data import TASKS, StudyData, StudyTiles
from study_plan import MAIN_PAIRING, METHODS, PAIRINGS, Run, Scale

from simtriplet.evaluate.few_label_head import learn_linearly
from simtriplet.evaluate.label_curve import DEFAULT_AMOUNTS, CurveSettings, LabelCurve
from simtriplet.evaluate.label_efficiency import LearnFold, curve_of_tiles
from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.paired import PairedDifference, compare_curves
from simtriplet.evaluate.splits import Fold

METRIC = "balanced_accuracy"
RANDOM = "random"
SHARES = DEFAULT_AMOUNTS["share"]
_logger = logging.getLogger("study")
Features = dict[int, npt.NDArray[np.float32]]
"""By fold: (m, d) features of all evaluated tiles."""


def write_study(
    out: Path, scale: Scale, data: StudyData, done: Sequence[Run], patients: Sequence[tuple[str, ...]]
) -> None:
    """Measure what is done and write study.json, study.md and the charts."""
    methods = _main_methods(out, scale, done)
    folds = sorted(set.intersection(*(set(found) for found in methods.values()))) if methods else []
    tables: dict[str, Any] = {}
    if folds:
        for task in TASKS:
            _logger.info("label curves: %s", task)
            tables[task] = _measure_task(
                data.tiles("60um"), task, methods, [patients[fold] for fold in folds], folds, scale
            )
            (out / f"label_curves_{task}.png").write_bytes(draw_label_curves(tables[task], METRIC))
    purity = _measure_purity(out, scale, data, done, patients)
    if purity:
        (out / "purity.png").write_bytes(draw_purity(purity))
    values = {"scale": asdict(scale), "folds": len(folds), "tasks": tables, "purity": purity}
    (out / "study.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (out / "study.md").write_text(_markdown(values, scale), encoding="utf-8")
    print((out / "study.md").read_text(encoding="utf-8"))


def _main_methods(out: Path, scale: Scale, done: Sequence[Run]) -> dict[str, Features]:
    found: dict[str, Features] = {}
    names = {run.name for run in done}
    for method in METHODS:
        for fold in range(scale.folds):
            run = Run(method, MAIN_PAIRING, fold)
            if run.name in names:
                found.setdefault(method, {})[fold] = load_features(run, out)
    random = out / "features" / f"{RANDOM}.npy"
    if found and random.exists():
        found[RANDOM] = dict.fromkeys(range(scale.folds), np.load(random))
    return found


def load_features(run: Run, out: Path) -> npt.NDArray[np.float32]:
    """Return the features that a run left."""
    return np.asarray(np.load(out / "features" / f"{run.name}.npy"), np.float32)


def measure_curve(
    tiles: LabelledTiles,
    places: npt.NDArray[np.int64],
    features: Features,
    folds: Sequence[int],
    test_patients: Sequence[tuple[str, ...]],
    *,
    title: str,
    shares: Sequence[float] = SHARES,
    draws: int,
) -> LabelCurve:
    """Measure a curve over folds that have an encoder each, which never saw their test patients."""
    splits = [_fold(tiles, names) for names in test_patients]
    number_of = {split.test.tobytes(): fold for split, fold in zip(splits, folds, strict=True)}

    def learn(all_tiles: LabelledTiles, fold: Fold, settings: CurveSettings) -> LearnFold:
        own = features[number_of[fold.test.tobytes()]][places]
        return learn_linearly(replace(all_tiles, features=own), fold, settings)

    settings = CurveSettings(kind="share", amounts=tuple(shares), draws=draws)
    return curve_of_tiles(tiles, settings, learn, features=title, encoder={}, label_source="GlaS", folds=splits)


def _fold(tiles: LabelledTiles, test_patients: Sequence[str]) -> Fold:
    test = np.isin(tiles.patients.astype(str), list(test_patients))
    return Fold(np.flatnonzero(~test), np.flatnonzero(test))


def _measure_task(
    tiles: StudyTiles,
    task: str,
    methods: dict[str, Features],
    test_patients: Sequence[tuple[str, ...]],
    folds: Sequence[int],
    scale: Scale,
) -> dict[str, Any]:
    labelled, places = tiles.labelled(task)
    curves = {
        name: measure_curve(labelled, places, features, folds, test_patients, title=_title(name), draws=scale.draws)
        for name, features in methods.items()
    }
    rows = {name: _curve_values(curve) for name, curve in curves.items()}
    return {
        "classes": labelled.classes,
        "n_tiles": len(labelled),
        "n_patients": len(set(labelled.patients.tolist())),
        "curves": rows,
        "against_simsiam": {
            name: _differences(compare_curves(curve, curves["simsiam"]))
            for name, curve in curves.items()
            if name != "simsiam"
        },
    }


def _title(name: str) -> str:
    return "random weights" if name == RANDOM else METHODS[name].title


def _curve_values(curve: LabelCurve) -> dict[str, Any]:
    points = [
        {"share": point.amount, "labels": point.draws[0].n_labels, **{m: asdict(i) for m, i in point.intervals.items()}}
        for point in curve.points
    ]
    return {"title": curve.features, "points": points}


def _differences(found: dict[float, dict[str, PairedDifference]]) -> dict[str, Any]:
    return {f"{share:g}": asdict(by_metric[METRIC]) for share, by_metric in found.items()}


def _measure_purity(
    out: Path, scale: Scale, data: StudyData, done: Sequence[Run], patients: Sequence[tuple[str, ...]]
) -> list[dict[str, Any]]:
    """Return for each pairing and family the gain of the triplet over two views, with what is known of the pairs."""
    names = {run.name for run in done}
    rows = []
    for pairing in PAIRINGS.values():
        for two, three in (("simsiam", "simtriplet"), ("vicreg2", "vicreg3")):
            folds = [
                fold
                for fold in range(scale.folds)
                if {Run(two, pairing.name, fold).name, Run(three, pairing.name, fold).name} <= names
            ]
            if folds:
                rows.append(_gain(out, data, pairing.name, (two, three), folds, [patients[fold] for fold in folds]))
    return rows


def _gain(
    out: Path,
    data: StudyData,
    pairing: str,
    pair: tuple[str, str],
    folds: Sequence[int],
    test_patients: Sequence[tuple[str, ...]],
) -> dict[str, Any]:
    tiles = data.tiles(PAIRINGS[pairing].tiles)
    purity, chance, n_pairs = tiles.purity(pairing)
    labelled, places = tiles.labelled("gland")
    curves = []
    for method in pair:
        features = {fold: load_features(Run(method, pairing, fold), out) for fold in folds}
        curves.append(
            measure_curve(labelled, places, features, folds, test_patients, title=method, shares=(0.1, 1.0), draws=5)
        )
    found = compare_curves(curves[1], curves[0])
    return {
        "pairing": pairing,
        "title": PAIRINGS[pairing].title,
        "tile_um": tiles.plan.side_um,
        "family": METHODS[pair[0]].family,
        "purity": purity,
        "by_chance": chance,
        "pairs": n_pairs,
        "folds": len(folds),
        "gain": _differences(found),
    }


def _markdown(values: dict[str, Any], scale: Scale) -> str:
    lines = [f"{values['folds']} of {scale.folds} folds of patients, {scale.steps} steps a run."]
    if values["folds"] < scale.folds:
        lines.append("**Cut short**: folds that are not finished are left out.")
    for task, table in values["tasks"].items():
        lines += ["", f"### {task}: {', '.join(table['classes'])}", "", *_task_table(table)]
    if values["purity"]:
        lines += ["", "### Gain from the neighbour by purity of the pairs", "", *_purity_table(values["purity"])]
    return "\n".join(lines) + "\n"


def _task_table(table: dict[str, Any]) -> list[str]:
    shares = [point["share"] for point in next(iter(table["curves"].values()))["points"]]
    lines = ["| encoder | " + " | ".join(f"{share:.0%} of labels" for share in shares) + " | over SimSiam, 100 % |"]
    lines.append("|" + "---|" * (len(shares) + 2))
    for name, curve in table["curves"].items():
        cells = [_interval(point[METRIC]) for point in curve["points"]]
        over = table["against_simsiam"].get(name, {}).get("1")
        lines.append(f"| {curve['title']} | {' | '.join(cells)} | {'' if over is None else _difference(over)} |")
    return lines


def _interval(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _difference(value: dict[str, Any]) -> str:
    points = [100 * value[key] for key in ("difference", "low", "high")]
    return f"{points[0]:+.1f} ({points[1]:+.1f} to {points[2]:+.1f}), p {value['p_value']:.2f}"


def _purity_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| tiles | neighbours | purity | by chance | objective | gain, 10 % of labels | gain, 100 % | folds |"]
    lines.append("|" + "---|" * 8)
    for row in sorted(rows, key=lambda row: (row["family"], row["purity"])):
        gains = [_difference(row["gain"][share]) for share in ("0.1", "1")]
        what = [
            f"{row['tile_um']:.0f} um",
            row["title"],
            f"{row['purity']:.2f}",
            f"{row['by_chance']:.2f}",
            row["family"],
        ]
        lines.append(f"| {' | '.join([*what, *gains])} | {row['folds']} |")
    return lines

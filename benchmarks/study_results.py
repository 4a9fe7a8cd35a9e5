"""What came out of the study: label curves of every method, paired differences, and the gain from the neighbour by purity."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from study_charts import draw_label_curves, draw_purity
from study_data import TASKS, StudyData, fold_of_patients
from study_markdown import write_markdown
from study_plan import MAIN_PAIRING, METHODS, PAIRINGS, RANDOM, Run, SupervisedRun
from study_training import Work, curve_settings, recall_supervised

from simtriplet.evaluate.feature_geometry import measure_geometry
from simtriplet.evaluate.few_label_head import learn_linearly
from simtriplet.evaluate.label_curve import CurveSettings, LabelCurve
from simtriplet.evaluate.label_efficiency import LearnFold, PrepareFold, curve_of_tiles
from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.paired import PairedDifference, compare_curves
from simtriplet.evaluate.splits import Fold

METRIC = "balanced_accuracy"
SUPERVISED = "supervised"
_BASELINES = ("simsiam", SUPERVISED)
_MAIN_TILES = PAIRINGS[MAIN_PAIRING].tiles
_logger = logging.getLogger("study")
Features = dict[int, npt.NDArray[np.float32]]
"""By fold: (m, d) features of all evaluated tiles."""


def write_study(work: Work, data: StudyData) -> None:
    """Measure what is done and write study.json, study.md and the charts."""
    out = work.out
    results = StudyResults(work, data)
    compared = [name for name, method in METHODS.items() if not method.mends]
    n_folds = min(results.folds_done(name) for name in compared)
    tables: dict[str, Any] = {}
    if n_folds:
        for task in TASKS:
            _logger.info("label curves: %s", task)
            tables[task] = results.compare(task, compared, n_folds)
            (out / f"label_curves_{task}.png").write_bytes(draw_label_curves(tables[task], METRIC))
    purity = results.gains_by_purity()
    if purity:
        (out / "purity.png").write_bytes(draw_purity(purity))
    values = {
        "scale": asdict(work.scale),
        "patients": work.patients,
        "folds": n_folds,
        "tasks": tables,
        "encoders": results.describe([*compared, RANDOM], n_folds) if n_folds else {},
        "purity": purity,
        "remedies": results.judge_remedies(),
    }
    (out / "study.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (out / "study.md").write_text(write_markdown(values), encoding="utf-8")
    print((out / "study.md").read_text(encoding="utf-8"))


class StudyResults:
    """Measures what the runs left.

    Args:
        work: where the runs are.
        data: the tiles.
    """

    def __init__(self, work: Work, data: StudyData) -> None:
        self.work, self.data = work, data
        self._curves: dict[tuple[str, ...], LabelCurve] = {}

    def folds_done(self, method: str, pairing: str = MAIN_PAIRING) -> int:
        """Return how many folds of a method are done: the first ones, without a gap."""
        folds = range(self.work.scale.folds)
        done = [method == RANDOM or self.work.result_of(Run(method, pairing, fold)).exists() for fold in folds]
        return [*done, False].index(False)

    def compare(self, task: str, methods: Sequence[str], n_folds: int) -> dict[str, Any]:
        """Measure the label curve of each method, of random weights and of networks trained with labels."""
        labelled, _ = self.data.tiles(_MAIN_TILES).labelled(task)
        curves = {name: self.curve(task, name, n_folds) for name in [*methods, RANDOM]}
        if self._supervised_done(task) >= n_folds:
            curves[SUPERVISED] = self.curve(task, SUPERVISED, n_folds)
        return {
            "classes": labelled.classes,
            "n_tiles": len(labelled),
            "n_patients": len({patient for names in self.work.patients[:n_folds] for patient in names}),
            "curves": {name: _curve_values(curve) for name, curve in curves.items()},
            "against": {
                baseline: {
                    name: _differences(compare_curves(curve, curves[baseline]))
                    for name, curve in curves.items()
                    if name != baseline
                }
                for baseline in _BASELINES
                if baseline in curves
            },
        }

    def curve(self, task: str, method: str, n_folds: int, pairing: str = MAIN_PAIRING) -> LabelCurve:
        """Measure a label curve over the first folds, each with its own encoder, which never saw its test patients."""
        key = (task, method, str(n_folds), pairing)
        if key not in self._curves:
            tiles = self.data.tiles(PAIRINGS[pairing].tiles)
            labelled, places = tiles.labelled(task)
            folds = [fold_of_patients(labelled, names) for names in self.work.patients[:n_folds]]
            if method == SUPERVISED:
                files = [self.work.result_of(SupervisedRun(task, fold)) for fold in range(n_folds)]
                learn = recall_supervised(files)
            else:
                learn = _learn_from(self._features(method, n_folds, pairing), places, folds)
            title = {RANDOM: "random weights", SUPERVISED: "supervised from scratch"}.get(method, "")
            self._curves[key] = curve_of_tiles(
                labelled,
                curve_settings(self.work.scale),
                learn,
                features=title or METHODS[method].title,
                encoder={},
                label_source="GlaS",
                folds=folds,
            )
        return self._curves[key]

    def describe(self, methods: Sequence[str], n_folds: int) -> dict[str, dict[str, float]]:
        """Describe each method's encoders without a head, each on its fold's test tiles: means over the folds."""
        tiles = self.data.tiles(_MAIN_TILES)
        labelled, places = tiles.labelled("gland")
        found = {}
        for name in methods:
            features = self._features(name, n_folds, MAIN_PAIRING)
            rows = []
            for fold in range(n_folds):
                own = replace(labelled, features=features[fold][places])
                tested = fold_of_patients(own, self.work.patients[fold]).test
                numbers = asdict(measure_geometry(own, tested))
                if name != RANDOM:
                    record = self.work.record_of(Run(name, MAIN_PAIRING, fold))
                    numbers |= json.loads(record.read_text(encoding="utf-8"))
                rows.append(numbers)
            found[name] = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        return found

    def gains_by_purity(self) -> list[dict[str, Any]]:
        """Return for each pairing and family the gain of the triplet over two views, with what is known of the pairs."""
        rows = []
        for pairing in PAIRINGS.values():
            for two, three in (("simsiam", "simtriplet"), ("vicreg2", "vicreg3")):
                n_folds = min(self.folds_done(two, pairing.name), self.folds_done(three, pairing.name))
                if n_folds:
                    tiles = self.data.tiles(pairing.tiles)
                    purity, chance, n_pairs = tiles.purity(pairing.name)
                    curves = [self.curve("gland", method, n_folds, pairing.name) for method in (three, two)]
                    rows.append(
                        {
                            "pairing": pairing.name,
                            "title": pairing.title,
                            "tile_um": tiles.plan.side_um,
                            "family": METHODS[three].family,
                            "purity": purity,
                            "by_chance": chance,
                            "pairs": n_pairs,
                            "folds": n_folds,
                            "gain": _differences(compare_curves(*curves)),
                        }
                    )
        return rows

    def judge_remedies(self) -> list[dict[str, Any]]:
        """Compare each remedy with what it mends, and with SimSiam, over the folds that are done."""
        rows = []
        for name, method in METHODS.items():
            mends = method.mends
            if not mends:
                continue
            n_folds = min(self.folds_done(each) for each in (name, mends, "simsiam"))
            if n_folds:
                own = self.curve("gland", name, n_folds)
                rows.append(
                    {
                        "remedy": name,
                        "title": method.title,
                        "mends": METHODS[mends].title,
                        "folds": n_folds,
                        "curve": _curve_values(own),
                        "over_mended": _differences(compare_curves(own, self.curve("gland", mends, n_folds))),
                        "over_simsiam": _differences(compare_curves(own, self.curve("gland", "simsiam", n_folds))),
                    }
                )
        return rows

    def _supervised_done(self, task: str) -> int:
        done = [self.work.result_of(SupervisedRun(task, fold)).exists() for fold in range(self.work.scale.folds)]
        return [*done, False].index(False)

    def _features(self, method: str, n_folds: int, pairing: str) -> Features:
        if method == RANDOM:
            file = self.work.out / "features" / f"{RANDOM}.npy"
            return dict.fromkeys(range(n_folds), np.asarray(np.load(file), np.float32))
        return {
            fold: np.asarray(np.load(self.work.result_of(Run(method, pairing, fold))), np.float32)
            for fold in range(n_folds)
        }


def _learn_from(features: Features, places: npt.NDArray[np.int64], folds: Sequence[Fold]) -> PrepareFold:
    """Return a linear head's way to learn, on the features of each fold's own encoder."""
    number_of = {fold.test.tobytes(): number for number, fold in enumerate(folds)}

    def learn(tiles: LabelledTiles, fold: Fold, settings: CurveSettings) -> LearnFold:
        own = features[number_of[fold.test.tobytes()]][places]
        return learn_linearly(replace(tiles, features=own), fold, settings)

    return learn


def _curve_values(curve: LabelCurve) -> dict[str, Any]:
    points = [
        {"share": point.amount, "labels": point.draws[0].n_labels, **{m: asdict(i) for m, i in point.intervals.items()}}
        for point in curve.points
    ]
    return {"title": curve.features, "points": points}


def _differences(found: dict[float, dict[str, PairedDifference]]) -> dict[str, Any]:
    return {f"{share:g}": asdict(by_metric[METRIC]) for share, by_metric in found.items()}

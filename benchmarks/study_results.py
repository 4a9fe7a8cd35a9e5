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
from study_plan import COMPARED, MAIN_PAIRING, METHODS, NETWORKS, PAIRINGS, RANDOM, Heads, Run, SupervisedRun
from study_training import Work, curve_settings, fit_all, recall_answers

from simtriplet.evaluate.feature_geometry import measure_geometry
from simtriplet.evaluate.label_curve import LabelCurve
from simtriplet.evaluate.label_efficiency import curve_of_tiles
from simtriplet.evaluate.paired import PairedDifference, compare_curves

METRIC = "balanced_accuracy"
_BASELINES = ("simsiam", "supervised")
_MAIN_TILES = PAIRINGS[MAIN_PAIRING].tiles
_logger = logging.getLogger("study")
Features = dict[int, npt.NDArray[np.float32]]
"""By fold: (m, d) features of all evaluated tiles."""


def write_study(work: Work, data: StudyData, *, jobs: int) -> int:
    """Measure what is done and write study.json, study.md and the charts; return how many measurements failed."""
    out = work.out
    results = StudyResults(work, data)
    if failed := fit_all(results.heads(), work, jobs=jobs):
        return failed
    n_folds = min(results.folds_done(name) for name in COMPARED)
    tables: dict[str, Any] = {}
    if n_folds:
        for task in TASKS:
            tables[task] = results.compare(task, COMPARED, n_folds)
            (out / f"label_curves_{task}.png").write_bytes(draw_label_curves(tables[task], METRIC))
    purity = results.gains_by_purity()
    if purity:
        (out / "purity.png").write_bytes(draw_purity(purity))
    values = {
        "scale": asdict(work.scale),
        "patients": work.patients,
        "folds": n_folds,
        "tasks": tables,
        "encoders": results.describe([*COMPARED, RANDOM], n_folds) if n_folds else {},
        "purity": purity,
        "remedies": results.judge_remedies(),
    }
    (out / "study.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (out / "study.md").write_text(write_markdown(values), encoding="utf-8")
    print((out / "study.md").read_text(encoding="utf-8"))
    return 0


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
        done = [method == RANDOM or self._is_done(Run(method, pairing, fold)) for fold in folds]
        return _leading(done)

    def _is_done(self, run: Run) -> bool:
        """Tell whether a run left features, and make sure that its encoder never saw its test patients."""
        if not self.work.result_of(run).exists():
            return False
        seen = json.loads((self.work.out / "runs" / run.name / "encoder.json").read_text(encoding="utf-8"))["patients"]
        if both := set(seen) & set(self.work.patients[run.fold]):
            raise RuntimeError(f"run {run.name}: learnt from test patients {sorted(both)}; delete it and begin again")
        return True

    def heads(self) -> list[Heads]:
        """Return the heads that the report asks: all tasks for the main comparison, gland against stroma for the rest."""
        wanted = [
            heads_of(name, fold, task)
            for name in [*COMPARED, RANDOM]
            for fold in range(self.folds_done(name))
            for task in TASKS
        ]
        others = [(name, MAIN_PAIRING) for name in self.work.scale.remedies]
        others += [(name, pairing) for name in COMPARED for pairing in self.work.scale.pairings]
        wanted += [
            heads_of(name, fold, "gland", pairing)
            for name, pairing in others
            for fold in range(self.folds_done(name, pairing))
        ]
        return list(dict.fromkeys(wanted))

    def compare(self, task: str, methods: Sequence[str], n_folds: int) -> dict[str, Any]:
        """Measure the label curve of each method, of random weights and of networks trained with labels."""
        labelled, _ = self.data.tiles(_MAIN_TILES).labelled(task)
        curves = {name: self.curve(task, name, n_folds) for name in [*methods, RANDOM]}
        for kind in NETWORKS:
            if self._networks_done(kind, task) >= n_folds:
                curves[kind] = self.curve(task, kind, n_folds)
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
            labelled, _ = tiles.labelled(task)
            folds = [fold_of_patients(labelled, names) for names in self.work.patients[:n_folds]]
            if method in NETWORKS:
                files = [self.work.result_of(SupervisedRun(method, task, fold)) for fold in range(n_folds)]
            else:
                files = [self.work.result_of(heads_of(method, fold, task, pairing)) for fold in range(n_folds)]
            self._curves[key] = curve_of_tiles(
                labelled,
                curve_settings(self.work.scale),
                recall_answers(files),
                features=_title(method),
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
        for pairing in map(PAIRINGS.__getitem__, self.work.scale.pairings):
            for two, three in (("simsiam", "simtriplet"), ("vicreg2", "vicreg3")):
                n_folds = min(self.folds_done(two, pairing.name), self.folds_done(three, pairing.name))
                if n_folds:
                    tiles = self.data.tiles(pairing.tiles)
                    purity = tiles.purity(pairing.name)
                    curves = [self.curve("gland", method, n_folds, pairing.name) for method in (three, two)]
                    rows.append(
                        {
                            "pairing": pairing.name,
                            "title": pairing.title,
                            "tile_um": tiles.plan.side_um,
                            "family": METHODS[three].family,
                            "purity": purity.share,
                            "by_chance": purity.by_chance,
                            "judged": purity.judged,
                            "isolated": purity.isolated,
                            "folds": n_folds,
                            "gain": _differences(compare_curves(*curves)),
                        }
                    )
        return rows

    def judge_remedies(self) -> list[dict[str, Any]]:
        """Compare each remedy with what it mends, with SimSiam and with networks from scratch, over the folds that are done.

        Fine-tuning mends the network from scratch.
        """
        rows = []
        for name in [*self.work.scale.remedies, "finetuned"]:
            title, mends = (
                (_title(name), "supervised") if name in NETWORKS else (METHODS[name].title, METHODS[name].mends)
            )
            rivals = (mends, "simsiam", "supervised")
            n_folds = min(self._done(each) for each in (name, *rivals))
            if n_folds:
                own = self.curve("gland", name, n_folds)
                over = [_differences(compare_curves(own, self.curve("gland", rival, n_folds))) for rival in rivals]
                rows.append(
                    {
                        "remedy": name,
                        "title": title,
                        "mends": _title(mends),
                        "folds": n_folds,
                        "curve": _curve_values(own),
                        **dict(zip(("over_mended", "over_simsiam", "over_supervised"), over, strict=True)),
                    }
                )
        return rows

    def _done(self, name: str) -> int:
        """Return how many folds of a method, or of networks for gland against stroma, are done."""
        return self._networks_done(name, "gland") if name in NETWORKS else self.folds_done(name)

    def _networks_done(self, kind: str, task: str) -> int:
        folds = range(self.work.scale.folds)
        done = [self.work.result_of(SupervisedRun(kind, task, fold)).exists() for fold in folds]
        return _leading(done)

    def _features(self, method: str, n_folds: int, pairing: str) -> Features:
        if method == RANDOM:
            file = self.work.out / "features" / f"{RANDOM}.npy"
            return dict.fromkeys(range(n_folds), np.asarray(np.load(file), np.float32))
        return {
            fold: np.asarray(np.load(self.work.result_of(Run(method, pairing, fold))), np.float32)
            for fold in range(n_folds)
        }


def heads_of(method: str, fold: int, task: str, pairing: str = MAIN_PAIRING) -> Heads:
    """Return the heads of a method's encoder in a fold."""
    name = RANDOM if method == RANDOM else Run(method, pairing, fold).name
    return Heads(name, fold, task, PAIRINGS[pairing].tiles)


def _leading(done: Sequence[bool]) -> int:
    """Return how many folds are done before the first that is not."""
    return [*done, False].index(False)


def _title(method: str) -> str:
    if method in NETWORKS:
        return NETWORKS[method].title
    return "random weights" if method == RANDOM else METHODS[method].title


def _curve_values(curve: LabelCurve) -> dict[str, Any]:
    points = [
        {"share": point.amount, "labels": point.draws[0].n_labels, **{m: asdict(i) for m, i in point.intervals.items()}}
        for point in curve.points
    ]
    return {"title": curve.features, "points": points}


def _differences(found: dict[float, dict[str, PairedDifference]]) -> dict[str, Any]:
    return {f"{share:g}": asdict(by_metric[METRIC]) for share, by_metric in found.items()}

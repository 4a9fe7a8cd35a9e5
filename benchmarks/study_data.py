"""The tiles of the study: cut, indexed, labelled and split, all of it once."""

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from study_plan import PAIRINGS, TILES, Pairing, TilePlanOfStudy

from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.labels import tile_ids
from simtriplet.evaluate.splits import Fold, patient_folds
from simtriplet.pipelines.batch import tile_batch
from simtriplet.pipelines.manifest import collect_jobs
from simtriplet.wsi.gate_spec import GateSpec
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.store import STORE_SUFFIX, TileStore, open_stores
from simtriplet.wsi.tiling import LabelSpec, SlideJob, TileRequest
from simtriplet.wsi.tissue import TissueSpec

TASKS = ("gland", "diagnosis", "grade")
"""Gland against stroma, tile by tile; and the slide's diagnosis (two classes) and grade (five) for each of its tiles."""

_BACKGROUND = "stroma"
_CLEAR = 0.75
"""Share of a tile that its class must cover; tiles in between have no label."""

_logger = logging.getLogger(__name__)
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SlideRow:
    """A line of the data set's labels.csv."""

    patient: str
    diagnosis: str
    grade: str


class StudyData:
    """GlaS, cut in several ways.

    Args:
        source: folder with slides/, annotations/ and labels.csv.
        out: where stores go.
    """

    def __init__(self, source: Path, out: Path) -> None:
        self.source, self.out = source, out
        with (source / "labels.csv").open(newline="", encoding="utf-8") as file:
            self.rows = {
                row["slide_id"]: SlideRow(row["patient_id"], row["diagnosis"], row["grade"])
                for row in csv.DictReader(file)
            }
        self._tiles: dict[str, StudyTiles] = {}

    def tiles(self, name: str) -> "StudyTiles":
        """Return the tiles cut in one way, with their indices; cut and indexed where that is not done."""
        if name not in self._tiles:
            stores = self._cut(TILES[name])
            for pairing in PAIRINGS.values():
                if pairing.tiles == name:
                    self._index(stores, pairing)
            self._tiles[name] = StudyTiles(TILES[name], open_stores([self.out / name]), self.rows)
        return self._tiles[name]

    def _cut(self, plan: TilePlanOfStudy) -> list[TileStore]:
        folder = self.out / plan.name
        jobs = collect_jobs([self.source / "slides"], annotations=self.source / "annotations")
        jobs = [replace(job, patient_id=self.rows[job.slide_id].patient) for job in jobs]
        request = TileRequest(
            TilingSpec(mpp=plan.mpp, size_px=plan.size_px, stride_px=plan.stride_px),
            TissueSpec(detector="all"),
            LabelSpec(_CLEAR, _BACKGROUND),
        )
        missing = [job for job in jobs if not (folder / f"{job.slide_id}{STORE_SUFFIX}").exists()]
        folder.mkdir(parents=True, exist_ok=True)
        _require_all(missing, folder, request)
        return open_stores([folder])

    def _index(self, stores: Sequence[TileStore], pairing: Pairing) -> None:
        gates = GateSpec(annotations=self.source / "annotations" if pairing.at_borders else None)
        for store in stores:
            if pairing.name not in store.neighbour_names():
                index_store(store, pairing.request.make_rule(), gates=gates, name=pairing.name)


def _require_all(jobs: Sequence[SlideJob], folder: Path, request: TileRequest) -> None:
    for outcome in tile_batch(jobs, folder, request, existing="error"):
        if outcome.summary is None:
            raise RuntimeError(f"slide {outcome.slide_id}: {outcome.reason}")


@dataclass(frozen=True, slots=True)
class PairPurity:
    """How far neighbours are of one class.

    Attributes:
        share: of the clear neighbours of a clear anchor (gland or stroma), those of its class; mean over such anchors.
        by_chance: the same for a neighbour drawn from all of them.
        judged: share of all tiles that are such anchors: of the others nothing is known.
        isolated: share of all tiles that have no neighbour and are paired with themselves.
    """

    share: float
    by_chance: float
    judged: float
    isolated: float


class StudyTiles:
    """All tiles of one plan.

    Args:
        plan: how they were cut.
        stores: in the order of slide ids.
        rows: the labels of slides.
    """

    def __init__(self, plan: TilePlanOfStudy, stores: Sequence[TileStore], rows: dict[str, SlideRow]) -> None:
        self.plan, self.rows = plan, rows
        self.stores = sorted(stores, key=lambda store: store.slide_id)

    @cached_property
    def evaluated(self) -> list[_Ints]:
        """Per store the rows of the tiles that are evaluated: those of a lattice without overlap."""
        kept = []
        for store in self.stores:
            row, col = store.numbers("row"), store.numbers("col")
            kept.append(np.flatnonzero((row % self.plan.step == 0) & (col % self.plan.step == 0)))
        return kept

    def labelled(self, task: str) -> tuple[LabelledTiles, _Ints]:
        """Return the evaluated tiles that have a label for a task, and their places among all evaluated ones."""
        names = [self._names(store, kept, task) for store, kept in zip(self.stores, self.evaluated, strict=True)]
        flat = np.concatenate(names)
        places = np.flatnonzero(flat != "")
        classes = tuple(sorted(set(flat[places].tolist())))
        owners = np.repeat(np.arange(len(self.stores)), [len(kept) for kept in self.evaluated])[places]
        slides = np.array([store.slide_id for store in self.stores], dtype=object)[owners]
        tiles = LabelledTiles(
            features=np.zeros((len(places), 1), np.float32),
            codes=np.array([classes.index(name) for name in flat[places]], np.int64),
            classes=classes,
            patients=np.array([self.rows[slide].patient for slide in slides.tolist()], dtype=object),
            slides=slides,
            tile_ids=np.concatenate([tile_ids(s)[k] for s, k in zip(self.stores, self.evaluated, strict=True)])[places],
            rows=np.concatenate(self.evaluated)[places],
            base_xy=np.concatenate([s.base_xy()[k] for s, k in zip(self.stores, self.evaluated, strict=True)])[places],
        )
        return tiles, places

    def _names(self, store: TileStore, kept: _Ints, task: str) -> npt.NDArray[np.object_]:
        row = self.rows[store.slide_id]
        if task != "gland":
            return np.full(len(kept), row.diagnosis if task == "diagnosis" else row.grade, dtype=object)
        labels = store.labels()
        assert labels is not None
        return np.array([name or "" for name in labels.names()[kept]], dtype=object)

    def read_evaluated(self) -> npt.NDArray[np.uint8]:
        """Return (m, s, s, 3) uint8, the pixels of all evaluated tiles."""
        return np.concatenate([s.images.read(k) for s, k in zip(self.stores, self.evaluated, strict=True)])

    def purity(self, index: str) -> PairPurity:
        """Measure how often a neighbour is of the anchor's class, as training draws them: anchors alike, then neighbours alike.

        Args:
            index: name of the neighbour index.
        """
        shares: list[float] = []
        classes: list[str] = []
        isolated = total = 0
        for store in self.stores:
            graph, labels = store.neighbours(index), store.labels()
            assert labels is not None
            codes = np.asarray(labels.codes)
            anchors = np.repeat(np.arange(len(codes)), graph.degrees)
            clear = (codes[anchors] >= 0) & (codes[graph.indices] >= 0)
            alike = clear & (codes[anchors] == codes[graph.indices])
            of_anchor = np.bincount(anchors[clear], minlength=len(codes))
            known = np.flatnonzero(of_anchor)
            shares += (np.bincount(anchors[alike], minlength=len(codes))[known] / of_anchor[known]).tolist()
            classes += labels.names()[known].tolist()
            isolated, total = isolated + int((graph.degrees == 0).sum()), total + len(codes)
        of_class = np.unique(np.array(classes, dtype=str), return_counts=True)[1] / max(1, len(classes))
        return PairPurity(float(np.mean(shares)), float((of_class**2).sum()), len(shares) / total, isolated / total)


def kept_folds(file: Path, tiles: LabelledTiles, folds: int) -> tuple[tuple[str, ...], ...]:
    """Return the test patients of each fold: the same for every task, method and kind of tiles, and as long as `file` lives.

    Runs that are done left those patients out; a splitter that has changed since must not move them.
    """
    if not file.exists():
        found: Sequence[Fold] = patient_folds(tiles.codes, tiles.patients, classes=tiles.classes, folds=folds, seed=0)
        names = [sorted(set(tiles.patients[fold.test].tolist())) for fold in found]
        file.write_text(json.dumps(names) + "\n", encoding="utf-8")
    return tuple(tuple(names) for names in json.loads(file.read_text(encoding="utf-8")))


def fold_of_patients(tiles: LabelledTiles, test_patients: Sequence[str]) -> Fold:
    """Return the fold in which the tiles of these patients are tested."""
    test = np.isin(tiles.patients.astype(str), list(test_patients))
    return Fold(np.flatnonzero(~test), np.flatnonzero(test))

"""Which class each tile has, and which patient each slide: from the stores' annotations or from a CSV file."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.label_file import LabelRow, read_label_file
from simtriplet.wsi.errors import AnnotationError, EvaluationError
from simtriplet.wsi.registry import nearest_name
from simtriplet.wsi.store import TileStore

__all__ = ["TileLabels", "has_labels", "read_labels", "tile_ids"]

UNLABELLED = -1

SLIDE_LABEL = "label"
"""The only column that labels of whole slides stand for, as a manifest has no other."""

_NAMED = 5
"""Slides named in a warning."""

_logger = logging.getLogger(__name__)
_Names = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class TileLabels:
    """Labels of the tiles of several stores.

    Attributes:
        classes: class names in code order; each has a tile.
        codes: per store (n,) int64, -1 where there is no label.
        patients: per store, the patient.
        source: where the labels come from, for a reader.
    """

    classes: tuple[str, ...]
    codes: tuple[npt.NDArray[np.int64], ...]
    patients: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if len(self.codes) != len(self.patients):
            raise EvaluationError(
                f"labels of {len(self.codes)} stores for {len(self.patients)} patients; give one per store"
            )

    def keep_classes(self, wanted: Sequence[str]) -> "TileLabels":
        """Return the labels of these classes only; tiles of other classes become unlabelled.

        Raises:
            EvaluationError: if a class has no tile, or fewer than two are left.
        """
        for name in wanted:
            if name not in self.classes:
                hint = nearest_name(name, self.classes)
                raise EvaluationError(f"class {name!r}: no tile has it{hint}; known are {', '.join(self.classes)}")
        kept = tuple(name for name in self.classes if name in wanted)
        if len(kept) < 2:
            raise EvaluationError(f"classes {', '.join(kept)}: fewer than two cannot be told apart; name more")
        table = np.array([*(kept.index(name) if name in kept else UNLABELLED for name in self.classes), UNLABELLED])
        return TileLabels(kept, tuple(table[codes] for codes in self.codes), self.patients, self.source)


def tile_ids(store: TileStore) -> npt.NDArray[np.object_]:
    """Return the (n,) tile ids of a store, its obs names."""
    return store.tile_ids()


def read_labels(
    stores: Sequence[TileStore],
    *,
    file: str | Path | None = None,
    label_column: str = "label",
    patient_column: str | None = None,
) -> TileLabels:
    """Find the label of every tile and the patient of every slide.

    Args:
        stores: the slides.
        file: a CSV of labels by slide or by tile (see read_label_file); without it the stores' own column is read, and where
            no store has the column `label`, the label of each whole slide.
        label_column: the column of the file or of the stores.
        patient_column: the file's column of patients; without one the patients are those the stores know.

    Raises:
        AnnotationError: if the file is not valid or does not fit the stores.
        EvaluationError: if fewer than two classes are found, or two stores are of one slide file.
    """
    _refuse_copies(stores)
    file = None if file is None else Path(file)
    patients = {store.slide_id: store.patient_id for store in stores}
    named = {store.slide_id for store in stores if store.attributes["slide"].get("patient_id")}
    if file is None and label_column == SLIDE_LABEL and _are_labelled_by_slide(stores):
        names = [np.full(len(store), _slide_label(store), dtype=object) for store in stores]
        source = "slide labels (of the manifest that was tiled)"
    elif file is None:
        names = [_own_names(store, label_column) for store in stores]
        _warn_of_unlabelled(
            [store.slide_id for store in stores if store.labels(label_column) is None], f"column {label_column!r}"
        )
        source = f"annotations (column {label_column!r} of the stores)"
    else:
        rows = read_label_file(file, label_column=label_column, patient_column=patient_column)
        names = _names_from_rows(stores, rows, file)
        by_file = {row.slide_id: row.patient_id for row in rows if row.patient_id}
        patients, named = patients | by_file, named | by_file.keys()
        source = f"{file.name}, column {label_column!r}"
    _warn_of_unknown_patients([store.slide_id not in named for store in stores], names)
    return _encode(names, tuple(patients[store.slide_id] for store in stores), source)


def has_labels(stores: Sequence[TileStore], label_column: str = SLIDE_LABEL) -> bool:
    """Tell whether stores have labels of their own that read_labels would find, of tiles or of whole slides."""
    by_tile = any(store.labels(label_column) is not None for store in stores)
    return by_tile or (label_column == SLIDE_LABEL and _are_labelled_by_slide(stores))


def _slide_label(store: TileStore) -> str | None:
    label = store.attributes["slide"].get("label")
    return None if label is None else str(label)


def _warn_of_unknown_patients(unknown: Sequence[bool], names: Sequence[_Names]) -> None:
    labelled = [is_unknown for is_unknown, part in zip(unknown, names, strict=True) if any(name for name in part)]
    if any(labelled):
        _logger.warning(
            "patients of %d of %d labelled slides are not known: each of these slides counts as a patient of its own; "
            "name them in the manifest or in --labels (column patient_id)",
            sum(labelled),
            len(labelled),
        )


def _are_labelled_by_slide(stores: Sequence[TileStore]) -> bool:
    """Tell whether tiles have no labels, but slides do."""
    return all(store.labels(SLIDE_LABEL) is None for store in stores) and any(map(_slide_label, stores))


def _refuse_copies(stores: Sequence[TileStore]) -> None:
    """Refuse one slide under two names: it would be learnt from and tested on."""
    first: dict[str, str] = {}
    for store in stores:
        fingerprint = store.attributes["slide"].get("fingerprint")
        if fingerprint is None:
            continue
        if fingerprint in first:
            raise EvaluationError(
                f"slides {first[fingerprint]!r} and {store.slide_id!r}: are made from the same file; leave one of them out"
            )
        first[fingerprint] = store.slide_id


def _own_names(store: TileStore, column: str) -> _Names:
    labels = store.labels(column)
    return np.full(len(store), None, dtype=object) if labels is None else labels.names()


def _warn_of_unlabelled(slides: Sequence[str], where: str) -> None:
    if slides:
        named = ", ".join(slides[:_NAMED]) + (f" and {len(slides) - _NAMED} more" if len(slides) > _NAMED else "")
        _logger.warning("%d slides have no labels (%s), their tiles are left out: %s", len(slides), where, named)


def _encode(names: Sequence[_Names], patients: tuple[str, ...], source: str) -> TileLabels:
    classes = tuple(sorted({str(name) for part in names for name in part if name is not None}))
    if len(classes) < 2:
        found = f"one class only ({classes[0]!r})" if classes else "no label"
        raise EvaluationError(
            f"labels from {source}: {found}; tile with --annotations or pass --labels with two or more classes"
        )
    code_of: Mapping[str | None, int] = {name: code for code, name in enumerate(classes)}
    codes = tuple(np.array([code_of.get(name, UNLABELLED) for name in part], dtype=np.int64) for part in names)
    return TileLabels(classes, codes, patients, source)


def _names_from_rows(stores: Sequence[TileStore], rows: Iterable[LabelRow], file: Path) -> list[_Names]:
    by_slide: dict[str, list[LabelRow]] = {store.slide_id: [] for store in stores}
    strangers: dict[str, int] = {}
    for row in rows:
        if row.slide_id in by_slide:
            by_slide[row.slide_id].append(row)
        else:
            strangers.setdefault(row.slide_id, row.line)
    _tell_of_strangers(strangers, by_slide, file)
    _warn_of_unlabelled([slide_id for slide_id, found in by_slide.items() if not found], file.name)
    return [_names_of_store(store, by_slide[store.slide_id], file) for store in stores]


def _tell_of_strangers(strangers: Mapping[str, int], by_slide: Mapping[str, Sequence[LabelRow]], file: Path) -> None:
    """Warn of rows of slides that have no store: a table is often of more slides than were tiled.

    Raises:
        AnnotationError: if no row has one.
    """
    if not strangers:
        return
    slide_id, line = next(iter(strangers.items()))
    hint = nearest_name(slide_id, [store_id for store_id, rows in by_slide.items() if not rows])
    if not any(by_slide.values()):
        raise AnnotationError(
            f"label file '{file}', line {line}: slide {slide_id!r} has no store here{hint}, and neither has any other; "
            "pass their stores or correct the column slide_id"
        )
    several = f" (and {len(strangers) - 1} more)" if len(strangers) > 1 else ""
    _logger.warning(
        "label file '%s', line %d: slide %r%s has no store here%s; left out", file.name, line, slide_id, several, hint
    )


def _names_of_store(store: TileStore, rows: Sequence[LabelRow], file: Path) -> _Names:
    names = np.full(len(store), None, dtype=object)
    if not rows:
        return names
    if rows[0].tile is None:
        names[:] = rows[0].label
        return names
    keys = tile_ids(store).tolist() if isinstance(rows[0].tile, str) else list(map(tuple, store.base_xy().tolist()))
    place_of = {key: place for place, key in enumerate(keys)}
    for row in rows:
        if row.tile not in place_of:
            raise AnnotationError(
                f"label file '{file}', line {row.line}: slide {row.slide_id!r} has no tile {row.tile!r}; "
                f"its tiles are named like {keys[0] if keys else 'nothing'!r}, correct the row"
            )
        names[place_of[row.tile]] = row.label
    return names

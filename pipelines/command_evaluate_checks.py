"""What `evaluate`, `compare` and `predict` check of their options before anything is measured."""

from collections.abc import Sequence
from pathlib import Path

from simtriplet.evaluate.saved_head import load_head
from simtriplet.pipelines.output_hold import check_folder
from simtriplet.pipelines.patient_list import read_patients
from simtriplet.wsi.errors import CheckpointError, SettingsError
from simtriplet.wsi.reach import exists
from simtriplet.wsi.store import TileStore

__all__ = [
    "check_head_file",
    "check_label_options",
    "parse_classes",
    "read_test_patients",
    "require_features",
]

_RESULT_FILE = "results.json"


def read_test_patients(path: Path | None) -> tuple[str, ...]:
    """Return the patients that --test-patients names, none where it was not given.

    Raises:
        SettingsError: if the file cannot be read or names nobody: folds would be made, which nobody asked for.
    """
    if path is None:
        return ()
    patients = read_patients(path)
    if not patients:
        raise SettingsError(f"--test-patients '{path}': names nobody; write one patient a line or leave it out")
    return patients


def parse_classes(text: str | None) -> tuple[str, ...]:
    """Return the classes that --classes names, none where it was not given: that is, all.

    Raises:
        SettingsError: if there is nothing between two commas.
    """
    if text is None:
        return ()
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise SettingsError(f"--classes {text!r}: must be names with commas between; pass tumour,stroma")
    return names


def check_label_options(labels: Path | None, patient_column: str | None) -> None:
    """Refuse a column of a file that was not given.

    Raises:
        SettingsError: if there is one.
    """
    if labels is None and patient_column is not None:
        raise SettingsError(
            f"--patient-column {patient_column!r}: is a column of --labels; give that file or leave it out"
        )


def require_features(stores: Sequence[TileStore], names: Sequence[str]) -> None:
    """Fail at once where a store lacks features, rather than after the first of them were measured.

    Raises:
        StoreError: if it does.
    """
    for name in names:
        for store in stores:
            if not store.features_exist(name):
                store.features(name)  # says what there is


def check_head_file(head: Path, out: Path) -> None:
    """Make sure that a head can be written where --save-head says, and takes the place of nothing but a head.

    Raises:
        SettingsError: if another file or a folder is there, or results will be.
        UnreachableError: if what is there is out of reach.
        EvaluationError: if its folder cannot be made or written.
    """
    taken = head.resolve() == (out / _RESULT_FILE).resolve()
    if exists(head):
        try:
            load_head(head)
        except CheckpointError:
            taken = True
    if taken:
        raise SettingsError(f"--save-head '{head}': is the name of something that is no head; choose another one")
    check_folder(head.parent, option="--save-head")

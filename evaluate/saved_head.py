"""A linear head as a file: one JSON document with its numbers, its classes and the encoder whose features it reads."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.atomic_output import replace_file
from simtriplet.evaluate.evaluation import EvaluationResult
from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.linear_head import LinearHead, fit_heads
from simtriplet.evaluate.linear_probe import LinearProbe
from simtriplet.wsi.errors import CheckpointError
from simtriplet.wsi.metadata import DAMAGE, check_signed_json, read_regular_file, signed_json

__all__ = ["SavedHead", "fit_head", "fit_result_head", "load_head", "save_head"]

SCHEMA = "simtriplet.head"
VERSION = "1.1"  # 1.1 adds slides
MAX_FILE_BYTES = 1 << 28

_ARRAYS = ("mean", "scale", "weight", "bias")


@dataclass(frozen=True, slots=True)
class SavedHead:
    """A head and what it belongs to.

    Attributes:
        head: over the classes.
        classes: names in code order.
        features: the name `embed` was given.
        encoder: what `embed` recorded of the encoder; features of another are refused.
        fitted: how C was chosen, and whether the optimiser reached its tolerance.
        n_tiles: labelled tiles learnt from.
        patients: whose they are, sorted.
        slides: where they lie, sorted; a label file may name patients otherwise than the stores do.
    """

    head: LinearHead
    classes: tuple[str, ...]
    features: str
    encoder: dict[str, Any]
    fitted: dict[str, Any]
    n_tiles: int
    patients: tuple[str, ...]
    slides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        k, d = self.head.weight.shape
        shapes = self.head.mean.shape, self.head.scale.shape, self.head.bias.shape
        if shapes != ((d,), (d,), (k,)) or len(self.classes) != k or len(set(self.classes)) != k or k < 2:
            raise CheckpointError(
                f"head of {len(self.classes)} classes: has arrays of other shapes {shapes}; save it again"
            )
        finite = np.isfinite(self.head.weight).all() and np.isfinite(self.head.mean).all()
        if not finite or not (self.head.scale > 0).all() or np.isnan(self.head.bias).any():
            raise CheckpointError(f"head of {len(self.classes)} classes: has values that are not finite; save it again")


def fit_head(tiles: LabelledTiles, *, features: str, encoder: dict[str, Any], seed: int = 0) -> SavedHead:
    """Fit a head on all labelled tiles, C chosen as the protocol `linear` does: by inner folds of patients.

    Args:
        tiles: with features.
        features: their name.
        encoder: see encoder_record.
        seed: of the inner folds.

    Raises:
        EvaluationError: if the tiles are all of one class.
    """
    everything = np.arange(len(tiles))
    strength, chosen_by = LinearProbe().choose_strength(tiles, everything, seed=seed)
    (head,) = fit_heads(tiles.features, tiles.codes, n_classes=len(tiles.classes), strengths=[strength])
    fitted = {"C": strength, "C_chosen_by": chosen_by, "converged": head.converged}
    patients, slides = (tuple(sorted(set(names.tolist()))) for names in (tiles.patients, tiles.slides))
    return SavedHead(head, tiles.classes, features, dict(encoder), fitted, len(tiles), patients, slides)


def fit_result_head(result: EvaluationResult) -> SavedHead:
    """Fit a head on all the tiles that an evaluation of features was made of, with its seed; see fit_head."""
    return fit_head(result.tiles, features=result.features, encoder=result.encoder, seed=result.settings.seed)


def save_head(path: str | Path, saved: SavedHead) -> Path:
    """Write a head; numbers are written so that reading gives them back exactly.

    Returns:
        `path`.

    Raises:
        EvaluationError: if it cannot be written.
    """
    path = Path(path)
    head = saved.head
    values = {
        "schema": SCHEMA,
        "version": VERSION,
        "classes": list(saved.classes),
        "features": saved.features,
        "encoder": saved.encoder,
        "fitted": saved.fitted,
        "n_tiles": saved.n_tiles,
        "patients": list(saved.patients),
        "slides": list(saved.slides),
        "mean": head.mean.tolist(),
        "scale": head.scale.tolist(),
        "weight": head.weight.tolist(),
        # JSON has no infinity, which stands for a class that was not in training
        "bias": [None if math.isinf(value) else value for value in head.bias.tolist()],
    }
    return replace_file(path, signed_json(values))


def load_head(path: str | Path) -> SavedHead:
    """Read a head.

    Raises:
        CheckpointError: if it is missing, damaged, of another kind or of a newer major version.
    """
    path = Path(path)
    values = _read(path)
    if values.get("schema") != SCHEMA:
        raise CheckpointError(f"head '{path}': is not a head; make one with simtriplet evaluate --save-head")
    version = str(values.get("version"))
    if version.partition(".")[0] != VERSION.partition(".")[0]:
        raise CheckpointError(
            f"head '{path}': has format version {version}, this program reads {VERSION}; save it again"
        )
    try:
        mean, scale, weight, bias = (_floats(values[name]) for name in _ARRAYS)
        fitted, encoder = dict(values["fitted"]), dict(values["encoder"])
        head = LinearHead(mean, scale, weight, bias, float(fitted["C"]), bool(fitted["converged"]))
        classes, patients = (tuple(map(str, values[name])) for name in ("classes", "patients"))
        slides = tuple(map(str, values.get("slides", ())))
        return SavedHead(
            head, classes, str(values["features"]), encoder, fitted, int(values["n_tiles"]), patients, slides
        )
    except DAMAGE as error:
        raise CheckpointError(f"head '{path}': is damaged ({error}); save it again") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
        values = check_signed_json(read_regular_file(path))
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        raise CheckpointError(f"head '{path}': cannot be read ({reason}); give a file of --save-head") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"head '{path}': is not a head; make one with simtriplet evaluate --save-head")
    return values


def _floats(values: Any) -> npt.NDArray[np.float64]:
    filled = [-math.inf if value is None else value for value in values]
    return np.array(filled, dtype=np.float64)

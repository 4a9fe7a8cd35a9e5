"""Run an encoder over a store's tiles and keep the features in its table."""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from simtriplet.evaluate.feature_array import check_feature_name, write_features
from simtriplet.pretrain.encoder import Encoder
from simtriplet.pretrain.precision import pick_precision
from simtriplet.pretrain.settings import PrecisionName
from simtriplet.wsi.errors import EvaluationError, SettingsError, StoreExistsError
from simtriplet.wsi.store import TileStore

__all__ = ["EmbedSummary", "embed_store"]

Existing = Literal["skip", "replace", "error"]

MPP_WARNING = 0.05
"""Above this relative difference the tiles look other than those trained on, though features still make sense."""

MPP_LIMIT = 2.0
"""Beyond this factor nuclei have the size of other structures: an error, because no result would mean anything."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EmbedSummary:
    """What `embed` prints for one store.

    Attributes:
        slide_id: the slide.
        name: the features' name.
        n_tiles: rows.
        feature_dim: columns.
        seconds: time taken; 0 where skipped.
        skipped: the same encoder's features of the same tiles were there.
    """

    slide_id: str
    name: str
    n_tiles: int
    feature_dim: int
    seconds: float
    skipped: bool


def embed_store(
    store: TileStore,
    encoder: Encoder,
    *,
    name: str,
    batch_size: int = 256,
    device: str = "auto",
    precision: PrecisionName = "auto",
    existing: Existing = "replace",
    progress: Callable[[int], None] | None = None,
) -> EmbedSummary:
    """Embed all tiles of a store into `obsm/X_<name>`, (n, d) float32.

    The next batch is read while the encoder works on the present one.

    Args:
        store: the tiles.
        encoder: maps tiles to features.
        name: letters, digits, `_`, `.` and `-`.
        batch_size: tiles per forward pass.
        device: a torch device, or `auto`: the GPU where there is one.
        precision: of the network; `auto` is bf16 on a GPU that has it and fp32 elsewhere.
        existing: what to do with features of this name: `skip` keeps those this encoder made of these tiles and
            replaces all others; `error` keeps any.
        progress: called with the number of tiles done since the last call.

    Raises:
        SettingsError: if the name, the batch size or the device is not valid.
        TrainingError: if fp16 is asked for on a CPU.
        StoreError: if the store cannot be read or written; StoreExistsError for `existing="error"`.
        EvaluationError: if the store's resolution is over twice or under half the encoder's, or features overflow.
    """
    check_feature_name(name)
    if batch_size < 1:
        raise SettingsError(f"batch size {batch_size}: must be at least 1; pass a larger one")
    if existing == "error" and store.features_exist(name):
        raise StoreExistsError(
            f"store '{store.path.name}': has features {name!r}; choose another --name or --existing replace"
        )
    if existing == "skip" and _is_current(store, name, encoder):
        return EmbedSummary(store.slide_id, name, len(store), encoder.info.feature_dim, 0.0, skipped=True)
    _check_mpp(store, encoder)
    started = time.perf_counter()
    place = _resolve_device(device)
    used = pick_precision(precision, place)
    features = _forward(store, encoder.to(place), batch_size=batch_size, precision=used, progress=progress)
    if not np.isfinite(features).all():
        raise EvaluationError(
            f"slide {store.slide_id!r}: features are not finite in {used}; use --precision fp32 or another encoder"
        )
    write_features(store, name, features, _attributes(encoder, used))
    seconds = time.perf_counter() - started
    return EmbedSummary(store.slide_id, name, len(store), features.shape[1], seconds, skipped=False)


def _is_current(store: TileStore, name: str, encoder: Encoder) -> bool:
    if not store.features_exist(name):
        return False
    found = store.feature_attributes(name)
    return (found.get("encoder_hash"), found.get("tiles_id")) == (
        encoder.info.checkpoint_hash,
        store.attributes["tiles_id"],
    )


def _check_mpp(store: TileStore, encoder: Encoder) -> None:
    trained = encoder.info.mpp
    if trained is None:
        return  # random or natural-image weights have no resolution
    factor = max(store.mpp / trained, trained / store.mpp)
    what = f"slide {store.slide_id!r}: its tiles have {store.mpp:g} um/px, the encoder was trained at {trained:g}"
    if factor > MPP_LIMIT:
        raise EvaluationError(f"{what}: must be within a factor of {MPP_LIMIT:g}; tile with --mpp {trained:g}")
    if factor > 1 + MPP_WARNING:
        _logger.warning("%s; features may be poor, tile with --mpp %g", what, trained)


def _resolve_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise SettingsError(f"device {device!r}: is not a torch device; pass auto, cpu or cuda") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"device {device!r}: no CUDA device is available; pass auto or cpu")
    return place


def _forward(
    store: TileStore,
    encoder: Encoder,
    *,
    batch_size: int,
    precision: PrecisionName,
    progress: Callable[[int], None] | None,
) -> npt.NDArray[np.float32]:
    features = np.empty((len(store), encoder.info.feature_dim), np.float32)
    start = 0
    for tiles in _read_ahead(store, batch_size):
        stop = start + len(tiles)
        features[start:stop] = encoder.embed(tiles, precision=precision).float().cpu().numpy()
        start = stop
        if progress is not None:
            progress(len(tiles))
    return features


def _read_ahead(store: TileStore, batch_size: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield (b, s, s, 3) batches in storage order, reading one ahead in a thread."""
    batches = [np.arange(start, min(start + batch_size, len(store))) for start in range(0, len(store), batch_size)]
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-tiles") as reader:
        following = reader.submit(store.images.read, batches[0]) if batches else None
        for batch in batches[1:]:
            present, following = following, reader.submit(store.images.read, batch)
            if present is not None:
                yield present.result()
        if following is not None:
            yield following.result()


def _attributes(encoder: Encoder, precision: str) -> dict[str, Any]:
    info = encoder.info
    return {
        "encoder_hash": info.checkpoint_hash,
        "backbone": info.backbone,
        "objective": info.objective,
        "steps": info.steps,
        "mpp": info.mpp,
        "image_size_px": info.image_size_px,
        "precision": precision,
        "pretraining_patients": list(info.patients),
        "pretraining_slides": list(info.slides),
    }
